"""Reports of experiments and searches: self-contained pages, and tables for other programs and for papers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tltasks.experiments.analysis import CellScore, ControlComparison, Findings
from tltasks.experiments.charts import Lines, Picture, draw_curve, draw_front, draw_heat_map
from tltasks.experiments.experiment import Experiment, Levels
from tltasks.reports.charts import draw_intervals, svg
from tltasks.reports.formatting import words
from tltasks.reports.templates import page_environment
from tltasks.results.metric_names import metric_name
from tltasks.runtime.files import write_text

MOST_PANELS = 12
"""Contexts whose figures are drawn; the tables have all."""
ORDER = ("worse", "unclear", "better")
LATEX_MARKS = {"better": "$^{+}$", "worse": "$^{-}$"}


@dataclass(frozen=True)
class Panel:
    """Cells that are measured on the same test set in the same context: one chart, one table."""

    title: str
    name: str
    """For files."""
    cells: dict[tuple[str, str], CellScore]
    """By level of the contrast, a row, and level of the curve, a column."""


class Layout:
    """Rows, columns and panels that an experiment's cells are shown in, in the order of its axes."""

    def __init__(self, experiment: Experiment, findings: Findings) -> None:
        column_axis = experiment.curve or ""
        self.row_axis = row_axis = experiment.contrast.axis if experiment.contrast else _longest_axis(experiment)
        self.rows = list(experiment.axes.get(row_axis, ["all"]))
        self.columns = list(experiment.axes.get(column_axis, [""]))
        panels: dict[tuple[str, ...], Panel] = {}
        for cell in findings.cells:
            context = [level for axis, level in cell.levels.items() if axis not in {row_axis, column_axis}]
            title = f"{', '.join(context)} → {cell.target}" if context else cell.target
            panel = panels.setdefault((*context, cell.target), Panel(title, "-".join([*context, cell.target]), {}))
            panel.cells[cell.levels.get(row_axis, "all"), cell.levels.get(column_axis, "")] = cell
        self.panels = list(panels.values())
        self.undrawn = max(0, len(panels) - MOST_PANELS)


def _longest_axis(experiment: Experiment) -> str:
    """The axis of rows if nothing is contrasted: domains and the curve have places of their own."""
    free = [axis for axis in experiment.axes if axis not in {experiment.curve, experiment.domains}]
    return max(free, key=lambda axis: len(experiment.axes[axis]), default=experiment.domains or "")


# ------------------------------------------------------------------------------------------- figures


def draw_pictures(experiment: Experiment, findings: Findings, layout: Layout) -> dict[str, list[Picture]]:
    """Figures by section: `scores`, `heat`, `curves`, `parameters`, `seconds`; none with one point alone."""
    ends = [end for cell in findings.cells for end in (cell.score.low, cell.score.high, cell.score.mean)]
    ends = [end for end in ends if np.isfinite(end)]
    room = 0.04 * ((max(ends) - min(ends)) or 1.0)
    limits = min(ends) - room, max(ends) + room
    found: dict[str, list[Picture]] = defaultdict(list)
    found["heat"] = list(_heat_maps(experiment, findings, layout))
    metric, most = metric_name(findings.metric), layout.columns[-1:]
    for panel in layout.panels[:MOST_PANELS]:
        if experiment.curve is None and len(panel.cells) > 1:
            bars = [(words(row), cell.score) for row in layout.rows if (cell := panel.cells.get((row, "")))]
            values = [score.mean for _, score in bars]
            marked = values.index(max(values) if findings.higher_is_better else min(values))
            arms = [(name, score.mean, (score.low, score.high)) for name, score in bars]
            figure = draw_intervals(metric, arms, title=panel.title, marked=marked, limits=limits)
            found["scores"].append(Picture(f"scores-{panel.name}", f"{metric} by {layout.row_axis}", figure))
        if experiment.curve is not None and len(layout.columns) > 1:
            lines = _lines(panel, layout.rows, layout.columns, lambda cell: cell.train_examples)
            figure = draw_curve(panel.title, metric, lines, limits)
            alt = f"{metric} by training examples, {panel.title}"
            found["curves"].append(Picture(f"curve-{panel.name}", alt, figure))
        title = ", ".join(filter(None, [panel.title, *most]))
        for kind, label, cost in (
            ("parameters", "trained parameters", lambda cell: cell.trained_parameters),
            ("seconds", "seconds of training", lambda cell: cell.training_seconds),
        ):
            lines = _lines(panel, layout.rows, most, cost)
            if sum(map(bool, lines.values())) > 1:
                figure = draw_front(title, label, metric, lines, limits, higher_is_better=findings.higher_is_better)
                found[kind].append(Picture(f"{kind}-{panel.name}", f"{metric} by {label}, {title}", figure))
    return {section: pictures for section, pictures in found.items() if pictures}


def _lines(panel: Panel, rows: list[str], columns: list[str], x: Callable[[CellScore], float]) -> Lines:
    return {
        words(row): [
            (x(cell), cell.score.mean, cell.score.low, cell.score.high)
            for column in columns
            if (cell := panel.cells.get((row, column)))
        ]
        for row in rows
    }


