"""Build data/emoji_keywords.parquet: Google's drawings of emoji with the keywords that Unicode gives them.

    npm pack emoji-datasource-google@16.0.0 cldr-annotations-full@48.2.0
    mkdir google cldr
    tar xzf emoji-datasource-google-16.0.0.tgz -C google --strip-components=1
    tar xzf cldr-annotations-full-48.2.0.tgz -C cldr --strip-components=1
    python recipes/offline/build_emoji_keywords.py google cldr data

An emoji is taken once, without its skin tones, where Google draws it and CLDR's English annotations have keywords for
it; kept are the keywords of at least 20 emoji, and an emoji that has none of these has an empty list.

Licences of what the packages hold, which go with the file wherever it goes: the drawings are of Noto Emoji by Google
(Apache License 2.0; https://github.com/googlefonts/noto-emoji); the table of emoji is of emoji-data, copyright 2013 Cal
Henderson (MIT; google/LICENSE); the keywords are of CLDR, copyright © 2004-2026 Unicode, Inc. (Unicode License V3;
cldr/LICENSE).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
from build_emoji import flattened

LEAST_EMOJI = 20
"""Emoji that a keyword must have."""
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "keywords": datasets.List(datasets.Value("string")),
        "name": datasets.Value("string"),
        "unified": datasets.Value("string"),
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the emoji with their keywords from two npm packages.")
    parser.add_argument("google", type=Path, metavar="GOOGLE_DIR", help="unpacked emoji-datasource-google")
    parser.add_argument("cldr", type=Path, metavar="CLDR_DIR", help="unpacked cldr-annotations-full")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the parquet file")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    rows = read_rows(options.google, options.cldr)
    path = options.out / "emoji_keywords.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    counts = Counter(keyword for row in rows for keyword in row["keywords"])
    bare = sum(not row["keywords"] for row in rows)
    print(
        f"{path}: {len(rows):,} emoji, {len(counts)} keywords, {counts.total() / len(rows):.2f} each, {bare} with none"
    )


def read_rows(google: Path, cldr: Path) -> list[dict[str, Any]]:
    """The emoji in the order of their code points."""
    table = json.loads((google / "emoji.json").read_text(encoding="utf-8"))
    annotations = json.loads((cldr / "annotations" / "en" / "annotations.json").read_text(encoding="utf-8"))
    known = annotations["annotations"]["annotations"]
    keywords = {}
    for emoji in table:
        text = "".join(chr(int(code, 16)) for code in emoji["unified"].split("-"))
        found = known.get(text) or known.get(text.replace("\ufe0f", ""))
        if emoji["has_img_google"] and found:
            keywords[emoji["unified"]] = found["default"]
    counts = Counter(keyword for own in keywords.values() for keyword in set(own))
    return [
        {
            "image": {"bytes": flattened(google / "img" / "google" / "64" / emoji["image"], "PNG"), "path": None},
            "keywords": sorted({one for one in keywords[emoji["unified"]] if counts[one] >= LEAST_EMOJI}),
            "name": emoji["short_name"],
            "unified": emoji["unified"],
        }
        for emoji in sorted(table, key=lambda emoji: str(emoji["unified"]))
        if emoji["unified"] in keywords
    ]


if __name__ == "__main__":
    main()
