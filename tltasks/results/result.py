"""A run's numbers, provenance and paths, as they stand in result.json.

The card, the report and the terminal table are renderings of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Base64Bytes, BeforeValidator, ConfigDict, TypeAdapter

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1

Number = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
"""A number that may not be finite, which JSON has no name for: null in a file."""
Interval = tuple[Number, Number]
"""Ends of a 95 % interval; NaN where it was not computed."""
UNKNOWN = (float("nan"), float("nan"))
DEFERRED = ConfigDict(defer_build=True)
"""Building what reads and writes takes a fifth of the time that a mistaken argument is answered in."""


@dataclass(frozen=True)
class Headline:
    """The number that a run is judged by."""

    metric: str
    value: Number
    ci95: Interval
    stage: str
    split: str


@dataclass(frozen=True)
class GroupScore:
    """The headline metric on a group of rows."""

    examples: int
    value: Number
    ci95: Interval = UNKNOWN
    difference_ci95: Interval | None = None
    """Of a baseline, as `Score` has it."""


@dataclass(frozen=True)
class Score:
    """Metrics of one set of predictions; `headline` names the one that decides."""

    values: dict[str, Number]
    headline: str
    ci95: Interval = UNKNOWN
    details: dict[str, object] = field(default_factory=dict)
    """Task-specific tables, e.g. `per_class`, `confusion_matrix`, `class_names`."""
    notes: list[str] = field(default_factory=list)
    """Sentences that whoever reads the numbers has to be told."""
    difference_ci95: Interval | None = None
    """Of a baseline: the model's headline metric less the baseline's on the same rows."""
    groups: dict[str, dict[str, GroupScore]] = field(default_factory=dict)
    """Scores of groups of rows by what they are grouped by, such as `language`, the largest first."""

    @property
    def value(self) -> float:
        """The headline metric."""
        return self.values[self.headline]


@dataclass(frozen=True)
class Provenance:
    """Origin of the weights of a stage's model, and what was made of them."""

    name: str
    """As the recipe writes it."""
    revision: str = "main"
    commit: str | None = None
    """Of the Hub repository, where it is known."""
    model_type: str = ""
    """Architecture, by its name in transformers."""
    start: Literal["checkpoint", "previous"] = "checkpoint"
    adapter: bool = False
    """Whether the run saved an adapter alone."""
    newly_initialised: list[str] = field(default_factory=list)
    """Weights that the checkpoint did not have; `all` for random ones."""
    interpolated: list[str] = field(default_factory=list)
    """Position tables that were resampled to another size of input."""
    left: dict[str, int] = field(default_factory=dict)
    """Tensors of the checkpoint that the model has no place for, counted by module."""
    loaded_share: float | None = None
    """Of the backbone's weights."""
    settings: dict[str, object] = field(default_factory=dict)
    """What a task adds, such as `prompt`, `objective` or `decoding`."""
    saved_difference: float | None = None
    """What saving changed in the outputs of a few rows, as a share of the largest: by merging an adapter, and between
    the weights that were scored and those loaded again."""
    adapter_effect: float | None = None
    """What the adapter changes in them, which `saved_difference` is judged by."""


@dataclass(frozen=True)
class Leaks:
    """Examples of a split that have near-duplicates among the rows that the model was trained on."""

    examples: int
    by_stage: dict[str, int] = field(default_factory=dict)
    """Examples by the stage that was trained on their near-duplicates."""
    dropped: bool = False
    """These were left out of training."""
    rows: dict[str, str] = field(default_factory=dict)
    """Of the first hundred examples what each is like, both by name."""
    value: Number | None = None
    """The headline metric on the other examples; None where all are alike, or nothing leaks."""
    ci95: Interval | None = None
    difference_ci95: Interval | None = None
    """Of the metric on all examples less that on the others."""


@dataclass(frozen=True)
class SplitSummary:
    """The examples of a split that were used."""

    examples: int
    skipped: int = 0
    skipped_rows: dict[str, str] = field(default_factory=dict)
    """Reasons by row, of the first hundred."""
    source: str = ""
    fingerprint: str = ""
    """Digest of the encoded rows."""
    checks: dict[str, float] = field(default_factory=dict)
    """Oddities that the task counted."""
    notes: list[str] = field(default_factory=list)
    """Sentences on these rows that whoever reads the numbers has to be told."""
    leaks: Leaks | None = None
    """None where nothing was trained on, or nobody asked."""


