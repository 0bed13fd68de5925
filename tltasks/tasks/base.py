"""The contract of a task: all that training, evaluation, reports and predictions ask of one, and nothing of devices,
processes, optimisers or a run's files.

An adapter is a frozen dataclass that derives from `TaskBase`, or from the narrower `ClassificationTask` or
`SelfSupervisedTask`, and says what is particular to it. Rows are addressed by their index in the encoded split.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, runtime_checkable

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tltasks.config.answers import Asked
from tltasks.config.model import Checkpoint
from tltasks.config.stage import DataT, ModelT, StageKind, StagePlan, StageT
from tltasks.data.batching import weighted_rows
from tltasks.data.cache_keys import code_version
from tltasks.data.languages import Languages
from tltasks.data.near_duplicates import Likeness, Texts
from tltasks.data.splits import LANGUAGE, SOURCE, Columns, EncodedSplit, Split
from tltasks.errors import CheckpointError, RecipeError
from tltasks.metrics.intervals import score_interval
from tltasks.models import loading
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.trial import Run, Trial
from tltasks.results.result import UNKNOWN, Attribution, Provenance, ReportExample, Score
from tltasks.runtime.files import write_json

Batch = dict[str, Tensor]
Prediction = dict[str, Any]
"""The record that is kept of one row: JSON values or a small array; at least the key `prediction`."""
Outputs = dict[str, Tensor]
"""Numbers of a forward pass, those of one magnitude under one name."""
References = Sequence[Any]
"""The true value of each row, in the form that the task's `references` gives it."""
Rescore = Callable[[Score, Columns], Score]
"""Adds to a score, given the columns that are kept of the predictions."""
RowScores = NDArray[np.float64]
"""Numerator and denominator of the headline metric for each row, [rows, 2]; the metric is the ratio of sums."""
IGNORED = -100
"""Label that no loss is over."""


def digest_of(*parts: object) -> str:
    """A key for encoded rows that depend on so much."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def content_key(processor: Processor) -> str:
    """Digest of all that a tokenizer or processor is saved as, wherever it was loaded from."""
    kind = type(processor)
    digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(Path(folder))
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                content = re.sub(rb'"_?name_or_path": "[^"\n]*"', b"", file.read_bytes())
                digest.update(f"{file.name}\0".encode() + content)
    return digest.hexdigest()


def config_content(config: PretrainedConfig) -> dict[str, object]:
    """A configuration without the name that it was loaded by."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def made_up_text(drawn: np.random.Generator) -> str:
    """Some of the commonest words, which tokenizers of most languages know."""
    words = ["a", "of", "the", "to", "in", "and", "is", "on", "for", "it", "was", "as"]
    return " ".join(drawn.choice(words, 12))


@dataclass(frozen=True)
class InputKind:
    """The input that a task predicts from."""

    column: str
    """Its name among the task's columns."""
    suffixes: frozenset[str]
    """Endings of the files that are taken from a folder; a file that is named is taken whatever it is called."""
    is_text: bool = False
    """The value is a text, rather than a file or its bytes."""
    made_up: Callable[[np.random.Generator], object] = made_up_text
    """Draws a value of it."""


class Processor(Protocol):
    """A tokenizer, an image processor, a feature extractor or a configuration, as far as it is saved."""

    def save_pretrained(self, folder: Path) -> object: ...


AnyTask = TypeVar("AnyTask", covariant=True)


@dataclass(frozen=True)
class BuiltModel(Generic[AnyTask]):
    """A model with its weights, and what building it has found out."""

    model: PreTrainedModel
    task: AnyTask
    """The task as this model allows it, e.g. with several examples in a row; one without a model takes the slow way."""
    provenance: Provenance


@dataclass(frozen=True)
class OnnxInput:
    """The one input of a model whose answer is one pass."""

    name: str
    shape: list[str | int]
    """Sizes, and names of those that may vary."""
    free_axes: tuple[int, ...]
    made_up: Callable[[int], list[Tensor]]
    """So many inputs of one example each, of different sizes where these may vary."""
    read: Callable[[object], Tensor]
    """The input of one value as `Item.read` gives it."""
    usage: str
    """Python that answers for one example with onnxruntime and transformers' processor, run in the folder."""
    arguments: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    """What the model is called with for an input, where that is more than the input by its name."""


