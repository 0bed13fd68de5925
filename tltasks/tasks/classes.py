"""Classification of anything: classes and their checks, probabilities, the majority class, nearest neighbours, scores.

A task of one modality derives from `ClassificationTask` and says how its rows are encoded and what logits they have.
"""

from __future__ import annotations

import copy
import math
import re
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import TypeVar

from tltasks.config.data import ClassData
from tltasks.config.model import Checkpoint
from tltasks.config.stage import ClassStage, ModelT
from tltasks.data.batching import balanced_rows
from tltasks.data.encoding import marked
from tltasks.data.folders import some
from tltasks.data.held_out import is_held_out
from tltasks.data.label_lists import is_list, of_classes
from tltasks.data.near_duplicates import contradictions
from tltasks.data.splits import FEW, Columns, EncodedSplit, Split, row_title
from tltasks.errors import DataError, RecipeError, did_you_mean
from tltasks.metrics.calibration import answered, calibration, fit_temperature, tempered
from tltasks.metrics.classification import class_row_scores, classification
from tltasks.metrics.neighbours import nearest_neighbours
from tltasks.models.adapters import find_head, input_of, unwrap_model
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import IGNORED, Batch, Outputs, Prediction, References, RowScores, TaskBase

ClassDataT = TypeVar("ClassDataT", bound=ClassData, default=ClassData, covariant=True)
ClassStageT = TypeVar("ClassStageT", bound=ClassStage, default=ClassStage, covariant=True)
ClassCounts = dict[str, Counter[str]]
"""Rows of each class, by split."""
SHOWN_MISTAKES = 24
TEMPERATURE_KEY = "calibration_temperature"
"""Key of a saved config.json."""
SORTED_ROWS = (
    "A slice of rows that are sorted by class has few of them: `{}: 0.2` in data.splits holds a share out of train, "
    "of each class in proportion."
)
IMBALANCE = 10
"""Times the rows of another class from which the commonest class is worth a word."""
FEW_ROWS = "A share is held out here: of few rows it cannot have every class."
_some = partial(some, most=12)


