"""report.html: one self-contained page from which a person can tell whether the model is good."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from tltasks.reports import charts
from tltasks.results.comparison import Change, changes
from tltasks.results.result import (
    CorruptedScore,
    Headline,
    ReportExample,
    RunResult,
    Score,
    StageResult,
    TrainingSummary,
    show_duration,
)

LARGEST_MATRIX = 30
"""Classes up to which a confusion matrix is a table that can be read."""
SHOWN_ROWS = 20
"""Confused pairs, and classes of a long table, that are shown at once."""
MEDIA_TYPES = {"image": "image/png", "audio": "audio/flac", "svg": "image/svg+xml"}
BASELINE_NAMES = {
    "mean_patch": "predicting flat patches",
    "majority_class": "the majority class",
    "checkpoint": "the untouched checkpoint",
    "not_interpolated": "the fine-tuned weights, not interpolated",
    "checkpoint_knn": "nearest neighbours in the untouched checkpoint's features",
}
Rows = list[dict[str, Any]]


def write_report(
    path: Path, result: RunResult, recipe_text: str, metrics: Rows, report_examples: list[ReportExample]
) -> None:
    """Write the page; `metrics` are the rows of metrics.jsonl. The same arguments give the same bytes."""
    best = result.best
    text = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            result=result,
            headline=result.headline,
            best=best,
            comparisons=compare(result.headline, best),
            intervals_figure=_intervals_figure(result.headline, best),
            warnings=_warnings(result.headline, best),
            errors=describe_errors(result.headline.split, result.score.details),
            examples=[(example, show_example(example)) for example in report_examples],
            stages=[
                StageView(
                    stage,
                    _metric_columns(stage),
                    _facts(stage),
                    _stage_figures(stage, metrics),
                    _other_errors(stage, best, result),
                    list(changes(result, stage)),
                )
                for stage in result.stages
            ],
            shown_rows=SHOWN_ROWS,
            recipe_text=recipe_text,
            hardware=[(words(name), _hardware_value(name, value)) for name, value in result.hardware.items()],
        )
    )
    path.write_text(text, encoding="utf-8")


def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates of pages, of further `folders` too, with the filters by which they show numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, *folders]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": show_number,
        "interval": show_interval,
        "signed": show_signed,
        "words": words,
        "baseline": baseline_name,
        "data_uri": data_uri,
        "duration": show_duration,
    }
    return environment


# ----------------------------------------------------------------------------------------- headline


@dataclass(frozen=True)
class Comparison:
    """How the model stands beside a baseline on the same rows."""

    verdict: str
    """`better`, `worse` or `unclear`."""
    sentence: str


def compare(headline: Headline, stage: StageResult) -> list[Comparison]:
    """One sentence for each baseline of the headline's split, which hides nothing that speaks against the model."""
    return [
        _compare(headline, name, by_split[headline.split])
        for name, by_split in stage.baselines.items()
        if headline.split in by_split
    ]


def _compare(headline: Headline, name: str, baseline: Score) -> Comparison:
    other = baseline_name(name)
    sign = 1 if headline.higher_is_better else -1
    gain = sign * (headline.value - baseline.values[headline.metric])
    interval = known_interval(baseline.difference_ci95)
    if interval is None:
        return Comparison(
            "unclear", f"{show_signed(gain)} against {other}, without an interval: chance is not ruled out"
        )
    low, high = sorted(sign * end for end in interval)
    if low > 0:
        return Comparison(
            "better", f"better than {other} by {gain:.2f} (95\u00a0% interval {show_interval((low, high), 2)})"
        )
    if high < 0:
        worse = show_interval((-high, -low), 2)
        return Comparison("worse", f"worse than {other} by {-gain:.2f} (95\u00a0% interval {worse})")
    return Comparison(
        "unclear",
        f"not shown to be better than {other}: the difference of {show_signed(gain, 2)} has a 95\u00a0% interval "
        f"of {show_interval((low, high), 2)}, which contains zero",
    )


def _warnings(headline: Headline, stage: StageResult) -> list[str]:
    found = []
    if headline.split == "validation" and stage.training is not None and stage.training.best_step is not None:
        found.append("Training was steered by this very split, so the number may be optimistic; name a test split.")
    if not any(headline.split in by_split for by_split in stage.baselines.values()):
        found.append("There is no baseline to compare with.")
    found += stage.metrics[headline.split].notes
    skipped = stage.data[headline.split].skipped if headline.split in stage.data else 0
    if skipped:
        found.append(f"{skipped} examples of this split could not be read and do not count.")
    return found


def _intervals_figure(headline: Headline, stage: StageResult) -> str | None:
    arms = [("this model", headline.value, known_interval(headline.ci95))]
    for name, by_split in stage.baselines.items():
        if headline.split in by_split:
            score = by_split[headline.split]
            arms.append((words(name), score.values[headline.metric], known_interval(score.ci95)))
    return charts.draw_intervals(words(headline.metric), arms) if len(arms) > 1 else None


