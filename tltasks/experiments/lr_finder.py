"""Learning rate range test: a short training while the rate rises a millionfold, and where the loss falls fastest.

Source: Smith, https://arxiv.org/abs/1506.01186, §3.3; smoothing and the choice as in fastai's `lr_find`,
https://docs.fast.ai/callback.schedule.html.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Recipe
from tltasks.errors import DataError, RecipeError, TrainingError
from tltasks.experiments.charts import draw_learning_rates
from tltasks.reports.charts import png
from tltasks.runs.story import run
from tltasks.runtime.files import write_json

SMOOTHING = 0.9
"""Share of the mean loss before in the mean loss after a step; corrected for its start."""
DIVERGED = 4.0
"""Times the smallest mean loss, from where on training counts as diverged."""
FEWEST = 10
"""Steps before the loss diverges, below which nothing can be read off."""


@dataclass(frozen=True)
class LearningRateRange:
    """What the test says of learning rates."""

    rates: list[float]
    losses: list[float]
    """Smoothed."""
    steepest: float
    """Rate at which the loss falls fastest, to train with."""
    largest: float
    """A tenth of the rate with the smallest loss: the most that is advisable."""


def find_learning_rate(
    path: Path | str, overrides: Iterable[str] = (), *, output: Path | str, highest: float = 1.0, steps: int = 100
) -> LearningRateRange:
    """Train the recipe's first stage that is trained in steps while the rate rises to `highest`.

    It begins at a millionth of it. Figure and numbers are in `output`, no weights. Raises DataError where the loss
    diverges before anything can be read off, and a TltasksError for what else the user can mend.
    """
    recipe, output = load_recipe(Path(path), overrides), Path(output)
    if output.is_dir() and any(output.iterdir()) and not (output / "range.json").is_file():
        raise DataError(f"output {output}: is not empty and holds no range test; name another folder with --output.")
    training = output / "training"
    shutil.rmtree(training, ignore_errors=True)
    try:
        run(_rising(recipe, highest, steps), output=training)
    except TrainingError as error:
        if not (training / "metrics.jsonl").is_file():
            raise
        ended = str(error)  # a loss that is not finite, at a rate that is far too high
    else:
        ended = ""
    found = read_range(training / "metrics.jsonl", ended)
    shutil.rmtree(training)
    write_json(output / "range.json", found)
    marked = {"steepest": found.steepest, "minimum / 10": found.largest}
    (output / "range.png").write_bytes(png(draw_learning_rates(found.rates, found.losses, marked)))
    return found


def _rising(recipe: Recipe, highest: float, steps: int) -> Recipe:
    looping = [i for i, stage in enumerate(recipe.stages) if stage.loops and stage.start == "checkpoint"]
    if not looping:
        raise RecipeError("range-test: the recipe has no stage that is trained in steps from a checkpoint.")
    update = {
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


def read_range(metrics: Path, ended: str = "") -> LearningRateRange:
    """From the losses that were logged. Raises DataError where they diverge before anything can be read off."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    logged = pd.DataFrame([row for row in rows if row["split"] == "train" and row["loss"] is not None])
    rates = logged["learning_rate"].to_numpy(np.float64)
    # Corrected for its start at zero, as pandas does by default.
    losses = logged["loss"].astype(float).ewm(alpha=1 - SMOOTHING).mean().to_numpy()
    least = np.minimum.accumulate(losses)
    diverged = np.flatnonzero((losses > DIVERGED * np.abs(least)) & (np.arange(len(losses)) > FEWEST))
    if len(diverged):
        rates, losses = rates[: diverged[0]], losses[: diverged[0]]
    if len(losses) < FEWEST:
        raise DataError(f"range-test: training ended after {len(losses)} steps. {ended}".rstrip())
    best = max(int(np.argmin(losses)), 2)
    slope = np.gradient(losses[: best + 1], np.log10(rates[: best + 1]))
    steepest, largest = float(rates[int(np.argmin(slope))]), float(rates[best] / 10)
    return LearningRateRange(rates.tolist(), losses.tolist(), steepest, largest)
