"""Long recordings: is a word lost or doubled where Whisper goes on from window to window, before and after training?

    python benchmarks/long_form.py TABLE MODEL… [--minutes 10] [--result FILE]

TABLE is a csv with `audio` and `text`, each MODEL a results folder or a checkpoint. Its clips are joined into one
recording with pauses of 0.3 to 3 s. Word error rates: of the clips alone, of the recording by `tltasks.load`, which
cuts at pauses, and by `generate(return_timestamps=True)` of transformers, which goes on from times that it writes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tltasks
from benchmarks.words import HZ, Clip, read
from tltasks.metrics.error_rate import normaliser
from tltasks.models.adapters import generating_model


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--normaliser", default="english", help="default: %(default)s")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--result", type=Path, help="a .json file to add what was found to")
    options = parser.parse_args()
    clips, even = read(options.table), normaliser(options.normaliser)
    recording, places = joined(clips, options.minutes)
    for name in options.models:
        found = {
            "minutes": len(recording) / HZ / 60,
            **measure(name, clips, recording, places, even, options.precision),
        }
        print(json.dumps({Path(name).name: found}, indent=1), flush=True)
        if options.result:
            known = json.loads(options.result.read_text()) if options.result.exists() else {}
            known[Path(name).name] = found
            options.result.write_text(json.dumps(known, indent=1) + "\n")


def joined(clips: list[Clip], minutes: float) -> tuple[np.ndarray, list[int]]:
    """One recording of so many minutes, and the clips that are in it."""
    drawn, parts, places = np.random.default_rng(0), list[np.ndarray](), list[int]()
    while sum(map(len, parts)) < minutes * 60 * HZ:
        i = len(places) % len(clips)
        pause = drawn.normal(0, 1e-4, int(drawn.uniform(0.3, 3) * HZ)).astype(np.float32)
        parts += [clips[i][0], pause]
        places.append(i)
    return np.concatenate(parts), places


def measure(
    name: str, clips: list[Clip], recording: np.ndarray, places: list[int], even: Any, precision: str
) -> dict[str, float]:
    model = tltasks.load(name, precision=precision)
    used = sorted(set(places))
    alone = dict(zip(used, model([(clips[i][0], HZ) for i in used]), strict=True))
    reference = even(" ".join(clips[i][1] for i in places))
    texts = {
        "alone": " ".join(alone[i]["prediction"] for i in places),
        "joined": model((recording, HZ))["prediction"],
        "joined_by_times": by_times(model, recording),
    }
    found = {f"wer_{way}": jiwer.wer(reference, even(text)) for way, text in texts.items()}
    return {"words": len(reference.split()), **found}


def by_times(model: Any, recording: np.ndarray) -> str:
    hears = model.task.recogniser
    read = hears.feature_extractor(
        recording,
        sampling_rate=HZ,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=model.precision == "bf16"):
        ids = generating_model(model.model).generate(**read, return_timestamps=True)
    return str(hears.tokenizer.decode(ids[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
