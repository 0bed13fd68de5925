"""Everything that tltasks raises on purpose, on one screen.

    TltasksError             shown to the user as one message, never as a traceback
    ├── RecipeError          the recipe, a flag or an override is wrong
    ├── DataError            a data set, column, label, split or example is wrong
    ├── CheckpointError      a checkpoint cannot be loaded, adapted, saved or resumed
    ├── TrainingError        training cannot go on (a loss that is not finite, memory that does not suffice)
    └── HubError             the Hub refused, or could not be reached; nothing local was lost
    Interrupted              no error: the run was told to stop, and has saved its state

A message says where, what was found, and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class TltasksError(Exception):
    """Base of all expected failures; `str(error)` is the whole message for the user."""


class RecipeError(TltasksError):
    """The recipe, a flag or an override is wrong. Nothing has been loaded or written."""


class DataError(TltasksError):
    """A data set, column, label, split or example is wrong."""


class CheckpointError(TltasksError):
    """A checkpoint cannot be loaded, adapted, saved or resumed."""


class TrainingError(TltasksError):
    """Training cannot go on; the last checkpoint is intact."""


class HubError(TltasksError):
    """The Hub refused or could not be reached; the results folder is intact."""


class Interrupted(Exception):  # noqa: N818 (not an error: the user asked)
    """The run was told to stop and has saved its state."""


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal, turns the order of letters or is half a character; line breaks and tabs are neither."""


def printable(text: str, *, lines: bool = True) -> str:
    """Text for a terminal as it is, but for control characters, which are written out; line breaks too unless `lines`.

    >>> print(printable("a:cat:b\x1b[31m[red].jpg"))
    a:cat:b\\u001b[31m[red].jpg
    """
    shown = _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return shown if lines else shown.replace("\n", "\\n")


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
