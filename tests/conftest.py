"""What every test gets: no network but loopback, no Hub, caches of its own, and Accelerate as in a new process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hub_server import HubServer
    from tests.tiny.host import Host

os.environ |= {
    "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
}
"""Set before any library reads them; a test that speaks to the stand-in Hub turns offline mode off again."""

ALL_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
if ALL_CORES:
    # Workers inherit the affinity of the process that starts them, which is pinned to one core by then.
    os.environ.setdefault("TLTASKS_TEST_CORES", ",".join(map(str, ALL_CORES)))
    ALL_CORES = [int(core) for core in os.environ["TLTASKS_TEST_CORES"].split(",")]
    # Tiny models gain nothing from a second thread, and two pytest workers with two threads each on two cores slow each
    # other several-fold. The library takes its threads from the cores that it may use, as do subprocesses. Without
    # workers any core will do: several runs of pytest beside each other should not share one.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw"))
    os.sched_setaffinity(0, {ALL_CORES[worker % len(ALL_CORES)]})

LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise at any connection that would leave the machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded rows of one run of the tests must not be found by the next."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    if "tests.tiny.host" in sys.modules:
        from tests.tiny.host import close_shared_host

        close_shared_host()
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(autouse=True)
def new_accelerate() -> Iterator[None]:
    """Accelerate keeps one state for each process (accelerate 1.15, state.py); every test begins without one."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ViT in `vit`, pictures in `data`, and a recipe over them in `recipe.yaml`."""
    from tests.tiny.images import save_data, save_model, write_recipe

    folder = tmp_path_factory.mktemp("tiny")
    save_model(folder / "vit")
    save_data(folder / "data")
    write_recipe(folder / "recipe.yaml", Path("vit"), Path("data"))
    return folder


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A stand-in for the Hub."""
    from tests.hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def hub_host(hub: HubServer, own_caches: None) -> Iterator[Host]:
    """Processes that take the stand-in for the Hub."""
    from tests.hub_server import hub_environment
    from tests.tiny.host import Host, environment

    with Host(environment() | hub_environment(hub)) as host:
        yield host
