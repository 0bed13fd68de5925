"""The machine: processes, cores, memory, signals, and what stands in a result of it."""

from __future__ import annotations

import gc
import math
import os
import platform
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import psutil
import torch
import transformers
from accelerate import DistributedType, PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from accelerate.utils.memory import should_reduce_batch_size

from tltasks.errors import RecipeError, StorageError, TltasksError, first_line, is_full_disk
from tltasks.runtime.allocator import trim
from tltasks.runtime.environment import SUPPORTED, check_launch, shares_states
from tltasks.runtime.precision import usable_accelerator
from tltasks.runtime.progress import SETTINGS

PACKAGES = ("tltasks", "torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "evaluate", "timm")
"""Whose versions results depend on."""
DISTRIBUTED_TYPES = {
    *(DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)
}
"""Those in which each process has a whole model: a step is the same by any number of them."""
MOST_FREED = 128 * 2**20
"""Bytes by which resident memory may grow between passes; to give it back takes about a tenth of a second."""
KERNELS = 256
"""Kernels that are kept for shapes that a CPU has seen, where lengths vary: by default 1024, which take 0.5 GB.

A length of text asks for about 80, and most do not come again soon; a step of pictures for as many as 250 that do.
"""
KERNEL_BYTES = 2 * 266 * 2**10
"""Of a kernel: 256 KiB of code and what describes it, once as oneDNN keeps it and once as torch does (2.14, ideep)."""
STOP = threading.Event()
"""Set where this process is told to stop otherwise than by a signal."""
CORES_VARIABLE = "TLTASKS_CORES"
"""Environment variable with the most cores to use, where others compute on the same machine."""


def cores() -> int:
    """Processor cores that this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = os.environ.get(CORES_VARIABLE, "")
    return min(found, max(1, int(most))) if most.isdecimal() else found


def waited_seconds() -> float:
    """Seconds for which this thread was ready to compute and other work had the processor; 0 where that is not told."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def init_distributed() -> PartialState:
    """This process's place among those that a launcher has started; on the CPU where there is no accelerator.

    PartialState alone would not read ACCELERATE_USE_CPU, and without an accelerator would take each process that
    torchrun starts for the only one (accelerate 1.15, state.py, _prepare_backend).
    """
    check_launch()
    if shares_states():  # all have weights from the start, of which transformers would leave those of others empty
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or usable_accelerator() is None
    try:
        with _ended_by_sigterm():
            state = PartialState(cpu=cpu)
    except (RuntimeError, ValueError, ImportError) as error:
        raise RecipeError(
            f"the devices cannot be opened, or their processes do not meet ({first_line(error)}); check the launcher."
        ) from error
    if state.device.type == "mps":
        raise RecipeError("Apple's accelerator (mps) is not supported; unset ACCELERATE_TORCH_DEVICE for the CPU.")
    if state.distributed_type not in DISTRIBUTED_TYPES:
        raise RecipeError(
            f"{state.distributed_type.value} is not supported; launch it on CPUs or GPUs, as {SUPPORTED}."
        )
    started = int(os.environ.get("WORLD_SIZE") or 1)  # of mpirun, accelerate puts it there
    if state.num_processes != started:
        raise RecipeError(f"{started} processes were launched, but they do not find each other; check the launcher.")
    return state


def local_processes(state: PartialState) -> int:
    """Processes of the run on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or state.num_processes)  # of MPI, on one machine


def on_main_process(state: PartialState, action: Callable[[], None]) -> None:
    """Do something once; what it raises, every process raises, so that none is left waiting for the others."""
    if state.num_processes == 1:
        action()
        return
    failure: list[TltasksError | None] = [None]
    try:
        if state.is_main_process:
            action()
    except TltasksError as error:
        failure[0] = error
    except Exception as error:
        kind = StorageError if is_full_disk(error) else TltasksError
        failure[0] = kind(f"process 0: {type(error).__name__}: {first_line(error)}")
        raise
    finally:
        broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def set_num_threads(processes: int) -> None:
    """Divide the cores among the processes of this machine.

    `accelerate launch` sets OMP_NUM_THREADS=1 (accelerate 1.15, commands/launch.py), which would leave all but one
    core idle; more threads than cores slow each other several-fold.
    """
    torch.set_num_threads(max(1, cores() // max(1, processes)))


def keep_fewer_kernels() -> None:
    """Bound the memory of kernels, which oneDNN and torch keep, each its own; they read this with the first product."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(KERNELS))


def kernel_bytes(shapes: int) -> int:
    """Memory of kernels for so many shapes, as far as they are kept, by torch as many as its variable says."""
    asked = os.environ.get("LRU_CACHE_CAPACITY", "")
    return min(shapes, int(asked) if asked.isdecimal() else 1024) * KERNEL_BYTES


def quieten_libraries(*, interactive: bool) -> None:
    """Turn off what libraries say to their own users unless --verbose asks for it, and their bars where there is no
    terminal.
    """
    quiet, verbose = (SETTINGS.verbosity == kind for kind in ("quiet", "verbose"))
    (datasets.enable_progress_bars if interactive and not quiet else datasets.disable_progress_bars)()
    if verbose:
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")  # theirs to mend
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def loader_workers(device: torch.device, processes: int, asked: int | None) -> int:
    """Loader processes for each device: none on a CPU, whose cores the model needs."""
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(8, max(1, cores() // max(1, processes) - 1))


def pass_budget(device: torch.device, cpu_batch_budget: int) -> int:
    """Size of a forward pass on a device, given what keeps a CPU busy; an accelerator takes many more at once."""
    return cpu_batch_budget if device.type == "cpu" else 16 * cpu_batch_budget


def gains_by_size(device: torch.device) -> bool:
    """Tell where larger passes than the usual may be faster: a CPU is busy with those, and keeps its numbers."""
    return device.type != "cpu"


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: of the device where it counts it, otherwise of this process."""
    return max(_peak(device), _highest.get(device.type, 0))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # of POSIX alone, and elsewhere psutil knows it
    except ImportError:
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PeakMemory:
    """The most memory used since it was made; None of a process whose system does not let go of an earlier peak."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.most = device, 0
        self.is_known = self._begin()

    def _begin(self) -> bool:
        """Have the system count anew."""
        _highest[self.device.type] = peak_memory_bytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        with suppress(OSError):  # see proc_pid_clear_refs(5)
            return sys.platform == "linux" and bool(Path("/proc/self/clear_refs").write_text("5", encoding="ascii"))
        return False

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Do not count what is used while the block lasts."""
        self.most = self.bytes() or 0
        try:
            yield
        finally:
            trim()  # what the block has freed is not in use, though the allocator may keep it
            self._begin()

    def bytes(self) -> int | None:
        return max(self.most, _peak(self.device)) if self.is_known else None


_highest: dict[str, int] = {}
"""Peaks by the kind of device from before they were counted anew."""


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return int(psutil.Process().memory_info().rss)


def memory_limit(device: torch.device) -> int:
    """Bytes that this process may come to use, with those that it uses: of the device, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    left = int(psutil.virtual_memory().available) + resident_bytes()
    with suppress(OSError, ValueError):  # of a container; `max` where it has no bound
        left = min(left, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return left


_WORDS = ("bad_alloc", "DefaultCPUAllocator: not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of C++, of torch on Windows, and of cuBLAS, besides those that Accelerate knows (1.15, utils/memory.py)."""
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?([KMG]i)?B|tried to allocate (\d+) bytes")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that did not suffice, of a device or of this machine.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("std::bad_alloc"))
    (True, True)
    >>> is_out_of_memory(RuntimeError("size mismatch"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(words in str(error) for words in _WORDS)
    )


def bytes_asked(error: BaseException) -> int:
    """Bytes that were asked for when memory did not suffice; 0 where that is not told.

    >>> bytes_asked(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"))
    2147483648
    >>> bytes_asked(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."))
    4096
    """
    found = _ASKED.search(str(error))
    if found is None:
        return 0
    number, unit, whole = found.groups()
    return int(whole) if whole else int(float(number) * 1024.0 ** " KMG".index((unit or " ")[0]))


def release_memory() -> None:
    """Give back to the system what has been freed; glibc keeps it, in pieces of the sizes that steps have asked for."""
    gc.collect()
    trim()


class Resident:
    """Resident memory between passes of varying shapes, kept from growing by what the allocator does not give back."""

    def __init__(self, device: torch.device) -> None:
        self.watches, self.least = device.type == "cpu" and sys.platform == "linux", math.inf

    def bound(self) -> None:
        """Call after each pass: gives freed memory back once there is `MOST_FREED` more than after another pass."""
        if not self.watches:
            return
        resident = resident_bytes()
        self.least = min(self.least, resident)
        if resident > self.least + MOST_FREED:
            trim()
            self.least = math.inf


def versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`, as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # tltasks itself, run from a checkout that is not installed
    return found


def hardware(device: torch.device, processes: int, precision: str) -> dict[str, str | int]:
    """The device and the machine that a run was computed on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "device_name": name,
        "processes": processes,
        "distributed": "no" if processes == 1 else "fsdp2" if shares_states() else "ddp",
        "cpu_cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "precision": precision,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def processor_name() -> str:
    """The processor's own name where the system tells it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a request that the loop heeds after its step; a second one kills."""
    asked: list[bool] = []

    def request() -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    with _handling_signals(request):
        yield lambda: bool(asked) or STOP.is_set()


@contextmanager
def interruptible() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Turn SIGTERM, like Ctrl-C, into KeyboardInterrupt at once, but never within a block of the context it yields."""
    held, asked = False, False

    def request() -> None:
        nonlocal asked
        asked = True
        if not held:
            raise KeyboardInterrupt

    @contextmanager
    def hold() -> Iterator[None]:
        nonlocal held
        held = True
        try:
            yield
        finally:
            held = False
        if asked:
            raise KeyboardInterrupt

    with _handling_signals(request):
        yield hold


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave SIGTERM to the system where this process may wait for others in code that no handler interrupts."""
    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if own else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _handling_signals(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` at SIGTERM and Ctrl-C; outside the main thread, which alone may ask for them, at nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: handle()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
