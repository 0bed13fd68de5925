"""Arguments of `tltasks predict`, looked at before what reads and writes them is imported."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tltasks.config.names import format_of
from tltasks.data.folders import fault_of
from tltasks.errors import RecipeError, without_secrets
from tltasks.runtime.files import check_place

STDIN = "-"
SUBTITLES = (".srt", ".vtt")
FORMATS = (".jsonl", ".csv", ".parquet", *SUBTITLES)
EACH = "*"
"""In the name of an output of subtitles, for the name of each recording."""


def check_arguments(arguments: Sequence[str], *, fetches: bool) -> None:
    """Raise RecipeError for arguments that name nothing on this machine or, if it `fetches`, the web; all at once."""
    wrong = [f"  {argument}: {reason}" for argument in arguments if (reason := _fault(argument, fetches=fetches))]
    if arguments.count(STDIN) > 1:
        wrong.append(f"  {STDIN}: standard input can be read once")
    if wrong:
        raise RecipeError(without_secrets("\n".join(["predict: these inputs cannot be read.", *wrong])))


def check_single(arguments: Sequence[str], output: Path) -> None:
    """Raise RecipeError unless the arguments name one file alone, which is no table, as an output needs."""
    path = Path(arguments[0]).expanduser()
    if len(arguments) > 1 or not (is_url(arguments[0]) or (path.is_file() and not is_table(path))):
        raise RecipeError(
            f"--output {output}: is of one recording. Name one file, or an output for the name of each: "
            f"'{output.with_name('*').with_suffix(output.suffix)}'."
        )


def _fault(argument: str, *, fetches: bool) -> str | None:
    if argument == STDIN:
        return None
    if is_url(argument):
        return fault_of_url(argument, fetches=fetches)
    path = Path(argument).expanduser()
    if path.exists():
        fault = fault_of(path)
        return f"is {fault}; name files and folders, or `-` for standard input" if fault else None
    if glob.has_magic(argument):
        found = next(glob.iglob(str(path), recursive=True), None)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return None if found else "matches no file"
    return "not found"


def is_table(path: Path) -> bool:
    """True for a file with an input in each row, and for a folder of `save_to_disk`."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    return format_of(path.name) not in (None, "text")


def is_url(name: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def fault_of_url(url: str, *, fetches: bool) -> str | None:
    if not re.match(r"https?://", url, re.IGNORECASE):  # `file://` and `s3://` name what is not the web's
        return "is a URL that is not of the web; download it and name the file"
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0 or "@" in parts.netloc:
            return "is a URL with a login or without a host; download it and name the file"
    except ValueError as error:
        return f"is no URL ({error})"
    return None if fetches else "is a URL, and nothing is fetched from outside without --fetch"


def check_file(path: Path) -> None:
    """Raise RecipeError for an output whose suffix says no format, and for one in a folder that is not there."""
    if path.suffix.lower() not in FORMATS:
        raise RecipeError(f"--output {path}: name a file that ends in {', '.join(FORMATS)}.")
    check_place(path, "--output")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RecipeError(f"--output {path}: {'is a folder' if path.is_dir() else 'its folder is not there'}.")
    if EACH in path.name and path.suffix.lower() not in SUBTITLES:
        raise RecipeError(
            f"--output {path}: `{EACH}` stands for each recording's name, in names of {' or '.join(SUBTITLES)}."
        )
