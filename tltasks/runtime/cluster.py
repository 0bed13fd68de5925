"""Ray (https://docs.ray.io): a cluster is joined, or started on this machine, and its resources are dealt out."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from tltasks.errors import RecipeError, first_line
from tltasks.runtime import devices
from tltasks.runtime.progress import SETTINGS

if TYPE_CHECKING:
    from ray import ObjectRef

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Environment variable by which Ray itself finds a cluster."""
LEAST_STORE = 80 * 2**20
"""Bytes of shared memory for objects, of which Ray wants 75 MiB; by default it takes a third of the machine's."""
LOSSES = 10
"""How often a process or trial that is lost is begun again: not forever, where it always fails in one place."""
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # telemetry
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what is printed would become lines of a log
    "RAY_TRAIN_METRICS_ENABLED": "0",  # for a dashboard
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""Of Ray's own: all that it is told to leave alone."""


class Remote(Protocol):
    """A method of an object that Ray keeps in a process of its own; the answer is had by `ray.get`."""

    def remote(self, *arguments: object) -> ObjectRef[object]: ...


@contextlib.contextmanager
def joined(command: str, n_cores: int) -> Iterator[ModuleType]:
    """Ray on the cluster that RAY_ADDRESS names, or on `n_cores` of this machine for as long as the block lasts.

    Nothing of this process's environment is sent to a cluster. Raises RecipeError, which names the `command`, without
    Ray, or where the cluster cannot be joined.
    """
    for variable, value in VARIABLES.items():
        os.environ.setdefault(variable, value)
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise RecipeError(
            f"{command}: needs Ray, which is not installed ({first_line(error)}): pip install 'tltasks[ray]'"
        ) from error
    address = os.environ.get(ADDRESS_VARIABLE)
    if address and address.startswith("ray://"):
        raise RecipeError(
            f"{command}: {ADDRESS_VARIABLE}={address} is Ray's client, which is not supported; start on a machine of "
            "the cluster, with HOST:PORT of its head or `auto`."
        )
    loud = SETTINGS.verbosity == "verbose"
    if not loud:
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what ends a run is raised
    try:
        ray.init(
            address=None if address else "local",
            num_cpus=None if address else n_cores,
            include_dashboard=None if address else False,
            object_store_memory=None if address else LEAST_STORE,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            configure_logging=False,
        )
    except Exception as error:  # of Ray's, which are many, and bare ones of a machine that is too busy to start it
        raise RecipeError(
            f"{command}: the cluster cannot be joined ({first_line(error)}); {ADDRESS_VARIABLE} is "
            f"{address or 'unset'}."
        ) from error
    # Ray prints there that a process has died, whatever `log_to_driver` says (2.60, _private/worker.py).
    stream = contextlib.nullcontext(sys.stderr) if loud else Path(os.devnull).open("w")  # noqa: SIM115
    try:
        with stream as file, contextlib.redirect_stdout(file):
            yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Share:
    """Processes of a run, and what each has for itself."""

    processes: int
    cores: int
    has_gpu: bool

    @property
    def resources(self) -> dict[str, float]:
        """As Ray names them."""
        return {"CPU": self.cores, **({"GPU": 1} if self.has_gpu else {})}


def deal_out(machines: Sequence[dict[str, float]], asked: int | None) -> Share:
    """As many processes as are asked for, each with the most cores that all can have, and a GPU where there are any.

    `machines` are the resources of each, as Ray names them. Unasked: one for each GPU, or for each machine where there
    is none. Raises RecipeError where there is no room for them.

    >>> deal_out([{"CPU": 8.0}, {"CPU": 4.0}], None)
    Share(processes=2, cores=4, has_gpu=False)
    >>> deal_out([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], 1)
    Share(processes=1, cores=4, has_gpu=True)
    """
    kind = "GPU" if any(machine.get("GPU", 0) >= 1 for machine in machines) else "CPU"
    used = [machine for machine in machines if machine.get(kind, 0) >= 1]
    count = asked or (int(sum(machine["GPU"] for machine in used)) if kind == "GPU" else len(used))
    for cores in range(int(max((machine.get("CPU", 0) for machine in used), default=0)), 0, -1):
        found = rooms(used, cores, has_gpu=kind == "GPU")
        if sum(found) >= count and (asked or kind == "GPU" or all(found)):
            return Share(count, cores, kind == "GPU")
    free = int(sum(machine.get(kind, 0) for machine in used))
    raise RecipeError(f"--workers {count}: the cluster has {free} {'GPUs' if kind == 'GPU' else 'cores'} for them.")


def rooms(machines: Sequence[dict[str, float]], cores: int, *, has_gpu: bool) -> list[int]:
    """How many processes with so many cores, and a GPU, each machine has room for."""
    kind = "GPU" if has_gpu else "CPU"
    return [min(int(machine.get("CPU", 0) / cores), int(machine.get(kind, 0))) for machine in machines]


def machines(ray: ModuleType) -> list[dict[str, float]]:
    """Resources of each machine of a cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def all_cores(least: int = 1) -> int:
    """Cores of this machine that Ray is to know of, at least so many."""
    return max(devices.cores(), least)


def here(ray: ModuleType) -> object:
    """Ray's word for this machine, as a place for a process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
