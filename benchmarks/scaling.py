"""Memory and time over the size of the data: 1,000, 10,000 and 100,000 images of 32 px, no two alike.

    python benchmarks/scaling.py

Each size is a process of its own with an empty cache, and goes the way of `tltasks run`: open and encode the data into
the Arrow cache, train a tiny ViT for one epoch (every row is read, augmented and learned from once), predict every row.
Before that, and not counted, another process writes the images to a parquet file.

Memory is the anonymous memory of the process and its children, each shared page counted once (Pss_Anon of
/proc/PID/smaps_rollup, so Linux only), read ten times a second. It is what must fit into memory. The resident set
(own peak plus the largest child's) is given beside it; it also counts pages of memory-mapped Arrow files, which the
system drops when it needs the room, so that it grows with the data up to the memory that is free.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "scaling.json"
PHASES = ("open and encode", "train one epoch", "predict")
CLASSES = 10
SIZE = 32
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of tltasks over the number of rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", type=int, metavar="ROWS", help="only write images and model to --folder")
    parser.add_argument("--measure", action="store_true", help="only run over --folder, and print numbers as JSON")
    parser.add_argument("--folder", type=Path, help="for --write and --measure")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    if options.write is not None:
        save_images(options.folder / "images.parquet", options.write)
        save_model(options.folder / "vit")
    elif options.measure:
        print(json.dumps(run_stage(options.folder)))
    else:
        compare(options)


# ----------------------------------------------------------------------------------- model and images


def save_images(path: Path, n_rows: int) -> None:
    """PNG files of random pixels, written a thousand at a time."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    labels = datasets.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])
    schema = datasets.Features({"image": datasets.Image(), "label": labels}).arrow_schema
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, n_rows, 1000):
            rows = range(start, min(start + 1000, n_rows))
            images = []
            for pixels in rng.integers(0, 256, (len(rows), SIZE, SIZE, 3), dtype=np.uint8):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
                images.append({"bytes": file.getvalue(), "path": None})
            table = pa.table({"image": images, "label": [row % CLASSES for row in rows]}, schema=schema)
            writer.write_table(table)


def save_model(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIZE,
        patch_size=8,
        num_labels=CLASSES,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


# --------------------------------------------------------------------------------------- measurement


class AnonymousMemory:
    """Most anonymous memory of this process and its children since `reset`, in bytes."""

    def __init__(self) -> None:
        self.peak = self.samples = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self.peak = self.samples = 0

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_bytes())
            self.samples += 1
            time.sleep(0.1)


def anonymous_bytes() -> int:
    import psutil

    total = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total


def run_stage(folder: Path) -> dict[str, Any]:
    """One stage of a recipe as `tltasks run` carries it out, up to the predictions."""
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run
    from tltasks.runs import story
    from tltasks.runs.stage import adapt_model, make_job
    from tltasks.training.evaluation import predict_rows
    from tltasks.training.loop import train

    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(
        json.dumps(  # which is YAML, too
            {
                "task": "image-classification",
                "model": {"name": "./vit"},
                "data": {"name": "parquet", "files": "images.parquet", "splits": {"test": "train[:1]"}},
                "stages": [
                    {
                        "stage": "transfer",
                        "epochs": 1,
                        "batch_size": 100,
                        "learning_rate": 1e-3,
                        "augment": {"crop": 0.6, "flip": True},
                    }
                ],
                "output": "unused",
            }
        ),
        encoding="utf-8",
    )
    output = folder / "output"
    output.mkdir()
    plan = plan_run(load_recipe(recipe_file, []), output)
    memory = AnonymousMemory()
    phases: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        memory.reset()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        phases[name] = {"seconds": round(seconds, 2), "peak_anonymous_mib": round(memory.peak / MIB, 1)}

    with phase(PHASES[0]):
        context, (item,) = story.open_stages(plan)
    rows = item.encoded["train"].rows
    with phase(PHASES[1]):
        model, head = adapt_model(item, item.task.build(item.plan.kind))
        job = make_job(context, item, head)
        progress = train(context.accelerator, job, model)
    assert progress.examples == len(rows)
    with phase(PHASES[2]):
        predictions = predict_rows(context.accelerator, item.task, model, rows, workers=0)
    assert len(predictions) == len(rows)
    resident = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "rows": len(rows),
        "seconds": round(sum(found["seconds"] for found in phases.values()), 2),
        "peak_anonymous_mib": max(found["peak_anonymous_mib"] for found in phases.values()),
        "peak_resident_mib": round(resident / 1024, 1),
        "phases": phases,
    }


# ----------------------------------------------------------------------------------------- comparison


def compare(options: argparse.Namespace) -> None:
    """Each size in turn; print and write what it took."""
    from tltasks.runtime import devices

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    found = []
    for n_rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            in_own_process(options, folder, "--write", str(n_rows))
            found.append(json.loads(in_own_process(options, folder, "--measure").splitlines()[-1]))
        print(f"{n_rows} rows: {found[-1]['seconds']} s", file=sys.stderr)
    result = {
        "command": " ".join(["python benchmarks/scaling.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "images": f"{SIZE}-px PNG, random pixels, {CLASSES} classes",
        "sizes": found,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{'rows':>9} {'seconds':>8} {'s per 1k rows':>13} {'peak MiB':>8} {'resident MiB':>12}  s | MiB: "
        f"{', '.join(PHASES)}"
    )
    for size in found:
        each = "  ".join(f"{p['seconds']:.1f} | {p['peak_anonymous_mib']:.0f}" for p in size["phases"].values())
        print(
            f"{size['rows']:9,} {size['seconds']:8.1f} {1000 * size['seconds'] / size['rows']:13.3f} "
            f"{size['peak_anonymous_mib']:8.0f} {size['peak_resident_mib']:12.0f}  {each}"
        )


def in_own_process(options: argparse.Namespace, folder: str, *words: str) -> str:
    """What this file prints for the words, run with its own caches."""
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(Path(folder) / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(options.cores),
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, __file__, *words, "--folder", folder]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{finished.stderr}")
    return finished.stdout


if __name__ == "__main__":
    main()