# ------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Errors:
    """Where a classifier errs on one split; empty parts where the score holds no such table."""

    split: str
    class_names: list[str]
    cells: list[list[tuple[int, str, str]]]
    """Count, colour of the cell and of its text, by true class and predicted class."""
    figure: str | None
    """The matrix as SVG, where it has too many classes for `cells`."""
    confused: list[tuple[str, str, int, float]]
    """True class, predicted class, examples, and share of the true class; the most frequent first."""
    per_class: Rows
    absent: int
    """Classes without an example in this split."""


def describe_errors(split: str, details: dict[str, Any]) -> Errors | None:
    """The tables behind a classifier's score, or None for a score without any."""
    per_class = [row for row in details.get("per_class", []) if row["support"]]
    per_class.sort(key=lambda row: (row["f1"], row["class"]))
    absent = len(details.get("per_class", [])) - len(per_class)
    if "confusion_matrix" not in details:
        return Errors(split, [], [], None, [], per_class, absent) if per_class else None
    counts = np.array(details["confusion_matrix"], dtype=np.int64)
    # A kept head may know a thousand classes of which the data shows ten.
    occurring = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts = counts[np.ix_(occurring, occurring)]
    names = [str(details["class_names"][i]) for i in occurring]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(names) <= LARGEST_MATRIX:
        cells = [
            [_cell(int(n), float(s)) for n, s in zip(*both, strict=True)] for both in zip(counts, shares, strict=True)
        ]
        return Errors(split, names, cells, None, [], per_class, absent)
    confused = _most_confused(counts, shares, names)
    return Errors(split, names, [], charts.draw_matrix(shares), confused, per_class, absent)


def _cell(count: int, share: float) -> tuple[int, str, str]:
    # Square-rooted colours, so that a few mistakes in a hundred can be seen at all.
    depth = math.sqrt(share)
    channels = [round(255 + depth * (full - 255)) for full in (29, 95, 180)]
    return count, "#" + "".join(f"{c:02x}" for c in channels), "#ffffff" if depth > 0.6 else "#111827"


def _most_confused(
    counts: NDArray[np.int64], shares: NDArray[np.float64], names: list[str]
) -> list[tuple[str, str, int, float]]:
    mistakes = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:SHOWN_ROWS]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [(names[i], names[j], int(counts[i, j]), float(shares[i, j])) for i, j in pairs if mistakes[i, j]]


def _other_errors(stage: StageResult, best: StageResult, result: RunResult) -> list[Errors]:
    found = [
        describe_errors(split, score.details)
        for split, score in stage.metrics.items()
        if (stage.name, split) != (best.name, result.headline.split)
    ]
    return [errors for errors in found if errors is not None]


# ------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class StageView:
    """A stage beside what the page derives from it."""

    result: StageResult
    columns: list[str]
    facts: list[tuple[str, str]]
    figures: list[tuple[str, str, bool]]
    """What it shows, SVG, and whether it is a small one."""
    other_errors: list[Errors]
    changes: list[Change]

    @property
    def corrupted(self) -> dict[str, list[CorruptedScore]]:
        """Scores on corrupted rows by kind, each at the levels in their order."""
        by_kind: dict[str, list[CorruptedScore]] = {}
        for line in self.result.robustness.table if self.result.robustness else []:
            by_kind.setdefault(line.kind, []).append(line)
        return by_kind

    @property
    def levels(self) -> list[float]:
        return list(dict.fromkeys(line.level for lines in self.corrupted.values() for line in lines))


def _metric_columns(stage: StageResult) -> list[str]:
    """Every metric of the stage, the deciding one first."""
    names: dict[str, None] = {}
    for score in stage.metrics.values():
        names |= dict.fromkeys([score.headline, *score.values])
    return list(names)


