"""The training loop: one for every task, stage and number of devices.

A step is the mean loss over the targets of its `batch_size` rows, however these are split over devices and
micro-batches; rows and random numbers are functions of (seed, epoch, step). So results do not depend on the machine
beyond rounding, and a resumed run continues exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tltasks.config.stage import Stage
from tltasks.data.batching import Rows, micro_batches, plan_epoch, steps_per_epoch
from tltasks.errors import DataError, Interrupted, TrainingError
from tltasks.models.adapters import freeze_unused, set_training_mode
from tltasks.runtime.devices import pass_budget
from tltasks.tasks.base import Batch, Task
from tltasks.training.checkpoint import (
    Checkpoints,
    Progress,
    best_name,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    step_name,
)
from tltasks.training.optimizer import MovingAverage, build_optimizer, learning_rate_factor, trained
from tltasks.training.regularization import Regularization
from tltasks.training.tracking import Tracker

Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Job:
    """What one stage trains, and where it reports; nothing here changes."""

    name: str
    task: Task
    rows: datasets.Dataset
    fingerprint: str
    """Digest of the rows: a checkpoint of other data is not gone on from."""
    stage: Stage
    seed: int
    head: tuple[str, ...]
    frozen_batch_norm: bool
    workers: int
    evaluate: Evaluate | None
    checkpoints: Checkpoints
    tracker: Tracker
    stop_requested: Callable[[], bool]
    on_step: Callable[[Progress, float], None]
    """Called after each step with its loss, for progress bars."""
    new_head: bool = False
    """Whether `head` is of this stage's making, and not of the checkpoint."""

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.rows), self.stage.batch_size)

    @property
    def total_steps(self) -> int:
        return self.stage.steps or max(1, math.ceil((self.stage.epochs or 0) * self.steps_per_epoch))


def train(accelerator: Accelerator, job: Job, model: nn.Module) -> Progress:
    """Train `model` in place, from its newest checkpoint where there is one, and leave the chosen weights in it.

    Raises TrainingError for a loss that is not finite or memory that does not suffice, and Interrupted after saving
    when `job.stop_requested`.
    """
    stage = job.stage
    model.to(accelerator.device)
    freeze_unused(model, _unused_weights(accelerator, job, model))
    optimizer = build_optimizer(model, stage, head=job.head)
    # The scheduler is a function of the step and the plan shards the rows, so neither is prepared: a prepared
    # scheduler steps once per process (accelerate 1.15, scheduler.py).
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if stage.compile:
        model.compile()
    average = MovingAverage(model, stage.ema) if stage.ema else None
    # Of the weights before any checkpoint.
    regularization = Regularization(model, stage, head=job.head, new_head=job.new_head, total_steps=job.total_steps)
    progress = _resume(accelerator, job, model, optimizer, average, regularization)
    saved_at = progress.step

    while not progress.ended:
        started = time.perf_counter()  # reading a step's rows is part of its time
        for step_rows, group in _read_steps(accelerator, job, progress):
            factor = learning_rate_factor(
                progress.step, total=job.total_steps, warmup=stage.warmup, schedule=stage.schedule
            )
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["peak_lr"] * factor
            set_training_mode(wrapped, frozen_batch_norm=job.frozen_batch_norm)
            done = _step(accelerator, job, wrapped, prepared, regularization, group, step_rows, progress)
            if done is None:  # out of memory: the rest of the epoch is read again in smaller pieces
                break
            loss, norm, stop = done
            progress.step += 1
            progress.examples += len(step_rows)
            progress.seconds += time.perf_counter() - started
            if average is not None:
                average.update(model, progress.step)
            _log_step(job, progress, loss, norm, stage.learning_rate or 0.0, factor, len(step_rows), started)
            job.on_step(progress, loss)

            ends_epoch = progress.step % job.steps_per_epoch == 0
            last = progress.step >= job.total_steps
            due = last or (progress.step % stage.evaluate_every == 0 if stage.evaluate_every else ends_epoch)
            if due and job.evaluate is not None:
                _evaluate(accelerator, job, model, average, progress, eligible=regularization.settled(progress.step))
            if last:
                progress.ended = progress.ended or "all steps done"
            if stop or progress.ended or _checkpoint_due(stage, progress.step, due):
                _save(accelerator, job, model, optimizer, average, regularization, progress)
                saved_at = progress.step
            if stop and not progress.ended:
                raise Interrupted(f"stage {job.name}: stopped after step {saved_at} of {job.total_steps}")
            if progress.ended:
                break
            started = time.perf_counter()
    _finish(job, model, average, progress)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # takes autocast off again, so that it can be copied
    model._compiled_call_impl = None
    return progress


