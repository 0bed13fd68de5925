"""A tree of keys to a Recipe, or all that is wrong with it, each mistake with its place and what is allowed."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from tltasks.recipe import BUILDERS, TASKS, Data, Recipe, Stage
from tltasks.source import Keys, Problem, Tree, describe, did_you_mean, dotted

Located = tuple[Keys, str, tuple[str, ...]]
"""Keys of a mistake, its text, and what is allowed there."""


def validate(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that a tree holds, and every mistake in it; the recipe is None when there are any."""
    found: list[Located] = []
    task = _known_task(tree.value.get("task"))
    if tree.value.get("task") not in TASKS:
        found.append(_unknown_task(("task",), tree.value))
    recipe = None
    shared = {key: value for key, value in tree.value.items() if key not in {"model", "data", "stages"}}
    found += _mistakes(Recipe, {**shared, "task": "", "stages": [_ANY_STAGE]}, ())
    parts: dict[str, Any] = {}
    for key in ("model", "data"):
        if tree.value.get(key) is not None and task is not None:
            parts[key], mistakes = _read(getattr(TASKS[task], key), tree.value[key], (key,))
            found += mistakes
    stages, mistakes = _read_stages(tree.value, task)
    found += mistakes
    if not found:
        recipe = Recipe.model_validate({**shared, **parts, "stages": stages})
        found += _contradictions(recipe, tree)
    problems = [
        *tree.problems,
        *(Problem(tree.location(keys), dotted(keys), text, allowed) for keys, text, allowed in found),
    ]
    return (None if problems else recipe), sorted(problems, key=lambda p: p.location)


_ANY_STAGE = Stage(stage="zero_shot")


def _known_task(name: object) -> str | None:
    """The task of that name, or the one that was meant, so that the rest can be checked too."""
    return next(iter(difflib.get_close_matches(str(name), TASKS, n=1)), None)


def _unknown_task(keys: Keys, parent: dict[str, Any]) -> Located:
    name = parent.get(str(keys[-1]))
    if name is None:
        return keys[:-1], "needs the key `task`", tuple(TASKS)
    close = did_you_mean(name, TASKS) if isinstance(name, str) else ""
    return keys, f"no task is called {describe(name).removeprefix('the text ')}{close}", tuple(TASKS)


def _read_stages(recipe: dict[str, Any], task: str | None) -> tuple[list[Stage], list[Located]]:
    """The stages, each by the keys of its own task."""
    given = recipe.get("stages")
    if "stages" not in recipe:
        return [], [((), "needs the key `stages`, a list of at least one stage", ())]
    if not isinstance(given, list) or not given:
        return [], [(("stages",), f"expected a list of at least one stage, found {describe(given)}", ())]
    stages: list[Stage] = []
    found: list[Located] = []
    for i, value in enumerate(given):
        own = task
        if isinstance(value, dict) and value.get("task") is not None:
            own = _known_task(value["task"])
            if value["task"] not in TASKS:
                found.append(_unknown_task(("stages", i, "task"), value))
        if own is not None:
            stage, mistakes = _read(TASKS[own].stage, value, ("stages", i))
            found += mistakes
            stages += [stage] if stage is not None else []
    return stages, found


# ------------------------------------------------------------------------------ pydantic's complaints


def _read(model: type[BaseModel], value: object, keys: Keys) -> tuple[Any, list[Located]]:
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, _rephrase(error, model, value, keys)


def _mistakes(model: type[BaseModel], value: object, keys: Keys) -> list[Located]:
    return _read(model, value, keys)[1]


