"""What `tltasks doctor MODEL` and `tltasks.examine` say of a model, by its configuration and tokenizer alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
import transformers
from huggingface_hub import close_session
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

import tltasks
from tests.hub_server import HubServer
from tests.tiny import images, speech, texts, topics
from tests.tiny.hub import files_of
from tltasks.cli.commands import main
from tltasks.errors import CheckpointError


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    offline = {"HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(tmp_path / "no-token")}
    for name, value in {**offline, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with disable_progress_bars(), HubServer() as running:
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr(
            "transformers.utils.hub._hf_api", None
        )  # which keeps the first address that it was made with
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
        close_session()


def without_weights(folder: Path) -> Path:
    """A checkpoint's folder with empty files of weights, which nothing can be read of."""
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    return folder


def test_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = without_weights(images.save_model(tmp_path / "vit", "vit"))
    assert main(["doctor", str(folder), "--json", "--micro-batch", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    task = next(it for it in told["tasks"] if it["task"] == "image-classification")
    model = transformers.AutoModelForImageClassification.from_config(transformers.AutoConfig.from_pretrained(folder))
    whole = sum(p.numel() for p in model.parameters())
    assert task["parameters"] == whole - sum(p.numel() for p in model.classifier.parameters()) + 2 * 33
    assert task["stages"] == {"finetune": None, "transfer": None}
    assert task["head"] == ["classifier"]
    methods = {it["method"]: it for it in task["methods"]}
    assert methods["full"]["trained"] == task["parameters"]
    assert methods["head"]["trained"] == 66
    assert 66 < methods["lora"]["trained"] < whole
    assert methods["lora"]["layers"] == sum(isinstance(it, torch.nn.Linear) for it in model.modules()) - 1
    for method in ("full", "head", "lora"):
        for parts in methods[method]["memory"].values():
            assert parts["total"] == sum(parts[k] for k in ("weights", "gradients", "optimizer", "activations"))
    assert methods["full"]["memory"]["fp32"]["optimizer"] == 8 * task["parameters"]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("save", "task", "stages", "said"),
    [
        (lambda f: texts.save_model(f, "t5"), "summarization", {"finetune"}, "has no biases to train"),
        (lambda f: texts.save_model(f, "llama"), "summarization", {"finetune"}, "LlamaForCausalLM"),
        (lambda f: topics.save_model(f), "text-classification", {"transfer"}, "stage: transfer  yes"),
        (speech.save_whisper, "automatic-speech-recognition", {"finetune"}, "no head of its own"),
    ],
)
def test_models_of_other_tasks(
    save: object,
    task: str,
    stages: set[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert callable(save)
    save(tmp_path)
    without_weights(tmp_path)
    assert main(["doctor", str(tmp_path), "--task", task, "--micro-batch", "1"]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert f"{task}: " in shown
    assert main(["doctor", str(tmp_path), "--task", task, "--micro-batch", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["tasks"]
    assert {stage for stage, refused in found["stages"].items() if refused is None} == stages
    measured = [it["memory"] for it in found["methods"] if it["method"] in ("full", "lora")]
    assert [it.keys() for it in measured] == 2 * [{"fp32", "bf16"}]
    for memory in measured:
        assert memory["bf16"]["activations"] > 0
        assert memory["fp32"]["total"] > memory["fp32"]["activations"] > 0


def test_of_the_hub_no_weights_are_fetched(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add_repo("ada/bert", files_of(topics.save_model(tmp_path / "bert")))
    assert main(["doctor", "ada/bert", "--task", "text-classification"]) == 0
    assert "text-classification: Bert" in capsys.readouterr().out
    fetched = [request.path for request in server.requests if "/resolve/" in request.path]
    assert any(path.endswith("config.json") for path in fetched)
    assert not any("safetensors" in path for path in fetched)


def test_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    assert main(["doctor", str(unknown)]) == 1
    assert "no task for this architecture" in capsys.readouterr().out
    pickled = images.save_model(tmp_path / "pickled", "vit")
    for path in pickled.glob("*.safetensors"):
        path.rename(pickled / "pytorch_model.bin")
    assert main(["doctor", str(pickled), "--task", "image-classification"]) == 1
    assert "in pytorch_model.bin, a pickle" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="cannot be opened"):
        tltasks.examine(str(tmp_path))
    assert main(["doctor", str(unknown), "--task", "image-clasification"]) == 2
    assert "did you mean `image-classification`?" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_an_adapter_is_told_as_its_base(tmp_path: Path) -> None:
    base = topics.save_model(tmp_path / "base")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    shutil.copy(base / "tokenizer.json", tmp_path / "adapter")
    found = tltasks.examine(str(tmp_path / "adapter"), task="text-classification")
    assert found.is_of_use
    assert f"an adapter (LORA) for {base}" in found.notes[0]
