"""Steps of a stage on more and more devices: computing as it is measured here, exchanges as a network makes them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tltasks.config.recipe import RunPlan
from tltasks.data.batching import Rows
from tltasks.errors import RecipeError
from tltasks.runs.context import Context, PreparedStage
from tltasks.runs.memory import Parts, advise, shortage_told
from tltasks.runs.refusals import refuse_at_once, refuse_sharing
from tltasks.runs.stage import open_stage
from tltasks.runs.story import open_stages
from tltasks.runtime.devices import cores
from tltasks.runtime.sharding import layer_bytes, refuse_mixed
from tltasks.training.loop import least_rows, own_passes, pass_seconds, update_seconds

WORLDS = (1, 2, 4, 8, 16, 32, 64)
LEAST_GAIN = 0.2
"""More rows a second, as a share, that twice the devices bring where they are of use."""
SAVES = 0.1
"""Share of a device's memory that FSDP 2 saves where it is told of."""
STEPS, SIZES = 20, 5
"""Steps of which the passes are looked at, and sizes of passes that are measured."""
EXCHANGES, NUMBER = 3, 4
"""In a step, of single numbers (its targets, its loss, whether to stop), and bytes of one."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP exchanges at once (torch 2.14, nn/parallel/distributed.py)."""
STATES = ("frozen weights", "trained weights", "gradients", "optimizer")
"""Parts of memory that FSDP 2 shares out."""


@dataclass(frozen=True)
class Network:
    """The way between devices, each of which sends and is sent as much."""

    bandwidth: float
    """Bytes a second."""
    latency: float
    """Seconds until what a device sends is with the next."""

    def once_around(self, size: float, world: int, *, parts: float = 1) -> float:
        """Seconds of a reduce-scatter or an all-gather of so many bytes around a ring of devices, in so many parts.

        An all-reduce is one after the other. Source: Patarasuk and Yuan, https://doi.org/10.1016/j.jpdc.2008.09.002.

        >>> Network(bandwidth=100, latency=1).once_around(400, 4)
        6.0
        """
        return (world - 1) * (parts * self.latency + size / world / self.bandwidth)


USUAL = {"cpu": Network(1.25e9, 50e-6), "cuda": Network(12.5e9, 10e-6)}
"""By kind of device: Ethernet of 10 Gbit/s; InfiniBand, or a bus, of 100 Gbit/s."""


@dataclass(frozen=True)
class Step:
    """A step on so many devices."""

    devices: int
    compute_seconds: float
    exchange_seconds: float
    rows_per_second: float
    memory_bytes: int
    """For each device; 0 where it cannot be told."""
    rows_per_second_here: float | None = None
    """With all of them on this machine, where more processes than cores share these; None on an accelerator."""

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.exchange_seconds


@dataclass(frozen=True)
class Cost:
    """Costs of a stage's step: computing on the device with most to do, and exchanges."""

    rows: float
    """In a step, on all devices together."""
    seconds_of: dict[int, float]
    """Those of passes, by their size."""
    update_seconds: float
    """In which the optimiser changes all weights that are trained."""
    passes: dict[int, list[list[int]]]
    """Sizes of those of some steps, by the number of devices."""
    memory: dict[int, Parts]
    """Bytes, by the number of devices and what for."""
    gradient_bytes: int
    layer_bytes: list[int]
    """Weights, by what FSDP 2 gathers at once; the last are in no layer."""
    steps_per_epoch: int
    room: float | None = None
    """How many devices like this one this machine's cores make; None on an accelerator."""

    def compute_seconds(self, world: int) -> float:
        """Seconds of a step's passes, by those that were measured; a larger one is never the faster."""
        sizes, steps = sorted(self.seconds_of), self.passes[world]
        seconds = np.maximum.accumulate([self.seconds_of[size] for size in sizes])
        return float(np.interp([size for step in steps for size in step], sizes, seconds).sum()) / len(steps)

    def with_ddp(self, network: Network, world: int) -> Step:
        """A step on devices of which each has whole weights."""
        numbers = EXCHANGES + 1 / self.steps_per_epoch  # in each epoch all tell whether their passes fit
        exchange = numbers * network.once_around(NUMBER, world)
        buckets = math.ceil(self.gradient_bytes / BUCKET)
        exchange += network.once_around(self.gradient_bytes, world, parts=buckets)
        copied = self.gradient_bytes if world > 1 else 0  # to be exchanged
        memory = sum(self.memory[world].values()) + copied if self.memory[world] else 0
        return self._step(world, self.update_seconds, 2 * exchange, memory)

    def with_fsdp2(self, network: Network, world: int, *, on_cpu: bool) -> Step:
        """A step on devices of which each keeps a share of weights, gradients and moments.

        In each pass all weights are gathered twice, and gradients summed up where they are kept. Whole are two layers
        in a step, and the model between steps; a CPU has both, and its process, in one memory.
        """
        passes, layers, parts = self.passes[world], self.layer_bytes, self.memory[world]
        size = 2 * sum(layers) + self.gradient_bytes
        exchange = network.once_around(size, world, parts=3 * len(layers)) * sum(map(len, passes)) / len(passes)
        exchange += 2 * (EXCHANGES + 1) * network.once_around(NUMBER, world)  # the norm of gradients is one more
        states = [parts.get(name, 0) for name in STATES]
        memory = sum(parts.values()) - sum(states) + sum(states) // world + layers[-1] + 2 * max(layers[:-1], default=0)
        memory = memory + sum(states[:2]) if on_cpu else max(memory, sum(states[:3]))
        return self._step(world, self.update_seconds / world, exchange, memory if parts else 0)

    def _step(self, world: int, update: float, exchange: float, memory: int) -> Step:
        compute = self.compute_seconds(world) + update
        rate = self.rows / (compute + exchange)
        here = None if self.room is None else rate * min(1, self.room / world)
        return Step(world, compute, exchange, rate, memory, here)


