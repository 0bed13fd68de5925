"""A tree of keys to a Recipe, or all that is wrong with it, each mistake with its place and what is allowed."""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tltasks.config.data import BUILDERS, Data
from tltasks.config.recipe import Recipe
from tltasks.config.section import FORMS
from tltasks.config.stage import Stage
from tltasks.config.tasks import TASKS
from tltasks.config.yaml_reader import Document, Issue, KeyPath, describe, dotted
from tltasks.errors import closest, did_you_mean

M = TypeVar("M", bound=BaseModel)
Located = tuple[KeyPath, str, tuple[str, ...]]
"""Keys of a mistake, its text, and what is allowed there."""


def validate(tree: Document) -> tuple[Recipe | None, list[Issue]]:
    """The recipe that a tree holds, and every mistake in it; the recipe is None when there are any."""
    given = tree.value
    task = _likely_task(given)
    reading = _Reading()
    shared = {key: value for key, value in given.items() if key not in {"model", "data", "stages"}}
    reading.read(Recipe, {**shared, "task": "", "stages": [_ANY_STAGE]}, ())
    if given.get("task") is None or not _is_task(given["task"]):
        reading.unknown_task(("task",), given)
    model, data, stages = _read_parts(reading, given, task)
    reading.found += _contradictions(given, {"model": model, "data": data}, stages, reading)
    recipe = None
    if not reading.found:
        recipe = Recipe.model_validate({**shared, "model": model, "data": data, "stages": stages})
    problems = [
        *tree.problems,
        *(Issue(tree.location(keys), dotted(keys), text, allowed) for keys, text, allowed in reading.found),
    ]
    return (None if problems else recipe), sorted(problems, key=lambda p: p.location)


_ANY_STAGE = Stage(stage="zero_shot")


def read_keys(model: type[M], tree: Document) -> tuple[M | None, list[Issue]]:
    """What a tree holds by the keys of any model, and every mistake in it; None when there are any."""
    reading = _Reading()
    value = reading.read(model, tree.value, ())
    found = [Issue(tree.location(keys), dotted(keys), text, allowed) for keys, text, allowed in reading.found]
    problems = sorted([*tree.problems, *found], key=lambda p: p.location)
    return (None if problems else value), problems


def _is_task(name: object) -> bool:
    return isinstance(name, str) and name in TASKS


def _likely_task(given: dict[str, Any]) -> str | None:
    """The task that was meant, so that the rest can be checked too: the name's nearest, or whose keys fit best."""
    name = given.get("task")
    if isinstance(name, str):
        return closest(name, TASKS)

    def n_mistakes(task: str) -> int:
        reading = _Reading()
        _read_parts(reading, given, task)
        return len(reading.found)

    return min(TASKS, key=n_mistakes)


def _read_parts(reading: _Reading, given: dict[str, Any], task: str | None) -> tuple[Any, Any, list[Stage | None]]:
    """Model, data and stages by the keys of their task; None for what is not there or cannot be read."""
    model, data = (
        reading.read(getattr(TASKS[task], key), given[key], (key,))
        if task is not None and given.get(key) is not None
        else None
        for key in ("model", "data")
    )
    items = given.get("stages")
    if "stages" not in given:
        reading.missing((), "stages", ", a list of at least one stage")
    elif not isinstance(items, list) or not items:
        reading.add(("stages",), f"expected a list of at least one stage, found {describe(items)}")
        items = None
    stages: list[Stage | None] = []
    for i, value in enumerate(items or []):
        own = task
        if isinstance(value, dict) and isinstance(value.get("task"), str):
            own = closest(value["task"], TASKS)
            if not _is_task(value["task"]):
                reading.unknown_task(("stages", i, "task"), value)
        stages.append(reading.read(TASKS[own].stage, value, ("stages", i)) if own is not None else None)
    return model, data, stages


# ------------------------------------------------------------------------------ pydantic's complaints