@dataclass(frozen=True)
class ClassificationTask(TaskBase[ModelT, ClassDataT, ClassStageT]):
    """A model that gives each row a probability for each class."""

    higher_is_better: ClassVar[bool] = True
    top_score: ClassVar[float | None] = 1.0
    label: ClassVar[str | None] = "label"
    settles: ClassVar[bool] = True
    output_features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prediction": datasets.Value("string"),
            "probability": datasets.Value("float32"),
            "top": datasets.List(
                {"label": datasets.Value("string"), "probability": datasets.Value("float32")},
            ),
        }
    )
    example_kind: ClassVar[Literal["image", "texts"]]
    """The report's form of an example."""

    class_names: list[str]
    """In the order of the model's outputs."""
    class_weights: tuple[float, ...] | None = field(default=None, kw_only=True)
    """Weight of a row of each class in the loss; None where all are 1."""
    temperature: float | None = field(default=None, kw_only=True)
    """What logits are divided by for the probabilities that are told; None where no validation split was asked.

    Classes, thresholds and ranks go by the model's own, so that it changes no answer and no metric of them.
    """

    own_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "balanced_accuracy", "auroc")
    """What `metric` may name, the usual one first."""
    is_multi_label: ClassVar[bool] = False
    """Rows have any number of classes, rather than one each."""
    label_feature: ClassVar[object] = datasets.Value("int32")
    """An encoded row's classes."""

    @property
    def headline(self) -> str:
        return self.stage.metric or self.own_metrics[0]

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def own_weights(
        cls, stage: ClassStage, splits: Mapping[str, Split], found: ClassCounts, class_names: list[str]
    ) -> tuple[float, ...] | None:
        """Weights of the classes in the loss; raises RecipeError for keys that are not for rows of this kind."""
        kind = "have any number of classes" if cls.is_multi_label else "have one class each"
        if stage.metric is not None and stage.metric not in cls.own_metrics:
            raise RecipeError(f"metric: {stage.metric} is not for rows that {kind}; use {', '.join(cls.own_metrics)}.")
        if cls.is_multi_label and stage.sampling == "balanced":
            raise RecipeError(f"sampling: balanced is not for rows that {kind}; use `class_weights: auto`.")
        n_rows = len(splits["train"].rows) if cls.is_multi_label and "train" in splits else None
        return weights_of(stage, found.get("train"), class_names, n_rows=n_rows)

    def as_saved(self) -> Self:
        """The task with what the configuration of a kept head holds of an earlier choice."""
        found = getattr(self.config, TEMPERATURE_KEY, None)
        if not self.plan.kind.trains and isinstance(found, float) and 0 < found < math.inf:
            return replace(self, temperature=found)
        vars(self.config).pop(TEMPERATURE_KEY, None)  # of weights that are trained on, or no number
        return self

    def data_notes(self, encoded: dict[str, EncodedSplit]) -> dict[str, list[str]]:
        """Classes of the training split that another lacks, and such as look alike.

        Raises DataError for a test or validation set of a single one.
        """
        present = {name: set(self.class_rows(split.rows)) for name, split in encoded.items()}
        learnt = present.pop("train", set())
        notes: dict[str, list[str]] = {}
        for name, classes in present.items():
            missing = [self.class_names[i] for i in sorted(learnt - classes)]
            if not missing:
                continue
            split = encoded[name]
            advice = FEW_ROWS if is_held_out(split.origin) else SORTED_ROWS.format(name)
            judged = name in ("validation", "test") or self.headline == "auroc"
            if judged and len(classes) == 1 and not self.is_multi_label:
                raise DataError(
                    f"{split.where}: all {len(split.rows):,} rows are of the class {self.class_names[min(classes)]}, "
                    f"and train has {len(learnt)}: nothing can be told by them. {advice}"
                )
            notes[name] = [f"lacks {len(missing)} of the {len(learnt)} classes of train: {_some(missing)}. {advice}"]
        if "train" in encoded and self.stage.trains:
            lines = self._imbalance(encoded["train"]), self._disagreement(encoded["train"])
            notes |= {"train": told} if (told := [line for line in lines if line]) else {}
        several = [name for name in self.class_names if ";" in name or "|" in name]
        if several and not self.is_multi_label:
            text = (
                f"{len(several)} classes have `;` or `|` in them ({some(several, 3)}): `multi_label: true` parts them"
            )
            notes.setdefault(next(iter(encoded)), []).append(f"{text}, where rows may have several.")
        alike: dict[str, list[str]] = {}
        for label in self.class_names:
            alike.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(repr(label))
        for same in (same for same in alike.values() if len(same) > 1):
            text = (
                f"the classes {', '.join(same)} differ in case, spaces or the form of characters alone, and are told "
                "apart all the same."
            )
            notes.setdefault(next(iter(encoded)), []).append(text)
        return notes

    def _imbalance(self, train: EncodedSplit) -> str | None:
        """A sentence on classes that have few rows beside the others."""
        counts = self.class_rows(train.rows).most_common()
        common, most = counts[0]
        if most < IMBALANCE * counts[-1][1]:
            return None
        few = [f"{self.class_names[label]} ({n})" for label, n in reversed(counts) if most >= IMBALANCE * n]
        text = f"classes are uneven: {self.class_names[common]} has {most:,} rows, {some(few, 5)}"
        handled = self.stage.class_weights or self.stage.sampling == "balanced" or not self.stage.loops
        ways = "`class_weights: auto`" + ("" if self.is_multi_label else " or `sampling: balanced`")
        advice = "" if handled else f"; {ways} makes up for it"
        return f"{text}. Look at macro-F1 beside {'micro-F1' if self.is_multi_label else 'accuracy'}{advice}."

    def _disagreement(self, train: EncodedSplit) -> str | None:
        """A sentence on rows of the same content that have other classes."""
        if train.marks is None:
            return None
        rows, labels = train.rows, train.rows["label"][:]
        pairs = contradictions(marked(train, self.likeness), labels)
        if not pairs:
            return None

        def named(row: int) -> str:
            classes = labels[row] if isinstance(labels[row], list) else [labels[row]]
            return f"{row_title(rows, row)} ({', '.join(self.class_names[i] for i in classes) or 'no class'})"

        shown = "; ".join(f"{named(row)} and {named(first)}" for row, first in pairs[:FEW])
        have = "row has the content" if len(pairs) == 1 else "rows have the content"
        more = "; …" if len(pairs) > FEW else ""
        return f"{len(pairs):,} {have} of another and not its class: {shown}{more}. One of the two is wrong."

    def trained_on(self, rows: datasets.Dataset) -> Self:
        if self.stage.class_weights != "auto":
            return self
        counts = Counter({self.class_names[label]: n for label, n in self.class_rows(rows).items()})
        n_rows = len(rows) if self.is_multi_label else None
        return replace(self, class_weights=weights_of(self.stage, counts, self.class_names, n_rows=n_rows))

    def class_rows(self, rows: datasets.Dataset) -> Counter[int]:
        """Rows of each class, by its number."""
        return Counter(self.references(rows))

    # -------------------------------------------------------------------------------------- model

    def head(self, model: nn.Module) -> list[str]:
        return find_head(unwrap_model(model))

    def examples(self) -> Columns:
        names = [self.class_names[0], self.class_names[-1]]
        numbers = {name: number for number, name in enumerate(self.plan.data.class_names or ())}
        labels = [numbers.get(name, name) for name in names]
        return super().examples() | {"label": [[label] for label in labels] if self.is_multi_label else labels}

    @property
    def chosen(self) -> dict[str, object]:
        """Choices for a trained model, by the keys of its saved config.json."""
        return {} if self.temperature is None else {TEMPERATURE_KEY: self.temperature}

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        config = copy.deepcopy(self.config)  # ours goes into the keys of caches
        for it in (config, unwrap_model(model).config):
            it.update(self.chosen)
        super(ClassificationTask, replace(self, config=config)).save(folder, model, adapter=adapter)

    # --------------------------------------------------------------------------------------- rows

    def encoded_label(self, classes: list[int]) -> object:
        """A row's classes, by number, as `label_feature`."""
        return classes[0] if classes else IGNORED

    def labelled(self, split: Split, encode: Callable[[Columns], Columns]) -> Callable[[Columns], Columns]:
        """`encode`, which gives `error` for each row, with each row's classes; a row whose are not known is bad.

        Those of a split without labels are -100.
        """
        has_labels = "label" in split.rows.column_names
        name = _label_namer(split, self.plan.data.class_names) if has_labels else None
        index = {name: i for i, name in enumerate(self.class_names)}

        def whole(batch: Columns) -> Columns:
            encoded = {**encode(batch), "row": batch["row"]}
            if name is None:
                return {**encoded, "label": [self.encoded_label([]) for _ in batch["row"]]}
            labels = [name(label) for label in batch["label"]]
            faults = [
                _no_class(own) if found is None else None for found, own in zip(labels, batch["label"], strict=True)
            ]
            return {
                **encoded,
                "label": [self.encoded_label([index[label] for label in found or ()]) for found in labels],
                "error": [error or fault for error, fault in zip(encoded["error"], faults, strict=True)],
            }

        return whole

    # --------------------------------------------------------------------------------------- step

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """The model's logits for a batch, [rows, classes], in fp32."""

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def targets(self, labels: list[Any]) -> Tensor:
        """Encoded labels of rows as the loss takes them."""
        return torch.tensor(labels)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"logits": self.logits(model, batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = self.logits(model, batch)
        if self.class_weights is not None or self.stage.focal is not None or self.is_multi_label:
            return self.row_losses(logits, batch["labels"]).mean()
        return functional.cross_entropy(logits, batch["labels"], label_smoothing=self.stage.label_smoothing)

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, [rows], with the weight of its class. Their mean is over rows, not over weights, so that a
        step's gradient is on average that of the weighted loss, however its rows are split."""
        smoothing = self.stage.label_smoothing
        losses = functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        if self.stage.focal is not None:
            right = logits.softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
            losses = losses * (1 - right) ** self.stage.focal
        if self.class_weights is not None:
            losses = losses * torch.tensor(self.class_weights, device=logits.device)[labels]
        return losses

    def epoch_rows(self, rows: datasets.Dataset, *, epoch: int) -> datasets.Dataset:
        if self.stage.sampling == "rows":
            return super().epoch_rows(rows, epoch=epoch)
        return rows.select(balanced_rows(self.references(rows), seed=self.seed, epoch=epoch))

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        found = self.as_predictions(self.probabilities(self.logits(model, batch)).cpu().numpy())
        return found if self.temperature is None else [{**it, "temperature": self.temperature} for it in found]

    def as_predictions(self, probabilities: NDArray[np.float32]) -> list[Prediction]:
        """Predictions of rows by the model's own probabilities, [rows, classes]; `told` gives those for its user."""
        return [{"prediction": int(p.argmax()), "probabilities": p} for p in probabilities]

    def calibrated(
        self, predictions: dict[str, list[Prediction]], references: References
    ) -> tuple[Self, dict[str, list[Prediction]]]:
        found = own_probabilities(predictions["validation"])
        # Classes told each by itself are compared with thresholds, or as SigLIP's with each other
        if self.is_multi_label or not np.allclose(found.sum(1), 1, atol=1e-3):
            return self, predictions
        temperature = fit_temperature(found, np.array(references))
        stamped = {name: [{**it, "temperature": temperature} for it in rows] for name, rows in predictions.items()}
        return replace(self, temperature=temperature), stamped

    def told(self, predictions: Sequence[Prediction]) -> NDArray[np.float32]:
        """Probabilities for a user to read, [rows, classes]: at the temperature that predictions are stamped with."""
        found, temperature = own_probabilities(predictions), predictions[0].get("temperature", 1.0)
        return found if temperature == 1.0 else tempered(found, temperature)

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, object]:
        best = np.argsort(-prediction["probabilities"], kind="stable")[:top_k].tolist()
        top = self.with_probabilities(prediction, best)
        return {"prediction": top[0]["label"], "probability": top[0]["probability"], "top": top}

    def with_probabilities(self, prediction: Prediction, classes: Sequence[int]) -> list[dict[str, object]]:
        """Names of classes and their probabilities."""
        # str() is the shortest text of a 32-bit number; as one of 64 bits it would have digits that mean nothing.
        told = self.told([prediction])[0]
        shown = [(self.class_names[i], float(str(told[i]))) for i in classes]
        return [{"label": name, "probability": probability} for name, probability in shown]

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The input of the head's first layer, [rows, width], averaged over positions where it has any."""
        head = model.get_submodule(self.head(model)[0])
        features = input_of(head, lambda: self.logits(model, batch)).float()
        return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[int]:
        return [int(label) for label in rows["label"]]

    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        chosen, probabilities = (np.array([p[key] for p in predictions]) for key in ("prediction", "probabilities"))
        return class_row_scores(self.headline, chosen, np.array(references), probabilities)

    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        own, told, true = own_probabilities(predictions), self.told(predictions), np.array(references)
        values, details = classification(own, true, self.class_names)
        row_scores = self.row_scores(predictions, references)
        low, high = self.interval(row_scores, intervals=intervals)
        interval = max(low, 0.0), min(high, 1.0)  # an influence may lead beyond
        if intervals:
            details["answered"] = answered(told.max(1), own.argmax(1) == true)
        if (temperature := predictions[0].get("temperature")) is not None:
            before, after = calibration(own, true), calibration(told, true)
            values |= {"ece": after["ece"], "loss": after["loss"]}
            details["calibration"] = {"temperature": temperature, "before": before, "after": after}
        values = {self.headline: float(row_scores[:, 0].mean()), **values}
        return Score(values, self.headline, interval, details)

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        counts = self.class_rows(known.rows)
        shares = np.array([counts[i] for i in range(len(self.class_names))], np.float32) / np.float32(len(known.rows))
        name = "prevalence" if self.is_multi_label else "majority_class"
        return {name: self.as_predictions(np.tile(shares, (len(rows), 1)))}

    def knn_predict(
        self, known: NDArray[np.float32], references: References, vectors: NDArray[np.float32]
    ) -> list[Prediction]:
        n_classes = len(self.class_names)
        return self.as_predictions(nearest_neighbours(known, np.array(references), vectors, n_classes=n_classes))

    def onnx_usage(self, usage: str) -> str:
        """Python for an exported model, whose last line names the likeliest class."""
        return usage

    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        return {
            "prediction": [self.class_names[p["prediction"]] for p in predictions],
            "reference": [self.class_names[r] for r in references],
            "probabilities": [*self.told(predictions)],
        }

    @abstractmethod
    def example_content(self, rows: datasets.Dataset, row: int) -> bytes:
        """A row as the report shows it."""

    def mistakes(self, predictions: Sequence[Prediction], references: References) -> dict[int, int | None]:
        """The surest wrong answers: rows, and the likeliest class that each is wrongly given, if any."""
        told, found = self.told(predictions), {}
        for row, (prediction, true) in enumerate(zip(predictions, references, strict=True)):
            said = prediction["prediction"]
            own, right = (said, np.flatnonzero(true).tolist()) if self.is_multi_label else ([said], [true])
            if sorted(own) != sorted(right):
                found[row] = max((i for i in own if i not in right), key=lambda i: told[row][i], default=None)
        surest = sorted(found, key=lambda row: -self.confidence(told[row], references[row]))
        return {row: found[row] for row in surest[:SHOWN_MISTAKES]}

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: References
    ) -> list[ReportExample]:
        found = self.columns(predictions, references)
        said, true = (
            [one if isinstance(one, list) else [one] for one in found[key]] for key in ("prediction", "reference")
        )
        numbers = {name: i for i, name in enumerate(self.class_names)}

        def answer(i: int) -> str:
            shown = [f"{name} ({float(found['probabilities'][i][numbers[name]]):.0%})" for name in said[i]]
            return ", ".join(shown) or "none"

        return [
            ReportExample(
                self.example_kind,
                answer(i),
                f"is {', '.join(true[i]) or 'none'} · {row_title(rows, i)}",
                self.example_content(rows, i),
            )
            for i in self.mistakes(predictions, references)
        ]

    def confidence(self, probabilities: NDArray[np.float32], reference: Any) -> float:
        """How sure of itself an answer is that is wrong."""
        return float(probabilities.max())


