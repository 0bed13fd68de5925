"""report.html: one self-contained page from which a person can tell whether the model is good."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tltasks.config.names import is_local_name
from tltasks.config.tasks import supervised_tasks
from tltasks.reports import charts
from tltasks.reports.formatting import data_uri, show_duration, show_share, words
from tltasks.reports.templates import page_environment
from tltasks.results.comparison import (
    Comparison,
    compare_groups,
    compare_headline,
    compare_with_baselines,
    compare_with_before,
    counted,
    describe_forgetting,
    describe_leaks,
    short_name,
)
from tltasks.results.metric_names import METHODS, metric_in_text, metric_name
from tltasks.results.result import Provenance, ReportExample, RunResult, Score, StageResult, TrainingSummary
from tltasks.runtime.files import write_text

LARGEST_MATRIX = 30
"""Classes up to which a confusion matrix is a table that can be read."""
HOW_IT_IS_DRIVEN = {"auto_class", "batches", "family", "request", "reading", "texts"}
"""Settings of a model that say nothing to a reader and are left to result.json, as are those that are on or off."""
SHOWN_ROWS = 20
"""Confused pairs, and classes of a long table, that are shown at once."""
Rows = list[dict[str, Any]]


def write_report(
    path: Path,
    result: RunResult,
    recipe_text: str,
    metrics: Rows,
    report_examples: list[ReportExample],
    *,
    written: date | None = None,
) -> None:
    """Write the page; `metrics` are the rows of metrics.jsonl, `written` the day that it names. The same arguments give
    the same bytes."""
    beside = compare_headline(result)
    text = (
        page_environment()
        .get_template("report.html.jinja")
        .render(
            result=result,
            headline=result.headline,
            best=result.best,
            comparisons=beside,
            intervals_figure=_intervals_figure(result.score, beside),
            warnings=_warnings(result, beside),
            errors=describe_errors(result.headline.split, result.score.details),
            sureness=sureness(result.score.details),
            examples=[(example, show_example(example)) for example in report_examples if not example.twin],
            twins=[(example, show_example(example)) for example in report_examples if example.twin],
            stages=[_view(stage, result, metrics) for stage in result.stages],
            shown_rows=SHOWN_ROWS,
            written=written,
            checkpoint=Path(name).name if is_local_name(name := result.best.weights.name) else name,
            recipe_text=recipe_text,
            folder=path.parent.name,
            answers=result.best.task in supervised_tasks(),
            hardware=[
                (words(name.removesuffix("_bytes")), _hardware_value(name, value))
                for name, value in result.hardware.items()
            ],
        )
    )
    path.write_text(text, encoding="utf-8")


def say_weights_are_gone(page: Path) -> None:
    """Have a page that is written offer the recipe in the place of the weights, which are not there any longer."""
    first, mark, rest = (
        page.read_text(encoding="utf-8").partition('<section id="next">') if page.is_file() else [""] * 3
    )
    if not mark:  # there is no page, or one of an earlier version
        return
    told = page_environment().get_template("gone.html.jinja").render(folder=page.parent.name)
    write_text(page, f"{first}{mark}{told}</section>{rest.partition('</section>')[2]}")


# ----------------------------------------------------------------------------------------- headline


def _warnings(result: RunResult, beside: list[Comparison]) -> list[str]:
    found, stage, split = [], result.best, result.headline.split
    if split == "validation" and stage.training is not None and stage.training.best_step is not None:
        found.append("Training was steered by this very split, so the number may be optimistic; name a test split.")
    if not beside:
        found.append("There is no baseline to compare with.")
    found += result.score.notes
    found += stage.data[split].notes if split in stage.data else []
    found += [line for line in [describe_leaks(stage, split)] if line]
    if split in stage.data and (skipped := stage.data[split].skipped):
        found.append(f"{skipped} examples of this split could not be read and do not count.")
    return found


def _intervals_figure(score: Score, beside: list[Comparison]) -> str | None:
    bars = [("this model", score.value, score.ci95)]
    bars += [(short_name(it.against), it.theirs.value, it.theirs.ci95) for it in beside]
    return charts.svg(charts.draw_intervals(metric_name(score.headline), bars)) if beside else None


@dataclass(frozen=True)
class Sureness:
    """How far a classifier's probabilities are right, and what is won by leaving out what is not sure."""

    calibration: dict[str, Any]
    """Empty where no temperature was fitted."""
    shown: list[dict[str, float]]
    figure: str


