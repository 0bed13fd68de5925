"""The state that all stages of a run share: its plan, the devices, the results folder and whom to tell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import RunPlan, recipe_sha256
from tltasks.config.stage import StagePlan
from tltasks.errors import Interrupted, RecipeError, TltasksError
from tltasks.runs.callbacks import OnEvaluation, OnStep
from tltasks.runtime import devices
from tltasks.runtime.files import locked
from tltasks.runtime.precision import choose_precision


@dataclass(frozen=True)
class Context:
    """All that the stages of a run share."""

    plan: RunPlan
    accelerator: Accelerator
    precision: str
    console: Console
    stop_requested: Callable[[], bool] = lambda: False
    on_step: OnStep | None = None
    on_evaluation: OnEvaluation | None = None

    @property
    def seed(self) -> int:
        return self.plan.recipe.seed

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return bool(self.accelerator.is_main_process)

    def folder(self, stage: StagePlan) -> Path:
        """A stage's own folder among the results."""
        return self.plan.output / "stages" / stage.name

    def workers(self, stage: StagePlan) -> int:
        """Loader processes for a stage's data."""
        return devices.loader_workers(self.accelerator.device, self.accelerator.num_processes, stage.data.workers)

    def say(self, stage: StagePlan, text: str) -> None:
        self.console.print(f"{stage.name}: {text}", soft_wrap=True)

    def heed_stop(self, text: str) -> None:
        """Raise Interrupted where any process was told to stop; all of them come here at the same point."""
        asked = torch.tensor(float(self.stop_requested()), device=self.accelerator.device)
        if float(self.accelerator.reduce(asked, "sum")) > 0:
            raise Interrupted(text)


def open_context(plan: RunPlan, state: PartialState, *, quiet: bool = False) -> Context:
    """The devices, their number format and their share of the processor's cores; nothing is written."""
    recipe = plan.recipe
    precision = choose_precision(recipe.precision, state.device)
    devices.set_num_threads(state.num_processes)
    devices.quieten_libraries(interactive=state.is_main_process and sys.stderr.isatty())
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(recipe.trackers) or None,
        project_dir=str(plan.output / "trackers"),
    )
    console = Console(stderr=True, quiet=quiet or not accelerator.is_main_process, highlight=False)
    return Context(plan, accelerator, precision, console)


# --------------------------------------------------------------------------------------- processes


def on_main_process(state: PartialState, action: Callable[[], None]) -> None:
    """Do something once; what it raises, every process raises, so that none is left waiting for the others."""
    failure: list[TltasksError | None] = [None]
    if state.is_main_process:
        try:
            action()
        except TltasksError as error:
            failure[0] = error
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


@contextmanager
def sole_writer(state: PartialState, output: Path) -> Iterator[None]:
    """Hold the lock of the results folder, for all processes of the run."""
    with ExitStack() as stack:
        on_main_process(state, lambda: stack.enter_context(locked(output)))
        yield


# ------------------------------------------------------------------------------- the results folder


def refuse_occupied(output: Path, sha256: str, *, resume: bool) -> None:
    """Raise RecipeError when the folder holds something that this run would overwrite, or cannot be resumed from."""
    if output.exists() and not output.is_dir():
        raise RecipeError(f"output {output}: is a file; name a folder with --output.")
    occupied = output.is_dir() and any(entry.name != ".lock" for entry in output.iterdir())
    if occupied and not resume:
        raise RecipeError(
            f"output {output}: is not empty. Go on with that run with --resume, or name another folder with --output."
        )
    recipe = output / "recipe.yaml"
    if not resume or not occupied:
        return
    if not recipe.is_file():
        raise RecipeError(f"output {output}: holds no run to resume (no recipe.yaml). Name another folder.")
    earlier = recipe_sha256(load_recipe(recipe, check_files=False))
    if earlier != sha256:
        raise RecipeError(
            f"output {output}: was begun with another recipe ({earlier[:12]}, now {sha256[:12]}). "
            f"Resume with {recipe}, or name another folder with --output."
        )
