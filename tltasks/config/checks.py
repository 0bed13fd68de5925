"""A tree of keys to a Recipe, or all that is wrong with it, each mistake with its place and what is allowed."""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tltasks.config.data import BUILDERS, Data
from tltasks.config.document import Document, Issue, KeyPath, describe
from tltasks.config.recipe import Recipe
from tltasks.config.section import FORMS
from tltasks.config.stage import Stage
from tltasks.config.tasks import TASKS
from tltasks.config.tasks.spec import TaskSpec
from tltasks.errors import closest, did_you_mean

M = TypeVar("M", bound=BaseModel)
_ANY_STAGE = Stage(stage="zero_shot")


def read_keys(model: type[M], tree: Document) -> tuple[M | None, list[Issue]]:
    """What a tree holds by the keys of any model, and every mistake in it; None when there are any."""
    reading = _Reading(tree)
    return reading.finish(reading.read(model, tree.value, ()))


def validate(tree: Document) -> tuple[Recipe | None, list[Issue]]:
    """The recipe that a tree holds, and every mistake in it; the recipe is None when there are any."""
    given, reading = tree.value, _Reading(tree)
    shared = {key: value for key, value in given.items() if key not in {"model", "data", "stages"}}
    reading.read(Recipe, {**shared, "task": "", "stages": [_ANY_STAGE]}, ())
    if given.get("task") not in list(TASKS):
        reading.unknown_task(("task",), given)
    parts = _Parts(reading, given, _likely_task(given, tree))
    parts.conclude()
    sound = {"model": parts.model, "data": parts.data, "stages": [stage for _, stage in parts.stages]}
    return reading.finish(None if reading.issues else Recipe.model_validate({**shared, **sound}))


def _likely_task(given: dict[str, Any], tree: Document) -> str | None:
    """The task that was meant, so that the rest can be checked too: the name's nearest, or whose keys fit best."""
    name = given.get("task")
    if isinstance(name, str):
        return closest(name, TASKS)

    def n_mistakes(task: str) -> int:
        reading = _Reading(tree)
        _Parts(reading, given, task)
        return len(reading.issues)

    return min(TASKS, key=n_mistakes)


