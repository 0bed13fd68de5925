"""The state that all stages of a run share: its plan, the devices and whom to tell; and a stage that is prepared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from tltasks.config.model import Checkpoint
from tltasks.config.recipe import RunPlan, is_on_hub, remote_code
from tltasks.config.stage import StagePlan
from tltasks.config.tasks import TASKS
from tltasks.data.near_duplicates import Likeness
from tltasks.data.splits import EncodedSplit
from tltasks.errors import Interrupted, RecipeError
from tltasks.reports.console import Terminal, open_terminal
from tltasks.results.result import Ancestor
from tltasks.runs.callbacks import OnEvaluation, OnStep
from tltasks.runtime import devices, progress, sharding
from tltasks.runtime.environment import check_settings
from tltasks.runtime.files import locked
from tltasks.runtime.precision import check_base_dtype, choose_precision
from tltasks.tasks.base import Rescore, TaskBase

DECIDING = ("test", "validation")
"""Splits that a headline may stand on, the better first."""


@dataclass(frozen=True)
class Context:
    """All that the stages of a run share."""

    plan: RunPlan
    accelerator: Accelerator
    precision: str
    console: Terminal
    stop_requested: Callable[[], bool] = lambda: False
    on_step: OnStep | None = None
    on_evaluation: OnEvaluation | None = None
    until_end: ExitStack = field(default_factory=ExitStack)
    """Closed when the run ends: what several stages, or all of one, need open."""

    @property
    def seed(self) -> int:
        return self.plan.recipe.seed

    @property
    def writes(self) -> bool:
        """This process is the one that writes files."""
        return bool(self.accelerator.is_main_process)

    def folder(self, stage: StagePlan) -> Path:
        """A stage's own folder among the results."""
        return self.plan.output / "stages" / stage.name

    def workers(self, stage: StagePlan) -> int:
        """Loader processes for a stage's data."""
        return devices.loader_workers(
            self.accelerator.device, devices.local_processes(self.accelerator.state), stage.data.workers
        )

    def say(self, stage: StagePlan, text: str) -> None:
        self.console.print(f"{stage.name}: {text}", soft_wrap=True)

    def on_main(self, action: Callable[[], None]) -> None:
        """Do something once; what it raises, every process raises."""
        devices.on_main_process(self.accelerator.state, action)

    def heed_stop(self, text: str) -> None:
        """Raise Interrupted where any process was told to stop; all of them come here at the same point."""
        asked = torch.tensor(float(self.stop_requested()), device=self.accelerator.device)
        if float(self.accelerator.reduce(asked, "sum")) > 0:
            raise Interrupted(text)


def open_context(plan: RunPlan, state: PartialState, *, quiet: bool = False) -> Context:
    """Open the devices, with their number format and their share of the processor's cores; nothing is written."""
    recipe = plan.recipe
    precision = choose_precision(recipe.precision, state.device)
    for stage in plan.stages:
        check_base_dtype(stage.stage.base_dtype, state.device)
    devices.set_num_threads(devices.local_processes(state))
    if all(TASKS[stage.task].input.kind != "image" for stage in plan.stages):
        devices.keep_fewer_kernels()
    devices.quieten_libraries(interactive=state.is_main_process and sys.stderr.isatty())
    # Accelerate keeps one number format for a process (accelerate 1.15, state.py); runs may have different ones.
    AcceleratorState._reset_state()
    check_settings(precision, state.device)
    with sharding.unknown_to_accelerate():
        accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            # Named, since what is not named is read from the environment (accelerate 1.15, accelerator.py).
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=list(recipe.trackers) or None,
            project_dir=str(plan.output / "trackers"),
        )
    if precision == "fp16" and sharding.shares(accelerator):
        raise RecipeError("precision: fp16 is not supported with FSDP 2, use bf16 or fp32; or launch without it.")
    console = open_terminal(quiet=quiet or not accelerator.is_main_process)
    progress.SETTINGS.say = None if quiet or not accelerator.is_main_process else partial(console.print, soft_wrap=True)
    if recipe._chosen:
        console.print(f"chosen for what the recipe leaves open: {', '.join(recipe._chosen)}", soft_wrap=True)
    for _, name in remote_code(recipe):
        console.print(f"{name}: Python code of its authors is run here", soft_wrap=True)
    for metric in sorted({metric.name for stage in plan.stages for metric in stage.stage.metrics}):
        if not is_on_hub(metric):
            console.print(f"{metric}: the script of this metric is run here", soft_wrap=True)
    return Context(plan, accelerator, precision, console)


@dataclass(frozen=True)
class Twin:
    """A row trained on that is nearly the same as one that is scored."""

    stage: str
    """The stage that is trained on it."""
    likeness: Likeness
    rows: datasets.Dataset
    row: int


@dataclass(frozen=True)
class PreparedStage:
    """A stage whose data and checkpoint have been found to be in order."""

    plan: StagePlan
    task: TaskBase
    source: Checkpoint
    encoded: dict[str, EncodedSplit]
    checks: dict[str, dict[str, float]]
    """What the task found odd about each split."""
    split_notes: dict[str, list[str]] = field(default_factory=dict)
    """What its user should know of each split."""
    extra_metrics: Sequence[Rescore] = ()
    """Beside the task's own."""
    lineage: list[Ancestor] = field(default_factory=list)
    """Of the run that the checkpoint is of."""
    notes: list[str] = field(default_factory=list)
    """What its user should know of the checkpoint."""
    twins: dict[str, dict[int, Twin]] = field(default_factory=dict)
    """Rows of each split that was looked through that are nearly the same as one trained on."""

    @property
    def rows_of_epoch(self) -> int:
        """Rows of an epoch of training; where nobody can count them, those of all its steps, which the recipe names."""
        train, keys = self.encoded["train"], self.plan.stage
        if train.stream is None or train.stream.count is not None:
            return train.n_rows if train.stream is not None else len(self.task.epoch_rows(train.rows, epoch=0))
        if keys.steps and (keys.evaluate_every or "validation" not in self.encoded) and not keys.unfreeze_epochs:
            return keys.steps * keys.batch_size
        raise RecipeError(
            f"{train.where} is streamed, and how many rows it has only reading all of them would tell: set `steps`, "
            "and `evaluate_every` where there is a validation split; no key may count epochs."
        )

    @property
    def evaluated(self) -> dict[str, EncodedSplit]:
        """The splits that are predicted, the deciding one first."""
        names = dict.fromkeys([*DECIDING, *self.encoded])
        return {name: self.encoded[name] for name in names if name in self.encoded and name != "train"}


# --------------------------------------------------------------------------------------- processes


@contextmanager
def sole_writer(state: PartialState, output: Path) -> Iterator[None]:
    """Hold the lock of the results folder, for all processes of the run."""
    with ExitStack() as stack:
        devices.on_main_process(state, lambda: stack.enter_context(locked(output)))
        yield
