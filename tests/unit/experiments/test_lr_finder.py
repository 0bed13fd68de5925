"""Learning rates read off losses."""

import pytest

from tltasks.errors import DataError
from tltasks.experiments import lr_finder
from tltasks.training.optimizer import learning_rate_factor


def test_the_rate_rises_a_millionfold() -> None:
    factors = [learning_rate_factor(s, total=7, warmup=0.0, schedule="exponential") for s in range(7)]
    assert factors == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def rates(n: int) -> list[float]:
    return [10 ** (-6 + 6 * i / (n - 1)) for i in range(n)]


def test_the_steepest_fall_is_found() -> None:
    """The loss stays, falls from 1e-3 on, and explodes from 0.1 on."""
    losses = [2.0] * 51 + [2.0 - 0.03 * i for i in range(34)] + [1.0 * 3**i for i in range(16)]
    found = lr_finder.read_range(rates(len(losses)), losses)
    assert 1e-3 < found.steepest < 0.1
    assert found.largest == pytest.approx(found.rates[found.losses.index(min(found.losses))] / 10)
    assert len(found.losses) < len(losses), "what comes after is left out"


def test_a_loss_that_diverges_at_once_is_an_error() -> None:
    with pytest.raises(DataError, match=r"ended after 3 steps\. The loss is nan"):
        lr_finder.read_range(rates(3), [2.0, 3.0, 9.0], "The loss is nan")
