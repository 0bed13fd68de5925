"""Runs of recipes, from the first check to the results folder and the Hub."""

from tltasks.runs.callbacks import EvaluationInfo, StepInfo
from tltasks.runs.story import dry_run, run

__all__ = ["EvaluationInfo", "StepInfo", "dry_run", "run"]