@dataclass
class _Reading:
    """What has been found wrong; the rest is read as if it were not there, so that it is checked too."""

    found: list[Located] = field(default_factory=list)
    unsound: set[KeyPath] = field(default_factory=set)
    """Keys that could not be used, or that an unknown key was meant for: nothing is to be concluded from them."""

    def add(self, keys: KeyPath, text: str, allowed: tuple[str, ...] = ()) -> None:
        self.found.append((keys, text, allowed))

    def missing(self, parent: KeyPath, key: str, what: str = "", allowed: tuple[str, ...] = ()) -> None:
        if (*parent, key) not in self.unsound:
            self.add(parent, f"needs the key `{key}`{what}", allowed)

    def unknown_task(self, keys: KeyPath, parent: dict[str, Any]) -> None:
        name = parent.get(str(keys[-1]))
        if name is None:
            self.missing(keys[:-1], "task", allowed=tuple(TASKS))
            return
        close = did_you_mean(name, TASKS) if isinstance(name, str) else ""
        self.add(keys, f"no task is called {describe(name).removeprefix('the text ')}{close}", tuple(TASKS))

    def doubts(self, keys: KeyPath) -> bool:
        """Whether something at, above or below these keys could not be used."""
        return any(keys[: len(u)] == u[: len(keys)] for u in self.unsound)

    def read(self, model: type[BaseModel], value: object, keys: KeyPath) -> Any:
        """What a mapping holds besides its mistakes, which are noted; None when that cannot be told."""
        value = copy.deepcopy(value)
        while True:
            contradictions: list[str] = []
            try:
                read = model.model_validate(value, context=contradictions)
            except ValidationError as error:
                self._note(error, model, value, keys)
                if not self._without(error, value, keys):
                    return None
                continue
            for text in contradictions:
                if not any((*keys, name) in self.unsound for name in re.findall(r"`(\w+)", text)):
                    self.add(keys, text)
            return read

    def _note(self, error: ValidationError, model: type[BaseModel], value: object, keys: KeyPath) -> None:
        """One mistake for each key; where a key may take several forms, the complaint of each form is joined."""
        expected: dict[KeyPath, list[str]] = {}
        missing: list[tuple[KeyPath, str]] = []
        for item in error.errors(include_url=False):
            loc = _in_tree(item["loc"], value)
            at = (*keys, *loc)
            match item["type"]:
                case "extra_forbidden" if loc and loc[-1] == item["loc"][-1]:
                    known = tuple(_keys_at(model, loc[:-1]))
                    self.add(at, f"unknown key{did_you_mean(str(loc[-1]), known)}", known)
                    if meant := closest(str(loc[-1]), known):
                        self.unsound.add((*at[:-1], meant))
                case "extra_forbidden":  # text that stands for a key, as in `adapt: lora`
                    known = tuple(_keys_at(model, loc))
                    given = describe(_at(value, loc))
                    self.add(at, f"unknown: {given}{did_you_mean(str(_at(value, loc)), known)}", known)
                case "missing":
                    missing.append((at, str(item["loc"][-1])))
                case "value_error":
                    for text in str(item["ctx"]["error"]).splitlines():
                        self.add(at, text)
                case _ if item["loc"][-1:] == ("[key]",):
                    self.add(at, f"a name is {_expectation(dict(item))}")
                case _:
                    expected.setdefault(at, []).append(_expectation(dict(item)))
        for at, name in missing:
            self.missing(at, name)
        for at, forms in expected.items():
            if any(len(other) > len(at) and other[: len(at)] == at for other in expected):
                continue  # it has one of its forms, but for what is in it
            given = _at(value, at[len(keys) :])
            close = ""
            if isinstance(given, str):
                close = did_you_mean(given, [w for form in forms for w in re.findall(r"'([^']*)'", form)])
            mapping = not isinstance(given, dict) and "a mapping of keys" in forms
            known = tuple(_keys_at(model, at[len(keys) :])) if mapping else ()
            self.add(at, f"expected {' or '.join(dict.fromkeys(forms))}, found {describe(given)}{close}", known)

    def _without(self, error: ValidationError, value: object, keys: KeyPath) -> bool:
        """Take what is mistaken out of a value, or put in what was meant; False when the whole is mistaken."""
        for item in error.errors(include_url=False):
            loc = _in_tree(item["loc"], value)
            while loc and isinstance(loc[-1], int):  # a list without one of its items would be another list
                loc = loc[:-1]
            if not loc:
                return False
            parent, given = _at(value, loc[:-1]), _at(value, loc)
            meant = None
            if item["type"] == "literal_error" and isinstance(given, str):
                meant = closest(given, re.findall(r"'([^']*)'", str(item["ctx"]["expected"])))
            if meant is not None:
                parent[loc[-1]] = meant
                continue
            self.unsound.add((*keys, *loc))
            del parent[loc[-1]]
            while len(loc) > 1 and not _at(value, loc[:-1]) and not isinstance(loc[-2], int):
                loc = loc[:-1]
                del _at(value, loc[:-1])[loc[-1]]
        return True


def _expectation(item: dict[str, Any]) -> str:
    ctx = item.get("ctx", {})
    match item["type"]:
        case "literal_error":
            return re.sub(r" or ", ", ", str(ctx["expected"]))
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "string_type":
            return "text"
        case "string_too_short":
            return "text that is not empty"
        case "string_pattern_mismatch":
            return FORMS[str(ctx["pattern"])]
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "list_type" | "tuple_type":
            return "a list"
        case "too_short":
            return f"a list of at least {ctx['min_length']}"
        case "greater_than":
            return f"a number above {ctx['gt']}"
        case "greater_than_equal":
            return f"a number of at least {ctx['ge']}"
        case "less_than":
            return f"a number below {ctx['lt']}"
        case "less_than_equal":
            return f"a number of at most {ctx['le']}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a mapping of keys"
    return str(item["msg"])


