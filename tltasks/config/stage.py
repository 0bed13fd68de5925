"""A stage: what a recipe says of it, for every task; the table of kinds; and a stage as it is planned.

A kind is a row: where its weights come from, what happens to the head, what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Generic, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import TypeVar

from tltasks.config.adaptation import Adapt, AdaptMethod, Full, _method_by_name
from tltasks.config.data import Data
from tltasks.config.model import Checkpoint, Model
from tltasks.config.section import Conflict, FileName, Name, Named, PositiveFloat, PositiveInt, Section, Share


class L2Sp(Section):
    """Decay of weights to where they started from. Source: Li et al., https://arxiv.org/abs/1802.01483."""

    alpha: PositiveFloat = 0.1
    """Half of it times the squared distance from the checkpoint's weights is added to the loss."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Half of it times the squared weights of a new head is added to the loss."""


class Interpolate(Section):
    """Weights between those before and after the stage, WiSE-FT: Wortsman et al., https://arxiv.org/abs/2109.01903."""

    alphas: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = [n / 10 for n in range(11)]
    """Shares of the way that may be gone; `validation` chooses, and one alone needs none."""


def _interpolate_or_not(value: object) -> object:
    """`interpolate: true` is `interpolate: {}`, and `false` is not to."""
    return {True: {}, False: None}.get(value, value) if isinstance(value, bool) else value


class Metric(Named):
    """A metric of the evaluate library, beside the task's own scores."""

    name: Name
    """`evaluate/NAME`, or a folder with a script of its own name (NAME/NAME.py), relative to the recipe."""
    revision: str | None = None
    """Branch, tag or commit of the metric's repository."""
    trust_remote_code: bool = False
    """Run the script of the Hub that the metric is. One in a folder runs in any case."""
    options: dict[str, object] = {}
    """Further arguments of its `compute`, such as `average: macro`."""


def _metric_by_name(value: object) -> object:
    """`metrics: [evaluate/f1]` is `metrics: [{name: evaluate/f1}]`."""
    return {"name": value} if isinstance(value, str) else value


USUAL_STEPS = 400
"""Optimiser steps that epochs are chosen for, between 2 and 40, where a recipe names neither."""


def usual_epochs(rows: int, batch_size: int) -> int:
    """Passes over so many rows that make about `USUAL_STEPS` steps."""
    return min(40, max(2, round(USUAL_STEPS * batch_size / max(1, rows))))


OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "sgd", "muon"]
StageName = Literal["finetune", "transfer", "pretrain", "probe", "zero_shot"]


