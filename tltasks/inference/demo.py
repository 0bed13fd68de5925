"""A model as its visitors meet it: its answers, examples from its test set, its card and its measured quality."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import torch

from tltasks.data.loading import load_splits
from tltasks.data.splits import Split
from tltasks.errors import CheckpointError, DataError, RecipeError, TltasksError, first_line
from tltasks.hub import client
from tltasks.hub.resolved_checkpoint import resolve_checkpoint
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference.inputs import Item
from tltasks.inference.predict import Predictor
from tltasks.inference.prediction_writer import Answer
from tltasks.reports.html import baseline_name, compare, show_interval, show_number, words
from tltasks.reports.model_card import card_for_repo
from tltasks.results.result import RunResult, load_result
from tltasks.runtime import devices
from tltasks.tasks import load_adapter

SHOWN_EXAMPLES = 4
_SAID_OF_INPUT = re.compile(r"(is|has|holds|says|cannot) ")
"""How an error begins that is a whole sentence once the input is named."""


@dataclass(frozen=True)
class Respondent:
    """A model that answers single inputs, exactly as `tltasks predict` does."""

    predictor: Predictor
    top_k: int

    def answer(self, value: str) -> Answer:
        """Answer a text, or the file at a path. Raises a TltasksError whose text is a sentence for the visitor."""
        given = self.predictor.task.input_kind
        item = Item("", value=value if given.is_text else Path(value))
        ((found, _),) = self.predictor.answers([item], top_k=self.top_k, workers=0)
        if (error := found[0]["error"]) is not None:
            tail = error if _SAID_OF_INPUT.match(error) else f"cannot be used: {error}"
            raise DataError(f"This {given.column} {tail.rstrip('.')}.")
        return found[0]


@dataclass(frozen=True)
class Demo:
    """All that the page shows."""

    title: str
    trained: SavedModel
    model: Respondent
    device: torch.device
    precision: str | None

    @property
    def task(self) -> str:
        return self.trained.plan.task

    @cached_property
    def result(self) -> RunResult | None:
        return load_result(self.trained.run / "result.json") if self.trained.run else None

    @property
    def origin(self) -> str | None:
        """Name of the checkpoint that it was trained from, where that is known."""
        return self.trained.origin.display_name if self.trained.origin else None

    @cached_property
    def untouched(self) -> Respondent:
        """That checkpoint, loaded when it is first asked. Raises a TltasksError where it has no answer."""
        opened = _open_untouched(self.trained)
        return dataclasses.replace(self.model, predictor=Predictor.load(opened, self.device, precision=self.precision))

    def summary(self) -> str:
        """Task and headline in a line."""
        task = self.task.replace("-", " ").capitalize()
        if self.result is None:
            return f"{task}."
        best = self.result.headline
        score = f"{words(best.metric)} {show_number(best.value)} (95 % interval {show_interval(best.ci95)})"
        return f"{task}: {score} on {words(best.split)}."

    def quality(self) -> str | None:
        """The headline and its baselines, in Markdown."""
        if self.result is None:
            return None
        best = self.result.headline
        stage = self.result.best
        data, score = stage.data[best.split], self.result.score
        rows = [("**this model**", best.value, best.ci95)]
        for name, by_split in stage.baselines.items():
            if (other := by_split.get(best.split)) is not None:
                rows.append((baseline_name(name), other.values[best.metric], other.ci95))
        better = "higher" if best.higher_is_better else "lower"
        lines = [
            f"Measured on {data.examples:,} examples of {words(best.split)} ({data.source}); {better} is better.",
            "",
            f"| | {words(best.metric)} | 95 % interval |",
            "|---|---|---|",
            *(
                f"| {_cell(name)} | {show_number(value)} | {show_interval(interval)} |"
                for name, value, interval in rows
            ),
            "",
            *(f"- This model is {comparison.sentence}." for comparison in compare(best, stage)),
            *(f"- {note}" for note in score.notes),
        ]
        return "\n".join(lines)

    def card(self) -> str | None:
        """The run's model card without front matter and title, in Markdown; None where there is no run."""
        run, recipe = self.trained.run, self.trained.recipe
        if run is None or recipe is None:
            return None
        path = run / "README.md"
        card = path.read_text(encoding="utf-8") if path.is_file() else card_for_repo(run, recipe, self.title)
        return re.sub(r"\A(---\n.*?\n---\n)?\s*(# [^\n]*\n)?", "", card, count=1, flags=re.DOTALL).strip()

    def examples(self, folder: Path) -> list[str]:
        """A few inputs of the split that the headline is of: texts, or files that are put into `folder`.

        None where the run or its data are not on this machine.
        """
        recipe, plan = self.trained.recipe, self.trained.plan
        if self.result is None or recipe is None:
            return []
        try:
            with _offline():
                splits = load_splits(plan.data, seed=recipe.seed, label=self.trained.task.label, train=False)
        except DataError:
            return []
        split = splits.get(self.result.headline.split)
        if split is None:
            return []
        kept = len(split.rows) - 1
        rows = sorted({round(row) for row in np.linspace(0, kept, SHOWN_EXAMPLES)})
        values = [(row, split.rows[row][self.trained.task.input_kind.column]) for row in rows]
        if self.trained.task.input_kind.is_text:
            return [str(value) for _, value in values if value]
        return [str(place) for row, value in values if (place := _as_file(value, split, folder / f"{row}"))]


def open_demo(
    name: str, *, tag: str | None, revision: str, trust_remote_code: bool, top_k: int, precision: str | None
) -> Demo:
    """Load the model. Raises a TltasksError."""
    state = devices.init_distributed()
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    trained = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust_remote_code)
    if trained.task.output_features["prediction"].dtype != "string":
        raise RecipeError(f"demo {name}: a model for {trained.plan.task} has no answer to show; fine-tune it first.")
    predictor = Predictor.load(trained, state.device, precision=precision)
    title = Path(name).resolve().name if Path(name).is_dir() else name
    return Demo(title, trained, Respondent(predictor, top_k), state.device, precision)


def _open_untouched(trained: SavedModel) -> SavedModel:
    origin, plan = trained.origin, trained.plan
    if origin is None:
        raise CheckpointError("The checkpoint that it was trained from is not known.")
    if not Path(origin.name).is_dir():
        pulled = client.pull(origin.name, revision=origin.revision, trust_remote_code=origin.trust_remote_code)
        origin = dataclasses.replace(origin, name=str(pulled), revision="main")
    source = resolve_checkpoint(origin, tag=plan.task).checkpoint
    task = load_adapter(plan.task).open(plan, {}, source, seed=0).as_pretrained()
    return dataclasses.replace(trained, task=task, base=None, folder=Path(source.name))


def sentence(error: TltasksError) -> str:
    """What an error says first, for a visitor who sees neither the command nor its options."""
    text = first_line(error)
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _as_file(value: Any, split: Split, place: Path) -> Path | None:
    """A picture or recording of a split as a file of its own."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(path, (str, Path)):
        place = place.with_suffix(Path(path).suffix)
    if content:
        place.write_bytes(content)
        return place
    if not isinstance(path, (str, Path)):
        return None
    source = (split.folder or Path()) / path
    if not source.is_file():
        return None
    shutil.copyfile(source, place)
    return place


@contextmanager
def _offline() -> Iterator[None]:
    """Take from the Hub's caches alone what is only nice to have.

    Both libraries read the environment once (huggingface_hub 2.4, constants.py; datasets 5.2, config.py).
    """
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