def own_probabilities(predictions: Sequence[Prediction]) -> NDArray[np.float32]:
    """The model's own, [rows, classes]."""
    return np.stack([p["probabilities"] for p in predictions])


def weights_of(
    stage: ClassStage, train: Counter[str] | None, class_names: list[str], *, n_rows: int | None = None
) -> tuple[float, ...] | None:
    """Weights of the classes, as a stage asks for them; `train` counts the training rows of each.

    Of rows with any number of classes, `n_rows`, they are of having a class beside not having it.

    Raises DataError for the name of a class that there is not.
    """
    asked = stage.class_weights
    if asked is None or train is None:
        return None
    if asked == "auto" and n_rows is not None:
        return tuple((n_rows - train[name]) / train[name] or 1.0 if train[name] else 1.0 for name in class_names)
    if asked == "auto":
        n_rows, present = train.total(), sum(1 for name in class_names if train[name])
        return tuple(n_rows / (present * train[name]) if train[name] else 1.0 for name in class_names)
    for name in asked:
        if name not in class_names:
            raise DataError(
                f"class_weights: no class is called {name!r}{did_you_mean(name, class_names) or '.'} "
                f"There are: {_some(class_names)}."
            )
    return tuple(asked.get(name, 1.0) for name in class_names)


# ------------------------------------------------------------------------------------- classes of splits


