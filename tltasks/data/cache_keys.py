"""Keys of cached rows and features: the files as they are now, this package and the libraries it encodes with."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import datasets
import pyarrow.compute as pc

from tltasks.data.splits import Split, located

LIBRARIES = (
    "datasets", "numpy", "pillow", "pyarrow", "scipy", "sentencepiece", "soundfile", "soxr", "timm", "tokenizers",
    "torch", "torchvision", "transformers",
)  # fmt: skip
"""Distributions that read, decode, resize and tokenize."""
PATHS_AT_ONCE = 10_000
_TICK_NS = 50_000_000
_COARSE_TICK_NS = 3_000_000_000


@cache
def code_version() -> str:
    """Digest of this package's modules, the versions of `LIBRARIES` and what else of the interpreter encoding shows."""
    digest = hashlib.sha256(
        f"{sys.version_info} {platform.machine()} {sys.byteorder} {unicodedata.unidata_version}".encode()
    )
    package = Path(__file__).parents[1]
    for module in sorted(package.rglob("*.py")):
        digest.update(f"{module.relative_to(package)}\0".encode() + module.read_bytes())
    for name in LIBRARIES:
        try:
            digest.update(f"{name} {version(name)}\0".encode())
        except PackageNotFoundError:
            digest.update(f"{name} -\0".encode())
    return digest.hexdigest()


def decoder_settings() -> tuple[object, ...]:
    """Settings of decoding that are a program's own to change, where a library that decodes has been imported."""
    files, images = sys.modules.get("PIL.ImageFile"), sys.modules.get("PIL.Image")
    return getattr(files, "LOAD_TRUNCATED_IMAGES", None), getattr(images, "MAX_IMAGE_PIXELS", None)


def file_states(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Digest that changes when one of the files does: size, times to the nanosecond, inode.

    A file that was changed within the resolution of its file system's clock could be changed again unseen: a fine clock
    is waited for, and where it is coarse the content counts, too.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_file_state(path))
    return digest.hexdigest()


def _file_state(path: str | os.PathLike[str]) -> bytes:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes longer than the call
        changed = max(found.st_mtime_ns, found.st_ctime_ns)
        age = time.time_ns() - changed
        if 0 <= age < _TICK_NS:
            time.sleep((_TICK_NS - age) / 1e9)
            found = os.stat(path)  # noqa: PTH116
        state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}\0".encode()
        is_coarse = changed % 1_000_000 == 0 and age < _COARSE_TICK_NS
        if (is_coarse or age < 0) and Path(path).is_file():
            with Path(path).open("rb") as file:
                state += hashlib.file_digest(file, "sha256").digest()
        return state
    except (OSError, ValueError):  # a path may hold a NUL
        return b"absent\0"


def rows_key(split: Split, media: str | None) -> str:
    """Digest of a split's rows, the files that hold them, and those that its column `media` names."""
    rows = split.rows
    digest = hashlib.sha256(f"{rows._fingerprint} {rows.features!r}".encode())
    digest.update(file_states(file["filename"] for file in rows.cache_files).encode())
    if media is not None and media in rows.column_names:
        digest.update(file_states(media_paths(split, media)).encode())
    return digest.hexdigest()


def media_paths(split: Split, media: str) -> Iterable[str]:
    """Paths of a column of files; their bytes, where rows hold them, are not read."""
    rows, column = split.rows.select_columns([media]), media
    if isinstance(rows.features[media], (datasets.Image, datasets.Audio)):
        rows, column = rows.flatten().select_columns([f"{media}.path"]), f"{media}.path"
    if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
        return
    for batch in rows.with_format("arrow").iter(PATHS_AT_ONCE):
        for path in pc.drop_null(batch.column(column)).to_pylist():
            yield str(located(path, split.folder))
