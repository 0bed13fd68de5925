"""The story of `tltasks rank`: candidates by what their features say of the target's training data, before training."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import nn

from tltasks.config.plan import plan_stages
from tltasks.config.recipe import Recipe
from tltasks.config.tasks import TASKS
from tltasks.errors import RecipeError
from tltasks.experiments.analysis import Findings, analyse
from tltasks.experiments.experiment import Cell, Experiment, Levels, load_experiment
from tltasks.experiments.plan import PlannedCell, plan_cells
from tltasks.experiments.successive_halving import LOSS_ROWS, successive_halving, zero_shot_loss
from tltasks.experiments.transferability import ESTIMATORS
from tltasks.results.result import finite, show_duration
from tltasks.runs.prepare import PreparedStage
from tltasks.runs.story import open_recipe
from tltasks.runtime.files import locked, write_json
from tltasks.tasks import load_adapter
from tltasks.tasks.base import Embeds, Writes
from tltasks.training.linear_probe import cached_features

Floats = NDArray[np.float64]
SAMPLES = 2000
"""Bootstrap samples of the interval of τ."""


@dataclass(frozen=True)
class Judged:
    """A candidate on one target: its estimates, and what they cost."""

    context: Levels
    candidate: str
    estimates: dict[str, float | None]
    """None where an estimator has nothing to go by: LEEP for a checkpoint that is no classifier."""
    rows: int
    pass_seconds: float
    """Of the features; next to nothing where the cache has them."""
    seconds: dict[str, float]
    """Of each estimator beside that."""
    truth: dict[str, float] = field(default_factory=dict)
    """What fine-tuning came to, by level of the contrast, where `tltasks compare` has measured it."""
    truth_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """How well an estimator's order is that of fine-tuning, over targets."""

    estimator: str
    level: str
    tau: float
    """Weighted Kendall's τ, the mean over targets; 1 is the same order, and the best candidates weigh most."""
    low: float
    high: float
    """95 % bootstrap interval over candidates within targets: wide with few of them."""
    pairs: int
    cost: float
    """Seconds of the pass and the estimator, over those of the fine-tuning that it would replace."""


def rank(path: Path, overrides: list[str], *, output: Path | None) -> None:
    """Judge every candidate on every target, print and write the order. Raises TltasksError for the user's mistakes."""
    console = Console(stderr=True, highlight=False)
    experiment, cells = load_experiment(path, overrides)
    if experiment.candidates is None:
        raise RecipeError(f"{path}: needs the key `candidates`, the axis whose levels are checkpoints to be ranked.")
    output = output or Path(experiment.output).expanduser()
    with locked(output):
        (output / "cells").mkdir(exist_ok=True)
        planned = plan_cells(cells, output)
        pairs = asked(experiment, cells)
        task = load_adapter(plan_stages(pairs[0][2].recipe)[-1].task)
        if issubclass(task, Embeds):
            judged = [judge(cell.recipe, context, candidate, output) for context, candidate, cell in pairs]
        elif issubclass(task, Writes):
            judged = judge_by_training(pairs, output)
        else:
            raise RecipeError(f"{path}: {task.tag} has neither features nor texts by which candidates could be ranked.")
        for one in judged:
            shown = ", ".join([*one.context.values(), one.candidate])
            taken = one.pass_seconds + sum(one.seconds.values())
            console.print(f"{shown}: {one.rows:,} rows, {show_duration(taken)}", soft_wrap=True, markup=False)
        judged = with_truth(experiment, planned, judged, output)
        agreements = agree(judged)
        write_json(
            output / "rank.json",
            finite({"judged": [vars(j) for j in judged], "agreement": [vars(a) for a in agreements]}),
        )
    show(console, judged, agreements)
    console.print(f"numbers  {output / 'rank.json'}", soft_wrap=True)


