"""An experiment: a recipe, and axes along which it is changed; every combination of their levels is a cell.

Reading and checking one imports no torch, as with recipes.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tltasks.config.checks import read_keys
from tltasks.config.loading import list_mistakes, read_recipe
from tltasks.config.recipe import Recipe
from tltasks.config.section import FileName, Name, Section
from tltasks.config.yaml_reader import Document, Issue, Location, describe, dotted, parse, read_text
from tltasks.config.yaml_reader import KeyPath as Place
from tltasks.errors import RecipeError, did_you_mean

MOST_CELLS = 100_000
RESERVED = {"seed": "`seeds` lists the seeds of all cells", "output": "each cell has a folder of its own"}
"""Recipe keys that a level must not change, and what stands for them."""


def _nothing_is_empty(value: object) -> object:
    return {} if value is None else value


Changes = Annotated[dict[Name, Any], BeforeValidator(_nothing_is_empty)]
"""Recipe keys, dotted as for `--set`, and their values; a level that changes nothing may be left empty."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Contrast(Section):
    """What is compared with what."""

    axis: FileName
    """Axis whose levels are compared, such as `method`."""
    controls: Annotated[list[FileName], Field(min_length=1)]
    """Levels of it that all others are compared with, on the same test rows and seeds."""


class Experiment(Section):
    """A recipe and axes along which it is changed."""

    recipe: Annotated[str, Field(min_length=1)] | dict[str, Any]
    """File of the recipe that all cells start from, relative to this one; or the recipe itself."""
    axes: dict[FileName, Annotated[dict[FileName, Changes], Field(min_length=1)]] = Field(default={})
    """Levels by name for each axis, and the recipe keys that a level changes. Later axes change what earlier ones
    have left."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    """Every cell is carried out with each: means and intervals are over them, and over the test rows."""
    skip: list[dict[FileName, FileName | list[FileName]]] = Field(default=[])
    """Combinations of levels to leave out."""
    contrast: Contrast | None = None
    """What is compared with what. Unset: no verdicts."""
    domains: FileName | None = None
    """Axis whose levels have the names of test sets: the one of a cell's own level is in its domain, others are not."""
    curve: FileName | None = None
    """Axis along which scores are drawn against the number of training examples."""
    candidates: FileName | None = None
    """Axis of checkpoints that `tltasks rank` ranks."""
    keep_weights: bool = False
    """Keep the trained weights of each cell. Off: they are removed when the cell is finished."""
    output: Name
    """Results folder, relative to the working directory."""


Levels = dict[str, str]


@dataclass(frozen=True)
class Cell:
    """One recipe of the experiment."""

    levels: Levels
    """Level by axis, in the order of the axes."""
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return ", ".join([*self.levels.values(), f"seed {self.seed}"])


def load_experiment(path: Path, overrides: Iterable[str] = ()) -> tuple[Experiment, list[Cell]]:
    """Read an experiment and the recipes of all its cells, the first seed's first.

    Raises RecipeError with every mistake in the experiment, or else in its recipes, each with its place.
    """
    tree = parse(read_text(path), str(path), overrides)
    experiment, problems = read_keys(Experiment, tree)
    if experiment is not None:
        problems = sorted(_contradictions(experiment, tree), key=lambda problem: problem.location)
    if experiment is None or problems:
        raise RecipeError(list_mistakes(problems, "the experiment"))
    base, folder = _base(experiment, tree, path)
    cells, problems = _read_cells(experiment, tree, base, path.parent, folder)
    if problems:
        raise RecipeError(list_mistakes(problems, "the experiment's recipes"))
    return experiment, cells


# ------------------------------------------------------------------------------------- contradictions


def _contradictions(experiment: Experiment, tree: Document) -> Iterator[Issue]:
    """Keys that are each in order, but not together."""
    axes = experiment.axes

    def problem(keys: Place, text: str, allowed: Iterable[str] = ()) -> Issue:
        return Issue(tree.location(keys), dotted(keys), text, tuple(allowed))

    named: list[tuple[Place, str | None]] = [((key,), getattr(experiment, key)) for key in ("domains", "curve")]
    named.append((("candidates",), experiment.candidates))
    if experiment.contrast is not None:
        named.append((("contrast", "axis"), experiment.contrast.axis))
        for i, control in enumerate(experiment.contrast.controls):
            levels = axes.get(experiment.contrast.axis, {control: {}})
            if control not in levels:
                at = ("contrast", "controls", i)
                yield problem(at, f"no level is called `{control}`{did_you_mean(control, levels)}", levels)
    for keys, axis in named:
        if axis is not None and axis not in axes:
            yield problem(keys, f"no axis is called `{axis}`{did_you_mean(axis, axes)}", axes)
    for i, combination in enumerate(experiment.skip):
        for axis, level in combination.items():
            if axis not in axes:
                yield problem(("skip", i, axis), f"no axis is called `{axis}`{did_you_mean(axis, axes)}", axes)
                continue
            for one in level if isinstance(level, list) else [level]:
                if one not in axes[axis]:
                    text = f"no level is called `{one}`{did_you_mean(one, axes[axis])}"
                    yield problem(("skip", i, axis), text, axes[axis])
    for axis, levels in axes.items():
        for level, changes in levels.items():
            for key in changes:
                if key in RESERVED:
                    yield problem(("axes", axis, level, key), f"{RESERVED[key]}; leave it out")
                elif not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", key):
                    yield problem(("axes", axis, level, key), "write recipe keys as `data.shots` or `stages.0.epochs`")
    if len(set(experiment.seeds)) < len(experiment.seeds):
        yield problem(("seeds",), "has a seed twice; a cell is carried out once with each")
    n_cells = len(experiment.seeds)
    for levels in axes.values():
        n_cells *= len(levels)
    if n_cells > MOST_CELLS:
        yield problem(("axes",), f"{n_cells:,} cells; an experiment has at most {MOST_CELLS:,}")


