"""Experiments: a recipe, and axes along which it is changed; a trial is one combination of their levels with one seed.

Reading and checking one imports no torch, as with recipes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field

from tltasks.config.checks import read_keys
from tltasks.config.data import Data, HeldOutRows
from tltasks.config.document import DOTTED_KEY, Document, Issue, dotted, list_mistakes
from tltasks.config.loading import Overrides, open_document, read_recipe, with_key
from tltasks.config.recipe import Recipe, consented
from tltasks.config.section import Conflict, FileName, KeyPath, Name, Section
from tltasks.config.stage import Stage
from tltasks.config.yaml_reader import dump, read_text
from tltasks.errors import RecipeError, did_you_mean

MOST_TRIALS = 100_000
RESERVED = {"seed": "`seeds` lists the seeds of all trials", "output": "each trial has a folder of its own"}
"""Recipe keys that a level must not change, and what stands for them."""

Changes = Annotated[dict[Name, object], BeforeValidator(lambda value: {} if value is None else value)]
"""Recipe keys, dotted as for `--set`, and their values; a level that changes nothing may be left empty."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
RecipeSource = Annotated[str, Field(min_length=1)] | dict[str, object]
Levels = dict[str, str]
"""Level by axis, in the order of the axes."""
Part = TypeVar("Part", Recipe, Stage)
Given = Path | str | Mapping[str, object]
"""A YAML file, or its keys, whose local paths then start at the working directory."""


@dataclass(frozen=True)
class Trial:
    """One recipe of an experiment or a search."""

    levels: Levels
    seed: int
    recipe: Recipe
    fold: int | None = None
    """The part of the rows that it is tested on, where they are dealt into several."""

    @property
    def name(self) -> str:
        part = [] if self.fold is None else [f"fold {self.fold}"]
        return ", ".join([*self.levels.values(), f"seed {self.seed}", *part])


class Contrast(Section):
    """Levels of an axis, compared with some of them."""

    axis: FileName
    """Axis whose levels are compared, such as `method`."""
    controls: Annotated[list[FileName], Field(min_length=1)]
    """Levels of it that all others are compared with, on the same test rows and seeds."""


class Experiment(Section):
    """A recipe and axes along which it is changed."""

    recipe: RecipeSource
    """File of the recipe that all trials start from, relative to this one; or the recipe itself."""
    axes: dict[FileName, Annotated[dict[FileName, Changes], Field(min_length=1)]] = Field(default={})
    """Levels by name for each axis, and the recipe keys that a level changes. Later axes change what earlier ones
    have left."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    """Every combination of levels is carried out with each: means and intervals are over them, and over the test
    rows."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: instead of the share that `data.splits.test` holds out, each of so many parts of the rows is
    held out once by every trial, and scores are over all of them together. By group where the share is."""
    skip: list[dict[FileName, FileName | list[FileName]]] = Field(default=[])
    """Combinations of levels to leave out."""
    contrast: Contrast | None = None
    """What is compared with what. Unset: no verdicts."""
    domains: FileName | None = None
    """Axis whose levels have the names of test sets: that of a trial's own level is in its domain, others are not."""
    curve: FileName | None = None
    """Axis along which scores are drawn against the number of training examples."""
    candidates: FileName | None = None
    """Axis of checkpoints that `tltasks rank` ranks."""
    keep_weights: bool = False
    """Keep the trained weights of each trial. Off: they are removed when the trial is finished."""
    output: Name
    """Results folder, relative to the working directory."""

    def conflicts(self) -> Iterator[Conflict]:
        for key in ("domains", "curve", "candidates"):
            yield from _unknown("axis", getattr(self, key), self.axes, (key,))
        if self.contrast is not None:
            yield from _unknown("axis", self.contrast.axis, self.axes, ("contrast", "axis"))
            for i, control in enumerate(self.contrast.controls):
                known = self.axes.get(self.contrast.axis, [control])
                yield from _unknown("level", control, known, ("contrast", "controls", i))
        for i, combination in enumerate(self.skip):
            for axis, levels in combination.items():
                yield from _unknown("axis", axis, self.axes, ("skip", i, axis))
                for level in _listed(levels):
                    yield from _unknown("level", level, self.axes.get(axis, [level]), ("skip", i, axis))
        for axis, level, key in ((a, b, key) for a, levels in self.axes.items() for b in levels for key in levels[b]):
            if key in RESERVED:
                yield Conflict(f"{RESERVED[key]}; leave it out", ("axes", axis, level, key))
            elif not DOTTED_KEY.fullmatch(key):
                yield Conflict("write recipe keys as `data.shots` or `stages.0.epochs`", ("axes", axis, level, key))
        if len(set(self.seeds)) < len(self.seeds):
            yield Conflict("has a seed twice; a trial is carried out once with each", ("seeds",))
        n_trials = (self.folds or 1) * len(self.seeds) * math.prod(map(len, self.axes.values()))
        if n_trials > MOST_TRIALS:
            yield Conflict(f"{n_trials:,} trials; an experiment has at most {MOST_TRIALS:,}", ("axes",))


