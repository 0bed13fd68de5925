"""The story of `tltasks rank`: checkpoints by what they tell of the target's training data, before training."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from torch import nn

from tltasks.config.loading import Overrides, write_recipe
from tltasks.config.recipe import Recipe, plan_run
from tltasks.config.tasks import TASKS
from tltasks.errors import RecipeError
from tltasks.experiments.analysis import Findings, analyse
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.execution import carry_out
from tltasks.experiments.experiment import Experiment, Given, Levels, Trial, load_experiment, read_source
from tltasks.experiments.report import text_table, write_page
from tltasks.experiments.successive_halving import LOSS_ROWS, stage_alone, successive_halving, zero_shot_loss
from tltasks.experiments.transferability import ESTIMATORS
from tltasks.experiments.trials import Outcome, finished, results_folder
from tltasks.metrics import wilson
from tltasks.reports.console import open_terminal
from tltasks.reports.formatting import show_duration, show_number, words
from tltasks.results.comparison import Verdict
from tltasks.runs.context import PreparedStage
from tltasks.runs.story import open_stages
from tltasks.runtime.files import whole_file, write_json
from tltasks.tasks import load_adapter
from tltasks.tasks.base import Embeds, Writes
from tltasks.training.evaluation import cached_features

Floats = NDArray[np.float64]
FINE_TUNING = "fine-tuning"
"""What was measured where nothing is contrasted."""
ESTIMATOR_NAMES = {
    "log_me": "LogME",
    "h_score": "H-score",
    "regularised_h_score": "Regularised H-score",
    "leep": "LEEP",
    "nleep": "NLEEP",
    "probe": "Linear probe",
    "neighbours": "Nearest neighbours",
    "zero_shot_loss": "Fit before training",
    "halving": "Short trainings",
}


@dataclass(frozen=True)
class CandidateEstimates:
    """A candidate on one target: its estimates, and what they cost."""

    context: Levels
    candidate: str
    estimates: dict[str, float | None]
    """None where an estimator has nothing to go by: LEEP for a checkpoint that is no classifier."""
    rows: int
    feature_seconds: float
    """Of the pass through the checkpoint; next to nothing where the cache has its features."""
    estimator_seconds: dict[str, float]
    """Of each estimator beside that."""
    measured: dict[str, float] = field(default_factory=dict)
    """What fine-tuning came to, by level of the contrast, where `tltasks compare` has measured it; higher is better."""
    measured_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """Agreement of an estimator's order with that of fine-tuning, over targets."""

    estimator: str
    level: str
    tau: float
    """Weighted Kendall's τ, the mean over targets; 1 is the same order, and the best candidates weigh most."""
    low: float
    high: float
    """95 % interval over candidates within targets: wide with few of them."""
    pairs: int
    cost: float
    """Seconds of the pass and the estimator, over those of the fine-tuning that it would replace."""


@dataclass(frozen=True)
class Winner:
    """Which candidate comes first on a target, and by how much."""

    target: str
    candidate: str | None
    """None where no estimator tells candidates apart."""
    estimator: str
    """The one that it is told by: the first that tells any apart."""
    verdict: Verdict
    """`better` where most estimators put it first."""
    sentence: str


@dataclass(frozen=True)
class RankingResult:
    """Candidates with their estimates, and how far to trust each estimator."""

    winners: list[Winner]
    """Of each target."""
    candidates: list[CandidateEstimates]
    agreement: list[Agreement]
    """Nothing where `tltasks compare` has not measured what the estimates are to tell."""

    def to_pandas(self) -> pd.DataFrame:
        """A row for each candidate on each target: its levels, estimates, and what was measured."""
        return pd.DataFrame(
            {**one.context, "candidate": one.candidate, "rows": one.rows, **one.estimates}
            | {f"measured_{level}": value for level, value in one.measured.items()}
            for one in self.candidates
        )

    def _repr_html_(self) -> str:
        agreement = pd.DataFrame(map(dataclasses.asdict, self.agreement)).to_html(index=False)
        said = "".join(f"<p>{won.sentence}</p>" for won in self.winners)
        return said + self.to_pandas().to_html(index=False) + (agreement if self.agreement else "")


