import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tltasks import figures, report
from tltasks.report import LARGEST_MATRIX, compare, describe_errors, write_report
from tltasks.result import Exhibit, Headline, RunResult, Score, StageResult, load_result

ANIMALS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def classifier_score(names: list[str], rows: int, accuracy: float, *, seed: int = 0) -> Score:
    """What image classification reports, of predictions that mistake each class mostly for its neighbour."""
    rng = np.random.default_rng(seed)
    n = len(names)
    labels = rng.integers(0, n, rows)
    skill = np.clip(accuracy + np.linspace(-0.15, 0.15, n), 0, 1)[labels]
    wrong = np.where(rng.random(rows) < 0.6, labels ^ 1, rng.integers(0, n, rows)) % n
    chosen = np.where(rng.random(rows) < skill, labels, wrong)
    counts = np.zeros((n, n), dtype=int)
    np.add.at(counts, (labels, chosen), 1)
    hits, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    columns = zip(names, precision, recall, f1, support, strict=True)
    value = float(hits.sum() / rows)
    half = 1.96 * float(np.sqrt(value * (1 - value) / rows))
    return Score(
        {"accuracy": value, "macro_f1": float(f1.mean()), "ece": 0.031, "loss": 0.52, "top5_accuracy": 0.99},
        "accuracy",
        (value - half, value + half),
        {
            "class_names": names,
            "per_class": [
                {"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
                for c, p, r, f, s in columns
            ],
            "confusion_matrix": counts.tolist(),
        },
    )


def plain_score(metric: str, value: float, half: float = 0.02, **details: Any) -> Score:
    return Score({metric: value}, metric, (value - half, value + half), details)


def stage(
    name: str, metrics: dict[str, Score], baselines: dict[str, dict[str, Score]], *, trains: bool = True, **changed: Any
) -> StageResult:
    split = {"examples": 1000, "skipped": 0, "skipped_rows": {}, "source": "made up", "fingerprint": "0f3a51c2"}
    training = {
        "steps": 600,
        "epochs": 5.0,
        "best_step": 480,
        "best_value": 0.8,
        "ended": "all steps done",
        "seconds": 300.0,
        "batch_size": 64,
        "micro_batch": 16,
        "learning_rate": 5e-5,
        "method": "lora",
        "precision": "bf16",
    }
    result = StageResult(
        stage=name,
        name=name,
        task="image-classification",
        metrics=metrics,
        baselines=baselines,
        seconds=345.0,
        examples_per_second=128.0,
        peak_memory_bytes=3 * 2**30,
        trainable_parameters=300_000 if trains else 0,
        total_parameters=22_000_000,
        weights={"name": "org/vit-small", "revision": "main", "newly_initialised": ["classifier.weight"], "adapter": True},
        data={**({"train": split} if trains else {}), **dict.fromkeys(metrics, split)},
        training=training if trains else {},
    )
    return replace(result, **changed)


def run_of(stages: list[StageResult], split: str = "test", *, higher_is_better: bool = True) -> RunResult:
    last = stages[-1]
    score = last.metrics[split]
    value = score.values[score.headline]
    headline = Headline(score.headline, value, score.ci95, higher_is_better, last.name, split)
    hardware = {"device": "cpu", "device_name": "Some CPU", "memory_bytes": 16 * 2**30, "precision": "bf16"}
    return RunResult("ab" * 32, headline, stages, {"python": "3.12.1", "torch": "2.12.0"}, hardware)


def logged(name: str, steps: int = 600, every: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.5 + 1.8 * float(np.exp(-step / 120)) + float(rng.normal(0, 0.12))
        rate = 5e-5 * min(step / 60, 1 - (step - 60) / (steps - 59))
        numbers = {"loss": loss, "learning_rate": rate, "grad_norm": 1.0, "examples_per_second": 130.0}
        rows.append({"stage": name, "split": "train", "step": step, "epoch": step / 120, **numbers})
        if step % every == 0:
            gain = 1 - float(np.exp(-step / 150))
            scores = {"accuracy": 0.82 * gain, "macro_f1": 0.8 * gain, "ece": 0.1 - 0.06 * gain}
            scores |= {"loss": 0.5 + 0.9 * (1 - gain), "top5_accuracy": 0.9 + 0.09 * gain}
            rows.append({"stage": name, "split": "validation", "step": step, "epoch": step / 120, **scores})
    return rows


def pictures(n: int, title: str = "cat (97%)") -> list[Exhibit]:
    found = []
    for i in range(n):
        ramp = np.linspace(0, 255, 32)[:, None, None] * np.ones((32, 32, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.roll((ramp + [i * 9, 60, 255 - i * 9]) / 2, i, 1).astype(np.uint8)).save(buffer, "PNG")
        found.append(Exhibit("image", title, f"is dog · row {i * 37}", buffer.getvalue()))
    return found


def classifier_run(names: list[str] = ANIMALS) -> RunResult:
    """Two stages, three judged splits."""
    arms = {"majority_class": 0.1, "checkpoint_knn": 0.83}
    splits = ("test", "validation", "sketches")
    tuned = {split: classifier_score(names, 1000, 0.82, seed=i) for i, split in enumerate(splits)}
    first = {split: classifier_score(names, 1000, 0.6, seed=i) for i, split in enumerate(splits)}

    def beside(metrics: dict[str, Score], value: float) -> dict[str, Score]:
        gains = {split: score.values["accuracy"] - value for split, score in metrics.items()}
        return {k: plain_score("accuracy", value, difference_ci95=[g - 0.03, g + 0.03]) for k, g in gains.items()}

    stages = [
        stage("finetune", first, {"majority_class": beside(first, 0.1)}),
        stage("transfer", tuned, {arm: beside(tuned, value) for arm, value in arms.items()}),
    ]
    skipping = {"skipped": 2, "skipped_rows": {"17": "truncated JPEG", "90": "empty file"}}
    data = stages[1].data
    stages[1] = replace(stages[1], data={**data, "train": {**data["train"], **skipping}})
    return run_of(stages)


METRICS = logged("finetune") + logged("transfer")
RECIPE = "task: image-classification\nstages:\n  - stage: finetune\n  - stage: transfer\n    start: previous\n"


def written(
    folder: Path, result: RunResult, metrics: list[dict[str, Any]] | None = None, exhibits: list[Exhibit] | None = None
) -> str:
    write_report(folder / "report.html", result, RECIPE, metrics or [], exhibits or [])
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