def asked(experiment: Experiment, cells: list[Cell]) -> list[tuple[Levels, str, Cell]]:
    """Targets, candidates, and a cell of each pair: methods share their features, and one seed stands for all."""
    axis = experiment.candidates
    assert axis is not None
    apart = {axis, experiment.contrast.axis if experiment.contrast is not None else None}
    found: dict[tuple[tuple[tuple[str, str], ...], str], Cell] = {}
    for cell in cells:
        context = tuple((name, level) for name, level in cell.levels.items() if name not in apart)
        found.setdefault((context, cell.levels[axis]), cell)
    return [(dict(context), candidate, cell) for (context, candidate), cell in found.items()]


def judge(recipe: Recipe, context: Levels, candidate: str, output: Path) -> Judged:
    """All estimates of a checkpoint on its recipe's training data, from one pass through it."""
    plans = plan_stages(recipe)
    probe = TASKS[plans[-1].task].stage(stage="probe")
    only = {"task": plans[-1].task, "model": plans[0].model, "data": plans[-1].data, "stages": [probe]}
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, (item,) = open_recipe(recipe.model_copy(update=only), output)
    model = item.task.build(item.plan.kind).model
    started = time.perf_counter()
    head, split = item.task.head(model)[0], item.encoded["train"]
    features = cached_features(accelerator, item.task, model, head, split, workers=0)
    pass_seconds = time.perf_counter() - started
    labels = np.array(item.task.references(split.rows), dtype=np.int64)
    theta = source_probabilities(item, model, head, features)
    estimates, seconds = {}, {}
    for name, estimator in ESTIMATORS.items():
        started = time.perf_counter()
        estimates[name] = estimator(features, labels, theta, recipe.seed)
        seconds[name] = time.perf_counter() - started
    return Judged(context, candidate, estimates, len(labels), pass_seconds, seconds)


def judge_by_training(pairs: list[tuple[Levels, str, Cell]], output: Path) -> list[Judged]:
    """Candidates for a task that writes, by the untouched loss and by short training."""
    groups: dict[tuple[str, ...], list[tuple[Levels, str, Cell]]] = defaultdict(list)
    for context, candidate, cell in pairs:
        groups[tuple(context.values())].append((context, candidate, cell))
    judged = []
    for group in groups.values():
        halved = successive_halving({candidate: cell.recipe for _, candidate, cell in group}, output)
        for context, candidate, cell in group:
            loss, short = zero_shot_loss(cell.recipe, output), halved[candidate]
            estimates = {"zero_shot_loss": loss.value, "halving": short.value}
            seconds = {"zero_shot_loss": loss.seconds, "halving": short.seconds}
            judged.append(Judged(context, candidate, estimates, LOSS_ROWS, 0.0, seconds))
    return judged


def source_probabilities(
    item: PreparedStage, model: nn.Module, head: str, features: NDArray[np.float32]
) -> Floats | None:
    """What the checkpoint's own head makes of the features; None where it has none that is one linear layer."""
    own, loaded = type(model).from_pretrained(  # type: ignore[attr-defined]
        item.source.name,
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=True,
        **item.source.arguments(),
    )
    linear = own.get_submodule(head)
    missing = any(key.startswith(f"{head}.") for key in loaded["missing_keys"])
    if missing or not isinstance(linear, nn.Linear) or linear.in_features != features.shape[1]:
        return None
    with torch.inference_mode():
        theta: Floats = linear(torch.from_numpy(features)).double().softmax(1).numpy()
    return theta


# -------------------------------------------------------------------------------------------- truth


def with_truth(experiment: Experiment, planned: list[PlannedCell], judged: list[Judged], output: Path) -> list[Judged]:
    """The same with what `compare` has measured: in the domain where there are domains, else on the first test set."""
    if not any(item.record is not None for item in planned):
        return judged
    findings = analyse(experiment, planned, output)
    return [
        Judged(**{**vars(one), "truth": truth, "truth_seconds": seconds})
        for one in judged
        for truth, seconds in [_truth(experiment, findings, one)]
    ]


def _truth(experiment: Experiment, findings: Findings, one: Judged) -> tuple[dict[str, float], dict[str, float]]:
    sign = 1.0 if findings.higher_is_better else -1.0
    truth: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for arm in findings.arms:
        wanted = {**one.context, str(experiment.candidates): one.candidate}
        if arm.in_domain is False or any(arm.levels[axis] != level for axis, level in wanted.items()):
            continue
        level = arm.levels[experiment.contrast.axis] if experiment.contrast is not None else "fine-tuning"
        if level not in truth:
            truth[level], seconds[level] = sign * arm.score.mean, arm.training_seconds
    return truth, seconds


