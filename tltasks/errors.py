"""Everything that tltasks raises on purpose, on one screen.

    TltasksError             shown to the user as one message, never as a traceback
    ├── RecipeError          the recipe, a flag or an override is wrong
    ├── DataError            a data set, column, label, split or example is wrong
    ├── CheckpointError      a checkpoint cannot be loaded, adapted, saved or resumed
    ├── TrainingError        training cannot go on (a loss that is not finite, memory that does not suffice)
    ├── HubError             the Hub refused, or could not be reached; nothing local was lost
    └── StorageError         another process found no space left; what was written before is whole
    Interrupted              no error: the run was told to stop, and has saved its state

A message says where, what was found, and what to do.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_IN_WORDS = (
    *("No space left on device", "Disk quota exceeded", "database or disk is full"),
    "No usable temporary directory",  # since none of them has room for a test
    *(f"os error {number}" for number in sorted(_FULL)),  # Rust's way to tell
)
_OF_PEERS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited"),
    *("failed to recv", "Connection was likely closed"),  # of the store where processes meet
)
_OF_SILENT_PEERS = ("Timed out waiting", "Application timeout caused pair closure")
"""Of gloo, after half an hour."""


class TltasksError(Exception):
    """Base of all expected failures; `str(error)` is the whole message for the user."""


class RecipeError(TltasksError):
    """The recipe, a flag or an override is wrong. Nothing has been loaded or written."""


class DataError(TltasksError):
    """A data set, column, label, split or example is wrong."""


class CheckpointError(TltasksError):
    """A checkpoint cannot be loaded, adapted, saved or resumed."""


class TrainingError(TltasksError):
    """Training cannot go on; the last checkpoint, where there is one, is intact."""


class HubError(TltasksError):
    """The Hub refused or could not be reached; the results folder is intact."""


class StorageError(TltasksError):
    """Another process found no space left on the disk; what was written before is whole."""


class Interrupted(Exception):  # noqa: N818 (not an error: the user asked)
    """The run was told to stop and has saved its state."""


_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What steers a terminal, turns the order of letters or is no character; line breaks and tabs are neither."""


_SECRET = re.compile(
    r"""((?<=\w\w):/{1,2})(?:[^/?#\s":@\[]+:(?!\d+[/?#])[^\s"]{1,200}|[^/?#\s"]+)@"""
    r"""|([?&#;](?:[\w.-]*(?:token|secret|passw(?:or)?d|signature|credentials?|(?:api|access)_?key)"""
    r"""|(?:[\w.-]*[_.-])?(?:key|pwd|pass|sig|sas|jwt|auth|authorization))=)[^&#;\s"']+"""
    r"""|(?<![A-Za-z0-9_])(?:(?:hf|gh[oprsu]|api_org)_[A-Za-z0-9]{16,}|github_pat_\w{16,}|(?:glpat|xox[abprs])-[\w-]{16,}"""
    r"""|sk-(?:\w+-)?[A-Za-z0-9]{20,})""",
    re.IGNORECASE,
)
"""Logins within URLs, also with /?#@ in a password or one slash that a Path has taken, and tokens."""


def has_secret(text: str) -> bool:
    return _SECRET.search(text) is not None


def without_secrets(text: str) -> str:
    """
    >>> without_secrets("https://ada:secret@example.org/data.csv?token=secret&part=1")
    'https://…@example.org/data.csv?token=…&part=1'
    """
    return _SECRET.sub(lambda found: f"{found[1]}…@" if found[1] else f"{found[2] or ''}…", text)


def escaped(text: str) -> str:
    """Text with its control characters written out, as JSON writes them."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def printable(text: str, *, lines: bool = True) -> str:
    """Text for a terminal as it is, but for secrets, and for control characters, which are written out; line breaks
    too unless `lines`.

    >>> print(printable("a:cat:b\x1b[31m[red].jpg"))
    a:cat:b\\u001b[31m[red].jpg
    """
    shown = escaped(without_secrets(text))
    return shown if lines else shown.replace("\n", "\\n")


def is_of_peers(error: BaseException) -> bool:
    """Recognise, by words alone, an exchange that broke since another process of the run has ended, or is silent.

    >>> is_of_peers(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4520"))
    True
    """
    return any(words in str(error) for words in _OF_PEERS) or is_of_silent_peers(error)


def is_of_silent_peers(error: BaseException) -> bool:
    """Recognise an exchange in which another process did not answer: its machine or the network may be gone.

    >>> is_of_silent_peers(RuntimeError("Timed out waiting 1800000ms for recv operation to complete"))
    True
    """
    return any(words in str(error) for words in _OF_SILENT_PEERS)


def is_full_disk(error: BaseException | None) -> bool:
    """Recognise an error that says, itself or by what led to it, that a disk, quota or file has no more room.

    Libraries that are not written in Python tell it in words alone.

    >>> is_full_disk(OSError(errno.ENOSPC, "…")), is_full_disk(RuntimeError("I/O error (os error 28)"))
    (True, True)
    >>> is_full_disk(ValueError("no spaces"))
    False
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_IN_WORDS):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one was most likely meant for."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to end a message with, or nothing.

    >>> did_you_mean("epoch", ["epochs", "steps"])
    '; did you mean `epochs`?'
    """
    close = closest(word, known)
    return f"; did you mean `{close}`?" if close else ""


def siblings(path: Path) -> list[str]:
    """Names of what lies in the folder that something is missing from."""
    try:
        return sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def nearby(path: Path) -> str:
    """Words on a file or folder that is not there: a suggestion, and what its folder holds."""
    while not path.parent.is_dir():
        path = path.parent
    names = siblings(path)
    shown = ", ".join(names[:8]) + (f", … ({len(names):,} in all)" if len(names) > 8 else "")
    folder = "This folder" if path.parent == Path() else f"The folder {path.parent.name or path.parent}"
    return f"{did_you_mean(path.name, names) or '.'} {folder} holds {shown or 'nothing'}"
