"""What happened: numbers, provenance and paths, as they stand in result.json.

The card, the report and the terminal table are renderings of these.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCHEMA = 1


@dataclass(frozen=True)
class Headline:
    """The number that a run is judged by."""

    metric: str
    value: float
    ci95: tuple[float, float]
    higher_is_better: bool
    stage: str
    split: str


@dataclass(frozen=True)
class Score:
    """Metrics of one set of predictions; `headline` names the one that decides."""

    values: dict[str, float]
    headline: str
    ci95: tuple[float, float]
    details: dict[str, Any] = field(default_factory=dict)
    """Task-specific tables, e.g. `per_class`, `confusion_matrix`, `class_names`; and `notes`, sentences
    that whoever reads the numbers has to be told."""


@dataclass(frozen=True)
class StageResult:
    """One stage of a run.

    `metrics[split]` and `baselines[name][split]` are scores; `data` describes each split (examples, skipped, source,
    fingerprint, class counts) and `weights` the checkpoint (name, revision, what was newly initialised).
    """

    stage: str
    name: str
    task: str
    metrics: dict[str, Score]
    baselines: dict[str, dict[str, Score]]
    seconds: float
    examples_per_second: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    weights: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    """Steps, epochs, best step, why training ended, micro-batch, precision."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """The stages that its weights went through before, the first one first: each one's name, task, recipe, checkpoint
    with revision, and fingerprints of its data."""
    robustness: dict[str, Any] = field(default_factory=dict)
    """Of the deciding split under `data.corruptions`: a `table` by kind and level, and means."""


@dataclass(frozen=True)
class ReportExample:
    """An example shown in the report, such as one of the most confident mistakes."""

    kind: Literal["image", "audio", "texts"]
    title: str
    caption: str
    content: bytes
    """PNG, FLAC, or several texts by name, as JSON, which are shown side by side."""


def lineage_after(stage: StageResult, recipe_sha256: str) -> list[dict[str, Any]]:
    """The past of weights that go on from a stage."""
    own = {
        "stage": stage.name,
        "task": stage.task,
        "recipe_sha256": recipe_sha256,
        "checkpoint": stage.weights.get("name"),
        "revision": stage.weights.get("commit") or stage.weights.get("revision"),
        "data": {split: about["fingerprint"] for split, about in stage.data.items()},
    }
    return [*stage.lineage, own]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    recipe_sha256: str
    headline: Headline
    stages: list[StageResult]
    versions: dict[str, str]
    hardware: dict[str, Any]
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write JSON; numbers that are not finite become null."""
        text = json.dumps(finite(dataclasses.asdict(self)), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """A tree of JSON values with null for every number that is not finite."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    return value


def stage_from_json(tree: dict[str, Any]) -> StageResult:
    """The inverse of `dataclasses.asdict`."""
    tree = dict(tree)
    tree["metrics"] = {k: score_from_json(v) for k, v in tree["metrics"].items()}
    tree["baselines"] = {
        name: {split: score_from_json(v) for split, v in by_split.items()}
        for name, by_split in tree["baselines"].items()
    }
    return StageResult(**tree)


def score_from_json(tree: dict[str, Any]) -> Score:
    low, high = tree["ci95"]
    return Score(**{**tree, "ci95": (low, high)})


def load_result(path: Path) -> RunResult:
    """Read result.json of a results folder."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    low, high = tree["headline"]["ci95"]
    return RunResult(
        recipe_sha256=tree["recipe_sha256"],
        headline=Headline(**{**tree["headline"], "ci95": (low, high)}),
        stages=[stage_from_json(s) for s in tree["stages"]],
        versions=tree["versions"],
        hardware=tree["hardware"],
        schema=tree["schema"],
    )


def show_duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [show_duration(s) for s in (0.42, 9.96, 100, 3599.6, 5000)]
    ['0.4 s', '10 s', '1 min 40 s', '1 h 0 min', '1 h 23 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