@dataclass(frozen=True)
class StageScaling:
    """A stage on more and more devices."""

    stage: str
    batch_size: int
    steps: int
    cost: Cost
    ddp: list[Step]
    fsdp2: list[Step]
    no_fsdp2: str
    """Why the stage is not told with FSDP 2, where it is not."""
    useful: int
    """The most devices that are of use."""
    why: str
    """And no more."""


def largest_useful(steps: Sequence[Step], *, batch_size: int) -> tuple[int, str]:
    """The number of devices beyond which twice as many bring too little, and why no more."""
    for before, after in pairwise(steps):
        gain, share = after.rows_per_second / before.rows_per_second - 1, after.exchange_seconds / after.seconds
        if gain < LEAST_GAIN:
            return before.devices, f"{after.devices}: {gain:+.0%} rows/s, {share:.0%} of a step for exchanges"
    most = steps[-1].devices
    if most == WORLDS[-1]:
        return most, "more were not looked at"
    return most, f"the {batch_size} rows of a step do not suffice for more"


def scale(plan: RunPlan, *, bandwidth: float | None, latency: float | None) -> tuple[Network, list[StageScaling]]:
    """The stages of a recipe that are trained in steps, on 1 to 64 devices; in bytes a second, and seconds.

    Nothing is written. Raises a TltasksError for whatever the user can mend.
    """
    refuse_at_once(plan, push=False)
    if not any(stage.stage.loops for stage in plan.stages):
        raise RecipeError("doctor: no stage of this recipe is trained in steps, which several devices would share.")
    context, prepared = open_stages(plan)
    if context.accelerator.num_processes > 1:
        raise RecipeError("doctor: one process measures its device; start it without a launcher.")
    usual = USUAL.get(context.accelerator.device.type, USUAL["cuda"])
    network = Network(bandwidth or usual.bandwidth, latency or usual.latency)
    return network, [_scale(context, stage, network) for stage in prepared if stage.plan.stage.loops]


def _scale(context: Context, stage: PreparedStage, network: Network) -> StageScaling:
    opened, accelerator = open_stage(context, stage), context.accelerator
    job, model, on_cpu = opened.job, opened.model, accelerator.device.type == "cpu"
    assert job is not None
    batch = min(job.n_rows, job.stage.batch_size)
    most = max(1, batch // (job.stage.rows_per_loss or least_rows(job, model)))
    sizes, pieces, memory = dict[int, list[list[int]]](), dict[int, Rows](), dict[int, Parts]()
    known = dict[tuple[int, bool, bool], Parts]()
    for world in (world for world in WORLDS if world <= most):
        dealt = own_passes(accelerator, job, model, steps=STEPS, world=world)
        sizes[world] = [[size for size, _ in own] for own in dealt]
        pieces |= dict(piece for own in dealt for piece in own)
        load = max(map(max, sizes[world])), max(map(len, sizes[world])) > 1, world == 1  # others may have the same
        memory[world] = known[load] = known.get(load) or opened.memory(world=world)
    near = np.geomspace(min(pieces), max(pieces), SIZES).tolist()
    chosen = sorted({min(pieces, key=lambda size: abs(math.log(size / it))) for it in near})
    with shortage_told(
        f"stage {stage.plan.name}", lambda asked: advise(context, opened.stage, job, model, halvings=0, asked=asked)
    ):
        seconds = {size: pass_seconds(accelerator, job, model, pieces[size]) for size in chosen}
        update = update_seconds(accelerator, job, model)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    rows, layers = job.n_rows / job.steps_per_epoch, layer_bytes(model)
    room = (os.cpu_count() or 1) / cores() if on_cpu else None
    cost = Cost(rows, seconds, update, sizes, memory, gradients, layers, job.steps_per_epoch, room)
    ddp = [cost.with_ddp(network, world) for world in sizes]
    shared = [cost.with_fsdp2(network, world, on_cpu=on_cpu) for world in sizes if world > 1]
    try:
        refuse_sharing(dataclasses.replace(context.plan, stages=[stage.plan]))
        refuse_mixed(model)  # which was in training just now
        why_not = "precision: fp16 is not supported with it." if context.precision == "fp16" else ""
    except RecipeError as error:
        why_not = str(error)
    if not why_not and shared and shared[-1].memory_bytes > (1 - SAVES) * ddp[-1].memory_bytes:
        why_not = f"it would save less than {SAVES:.0%} of each device's memory."
    useful, why = largest_useful(ddp, batch_size=batch)
    shared = [] if why_not else shared
    return StageScaling(stage.plan.name, batch, job.total_steps, cost, ddp, shared, why_not, useful, why)
