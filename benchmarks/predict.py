"""Predictions for photos: `tltasks predict` beside transformers' `pipeline` at its best batch size, on the CPU.

    python benchmarks/predict.py

Both name the classes of the same JPEG files of 256-320 px with the same ViT-S/16 at 224 px (22 M parameters, random,
from one folder), on the same cores and in the same number format, bf16 where the processor computes in it. Reading,
decoding and resizing are within the time; loading the model is not, and neither is the first pass.

- `tltasks`: what `tltasks predict MODEL FOLDER` does with each file, until its answer would be written.
- `pipeline`: `pipeline("image-classification")` over the files. Before the rounds it tries every batch size, with
  no loader worker and with one, and for bf16 both weights in bf16 (`dtype`) and autocast; the fastest is taken.

The arms take turns, so that a drift of the machine meets both alike; ratios are of neighbours in one round. The answers
are compared in fp32 on both sides and in the format of the rounds: classes that agree, and the largest difference of a
probability.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "predict.json"
sys.path[:0] = [str(REPOSITORY)]

Answers = list[dict[str, float]]
"""Probability by class, of each photo."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of tltasks predict and of transformers' pipeline.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each arm runs")
    parser.add_argument("--images", type=int, default=192, help="photos of a round")
    parser.add_argument("--tried", type=int, default=64, help="photos for each setting of the pipeline that is tried")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.cores)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    with tempfile.TemporaryDirectory() as temporary:
        compare(options, Path(temporary))


def compare(options: argparse.Namespace, folder: Path) -> None:
    import torch

    from benchmarks.images import CLASSES, save_model, save_photos
    from tltasks.runtime import devices
    from tltasks.runtime.precision import choose_precision

    save_photos(folder / "photos.parquet", options.images)
    save_model(folder / "vit")
    files = save_files(folder)
    precision = choose_precision("auto", torch.device("cpu"))
    torch.set_num_threads(options.cores)

    ours = tltasks_arm(folder / "vit", precision, CLASSES)
    theirs, setting, tried = best_pipeline(options, folder / "vit", files, precision, CLASSES)
    rounds: list[dict[str, float]] = []
    for i in range(options.rounds):
        rounds.append({"tltasks": speed(ours, files), "pipeline": speed(theirs, files)})
        print(f"round {i + 1}: " + ", ".join(f"{k} {v:.1f}" for k, v in rounds[-1].items()), file=sys.stderr)
    few = files[: options.tried]
    answers = {precision: agreement(list(ours(few)), list(theirs(few)))}
    plain = tltasks_arm(folder / "vit", "fp32", CLASSES), pipeline_arm(folder / "vit", "fp32", CLASSES, batch_size=8)
    answers["fp32"] = agreement(*(list(arm(few)) for arm in plain))
    ratios = [arms["tltasks"] / arms["pipeline"] for arms in rounds]
    result = {
        "command": " ".join(["python benchmarks/predict.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "model": "ViT-S/16, 224 px, random weights",
        "precision": precision,
        "images": options.images,
        "images_per_second": {arm: summary([r[arm] for r in rounds]) for arm in ("tltasks", "pipeline")},
        "ratio_tltasks_to_pipeline": summary(ratios),
        "pipeline": setting,
        "tried": tried,
        "answers": answers,
        "rounds": rounds,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for arm, found in result["images_per_second"].items():
        print(f"{arm:9} {found['median']:7.2f} images/s ({precision})")
    print(f"the pipeline's best: {setting}")
    print(
        "tltasks is so many times as fast (min, median, max): "
        + "  ".join(f"{v:.2f}" for v in summary(ratios).values())
    )
    print(f"answers: {result['answers']}")


def save_files(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    files = []
    for i, row in enumerate(pq.read_table(folder / "photos.parquet").to_pylist()):
        path = folder / "photos" / f"{i:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(row["image"]["bytes"])
        files.append(str(path))
    return files


# ------------------------------------------------------------------------------------------------ arms

Arm = Callable[[list[str]], Iterator[dict[str, float]]]


def tltasks_arm(model: Path, precision: str, classes: int) -> Arm:
    """What `tltasks predict` does between opening the model and writing outputs."""
    import torch

    from tltasks.hub.saved_model import load_saved_model
    from tltasks.inference.predictor import Predictor

    predictor = Predictor.load(load_saved_model(str(model)), torch.device("cpu"), precision=precision)

    def run(files: list[str]) -> Iterator[dict[str, float]]:
        for output in predictor(iter(files), top_k=classes):
            yield {entry["label"]: entry["probability"] for entry in output["top"]}

    return run


def pipeline_arm(
    model: Path, precision: str, classes: int, *, batch_size: int, workers: int = 0, autocast: bool = False
) -> Arm:
    import torch
    from transformers import pipeline

    low = precision == "bf16"
    dtype = torch.bfloat16 if low and not autocast else torch.float32
    classify = pipeline("image-classification", model=str(model), dtype=dtype, device="cpu")

    def run(files: list[str]) -> Iterator[dict[str, float]]:
        context: Any = torch.autocast("cpu", torch.bfloat16) if low and autocast else nullcontext()
        with context:
            for found in classify(files, batch_size=batch_size, num_workers=workers, top_k=classes):
                yield {entry["label"]: entry["score"] for entry in found}

    return run


def best_pipeline(
    options: argparse.Namespace, model: Path, files: list[str], precision: str, classes: int
) -> tuple[Arm, dict[str, Any], list[dict[str, Any]]]:
    """The fastest setting of the pipeline, and all that were tried."""
    few = files[: options.tried]
    tried = []
    for autocast in (False, True) if precision == "bf16" else (False,):
        for batch_size in options.batch_sizes:
            setting: dict[str, Any] = {"batch_size": batch_size, "workers": 0, "autocast": autocast}
            tried.append(
                {**setting, "images_per_second": speed(pipeline_arm(model, precision, classes, **setting), few)}
            )
    best = max(tried, key=lambda it: it["images_per_second"])
    setting = {key: best[key] for key in ("batch_size", "workers", "autocast")}
    with_worker = {**setting, "workers": 1}
    arm = pipeline_arm(model, precision, classes, **with_worker)
    tried.append({**with_worker, "images_per_second": speed(arm, few)})
    if tried[-1]["images_per_second"] <= best["images_per_second"]:
        arm = pipeline_arm(model, precision, classes, **setting)
        return arm, setting, tried
    return arm, with_worker, tried


# --------------------------------------------------------------------------------------------- numbers


def speed(arm: Arm, files: list[str]) -> float:
    """Images a second, over the whole list, after one pass that does not count."""
    list(arm(files[:8]))
    started = time.perf_counter()
    count = sum(1 for _ in arm(files))
    assert count == len(files)
    return count / (time.perf_counter() - started)


def agreement(ours: Answers, theirs: Answers) -> dict[str, float]:
    same = [max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in zip(ours, theirs, strict=True)]
    differences = [abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True) for name in a]
    return {"images": len(same), "same_class": float(np.mean(same)), "largest_difference": float(max(differences))}


def summary(values: list[float]) -> dict[str, float]:
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
