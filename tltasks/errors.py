"""Everything that tltasks raises on purpose, on one screen.

    TltasksError             shown to the user as one message, never as a traceback
    ├── RecipeError          the recipe, a flag or an override is wrong
    ├── DataError            a data set, column, label, split or example is wrong
    ├── CheckpointError      a checkpoint cannot be loaded, adapted, saved or resumed
    ├── TrainingError        training cannot go on (a loss that is not finite, memory that does not suffice)
    └── HubError             the Hub refused, or could not be reached; nothing local was lost

A message says where, what was found, and what to do.
"""


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


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
