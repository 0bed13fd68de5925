"""Tiny stand-ins for the models and data sets that the shipped recipes name, under their real ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np

from tests.hub_server import HubServer
from tests.tiny.images import COLOURS, picture, png, save_model

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _model(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        save_model(folder, name)

    return save


def _cifar(folder: Path, label: str, names: list[str], rows: dict[str, int]) -> None:
    """Parquet files as the Hub has them; a class is told by its colour and brightness."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), label: datasets.ClassLabel(names=names)})
    colours = list(COLOURS)
    for split, count in rows.items():
        labels = [i % len(names) for i in range(count)]
        images = [{"bytes": png(picture(colours[i % 3], rng)), "path": None} for i in labels]
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"img": images, label: labels}, features=features).to_parquet(path)


MODELS: dict[str, Callable[[Path], None]] = {
    "google/vit-base-patch16-224-in21k": _model("vit"),
    "timm/vgg16.tv_in1k": _model("vgg16"),
}
DATA: dict[str, Callable[[Path], None]] = {
    "uoft-cs/cifar10": lambda folder: _cifar(folder, "label", CIFAR10, {"train": 240, "test": 40}),
    "uoft-cs/cifar100": lambda folder: _cifar(
        folder, "fine_label", [f"class {i}" for i in range(100)], {"train": 2400, "test": 200}
    ),
}


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(server: HubServer, folder: Path) -> None:
    """Put every model and data set on the server."""
    for kind, table in (("model", MODELS), ("dataset", DATA)):
        for repo, make in table.items():
            place = folder / kind / repo
            place.mkdir(parents=True, exist_ok=True)
            make(place)
            server.add_repo(repo, _files(place), type=kind)
