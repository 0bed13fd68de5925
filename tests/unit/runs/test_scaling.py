"""Steps on several devices, by hand; and a recipe that `tltasks doctor` looks at."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.tiny import images, texts
from tltasks.cli.commands import MISUSED, main
from tltasks.runs.scaling import EXCHANGES, Cost, Network, Step, largest_useful

MB = 10**6
SLOW = Network(bandwidth=1e9, latency=1e-3)
FREE = Network(bandwidth=1e30, latency=0.0)
STATES = {"frozen weights": 80 * MB, "trained weights": 20 * MB, "gradients": 20 * MB, "optimizer": 40 * MB}


def cost(*, worlds: tuple[int, ...] = (1, 2, 4, 8), update: float = 0.1) -> Cost:
    """Eight rows a step, one of them a second, two at a time."""
    passes = {world: [[2] * (4 // world) or [1]] for world in worlds}
    memory = {world: STATES | {"activations of a micro-batch": 10 * MB} for world in worlds}
    return Cost(8, {1: 1.0, 2: 2.0}, update, passes, memory, 20 * MB, [60 * MB, 30 * MB, 10 * MB], steps_per_epoch=2)


def test_a_ring_by_hand() -> None:
    assert SLOW.once_around(8e9, 1) == 0
    assert SLOW.once_around(8e9, 2) == pytest.approx(4 + 0.001)
    assert SLOW.once_around(8e9, 4, parts=5) == pytest.approx(3 * (2 + 0.005))


def test_whole_weights_by_hand() -> None:
    alone, two = (cost().with_ddp(SLOW, world) for world in (1, 2))
    assert (alone.compute_seconds, alone.exchange_seconds, alone.memory_bytes) == (8.1, 0, 170 * MB)
    assert alone.rows_per_second == pytest.approx(8 / 8.1)
    numbers, gradients = (EXCHANGES + 0.5) * 2 * 1e-3, 2 * (1e-3 + 20e6 / 2 / 1e9)
    assert two.compute_seconds == pytest.approx(4.1)
    assert two.exchange_seconds == pytest.approx(numbers + gradients, rel=1e-4)
    assert two.memory_bytes == 190 * MB, "gradients are copied"


def test_more_processes_than_cores_share_these() -> None:
    steps = [dataclasses.replace(cost(), room=2.0).with_ddp(FREE, world) for world in (1, 2, 4)]
    assert [step.rows_per_second_here for step in steps] == [
        pytest.approx(rate) for rate in (8 / 8.1, 8 / 4.1, 8 / 2.1 / 2)
    ]
    assert cost().with_ddp(FREE, 4).rows_per_second_here is None, "an accelerator is nobody else's"


def test_shared_weights_by_hand() -> None:
    found = cost().with_fsdp2(SLOW, 2, on_cpu=False)
    each = 9 * 1e-3 + (2 * 100e6 + 20e6) / 2 / 1e9
    assert found.exchange_seconds == pytest.approx(2 * each + 2 * (EXCHANGES + 1) * 1e-3, rel=1e-4)
    assert found.compute_seconds == pytest.approx(4.05)
    assert found.memory_bytes == 80 * MB + 10 * MB + 10 * MB + 2 * 60 * MB, "a share, activations, the rest, two layers"
    assert cost().with_fsdp2(SLOW, 2, on_cpu=True).memory_bytes == found.memory_bytes + 100 * MB
    assert cost().with_fsdp2(SLOW, 8, on_cpu=False).memory_bytes == max(20 + 10 + 10 + 120, 120) * MB


def test_passes_between_those_that_were_measured() -> None:
    noisy = dataclasses.replace(cost(), seconds_of={1: 2.0, 3: 1.0, 5: 4.0}, passes={1: [[1, 2, 4], [5]]})
    assert noisy.compute_seconds(1) == pytest.approx((2 + 2 + 3 + 4) / 2)


@pytest.mark.parametrize("shares", [False, True])
def test_more_devices_never_compute_longer_nor_exchange_less(shares: bool) -> None:
    it = cost(update=0.3)
    steps = [it.with_fsdp2(SLOW, n, on_cpu=False) if shares else it.with_ddp(SLOW, n) for n in (1, 2, 4, 8)][shares:]
    for before, after in pairwise(steps):
        assert after.compute_seconds < before.compute_seconds
        assert shares or after.exchange_seconds > before.exchange_seconds
        assert after.memory_bytes <= before.memory_bytes + 20 * MB
        assert after.rows_per_second <= 8 / after.compute_seconds
    free = it.with_ddp(FREE, 8)
    assert free.rows_per_second == pytest.approx(8 / free.compute_seconds)
    assert free.rows_per_second < 8 * steps[0].rows_per_second, "the update is not shared"


@pytest.mark.parametrize(
    ("rates", "useful", "why"),
    [
        ([1.0, 1.9, 2.2, 4.4], 2, "4: +16% rows/s, 75% of a step for exchanges"),
        ([1.0, 1.1], 1, "2: "),
        ([1.0, 1.9, 3.5], 4, "the 7 rows of a step do not suffice for more"),
        ([2.0**n for n in range(7)], 64, "more were not looked at"),
        ([1.0], 1, "the 7 rows"),
    ],
)
def test_the_most_devices_that_are_of_use(rates: list[float], useful: int, why: str) -> None:
    steps = [Step(2**n, 1.0, 3.0, rate, 0) for n, rate in enumerate(rates)]
    found, told = largest_useful(steps, batch_size=7)
    assert found == useful
    assert told.startswith(why)


# ------------------------------------------------------------------------------------------- the command


def test_a_recipe_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = images.save_model(tmp_path / "model"), images.save_data(tmp_path / "data")
    keys = "{stage: transfer, steps: 10, batch_size: 9, learning_rate: 1e-3, micro_batch: 2, adapt: full}"
    recipe = images.write_recipe(tmp_path / "recipe.yaml", model, data, stage=keys)
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", str(recipe), "--json", "--bandwidth", "2", "--latency", "30"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["bandwidth"], told["latency"], told["processes"]) == (2e9, 3e-5, 1)
    (stage,) = told["stages"]
    assert (stage["batch_size"], stage["steps"]) == (9, 10)
    assert [step["devices"] for step in stage["ddp"]] == [1, 2, 4, 8], "nine rows"
    assert stage["cost"]["passes"]["1"][0] == [2, 2, 2, 2, 1]
    assert stage["cost"]["passes"]["8"][0] == [2], "one of eight has two"
    assert stage["useful"] in (1, 2, 4, 8)
    assert all(step["memory_bytes"] > 2**20 for step in stage["ddp"])
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor", str(recipe), "--set", "stages.0.batch_size=2"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert [row[0] for row in rows] == ["1", "2"]
    assert re.search(r"on this machine, which share its cores: 1: [\d,.]+, 2: [\d,.]+\n", printed)
    assert "…" not in printed
    assert "Largest useful number of devices: " in printed
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.exhaustive
def test_why_a_recipe_is_not_told_with_shared_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = texts.save_model(tmp_path / "model", "t5"), texts.save_data(tmp_path / "data", rows=24)
    stage = "{stage: finetune, steps: 3, batch_size: 4, learning_rate: 1e-3, optimizer: adafactor}"
    recipe = texts.write_recipe(tmp_path / "recipe.yaml", model, data, stage=stage)
    assert main(["doctor", str(recipe)]) == 0
    assert "not with FSDP 2: stages[0].optimizer: adafactor is not supported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bandwidth", "1"], "--set, --bandwidth and --latency are for a recipe; name one"),
        (["{recipe}", "--task", "summarization"], "--task, --revision and --micro-batch are for a model"),
        (["--micro-batch", "2"], "--task, --revision and --micro-batch are for a model"),
        (["{recipe}", "--bandwidth", "0"], "--bandwidth and --latency are numbers above 0"),
        (["{recipe}", "--latency", "inf"], "--bandwidth and --latency are numbers above 0"),
        (["{recipe}"], "no stage of this recipe is trained in steps"),
        (["none.yaml"], "none.yaml"),
    ],
)
def test_what_is_not_meant_is_told_at_once(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = images.save_model(tmp_path / "model"), images.save_data(tmp_path / "data")
    recipe = images.write_recipe(tmp_path / "recipe.yaml", model, data, stage="{stage: probe}")
    assert main(["doctor", *(word.format(recipe=recipe) for word in words)]) == MISUSED
    assert said in capsys.readouterr().err
