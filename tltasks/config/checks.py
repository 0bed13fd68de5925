"""Mistakes in a tree of keys: pydantic's complaints with their places, in words, and what is allowed instead."""

from __future__ import annotations

import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tltasks.config.document import Document, Issue, describe, dotted
from tltasks.config.section import FORMS, KeyPath, Section
from tltasks.errors import closest, did_you_mean

M = TypeVar("M", bound=BaseModel)


def read_keys(model: type[M], tree: Document) -> tuple[M | None, list[Issue]]:
    """Read a tree by the keys of a model: what it holds, None if there are mistakes, and every mistake."""
    reading = Findings(tree)
    return reading.finish(reading.read(model, tree.value, ()))


class Findings:
    """Mistakes found so far; the rest is read as if they were not there, so that it is checked too."""

    def __init__(self, tree: Document) -> None:
        self.tree = tree
        self.issues: dict[Issue, None] = {}
        self.unsound: set[KeyPath] = set()
        """Keys that could not be used, or that an unknown key was meant for: nothing is to be concluded from them."""
        self.sections: dict[str, type[BaseModel]] = {}
        """Where else a key may belong, by the section's name."""

    def finish(self, value: M | None) -> tuple[M | None, list[Issue]]:
        problems = sorted([*self.tree.problems, *self.issues], key=lambda problem: problem.location)
        return (None if problems else value), problems

    def add(self, keys: KeyPath, text: str, allowed: Iterable[str] = ()) -> None:
        self.issues[self.tree.issue(keys, text, tuple(allowed))] = None

    def tell(self, found: BaseModel, keys: KeyPath) -> None:
        """Add the conflicts of a section and of those in it that do not follow from what could not be used."""
        for at, section in _sections(found, keys):
            if not section.model_fields_set and self.doubts(at):
                continue  # nothing in it could be used
            for text, place, grounds in section.conflicts():
                named = [at, *((*at, name) for name in re.findall(r"`(\w+)", text))]
                others = [(*at, *ground) for ground in grounds or [place] if ground]
                if self.unsound.isdisjoint(named) and not any(map(self.doubts, others)):
                    self.add((*at, *place), text)

    def doubts(self, keys: KeyPath) -> bool:
        """True if something at, above or below these keys could not be used."""
        return any(keys[: len(u)] == u[: len(keys)] for u in self.unsound)

    def missing(self, parent: KeyPath, key: str, what: str = "", allowed: Iterable[str] = ()) -> None:
        if (*parent, key) not in self.unsound:
            self.add(parent, f"needs the key `{key}`{what}", allowed)

    def read(self, model: type[M], value: object, keys: KeyPath) -> M | None:
        """Read a mapping and note its mistakes; the rest of it, or None when that cannot be told."""
        try:
            return model.model_validate(value)
        except ValidationError as error:
            self._note(error.errors(include_url=False), model, value, keys)
        try:
            found = model.model_validate(value, context=_mend)
        except ValidationError:
            return None
        self.tell(found, keys)
        return found

    def _note(self, mistakes: list[ErrorDetails], model: type[BaseModel], value: object, keys: KeyPath) -> None:
        """One mistake for each key; where a key may take several forms, the complaint of each form is joined."""
        expected: dict[KeyPath, list[str]] = {}
        read: set[KeyPath] = set()
        for item in sorted(mistakes, key=lambda item: item["type"] == "missing"):
            kind, context = item["type"], item.get("ctx", {})
            loc = _in_tree(item["loc"], value)
            at = (*keys, *loc)
            if kind == "conflict":
                inside = _in_tree(item["loc"][: len(item["loc"]) - len(context["keys"])], value)
                read.add(inside)
                self.add((*keys, *inside, *context["keys"]), context["text"])
                continue
            if kind == "missing":
                self.missing(at, str(item["loc"][-1]))
                self.unsound.add(at if loc else (*at, item["loc"][-1]))
                continue
            if not _word_meant(item, _at(value, loc)):
                self.unsound.add(at)
            if kind == "extra_forbidden" and loc[-1:] == item["loc"][-1:]:
                known = tuple(_keys_at(model, loc[:-1]))
                home = self._home(str(loc[-1]))
                self.add(at, f"unknown key{home or did_you_mean(str(loc[-1]), known)}", known)
                if not home and (meant := closest(str(loc[-1]), known)):
                    self.unsound.add((*at[:-1], meant))
            elif kind == "extra_forbidden":  # text that stands for a key, as in `adapt: lora`
                known, given = tuple(_keys_at(model, loc)), _at(value, loc)
                self.add(at, f"unknown: {describe(given)}{did_you_mean(str(given), known)}", known)
            elif kind == "value_error":
                self.add(at, str(context["error"]))
            elif item["loc"][-1:] == ("[key]",):
                self.add(at, f"a name is {_expectation(item)}")
            else:
                expected.setdefault(loc, []).append(_expectation(item))
        for loc, forms in expected.items():
            if loc in read or any(len(other) > len(loc) and other[: len(loc)] == loc for other in expected):
                continue  # it has one of its forms, but for what is in it
            given, close = _at(value, loc), ""
            if isinstance(given, str):
                close = did_you_mean(given, [word for form in forms for word in _quoted(form)])
            mapping = not isinstance(given, dict) and "a mapping of keys" in forms
            text = f"expected {' or '.join(dict.fromkeys(forms))}, found {describe(given)}{close}"
            self.add((*keys, *loc), text, _keys_at(model, loc) if mapping else ())

    def _home(self, key: str) -> str:
        """The place of a key that is unknown here, the nearest to the top, or nothing."""
        places: list[KeyPath] = [()]
        for _ in range(3):
            for place, (name, model) in itertools.product(places, self.sections.items()):
                if key in _keys_at(model, place):
                    where = dotted((*filter(None, [name]), *place))
                    return f"; it stands {f'in `{where}`' if where else 'at the top of the recipe'}"
            keys = {(*at, it): None for at in places for model in self.sections.values() for it in _keys_at(model, at)}
            places = list(keys)
        return ""


def _mend(value: object, error: ValidationError) -> object:
    """A mapping without the keys that are mistaken, or with words that were meant. Raises for what is no mapping."""
    if not isinstance(value, dict):
        raise error
    kept = dict(value)
    for item in error.errors(include_url=False):
        key = item["loc"][0]
        meant = _word_meant(item, value.get(key)) if len(item["loc"]) == 1 else None
        if meant is not None:
            kept[key] = meant
        else:
            kept.pop(key, None)
    return kept


def _word_meant(item: ErrorDetails, given: object) -> str | None:
    """The word that was meant by another."""
    literal = item["type"] == "literal_error" and isinstance(given, str)
    return closest(str(given), _quoted(item["ctx"]["expected"])) if literal else None


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _sections(section: BaseModel, keys: KeyPath) -> Iterator[tuple[KeyPath, Section]]:
    """A section and those in it."""
    if isinstance(section, Section):
        yield keys, section
    for name, field in type(section).model_fields.items():
        if isinstance(inner := getattr(section, name), Section):
            yield from _sections(inner, (*keys, field.alias or name))


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


def _at(value: object, loc: KeyPath) -> object:
    for step in loc:
        value = value[step]  # type: ignore[index]
    return value


def _keys_at(annotation: object, loc: KeyPath) -> Iterator[str]:
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
