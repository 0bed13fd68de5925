"""Rebuild the parquet files of `emoji/` from the two packages that the pictures come from.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    mkdir google twitter
    tar xzf emoji-datasource-google-16.0.0.tgz -C google --strip-components=1
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C twitter --strip-components=1
    python recipes/offline/build_emoji.py google twitter recipes/offline/emoji

The same packages give the same files, byte for byte, under the library versions that emoji/README.md names; other
versions of Pillow or pyarrow compress differently, but hold the same rows and pixels.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from sklearn.model_selection import train_test_split

CLASSES = (
    "animal-mammal",
    "animal-bird",
    "food-fruit",
    "food-prepared",
    "transport-ground",
    "clothing",
    "face-smiling",
    "place-building",
    "sport",
    "sky & weather",
)
GROUPS = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Travel & Places",
)
"""All groups of Unicode but flags and symbols, which are of few shapes and told apart without training."""
SETS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    # labels, and where a set is tested: it is trained on the first
    "": ("subcategory", CLASSES, {"google": ("train", "test"), "twitter": ("train", "test")}),
    "groups-": ("category", GROUPS, {"google": ("train", "test"), "twitter": ("test",)}),
}
DRAWN_BY = ("apple", "facebook", "google", "twitter")
"""Vendors that the packages' table covers: an emoji is taken when all four draw it."""
SPLIT_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the emoji data from its npm packages.")
    parser.add_argument("google", type=Path, metavar="GOOGLE_DIR", help="unpacked emoji-datasource-google")
    parser.add_argument("twitter", type=Path, metavar="TWITTER_DIR", help="unpacked emoji-datasource-twitter")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the parquet files")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    options.out.mkdir(parents=True, exist_ok=True)
    for prefix, (label, names, vendors) in SETS.items():
        for vendor, splits in vendors.items():
            package: Path = getattr(options, vendor)
            found = split_emoji(read_emoji(package, label, names), label)
            for split in splits:
                path = options.out / f"{prefix}{vendor}-{split}.parquet"
                write_parquet(path, found[split], label, names, pictures=package / "img" / vendor / "64")
                print(f"{path}: {len(found[split])} rows, {path.stat().st_size:,} bytes")


def read_emoji(package: Path, label: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The emoji of these classes, in the order of their code points."""
    table = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    taken = [
        emoji for emoji in table if emoji[label] in names and all(emoji[f"has_img_{vendor}"] for vendor in DRAWN_BY)
    ]
    return sorted(taken, key=lambda emoji: str(emoji["unified"]))


def split_emoji(emoji: list[dict[str, Any]], label: str) -> dict[str, list[dict[str, Any]]]:
    """A third of the emoji for testing, the same for every vendor, in proportion to the classes."""
    train, test = train_test_split(
        range(len(emoji)),
        test_size=len(emoji) // 3,
        random_state=SPLIT_SEED,
        stratify=[entry[label] for entry in emoji],
    )
    return {"train": [emoji[i] for i in sorted(train)], "test": [emoji[i] for i in sorted(test)]}


def write_parquet(
    path: Path, emoji: list[dict[str, Any]], label: str, names: tuple[str, ...], *, pictures: Path
) -> None:
    """A table of pictures, as PNG where they are few, and else as lossless WebP, which takes a third less."""
    form = "PNG" if len(names) == len(CLASSES) else "WEBP"
    rows = {
        "image": [{"bytes": flattened(pictures / entry["image"], form), "path": None} for entry in emoji],
        "label": [names.index(entry[label]) for entry in emoji],
        "name": [entry["short_name"] for entry in emoji],
        "unified": [entry["unified"] for entry in emoji],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(names)),
            "name": datasets.Value("string"),
            "unified": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def flattened(path: Path, form: str) -> bytes:
    """The picture on white: dropping its transparency would bring out whatever colour lies under it."""
    with Image.open(path) as picture:
        drawn = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    target = io.BytesIO()
    flat.save(target, form, **({"optimize": True} if form == "PNG" else {"lossless": True, "exact": True}))
    return target.getvalue()


if __name__ == "__main__":
    main()
