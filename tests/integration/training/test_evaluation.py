"""The loop that predicts by row, with a task whose model only adds up what it is given."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tltasks.errors import TrainingError
from tltasks.results.result import Score
from tltasks.training.evaluation import drawn_rows, embed_rows, predict_rows, score_beside_baselines, write_predictions


class Sums:
    """Predicts the sum of a row's numbers; rows are as long as `sizes` says, or of one length."""

    def __init__(self, sizes: list[int], *, bucketed: bool, budget: int, memory: int | None = None) -> None:
        self.sizes, self.bucketed, self.cpu_batch_budget, self.memory = sizes, bucketed, budget, memory
        self.passes: list[list[int]] = []
        """Rows of each pass that was tried."""

    top_score = 1.0
    passes_together = 1

    def lengths(self, rows: datasets.Dataset) -> list[int] | None:
        return self.sizes if self.bucketed else None

    def collate_eval(self, rows: datasets.Dataset, indices: list[int]) -> dict[str, torch.Tensor]:
        self.passes.append(indices)
        return {"x": torch.nn.utils.rnn.pad_sequence([torch.tensor(v) for v in rows[indices]["x"]], batch_first=True)}

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        assert not torch.is_grad_enabled()
        # Some models keep tensors of a pass for all models of the process, and none of these could be trained then.
        assert not torch.is_inference_mode_enabled()
        assert not model.training
        if self.memory is not None and batch["x"].numel() > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [{"prediction": float(total)} for total in batch["x"].sum(1)]

    def embed(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([batch["x"].sum(1), batch["x"].amax(1)], 1).to(torch.bfloat16)

    def knn_predict(self, known: np.ndarray, references: list[Any], vectors: np.ndarray) -> list[dict[str, Any]]:
        return [{"prediction": references[0]} for _ in vectors]

    def row_scores(self, predictions: list[dict[str, Any]], references: list[float]) -> np.ndarray:
        right = [float(p["prediction"] == r) for p, r in zip(predictions, references, strict=True)]
        return np.stack([right, np.ones(len(right))], axis=1)

    def score(self, predictions: list[dict[str, Any]], references: list[float], *, intervals: bool) -> Score:
        assert intervals
        return Score({"accuracy": float(self.row_scores(predictions, references)[:, 0].mean())}, "accuracy", (0.0, 1.0))

    def columns(self, predictions: list[dict[str, Any]], references: list[float]) -> dict[str, list[Any]]:
        return {"prediction": [p["prediction"] for p in predictions], "reference": references}


def rows_of(sizes: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"x": [[float(i + 1)] * size for i, size in enumerate(sizes)], "row": [10 * i for i in range(len(sizes))]}
    )


def predicted(task: Sums, rows: datasets.Dataset, workers: int = 0) -> list[float]:
    model = nn.Linear(1, 1).train()
    return [p["prediction"] for p in predict_rows(Accelerator(cpu=True), task, model, rows, workers=workers)]  # type: ignore[arg-type]


SIZES = [3, 9, 1, 7, 2, 9, 4, 1, 6, 5]
SUMS = [float((i + 1) * size) for i, size in enumerate(SIZES)]

# ---------------------------------------------------------------------------------------------- the loop


@pytest.mark.parametrize("workers", [0, 1])
def test_bucketed_rows_come_back_in_order(workers: int) -> None:
    task = Sums(SIZES, bucketed=True, budget=18)
    assert predicted(task, rows_of(SIZES), workers) == SUMS
    if not workers:
        read = [row for piece in task.passes for row in piece]
        assert read != sorted(read), "they were read by length"
        assert sorted(read) == list(range(len(SIZES)))
        assert max(len(piece) * max(SIZES[i] for i in piece) for piece in task.passes) <= 18


def test_rows_without_lengths_are_read_in_order_within_the_budget() -> None:
    sizes = [4] * 7
    task = Sums(sizes, bucketed=False, budget=3)
    assert predicted(task, rows_of(sizes)) == [4.0 * (i + 1) for i in range(7)]
    assert task.passes == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    task = Sums(SIZES, bucketed=True, budget=4)
    assert predicted(task, rows_of(SIZES)) == SUMS
    assert [1] in task.passes


