"""Estimates for tasks that write: the loss of the checkpoint as it is, and short training of ever fewer candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import send_to_device

from tltasks.config.recipe import Recipe, plan_run
from tltasks.config.stage import Stage
from tltasks.errors import DataError
from tltasks.experiments.trials import Failure, Outcome
from tltasks.runs.story import open_stages
from tltasks.tasks.base import Writes
from tltasks.training.evaluation import drawn_rows

LOSS_ROWS = 64
"""Training examples, drawn with the seed, that the loss is taken over."""
FIRST_STEPS = 8
"""Of the first round of halving; each round has twice as many."""
VALIDATION = 0.2
"""Share of the training split that rounds are judged by, where the recipe has no validation split."""


@dataclass(frozen=True)
class Estimated:
    """An estimate, and the seconds that it took."""

    value: float | None
    seconds: float


def zero_shot_loss(recipe: Recipe, output: Path) -> Estimated:
    """Log likelihood of the training examples' texts by the checkpoint as it is, in nats a character: (−∞, 0].

    By characters, since checkpoints with other vocabularies cut the same text into other tokens. None for a stage
    that puts a new head on the checkpoint: there is nothing yet that could write.
    """
    context, (item,) = open_stages(plan_run(stage_alone(recipe), output))
    task = item.task
    assert isinstance(task, Writes)
    if item.plan.kind.head == "new":
        return Estimated(None, 0.0)
    started = time.perf_counter()
    split = item.encoded["train"].rows
    rows = split.select(drawn_rows(len(split), LOSS_ROWS, seed=recipe.seed))
    built = task.build(item.plan.kind)
    task, model = built.task, built.model.to(context.accelerator.device).eval()
    nats = 0.0
    for i in range(len(rows)):
        batch = send_to_device(task.collate_train(rows, [i], epoch=0), context.accelerator.device)
        with torch.no_grad(), context.accelerator.autocast():
            nats += float(task.loss(model, batch)) * float(task.num_targets(batch))
    characters = sum(map(len, task.target_texts(rows)))
    return Estimated(-nats / max(1, characters), time.perf_counter() - started)


def successive_halving(
    recipes: dict[str, Recipe], train: Callable[[str, Recipe], Outcome], *, logs: Path
) -> dict[str, Estimated]:
    """Train all candidates for a few steps, the better half for twice as many, and so on until one is left.

    The estimate is how many rounds a candidate was let through, and within a round its place among those that left
    then: [0, rounds). Source: Jamieson and Talwalkar, https://arxiv.org/abs/1502.07943. Each round begins anew, so that
    a round is a trial like any other, which `train` carries out or finds again. Raises DataError, which names the
    folder of `logs`, when no candidate can be trained.
    """
    alive, spent = dict(recipes), dict.fromkeys(recipes, 0.0)
    found: dict[str, float | None] = {}
    n_rounds = max(1, math.ceil(math.log2(max(2, len(recipes)))))
    for number in range(n_rounds):
        scores: dict[str, float] = {}
        for name, recipe in alive.items():
            outcome = train(name, _short(recipe, number))
            if isinstance(outcome, Failure):
                found[name] = None
                continue
            spent[name] += outcome.training_seconds
            scores[name] = (1.0 if outcome.higher_is_better else -1.0) * outcome.targets["validation"].value
        if not scores:
            raise DataError(f"no candidate could be trained; their logs are in {logs}.")
        order = sorted(scores, key=lambda name: scores[name])
        last = number == n_rounds - 1
        leaving = order if last else order[: len(order) - math.ceil(len(order) / 2)]
        for place, name in enumerate(leaving):
            ties = sum(scores[other] == scores[name] for other in order[:place])
            found[name] = number + (place - ties) / len(order)
        alive = {name: alive[name] for name in order if name not in leaving}
    return {name: Estimated(found[name], spent[name]) for name in recipes}


def stage_alone(recipe: Recipe, stage: Stage | None = None) -> Recipe:
    """The recipe whose one stage is the last, or another of the same task, from the checkpoint of the first."""
    plans = plan_run(recipe).stages
    if stage is None:
        last = plans[-1].stage
        own = dict.fromkeys({"model", "data", "task"} & set(type(last).model_fields))
        stage = last.model_copy(update={"start": "checkpoint", **own})
    only = {"task": plans[-1].task, "model": plans[0].model, "data": plans[-1].data, "stages": [stage]}
    return recipe.model_copy(update=only)


def _short(recipe: Recipe, number: int) -> Recipe:
    """The recipe with the steps of a round, a validation split, and no test set that could be looked at."""
    alone = stage_alone(recipe)
    stage = alone.stages[0].model_copy(
        update={"steps": FIRST_STEPS * 2**number, "epochs": None, "keep": "last", "evaluate_every": None}
    )
    assert alone.data is not None
    splits = alone.data.splits
    held = splits.set_aside if splits.test is None or isinstance(splits.test, str) else splits.test
    data = alone.data.model_copy(
        update={
            "splits": splits.model_copy(
                update={"test": None, "set_aside": held, "validation": splits.validation or VALIDATION}
            ),
            "extra_test": {},
            **({"corruptions": None} if hasattr(alone.data, "corruptions") else {}),
        }
    )
    return alone.model_copy(update={"stages": [stage], "data": data})
