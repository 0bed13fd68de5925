"""Flipped labels among the first of an experiment's suspected labels.

    python recipes/offline/fetch_efficientnet_lite0.py
    python recipes/offline/fetch_minilm.py
    python recipes/offline/build_package_sections.py
    python benchmarks/label_noise.py                     # emoji and descriptions of packages, five draws of flips each

A tenth of the labels is changed to another class at random: of 470 drawings of emoji in ten classes (235 emoji of two
vendors), and of 1,200 descriptions of Debian packages in twelve sections. Linear probes answer for each row in five
folds, both drawings of an emoji in the same one, and rank the rows (`suspected_labels.csv`): on EfficientNet-Lite0's
features of pictures of three sizes, and on MiniLM's. Counted are the flipped ones in the first 15 % of the list. Some
rows of the sections are as doubtful as the flipped ones: a package fits more than one. Results:
benchmarks/results/label_noise.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

import tltasks

ROOT = Path(__file__).resolve().parents[1]
EMOJI = ROOT / "recipes" / "offline" / "emoji"
FLIPPED, LOOKED_AT = 0.1, 0.15
SETS = {
    "emoji": {
        "files": [str(EMOJI / f"{vendor}-train.parquet") for vendor in ("google", "twitter")],
        "task": "image-classification",
        "model": {"name": str(ROOT / "weights" / "efficientnet-lite0"), "image_size": 192},
        "data": {"name": "parquet"},
        "group": "name",
        "axes": {"size": {str(size): {"model.image_size": size} for size in (160, 224, 288)}},
    },
    "sections": {
        "files": [str(ROOT / "data" / "package_sections" / "train.jsonl")],
        "split": "train[:1200]",
        "task": "text-classification",
        "model": {"name": str(ROOT / "weights" / "minilm")},
        "data": {"name": "json", "columns": {"text": "text", "label": "section"}, "max_tokens": 64},
        "group": "source",
    },
}


def share_found(kind: dict, seed: int, folder: Path) -> dict[str, float]:
    """The share of flipped labels in the first 15 %, and the accuracy of the probes by the labels as they are given."""
    rng = np.random.default_rng(seed)
    rows = datasets.load_dataset(kind["data"]["name"], data_files=kind["files"], split=kind.get("split", "train"))
    column = kind["data"].get("columns", {"label": "label"})["label"]
    names = getattr(rows.features[column], "names", None)
    labels = [label if names is None else names[label] for label in rows[column]]
    classes = sorted(set(labels))
    flipped = rng.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    wrong = {f"row {i}": str(rng.choice([c for c in classes if c != labels[i]])) for i in flipped}
    table = folder / "flipped.csv"
    table.write_text("path,label\n" + "".join(f"{row},{label}\n" for row, label in wrong.items()))
    given = rows.to_parquet(folder / "rows.parquet") and str(folder / "rows.parquet")
    data = {
        **kind["data"],
        "name": "parquet",
        "files": {"train": given},
        "splits": {"test": {"share": 0.2, "group": kind["group"]}},
        "relabel": str(table),
    }
    recipe = {"task": kind["task"], "model": kind["model"], "data": data, "stages": [{"stage": "probe"}]}
    output = folder / "experiment"
    axes = {"axes": kind["axes"]} if "axes" in kind else {}
    result = tltasks.compare({"recipe": recipe, "folds": 5, "output": str(output), **axes})
    listed = pd.read_csv(output / "suspected_labels.csv")
    first = set(listed["path"][: round(LOOKED_AT * len(listed))])
    right = listed.set_index("path")["suggested"]
    corrected = np.mean([right[row] == labels[int(row.removeprefix("row "))] for row in wrong])
    return {
        "found": len(first & wrong.keys()) / len(wrong),
        "suggested_is_the_true_one": float(corrected),
        "accuracy": float(np.mean([cell.score.mean for cell in result.findings.cells])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=SETS, nargs="+", default=list(SETS))
    arguments = parser.parse_args()
    path = ROOT / "benchmarks" / "results" / "label_noise.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.only:
        found = {}
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found[str(seed)] = share_found(SETS[name], seed, Path(folder))
            print(name, seed, {key: round(value, 3) for key, value in found[str(seed)].items()}, flush=True)
        mean = {key: round(float(np.mean([one[key] for one in found.values()])), 4) for key in found["0"]}
        print(name, "mean", mean)
        results[name] = {"mean": mean, "by_seed": found}
    path.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