class _Reading:
    """What has been found wrong; the rest is read as if it were not there, so that it is checked too."""

    def __init__(self, tree: Document) -> None:
        self.tree = tree
        self.issues: list[Issue] = []
        self.unsound: set[KeyPath] = set()
        """Keys that could not be used, or that an unknown key was meant for: nothing is to be concluded from them."""

    def finish(self, value: M | None) -> tuple[M | None, list[Issue]]:
        problems = sorted([*self.tree.problems, *self.issues], key=lambda problem: problem.location)
        return (None if problems else value), problems

    def add(self, keys: KeyPath, text: str, allowed: Iterable[str] = ()) -> None:
        self.issues.append(self.tree.issue(keys, text, tuple(allowed)))

    def conclude(self, keys: KeyPath, text: str, *grounds: KeyPath) -> None:
        """Add what follows from its grounds, unless one of these could not be used."""
        if not any(map(self.doubts, grounds)):
            self.add(keys, text)

    def doubts(self, keys: KeyPath) -> bool:
        """Whether something at, above or below these keys could not be used."""
        return any(keys[: len(u)] == u[: len(keys)] for u in self.unsound)

    def missing(self, parent: KeyPath, key: str, what: str = "", allowed: Iterable[str] = ()) -> None:
        if (*parent, key) not in self.unsound:
            self.add(parent, f"needs the key `{key}`{what}", allowed)

    def unknown_task(self, keys: KeyPath, parent: dict[str, Any]) -> None:
        name = parent.get("task")
        if name is None:
            self.missing(keys[:-1], "task", allowed=TASKS)
            return
        close = did_you_mean(name, TASKS) if isinstance(name, str) else ""
        self.add(keys, f"no task is called {describe(name).removeprefix('the text ')}{close}", TASKS)

    def read(self, model: type[M], value: object, keys: KeyPath) -> M | None:
        """What a mapping holds besides its mistakes, which are noted; None when that cannot be told."""
        contradictions: list[str] = []
        try:
            read = model.model_validate(value, context=contradictions)
        except ValidationError as error:
            mistakes, value = error.errors(include_url=False), copy.deepcopy(value)
            self._note(mistakes, model, value, keys)
            return self.read(model, value, keys) if self._mend(mistakes, value, keys) else None
        for text in contradictions:
            self.conclude(keys, text, *((*keys, name) for name in re.findall(r"`(\w+)", text)))
        return read

    def _note(self, mistakes: list[ErrorDetails], model: type[BaseModel], value: Any, keys: KeyPath) -> None:
        """One mistake for each key; where a key may take several forms, the complaint of each form is joined."""
        expected: dict[KeyPath, list[str]] = {}
        for item in sorted(mistakes, key=lambda item: item["type"] == "missing"):
            loc = _in_tree(item["loc"], value)
            at = (*keys, *loc)
            match item["type"]:
                case "extra_forbidden" if loc and loc[-1] == item["loc"][-1]:
                    known = tuple(_keys_at(model, loc[:-1]))
                    self.add(at, f"unknown key{did_you_mean(str(loc[-1]), known)}", known)
                    if meant := closest(str(loc[-1]), known):
                        self.unsound.add((*at[:-1], meant))
                case "extra_forbidden":  # text that stands for a key, as in `adapt: lora`
                    known, given = tuple(_keys_at(model, loc)), _at(value, loc)
                    self.add(at, f"unknown: {describe(given)}{did_you_mean(str(given), known)}", known)
                case "missing":
                    self.missing(at, str(item["loc"][-1]))
                case "value_error":
                    for text in str(item["ctx"]["error"]).splitlines():
                        self.add(at, text)
                case _ if item["loc"][-1:] == ("[key]",):
                    self.add(at, f"a name is {_expectation(item)}")
                case _:
                    expected.setdefault(loc, []).append(_expectation(item))
        for loc, forms in expected.items():
            if any(len(other) > len(loc) and other[: len(loc)] == loc for other in expected):
                continue  # it has one of its forms, but for what is in it
            given, close = _at(value, loc), ""
            if isinstance(given, str):
                close = did_you_mean(given, [word for form in forms for word in re.findall(r"'([^']*)'", form)])
            mapping = not isinstance(given, dict) and "a mapping of keys" in forms
            text = f"expected {' or '.join(dict.fromkeys(forms))}, found {describe(given)}{close}"
            self.add((*keys, *loc), text, _keys_at(model, loc) if mapping else ())

    def _mend(self, mistakes: list[ErrorDetails], value: Any, keys: KeyPath) -> bool:
        """Take what is mistaken out of a value, or put in what was meant; False when the whole is mistaken."""
        for item in mistakes:
            loc = _in_tree(item["loc"], value)
            while loc and isinstance(loc[-1], int):  # a list without one of its items would be another list
                loc = loc[:-1]
            if not loc:
                return False
            parent, given = _at(value, loc[:-1]), _at(value, loc)
            said = re.findall(r"'([^']*)'", str(item["ctx"]["expected"])) if item["type"] == "literal_error" else []
            if isinstance(given, str) and (meant := closest(given, said)):
                parent[loc[-1]] = meant
                continue
            self.unsound.add((*keys, *loc))
            del parent[loc[-1]]
            while len(loc) > 1 and not _at(value, loc[:-1]) and not isinstance(loc[-2], int):
                loc = loc[:-1]
                del _at(value, loc[:-1])[loc[-1]]
        return True


EXPECTED = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "too_short": "a list of at least {min_length}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of keys"),
}
"""What was expected, by pydantic's kind of error and with its context."""


