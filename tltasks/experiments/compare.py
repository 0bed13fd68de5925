"""The story of `tltasks compare`: plan, carry out what is not there yet, and say what it shows."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tltasks.config.yaml_reader import read_text
from tltasks.errors import DataError
from tltasks.experiments.analysis import Findings, analyse
from tltasks.experiments.charts import Picture
from tltasks.experiments.experiment import Experiment, load_experiment
from tltasks.experiments.plan import PlannedCell, Record, estimate_seconds, plan_cells, to_do
from tltasks.experiments.ray import Workers, run_on_ray
from tltasks.experiments.report import draw_pictures, sentences, show_levels, write_report
from tltasks.experiments.tables import csv_table, latex_table
from tltasks.experiments.trials import Failure, run_cells
from tltasks.results.result import finite, show_duration
from tltasks.runs.story import measure_stages
from tltasks.runtime.files import locked, write_json, write_text

SCHEMA = 1
OVERHEAD_SECONDS = 3.0
"""Of a cell, besides its steps, before one has been carried out: opening, evaluating, writing."""


@dataclass
class Progress:
    """What has become of the cells so far."""

    planned: list[PlannedCell]
    failed: dict[str, Failure] = field(default_factory=dict)

    def take(self, item: PlannedCell, ended: Record | Failure) -> None:
        """Enter the end of a cell under every combination of levels that it stands for."""
        if isinstance(ended, Failure):
            self.failed[item.id] = ended
            return
        self.planned = [dataclasses.replace(p, record=ended) if p.id == item.id else p for p in self.planned]


def compare(
    path: Path, overrides: list[str], *, output: Path | None, dry_run: bool, workers: Workers | None = None
) -> int:
    """Carry out an experiment, on Ray's `workers` if these are given, and return how many of its cells failed; a dry
    run only plans.

    Raises Interrupted when the process is told to stop, and a TltasksError for what the user can mend.
    """
    console = Console(stderr=True, highlight=False)
    experiment, cells = load_experiment(path, overrides)
    output = output or Path(experiment.output).expanduser()
    planned = plan_cells(cells, output)
    if dry_run:
        measured = _measure(planned, output)
        show_plan(console, planned, measured)
        return 0
    _refuse_others(output)
    with locked(output):
        (output / "cells").mkdir(exist_ok=True)
        planned = plan_cells(cells, output)  # with what another process may have finished meanwhile
        progress, left = Progress(planned), to_do(planned)
        show_plan(console, planned, None)
        on_end = functools.partial(_tell, console, progress, n_cells=len(left))
        try:
            if workers is None:
                run_cells(left, output, keep_weights=experiment.keep_weights, on_end=on_end)
            else:
                run_on_ray(left, output, keep_weights=experiment.keep_weights, workers=workers, on_end=on_end)
        finally:
            if any(item.record is not None for item in progress.planned):
                findings = write_results(experiment, progress, output, name=path.stem, text=read_text(path))
                show_findings(console, experiment, findings, output)
    if progress.failed and not any(item.record is not None for item in progress.planned):
        first = next(iter(progress.failed.values()))
        raise DataError(
            f"no cell could be carried out; the first: {first.message}\nIts log: {output}/logs/{first.id}.log"
        )
    return len(progress.failed)


def _refuse_others(output: Path) -> None:
    """Raise DataError for a folder that holds something else than an experiment."""
    if output.is_dir() and any(output.iterdir()) and not (output / "cells").is_dir():
        raise DataError(f"output {output}: is not empty and holds no experiment; name another folder with --output.")


def _tell(console: Console, progress: Progress, item: PlannedCell, ended: Record | Failure, *, n_cells: int) -> None:
    progress.take(item, ended)
    left = to_do(progress.planned)
    done = n_cells - len(left) + len(progress.failed)
    if isinstance(ended, Failure):
        console.print(f"[{done}/{n_cells}] {item.cell.name}: failed: {ended.message}", soft_wrap=True, markup=False)
        return
    scores = ", ".join(f"{name} {score['value']:.3f}" for name, score in ended["targets"].items())
    seconds = estimate_seconds([p for p in progress.planned if p.id not in progress.failed], {})
    rest = f"; about {show_duration(seconds)} left" if seconds else ""
    shown = f"[{done}/{n_cells}] {item.cell.name}: {scores} ({show_duration(ended['seconds'])}{rest})"
    console.print(shown, soft_wrap=True, markup=False)


# --------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Measured:
    """What two steps say of cells that nothing is known of yet."""

    seconds: dict[str, float]
    """Of a cell, by kind."""
    memory_bytes: int
    """Most that any of them takes, besides evaluation."""


def _measure(planned: list[PlannedCell], output: Path) -> Measured:
    """By two steps of the cell of each kind with the most data, where no cell of that kind is finished."""
    known = {item.kind for item in planned if item.record is not None}
    kinds: dict[str, PlannedCell] = {}
    for item in to_do(planned):
        best = kinds.get(item.kind)
        if item.kind not in known and (best is None or _shots(item) > _shots(best)):
            kinds[item.kind] = item
    seconds, memory = {}, 0
    for kind, item in kinds.items():
        stages = measure_stages(item.cell.recipe, output)
        seconds[kind] = OVERHEAD_SECONDS + sum(stage.get("seconds", 0.0) for stage in stages)
        memory = max([memory, *(stage["memory_bytes"] for stage in stages)])
    return Measured(seconds, memory)


def _shots(item: PlannedCell) -> float:
    data = item.cell.recipe.data
    return float("inf") if data is None or data.shots is None else data.shots


def show_plan(console: Console, planned: list[PlannedCell], measured: Measured | None) -> None:
    """How many cells there are along each axis, how many are finished, and what the others will take."""
    left = to_do(planned)
    unique = len({item.id for item in planned})
    again = f", of which {len(planned) - unique} are the same as others" if unique < len(planned) else ""
    console.print(f"{len(planned):,} cells{again}; {unique - len(left):,} finished, {len(left):,} to carry out")
    if measured is not None:
        table = Table(title="plan (nothing was trained or written)", title_justify="left", header_style="bold")
        for name in ("axis", "level", "cells", "finished"):
            table.add_column(name)
        for axis in planned[0].cell.levels:
            counts = Counter(item.cell.levels[axis] for item in planned)
            finished = Counter(item.cell.levels[axis] for item in planned if item.record is not None)
            for i, (level, n) in enumerate(counts.items()):
                table.add_row(axis if i == 0 else "", level, f"{n:,}", f"{finished[level]:,}")
        console.print(table)
    seconds = estimate_seconds(planned, measured.seconds if measured is not None else {})
    if left and seconds is not None:
        memory = (
            f", with {measured.memory_bytes / 2**30:.1f} GiB of memory" if measured and measured.memory_bytes else ""
        )
        console.print(f"about {show_duration(seconds)} on this machine, one after another{memory}")


# ------------------------------------------------------------------------------------------ results


def write_results(experiment: Experiment, progress: Progress, output: Path, *, name: str, text: str) -> Findings:
    """result.json, report.html, figures and tables, from the finished cells."""
    findings = analyse(experiment, progress.planned, output)
    result = describe(experiment, findings, progress, name=name, text=text)
    write_json(output / "result.json", finite(result))
    write_text(output / "table.csv", csv_table(experiment, findings))
    write_text(output / "table.tex", latex_table(experiment, findings))
    pictures = draw_pictures(experiment, findings)
    _write_pictures([picture for section in pictures.values() for picture in section], output / "figures")
    write_report(output / "report.html", experiment, findings, pictures, result)
    return findings


def _write_pictures(pictures: list[Picture], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png())


def describe(experiment: Experiment, findings: Findings, progress: Progress, *, name: str, text: str) -> dict[str, Any]:
    """Every number of the experiment, for result.json."""
    done = {item.id: item.record for item in progress.planned if item.record is not None}
    failed = {item.id: item for item in progress.planned if item.id in progress.failed}
    hardware = {
        f"{r['hardware']['device_name']}, {r['hardware']['cpu_cores']} cores, {r['hardware']['precision']}": None
        for r in done.values()
    }
    versions: dict[str, str] = {}
    for record in done.values():
        for package, version in record["versions"].items():
            known = versions.setdefault(package, version)
            versions[package] = known if version in known.split(", ") else f"{known}, {version}"
    return {
        "schema": SCHEMA,
        "name": name,
        "experiment": text,
        "seeds": experiment.seeds,
        "findings": dataclasses.asdict(findings),
        "cells": [
            {key: value for key, value in item.record.items() if key not in {"hardware", "versions"}}
            | {"levels": item.cell.levels, "seed": item.cell.seed}
            for item in progress.planned
            if item.record is not None
        ],
        "failed": [
            {"id": key, "levels": item.cell.levels, "seed": item.cell.seed, "message": progress.failed[key].message}
            for key, item in failed.items()
        ],
        "unfinished": len({p.id for p in progress.planned if p.record is None and p.id not in progress.failed}),
        "seconds": sum(record["seconds"] for record in done.values()),
        "versions": versions,
        "hardware": list(hardware),
    }


def show_findings(console: Console, experiment: Experiment, findings: Findings, output: Path) -> None:
    """The terminal's short version of the report."""
    targets = list(dict.fromkeys(arm.target for arm in findings.arms))
    table = Table(title=findings.metric, title_justify="left", header_style="bold")
    table.add_column("")
    for target in targets:
        table.add_column(target, justify="right")
    by_levels: dict[str, dict[str, str]] = {}
    marks = {"positive": " +", "negative": " −", "neutral": "  "}
    for arm in findings.arms:
        mark = marks[arm.comparisons[0].verdict] if arm.comparisons else ""
        shown = f"{arm.score.mean:.3f} ({arm.score.low:.2f} to {arm.score.high:.2f}){mark}"
        by_levels.setdefault(show_levels(arm.levels), {})[arm.target] = shown
    for levels, scores in by_levels.items():
        table.add_row(levels, *(scores.get(target, "–") for target in targets))
    console.print(table)
    for _, sentence in sentences(experiment, findings):
        console.print(sentence, soft_wrap=True)
    console.print(f"report   {output / 'report.html'}", soft_wrap=True)
