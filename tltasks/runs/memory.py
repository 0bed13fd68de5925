"""Memory of a stage's steps: what they are expected to need, and which keys of the recipe would have them need less."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from tltasks.config.stage import OptimizerName
from tltasks.errors import TrainingError
from tltasks.models.adapters import set_training_mode
from tltasks.models.fast_steps import fast_steps
from tltasks.models.held import saved_by_holding
from tltasks.models.memory import rehearse_step
from tltasks.models.trial import FAULTS
from tltasks.reports.formatting import show_bytes
from tltasks.runs.context import Context, PreparedStage
from tltasks.runtime import devices
from tltasks.training.loop import Job, largest_load
from tltasks.training.optimizer import state_bytes

Parts = dict[str, int]
"""Bytes by what for."""
ACTIVATIONS = "activations of a micro-batch"
SCARCE = "Loading, scoring and saving take the whole model in fp32: use a smaller checkpoint, or a machine with more."
LARGE = 2**23
"""Bytes of weights."""
LENGTHS = ("max_document_tokens", "max_tokens")
"""Keys of `data` that cut long rows."""
LORA_RANK = 16
"""Of the adapter that is named to those who train all weights."""


@dataclass(frozen=True)
class Relief:
    """A key that would have steps need less memory."""

    key: str
    saved: int
    cost: str
    """What else it changes."""


def is_large(model: nn.Module) -> bool:
    """Tell whether a model's steps need more memory than the process that takes them has anyway."""
    return _bytes_of(model.parameters()) >= LARGE


def built_bytes(model: nn.Module) -> int:
    """Resident memory of the process without the model's weights, which has just been built."""
    return devices.resident_bytes() - _bytes_of(model.parameters())


