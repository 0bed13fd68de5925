"""Demo of a model as its visitors meet it: outputs, examples from its test set, its card and its measured quality."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import constants

from tltasks.config.answers import USUAL
from tltasks.config.recipe import Recipe, map_paths, plan_run
from tltasks.config.tasks import TASKS
from tltasks.data.loading import load_splits, offline
from tltasks.errors import CheckpointError, DataError, RecipeError, TltasksError, first_line, without_secrets
from tltasks.hub import client
from tltasks.hub.saved_model import SavedModel, load_saved_model, resolve_checkpoint
from tltasks.inference.inputs import Item
from tltasks.inference.predictor import Output, Predictor
from tltasks.reports.formatting import show_interval, show_number, words
from tltasks.reports.model_card import render_card
from tltasks.results.comparison import compare_headline
from tltasks.results.metric_names import metric_in_text, metric_name
from tltasks.results.result import RunResult, load_result
from tltasks.runtime import devices
from tltasks.tasks import load_adapter

SHOWN_EXAMPLES = 4
_SAID_OF_INPUT = re.compile(r"(is|has|holds|says|cannot) ")
"""Beginning of an error that is a whole sentence once the input is named."""


@dataclass(frozen=True)
class Demo:
    """Content of the page."""

    title: str
    predictor: Predictor
    top_k: int

    @property
    def saved(self) -> SavedModel:
        return self.predictor.saved

    @cached_property
    def result(self) -> RunResult | None:
        return load_result(self.saved.run / "result.json") if self.saved.run else None

    @cached_property
    def origin(self) -> str | None:
        """Name of the checkpoint that it was trained from, where that is known and can answer by itself.

        One of the Hub is not fetched for it: it tells when it is asked.
        """
        origin = self.saved.origin
        if origin is None:
            return None
        if Path(origin.name).is_dir():
            try:
                _ = self._opened
            except TltasksError:  # such as an encoder without a head
                return None
        return origin.display_name

    @cached_property
    def _opened(self) -> SavedModel:
        """The checkpoint that it was trained from, without its weights. Raises a TltasksError."""
        return _open_pretrained(self.saved)

    @cached_property
    def pretrained(self) -> Predictor:
        """The checkpoint that it was trained from, loaded when it is first asked. Raises a TltasksError."""
        return Predictor.load(self._opened, self.predictor.device, precision=self.predictor.precision)

    def predict(self, value: str, *, pretrained: bool = False) -> Output:
        """Predict for a text, or for the file at a path, exactly as `tltasks predict` does.

        Raises a TltasksError whose text is a sentence for the visitor.
        """
        predictor = self.pretrained if pretrained else self.predictor
        kind = predictor.task.input_kind
        output = predictor.predict_one(Item(value=value if kind.is_text else Path(value)), top_k=self.top_k)
        if (error := output.get("error")) is not None:
            plain = re.sub(r" \(.*\)|:.*", "", error, flags=re.DOTALL)  # what may quote the file or name its place
            tail = plain if _SAID_OF_INPUT.match(plain) else f"cannot be used: {plain}"
            raise DataError(f"This {kind.column} {tail.rstrip('.')}.")
        return output

    def summary(self) -> str:
        """Task and headline in a line."""
        task = self.saved.plan.task.replace("-", " ").capitalize()
        if self.result is None:
            return f"{task}."
        best = self.result.headline
        score = f"{metric_in_text(best.metric)} {show_number(best.value)} (95 % interval {show_interval(best.ci95)})"
        return f"{task}: {score} on {words(best.split)}."

    def quality(self) -> str | None:
        """The headline and its baselines, in Markdown."""
        if self.result is None:
            return None
        best, stage = self.result.headline, self.result.best
        data, comparisons = stage.data[best.split], compare_headline(self.result)
        rows = [("**this model**", best.value, best.ci95)]
        rows += [(it.name, it.theirs.value, it.theirs.ci95) for it in comparisons]
        better = "higher" if stage.higher_is_better else "lower"
        lines = [
            f"Measured on {data.examples:,} examples of {words(best.split)} ({data.source}); {better} is better.",
            "",
            f"| | {metric_name(best.metric)} | 95 % interval |",
            "|---|---|---|",
            *(f"| {name} | {show_number(value)} | {show_interval(interval)} |" for name, value, interval in rows),
            "",
            *(f"- This model is {comparison.sentence}." for comparison in comparisons),
            *(f"- {note}" for note in self.result.score.notes),
        ]
        return "\n".join(lines)

    def card(self) -> str | None:
        """The run's model card without front matter and title, in Markdown; None where there is no run."""
        run, recipe, result = self.saved.run, self.saved.recipe, self.result
        if run is None or recipe is None or result is None:
            return None
        if (run / "README.md").is_file() and not (run / "README.md").is_symlink():
            card = (run / "README.md").read_text(encoding="utf-8")
        else:
            card = render_card(result, plan_run(recipe), adapter=result.best.weights.adapter, repo=self.title)
        return re.sub(r"\A(---\n.*?\n---\n)?\s*(# [^\n]*\n)?", "", card, count=1, flags=re.DOTALL).strip()

    def examples(self, folder: Path) -> list[str]:
        """A few inputs of the split that the headline is of: texts, or files that are put into `folder`.

        Empty where the run or its data are not on this machine, or the recipe names what is not for visitors.
        """
        recipe, plan = self.saved.recipe, self.saved.plan
        if self.result is None or recipe is None or not _may_be_shown(self.saved, recipe):
            return []
        try:
            with offline():
                splits = load_splits(plan.data, seed=recipe.seed, label=self.saved.task.label, train=False)
        except DataError:
            return []
        split, kind = splits.get(self.result.headline.split), self.saved.task.input_kind
        if split is None:
            return []
        roots = [split.folder] if split.folder else [constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE]
        rows = sorted({round(row) for row in np.linspace(0, len(split.rows) - 1, SHOWN_EXAMPLES)})
        values = {row: split.rows[row][kind.column] for row in rows}
        if kind.is_text:
            return [str(value) for value in values.values() if value]
        files = (_as_file(value, roots, folder / f"{row}", kind.suffixes) for row, value in values.items())
        return [str(file) for file in files if file and self.predictor.fault(Item(value=file)) is None]