def _unknown(kind: str, name: str | None, known: Collection[str], keys: KeyPath) -> Iterator[Conflict]:
    if name is not None and name not in known:
        others = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        yield Conflict(f"no {kind} is called `{name}`{others}", keys)


def _listed(levels: str | list[str]) -> list[str]:
    return levels if isinstance(levels, list) else [levels]


@dataclass(frozen=True)
class Source:
    """An experiment or a search as it was written: its keys, its text, its name, and the folder of its file."""

    tree: Document
    text: str
    name: str
    folder: Path

    def base(self) -> Document:
        """The recipe that is changed: in a file of its own, or in this one."""
        recipe = self.tree.value["recipe"]
        return open_document(self.folder / recipe) if isinstance(recipe, str) else self.tree.below(("recipe",))


def read_source(given: Given, overrides: Overrides, name: str) -> Source:
    """Read an experiment or a search; one of plain keys is called `name`. Raises RecipeError for what is no mapping."""
    tree = open_document(given, overrides)
    if isinstance(given, Mapping):
        return Source(tree, dump(open_document(given).value), name, Path())
    return Source(tree, read_text(Path(given)), Path(given).stem, Path(given).parent)


def load_experiment(
    given: Given, overrides: Overrides = (), *, trust_remote_code: bool = False
) -> tuple[Experiment, list[Trial]]:
    """Read an experiment and the recipes of all its trials, the first seed's first.

    Raises RecipeError with every mistake in the experiment, or else in its recipes, each with its place.
    """
    source = read_source(given, overrides, "experiment")
    experiment, problems = read_keys(Experiment, source.tree)
    if experiment is None:
        raise RecipeError(list_mistakes(problems, "the experiment"))
    trials, problems = _read_trials(experiment, source)
    if problems:
        raise RecipeError(list_mistakes(problems, "the experiment's recipes"))
    if not trials:
        raise RecipeError(f"{source.tree.location(('skip',))}  skip: leaves out every trial.")
    return experiment, [dataclasses.replace(it, recipe=consented(it.recipe, trust_remote_code)) for it in trials]


# --------------------------------------------------------------------------------------------- trials


