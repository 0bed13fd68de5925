"""`micro_batch: auto` on a stand-in for an accelerator, and memory that is short on one of several processes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.images import save_model, write_recipe
from tests.tiny.runs import equal, in_processes, largest_difference, run_recipe, weights
from tltasks.tasks.image.classification import ImageClassification
from tltasks.training import loop
from tltasks.training.micro_batches import Passes

STAGE = "{stage: transfer, steps: 4, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full, keep: last}"


@pytest.fixture(scope="module")
def exact(tiny: Path) -> Path:
    return write_recipe(tiny / "sizes.yaml", Path("vit"), Path("data"), stage=STAGE)


@pytest.fixture(scope="module")
def whole(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(exact, output, "stages.0.micro_batch=8")
    return weights(output)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A device that gains by size, whose usual pass takes one row and each pass a second; rows of those tried."""
    found: list[int] = []
    seconds = Passes.seconds

    def counted(self: Passes, batches: Sequence[dict[str, torch.Tensor]], *, reserve: int) -> float:
        found.extend(len(batch["labels"]) for batch in batches[:1])
        return math.inf if seconds(self, batches, reserve=reserve) == math.inf else float(len(batches))

    monkeypatch.setattr(Passes, "seconds", counted)
    monkeypatch.setattr(loop, "gains_by_size", lambda device: True)
    monkeypatch.setattr(loop, "LEAST_STEPS", 1)
    monkeypatch.setattr(ImageClassification, "cpu_training_budget", 1)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_the_fastest_size_is_found_once_and_changes_no_weights(
    exact: Path, whole: dict[str, torch.Tensor], tried: list[int], tmp_path: Path
) -> None:
    training = run_recipe(exact, tmp_path / "run").stages[0].training
    assert training is not None
    assert (tried, training.doublings, training.pass_rows) == ([1, 1, 2, 2, 4, 4, 8, 8], 3, 8)
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6
    tried.clear()
    again = run_recipe(exact, tmp_path / "again").stages[0].training
    assert again is not None
    assert (tried, again.doublings) == ([], 3)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "again"))


def test_results_that_depend_on_the_size_do_not_depend_on_what_was_measured(
    exact: Path, tried: list[int], tmp_path: Path
) -> None:
    model = save_model(tmp_path / "resnet", "resnet")
    batches = ("stages.0.batch_norm=batch", f"model.name={model}")
    training = run_recipe(exact, tmp_path / "run", *batches).stages[0].training
    assert training is not None
    assert (tried, training.doublings) == ([], 0)


def scarce(most: int, refused: list[int]) -> Any:
    """A loss for which more rows have no memory."""
    loss = ImageClassification.loss

    def short(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["labels"]) > most:
            refused.append(len(batch["labels"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, model, batch)

    return short


def test_a_size_that_does_not_fit_is_not_taken(
    exact: Path, whole: dict[str, torch.Tensor], tried: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []
    monkeypatch.setattr(ImageClassification, "loss", scarce(3, refused))
    training = run_recipe(exact, tmp_path / "run").stages[0].training
    assert training is not None
    assert (refused, training.doublings, training.halvings, training.pass_rows) == ([4], 1, 0, 2)
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


ON_ONE_PROCESS = """
import os, sys, torch
from tltasks.cli.commands import main
from tltasks.tasks.image.classification import ImageClassification as Task
loss = Task.loss
def short(self, model, batch):
    if model.training and len(batch["labels"]) > MOST and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return loss(self, model, batch)
Task.loss = short
assert main(sys.argv[1:]) == 0
"""


def test_memory_that_does_not_suffice_on_one_of_two_processes_halves_on_both(
    exact: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    in_processes(2, exact, tmp_path / "run", code=ON_ONE_PROCESS.replace("MOST", "2"))
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6
    assert '"halvings": 1' in (tmp_path / "run" / "result.json").read_text()