def agree(judged: list[Judged]) -> list[Agreement]:
    """τ of every estimator with every level of the contrast, the best first."""
    by_context: dict[tuple[str, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        by_context[tuple(one.context.values())].append(one)
    levels = list(dict.fromkeys(level for one in judged for level in one.truth))
    found = []
    for level in levels:
        for name in judged[0].estimates:
            tables = [
                np.array([[one.estimates[name], one.truth[level]] for one in group], dtype=np.float64)
                for group in by_context.values()
                if all(level in one.truth and one.estimates[name] is not None for one in group)
                and len({one.truth[level] for one in group}) > 1  # what is all equally good has no order
            ]
            if tables:
                costs = [
                    (one.pass_seconds + one.seconds[name]) / one.truth_seconds[level]
                    for one in judged
                    if one.truth_seconds.get(level)
                ]
                tau, low, high = mean_tau(tables)
                pairs = sum(len(table) for table in tables)
                found.append(Agreement(name, level, tau, low, high, pairs, float(np.mean(costs))))
    return sorted(found, key=lambda one: (one.level, -one.tau))


def mean_tau(tables: list[Floats], *, seed: int = 0) -> tuple[float, float, float]:
    """Weighted Kendall's τ of [candidates, (estimate, truth)], the mean over targets, with its bootstrap interval.

    Source: Vigna, WWW 2015, https://doi.org/10.1145/2736277.2741088, with hyperbolic weights, the best first.

    >>> mean_tau([np.array([[1.0, 0.2], [2.0, 0.5], [3.0, 0.9]])])[0]
    1.0
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(SAMPLES):
        taus = [_tau(table[rng.integers(0, len(table), len(table))]) for table in tables]
        if known := [tau for tau in taus if np.isfinite(tau)]:
            drawn.append(float(np.mean(known)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean([_tau(table) for table in tables])), float(low), float(high)


def _tau(table: Floats) -> float:
    table = np.round(table, 6)  # what differs by rounding alone is a tie
    if len(np.unique(table[:, 0])) < 2 or len(np.unique(table[:, 1])) < 2:
        # an estimator that tells nothing apart has no order; a sample of candidates that are alike has none to find
        return 0.0 if len(np.unique(table[:, 1])) > 1 else float("nan")
    return float(stats.weightedtau(table[:, 0], table[:, 1], rank=None).statistic)


def show(console: Console, judged: list[Judged], agreements: list[Agreement]) -> None:
    """Candidates by target, and how far to trust each estimator."""
    contexts: dict[tuple[str, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        contexts[tuple(one.context.values())].append(one)
    for context, group in contexts.items():
        table = Table(title=", ".join(context) or None, title_justify="left", header_style="bold")
        table.add_column("candidate")
        for name in group[0].estimates:
            table.add_column(name.replace("_", " "), justify="right")
        for level in group[0].truth:
            table.add_column(f"measured: {level}", justify="right")
        first = next(iter(group[0].estimates))
        for one in sorted(group, key=lambda j: -(j.estimates[first] or 0.0)):
            values: list[Any] = [*one.estimates.values(), *one.truth.values()]
            table.add_row(one.candidate, *("–" if value is None else f"{value:.3f}" for value in values))
        console.print(table)
    if not agreements:
        console.print("How far to trust these is not known here: `tltasks compare` would measure it.")
        return
    table = Table(title="weighted Kendall's τ with what was measured", title_justify="left", header_style="bold")
    for name in ("method", "estimator", "τ", "95 % interval", "pairs", "cost"):
        table.add_column(name)
    for a in agreements:
        interval = f"{a.low:.2f} to {a.high:.2f}"
        table.add_row(a.level, a.estimator.replace("_", " "), f"{a.tau:.2f}", interval, str(a.pairs), f"{a.cost:.1%}")
    console.print(table)
