"""The learning rate range test: a short training while the rate rises a millionfold, and where the loss falls fastest.

Source: Smith, https://arxiv.org/abs/1506.01186, §3.3; smoothing and the choice as in fastai's `lr_find`,
https://docs.fast.ai/callback.schedule.html.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Recipe
from tltasks.errors import DataError, RecipeError, TrainingError
from tltasks.experiments.charts import COLOURS, Picture
from tltasks.reports.charts import GREY, STYLE
from tltasks.runs.story import run
from tltasks.runtime.files import write_json

Floats = NDArray[np.float64]
SMOOTHING = 0.9
"""Share of the mean loss before in the mean loss after a step; corrected for its start."""
DIVERGED = 4.0
"""Times the smallest mean loss, from where on training counts as diverged."""
FEWEST = 10
"""Steps before the loss diverges, below which nothing can be read off."""


@dataclass(frozen=True)
class Range:
    """What the test says."""

    rates: list[float]
    losses: list[float]
    """Smoothed."""
    steepest: float
    """Rate at which the loss falls fastest, to train with."""
    largest: float
    """A tenth of the rate with the smallest loss: the most that is advisable."""


def find_learning_rate(path: Path, overrides: list[str], *, highest: float, steps: int, output: Path) -> Range:
    """Train the recipe's first stage that is trained in steps; figure and numbers are in `output`, no weights."""
    recipe = load_recipe(path, overrides)
    if output.is_dir() and any(output.iterdir()) and not (output / "range.json").is_file():
        raise DataError(f"output {output}: is not empty and holds no range test; name another folder with --output.")
    training = output / "training"
    shutil.rmtree(training, ignore_errors=True)
    try:
        run(_rising(recipe, highest, steps), output=training, resume=False, push=False, dry_run=False)
    except TrainingError as error:
        if not (training / "metrics.jsonl").is_file():
            raise
        ended = str(error)  # a loss that is not finite, at a rate that is far too high
    else:
        ended = ""
    found = read_range(training / "metrics.jsonl", ended)
    shutil.rmtree(training)
    write_json(output / "range.json", vars(found))
    (output / "range.png").write_bytes(Picture("range", "loss by learning rate", _draw(found)).png())
    return found


def _rising(recipe: Recipe, highest: float, steps: int) -> Recipe:
    looping = [i for i, stage in enumerate(recipe.stages) if stage.loops and stage.start == "checkpoint"]
    if not looping:
        raise RecipeError("range-test: the recipe has no stage that is trained in steps from a checkpoint.")
    update: dict[str, Any] = {
        "steps": steps,
        "epochs": None,
        "learning_rate": highest,
        "schedule": "exponential",
        "warmup": 0.0,
        "keep": "last",
        "ema": None,
        "interpolate": None,
        "unfreeze_epochs": None,
        "evaluate_every": steps,
        "early_stopping": None,
    }
    return recipe.model_copy(update={"stages": [recipe.stages[looping[0]].model_copy(update=update)]})


def read_range(metrics: Path, ended: str = "") -> Range:
    """From the losses that were logged. Raises DataError where they diverge before anything can be read off."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "train" and row["loss"] is not None]
    rates, raw = (np.array([row[key] for row in rows], dtype=np.float64) for key in ("learning_rate", "loss"))
    losses = smooth(raw)
    if len(losses):
        least = np.minimum.accumulate(losses)
        diverged = np.flatnonzero((losses > DIVERGED * np.abs(least)) & (np.arange(len(losses)) > FEWEST))
        if len(diverged):
            rates, losses = rates[: diverged[0]], losses[: diverged[0]]
    if len(losses) < FEWEST:
        raise DataError(f"range-test: training ended after {len(losses)} steps. {ended}".rstrip())
    best = max(int(np.argmin(losses)), 2)
    slope = np.gradient(losses[: best + 1], np.log10(rates[: best + 1]))
    return Range(rates.tolist(), losses.tolist(), float(rates[int(np.argmin(slope))]), float(rates[best] / 10))


def smooth(values: Floats) -> Floats:
    """Exponential mean that is corrected for its start at zero.

    >>> smooth(np.array([2.0, 2.0, 2.0])).round(6).tolist()
    [2.0, 2.0, 2.0]
    """
    mean, found = 0.0, []
    for i, value in enumerate(values):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(value)
        found.append(mean / (1 - SMOOTHING ** (i + 1)))
    return np.array(found)


def _draw(found: Range) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), facecolor="white")
        axes = figure.add_subplot()
        axes.plot(found.rates, found.losses, color=COLOURS[0], linewidth=1.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="learning rate", ylabel="training loss, smoothed", title="learning rate range test")
        axes.axvline(found.steepest, color=COLOURS[1], linewidth=1.4, label=f"steepest: {found.steepest:.1e}")
        axes.axvline(
            found.largest, color=GREY, linestyle="--", linewidth=1.2, label=f"minimum / 10: {found.largest:.1e}"
        )
        axes.legend(fontsize=11)
    return figure