def count_classes(splits: Mapping[str, Split], data: ClassData) -> ClassCounts:
    """Rows of each class in every split; a few rows may have none, which encoding then names and leaves out.

    Raises DataError, for all splits at once, for labels that are no classes, or missing from more rows than may be bad.
    """
    found: ClassCounts = {}
    mistakes = []
    for name, split in splits.items():
        try:
            found[name] = _class_counts(split, data)
        except DataError as error:
            mistakes.append(str(error))
    if mistakes:
        raise DataError("\n".join(mistakes))
    return found


def _class_counts(split: Split, data: ClassData) -> Counter[str]:
    feature, many = of_classes(split.rows.features["label"]), is_list(split.rows.features["label"])
    kind = (
        "string" if isinstance(feature, datasets.ClassLabel) else str(getattr(feature, "dtype", type(feature).__name__))
    )
    labels = [tuple(row) if isinstance(row, list) else row for row in split.rows["label"]]
    if kind.startswith("float"):  # whole numbers beside empty cells are of this type in pandas
        each = (v for row in labels for v in (row or () if many else (row,)))
        kind = "int" if all(v is None or math.isnan(v) or v.is_integer() for v in each) else kind
    if not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise DataError(f"{split.where}: column `label` holds {kind}; a class is a name or a whole number.")
    name, counts = _label_namer(split, data.class_names), Counter[str]()
    without: Counter[object] = Counter()
    for value, n in Counter(labels).items():
        found = name(value)
        if found is None:
            without[value] += n
        counts.update(dict.fromkeys(found or (), n))
    if without.total() > data.max_bad_share * len(split.rows):
        reasons = ", ".join(sorted({_no_class(value) for value in without}))
        first = next(i for i, value in enumerate(labels) if name(value) is None)
        raise DataError(
            f"{split.where}: {without.total()} of {len(split.rows)} rows have no label or one outside the class list "
            f"({split.called(first)} is the first: {reasons}; data.max_bad_share allows {data.max_bad_share:.1%}). "
            "Hub test splits are often unlabelled: use another split, or hold out a share (`test: 0.1`)."
        )
    return counts


