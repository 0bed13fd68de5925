"""Augmentation and mixing of images, drawn from (seed, epoch, row) alone.

Nothing here depends on batches, on worker processes, on order or on global random state, which is left as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from tltasks.config.tasks.image import ImageAugment, ImageChanges
from tltasks.data.seeding import draw_seed

_MID_GREY = 128  # about the mean that processors subtract, so that erased and uncovered areas carry no signal


class ImageAugmentation:
    """Random crop, flip, RandAugment and erasing, in this order, as a recipe's keys say."""

    def __init__(self, keys: ImageChanges) -> None:
        self._steps: list[Callable[[Tensor], Tensor]] = []
        if keys.crop is not None:
            share = keys.crop
            self._steps.append(lambda image: random_crop(share, *image.shape[-2:])(image))
        if keys.flip:
            self._steps.append(v2.RandomHorizontalFlip())
        if keys.randaugment is not None:
            ops, magnitude = keys.randaugment.ops, keys.randaugment.magnitude
            bilinear = v2.InterpolationMode.BILINEAR
            self._steps.append(v2.RandAugment(ops, magnitude, interpolation=bilinear, fill=_MID_GREY))
        if keys.erase:
            self._steps.append(v2.RandomErasing(keys.erase, value=_MID_GREY))

    def __call__(self, image: Tensor, *, seed: int, epoch: int, row: int) -> Tensor:
        """An 8-bit image [3, H, W] changed, at the same size; the very same tensor when there is nothing to do."""
        return apply_steps(self._steps, image, number=draw_seed("augment", seed, epoch, row)) if self._steps else image


def apply_steps(steps: Sequence[Callable[[Tensor], Tensor]], image: Tensor, *, number: int) -> Tensor:
    """An image changed by torchvision's transforms, with what they draw from the seed `number`."""
    # torchvision 0.29 draws from torch's global CPU generator alone (transforms/v2/_geometry.py, _augment.py,
    # _auto_augment.py, _color.py, _misc.py). Its state is swapped directly: torch.manual_seed would reseed accelerators
    # as well, and torch.random.fork_rng takes longer than the augmentation of a small image.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(number)
    try:
        for step in steps:
            image = step(image)
    finally:
        generator.set_state(state)
    return image


@functools.lru_cache(maxsize=256)
def random_crop(share: float, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Aspect ratios are relative to the image's own.

    With absolute ones RandomResizedCrop falls back to a central crop of a long image, below the share asked for
    (torchvision 0.29, transforms/v2/_geometry.py); for a square image both are the same.
    """
    own = width / height
    crop: Callable[[Tensor], Tensor] = v2.RandomResizedCrop(
        (height, width), scale=(share, 1.0), ratio=(3 / 4 * own, 4 / 3 * own), antialias=True
    )
    return crop


# ------------------------------------------------------------------------------------------- mixing


@dataclass(frozen=True)
class Mix:
    """A mixture of one row with another: blended, or with a rectangle of the other pasted."""

    partner: int
    weight: float
    """Share of the own image, 0–1."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the pasted rectangle as shares of width and height; None for a blend."""


def draw_mix(keys: ImageAugment, *, rows: int, seed: int, epoch: int, row: int) -> Mix | None:
    """Partner and share of one row, or None when neither mixup nor cutmix is set; with both, one of them is drawn.

    The partner is any of `rows` rows, the row itself included, so that no result depends on how a batch is split; each
    row lends to others as much as it receives, in expectation.
    Source: mixup, Zhang et al., https://arxiv.org/abs/1710.09412 (weight from Beta(α, α), mean 1/2);
    cutmix, Yun et al., https://arxiv.org/abs/1905.04899 (centre anywhere and the box clipped, as in the authors' code,
    which leaves the own image more than half: 0.68 in the mean for α = 1).

    >>> draw_mix(ImageAugment(), rows=9, seed=0, epoch=0, row=5) is None
    True
    >>> mix = draw_mix(ImageAugment(mixup=1.0), rows=9, seed=0, epoch=0, row=5)
    >>> mix.partner, round(mix.weight, 3)
    (0, 0.899)
    """
    if not keys.mixup and not keys.cutmix:
        return None
    rng = np.random.default_rng(draw_seed("mix", seed, epoch, row))
    partner, coin = int(rng.integers(rows)), rng.random()
    if not keys.cutmix or (keys.mixup and coin < 0.5):
        return Mix(partner, float(rng.beta(keys.mixup, keys.mixup)))
    half_side = np.sqrt(1 - rng.beta(keys.cutmix, keys.cutmix)) / 2
    x, y = rng.random(2)
    left, top, right, bottom = np.clip([x - half_side, y - half_side, x + half_side, y + half_side], 0, 1).tolist()
    return Mix(partner, 1 - (right - left) * (bottom - top), (left, top, right, bottom))


def apply_mix(image: Tensor, partner_image: Tensor, mix: Mix) -> tuple[Tensor, float]:
    """The mixed 8-bit image [3, H, W] and the share of the own image: for cutmix that of its remaining pixels.

    A partner of another size is resized to the image's.

    >>> black, white = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((3, 4, 4), 255, dtype=torch.uint8)
    >>> mixed, share = apply_mix(black, white, Mix(0, 0.4, (0.0, 0.0, 0.7, 0.9)))
    >>> mixed[0].tolist(), share
    ([[255, 255, 255, 0], [255, 255, 255, 0], [255, 255, 255, 0], [255, 255, 255, 0]], 0.25)
    """
    height, width = image.shape[-2:]
    if partner_image.shape != image.shape:
        partner_image = v2.functional.resize(partner_image, [height, width], antialias=True)
    if mix.box is None:
        blend = torch.lerp(partner_image.float(), image.float(), mix.weight)
        return blend.round_().to(torch.uint8), mix.weight
    left, right = (round(mix.box[i] * width) for i in (0, 2))
    top, bottom = (round(mix.box[i] * height) for i in (1, 3))
    mixed = image.clone()
    mixed[:, top:bottom, left:right] = partner_image[:, top:bottom, left:right]
    return mixed, 1 - (right - left) * (bottom - top) / (height * width)
