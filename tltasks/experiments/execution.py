"""Trials carried out through the runner, one after another or on a Ray cluster: https://docs.ray.io.

Ray places, queues and isolates; nothing of that is done here. A trial is carried out as it is without Ray, in a folder
that all machines see.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import recipe_sha256
from tltasks.errors import Interrupted, RecipeError, TltasksError, first_line, is_full_disk
from tltasks.experiments.contents import CODE
from tltasks.experiments.trials import (
    Outcome,
    PlannedTrial,
    TargetScore,
    TrialRecord,
    trial_folder,
    write_journal,
)
from tltasks.reports.html import say_weights_are_gone
from tltasks.results.result import RunResult
from tltasks.runs.baselines import ROW_SCORES
from tltasks.runs.callbacks import EvaluationInfo, OnEvaluation
from tltasks.runs.story import run
from tltasks.runtime import cluster, devices
from tltasks.runtime.cluster import LOSSES, Remote
from tltasks.runtime.files import write_json

if TYPE_CHECKING:
    from ray import ObjectRef


def carry_out(
    item: PlannedTrial, output: Path, *, keep_weights: bool, on_evaluation: OnEvaluation | None = None
) -> Outcome:
    """Carry out one trial: its record, or why there is none.

    One that an earlier process was killed in goes on from its last checkpoint. Raises Interrupted or KeyboardInterrupt
    when the process is told to stop; what is finished is kept.
    """
    write_journal(output, item.id, "begun")
    started = time.perf_counter()
    try:
        with log_file(output / "logs" / f"{item.id}.log"):
            result = _run(item, output, on_evaluation)
    except (Interrupted, KeyboardInterrupt):
        write_journal(output, item.id, "interrupted")
        raise
    except Exception as error:  # whatever ends one trial must not end the others
        if is_full_disk(error):  # which ends them all, and is none's own fault
            raise
        message = str(error) if isinstance(error, TltasksError) else f"{type(error).__name__}: {first_line(error)}"
        write_journal(output, item.id, "failed", message=message)
        return item.failure(message)
    if not keep_weights:
        folder = trial_folder(output, item.id)
        for weights in [folder / "model", *folder.glob("stages/*/model")]:
            shutil.rmtree(weights, ignore_errors=True)
        say_weights_are_gone(folder / "report.html")
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
    try:
        return run(recipe, output=folder, resume=True, on_evaluation=on_evaluation)
    except TltasksError:
        raise
    except Exception:
        traceback.print_exc()  # into the trial's log
        raise


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Send what a trial has to say into a file of its own."""
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
                leaks=leaks.examples if (leaks := stage.data[split].leaks) and not leaks.dropped else 0,
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


# --------------------------------------------------------------------------------------------- on Ray


@dataclass(frozen=True)
class Workers:
    """Spread of trials over processes."""

    at_once: int | None = None
    """Trials at once on this machine, where there is no cluster. Unset: one for each core."""
    cores_each: int = 1
    """Cores of a trial."""


class Pruned(Interrupted):
    """A trial was ended because others had done better by then."""


class Crew:
    """Processes of Ray's for trials, each with cores of its own, and a GPU where there are any."""

    def __init__(self, ray: ModuleType, output: Path, workers: Workers, *, keep_weights: bool) -> None:
        self.ray = ray
        n_gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self.rooms = max(1, sum(cluster.rooms(cluster.machines(ray), workers.cores_each, has_gpu=n_gpus > 0)))
        """Trials at once."""
        # Ray itself begins a lost one again, which goes on from its last checkpoint.
        options = {"num_cpus": workers.cores_each, "num_gpus": n_gpus, "max_retries": LOSSES}
        self._remote = ray.remote(**options)(_carry_out)
        self._place = (str(output.resolve()), str(Path.cwd()), keep_weights, workers.cores_each)
        self.running: dict[ObjectRef[Outcome | Pruned], PlannedTrial] = {}

    def start(self, item: PlannedTrial, report: Remote | None = None, number: int = 0) -> None:
        """Have a trial carried out; `report` is told its number and each evaluation, and answers why it is to end
        there, or None.
        """
        self.running[self._remote.remote(item, *self._place, report, number)] = item

    def next(self) -> tuple[PlannedTrial, Outcome | Pruned]:
        """Wait for a trial to end."""
        (done, *_), _ = self.ray.wait(list(self.running))
        item = self.running.pop(done)
        return item, _outcome(self.ray, done, item)


@contextmanager
def crew(command: str, output: Path, workers: Workers, *, keep_weights: bool) -> Iterator[Crew]:
    """Processes on the cluster that RAY_ADDRESS names, or on this machine, for as long as the block lasts.

    Raises RecipeError without Ray, and Interrupted or KeyboardInterrupt when told to stop: running trials save their
    state.
    """
    n_cores = (workers.at_once or max(1, devices.cores() // workers.cores_each)) * workers.cores_each
    with cluster.joined(command, n_cores) as ray, devices.interruptible():
        made = Crew(ray, output, workers, keep_weights=keep_weights)
        try:
            yield made
        finally:
            left = list(made.running)
            for one in left:
                ray.cancel(one)  # a KeyboardInterrupt where it runs: the loop saves its state after the step
            if left:
                ray.wait(left, num_returns=len(left), timeout=60)


def _carry_out(
    item: PlannedTrial,
    output: str,
    directory: str,
    keep_weights: bool,
    cores: int,
    report: Remote | None,
    number: int,
) -> Outcome | Pruned:
    """Carry out a trial in a process of Ray's, perhaps on another machine."""
    import ray

    if not (Path(output) / "trials").is_dir():
        return item.failure(f"{output} is not seen on {platform.node()}; name a folder that all machines share")
    if Path(directory).is_dir():
        os.chdir(directory)  # where relative names start
    os.environ[devices.CORES_VARIABLE] = str(cores)

    def on_evaluation(found: EvaluationInfo) -> None:
        said = None if report is None else ray.get(report.remote(number, found))
        if said:
            raise Pruned(str(said))

    try:
        return carry_out(item, Path(output), keep_weights=keep_weights, on_evaluation=on_evaluation)
    except Pruned as pruned:
        return pruned


def _outcome(ray: ModuleType, done: ObjectRef[Outcome | Pruned], item: PlannedTrial) -> Outcome | Pruned:
    try:
        outcome: Outcome | Pruned = ray.get(done)
    except ray.exceptions.TaskCancelledError:
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (Interrupted, KeyboardInterrupt)):
            raise Interrupted(str(error.cause)) from error
        return item.failure(first_line(error.cause or error))
    except ray.exceptions.RayError as error:  # a machine or process that is gone
        return item.failure(first_line(error))
    return outcome
