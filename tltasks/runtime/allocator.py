"""The C library's allocator, where it is glibc's."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def trim() -> None:
    """Have it give back to the system what has been freed."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


def share_freed_memory() -> None:
    """Have threads that begin from now on use what others have given back; glibc keeps that of each apart."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
