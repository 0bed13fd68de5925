"""What all objectives without labels have in common: a held-out loss, and whether features tell rows apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from tltasks import metrics
from tltasks.data.splits import Split
from tltasks.results.result import Score

EVALUATION = -1
"""The epoch that masks for evaluation are drawn for: always the same."""
LEAST_SPREAD = 0.01
"""Features of different rows that differ less than this in direction are the same feature."""


def label_namer(split: Split) -> Callable[[Any], str | None]:
    """From a split's labels, which there need not be, to names."""
    feature = split.rows.features.get("label")
    named = feature.names if isinstance(feature, datasets.ClassLabel) else None

    def name(label: Any) -> str | None:
        if label is None or (named is not None and not 0 <= label < len(named)):
            return None
        return str(named[label] if named is not None else label)

    return name


def loss_rows(predictions: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """The summed `loss` of each row and the `targets` that it is over (one where there is no such key), [rows, 2]."""
    return np.array([(p["loss"], p.get("targets", 1)) for p in predictions], dtype=np.float64)


def score_objective(
    predictions: Sequence[dict[str, Any]],
    references: Sequence[str | None],
    *,
    values: dict[str, float],
    notes: Sequence[str] = (),
    what: str,
    intervals: bool,
    seed: int,
) -> Score:
    """The loss, `values`, and of `features` where there are any their spread and their nearest neighbours' labels.

    A collapse is said in the notes; `what` names the rows.
    """
    rows, notes = loss_rows(predictions), list(notes)
    values = {"loss": float(rows[:, 0].sum() / rows[:, 1].sum()), **values}
    if predictions and "features" in predictions[0]:
        features = np.stack([p["features"] for p in predictions])
        values["feature_spread"] = metrics.feature_spread(features)
        if len(predictions) > 1 and values["feature_spread"] < LEAST_SPREAD:
            notes.append(
                f"The representation has collapsed: the features of different {what} are all but equal "
                f"(spread {values['feature_spread']:.1g}, where 1 is the most)."
            )
        labelled = [i for i, label in enumerate(references) if label is not None]
        if len({references[i] for i in labelled}) > 1:
            values["knn_accuracy"] = metrics.left_out_neighbours(
                features[labelled], [str(references[i]) for i in labelled]
            )
    low, high = metrics.bootstrap_interval(rows, seed=seed) if intervals else (float("nan"), float("nan"))
    return Score(values, "loss", (low, high), notes=notes)
