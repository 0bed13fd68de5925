"""Names of models and data, told apart: a folder, a file, or a repository of the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from tltasks.errors import CheckpointError, RecipeError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
TABLE_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
"""Formats of tables by the suffix of a file."""
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed files."""


def format_of(name: str) -> str | None:
    """The format of a table by its name, compressed or not.

    >>> format_of("a.csv.gz"), format_of("a.jsonl"), format_of("a.png"), format_of("a.parquet.gz")
    ('csv', 'json', None, None)
    """
    path = PurePosixPath(name.lower())
    packed = path.suffix in PACKED
    found = TABLE_FORMATS.get(PurePosixPath(path.stem).suffix if packed else path.suffix)
    return None if packed and found == "parquet" else found


def is_local_name(name: str) -> bool:
    r"""True for what cannot be a Hub id, whether it is there or not.

    >>> is_local_name(r"C:\photos"), is_local_name(r"my photos\train"), is_local_name("user/photos")
    (True, True, False)
    """
    on_windows = "\\" in name or re.match(r"[A-Za-z]:", name) is not None
    is_path = on_windows or name.startswith((".", "/", "~")) or name.count("/") > 1
    return is_path or format_of(name) is not None


def is_folder(name: str) -> bool:
    """Tell a folder with a model from a Hub id. Raises RecipeError for what is neither.

    >>> is_folder("."), is_folder("google/vit")
    (True, False)
    """
    place = Path(os.path.expanduser(name))  # noqa: PTH111 - a user who does not exist is no error
    if place.is_dir():
        return True
    if place.exists() or not HUB_ID.fullmatch(name):
        raise RecipeError(
            f"model {name}: {'is a file' if place.exists() else 'not found'}; name a run's results folder, a "
            "folder with a model, or a Hub id such as user/name."
        )
    return False


def folder_of_weights(name: str) -> Path | None:
    """The folder with the weights that a folder's name stands for, in a results folder its `model`; None for a Hub id.

    Raises CheckpointError for a folder without any.
    """
    if not is_folder(name):
        return None
    place = Path(name).expanduser()
    folder = place
    if (place / "recipe.yaml").is_file() and not holds_model(place):
        folder = place / "model"
        if not (place / "result.json").is_file() or not folder.is_dir():
            raise CheckpointError(
                f"model {name}: its run has not finished, so there is no model yet. Go on with it: "
                f"tltasks run {place / 'recipe.yaml'} --output {place} --resume"
            )
    check_holds_model(folder, name)
    return folder


def check_holds_model(folder: Path, name: str) -> None:
    """Raise CheckpointError for the folder of `name` if it has neither weights nor an adapter."""
    if not holds_model(folder):
        raise CheckpointError(f"model {name}: holds no model (neither config.json nor adapter_config.json).")


def holds_model(folder: Path) -> bool:
    """True for a folder with weights, or with an adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
