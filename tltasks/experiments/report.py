"""The report of an experiment: one self-contained page, and its figures as files."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tltasks.experiments.analysis import Arm, Comparison, Findings
from tltasks.experiments.charts import Line, Picture, draw_curve, draw_front, draw_heat_map
from tltasks.experiments.experiment import Experiment, Levels
from tltasks.reports.html import data_uri, show_interval, show_number, show_signed, words
from tltasks.results.result import show_duration

MOST_PANELS = 12
"""Contexts whose figures are drawn; the tables have all."""
ORDER = {"negative": 0, "neutral": 1, "positive": 2}


@dataclass(frozen=True)
class Panel:
    """Arms that are measured on the same test set in the same context: one chart, one table."""

    title: str
    name: str
    """For files."""
    arms: list[Arm]

    def arm(self, experiment: Experiment, row: str, column: str) -> Arm | None:
        return next(
            (arm for arm in self.arms if _row(experiment, arm) == row and _column(experiment, arm) == column), None
        )


def make_panels(experiment: Experiment, findings: Findings) -> list[Panel]:
    """Contexts in the order of the experiment's axes."""
    apart = {experiment.curve, experiment.contrast.axis if experiment.contrast else None}
    grouped: dict[tuple[tuple[str, ...], str], list[Arm]] = defaultdict(list)
    for arm in findings.arms:
        grouped[tuple(level for axis, level in arm.levels.items() if axis not in apart), arm.target].append(arm)
    return [
        Panel(f"{', '.join(context)} → {target}" if context else target, "-".join([*context, target]), arms)
        for (context, target), arms in grouped.items()
    ]


def _row(experiment: Experiment, arm: Arm) -> str:
    return arm.levels[experiment.contrast.axis] if experiment.contrast is not None else "all"


def _column(experiment: Experiment, arm: Arm) -> str:
    return arm.levels[experiment.curve] if experiment.curve is not None else ""


def _rows(experiment: Experiment) -> list[str]:
    return list(experiment.axes[experiment.contrast.axis]) if experiment.contrast is not None else ["all"]


def _columns(experiment: Experiment) -> list[str]:
    return list(experiment.axes[experiment.curve]) if experiment.curve is not None else [""]


# ------------------------------------------------------------------------------------------- figures


def draw_pictures(experiment: Experiment, findings: Findings) -> dict[str, list[Picture]]:
    """Figures by section: `heat`, `curves`, `parameters`, `seconds`."""
    panels, metric = make_panels(experiment, findings), words(findings.metric)
    ends = [end for arm in findings.arms for end in (arm.score.low, arm.score.high) if np.isfinite(end)]
    ends += [arm.score.mean for arm in findings.arms]
    room = 0.04 * ((max(ends) - min(ends)) or 1.0)
    limits = min(ends) - room, max(ends) + room
    found: dict[str, list[Picture]] = {"heat": _heat_maps(experiment, findings)}
    rows = _rows(experiment)
    for panel in panels[:MOST_PANELS]:
        if experiment.curve is not None:
            lines = _lines(panel, experiment, rows, lambda arm: arm.train_examples)
            figure = draw_curve(panel.title, metric, lines, limits)
            alt = f"{metric} by training examples, {panel.title}"
            found.setdefault("curves", []).append(Picture(f"curve-{panel.name}", alt, figure))
        if len(rows) > 1:
            for kind, label, cost in (
                ("parameters", "trained parameters", lambda arm: arm.trained_parameters),
                ("seconds", "seconds of training", lambda arm: arm.training_seconds),
            ):
                most = _columns(experiment)[-1]
                last = Panel(panel.title, panel.name, [a for a in panel.arms if _column(experiment, a) == most])
                if not last.arms:
                    continue
                lines = _lines(last, experiment, rows, cost)
                title = f"{panel.title}, {most}" if most else panel.title
                higher = findings.higher_is_better
                figure = draw_front(title, label, metric, lines, limits, higher_is_better=higher)
                found.setdefault(kind, []).append(
                    Picture(f"{kind}-{panel.name}", f"{metric} by {label}, {title}", figure)
                )
    return {section: pictures for section, pictures in found.items() if pictures}


def _lines(panel: Panel, experiment: Experiment, rows: list[str], x: Any) -> list[Line]:
    lines = []
    for place, row in enumerate(rows):
        arms = [arm for arm in panel.arms if _row(experiment, arm) == row]
        if arms:
            points = [(x(arm), arm.score.mean, arm.score.low, arm.score.high) for arm in arms]
            lines.append(Line(words(row), place, points))
    return lines


