"""Learning rate range test: a short training while the rate rises a millionfold, and the rate that its losses suggest.

Source: Smith, https://arxiv.org/abs/1506.01186, §3.3; what is left out, the smoothing and the choice are those of
fastai's `lr_find` with its rule `valley`, https://docs.fast.ai/callback.schedule.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tltasks.config.loading import Overrides, load_recipe
from tltasks.config.recipe import Recipe, consented
from tltasks.errors import DataError, RecipeError, TrainingError
from tltasks.experiments.charts import draw_learning_rates
from tltasks.reports.charts import png
from tltasks.runs.callbacks import StepInfo
from tltasks.runs.story import run
from tltasks.runtime.files import check_place, is_occupied, locked, write_bytes, write_json
from tltasks.training.optimizer import learning_rate_factor

Floats = NDArray[np.float64]
SMOOTHING = 0.9
"""Share of the mean loss before in the mean loss after a step; corrected for its start."""
DIVERGED = 4.0
"""Times the smallest mean loss, from where on training counts as diverged."""
START = 0.1
"""Share of the steps, the first, that is left out: there the loss tells of the first batches, not of the rate."""
FEWEST = 10
"""Steps before the loss diverges, below which nothing can be read off."""


@dataclass(frozen=True)
class LearningRateRange:
    """Learning rate that a range test suggests, and what it measured."""

    rates: list[float]
    losses: list[float]
    """Smoothed."""
    suggested: float
    """Rate to train with: half-way down the longest fall of the loss."""


def find_learning_rate(
    recipe: Path | str | Mapping[str, object],
    overrides: Overrides = (),
    *,
    output: Path | str,
    highest: float = 1.0,
    steps: int = 100,
    trust_remote_code: bool = False,
) -> LearningRateRange:
    """Train the recipe's first stage that is trained in steps while the rate rises to `highest`.

    It begins at a millionth of it, and training ends when the loss diverges. Figure and numbers are in `output`, no
    weights. Raises DataError where the loss diverges before anything can be read off, and a TltasksError for what else
    the user can mend.
    """
    rising, output = _rising(consented(load_recipe(recipe, overrides), trust_remote_code), highest, steps), Path(output)
    check_place(output)
    if is_occupied(output) and not (output / "range.json").is_file():
        raise DataError(f"output {output}: is not empty and holds no range test; name another folder with --output.")
    losses: list[float] = []

    def on_step(step: StepInfo) -> bool:
        losses.append(step.loss)
        return _diverged(_smooth(losses[math.ceil(START * steps) :])) is not None

    ended = ""
    with locked(output), TemporaryDirectory(dir=output, prefix=".", suffix=".tmp") as training:
        try:
            run(rising, output=training, on_step=on_step)
        except TrainingError as error:  # a loss that is not finite, at a rate that is far too high
            if not losses:
                raise
            ended = str(error)
    factors = [learning_rate_factor(s, total=steps, warmup=0.0, schedule="exponential") for s in range(steps)]
    found = read_range([highest * factor for factor in factors], losses, ended)
    write_json(output / "range.json", found)
    write_bytes(output / "range.png", png(draw_learning_rates(found.rates, found.losses, found.suggested)))
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


def read_range(rates: Sequence[float], losses: Sequence[float], ended: str = "") -> LearningRateRange:
    """Read the range off the losses, which may be fewer than the rates.

    Raises DataError where the loss diverges before anything can be read off, or never falls.
    """
    start = math.ceil(START * len(rates))
    smoothed = _smooth(losses[start:])
    smoothed = smoothed[: _diverged(smoothed)]
    if len(smoothed) < FEWEST:
        raise DataError(f"range-test: training ended after {len(losses)} steps. {ended or 'Name more with --steps.'}")
    rates, valley = list(rates[start : start + len(smoothed)]), _valley(smoothed)
    if valley is None:
        raise DataError(
            f"range-test: the loss falls at no rate from {rates[0]:.1e} to {rates[-1]:.1e}; name another --highest, or "
            "check the data: there may be nothing to learn."
        )
    return LearningRateRange(rates, smoothed.tolist(), rates[valley])


def _valley(losses: Floats) -> int | None:
    """The place half-way down the longest fall; None where there is none to speak of.

    The longest fall has the most losses each smaller than the one before it, others between them left out. Source:
    fastai 2.7, callback/schedule.py, `valley`.
    """
    lengths = np.ones(len(losses), dtype=int)
    for place in range(1, len(losses)):
        lengths[place] += lengths[:place][losses[:place] > losses[place]].max(initial=0)
    end, length = int(lengths.argmax()), int(lengths.max())
    return None if length < FEWEST / 2 else end - length + 1 + length // 2


def _smooth(losses: Sequence[float]) -> Floats:
    """Exponential means, corrected for their start at zero as pandas does by default."""
    smoothed: Floats = pd.Series(losses, dtype=np.float64).ewm(alpha=1 - SMOOTHING).mean().to_numpy()
    return smoothed


def _diverged(losses: Floats) -> int | None:
    """The first step, after the fewest, whose mean loss is far above the smallest until then."""
    least = np.minimum.accumulate(losses)
    beyond = np.flatnonzero((losses > DIVERGED * np.abs(least)) & (np.arange(len(losses)) > FEWEST))
    return int(beyond[0]) if len(beyond) else None
