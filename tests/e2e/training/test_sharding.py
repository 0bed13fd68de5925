"""Weights, gradients and moments shared out by FSDP 2: the same run as without it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.training.test_processes import classifier, contrast, gpt2, t5, wav2vec2, whisper
from tests.tiny.runs import FSDP, in_processes, largest_difference, run_recipe, weights
from tltasks.errors import RecipeError
from tltasks.results.result import load_result
from tltasks.training.tracking import read_metrics

LORA = (
    "{stage: transfer, steps: 6, batch_size: 7, learning_rate: 2e-3, adapt: {lora: {rank: 2}}, checkpoint_every: 2, "
    "evaluate_every: 3, ema: 0.9, gradient_checkpointing: true}"
)
"""AdamW's moments, an average of weights and gradients that are clipped; seven rows are three passes and two."""
SPLIT = ("--set", "stages.0.micro_batch=2")


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(output / "metrics.jsonl") if row["split"] == "train"]


@pytest.mark.parametrize("processes", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_run_of_shares_goes_on(processes: int, tmp_path: Path) -> None:
    """On machines that do not see process 0's results folder, by which they would begin anew; or in one process."""
    recipe = classifier(tmp_path, LORA)
    run_recipe(recipe, tmp_path / "one")
    in_processes(2, recipe, tmp_path / "shared", *SPLIT, stop_at_step=3, variables=FSDP, apart=True)
    assert len(losses(tmp_path / "shared")) < 6
    if processes == 2:
        in_processes(2, recipe, tmp_path / "shared", *SPLIT, "--resume", variables=FSDP, apart=True)
    else:
        run_recipe(recipe, tmp_path / "shared", "stages.0.micro_batch=2", resume=True)
    assert not list(tmp_path.glob("shared-of-1/*")), "process 0 alone keeps results"
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "shared")) < 1e-6


@pytest.mark.exhaustive
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("recipe_of", [classifier, contrast, whisper, wav2vec2, t5, gpt2])
def test_shares_make_the_same_steps(recipe_of: Callable[[Path], Path], count: int, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    split = () if recipe_of is contrast else SPLIT
    run_recipe(recipe, tmp_path / "one")
    in_processes(count, recipe, tmp_path / "shared", *split, variables=FSDP)
    one, shared = (load_result(tmp_path / name / "result.json") for name in ("one", "shared"))
    assert (one.hardware["distributed"], shared.hardware["distributed"]) == ("no", "fsdp2")
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "one"), abs=3e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "shared")) < 1e-6
    assert one.stages[0].metrics["test"].values == pytest.approx(shared.stages[0].metrics["test"].values, abs=1e-5)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optimizer=muon", "optimizer: muon is not supported where FSDP 2"),
        ("compile=true", "compile: true is not"),
        ("batch_norm=batch", "batch_norm: batch is not"),
        ("l2_sp={alpha: 0.1, beta: 0.1} adapt=full", "l2_sp is not"),
        ("adapt={adalora: {}}", r"stages\[0\].adapt.adalora is not"),
        ("base_dtype=int8", "base_dtype: int8 is not"),
    ],
)
def test_keys_that_need_whole_weights_are_refused(
    tiny: Path, tmp_path: Path, key: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=said):
        run_recipe(tiny / "recipe.yaml", tmp_path / "out", *(f"stages.0.{it}" for it in re.split(r" (?=\w+=)", key)))
