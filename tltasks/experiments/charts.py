"""Figures of experiments and searches: heat maps, learning curves with bands, what a score costs, scores by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from tltasks.reports.charts import BLUE, GREY, ORANGE, chart
from tltasks.reports.formatting import words

SIZE = 5.0, 4.0
"""Inches of a figure."""
COLOURS = (BLUE, ORANGE, "#137a4b", "#a8237a", "#6b4fbb", "#8a6d00", "#4b5563", "#0e7c86")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""With the colours: lines that can be told apart without seeing colour."""
TRIAL_MARKS = {"finished": ("o", BLUE), "pruned": ("x", GREY)}


@dataclass(frozen=True)
class Picture:
    """A figure under the name of its files."""

    name: str
    alt: str
    figure: Figure


Point = tuple[float, float, float, float]
"""(x, score, low, high)."""
Lines = Mapping[str, Sequence[Point]]
"""Points by method; all methods are in it, so that the same one has the same colour everywhere."""


# -------------------------------------------------------------------------------------- experiments


def draw_curve(title: str, metric: str, lines: Lines, limits: tuple[float, float]) -> Figure:
    """Score against training examples, with each method's 95 % band."""
    with chart(title, SIZE, x_label="training examples", y_label=metric) as (figure, axes):
        axes.set_ylim(*limits)
        for (name, points), colour, marker in zip(lines.items(), cycle(COLOURS), cycle(MARKERS)):
            if points:
                x, mean, low, high = np.array(sorted(points)).T
                axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
                axes.plot(x, mean, color=colour, marker=marker, linewidth=1.8, label=name)
        examples = sorted({point[0] for points in lines.values() for point in points})
        if min(examples) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(examples, [f"{n:,.0f}" for n in examples])
        _legend(figure, axes)
    return figure


def draw_front(
    title: str, x_label: str, metric: str, lines: Lines, limits: tuple[float, float], *, higher_is_better: bool
) -> Figure:
    """Score against a cost, one point for each method, and the front: the points that no cheaper one equals."""
    with chart(title, SIZE, x_label=x_label, y_label=metric) as (figure, axes):
        axes.set_ylim(*limits)
        for (name, points), colour, marker in zip(lines.items(), cycle(COLOURS), cycle(MARKERS)):
            for x, mean, low, high in points:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.6)
                axes.plot([x], [mean], marker, color=colour, markersize=9, label=name)
        scores = [point[:2] for points in lines.values() for point in points]
        front = pareto_front(scores, higher_is_better=higher_is_better)
        axes.plot(*zip(*front, strict=True), color=GREY, linewidth=1, linestyle="--", drawstyle="steps-post", zorder=1)
        least, most = min(scores)[0], max(scores)[0]
        if least > 0:
            axes.set_xscale("log")
            subs = (1.0,) if most > 200 * least else (1.0, 2.0, 5.0)
            axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=10))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(least / 1.6, most * 1.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        _legend(figure, axes)
    return figure


def draw_heat_map(
    title: str, table: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], limits: tuple[float, float]
) -> Figure:
    """Scores by source (rows) and target (columns); what was not measured is left white."""
    size = 1.9 + 1.15 * len(columns), 1.5 + 0.62 * len(rows)
    with chart(title, size, x_label="tested on", y_label="trained on") as (figure, axes):
        axes.grid(visible=False)
        axes.imshow(table, cmap="Blues", vmin=limits[0], vmax=limits[1], aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
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
    """Three digits and a unit.

    >>> [short(v) for v in (0.5, 12.0, 12810, 3_400_000)]
    ['0.5', '12', '12.8k', '3.4M']
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _legend(figure: Figure, axes: Axes) -> None:
    names = axes.get_legend_handles_labels()[1]
    columns = 3 if max(map(len, names), default=0) < 14 else 2
    figure.legend(loc="outside lower center", ncols=min(columns, len(names)), fontsize=11)


# ------------------------------------------------------------------- searches and learning rates


def draw_progress(trials: Sequence[tuple[int, float, str]], score: str, *, higher_is_better: bool) -> Figure:
    """Validation score, by its name, of each trial, and the best so far; trials are (number, score, state)."""
    with chart("Trials", SIZE, x_label="trial", y_label=score) as (figure, axes):
        _scatter(axes, trials)
        finished = [(number, score) for number, score, state in trials if state == "finished"]
        best = accumulate((score for _, score in finished), max if higher_is_better else min)
        axes.step([number for number, _ in finished], list(best), where="post", color=ORANGE, label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(fontsize=11)
    return figure


def draw_by_key(key: str, trials: Sequence[tuple[object, float, str]], score: str, *, log: bool = False) -> Figure:
    """Validation score by a recipe key, on a logarithmic axis where it was searched so; trials are (value, score,
    state)."""
    values = [value for value, _, _ in trials]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    names = sorted({str(value) for value in values}) if len(numbers) < len(values) else []
    with chart(words(key.rpartition(".")[2]).capitalize(), SIZE, x_label=key, y_label=score) as (figure, axes):
        places = [names.index(str(value)) for value in values] if names else numbers
        _scatter(axes, [(place, score, state) for place, (_, score, state) in zip(places, trials, strict=True)])
        if names:
            axes.set_xticks(range(len(names)), names)
        elif log or (min(numbers) > 0 and max(numbers) / min(numbers) >= 10):
            _logarithmic(axes)
        elif len(set(numbers)) <= 6:
            axes.set_xticks(sorted(set(numbers)))
    return figure


def _scatter(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    for state, (mark, colour) in TRIAL_MARKS.items():
        chosen = [(x, score) for x, score, its in points if its == state]
        if not chosen:  # else the legend would name what is not there
            continue
        label = "ended early" if state == "pruned" else state
        axes.plot(*np.array(chosen).reshape(-1, 2).T, mark, color=colour, markersize=7, label=label)


def draw_learning_rates(rates: Sequence[float], losses: Sequence[float], suggested: float) -> Figure:
    """Smoothed training loss by learning rate, and the rate that it suggests."""
    labels = {"x_label": "learning rate", "y_label": "training loss, smoothed"}
    with chart("Learning rate range test", (6.4, 4.2), **labels) as (figure, axes):
        axes.plot(rates, losses, color=BLUE, linewidth=1.8)
        _logarithmic(axes)
        axes.axvline(suggested, color=ORANGE, linewidth=1.3, label=f"suggested: {suggested:.1e}")
        axes.legend(fontsize=11)
    return figure


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
