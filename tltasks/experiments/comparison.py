"""The story of `tltasks compare`: plan, carry out what is not there yet, and say what it shows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from tltasks.config.loading import Overrides
from tltasks.config.recipe import plan_run
from tltasks.errors import DataError
from tltasks.experiments import report
from tltasks.experiments.analysis import CellScore, Findings, analyse, few_seeds
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.execution import Pruned, Workers, carry_out, crew
from tltasks.experiments.experiment import Experiment, Given, load_experiment, read_source
from tltasks.experiments.label_noise import suspected_labels
from tltasks.experiments.trials import (
    Failure,
    Outcome,
    PlannedTrial,
    TrialRecord,
    estimate_seconds,
    finished,
    results_folder,
    to_do,
)
from tltasks.reports.charts import png
from tltasks.reports.console import open_terminal
from tltasks.reports.formatting import show_duration, show_interval, show_number
from tltasks.runs.story import measure_stages
from tltasks.runtime.files import whole_folder, write_json, write_text

SCHEMA = 1
SUSPECTED = "suspected_labels.csv"
SHOWN_SUSPECTED = 40
OVERHEAD_SECONDS = 3.0
"""Of a trial, besides its steps, before one has been carried out: opening, evaluating, writing."""
MARKS = {"better": " +", "worse": " −", "unclear": "  "}


@dataclass(frozen=True)
class ComparisonResult:
    """Findings of an experiment, and the trials that they are computed from."""

    name: str
    experiment: str
    """As it was written."""
    findings: Findings
    trials: list[TrialRecord]
    failed: list[Failure]
    unfinished: int
    """Trials that are still to be carried out."""
    schema: int = SCHEMA

    @property
    def seconds(self) -> float:
        """Sum over all trials, those that stand for several combinations of levels once."""
        return sum({record.id: record.seconds for record in self.trials}.values())

    @property
    def versions(self) -> dict[str, str]:
        """Versions of packages; several where trials have different ones."""
        found = pd.DataFrame([record.versions for record in self.trials])
        return {str(package): ", ".join(known.dropna().unique()) for package, known in found.items()}

    @property
    def hardware(self) -> list[str]:
        """Devices, cores and number formats that trials were computed with."""
        found = [record.hardware for record in self.trials]
        return list(dict.fromkeys(f"{h['device_name']}, {h['cpu_cores']} cores, {h['precision']}" for h in found))

    def to_pandas(self) -> pd.DataFrame:
        """A row for each combination of levels and test set: score, costs, and comparison with each control."""
        return self.findings.to_pandas()

    def _repr_html_(self) -> str:
        levels, cells = report.by_target(self.findings, show_cell, "–")
        said = "".join(f"<li>{sentence}</li>" for _, sentence in self.findings.sentences())
        return f"<ul>{said}</ul>{pd.concat([levels, cells], axis=1).to_html(index=False)}"


def compare(
    experiment: Given,
    overrides: Overrides = (),
    *,
    output: Path | str | None = None,
    workers: Workers | None = None,
    console: Console | None = None,
    trust_remote_code: bool = False,
) -> ComparisonResult:
    """Carry out an experiment, or go on with it, and say what transfers.

    `experiment` is a YAML file or its keys, `overrides` such as `seeds=[0]` take the place of what it says, `output`
    that of its results folder. `workers` spread trials by Ray; a `console` is told plan, progress and findings.
    Raises DataError when no trial could be carried out, Interrupted or KeyboardInterrupt when told to stop, and a
    TltasksError for what else the user can mend.
    """
    console = console or open_terminal(quiet=True)
    source = read_source(experiment, (), "experiment")
    design, trials = load_experiment(experiment, overrides, trust_remote_code=trust_remote_code)
    output = Path(output or design.output).expanduser()
    result: ComparisonResult | None = None
    with results_folder(output, "experiment"):
        progress = Progress(plan_trials(trials, output), console)
        left = to_do(progress.planned)
        show_plan(console, ExperimentPlan(progress.planned))
        try:
            if workers is not None:
                _carry_out_on_ray(left, progress, output, workers, keep_weights=design.keep_weights)
                left = []
            for item in left:
                progress.take(item, carry_out(item, output, keep_weights=design.keep_weights))
        finally:
            if records := finished(progress.planned):
                unfinished = {item.id for item in to_do(progress.planned)} - progress.failed.keys()
                findings, failed = analyse(design, records, output), list(progress.failed.values())
                result = ComparisonResult(source.name, source.text, findings, records, failed, len(unfinished))
                write_results(design, result, output)
                show_findings(console, result.findings, output)
    if result is None:
        first = next(iter(progress.failed.values()))
        raise DataError(
            f"no trial could be carried out; the first: {first.message}\nIts log: {output}/logs/{first.id}.log"
        )
    return result


def _carry_out_on_ray(
    left: list[PlannedTrial], progress: Progress, output: Path, workers: Workers, *, keep_weights: bool
) -> None:
    if not left:
        return
    with crew("compare --engine ray", output, workers, keep_weights=keep_weights) as made:
        for item in left:
            made.start(item)
        while made.running:
            item, outcome = made.next()
            assert not isinstance(outcome, Pruned)
            progress.take(item, outcome)


class Progress:
    """State of the trials, told as they end."""

    def __init__(self, planned: list[PlannedTrial], console: Console) -> None:
        self.planned, self.console = planned, console
        self.failed: dict[str, Failure] = {}
        self.n_trials = len(to_do(planned))

    def take(self, item: PlannedTrial, outcome: Outcome) -> None:
        """Enter the end of a trial under every combination of levels that it stands for, and tell of it."""
        if isinstance(outcome, Failure):
            self.failed[item.id] = outcome
            said = f"failed: {outcome.message}"
        else:
            self.planned = [dataclasses.replace(p, record=outcome) if p.id == item.id else p for p in self.planned]
            seconds = estimate_seconds([p for p in self.planned if p.id not in self.failed], {})
            left = f"; about {show_duration(seconds)} left" if seconds else ""
            scores = ", ".join(f"{name} {score.value:.3f}" for name, score in outcome.targets.items())
            said = f"{scores} ({show_duration(outcome.seconds)}{left})"
        done = self.n_trials - len(to_do(self.planned)) + len(self.failed)
        self.console.print(f"[{done}/{self.n_trials}] {item.trial.name}: {said}", soft_wrap=True)


# --------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class ExperimentPlan:
    """The trials of an experiment, which are finished, and what two steps say of those that nothing is known of yet."""

    trials: list[PlannedTrial]
    measured_seconds: dict[str, float] = field(default_factory=dict)
    """Of a trial, by kind."""
    memory_bytes: int = 0
    """Most that any of them takes, besides evaluation."""

    @property
    def seconds(self) -> float | None:
        """Time that the trials to be carried out will take one after another; None where that is not known."""
        return estimate_seconds(self.trials, self.measured_seconds)


def plan_experiment(
    experiment: Given,
    overrides: Overrides = (),
    *,
    output: Path | str | None = None,
    trust_remote_code: bool = False,
) -> ExperimentPlan:
    """Look up which trials are finished, and take two steps of the trial of each other kind with the most data.

    Nothing is written. Raises a TltasksError for what the user can mend.
    """
    design, trials = load_experiment(experiment, overrides, trust_remote_code=trust_remote_code)
    output = Path(output or design.output).expanduser()
    planned = plan_trials(trials, output)
    known = {item.kind for item in planned if item.record is not None}
    kinds: dict[str, PlannedTrial] = {}
    for item in to_do(planned):
        if item.kind not in known and (item.kind not in kinds or _shots(item) > _shots(kinds[item.kind])):
            kinds[item.kind] = item
    seconds, memory = {}, 0
    for kind, item in kinds.items():
        stages = measure_stages(plan_run(item.trial.recipe, output))
        seconds[kind] = OVERHEAD_SECONDS + sum(stage.seconds or 0.0 for stage in stages)
        memory = max([memory, *(stage.memory_bytes for stage in stages)])
    return ExperimentPlan(planned, seconds, memory)


def _shots(item: PlannedTrial) -> float:
    data = item.trial.recipe.data
    return float("inf") if data is None or data.shots is None else data.shots


def show_plan(console: Console, plan: ExperimentPlan, *, dry_run: bool = False) -> None:
    """Print the trials along each axis, how many are finished, and what the others will take."""
    left, unique = to_do(plan.trials), len({item.id for item in plan.trials})
    same = len(plan.trials) - unique
    again = f", of which {same} are the same as others" if same else ""
    console.print(f"{len(plan.trials):,} trials{again}; {unique - len(left):,} finished, {len(left):,} to carry out")
    if dry_run:
        rows = []
        for axis in plan.trials[0].trial.levels:
            levels = [item.trial.levels[axis] for item in plan.trials]
            done = Counter(record.levels[axis] for record in finished(plan.trials))
            rows += [[axis, level, f"{n:,}", f"{done[level]:,}"] for level, n in Counter(levels).items()]
        title = "plan (nothing was trained or written)"
        console.print(report.text_table(title, ["axis", "level"], ["trials", "finished"], rows))
    recipes = (item.trial.recipe for item in plan.trials)
    if any(recipe.data is not None and recipe.data.splits.shares for recipe in recipes):
        said = "shares are held out with the same seed in all trials, so that all are tested on the same rows"
        console.print(said, soft_wrap=True)
    if few := few_seeds(len({item.trial.seed for item in plan.trials})):
        console.print(few, soft_wrap=True)
    if left and plan.seconds is not None:
        memory = f", with {plan.memory_bytes / 2**30:.1f} GiB of memory" if plan.memory_bytes else ""
        console.print(f"about {show_duration(plan.seconds)} on this machine, one after another{memory}")


# ------------------------------------------------------------------------------------------ results


def write_results(experiment: Experiment, result: ComparisonResult, output: Path) -> None:
    """result.json, report.html, figures and tables."""
    findings, layout = result.findings, report.Layout(experiment, result.findings)
    write_json(output / "result.json", result)
    write_text(output / "table.csv", result.to_pandas().to_csv(index=False, float_format="%.6g"))
    write_text(output / "table.tex", report.latex_table(experiment, findings))
    suspected = suspected_labels(result.trials, output) if experiment.folds is not None else None
    if suspected is not None:
        write_text(output / SUSPECTED, suspected.to_csv(index=False, float_format="%.4f"))
    pictures = report.draw_pictures(experiment, findings, layout)
    with whole_folder(output / "figures") as figures:
        for picture in (picture for section in pictures.values() for picture in section):
            (figures / f"{picture.name}.png").write_bytes(png(picture.figure))
    report.write_page(
        output / "report.html",
        "experiment.html.jinja",
        experiment=experiment,
        findings=findings,
        layout=layout,
        pictures=pictures,
        evidence=report.evidence(findings),
        result=result,
        ranked=(output / "rank.html").is_file(),
        suspected=[] if suspected is None else suspected.head(SHOWN_SUSPECTED).to_dict("records"),
    )


def show_findings(console: Console, findings: Findings, output: Path) -> None:
    """Print a short version of the report."""
    levels, cells = report.by_target(findings, show_cell, "–")
    names = [", ".join(row).replace("_", " ") for row in levels.to_numpy().tolist()]
    rows = [[name, *scores] for name, scores in zip(names, cells.to_numpy().tolist(), strict=True)]
    console.print(report.text_table(findings.metric, [""], [str(target) for target in cells], rows))
    for _, sentence in findings.sentences():
        console.print(sentence, soft_wrap=True)
    console.print(f"report   {output / 'report.html'}", soft_wrap=True)


def show_cell(cell: CellScore) -> str:
    """Mean with its interval, and a mark where it is better or worse than the control."""
    score = cell.score
    return f"{show_number(score.mean)} ({show_interval((score.low, score.high))}){MARKS.get(cell.verdict, '')}"
