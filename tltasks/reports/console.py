"""Tables for a terminal: the plan of a run and its result."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tltasks.errors import printable
from tltasks.reports.formatting import show_bytes, show_duration, show_interval, show_number
from tltasks.results.comparison import compare_headline, describe_leaks, short_name
from tltasks.results.metric_names import metric_name
from tltasks.results.result import LONG, RunResult, StageMeasurement
from tltasks.runtime.files import append
from tltasks.runtime.progress import SETTINGS

BUSY = 0.2
"""Share of the time measured in which other work had the processor, from which a dry run tells of it."""
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""Names are printed as they are: `[red]` and `:cat:` mean nothing in them."""


class _Plain(Console):
    """A console that writes out control characters and leaves out secrets."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class Terminal(_Plain):
    """A console of which a run keeps what is said, from its first line on, also where it is quiet."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**PLAIN, **options)
        self.kept = io.StringIO()
        self.place: Path | None = None
        # In a notebook rich would show it, and write nothing to the file (rich 15, console.py: _write_buffer).
        self._copy = _Plain(**PLAIN, file=self.kept, width=120, color_system=None, force_jupyter=False)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        self._copy.print(*objects, **options)
        self._write()

    @contextmanager
    def logged(self, path: Path | None) -> Iterator[None]:
        """Have what was said, what is said and an error that ends the block at the end of a file, with its time."""
        self.place = path
        try:
            self._write()
            yield
        except BaseException as error:
            self.kept.write(f"{type(error).__name__}: {printable(str(error))}\n")
            self._write()
            raise
        finally:
            self.place = None

    def _write(self) -> None:
        text = self.kept.getvalue()
        if self.place is not None and text.endswith("\n"):
            append(self.place, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")
            self.kept.seek(0)
            self.kept.truncate()


def open_terminal(*, quiet: bool = False, stderr: bool = True) -> Terminal:
    """Standard error, which --quiet silences, or standard output."""
    return Terminal(stderr=stderr, quiet=quiet or (stderr and SETTINGS.verbosity == "quiet"))


def show_result(console: Console, result: RunResult, output: Path, *, answers: bool = False) -> None:
    """Print each stage's scores beside its baselines, a column for each split, and where the report is.

    `answers`: the model is one to predict with.
    """
    for stage in result.stages:
        table = Table(title=f"{stage.name} · {stage.task}", title_justify="left", header_style="bold")
        table.add_column("")
        for split in stage.metrics:
            table.add_column(f"{split} ({stage.data[split].examples:,})", justify="right", overflow="fold")
        scores = list(stage.metrics.values())
        headline = scores[0].headline
        table.add_row(metric_name(headline), *(show_number(score.values[headline]) for score in scores), style="bold")
        table.add_row("  95 % interval", *(show_interval(score.ci95) for score in scores))
        for name, by_split in stage.baselines.items():
            beside = (by_split[split].values[headline] if split in by_split else None for split in stage.metrics)
            table.add_row(f"  {short_name(name)}", *("" if value is None else show_number(value) for value in beside))
        for name in scores[0].values:
            if name != headline:
                table.add_row(
                    metric_name(name),
                    *(show_number(score.values[name]) if name in score.values else "" for score in scores),
                )
        for note in dict.fromkeys(note for score in scores for note in score.notes):
            console.print(f"{stage.name}: {note}", soft_wrap=True)
        console.print(table)
    best = result.headline
    scored = printable(f"{metric_name(best.metric)} {show_number(best.value)}")
    where = printable(f" on {best.split} (95 % interval {show_interval(best.ci95)})")
    console.print(Text.assemble((scored, "bold"), where))  # at once: each print is an output of its own in a notebook
    for comparison in compare_headline(result):
        console.print(f"  {comparison.sentence}", soft_wrap=True)
    if told := describe_leaks(result.best, best.split):
        console.print(f"  {told}", soft_wrap=True)
    console.print(f"report   {output / 'report.html'}", soft_wrap=True)
    console.print(f"model    {output / 'model'}", soft_wrap=True)
    if answers:
        place = shlex.quote(str(output))
        console.print(
            f"next     tltasks predict {place} FILE, tltasks demo {place}, tltasks push {place}", soft_wrap=True
        )


def show_checks(console: Console, stage: str, checks: dict[str, dict[str, float]]) -> None:
    """Print oddities of a stage's data, a line for each split that has any."""
    for split, counts in checks.items():
        odd = [
            f"{name.removesuffix('_share').replace('_', ' ')} {f'{n:.1%}' if name.endswith('_share') else f'{n:,}'}"
            for name, n in counts.items()
            if n
        ]
        if odd:
            console.print(f"{stage}: {split}: {', '.join(odd)}")


def show_plan(console: Console, stages: list[StageMeasurement], output: Path) -> None:
    """Print a dry run's measurements: data, size, steps and the time that they would take here."""
    table = Table(title="plan (nothing was trained or written)", title_justify="left", header_style="bold")
    for name in ("stage", "data", "trains", "steps", "time", "memory"):
        table.add_column(name, overflow="fold")
    for it in stages:
        trains = it.steps is not None
        table.add_row(
            it.stage,
            ", ".join(f"{k} {n:,}{f' ({bad} unreadable)' if bad else ''}" for k, (n, bad) in it.splits.items()),
            f"{it.trainable_parameters:,} of {it.total_parameters:,}" if trains else "nothing",
            f"{it.steps:,}" if trains else "–",
            f"about {show_duration(it.seconds)}" if it.seconds is not None else "–",
            f"{it.memory_bytes / 2**30:.1f} GiB" if it.memory_bytes else "–",
        )
    console.print(table)
    for it in stages:
        if it.parts:
            parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in it.parts.items())
            console.print(f"steps of {it.stage} need {show_bytes(sum(it.parts.values()))}: {parts}", soft_wrap=True)
        if it.waiting > BUSY:
            console.print(
                f"{it.stage}: other work had the processor for {it.waiting:.0%} of the time measured. Without that "
                "it takes less than is told; beside it OMP_WAIT_POLICY=passive before the command may help",
                soft_wrap=True,
            )
        if it.shorter:
            console.print(
                f"{it.stage} in at most {LONG // 60} min, by less training: --set {it.shorter}", soft_wrap=True
            )
    if any(it.seconds is not None for it in stages):
        console.print("times are of training, by one step of it; scoring comes on top", soft_wrap=True)
    console.print(f"results would go to {output}", soft_wrap=True)
