"""Features without a trained head: votes of the nearest neighbours, and how far directions spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tltasks.metrics.arrays import Floats, Ints

BLOCK_ROWS = 1024
"""Rows whose similarities to all training rows are held at once."""


def nearest_neighbours(
    train: Floats,
    labels: Ints,
    evaluated: Floats | None = None,
    *,
    n_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> NDArray[np.float32]:
    """Class probabilities [rows, classes] by a vote of the k most similar training rows, weighted by exp(cosine / T).

    Labels are [rows], or 0 and 1 for each of several classes [rows, classes], which are voted on one by one. Without
    `evaluated` each training row is judged by all others.
    Source: Wu et al., https://arxiv.org/abs/1805.01978, §3.4; k = 20 as in Caron et al., arXiv 2104.14294.
    """
    unit = _unit_vectors(train)
    asked = train if evaluated is None else evaluated
    k = min(k, len(unit) - (evaluated is None))
    votes = np.zeros((len(asked), n_classes), dtype=np.float64)
    for start in range(0, len(asked), BLOCK_ROWS):
        block = asked[start : start + BLOCK_ROWS]
        rows = np.arange(start, start + len(block))
        similarity = block @ unit.T / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        if evaluated is None:
            similarity[np.arange(len(block)), rows] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
        if labels.ndim == 2:
            votes[rows] = (weight[:, None] @ labels[nearest] / weight.sum(1)[:, None, None])[:, 0]
            continue
        for column in range(k):
            np.add.at(votes, (rows, labels[nearest[:, column]]), weight[:, column])
    return (votes if labels.ndim == 2 else votes / votes.sum(1, keepdims=True)).astype(np.float32)


def left_out_neighbours(features: Floats, labels: Sequence[object] | Ints, *, k: int = 20) -> float:
    """Accuracy of `nearest_neighbours` where each row [rows, width] is judged by all others, in [0, 1]."""
    names, numbers = np.unique(np.asarray(labels), return_inverse=True)
    votes = nearest_neighbours(features, numbers, n_classes=len(names), k=k)
    return float((votes.argmax(1) == numbers).mean())


def feature_spread(features: Floats) -> float:
    """Spread of the directions of features [rows, width]: 0 when all are one, 1 when they are uniform.

    The mean standard deviation over rows of each coordinate of the unit vectors, times the root of the width.
    Source: Chen and He, https://arxiv.org/abs/2011.10566, §4.1.

    >>> feature_spread(np.ones((4, 3))), round(feature_spread(np.eye(64)), 2)
    (0.0, 0.99)
    """
    return float(np.sqrt(features.shape[1]) * _unit_vectors(features).std(0).mean())


def _unit_vectors(features: Floats) -> Floats:
    unit: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit
