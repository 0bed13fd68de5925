"""Carrying out the cells of an experiment through the runner, each where it is, or one after another."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from tltasks.config.loading import load_recipe, recipe_sha256
from tltasks.errors import Interrupted, RecipeError, TltasksError, first_line
from tltasks.experiments.plan import CODE, PlannedCell, Record, cell_folder
from tltasks.results.result import RunResult
from tltasks.runs.story import ROW_SCORES, Watch, run
from tltasks.runtime.files import write_json


@dataclass(frozen=True)
class Failure:
    """A cell that could not be carried out."""

    id: str
    message: str


def run_cells(
    cells: list[PlannedCell],
    output: Path,
    *,
    keep_weights: bool,
    on_end: Callable[[PlannedCell, Record | Failure], None],
) -> None:
    """Carry out cells; one that fails is handed to `on_end` as a Failure and the next one goes on.

    A cell that an earlier process was killed in goes on from its last checkpoint. Raises Interrupted when the process
    is told to stop; what is finished is kept.
    """
    for item in cells:
        on_end(item, carry_out(item, output, keep_weights=keep_weights))


def carry_out(item: PlannedCell, output: Path, *, keep_weights: bool, watch: Watch | None = None) -> Record | Failure:
    """One cell, its record or why there is none; raises Interrupted or KeyboardInterrupt when told to stop."""
    write_journal(output, item.id, "begun")
    started = time.perf_counter()
    try:
        with _log_file(output / "logs" / f"{item.id}.log"):
            result = _run(item, output, watch)
    except (Interrupted, KeyboardInterrupt):
        write_journal(output, item.id, "interrupted")
        raise
    except Exception as error:  # whatever ends one cell must not end the others
        message = str(error) if isinstance(error, TltasksError) else f"{type(error).__name__}: {first_line(error)}"
        write_journal(output, item.id, "failed", message=message)
        return Failure(item.id, message)
    return _finish(item, result, output, time.perf_counter() - started, keep_weights=keep_weights)


def _run(item: PlannedCell, output: Path, watch: Watch | None) -> RunResult:
    folder, recipe = cell_folder(output, item.id), item.cell.recipe
    try:  # what a kill has left of a folder that was only begun is no run to go on with
        whole = recipe_sha256(load_recipe(folder / "recipe.yaml", check_files=False)) == recipe_sha256(recipe)
    except RecipeError:
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
    # Accelerate keeps one number format for a process (accelerate 1.15, state.py); cells may have different ones.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        result = run(recipe, output=folder, resume=True, push=False, dry_run=False, watch=watch)
    except TltasksError:
        raise
    except Exception:
        traceback.print_exc()  # into the cell's log
        raise
    assert result is not None
    return result


@contextmanager
def _log_file(path: Path) -> Any:
    """What a cell has to say goes into a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, redirect_stderr(file), redirect_stdout(file):
        yield


def _finish(item: PlannedCell, result: RunResult, output: Path, seconds: float, *, keep_weights: bool) -> Record:
    """Take out of a finished run what the experiment needs, and write it as the last thing."""
    folder = cell_folder(output, item.id)
    if not keep_weights:
        for weights in [folder / "model", *folder.glob("stages/*/model")]:
            shutil.rmtree(weights, ignore_errors=True)
    record = describe_cell(item, result, seconds)
    write_json(output / "cells" / f"{item.id}.json", record)
    write_journal(output, item.id, "finished", seconds=round(seconds, 3))
    return record


def describe_cell(item: PlannedCell, result: RunResult, seconds: float) -> Record:
    """The record of a run: its scores by test set, what was trained on what, and what it was computed with."""
    stage = result.best
    trained = [one for one in result.stages if one.training is not None]
    return {
        "id": item.id,
        "recipe_sha256": result.recipe_sha256,
        "levels": item.cell.levels,
        "seed": item.cell.seed,
        "inputs": item.inputs,
        "metric": result.headline.metric,
        "higher_is_better": result.headline.higher_is_better,
        "row_scores": f"{item.id}/stages/{stage.name}/{ROW_SCORES}",
        "targets": {
            split: {
                "value": score.value,
                "ci95": list(score.ci95),
                "rows": stage.data[split].examples,
                "fingerprint": stage.data[split].fingerprint,
                "values": score.values,
            }
            for split, score in stage.metrics.items()
        },
        "train_examples": stage.data["train"].examples if "train" in stage.data else 0,
        "trained_parameters": max((one.trainable_parameters for one in trained), default=0),
        "total_parameters": stage.total_parameters,
        "training_seconds": sum(one.training.seconds for one in result.stages if one.training is not None),
        "seconds": seconds,
        "versions": {name: v for name, v in result.versions.items() if name in {"tltasks", *CODE}},
        "hardware": result.hardware,
    }


def write_journal(output: Path, name: str, event: str, **more: Any) -> None:
    """A line for each thing that befalls a cell, so that it can be counted what was carried out how often."""
    with (output / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"cell": name, "event": event, **more}, ensure_ascii=False) + "\n")
