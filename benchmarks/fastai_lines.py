"""fastai's three lines on the emoji, with the weights, rows and size of docs/defaults.md: what do they reach?

    python -m venv /elsewhere/fastai && /elsewhere/fastai/bin/pip install fastai==2.8.12 timm datasets torch torchvision
    /elsewhere/fastai/bin/python benchmarks/fastai_lines.py --epochs 5 20 --seeds 0 1 2

`ImageDataLoaders.from_folder`, `vision_learner` and `fine_tune`, as its front page has them, in batches of 32, with
nothing and with `aug_transforms`, at its own learning rate; 15 % of the rows are its validation set. The
checkpoint is the one of recipes/offline/fetch_efficientnet_lite0.py. Accuracy on the 117 test pictures is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import timm
from PIL import Image
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
WEIGHTS = REPOSITORY / "weights" / "efficientnet-lite0" / "model.safetensors"
EMOJI = REPOSITORY / "recipes" / "offline" / "emoji"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    use_our_weights()
    vision: Any = importlib.import_module("fastai.vision.all")
    with tempfile.TemporaryDirectory() as scratch:
        train, test = (write_pictures(split, Path(scratch) / split) for split in ("train", "test"))
        for epochs in options.epochs:
            for augments in (False, True):
                found = [accuracy(vision, train, test, options.size, epochs, augments, seed) for seed in options.seeds]
                print(json.dumps({"epochs": epochs, "aug_transforms": augments, "accuracy": found}), flush=True)


def use_our_weights() -> None:
    """Give timm's EfficientNet-Lite0 the weights that the package brings, in place of a download."""
    make, weights = timm.create_model, {k.removeprefix("timm_model."): v for k, v in load_file(WEIGHTS).items()}

    def create(name: str, pretrained: bool = False, **keys: Any) -> Any:
        model = make(name, pretrained=False, **keys)
        if pretrained:
            lost = model.load_state_dict(weights, strict=False).missing_keys
            assert not lost, lost
        return model

    timm.create_model = create


def write_pictures(split: str, folder: Path) -> Path:
    """Google's drawings as files in a folder for each class, on white."""
    rows = datasets.load_dataset("parquet", data_files=str(EMOJI / f"google-{split}.parquet"), split="train")
    names = rows.features["label"].names
    for i, row in enumerate(rows):
        picture = row["image"].convert("RGBA")
        place = folder / names[row["label"]] / f"{i:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB").save(place)
    return folder


def accuracy(vision: Any, train: Path, test: Path, size: int, epochs: int, augments: bool, seed: int) -> float:
    """On the test pictures, after fastai's lines."""
    vision.set_seed(seed, reproducible=True)
    keys = {"batch_tfms": vision.aug_transforms()} if augments else {}
    rows = vision.ImageDataLoaders.from_folder(
        train, valid_pct=0.15, seed=seed, item_tfms=vision.Resize(size), bs=32, num_workers=0, **keys
    )
    learner = vision.vision_learner(rows, "efficientnet_lite0", metrics=vision.accuracy)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        files = vision.get_image_files(test)
        told = learner.get_preds(dl=rows.test_dl(files))[0].argmax(1)
    return float(sum(rows.vocab[i] == file.parent.name for i, file in zip(told, files, strict=True)) / len(files))


if __name__ == "__main__":
    main()
