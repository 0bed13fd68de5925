"""What a recipe's model may stand for besides a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tltasks.hub.saved_model
from tests.tiny import images
from tests.tiny.runs import run_recipe, weights
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError
from tltasks.hub.saved_model import resolve_checkpoint
from tltasks.results.result import load_result

TAG = "image-classification"


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter of a checkpoint beside it."""
    monkeypatch.setattr(tltasks.hub.saved_model, "MERGED", tmp_path / "cache")
    base, folder = images.save_model(tmp_path / "vit"), tmp_path / "adapter"
    model = transformers.AutoModelForImageClassification.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, base_model_name_or_path=str(base))
    peft.get_peft_model(model, config).save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(base / name, folder)
    return folder


def test_any_other_checkpoint_is_what_it_is(tmp_path: Path) -> None:
    source = Checkpoint(str(images.save_model(tmp_path / "vit")), display_name="vit")
    found = resolve_checkpoint(source, tag=TAG)
    assert (found.checkpoint, found.lineage, found.notes) == (source, [], [])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 on transformers 5.24
def test_an_adapter_is_merged_once(adapter: Path, tmp_path: Path) -> None:
    found = resolve_checkpoint(Checkpoint(str(adapter), display_name="mine"), tag=TAG).checkpoint
    assert found.display_name == "mine"
    assert Path(found.name).parent == tmp_path / "cache"
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "vit", Path(found.name)))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("query.weight")}
    stamp = (Path(found.name) / "model.safetensors").stat().st_mtime_ns
    assert resolve_checkpoint(Checkpoint(str(adapter)), tag=TAG).checkpoint.name == found.name
    assert (Path(found.name) / "model.safetensors").stat().st_mtime_ns == stamp
    shutil.rmtree(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"is an adapter for .*vit, which is not there"):
        resolve_checkpoint(Checkpoint(str(adapter), display_name="mine"), tag=TAG)


def test_a_run_goes_on_from_the_results_of_another(tmp_path: Path) -> None:
    base, data = images.save_model(tmp_path / "vit"), images.save_data(tmp_path / "data")
    stage = "{stage: %s, steps: 1, batch_size: 8, learning_rate: 1e-2}"
    run_recipe(images.write_recipe(tmp_path / "a.yaml", base, data, stage=stage % "transfer"), tmp_path / "first")
    recipe = images.write_recipe(tmp_path / "b.yaml", Path("./first"), data, stage="{stage: zero_shot}")
    same = run_recipe(recipe, tmp_path / "same").stages[0]
    first = load_result(tmp_path / "first" / "result.json")
    assert same.metrics["test"].values == first.stages[0].metrics["test"].values
    assert [step.recipe_sha256 for step in same.lineage] == [first.recipe_sha256]
    further = run_recipe(recipe, tmp_path / "further", f"stages=[{stage % 'finetune'}]")
    assert further.stages[0].weights.name == "first"
    assert any(not torch.equal(a, weights(tmp_path / "first")[n]) for n, a in weights(tmp_path / "further").items())
    (tmp_path / "first" / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"first: its run has not finished, so there is no model yet\. Go on"):
        resolve_checkpoint(Checkpoint(str(tmp_path / "first")), tag=TAG)
