"""The report of a search: one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tltasks.experiments.charts import COLOURS, Picture
from tltasks.experiments.report import environment
from tltasks.reports.charts import GREY, STYLE

MARKS = {"finished": ("o", COLOURS[0]), "pruned": ("x", GREY)}


def write_search_report(path: Path, keys: list[str], result: dict[str, Any]) -> None:
    """Write the page; `result` is what result.json holds. The same arguments give the same bytes."""
    trials = [trial for trial in result["trials"] if trial["value"] is not None]
    sign = 1 if result["higher_is_better"] else -1
    pictures = [Picture("progress", "score by trial, and the best so far", _progress(trials, sign))]
    pictures += [Picture(f"key-{i}", f"score by {key}", _by_key(trials, key)) for i, key in enumerate(keys)]
    ordered = sorted(
        result["trials"],
        key=lambda trial: (trial["state"] != "finished", trial["value"] is None, -sign * (trial["value"] or 0.0)),
    )
    text = (
        environment()
        .get_template("search.html.jinja")
        .render(result=result, keys=keys, trials=ordered, pictures=pictures)
    )
    path.write_text(text, encoding="utf-8")


def _chart(title: str, x_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, 4.0), facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel("validation score")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _progress(trials: list[dict[str, Any]], sign: int) -> Figure:
    with mpl.rc_context(STYLE):
        figure, axes = _chart("trials", "trial")
        for state, (mark, colour) in MARKS.items():
            chosen = [trial for trial in trials if trial["state"] == state]
            numbers, values = [t["number"] for t in chosen], [t["value"] for t in chosen]
            axes.plot(numbers, values, mark, color=colour, markersize=7, label=state)
        finished = [trial for trial in trials if trial["state"] == "finished"]
        best = sign * np.maximum.accumulate([sign * trial["value"] for trial in finished])
        axes.step([t["number"] for t in finished], best, where="post", color=COLOURS[1], label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(fontsize=11)
    return figure


def _by_key(trials: list[dict[str, Any]], key: str) -> Figure:
    with mpl.rc_context(STYLE):
        figure, axes = _chart(key.rpartition(".")[2], key)
        values = [trial["settings"].get(key) for trial in trials]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        names = [] if numbers else sorted({str(value) for value in values})
        places = values if numbers else [names.index(str(value)) for value in values]
        for state, (mark, colour) in MARKS.items():
            chosen = [i for i, trial in enumerate(trials) if trial["state"] == state]
            axes.plot(
                [places[i] for i in chosen], [trials[i]["value"] for i in chosen], mark, color=colour, markersize=7
            )
        if not numbers:
            axes.set_xticks(range(len(names)), names)
        elif len(set(values)) <= 6:
            axes.set_xticks(sorted(set(values)))
        elif min(values) > 0 and max(values) / min(values) >= 10:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
    return figure
