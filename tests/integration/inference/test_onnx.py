import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import peft
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import speech, texts
from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.errors import CheckpointError
from tltasks.hub.saved_model import load_saved_model
from tltasks.inference import onnx as exporting
from tltasks.inference import rescoring
from tltasks.tasks.base import OnnxInput

LORA = "{stage: transfer, steps: 2, batch_size: 8, learning_rate: 1e-2, adapt: {lora: {rank: 2}}}"


@pytest.fixture(scope="module", params=["vit", "timm-efficientnet"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with an adapter, and the file of the whole model."""
    folder = tmp_path_factory.mktemp(request.param)
    save_model(folder / "model", request.param)
    save_data(folder / "data", rows=16)
    path = write_recipe(folder / "r.yaml", folder / "model", folder / "data", stage=LORA)
    run_recipe(path, folder / "run")
    with mock.patch.object(rescoring, "answer_apart", rescoring.answer):
        assert main(["export", str(folder / "run"), "--compare", str(folder / "data" / "test.parquet")]) == 0
    return folder / "run"


def test_the_file_takes_any_number_of_images(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "onnx" / "model.onnx"))
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("pixel_values", [3, 32, 32])
    for n in (1, 5):
        assert session.run(None, {"pixel_values": np.zeros((n, 3, 32, 32), np.float32)})[0].shape == (n, 3)


def test_parity_is_said(exported: Path) -> None:
    about = json.loads((exported / "onnx" / "export.json").read_text())
    assert about["compared"] == about["same_answers"] == exporting.MADE_UP + 8
    assert about["largest_difference"] < exporting.TOLERANCE
    assert about["task"] == "image-classification"


def test_its_readme_runs_as_printed(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (exported / "onnx" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "torch" not in code
    monkeypatch.chdir(exported / "onnx")
    exec(code, {})
    assert capsys.readouterr().out.strip() in {"red", "green", "blue"}


def test_what_is_there_is_not_overwritten(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(exported)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_file_that_says_something_else_is_not_kept(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = exporting.compare

    def compared(model: Any, opened: Any, *rest: Any, **keys: Any) -> Any:
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(1.1)
        return plain(model, opened, *rest, **keys)

    monkeypatch.setattr(exporting, "compare", compared)
    assert main(["export", str(exported), "--output", str(tmp_path / "out")]) == 1
    assert "outputs of the file differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Net(nn.Module):
    """A layer whose outputs are logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(x))


def test_an_adapter_that_merging_changes_is_not_exported() -> None:
    torch.manual_seed(0)
    about = OnnxInput("x", [1, 4], (0,), lambda n: [], lambda value: torch.zeros(1, 4), "")
    config = peft.LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
    wrapped = peft.get_peft_model(Net(), config)
    whole = Net()
    whole.layer.load_state_dict(wrapped.base_model.model.layer.base_layer.state_dict())
    values = [torch.randn(1, 4)]
    with pytest.raises(CheckpointError, match=r"^export me: its adapter changes outputs by .* merging it by"):
        exporting.check_merged(wrapped, whole, about, values, display_name="me")
    with torch.no_grad():
        whole.layer.weight += wrapped.base_model.model.layer.get_delta_weight("default")
    exporting.check_merged(wrapped, whole, about, values, display_name="me")


def test_a_recogniser_hears_clips_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speech.save_ctc(tmp_path / "ctc")
    data = speech.save_data(tmp_path / "data", rows=8)
    stage = "{stage: transfer, steps: 2, batch_size: 4, learning_rate: 1e-2}"
    recipe = speech.write_recipe(tmp_path / "r.yaml", tmp_path / "ctc", data, stage=stage)
    run_recipe(recipe, tmp_path / "run")
    clips = [str(data / "clips" / f"test-{i}.wav") for i in range(3)]
    monkeypatch.setattr(rescoring, "answer_apart", rescoring.answer)
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--compare", *clips]) == 0
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (about["compared"], about["same_answers"]) == (7, 7)
    assert about["input"]["shape"] == [1, "time"]
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


def test_what_is_generated_is_no_single_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts.save_model(tmp_path / "t5")
    speech.save_whisper(tmp_path / "whisper", seconds=4)
    for name in ("t5", "whisper"):
        assert main(["export", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
        assert "generated token by token" in (said := capsys.readouterr().err)
        assert "--format ctranslate2 writes it" in said
    assert not (tmp_path / "out").exists()
    assert load_saved_model(str(tmp_path / "t5")).task.tag