def _bytes_of(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def expect_memory(
    context: Context,
    job: Job,
    model: nn.Module,
    *,
    before: int,
    built: int = 0,
    halvings: int = 0,
    world: int | None = None,
) -> Parts:
    """Bytes that the stage's steps need at most, found by rehearsing the largest micro-batch without numbers.

    On a CPU with those of the process `before` the model, of what building the model has called into memory besides
    (`built`, less those), of kernels for the shapes that come, and of what the loop leaves the allocator. Empty for a
    model that does not run so. Of one of `world` processes, where these are others than there are.
    """
    accelerator = context.accelerator
    load = largest_load(accelerator, job, model, halvings=halvings, world=world)
    set_training_mode(model, frozen_batch_norm=job.frozen_batch_norm)
    beside = load.together > 1  # each with gradients of its own
    try:
        with fast_steps(model, accelerator.device):
            found = rehearse_step(
                model,
                job.task.loss,
                load.batch,
                precision=context.precision,
                accumulates=load.accumulates and not beside,
            )
    except FAULTS:
        return {}
    trained = _bytes_of(p for p in model.parameters() if p.requires_grad)
    on_cpu = accelerator.device.type == "cpu"
    return {
        **({"process and data": before} if on_cpu else {}),
        **({"libraries": max(0, built - before)} if on_cpu else {}),
        **({"kernels": devices.kernel_bytes(found.kernels * load.shapes)} if on_cpu else {}),
        **({"kept by the allocator": devices.MOST_FREED} if devices.Resident(accelerator.device).watches else {}),
        "frozen weights": found.weights - trained,
        "trained weights": trained,
        "gradients": found.gradients,
        "optimizer": state_bytes(model, job.stage, head=job.head),
        ACTIVATIONS: load.together * (found.activations + trained) if beside else found.activations,
    }


def advise(context: Context, stage: PreparedStage, job: Job, model: nn.Module, *, halvings: int, asked: int) -> str:
    """A sentence on the cheapest keys that would help where memory, and so many bytes of it, could not be had."""
    chosen, saved = list[Relief](), 0
    try:
        parts = expect_memory(context, job, model, before=0, halvings=halvings)
        needed, used = sum(parts.values()), devices.resident_bytes() if context.accelerator.device.type == "cpu" else 0
        short = max(asked, used + parts[ACTIVATIONS] - devices.memory_limit(context.accelerator.device), 1)
        for it in _reliefs(context, stage, job, model, needed, halvings):
            if it.saved >= short:
                chosen, saved = [it], it.saved
                break
            if it.saved > 0 and saved < short:
                chosen, saved = [*chosen, it], saved + it.saved
    except (*FAULTS, MemoryError):  # what else there is to say of a model that does not run without numbers
        needed = 0
    if not chosen:
        return "Set a smaller micro_batch, gradient_checkpointing: true, or make examples smaller."
    keys = ", and ".join(f"`{it.key}` about {show_bytes(it.saved)} ({it.cost})" for it in chosen)
    missing = f", which falls short of {show_bytes(short)}" if saved < short else ""
    return f"Of the {show_bytes(needed)} that its steps need besides the process, {keys} would be saved{missing}."


@contextmanager
def shortage_told(where: str, advice: Callable[[int], str]) -> Iterator[None]:
    """Turn memory that does not suffice into one TrainingError, with advice by the bytes that were asked for."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        raise TrainingError(f"{where}: out of memory. {advice(devices.bytes_asked(error))}") from error


def _reliefs(
    context: Context, stage: PreparedStage, job: Job, model: nn.Module, needed: int, halvings: int
) -> Iterator[Relief]:
    """Keys that may help, the cheapest first: those that change no result, those that hardly do, and the others."""
    keys, state = job.stage, state_bytes(model, job.stage, head=job.head)

    def saved(job: Job, halvings: int = halvings) -> int:
        return needed - sum((expect_memory(context, job, model, before=0, halvings=halvings) or {"": needed}).values())

    processes = context.accelerator.num_processes
    if processes > 1 and keys.rows_per_loss is None:  # one process alone halves them by itself
        rows = max(1, math.ceil(keys.batch_size / processes) // 2 ** (halvings + 1))
        yield Relief(f"micro_batch: {rows}", saved(job, halvings + 1), "results do not depend on it")
    inner = next((it for it in model.modules() if isinstance(it, PreTrainedModel)), None)
    if inner is not None and inner.supports_gradient_checkpointing and not keys.gradient_checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield Relief(
                "gradient_checkpointing: true", saved(job), "the same results, each step computed one and a third times"
            )
        finally:
            inner.gradient_checkpointing_disable()
    if keys.adapt.method != "full" or keys.freeze:
        yield Relief("base_dtype: bf16", saved_by_holding(model, bits=16), "frozen weights are rounded")
        yield Relief("base_dtype: nf4", saved_by_holding(model, bits=4.5), "frozen weights in 4 bits, slower steps")
    if keys.optimizer in {"adamw", "muon"}:
        name: OptimizerName = "adamw_8bit" if importlib.util.find_spec("bitsandbytes") else "adafactor"
        other = state_bytes(model, keys.model_copy(update={"optimizer": name}), head=job.head)
        yield Relief(f"optimizer: {name}", state - other, "other steps" if name == "adafactor" else "moments in 8 bits")
    lengths = job.task.lengths(job.rows)
    cut = next((name for name in LENGTHS if hasattr(stage.plan.data, name)), None)
    if cut is not None and lengths is not None:
        median = int(np.median(lengths))
        shorter = job.rows.select(np.flatnonzero(np.asarray(lengths) <= median))
        yield Relief(f"{cut}: {median}", saved(dataclasses.replace(job, rows=shorter)), "half of the rows are cut")
    if keys.adapt.method == "full" and stage.plan.kind.weights != "random":
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        ranks = LORA_RANK * sum(m.in_features + m.out_features for m in model.modules() if isinstance(m, nn.Linear))
        kept = min(1.0, ranks / max(1, numbers))
        yield Relief(
            f"adapt: {{lora: {{rank: {LORA_RANK}}}}}", int((1 - kept) * (4 * numbers + state)), "trains other weights"
        )
