"""Story of `tltasks predict`: check the arguments, load the model, predict every input and write the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from tltasks.config.answers import USUAL, Asked
from tltasks.errors import RecipeError, printable
from tltasks.inference.arguments import EACH, SUBTITLES, check_arguments, check_single
from tltasks.inference.inputs import Inputs, Item
from tltasks.inference.prediction_writer import check_output, key, open_writer
from tltasks.reports.console import open_terminal
from tltasks.runtime.progress import Bar
from tltasks.runtime.startup import without_collection

if TYPE_CHECKING:  # mistakes in the arguments are told before anything heavy is imported
    from tltasks.hub.saved_model import SavedModel
    from tltasks.inference.predictor import Output
    from tltasks.tasks.base import TaskBase

SHOWN_ERRORS = 10
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that spreadsheets take for a formula."""


@dataclass
class Counts:
    """Numbers of inputs by what became of them."""

    predicted: int = 0
    abstained: int = 0
    """Of these, such as were not sure enough."""
    failed: int = 0
    earlier: int = 0
    """Inputs that the output already had."""
    errors: list[str] = field(default_factory=list)
    """The first of them."""
    notes: list[str] = field(default_factory=list)
    """Files in folders that were passed over."""
    formulas: int = 0
    """Cells of a CSV file that are written as they are, and that a spreadsheet would run."""

    def add(self, item: Item, output: Output, *, in_cells: bool) -> None:
        if in_cells:
            cells = (item.name, *output.values())
            self.formulas += sum(isinstance(cell, str) and cell.startswith(FORMULAS) for cell in cells)
        error = output.get("error")
        if error is None:
            self.predicted += 1
            self.abstained += output.get("abstained", False)
            return
        self.failed += 1
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(f"{item.name}{'' if item.row is None else f' row {item.row}'}: {error}")

    def show(self, where: Path | None) -> None:
        """Say on standard error how it went, where somebody watches or there is a fault."""
        console = open_terminal()
        if not console.is_terminal and not self.failed and not self.notes and not self.formulas:
            return
        if self.formulas:
            console.print(
                f"{self.formulas:,} cells begin as a formula does. They are as the model gave them: import the file "
                "into a spreadsheet with its columns as text, or write .jsonl.",
                soft_wrap=True,
            )
        for note in self.notes:
            console.print(printable(note, lines=False), soft_wrap=True)
        for error in self.errors:
            console.print(printable(error, lines=False), soft_wrap=True)
        if self.failed > len(self.errors):
            console.print(f"… and {self.failed - len(self.errors):,} more")
        before = f", {self.earlier:,} were there already" if self.earlier else ""
        before += f", {self.abstained:,} of these abstained" if self.abstained else ""
        failed = f", {self.failed:,} could not be" if self.failed else ""
        console.print(f"{self.predicted:,} predicted{failed}{before}{f': {where}' if where else ''}", soft_wrap=True)


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
    abstain_below: float | None = None,
    precision: str | None,
    fetches: bool = False,
    language: str | None = None,
    language_column: str | None = None,
    prompt_column: str | None = None,
    asked: Asked = USUAL,
) -> Counts:
    """Predict every input and write the outputs to `output`, or as JSON lines to standard output.

    Raises a TltasksError for mistakes in arguments before anything heavy is imported, and KeyboardInterrupt with the
    output valid.
    """
    check_arguments(arguments, fetches=fetches)
    asked = _asked_by(output, arguments, asked)
    wishes = {"top_k": top_k, "abstain_below": abstain_below, "precision": precision, "task": tag, "column": column}
    wishes |= {"language": language, "language_column": language_column, "prompt_column": prompt_column, **vars(asked)}
    flags = _checked_flags(output, wishes, resume=resume)
    with without_collection():
        from tltasks.inference.predictor import Predictor
        from tltasks.runtime import devices

        find = partial(_find, trust=trust_remote_code, language=language, asked=asked)
        told = _columns(language=language_column, prompt=prompt_column)
        saved = find(name, tag, revision, told, abstain_below)
        _check_model(output, saved, flags, resume=resume)
        predictor = Predictor.load(saved, devices.init_distributed().device, precision=precision)
        kind, columns = predictor.task.input_kind, [column] if column else predictor.saved.columns
        inputs = Inputs(arguments, kind, columns, fetches=fetches, told=told)

    writer = open_writer(output, _schema(predictor.task, abstain_below), resume=resume, flags=flags)
    counts, say = Counts(), partial(open_terminal().print, soft_wrap=True)
    with (
        devices.interruptible() as hold,
        Bar("predicting", inputs.count(), f"{kind.column}s", say=say, leave=True) as bar,
    ):
        try:
            left = _remaining(inputs, writer.done, counts, bar)
            for chunk in predictor.stream(left, top_k=top_k, abstain_below=abstain_below):
                with hold():
                    writer.write([{"input": item.name, "row": item.row, **found} for item, found in chunk])
                    for item, found in chunk:
                        counts.add(item, found, in_cells=output is not None and output.suffix.lower() == ".csv")
                bar.update(len(chunk))
        finally:
            with hold():
                writer.close()
            counts.notes = inputs.notes
    return counts