def rank(
    experiment: Given,
    overrides: Overrides = (),
    *,
    output: Path | str | None = None,
    console: Console | None = None,
    trust_remote_code: bool = False,
) -> RankingResult:
    """Estimate how well every candidate would transfer to every target, before training.

    `experiment` is a YAML file, or its keys, that names its `candidates`; `overrides` take the place of what it says,
    `output` that of its results folder; a `console` is told of each candidate. Raises a TltasksError for the user's
    mistakes.
    """
    console = console or open_terminal(quiet=True)
    design, trials = load_experiment(experiment, overrides, trust_remote_code=trust_remote_code)
    name = "rank" if isinstance(experiment, Mapping) else experiment
    if design.candidates is None:
        raise RecipeError(f"{name}: needs the key `candidates`, the axis whose levels are checkpoints to be ranked.")
    output = Path(output or design.output).expanduser()
    with results_folder(output, "experiment"):
        planned = plan_trials(trials, output)
        task = load_adapter(plan_run(trials[0].recipe).stages[-1].task)
        if not issubclass(task, Embeds | Writes):
            raise RecipeError(f"{name}: {task.tag} has neither features nor texts by which candidates could be ranked.")
        estimate = estimate_by_features if issubclass(task, Embeds) else estimate_by_training
        wanted = targets(design, trials)
        estimated = [one for target, by_name in wanted for one in estimate(target, by_name, output)]
        for one in estimated:
            shown = ", ".join([*one.context.values(), one.candidate])
            seconds = one.feature_seconds + sum(one.estimator_seconds.values())
            console.print(f"{shown}: {one.rows:,} rows, {show_duration(seconds)}", soft_wrap=True)
        if records := finished(planned):
            findings = analyse(design, records, output)
            estimated = [with_measured(design, findings, one) for one in estimated]
        result = RankingResult(list(map(name_winner, by_context(estimated))), estimated, agree(estimated))
        text = read_source(experiment, (), "experiment").text
        write_results(result, text, [by_name for _, by_name in wanted], output)
    show_ranking(console, result)
    console.print(f"report   {output / 'rank.html'}", soft_wrap=True)
    return result


def targets(experiment: Experiment, trials: list[Trial]) -> list[tuple[Levels, dict[str, Trial]]]:
    """Every target, with a trial of each candidate: methods share its features, and one seed stands for all."""
    axis = experiment.candidates
    assert axis is not None
    apart = {axis, experiment.contrast.axis if experiment.contrast is not None else None}
    found: dict[str, tuple[Levels, dict[str, Trial]]] = {}
    for trial in trials:
        context = {name: level for name, level in trial.levels.items() if name not in apart}
        found.setdefault(str(context), (context, {}))[1].setdefault(trial.levels[axis], trial)
    return list(found.values())


def estimate_by_features(context: Levels, candidates: dict[str, Trial], output: Path) -> list[CandidateEstimates]:
    """Estimates of checkpoints on their recipes' training data, all of one checkpoint from one pass through it."""
    estimated = []
    for candidate, trial in candidates.items():
        probe = TASKS[plan_run(trial.recipe).stages[-1].task].stage(stage="probe")
        run, (item,) = open_stages(plan_run(stage_alone(trial.recipe, probe), output))
        model = item.task.build(item.plan.kind).model
        started = time.perf_counter()
        head, split = item.task.head(model)[0], item.encoded["train"]
        features = cached_features(run.accelerator, item.task, model, head, split, workers=0)
        feature_seconds = time.perf_counter() - started
        labels = np.array(item.task.references(split.rows), dtype=np.int64)
        if labels.ndim != 1:
            raise RecipeError("rank: its estimators are of rows with one class each, and these have any number.")
        theta = source_probabilities(item, model, head, features)
        estimates, seconds = {}, {}
        for name, estimator in ESTIMATORS.items():
            started = time.perf_counter()
            estimates[name] = estimator(features, labels, theta, trial.seed)
            seconds[name] = time.perf_counter() - started
        estimated.append(CandidateEstimates(context, candidate, estimates, len(labels), feature_seconds, seconds))
    return estimated


