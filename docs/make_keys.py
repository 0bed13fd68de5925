"""Write docs/keys.md, every key of a recipe with its meaning, from the schema.

python docs/make_keys.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tltasks.config.schema import json_schema

PAGE = Path(__file__).with_name("keys.md")
HEAD = """# Every key of a recipe

Written by `python docs/make_keys.py` from [the schema](../recipes/recipe.schema.json), which editors check by. A
section is a mapping; where a key takes one, its name is among the values.
"""
NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
}
"""Kinds of JSON Schema, in words."""
Properties = dict[str, dict[str, Any]]


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page: what all recipes share, what all stages share, and each section with the keys of its own."""
    definitions: dict[str, dict[str, Any]] = json_schema()["$defs"]  # type: ignore[assignment]
    sections = {name: kind["properties"] for name, kind in definitions.items() if "properties" in kind}
    recipes = [properties for properties in sections.values() if "stages" in properties]
    stages = {name: properties for name, properties in sections.items() if name.endswith("Stage")}
    shared = {
        key: {**value, "anyOf": [one[key] for one in recipes]} if any(one[key] != value for one in recipes) else value
        for key, value in recipes[0].items()
    }
    known = _common(list(stages.values()))
    parts = [HEAD, table("A recipe", shared), table("Every stage", known)]
    for name, properties in sorted(sections.items()):
        if properties in recipes:
            continue
        own = {key: value for key, value in properties.items() if name not in stages or known.get(key) != value}
        parts.append(table(name, own, definitions[name].get("description", "")))
    return "\n".join(parts)


def _common(several: list[Properties]) -> Properties:
    """Keys that all of these have, with one meaning."""
    first, *others = several
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def table(title: str, properties: Properties, about: str = "") -> str:
    rows = [
        f"| `{key}` | {_cell(_values(value))} | {_default(value)} | {_cell(_about(value))} |"
        for key, value in properties.items()
    ]
    head = ["| key | value | unset | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *([_cell(about), ""] if about else []), *head, *rows, ""])


def _about(value: dict[str, Any]) -> str:
    return str(value.get("description") or value.get("const", ""))


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return "–"
    shown = json.dumps(value["default"], ensure_ascii=False)
    return "a section" if len(shown) > 60 else f"`{shown}`"


def _values(value: dict[str, Any]) -> str:
    return ", ".join(dict.fromkeys(_kinds(value)))


def _kinds(value: dict[str, Any]) -> Iterator[str]:
    """Kinds of value that a key takes, in words."""
    if several := value.get("anyOf") or value.get("oneOf"):
        for one in several:
            yield from _kinds(one)
    elif "$ref" in value:
        yield value["$ref"].rpartition("/")[2]
    elif "enum" in value:
        yield from (f"`{one}`" for one in value["enum"])
    elif "const" in value:
        yield f"`{value['const']}`"
    elif value.get("type") == "array":
        yield f"a list of {' or '.join(_kinds(value.get('items', {}))) or 'anything'}"
    else:
        kind = str(value.get("type", "anything"))
        yield NAMES.get(kind, kind)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