def _no_class(label: object) -> str:
    """Reason for a row to be left out that `_label_namer` has no name for."""
    blank = label is None or label == "" or label == -1 or (isinstance(label, float) and math.isnan(label))
    if isinstance(label, list | tuple):
        return f"has the labels {', '.join(map(str, label))}, one of which is no class"
    return "has no label" if blank or not str(label).strip() else f"has the label {label}, which is no class"


def _label_namer(split: Split, class_names: list[str] | None) -> Callable[[object], list[str] | None]:
    """A function from a row's label or list of labels, numbers of named classes, numbers or names, to the names of its
    classes; None where they are not known."""
    feature = of_classes(split.rows.features["label"])
    names = feature.names if isinstance(feature, datasets.ClassLabel) else class_names

    def name(value: object) -> str | None:
        if isinstance(value, float):
            value = None if math.isnan(value) else int(value)
        number = as_number(value) if isinstance(value, str) and value not in (names or ()) else value
        if names is not None and isinstance(number, int):
            return str(names[number]) if 0 <= number < len(names) else None
        return None if value is None or not str(value).strip() else str(value)

    def each(value: object) -> list[str] | None:
        labels = value if isinstance(value, list | tuple) else [value]
        found = [known for label in labels if (known := name(label)) is not None]
        return None if len(found) < len(labels) else list(dict.fromkeys(found))

    return each


