"""Objectives without labels: a loss on rows held out, and whether features tell rows apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from tltasks.config.stage import DataT, ModelT, StageT
from tltasks.data.splits import Columns, EncodedSplit, Split
from tltasks.errors import DataError
from tltasks.metrics.neighbours import feature_spread, left_out_neighbours
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, Outputs, Prediction, References, RowScores, TaskBase

EVALUATION = -1
"""The epoch that draws of evaluation are for: always the same."""
LEAST_SPREAD = 0.01
"""Features of different rows that differ less than this in direction are the same feature."""


@dataclass(frozen=True)
class SelfSupervisedTask(TaskBase[ModelT, DataT, StageT]):
    """An objective whose headline is its mean loss over the targets of rows held out, under draws that do not change.

    A prediction holds the row's summed `loss`, the `targets` that it is over (one where there is no such key), and
    mostly its `features`. Beside the loss stand how well features tell apart labels that the data may have (nearest
    neighbours, each row left out in turn), and how far features of different rows spread, which goes to zero when the
    representation collapses.
    """

    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("float32")})
    rows_name: ClassVar[str]
    """Rows in the plural, such as `images`."""
    shown_rows: ClassVar[int] = 12
    """Rows of the report."""

    def data_notes(self, encoded: dict[str, EncodedSplit]) -> dict[str, list[str]]:
        """Nothing; raises DataError for a split with fewer rows than a loss is of."""
        for split in encoded.values():
            if len(split.rows) < self.least_rows:
                raise DataError(
                    f"{split.where}: has {len(split.rows)} {self.rows_name}, and this loss compares {self.least_rows} "
                    "or more with each other."
                )
        return {}

    # --------------------------------------------------------------------------------------- rows

    @property
    @abstractmethod
    def row_features(self) -> dict[str, datasets.Value]:
        """Columns of an encoded row besides its label."""

    @property
    def features(self) -> datasets.Features:
        return datasets.Features({**self.row_features, "label": datasets.Value("string")})

    @abstractmethod
    def encode(self, batch: Columns, split: Split) -> Columns:
        """A batch of a split's examples as `row_features`, and `error`."""

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        name = _label_namer(split)

        def encode(batch: Columns) -> Columns:
            labels = [name(label) for label in batch.get("label", [None] * len(batch["row"]))]
            return {**self.encode(batch, split), "label": labels, "row": batch["row"]}

        return encode

    @abstractmethod
    def collate(self, columns: Columns, *, epoch: int) -> Batch:
        """Encoded rows as a batch, with what is drawn of each for an epoch."""

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        return self.collate(rows[list(indices)], epoch=EVALUATION)

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        return self.collate(rows[list(indices)], epoch=epoch)

    # --------------------------------------------------------------------------------------- step

    @abstractmethod
    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The encoder's representation of each row of an evaluation batch, [rows, width]."""

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The numbers that predictions keep: features, and losses or what these are of."""
        found = self.predict(model, batch)
        names = [name for name in ("loss", "views", "features") if name in found[0]]
        return {name: torch.as_tensor(np.array([row[name] for row in found])) for name in names}

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[str | None]:
        return list(rows["label"])

    def evaluated(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """Predictions with the loss of each, where it is of several rows together."""
        return predictions

    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        return np.array([(p["loss"], p.get("targets", 1)) for p in self.evaluated(predictions)], dtype=np.float64)

    def metrics(self, predictions: Sequence[Prediction]) -> tuple[dict[str, float], list[str]]:
        """Metrics besides the loss, and notes on them for whoever reads them."""
        return {}, []

    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        """The loss, the task's own metrics, and, where there are features, their spread and neighbours' labels.

        A collapse is said in the notes.
        """
        rows = self.row_scores(predictions, references)
        own, notes = self.metrics(self.evaluated(predictions))
        values = {"loss": float(rows[:, 0].sum() / rows[:, 1].sum()), **own}
        if predictions and "features" in predictions[0]:
            features = np.stack([p["features"] for p in predictions])
            values["feature_spread"] = feature_spread(features)
            if len(predictions) > 1 and values["feature_spread"] < LEAST_SPREAD:
                notes.append(
                    f"The representation has collapsed: the features of different {self.rows_name} are all but equal "
                    f"(spread {values['feature_spread']:.1g}, where 1 is the most)."
                )
            labelled = [i for i, label in enumerate(references) if label is not None]
            if len({references[i] for i in labelled}) > 1:
                values["knn_accuracy"] = left_out_neighbours(features[labelled], [str(references[i]) for i in labelled])
        return Score(values, "loss", self.interval(rows, intervals=intervals), notes=notes)

    def own_columns(self, predictions: Sequence[Prediction]) -> Columns:
        """Columns of predictions/*.parquet that no other objective has."""
        return {}

    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        found = self.evaluated(predictions)
        return {
            "prediction": [p["prediction"] for p in found],
            "reference": list(references),
            "loss": [_mean_loss(p) for p in found],
            **self.own_columns(found),
        }

    @abstractmethod
    def report_example(self, rows: datasets.Dataset, row: int, prediction: Prediction) -> ReportExample:
        """A row as the report shows it."""

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: References
    ) -> list[ReportExample]:
        """The rows with the largest mean loss."""
        found = self.evaluated(predictions)
        hardest = sorted(range(len(found)), key=lambda i: -_mean_loss(found[i]))
        return [self.report_example(rows, i, found[i]) for i in hardest[: self.shown_rows]]


def _mean_loss(prediction: Prediction) -> float:
    return float(prediction["loss"] / prediction.get("targets", 1))


def rounded(loss: float) -> float:
    """A loss so that other orders of summation do not show.

    >>> rounded(1.23456)
    1.23
    """
    return float(f"{loss:.3g}")


def _label_namer(split: Split) -> Callable[[object], str | None]:
    """A function from a split's labels, which there need not be, to names."""
    feature = split.rows.features.get("label")
    named = feature.names if isinstance(feature, datasets.ClassLabel) else None

    def name(label: object) -> str | None:
        if named is None or label is None:
            return None if label is None else str(label)
        return str(named[label]) if isinstance(label, int) and 0 <= label < len(named) else None

    return name