def _remaining(inputs: Inputs, done: set[int], counts: Counts, bar: Bar) -> Iterator[Item]:
    """Inputs that the output does not have yet; the others are counted."""
    for item in inputs:
        if done and key(item.name, item.row) in done:
            counts.earlier += 1
            bar.update()
        else:
            yield item


def _checked_flags(output: Path | None, wishes: Mapping[str, object], *, resume: bool) -> dict[str, object]:
    """Wishes by their flags; RecipeError for such as do not go together, or not with the output that is there."""
    if wishes["language"] is not None and wishes["language_column"] is not None:
        raise RecipeError("--language is of all inputs, --language-column of each row of a table; name one of them.")
    flags = {f"--{name.replace('_', '-')}": value for name, value in wishes.items()}
    if output is not None:
        check_output(output, resume=resume, flags=flags)
    elif resume:
        raise RecipeError("--resume: needs --output, the file to complete.")
    return flags


def _check_model(output: Path | None, saved: SavedModel, flags: dict[str, object], *, resume: bool) -> None:
    """Raise RecipeError for an output that another model has begun, by what is added to `flags`."""
    if output is not None:
        flags["another model"] = saved.digest()
        check_output(output, resume=resume, flags=flags)


def _columns(**named: str | None) -> dict[str, str]:
    """Those that are named."""
    return {key: column for key, column in named.items() if column is not None}


def _asked_by(output: Path | None, arguments: list[str], asked: Asked) -> Asked:
    """The wishes for answers, with words for subtitles; RecipeError for those of several recordings in one file."""
    if output is None or output.suffix.lower() not in SUBTITLES:
        return asked
    if EACH not in output.name:
        check_single(arguments, output)
    return replace(asked, words=True)


def _find(
    name: str,
    tag: str | None,
    revision: str,
    told: Mapping[str, str],
    abstain_below: float | None,
    *,
    trust: bool,
    language: str | None,
    asked: Asked,
) -> SavedModel:
    from tltasks.hub.saved_model import load_saved_model
    from tltasks.inference.predictor import check_abstention
    from tltasks.runtime import devices

    if devices.init_distributed().num_processes > 1:
        raise RecipeError("predict runs in one process; start it without a launcher, on a part of the inputs each.")
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    saved = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust, language=language, asked=asked)
    check_abstention(saved.task, abstain_below)
    if "language" in told and not saved.task.languages.codes:
        raise RecipeError(f"--language-column: {name} is told no languages of single rows.")
    if "prompt" in told and not saved.task.takes_prompts:
        raise RecipeError(f"--prompt-column: {name} takes no prompts of single rows; Whisper does.")
    return saved


def _schema(task: TaskBase, abstain_below: float | None) -> pa.Schema:
    first = [pa.field("input", pa.string()), pa.field("row", pa.int64())]
    last = [pa.field("abstained", pa.bool_())] * (abstain_below is not None) + [pa.field("error", pa.string())]
    return pa.schema([*first, *task.output_features.arrow_schema, *last])
