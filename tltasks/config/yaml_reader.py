"""Strict YAML: text to a plain tree, and where each of its keys was written.

YAML 1.2 scalars (`5e-4` is a number, `no` and `off` are text), and none of what makes YAML dangerous or ambiguous:
tags, merge keys, duplicate keys, aliases without bound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tltasks.config.document import MAX_DEPTH, Document, Issue, Location, Origin, clip, describe, dotted
from tltasks.errors import RecipeError, closest, has_secret

if TYPE_CHECKING:  # where pydantic is not imported yet
    from tltasks.config.section import KeyPath

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000
"""Keys and values of a file after aliases are expanded."""


HELD = (
    "holds a login or a token, which results and cards would publish. Log in outside of the recipe (`hf auth login`), "
    "or download the file and name it. Nothing was loaded."
)


def read_document(path: Path, *, check_secrets: bool = True) -> Document:
    """Read a file as it is written. Raises RecipeError for what cannot be read, and for logins and tokens."""
    text = read_text(path)
    found = [i for i, line in enumerate(text.splitlines(), start=1) if check_secrets and has_secret(line)]
    if found:
        raise RecipeError(f"{path}:{found[0]}  {HELD}")
    return parse(text, Origin(str(path), path.parent))


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
        if os.path.isfile(path / "recipe.yaml"):  # noqa: PTH113
            return f"is a results folder; its recipe is {path / 'recipe.yaml'}."
        return f"is a folder; name a recipe file in it, or learn from it: `tltasks run --data {path}`."
    if os.path.exists(path):  # noqa: PTH110
        return "is not a regular file."
    folder = path.parent
    if not os.path.isdir(folder):  # noqa: PTH112
        return f"not found; there is no folder {folder}."
    here = {p.stem: p.name for p in sorted(folder.glob("*.y*ml"))}
    near = closest(path.stem, here)
    return f"not found; did you mean `{here[near]}`?" if near else "not found."


def parse(text: str, origin: Origin) -> Document:
    """The mapping that `text` holds. Raises RecipeError, with its place, for what cannot be read as one."""
    document = parse_value(text, origin)
    if document.value is None:
        raise RecipeError(f"{origin.name}: is empty; a recipe is a mapping of keys such as `task` and `stages`.")
    if not isinstance(document.value, dict):
        shown = describe(document.value)
        raise RecipeError(f"{origin.at(1, 1)}  expected a mapping of keys such as `task: …`, found {shown}.")
    return document


def parse_value(text: str, origin: Origin) -> Document:
    """The value that `text` holds, of any kind. Raises RecipeError, with its place, for what is not plain YAML."""
    reader = _Reader(origin)
    try:
        node = _Loader(text, reader).get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = origin.at(before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise RecipeError(f"{at}  the character U+{ord(text[error.position]):04X} is not allowed.") from error
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{reader.at(error.problem_mark)}  {_rephrase(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{origin.at(1, 1)}  nested more than {MAX_DEPTH} levels deep.") from error
    except ValueError as error:  # chr() of "\U00110000" in yaml/scanner.py (6.0.4)
        raise RecipeError(f"{origin.at(1, 1)}  cannot be read as YAML: {error}.") from error
    reader.locations[()] = origin.at(1, 1)
    value = None if node is None else reader.plain(node, (), frozenset())
    return Document(value, reader.locations, tuple(reader.problems))


# ------------------------------------------------------------------------------------------- reading


SCALARS = (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)
"""Kind and form of the scalars of the YAML 1.2 core schema that are not text."""
CONVERT: dict[str, Callable[[str], object]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class _Loader(yaml.SafeLoader):
    """No octal or sexagesimal numbers, no dates, no truth in yes and no; and no tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str, reader: _Reader) -> None:
        super().__init__(text)
        self._reader = reader

    def fetch_tag(self) -> None:
        token = self.scan_tag()
        tag = clip("".join(part or "" for part in token.value))
        raise RecipeError(
            f"{self._reader.at(token.start_mark)}  the tag `{tag}`: tags are not allowed; a recipe holds plain text, "
            "numbers, lists and mappings."
        )


for _kind, _pattern in SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), None)


@dataclass
class _Reader:
    """Values and places of one document."""

    origin: Origin
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    problems: list[Issue] = field(default_factory=list)
    n_values: int = 0

    def at(self, mark: yaml.error.Mark | yaml._yaml.Mark | None) -> Location:
        return self.origin.at(mark.line + 1, mark.column + 1) if mark else self.origin.at(1, 1)

    def plain(self, node: yaml.Node, keys: KeyPath, inside: frozenset[int]) -> object:
        """The value of a node; an alias is a copy of what it stands for."""
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            text = f"too large: more than {MAX_VALUES:,} values, or aliases that expand to more."
            raise RecipeError(f"{self.at(node.start_mark)}  {text}")
        if len(keys) >= MAX_DEPTH and isinstance(node, yaml.CollectionNode):
            raise RecipeError(f"{self.at(node.start_mark)}  nested more than {MAX_DEPTH} levels deep.")
        if id(node) in inside:
            raise RecipeError(f"{self.at(node.start_mark)}  contains itself through an alias.")
        inside |= {id(node)}
        if isinstance(node, yaml.SequenceNode):
            items = []
            for i, item in enumerate(node.value):
                self.locations[*keys, i] = self.at(item.start_mark)
                items.append(self.plain(item, (*keys, i), inside))
            return items
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys, inside)
        assert isinstance(node, yaml.ScalarNode)
        text, kind = self._printable(node), node.tag.rpartition(":")[2]
        if kind == "int" and len(text) > 100:
            raise RecipeError(f"{self.at(node.start_mark)}  a number of {len(text)} digits.")
        return CONVERT[kind](text)

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath, inside: frozenset[int]) -> dict[str, object]:
        found: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = self._printable(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                text = "a key that is a list or mapping; keys are text"
            elif key.tag != "tag:yaml.org,2002:str":
                text = f"the key `{clip(name)}` is not text; put it in quotes"
            elif name == "<<":
                text = "merge keys (`<<`) are not allowed; write the keys out"
            elif name in found:
                text = f"the key `{clip(name)}` is already there on line {lines[name]}; keep one"
            else:
                lines[name] = key.start_mark.line + 1
                self.locations[*keys, name] = self.at(key.start_mark)
                found[name] = self.plain(value, (*keys, name), inside)
                continue
            self.problems.append(Issue(self.at(key.start_mark), dotted(keys), text))
        return found

    def _printable(self, node: yaml.ScalarNode) -> str:
        """The text of a scalar, of which YAML's escapes may have made what no file can hold, e.g. a lone surrogate."""
        text = str(node.value)
        if match := yaml.reader.Reader.NON_PRINTABLE.search(text):
            code = f"U+{ord(match[0]):04X}"
            raise RecipeError(f"{self.at(node.start_mark)}  the character {code} is not allowed.")
        return text


REPHRASED = (
    (r"expected a single document", "a second document (`---`); a recipe is one"),
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
    (r"unknown escape character '(.)'", "`\\{0}` within double quotes; write paths with `/`, or in single quotes"),
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


# ------------------------------------------------------------------------------------------- writing


class _Dumper(yaml.SafeDumper):
    """Quotes text that any YAML, 1.1 or 1.2, would read as something else, and uses no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Other styles write these characters as they are (yaml/emitter.py, 6.0.4), and reading folds them into spaces.
    style = '"' if re.search("[\\x85\\u2028\\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
for _kind, _pattern in SCALARS:
    if _kind in {"int", "float"}:
        _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), None)


def dump(value: dict[str, object]) -> str:
    """YAML that `parse` reads back as the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
