"""The screen, or the JSON, that says what can be done with a model, or what a recipe takes on several devices."""

from __future__ import annotations

import dataclasses
import json
import re

from accelerate import PartialState
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tltasks.config.recipe import RunPlan
from tltasks.config.tasks import TASKS
from tltasks.errors import without_secrets
from tltasks.hub.examination import examine
from tltasks.models.memory import Memory
from tltasks.reports.console import open_terminal
from tltasks.reports.formatting import UNKNOWN, show_bytes, show_duration, show_seconds
from tltasks.runs.scaling import StageScaling, scale
from tltasks.runtime.devices import cores, hardware
from tltasks.runtime.precision import choose_precision
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


def examine_recipe(plan: RunPlan, *, bandwidth: float | None, latency: float | None, as_json: bool) -> int:
    """Print stages on 1 to 64 devices, with GB/s and microseconds between them where these are given."""
    network, stages = scale(plan, bandwidth=bandwidth and bandwidth * 1e9, latency=latency and latency / 1e6)
    device = PartialState().device
    facts = hardware(device, 1, choose_precision(plan.recipe.precision, device)) | dataclasses.asdict(network)
    if as_json:
        print(json.dumps({**facts, "stages": [dataclasses.asdict(it) for it in stages]}, indent=2))  # noqa: T201
        return 0
    console = open_terminal(stderr=False)
    console.print(
        f"each device as this one ({facts['device_name']}{f', cores: {cores()}' if device.type == 'cpu' else ''}, in "
        f"{facts['precision']}), {network.bandwidth / 1e9:g} GB/s and {1e6 * network.latency:g} µs from one to another "
        "(--bandwidth, --latency); nothing is computed during exchanges",
        soft_wrap=True,
    )
    for stage in stages:
        _show_scaling(console, stage)
    return 0


def _show_scaling(console: Console, it: StageScaling) -> None:
    for steps, how in ((it.ddp, "whole weights on each device"), (it.fsdp2, "weights shared out by FSDP 2")):
        table = Table(
            title=f"{it.stage}, {how}", title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for title in ("devices", "compute", "exchange", "step", "rows/s", "memory"):
            table.add_column(title, justify="right", no_wrap=True)
        for step in steps:
            seconds = map(show_seconds, (step.compute_seconds, step.exchange_seconds, step.seconds))
            memory = show_bytes(step.memory_bytes) if step.memory_bytes else UNKNOWN
            table.add_row(str(step.devices), *seconds, f"{step.rows_per_second:,.4g}", memory)
        if steps:
            console.print(table)
    here = [f"{step.devices}: {step.rows_per_second_here:,.4g}" for step in it.ddp if step.rows_per_second_here]
    if here:
        told = f"{it.stage}, rows/s of as many processes on this machine, which share its cores: {', '.join(here)}"
        console.print(told, soft_wrap=True)
    if it.no_fsdp2:
        console.print(f"{it.stage}, not with FSDP 2: {it.no_fsdp2}", soft_wrap=True)
    times = [show_duration(step.seconds * it.steps) for step in it.ddp if step.devices in (1, it.useful)]
    console.print(
        f"{it.stage}: {it.steps:,} steps of {it.batch_size:,} rows, about {times[0]} on one device. Largest useful "
        f"number of devices: {it.useful}, about {times[-1]} ({it.why})",
        soft_wrap=True,
    )


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