def measure(accelerator: Accelerator, job: Job, model: nn.Module) -> float:
    """Seconds that one step takes, by the second of two forward and backward passes of one micro-batch."""
    model.to(accelerator.device)
    lengths = job.task.lengths(job.rows)
    max_rows, budget = micro_batch_limits(accelerator, job, 0)
    first = plan_epoch(len(job.rows), batch_size=job.stage.batch_size, seed=job.seed, epoch=0)[0]
    rows = micro_batches(
        first, world=1, rank=0, max_rows=max_rows, lengths=lengths, budget=budget, together=job.stage.together
    )[0].tolist()
    set_training_mode(model, frozen_batch_norm=job.frozen_batch_norm)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        batch = send_to_device(job.task.collate_train(job.rows, rows, epoch=0), accelerator.device)
        with accelerator.autocast():
            loss = job.task.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device
        model.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
    share: int = accelerator.num_processes
    return seconds / len(rows) * job.stage.batch_size / share


def _step(
    accelerator: Accelerator,
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    regularization: Regularization,
    group: list[Batch],
    step_rows: Rows,
    progress: Progress,
) -> tuple[float, float, bool] | None:
    """One optimiser step: loss, gradient norm, and whether any process was told to stop; None when out of memory."""
    # Dropout is a function of (seed, step, rank), so that resuming needs no random state.
    drawn = np.random.SeedSequence((job.seed, progress.step, accelerator.process_index)).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0]))
    # A rank without rows repeats one for nothing.
    weight = 1.0 if len(step_rows) > accelerator.process_index * (job.stage.together or 1) else 0.0
    try:
        counts = torch.stack([job.task.num_targets(batch) for batch in group]).to(accelerator.device) * weight
        targets = accelerator.reduce(counts.sum().float(), reduction="sum")
        total = torch.zeros((), device=accelerator.device)
        for i, cpu_batch in enumerate(group):
            batch = send_to_device(cpu_batch, accelerator.device, non_blocking=True)
            with contextlib.nullcontext() if i == len(group) - 1 else accelerator.no_sync(model):
                loss = part = job.task.loss(model, batch) * counts[i] / targets
                if i == len(group) - 1 and (penalty := regularization.penalty()) is not None:
                    loss = part + penalty / accelerator.num_processes
                # gradient_accumulation_steps stays 1, or backward would divide by it; DDP's mean over ranks is undone
                accelerator.backward(loss * accelerator.num_processes)
            total += part.detach()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        _halve_micro_batches(accelerator, job, progress, can_halve=len(group) < len(step_rows))
        optimizer.zero_grad(set_to_none=True)
        return None
    status = accelerator.reduce(torch.stack([total.float(), total.new_tensor(float(job.stop_requested()))]), "sum")
    value = float(status[0])
    if not math.isfinite(value):
        raise TrainingError(
            f"stage {job.name}: the loss is {value} at step {progress.step + 1}, rows {_some_rows(job, step_rows)}. "
            "Lower learning_rate, or use precision: fp32; look at these rows. "
            f"The last checkpoint is whole: {job.checkpoints.folder.parent.name}."
        )
    regularization.hold(progress.step / job.steps_per_epoch)
    if job.stage.max_grad_norm is not None:
        norm = float(accelerator.clip_grad_norm_(model.parameters(), job.stage.max_grad_norm))
    else:
        norm = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    if not math.isfinite(norm) and accelerator.scaler is None:
        raise TrainingError(
            f"stage {job.name}: the gradient is not finite at step {progress.step + 1}, "
            f"rows {_some_rows(job, step_rows)}. Lower learning_rate, or use precision: fp32."
        )
    optimizer.step()
    regularization.after_step(progress.step + 1)
    optimizer.zero_grad(set_to_none=True)
    return value, norm, float(status[1]) > 0


