"""Searches: a recipe, and the keys of it that are to be chosen by the validation score.

Reading and checking one imports no torch, as with recipes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from tltasks.config.checks import read_keys
from tltasks.config.document import Document, Issue, list_mistakes
from tltasks.config.loading import Overrides, read_recipe, with_key
from tltasks.config.recipe import Recipe, consented
from tltasks.config.section import Conflict, Name, PositiveFloat, PositiveInt, Section
from tltasks.errors import RecipeError
from tltasks.experiments.experiment import RESERVED, Given, RecipeSource, Seed, Trial, read_source

Value = bool | int | float | str | None
Settings = dict[str, Value]
"""Value by recipe key, dotted as for `--set`."""


class Range(Section):
    """Numbers to choose from: whole ones where both ends are written so."""

    low: int | float
    high: int | float
    log: bool = False
    """Draw evenly by the logarithm, as for learning rates."""
    step: PositiveFloat | PositiveInt | None = None
    """Distance of the numbers that may be drawn. Unset: 1 for whole numbers, otherwise none."""

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    def conflicts(self) -> Iterator[Conflict]:
        if self.low >= self.high:
            yield Conflict(f"`low` {self.low} is not below `high` {self.high}")
        if self.log and self.low <= 0:
            yield Conflict(f"`log` needs numbers above 0, and `low` is {self.low}")
        if self.log and self.step is not None:
            yield Conflict("`log` and `step` do not go together; leave one out")
        if self.step is not None and self.step > self.high - self.low > 0:
            yield Conflict(f"`step` {self.step} is wider than the range, which leaves one value; write a narrower one")

    def holds(self, value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or (1 if self.whole else 0) or math.inf)
        return abs(steps - round(steps)) < 1e-9


JUDGES = re.compile(
    r"(stages[.[]\d+\]?\.)?(metric$|data(\.(name|config|revision|dir|splits|columns|class_names|multi_label|normaliser)\b|\.files(\.validation)?$|$))"
)
"""Keys that decide which rows a trial is scored on, what is right there, or the metric."""

Choice = Range | Annotated[list[Value], Field(min_length=2)]
Space = dict[str, Choice]


class Search(Section):
    """A recipe and the keys that are chosen."""

    recipe: RecipeSource
    """File of the recipe, relative to this one; or the recipe itself. It names a validation split."""
    space: Annotated[Space, Field(min_length=1)]
    """Recipe keys, dotted as for `--set`, and what they may be: a range `{low, high, log, step}`, or a list."""
    trials: PositiveInt
    """Settings that are tried, the recipe's own first."""
    seed: Seed = 0
    """Of the search; the recipe has its own."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: where good settings are likely, by those that were tried (Bergstra et al.,
    https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization). random: anywhere."""
    prune: Literal["median", "none"] = "median"
    """median: end a trial whose best validation score is below the median of others after as many evaluations (Golovin
    et al., https://doi.org/10.1145/3097983.3098043)."""
    startup_trials: PositiveInt = 5
    """Trials before tpe learns and median prunes."""
    warmup_evaluations: Annotated[int, Field(ge=0)] = 2
    """Of each trial, before it may be ended: learning rates that are slow at first get so far."""
    output: Name
    """Results folder, relative to the working directory."""

    def conflicts(self) -> Iterator[Conflict]:
        for key, choice in self.space.items():
            if key in RESERVED or key.split(".")[0] in {"output", "hub"}:
                yield Conflict("is no key that a score depends on; leave it out", ("space", key))
            if JUDGES.match(key):
                text = "decides by what trials are judged, and their scores could not be compared; leave it out"
                yield Conflict(text, ("space", key))
            if isinstance(choice, list) and len({(type(it), it) for it in choice}) < len(choice):
                yield Conflict("has a value twice", ("space", key))


@dataclass(frozen=True)
class BaseRecipe:
    """The recipe that a search changes."""

    tree: Document
    trust_remote_code: bool = False

    def changed(self, settings: Mapping[str, Value], *, tests: bool) -> Recipe:
        """The recipe with keys set; without `tests` it has no test set that could be looked at.

        Raises RecipeError for settings that do not go together.
        """
        document = dataclasses.replace(self.tree, value={"output": "trial", **copy.deepcopy(self.tree.value)})
        for key, chosen in settings.items():
            document = with_key(document, key, Document(chosen, {}))
        value = document.value
        if not tests:
            for data in [value.get("data"), *(stage.get("data") for stage in value.get("stages") or [])]:
                if isinstance(data, dict):
                    splits = data.get("splits") or {}
                    held = {"set_aside": splits["test"]} if isinstance(splits.get("test"), float | dict) else {}
                    data["splits"] = {**splits, "test": None, **held}
                    for key in ("extra_test", "corruptions"):
                        data.pop(key, None)
        recipe, problems = read_recipe(document, check_files=True)
        if problems or recipe is None:
            shown = f" with {settings}" if settings else ""
            raise RecipeError(list_mistakes(problems, f"the search's recipe{shown}"))
        return consented(recipe, self.trust_remote_code)

    def own_settings(self, space: Space) -> Settings:
        """The settings that the recipe has itself, by default too, as far as they are among those to choose from."""
        recipe = self.changed({}, tests=True)
        own = {key: _value_at(recipe, key) for key in space}
        return {
            key: value
            for key, value in own.items()
            if isinstance(value, Value)
            and (choice.holds(value) if isinstance(choice := space[key], Range) else value in choice)
        }

    def trial(self, number: int, settings: Settings) -> Trial:
        """A trial without a test set. Raises RecipeError for settings that do not go together."""
        recipe = self.changed(settings, tests=False)
        return Trial({"trial": str(number)}, recipe.seed, recipe)


def load_search(
    given: Given, overrides: Overrides = (), *, trust_remote_code: bool = False
) -> tuple[Search, BaseRecipe]:
    """Read a search. Raises RecipeError with every mistake in it, or else in its recipe, each with its place."""
    source = read_source(given, overrides, "search")
    search, problems = read_keys(Search, source.tree)
    if search is None:
        raise RecipeError(list_mistakes(problems, "the search"))
    tree = source.base()
    if unfit := list(_unfit(search.space, tree, source.tree)):
        raise RecipeError(list_mistakes(unfit, "the search"))
    base = BaseRecipe(tree, trust_remote_code)
    for settings in ({}, *_corners(search.space)):
        base.changed(settings, tests=True)
    try:
        base.changed({}, tests=False)
    except RecipeError as error:
        name = source.name if isinstance(given, Mapping) else given
        raise RecipeError(
            f"{name}: its recipe has no `data.splits.validation` to choose by, and a search does not look at the test "
            "set. Name a split, or a share of the training split such as 0.1."
        ) from error
    return search, base


def _unfit(space: Space, recipe: Document, tree: Document) -> Iterator[Issue]:
    """Keys that lead nowhere in the recipe."""
    for key in space:
        try:
            with_key(recipe, key, Document(None, {}))
        except ValueError as error:
            yield Issue(tree.location(("space", key)), "space", f"`{key}`: {error}")


def _corners(space: Space) -> Iterator[Settings]:
    """Settings with all that may be written for each key, each beside the first of the others."""
    ends: dict[str, list[Value]] = {
        key: [choice.low, choice.high] if isinstance(choice, Range) else choice for key, choice in space.items()
    }
    for key, values in ends.items():
        for value in values:
            yield {**{other: first[0] for other, first in ends.items()}, key: value}


def _value_at(node: object, key: str) -> object:
    for name in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list):
            node = node[int(name)] if name.isdecimal() and int(name) < len(node) else None
        else:
            node = getattr(node, name, None)
    return node