def as_number(label: str) -> int | None:
    """The whole number that a label is written as.

    >>> as_number("12"), as_number("-1"), as_number("²"), as_number("1.0")
    (12, -1, None, None)
    """
    return int(label) if re.fullmatch("-?[0-9]{1,18}", label) else None


def train_classes(train: Split, found: Counter[str], class_names: list[str] | None) -> list[str]:
    """The classes that a new head tells apart, in order: as declared, or else sorted.

    Raises DataError for a single class, or several of one name.
    """
    feature = of_classes(train.rows.features["label"])
    if isinstance(feature, datasets.ClassLabel):
        names = [str(name) for name in feature.names]
    elif class_names is not None:
        names = class_names
    else:
        numbers = {name: as_number(name) for name in found}
        numeric = None not in numbers.values()
        names = sorted(found, key=lambda name: (numbers[name] if numeric else 0, name))
    if len(names) < 2:
        raise DataError(f"{train.where}: holds the single class {names}; a classifier needs two.")
    if len(set(names)) < len(names):
        twice = [name for name, n in Counter(names).items() if n > 1]
        raise DataError(f"{train.where}: several classes are called {', '.join(twice)}; give data.class_names.")
    return names


def classes_of(splits: Mapping[str, Split], found: ClassCounts, class_names: list[str] | None) -> list[str]:
    """The classes of data that a model is only told by name: those of the training split, or of the first there is.

    Raises DataError where another split has more.
    """
    first = next((name for name in ("train", "test", "validation") if name in splits), next(iter(splits)))
    names = train_classes(splits[first], sum(found.values(), Counter()), class_names)
    if lines := _unknown_classes(names, found, splits):
        raise DataError("\n".join(lines) + f"\n{splits[first].where} has {len(names)} classes: {_some(names)}.")
    return names


