"""Trials: each known by its content, carried out once through the runner, and found again by its record."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.state import AcceleratorState
from pydantic import TypeAdapter

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run, recipe_sha256
from tltasks.errors import DataError, Interrupted, RecipeError, TltasksError, first_line
from tltasks.experiments.contents import CODE, Contents, code_versions
from tltasks.experiments.experiment import Levels, Trial
from tltasks.results.result import Interval, Number, RunResult
from tltasks.runs.baselines import ROW_SCORES
from tltasks.runs.callbacks import OnEvaluation
from tltasks.runs.story import run
from tltasks.runtime.files import locked, write_json


@dataclass(frozen=True)
class TargetScore:
    """Score of a trial on one test set."""

    value: Number
    ci95: Interval
    rows: int
    fingerprint: str
    """Of the rows: scores with the same one can be compared row by row."""
    values: dict[str, Number]
    """All metrics."""


@dataclass(frozen=True)
class TrialRecord:
    """What is kept of a finished trial: its scores by test set, what was trained on what, what computed it."""

    id: str
    recipe_sha256: str
    levels: Levels
    seed: int
    inputs: dict[str, str]
    metric: str
    higher_is_better: bool
    row_scores: str
    """File of numerators and denominators [rows, 2] by test set, relative to the folder of trials."""
    targets: dict[str, TargetScore]
    train_examples: int
    trained_parameters: int
    total_parameters: int
    training_seconds: float
    seconds: float
    versions: dict[str, str]
    hardware: dict[str, str | int]


_RECORD = TypeAdapter(TrialRecord)


@dataclass(frozen=True)
class Failure:
    """Why a trial could not be carried out."""

    id: str
    levels: Levels
    seed: int
    message: str


Outcome = TrialRecord | Failure


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, its identity, and its record where it is finished."""

    trial: Trial
    id: str
    kind: str
    """Trials of the same model and stages are of one kind: a step takes them about the same time."""
    inputs: dict[str, str]
    record: TrialRecord | None

    def failure(self, message: str) -> Failure:
        return Failure(self.id, self.trial.levels, self.trial.seed, message)


def plan_trials(trials: Iterable[Trial], output: Path) -> list[PlannedTrial]:
    """Identify every trial by its content and look it up among those that are finished."""
    contents, code = Contents(output / "contents.json"), code_versions()
    planned = []
    for trial in trials:
        plan = plan_run(trial.recipe)
        inputs = contents.of(plan)
        name = _digest([plan.sha256, inputs, code])[:24]
        parts = [trial.recipe.model, *trial.recipe.stages]
        kind = _digest([part.model_dump(mode="json") if part is not None else None for part in parts])[:16]
        planned.append(PlannedTrial(trial, name, kind, inputs, read_record(output, name)))
    contents.save()
    return planned


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def results_folder(output: Path, marker: str, what: str) -> Iterator[None]:
    """Lock the results folder of an experiment or a search; DataError for one that holds something else."""
    if output.is_dir() and any(output.iterdir()) and not (output / marker).exists():
        raise DataError(f"output {output}: is not empty and holds no {what}; name another folder with --output.")
    with locked(output):
        (output / "trials").mkdir(exist_ok=True)
        yield


def trial_folder(output: Path, name: str) -> Path:
    """The results folder of a trial's run."""
    return output / "trials" / name