def _heat_maps(experiment: Experiment, findings: Findings, layout: Layout) -> Iterator[Picture]:
    """Source × target at the end of the curve, one for each combination of the other axes' levels."""
    if experiment.domains is None:
        return
    sources = list(experiment.axes[experiment.domains])
    targets = list(dict.fromkeys(cell.target for cell in findings.cells))
    targets.sort(key=lambda name: sources.index(name) if name in sources else len(sources))
    grouped: dict[tuple[str, ...], list[CellScore]] = defaultdict(list)
    for cell in findings.cells:
        if experiment.curve is None or cell.levels[experiment.curve] == layout.columns[-1]:
            grouped[tuple(level for axis, level in cell.levels.items() if axis != experiment.domains)].append(cell)
    means = [cell.score.mean for cells in grouped.values() for cell in cells]
    for context, cells in list(grouped.items())[:MOST_PANELS]:
        table = np.full((len(sources), len(targets)), np.nan)
        for cell in cells:
            table[sources.index(cell.levels[experiment.domains]), targets.index(cell.target)] = cell.score.mean
        title = words(", ".join(context)) or metric_name(findings.metric)
        figure = draw_heat_map(title, table, sources, targets, (min(means), max(means)))
        yield Picture(
            "-".join(["heat", *context]), f"{metric_name(findings.metric)} by source and target, {title}", figure
        )


# --------------------------------------------------------------------------------------------- pages


def write_page(path: Path, template: str, **values: object) -> None:
    """Write a page from a template of this folder. The same values give the same bytes on the same day."""
    environment = page_environment(Path(__file__).parent)
    environment.filters |= {"levels": show_levels, "needed": show_needed, "p": show_p, "svg": svg}
    write_text(path, environment.get_template(template).render(values, written=datetime.now(UTC).date()))


def evidence(findings: Findings) -> dict[str, list[tuple[CellScore, ControlComparison]]]:
    """Comparisons by control, what is worse first."""
    found: dict[str, list[tuple[CellScore, ControlComparison]]] = {control: [] for control in findings.families}
    for cell in findings.cells:
        for comparison in cell.comparisons:
            found[comparison.control].append((cell, comparison))
    for rows in found.values():
        rows.sort(key=lambda pair: (ORDER.index(pair[1].verdict), pair[1].gain.mean))
    return found


def show_levels(levels: Levels) -> str:
    """The levels of a cell in one line."""
    return words(", ".join(levels.values()))


def show_p(p: float) -> str:
    """A probability with what can be told of it.

    >>> [show_p(p) for p in (0.2, 0.0312, 0.00001)]
    ['0.20', '0.031', '< 0.001']
    """
    return "< 0.001" if p < 0.001 else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def show_needed(cell: CellScore, comparison: ControlComparison) -> str:
    """Labels that the control would need, and how many times the cell's own."""
    fewest, most = comparison.tried
    if cell.train_examples == 0:
        return "–"
    if comparison.examples_needed is None:
        return f"over {most:,} (over {most / cell.train_examples:.1f} ×)"
    bound = "at most " if comparison.examples_needed <= fewest else ""
    return f"{bound}{comparison.examples_needed:,.0f} ({comparison.examples_needed / cell.train_examples:.1f} ×)"


# -------------------------------------------------------------------------------------------- tables


def by_target(findings: Findings, show: Callable[[CellScore], str], missing: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Levels by axis and cells as text by test set, in the same rows."""
    rows: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for cell in findings.cells:
        rows[tuple(cell.levels.values())][cell.target] = show(cell)
    levels = pd.DataFrame(list(rows), columns=list(findings.cells[0].levels))
    return levels, pd.DataFrame(rows.values()).fillna(missing)


def text_table(title: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal, its columns by how they are aligned."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    if len(left) + len(right) > 5:  # else names are cut within words at 80 columns
        table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    for i, name in enumerate([*left, *right]):
        longest = max(map(len, name.split()), default=0)
        table.add_column(name, justify="left" if i < len(left) else "right", overflow="fold", min_width=longest)
    for row in rows:
        table.add_row(*row)
    return table


def latex_table(experiment: Experiment, findings: Findings) -> str:
    """Rows for the levels, columns for the test sets: mean ± half the 95 % interval, marked by verdict."""
    axis = experiment.contrast.axis if experiment.contrast is not None else None
    contexts: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def context(cell: CellScore) -> tuple[str, ...]:
        return cell.target, *(level for name, level in cell.levels.items() if name != axis)

    for cell in findings.cells:
        contexts[context(cell)].append(cell.score.mean)
    best = max if findings.higher_is_better else min

    def show(cell: CellScore) -> str:
        value = f"{cell.score.mean:.3f}"
        bold = f"\\textbf{{{value}}}" if cell.score.mean == best(contexts[context(cell)]) else value
        half = (cell.score.high - cell.score.low) / 2
        return f"{bold} $\\pm$ {half:.3f}{LATEX_MARKS.get(cell.verdict, '')}"

    levels, cells = by_target(findings, show, "--")
    same = levels.eq(levels.shift()).cumprod(axis=1).astype(bool)  # a level is written where it changes
    table = pd.concat([levels.map(escaped).mask(same, ""), cells], axis=1)
    header = [escaped(str(name)) for name in table.columns]
    alignment = "l" * levels.shape[1] + "r" * cells.shape[1]
    text = table.to_latex(index=False, header=header, column_format=alignment, escape=False)
    return f"% needs \\usepackage{{booktabs}}\n{text}"


def escaped(text: str) -> str:
    r"""Text as LaTeX prints it.

    >>> escaped("from_scratch & 5 %")
    'from\\_scratch \\& 5 \\%'
    """
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)
