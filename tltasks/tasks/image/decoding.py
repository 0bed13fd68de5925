"""Images as people have them, made RGB."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tltasks.errors import DataError, first_line

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Endings of files that are taken for images."""

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
    """Decode as transformers.image_utils.load_image does (5.24), so that training and `pipeline` see the same pixels.

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
    detail = first_line(error)
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

    >>> import torch
    >>> to_png(torch.zeros(3, 4, 4, dtype=torch.uint8))[1:4]
    b'PNG'
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((largest_side, largest_side))
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()
