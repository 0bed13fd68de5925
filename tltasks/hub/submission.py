"""Files that go to the Hub with a recipe to be carried out there: its local ones, and tltasks as it is installed here.

No registry has tltasks, so a job installs the wheel that is made here, which also has what is not committed.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tltasks import __version__
from tltasks.config.loading import recipe_text
from tltasks.config.names import format_of
from tltasks.config.recipe import RunPlan, with_paths
from tltasks.data.folders import SUFFIXES, walk
from tltasks.data.tables import UNREADABLE, read_rows
from tltasks.errors import DataError
from tltasks.hub.upload_plan import UploadPlan, with_manifest

MOST_FILES = 10_000
"""Files that the Hub allows in a folder (https://huggingface.co/docs/hub/storage-limits)."""
WHEEL = f"tltasks-{__version__}-py3-none-any.whl"
_ADVICE = (
    "The same command goes on with what is there. Of a data set that is not of tltasks, rename the recipe instead."
)
CARD = """---
viewer: false
---

# A recipe and its data

Made by `tltasks submit` for a job, and private. What a job of it has learnt is elsewhere: see its log.
"""


def plan_submission(run: RunPlan, results: str) -> UploadPlan:
    """Plan the data set with a recipe that publishes to `results`, its local files and folders, and tltasks.

    Hidden files stay here. Raises DataError for what cannot be read, or would not be found by the job.
    """
    columns = {
        column
        for stage in run.stages
        for key, column in getattr(stage.data, "columns").model_dump().items()  # noqa: B009 (a key of every task's Data)
        if key in SUFFIXES and isinstance(column, str)
    }
    places: dict[Path, str] = {}
    files: dict[str, Path | bytes] = {}

    def move(path: str) -> str:
        root, rest = _split_pattern(path)
        place = places.setdefault(root, f"files/{len(places)}")
        for found in _files_of(Path(path), columns):
            if not found.is_relative_to(root):
                raise DataError(f"{path}: names {found}, which is not below its folder; a job would not find it.")
            files[f"{place}/{found.relative_to(root).as_posix()}"] = found
        return f"./{place}/{rest.as_posix()}"

    recipe = with_paths(run.recipe, move)
    if len(files) > MOST_FILES:
        raise DataError(
            f"{len(files):,} files are more than a job can fetch one by one ({MOST_FILES:,}). Make a data set of them "
            "(tltasks push-data FOLDER --repo USER/NAME), or a table in parquet, and name that in the recipe."
        )
    recipe = recipe.model_copy(update={"hub": recipe.hub.model_copy(update={"repo": results})})
    files |= {"recipe.yaml": recipe_text(recipe).encode(), WHEEL: build_wheel(), "README.md": CARD.encode()}
    return UploadPlan(with_manifest(files), "dataset", _ADVICE)


def digest_of(run: RunPlan, upload: UploadPlan) -> str:
    """Digest of a recipe and of what the files that it names here hold: with others it is another run."""
    local = sorted((file.path, file.sha256) for file in upload.files if file.path.startswith("files/"))
    return hashlib.sha256(repr((run.sha256, local)).encode()).hexdigest()


def _split_pattern(path: str) -> tuple[Path, Path]:
    """The folder that a file, folder or pattern is in, and its way from there."""
    parts = Path(path).parts
    magic = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    n = magic[0] if magic and not os.path.exists(path) else len(parts) - 1  # noqa: PTH110 (no pattern is too long for it)
    return Path(*parts[:n]), Path(*parts[n:])


def _files_of(path: Path, columns: set[str]) -> Iterator[Path]:
    """Files of a folder or pattern, or the file itself, and those that tables among them name in `columns`."""
    if path.is_dir():
        names = list(walk(path))
        faults = [f"{name} ({fault})" for name, fault in names if fault not in (None, "hidden")]
        if faults:
            raise DataError(f"{path}: {len(faults)} files cannot be read: {', '.join(faults[:5])}.")
        found = [path / name for name, fault in names if fault is None]
    else:
        found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    for file in found:
        if not file.is_dir():
            yield file
            yield from _named_by(file, columns)


def _named_by(table: Path, columns: set[str]) -> Iterator[Path]:
    """Images or recordings that a table names by their paths; none where it has no such column, or is no table."""
    if not columns or format_of(table.name) in (None, "text"):
        return
    try:
        if format_of(table.name) == "parquet":  # which mostly holds the media themselves
            types = pq.read_schema(table)
            columns = {name for name in columns & set(types.names) if pa.types.is_string(types.field(name).type)}
        for _, row in read_rows(table, sorted(columns), any_of=True):
            for value in [] if isinstance(row, DataError) else row.values():
                place = Path(os.path.normpath(table.parent / str(value)))
                if isinstance(value, str) and "://" not in value and place.is_file():
                    yield place
    except UNREADABLE:
        return


def build_wheel() -> bytes:
    """tltasks as it is installed here, or lies in its checkout, without its recipes, as a wheel.

    The same files give the same bytes.

    Format: https://packaging.python.org/specifications/binary-distribution-format.
    """
    package, info = Path(__file__).resolve().parents[1], f"tltasks-{__version__}.dist-info"
    cards = package.parent / "hub_cards"  # in a checkout; else the package holds them
    content = {
        f"tltasks/{path.relative_to(root).as_posix()}": path.read_bytes()
        for root, folder in ((package, package), (cards.parent, cards))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"__pycache__", "recipes"} & {*path.relative_to(root).parts}
    }
    about = re.sub(r"(?m)^Version: .*$", f"Version: {__version__}", distribution("tltasks").read_text("METADATA") or "")
    content |= {
        f"{info}/METADATA": about.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tltasks\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\ntltasks = tltasks.cli:main\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in content.items()}
    lines = [f"{name},sha256={digest.decode().rstrip('=')},{len(content[name])}\n" for name, digest in digests.items()]
    content[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # of 1980, whenever it is made
    return target.getvalue()
