"""Learning rates read off losses."""

import numpy as np
import pytest

from tltasks.errors import DataError
from tltasks.experiments import lr_finder
from tltasks.training.optimizer import learning_rate_factor


def test_the_rate_rises_a_millionfold() -> None:
    factors = [learning_rate_factor(s, total=7, warmup=0.0, schedule="exponential") for s in range(7)]
    assert factors == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def rates(n: int) -> list[float]:
    return [10 ** (-6 + 6 * i / (n - 1)) for i in range(n)]


FALLING = [2.0] * 51 + [2.0 - 0.03 * i for i in range(34)] + [1.0 * 3**i for i in range(16)]
"""The loss stays, falls from 1e-3 on, and explodes from 0.1 on."""


def test_the_rate_is_within_the_longest_fall() -> None:
    found = lr_finder.read_range(rates(len(FALLING)), FALLING)
    assert 3e-3 < found.suggested < 0.1
    assert len(found.losses) < len(FALLING), "what comes after is left out"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [2.5, 6.0, 0.5])
def test_neither_the_first_steps_nor_noise_move_it(first: float, seed: int) -> None:
    """A loss that is far off on the first batches falls, or rises, fastest there."""
    noise = np.random.default_rng(seed).normal(0, 0.02, len(FALLING))
    losses = np.array([*np.linspace(first, 2.0, 6), *FALLING[6:]]) + noise
    found = lr_finder.read_range(rates(len(losses)), losses.tolist())
    assert 1e-3 < found.suggested < 0.1


def test_the_fall_is_that_of_the_rule() -> None:
    """Of 9 8 7 6 5 the middle, with what is between left out."""
    assert lr_finder._valley(np.array([1.0, 9, 8, 10, 7, 6, 5, 11, 11])) == 4


def test_a_loss_that_never_falls_has_no_rate() -> None:
    with pytest.raises(DataError, match=r"the loss falls at no rate from 4\.1e-06 to"):
        lr_finder.read_range(rates(60), [2.0 + 0.001 * i for i in range(60)])


def test_a_loss_that_diverges_at_once_is_an_error() -> None:
    with pytest.raises(DataError, match=r"ended after 3 steps\. The loss is nan"):
        lr_finder.read_range(rates(3), [2.0, 3.0, 9.0], "The loss is nan")