def sureness(details: dict[str, Any]) -> Sureness | None:
    """By the details of a score; None where it says nothing of that."""
    points = details.get("answered", [])
    if len(points) < 2:
        return None
    shown = [points[place] for place in sorted({round(i * (len(points) - 1) / 4) for i in range(5)})]
    return Sureness(details.get("calibration", {}), shown, charts.draw_answered(points))


# ------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Errors:
    """A classifier's errors on one split; empty parts where the score holds no such table."""

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
        support = {row["class"]: row["support"] for row in per_class}
        confused = [(true, said, n, n / support[true]) for true, said, n in details.get("confused", [])[:SHOWN_ROWS]]
        names = sorted(support) if confused else []
        return Errors(split, names, [], None, confused, per_class, absent) if per_class else None
    counts = np.array(details["confusion_matrix"], dtype=np.int64)
    # A kept head may know a thousand classes of which the data shows ten.
    occurring = np.flatnonzero(counts.sum(0) + counts.sum(1))
    counts = counts[np.ix_(occurring, occurring)]
    all_names = details.get("matrix_classes") or details["class_names"]
    names = [str(all_names[i]) for i in occurring]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if len(names) <= LARGEST_MATRIX:
        cells = [
            [_cell(int(n), float(s)) for n, s in zip(*both, strict=True)] for both in zip(counts, shares, strict=True)
        ]
        return Errors(split, names, cells, None, [], per_class, absent)
    return Errors(
        split, names, [], charts.draw_matrix(shares), _most_confused(counts, shares, names), per_class, absent
    )


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


# ------------------------------------------------------------------------------------------- stages


def _view(stage: StageResult, result: RunResult, metrics: Rows) -> dict[str, object]:
    """A stage beside what the page derives from it."""
    errors = [
        describe_errors(split, score.details)
        for split, score in stage.metrics.items()
        if (stage.name, split) != (result.headline.stage, result.headline.split)
    ]
    return {
        "result": stage,
        "columns": _metric_columns(stage),
        "facts": _facts(stage),
        "figures": _stage_figures(stage, metrics),
        "other_errors": [found for found in errors if found is not None],
        "comparisons": compare_with_baselines(stage),
        "groups": compare_groups(stage),
        "forgetting": [(it.verdict, describe_forgetting(it)) for it in compare_with_before(result, stage)],
    }


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
        (
            "trained",
            f"{stage.trainable_parameters:,} of {stage.total_parameters:,} parameters ({show_share(share, 2)})",
        ),
        ("time", show_duration(stage.seconds)),
        ("peak memory", f"{stage.peak_memory_bytes / 2**30:.2f} GiB"),
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
                (
                    "method",
                    f"{METHODS.get(training.method, training.method)}, learning rate {training.learning_rate:g}",
                ),
                ("batch", f"{training.batch_size} examples, in micro-batches of {_micro_batch(training)}"),
            ]
        if (curve := training.interpolation) is not None:
            by = "chosen on validation" if "validation" in curve.by_split else "as the recipe says"
            facts.append(("interpolated", f"to α = {curve.alpha:g} of the way from the start, {by}"))
        held = f", frozen weights in {training.base_dtype}" if training.base_dtype else ""
        if training.base_difference is not None:
            held += f"; scored and saved with the checkpoint's own: outputs differ by {training.base_difference:.2g}"
        facts.append(("precision", f"{training.precision}{held}"))
        if training.best_step is not None:
            facts.append(("best on validation", f"step {training.best_step:,}"))
    return facts + _facts_of_weights(stage.weights)


