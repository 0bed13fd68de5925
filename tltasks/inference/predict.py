"""Predictions for inputs that nobody has labelled, as a stream: read, encode, predict, write, a few at a time."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import datasets
import pyarrow as pa
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tltasks.data.splits import Split
from tltasks.errors import DataError, RecipeError
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference.inputs import Inputs, Item, check_arguments
from tltasks.inference.prediction_writer import Answer, check_output, key, open_answers
from tltasks.runtime import devices
from tltasks.runtime.precision import choose_precision
from tltasks.tasks.base import Columns, InputKind, Task
from tltasks.training.evaluation import predict_rows

CHUNK_ROWS = 64
"""Inputs that are read, predicted and written together: enough to put those of like length into one pass."""
CHUNK_BYTES = 2**25
"""Of files; sound and pictures are several times as large when they are decoded."""
SHOWN_ERRORS = 10


@dataclass
class Count:
    """How far it came."""

    predicted: int = 0
    failed: int = 0
    earlier: int = 0
    """Inputs that the output already had."""
    errors: list[str] = field(default_factory=list)
    """The first of them."""


@dataclass(frozen=True)
class Predictor:
    """A model on its device, ready to answer."""

    task: Task
    model: nn.Module
    accelerator: Accelerator

    @classmethod
    def load(cls, trained: SavedModel, device: torch.device, *, precision: str | None = None) -> Self:
        """Load the weights, in the number format of the training unless another is named."""
        number_format = choose_precision(precision or trained.precision(device), device)
        accelerator = Accelerator(mixed_precision="no" if number_format == "fp32" else number_format)
        model = trained.build(device=accelerator.device, precision=number_format)
        return cls(trained.task, model, accelerator)

    def answers(
        self, inputs: Iterable[Item], done: Container[int] = (), *, top_k: int, workers: int | None = None
    ) -> Iterator[tuple[list[Answer], int]]:
        """Answers in the order of the inputs, a chunk at a time, and how many before each are done already."""
        task, accelerator = self.task, self.accelerator
        workers = devices.loader_workers(accelerator.device, 1, workers)
        rows = devices.pass_budget(accelerator.device, CHUNK_ROWS)
        chunks = _chunks(inputs, done, rows)
        # The sampler runs here and hands each chunk to a worker: standard input has one reader, and order is kept.
        loader: DataLoader[_Chunk] = DataLoader(
            _Encoding(task), sampler=chunks, batch_size=None, num_workers=workers, collate_fn=_as_it_is
        )
        for chunk in loader:
            found: list[Answer] = [{"input": item.name, "row": item.row} for item in chunk.items]
            for answer, error in zip(found, chunk.encoded["error"], strict=True):
                answer["error"] = error
            good = [i for i, error in enumerate(chunk.encoded["error"]) if error is None]
            if good:
                columns = {name: [chunk.encoded[name][i] for i in good] for name in task.features}
                # Objectives hide parts of a row by its number: with one for all, no answer depends on the others.
                columns["row"] = [0] * len(good)
                features = datasets.Features({**task.features, "row": datasets.Value("int64")})
                encoded = datasets.Dataset.from_dict(columns, features=features)
                predictions = predict_rows(accelerator, task, self.model, encoded, workers=0)
                for i, prediction in zip(good, predictions, strict=True):
                    found[i] |= task.to_output(prediction, top_k=top_k)
            yield found, chunk.passed_over


def predict(
    name: str,
    arguments: list[str],
    *,
    output: Path | None,
    resume: bool,
    tag: str | None,
    revision: str,
    trust_remote_code: bool,
    column: str | None,
    top_k: int,
    precision: str | None,
    fetches: bool = False,
) -> Count:
    """Predict every input and write the answers to `output`, or as JSON lines to standard output.

    Raises a TltasksError before anything is read for what cannot work, and KeyboardInterrupt with the output valid.
    """
    check_arguments(arguments, fetches=fetches)
    if output is not None:
        check_output(output, resume=resume)
    elif resume:
        raise RecipeError("--resume: needs --output, the file to complete.")
    state = devices.init_distributed()
    if state.num_processes > 1:
        raise RecipeError("predict runs in one process; start it without a launcher, on a part of the inputs each.")
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    trained = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust_remote_code)
    task = trained.task
    inputs = Inputs(arguments, task.input_kind, [column] if column else trained.columns, fetches=fetches)
    predictor = Predictor.load(trained, state.device, precision=precision)

    answers = open_answers(output, _schema(task), resume=resume)
    count, total = Count(), inputs.count()
    with (
        devices.interruptible() as hold,
        tqdm(total=total, unit=f" {task.input_kind.column}s", disable=None, dynamic_ncols=True) as bar,
    ):
        try:
            for found, passed_over in predictor.answers(inputs, answers.done, top_k=top_k):
                with hold():
                    answers.write(found)
                    _note(count, found, passed_over)
                bar.update(len(found) + passed_over)
        finally:
            with hold():
                answers.close()
    return count


def say(console: Console, count: Count, where: Path | None) -> None:
    """How it went, where somebody watches or there is a fault: the first inputs that had no answer, and how many."""
    if not console.is_terminal and not count.failed:
        return
    for error in count.errors:
        console.print(error, markup=False, soft_wrap=True)
    if count.failed > len(count.errors):
        console.print(f"… and {count.failed - len(count.errors):,} more")
    before = f", {count.earlier:,} were there already" if count.earlier else ""
    failed = f", {count.failed:,} could not be" if count.failed else ""
    console.print(f"{count.predicted:,} predicted{failed}{before}{f': {where}' if where else ''}", soft_wrap=True)


def _note(count: Count, answers: list[Answer], passed_over: int) -> None:
    failed = [answer for answer in answers if answer.get("error") is not None]
    for answer in failed[: SHOWN_ERRORS - len(count.errors)]:
        at = f" row {answer['row']}" if answer["row"] is not None else ""
        count.errors.append(f"{answer['input']}{at}: {answer['error']}")
    count.failed += len(failed)
    count.predicted += len(answers) - len(failed)
    count.earlier += passed_over


def _schema(task: Task) -> pa.Schema:
    first = [pa.field("input", pa.string()), pa.field("row", pa.int64())]
    return pa.schema([*first, *task.output_features.arrow_schema, pa.field("error", pa.string())])


@dataclass(frozen=True)
class _Chunk:
    """Inputs that go through together; `encoded` has a value of each, once they are read."""

    items: list[Item]
    passed_over: int
    """Inputs before these that are done already."""
    encoded: Columns = field(default_factory=dict)


def _chunks(inputs: Iterable[Item], done: Container[int], most_rows: int) -> Iterator[_Chunk]:
    items: list[Item] = []
    passed_over = size = 0
    for item in inputs:
        if done and key(item.name, item.row) in done:
            passed_over += 1
            continue
        if items and (len(items) >= most_rows or size + item.size > CHUNK_BYTES):
            yield _Chunk(items, passed_over)
            items, passed_over, size = [], 0, 0
        items.append(item)
        size += item.size
    if items or passed_over:
        yield _Chunk(items, passed_over)


class _Encoding(Dataset[_Chunk]):
    """Reads and encodes a chunk, in whichever process it is."""

    def __init__(self, task: Task) -> None:
        self.task = task
        column: InputKind = task.input_kind
        rows = datasets.Dataset.from_dict({column.column: []})
        self.split = Split("predict", rows, origin="", folder=None, place="")

    def __getitem__(self, chunk: _Chunk) -> _Chunk:
        values, errors = [], {}
        for i, item in enumerate(chunk.items):
            try:
                values.append(item.read(self.task.input_kind))
            except DataError as reason:
                values.append(None)
                errors[i] = str(reason)
        batch = {self.task.input_kind.column: values, "row": list(range(len(values)))}
        encoded = self.task.preprocess(self.split)(batch) if values else {"error": []}
        for i, error in errors.items():
            encoded["error"][i] = error
        return _Chunk(chunk.items, chunk.passed_over, encoded)


def _as_it_is(chunk: Any) -> Any:
    return chunk


def console() -> Console:
    """Standard error, which a reader of the answers does not see."""
    return Console(file=sys.stderr, highlight=False)
