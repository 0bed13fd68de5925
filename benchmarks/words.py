"""Words of transcripts: are their times and confidence right, is noise answered with nothing, and is no word lost?

    python benchmarks/words.py MODEL TABLE [--language es] [--second MODEL] [--only confidence joints silence long]

MODEL is a results folder, an export or a checkpoint, TABLE a csv with `audio` and `text`.

- confidence: AUROC of right against wrong words of the clips, and the calibration error (15 bins).
- joints: clips are joined in pairs with a pause of 0 and 0.5 s. How far from the joint is the last word's end before it
  and the first word's start behind it? Clips are cut to their sound before (-40 dB of their loudest 20 ms).
- second: times of the same words by another model, on the same clips.
- silence: words in 20 recordings of near-silence and 20 of noise (white, pink, brown, hum, clicks).
- long: ten minutes of the clips with pauses of 0.3 to 3 s between them, in one recording, against the clips alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile
import soxr
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tltasks
from tltasks.metrics.error_rate import normaliser

HZ = 16_000
KINDS = ("confidence", "joints", "second", "silence", "long")
Clip = tuple[np.ndarray, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("--language")
    parser.add_argument("--second", help="another model, whose times are compared")
    parser.add_argument("--normaliser", default="unaccented", help="default: %(default)s")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--precision")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--result", type=Path, help="a .json file to add what was found to")
    options = parser.parse_args()
    keys = {"language": options.language, "precision": options.precision, "words": True}
    model = tltasks.load(options.model, **keys)
    clips = read(options.table)[: options.clips]
    even = normaliser(options.normaliser)
    found: dict[str, Any] = {"model": Path(options.model).name, "table": options.table.parent.name, "clips": len(clips)}
    alone = model([(sound, HZ) for sound, _ in clips]) if {"confidence", "long", "second"} & set(options.only) else []
    if "confidence" in options.only:
        found["confidence"] = confidence(alone, clips, even)
    if "joints" in options.only:
        found["joints"] = {str(pause): joints(model, clips, pause) for pause in (0.0, 0.5)}
    if "second" in options.only and options.second:
        found["second"] = second(alone, tltasks.load(options.second, **keys), clips, even)
    if "silence" in options.only:
        outputs = model([(sound, HZ) for sound in nothing()])
        found["silence"] = {"files": len(outputs), "words": sum(len(output["words"]) for output in outputs)}
        found["silence"]["clips_answered_with_nothing"] = sum(not output["prediction"] for output in alone)
    if "long" in options.only:
        found["long"] = long(model, alone, clips, even, minutes=options.minutes)
    print(json.dumps(found, indent=1))
    if options.result:
        known = json.loads(options.result.read_text()) if options.result.exists() else {}
        known[f"{found['model']} {found['table']}"] = found
        options.result.write_text(json.dumps(known, indent=1) + "\n")


def read(table: Path) -> list[Clip]:
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips = []
    for row in rows:
        samples, hz = soundfile.read(table.parent / row["audio"], dtype="float32")
        clips.append((soxr.resample(samples, hz, HZ), row["text"]))
    return clips


def right(output: dict[str, Any], text: str, even: Any) -> list[tuple[float, bool]]:
    """Confidence of each word that an alignment with the reference has, and whether it is right."""
    found = [(piece, word["confidence"]) for word in output["words"] for piece in even(word["text"]).split()]
    hypothesis, reference = " ".join(piece for piece, _ in found), even(text)
    if not found or not reference:
        return [(p, False) for _, p in found]
    marks = [False] * len(found)
    for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
        for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
            marks[i] = chunk.type == "equal"
    return [(p, mark) for (_, p), mark in zip(found, marks, strict=True)]


def confidence(outputs: Sequence[Any], clips: Sequence[Clip], even: Any) -> dict[str, float]:
    pairs = [pair for output, (_, text) in zip(outputs, clips, strict=True) for pair in right(output, text, even)]
    shares, marks = np.array([p for p, _ in pairs]), np.array([m for _, m in pairs])
    bins = np.minimum((shares * 15).astype(int), 14)
    error = sum(abs(shares[bins == b].mean() - marks[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    drawn = np.random.default_rng(0)
    resampled = [drawn.integers(0, len(marks), len(marks)) for _ in range(500)]
    aurocs = [roc_auc_score(marks[i], shares[i]) for i in resampled if 0 < marks[i].sum() < len(i)]
    return {
        "words": len(marks),
        "right": float(marks.mean()),
        "auroc": float(roc_auc_score(marks, shares)),
        "auroc_ci95": [float(q) for q in np.quantile(aurocs, (0.025, 0.975))],
        "mean_confidence": float(shares.mean()),
        "calibration_error": float(error),
    }


def trimmed(sound: np.ndarray) -> np.ndarray:
    """A clip from its first sound to its last."""
    frames = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > level.max() / 100)
    return sound[loud[0] * 320 : (loud[-1] + 1) * 320]


def joints(model: Any, clips: Sequence[Clip], pause: float) -> dict[str, Any]:
    """Errors in seconds at the joints of pairs whose transcript has the words of both, as many as it has alone."""
    cut = [trimmed(sound) for sound, _ in clips]
    alone = model([(sound, HZ) for sound in cut])
    gap = np.zeros(int(pause * HZ), np.float32)
    pairs = [(i, i + 1) for i in range(0, len(cut) - 1, 2)]
    joined = model([(np.concatenate([cut[i], gap, cut[j]]), HZ) for i, j in pairs])
    errors, used = [], 0
    for (i, j), output in zip(pairs, joined, strict=True):
        words, n = output["words"], len(alone[i]["words"])
        if len(words) != n + len(alone[j]["words"]) or not 0 < n < len(words):
            continue  # it has heard something else, and which words are whose is not known
        used += 1
        joint = len(cut[i]) / HZ
        errors += [abs(words[n - 1]["end"] - joint), abs(words[n]["start"] - joint - pause)]
    return {"pairs": len(pairs), "used": used, **spread(errors)}


def spread(errors: Sequence[float]) -> dict[str, float]:
    found = np.array(errors)
    return {
        "median": float(np.median(found)),
        "p90": float(np.quantile(found, 0.9)),
        "within_0.2": float((found <= 0.2).mean()),
    }


def second(ours: Sequence[Any], other: Any, clips: Sequence[Clip], even: Any) -> dict[str, float]:
    """Differences of the times of words that both models have heard."""
    theirs = other([(sound, HZ) for sound, _ in clips])
    errors: list[float] = []
    for a, b in zip(ours, theirs, strict=True):
        one, two = ([(even(word["text"]), word) for word in output["words"]] for output in (a, b))
        one, two = ([pair for pair in words if pair[0] and " " not in pair[0]] for words in (one, two))
        if not one or not two:
            continue
        texts = [" ".join(text for text, _ in words) for words in (one, two)]
        for chunk in jiwer.process_words(*texts).alignments[0]:
            if chunk.type == "equal":
                for i, j in zip(
                    range(chunk.ref_start_idx, chunk.ref_end_idx),
                    range(chunk.hyp_start_idx, chunk.hyp_end_idx),
                    strict=True,
                ):
                    errors += [abs(one[i][1][name] - two[j][1][name]) for name in ("start", "end")]
    return {"times": len(errors), **spread(errors)}


def nothing() -> list[np.ndarray]:
    """20 recordings of noise and 20 of what a microphone has in a silent room."""
    drawn, found = np.random.default_rng(0), []
    for i in range(20):
        n = int(HZ * drawn.uniform(1, 12))
        noise = drawn.normal(0, 1, n)
        bands, frequency = np.fft.rfft(noise), np.maximum(np.arange(n // 2 + 1), 1)
        time = np.arange(n) / HZ
        if i % 5 in (1, 2):
            noise = np.fft.irfft(bands / frequency ** (0.5 * (i % 5)), n)
        elif i % 5 == 3:
            noise = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 4, 6)) + 0.05 * noise
        elif i % 5 == 4:
            noise = 0.01 * noise
            for at in drawn.integers(0, n - 800, 12):
                noise[at : at + 400] += np.exp(-np.arange(400) / 60) * drawn.normal(0, 1, 400)
        found.append(noise / np.abs(noise).max() * 10 ** (drawn.uniform(-30, -3) / 20))
    levels = [10 ** (drawn.uniform(-80, -60) / 20) for _ in range(20)]
    found += [drawn.normal(0, level, int(HZ * drawn.uniform(0.5, 20))) for level in levels]
    return [sound.astype(np.float32) for sound in found]


def long(model: Any, alone: Sequence[Any], clips: Sequence[Clip], even: Any, *, minutes: float) -> dict[str, float]:
    """Word error rates of clips in one recording with pauses, and alone."""
    drawn = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    places: list[int] = []
    while sum(map(len, parts)) < minutes * 60 * HZ:
        i = len(places) % len(clips)
        pause = drawn.normal(0, 1e-4, int(drawn.uniform(0.3, 3) * HZ)).astype(np.float32)
        parts += [clips[i][0], pause]
        places.append(i)
    output = model((np.concatenate(parts), HZ))
    reference = even(" ".join(clips[i][1] for i in places))
    apart = even(" ".join(alone[i]["prediction"] for i in places))
    assert [word["text"] for word in output["words"]] == output["prediction"].split()
    joined = even(output["prediction"])
    return {
        "minutes": sum(map(len, parts)) / HZ / 60,
        "pieces": len(output["segments"]),
        "words": len(reference.split()),
        "wer_alone": jiwer.wer(reference, apart),
        "wer_joined": jiwer.wer(reference, joined),
        "last_word_ends": output["words"][-1]["end"],
    }


if __name__ == "__main__":
    main()
