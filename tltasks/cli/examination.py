"""The screen, or the JSON, that says what can be done with a model."""

from __future__ import annotations

import dataclasses
import json
import re

from rich.console import Console
from rich.table import Table

from tltasks.config.tasks import TASKS
from tltasks.errors import without_secrets
from tltasks.hub.examination import examine
from tltasks.models.memory import Memory
from tltasks.reports.console import open_terminal
from tltasks.reports.formatting import show_bytes
from tltasks.tasks.examination import PRECISIONS, CheckpointFacts, MethodFacts, TaskFacts


def examine_model(
    name: str, *, tag: str | None, revision: str, trust_remote_code: bool, micro_batch: int, as_json: bool
) -> int:
    """Print what is found out; returns 1 when nothing can be done with the model."""
    facts = examine(name, task=tag, revision=revision, trust_remote_code=trust_remote_code, micro_batch=micro_batch)
    if as_json:
        print(without_secrets(json.dumps(_as_json(facts), indent=2, ensure_ascii=False)))  # noqa: T201
    else:
        _show(open_terminal(stderr=False), facts)
    return 0 if facts.is_of_use else 1


def _as_json(facts: CheckpointFacts) -> dict[str, object]:
    """All facts, with the sum of each estimate beside its parts."""
    found = dataclasses.asdict(facts)
    for task, told in zip(facts.tasks, found["tasks"], strict=True):
        for method, about in zip(task.methods, told["methods"], strict=True):
            for precision, memory in method.memory.items():
                about["memory"][precision]["total"] = memory.total
    return found


def _show(console: Console, facts: CheckpointFacts) -> None:
    named = f" ({', '.join(facts.architectures)})" if facts.architectures else ""
    console.print(f"{facts.name}: {facts.model_type}{named}", style="bold", soft_wrap=True)
    for task in facts.tasks:
        if task.methods:
            _show_task(console, task, facts.name)
    if others := [task for task in facts.tasks if task.refused is None and not task.methods]:
        console.print(f"also for {', '.join(map(_in_short, others))}; --task shows each", soft_wrap=True)
    for task in facts.tasks:
        if task.refused is not None and (len(facts.tasks) == 1 or not TASKS[task.task].is_self_supervised):
            console.print(f"not for {task.task}: {_bare(task.refused, facts.name)}", soft_wrap=True)
    if not facts.tasks:
        console.print("tltasks has no task for this architecture.")
    for note in facts.notes:
        console.print(note, soft_wrap=True)


def _bare(reason: str, name: str) -> str:
    """A reason without the place that it begins with, which is said above it."""
    return re.sub(rf"^(stage \w+: )?(model )?({re.escape(name)}: )?", "", reason)


def _in_short(task: TaskFacts) -> str:
    return f"{task.task} ({' or '.join(stage for stage, refused in task.stages.items() if refused is None)})"


def _show_task(console: Console, task: TaskFacts, name: str) -> None:
    head = f", head {', '.join(task.head)}" if task.head else ""
    console.print(f"\n{task.task}: {task.model}, {_count(task.parameters)} parameters{head}", soft_wrap=True)
    for stage, refused in task.stages.items():
        console.print(
            f"  stage: {stage:<9} {'yes' if refused is None else f'no: {_bare(refused, name)}'}", soft_wrap=True
        )
    table = Table(header_style="bold")
    for title in ("adapt", "trains", "layers"):
        table.add_column(title)
    for precision in PRECISIONS:
        table.add_column(f"memory, {precision}", justify="right")
    for method in task.methods:
        if method.refused is None:
            memory = [_size(method.memory.get(precision)) for precision in PRECISIONS]
            share = f"{_count(method.trained)} ({method.trained / max(1, task.parameters):.2%})"
            table.add_row(method.method, share, _layers(method), *memory)
    console.print(table)
    console.print(
        f"  memory: weights, gradients, AdamW's two moments, and the activations of a micro-batch of "
        f"{task.micro_batch}. A process takes more: its libraries (about 1 GiB), and what allocators keep.",
        soft_wrap=True,
    )
    for method in task.methods:
        if method.refused is not None:
            console.print(f"  not with adapt: {method.method}: {_bare(method.refused, name)}", soft_wrap=True)
    for note in task.notes:
        console.print(f"  {_bare(note, name)}", soft_wrap=True)


def _layers(method: MethodFacts) -> str:
    if not method.layers:
        return ""
    return f"{method.layers}, {method.left_out} left out" if method.left_out else str(method.layers)


def _count(number: int) -> str:
    """A number of weights.

    >>> _count(85_800_000), _count(7_000_000_000), _count(770)
    ('85.8 M', '7.0 B', '770')
    """
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return str(number)


def _size(memory: Memory | None) -> str:
    return "" if memory is None else show_bytes(memory.total)