def _in_tree(loc: tuple[str | int, ...], value: object) -> KeyPath:
    """The part of pydantic's path that was written: it also names the forms that a key may take."""
    walked: list[str | int] = []
    for step in loc:
        if not isinstance(value, (dict, list)):
            break
        if step in value if isinstance(value, dict) else isinstance(step, int) and step < len(value):
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
    elif origin is dict:
        yield from _keys_at(arguments[1], loc[1:]) if loc else ()
    elif origin is list:
        yield from _keys_at(arguments[0], loc[1:]) if loc else ()
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from _keys_at(argument, loc)


# ------------------------------------------------------------------------------------ contradictions


def _contradictions(
    given: dict[str, Any], shared: dict[str, Any], stages: list[Stage | None], reading: _Reading
) -> Iterator[Located]:
    """Keys that are each in order, but not together; `shared` holds the recipe's model and data."""
    shared_data: Data | None = shared["data"]
    if stages and stages[0] is not None and stages[0].start == "previous":
        yield ("stages", 0, "start"), "the first stage has no previous one; use `start: checkpoint`", ()
    data_seen: set[KeyPath] = set()
    for i, stage in enumerate(stages):
        if stage is None:
            continue
        before = stages[i - 1] if i else None
        if stage.start == "previous" and before is not None and before.adapt.is_virtual:
            text = f"goes on from virtual tokens (stage {i - 1}, adapt: prompt), which cannot be merged into weights"
            yield ("stages", i, "start"), text, ()
        for key in ("model", "data"):
            lacks = given.get(key) is None and given["stages"][i].get(key) is None
            if lacks and not reading.doubts((key,)) and not reading.doubts(("stages", i, key)):
                yield ("stages", i), f"needs the key `{key}`, here or for the whole recipe", ()
            other = shared[key] is not None and not isinstance(shared[key], _part(type(stage), key))
            if other and getattr(stage, key, None) is None and not reading.doubts(("stages", i, key)):
                yield ("stages", i), f"needs a `{key}` of its own: the recipe's is of another task", ()
        own = stage.data
        data, at = (own, ("stages", i, "data")) if own is not None else (shared_data, ("data",))
        if data is None or (own is None and reading.doubts(("stages", i, "data"))):
            continue
        if at not in data_seen:
            data_seen.add(at)
            yield from _data_contradictions(data, at, reading)
        if reading.doubts((*at, "splits")):
            continue
        if stage.trains and data.splits.train is None:
            yield (*at, "splits", "train"), f"stage {i} ({stage.stage}) trains and needs a split to train on", ()
        for key in ("early_stopping", "evaluate_every"):
            if data.splits.validation is None and getattr(stage, key) is not None:
                yield ("stages", i, key), "needs a validation split: set data.splits.validation", ()
        if data.splits.validation is None and stage.interpolate and len(stage.interpolate.alphas) > 1:
            text = "needs a validation split to choose by (set data.splits.validation), or one of `alphas` alone"
            yield ("stages", i, "interpolate"), text, ()
        if data.splits.validation is None and isinstance(stage.l2, list) and len(stage.l2) > 1:
            yield ("stages", i, "l2"), "several need a validation split to choose by: set data.splits.validation", ()


def _part(stage: type[Stage], key: str) -> type[BaseModel]:
    """The class of a stage's model or data."""
    keys = next(keys for keys in TASKS.values() if keys.stage is stage)
    return keys.model if key == "model" else keys.data


def _data_contradictions(data: Data, at: KeyPath, reading: _Reading) -> Iterator[Located]:
    splits = data.splits
    shares = [share for share in (splits.validation, splits.test) if isinstance(share, float)]
    if not reading.doubts((*at, "splits")):
        if sum(shares) >= 1:
            yield (*at, "splits"), f"shares of {sum(shares):g} in all leave nothing to train on", ()
        if shares and splits.train is None:
            yield (*at, "splits", "train"), "a share is held out of train, so train needs a split", ()
        lacks_extra = not data.extra_test and not reading.doubts((*at, "extra_test"))
        if splits.validation is None and splits.test is None and lacks_extra:
            yield (*at, "splits"), "nothing to evaluate on: set `test`, `validation` or `extra_test`", ()
    places = any(reading.doubts((*at, key)) for key in ("dir", "files"))
    if data.name in BUILDERS and not data.dir and not data.files and not places:
        yield (*at, "name"), f"the builder `{data.name}` needs `dir` or `files`", ()
    for name in sorted(data.extra_test.keys() & {"train", "validation", "test"}):
        yield (*at, "extra_test", name), f"`{name}` is the name of a split; choose another", ()