def estimate_by_training(context: Levels, candidates: dict[str, Trial], output: Path) -> list[CandidateEstimates]:
    """Estimates for a task that writes, by the loss of the checkpoint as it is and by short training."""

    def train(candidate: str, recipe: Recipe) -> Outcome:
        (item,) = plan_trials([Trial({"candidate": candidate}, recipe.seed, recipe)], output)
        return item.record or carry_out(item, output, keep_weights=False)

    recipes, estimated = {name: trial.recipe for name, trial in candidates.items()}, []
    halved = successive_halving(recipes, train, logs=output / "logs")
    for name, recipe in recipes.items():
        loss, short = zero_shot_loss(recipe, output), halved[name]
        estimates = {"zero_shot_loss": loss.value, "halving": short.value}
        seconds = {"zero_shot_loss": loss.seconds, "halving": short.seconds}
        estimated.append(CandidateEstimates(context, name, estimates, LOSS_ROWS, 0.0, seconds))
    return estimated


def source_probabilities(
    item: PreparedStage, model: nn.Module, head: str, features: NDArray[np.float32]
) -> Floats | None:
    """Probabilities [rows, source classes] by the checkpoint's own head; None where that is not one linear layer."""
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
    with torch.no_grad():
        theta: Floats = linear(torch.from_numpy(features)).double().softmax(1).numpy()
    return theta


# ---------------------------------------------------------------------------------- what was measured


def with_measured(experiment: Experiment, findings: Findings, one: CandidateEstimates) -> CandidateEstimates:
    """The same with what `compare` has measured: in the domain where there are domains, else on the first test set."""
    sign = 1.0 if findings.higher_is_better else -1.0
    wanted = {**one.context, str(experiment.candidates): one.candidate}
    measured: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for cell in findings.cells:
        if cell.in_domain is False or any(cell.levels[axis] != level for axis, level in wanted.items()):
            continue
        level = cell.levels[experiment.contrast.axis] if experiment.contrast is not None else FINE_TUNING
        if level not in measured:
            measured[level], seconds[level] = sign * cell.score.mean, cell.training_seconds
    return dataclasses.replace(one, measured=measured, measured_seconds=seconds)


def agree(estimated: list[CandidateEstimates]) -> list[Agreement]:
    """τ of every estimator with every level of the contrast, the best first."""
    groups = by_context(estimated)
    found = []
    for level in dict.fromkeys(level for one in estimated for level in one.measured):
        for name in estimated[0].estimates:
            tables = [
                np.array([[one.estimates[name], one.measured[level]] for one in group], dtype=np.float64)
                for group in groups
                if all(level in one.measured and one.estimates[name] is not None for one in group)
                and len({one.measured[level] for one in group}) > 1  # what is all equally good has no order
            ]
            if tables:
                costs = [
                    (one.feature_seconds + one.estimator_seconds[name]) / one.measured_seconds[level]
                    for one in estimated
                    if one.measured_seconds.get(level)
                ]
                tau, low, high = mean_tau(tables)
                pairs = sum(len(table) for table in tables)
                found.append(Agreement(name, level, tau, low, high, pairs, float(np.mean(costs))))
    return sorted(found, key=lambda one: (one.level, -one.tau))


def by_context(estimated: list[CandidateEstimates]) -> list[list[CandidateEstimates]]:
    """The candidates of each target."""
    groups: dict[tuple[str, ...], list[CandidateEstimates]] = defaultdict(list)
    for one in estimated:
        groups[tuple(one.context.values())].append(one)
    return list(groups.values())


