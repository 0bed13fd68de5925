"""The report's figures, as SVG that is the same for the same numbers.

Drawn through `matplotlib.figure.Figure`, since pyplot keeps figures in global state.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLUE, ORANGE, GREY = "#1d5fb4", "#c4560c", "#6b7280"
DRAWN_POINTS = 800
"""More points than this cannot be told apart at the width of a screen."""
LETTERS_OF_AN_INCH = 9.5
"""Of a title, before it goes on in a second line."""
STYLE: dict[Any, Any] = {
    # Glyphs as outlines and ids from a fixed salt: the same bytes on every machine.
    "svg.fonttype": "path",
    "svg.hashsalt": "tltasks",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.edgecolor": "none",  # no frame, and no line of the figure through the text
    "legend.framealpha": 0.85,
    "legend.fontsize": 11,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}


def draw_loss(
    train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], best_step: int | None
) -> str:
    """Loss by step: training raw and smoothed, and validation where it was measured; points are (step, loss)."""
    with chart("Loss", (5.0, 3.1)) as (figure, axes):
        if train:
            steps, losses = _columns(train)
            smooth, width = smoothed(losses)
            if width > 1:
                axes.plot(*thinned(steps, losses), color=BLUE, alpha=0.25, linewidth=0.8)
            label = f"train, mean of {width} steps" if width > 1 else "train"
            axes.plot(*thinned(steps, smooth), color=BLUE, linewidth=1.8, label=label)
        if validation:
            _curve(axes, validation, ORANGE, "validation")
        _mark_best(axes, best_step)
        axes.legend()
    return svg(figure)


def draw_metric(name: str, points: Sequence[tuple[int, float]], best_step: int | None, *, small: bool = False) -> str:
    """A validation metric by step."""
    with chart(f"Validation {name}", (3.6, 2.4) if small else (5.0, 3.1)) as (figure, axes):
        _curve(axes, points, ORANGE, None)
        _mark_best(axes, best_step)
        if best_step is not None and not small:
            axes.legend()
    return svg(figure)


def draw_alphas(metric: str, alphas: Sequence[float], by_split: Mapping[str, Sequence[float]], *, chosen: float) -> str:
    """A metric on each split, over the share of the way from the weights before training to those after it."""
    label = "α: 0 the start, 1 the trained weights"
    with chart(f"{metric} of interpolated weights", (5.0, 3.1), x_label=label) as (figure, axes):
        for i, (name, values) in enumerate(by_split.items()):
            colour = BLUE if name == "test" else ORANGE if name == "validation" else f"C{i}"
            axes.plot(alphas, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
        axes.axvline(chosen, color=GREY, linewidth=1, linestyle="--", label=f"chosen, {chosen:g}")
        axes.legend()
    return svg(figure)


def draw_answered(points: Sequence[Mapping[str, float]]) -> str:
    """Accuracy of the rows that are answered, with its 95 % interval, by their share of all."""
    with chart("Accuracy of what is answered", (5.0, 3.1), x_label="share of examples answered, the surest first") as (
        figure,
        axes,
    ):
        share, accuracy, low, high = (
            [point[key] for point in points] for key in ("coverage", "accuracy", "low", "high")
        )
        axes.fill_between(share, low, high, color=BLUE, alpha=0.15, linewidth=0, label="95 % interval")
        axes.plot(share, accuracy, color=BLUE, linewidth=1.8, marker="o", markersize=3)
        axes.set_xlim(0, 1.02)
        axes.legend(loc="lower left")
    return svg(figure)


def draw_learning_rate(points: Sequence[tuple[int, float]]) -> str:
    """The learning rate by step."""
    with chart("Learning rate", (3.6, 2.4)) as (figure, axes):
        axes.plot(*thinned(*_columns(points)), color=GREY, linewidth=1.6)
        axes.set_ylim(bottom=0)
    return svg(figure)


def draw_intervals(
    metric: str,
    arms: Sequence[tuple[str, float, tuple[float, float]]],
    *,
    title: str = "",
    marked: int = 0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Value and 95 % interval of each arm, one of them marked: the model, first, and each baseline."""
    size, label = (5.0, 1.1 + 0.42 * len(arms)), metric if title else ""
    with chart(title or f"{metric} with 95 % interval", size, x_label=label) as (figure, axes):
        for place, (_, value, interval) in enumerate(arms):
            colour = BLUE if place == marked else GREY
            axes.plot(interval, [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            axes.plot([value], [place], "o", color=colour, markersize=7)
            axes.annotate(f"{value:.3f}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=11)
        axes.set_yticks(range(len(arms)), [name for name, _, _ in arms])
        axes.set_ylim(len(arms) - 0.5, -0.75)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.08)
        axes.set_xlim(limits)
        axes.grid(visible=False, axis="y")
    return figure


def draw_matrix(shares: Floats) -> str:
    """A confusion matrix with too many classes for numbers: `shares` [true, predicted], each row summing to 1."""
    with chart("", (5.0, 5.0), x_label="predicted class") as (figure, axes):
        axes.grid(visible=False)
        # Square-rooted colours, so that a few mistakes in a hundred can be seen at all.
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="none")
        axes.set_ylabel("true class")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
    return svg(figure)


def smoothed(values: Floats) -> tuple[Floats, int]:
    """Centred running mean, shorter at both ends, and its width.

    >>> smoothed(np.array([1.0, 5.0, 3.0]))
    (array([1., 5., 3.]), 1)
    """
    width = 2 * (len(values) // 60) + 1
    kernel = np.ones(width)
    total: Floats = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return total, width


def thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """At most `DRAWN_POINTS` of the points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(values) <= DRAWN_POINTS:
        return steps, values
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(values)), DRAWN_POINTS // 2):
        ends = {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
        kept.extend(sorted(ends))
    return steps[kept], values[kept]


@contextmanager
def chart(
    title: str, inches: tuple[float, float], *, x_label: str = "step", y_label: str = ""
) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, to draw on in the style of all figures."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=inches, facecolor="white")
        axes = figure.add_subplot()
        lines = textwrap.fill(title, int(LETTERS_OF_AN_INCH * inches[0]))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=13)  # from the edge: long names of arms leave less room
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x_label == "step"))
        yield figure, axes


def _curve(axes: Axes, points: Sequence[tuple[int, float]], colour: str, label: str | None) -> None:
    steps, values = _columns(points)
    axes.plot(
        *thinned(steps, values), color=colour, linewidth=1.8, label=label, marker="o" * (len(points) <= 40) or None
    )


def _mark_best(axes: Axes, step: int | None) -> None:
    if step is not None:
        axes.axvline(step, color=GREY, linewidth=1, linestyle="--", label=f"best, step {step}")


def _columns(points: Sequence[tuple[int, float]]) -> tuple[Floats, Floats]:
    table = np.array(points, dtype=np.float64)
    return table[:, 0], table[:, 1]


def svg(figure: Figure) -> str:
    """The figure as a file that is the same for the same numbers."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as a picture for other programs and papers."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()
