"""Prompt tuning: what is learnt stands before the text, and is all that is saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from tests.hub_server import HubServer
from tests.tiny import texts
from tests.tiny.host import Host
from tests.tiny.hub import files_of
from tests.tiny.images import save_data as save_pictures
from tests.tiny.images import save_model as save_vit
from tests.tiny.images import write_recipe as write_image_recipe
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.errors import RecipeError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
STAGE = "{stage: finetune, steps: 60, batch_size: 8, learning_rate: 5e-1, adapt: {prompt: {tokens: 4}}, keep: last}"


@pytest.fixture(scope="module", params=["t5", "bart"])
def ran(
    request: pytest.FixtureRequest, hub: HubServer, hub_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run with a base of the stand-in Hub, pushed; its folder, and that of the base."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    base = texts.save_model(folder / "base", name)
    repo = f"ada/{name}-base"
    hub.add_repo(repo, files_of(base))
    texts.save_data(folder / "data", rows=48)
    path = texts.write_recipe(
        folder / "r.yaml",
        Path(repo),
        folder / "data",
        stage=STAGE,
        output=str(folder / "run"),
        hub={"repo": f"ada/{name}"},
    )
    hub_host.run(folder / "log", "run", path, "--push")
    shutil.rmtree(folder / "run" / "model")
    inputs = folder / "data" / "test.jsonl"
    hub_host.run(folder / "log", "predict", f"ada/{name}", inputs, "--output", folder / "a.jsonl")
    return folder, base


def test_the_published_adapter_says_what_the_run_recorded(ran: tuple[Path, Path], hub: HubServer) -> None:
    folder, base = ran
    (path,) = (folder / "run" / "predictions").glob("*-test.parquet")
    recorded = pq.read_table(path)["prediction"].to_pylist()
    answers = [json.loads(line)["prediction"] for line in (folder / "a.jsonl").read_text().splitlines()]
    assert answers == recorded
    stage = json.loads((folder / "run" / "result.json").read_text())["stages"][0]
    assert stage["weights"]["adapter"] is True
    assert stage["trainable_parameters"] < 0.2 * stage["total_parameters"]
    repo = json.loads((folder / "run" / "result.json").read_text())["stages"][0]["weights"]["name"].removesuffix(
        "-base"
    )
    files = hub.files(repo)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files.keys()
    for name, content in files.items():
        (folder / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pulled" / name).write_bytes(content)
    tensors = load_file(folder / "pulled" / "adapter_model.safetensors")
    assert [len(tensor) for tensor in tensors.values()] == [4]
    plain = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, folder / "pulled").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "pulled")
    settings = GenerationConfig.from_pretrained(folder / "pulled")
    document = json.loads((folder / "data" / "test.jsonl").read_text().splitlines()[0])["document"]
    asked = stage["weights"]["settings"]["prompt"].replace("{document}", document)
    given = tokenizer(asked, return_tensors="pt")
    inputs = {key: given[key] for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        with_it = model.generate(**inputs, generation_config=settings)[0]
    assert tokenizer.decode(with_it, skip_special_tokens=True).strip() == recorded[0].strip()
    card = files["README.md"].decode()
    assert "an adapter (prompt tuning)" in card


@pytest.mark.parametrize("ran", ["t5"], indirect=True)  # the tiny BART has too small weights for a prompt to matter
def test_what_is_learnt_lowers_the_loss(ran: tuple[Path, Path]) -> None:
    folder, _ = ran
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert sum(losses[-10:]) < 0.985 * sum(losses[:10])


def test_a_local_checkpoint_is_refused(tmp_path: Path) -> None:
    texts.save_model(tmp_path / "t5")
    texts.save_data(tmp_path / "data")
    path = texts.write_recipe(tmp_path / "r.yaml", tmp_path / "t5", tmp_path / "data", stage=STAGE)
    with pytest.raises(RecipeError, match="must be one of the Hub"):
        run_recipe(path, tmp_path / "run")


def test_other_models_are_refused(hub: HubServer, hub_host: Host, tmp_path: Path) -> None:
    hub.add_repo("ada/gpt2", files_of(texts.save_model(tmp_path / "gpt2", "gpt2")))
    hub.add_repo("ada/vit", files_of(save_vit(tmp_path / "vit")))
    texts.save_data(tmp_path / "data")
    save_pictures(tmp_path / "pictures")
    stages = STAGE, STAGE.replace("finetune", "transfer")
    write = texts.write_recipe, write_image_recipe
    recipes: list[Any] = [
        write[i](tmp_path / f"{i}.yaml", Path(repo), tmp_path / data, stage=stages[i], output=str(tmp_path / f"out{i}"))
        for i, (repo, data) in enumerate((("ada/gpt2", "data"), ("ada/vit", "pictures")))
    ]
    for path in recipes:
        job = hub_host.start(path.with_suffix(".log"), "run", path)
        assert job.wait() > 0
        assert "virtual tokens are for encoder-decoders" in job.said()


def test_chains_do_not_go_on_from_virtual_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = "{stage: finetune, steps: 1, learning_rate: 1e-3}"
    second = "{stage: finetune, start: previous, steps: 1, learning_rate: 1e-3, adapt: prompt}"
    path = texts.write_recipe(tmp_path / "r.yaml", Path("a/b"), tmp_path, stage=f"{first}\n  - {second}")
    assert main(["check", str(path)]) == 2
    assert "starts from a checkpoint of the Hub" in capsys.readouterr().err
    turned = [first.replace("1e-3}", "1e-3, adapt: prompt}"), second.replace(", adapt: prompt", "")]
    texts.write_recipe(tmp_path / "r.yaml", Path("a/b"), tmp_path, stage="\n  - ".join(turned))
    assert main(["check", str(path)]) == 2
    assert "goes on from virtual tokens" in capsys.readouterr().err
