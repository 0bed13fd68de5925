"""Scores and intervals."""

from tltasks.metrics.bootstrap import bootstrap_interval, paired_difference
from tltasks.metrics.classification import Classification, classification, expected_calibration_error
from tltasks.metrics.neighbours import feature_spread, left_out_neighbours, nearest_neighbours

__all__ = [
    "Classification",
    "bootstrap_interval",
    "classification",
    "expected_calibration_error",
    "feature_spread",
    "left_out_neighbours",
    "nearest_neighbours",
    "paired_difference",
]
