"""Maps of what an answer goes by: they lead where it is known to come from."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tltasks.tasks.image.attribution import INK, LEAST_LOSS, SHOWN_SIDE, attribute_image, draw


def redness(content: bytes) -> np.ndarray:
    shown = np.asarray(Image.open(io.BytesIO(content)), np.float32)
    assert shown.shape == (SHOWN_SIDE, SHOWN_SIDE, 3)
    return (shown[..., 0] - shown[..., 2]) / (INK[0] - INK[2])


def noise(size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 200, (1, 3, size, size), dtype=np.uint8))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 3), (2, 1)])
@pytest.mark.parametrize("size", [64, 90])
def test_an_answer_that_goes_by_one_region_is_red_there_alone(top: int, left: int, size: int) -> None:
    side = size // 4
    here = (..., slice(top * side, (top + 1) * side), slice(left * side, (left + 1) * side))
    pixels = noise(size)
    pixels[here] = 255

    def probability(seen: Tensor) -> Tensor:
        return seen[here].mean((1, 2, 3)) / 255

    found = attribute_image(probability, pixels, at_once=5)
    assert found.content == attribute_image(probability, pixels, at_once=64).content
    red, scale = redness(found.content), SHOWN_SIDE / 4
    inside = red[int(top * scale) : int((top + 1) * scale), int(left * scale) : int((left + 1) * scale)]
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert top <= y / scale <= top + 1
    assert left <= x / scale <= left + 1
    assert inside.mean() > 6 * red.mean()
    left_of_it = float(pixels.float().mean()) / 255
    assert found.text == f"{left_of_it:.0%} without the square that matters most"


def test_an_answer_that_no_square_changes_is_shown_without_red() -> None:
    found = attribute_image(lambda seen: seen.new_full((len(seen),), 0.9), noise(32), at_once=8)
    assert found.text == "no square alone matters"
    assert redness(found.content).max() == 0


def test_what_raises_a_probability_where_it_is_hidden_is_not_red() -> None:
    losses = np.zeros((16, 16), np.float32)
    losses[:8], losses[8:, 8:] = -0.5, 0.5
    red = redness(draw(np.full((3, 16, 16), 255, np.uint8), losses))
    assert red[: SHOWN_SIDE // 4].max() == 0
    assert red[-SHOWN_SIDE // 4 :, -SHOWN_SIDE // 4 :].min() > 0.5
    assert redness(draw(np.full((3, 16, 16), 255, np.uint8), losses * LEAST_LOSS / 5)).max() < 0.15
