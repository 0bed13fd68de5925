"""Start of a process that loads large libraries and models."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Put the garbage collector off while modules and weights are loaded, and have it pass over them for good.

    None of them is garbage, yet it would look through half a million objects again and again, and once more at the end
    of the process: a third of the time of a short command. For commands alone, as it concerns the whole process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