@pytest.mark.parametrize("bucketed", [True, False])
def test_out_of_memory_makes_passes_smaller_and_repeats_no_row_that_was_done(bucketed: bool) -> None:
    sizes = SIZES if bucketed else [9] * 10
    task = Sums(sizes, bucketed=bucketed, budget=100, memory=20)
    done: list[int] = []
    predict = task.predict

    def count(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        values = predict(model, batch)
        done.extend(range(len(values)))
        return values

    task.predict = count  # type: ignore[method-assign]
    assert predicted(task, rows_of(sizes)) == [float((i + 1) * size) for i, size in enumerate(sizes)]
    assert len(done) == 10
    sizes_of_passes = [len(piece) for piece in task.passes]
    assert sizes_of_passes[0] == 10
    assert max(sizes_of_passes[-4:]) > 1, "no smaller than it must be"


def test_a_large_pass_may_fail_where_the_longest_row_alone_has_passed() -> None:
    """The first pass is one row of 10; the second, two of 8, is larger, and is what has to be split."""
    sizes = [10, 8, 8]
    task = Sums(sizes, bucketed=True, budget=16, memory=12)
    assert predicted(task, rows_of(sizes)) == [10.0, 16.0, 24.0]
    assert task.passes[:2] == [[0], [1, 2]]


def test_a_large_pass_behind_one_of_a_single_row_is_split_even_if_that_is_tried_first() -> None:
    sizes = [10, 9, 9, 9]
    task = Sums(sizes, bucketed=True, budget=27, memory=9 * 2)
    assert predicted(task, rows_of(sizes)) == [10.0, 18.0, 27.0, 36.0]


def test_memory_that_one_row_exceeds_is_an_error() -> None:
    with pytest.raises(TrainingError, match="one example"):
        predicted(Sums(SIZES, bucketed=True, budget=100, memory=8), rows_of(SIZES))


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    task = Sums(SIZES, bucketed=True, budget=100)

    def broken(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        raise RuntimeError("shapes do not match")

    task.predict = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        predicted(task, rows_of(SIZES))
    assert len(task.passes) == 1


def test_embeddings_are_rows_in_order_in_fp32() -> None:
    task = Sums(SIZES, bucketed=True, budget=12)
    vectors = embed_rows(Accelerator(cpu=True), task, nn.Linear(1, 1), rows_of(SIZES), workers=0)  # type: ignore[arg-type]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[total, float(i + 1)] for i, total in enumerate(SUMS)]


# ------------------------------------------------------------------------------------------ what is judged


def test_drawn_rows() -> None:
    assert drawn_rows(5, None, seed=0) == drawn_rows(5, 5, seed=0) == drawn_rows(5, 9, seed=0) == [0, 1, 2, 3, 4]
    some = drawn_rows(1000, 50, seed=3)
    assert len(set(some)) == 50
    assert some == sorted(some) == drawn_rows(1000, 50, seed=3)
    assert some != drawn_rows(1000, 50, seed=4)
    assert max(some) < 1000


def test_baselines_are_compared_on_the_same_rows() -> None:
    task = Sums(SIZES, bucketed=False, budget=1)
    references = [1.0] * 60
    ours = [{"prediction": 1.0}] * 54 + [{"prediction": 0.0}] * 6
    theirs = [{"prediction": 1.0}] * 30 + [{"prediction": 0.0}] * 30
    score, baselines = score_beside_baselines(
        task,  # type: ignore[arg-type]
        ours,
        references,
        {"theirs": theirs, "same": ours},
    )
    assert score.values["accuracy"] == 0.9
    assert baselines["theirs"].values["accuracy"] == 0.5
    low, high = baselines["theirs"].difference_ci95
    assert 0.2 < low < 0.4 < high < 0.6
    low, high = baselines["same"].difference_ci95
    assert -0.05 < low < 0 < high < 0.05, "that none of 60 differ does not say that none ever will"


def test_predictions_are_written_whole(tmp_path: Path) -> None:
    task = Sums([1, 1], bucketed=False, budget=1)
    path = tmp_path / "predictions" / "s-test.parquet"
    write_predictions(path, task, rows_of([1, 1]), [{"prediction": 1.0}, {"prediction": 5.0}], [1.0, 2.0])  # type: ignore[arg-type]
    assert pq.read_table(path).to_pydict() == {"row": [0, 10], "prediction": [1.0, 5.0], "reference": [1.0, 2.0]}
    assert [p.name for p in path.parent.iterdir()] == [path.name]