def _heat_maps(experiment: Experiment, findings: Findings) -> list[Picture]:
    """Source × target at the end of the curve, one for each combination of the other axes' levels."""
    if experiment.domains is None:
        return []
    sources = list(experiment.axes[experiment.domains])
    targets = list(dict.fromkeys(arm.target for arm in findings.arms))
    targets.sort(key=lambda name: sources.index(name) if name in sources else len(sources))
    grouped: dict[tuple[str, ...], list[Arm]] = defaultdict(list)
    for arm in findings.arms:
        if _column(experiment, arm) == _columns(experiment)[-1]:
            grouped[tuple(level for axis, level in arm.levels.items() if axis != experiment.domains)].append(arm)
    means = [arm.score.mean for arms in grouped.values() for arm in arms]
    pictures = []
    for context, arms in list(grouped.items())[:MOST_PANELS]:
        table = np.full((len(sources), len(targets)), np.nan)
        for arm in arms:
            table[sources.index(arm.levels[experiment.domains]), targets.index(arm.target)] = arm.score.mean
        title = words(", ".join(context)) or words(findings.metric)
        figure = draw_heat_map(title, table, sources, targets, (min(means), max(means)))
        alt = f"{words(findings.metric)} by source and target, {title}"
        pictures.append(Picture("-".join(["heat", *context]), alt, figure))
    return pictures


# ---------------------------------------------------------------------------------------------- page


def environment() -> jinja2.Environment:
    """Templates of the pages of experiments and searches."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(__file__).parents[1] / "reports"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": show_number,
        "interval": show_interval,
        "signed": show_signed,
        "words": words,
        "data_uri": data_uri,
        "duration": show_duration,
        "levels": show_levels,
        "needed": show_needed,
        "p": show_p,
    }
    return found


def write_report(
    path: Path, experiment: Experiment, findings: Findings, pictures: dict[str, list[Picture]], result: dict[str, Any]
) -> None:
    """Write the page; `result` is what result.json holds. The same arguments give the same bytes."""
    panels = make_panels(experiment, findings)
    text = (
        environment()
        .get_template("experiment.html.jinja")
        .render(
            experiment=experiment,
            findings=findings,
            sentences=list(sentences(experiment, findings)),
            panels=panels,
            rows=_rows(experiment),
            columns=_columns(experiment),
            pictures=pictures,
            undrawn=max(0, len(panels) - MOST_PANELS),
            evidence=_evidence(experiment, findings),
            result=result,
        )
    )
    path.write_text(text, encoding="utf-8")


def sentences(experiment: Experiment, findings: Findings) -> list[tuple[str, str]]:
    """What the experiment says in short: a kind (`better`, `worse`, `unclear`) and a sentence each."""
    said: list[tuple[str, str]] = []
    for control, n in findings.families.items():
        counts = Counter(c.verdict for arm in findings.arms for c in arm.comparisons if c.control == control)
        kind = "worse" if counts["negative"] else "better" if counts["positive"] else "unclear"
        parts = ", ".join(f"{counts[v]} {v}" for v in ("positive", "neutral", "negative"))
        said.append((kind, f"Transfer against {words(control)}: {parts}, of {n} comparisons adjusted together."))
    if findings.ranks:
        order = sorted(findings.ranks.items(), key=lambda item: item[1])
        ranks = ", ".join(f"{words(name)} {rank:.1f}" for name, rank in order)
        said.append(("unclear", f"Mean rank over {findings.contexts} contexts, 1 is the best: {ranks}."))
    losses = [drop for drop in findings.drops if drop.loss.low > 0]
    if findings.drops:
        said.append(
            (
                "worse" if losses else "better",
                f"Out of its domain, {len(losses)} of {len(findings.drops)} arms are worse beyond chance.",
            )
        )
    seeds = {arm.score.seeds for arm in findings.arms}
    if min(seeds) < 3:
        few = (
            "one seed: intervals are over test rows alone"
            if min(seeds) == 1
            else f"{min(seeds)} seeds: intervals are wide"
        )
        said.append(("unclear", f"Some arms have {few}."))
    return said


def _evidence(experiment: Experiment, findings: Findings) -> dict[str, list[tuple[Arm, Comparison]]]:
    """Comparisons by control, negative transfer first."""
    found: dict[str, list[tuple[Arm, Comparison]]] = {control: [] for control in findings.families}
    for arm in findings.arms:
        for comparison in arm.comparisons:
            found[comparison.control].append((arm, comparison))
    for rows in found.values():
        rows.sort(key=lambda pair: (ORDER[pair[1].verdict], pair[1].gain.mean))
    return found


def show_levels(levels: Levels) -> str:
    return words(", ".join(levels.values()))


def show_p(p: float) -> str:
    """
    >>> [show_p(p) for p in (0.2, 0.0312, 0.00001)]
    ['0.20', '0.031', '< 0.001']
    """
    return "< 0.001" if p < 0.001 else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def show_needed(arm: Arm, comparison: Comparison) -> str:
    """Labels that the control would need, and how many times the arm's own."""
    fewest, most = comparison.tried
    if arm.train_examples == 0:
        return "–"
    if comparison.examples_needed is None:
        return f"over {most:,} (over {most / arm.train_examples:.1f} ×)"
    bound = "at most " if comparison.examples_needed <= fewest else ""
    return f"{bound}{comparison.examples_needed:,.0f} ({comparison.examples_needed / arm.train_examples:.1f} ×)"
