"""What features tell without training: nearest neighbours, and their spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


def nearest_neighbours(
    train: Floats, labels: Ints, evaluated: Floats, *, n_classes: int, k: int = 20, temperature: float = 0.07
) -> NDArray[np.float32]:
    """Class probabilities [rows, classes] by a vote of the k most similar training rows, weighted by exp(cosine / T).

    Source: Wu et al., https://arxiv.org/abs/1805.01978, §3.4; k = 20 as in Caron et al., arXiv 2104.14294.
    """
    unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    k = min(k, len(unit))
    votes = np.zeros((len(evaluated), n_classes), dtype=np.float64)
    for start in range(0, len(evaluated), 1024):
        block = evaluated[start : start + 1024]
        similarity = block @ unit.T / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
        for column in range(k):
            rows = np.arange(start, start + len(block))
            np.add.at(votes, (rows, labels[nearest[:, column]]), weight[:, column])
    shares: NDArray[np.float32] = (votes / votes.sum(1, keepdims=True)).astype(np.float32)
    return shares


def left_out_neighbours(features: Floats, labels: list[str]) -> float:
    """Accuracy of `nearest_neighbours` where each row is judged by all others, [rows, width]."""
    names, numbers = np.unique(np.array(labels), return_inverse=True)
    correct = 0
    for row in range(len(features)):
        others = np.delete(np.arange(len(features)), row)
        votes = nearest_neighbours(features[others], numbers[others], features[[row]], n_classes=len(names))
        correct += int(votes[0].argmax() == numbers[row])
    return correct / len(features)


def feature_spread(features: Floats) -> float:
    """How far the directions of features [rows, width] spread: 0 when all are one, 1 when they are uniform.

    The mean standard deviation over rows of each coordinate of the unit vectors, times the root of the width.
    Source: Chen and He, https://arxiv.org/abs/2011.10566, §4.1.

    >>> feature_spread(np.ones((4, 3))), round(feature_spread(np.eye(64)), 2)
    (0.0, 0.99)
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(features.shape[1]) * unit.std(0).mean())
