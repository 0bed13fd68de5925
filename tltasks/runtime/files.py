"""The results folder: who may write to it, and how files appear in it only when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic_core import to_json

from tltasks.errors import RecipeError


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder while this one writes; a killed run leaves no lock behind."""
    lock = FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(f"output {output}: another run is writing to it.") from error
    except OSError as error:
        raise RecipeError(f"output {output}: cannot be written to ({error.strerror}); name another folder.") from error
    try:
        yield
    finally:
        # While it is held: after that it may be another's. Windows does not remove an open file, and keeps it.
        with suppress(OSError):
            (output / ".lock").unlink()
        lock.release()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place, and that of an earlier one, when the block ends without an error."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in temporary.rglob("*"):
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    _flush(folder.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place, and that of an earlier one, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the folders above it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write plain values and dataclasses; numbers that are not finite become null."""
    write_text(path, to_json(value, indent=1, inf_nan_mode="null").decode() + "\n")


def _flush(path: Path) -> None:
    """Have content on the disk, so that a rename that follows cannot overtake it in a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