def open_demo(
    name: str,
    *,
    tag: str | None,
    revision: str,
    trust_remote_code: bool,
    top_k: int,
    precision: str | None,
    language: str | None = None,
) -> Demo:
    """Load the model. Raises a TltasksError."""
    state = devices.init_distributed()
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    trust = trust_remote_code
    saved = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust, language=language, asked=USUAL)
    if TASKS[saved.task.tag].is_self_supervised:
        raise RecipeError(f"demo {name}: a model for {saved.plan.task} has no answer to show; fine-tune it first.")
    predictor = Predictor.load(saved, state.device, precision=precision)
    title = Path(name).resolve().name if Path(name).is_dir() else name
    return Demo(title, predictor, top_k)


def _open_pretrained(saved: SavedModel) -> SavedModel:
    origin, plan = saved.origin, saved.plan
    if origin is None:
        raise CheckpointError("The checkpoint that it was trained from is not known.")
    if not Path(origin.name).is_dir():
        pulled = client.pull(origin.name, revision=origin.revision, trust_remote_code=origin.trust_remote_code)
        origin = dataclasses.replace(origin, name=str(pulled), revision="main")
    source = resolve_checkpoint(origin, tag=plan.task).checkpoint
    task = load_adapter(plan.task).open(plan, {}, source, seed=0).as_pretrained().answering(USUAL)
    return dataclasses.replace(saved, task=task, base=None, folder=Path(source.name))


def sentence(error: TltasksError) -> str:
    """First line of an error, without places of this machine, for a visitor who sees neither command nor options."""
    text = re.sub(r"(?<![\w.])[~.]*(/[\w.@+-]+){2,}", "…", without_secrets(first_line(error)))
    return text[:1].upper() + text[1:]


def _may_be_shown(saved: SavedModel, recipe: Recipe) -> bool:
    """True if the data of a recipe are for the visitors of its model.

    Those of a run's results folder are, but for absolute paths, which no run writes into it. A recipe that lies beside
    the weights, as a push publishes it, is somebody else's: its data are what is below that folder, without links.
    """
    places: list[str] = []
    map_paths(saved.plan.data, lambda text, *_: places.append(text) or text)  # type: ignore[func-returns-value]
    if any("://" in place for place in places) or saved.run is None:
        return False
    if saved.run != saved.folder:
        written = [recipe._written.get(place, "") for place in places]
        return not any(name.startswith("~") or Path(name).is_absolute() for name in written)
    folder = saved.run.resolve()
    links = (path for path in folder.rglob("*") if path.is_symlink())
    inside = all(Path(place).is_absolute() and Path(place).resolve().is_relative_to(folder) for place in places)
    return inside and all(link.resolve().is_relative_to(folder) for link in links)


def _as_file(value: object, roots: Sequence[Path | str], place: Path, suffixes: frozenset[str]) -> Path | None:
    """Write a picture or recording of a split as a file of its own; None where it is not there, below the roots."""
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    if isinstance(path, (str, Path)) and not content:
        source = (Path(roots[0]) / path).resolve()
        if source.is_file() and any(source.is_relative_to(Path(root).resolve()) for root in roots):
            content = source.read_bytes()
    if not content:
        return None
    suffix = Path(path).suffix.lower() if isinstance(path, (str, Path)) else ""
    place = place.with_suffix(suffix if suffix in suffixes else "")
    place.write_bytes(content)
    return place