def read_record(output: Path, name: str) -> TrialRecord | None:
    """The record of a finished trial; it appears as a whole when the trial is finished."""
    try:
        return _RECORD.validate_json((output / "trials" / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None


def to_do(planned: Iterable[PlannedTrial]) -> list[PlannedTrial]:
    """The trials that are to be carried out, each once however many combinations of levels come to the same recipe."""
    return list({item.id: item for item in planned if item.record is None}.values())


def finished(planned: Iterable[PlannedTrial]) -> list[TrialRecord]:
    """Records of finished trials, one for each combination of levels that comes to the same recipe."""
    return [
        replace(item.record, levels=item.trial.levels, seed=item.trial.seed)
        for item in planned
        if item.record is not None
    ]


def estimate_seconds(planned: list[PlannedTrial], measured: dict[str, float]) -> float | None:
    """Seconds that the trials to be carried out will take: by finished ones of the same levels, or of the same kind,
    or by `measured` seconds of that kind; None while nothing is known of some."""
    known: dict[str, list[float]] = defaultdict(list, {kind: [seconds] for kind, seconds in measured.items()})
    by_kind, by_levels = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for item in planned:
        if item.record is not None:
            by_levels[str(item.trial.levels)].append(item.record.seconds)
            by_kind[item.kind].append(item.record.seconds)
    seconds = [by_levels[str(item.trial.levels)] or by_kind[item.kind] or known[item.kind] for item in to_do(planned)]
    return sum(sum(some) / len(some) for some in seconds) if all(seconds) else None


# -------------------------------------------------------------------------------------- carrying out


def run_trials(
    trials: list[PlannedTrial],
    output: Path,
    *,
    keep_weights: bool,
    on_end: Callable[[PlannedTrial, Outcome], None],
) -> None:
    """Carry out trials; one that fails is handed to `on_end` as a Failure and the next one goes on.

    A trial that an earlier process was killed in goes on from its last checkpoint. Raises Interrupted when the process
    is told to stop; what is finished is kept.
    """
    for item in trials:
        on_end(item, carry_out(item, output, keep_weights=keep_weights))


def carry_out(
    item: PlannedTrial, output: Path, *, keep_weights: bool, on_evaluation: OnEvaluation | None = None
) -> Outcome:
    """One trial, its record or why there is none; raises Interrupted or KeyboardInterrupt when told to stop."""
    write_journal(output, item.id, "begun")
    started = time.perf_counter()
    try:
        with _log_file(output / "logs" / f"{item.id}.log"):
            result = _run(item, output, on_evaluation)
    except (Interrupted, KeyboardInterrupt):
        write_journal(output, item.id, "interrupted")
        raise
    except Exception as error:  # whatever ends one trial must not end the others
        message = str(error) if isinstance(error, TltasksError) else f"{type(error).__name__}: {first_line(error)}"
        write_journal(output, item.id, "failed", message=message)
        return item.failure(message)
    if not keep_weights:
        folder = trial_folder(output, item.id)
        for weights in [folder / "model", *folder.glob("stages/*/model")]:
            shutil.rmtree(weights, ignore_errors=True)
    record = describe_trial(item, result, time.perf_counter() - started)
    write_json(output / "trials" / f"{item.id}.json", record)
    write_journal(output, item.id, "finished", seconds=round(record.seconds, 3))
    return record


def _run(item: PlannedTrial, output: Path, on_evaluation: OnEvaluation | None) -> RunResult:
    folder, recipe = trial_folder(output, item.id), item.trial.recipe
    try:  # what a kill has left of a folder that was only begun is no run to go on with
        whole = recipe_sha256(load_recipe(folder / "recipe.yaml", check_files=False)) == recipe_sha256(recipe)
    except RecipeError:
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
    # Accelerate keeps one number format for a process (accelerate 1.15, state.py); trials may have different ones.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return run(recipe, output=folder, resume=True, on_evaluation=on_evaluation)
    except TltasksError:
        raise
    except Exception:
        traceback.print_exc()  # into the trial's log
        raise


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """What a trial has to say goes into a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stderr(file), redirect_stdout(file):
        yield


def describe_trial(item: PlannedTrial, result: RunResult, seconds: float) -> TrialRecord:
    """The record of a run."""
    stage = result.best
    trained = [one for one in result.stages if one.training is not None]
    return TrialRecord(
        id=item.id,
        recipe_sha256=result.recipe_sha256,
        levels=item.trial.levels,
        seed=item.trial.seed,
        inputs=item.inputs,
        metric=result.headline.metric,
        higher_is_better=result.best.higher_is_better,
        row_scores=f"{item.id}/stages/{stage.name}/{ROW_SCORES}",
        targets={
            split: TargetScore(
                value=score.value,
                ci95=score.ci95,
                rows=stage.data[split].examples,
                fingerprint=stage.data[split].fingerprint,
                values=score.values,
            )
            for split, score in stage.metrics.items()
        },
        train_examples=stage.data["train"].examples if "train" in stage.data else 0,
        trained_parameters=max((one.trainable_parameters for one in trained), default=0),
        total_parameters=stage.total_parameters,
        training_seconds=sum(one.training.seconds for one in result.stages if one.training is not None),
        seconds=seconds,
        versions={name: v for name, v in result.versions.items() if name in {"tltasks", *CODE}},
        hardware=result.hardware,
    )


def write_journal(output: Path, name: str, event: str, **more: object) -> None:
    """A line for each thing that befalls a trial, so that it can be counted what was carried out how often."""
    with (output / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"trial": name, "event": event, **more}, ensure_ascii=False) + "\n")