def _facts(stage: StageResult) -> list[tuple[str, str]]:
    training = stage.training
    share = stage.trainable_parameters / max(stage.total_parameters, 1)
    facts = [
        ("trained", f"{stage.trainable_parameters:,} of {stage.total_parameters:,} parameters ({share:.2%})"),
        ("time", show_duration(stage.seconds)),
        ("peak memory", f"{stage.peak_memory_bytes / 2**30:.2f} GiB"),
        ("task", stage.task),
    ]
    if training is not None:
        facts[2:2] = [
            ("training alone", f"{show_duration(training.seconds)}, {stage.examples_per_second:,.1f} examples/s")
        ]
        if training.l2 is not None:
            facts.append(("method", f"{training.method} on cached features, l2 {training.l2:g}"))
            facts.append(("ended", f"{training.ended}, after {training.steps:,} iterations"))
        else:
            facts += [
                ("ended", f"{training.ended}, at step {training.steps:,} (epoch {training.epochs:g})"),
                ("method", f"{training.method}, learning rate {training.learning_rate:g}"),
                ("batch", f"{training.batch_size} examples, in micro-batches of {_micro_batch(training)}"),
            ]
        if (curve := training.interpolation) is not None:
            by = "chosen on validation" if "validation" in curve.by_split else "as the recipe says"
            facts.append(("interpolated", f"to α = {curve.alpha:g} of the way from the start, {by}"))
        facts.append(("precision", training.precision))
        if training.best_step is not None:
            facts.append(("best on validation", f"step {training.best_step:,}"))
    weights = vars(stage.weights) | stage.weights.settings
    facts += [
        (f"weights: {words(k)}", _plain(value))
        for k, value in weights.items()
        if k != "settings" and value not in (None, "", [], {})
    ]
    return facts


def _micro_batch(training: TrainingSummary) -> str:
    asked = training.micro_batch
    size = "a size that suits the device" if asked == "auto" else f"at most {asked}"
    return size + (f", halved {training.halvings} times for want of memory" if training.halvings else "")


def _stage_figures(stage: StageResult, metrics: Rows) -> list[tuple[str, str, bool]]:
    """What the stage logged, by step; nothing for a stage that logged nothing."""
    train = [row for row in metrics if row["stage"] == stage.name and row["split"] == "train"]
    validation = [row for row in metrics if row["stage"] == stage.name and row["split"] == "validation"]
    best_step = stage.training.best_step if stage.training else None
    drawn: list[tuple[str, str, bool]] = []
    losses = _points(train, "loss"), _points(validation, "loss")
    if any(losses):
        drawn.append(("loss by step", charts.draw_loss(*losses, best_step), False))
    columns = _metric_columns(stage)
    for name in columns:
        points = _points(validation, name)
        if points and name != "loss":
            small = name != columns[0]
            drawn.append(
                (f"{words(name)} by step", charts.draw_metric(words(name), points, best_step, small=small), small)
            )
    if stage.training and (curve := stage.training.interpolation):
        name = words(curve.metric)
        svg = charts.draw_alphas(name, curve.alphas, curve.by_split, chosen=curve.alpha)
        drawn.append((f"{name} between the weights before and after training", svg, False))
    rates = _points(train, "learning_rate")
    if rates:
        drawn.append(("learning rate by step", charts.draw_learning_rate(rates), True))
    return drawn


def _points(rows: Rows, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


# --------------------------------------------------------------------------------- numbers as text


def show_number(value: float | None) -> str:
    """
    >>> [show_number(v) for v in (0.84321, 12345.6, 0.00012, 0.0, None, float("nan"))]
    ['0.843', '12,345.6', '1.2e-04', '0.000', '–', '–']
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3f}"


def show_signed(value: float, digits: int = 3) -> str:
    """
    >>> show_signed(0.5), show_signed(-0.25, 2)
    ('+0.500', '−0.25')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def known_interval(interval: Any) -> tuple[float, float] | None:
    """The interval, unless it was not computed: NaN, which result.json holds as null."""
    if interval is None or any(end is None or not math.isfinite(end) for end in interval):
        return None
    low, high = interval
    return low, high


def show_interval(interval: Any, digits: int = 3) -> str:
    """
    >>> show_interval((0.461, 0.62), 2), show_interval((-0.02, 0.04), 2), show_interval(None)
    ('0.46–0.62', '−0.02 to +0.04', 'no interval')
    """
    known = known_interval(interval)
    if known is None:
        return "no interval"
    if min(known) < 0:
        return " to ".join(show_signed(end, digits) for end in known)
    return "–".join(f"{end:.{digits}f}" for end in known)


def words(name: str) -> str:
    return name.replace("_", " ")


def baseline_name(name: str) -> str:
    """
    >>> baseline_name("majority_class"), baseline_name("lead_3")
    ('the majority class', 'lead 3')
    """
    return BASELINE_NAMES.get(name, words(name))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value[:8]))
        return f"{shown}, … ({len(value)} in all)" if len(value) > 8 else shown
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _hardware_value(name: str, value: Any) -> str:
    return f"{value / 2**30:.1f} GiB" if name.endswith("_bytes") else _plain(value)


# ------------------------------------------------------------------------------------------- media


def data_uri(content: bytes | str, kind: str) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{MEDIA_TYPES[kind]};base64,{base64.b64encode(raw).decode()}"


def show_example(exhibit: ReportExample) -> str | dict[str, str]:
    """What the page puts in its place: the texts by name, or a data URI."""
    if exhibit.kind == "texts":
        texts: dict[str, str] = json.loads(exhibit.content)
        return texts
    return data_uri(exhibit.content, exhibit.kind)
