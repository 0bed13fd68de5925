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

from tltasks.data import folders
from tltasks.errors import DataError, first_line

SUFFIXES = folders.SUFFIXES["image"]
"""Endings of files that are taken for images."""
ODDITY = "oddity"
"""Key of a decoded image's `info` with what is worth knowing of it, or None."""
TRANSPARENT = "transparent"
_BITS, _PHOTOMETRIC = 258, 262
"""Tags of TIFF."""

# ----------------------------------------------------------------------------------------- decoding


def decode_image(value: object) -> Image.Image:
    """An upright RGB image from encoded bytes, a path, {"bytes", "path"}, a PIL image or an array [H, W(, 1 | 3 | 4)].

    Raises DataError whose message is the bare reason, such as `truncated JPEG`.
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
                return _decode_bytes(bytes(value))
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


def _decode_bytes(data: bytes) -> Image.Image:
    if not data:
        raise DataError("empty file")
    kind = None
    # PIL's readers raise errors of nearly every class on damaged files, so that all are taken for a bad row.
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            return _upright_rgb(image)
    except UnidentifiedImageError as error:
        raise DataError(_unidentified(data)) from error
    except Exception as error:
        raise DataError(_reason(error, kind or _announced(data) or "image")) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Decode as transformers.image_utils.load_image does (5.24), but for what that would lose.

    The first frame of an animation is taken, and colour profiles are left alone. Transparency is blended with white,
    where transformers shows the colours that it hides; and PIL (13.0, Convert.c) clips 16-bit and 32-bit grey to 255,
    which turns such images white.
    """
    if 0 in image.size:
        raise DataError(f"an image without pixels ({image.width} × {image.height})")
    if image.format == "EPS":  # PIL would start Ghostscript (13.0, EpsImagePlugin.py) on a program out of a data set
        raise DataError("EPS, which is a program and is not run")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        return _from_grey(upright, image)
    return _on_white(upright)


def _from_grey(upright: Image.Image, image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as `image`, the file, has it; `upright` is the same turned."""
    values, tags = np.asarray(upright), getattr(image, "tag_v2", {})
    white = (
        65535 if (image.format, image.mode) == ("PPM", "I") else None
    )  # which PIL scales to 16 bits (12.3, PpmImagePlugin.py)
    if tags.get(_BITS) == (12,):  # PIL leaves 12 bits in the lower part of 16 (12.3, TiffImagePlugin.py)
        white = 4095
    levels, oddity = _to_8_bit(values, white)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which PIL heeds in 8 bits alone
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if isinstance(hidden := upright.info.get("transparency"), int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))))
    return _on_white(grey, oddity)


def _on_white(image: Image.Image, oddity: str | None = None) -> Image.Image:
    """The image as RGB, blended with white where it is transparent."""
    if image.has_transparency_data:
        whole = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        if np.asarray(whole.getchannel("A")).min() < 255:
            image, oddity = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole), oddity or TRANSPARENT
    made = image if image.mode == "RGB" else image.convert("RGB")
    made.info[ODDITY] = oddity
    return made


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"not an image (an array {list(array.shape)}; height × width, or that × 1, 3 or 4 channels)")
    if array.dtype.kind not in "buif":
        raise DataError(f"not an image (an array of {array.dtype})")
    levels, oddity = _to_8_bit(array[:, :, 0] if array.shape[2:] == (1,) else array)
    return _on_white(Image.fromarray(np.ascontiguousarray(levels)), oddity)


def _to_8_bit(values: NDArray[Any], white: int | None = None) -> tuple[NDArray[np.uint8], str | None]:
    """Values as shares of white, by their type and never by the range of the one image.

    Unsigned 16 bits go to 65,535, so that 257 is one level. Wider integers and floats do not tell: white is the least
    of 1 (floats), 255 and 65,535 (integers) that holds them all, which is returned, so that images by different ones
    can be found. Raises DataError for values outside, and for floats a little above 1, as resizing leaves them.

    >>> _to_8_bit(np.array([0, 257, 65535], dtype=np.uint16))
    (array([  0,   1, 255], dtype=uint8), None)
    >>> _to_8_bit(np.array([0.0, 0.2, 1.0]))
    (array([  0,  51, 255], dtype=uint8), 'floats of which 1 is white')
    >>> _to_8_bit(np.array([0, 255]))
    (array([  0, 255], dtype=uint8), 'integers of which 255 is white')
    """
    if values.dtype == np.uint8:
        return values, None
    low, high = float(values.min()), float(values.max())  # of which one is NaN where any value is
    kind, small, large = ("floats", 1, 255) if values.dtype.kind == "f" else ("integers", 255, 65535)
    known = white or {"bool": 1, "uint16": 65535}.get(values.dtype.name)
    white = known or (small if high <= small else large)
    if not 0 <= low <= high <= white or (kind == "floats" and small < high <= 2):
        raise DataError(
            f"{kind} from {low:,.9g} to {high:,.9g}, which do not tell what is black and white; store 8 or 16 bits"
        )
    oddity = None if known or not high else f"{kind} of which {white:,} is white"
    if white == 255:
        return values.astype(np.uint8), oddity  # fractions are cut off, as PIL does
    return np.round(values.astype(np.float64) * (255 / white)).astype(np.uint8), oddity


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


def _shortened(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


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
