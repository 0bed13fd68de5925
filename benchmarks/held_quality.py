"""Scores beside frozen weights of other formats, against the same runs beside fp32 ones.

    python recipes/offline/fetch_t5_titles.py                # and fetch_whisper.py base, fetch_efficientnet_lite0.py
    python recipes/offline/build_package_synopsis.py         # and build_voice_prompts.py es
    python benchmarks/held_quality.py                        # three recipes, three formats, three seeds
    python benchmarks/held_quality.py --only voice_prompts_es --formats bf16

Each recipe is an experiment (`tltasks compare`) along `base_dtype`: same seeds, same rows, every format against fp32.
The recipes are cut, in all formats alike, as `CUT` says, and have no baselines. Printed and written to
benchmarks/results/held_quality.json is the paired difference of scores with its 95 % interval over test rows and seeds,
above zero where a format is better than fp32. An experiment goes on where it was stopped. `--sizes` writes the bytes of
two checkpoints' weights instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import tltasks
from tltasks.experiments.analysis import CellScore
from tltasks.experiments.comparison import ComparisonResult
from tltasks.runs import stage

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "held_quality.json"
CUT: dict[str, list[str]] = {
    "emoji_lora": ["model.image_size=96", "stages.0.epochs=4"],
    "voice_prompts_es": [
        "data.splits={train: 'train[:96]', validation: 'validation[:4]', test: 'test[:64]'}",
        "stages.0.epochs=1",
        "stages.0.batch_size=8",
    ],
    "package_synopsis": [
        "data.splits={train: 'train[:96]', validation: 'validation[:4]', test: 'test[:48]'}",
        "stages.0.batch_size=8",
        "model.generation.num_beams=1",
    ],
}
FORMATS = ["bf16", "int8", "nf4"]


def compared(name: str, formats: list[str], seeds: list[int], output: Path) -> ComparisonResult:
    """The recipe along the formats, fp32 being what the others are compared with."""
    recipe = tltasks.load_recipe(ROOT / "recipes" / "offline" / f"{name}.yaml", overrides=CUT[name])
    axis = {dtype: {"stages.0.base_dtype": dtype} for dtype in ("fp32", *formats)}
    experiment = {
        "recipe": recipe.model_dump(mode="json", exclude_unset=True, by_alias=True),
        "axes": {"base_dtype": axis},
        "seeds": seeds,
        "contrast": {"axis": "base_dtype", "controls": ["fp32"]},
        "output": str(output / name),
    }
    return tltasks.compare(experiment)


@contextmanager
def without_baselines() -> Iterator[None]:
    """Leave out what all trials are alike in, and what an untouched Whisper takes longest for."""
    known = stage.baseline_predictions  # type: ignore[attr-defined]  # patched where it is used
    stage.baseline_predictions = lambda context, prepared: {}  # type: ignore[attr-defined]  # patched where it is used
    try:
        yield
    finally:
        stage.baseline_predictions = known  # type: ignore[attr-defined]  # patched where it is used


def described(cell: CellScore) -> dict[str, object]:
    found: dict[str, object] = {
        "base_dtype": cell.levels["base_dtype"],
        "test": cell.target,
        "score": round(cell.score.mean, 4),
        "by_seed": {str(seed): round(score, 4) for seed, score in cell.by_seed.items()},
        "rows": cell.score.rows,
    }
    for one in cell.comparisons:
        found["difference"] = round(one.gain.mean, 4)
        found["ci95"] = [round(one.gain.low, 4), round(one.gain.high, 4)]
    return found


def sizes() -> dict[str, dict[str, float]]:
    """Megabytes of all weights of a model by the format that it is loaded in to adapt its linear layers."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

    from tltasks.models.held import FORMATS, loading_held

    found: dict[str, dict[str, float]] = {}
    for name, loader in (("t5-titles", AutoModelForSeq2SeqLM), ("whisper-base", AutoModelForSpeechSeq2Seq)):
        for dtype in ("fp32", *FORMATS):
            holding = loading_held(FORMATS[dtype], lambda model: [], exact=False) if dtype in FORMATS else nullcontext()
            with holding:
                model = loader.from_pretrained(ROOT / "weights" / name, dtype=torch.float32)
            held = sum(p.numel() * p.element_size() for p in model.parameters())
            found.setdefault(name, {})[dtype] = round(held / 1e6, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CUT, default=list(CUT))
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "held_quality")
    arguments = parser.parse_args()
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.sizes:
        written["megabytes"] = sizes()
        print(written["megabytes"])
        RESULTS.write_text(json.dumps(written, indent=1) + "\n")
        return 0
    for name in arguments.only:
        with without_baselines():
            result = compared(name, arguments.formats, arguments.seeds, arguments.output)
        cells = [described(cell) for cell in result.findings.cells]
        written[name] = {
            "metric": result.findings.metric,
            "cut": CUT[name],
            "seeds": arguments.seeds,
            "hardware": result.hardware,
            "failed": [failure.message for failure in result.failed],
            "cells": cells,
        }
        for cell in cells:
            print(name, cell, flush=True)
        RESULTS.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
