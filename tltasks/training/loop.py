"""The training loop: one for every task, stage and number of devices.

A step is the mean loss over the targets of its `batch_size` rows, however these are split over devices and
micro-batches; rows and random numbers are functions of (seed, epoch, step). So results do not depend on the machine
beyond rounding, and a resumed run continues exactly.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tltasks.config.stage import Stage
from tltasks.data.batching import Rows, micro_batches, plan_epoch, steps_per_epoch
from tltasks.data.streaming import Place
from tltasks.errors import DataError, Interrupted, RecipeError, TrainingError
from tltasks.models.adapters import freeze_unused, set_training_mode
from tltasks.models.fast_steps import fast_steps
from tltasks.runtime import sharding
from tltasks.runtime.devices import (
    Resident,
    bytes_asked,
    gains_by_size,
    is_out_of_memory,
    on_main_process,
    pass_budget,
    release_memory,
    waited_seconds,
)
from tltasks.runtime.peers import readable
from tltasks.tasks.base import Batch, TaskBase
from tltasks.training.batches import read_batches
from tltasks.training.blocks import trained
from tltasks.training.checkpoint import (
    Checkpoints,
    Progress,
    TrainingState,
    best_name,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    step_name,
)
from tltasks.training.micro_batches import LEAST_STEPS, Found, Passes, buffers_kept, doublings_of_whole, fastest
from tltasks.training.optimizer import MovingAverage, build_optimizer, learning_rate_factor, state_bytes
from tltasks.training.regularization import Regularization
from tltasks.training.side_by_side import LANES, Lanes, is_known
from tltasks.training.tracking import Tracker
from tltasks.training.windows import Part, Windows

PASS_SHARE = 16
"""A pass costs, whatever is in it, about as much as this part of what the largest one holds, on a CPU."""
ROWS_TRIED = 8
"""Rows that are put through a model one by one, to see whether its experts differ."""
Values = dict[str, float]
"""Metrics by name."""


@dataclass(frozen=True)
class Job:
    """One stage to be trained, and where it reports; nothing here changes."""

    name: str
    task: TaskBase
    rows: datasets.Dataset
    fingerprint: str
    """Digest of the rows, and of those of validation: a checkpoint of other data is not gone on from."""
    stage: Stage
    seed: int
    head: tuple[str, ...]
    frozen_batch_norm: bool
    workers: int
    evaluate: Callable[[nn.Module], Values] | None
    """Scores on validation, where there is one."""
    checkpoints: Checkpoints
    tracker: Tracker
    stop_requested: Callable[[], bool]
    """Polled after each step; the run then saves its state and is interrupted."""
    on_step: Callable[[Progress, float], bool | None]
    """Called after each step with its loss; True makes this step the stage's last."""
    on_evaluation: Callable[[Progress, Values], bool | None] = lambda progress, values: None
    """Called after each evaluation on validation; True ends the stage."""
    new_head: bool = False
    """Whether `head` is of this stage's making, and not of the checkpoint."""
    advise: Callable[[int, int], str] = lambda halvings, asked: "Set a smaller micro_batch."
    """What to do where memory does not suffice, with micro-batches halved so often, for so many bytes."""
    say: Callable[[str], None] = lambda text: None
    windows: Windows | None = None
    """All rows, where `rows` are the first of many that are streamed."""
    n_rows: int = 0
    """Rows of an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.n_rows, self.stage.batch_size)

    @property
    def total_steps(self) -> int:
        return self.stage.steps or max(1, math.ceil(self.stage.epochs_for(self.n_rows) * self.steps_per_epoch))

    def part(self, step: int, place: Place | None) -> Part:
        """The rows that the next step is among; a function of (seed, step), and of nothing that was read before."""
        if self.windows is not None:
            return self.windows.part(step, place, of=self.total_steps)
        epoch, done = divmod(step, self.steps_per_epoch)
        return Part(self.task.epoch_rows(self.rows, epoch=epoch), epoch, 0, done, None)

    def is_evaluation_due(self, step: int) -> bool:
        return step % (self.stage.evaluate_every or self.steps_per_epoch) == 0

    def is_checkpoint_due(self, step: int) -> bool:
        every = self.stage.checkpoint_every
        return step % every == 0 if every else self.is_evaluation_due(step)


def train(accelerator: Accelerator, job: Job, model: nn.Module) -> Progress:
    """Train `model` in place, from its newest checkpoint where there is one, and leave the chosen weights in it.

    Raises TrainingError for a loss that is not finite or memory that does not suffice, and Interrupted after saving
    when `job.stop_requested`.
    """
    with contextlib.closing(job.windows) if job.windows is not None else contextlib.nullcontext():
        return _train(_Training(accelerator, job, model))


def _train(training: _Training) -> Progress:
    job, progress = training.job, training.progress
    while not progress.ended:
        started = time.perf_counter()  # reading a step's rows is part of its time
        for rows, batches, own in training.read_steps():
            rate = training.set_learning_rate()
            done = training.step(rows, batches, own)
            if done is None:  # out of memory: the rest of the epoch is read again in smaller pieces
                break
            loss, norm = done
            progress.step += 1
            progress.examples += len(rows)
            seconds = time.perf_counter() - started
            progress.seconds += seconds
            training.average.update(training.model, progress.step)
            training.log(
                "train", loss=loss, learning_rate=rate, grad_norm=norm, examples_per_second=len(rows) / seconds
            )

            asked = job.on_step(progress, loss)
            stop, asked = training.agree(job.stop_requested(), bool(asked))
            last = asked or progress.step >= job.total_steps
            if last or job.is_evaluation_due(progress.step):
                training.evaluate()
            if last:
                progress.ended = progress.ended or ("asked to stop" if asked else "all steps done")
            if stop or progress.ended or job.is_checkpoint_due(progress.step):
                training.save()
            if stop and not progress.ended:
                raise Interrupted(f"stage {job.name}: stopped after step {progress.step} of {job.total_steps}")
            if progress.ended:
                break
            started = time.perf_counter()
    training.finish()
    return progress


class _Training:
    """A model in training, and what its steps share."""

    def __init__(self, accelerator: Accelerator, job: Job, model: nn.Module) -> None:
        self.accelerator, self.job, self.given = accelerator, job, model
        stage = job.stage
        self.least = least_rows(job, model)
        model.to(accelerator.device)
        unused, are_rare = _unused_weights(accelerator, job, model)
        freeze_unused(model, unused)
        release_memory()  # of the passes that told
        if are_rare:  # a process would wait for gradients of experts that another's rows do not reach
            sharding.refuse_rare(accelerator)
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.model = model = sharding.share_out(accelerator, model)
        self.optimizer = build_optimizer(model, stage, head=job.head)
        # The scheduler is a function of the step and the plan shards the rows, so neither is prepared: a prepared
        # scheduler steps once per process (accelerate 1.15, scheduler.py).
        self.wrapped, self.prepared_optimizer = sharding.prepare(accelerator, model, self.optimizer)
        if accelerator.num_processes > 2 and not (are_rare or sharding.shares(accelerator)):
            # DDP lays out gradients anew after a process's first pass, and more than two numbers are added up in an
            # order that goes by their places; so that of a run that goes on has to be behind it, too.
            _unreached(accelerator, job, self.wrapped, _first_rows(job))
        if stage.compile:
            model.compile()
        self.lanes = Lanes(model) if _lanes(accelerator, job, model, least=self.least) > 1 else None
        self.average = MovingAverage(model, stage.ema)
        # Of the weights before any checkpoint.
        self.regularization = Regularization(
            model, stage, head=job.head, new_head=job.new_head, total_steps=job.total_steps
        )
        self.progress = self._resume()
        self.resident = Resident(accelerator.device)
        self.rows = job.rows
        """Those of the epoch, which numbers in a step's rows are places among."""
        self.lengths: Rows | None = None
        self.fast = contextlib.nullcontext if stage.compile else partial(fast_steps, model, accelerator.device)
        self.passes = Passes(accelerator, job.task.loss, model, job.frozen_batch_norm, is_out_of_memory, self.fast)
        self.proven = 0
        """Size of the largest micro-batch that memory has sufficed for on this process."""

    # ------------------------------------------------------------------------------------------ a step

    def read_steps(self) -> Iterator[tuple[Rows, list[Batch], int]]:
        """Each remaining step of the epoch: all its rows, this process's micro-batches, and how many are its own.

        Others are repeated for nothing: one by a process without rows, and where weights are shared out as many as the
        process with most passes makes, each of which takes all processes.
        """
        job, accelerator = self.job, self.accelerator
        part = job.part(self.progress.step, self.progress.place)
        self.rows, epoch, self.progress.place = part.rows, part.epoch, part.place
        lengths = job.task.lengths(self.rows)
        self.lengths = None if lengths is None else np.asarray(lengths, dtype=np.int64)
        plan = _plan(job, self.rows, epoch=epoch, window=part.window, least=self.least)[part.done :]
        if self.progress.doublings is None:
            self.progress.doublings = self._find_doublings(plan, epoch=epoch)
        divided = self._divide(plan, self.progress.net_halvings)
        while accelerator.num_processes > 1 and not self._suffices_for(divided, epoch=epoch):
            divided = self._divide(plan, self.progress.net_halvings)
        self.progress.pass_rows = max([self.progress.pass_rows, *(len(piece) for own in divided for piece in own)])
        passes = self._passes_of_all(plan)
        pieces = [
            own + [rows[: self.least]] * (most - len(own))
            for own, rows, most in zip(divided, plan, passes, strict=True)
        ]
        batches = read_batches(
            partial(job.task.collate_train, self.rows, epoch=epoch),
            [piece for of_step in pieces for piece in of_step],
            workers=job.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        for rows, of_step, own in zip(plan, pieces, divided, strict=True):
            yield rows, [next(batches) for _ in of_step], len(own)

    def set_learning_rate(self) -> float:
        """Set each group's rate for the step that comes, and return that of the head."""
        stage = self.job.stage
        factor = learning_rate_factor(
            self.progress.step, total=self.job.total_steps, warmup=stage.warmup, schedule=stage.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return (stage.learning_rate or 0.0) * factor

    def step(self, rows: Rows, batches: list[Batch], own: int) -> tuple[float, float] | None:
        """Make one optimiser step; its loss and gradient norm, or None when memory did not suffice."""
        job, optimizer = self.job, self.prepared_optimizer
        set_training_mode(self.wrapped, frozen_batch_norm=job.frozen_batch_norm)
        # Dropout is a function of (seed, step, rank), so that resuming needs no random state.
        drawn = np.random.SeedSequence((job.seed, self.progress.step, self.accelerator.process_index))
        seed, *seeds = map(int, drawn.generate_state(1 + len(batches), np.uint64))
        torch.manual_seed(seed)
        asked: int | None = None
        try:
            with self.fast():
                loss = float(self.accelerator.reduce(self._backward(batches, own, seeds), "sum"))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            asked = bytes_asked(error)
        if asked is not None:  # here, where the error no longer holds what the pass has made
            optimizer.zero_grad(set_to_none=True)
            self._halve_micro_batches(can_halve=len(batches) * (2 * self.least - 1) < len(rows), asked=asked)
            return None
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss}", rows, "; look at these rows")
        sharding.check_gradients(self.model)
        self.regularization.mask_gradients(self.progress.step / job.steps_per_epoch)
        if job.stage.max_grad_norm is not None:
            total = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), job.stage.max_grad_norm)
        else:
            total = nn.utils.get_total_norm([p.grad for p in self.wrapped.parameters() if p.grad is not None])
        norm = float(sharding.full(total))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self._not_finite("the gradient is not finite", rows)
        optimizer.step()
        self.regularization.after_step(self.progress.step + 1)
        optimizer.zero_grad(set_to_none=True)
        self.resident.bound()
        return loss, norm

    def _backward(self, batches: list[Batch], own: int, seeds: list[int]) -> Tensor:
        """Put the gradient of the step's mean loss into the weights; this process's part of that loss, in fp32.

        The first `own` of the batches count.
        """
        accelerator, job = self.accelerator, self.job
        counts = torch.stack([job.task.num_targets(batch) for batch in batches]).to(accelerator.device)
        counts = counts * (torch.arange(len(batches), device=counts.device) < own).float()
        targets = accelerator.reduce(counts.sum().float(), reduction="sum")
        if self.lanes is not None and len(batches) > 1:
            total = self.lanes.backward(lambda i: job.task.loss(self.wrapped, batches[i]) * counts[i] / targets, seeds)
            if (penalty := self.regularization.penalty()) is not None:
                accelerator.backward(penalty)
            return total.float()
        total = torch.zeros((), device=accelerator.device)
        for i, cpu_batch in enumerate(batches):
            last = i == len(batches) - 1
            batch = send_to_device(cpu_batch, accelerator.device, non_blocking=True)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss = part = job.task.loss(self.wrapped, batch) * counts[i] / targets
                if last and (penalty := self.regularization.penalty()) is not None:
                    loss = part + penalty / accelerator.num_processes
                # gradient_accumulation_steps stays 1, or backward would divide by it; DDP's mean over ranks is undone
                accelerator.backward(loss * accelerator.num_processes)
            total += part.detach()
            if not last:
                self.resident.bound()
        return total.float()

    def _not_finite(self, what: str, rows: Rows, more: str = "") -> TrainingError:
        saved = self.job.checkpoints.steps()
        left = f"The last checkpoint, {saved[-1]}, is whole." if saved else "No checkpoint is saved yet."
        named = ", ".join(map(str, self.rows[rows[:8].tolist()]["row"]))
        return TrainingError(
            f"stage {self.job.name}: {what} at step {self.progress.step + 1}, rows {named}"
            f"{f', … ({len(rows)})' if len(rows) > 8 else ''}. Lower learning_rate, or use precision: fp32{more}. "
            + left
        )

    def _halve_micro_batches(self, *, can_halve: bool, asked: int, together: bool = False) -> None:
        """Read on in smaller micro-batches; raises TrainingError where that is not possible.

        Several processes can only `together`: in a step the others wait for this one in a collective operation.
        """
        where = f"stage {self.job.name}: out of memory at step {self.progress.step + 1}"
        if (n_rows := self.job.stage.rows_per_loss) is not None:
            where += f", with {n_rows} examples that share a loss: a smaller `loss_group` changes results"
        elif not can_halve:
            where += ", with one example at a time"
        if n_rows is not None or not (together or self.accelerator.num_processes == 1) or not can_halve:
            raise TrainingError(f"{where}. {self.job.advise(self.progress.halvings, asked)}")
        self.progress.halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # --------------------------------------------------------------------------- size of micro-batches

    def _divide(self, plan: list[Rows], halvings: int) -> list[list[Rows]]:
        """This process's micro-batches of each step."""
        lanes = LANES if self.lanes is not None else 1
        divide = _divider(self.accelerator, self.job, self.rows, halvings=halvings, least=self.least, lanes=lanes)
        return [divide(rows) for rows in plan]

    def _passes_of_all(self, plan: list[Rows]) -> list[int]:
        """Passes that this process makes of each step at least: where weights are shared out, as many as any."""
        if not sharding.shares(self.accelerator):
            return [1] * len(plan)
        halvings, lanes = self.progress.net_halvings, 1
        divide = _divider(self.accelerator, self.job, self.rows, halvings=halvings, least=self.least, lanes=lanes)
        return [max(len(divide(rows, rank=rank)) for rank in range(self.accelerator.num_processes)) for rows in plan]

    def _find_doublings(self, plan: list[Rows], *, epoch: int) -> int:
        """How often the usual micro-batch is doubled on an accelerator; the same on all processes.

        Never where results depend on its size: they would by what was measured.
        """
        job, accelerator, stage = self.job, self.accelerator, self.job.stage
        is_open = stage.micro_batch == "auto" and stage.rows_per_loss is None and not stage.compile
        pays = gains_by_size(accelerator.device) and job.total_steps - self.progress.step >= LEAST_STEPS
        if not (is_open and pays and self.passes.are_possible) or _takes_statistics(job, self.model):
            return 0
        share = math.ceil(stage.batch_size / accelerator.num_processes)
        longest = 1 if self.lengths is None else int(self.lengths.max())
        budget = pass_budget(accelerator.device, job.task.cpu_training_budget)
        most = doublings_of_whole(share=share, longest=longest, budget=budget)
        work = (job.task.tag, accelerator.mixed_precision, stage.gradient_checkpointing, share, longest)
        found = Found(accelerator.device, self.model, *work)
        kept = found.read()
        if self.passes.most(0.0 if kept is not None else 1.0) == 0:  # none has to look
            return int(-self.passes.most(-float(kept or 0)))

        def seconds(doublings: int) -> float:
            divided = self._divide(plan, -doublings)
            largest = self._largest(divided)  # first, which tells whether it fits, and makes the device ready
            if self._seconds([] if largest is None else [largest], epoch=epoch) == math.inf:
                return math.inf
            return self._seconds(divided[0] or [plan[0][: self.least]], epoch=epoch)

        known = fastest(seconds, most=most)
        found.write(known)
        job.say(f"forward passes of {2**known} times the usual size are the fastest that fit")
        return known

    def _suffices_for(self, divided: list[list[Rows]], *, epoch: int) -> bool:
        """See that memory suffices for the largest micro-batch of each process; if not, all go on with smaller ones."""
        largest = self._largest(divided) if self.job.stage.rows_per_loss is None else None
        if not self.passes.are_possible:
            return True
        size = 0 if largest is None else self._size(largest)
        if self._seconds([] if largest is None or size <= self.proven else [largest], epoch=epoch) < math.inf:
            self.proven = max(self.proven, size)
            return True
        can_halve = self.passes.most(float(0 if largest is None else len(largest))) >= 2 * self.least
        self._halve_micro_batches(can_halve=can_halve, asked=0, together=True)
        return False

    def _seconds(self, pieces: list[Rows], *, epoch: int) -> float:
        """Time of passes that leave no trace, on the slowest process; infinite where memory does not suffice on one."""
        job, reserve = self.job, 0
        if not self.optimizer.state:  # which it will ask for in the first step
            reserve = state_bytes(self.model, job.stage, head=job.head)
        batches = [job.task.collate_train(self.rows, piece.tolist(), epoch=epoch) for piece in pieces]
        return self.passes.seconds(batches, reserve=reserve)

    def _largest(self, divided: list[list[Rows]]) -> Rows | None:
        return max((piece for own in divided for piece in own), key=self._size, default=None)

    def _size(self, piece: Rows) -> int:
        return len(piece) * (1 if self.lengths is None else int(self.lengths[piece].max()))

    def agree(self, *flags: bool) -> list[bool]:
        """The flags that any process has set."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        found = self.accelerator.reduce(torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device), "sum")
        return [value > 0 for value in found.tolist()]

    # ------------------------------------------------------------------------- evaluate, save, resume

    def evaluate(self) -> None:
        """Score on validation; keep the weights when they are the best so far; end when there is no gain."""
        job, progress = self.job, self.progress
        if job.evaluate is None:
            return
        with self.average.in_place_of_weights(self.model), sharding.whole_model(self.given, self.model) as model:
            values = job.evaluate(model)
            value, loss = values[job.task.headline], values.get("loss", 0.0)
            if self.regularization.ranks_final(progress.step):
                if progress.improve(value, loss, higher_is_better=job.task.higher_is_better):
                    if job.stage.keep == "best":
                        best = TrainingState({"model": model_state(model)}, progress, job.fingerprint)
                        self.on_main(lambda: job.checkpoints.save(best_name(progress.step), best))
                elif job.stage.early_stopping and progress.evaluations_without_gain >= job.stage.early_stopping:
                    progress.ended = f"no gain in {progress.evaluations_without_gain} evaluations"
        self.log("validation", **values)
        (asked,) = self.agree(bool(job.on_evaluation(progress, values)))
        if asked:
            progress.ended = progress.ended or "asked to stop"

    def log(self, split: str, **values: float) -> None:
        epoch = self.progress.step / self.job.steps_per_epoch
        self.job.tracker.log(self.job.name, split, self.progress.step, epoch=epoch, **values)

    def save(self) -> None:
        """Write all that a resumed run goes on from."""
        found = {
            "model": model_state(self.model),
            "optimizer": optimizer_state(self.model, self.optimizer),
            "average": self.average.weights,
            "regularization": self.regularization.state(),
        }
        keep = self.accelerator.is_main_process
        groups = {name: sharding.gathered(tensors, keep=keep) for name, tensors in found.items()}

        def write() -> None:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None
            state = TrainingState(groups, self.progress, self.job.fingerprint, scaler)
            self.job.checkpoints.save(step_name(self.progress.step), state)
            self.job.checkpoints.prune()

        self.on_main(write)

    def on_main(self, action: Callable[[], None]) -> None:
        on_main_process(self.accelerator.state, action)

    def _resume(self) -> Progress:
        """Go on from the newest checkpoint, where there is one."""
        job, progress = self.job, Progress()
        with readable(self.accelerator.state, job.checkpoints.folder) as folder:
            found = Checkpoints(folder, keep=job.checkpoints.keep).newest()
        if found is not None:
            name, state = found
            if state.data != job.fingerprint:
                raise DataError(
                    f"{job.checkpoints.folder / name}: was trained or validated on other data than the recipe's splits "
                    "hold now. Name another folder with --output."
                )
            load_model_state(self.model, state.tensors["model"])
            load_optimizer_state(self.model, self.optimizer, state.tensors["optimizer"])
            self.average.load(state.tensors["average"])
            self.regularization.load(state.tensors["regularization"])
            if self.accelerator.scaler is not None and state.scaler:
                self.accelerator.scaler.load_state_dict(state.scaler)
            progress = state.progress
        if self.accelerator.is_main_process:
            job.tracker.rewind(job.name, progress.step)
        return progress

    def finish(self) -> None:
        """Leave in the model the weights that the stage ends with, and the model as it was given."""
        best = self.progress.best_step
        if self.job.stage.keep == "best" and best is not None:
            with readable(self.accelerator.state, self.job.checkpoints.folder / best_name(best)) as folder:
                load_model_state(self.given, Checkpoints(folder.parent, keep=1).load(folder.name).tensors["model"])
        else:
            self.average.swap(self.model)
            sharding.gather_into(self.given, self.model)
        self.given.eval()
        # takes autocast off again, so that it can be copied
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        self.given._compiled_call_impl = None


# --------------------------------------------------------------------------------------- micro-batches


def _takes_statistics(job: Job, model: nn.Module) -> bool:
    """Tell whether results depend on the size of micro-batches, as statistics are taken of each."""
    return not job.frozen_batch_norm and any(isinstance(m, _BatchNorm) for m in model.modules())


def least_rows(job: Job, model: nn.Module) -> int:
    """Fewest rows of a forward pass in training: two where its loss or batch normalisation compares rows.

    Raises RecipeError where the rows cannot be dealt out so.
    """
    # Rows of a length each have many positions, over which statistics are taken, too.
    batch_statistics = _takes_statistics(job, model) and job.task.lengths(job.rows) is None
    least = max(job.task.least_rows, 2 if batch_statistics else 1)
    n_rows, stage = job.n_rows, job.stage
    left = n_rows % stage.batch_size if n_rows > stage.batch_size else 0
    size = min(n_rows, stage.rows_per_loss or stage.batch_size)
    if stage.micro_batch != "auto" and stage.rows_per_loss is None:
        size = min(size, stage.micro_batch)
    if size >= least and (left == 0 or left >= least or stage.batch_size - (least - left) >= least):
        return least
    joint = job.task.least_rows > 1
    raise RecipeError(
        f"stage {job.name}: {n_rows:,} rows in steps of {stage.batch_size} (micro_batch: {stage.micro_batch}) leave a "
        f"forward pass with fewer than {least}, and {'its loss' if joint else 'batch normalisation'} compares rows "
        f"with each other. Choose a larger batch_size{'' if joint else ' or `batch_norm: frozen`'}."
    )


def _plan(job: Job, rows: datasets.Dataset, *, epoch: int, least: int, window: int = 0) -> list[Rows]:
    """Places among an epoch's rows, or a window's, of those of each of its steps."""
    lengths = job.task.lengths(rows) if job.stage.groups_lengths else None
    drawn = {"seed": job.seed, "epoch": epoch, "window": window, "least": least}
    return plan_epoch(len(rows), batch_size=job.stage.batch_size, lengths=lengths, **drawn)


def _lanes(accelerator: Accelerator, job: Job, model: nn.Module, *, least: int, world: int | None = None) -> int:
    """How many micro-batches are computed at once: several where that is faster, and none needs another."""
    stage = job.stage
    is_alone = (world or accelerator.num_processes) == 1 and least == 1 and stage.rows_per_loss is None
    has_room = stage.micro_batch == "auto" or stage.micro_batch >= LANES
    has_cores = accelerator.device.type == "cpu" and torch.get_num_threads() >= LANES
    is_fast = accelerator.mixed_precision == "bf16" and has_cores and has_room
    return LANES if is_fast and is_alone and not stage.compile and is_known(model) else 1


def _divider(
    accelerator: Accelerator,
    job: Job,
    rows: datasets.Dataset,
    *,
    halvings: int,
    least: int,
    lanes: int = 1,
    world: int | None = None,
) -> partial[list[Rows]]:
    """A function from a step's rows to the micro-batches of this process, of which there may be none.

    They are smaller where several are in memory at once, in so many `lanes`; with `halvings` below zero larger. Of a
    `world` that is only thought of it is process 0, which has most to do.
    """
    stage, rank = job.stage, accelerator.process_index if world is None else 0
    world = world or accelerator.num_processes
    share = math.ceil(stage.batch_size / world)
    max_rows = share if stage.micro_batch == "auto" else min(stage.micro_batch, share)
    max_rows = math.ceil(max_rows / 2 ** max(0, halvings) / lanes)
    budget = pass_budget(accelerator.device, job.task.cpu_training_budget) // lanes
    budget = max(1, budget >> halvings if halvings >= 0 else budget << -halvings)
    return partial(
        micro_batches,
        world=world,
        rank=rank,
        max_rows=max_rows,
        lengths=job.task.lengths(rows),
        budget=budget if stage.micro_batch == "auto" else None,
        pass_cost=budget // PASS_SHARE,
        rows_per_loss=stage.rows_per_loss,
        least=least,
    )


def _unused_weights(accelerator: Accelerator, job: Job, model: nn.Module) -> tuple[set[str], bool]:
    """Trained weights that the loss does not reach, by a small forward and backward pass; and whether some rows do.

    Weights of one expert of several are reached by some rows and not by others: where that is seen in single rows, all
    the experts beside it are left in training.
    """
    unused = _unreached(accelerator, job, model, _first_rows(job))
    used = {_beside(name) for name, _ in trained(model) if name not in unused}
    if used.isdisjoint(map(_beside, unused)):
        return unused, False
    rows = [unused ^ _unreached(accelerator, job, model, [row]) for row in range(min(ROWS_TRIED, len(job.rows)))]
    routed = {_beside(name) for changed in rows for name in changed}
    return {name for name in unused if _beside(name) not in routed}, bool(routed)


def _first_rows(job: Job) -> list[int]:
    return list(range(min(2, len(job.rows))))


def _beside(name: str) -> str:
    """The weight's name with the place of the innermost list of modules left open: the same for all experts."""
    return re.sub(r"^(.*)(\.\d+\.|\.\w+_\d+\.)", r"\1.*.", name)


