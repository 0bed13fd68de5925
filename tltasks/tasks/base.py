"""What the loop needs to know of a task, and nothing about devices, processes, optimisers or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.data.splits import Columns as Columns
from tltasks.data.splits import EncodedSplit, Split
from tltasks.results.result import ReportExample, Score

Batch = dict[str, Tensor]
Prediction = dict[str, Any]
"""What is kept of one row: JSON values or a small array; at least the key `prediction`."""


@dataclass(frozen=True)
class InputKind:
    """What a task predicts from."""

    column: str
    """Its name among the task's columns."""
    suffixes: frozenset[str]
    """Of the files that are taken from a folder; a file that is named is taken whatever it is called."""
    is_text: bool = False
    """Whether the value is a text, rather than a file or its bytes."""


AnyTask = TypeVar("AnyTask", covariant=True)


@dataclass(frozen=True)
class BuiltModel(Generic[AnyTask]):
    """A model with its weights, and what building it has found out."""

    model: PreTrainedModel
    task: AnyTask
    """The task as this model allows it, e.g. with several examples in a row; one without a model takes the slow way."""
    provenance: dict[str, Any]
    """Of the weights, as results keep it: name, revision, what was newly initialised, interpolated or left."""


class Task(Protocol):
    """The contract of an adapter. Rows are addressed by their index in the encoded split."""

    tag: ClassVar[str]
    """Hub pipeline tag."""
    higher_is_better: ClassVar[bool]
    label: ClassVar[str | None]
    """Column by which held-out shares are stratified."""
    input_kind: ClassVar[InputKind]
    """What a row's prediction is made from."""
    output_features: ClassVar[datasets.Features]
    """Columns of an answer."""

    @property
    def headline(self) -> str:
        """Metric that decides which weights are best."""
        ...

    @property
    def features(self) -> datasets.Features:
        """Columns of an encoded row."""
        ...

    @property
    def cache_key(self) -> str:
        """Everything besides the rows that encoded rows depend on."""
        ...

    @property
    def architecture(self) -> str:
        """The checkpoint's `model_type` in transformers."""
        ...

    @property
    def cpu_batch_budget(self) -> int:
        """Size of a forward pass that keeps a CPU busy; more would cost memory and gain nothing.

        Rows × the longest of their `lengths`, or rows where all are alike.
        """
        ...

    @property
    def sequence_length(self) -> int | None:
        """How many positions attend to each other in every row, where that is known and alike for all."""
        ...

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        """Read the checkpoint's configuration and check the splits against it and each other; loads no weights.

        Without splits, for a checkpoint that is only to be used, what the plan leaves unset is as the checkpoint says.
        """
        ...

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """Oddities of the data worth knowing before training, counted by split; names in `_share` are shares."""
        ...

    def starting_from(self, source: Checkpoint) -> Self:
        """The same task with its weights from elsewhere."""
        ...

    def as_pretrained(self) -> Self:
        """The same task with the checkpoint as it stands, for the pretrained baseline: without the recipe's changes."""
        ...

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        """The model with its weights and head as the stage's row says, in fp32, and what was found out about it."""
        ...

    def head(self, model: nn.Module) -> list[str]:
        """Names of the modules that depend on the labels."""
        ...

    def lora_targets(self, model: nn.Module) -> list[str]:
        """Names of the modules that low-rank adaptation should reach."""
        ...

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        """A function from a batch of a split's examples to encoded columns, with `error` for each bad row.

        A split that has the column of `given` alone is encoded for `predict`.
        """
        ...

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        """Size of each row for bucketing, or None when all are alike."""
        ...

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        """A batch for evaluation."""
        ...

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        """A batch for training; every random choice is a function of (seed, epoch, row)."""
        ...

    def num_targets(self, batch: Batch) -> Tensor:
        """Number of targets that the mean loss is over."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch's targets."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """One prediction for each row."""
        ...

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        """A prediction as its user reads it, by `answers`; with so many alternatives where there are any."""
        ...

    def references(self, rows: datasets.Dataset) -> list[Any]:
        """What each row's prediction is compared with."""
        ...

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        """Numerator and denominator of the headline metric for each row, [rows, 2]; the metric is the ratio of sums."""
        ...

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        """All metrics; the 95 % interval of the headline only on request, since it takes time."""
        ...

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """Predictions for `rows` that need no model."""
        ...

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        """Columns of predictions/*.parquet besides `row`."""
        ...

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """Telling examples for the report, the worst first."""
        ...

    def save_setup(self, folder: Path) -> None:
        """Write configuration and processor: all that `open` reads of a checkpoint."""
        ...

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        """Write what `from_pretrained`, or PEFT for an adapter, needs: the setup and the weights."""
        ...

    def reload(self, folder: Path) -> nn.Module:
        """The model as a user would load it from what `save` wrote."""
        ...


@dataclass(frozen=True)
class OnnxInput:
    """The one input of a model whose answer is one pass."""

    name: str
    shape: list[str | int]
    """Sizes, and names of those that may vary."""
    free_axes: tuple[int, ...]
    made_up: Callable[[int], list[Tensor]]
    """So many inputs of one example each, of different sizes where these may vary."""
    read: Callable[[Any], Tensor]
    """The input of one value as `Item.read` gives it."""
    usage: str
    """Python that answers for one example with onnxruntime and transformers' processor, run in the folder."""


@runtime_checkable
class Exports(Protocol):
    """What a task may have besides: models that are written as ONNX (`export.py`)."""

    def onnx_input(self) -> OnnxInput | None:
        """What the file takes; None where answers are no single pass."""
        ...


@runtime_checkable
class Writes(Protocol):
    """What a task may have besides: targets that are texts."""

    def target_texts(self, rows: datasets.Dataset) -> list[str]:
        """Of encoded rows."""
        ...


@runtime_checkable
class Corrupts(Protocol):
    """What a task may have besides: a way to make encoded rows worse (`corruptions.py`)."""

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        """The columns of some encoded rows after a corruption."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """What a task may have besides: a head on one vector a row, for probes and votes of nearest neighbours."""

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The representation that the head receives, [rows, width]."""
        ...

    def knn_predict(
        self, known: NDArray[np.float32], references: list[Any], vectors: NDArray[np.float32]
    ) -> list[Prediction]:
        """Predictions for `vectors` [rows, width] by the references of the nearest `known` ones."""
        ...
