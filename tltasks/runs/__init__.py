"""Runs of recipes, from the first check to the results folder and the Hub.

Names are imported when they are first used: what is to be refused is refused before anything heavy is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltasks.runs.callbacks import EvaluationInfo, StepInfo
    from tltasks.runs.story import dry_run, run

__all__ = ["EvaluationInfo", "StepInfo", "dry_run", "run"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{'callbacks' if 'Info' in name else 'story'}"), name)
    return value
