"""The figures of an experiment: heat maps, curves with bands, and what a score costs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from tltasks.reports.charts import GREY, STYLE

COLOURS = ("#1d5fb4", "#c4560c", "#137a4b", "#a8237a", "#6b4fbb", "#8a6d00", "#4b5563", "#0e7c86")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""With the colours: arms that can be told apart without seeing colour."""


@dataclass(frozen=True)
class Line:
    """An arm's points along a curve, or its one point among costs: (x, score, low, high)."""

    name: str
    place: int
    """Among all arms, which gives the same arm the same colour everywhere."""
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Picture:
    """A figure under the name of its files."""

    name: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        buffer = io.StringIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()

    def png(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        return buffer.getvalue()


def draw_curve(title: str, metric: str, lines: Sequence[Line], limits: tuple[float, float]) -> Figure:
    """Score against training examples, with each arm's 95 % band."""
    with mpl.rc_context(STYLE):
        figure, axes = _chart(title, "training examples", metric, limits)
        for line in lines:
            x, mean, low, high = np.array(sorted(line.points)).T
            colour = COLOURS[line.place % len(COLOURS)]
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(x, mean, color=colour, marker=MARKERS[line.place % len(MARKERS)], linewidth=1.8, label=line.name)
        examples = sorted({point[0] for line in lines for point in line.points})
        if min(examples) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(examples, [f"{n:,.0f}" for n in examples])
        _legend(figure, axes)
    return figure


def draw_front(
    title: str, x_label: str, metric: str, lines: Sequence[Line], limits: tuple[float, float], *, higher_is_better: bool
) -> Figure:
    """Score against a cost, and the front: the arms that no cheaper one equals."""
    with mpl.rc_context(STYLE):
        figure, axes = _chart(title, x_label, metric, limits)
        points = [(line.points[0][0], line.points[0][1]) for line in lines]
        front = pareto_front(points, higher_is_better=higher_is_better)
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, linestyle="--", drawstyle="steps-post", zorder=1)
        for line in lines:
            x, mean, low, high = line.points[0]
            colour = COLOURS[line.place % len(COLOURS)]
            axes.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot([x], [mean], MARKERS[line.place % len(MARKERS)], color=colour, markersize=9, label=line.name)
        if min(x for x, _ in points) > 0:
            axes.set_xscale("log")
            low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1.0,) if high_x > 20 * low_x else (1.0, 2.0, 5.0), numticks=7)
            )
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(low_x / 1.6, high_x * 1.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        _legend(figure, axes)
    return figure


def draw_heat_map(
    title: str, table: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], limits: tuple[float, float]
) -> Figure:
    """Scores by source (rows) and target (columns); what was not measured is left white."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 + 1.15 * len(columns), 1.5 + 0.62 * len(rows)), facecolor="white")
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.grid(visible=False)
        axes.imshow(table, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel="tested on", ylabel="trained on")
        axes.tick_params(length=0)
        span = limits[1] - limits[0] or 1.0
        for i, j in np.argwhere(np.isfinite(table)):
            ink = "white" if (table[i, j] - limits[0]) / span > 0.6 else "#111827"
            axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=ink, fontsize=14)
    return figure


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[tuple[float, float]]:
    """The points of (cost, score) that no other with at most their cost does as well as, the cheapest first.

    >>> pareto_front([(1, 0.5), (2, 0.4), (3, 0.9)], higher_is_better=True)
    [(1, 0.5), (3, 0.9)]
    """
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * score > sign * front[-1][1]:
            front.append((cost, score))
    return front


def short(value: float) -> str:
    """
    >>> [short(v) for v in (0.5, 12.0, 12810, 3_400_000)]
    ['0.5', '12', '12.8k', '3.4M']
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _chart(title: str, x_label: str, y_label: str, limits: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, 4.0), facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    names = axes.get_legend_handles_labels()[1]
    columns = 3 if max(map(len, names), default=0) < 14 else 2
    figure.legend(loc="outside lower center", ncols=min(columns, len(names)), fontsize=11)