def _rephrase(error: ValidationError, model: type[BaseModel], value: object, keys: Keys) -> list[Located]:
    """One mistake for each key; where a key may take several forms, the complaint of each form is joined."""
    expected: dict[Keys, list[str]] = {}
    found: list[Located] = []
    for item in error.errors(include_url=False):
        loc = _in_tree(item["loc"], value)
        match item["type"]:
            case "extra_forbidden":
                known = tuple(_keys_at(model, loc[:-1]))
                found.append(((*keys, *loc), f"unknown key{did_you_mean(str(loc[-1]), known)}", known))
            case "missing":
                text = f"needs the key `{item['loc'][-1]}`"
                found.append(((*keys, *loc), text, ()))
            case "value_error":
                found += [((*keys, *loc), text, ()) for text in str(item["ctx"]["error"]).splitlines()]
            case _:
                expected.setdefault((*keys, *loc), []).append(_expectation(dict(item)))
    for at, forms in expected.items():
        given = _at(value, at[len(keys) :])
        close = ""
        if isinstance(given, str):
            close = did_you_mean(given, [w for form in forms for w in re.findall(r"'([^']*)'", form)])
        found.append((at, f"expected {' or '.join(dict.fromkeys(forms))}, found {describe(given)}{close}", ()))
    return found


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
        case "string_pattern_mismatch":
            return f"text of the form {ctx['pattern']}"
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


def _in_tree(loc: tuple[str | int, ...], value: object) -> Keys:
    """The part of pydantic's path that was written: it also names the forms that a key may take."""
    walked: list[str | int] = []
    for step in loc:
        if not isinstance(value, (dict, list)):
            break
        if step in value if isinstance(value, dict) else isinstance(step, int) and step < len(value):
            value = value[step]  # type: ignore[index]
            walked.append(step)
    return tuple(walked)


def _at(value: Any, loc: Keys) -> object:
    for step in loc:
        value = value[step]
    return value


def _keys_at(annotation: Any, loc: Keys) -> Iterator[str]:
    """Keys of whatever mapping may stand at `loc` below a type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            yield from annotation.model_fields
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


def _contradictions(recipe: Recipe, tree: Tree) -> Iterator[Located]:
    """Keys that are each in order, but not together."""
    if recipe.stages[0].start == "previous":
        yield ("stages", 0, "start"), "the first stage has no previous one; use `start: checkpoint`", ()
    data_seen: set[Keys] = set()
    for i, stage in enumerate(recipe.stages):
        for key in ("model", "data"):
            if (getattr(stage, key, None) or getattr(recipe, key)) is None:
                yield ("stages", i), f"needs the key `{key}`, here or for the whole recipe", ()
        own = getattr(stage, "data", None)
        data, at = (own, ("stages", i, "data")) if own is not None else (recipe.data, ("data",))
        if data is None:
            continue
        if at not in data_seen:
            data_seen.add(at)
            yield from _data_contradictions(data, at)
        if stage.trains and data.splits.train is None:
            yield (*at, "splits", "train"), f"stage {i} ({stage.stage}) trains and needs a split to train on", ()
        if data.splits.validation is None and stage.early_stopping:
            yield ("stages", i, "early_stopping"), "needs a validation split: set data.splits.validation", ()
        if data.splits.validation is None and "evaluate_every" in stage.model_fields_set:
            yield ("stages", i, "evaluate_every"), "needs a validation split: set data.splits.validation", ()


def _data_contradictions(data: Data, at: Keys) -> Iterator[Located]:
    splits = data.splits
    shares = [share for share in (splits.validation, splits.test) if isinstance(share, float)]
    if sum(shares) >= 1:
        yield (*at, "splits"), f"shares of {sum(shares):g} in all leave nothing to train on", ()
    if shares and splits.train is None:
        yield (*at, "splits", "train"), "a share is held out of train, so train needs a split", ()
    if splits.validation is None and splits.test is None and not data.extra_test:
        yield (*at, "splits"), "nothing to evaluate on: set `test`, `validation` or `extra_test`", ()
    if data.name in BUILDERS and data.dir is None and data.files is None:
        yield (*at, "name"), f"the builder `{data.name}` needs `dir` or `files`", ()
    for name in data.extra_test.keys() & {"train", "validation", "test"}:
        yield (*at, "extra_test", name), f"`{name}` is the name of a split; choose another", ()
