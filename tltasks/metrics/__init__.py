"""Scores of predictions, their intervals, and what features tell without training."""

from tltasks.metrics.calibration import expected_calibration_error
from tltasks.metrics.classification import classification
from tltasks.metrics.error_rate import align_words, count_errors, error_rates, normaliser
from tltasks.metrics.intervals import paired_difference, score_interval, wilson
from tltasks.metrics.neighbours import feature_spread, left_out_neighbours, nearest_neighbours

__all__ = [
    "align_words",
    "classification",
    "count_errors",
    "error_rates",
    "expected_calibration_error",
    "feature_spread",
    "left_out_neighbours",
    "nearest_neighbours",
    "normaliser",
    "paired_difference",
    "score_interval",
    "wilson",
]