def _facts_of_weights(weights: Provenance) -> list[tuple[str, str]]:
    """The origin of weights. Names of tensors and measures of how they were saved are left to result.json."""
    random, left = weights.newly_initialised, weights.left
    found = {
        "checkpoint": weights.name,
        "revision": weights.commit or ("" if is_local_name(weights.name) else weights.revision),
        "starts from": "the stage before" if weights.start == "previous" else "",
        "architecture": weights.model_type,
        "not from the checkpoint": "all weights"
        if random == ["all"]
        else random and f"{counted(len(random), 'tensor')} that begin at random, as of a new head",
        "resized to the input": f"{counted(len(weights.interpolated), 'table')} of positions"
        * bool(weights.interpolated),
        "not used of the checkpoint": ", ".join(f"{name} ({counted(n, 'tensor')})" for name, n in left.items()),
        "saved": "the adapter alone" if weights.adapter else "",
    }
    if weights.loaded_share is not None and weights.loaded_share < 1:
        found["found in the checkpoint"] = f"{show_share(weights.loaded_share, 1)} of the backbone"
    found |= {
        words(key): _plain(value)
        for key, value in weights.settings.items()
        if value not in (None, [], {}) and not isinstance(value, bool) and key not in HOW_IT_IS_DRIVEN
    }
    return [(name, value) for name, value in found.items() if value]


def _micro_batch(training: TrainingSummary) -> str:
    asked = training.micro_batch
    size = "a size that suits the device" if asked == "auto" else f"at most {asked}"
    size += f", at most {training.pass_rows} rows" if asked == "auto" and training.pass_rows else ""
    size += f", found by doubling the usual one {training.doublings} times" if training.doublings else ""
    return size + (f", halved {training.halvings} times for want of memory" if training.halvings else "")


def _stage_figures(stage: StageResult, metrics: Rows) -> list[tuple[str, str, bool]]:
    """The stage's log by step: what a figure shows, SVG, and whether it is a small one."""

    def points(split: str, name: str) -> list[tuple[int, float]]:
        rows = [row for row in metrics if row["stage"] == stage.name and row["split"] == split]
        return [(row["step"], row[name]) for row in rows if row.get(name) is not None]

    best_step = stage.training.best_step if stage.training else None
    drawn: list[tuple[str, str, bool]] = []
    losses = points("train", "loss"), points("validation", "loss")
    if any(len(line) > 1 for line in losses):  # of one step there is nothing to see
        drawn.append(("loss by step", charts.draw_loss(*losses, best_step), False))
    for i, name in enumerate(_metric_columns(stage)):
        found = [] if name == "loss" else points("validation", name)
        tells = i == 0 or len({value for _, value in found}) > 1  # a level line beside the deciding metric's does not
        if len(found) > 1 + (i > 0) and tells:
            svg = charts.draw_metric(metric_in_text(name), found, best_step, small=i > 0)
            drawn.append((f"{metric_name(name)} by step", svg, i > 0))
    if stage.training and (curve := stage.training.interpolation):
        name = metric_name(curve.metric)
        svg = charts.draw_alphas(name, curve.alphas, curve.by_split, chosen=curve.alpha)
        drawn.append((f"{name} between the weights before and after training", svg, False))
    if len(rates := points("train", "learning_rate")) > 1:
        drawn.append(("learning rate by step", charts.draw_learning_rate(rates), True))
    return drawn


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value[:8]))
        return f"{shown}, … ({len(value)} in all)" if len(value) > 8 else shown
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _hardware_value(name: str, value: Any) -> str:
    return f"{value / 2**30:.1f} GiB" if name.endswith("_bytes") else _plain(value)


def show_example(example: ReportExample) -> str | dict[str, str]:
    """Content of an example on the page: the texts by name, or a data URI."""
    if example.kind == "texts":
        texts: dict[str, str] = json.loads(example.content)
        return texts
    return data_uri(example.content, example.kind)
