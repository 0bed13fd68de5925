"""Recipes as pure data: read, checked and planned without torch.

Names are imported when they are first used: what needs a checkpoint's name alone does not pay for reading recipes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltasks.config.data import Data
    from tltasks.config.loading import load_recipe, recipe_text, write_recipe
    from tltasks.config.model import Checkpoint, Model
    from tltasks.config.recipe import Recipe, RunPlan, plan_run, recipe_sha256
    from tltasks.config.schema import json_schema
    from tltasks.config.stage import STAGES, Stage, StageKind, StagePlan
    from tltasks.config.tasks import TASKS, TaskSpec

__all__ = [
    "STAGES",
    "TASKS",
    "Checkpoint",
    "Data",
    "Model",
    "Recipe",
    "RunPlan",
    "Stage",
    "StageKind",
    "StagePlan",
    "TaskSpec",
    "json_schema",
    "load_recipe",
    "plan_run",
    "recipe_sha256",
    "recipe_text",
    "write_recipe",
]

_MODULES = {
    "data": ("Data",),
    "loading": ("load_recipe", "recipe_text", "write_recipe"),
    "model": ("Checkpoint", "Model"),
    "recipe": ("Recipe", "RunPlan", "plan_run", "recipe_sha256"),
    "schema": ("json_schema",),
    "stage": ("STAGES", "Stage", "StageKind", "StagePlan"),
    "tasks": ("TASKS", "TaskSpec"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
