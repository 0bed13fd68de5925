"""Training throughput on photos: the loop of tltasks beside transformers' Trainer, on the CPU.

    python benchmarks/images.py

All arms train every weight of the same ViT-S/16 (22 M parameters, random, from one folder) on the same JPEG photos of
256-320 px at 224 px, with the same batch size and number of steps, AdamW, gradient clipping at 1 and cross-entropy, on
the same cores. Nothing is evaluated or saved within the time that counts.

- `tltasks`: a recipe with `crop: 0.08` and `flip: true`, all else by default. So `precision: auto`, which is bf16
  where the processor computes in it; the result says which. Photos are decoded and resized to 224 px once, before
  training; each step then crops, resizes and flips 8-bit pixels. That preparation is not in images/s; it has a line
  of its own.
- `trainer`: as in transformers' examples/pytorch/image-classification/run_image_classification.py. `set_transform` with
  torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize on the decoded photo, a collate function
  that stacks, no loader workers, and default TrainingArguments, which means fp32.
- `trainer-bf16`: the same with `bf16=True`.

Two differences are of the tools, not of the set-up: the example crops the whole photo and tltasks the 224-px one; the
schedules of the learning rate differ (linear, and cosine with warm-up), which costs nothing.

Each arm is a process of its own, and the arms take turns, so that a drift of the machine meets all alike. images/s is
that of the median step, from the end of one to the end of the next, reading included: what other users of a shared
machine do to a few steps does not count. Ratios are of neighbours in one round.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "images.json"
ARMS = ("tltasks", "trainer", "trainer-bf16")
CLASSES = 10
SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description="Training throughput of tltasks and of transformers' Trainer.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm runs")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps that count")
    parser.add_argument("--warmup", type=int, default=4, help="first steps, which do not count")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step (8 is Trainer's default)")
    parser.add_argument("--batches", type=int, default=40, help="size of the data set in batches")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--arm", choices=ARMS, help="run this arm alone and print its numbers as JSON")
    parser.add_argument("--folder", type=Path, help="where model and data are, or are made; unset: a temporary one")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "photos.parquet").is_file():
            save_photos(folder / "photos.parquet", options.batches * options.batch_size)
            save_model(folder / "vit")
        if options.arm is None:
            compare(options, folder)
        elif options.arm == "tltasks":
            print(json.dumps(train_with_tltasks(options, folder)))
        else:
            print(json.dumps(train_with_trainer(options, folder, bf16=options.arm == "trainer-bf16")))


# ----------------------------------------------------------------------------------- model and photos


def save_photos(path: Path, n_images: int) -> None:
    """JPEG files of 256-320 px with the detail of photos: noise whose strength falls with its frequency."""
    import datasets
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for i in range(n_images):
        width, height = (int(side) for side in rng.integers(256, 321, 2))
        photo = np.full((height, width, 3), 128.0)
        for cells in (4, 16, 64, 256):
            noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            photo += (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) - 128.0) * 1.5 / cells**0.5
        file = io.BytesIO()
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["label"].append(i % CLASSES)
    labels = datasets.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def save_model(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=SIZE, num_labels=CLASSES
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


# ----------------------------------------------------------------------------------------------- arms


def train_with_tltasks(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One stage of a recipe as `tltasks run` carries it out, without evaluation."""
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run
    from tltasks.runs import story
    from tltasks.runs.stage import adapt_model, make_job
    from tltasks.runtime.precision import choose_attention
    from tltasks.training.loop import train

    stage = {
        "stage": "transfer",
        "steps": options.warmup + options.steps,
        "batch_size": options.batch_size,
        "learning_rate": 5e-5,
        "augment": {"crop": 0.08, "flip": True},
        "checkpoint_every": 10**6,  # else at the end of each epoch
    }
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(
        json.dumps(  # which is YAML, too
            {
                "task": "image-classification",
                "model": {"name": "./vit"},
                "data": {"name": "parquet", "files": "photos.parquet", "splits": {"test": "train[:1]"}},
                "stages": [stage],
                "output": "unused",
            }
        )
    )
    recipe = load_recipe(recipe_file, [])
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        context, (item,) = story.open_stages(plan_run(recipe, Path(output)))
        preparation = time.perf_counter() - started
        device, precision = context.accelerator.device, context.precision
        built = item.task.build(item.plan.kind)
        choose_attention(built.model, tokens=item.task.sequence_length, device=device, precision=precision)
        adapted, head = adapt_model(item, built)
        ends: list[float] = []
        job = dataclasses.replace(
            make_job(context, item, head), on_step=lambda progress, loss: ends.append(time.perf_counter())
        )
        train(context.accelerator, job, adapted)
    return {"precision": precision, "preparation_seconds": preparation} | _throughput(options, ends)


