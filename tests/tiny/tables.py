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


METRIC = """import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        features = {features}
        if not isinstance(features, list):
            features = datasets.Features(features)
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, more=None, **columns):
        return eval({found!r}, dict(columns, more=more))
"""


def save_metric(folder: Path, features: str, found: str) -> Path:
    """A metric of the evaluate library: `found` is an expression of its columns and of its option `more`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{folder.name}.py").write_text(METRIC.format(features=features, found=found))
    return folder