# --------------------------------------------------------------------------------------------- rows


class _MicroBatches(Dataset[Batch]):
    """The micro-batches of the steps that are left of an epoch, read by worker processes."""

    def __init__(self, job: Job, pieces: list[Rows], epoch: int) -> None:
        self.job, self.pieces, self.epoch = job, pieces, epoch

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> Batch:
        return self.job.task.collate_train(self.job.rows, self.pieces[i].tolist(), epoch=self.epoch)


def _read_steps(accelerator: Accelerator, job: Job, progress: Progress) -> Iterator[tuple[Rows, list[Batch]]]:
    """Each remaining step of the epoch: all its rows, and this process's micro-batches of them."""
    epoch, start = divmod(progress.step, job.steps_per_epoch)
    plan = plan_epoch(len(job.rows), batch_size=job.stage.batch_size, seed=job.seed, epoch=epoch)[start:]
    lengths = job.task.lengths(job.rows)
    world, rank = accelerator.num_processes, accelerator.process_index
    max_rows, budget = micro_batch_limits(accelerator, job, progress.halvings)
    groups = [
        micro_batches(
            rows,
            world=world,
            rank=rank,
            max_rows=max_rows,
            lengths=lengths,
            budget=budget,
            together=job.stage.together,
        )
        or [rows[:1]]
        for rows in plan
    ]
    loader = iter(
        DataLoader(
            _MicroBatches(job, [piece for group in groups for piece in group], epoch),
            batch_size=None,
            num_workers=job.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
    )
    for rows, group in zip(plan, groups, strict=True):
        yield rows, [next(loader) for _ in group]


def micro_batch_limits(accelerator: Accelerator, job: Job, halvings: int) -> tuple[int, int | None]:
    """Most rows of a micro-batch, and its budget where the recipe leaves the choice (`batching.micro_batches`)."""
    share: int = math.ceil(job.stage.batch_size / accelerator.num_processes)
    asked = job.stage.micro_batch
    max_rows = math.ceil((share if asked == "auto" else min(asked, share)) / 2**halvings)
    budget = max(1, pass_budget(accelerator.device, job.task.cpu_batch_budget) >> halvings)
    return max_rows, budget if asked == "auto" else None


def _halve_micro_batches(accelerator: Accelerator, job: Job, progress: Progress, *, can_halve: bool) -> None:
    """Read on in smaller micro-batches; raises TrainingError where that is not possible.

    Several processes cannot do it: the others wait in a collective operation that this one will not reach.
    """
    if job.stage.together is not None:
        raise TrainingError(
            f"stage {job.name}: out of memory at step {progress.step + 1}, with {job.stage.together} examples that "
            "share a loss. Set a smaller `group` (results depend on it) or gradient_checkpointing: true, or make "
            "examples smaller (image_size, or the longest length)."
        )
    if accelerator.num_processes > 1 or not can_halve:
        raise TrainingError(
            f"stage {job.name}: out of memory at step {progress.step + 1}"
            + ("" if can_halve else ", with one example at a time")
            + ". Set a smaller micro_batch (results do not depend on it) or gradient_checkpointing: true, "
            "or make examples smaller (image_size, or the longest length)."
        )
    progress.halvings += 1
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _unused_weights(accelerator: Accelerator, job: Job, model: nn.Module) -> set[str]:
    """Trained weights that the loss does not reach, by one small forward and backward pass."""
    batch = job.task.collate_train(job.rows, list(range(min(2, len(job.rows)))), epoch=0)
    set_training_mode(model, frozen_batch_norm=job.frozen_batch_norm)
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    job.task.loss(model, send_to_device(batch, accelerator.device)).backward()  # type: ignore[no-untyped-call]
    unused = {name for name, p in trained(model) if p.grad is None}
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return unused


def _some_rows(job: Job, rows: Rows) -> str:
    named = job.rows[rows[:8].tolist()]["row"]
    return ", ".join(map(str, named)) + (f", … ({len(rows)})" if len(rows) > 8 else "")


# -------------------------------------------------------------------------------- evaluate, save, resume


def _evaluate(
    accelerator: Accelerator,
    job: Job,
    model: nn.Module,
    average: MovingAverage | None,
    progress: Progress,
    *,
    eligible: bool,
) -> None:
    """Score on validation; keep the weights when they are `eligible` and the best so far; end when there is no gain."""
    assert job.evaluate is not None
    if average is not None:
        average.swap(model)
    values = job.evaluate(model)
    value, loss = values[job.task.headline], values.get("loss", 0.0)
    sign = 1 if job.task.higher_is_better else -1
    best = progress.best_value, progress.best_loss
    if not eligible:
        pass
    elif best[0] is None or best[1] is None or (sign * value, -loss) > (sign * best[0], -best[1]):
        progress.best_value, progress.best_loss, progress.best_step = value, loss, progress.step
        progress.evaluations_without_gain = 0
        if accelerator.is_main_process and job.stage.keep == "best":
            job.checkpoints.save(best_name(progress.step), {"model": model_state(model)}, {})
    else:
        progress.evaluations_without_gain += 1
        if job.stage.early_stopping and progress.evaluations_without_gain >= job.stage.early_stopping:
            progress.ended = f"no gain in {progress.evaluations_without_gain} evaluations"
    if average is not None:
        average.swap(model)
    job.tracker.log(job.name, "validation", progress.step, epoch=progress.step / job.steps_per_epoch, **values)


def _checkpoint_due(stage: Stage, step: int, evaluation_due: bool) -> bool:
    return step % stage.checkpoint_every == 0 if stage.checkpoint_every else evaluation_due


def _save(
    accelerator: Accelerator,
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    regularization: Regularization,
    progress: Progress,
) -> None:
    if accelerator.is_main_process:
        tensors = {"model": model_state(model), "optimizer": optimizer_state(model, optimizer)}
        if average is not None:
            tensors["average"] = average.weights
        if kept := regularization.state():
            tensors["regularization"] = kept
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        values = {"progress": dataclasses.asdict(progress), "scaler": scaler, "data": job.fingerprint}
        job.checkpoints.save(step_name(progress.step), tensors, values)
        job.checkpoints.prune()
    accelerator.wait_for_everyone()


def _resume(
    accelerator: Accelerator,
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    regularization: Regularization,
) -> Progress:
    found = job.checkpoints.newest()
    if found is None:
        if accelerator.is_main_process:
            job.tracker.rewind(job.name, 0)
        return Progress()
    name, tensors, values = found
    if values["data"] != job.fingerprint:
        raise DataError(
            f"{job.checkpoints.folder / name}: was trained on other data than the recipe's training split holds now. "
            "Name another folder with --output."
        )
    load_model_state(model, tensors["model"])
    load_optimizer_state(model, optimizer, tensors["optimizer"])
    if average is not None:
        average.load(tensors["average"])
    regularization.load(tensors.get("regularization", {}))
    if accelerator.scaler is not None and values["scaler"]:
        accelerator.scaler.load_state_dict(values["scaler"])
    progress = Progress(**values["progress"])
    if accelerator.is_main_process:
        job.tracker.rewind(job.name, progress.step)
    return progress


def _finish(job: Job, model: nn.Module, average: MovingAverage | None, progress: Progress) -> None:
    """Leave in the model the weights that the stage ends with."""
    if job.stage.keep == "best" and progress.best_step is not None:
        load_model_state(model, job.checkpoints.load(best_name(progress.best_step))[0]["model"])
    elif average is not None:
        average.swap(model)
    model.eval()


def _log_step(
    job: Job, progress: Progress, loss: float, norm: float, peak: float, factor: float, n_rows: int, started: float
) -> None:
    job.tracker.log(
        job.name,
        "train",
        progress.step,
        epoch=progress.step / job.steps_per_epoch,
        loss=loss,
        learning_rate=peak * factor,
        grad_norm=norm,
        examples_per_second=n_rows / (time.perf_counter() - started),
    )