@dataclass(frozen=True)
class TaskBase(ABC, Generic[ModelT, DataT, StageT]):
    """One stage's view of a task, generic in the sections of a recipe that are its own.

    What is abstract an adapter has to say; the rest is what most of them say.
    """

    tag: ClassVar[str]
    """Hub pipeline tag."""
    higher_is_better: ClassVar[bool]
    top_score: ClassVar[float | None] = None
    """The largest headline metric that a row can have, where there is one; some rows of an error rate have more."""
    label: ClassVar[str | None] = None
    """Column by which held-out shares are stratified."""
    input_kind: ClassVar[InputKind]
    """The input of a row's prediction."""
    output_features: ClassVar[datasets.Features]
    """Columns of an answer."""
    least_rows: ClassVar[int] = 1
    """Fewest rows that a loss can be of."""
    converts: ClassVar[bool] = False
    """Models of it may be written for CTranslate2, where that knows the architecture."""
    settles: ClassVar[bool] = False
    """There is something that the task of a trained model chooses by predictions for `validation` (`settled`)."""
    head_name: ClassVar[str] = "its head"
    new_head_hint: ClassVar[str] = "use `stage: transfer`, which puts a new head on it."
    """Advice for a checkpoint without weights for `head_name`."""

    plan: StagePlan[ModelT, DataT, StageT]
    source: Checkpoint
    config: PretrainedConfig
    """Configuration of the model that is built."""
    seed: int

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    @abstractmethod
    def open(
        cls, plan: StagePlan[ModelT, DataT, StageT], splits: dict[str, Split], source: Checkpoint, *, seed: int
    ) -> Self:
        """Read the checkpoint's configuration and check the splits against it and each other; loads no weights.

        Without splits, for a checkpoint that is only to be used, what the plan leaves unset is as the checkpoint says.
        """

    @property
    def stage(self) -> StageT:
        return self.plan.stage

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """Oddities of the data worth knowing before training, counted by split; names in `_share` are shares."""
        return {}

    @property
    def notes(self) -> list[str]:
        """Sentences that the user should know before training."""
        return []

    def data_notes(self, encoded: dict[str, EncodedSplit]) -> dict[str, list[str]]:
        """Sentences by split that its user should read before training; DataError for one that nothing is told by."""
        return {}

    def trained_on(self, rows: datasets.Dataset) -> Self:
        """The task with what it counts by training rows counted by these, which are left of them."""
        return self

    # -------------------------------------------------------------------------------------- model

    @property
    @abstractmethod
    def auto_class(self) -> loading.ModelLoader:
        """The class that loads the model."""

    @property
    def architecture(self) -> str:
        """The checkpoint's `model_type` in transformers."""
        return str(self.config.model_type)

    @property
    def settings(self) -> dict[str, object]:
        """Facts that results keep of the task beside the weights' provenance, such as its objective."""
        return {}

    def starting_from(self, source: Checkpoint) -> Self:
        """The same task with its weights from elsewhere."""
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        """The same task with the checkpoint as it stands, for the pretrained baseline: without the recipe's changes."""
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        """The model with its weights and head as the stage's kind says, in fp32, and what was found out about it.

        Raises CheckpointError for weights that are not there or not of this architecture.
        """
        is_random = kind.weights == "random"

        def outer(model: PreTrainedModel) -> list[str]:
            return [*self.head(model), *getattr(model, "input_layer", ())]

        model, found = loading.load_pretrained(self.auto_class, self.config, self.source, random=is_random, outer=outer)
        head = self.head(model)
        lost = [key for key in found.newly_initialised if key.startswith(tuple(f"{name}." for name in head))]
        if kind.head == "new":
            self.draw_head(model, head, is_random=is_random)
        elif lost:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for {self.head_name} "
                f"({', '.join(lost[:3])}{', …' if len(lost) > 3 else ''}); {self.new_head_hint}"
            )
        share = loading.check_loaded(
            model, found.newly_initialised, head=outer(model), display_name=self.source.display_name
        )
        provenance = dataclasses.replace(found, loaded_share=share, settings=self.settings)
        return self.finish_build(BuiltModel(model, self, provenance))

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        """Give a new head its first weights; `is_random` says whether all the others are random, too."""
        loading.initialise_head(model, head)

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        """Finish a model whose weights are loaded, and note what is found out about it."""
        return built

    def tried(self, model: PreTrainedModel) -> Self:
        """The same task as a model with its weights allows it."""
        return self

    @abstractmethod
    def head(self, model: nn.Module) -> list[str]:
        """Names of the modules that depend on the labels."""

    def lora_targets(self, model: nn.Module) -> list[str]:
        """Names of the modules that low-rank adaptation should reach."""
        return find_lora_targets(model, head=self.head(model))

    def examples(self) -> Columns:
        """Two made-up examples to train on, by column."""
        kind, drawn = self.input_kind, np.random.default_rng(0)
        return {kind.column: [kind.made_up(drawn) for _ in range(2)]}

    def example_pass(self) -> Run:
        """The loss of two made-up examples, by which the layers of a model are tried."""
        found: Columns = {**self.examples(), "row": [0, 1]}
        rows = datasets.Dataset.from_dict({name: found[name] for name in found if name != self.input_kind.column})
        encoded = self.preprocess(Split("train", rows, "made-up examples", None, "examples"))(found)
        features = datasets.Features({**self.features, "row": datasets.Value("int64")})
        own = datasets.Dataset.from_dict({name: encoded[name] for name in features}, features=features)
        batch = self.collate_train(own, [0, 1], epoch=0)

        def run(model: nn.Module) -> Tensor:
            device = next(model.parameters()).device
            return self.loss(model, {name: values.to(device) for name, values in batch.items()})

        return run

    def random_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """A model of this task with random weights, by another configuration of the same architecture."""
        model = loading.random_model(self.auto_class, config, self.source)
        if model.device.type == "meta":  # of which nothing can be tried
            return model
        task = dataclasses.replace(self, config=config)
        return task.finish_build(BuiltModel(model, task, Provenance(self.source.display_name))).model

    def trial(self) -> Trial:
        """How layers of this task's models are tried, and where outcomes are kept."""
        place = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-targets"
        return Trial(self.example_pass, self.random_model, place, write_json, f"{self.tag} {code_version()}")

    @property
    @abstractmethod
    def setup(self) -> Sequence[Processor]:
        """Configuration and processors: all that `open` reads of a checkpoint, and that an adapter does not carry."""

    def save_setup(self, folder: Path) -> None:
        """Write what belongs beside the weights."""
        for part in self.setup:
            part.save_pretrained(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        """Write what `from_pretrained`, or PEFT for an adapter, needs: the setup and the weights."""
        self.save_setup(folder)
        if adapter:
            loading.save_adapter(model, folder)
        else:
            loading.save_whole(merged(model), folder)

    def reload(self, folder: Path) -> nn.Module:
        """The model as a user would load it from what `save` wrote."""
        return loading.load_saved(self.auto_class, folder, base=self.source, config=copy.deepcopy(self.config))

    # --------------------------------------------------------------------------------------- rows

    @property
    @abstractmethod
    def features(self) -> datasets.Features:
        """Columns of an encoded row."""

    @property
    @abstractmethod
    def cache_key(self) -> str:
        """Everything besides the rows that encoded rows depend on."""

    @property
    @abstractmethod
    def cpu_batch_budget(self) -> int:
        """Size of a forward pass that keeps a CPU busy; more would cost memory and gain nothing.

        Rows × the longest of their `lengths`, or rows where all are alike.
        """

    @property
    def cpu_training_budget(self) -> int:
        """The same for training, which keeps what the backward pass waits for."""
        return self.cpu_batch_budget

    @property
    def passes_together(self) -> int:
        """Passes of a CPU whose rows are answered together: writing a token takes all weights, however many rows do."""
        return 1

    @property
    def sequence_length(self) -> int | None:
        """Positions that attend to each other in every row, where that is known and alike for all."""
        return None

    @property
    def likeness(self) -> Likeness:
        """How rows are told to be nearly the same; by their texts, unless a task says otherwise."""
        column = self.input_kind.column
        return Texts((column,), lambda columns: columns[column])

    @abstractmethod
    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        """A function from a batch of a split's examples to encoded columns, with `error` for each bad row.

        A split that has the column of `input_kind` alone is encoded for `predict`.
        """

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        """Size of each row for bucketing, or None when all are alike."""
        return None

    def epoch_rows(self, rows: datasets.Dataset, *, epoch: int) -> datasets.Dataset:
        """The rows that an epoch of training deals out, as many in each; a function of (seed, epoch)."""
        weights = self.plan.data.source_weights
        if len(set(weights)) == 1 or SOURCE not in rows.column_names:
            return rows
        sources = rows.with_format(None)[SOURCE][:]
        return rows.select(weighted_rows(sources, weights, seed=self.seed, epoch=epoch))

    @abstractmethod
    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        """A batch for evaluation."""

    @abstractmethod
    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        """A batch for training; every random choice is a function of (seed, epoch, row)."""

    @property
    def languages(self) -> Languages:
        """The languages that the model is told of rows, where data have a column of them."""
        return Languages()

    @property
    def takes_prompts(self) -> bool:
        """Answers go on from text before an input."""
        return False

    def groups(self, rows: datasets.Dataset) -> dict[str, list[str]]:
        """The groups of rows that are also scored by themselves: that of each row, by what they are grouped by."""
        if LANGUAGE not in rows.column_names:
            return {}
        shown = {name: self.languages.shown(name) for name in rows.unique(LANGUAGE)}
        return {LANGUAGE: [shown[name] for name in rows[LANGUAGE]]}

    # --------------------------------------------------------------------------------------- step

    def num_targets(self, batch: Batch) -> Tensor:
        """Number of targets that the mean loss is over."""
        return (batch["labels"] != IGNORED).sum()

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch's targets."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """One prediction for each row."""

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, object]:
        """A prediction as its user reads it, by `output_features`; with so many alternatives where there are any."""
        return {"prediction": prediction["prediction"]}

    def onnx_input(self) -> OnnxInput | None:
        """The input of the model as an ONNX file; None where answers are no single pass."""
        return None

    # --------------------------------------------------------------------------------------- check

    def collate_outputs(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        """A batch for `outputs`."""
        return self.collate_eval(rows, indices)

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Numbers of a forward pass over real rows: a smooth function of all weights that answers depend on.

        By these, and not by answers, which hide or blow up small differences, saved weights are told from others.
        """

    # --------------------------------------------------------------------------------- evaluation

    @property
    @abstractmethod
    def headline(self) -> str:
        """Metric that decides which weights are best."""

    @abstractmethod
    def references(self, rows: datasets.Dataset) -> References:
        """The true value of each row."""

    @abstractmethod
    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        """Contributions of each row to the headline metric."""

    def interval(self, row_scores: RowScores, *, intervals: bool) -> tuple[float, float]:
        """The headline's 95 % interval, or NaN where it was not asked for."""
        return score_interval(row_scores, most=self.top_score) if intervals else UNKNOWN

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        """All metrics; the 95 % interval of the headline only on request, since it takes time."""

    @property
    def settling(self) -> Self:
        """The task as it answers for what it chooses by answers, which may be asked for more then."""
        return self

    def settled(self, predictions: Sequence[Prediction], references: References) -> Self:
        """The task with what it chooses by these of `validation`, such as thresholds."""
        return self

    def calibrated(
        self, predictions: dict[str, list[Prediction]], references: References
    ) -> tuple[Self, dict[str, list[Prediction]]]:
        """The task with the confidence that it tells fitted to `validation`, whose references these are, and
        predictions by split that tell it; no answer is another."""
        return self, predictions

    def answering(self, asked: Asked) -> Self:
        """The task with its answers as they are asked for; raises RecipeError for what it does not serve."""
        given = ", ".join(name for name, value in dataclasses.asdict(asked).items() if value and name != "vad")
        if given:
            raise RecipeError(f"{given}: is for speech recognition, and this is {self.tag}.")
        return self

    def decided(self, predictions: list[Prediction]) -> list[Prediction]:
        """Predictions of any origin as this task would answer by them."""
        return predictions

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """Predictions for `rows` that need no checkpoint.

        `known` is the training split, by its name too, or a split that stands for it where nothing is trained.
        """
        return {}

    @abstractmethod
    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        """Columns of predictions/*.parquet besides `row`."""

    @abstractmethod
    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: References
    ) -> list[ReportExample]:
        """Telling examples for the report, the worst first."""


# -------------------------------------------------------------------------------- parts of some tasks


@runtime_checkable
class Writes(Protocol):
    """A task whose targets are texts."""

    def target_texts(self, rows: datasets.Dataset) -> list[str]:
        """Targets of encoded rows."""
        ...


@runtime_checkable
class Corrupts(Protocol):
    """A task whose encoded rows can be made worse (`data/corruptions.py`)."""

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        """The columns of some encoded rows after a corruption."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A classifier that can tell which parts of its input an answer goes by."""

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch: ...

    def mistakes(self, predictions: Sequence[Prediction], references: References) -> dict[int, int | None]:
        """Rows with wrong answers as `report_examples` has them, and a class that each is wrongly given, if any."""
        ...

    def explain(self, model: nn.Module, batch: Batch, answer: int) -> Attribution:
        """Attribution of a class that the one row of the batch is given."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A task with a head on one vector a row, for probes and votes of nearest neighbours."""

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The representation that the head receives, [rows, width]."""
        ...

    def knn_predict(
        self, known: NDArray[np.float32], references: References, vectors: NDArray[np.float32]
    ) -> list[Prediction]:
        """Predictions for `vectors` [rows, width] by the references of the nearest `known` ones."""
        ...
