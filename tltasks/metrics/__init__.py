"""Scores of predictions, their intervals, and what features tell without training."""

from tltasks.metrics.bootstrap import bootstrap_interval, paired_difference
from tltasks.metrics.classification import classification, expected_calibration_error
from tltasks.metrics.error_rate import align_words, count_errors, error_rates, normaliser
from tltasks.metrics.neighbours import feature_spread, left_out_neighbours, nearest_neighbours

__all__ = [
    "align_words",
    "bootstrap_interval",
    "classification",
    "count_errors",
    "error_rates",
    "expected_calibration_error",
    "feature_spread",
    "left_out_neighbours",
    "nearest_neighbours",
    "normaliser",
    "paired_difference",
]