def _expectation(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    if item["type"] == "literal_error":
        return str(context["expected"]).replace(" or ", ", ")
    if item["type"] == "string_pattern_mismatch":
        return FORMS[str(context["pattern"])]
    known = EXPECTED.get(item["type"])
    return known.format(**context) if known else item["msg"]


def _in_tree(loc: tuple[str | int, ...], value: object) -> KeyPath:
    """The part of pydantic's path that was written: it also names the forms that a key may take."""
    walked: list[str | int] = []
    for step in loc:
        if not isinstance(value, dict | list):
            break
        if step in (value if isinstance(value, dict) else range(len(value))):
            value = value[step]  # type: ignore[index]
            walked.append(step)
    return tuple(walked)


def _at(value: Any, loc: KeyPath) -> Any:
    for step in loc:
        value = value[step]
    return value


def _keys_at(annotation: Any, loc: KeyPath) -> Iterator[str]:
    """Keys of whatever mapping may stand at `loc` below a type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            yield from (field.alias or name for name, field in annotation.model_fields.items())
        elif field := annotation.model_fields.get(str(loc[0])):
            yield from _keys_at(field.annotation, loc[1:])
    elif origin in (dict, list):
        yield from _keys_at(arguments[-1], loc[1:]) if loc else ()
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from _keys_at(argument, loc)


# -------------------------------------------------------------------------------- the parts of a recipe


class _Parts:
    """Model, data and stages by the keys of their task; None for what is not there or cannot be read."""

    def __init__(self, reading: _Reading, given: dict[str, Any], task: str | None) -> None:
        self.reading, self.given = reading, given
        own = TASKS[task] if task is not None else None
        self.model, self.data = (
            reading.read(getattr(own, key), given[key], (key,)) if own and given.get(key) is not None else None
            for key in ("model", "data")
        )
        self.stages: list[tuple[TaskSpec | None, Stage | None]] = []
        items = given.get("stages")
        if "stages" not in given:
            reading.missing((), "stages", ", a list of at least one stage")
        elif not isinstance(items, list) or not items:
            reading.add(("stages",), f"expected a list of at least one stage, found {describe(items)}")
            items = None
        for i, value in enumerate(items or []):
            spec = own
            if isinstance(value, dict) and isinstance(name := value.get("task"), str):
                spec = TASKS.get(closest(name, TASKS) or "")
                if name not in TASKS:
                    reading.unknown_task(("stages", i, "task"), value)
            self.stages.append((spec, reading.read(spec.stage, value, ("stages", i)) if spec else None))

    def conclude(self) -> None:
        """Keys that are each in order, but not together."""
        data_seen: set[KeyPath] = set()
        for i, (spec, stage) in enumerate(self.stages):
            if spec is None or stage is None:
                continue
            self._start(i, stage)
            for key in ("model", "data"):
                shared, here = getattr(self, key), ("stages", i, key)
                if self.given.get(key) is None and self.given["stages"][i].get(key) is None:
                    text = f"needs the key `{key}`, here or for the whole recipe"
                    self.reading.conclude(here[:2], text, (key,), here)
                if getattr(stage, key) is None and shared is not None and not isinstance(shared, getattr(spec, key)):
                    text = f"needs a `{key}` of its own: the recipe's is of another task"
                    self.reading.conclude(here[:2], text, here)
            here, data = ("stages", i, "data"), stage.data or self.data
            at = here if stage.data else ("data",)
            if data is None or (at != here and self.reading.doubts(here)):
                continue
            if at not in data_seen:
                data_seen.add(at)
                self._data(data, at)
            self._splits(i, stage, data, (*at, "splits"))

    def _start(self, i: int, stage: Stage) -> None:
        at, (_, before) = ("stages", i, "start"), self.stages[i - 1]
        if stage.start != "previous":
            return
        if i == 0:
            self.reading.add(at, "the first stage has no previous one; use `start: checkpoint`")
        elif before is not None and before.adapt.is_virtual:
            what = f"virtual tokens (stage {i - 1}, adapt: prompt), which cannot be merged into weights"
            self.reading.add(at, f"goes on from {what}")

    def _data(self, data: Data, at: KeyPath) -> None:
        """What is wrong with data whatever stage they are for."""
        add, splits, extra = self.reading.conclude, (*at, "splits"), (*at, "extra_test")
        shares = [share for share in (data.splits.validation, data.splits.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            add(splits, f"shares of {sum(shares):g} in all leave nothing to train on", splits)
        if shares and data.splits.train is None:
            add((*splits, "train"), "a share is held out of train, so train needs a split", splits)
        if data.splits.validation is None and data.splits.test is None and not data.extra_test:
            add(splits, "nothing to evaluate on: set `test`, `validation` or `extra_test`", splits, extra)
        if data.name in BUILDERS and not data.dir and not data.files:
            text = f"the builder `{data.name}` needs `dir` or `files`"
            add((*at, "name"), text, (*at, "dir"), (*at, "files"))
        for name in sorted(data.extra_test.keys() & {"train", "validation", "test"}):
            add((*extra, name), f"`{name}` is the name of a split; choose another")

    def _splits(self, i: int, stage: Stage, data: Data, at: KeyPath) -> None:
        """What a stage needs of its data's splits and does not find there."""
        lacks: dict[str, str] = {}
        if data.splits.validation is None:
            needs = "needs a validation split: set data.splits.validation"
            lacks = {key: needs for key in ("early_stopping", "evaluate_every") if getattr(stage, key) is not None}
            if stage.interpolate and len(stage.interpolate.alphas) > 1:
                lacks["interpolate"] = (
                    "needs a validation split to choose by (set data.splits.validation), or one of `alphas` alone"
                )
            if isinstance(stage.l2, list) and len(stage.l2) > 1:
                lacks["l2"] = "several need a validation split to choose by: set data.splits.validation"
        for key, text in lacks.items():
            self.reading.conclude(("stages", i, key), text, at)
        if stage.trains and data.splits.train is None:
            text = f"stage {i} ({stage.stage}) trains and needs a split to train on"
            self.reading.conclude((*at, "train"), text, at)
