"""The JSON Schema of recipes, by which editors complete and check them.

Written by `tltasks schema > recipes/recipe.schema.json`.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, TypeAdapter, WithJsonSchema, create_model

from tltasks.config.recipe import Recipe
from tltasks.config.tasks import TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, object]:
    """One schema of all recipes: the shared keys, and for each task its own model, data and stages."""
    stage = reduce(or_, (spec.stage for spec in TASKS.values()))  # the recipe's own task's, or another's that it names
    stages = Annotated[list[stage], Field(min_length=1)]  # type: ignore[valid-type]
    variants = [
        create_model(
            tag,
            __base__=Recipe,
            task=Annotated[str, WithJsonSchema({"const": tag})],
            model=(spec.model, None),
            data=(spec.data, None),
            stages=stages,
        )
        for tag, spec in TASKS.items()
    ]
    schema = TypeAdapter(reduce(or_, variants)).json_schema()
    _describe(BaseModel, schema["$defs"])
    for tag, spec in TASKS.items():  # what is chosen where it is unset
        chosen = {"output"} if spec.is_self_supervised else {"output", "stages"}
        schema["$defs"][tag]["required"] = [key for key in schema["$defs"][tag]["required"] if key not in chosen]
    _close(schema)
    return {"$schema": DIALECT, "title": "tltasks recipe", **schema}


def _describe(base: type[BaseModel], definitions: dict[str, Any]) -> None:
    """Say of each key what stands below it in the source of its section, or of that which the section extends.

    pydantic would do so for every class as it is made, in a second or more once thousands of modules are loaded.
    """
    for section in base.__subclasses__():
        # Other libraries have classes of the same name, such as gradio.
        ours = section.__module__.startswith("tltasks.")
        properties = definitions.get(section.__name__, {}).get("properties", {}) if ours else {}
        for kind in reversed(section.__mro__) if properties else ():
            for name, text in _docstrings(kind).items():
                if (field := section.model_fields.get(name)) is not None:
                    key = field.alias or name
                    properties[key] = dict(sorted({**properties[key], "description": text}.items()))
        for name, field in section.model_fields.items() if properties else ():  # others by what their section says
            told = properties[field.alias or name]
            if "description" not in told and (text := _of_section(field.annotation)):
                properties[field.alias or name] = dict(sorted({**told, "description": text}.items()))
        _describe(section, definitions)


def _of_section(annotation: object) -> str:
    """The docstring of the section that a key takes, or nothing."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and "__doc__" in vars(kind)]
    return next((inspect.cleandoc(kind.__doc__ or "") for kind in kinds if issubclass(kind, BaseModel)), "")


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


def _close(node: object) -> None:
    """Forbid the names that pydantic's patterns for the keys of a mapping leave open."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)
