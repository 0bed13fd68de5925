"""Runs of recipes, from the first check to the results folder and the Hub.

Names are imported when they are first used: what is to be refused is refused before anything heavy is imported.
"""

from typing import TYPE_CHECKING

from tltasks import lazily

if TYPE_CHECKING:
    from tltasks.runs.callbacks import EvaluationInfo, StepInfo
    from tltasks.runs.story import dry_run, run

__all__ = ["EvaluationInfo", "StepInfo", "dry_run", "run"]

__getattr__ = lazily(__name__, {name: "callbacks" if "Info" in name else "story" for name in __all__})
