"""A folder with what a reader of the docs has, by the names that they give it; and checkpoints of the Hub's names."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import soundfile

from tests.tiny import images, speech, texts, topics
from tests.tiny.runs import REPOSITORY

MODELS: dict[str, Callable[[Path], object]] = {
    "google/vit-base-patch16-224-in21k": lambda folder: images.save_model(folder),
    "openai/whisper-base": lambda folder: speech.save_whisper(folder, seconds=8),
    "google-t5/t5-small": lambda folder: texts.save_model(folder, "t5"),
    "microsoft/MiniLM-L12-H384-uncased": lambda folder: topics.save_model(folder),
}
"""Checkpoints that are chosen for those who name none."""


def save_models(folder: Path) -> dict[str, Path]:
    for name, save in MODELS.items():
        (folder / name).mkdir(parents=True)
        save(folder / name)
    return {name: folder / name for name in MODELS}


def save_reader(folder: Path) -> Path:
    """Photos, recordings, texts and tables by the names that the pages call them."""
    rng = np.random.default_rng(0)
    for place in ("photos", "more_photos", "pictures/train", "pictures/test"):
        for i in range(36):
            colour = [*images.COLOURS][i % 3]
            (folder / place / colour).mkdir(parents=True, exist_ok=True)
            images.picture(colour, rng).save(folder / place / colour / f"{i}.png")
    for name in ("holiday.jpg", "photo.jpg", "a.jpg", "b.jpg"):
        images.picture("red", rng).save(folder / name)
    _save_digits(folder, rng)
    _save_recordings(folder, rng)
    texts.save_data(folder, rows=24)
    topics.save_data(folder / "topics", rows=240)
    reviews = [json.loads(line) for line in (folder / "topics" / "train.jsonl").read_text().splitlines()]
    _write(folder / "reviews.csv", reviews)
    _write(folder / "new.csv", [{"text": row["text"]} for row in reviews[:5]])
    pairs = [texts.pair(rng, longest=60) for _ in range(48)]
    rows = [{"article": f"{pair['document']} {i}", "summary": f"{pair['summary']} {i}"} for i, pair in enumerate(pairs)]
    (folder / "articles.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("*.wav", "*.parquet"))
    return folder


def _save_digits(folder: Path, rng: np.random.Generator) -> None:
    (folder / "digits" / "img").mkdir(parents=True)
    names = ["one", "two", "three"]
    rows = []
    for i in range(36):
        images.picture([*images.COLOURS][i % 3], rng).save(folder / "digits" / "img" / f"{i}.png")
        rows.append({"path": f"img/{i}.png", "label": names[i % 3]})
    _write(folder / "digits" / "labels.csv", rows)
    images.save_data(folder / "parquet")
    files = {split: str(folder / "parquet" / f"{split}.parquet") for split in ("train", "test")}
    datasets.load_dataset("parquet", data_files=files).save_to_disk(str(folder / "saved_digits"))


def _save_recordings(folder: Path, rng: np.random.Generator) -> None:
    speech.save_data(folder / "said", rows=20)
    (folder / "recordings").mkdir()
    lines, rows = [], []
    with (folder / "said" / "train.csv").open(newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            shutil.copy(folder / "said" / row["audio"], folder / "recordings" / f"clip-{i}.wav")
            lines.append(f"clip-{i}: {row['text']} {row['text']}\n")
            rows.append({"path": f"said/{row['audio']}", "sentence": row["text"]})
    (folder / "recordings" / "said.txt").write_text("".join(lines))
    _write(folder / "train.csv", rows)
    _write(folder / "test.csv", rows[:4])
    soundfile.write(folder / "call.flac", speech.say([*speech.WORDS][:2], rng), 16000)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
