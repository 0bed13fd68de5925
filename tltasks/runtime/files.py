"""The results folder: who may write to it, and how files appear in it only when they are whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic_core import to_json

from tltasks.errors import RecipeError

ON_WINDOWS = os.name == "nt"
LONGEST_NAME = 255
"""Bytes of a file's name on the file systems in use."""
READ_WHOLE, BLOCK, BLOCKS, LEAST_BLOCKS = 2**30, 2**16, 2**12, 4
"""Bytes of files together that are read to tell whether they are the same; of more, so many blocks of this size in all,
and at least so many of each file."""


def check_place(path: Path, flag: str = "output") -> None:
    """Raise RecipeError where a file or folder of that name cannot be made; nothing is written."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise RecipeError(f"{flag} {str(path)[:60]}…: a name of more than {LONGEST_NAME} bytes; choose a shorter one.")
    if any(re.fullmatch(r"[A-Za-z][\w+.-]+:", part) for part in path.parts[:-1]):
        raise RecipeError(f"{flag} {path}: is a URL; choose a place on this machine.")
    path = place = path.absolute()
    for place in (path, *path.parents):
        try:
            place.lstat()
            break
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise RecipeError(f"{flag} {str(path)[:60]}…: {error.strerror}; choose another place.") from error
    if place != path and not place.is_dir():
        raise RecipeError(f"{flag} {path}: {place} is a file; choose another place.")
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise RecipeError(f"{flag} {path}: {place} cannot be written to; choose another place.")


def is_occupied(folder: Path) -> bool:
    """True for a folder with something in it besides hidden files, such as those that a killed run leaves."""
    return folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir())


def next_free(folder: Path, *, resume: bool) -> Path:
    """The folder, or with a number behind its name where it is taken; to resume, the last that is."""
    taken, free, n = folder, folder, 1
    while is_occupied(free):
        n += 1
        taken, free = free, folder.with_name(f"{folder.name}-{n}")
    return taken if resume else free


def empty(folder: Path) -> None:
    """Remove what a folder holds, but for hidden files, such as the lock that is held on it."""
    for entry in folder.iterdir():
        if entry.name[0] != ".":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder while this one writes; a killed run leaves no lock behind."""
    check_place(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"output {output}: cannot be written to ({error.strerror}); choose another place.") from error
    release = lock(output / ".lock", f"output {output}: another run is writing to it.")
    try:
        for stale in [path for path in output.rglob(".*.tmp") if not path.is_symlink()]:  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        yield
    finally:
        release()


def lock(path: Path, busy: str) -> Callable[[], None]:
    """Take a lock that is this process's alone, and return how to give it back; RecipeError where another has it."""
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(busy) from error
    except OSError as error:
        raise RecipeError(f"{path.parent}: cannot be written to ({error.strerror}); choose another place.") from error

    def release() -> None:
        # While it is held: after that it may be another's. Windows does not remove an open file, and keeps it.
        with suppress(OSError):
            path.unlink()
        held.release()

    return release


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place, and that of an earlier one, when the block ends without an error."""
    temporary, earlier = beside(folder, ".tmp"), beside(folder, ".old.tmp")
    for stale in (temporary, earlier):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        mode = _usual_mode(temporary / ".mode.tmp")
        (temporary / ".mode.tmp").unlink()
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(path.stat().st_mode | mode)
            flush(path)
        if folder.exists():
            folder.rename(earlier)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place, and that of an earlier one, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, f".{os.getpid()}.tmp")
    try:
        mode = _usual_mode(temporary)
        yield temporary
        temporary.chmod(mode)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with the folders above it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, with the folders above it."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write plain values and dataclasses; numbers that are not finite become null."""
    write_text(path, to_json(value, indent=1, inf_nan_mode="null").decode() + "\n")


def append(path: Path, text: str) -> None:
    """Add to the end of a file all of a text, or nothing of it and raise OSError."""
    with path.open("ab", buffering=0) as file:
        append_to(file.fileno(), text.encode("utf-8"))


def append_to(handle: int, content: bytes) -> None:
    """Write all of it behind what an open file has; where there is no room, nothing of it, and OSError.

    A write may be short without an error, as the last one before a disk is full.
    """
    end, left = os.fstat(handle).st_size, memoryview(content)
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        with suppress(OSError):  # a pipe has no end to go back to
            os.ftruncate(handle, end)
        raise


def beside(path: Path, suffix: str) -> Path:
    """A hidden name for what belongs to a file while it is written, which is no longer than names may be."""
    name = f".{path.name}{suffix}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{suffix}"
    return path.with_name(name)


def content_of(files: Iterable[str | Path]) -> str:
    """Digest of files that copies of them have, too, by their names, sizes and bytes; of what is no file its name.

    Of very many bytes blocks are read that lie evenly over each file, its ends among them: a change between them that
    leaves the size is not seen.
    """
    digest, places = hashlib.sha256(), [Path(file) for file in files]
    sizes = [place.stat().st_size if place.is_file() else None for place in places]
    total = sum(size or 0 for size in sizes)
    most = total if total <= READ_WHOLE else max(LEAST_BLOCKS, BLOCKS // len(places)) * BLOCK
    for place, size in zip(places, sizes, strict=True):
        digest.update(f"{place if size is None else place.name} {size}\0".encode())
        if size is None:
            continue
        with place.open("rb") as file:
            if size <= most:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for i in range(blocks := most // BLOCK):
                file.seek((size - BLOCK) * i // (blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _usual_mode(path: Path) -> int:
    """Make an empty file: its mode is what the umask says, which safetensors (0.8) does not ask."""
    path.touch()
    return path.stat().st_mode & 0o7777


def flush(path: Path) -> None:
    """Have content on the disk, so that a rename that follows cannot overtake it in a power cut.

    Windows opens no folder, and flushes a file only where it may be written to.
    """
    if ON_WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