class Stage(Section):
    """One stage; a task's own has the task's classes of `model` and `data`, and keys of its own."""

    stage: StageName
    """finetune keeps the head; transfer puts a new head on the checkpoint; pretrain starts from random weights
    (or goes on from a checkpoint with `start: previous`); probe fits a new linear head on the features of the frozen
    checkpoint, computed once; zero_shot evaluates the untouched checkpoint."""
    name: FileName | None = None
    """Name in results and file names. Unset: the stage's, numbered where it repeats."""
    start: Literal["checkpoint", "previous"] = "checkpoint"
    """Weights to start from: the recipe's checkpoint, or what the stage before has trained."""
    adapt: Annotated[Adapt, BeforeValidator(_method_by_name, json_schema_input_type=AdaptMethod | Adapt)] = Adapt(
        full=Full()
    )
    base_dtype: Literal["auto", "fp32", "bf16", "fp16", "int8", "nf4"] = "auto"
    """Format in which weights that are not trained are held; results and files are of the checkpoint's own. auto:
    matrices in the format that LoRA, AdaLoRA and (IA)³ compute in, which changes no number; else fp32. int8 and nf4
    (QLoRA) hold matrices in 8 and in 4 bits, by bitsandbytes (docs/adapting.md)."""
    freeze: list[str] = []
    """Module name patterns (shell wildcards) whose weights stay as they are, e.g. `vit.embeddings*`."""
    batch_norm: Literal["auto", "frozen", "batch"] = "auto"
    """Statistics of batch normalisation: kept, or updated by each micro-batch (which makes results depend on its
    size). auto: frozen from a checkpoint, batch from random weights."""
    epochs: PositiveFloat | None = None
    """Passes over the rows trained on. Unset, and `steps` too: as many as make about 400 steps, from 2 to 40."""
    steps: PositiveInt | None = None
    """Optimiser steps, instead of `epochs`."""
    batch_size: PositiveInt = 32
    """Examples per optimiser step, over all devices together."""
    micro_batch: Literal["auto"] | PositiveInt = "auto"
    """Examples per forward pass on a device: speed and memory, never results. auto: on an accelerator as many as are
    found to be fastest within its memory, on a CPU as many as keep it busy; halved where memory does not suffice."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile: pays on long runs on an accelerator."""
    learning_rate: PositiveFloat | None = None
    """Highest rate of the schedule. Unset: what is usual for the task with AdamW, 1e-3 or 2e-3 (T5), of `adapt: full` a
    twentieth; pretraining and other optimisers need one."""
    optimizer: OptimizerName = "adamw"
    """adamw_8bit holds AdamW's state in 8 bits (needs bitsandbytes); adafactor holds a row and a column of it; muon is
    for matrices within the model, with AdamW for all else (docs/adapting.md)."""
    momentum: Share = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of matrices; biases and normalisation weights are not decayed."""
    schedule: Literal["cosine", "linear", "constant", "exponential"] = "cosine"
    """How the rate falls after warm-up; exponential rises a millionfold to `learning_rate`, as range tests do."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises from zero."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate from each block to the one below it. Source: Clark et al.,
    https://arxiv.org/abs/2003.10555."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Norm to which a larger gradient of a step is cut; null cuts none."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights that is evaluated and saved."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations on `validation`. Unset: once an epoch."""
    evaluate_rows: PositiveInt | None = None
    """Rows of `validation`, drawn with `seed`, that evaluations during training look at. Unset: all."""
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations without improvement."""
    keep: Literal["best", "last"] = "best"
    """Weights that the stage ends with: the best by the headline metric on `validation`, or the last."""
    metrics: list[Annotated[Metric, BeforeValidator(_metric_by_name, json_schema_input_type=Name | Metric)]] = []
    """Further scores of the stage's predictions, by the evaluate library: names, or mappings with more keys."""
    l2_sp: L2Sp | None = None
    """Decay to the weights that the stage starts with, in place of `weight_decay`."""
    unfreeze_epochs: PositiveFloat | None = None
    """Gradual unfreezing: epochs after which the next block is trained too, from the head down. Source: Howard and
    Ruder, https://arxiv.org/abs/1801.06146."""
    interpolate: Annotated[
        Interpolate | None, BeforeValidator(_interpolate_or_not, json_schema_input_type=bool | Interpolate | None)
    ] = None
    """finetune: go back part of the way from the trained weights to those that the stage began with."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints for `--resume`. Unset: at each evaluation."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints that are kept for `--resume`, the latest ones."""
    l2: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """probe: weight of the penalty on the head's squared weights, or several, of which `validation` chooses. Unset:
    powers of ten from 1e-6 to 1 where there is a validation split, otherwise 1e-3."""
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: Model | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: Data | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""

    @property
    def trains(self) -> bool:
        """True if anything is fitted to a training split."""
        return self.stage != "zero_shot"

    @property
    def loops(self) -> bool:
        """True if the training loop runs."""
        return self.stage not in {"probe", "zero_shot"}

    @property
    def draws_rows(self) -> bool:
        """True if epochs may have some rows more often than others."""
        return self.loops

    @property
    def rows_per_loss(self) -> int | None:
        """Rows of a step whose loss is a joint one, so that one forward pass takes them whatever the devices."""
        return None

    @property
    def groups_lengths(self) -> bool:
        """True if rows alike in length share a step."""
        return False

    @property
    def publishes_whole(self) -> bool:
        """True if an adapter is always merged: where weights are mixed, or an encoder is handed on."""
        return self.interpolate is not None

    @property
    def effective_keys(self) -> set[str]:
        """The keys that this stage heeds."""
        if not self.loops:
            return {
                "stage",
                "name",
                "start",
                "task",
                "model",
                "data",
                "metrics",
                "metric",
                *({"l2"} if self.stage == "probe" else set()),
            }
        useless = {"l2", *({"momentum"} if self.optimizer != "sgd" else ()), *({"weight_decay"} if self.l2_sp else ())}
        return set(type(self).model_fields) - useless

    @property
    def is_usual(self) -> bool:
        """There are usual values for what is unset: the checkpoint is adapted with AdamW."""
        return self.stage in {"finetune", "transfer"} and self.optimizer in {"adamw", "adamw_8bit"}

    def epochs_for(self, rows: int) -> float:
        """Passes over so many rows: those asked for, or as many as make about `USUAL_STEPS` steps."""
        return self.epochs or usual_epochs(rows, self.batch_size)

    def conflicts(self) -> Iterator[Conflict]:
        given = self.model_fields_set
        if not self.loops:
            extra = given - self.effective_keys
            why = "zero_shot trains nothing" if self.stage == "zero_shot" else "probe fits the head in one go"
            if extra:
                yield Conflict(f"{why}, so these keys have no effect: {', '.join(sorted(extra))}")
        else:
            if "l2" in given:
                yield Conflict("`l2` is a key of `stage: probe`; the loop has `weight_decay`")
            if self.epochs is None and self.steps is None and not self.is_usual:
                yield Conflict("needs `epochs` or `steps`")
            if self.epochs is not None and self.steps is not None:
                yield Conflict("has both `epochs` and `steps`; keep one")
            if self.learning_rate is None and not self.is_usual:
                yield Conflict(
                    "needs `learning_rate` (a start: 5e-4 for lora, 5e-5 for full with adamw, 1e-3 with sgd)"
                )
        if self.loops and "momentum" in given and self.optimizer != "sgd":
            yield Conflict("`momentum` is a key of `optimizer: sgd`")
        if self.micro_batch != "auto" and self.micro_batch > self.batch_size:
            yield Conflict(f"`micro_batch` {self.micro_batch} exceeds `batch_size` {self.batch_size}")
        if self.adapt.method != "full" and self.freeze:
            yield Conflict(f"`freeze` has no effect with `adapt: {self.adapt.method}`, which trains nothing else")
        if self.loops:
            yield from self._of_base_dtype()
        if self.l2_sp and "weight_decay" in given:
            yield Conflict("`l2_sp` takes the place of `weight_decay`; keep one")
        if self.l2_sp and self.adapt.method != "full":
            yield Conflict(f"`l2_sp` is of all weights; `adapt: {self.adapt.method}` leaves the checkpoint's alone")
        if self.l2_sp and self.stage == "pretrain" and self.start == "checkpoint":
            yield Conflict("`l2_sp` holds weights to a checkpoint's, and pretrain starts from random ones")
        if self.unfreeze_epochs and self.adapt.method == "head":
            yield Conflict("`unfreeze_epochs` has nothing to unfreeze with `adapt: head`")
        if self.adapt.is_virtual and self.start == "previous":
            yield Conflict(
                f"`adapt: {self.adapt.method}` starts from a checkpoint of the Hub, of which it is an adapter"
            )
        if self.adapt.is_virtual and self.gradient_checkpointing:
            yield Conflict(f"`adapt: {self.adapt.method}` does not go with `gradient_checkpointing`")
        if self.ema and self.adapt.adalora:
            yield Conflict("`ema` averages over ranks that `adapt: adalora` takes away; leave one of them out")
        if self.interpolate and self.stage != "finetune":
            yield Conflict(
                f"`interpolate` is a key of `stage: finetune`: {self.stage} begins with a head that is random"
            )
        if self.stage == "pretrain" and self.start == "checkpoint" and self.adapt.method != "full":
            yield Conflict(f"pretrain from random weights trains all of them; `adapt: {self.adapt.method}` would not")

    def _of_base_dtype(self) -> Iterator[Conflict]:
        dtype = self.base_dtype
        if dtype in {"auto", "fp32"}:
            return
        if self.adapt.method == "full" and not self.freeze:
            yield Conflict(f"`base_dtype: {dtype}` has no effect with `adapt: full`, which trains every weight in fp32")
        elif self.adapt.is_peft and not self.adapt.stands_alone:
            yield Conflict(
                f"`base_dtype: {dtype}` would round what `adapt.{self.adapt.method}.init` takes out of the weights; "
                "leave one of them out"
            )


