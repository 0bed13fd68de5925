"""Which parts of an image a classifier's answer goes by: what its probability loses where they are hidden.

Source: Zeiler and Fergus, https://arxiv.org/abs/1311.2901, section 4.2.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tltasks.results.result import Attribution

SQUARES = 4
"""Hidden squares along a side; each is moved by half of its own side, so that all are 49."""
LEAST_LOSS = 0.01
"""Of probability, that is shown at all: less is rounding in 16 bits."""
INK = (190, 20, 20)
SHOWN_SIDE = 160


def attribute_image(probability: Callable[[Tensor], Tensor], pixels: Tensor, *, at_once: int) -> Attribution:
    """Hide squares of an image [1, 3, size, size] in its mean colour, `at_once` of them in a pass."""
    from captum.attr import Occlusion  # seconds to import

    told: list[Tensor] = []

    def recorded(hidden: Tensor) -> Tensor:
        told.append(probability(hidden).float())
        return told[-1]

    image = pixels.float()
    square = max(1, image.shape[-1] // SQUARES)
    losses = Occlusion(recorded).attribute(
        image,
        sliding_window_shapes=(3, square, square),
        strides=(3, max(1, square // 2), max(1, square // 2)),
        baselines=image.mean((2, 3), keepdim=True).expand_as(image),
        perturbations_per_eval=at_once,
    )
    whole, *hidden = torch.cat(told).tolist()
    content = draw(pixels[0].cpu().numpy(), losses[0].mean(0).cpu().numpy())
    if whole - min(hidden) < LEAST_LOSS:
        return Attribution(content, "no square alone matters")
    return Attribution(content, f"{min(hidden):.0%} without the square that matters most")


def draw(pixels: NDArray[np.uint8], losses: NDArray[np.float32]) -> bytes:
    """PNG of an image [3, size, size], in grey, and over it in red what is lost, the largest loss in full."""
    most = max(float(losses.max()), LEAST_LOSS)
    levels = Image.fromarray((np.clip(losses / most, 0, 1) * 255).astype(np.uint8))
    cells = (2 * SQUARES, 2 * SQUARES)  # no finer than the squares are moved
    levels = levels.resize(cells, Image.Resampling.BOX).resize((SHOWN_SIDE,) * 2, Image.Resampling.BICUBIC)
    colours = Image.fromarray(pixels.transpose(1, 2, 0)).resize((SHOWN_SIDE,) * 2)
    grey = np.asarray(colours.convert("L"), np.float32)[..., None] / 2 + 127
    share = np.asarray(levels, np.float32)[..., None] / 255 * 0.7
    target = io.BytesIO()
    Image.fromarray((grey * (1 - share) + np.array(INK) * share).astype(np.uint8)).save(target, "PNG")
    return target.getvalue()
