"""Trials on a Ray cluster, or by several processes of Ray's on this machine: https://docs.ray.io.

Ray places, queues and isolates; nothing of that is done here. A trial is carried out as it is without Ray, in a folder
that all machines see.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from tltasks.errors import Interrupted, RecipeError, first_line
from tltasks.experiments.trials import Outcome, PlannedTrial, carry_out
from tltasks.runtime import devices

if TYPE_CHECKING:
    from ray import ObjectRef

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Environment variable by which Ray itself finds a cluster."""


@dataclass(frozen=True)
class Workers:
    """How trials are spread."""

    at_once: int | None = None
    """Trials at once on this machine, where there is no cluster. Unset: one for each core."""
    cores_each: int = 1
    """Cores of a trial."""


def run_on_ray(
    trials: list[PlannedTrial],
    output: Path,
    *,
    keep_weights: bool,
    workers: Workers,
    on_end: Callable[[PlannedTrial, Outcome], None],
) -> None:
    """As `run_trials`, with as many at once as there is room for, each with a GPU of its own where there are any.

    Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine. Raises RecipeError without Ray, and
    Interrupted or KeyboardInterrupt when told to stop: running trials save their state.
    """
    if not trials:
        return
    with _ray(workers) as ray, devices.interruptible():
        n_gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_cpus=workers.cores_each, num_gpus=n_gpus, max_retries=0)(_carry_out)
        place = (str(output.resolve()), str(Path.cwd()), keep_weights, workers.cores_each)
        running = {remote.remote(item, *place): item for item in trials}
        try:
            while running:
                (done, *_), _ = ray.wait(list(running))
                item = running.pop(done)
                on_end(item, _outcome(ray, done, item))
        finally:
            for left in running:
                ray.cancel(left)  # a KeyboardInterrupt where it runs: the loop saves its state after the step
            ray.wait(list(running), num_returns=len(running), timeout=60) if running else None


@contextmanager
def _ray(workers: Workers) -> Iterator[ModuleType]:
    try:
        import ray
    except ImportError as error:
        raise RecipeError(
            "compare --engine ray: needs Ray, which is not installed: pip install 'tltasks[ray]'"
        ) from error
    joins = bool(os.environ.get(ADDRESS_VARIABLE))
    n_cores = (workers.at_once or max(1, devices.cores() // workers.cores_each)) * workers.cores_each
    try:
        ray.init(
            address=None if joins else "local",
            num_cpus=None if joins else n_cores,
            include_dashboard=None if joins else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RecipeError(
            f"compare --engine ray: the cluster cannot be joined ({first_line(error)}); {ADDRESS_VARIABLE} is "
            f"{os.environ.get(ADDRESS_VARIABLE) or 'unset'}."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _carry_out(item: PlannedTrial, output: str, directory: str, keep_weights: bool, cores: int) -> Outcome:
    """In a process of Ray's, perhaps on another machine."""
    if not (Path(output) / "trials").is_dir():
        return item.failure(f"{output} is not seen on {os.uname().nodename}; name a folder that all machines share")
    if Path(directory).is_dir():
        os.chdir(directory)  # where relative names start
    os.environ[devices.CORES_VARIABLE] = str(cores)
    return carry_out(item, Path(output), keep_weights=keep_weights)


def _outcome(ray: ModuleType, done: ObjectRef[Outcome], item: PlannedTrial) -> Outcome:
    try:
        outcome: Outcome = ray.get(done)
    except ray.exceptions.TaskCancelledError:
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (Interrupted, KeyboardInterrupt)):
            raise Interrupted(str(error.cause)) from error
        return item.failure(first_line(error.cause or error))
    except ray.exceptions.RayError as error:  # a machine or process that is gone
        return item.failure(first_line(error))
    return outcome
