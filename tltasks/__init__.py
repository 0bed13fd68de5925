"""Transfer learning on Hugging Face checkpoints, from one recipe.

    recipe = tltasks.load_recipe("recipe.yaml", overrides={"stages.0.epochs": 1})
    result = tltasks.run(recipe, output="outputs/photos")
    predictor = tltasks.load("outputs/photos")
    predictor("photo.jpg")

Names are imported when they are first used, so that `import tltasks` costs nothing.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import Recipe
    from tltasks.errors import (
        CheckpointError,
        DataError,
        HubError,
        Interrupted,
        RecipeError,
        StorageError,
        TltasksError,
        TrainingError,
    )
    from tltasks.experiments.comparison import compare
    from tltasks.hub.examination import examine
    from tltasks.inference.predictor import Predictor, load
    from tltasks.results.result import RunResult
    from tltasks.runs.story import run

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "DataError",
    "HubError",
    "Interrupted",
    "Predictor",
    "Recipe",
    "RecipeError",
    "RunResult",
    "StorageError",
    "TltasksError",
    "TrainingError",
    "__version__",
    "compare",
    "examine",
    "load",
    "load_recipe",
    "run",
]

_MODULES = {
    "Predictor": "inference.predictor",
    "Recipe": "config.recipe",
    "RunResult": "results.result",
    "compare": "experiments.comparison",
    "examine": "hub.examination",
    "load": "inference.predictor",
    "load_recipe": "config.loading",
    "run": "runs.story",
}
"""Where each name is defined; the others are errors."""


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package whose names are imported when they are first used; `modules` by name."""

    def import_name(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked once
        return value

    return import_name


if not TYPE_CHECKING:  # for which an unknown member is a mistake
    __getattr__ = lazily(__name__, {name: _MODULES.get(name, "errors") for name in __all__})


def __dir__() -> list[str]:
    return __all__
