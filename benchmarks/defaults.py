"""The defaults of docs/defaults.md beside two neighbouring values each, on data that the recipes here use.

    python recipes/offline/fetch_efficientnet_lite0.py
    python recipes/offline/fetch_minilm.py
    python recipes/offline/fetch_whisper.py tiny.en
    python recipes/offline/build_package_sections.py
    python benchmarks/defaults.py                            # all; called again, it goes on
    python benchmarks/defaults.py --sets emoji --methods lora --keys learning_rate

Each setting is trained from what a recipe leaves open, with one key changed: the learning rate to a third and to three
times the default, epochs and batch size to half and to double. Differences are of the same test rows and seeds, above
zero where the neighbour is better than the default. Sets are cut, so that a training takes about a minute on two cores.
Results: benchmarks/results/defaults.json, from which `--page` writes the table of docs/defaults.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import tltasks
from tltasks.config.loading import load_recipe
from tltasks.config.stage import usual_epochs
from tltasks.reports.formatting import show_interval
from tltasks.results.comparison import signed

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "defaults.json", ROOT / "docs" / "defaults.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
OFFLINE, WEIGHTS, DATA = ROOT / "recipes" / "offline", ROOT / "weights", ROOT / "data"
SETS: dict[str, dict] = {
    "emoji": {
        "rows": 235,
        "told": "emoji, ten classes, EfficientNet-Lite0 at 96 px",
        "task": "image-classification",
        "model": {"name": str(WEIGHTS / "efficientnet-lite0"), "image_size": 96},
        "data": {
            "name": "parquet",
            "files": {split: str(OFFLINE / "emoji" / f"google-{split}.parquet") for split in ("train", "test")},
        },
    },
    "sections": {
        "rows": 100,
        "told": "sections of Debian packages, twelve classes, MiniLM, 64 tokens",
        "task": "text-classification",
        "model": {"name": str(WEIGHTS / "minilm")},
        "data": {
            "name": "json",
            "files": {split: str(DATA / "package_sections" / f"{split}.jsonl") for split in ("train", "test")},
            "splits": {"train": "train[:100]"},
            "columns": {"text": "text", "label": "section"},
            "max_tokens": 64,
        },
    },
    "prompts": {
        "rows": 65,
        "told": "English voice prompts, Whisper tiny.en",
        "task": "automatic-speech-recognition",
        "model": {"name": str(WEIGHTS / "whisper-tiny.en"), "audio_window": "fit"},
        "data": {
            "name": "csv",
            "files": {split: str(OFFLINE / "voice_prompts" / f"{split}.csv") for split in ("train", "test")},
            "splits": {"train": "train[:65]"},
        },
    },
}
METHODS: dict[str, object] = {"lora": {"lora": {}}, "full": "full"}
NEIGHBOURS = {"learning_rate": (1 / 3, 3.0), "epochs": (0.5, 2.0), "batch_size": (0.5, 2.0)}


def measure(name: str, method: str, keys: list[str], seeds: list[int], folder: Path) -> list[dict]:
    """Each neighbour of the defaults beside them: a row with the score of both, the gain and its interval."""
    kind = SETS[name]
    stage = {
        "stage": "finetune" if kind["task"] == "automatic-speech-recognition" else "transfer",
        "adapt": METHODS[method],
    }
    recipe = {**{key: kind[key] for key in ("task", "model", "data")}, "stages": [stage]}
    chosen = load_recipe({**recipe, "output": str(folder)}).stages[0]
    epochs = usual_epochs(kind["rows"], chosen.batch_size)
    defaults = {"learning_rate": chosen.learning_rate, "epochs": epochs, "batch_size": chosen.batch_size}
    levels: dict[str, dict] = {"default": {}}
    values = {}
    for key in keys:
        for factor, word in zip(NEIGHBOURS[key], ("less", "more"), strict=True):
            value = defaults[key] * factor
            values[f"{key}-{word}"] = value = float(f"{value:.2g}") if key == "learning_rate" else round(value)
            levels[f"{key}-{word}"] = {
                f"stages.0.{key}": value,
                **({"stages.0.epochs": epochs} if key != "epochs" else {}),
            }
    experiment = {
        "recipe": recipe,
        "axes": {"setting": levels},
        "seeds": seeds,
        "contrast": {"axis": "setting", "controls": ["default"]},
        "output": str(folder / f"{name}-{method}"),
    }
    findings = tltasks.compare(experiment).findings
    cells = {cell.levels["setting"]: cell for cell in findings.cells if cell.target == "test"}
    own = cells["default"].score
    return [
        {
            "set": name,
            "task": kind["task"],
            "method": method,
            "train_rows": int(cells["default"].train_examples),
            "test_rows": own.rows,
            "seeds": own.seeds,
            "metric": findings.metric,
            "key": level.partition("-")[0],
            "default": defaults[level.partition("-")[0]],
            "default_score": own.mean,
            "default_ci95": [own.low, own.high],
            "value": value,
            "score": cells[level].score.mean,
            "gain": cells[level].comparisons[0].gain.mean,
            "gain_ci95": [cells[level].comparisons[0].gain.low, cells[level].comparisons[0].gain.high],
        }
        for level, value in values.items()
        if level in cells
    ]


def table(rows: list[dict]) -> str:
    """The measured rows as Markdown: a line for each default with both neighbours."""
    lines = [
        "| data | method | key | default | its score | a neighbour | gain of the neighbour | 95 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = f"{row['default_score']:.3f} ({show_interval(row['default_ci95'])})"
        told = f"{SETS[row['set']]['told']}; {row['train_rows']} rows, tested on {row['test_rows']}"
        lines.append(
            f"| {told} | {row['method']} | `{row['key']}` | {row['default']:g} | {own} "
            f"| {row['value']:g} | {signed(row['gain'])} | {show_interval(row['gain_ci95'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the defaults beside their neighbours.")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--keys", nargs="+", choices=list(NEIGHBOURS), default=list(NEIGHBOURS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "defaults", help="where trials are kept")
    parser.add_argument("--page", action="store_true", help="write the table into docs/defaults.md, measuring nothing")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if not options.page:
        for name in options.sets:
            for method in options.methods:
                found = measure(name, method, options.keys, options.seeds, options.folder)
                anew = {(row["set"], row["method"], row["key"]) for row in found}
                kept = [row for row in known["rows"] if (row["set"], row["method"], row["key"]) not in anew]
                order = list(SETS), list(METHODS), list(NEIGHBOURS)
                known["rows"] = sorted(
                    [*kept, *found],
                    key=lambda row: tuple(
                        of.index(row[key]) for of, key in zip(order, ("set", "method", "key"), strict=True)
                    ),
                )
                known["command"] = "python benchmarks/defaults.py"
                for row in known["rows"]:
                    for key, one in row.items():
                        if isinstance(one, float) and not math.isfinite(one):
                            row[key] = None
                RESULTS.write_text(json.dumps(known, indent=1) + "\n")
                print(table(found), flush=True)
    first, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(first + BEGIN + table(known["rows"]) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