def check_same_classes(names: list[str], found: ClassCounts, splits: Mapping[str, Split]) -> None:
    """Raise DataError where a split has classes that cannot be learnt from `train`."""
    lines = []
    for name, counts in found.items():
        declared = getattr(of_classes(splits[name].rows.features["label"]), "names", None)
        theirs = set(declared or counts)
        unknown = sorted(theirs - set(names))
        is_whole = splits["train"].stream is None
        unseen = sorted(c for c in counts if c in names and not found["train"][c] and is_whole)
        missing = sorted(set(names) - theirs) if declared else []
        if unknown:
            lines.append(f"{splits[name].where}: has classes that train has not: {_some(unknown)}.")
        if unseen:
            lines.append(f"{splits[name].where}: has classes without one training example: {_some(unseen)}.")
        if missing and unknown:
            lines.append(f"{splits[name].where}: lacks classes that train has: {_some(missing)}.")
    if lines:
        advice = (
            "A slice of rows that are sorted by class loses classes; a share held out of train (`test: 0.2` in "
            "data.splits) keeps some of each there."
        )
        if any(is_held_out(split.origin) for split in splits.values()):
            advice = FEW_ROWS
        learnt = [name for name in names if found["train"][name]]
        if len(learnt) < len(found["train"]):
            advice = f"data.class_names lists: {_some(names)}."
        lines.append(f"train has: {_some(sorted(learnt))}. {advice}" if learnt else advice)
        raise DataError("\n".join(lines))


def check_kept_head(names: list[str], found: ClassCounts, splits: Mapping[str, Split], source: Checkpoint) -> None:
    """Raise DataError where the data has classes that the checkpoint's own head does not know."""
    if lines := _unknown_classes(names, found, splits):
        raise DataError(
            "\n".join(lines)
            + f"\n{source.display_name} knows {len(names)} classes: {_some(names)}."
            + "\nA kept head needs the checkpoint's own labels; `stage: transfer` puts a new head on it."
        )


def _unknown_classes(names: list[str], found: ClassCounts, splits: Mapping[str, Split]) -> list[str]:
    unknown = {name: sorted(set(counts) - set(names)) for name, counts in found.items()}
    return [f"{splits[name].where}: has {_some(classes)}" for name, classes in unknown.items() if classes]
