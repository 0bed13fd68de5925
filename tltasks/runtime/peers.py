"""Files that not all machines of a run see, for those that read them, and word of why a process has ended."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch.distributed import distributed_c10d

AT_ONCE = 2**26
"""Bytes of a file that are sent at a time."""
_WORD = "tltasks/error"


@contextmanager
def readable(state: PartialState, folder: Path, *, without: str = "") -> Iterator[Path]:
    """A folder of process 0 as each process can read it, `without` what is below one name; all processes take part.

    That is the folder itself on a disk that all machines share, and otherwise a copy for as long as the block lasts.
    """
    if state.num_processes == 1:
        yield folder
        return
    own = _listing(folder, without)
    theirs: list[list[tuple[str, int, int]]] = [own]
    broadcast_object_list(theirs)
    sees = own == theirs[0]
    if all(gather_object([sees])):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, size, _ in theirs[0]:
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with (folder / name if sees else target).open("rb" if sees else "wb") as file:
                for start in range(0, max(size, 1), AT_ONCE):
                    part = [file.read(min(AT_ONCE, size - start)) if state.is_main_process else b""]
                    broadcast_object_list(part)
                    if not sees:
                        file.write(part[0])
        yield folder if sees else Path(copy)


def _listing(folder: Path, without: str) -> list[tuple[str, int, int]]:
    """Name, size and time of each whole file: the same where it is the same file."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != without and not any(part.startswith(".") for part in name.parts):
            found.append((name.as_posix(), path.stat().st_size, path.stat().st_mtime_ns))
    return found


def leave_word(text: str) -> None:
    """Leave word of this process's error for those that will miss it, on whatever machine; the first one stays."""
    with suppress(Exception):  # there is an error already, and perhaps nobody to tell
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            said = f"process {torch.distributed.get_rank()} on {socket.gethostname()}: {text}"
            distributed_c10d._get_default_store().compare_set(_WORD, "", said)


def find_word() -> str | None:
    """The word that a process has left; None where it was killed, or its machine lost."""
    with suppress(Exception):  # the store may have gone with it
        store = distributed_c10d._get_default_store()
        if store.check([_WORD]):
            return str(store.get(_WORD).decode())
    return None