# ---------------------------------------------------------------------------------------------- cells


def _base(experiment: Experiment, tree: Document, path: Path) -> tuple[Document, Path]:
    """The recipe that all cells start from, and the folder that its local paths are relative to."""
    if isinstance(experiment.recipe, str):
        file = path.parent / experiment.recipe
        return parse(read_text(file), str(file)), file.parent
    inside = {keys[1:]: at for keys, at in tree.locations.items() if keys[:1] == ("recipe",)}
    return Document(experiment.recipe, inside), path.parent


def _read_cells(
    experiment: Experiment, tree: Document, base: Document, folder: Path, base_folder: Path
) -> tuple[list[Cell], list[Issue]]:
    """The cells in order, and every mistake in their recipes once."""
    problems: dict[Issue, None] = {}
    read: list[tuple[Levels, Recipe]] = []
    for levels in _combinations(experiment):
        changed = _changed(experiment, tree, base, levels, problems)
        if changed is None:
            continue
        own, at = changed
        starts = {keys: Path.cwd() if at[keys].is_override else folder for keys in at}
        recipe, found = read_recipe(own, base_folder, starts, check_files=True)
        problems |= dict.fromkeys(found)
        if recipe is not None and not found:
            read.append((levels, recipe))
    cells = [
        Cell(levels, seed, recipe.model_copy(update={"seed": seed}))
        for seed in experiment.seeds
        for levels, recipe in read
    ]
    return cells, sorted(problems, key=lambda problem: problem.location)


def _combinations(experiment: Experiment) -> Iterator[Levels]:
    for levels in itertools.product(*experiment.axes.values()):
        chosen = dict(zip(experiment.axes, levels, strict=True))
        if not any(_fits(chosen, combination) for combination in experiment.skip):
            yield chosen


def _fits(levels: Levels, combination: dict[str, str | list[str]]) -> bool:
    return all(
        levels[axis] in (wanted if isinstance(wanted, list) else [wanted]) for axis, wanted in combination.items()
    )


def _changed(
    experiment: Experiment, tree: Document, base: Document, levels: Levels, problems: dict[Issue, None]
) -> tuple[Document, dict[Place, Location]] | None:
    """The recipe of a combination of levels, and where the experiment's file (or an override) says what in it."""
    value = {"output": "cell", **copy.deepcopy(base.value)}
    locations = {(): tree.location(("recipe",)), **base.locations}
    ours = {keys: at for keys, at in base.locations.items() if at.is_override}
    sound = True
    for axis, level in levels.items():
        for key, new in experiment.axes[axis][level].items():
            place = ("axes", axis, level, key)
            try:
                keys = set_key(value, key, copy.deepcopy(new))
            except ValueError as error:
                problems[Issue(tree.location(place), dotted(place[:-1]), f"`{key}`: {error}")] = None
                sound = False
                continue
            for known in (locations, ours):
                for below in [k for k in known if k[: len(keys)] == keys]:
                    del known[below]
            moved = {(*keys, *k[4:]): at for k, at in tree.locations.items() if k[:4] == place}
            locations |= moved
            ours |= moved
    return (Document(value, locations, base.problems), ours) if sound else None


def set_key(tree: dict[str, Any], key: str, value: Any) -> Place:
    """Set a dotted key of a tree and return its steps; ValueError for a step that leads nowhere."""
    node: Any = tree
    keys: Place = ()
    names = re.findall(r"[\w-]+", key)
    for i, name in enumerate(names):
        step: str | int = name
        if isinstance(node, list):
            if not re.fullmatch(r"[0-9]{1,9}", name) or int(name) >= len(node):
                raise ValueError(f"{dotted(keys)} is a list of {len(node)}; there is no {name}")
            step = int(name)
        elif not isinstance(node, dict):
            raise ValueError(f"{dotted(keys)} is {describe(node)} and has no keys; set it as a whole")
        keys = (*keys, step)
        if i == len(names) - 1:
            node[step] = value
        elif isinstance(node, dict) and node.get(step) is None:
            node[step] = {}
        node = node[step]
    return keys
