"""Micro-batches computed at once: the gradients of one after the other, whichever lane is faster, and exact resumes."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.integration.training.test_base_dtype import LORA, losses, written
from tests.tiny.runs import largest_difference, run_recipe, weights
from tltasks.models.fast_steps import fast_dropout
from tltasks.training import loop, side_by_side
from tltasks.training.side_by_side import Lanes


def gradients(order: tuple[float, ...] | None) -> tuple[float, list[Tensor]]:
    """With a lane held up for so many seconds in each pass, or one after the other."""
    torch.manual_seed(0)
    net, unused = nn.Linear(32, 32), nn.Linear(2, 2)
    rows = torch.randn(5, 64, 32)

    def loss(i: int) -> Tensor:
        time.sleep(order[i] if order else 0)
        with torch.autocast("cpu", torch.bfloat16):
            return functional.dropout(net(rows[i]), 0.5).float().square().mean()

    with fast_dropout():
        lanes = Lanes(nn.ModuleList([net, unused]))
        seeds = list(range(5))
        if order:
            found = float(lanes.backward(loss, seeds))
        else:
            found = sum(float(lanes.backward(lambda _, i=i: loss(i), [seeds[i]])) for i in range(5))
    assert unused.weight.grad is None
    return found, [p.grad for p in net.parameters() if p.grad is not None]


def test_which_lane_is_faster_changes_no_number() -> None:
    alone = gradients(None)
    for order in ((0.05, 0, 0, 0, 0), (0, 0.05, 0, 0.02, 0)):
        found = gradients(order)
        assert found[0] == pytest.approx(alone[0], rel=1e-6)
        assert all(map(torch.equal, found[1], alone[1]))


def test_gradients_that_are_views_of_each_other_are_added_once() -> None:
    token, places = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 3, 4))
    rows = torch.randn(3, 1, 2, 4)

    def loss(i: int) -> Tensor:
        seen = torch.cat([token.expand(1, -1, -1), rows[i]], 1) + places
        return (seen.cumsum(1) * (i + 1)).square().sum()

    Lanes(nn.ParameterList([token, places])).backward(loss, [0, 1, 2])
    found = [token.grad, places.grad]
    expected = torch.autograd.grad(torch.stack([loss(i) for i in range(3)]).sum(), [token, places])
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_what_a_lane_raises_is_raised_when_none_computes_any_more() -> None:
    net = nn.Linear(2, 2)
    ended: list[int] = []

    def loss(i: int) -> Tensor:
        if i == 0:
            raise RuntimeError("not enough memory")
        time.sleep(0.05)
        ended.append(i)
        return net(torch.ones(1, 2)).sum()

    with pytest.raises(RuntimeError, match="not enough memory"):
        Lanes(net).backward(loss, [0, 1, 2, 3])
    counted = len(ended)
    time.sleep(0.1)
    assert len(ended) == counted


@pytest.fixture
def passes(monkeypatch: Any) -> list[int]:
    """Two cores, whatever the machine has; and how many micro-batches were computed in lanes, by step."""
    counted: list[int] = []
    backward = Lanes.backward

    def spied(self: Lanes, loss: Any, seeds: Any) -> Tensor:
        counted.append(len(seeds))
        return backward(self, loss, seeds)

    monkeypatch.setattr(Lanes, "backward", spied)
    monkeypatch.setattr(loop.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(side_by_side, "ARCHITECTURES", {"bert", "t5", "vit", "whisper"})
    return counted


@pytest.mark.parametrize(
    "name", ["t5", "vit", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("bert", "whisper"))]
)
def test_a_run_learns_the_same_and_goes_on_exactly(
    tmp_path: Path, monkeypatch: Any, passes: list[int], name: str
) -> None:
    recipe = written(tmp_path, name, "checkpoint_every: 1", stage=LORA.replace("batch_size: 8", "batch_size: 7"))
    run_recipe(recipe, tmp_path / "beside", "precision=bf16")
    assert passes == [2, 2, 2, 2] if name != "whisper" else min(passes) >= 2

    def fail(info: Any) -> None:
        if info.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "cut", "precision=bf16", on_step=fail)
    run_recipe(recipe, tmp_path / "cut", "precision=bf16", resume=True)
    assert largest_difference(weights(tmp_path / "cut"), weights(tmp_path / "beside")) == 0
    passes.clear()
    monkeypatch.setattr(side_by_side, "ARCHITECTURES", set[str]())
    run_recipe(recipe, tmp_path / "alone", "precision=bf16")
    assert not passes
    if name != "t5":  # which has dropout, and so other masks
        assert losses(tmp_path / "beside") == pytest.approx(losses(tmp_path / "alone"), abs=2e-3)
