"""The evaluation loop: predictions and features by row, however many devices take part, and scores with baselines."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import nn

from tltasks.data.batching import micro_batches
from tltasks.data.cache_keys import code_version
from tltasks.data.splits import EncodedSplit
from tltasks.errors import TrainingError, first_line
from tltasks.metrics import paired_difference
from tltasks.models.writing import fast_passes
from tltasks.results.result import Attribution, GroupScore, Score
from tltasks.runtime.devices import Resident, is_out_of_memory, pass_budget
from tltasks.runtime.files import whole_file
from tltasks.runtime.precision import choose_attention, multiplies_in_16_bits
from tltasks.runtime.progress import Bar
from tltasks.tasks.base import (
    Batch,
    Embeds,
    Explains,
    Outputs,
    Prediction,
    References,
    Rescore,
    TaskBase,
    config_content,
)
from tltasks.training.batches import read_batches

NEIGHBOUR_ROWS = 5000
"""Training rows that the nearest-neighbour baseline looks at; more would cost as much as an epoch."""
EXPLAINED_ROWS = 8
"""Mistakes that the report explains, at most."""
ROWS_FOR_EACH = 25
"""Rows predicted for each of them: as one takes the passes of 50 rows, all take at most twice what predicting takes."""

T = TypeVar("T")
Features = NDArray[np.float32]
"""[rows, width]."""
Predict = Callable[[nn.Module, datasets.Dataset], list[Prediction]]


class Processes(Protocol):
    """The part of an Accelerator that predictions need."""

    @property
    def device(self) -> torch.device: ...
    @property
    def process_index(self) -> int: ...
    @property
    def num_processes(self) -> int: ...
    def autocast(self) -> AbstractContextManager[object]: ...


@contextmanager
def _answering(accelerator: Processes) -> Iterator[None]:
    """Surroundings of passes that train nothing."""
    # Not in inference mode: BEiT keeps a tensor of its first pass for all models of the process, and could train none
    # of them then (transformers 5.24, modeling_beit.py).
    with torch.no_grad(), accelerator.autocast(), fast_passes(products=multiplies_in_16_bits()):
        yield


def _for_each_row(
    accelerator: Processes,
    task: TaskBase,
    model: nn.Module,
    rows: datasets.Dataset,
    function: Callable[[Batch], Iterable[T]],
    *,
    workers: int,
    passes: int = 1,
    doing: str = "predicting",
) -> list[T]:
    """Apply `function` to every row: in their order, on every process, and each row computed by one process only.

    `passes`: the rows of so many passes of a CPU are in a batch.
    """
    model.to(accelerator.device).eval()
    lengths, rank = task.lengths(rows), accelerator.process_index
    budget = pass_budget(accelerator.device, task.cpu_batch_budget)
    budget *= passes if accelerator.device.type == "cpu" else 1
    left = np.arange(rank, len(rows), accelerator.num_processes)
    # One place a row: what is kept beside it would grow with the data.
    found: list[T] = [None] * len(rows)  # type: ignore[list-item]
    done, resident = np.zeros(len(rows), bool), Resident(accelerator.device)
    bar = Bar(doing, len(left), "rows" if accelerator.num_processes == 1 else "rows of this process")
    while len(left):
        pieces = micro_batches(left, world=1, rank=0, max_rows=len(left), lengths=lengths, budget=budget)
        batches = read_batches(partial(task.collate_eval, rows), pieces, workers=workers)
        piece = pieces[0]
        try:
            for piece, batch in zip(pieces, batches, strict=True):
                with _answering(accelerator):
                    values = function(send_to_device(batch, accelerator.device))
                for row, value in zip(piece.tolist(), values, strict=True):
                    found[row] = value
                done[piece] = True
                bar.update(len(piece))
                resident.bound()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(piece) == 1:  # the one that failed, which need not be the one with the longest row
                raise TrainingError("out of memory while evaluating one example; make examples smaller.") from error
            budget = (budget + 1) // 2
            torch.cuda.empty_cache()
        left = left[~done[left]]
    bar.close()
    if (world := accelerator.num_processes) > 1:
        for i, share in enumerate(gather_object([found[rank::world]])):
            found[i::world] = share
    return found


def predict_rows(
    accelerator: Processes, task: TaskBase, model: nn.Module, rows: datasets.Dataset, *, workers: int
) -> list[Prediction]:
    """One prediction for each row, in order."""
    passes, predict = task.passes_together, partial(task.predict, model)
    return _for_each_row(accelerator, task, model, rows, predict, workers=workers, passes=passes)


def explain_mistakes(
    accelerator: Processes,
    task: Explains,
    model: nn.Module,
    rows: datasets.Dataset,
    wrong: Mapping[int, int | None],
) -> list[Attribution]:
    """Which parts of the first rows of `wrong` the class goes by that each is given, on every process the same; empty
    where there is no class.

    Of a model that does not bear it, the first has the reason in the place of a picture, and the others are left out.
    """
    model.to(accelerator.device).eval()
    found, most = list[Attribution](), min(EXPLAINED_ROWS, max(2, len(rows) // ROWS_FOR_EACH))
    with Bar("explaining", min(len(wrong), most), "mistakes") as bar:
        for row, answer in list(wrong.items())[:most]:
            batch = send_to_device(task.collate_eval(rows, [row]), accelerator.device)
            try:
                with _answering(accelerator):
                    found.append(Attribution() if answer is None else task.explain(model, batch, answer))
            except Exception as error:  # no picture is worth a trained model
                return [Attribution(b"", first_line(error))]
            bar.update()
    return found


def embed_rows(
    accelerator: Processes, task: TaskBase, model: nn.Module, rows: datasets.Dataset, *, workers: int
) -> NDArray[np.float32]:
    """The representation of each row by a task that has one, [rows, width]."""
    assert isinstance(task, Embeds)

    def embed(batch: Batch) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = task.embed(model, batch).float().cpu().numpy()
        return vectors

    return np.stack(_for_each_row(accelerator, task, model, rows, embed, workers=workers, doing="features"))


def cached_features(
    accelerator: Accelerator, task: TaskBase, model: nn.Module, head: str, split: EncodedSplit, *, workers: int
) -> Features:
    """The features that the head receives, [rows, width]: from the cache, or computed once and put there.

    The key is the content of the weights below the head and of the rows, and what they are encoded and computed with.
    """
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    choose_attention(model, tokens=task.sequence_length, device=accelerator.device, precision=precision)
    key = hashlib.sha256()
    config = config_content(model.config)
    attention = getattr(model.config, "_attn_implementation", None)
    for part in (type(model).__name__, config, attention, task.cache_key, split.fingerprint, code_version()):
        key.update(f"{part}\0".encode())
    key.update(f"{accelerator.mixed_precision}\0".encode())
    key.update(accelerator.device.type.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(f"{head}."):
            key.update(name.encode())
            key.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    path = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-features" / f"{key.hexdigest()[:32]}.safetensors"
    found = _read(path)
    # All processes have to agree, since computing takes all of them.
    known = accelerator.reduce(torch.tensor(float(found is not None), device=accelerator.device), "sum")
    if found is not None and float(known) == accelerator.num_processes:
        return found
    features = embed_rows(accelerator, task, model, split.rows, workers=workers)
    if accelerator.is_main_process:
        with whole_file(path) as temporary:
            save_file({"features": np.ascontiguousarray(features)}, temporary)
    accelerator.wait_for_everyone()
    return features


def _read(path: Path) -> Features | None:
    """Features from the cache; a damaged file is as good as none."""
    try:
        features: Features = load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
    return features


def forward_outputs(accelerator: Processes, task: TaskBase, model: nn.Module, rows: datasets.Dataset) -> list[Outputs]:
    """The outputs of single rows in fp32, whatever the precision of the run, on every process the same."""
    model.to(accelerator.device).eval()
    found: list[Outputs] = []
    # cuDNN's convolutions round to TF32 otherwise.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for row in range(len(rows)):
            batch = send_to_device(task.collate_outputs(rows, [row]), accelerator.device)
            found.append({name: values.float().cpu() for name, values in task.outputs(model, batch).items()})
    return found


def largest_difference(ours: Sequence[Outputs], theirs: Sequence[Outputs]) -> float:
    """The largest difference of two models' outputs, as a share of the largest output of its name.

    >>> one, other = {"logits": torch.tensor([1.0, 4.0])}, {"logits": torch.tensor([1.0, 3.0])}
    >>> largest_difference([one], [one]), largest_difference([one], [other])
    (0.0, 0.25)
    """
    worst = 0.0
    for name in ours[0]:
        a, b = (torch.cat([row[name].flatten() for row in of]) for of in (ours, theirs))
        if a.shape != b.shape:
            return math.inf
        unlike = ~torch.isclose(a, b, rtol=0, atol=0, equal_nan=True)
        if unlike.any():
            share = float((a - b)[unlike].abs().max() / a[a.isfinite()].abs().max())
            worst = max(worst, math.inf if math.isnan(share) else share)
    return worst


def merging_makes(effect: float) -> float:
    """The largest difference that merging an adapter of such an `effect` may make, both as `largest_difference`.

    Rounding in fp32 makes 1e-7 in tiny models and 1e-5 in Whisper base; an adapter that is merged into another function
    of the weight errs by all of its effect.

    >>> merging_makes(0.5), merging_makes(1e-4)
    (0.005, 0.0001)
    """
    return max(1e-4, 1e-2 * effect)


def drawn_rows(n_rows: int, most: int | None, *, seed: int) -> list[int]:
    """All rows, or a sample of `most` drawn with the seed, in order."""
    if most is None or n_rows <= most:
        return list(range(n_rows))
    return sorted(np.random.default_rng(seed).choice(n_rows, most, replace=False).tolist())


def settle(
    task: TaskBase,
    predictions: dict[str, list[Prediction]],
    splits: Mapping[str, EncodedSplit],
    *,
    calibrates: bool = False,
) -> tuple[TaskBase, dict[str, list[Prediction]]]:
    """The task with what it chooses on `validation`, if that is among the splits, and predictions by that choice."""
    if "validation" not in predictions:
        return task, {name: task.decided(predicted) for name, predicted in predictions.items()}
    references = task.references(splits["validation"].rows)
    task = task.settled(predictions["validation"], references)
    found = {name: task.decided(predicted) for name, predicted in predictions.items()}
    return task.calibrated(found, references) if calibrates else (task, found)


def score_beside_baselines(
    task: TaskBase,
    predictions: list[Prediction],
    references: References,
    baselines: dict[str, list[Prediction]],
    *,
    extra: Sequence[Rescore] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Score, dict[str, Score]]:
    """The score, and that of each baseline with the interval of the paired difference on the same rows.

    All have passed through `extra`, which adds metrics to their values, and have scores of the rows of each group.
    """

    def scored(predicted: list[Prediction]) -> Score:
        score = task.score(predicted, references, intervals=True)
        columns = task.columns(predicted, references) if extra else {}
        for rescore in extra:
            score = rescore(score, columns)
        return score

    ours = task.row_scores(predictions, references)
    beside = {}
    for name, theirs in baselines.items():
        score = scored(theirs)
        interval = paired_difference(ours, task.row_scores(theirs, references), most=task.top_score)
        beside[name] = Score(score.values, score.headline, score.ci95, difference_ci95=interval)
    own = scored(predictions)
    for by, of_rows in (groups or {}).items():
        found: dict[str, dict[str, GroupScore]] = {}
        for group, _ in Counter(of_rows).most_common():
            some = [row for row, name in enumerate(of_rows) if name == group]
            others = {name: [predicted[row] for row in some] for name, predicted in baselines.items()}
            its, beside_its = score_beside_baselines(
                task, [predictions[row] for row in some], [references[row] for row in some], others
            )
            for name, score in {"": its, **beside_its}.items():
                scored_group = GroupScore(len(some), score.value, score.ci95, score.difference_ci95)
                found.setdefault(name, {})[group] = scored_group
        own = replace(own, groups=own.groups | {by: found[""]})
        beside = {name: replace(it, groups=it.groups | {by: found[name]}) for name, it in beside.items()}
    return own, beside


def write_predictions(
    path: Path, task: TaskBase, rows: datasets.Dataset, predictions: list[Prediction], references: References
) -> None:
    """Write a line for each row: row, path where it has one, prediction, reference, and what else the task knows."""
    known = {name: list(rows[name]) for name in ("row", "path") if name in rows.column_names}
    table = pa.table({**known, **task.columns(predictions, references)})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
