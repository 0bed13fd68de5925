"""A recipe as it was written: a plain tree, the place of each of its keys, and what is wrong there, in words."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tltasks.errors import RecipeError, without_secrets

if TYPE_CHECKING:  # where pydantic is not imported yet
    from tltasks.config.section import KeyPath

DOTTED_KEY = re.compile(r"[\w-]+(\.[\w-]+|\[\d+\])*")
"""`stages.0.epochs`, or `stages[0].epochs`."""
MAX_DEPTH = 32


@dataclass(frozen=True, order=True)
class Location:
    """A place in a file, an override or a mapping; places are in the order of `line` and `column`."""

    line: int
    column: int
    shown: str
    """`file:line:column`, or the override; nothing for the key of a mapping, whose path says it all."""
    folder: Path = Path()
    """Where local paths that are written here start."""

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Origin:
    """A file, an override, or a mapping, which has no name; and the folder where its local paths start."""

    name: str
    folder: Path
    is_override: bool = False

    def at(self, line: int, column: int) -> Location:
        """An override is one place, behind all others."""
        if self.is_override:
            return Location(10**9, 0, self.name, self.folder)
        return Location(line, column, self.name and f"{self.name}:{line}:{column}", self.folder)


@dataclass(frozen=True)
class Issue:
    """One mistake; `allowed` is listed after the text, once for all problems that share it."""

    location: Location
    where: str
    text: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A mapping as written, or a part of one. `problems` are mistakes of writing that leave the rest readable."""

    value: Any
    locations: Mapping[KeyPath, Location]
    problems: tuple[Issue, ...] = ()

    def location(self, keys: KeyPath) -> Location:
        """Place where a key (or list item) was written; for one that was not, that of its parent."""
        while keys and keys not in self.locations:
            keys = keys[:-1]
        return self.locations[keys]

    def issue(self, keys: KeyPath, text: str, allowed: Iterable[str] = ()) -> Issue:
        return Issue(self.location(keys), dotted(keys), text, tuple(allowed))

    def below(self, keys: KeyPath) -> Document:
        """The part that is written under a key."""
        value = self.value
        for step in keys:
            value = value[step]
        n = len(keys)
        return Document(value, {k[n:]: at for k, at in self.locations.items() if k[:n] == keys}, self.problems)

    def replaced(self, key: str, part: Document) -> Document:
        """A copy with `part` under a dotted key; without locations of its own it takes those that it replaces.

        Raises ValueError for what is no key, and for a step that leads nowhere.
        """
        if not DOTTED_KEY.fullmatch(key):
            raise ValueError("write keys as `stages.0.epochs`")
        tree, locations = copy.deepcopy(self.value), dict(self.locations)
        names, node = re.findall(r"[\w-]+", key), tree
        if len(names) > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        keys: KeyPath = ()
        for name in names[:-1]:
            step = _step(node, name, keys)
            keys = (*keys, step)
            if isinstance(node, dict) and node.get(step) is None:
                node[step] = {}
                locations |= {keys: part.location(())} if part.locations else {}
            node = node[step]
        step = _step(node, names[-1], keys)
        keys = (*keys, step)
        node[step] = part.value
        if part.locations:
            locations = {k: at for k, at in locations.items() if k[: len(keys)] != keys}
            locations |= {(*keys, *below): at for below, at in part.locations.items()}
        return Document(tree, locations, (*self.problems, *part.problems))


def _step(node: object, name: str, keys: KeyPath) -> str | int:
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise ValueError(f"{dotted(keys)} is {describe(node)} and has no keys; set it as a whole")
    if not re.fullmatch(r"[0-9]{1,9}", name):
        raise ValueError(f"{dotted(keys)} is a list; name an item by its number, as in {dotted((*keys, 0))}")
    if int(name) >= len(node):
        n = len(node)
        has = "is empty" if n == 0 else "has one item, 0" if n == 1 else f"has {n} items, 0 to {n - 1}"
        raise ValueError(f"{dotted(keys)} {has}; there is no {name}")
    return int(name)


def from_python(value: object, origin: Origin) -> Document:
    """A document of mappings, lists, paths and plain values, the places in their order."""
    locations: dict[KeyPath, Location] = {}
    problems: list[Issue] = []

    def plain(node: object, keys: KeyPath) -> object:
        at = locations.setdefault(keys, origin.at(len(locations), 0))
        if len(keys) > MAX_DEPTH:
            raise RecipeError(f"{dotted(keys[:3])}…: nested more than {MAX_DEPTH} levels deep.")
        if isinstance(node, Mapping):
            wrong = [key for key in node if not isinstance(key, str)]
            problems.extend(Issue(at, dotted(keys), f"the key `{clip(str(key))}` is not text") for key in wrong)
            return {key: plain(item, (*keys, key)) for key, item in node.items() if isinstance(key, str)}
        if isinstance(node, list | tuple):
            return [plain(item, (*keys, i)) for i, item in enumerate(node)]
        if isinstance(node, os.PathLike):
            return os.fspath(node)
        number = isinstance(node, Number) and not isinstance(node, bool | int | float)  # numpy's
        return node.item() if number and hasattr(node, "item") else node

    return Document(plain(value, ()), locations, tuple(problems))


# ------------------------------------------------------------------------------------------- wording


def list_mistakes(problems: Sequence[Issue], where: str) -> str:
    """One line for each mistake, what is allowed once after the first mistake that it answers."""
    lines: list[str] = []
    listed: set[tuple[str, ...]] = set()
    for problem in problems:
        place = f"{problem.location}  " if problem.location.shown else ""
        lines.append(f"{place}{problem.where}{': ' if problem.where else ''}{problem.text}")
        if problem.allowed and problem.allowed not in listed:
            listed.add(problem.allowed)
            lines.append(f"    allowed: {', '.join(problem.allowed)}")
    n = len(problems)
    return f"{n} mistake{'s' if n > 1 else ''} in {where}; nothing was loaded.\n" + "\n".join(lines)


def dotted(keys: Sequence[Hashable]) -> str:
    """A path of keys as a person writes it.

    >>> dotted(("stages", 0, "epochs"))
    'stages[0].epochs'
    """
    return "".join(f"[{k}]" if isinstance(k, int) else f".{clip(str(k))}" for k in keys).removeprefix(".")


def describe(value: object) -> str:
    """A value as a person would name it.

    >>> describe("three"), describe([]), describe(None)
    ("the text 'three'", 'an empty list', 'nothing')
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text '{clip(value)}'"
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a mapping" if value else "an empty mapping"
    return f"the {type(value).__name__} {clip(str(value))}"


def clip(text: str, width: int = 80) -> str:
    """One printable line of at most `width` characters."""
    text = "".join(c if c.isprintable() else " " for c in without_secrets(text))
    return text if len(text) <= width else text[: width - 1] + "…"