@dataclass(frozen=True)
class Interpolation:
    """The headline metric at weights between those before training (α = 0) and those after it (α = 1)."""

    alpha: float
    """The one that was chosen."""
    metric: str
    alphas: list[float]
    by_split: dict[str, list[Number]]


@dataclass(frozen=True)
class TrainingSummary:
    """Training of a stage. A probe has no epochs and batches, and its steps are iterations."""

    steps: int
    ended: str
    """Why training ended."""
    seconds: float
    method: str
    precision: str
    base_dtype: str | None = None
    """Format in which weights that were not trained were held meanwhile; None where there were none."""
    base_difference: float | None = None
    """Share of the largest output by which the model answers otherwise beside quantised weights, with which it was
    trained, than with the checkpoint's own, with which it is scored and saved; of eight rows, None without any."""
    epochs: float | None = None
    best_step: int | None = None
    best_value: Number | None = None
    batch_size: int | None = None
    micro_batch: int | str | None = None
    halvings: int = 0
    """How often micro-batches were halved because memory did not suffice."""
    doublings: int = 0
    """How often the usual micro-batch was doubled, as that was found to be faster on the device."""
    pass_rows: int | None = None
    """Most rows of a forward pass of one process."""
    learning_rate: float | None = None
    keep: str = "best"
    l2: float | None = None
    """Of a probe: weight of the penalty that was chosen."""
    interpolation: Interpolation | None = None
    expected_memory: dict[str, int] = field(default_factory=dict)
    """Bytes that steps were expected to need at once, by what for; empty where that was not told."""
    peak_memory_bytes: int | None = None
    """The most memory in use during its steps; None where the system does not tell."""


@dataclass(frozen=True)
class Ancestor:
    """A stage that weights went through before."""

    stage: str
    task: str
    recipe_sha256: str
    checkpoint: str | None
    revision: str | None
    data: dict[str, str]
    """Fingerprints by split."""


@dataclass(frozen=True)
class CorruptedScore:
    """The headline metric on rows that were corrupted in one way; `difference` is to the same rows as they are."""

    kind: str
    level: float
    value: Number
    ci95: Interval
    difference: Number
    difference_ci95: Interval


@dataclass(frozen=True)
class Robustness:
    """The headline metric of the deciding split under `data.corruptions`."""

    split: str
    rows: int
    metric: str
    level: str
    """What the levels are."""
    clean: Number
    clean_ci95: Interval
    table: list[CorruptedScore]
    mean_by_kind: dict[str, Number]
    mean: Number


@dataclass(frozen=True)
class StageResult:
    """One stage of a run: `metrics[split]` and `baselines[name][split]` are scores."""

    __pydantic_config__: ClassVar = DEFERRED

    kind: str
    """The recipe's `stage`, such as `transfer`."""
    name: str
    task: str
    higher_is_better: bool
    """Of the headline metric of all its scores."""
    metrics: dict[str, Score]
    baselines: dict[str, dict[str, Score]]
    seconds: float
    """Evaluation included."""
    examples_per_second: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    weights: Provenance
    data: dict[str, SplitSummary]
    training: TrainingSummary | None = None
    """None for a stage that trains nothing."""
    lineage: list[Ancestor] = field(default_factory=list)
    """The stages that its weights went through before, the first one first."""
    robustness: Robustness | None = None
    baseline_names: dict[str, str] = field(default_factory=dict)
    """Names in a sentence of baselines whose own do not say what they are."""

    def to_json(self) -> str:
        return _STAGE.dump_json(self, indent=1, warnings=False).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> StageResult:
        """Raises ValueError for a text that is no stage's result."""
        return _STAGE.validate_json(text)


@dataclass(frozen=True)
class Attribution:
    """Which parts of an example its answer goes by."""

    content: Base64Bytes = b""
    """PNG; empty where there is none."""
    text: str = ""
    """What is to be said beside it, or why it could not be computed."""


