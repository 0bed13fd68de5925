"""Runs in processes of Ray's, by a stand-in for Ray that does all in this process."""

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from tltasks import errors
from tltasks.cli.commands import main
from tltasks.errors import DataError, Interrupted, RecipeError, TltasksError, TrainingError
from tltasks.runs import on_ray
from tltasks.runtime import cluster, devices
from tltasks.runtime.files import empty


class Handle:
    """An object whose methods are called by `remote`, as one in a process of Ray's."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self.held, name))


FAKE = SimpleNamespace(
    get=lambda answer: answer,
    put=lambda value: value,
    wait=lambda some, timeout: (some, []),
    nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}],
    remote=lambda **options: lambda kind: SimpleNamespace(remote=lambda: Handle(kind())),
)
Run = Callable[[on_ray.Order], None]


@pytest.fixture
def carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., on_ray.Order]:
    """Carry out a run of two processes, one after the other, each by what it is given."""
    monkeypatch.setattr(cluster, "joined", lambda command, n_cores: contextlib.nullcontext(FAKE))
    monkeypatch.setattr(cluster, "here", lambda ray: None)
    for name in (devices.CORES_VARIABLE, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    orders: list[on_ray.Order] = []

    def begin_with(runs: tuple[Run, ...], failure: Exception | None) -> Callable[..., Exception | None]:
        def begin(ray: Any, share: cluster.Share, told: dict[str, Any], place: str) -> Exception | None:
            assert share == cluster.Share(2, 1, has_gpu=False)
            orders.append(told["told"])
            for rank, run in enumerate(runs):
                monkeypatch.setenv("RANK", str(rank))
                monkeypatch.setattr(on_ray, "_run", run)
                on_ray.carry_out(ray, **told)
            return failure

        return begin

    def carry_out(*runs: Run, failure: Exception | None = None, overwrite: bool = False) -> on_ray.Order:
        monkeypatch.setattr(on_ray, "_begin", begin_with(runs, failure))
        on_ray.run_on_ray("a recipe", tmp_path / "out", workers=2, overwrite=overwrite)  # type: ignore[arg-type]
        return orders[0]

    return carry_out


def fails_with(error: BaseException) -> Run:
    def run(order: on_ray.Order) -> None:
        raise error

    return run


def works(order: on_ray.Order) -> None:
    print("Accuracy 0.9", file=sys.stderr)


def test_what_process_0_says_is_said_and_nothing_is_left(
    carry: Callable[..., on_ray.Order], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    order = carry(works, works)
    assert capsys.readouterr().err == "Accuracy 0.9\nAccuracy 0.9\n", "of process 1 as it is, in its own log"
    assert not (tmp_path / "out").exists()
    assert (order.variables, order.cores) == ({"ACCELERATE_USE_FSDP": "true"}, 1), "nothing else leaves the machine"
    assert os.environ[devices.CORES_VARIABLE] == "2", "of both processes, who divide them"


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (DataError("cats.csv: no label."), DataError, "process 1 on .*: cats.csv: no label."),
        (KeyError("label"), TltasksError, "process 1 on .*: KeyError: 'label'"),
        (Interrupted("stopped after step 3"), Interrupted, "^stopped after step 3$"),
        (OSError(errno.ENOSPC, "full"), OSError, "full"),
    ],
)
def test_an_error_of_a_process_is_that_of_the_command(
    carry: Callable[..., on_ray.Order], error: Exception, kind: type, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(kind, match=said):
        carry(works, fails_with(error), fails_with(RuntimeError("Connection closed by peer")))
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError), "of what is a fault of ours"


def test_a_lost_peer_is_for_ray_to_mend(carry: Callable[..., on_ray.Order]) -> None:
    with pytest.raises(RuntimeError, match="closed by peer"):
        carry(fails_with(RuntimeError("[tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4520")))


def test_processes_that_are_lost_again_and_again_end_the_run(carry: Callable[..., on_ray.Order]) -> None:
    class WorkersError(Exception):
        worker_failures = {1: RuntimeError("The actor died.\nclass_name: X")}  # noqa: RUF012

    with pytest.raises(TrainingError, match=r"lost 11 times, the last so: The actor died\. .*--resume goes on"):
        carry(works, failure=WorkersError())
    with pytest.raises(TltasksError, match="cannot be started: no room"):
        carry(works, failure=ValueError("no room"))


def test_machines_must_be_alike(carry: Callable[..., on_ray.Order], tmp_path: Path) -> None:
    order = carry(works)
    with pytest.raises(RecipeError, match=r"gpu-3: has tltasks .*, not 9\.9; install the same on all machines"):
        on_ray._prepare(replace(order, version="9.9"), "gpu-3")
    with pytest.raises(RecipeError, match="out: is not seen on gpu-3; name a folder that all machines share"):
        on_ray._prepare(order, "gpu-3")


def test_a_run_is_overwritten_once(carry: Callable[..., on_ray.Order], tmp_path: Path, monkeypatch: Any) -> None:
    """Started anew, it goes on where the earlier run was removed, and removes it where that is still to be done."""
    from tltasks.runs import story

    output, run = tmp_path / "out", on_ray._run
    output.mkdir()
    (output / "result.json").touch()
    asked = []

    def tell(recipe: object, *, output: Path, resume: bool, overwrite: bool) -> None:
        asked.append((resume, overwrite))
        if len(asked) == 2:
            empty(output)

    monkeypatch.setattr(story, "run", tell)
    carry(run, run, run, overwrite=True)
    assert asked == [(False, True), (False, True), (True, False)]
    output.mkdir()
    (output / "result.json").touch()
    carry(run)
    assert asked[3:] == [(True, False)]
    assert [path.name for path in output.iterdir()] == ["result.json"]


def test_a_process_that_waits_for_one_with_an_error_is_not_waited_for(
    carry: Callable[..., on_ray.Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(FAKE, "wait", lambda some, timeout: time.sleep(0.01) or ([], some))
    with pytest.raises(DataError, match=r"cats\.csv"):
        carry(works, fails_with(DataError("cats.csv")))


def test_told_to_stop_it_tells_the_processes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cluster, "here", lambda ray: None)
    monkeypatch.setattr(on_ray, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(devices, "STOP", threading.Event())
    board = on_ray._make_board(FAKE)  # type: ignore[arg-type]
    assert on_ray._follow(FAKE, board, None, lambda: True) is None  # type: ignore[arg-type]
    assert "stopping after this step" in capsys.readouterr().err
    with on_ray._relayed(FAKE, board, 0), devices.stop_on_signals() as stop_requested:  # type: ignore[arg-type]
        assert devices.STOP.wait(10)
        assert stop_requested()


# ------------------------------------------------------------------------------------------------ the cluster


@pytest.mark.parametrize(
    ("machines", "asked", "found"),
    [
        ([{"CPU": 16.0}], None, (1, 16, False)),
        ([{"CPU": 16.0}], 3, (3, 5, False)),
        ([{"CPU": 16.0}, {"CPU": 4.0}], None, (2, 4, False)),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 3, (3, 5, False)),
        ([{"CPU": 16.0}, {"CPU": 8.0, "GPU": 4.0}], None, (4, 2, True)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], None, (3, 8, True)),
        ([{"memory": 1e9}, {"CPU": 2.0}], None, (1, 2, False)),
    ],
)
def test_dealing_out(machines: list[dict[str, float]], asked: int | None, found: tuple[int, int, bool]) -> None:
    assert cluster.deal_out(machines, asked) == cluster.Share(*found)


def test_no_room() -> None:
    with pytest.raises(RecipeError, match="--workers 3: the cluster has 2 GPUs for them"):
        cluster.deal_out([{"CPU": 8.0, "GPU": 2.0}], 3)
    with pytest.raises(RecipeError, match="the cluster has 0 cores"):
        cluster.deal_out([], None)


def test_without_ray_or_by_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in cluster.VARIABLES:
        monkeypatch.setenv(variable, "0")
    monkeypatch.setenv(cluster.ADDRESS_VARIABLE, "ray://head:10001")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(train=None))
    monkeypatch.setitem(sys.modules, "ray.train", SimpleNamespace())
    with pytest.raises(RecipeError, match="is Ray's client, which is not supported"), cluster.joined("run", 1):
        pass
    monkeypatch.delenv(cluster.ADDRESS_VARIABLE)
    init = mock.Mock(side_effect=Exception("The current node timed out during startup.\nMore."))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(train=None, init=init))
    with pytest.raises(RecipeError, match=r"joined \(The current node timed out.*\); RAY_ADDRESS is unset"):
        cluster.joined("run", 1).__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"pip install 'tltasks\[ray\]'"), cluster.joined("run", 1):
        pass


def test_not_within_another_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", str(tmp_path / "r.yaml"), "--engine", "ray"]) == 2
    assert "run: --engine ray starts processes itself" in capsys.readouterr().err


def test_lost_peers_are_known_by_their_words() -> None:
    assert errors.is_of_peers(RuntimeError("Connection reset by peer"))
    assert not errors.is_of_peers(DataError("no rows"))
