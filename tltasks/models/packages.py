"""Packages that opening a checkpoint asks for, by what fails when it is tried."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from transformers.utils.import_utils import BACKENDS_MAPPING

from tltasks.errors import CheckpointError, first_line

_DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "levenshtein": "python-Levenshtein",
    "sklearn": "scikit-learn",
    "speech": "torchaudio",
    "vision": "pillow",
}
"""Packages that are imported under another name than they are installed by."""
_ADVISED = re.compile(r"pip\s+install\s+(?:-{1,2}[\w-]+\s+)*((?:[\w.\-\[\]]+[ ,]*)+)")


def cannot_open(part: str, display_name: str, error: BaseException, hint: str) -> CheckpointError:
    """The error for a part of a checkpoint: the package to install where one is missing, and a hint where none is."""
    if missing := missing_packages(error):
        return CheckpointError(
            f"model {display_name}: its {part} needs what is not installed here: `pip install {' '.join(missing)}`."
        )
    reason = first_line(error)
    if (
        "instantiate the backend tokenizer" in reason
    ):  # of files that are not there, and of packages that would not help
        reason = "none of its files is a vocabulary"
    if "Should have a `" in reason:  # and lists a hundred kinds of models
        reason = "none of its files describes one"
    return CheckpointError(f"model {display_name}: has no {part} that can be loaded ({reason}). {hint}")


def missing_packages(error: BaseException | None) -> list[str]:
    """Packages to install for an error of opening, or one that led to it, to go away; none for other errors.

    >>> missing_packages(ModuleNotFoundError("No module named 'x1.y'", name="x1.y")), missing_packages(ValueError("x"))
    (['x1'], [])
    """
    while error is not None:
        if found := list(dict.fromkeys(_named_by(error))):
            pieces = [name for name in ("sentencepiece", "protobuf") if not BACKENDS_MAPPING[name][0]()]
            # tiktoken is what transformers tries once it could not read a vocabulary of SentencePiece's, for which it
            # needs both of these (5.24, tokenization_utils_tokenizers.py, convert_to_native_format)
            return pieces if found == ["tiktoken"] and pieces else found
        error = error.__cause__ or error.__context__
    return []


def _named_by(error: BaseException) -> Iterator[str]:
    told = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        name = error.name.partition(".")[0]
        if importlib.util.find_spec(name) is None:  # rather than a module that its package has no longer
            yield _DISTRIBUTIONS.get(name, name)
        return
    if not isinstance(error, ImportError):
        return
    named = False
    for name, (is_there, message) in BACKENDS_MAPPING.items():
        if not is_there() and message.partition("{0}")[2].strip() in told:
            named = True
            yield _DISTRIBUTIONS.get(name, name)
    if not named and error.__context__ is None and (advised := _ADVISED.search(told)):
        yield from re.split(r"[ ,]+", advised[1].strip(" ,"))
