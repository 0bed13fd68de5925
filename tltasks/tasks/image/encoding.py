"""Images as encoded rows: 8-bit pixels, resized once where they are larger than the model's input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tltasks.errors import DataError
from tltasks.tasks.image import decoding
from tltasks.tasks.image.preprocessing import Preprocessing

Columns = dict[str, list[Any]]

FEATURES = {
    "pixels": datasets.Value("binary"),
    "height": datasets.Value("int32"),
    "width": datasets.Value("int32"),
    "fitted": datasets.Value("bool"),
}
"""Columns that `encode_images` gives, besides `error`."""


def encode_images(values: Sequence[Any], preprocessing: Preprocessing, folder: Path | None) -> Columns:
    """Images no larger than the model's input stay as they are; larger ones are resized once, here."""
    encoded: Columns = {key: [] for key in (*FEATURES, "error")}
    area = preprocessing.size**2
    for value in values:
        pixels: NDArray[np.uint8] | None = None
        error, fitted = None, False
        try:
            image = decoding.decode_image(_located(value, folder))
            fitted = image.width * image.height > area
            pixels = preprocessing.fit([image])[0] if fitted else np.asarray(image).transpose(2, 0, 1)
        except DataError as reason:  # told in results that may be published: without this machine's folders
            error = str(reason).replace(f"{folder}/", "")
        row = {
            "pixels": None if pixels is None else pixels.tobytes(),
            "height": None if pixels is None else pixels.shape[1],
            "width": None if pixels is None else pixels.shape[2],
            "fitted": fitted,
            "error": error,
        }
        for key, item in row.items():
            encoded[key].append(item)
    return encoded


def cache_key(preprocessing: Preprocessing, *parts: Any) -> str:
    """Everything besides the images that encoded rows depend on."""
    processor = preprocessing.processor
    return hashlib.sha256(repr((type(processor).__name__, processor.to_dict(), *parts)).encode()).hexdigest()


def read_pixels(columns: Columns, i: int) -> Tensor:
    """Row `i` of a batch of encoded rows, uint8 [3, height, width]."""
    flat = torch.frombuffer(bytearray(columns["pixels"][i]), dtype=torch.uint8)
    return flat.view(3, columns["height"][i], columns["width"][i])


def fit_pixels(pixels: Sequence[Tensor], fitted: Sequence[bool], preprocessing: Preprocessing) -> Tensor:
    """Stack to [images, 3, size, size], resizing those that were kept at their own size."""
    whole = list(pixels)
    loose = [i for i, done in enumerate(fitted) if not done]
    if loose:
        resized = preprocessing.fit([Image.fromarray(pixels[i].permute(1, 2, 0).numpy()) for i in loose])
        for i, image in zip(loose, resized, strict=True):
            whole[i] = torch.from_numpy(image)
    return torch.stack(whole)


def pass_rows(preprocessing: Preprocessing) -> int:
    """Images that keep a CPU busy in one forward pass."""
    return max(1, 16 * 224**2 // preprocessing.size**2)


def _located(value: Any, folder: Path | None) -> Any:
    """Relative paths in a file of rows are relative to that file."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if isinstance(path, str) and folder is not None and not Path(path).is_absolute():
        return str(folder / path)
    return value