def _unreached(accelerator: Accelerator, job: Job, model: nn.Module, rows: list[int]) -> set[str]:
    batch = job.task.collate_train(job.rows, rows, epoch=0)
    set_training_mode(model, frozen_batch_norm=job.frozen_batch_norm)
    with buffers_kept(model):
        loss = job.task.loss(model, send_to_device(batch, accelerator.device))
        if loss.requires_grad:  # else it reaches none
            loss.backward()  # type: ignore[no-untyped-call]
    unused = {name for name, p in trained(model) if p.grad is None}
    model.zero_grad(set_to_none=True)
    return unused


@dataclass(frozen=True)
class Load:
    """The micro-batch of a stage that needs most memory."""

    batch: Batch
    together: int
    """So many are computed at once."""
    accumulates: bool
    """Whether gradients of others of its step are there meanwhile."""
    shapes: int
    """Shapes of micro-batches, this one's among them, by their rows and the longest."""


STEPS_SIZED = 20
"""Steps whose sizes say how much more or less there is to a step than to the pass that is measured."""
MOST_LOOKED_AT = 2000
"""Steps among which the largest micro-batch is looked for."""


def largest_load(
    accelerator: Accelerator, job: Job, model: nn.Module, *, halvings: int = 0, world: int | None = None
) -> Load:
    """The micro-batch of the steps to come with most rows times the longest of their lengths."""
    least = least_rows(job, model)
    lanes, left = _lanes(accelerator, job, model, least=least, world=world), min(job.total_steps, MOST_LOOKED_AT)
    largest, load, shapes = (0, 0), None, set[tuple[int, int]]()
    for epoch in range(-(-left // job.steps_per_epoch)):
        rows = job.task.epoch_rows(job.rows, epoch=epoch)
        lengths = job.task.lengths(rows)
        divide = _divider(accelerator, job, rows, halvings=halvings, least=least, lanes=lanes, world=world)
        plan = _plan(job, rows, epoch=epoch, least=least)
        for step in plan[: left - epoch * job.steps_per_epoch]:
            pieces = divide(step) or [step[:least]]
            for piece in pieces:
                longest = _longest(lengths, piece)
                shapes.add((len(piece), longest))
                if (size := (len(piece) * longest, len(pieces))) > largest:
                    largest, load = size, (rows, piece.tolist(), epoch)
    assert load is not None
    of_epoch, piece, epoch = load
    batch, pieces_of_step = job.task.collate_train(of_epoch, piece, epoch=epoch), largest[1]
    return Load(batch, min(lanes, pieces_of_step), pieces_of_step > 1, len(shapes))


def own_passes(
    accelerator: Accelerator, job: Job, model: nn.Module, *, steps: int, world: int | None = None
) -> list[list[tuple[int, Rows]]]:
    """This process's micro-batches in each of the first steps, with their sizes: their rows × the longest.

    Of a `world` that is only thought of those of process 0, which has most to do.
    """
    least, lengths = least_rows(job, model), job.task.lengths(job.rows)
    divide = _divider(accelerator, job, job.rows, halvings=0, least=least, world=world)
    plan = _plan(job, job.rows, epoch=0, least=least)[:steps]
    return [[(len(it) * _longest(lengths, it), it) for it in divide(rows) or [rows[:least]]] for rows in plan]


def pass_seconds(accelerator: Accelerator, job: Job, model: nn.Module, rows: Rows) -> float:
    """Seconds of a forward and backward pass of some rows: the shortest after the first, of several if short."""
    model.to(accelerator.device)
    set_training_mode(model, frozen_batch_norm=job.frozen_batch_norm)
    seconds = list[float]()
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < 1):
        started = time.perf_counter()
        batch = send_to_device(job.task.collate_train(job.rows, rows.tolist(), epoch=0), accelerator.device)
        with fast_steps(model, accelerator.device):
            with accelerator.autocast():
                loss = job.task.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for the device
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def update_seconds(accelerator: Accelerator, job: Job, model: nn.Module) -> float:
    """Seconds of the second of two steps of the stage's optimiser, clipping included; weights are others after it."""
    model.to(accelerator.device)
    optimizer, seconds = build_optimizer(model, job.stage, head=job.head), 0.0
    for _ in range(2):
        for _, weight in trained(model):
            weight.grad = torch.zeros_like(weight)
        started = time.perf_counter()
        float(nn.utils.clip_grad_norm_(model.parameters(), job.stage.max_grad_norm or math.inf))
        optimizer.step()
        float(next(weight for _, weight in trained(model)).detach().sum())  # waits for the device
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
    return seconds


def _longest(lengths: Sequence[int] | None, piece: Rows) -> int:
    return 1 if lengths is None else max(1, *(int(lengths[row]) for row in piece.tolist()))


def seconds_per_step(accelerator: Accelerator, job: Job, model: nn.Module) -> tuple[float, float]:
    """Seconds that one step takes, by a pass of the first micro-batch and the sizes of some steps; and the share of
    the time measured in which other work had the processor."""
    steps = own_passes(accelerator, job, model, steps=STEPS_SIZED)
    size, rows = steps[0][0]
    waited, started = waited_seconds(), time.perf_counter()
    seconds = pass_seconds(accelerator, job, model, rows)
    waiting = min(1.0, (waited_seconds() - waited) / (time.perf_counter() - started))
    return seconds / size * sum(n for step in steps for n, _ in step) / len(steps), waiting