class LengthStage(Stage):
    """A stage of a task whose rows differ in length."""

    group_by_length: bool = False
    """Have rows alike in length share a step: less padding and so less time, but rows that are not drawn independently
    of each other. Up to 50 steps' rows, drawn at random, are sorted together."""

    @property
    def groups_lengths(self) -> bool:
        return self.group_by_length


ClassMetric = Literal[
    "accuracy", "macro_f1", "balanced_accuracy", "mean_average_precision", "micro_f1", "subset_accuracy", "auroc"
]


class ClassStage(Stage):
    """A stage of a task that gives each row a class."""

    label_smoothing: Share = 0.0
    """Source: Szegedy et al., https://arxiv.org/abs/1512.00567."""
    class_weights: Literal["auto"] | dict[Name, PositiveFloat] | None = None
    """Weight of each row in the loss by its class; classes that are not named have 1. auto: rows / (classes × rows of
    the class), so that all classes weigh alike (King and Zeng, https://doi.org/10.1093/oxfordjournals.pan.a004868).
    Where rows have any number of classes: of having the class, beside 1 for not having it; auto: rows without the class
    / rows with it."""
    focal: PositiveFloat | None = None
    """Exponent γ of the factor (1 − p)^γ on each row's loss, which takes weight from rows that are right already.
    Source: Lin et al., https://arxiv.org/abs/1708.02002."""
    metric: ClassMetric | None = None
    """Metric that decides which weights are best, and that reports, cards and experiments compare by: accuracy (unset),
    macro_f1, balanced_accuracy or auroc. Where rows have any number of classes, mean_average_precision (unset),
    micro_f1, macro_f1, subset_accuracy or auroc."""
    sampling: Literal["rows", "balanced"] = "rows"
    """balanced: an epoch has as many rows as ever, and of each class alike; those of a rare class come again."""

    @property
    def draws_rows(self) -> bool:
        return super().draws_rows and self.sampling == "rows"

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.loops and self.class_weights == "auto" and self.sampling == "balanced":
            yield Conflict("`class_weights: auto` and `sampling: balanced` each make up for rare classes; keep one")