def mean_tau(tables: list[Floats]) -> tuple[float, float, float]:
    """Weighted Kendall's τ of [candidates, (estimate, truth)], the mean over targets, with its interval.

    The interval is that of the share of pairs in the same order, of as many pairs as have no candidate in common: the
    pairs that τ counts tell no less. Resampled candidates would leave three of them that are in order no interval.
    Sources: Vigna, WWW 2015, https://doi.org/10.1145/2736277.2741088, with hyperbolic weights, the best first;
    Hoeffding, Journal of the American Statistical Association 58 (1963) 13–30, §5.

    >>> [round(value, 2) for value in mean_tau([np.array([[1.0, 0.2], [2.0, 0.5], [3.0, 0.9]])])]
    [1.0, -0.59, 1.0]
    """
    tau = float(np.mean([_tau(table) for table in tables]))
    low, high = wilson((tau + 1) / 2, sum(len(table) // 2 for table in tables))
    return tau, 2 * low - 1, 2 * high - 1


def _tau(table: Floats) -> float:
    table = np.round(table, 6)  # what differs by rounding alone is a tie
    if len(np.unique(table[:, 0])) < 2 or len(np.unique(table[:, 1])) < 2:
        return 0.0  # an estimator that tells nothing apart has no order
    return float(stats.weightedtau(table[:, 0], table[:, 1], rank=None).statistic)


def name_winner(group: Sequence[CandidateEstimates]) -> Winner:
    """The candidate of a target that comes first, by how much, how many estimators say so, and what training said."""

    def ordered(by: Mapping[str, float | None]) -> list[str]:
        known = {name: round(value, 6) for name, value in by.items() if value is not None}
        return sorted(known, key=lambda name: -known[name]) if len(set(known.values())) > 1 else []

    by_estimator = {name: {one.candidate: one.estimates[name] for one in group} for name in group[0].estimates}
    orders = {name: found for name, values in by_estimator.items() if (found := ordered(values))}
    target = ", ".join(group[0].context.values())
    where = f"On {words(target)}," if target else "Here"
    if not orders:
        return Winner(target, None, next(iter(by_estimator)), "unclear", f"{where} no estimate tells candidates apart.")
    deciding, (first, second, *_) = next(iter(orders.items()))
    best, its = (by_estimator[deciding][name] or 0.0 for name in (first, second))
    agreeing = sum(order[0] == first for order in orders.values())
    value = show_number(best).replace("-", "−", best < 0)
    text = (
        f"{where} {first} comes first: {ESTIMATOR_NAMES[deciding]} {value}, {show_number(best - its)} "
        f"ahead of {second}; {agreeing} of {len(orders)} estimates put it first."
    )
    for level in group[0].measured:
        if trained := ordered({one.candidate: one.measured.get(level) for one in group}):
            best_trained = "it was the best" if trained[0] == first else f"{trained[0]} was better"
            text += f" After training{f' by {words(level)}' if level != FINE_TUNING else ''} {best_trained}."
    return Winner(target, first, deciding, "better" if 2 * agreeing > len(orders) else "unclear", text)


def tables(result: RankingResult) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each target its title, names of columns, and rows of candidates, the best first."""
    for group, won in zip(by_context(result.candidates), result.winners, strict=True):
        names = ["candidate", *(ESTIMATOR_NAMES[name] for name in group[0].estimates)]
        names += [
            "After training" if level == FINE_TUNING else f"Trained by {words(level)}" for level in group[0].measured
        ]
        ordered = sorted(group, key=lambda one: -(one.estimates[won.estimator] or 0.0))
        values = [[*one.estimates.values(), *(abs(value) for value in one.measured.values())] for one in ordered]
        rows = [[one.candidate, *map(show_number, row)] for one, row in zip(ordered, values, strict=True)]
        yield won.target, names, rows


def write_results(result: RankingResult, text: str, recipes: Sequence[Mapping[str, Trial]], output: Path) -> None:
    """rank.json, rank.html, and each target's recipe with the checkpoint that comes first; `text` is the experiment."""
    write_json(output / "rank.json", result)
    files = []
    for won, trials in zip(result.winners, recipes, strict=True):
        name = "-".join(filter(None, ["best", *won.target.split(", ")]))
        if won.candidate is not None:
            files.append(name)
            recipe = trials[won.candidate].recipe.model_copy(update={"output": str(output / name)})
            with whole_file(output / f"{name}.yaml") as place:
                write_recipe(recipe, place)
    write_page(
        output / "rank.html",
        "rank.html.jinja",
        result=result,
        tables=list(tables(result)),
        estimators=ESTIMATOR_NAMES,
        files=files,
        experiment=text,
        compared=(output / "report.html").is_file(),
        title=output.name,
    )


def show_ranking(console: Console, result: RankingResult) -> None:
    """Candidates by target, and how far to trust each estimator."""
    for (title, names, rows), won in zip(tables(result), result.winners, strict=True):
        console.print(text_table(title, names[:1], names[1:], rows))
        console.print(won.sentence, soft_wrap=True)
    if not result.agreement:
        console.print("How far to trust these is not known here: `tltasks compare` would measure it.")
        return
    rows = [
        [
            a.level,
            ESTIMATOR_NAMES[a.estimator],
            f"{a.tau:.2f}",
            f"{a.low:.2f} to {a.high:.2f}",
            str(a.pairs),
            f"{a.cost:.1%}",
        ]
        for a in result.agreement
    ]
    title = "weighted Kendall's τ with what was measured"
    console.print(text_table(title, ["method", "estimator"], ["τ", "95 % interval", "pairs", "cost"], rows))