def train_with_trainer(options: argparse.Namespace, folder: Path, *, bf16: bool) -> dict[str, Any]:
    """What run_image_classification.py does, less its command line, evaluation and saving."""
    import datasets
    import torch
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    rows = datasets.load_dataset("parquet", data_files={"train": str(folder / "photos.parquet")}, split="train")
    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    transforms = Compose(
        [
            RandomResizedCrop((processor.size["height"], processor.size["width"])),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(mean=processor.image_mean, std=processor.image_std),
        ]
    )

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        batch["pixel_values"] = [transforms(image.convert("RGB")) for image in batch["image"]]
        return batch

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    ends: list[float] = []

    class StepEnds(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            ends.append(time.perf_counter())

    rows.set_transform(transform)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            max_steps=options.warmup + options.steps,
            per_device_train_batch_size=options.batch_size,
            remove_unused_columns=False,  # as the example's README says
            bf16=bf16,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = Trainer(
            model=AutoModelForImageClassification.from_pretrained(folder / "vit"),
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            processing_class=processor,
            callbacks=[StepEnds()],
        )
        trainer.train()
    return {"precision": "bf16" if bf16 else "fp32"} | _throughput(options, ends)


def _throughput(options: argparse.Namespace, ends: list[float]) -> dict[str, Any]:
    assert len(ends) == options.warmup + options.steps, f"{len(ends)} steps"
    counted = ends[options.warmup - 1 :]
    seconds = np.diff(counted)
    return {
        "images_per_second": options.batch_size / float(np.median(seconds)),
        "step_seconds": [round(float(s), 4) for s in seconds],
    }


# ----------------------------------------------------------------------------------------- comparison


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Let the arms take turns; print and write what they reached."""
    from tltasks.runtime import devices

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    rounds: list[dict[str, Any]] = []
    for i in range(options.rounds):
        rounds.append({})
        for arm in ARMS:
            rounds[-1][arm] = run_arm(arm, options, folder)
            print(f"round {i + 1}: {arm} {rounds[-1][arm]['images_per_second']:.2f} images/s", file=sys.stderr)

    def over_rounds(read: Any) -> dict[str, float]:
        values = [read(arms) for arms in rounds]
        found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
        return {key: round(value, 3) for key, value in found.items()}

    speed = {arm: over_rounds(lambda arms, arm=arm: arms[arm]["images_per_second"]) for arm in ARMS}
    ratio = {
        arm: over_rounds(lambda arms, arm=arm: arms["tltasks"]["images_per_second"] / arms[arm]["images_per_second"])
        for arm in ARMS[1:]
    }
    result = {
        "command": " ".join(["python benchmarks/images.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "model": "ViT-S/16, 224 px, random weights, all of them trained",
        "batch_size": options.batch_size,
        "steps": options.steps,
        "precision": {arm: rounds[0][arm]["precision"] for arm in ARMS},
        "images_per_second": speed,
        "ratio_tltasks_to": ratio,
        "preparation_seconds": over_rounds(lambda arms: arms["tltasks"]["preparation_seconds"]),
        "prepared_images": options.batches * options.batch_size,
        "rounds": rounds,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'arm':14} {'precision':9} {'images/s':>8}  tltasks is so many times as fast (min, median, max)")
    for arm in ARMS:
        times = "" if arm not in ratio else "  ".join(f"{ratio[arm][key]:.2f}" for key in ("min", "median", "max"))
        print(f"{arm:14} {rounds[0][arm]['precision']:9} {speed[arm]['median']:8.2f}  {times}")
    print(
        f"tltasks first decodes and resizes: {result['preparation_seconds']['median']:.1f} s "
        f"for {result['prepared_images']} images, once"
    )


def run_arm(arm: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One arm in a process with its own caches."""
    numbers = {"--steps": options.steps, "--warmup": options.warmup, "--batch-size": options.batch_size}
    words = [str(word) for pair in numbers.items() for word in pair]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "HF_DATASETS_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(options.cores),
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, __file__, "--arm", arm, "--folder", str(folder), *words]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{arm} failed:\n{finished.stderr}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
