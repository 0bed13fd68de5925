"""Images as people have them, made RGB; their augmentation and mixing, drawn from (seed, epoch, row) alone.

Nothing here depends on batches, on worker processes, on order or on global random state, which is left as it was.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from tltasks.errors import DataError
from tltasks.stage_keys import ImageAugment, ImageChanges

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Of files that are taken for images."""
_MID_GREY = 128  # about the mean that processors subtract, so that erased and uncovered areas carry no signal

# ----------------------------------------------------------------------------------------- decoding


def decode_image(value: object, *, at_least: int | None = None) -> Image.Image:
    """An upright RGB image from encoded bytes, a path, {"bytes", "path"}, a PIL image or an array [H, W(, 1 | 3 | 4)].

    With `at_least`, a JPEG at least twice as large in both directions is decoded at 1/2, 1/4 or 1/8, still no smaller
    than that: much faster, but no longer the pixels that transformers sees. Raises DataError whose message is the bare
    reason, such as `truncated JPEG`.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, os.PathLike)):
        value = _read(Path(value))
    # PIL warns of large images, odd EXIF and transparent palettes: all are dealt with here, and a filter that turns
    # warnings into errors must not decide which rows are read. Before Python 3.14 the scope is the process: decode in
    # worker processes rather than in threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match value:
            case bytes() | bytearray() | memoryview():
                return _decode_bytes(bytes(value), at_least)
            case Image.Image():
                try:
                    return _upright_rgb(value)
                except Exception as error:
                    raise DataError(_reason(error, value.format or "image")) from error
            case np.ndarray():
                return _from_array(value)
            case None:
                raise DataError("no image (null)")
            case _:
                raise DataError(f"not an image (a {type(value).__name__})")


def _read(path: Path) -> bytes:
    try:
        if path.is_file():  # regular files alone: a data set must not make this read a device or a pipe
            return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {_shortened(str(path))} ({error.strerror})") from error
    raise DataError(f"file not found: {_shortened(str(path))}")


def _decode_bytes(data: bytes, at_least: int | None) -> Image.Image:
    if not data:
        raise DataError("empty file")
    kind = None
    # PIL's readers raise errors of nearly every class on damaged files, so that all are taken for a bad row.
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            if kind == "JPEG" and at_least is not None:
                image.draft(None, (at_least, at_least))
            return _upright_rgb(image)
    except UnidentifiedImageError as error:
        raise DataError(_unidentified(data)) from error
    except Exception as error:
        raise DataError(_reason(error, kind or _announced(data) or "image")) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """What transformers.image_utils.load_image does (5.24), so that training and `pipeline` see the same pixels.

    Transparency is thus dropped, not blended, and the first frame of an animation is taken. The one difference: PIL
    (13.0, Convert.c) clips 16-bit and 32-bit grey to 255, which turns such images white.
    """
    if 0 in image.size:
        raise DataError(f"an image without pixels ({image.width} × {image.height})")
    if image.format == "EPS":  # PIL would start Ghostscript (13.0, EpsImagePlugin.py) on a program out of a data set
        raise DataError("EPS, which is a program and is not run")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = Image.fromarray(_to_8_bit(np.asarray(upright)))
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"not an image (an array {list(array.shape)}; height × width, or that × 1, 3 or 4 channels)")
    if array.dtype.kind not in "buif":
        raise DataError(f"not an image (an array of {array.dtype})")
    pixels = array[:, :, :3] if array.ndim == 3 else array[:, :, None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(_to_8_bit(pixels), (*pixels.shape[:2], 3))))


def _to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values in 0–255 stay, booleans and floats in 0–1 are shares of white, others are stretched from their range.

    >>> _to_8_bit(np.array([1000, 2000, 3000], dtype=np.uint16)).tolist()
    [0, 128, 255]
    >>> _to_8_bit(np.array([0.0, 0.2, 1.0])).tolist()
    [0, 51, 255]
    >>> _to_8_bit(np.array([0, 255])).tolist()
    [0, 255]
    """
    if values.dtype == np.uint8:
        return values
    exact = values.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    exact = np.nan_to_num(exact, nan=low, posinf=high, neginf=low)
    if low >= 0 and high <= 1 and values.dtype.kind in "bf":
        return np.round(exact * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return exact.astype(np.uint8)  # fractions are cut off, as PIL does
    return np.round((exact - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)


def _reason(error: Exception, kind: str) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"too large ({kind} of more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels)"
    detail = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in detail.lower():
        return f"truncated {kind}"
    return f"{kind} that cannot be decoded ({_shortened(detail)})"


def _unidentified(data: bytes) -> str:
    kind = _announced(data)
    if kind is not None and kind not in Image.OPEN:
        return f"{kind}, which Pillow cannot read"
    if kind is not None:
        return f"{kind} that cannot be decoded (damaged or cut off in its header)"
    start = data[:16].decode("utf-8", errors="ignore")
    return f"not an image (starts with {start if start.isprintable() and start else data[:8]!r})"


def _announced(data: bytes) -> str | None:
    """The format that the first bytes announce, after PIL's own signatures."""
    if data[4:8] == b"ftyp":  # AVIF, HEIC, films: the brand says which
        return data[8:12].decode("latin-1").strip().upper()
    start = data[:16].ljust(16, b"\0")  # some signatures are read as numbers
    return next((kind for kind, (_, accepts) in Image.OPEN.items() if accepts and accepts(start)), None)


def _shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def to_png(image: Tensor, *, largest_side: int = 160) -> bytes:
    """PNG of an 8-bit image [3, H, W], shrunk in proportion where a side exceeds `largest_side` pixels.

    >>> to_png(torch.zeros(3, 4, 4, dtype=torch.uint8))[1:4]
    b'PNG'
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((largest_side, largest_side))
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()


# ------------------------------------------------------------------------------------- augmentation


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


def draw_seed(purpose: str, seed: int, epoch: int, row: int) -> int:
    """A seed for one row's draws: the same on every machine, unrelated between neighbours."""
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


# ------------------------------------------------------------------------------------------- mixing


@dataclass(frozen=True)
class Mix:
    """How one row is mixed with another: blended, or with a rectangle of the other pasted."""

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
