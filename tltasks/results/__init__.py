"""Results: numbers, their provenance, and how they compare."""

from tltasks.results.comparison import Comparison, compare_headline, compare_with_baselines
from tltasks.results.result import RunResult, Score, StageResult, load_result

__all__ = [
    "Comparison",
    "RunResult",
    "Score",
    "StageResult",
    "compare_headline",
    "compare_with_baselines",
    "load_result",
]
