"""Classification of rows that have any number of classes: each is told by itself, by a probability and a threshold."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig

from tltasks.config.data import ClassData
from tltasks.config.model import Checkpoint
from tltasks.config.stage import ModelT
from tltasks.data.label_lists import is_list
from tltasks.data.splits import Columns, EncodedSplit, Split
from tltasks.errors import CheckpointError
from tltasks.metrics.multi_label import fit_thresholds, multi_label, multi_label_row_scores, ratio
from tltasks.models.adapters import MULTI_LABEL
from tltasks.results.result import Score
from tltasks.tasks.base import Prediction, References, RowScores
from tltasks.tasks.classes import ClassDataT, ClassificationTask, ClassStageT, own_probabilities

THRESHOLD = 0.5
"""Where no validation split tells a better one."""
THRESHOLDS_KEY = "label_thresholds"
"""Key of a saved config.json that holds the threshold of each class."""


@dataclass(frozen=True)
class MultiLabelTask(ClassificationTask[ModelT, ClassDataT, ClassStageT]):
    """The part of such a task that is not of its modality; stands before its class for rows with one class each."""

    own_metrics: ClassVar[tuple[str, ...]] = (
        "mean_average_precision",
        "micro_f1",
        "macro_f1",
        "subset_accuracy",
        "auroc",
    )
    is_multi_label: ClassVar[bool] = True
    label_feature: ClassVar[object] = datasets.List(datasets.Value("int32"))
    output_features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prediction": datasets.List(datasets.Value("string")),
            "probability": datasets.List(datasets.Value("float32")),
            "top": ClassificationTask.output_features["top"],
        }
    )

    thresholds: tuple[float, ...] | None = field(default=None, kw_only=True)
    """Probability from which each class is an answer; None for THRESHOLD."""

    def as_saved(self) -> Self:
        found = getattr(self.config, THRESHOLDS_KEY, None)
        known = isinstance(found, list) and len(found) == len(self.class_names) and self.plan.kind.head == "kept"
        if not known:
            vars(self.config).pop(THRESHOLDS_KEY, None)  # of an earlier head
        return dataclasses.replace(super().as_saved(), thresholds=tuple(map(float, found or ())) if known else None)

    def data_notes(self, encoded: dict[str, EncodedSplit]) -> dict[str, list[str]]:
        notes = super().data_notes(encoded)
        for name, split in encoded.items():
            counts, n_rows = self.class_rows(split.rows), len(split.rows)
            without = sum(not labels for labels in split.rows["label"])
            said = [f"{without:,} of {n_rows:,} rows have no class, which counts as none of them"] if without else []
            if name == "train" and (same := [self.class_names[i] for i in sorted(counts) if counts[i] == n_rows]):
                said.append(f"all rows are {', '.join(same)}, so nothing is learnt of that")
            if name == "train" and (none := [own for i, own in enumerate(self.class_names) if not counts[i]]):
                said.append(f"no row is {', '.join(none[:12])}, so nothing is learnt of that")
            notes[name] = [*said, *notes.get(name, [])]
        return {name: lines for name, lines in notes.items() if lines}

    def class_rows(self, rows: datasets.Dataset) -> Counter[int]:
        return Counter(label for labels in rows["label"] for label in labels)

    def encoded_label(self, classes: list[int]) -> object:
        return classes

    # --------------------------------------------------------------------------------------- step

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def targets(self, labels: list[Any]) -> Tensor:
        return torch.from_numpy(self._matrix(labels).astype(np.float32))

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over classes of each row's binary cross entropy, [rows]; a class's weight is that of having it."""
        smoothing, focal = self.stage.label_smoothing, self.stage.focal
        targets = labels * (1 - smoothing) + smoothing / 2
        weights = None if self.class_weights is None else torch.tensor(self.class_weights, device=logits.device)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
        if focal is not None:
            wrong = torch.where(labels > 0.5, (-logits).sigmoid(), logits.sigmoid())
            losses = losses * wrong**focal
        return losses.mean(1)

    # ------------------------------------------------------------------------------------ answers

    def as_predictions(self, probabilities: NDArray[np.float32]) -> list[Prediction]:
        found = np.asarray(probabilities)
        chosen = found >= np.array(self._thresholds)
        return [
            {"prediction": np.flatnonzero(c).tolist(), "probabilities": p} for c, p in zip(chosen, found, strict=True)
        ]

    def settled(self, predictions: Sequence[Prediction], references: References) -> Self:
        fitted = fit_thresholds(own_probabilities(predictions), np.stack(references))
        return dataclasses.replace(self, thresholds=tuple(float(f"{threshold:.6g}") for threshold in fitted))

    @property
    def chosen(self) -> dict[str, object]:
        return super().chosen | ({} if self.thresholds is None else {THRESHOLDS_KEY: list(self.thresholds)})

    def decided(self, predictions: list[Prediction]) -> list[Prediction]:
        return self.as_predictions(own_probabilities(predictions))

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, object]:
        best = np.argsort(-prediction["probabilities"], kind="stable").tolist()
        own = self.with_probabilities(prediction, [i for i in best if i in set(prediction["prediction"])])
        return {
            "prediction": [one["label"] for one in own],
            "probability": [one["probability"] for one in own],
            "top": self.with_probabilities(prediction, best[:top_k]),
        }

    def onnx_usage(self, usage: str) -> str:
        *lines, _ = usage.splitlines()
        own = ", ".join(f"{threshold:g}" for threshold in self._thresholds)
        lines += ["probabilities = 1 / (1 + np.exp(-logits[0]))", f"found = np.flatnonzero(probabilities >= [{own}])"]
        return "\n".join([*lines, "print([(names[int(i)], float(probabilities[i])) for i in found])"]) + "\n"

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[Any]:
        """For each row 0 or 1 for each class, [classes]."""
        return [*self._matrix(rows["label"])]

    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        chosen = self._matrix([p["prediction"] for p in predictions])
        return multi_label_row_scores(self.headline, own_probabilities(predictions), chosen, np.stack(references))

    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        chosen = self._matrix([p["prediction"] for p in predictions])
        values, details = multi_label(
            own_probabilities(predictions),
            chosen,
            np.stack(references),
            self.class_names,
            np.array(self._thresholds),
        )
        row_scores = self.row_scores(predictions, references)
        low, high = self.interval(row_scores, intervals=intervals)
        values = {self.headline: values.pop(self.headline, ratio(row_scores)), **values}
        return Score(values, self.headline, (max(low, 0.0), min(high, 1.0)), details)

    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        named = [[self.class_names[i] for i in p["prediction"]] for p in predictions]
        true = [[self.class_names[i] for i in np.flatnonzero(reference)] for reference in references]
        return {"prediction": named, "reference": true, "probabilities": [p["probabilities"] for p in predictions]}

    def confidence(self, probabilities: NDArray[np.float32], reference: Any) -> float:
        """The row's loss."""
        p = np.where(reference, probabilities, 1 - probabilities)
        return float(-np.log(np.clip(p, 1e-12, None)).mean())

    @property
    def _thresholds(self) -> Sequence[float]:
        return self.thresholds or [THRESHOLD] * len(self.class_names)

    def _matrix(self, labels: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """0 or 1 for each class, [rows, classes]."""
        found = np.zeros((len(labels), len(self.class_names)), np.int64)
        for row, own in enumerate(labels):
            found[row, list(own)] = 1
        return found


def are_many(
    splits: Mapping[str, Split], config: PretrainedConfig, data: ClassData, source: Checkpoint, *, kept: bool
) -> bool:
    """Tell whether rows have any number of classes: by the data, or where there are none by the checkpoint's own head.

    Raises CheckpointError for a head that is `kept` and was trained for the other kind.
    """
    own = bool(config.problem_type == MULTI_LABEL)
    if not splits:
        return own
    many = any(is_list(split.rows.features["label"]) for split in splits.values())
    if kept and own != many and not (many and config.problem_type is None and data.multi_label is True):
        ways = ("any number of classes for each row", "one class for each row")
        raise CheckpointError(
            f"model {source.display_name}: its head tells {ways[not own]}, and the data has {ways[not many]}; "
            f"`stage: transfer` puts a new head on it{', or say `data.multi_label: true`' if own else ''}."
        )
    return many
