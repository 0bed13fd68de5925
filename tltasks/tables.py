"""What a run prints: its plan and its result, as tables for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tltasks.result import RunResult, Score


def show_result(console: Console, result: RunResult, output: Path) -> None:
    """Each stage's headline by split, beside its baselines, and where the report is."""
    for stage in result.stages:
        table = Table(title=f"{stage.name} · {stage.task}", title_justify="left", header_style="bold")
        table.add_column("split")
        headline = next(iter(stage.metrics.values())).headline
        table.add_column(f"{headline} [95 % interval]", justify="right")
        others = [k for k in next(iter(stage.metrics.values())).values if k != headline]
        for name in others:
            table.add_column(name, justify="right")
        for name in stage.baselines:
            table.add_column(f"baseline: {name}", justify="right")
        for split, score in stage.metrics.items():
            beside = [_baseline(by_split[split]) for by_split in stage.baselines.values()]
            rows = stage.data.get(split, {}).get("examples", "")
            table.add_row(f"{split} ({rows})", _interval(score), *(f"{score.values[k]:.3f}" for k in others), *beside)
        console.print(table)
    best = result.headline
    console.print(
        f"[bold]{best.metric} {best.value:.3f}[/] on {best.split} (95 % interval {best.ci95[0]:.3f}–{best.ci95[1]:.3f})"
    )
    console.print(f"report   {output / 'report.html'}", soft_wrap=True)
    console.print(f"model    {output / 'model'}", soft_wrap=True)


def _interval(score: Score) -> str:
    return f"{score.values[score.headline]:.3f} [{score.ci95[0]:.3f}, {score.ci95[1]:.3f}]"


def _baseline(score: Score) -> str:
    return f"{score.values[score.headline]:.3f}"


def show_checks(console: Console, stage: str, checks: dict[str, dict[str, float]]) -> None:
    """What the task found odd about the stage's data, a line for each split of which there is anything to say."""
    for split, counts in checks.items():
        odd = [
            f"{name.removesuffix('_share').replace('_', ' ')} {f'{n:.1%}' if name.endswith('_share') else f'{n:,}'}"
            for name, n in counts.items()
            if n
        ]
        if odd:
            console.print(f"{stage}: {split}: {', '.join(odd)}")


def show_plan(console: Console, plans: list[dict[str, Any]], output: str) -> None:
    """What a dry run found: data, size, steps and the time that they would take here."""
    table = Table(title="plan (nothing was trained or written)", title_justify="left", header_style="bold")
    for name in ("stage", "data", "trains", "steps", "time", "memory"):
        table.add_column(name)
    for plan in plans:
        data = ", ".join(f"{k} {n:,}{f' ({bad} unreadable)' if bad else ''}" for k, (n, bad) in plan["splits"].items())
        seconds, memory = plan.get("seconds"), plan.get("memory_bytes")
        table.add_row(
            plan["stage"],
            data,
            f"{plan['trainable']:,} of {plan['total']:,}" if "steps" in plan else "nothing",
            f"{plan['steps']:,}" if "steps" in plan else "–",
            f"about {duration(seconds)}" if seconds is not None else "–",
            f"{memory / 2**30:.1f} GiB" if memory else "–",
        )
    console.print(table)
    console.print(f"results would go to {output}", soft_wrap=True)


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (4, 100, 5000)]
    ['4 s', '1 min 40 s', '1 h 23 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
