"""The JSON Schema of recipes, by which editors complete and check them.

Written by `tltasks schema > recipes/recipe.schema.json`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tltasks.config.recipe import Recipe
from tltasks.config.tasks import TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One schema of all recipes: the shared keys, and for each task its own model, data and stages."""
    kinds = [kind for keys in TASKS.values() for kind in (keys.model, keys.data, keys.stage)]
    references, schema = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys([Recipe, *kinds])], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, Any] = schema["$defs"]
    _describe(BaseModel, definitions)
    _close(definitions)
    shared = definitions.pop("Recipe")
    stages = [references[keys.stage, "validation"] for keys in TASKS.values()]
    variants = []
    for tag, keys in TASKS.items():
        own = {
            "task": {"const": tag, "description": shared["properties"]["task"].get("description", "")},
            "model": references[keys.model, "validation"],
            "data": references[keys.data, "validation"],
            # a stage of the recipe's own task, or of another that it names
            "stages": {"type": "array", "minItems": 1, "items": {"anyOf": stages}},
        }
        variants.append({**shared, "title": tag, "properties": {**shared["properties"], **own}})
    return {"$schema": DIALECT, "title": "tltasks recipe", "anyOf": variants, "$defs": _used(variants, definitions)}


def _describe(base: type[BaseModel], definitions: dict[str, Any]) -> None:
    """Say of each key what stands below it in the source of its section, or of that which the section extends.

    pydantic would do so for every class as it is made, in a second or more once thousands of modules are loaded.
    """
    for section in base.__subclasses__():
        properties = definitions.get(section.__name__, {}).get("properties", {})
        for kind in reversed(section.__mro__) if properties else ():
            for name, text in _docstrings(kind).items():
                if (field := section.model_fields.get(name)) is not None:
                    key = field.alias or name
                    properties[key] = dict(sorted({**properties[key], "description": text}.items()))
        _describe(section, definitions)


def _docstrings(kind: type) -> dict[str, str]:
    """Docstrings of the attributes that one of this package's classes adds, by name."""
    found: dict[str, str] = {}
    if kind.__module__.startswith("tltasks."):
        for node in ast.parse(inspect.getsource(sys.modules[kind.__module__])).body:
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                for pair in itertools.pairwise(node.body):
                    match pair:
                        case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                            found[name] = inspect.cleandoc(text)
    return found


def _close(node: Any) -> None:
    """Forbid the names that pydantic's patterns for the keys of a mapping leave open."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)


def _used(variants: list[dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """The definitions that the variants lead to; those of the abstract Model, Data and Stage do not remain."""
    names: set[str] = set()

    def follow(node: Any) -> None:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in names:
                names.add(name)
                follow(definitions[name])
            for value in node.values():
                follow(value)
        elif isinstance(node, list):
            for value in node:
                follow(value)

    follow(variants)
    return {name: definitions[name] for name in sorted(names)}
