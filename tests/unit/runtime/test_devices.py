"""What is learned of this machine, checked against what the system itself says."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from tltasks.errors import RecipeError
from tltasks.runtime import devices


def test_cores_are_those_that_this_process_may_use() -> None:
    assert devices.cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("cores", "processes", "threads"), [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 4, 1), (1, 1, 1), (4, 0, 4)]
)
def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, threads: int) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(devices, "cores", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    devices.set_num_threads(processes)
    assert set_to == [threads]


@pytest.mark.parametrize(
    ("device", "cores", "processes", "asked", "workers"),
    [
        ("cpu", 16, 1, None, 0),
        ("cuda", 16, 1, None, 8),
        ("cuda", 6, 1, None, 5),
        ("cuda", 16, 4, None, 3),
        ("cuda", 1, 1, None, 1),
        ("cuda", 4, 8, None, 1),
        ("cpu", 1, 1, 3, 3),
        ("cuda", 16, 1, 0, 0),
    ],
)
def test_loader_workers(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, processes: int, asked: int | None, workers: int
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cores)
    assert devices.loader_workers(torch.device(device), processes, asked) == workers


def test_an_accelerator_takes_larger_passes() -> None:
    assert devices.pass_budget(torch.device("cpu"), 7) == 7
    assert devices.pass_budget(torch.device("cuda"), 7) == 112


def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    peak_kibibytes = int(status.split("VmHWM:")[1].split()[0])
    assert devices.peak_memory_bytes(torch.device("cpu")) == pytest.approx(1024 * peak_kibibytes, rel=0.05)


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PACKAGES", (*devices.PACKAGES, "no-such-package"))
    found = devices.versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "transformers", "datasets", "accelerate", "peft"} <= found.keys()
    assert "no-such-package" not in found


def test_hardware_names_the_processor() -> None:
    found = devices.hardware(torch.device("cpu"), 3, "bf16")
    assert (found["device"], found["processes"], found["precision"]) == ("cpu", 3, "bf16")
    assert (found["distributed"], devices.hardware(torch.device("cpu"), 1, "bf16")["distributed"]) == ("ddp", "no")
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()]
    assert found["device_name"] in names
    total_kibibytes = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert found["memory_bytes"] == 1024 * total_kibibytes


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.init_distributed().num_processes == 1
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="4 processes were launched"):
        devices.init_distributed()


def test_other_devices_of_accelerate_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, distributed_type=DistributedType.XLA, is_main_process=True
    )
    monkeypatch.setattr(devices, "PartialState", lambda cpu: found)
    for name, value in {"WORLD_SIZE": "8", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)  # a TPU's processes, which are told before that they do not meet
    with pytest.raises(RecipeError, match="XLA is not supported; launch it on CPUs or GPUs"):
        devices.init_distributed()


# ----------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), devices.stop_on_signals() as stop_requested:  # noqa: PT012
        assert not stop_requested()
        signal.raise_signal(number)
        assert stop_requested()
        signal.raise_signal(number)
        pytest.fail("the second signal did nothing")
    assert signal.getsignal(number) is before


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with devices.stop_on_signals():
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_outside_the_main_thread_nothing_is_handled() -> None:
    answers: list[bool] = []

    def run() -> None:
        with devices.stop_on_signals() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [False]


def test_freed_memory_is_given_back_once_there_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    mebibytes = iter([500, 600, 700, 900, 910, 1100])
    trimmed: list[int] = []

    class Process:
        def memory_info(self) -> SimpleNamespace:
            self.rss = next(mebibytes)
            return SimpleNamespace(rss=self.rss * 2**20)

    monkeypatch.setattr(devices.psutil, "Process", Process)
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices, "trim", lambda: trimmed.append(1))
    resident, counts = devices.Resident(torch.device("cpu")), []
    for _ in range(6):
        resident.bound()
        counts.append(len(trimmed))
    assert counts == [0, 0, 1, 1, 1, 2]  # above the least since the last time by 128 MiB
    devices.Resident(torch.device("cuda")).bound()  # whose memory is no business of the C library's
