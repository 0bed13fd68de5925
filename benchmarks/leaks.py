"""Near-duplicates that are planted into test sets, found again; and what looking for them adds to encoding.

    python benchmarks/leaks.py                   # pictures, recordings and texts, 200 planted in each
    python benchmarks/leaks.py --stamps FOLDER   # the same for data that no threshold was chosen by
    python benchmarks/leaks.py --time            # 100,000 pictures of 32 × 32

Into the test set of shipped data go 200 copies of training rows, each changed in one way: pictures (drawings of emoji)
saved as JPEG, cut by 5 %, resized, or all of these; recordings (English and Spanish prompts) made louder or quieter,
saved as MP3, shifted, trimmed, or all; texts (descriptions of packages) in other case, with other spaces, without
punctuation, or all. The recipe is opened as `tltasks run` opens it. Recall is the share of the copies that are found.
Rows of the shipped test sets that are found, too, are listed: `precision` leaves out those that were looked at and are
the same (`LOOKED_AT`), `least_precision` counts all of them as wrong. FOLDER is usr/share/tuxpaint/stamps of
the unpacked Debian package tuxpaint-stamps-default (photos and drawings, and short recordings in French and Russian);
the texts are abstracts of papers (build_paper_titles.py). The time is that of the CPU, with marks and without in turns.
Results: benchmarks/results/leaks.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import soundfile
from accelerate import Accelerator
from PIL import Image
from transformers import ViTImageProcessor

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.data.encoding import MARK, encode_split
from tltasks.data.near_duplicates import Likeness, MarkedRows, Pictures, find_alike
from tltasks.data.splits import EncodedSplit, Split
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.image.preprocessing import ENCODED, Preprocessing
from tltasks.tasks.speech.audio import decode_audio

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "leaks.json"
PLANTED, HZ = 200, 16_000
LOOKED_AT: dict[str, set[str]] = {
    "texts": {
        "34 like 3150",
        "173 like 2419",
        "269 like 746",
        "296 like 2236",
        "298 like 746",
        "352 like 3411",
        "395 like 848",
    },
}
"""Rows of shipped test sets that are nearly the same as one of train, by eye and ear."""
Rng = np.random.Generator

# ------------------------------------------------------------------------------------------ changes


def jpeg(image: Image.Image, rng: Rng) -> Image.Image:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=int(rng.integers(40, 95)))
    return Image.open(target).convert("RGB")


def cut(image: Image.Image, rng: Rng) -> Image.Image:
    width, height = (round(0.95 * side) for side in image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def resized(image: Image.Image, rng: Rng) -> Image.Image:
    factor = rng.uniform(0.5, 2)
    size = (round(factor * image.width), round(factor * image.height))
    return image.resize(size, Image.Resampling(int(rng.choice([1, 2, 3]))))


def louder(samples: np.ndarray, rng: Rng) -> np.ndarray:
    return (samples * 10 ** (rng.uniform(-12, 6) / 20)).clip(-1, 1)


def mp3(samples: np.ndarray, rng: Rng) -> np.ndarray:
    target = io.BytesIO()
    soundfile.write(target, samples, HZ, format="MP3")
    target.seek(0)
    return soundfile.read(target, dtype="float32")[0]


def shifted(samples: np.ndarray, rng: Rng) -> np.ndarray:
    silence = np.zeros(round(rng.uniform(0.02, 0.3) * HZ), np.float32)
    return np.concatenate([silence, samples] if rng.random() < 0.5 else [samples, silence])


def trimmed(samples: np.ndarray, rng: Rng) -> np.ndarray:
    away = round(0.05 * len(samples))
    start = int(rng.integers(away + 1))
    return samples[start : len(samples) - (away - start)]


def other_case(text: str, rng: Rng) -> str:
    return [text.upper(), text.lower(), text.title()][rng.integers(3)]


def other_spaces(text: str, rng: Rng) -> str:
    return re.sub(" ", lambda _: " \n\t  "[: int(rng.integers(1, 5))], text)


def no_punctuation(text: str, rng: Rng) -> str:
    return re.sub(r"[^\w\s]", lambda found: "" if rng.random() < 0.7 else found[0], text)


def all_of(*changes: Callable[..., object]) -> Callable[..., object]:
    def change(value: object, rng: Rng) -> object:
        for each in changes:
            value = each(value, rng)
        return value

    return change


# --------------------------------------------------------------------------------------------- data


def plant(train: list, test: list, changes: dict[str, Callable[..., object]], rng: Rng) -> tuple[list, list]:
    """The test rows with copies of training rows behind them, and of each copy its source and what was done to it."""
    order = np.resize(rng.permutation(len(train)), PLANTED).tolist()
    names = [list(changes)[i % len(changes)] for i in range(PLANTED)]
    copies = [changes[name](train[row], rng) for name, row in zip(names, order, strict=True)]
    return [*test, *copies], list(zip(order, names, strict=True))


def pictures(folder: Path, rng: Rng) -> tuple[dict, list, int]:
    rows = {
        split: datasets.Dataset.from_parquet(
            [str(ROOT / f"recipes/offline/emoji/{vendor}-{split}.parquet") for vendor in ("google", "twitter")]
        )
        for split in ("train", "test")
    }
    train, test = ([row["image"].convert("RGB") for row in rows[split]] for split in ("train", "test"))
    return plant_pictures(folder, rng, train, test)


def stamp_pictures(stamps: Path, folder: Path, rng: Rng) -> tuple[dict, list, int]:
    files = sorted(stamps.rglob("*.png"))
    images = [Image.open(files[i]).convert("RGBA") for i in rng.permutation(len(files))]
    white = [Image.new("RGBA", image.size, "white") for image in images]
    images = [Image.alpha_composite(*both).convert("RGB") for both in zip(white, images, strict=True)]
    return plant_pictures(folder, rng, images[200:], images[:200])


def plant_pictures(folder: Path, rng: Rng, train: list[Image.Image], test: list[Image.Image]) -> tuple[dict, list, int]:
    changes = {"jpeg": jpeg, "cut": cut, "resized": resized, "all": all_of(cut, resized, jpeg)}
    images, planted = plant(train, test, changes, rng)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    for split, own in (("train", train), ("test", images)):
        rows = {"image": own, "label": [i % 2 for i in range(len(own))]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    data = {"name": "parquet", "files": {split: str(folder / f"{split}.parquet") for split in ("train", "test")}}
    model = {"name": str(ROOT / "weights" / "efficientnet-lite0"), "image_size": 96}
    return {"task": "image-classification", "model": model, "data": data}, planted, len(test)


def recordings(folder: Path, rng: Rng) -> tuple[dict, list, int]:
    sources = [ROOT / "recipes" / "offline" / "voice_prompts", ROOT / "data" / "voice_prompts_es"]
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for source in sources:
        for name in ("train", "validation", "test"):
            with (source / f"{name}.csv").open(encoding="utf-8", newline="") as file:
                rows["test" if name == "test" else "train"] += [
                    str(source / row["audio"]) for row in csv.DictReader(file)
                ]
    return plant_recordings(folder, rng, rows["train"], rows["test"])


def stamp_recordings(stamps: Path, folder: Path, rng: Rng) -> tuple[dict, list, int]:
    files = sorted(str(file) for language in ("fr", "ru") for file in stamps.rglob(f"*_desc_{language}.ogg"))
    chosen = [files[i] for i in rng.permutation(len(files))[:700]]
    return plant_recordings(folder, rng, chosen[200:], chosen[:200])


def plant_recordings(folder: Path, rng: Rng, train_files: list[str], test_files: list[str]) -> tuple[dict, list, int]:
    train, test = ([decode_audio(file, HZ) for file in files] for files in (train_files, test_files))
    changes = {"louder": louder, "mp3": mp3, "shifted": shifted, "trimmed": trimmed}
    changes["all"] = all_of(trimmed, shifted, louder, mp3)
    clips, planted = plant(train, test, changes, rng)
    for split, sounds in (("train", train), ("test", clips)):
        lines = []
        for i, samples in enumerate(sounds):
            soundfile.write(folder / f"{split}-{i}.flac", samples, HZ)
            lines.append(json.dumps({"audio": f"{split}-{i}.flac", "text": "something is said"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    data = {"name": "json", "files": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}}
    model = {"name": str(ROOT / "weights" / "whisper-tiny.en")}
    return {"task": "automatic-speech-recognition", "model": model, "data": data}, planted, len(test)


def texts(folder: Path, rng: Rng, source: Path = ROOT / "data" / "package_synopsis") -> tuple[dict, list, int]:
    rows = {split: [json.loads(line) for line in (source / f"{split}.jsonl").open()] for split in ("train", "test")}
    changes = {"case": other_case, "spaces": other_spaces, "punctuation": no_punctuation}
    changes["all"] = all_of(other_case, no_punctuation, other_spaces)
    train, test = ([row["document"] for row in rows[split]] for split in ("train", "test"))
    found, planted = plant(train, test, changes, rng)
    summaries = [*(row["summary"] for row in rows["test"]), *(rows["train"][row]["summary"] for row, _ in planted)]
    lines = [json.dumps({"document": d, "summary": s}) for d, s in zip(found, summaries, strict=True)]
    (folder / "test.jsonl").write_text("\n".join(lines))
    files = {"train": str(source / "train.jsonl"), "test": str(folder / "test.jsonl")}
    model = {"name": str(ROOT / "weights" / "t5-titles")}
    return (
        {"task": "summarization", "model": model, "data": {"name": "json", "files": files}},
        planted,
        len(rows["test"]),
    )


def abstracts(_: Path, folder: Path, rng: Rng) -> tuple[dict, list, int]:
    return texts(folder, rng, ROOT / "data" / "paper_titles")


def measure(kind: str, build: Callable[[Path, Rng], tuple[dict, list, int]]) -> dict[str, object]:
    """Open a recipe with planted rows, and count what is found of them."""
    with tempfile.TemporaryDirectory() as name:
        recipe, planted, n_test = build(Path(name), np.random.default_rng(0))
        recipe |= {"stages": [{"stage": "finetune", "steps": 1, "learning_rate": 1e-5}], "output": f"{name}/out"}
        if recipe["task"] == "image-classification":
            recipe["stages"][0]["stage"] = "transfer"
        (stage,) = prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(recipe)))
        twins = {row: twin.row for row, twin in stage.twins["test"].items()}
    found = [n_test + i in twins for i in range(PLANTED)]
    there = [f"{row} like {other}" for row, other in sorted(twins.items()) if row < n_test]
    wrong = [pair for pair in there if pair not in LOOKED_AT.get(kind, set())]
    names = dict.fromkeys(name for _, name in planted)
    return {
        "train_rows": len(stage.encoded["train"].rows),
        "test_rows": n_test,
        "planted": PLANTED,
        "recall": sum(found) / PLANTED,
        "recall_by_change": {
            name: round(float(np.mean([hit for hit, (_, own) in zip(found, planted, strict=True) if own == name])), 3)
            for name in names
        },
        "paired_with_the_source": sum(twins.get(n_test + i) == row for i, (row, _) in enumerate(planted)) / PLANTED,
        "precision": sum(found) / (sum(found) + len(wrong)),
        "least_precision": sum(found) / (sum(found) + len(there)),
        "already_there": there,
    }


# --------------------------------------------------------------------------------------------- time

TIMED, PART, SIDE, TRAINED_SHARE = 100_000, 10_000, 32, 0.8


def clouds(n_images: int, rng: Rng) -> list[bytes]:
    """PNG of pictures whose spectrum falls as that of photographs does."""
    steps = np.fft.fftfreq(SIDE)
    radius = np.hypot(steps[:, None], steps)
    radius[0, 0] = 1
    found = []
    for _ in range(n_images):
        image = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, SIDE, SIDE))) / radius**1.5).real
        levels = (128 + 50 * image / image.std((1, 2), keepdims=True)).clip(0, 255).astype(np.uint8)
        target = io.BytesIO()
        Image.fromarray(levels.transpose(1, 2, 0)).save(target, "PNG")
        found.append(target.getvalue())
    return found


def encode(name: str, images: list[bytes], likeness: Likeness | None, processing: Preprocessing) -> EncodedSplit:
    rows = datasets.Dataset.from_dict({"image": images})

    def encode_images(batch: dict) -> dict:
        return {**processing.encode(batch["image"], None), "row": batch["row"]}

    features, split = datasets.Features(ENCODED), Split(name, rows, name, None, name)
    return encode_split(split, encode_images, features, key=name, max_bad_share=0, likeness=likeness)


def measure_time(n_images: int) -> dict[str, float]:
    """CPU seconds of encoding with marks and without, in turns, and of looking for pairs."""
    processing = Preprocessing(ViTImageProcessor(size={"height": 96, "width": 96}), name="benchmark")
    likeness, rng = Pictures(*processing.seen, lambda columns: b""), np.random.default_rng(0)
    spent, parts = {"encoding": 0.0, "marking": 0.0}, []
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        encode("first", clouds(100, rng), likeness, processing)  # what a process does once is no part of it
        for i in range(n_images // PART):
            images = clouds(PART, rng)
            arms = [("encoding", None), ("marking", likeness)]
            for arm, own in arms if i % 2 else arms[::-1]:
                started = time.process_time()
                encoded = encode(f"{arm} {i}", images, own, processing)
                spent[arm] += time.process_time() - started
                if own is not None:
                    parts.append(encoded)
        rows = datasets.concatenate_datasets([part.rows for part in parts])
        n_known = round(TRAINED_SHARE * n_images)
        started = time.process_time()
        marks = [mark for part in parts for mark in part.marks[MARK][:]]
        known = MarkedRows(likeness, rows.select(range(n_known)), marks[:n_known])
        asked = MarkedRows(likeness, rows.select(range(n_known, n_images)), marks[n_known:])
        _, found = find_alike(known, asked)
        search = time.process_time() - started
    marking = spent["marking"] - spent["encoding"]
    return {
        "images": n_images,
        "marking_per_encoding": marking / spent["encoding"],
        "search_per_encoding": search / spent["encoding"],
        "added_share": (marking + search) / spent["encoding"],
        "found": len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--images", type=int, default=TIMED)
    parser.add_argument("--kinds", nargs="*", default=["pictures", "recordings", "texts"])
    arguments = parser.parse_args()
    if arguments.time:
        measured: dict[str, object] = {f"time of {arguments.images}": measure_time(arguments.images)}
    else:
        builders = {"pictures": pictures, "recordings": recordings, "texts": texts}
        if arguments.stamps:
            held_out = {"pictures": stamp_pictures, "recordings": stamp_recordings, "texts": abstracts}
            builders = {kind: partial(build, arguments.stamps) for kind, build in held_out.items()}
        what = "{}, held out" if arguments.stamps else "{}"
        measured = {(name := what.format(kind)): measure(name, builders[kind]) for kind in arguments.kinds}
    results = (json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}) | measured
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
