"""A run in processes that Ray Train starts, watches and replaces: https://docs.ray.io/en/latest/train/train.html.

Each is what torchrun would have started. The run in them is the usual one, which goes on from its last checkpoint when
Ray has started them anew because one was lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol
from uuid import uuid4

from tltasks import __version__, errors
from tltasks.config.recipe import Recipe
from tltasks.errors import Interrupted, RecipeError, StorageError, TltasksError, TrainingError, first_line
from tltasks.runtime import cluster, devices
from tltasks.runtime.cluster import LOSSES, Remote
from tltasks.runtime.files import check_place, is_occupied
from tltasks.runtime.progress import SETTINGS, Verbosity

COMMAND = "run --engine ray"
WAITS = 10
"""How often Ray waits a minute for the machines that the processes need."""
POLL_SECONDS = 0.5
GRACE_SECONDS = 5.0
"""After an error of one process, for the others, which may wait for it."""
_PASSED = ("ACCELERATE_", "FSDP_")
"""Beginnings of variables that say how processes share a run; no others leave this machine."""


class Board(Protocol):
    """The object that `_make_board` makes, as processes see it."""

    begin: Remote
    """Told by a process of its rank when it begins; answers as `verdict`."""
    say: Remote
    """Told words of process 0; answers whether the run is to stop."""
    end: Remote
    """Told the kind of error and the text that end the run; the first one stays."""
    verdict: Remote
    """Answers as `end` was told, or None."""
    stop: Remote
    read: Remote
    """Answers with the words since it was last read, whether `end` was told, and how often process 0 has begun."""


@dataclass(frozen=True)
class Order:
    """All that each process is told."""

    recipe: Recipe
    output: Path
    mark: str
    """File of the results folder, by which a process sees that it is the same one."""
    overwrites: str
    """File of it that is there until an earlier run has been removed; empty where none is to be."""
    cores: int
    variables: dict[str, str]
    verbosity: Verbosity
    version: str


def run_on_ray(recipe: Recipe, output: Path, *, workers: int | None = None, overwrite: bool = False) -> None:
    """Carry out a recipe, or go on with the run in its results folder, in `workers` processes of Ray's.

    Unset, one for each GPU of the cluster, or for each machine where there is none. What process 0 says is said here.
    Raises a TltasksError, that of the process which had it; and Interrupted, with its state saved, or
    KeyboardInterrupt, when told to stop once, or again.
    """
    check_place(output)
    with cluster.joined(COMMAND, cluster.all_cores(workers or 1)) as ray, contextlib.ExitStack() as stack:
        share = cluster.deal_out(cluster.machines(ray), workers)
        mark, overwrites = stack.enter_context(_marked(output, overwrite))
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
        order = Order(
            *(recipe, output.resolve(), mark, overwrites, share.cores, variables, SETTINGS.verbosity, __version__)
        )
        board = _make_board(ray)
        place = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        running = _begin(ray, share, {"board": board, "told": ray.put(order)}, place)
        with devices.stop_on_signals() as stop_requested:
            failure = _follow(ray, board, running, stop_requested)
        _raise(ray.get(board.verdict.remote()), failure)


@contextlib.contextmanager
def _marked(output: Path, overwrite: bool) -> Iterator[tuple[str, str]]:
    """Files of the results folder: one by which it is known again, and one that goes when it is emptied."""
    name = uuid4().hex
    try:
        output.mkdir(parents=True, exist_ok=True)
        marks = [output / f".{name}"] + [output / f"replaced-{name}"] * (overwrite and is_occupied(output))
        for path in marks:
            path.touch()
    except OSError as error:
        raise RecipeError(f"output {output}: cannot be written to ({error.strerror}); choose another place.") from error
    try:
        yield marks[0].name, "".join(path.name for path in marks[1:])
    finally:
        for path in marks:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is something in it
            output.rmdir()


def _make_board(ray: ModuleType) -> Board:
    """Place on this machine where processes leave what they say and why they ended, and learn that they are to stop.

    The class stands within, so that Ray sends its code along, and it works where tltasks cannot be imported.
    """

    class Notes:
        def __init__(self) -> None:
            self.said: list[str] = []
            self.begun = 0
            self.stops = False
            self.ended: tuple[str, str] | None = None

        def begin(self, rank: int) -> tuple[str, str] | None:
            self.begun += rank == 0
            return self.ended

        def say(self, text: str) -> bool:
            self.said += [text] if text else []
            return self.stops

        def end(self, kind: str, text: str) -> None:
            self.ended = self.ended or (kind, text)

        def verdict(self) -> tuple[str, str] | None:
            return self.ended

        def stop(self) -> None:
            self.stops = True

        def read(self) -> tuple[list[str], bool, int]:
            said, self.said = self.said, []
            return said, self.ended is not None, self.begun

    made: Board = ray.remote(num_cpus=0, scheduling_strategy=cluster.here(ray))(Notes).remote()
    return made


def _begin(ray: ModuleType, share: cluster.Share, told: dict[str, object], place: str) -> object:
    """Start the processes; what Ray answers once they have ended is why it gave up, or None.

    Its trainer, which has a folder for its own notes and is given no checkpoints, waits in a process of its own: in
    this one it would answer Ctrl-C by killing the others.
    """

    def work(told: dict[str, ModuleType]) -> None:  # its code is sent along, as that of the board
        import socket

        import ray

        try:
            from tltasks.runs.on_ray import carry_out
        except ImportError as error:
            said = f"{socket.gethostname()}: tltasks cannot be imported there ({error}); install it on all machines."
            ray.get(told["board"].end.remote("RecipeError", said))
            return
        carry_out(ray, **told)

    variables, losses, waits = cluster.VARIABLES, LOSSES, WAITS
    processes, has_gpu, resources = share.processes, share.has_gpu, share.resources

    def fit() -> Exception | None:
        import os

        os.environ.update(variables)
        from ray import train
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import FailureConfig  # which ray.train gives, though not its types (2.60)

        scaling = train.ScalingConfig(
            num_workers=processes,
            use_gpu=has_gpu,
            resources_per_worker=resources,
            placement_strategy="PACK" if has_gpu else "SPREAD",
        )
        limits = FailureConfig(max_failures=losses, controller_failure_limit=waits)
        config = train.RunConfig(name="tltasks", storage_path=place, failure_config=limits)
        try:
            TorchTrainer(work, train_loop_config=told, scaling_config=scaling, run_config=config).fit()
        except Exception as error:  # of Ray's, which are many
            return error
        return None

    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=cluster.here(ray))(fit).remote()


def _follow(ray: ModuleType, board: Board, running: object, stop_requested: Callable[[], bool]) -> Exception | None:
    """Wait for the processes and tell what they say; why Ray gave up, if it did."""
    told, times, until, ended = False, 1, math.inf, False
    while not ended and time.monotonic() < until:
        ended = bool(ray.wait([running], timeout=POLL_SECONDS)[0])
        said, has_ended, begun = ray.get(board.read.remote())
        sys.stderr.write("".join(said))
        sys.stderr.flush()
        if begun > times:
            _say(f"a process was lost; all go on from the last checkpoint ({begun - 1} of at most {LOSSES} times)")
            times = begun
        if has_ended:
            until = min(until, time.monotonic() + GRACE_SECONDS)
        if stop_requested() and not told:
            _say("stopping after this step; Ctrl-C again does so at once, and steps since the last checkpoint are lost")
            ray.get(board.stop.remote())
            told = True
    failure: Exception | None = ray.get(running) if ended else None
    return failure


def _say(text: str) -> None:
    sys.stderr.write(f"tltasks: {text}\n")
    sys.stderr.flush()


def _raise(verdict: tuple[str, str] | None, failure: Exception | None) -> None:
    """Raise what ended the run, if anything did: the word of a process before that of Ray."""
    if verdict is not None:
        kind, text = verdict
        if kind == StorageError.__name__:
            raise OSError(errno.ENOSPC, text)  # which is told as if it had happened here
        raise (Interrupted if kind == Interrupted.__name__ else getattr(errors, kind, TltasksError))(text)
    if failure is None:
        return
    causes = [*getattr(failure, "worker_failures", {}).values(), getattr(failure, "controller_failure", failure)]
    if hasattr(failure, "worker_failures"):
        raise TrainingError(
            f"{COMMAND}: processes were lost {LOSSES + 1} times, the last so: {first_line(causes[0])} Where it is for "
            "want of memory, lower micro_batch. --resume goes on from the last checkpoint."
        ) from failure
    raise TltasksError(f"{COMMAND}: the processes cannot be started: {first_line(causes[0])}") from failure


# ---------------------------------------------------------------------------------- in a process of Ray's


def carry_out(ray: ModuleType, board: Board, told: object) -> None:
    """Carry out the run as one of its processes; what ends it is left on the board, and only a lost peer is raised.

    `told` is where Ray keeps the Order.
    """
    order: Order = ray.get(told)
    rank, where = int(os.environ["RANK"]), socket.gethostname()
    if ray.get(board.begin.remote(rank)) is not None:  # an error that others met as a lost process
        return
    try:
        _prepare(order, where)
        with _relayed(ray, board, rank):
            _run(order)
    except Interrupted as stop:
        ray.get(board.end.remote(Interrupted.__name__, str(stop)))
    except Exception as error:
        if errors.is_of_peers(error) and int(os.environ["WORLD_SIZE"]) > 1:
            if ray.get(board.verdict.remote()) is None:
                raise
            return
        full, known = errors.is_full_disk(error), isinstance(error, TltasksError)
        text = str(error) if known or full else f"{type(error).__name__}: {first_line(error)}"
        if not (known or full):
            ray.get(board.say.remote(errors.printable(traceback.format_exc())))
        kind = StorageError if full else type(error) if known else TltasksError
        ray.get(board.end.remote(kind.__name__, f"process {rank} on {where}: {text}" if rank else text))


def _prepare(order: Order, where: str) -> None:
    """Check that this machine is like that of the command, and set what a launcher would have."""
    if order.version != __version__:
        raise RecipeError(f"{where}: has tltasks {__version__}, not {order.version}; install the same on all machines.")
    if not (order.output / order.mark).exists():
        raise RecipeError(f"output {order.output}: is not seen on {where}; name a folder that all machines share.")
    os.environ.update(order.variables)
    os.environ[devices.CORES_VARIABLE] = str(order.cores * int(os.environ["LOCAL_WORLD_SIZE"]))
    SETTINGS.verbosity = order.verbosity


def _run(order: Order) -> None:
    from tltasks.runtime.startup import without_collection

    with without_collection():
        from tltasks.runs import story
    overwrite = bool(order.overwrites) and (order.output / order.overwrites).exists()
    story.run(order.recipe, output=order.output, resume=not overwrite, overwrite=overwrite)


class _Said(io.TextIOBase):
    """A stream of what has been written since it was last asked."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)

    def take(self) -> str:
        parts, self.parts = self.parts, []
        return "".join(parts)


@contextlib.contextmanager
def _relayed(ray: ModuleType, board: Board, rank: int) -> Iterator[None]:
    """Have process 0 tell on the board what it says, and heed there whether the run is to stop."""
    if rank != 0:
        yield
        return
    said, over = _Said(), threading.Event()

    def tell() -> None:
        if ray.get(board.say.remote(said.take())):
            devices.STOP.set()

    def keep_telling() -> None:
        while not over.wait(POLL_SECONDS):
            tell()

    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    finally:
        over.set()
        thread.join()
        tell()