@dataclass(frozen=True)
class ReportExample:
    """An example shown in the report, such as one of the most confident mistakes."""

    kind: Literal["image", "audio", "texts"]
    title: str
    caption: str
    content: Base64Bytes
    """PNG, FLAC, or several texts by name, as JSON, which are shown side by side."""
    twin: bool = False
    """One of two that are nearly the same, an example and then a row trained on."""
    aligned: list[tuple[str, str]] = field(default_factory=list)
    """Stretches of what was said and of what was heard in their place, equal where there is no error."""
    attribution: Attribution = Attribution()


LONG = 15 * 60
"""Seconds of training from which a dry run tells how to shorten it."""


@dataclass(frozen=True)
class StageMeasurement:
    """A dry run's findings on a stage."""

    stage: str
    splits: dict[str, tuple[int, int]]
    """Examples that can be read and that cannot, by split."""
    trainable_parameters: int
    total_parameters: int
    memory_bytes: int
    steps: int | None = None
    """None where the loop does not train."""
    seconds: float | None = None
    """Of all steps, by one of them."""
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes that steps are expected to need at once, by what for; empty where that cannot be told."""
    waiting: float = 0.0
    """Share of the time measured in which other work had the processor."""
    shorter: str = ""
    """`key=value` with which a long training is a short one."""


@dataclass(frozen=True)
class Rescored:
    """An export, or the trained model, in one line of a table."""

    name: str
    metric: str
    value: Number
    ci95: Interval
    difference_ci95: Interval | None
    """Of its metric less that of the trained model, on the same rows; None of that itself."""
    rows: int
    same_answers: int
    answers_per_second: float
    memory_bytes: int
    disk_bytes: int


def lineage_after(stage: StageResult, recipe_sha256: str) -> list[Ancestor]:
    """The past of weights that go on from a stage."""
    own = Ancestor(
        stage=stage.name,
        task=stage.task,
        recipe_sha256=recipe_sha256,
        checkpoint=stage.weights.name,
        revision=stage.weights.commit or stage.weights.revision,
        data={split: about.fingerprint for split, about in stage.data.items()},
    )
    return [*stage.lineage, own]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    __pydantic_config__: ClassVar = DEFERRED

    recipe_sha256: str
    headline: Headline
    stages: list[StageResult]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    schema: int = SCHEMA

    @property
    def best(self) -> StageResult:
        """The stage that the run is judged by, whose weights it saves."""
        return next(stage for stage in self.stages if stage.name == self.headline.stage)

    @property
    def score(self) -> Score:
        """The best stage's on the headline's split."""
        return self.best.metrics[self.headline.split]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each number: `stage, split, model, metric, value, low, high`, of the model and of its baselines.

        `low` and `high` are the ends of the 95 % interval, which the metric that decides has.
        """
        import pandas as pd

        columns = ("stage", "split", "model", "metric", "value", "low", "high")
        rows = [
            (stage.name, split, model, metric, value, *(score.ci95 if metric == score.headline else UNKNOWN))
            for stage in self.stages
            for model, by_split in {"this model": stage.metrics, **stage.baselines}.items()
            for split, score in by_split.items()
            for metric, value in score.values.items()
        ]
        return pd.DataFrame(rows, columns=columns)

    def _repr_html_(self) -> str:
        """The deciding metric of each stage by split, with its interval, beside its baselines; for notebooks."""
        import pandas as pd

        rows = [
            {
                "stage": stage.name,
                "split": split,
                "metric": score.headline,
                "value": f"{score.value:.3f} [{score.ci95[0]:.3f}, {score.ci95[1]:.3f}]",
                **{name: f"{theirs[split].value:.3f}" for name, theirs in stage.baselines.items() if split in theirs},
            }
            for stage in self.stages
            for split, score in stage.metrics.items()
        ]
        table: str = pd.DataFrame(rows).to_html(index=False, na_rep="", border=0)
        return table

    def save(self, path: Path) -> None:
        """Write JSON; numbers that are not finite become null."""
        path.write_bytes(_RUN.dump_json(self, indent=1, warnings=False) + b"\n")


_STAGE = TypeAdapter(StageResult)
_RUN = TypeAdapter(RunResult)
EXAMPLES = TypeAdapter(list[ReportExample], config=DEFERRED)
"""Examples as JSON, and back."""


def load_result(path: Path) -> RunResult:
    """Read result.json of a results folder. Raises ValueError for a file that holds no result."""
    return _RUN.validate_json(path.read_bytes())
