"""Callbacks of `run`: what they are told of a training, and what they may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepInfo:
    """A step of training."""

    stage: str
    step: int
    """The first is 1."""
    total_steps: int
    epoch: float
    loss: float
    examples: int
    """Seen so far in the stage."""
    seconds: float
    """Spent in steps so far."""


@dataclass(frozen=True)
class EvaluationInfo:
    """An evaluation on validation during training."""

    stage: str
    step: int
    total_steps: int
    epoch: float
    metrics: dict[str, float]
    headline: str
    """The metric that decides."""
    best_step: int | None
    """Step of the best evaluation so far: this one's where it is the best."""

    @property
    def value(self) -> float:
        """The headline metric."""
        return self.metrics[self.headline]


OnStep = Callable[[StepInfo], bool | None]
"""Called after each step, in every process; True ends the stage's training there."""
OnEvaluation = Callable[[EvaluationInfo], bool | None]
"""Called after each evaluation on validation, in every process; True ends the stage's training there."""
