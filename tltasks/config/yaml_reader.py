"""Strict YAML: text to a plain tree, and where each of its keys was written.

YAML 1.2 scalars (`5e-4` is a number, `no` and `off` are text), and none of what makes YAML dangerous or ambiguous:
tags, merge keys, duplicate keys, aliases without bound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tltasks.errors import RecipeError, closest

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Keys and values of a file after aliases are expanded."""
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Location:
    """A place in a file, or an override; overrides come after all lines."""

    line: int
    column: int
    shown: str

    def __str__(self) -> str:
        return self.shown

    @property
    def is_override(self) -> bool:
        return self.line == MAX_BYTES


@dataclass(frozen=True)
class Issue:
    """One mistake; `allowed` is listed after the text, once for all problems that share it."""

    location: Location
    where: str
    text: str
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A mapping as written. `problems` are mistakes of writing that leave the rest readable."""

    value: dict[str, Any]
    locations: dict[KeyPath, Location]
    problems: tuple[Issue, ...] = ()

    def location(self, keys: KeyPath) -> Location:
        """Where a key (or list item) was written; for one that was not, where its parent was."""
        while keys and keys not in self.locations:
            keys = keys[:-1]
        return self.locations[keys]


def read_text(path: Path) -> str:
    """The text of a recipe. Raises RecipeError for whatever is not a UTF-8 file of at most 1 MB."""
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, also false where one may not look
        raise RecipeError(f"{path}: {_why_no_file(path)}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: has {path.stat().st_size:,} bytes; a recipe has at most {MAX_BYTES:,}.")
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = content.count(b"\n", 0, error.start) + 1, error.start - content.rfind(b"\n", 0, error.start)
        raise RecipeError(f"{path}:{line}:{column}  not UTF-8 text (byte 0x{content[error.start]:02x}).") from error


def _why_no_file(path: Path) -> str:
    if os.path.isdir(path):  # noqa: PTH112
        return "is a folder; name a recipe file in it."
    if os.path.exists(path):  # noqa: PTH110
        return "is not a regular file."
    folder = path.parent
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"not found; there is no folder {folder}."
    here = {p.stem: p.name for p in sorted(folder.glob("*.y*ml"))}
    near = closest(path.stem, here)
    return f"not found; did you mean `{here[near]}`?" if near else "not found."


def parse(text: str, name: str, overrides: Iterable[str] = ()) -> Document:
    """The mapping that `text` holds, changed by `overrides` (`stages.0.epochs=1`).

    Raises RecipeError, with file, line and column, for text that cannot be read as one plain mapping.
    """
    reader = _Reader(name)
    value = reader.read(text)
    if value is None:
        raise RecipeError(f"{name}: is empty; a recipe is a mapping of keys such as `task` and `stages`.")
    if not isinstance(value, dict):
        raise RecipeError(f"{name}:1:1  expected a mapping of keys such as `task: …`, found {describe(value)}.")
    for override in overrides:
        _override(reader, value, override)
    return Document(value, reader.locations, tuple(reader.problems))


# ------------------------------------------------------------------------------------------- reading


SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)
"""Kind, form and first characters of the scalars of the YAML 1.2 core schema that are not text."""


class _Loader(yaml.SafeLoader):
    """No octal or sexagesimal numbers, no dates, no truth in yes and no."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


for _kind, _pattern, _first in SCALARS:
    _firsts = [*_first, ""] if _kind == "null" else list(_first)
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), _firsts)