class UnlabelledStage(Stage):
    """A stage that trains an encoder for later stages, with an objective that needs no labels."""

    @property
    def publishes_whole(self) -> bool:
        return True


class JointStage(UnlabelledStage):
    """A stage whose loss is over several rows at once."""

    loss_group: PositiveInt | None = None
    """Rows that one loss is over; they share a forward pass, on however many devices. Part of the experiment, unlike
    `micro_batch`, and a divisor of `batch_size`, which it is when unset."""

    @property
    def rows_per_loss(self) -> int | None:
        return self.loss_group or self.batch_size

    @property
    def effective_keys(self) -> set[str]:
        return super().effective_keys - {"micro_batch"}

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.loops and "micro_batch" in self.model_fields_set:
            yield Conflict(
                "`micro_batch` has no effect: a forward pass takes a `loss_group`, whose rows share their loss"
            )
        if self.loops and self.loss_group is not None and self.batch_size % self.loss_group:
            yield Conflict(f"`batch_size` {self.batch_size} is not a multiple of `loss_group` {self.loss_group}")


# ------------------------------------------------------------------------------------------- planned


@dataclass(frozen=True)
class StageKind:
    """How a stage begins."""

    weights: Literal["checkpoint", "random"]
    head: Literal["kept", "new"]
    trains: bool
    cached: bool = False
    """Whether the head is fitted on features that the frozen rest gives once, rather than by the loop."""


STAGES: dict[StageName, StageKind] = {
    "pretrain": StageKind(weights="random", head="new", trains=True),
    "finetune": StageKind(weights="checkpoint", head="kept", trains=True),
    "transfer": StageKind(weights="checkpoint", head="new", trains=True),
    "probe": StageKind(weights="checkpoint", head="new", trains=True, cached=True),
    "zero_shot": StageKind(weights="checkpoint", head="kept", trains=False),
}

ModelT = TypeVar("ModelT", bound=Model, default=Model, covariant=True)
DataT = TypeVar("DataT", bound=Data, default=Data, covariant=True)
StageT = TypeVar("StageT", bound=Stage, default=Stage, covariant=True)


@dataclass(frozen=True)
class StagePlan(Generic[ModelT, DataT, StageT]):
    """One stage with everything it needs, whether said by the stage or by the recipe.

    An adapter names the sections of its task: `StagePlan[ImageModel, ImageData, ImageStage]`.
    """

    index: int
    name: str
    kind: StageKind
    task: str
    model: ModelT
    """Local folders and files are absolute paths, here and in `data`."""
    data: DataT
    stage: StageT
    display_name: str = ""
    """Name of the model as the recipe writes it."""
    may_publish_adapter: bool = False
    """Whether an adapter can stand alone, as far as the recipe tells: for a base that everyone can fetch, as it is."""

    @property
    def continues(self) -> bool:
        """True if the stage goes on from the one before."""
        return self.stage.start == "previous"

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the recipe has the stage start from."""
        model = self.model
        return Checkpoint(model.name, model.revision, model.trust_remote_code, display_name=self.display_name)