def _read_trials(experiment: Experiment, source: Source) -> tuple[list[Trial], list[Issue]]:
    """The trials in order, and every mistake in their recipes once."""
    base = source.base()
    base = dataclasses.replace(base, value={"output": "trial", **base.value})
    problems: dict[Issue, None] = {}
    read: list[tuple[Levels, Recipe]] = []
    for levels in _combinations(experiment):
        changed, unfit = _changed(experiment, source.tree, base, levels)
        recipe, found = (None, unfit) if unfit else read_recipe(changed, check_files=True)
        problems |= dict.fromkeys(found)
        if recipe is not None and not found:
            read.append((levels, recipe))
    if experiment.folds is not None:
        faults = {fault for _, recipe in read for data in _data_of(recipe) if (fault := _why_no_folds(data))}
        problems |= {Issue(source.tree.location(("folds",)), "folds", fault): None for fault in sorted(faults)}
    data = [data for _, recipe in read for data in _data_of(recipe)]
    if experiment.domains is not None and not any(it.splits.test for it in data):  # which would be that of each level
        sets = {name for it in data for name in it.extra_test}
        if sets and sets.isdisjoint(experiment.axes[experiment.domains]):
            text = f"no level of `{experiment.domains}` has the name of a test set; there are {', '.join(sorted(sets))}"
            problems[Issue(source.tree.location(("domains",)), "domains", text)] = None
    if problems:
        return [], sorted(problems, key=lambda problem: problem.location)
    trials = [
        Trial(levels, seed, dealt.model_copy(update={"seed": seed}), fold)
        for seed in experiment.seeds
        for levels, recipe in read
        for fold, dealt in _folds(_with_fixed_splits(recipe, experiment.seeds[0]), experiment.folds)
    ]
    return trials, []


def _data_of(recipe: Recipe) -> list[Data]:
    return [data for data in (recipe.data, *(stage.data for stage in recipe.stages)) if data is not None]


def _why_no_folds(data: Data) -> str | None:
    test = data.splits.test
    if isinstance(test, float) or (isinstance(test, HeldOutRows) and test.group is not None and test.folds is None):
        return None
    return (
        "deals the rows of train out as test sets, so the recipe's `data.splits.test` is to hold a share out of it "
        "(`test: 0.2`, or `{share: 0.2, group: patient}`)"
    )


def _folds(recipe: Recipe, n_folds: int | None) -> Iterator[tuple[int | None, Recipe]]:
    """The recipe once for each fold, which takes the place of its test set."""
    if n_folds is None:
        yield None, recipe
        return
    for fold in range(n_folds):

        def dealt(data: Data, fold: int = fold) -> Data:
            test = data.splits.test
            group = test.group if isinstance(test, HeldOutRows) else None
            rows = HeldOutRows(group=group, fold=fold, folds=n_folds)
            return data.model_copy(update={"splits": data.splits.model_copy(update={"test": rows})})

        yield fold, _with_data(recipe, dealt)


def _with_fixed_splits(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with one seed for the shares that it holds out, so that every trial is tested on the same rows."""

    def fixed(data: Data) -> Data:
        if not data.splits.shares or data.splits.seed is not None:
            return data
        return data.model_copy(update={"splits": data.splits.model_copy(update={"seed": seed})})

    return _with_data(recipe, fixed)


def _with_data(recipe: Recipe, change: Callable[[Data], Data]) -> Recipe:
    """The recipe with its data, and that of its stages, changed."""

    def changed(part: Part) -> Part:
        data: Data | None = getattr(part, "data", None)
        return part if data is None else part.model_copy(update={"data": change(data)})

    return changed(recipe.model_copy(update={"stages": [changed(stage) for stage in recipe.stages]}))


def _combinations(experiment: Experiment) -> Iterator[Levels]:
    for levels in itertools.product(*experiment.axes.values()):
        chosen = dict(zip(experiment.axes, levels, strict=True))
        if not any(all(chosen[axis] in _listed(ls) for axis, ls in skipped.items()) for skipped in experiment.skip):
            yield chosen


def _changed(experiment: Experiment, tree: Document, base: Document, levels: Levels) -> tuple[Document, list[Issue]]:
    """The recipe of a combination of levels, and the changes that do not fit it."""
    unfit = []
    for axis, level in levels.items():
        for key in experiment.axes[axis][level]:
            place = ("axes", axis, level, key)
            try:
                base = with_key(base, key, tree.below(place))
            except ValueError as error:
                unfit.append(Issue(tree.location(place), dotted(place[:-1]), f"`{key}`: {error}"))
    return base, unfit