@dataclass
class _Reader:
    """One document; `shown` replaces file, line and column where the text is an override."""

    name: str
    shown: str | None = None
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    problems: list[Issue] = field(default_factory=list)
    n_values: int = 0

    def read(self, text: str) -> Any:
        try:
            self._refuse_unsafe(text)
            node = yaml.compose(text, _Loader)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            at = self.shown or f"{self.name}:{line}:{column}"
            raise RecipeError(f"{at}  the character U+{ord(text[error.position]):04X} is not allowed.") from error
        except yaml.MarkedYAMLError as error:
            raise RecipeError(f"{self._at(error.problem_mark)}  {_rephrase(error)}") from error
        except ValueError as error:  # chr() of "\U00110000" in yaml/scanner.py (6.0.4)
            raise RecipeError(f"{self.shown or self.name + ':1:1'}  cannot be read as YAML: {error}.") from error
        self.locations[()] = Location(1, 1, self.shown or f"{self.name}:1:1")
        return None if node is None else self._plain(node, (), frozenset())

    def _refuse_unsafe(self, text: str) -> None:
        """Raise for tags, several documents, great size or depth: from the events, before anything is built."""
        depth = documents = 0
        for n, event in enumerate(yaml.parse(text, _Loader)):
            if n > MAX_VALUES:
                raise RecipeError(f"{self._at(event.start_mark)}  too large: more than {MAX_VALUES:,} values.")
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RecipeError(f"{self._at(event.start_mark)}  a second document (`---`); a recipe is one.")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise RecipeError(
                    f"{self._at(event.start_mark)}  the tag `{clip(_short_tag(tag))}`: tags are not allowed; "
                    "a recipe holds plain text, numbers, lists and mappings."
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise RecipeError(f"{self._at(event.start_mark)}  nested more than {MAX_DEPTH} levels deep.")

    def _plain(self, node: yaml.Node, keys: KeyPath, inside: frozenset[int]) -> Any:
        """The value of a node; an alias is a copy of what it stands for."""
        self.n_values += 1
        if self.n_values > MAX_VALUES or len(keys) > MAX_DEPTH:
            raise RecipeError(
                f"{self._at(node.start_mark)}  too large: more than {MAX_VALUES:,} values, or aliases"
                f" that expand to more, or more than {MAX_DEPTH} levels."
            )
        if id(node) in inside:
            raise RecipeError(f"{self._at(node.start_mark)}  contains itself through an alias.")
        inside |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            items = []
            for i, item in enumerate(node.value):
                self.locations[*keys, i] = self._location(item.start_mark)
                items.append(self._plain(item, (*keys, i), inside))
            return items
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys, inside)
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node.tag, self._printable(node), node.start_mark)

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath, inside: frozenset[int]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            location = self._location(key.start_mark)

            def problem(text: str, location: Location = location) -> None:
                self.problems.append(Issue(location, dotted(keys), text))

            name = self._printable(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                problem("a key that is a list or mapping; keys are text")
            elif key.tag != "tag:yaml.org,2002:str":
                problem(f"the key `{clip(name)}` is not text; put it in quotes")
            elif name == "<<":
                problem("merge keys (`<<`) are not allowed; write the keys out")
            elif name in found:
                problem(f"the key `{clip(name)}` is already there on line {lines[name]}; keep one")
            else:
                lines[name] = key.start_mark.line + 1
                self.locations[*keys, name] = location
                found[name] = self._plain(value, (*keys, name), inside)
        return found

    def _printable(self, node: yaml.ScalarNode) -> str:
        """The text of a scalar, of which YAML's escapes may have made what no file can hold, e.g. a lone surrogate."""
        text = str(node.value)
        if match := yaml.reader.Reader.NON_PRINTABLE.search(text):
            code = f"U+{ord(match[0]):04X}"
            raise RecipeError(f"{self._at(node.start_mark)}  the character {code} is not allowed.")
        return text

    def _scalar(self, tag: str, text: str, mark: Any) -> Any:
        match tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                if len(text) > 100:
                    raise RecipeError(f"{self._at(mark)}  a number of {len(text)} digits.")
                return int(text)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _location(self, mark: Any) -> Location:
        if self.shown:
            return Location(MAX_BYTES, 0, self.shown)
        return Location(mark.line + 1, mark.column + 1, f"{self.name}:{mark.line + 1}:{mark.column + 1}")

    def _at(self, mark: Any) -> str:
        return self.shown or (self._location(mark).shown if mark else self.name)


REPHRASED = (
    (r"character '\\t'", "a tab; indent with spaces"),
    (r"mapping values are not allowed", "a second `: ` on the line; put such text in quotes, or mend the indentation"),
    (r"expected the node content.*stream end", "ends in the middle of a list or mapping"),
    (r"expected <block end>", "does not line up with the {what} that begins on line {line}; mend the indentation"),
    (r"expected ',' or '\]'", "the list `[` begun on line {line} needs a `,` here, or its `]`"),
    (r"expected ',' or '\}'", "the mapping `{{` begun on line {line} needs a `,` here, or its `}}`"),
    (r"could not find expected ':'", "a key without `: ` (on line {line})"),
    (r"unexpected end of stream", "the quotes opened on line {line} are not closed"),
    (r"undefined alias '(.*)'", "the alias `*{0}` stands for nothing; no `&{0}` comes before it"),
    (r"duplicate anchor '(.*?)'", "the anchor `&{0}` is already there on line {line}"),
    (r"character '(.)' that cannot start", "text cannot begin with `{0}`; put it in quotes"),
)  # fmt: skip


def _rephrase(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's complaint in words about the file rather than about its parser."""
    said = f"{error.problem or ''} {error.context or ''}"
    line = error.context_mark.line + 1 if error.context_mark else "?"
    what = "list" if re.search("sequence|collection", said) else "mapping"
    for pattern, text in REPHRASED:
        if match := re.search(pattern, said):
            return text.format(*match.groups(), line=line, what=what) + "."
    return f"cannot be read as YAML: {clip(said.strip())}."


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!", 1)


# ------------------------------------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Quotes text that any YAML, 1.1 or 1.2, would read as something else, and uses no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Other styles write these characters as they are (yaml/emitter.py, 6.0.4), and reading folds them into spaces.
    style = '"' if re.search("[\\x85\\u2028\\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
for _kind, _pattern, _first in SCALARS:
    if _kind in {"int", "float"}:
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), list(_first))


def dump(value: dict[str, Any]) -> str:
    """YAML that `parse` reads back as the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


# ----------------------------------------------------------------------------------------- overrides


def _override(reader: _Reader, tree: dict[str, Any], override: str) -> None:
    """Set one key in `tree` and in the locations of `reader`."""
    shown = f"--set {clip(override)}"
    keys_text, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", keys_text.strip()):
        raise RecipeError(f"{shown}: write it as KEY=VALUE, e.g. `--set stages.0.epochs=1`.")
    names = re.findall(r"[\w-]+", keys_text)
    if len(names) > MAX_DEPTH:
        raise RecipeError(f"{shown}: nested more than {MAX_DEPTH} levels deep.")
    value_reader = _Reader(shown, shown)
    value = value_reader.read(text)
    reader.problems += value_reader.problems

    node: Any = tree
    keys: KeyPath = ()
    for i, name in enumerate(names):
        key = _step(node, name, keys, shown)
        last = i == len(names) - 1
        keys = (*keys, key)
        if last:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
            reader.locations[keys] = Location(MAX_BYTES, 0, shown)
        node = node[key]
    for below in [k for k in reader.locations if k[: len(keys)] == keys]:
        del reader.locations[below]
    at = Location(MAX_BYTES, 0, shown)
    reader.locations |= {keys: at} | {(*keys, *below): at for below in value_reader.locations}


def _step(node: Any, name: str, keys: KeyPath, shown: str) -> str | int:
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise RecipeError(f"{shown}: {dotted(keys)} is {describe(node)} and has no keys; set it as a whole.")
    if not re.fullmatch(r"[0-9]{1,9}", name):
        raise RecipeError(f"{shown}: {dotted(keys)} is a list; name an item by its number, as in {dotted((*keys, 0))}.")
    if int(name) >= len(node):
        n = len(node)
        has = "is empty" if n == 0 else "has one item, 0" if n == 1 else f"has {n} items, 0 to {n - 1}"
        raise RecipeError(f"{shown}: {dotted(keys)} {has}; there is no {name}.")
    return int(name)


# ------------------------------------------------------------------------------------------- wording


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
    return "a mapping" if value else "an empty mapping"


def clip(text: str, width: int = 80) -> str:
    """One printable line of at most `width` characters."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= width else text[: width - 1] + "…"
