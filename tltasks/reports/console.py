"""Tables for a terminal: the plan of a run and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tltasks.errors import printable
from tltasks.reports.formatting import show_bytes, show_duration, show_interval, show_number
from tltasks.results.comparison import compare_headline, describe_leaks
from tltasks.results.result import RunResult, StageMeasurement


class _Terminal(Console):
    """A console that writes out control characters and leaves out secrets."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def open_terminal(*, quiet: bool = False, stderr: bool = True) -> Console:
    """Standard error or output, on which names are printed as they are: `[red]` and `:cat:` mean nothing in them."""
    return _Terminal(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)


def show_result(console: Console, result: RunResult, output: Path) -> None:
    """Print each stage's scores beside its baselines, a column for each split, and where the report is."""
    for stage in result.stages:
        table = Table(title=f"{stage.name} · {stage.task}", title_justify="left", header_style="bold")
        table.add_column("")
        for split in stage.metrics:
            table.add_column(f"{split} ({stage.data[split].examples:,})", justify="right")
        scores = list(stage.metrics.values())
        headline = scores[0].headline
        table.add_row(headline, *(show_number(score.values[headline]) for score in scores), style="bold")
        table.add_row("  95 % interval", *(show_interval(score.ci95) for score in scores))
        for name, by_split in stage.baselines.items():
            beside = (by_split[split].values[headline] if split in by_split else None for split in stage.metrics)
            table.add_row(f"  baseline: {name}", *("" if value is None else show_number(value) for value in beside))
        for name in scores[0].values:
            if name != headline:
                table.add_row(
                    name, *(show_number(score.values[name]) if name in score.values else "" for score in scores)
                )
        for note in dict.fromkeys(note for score in scores for note in score.notes):
            console.print(f"{stage.name}: {note}", soft_wrap=True)
        console.print(table)
    best = result.headline
    console.print(f"{best.metric} {show_number(best.value)}", style="bold", end="")
    console.print(f" on {best.split} (95 % interval {show_interval(best.ci95)})")
    for comparison in compare_headline(result):
        console.print(f"  {comparison.sentence}", soft_wrap=True)
    if told := describe_leaks(result.best, best.split):
        console.print(f"  {told}", soft_wrap=True)
    console.print(f"report   {output / 'report.html'}", soft_wrap=True)
    console.print(f"model    {output / 'model'}", soft_wrap=True)


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
        table.add_column(name)
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
    console.print(f"results would go to {output}", soft_wrap=True)
