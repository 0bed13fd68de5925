"""Tables of made-up rows on disk, and their splits."""

from pathlib import Path
from typing import Any

import datasets

from tltasks.config.data import Splits
from tltasks.config.tasks.image import ImageColumns, ImageData
from tltasks.data.loading import load_splits
from tltasks.data.splits import Split

COLUMNS = ImageColumns(image="picture", label="kind")


def save(folder: Path, kinds: list[str], name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"picture": [f"{name}-{i}" for i in range(len(kinds))], "kind": kinds, "other": list(range(len(kinds)))}
    datasets.Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")


def data(folder: Path, **keys: Any) -> ImageData:
    files = {name: str(folder / f"{name}.parquet") for name in ("train", "test")}
    splits = Splits(**keys.pop("splits", {}))
    return ImageData(**{"name": "parquet", "files": files, "columns": COLUMNS, "splits": splits, **keys})


def load(folder: Path, *, seed: int = 0, label: str | None = "label", **keys: Any) -> dict[str, Split]:
    return load_splits(data(folder, **keys), seed=seed, label=label)


def pictures(split: Split) -> list[str]:
    return list(split.rows["image"])
