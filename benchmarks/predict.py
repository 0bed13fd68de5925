"""Predictions: `tltasks predict` beside transformers, on the CPU, for photos, clips of speech and summaries.

    python recipes/offline/fetch_whisper.py tiny.en && python recipes/offline/fetch_t5_titles.py
    python recipes/offline/build_paper_titles.py
    python benchmarks/predict.py [--only image speech speech_fitted summaries] [--rounds 5]

Both answer the same inputs with the same model from one folder, on the same cores and in the same number format, bf16
where the processor computes in it. Reading, decoding, resizing, spectrograms and tokens are within the time. Start-up
is not, and stands beside: processor time of a process from nothing to its first answer.

- `image`: JPEG files of 256-320 px, ViT-S/16 at 224 px (22 M parameters, random). The peer is
  `pipeline("image-classification")`.
- `speech`: the clips of recipes/offline/voice_prompts (2.4 s on average), Whisper tiny.en as it comes. The peer is
  `pipeline("automatic-speech-recognition")`, which is given decoded samples, and writes without beams as ours does.
- `speech_fitted`: the same after recipes/offline/voice_prompts.yaml, whose `audio_window: fit` cuts the encoder to the
  6 s of the longest clip; both hear 6 s. With `as_it_comes` beside: the pipeline on Whisper as it comes, which a fitted
  model stands in for.
- `summaries`: titles of abstracts by T5 (titles-small), of up to 32 tokens. There is no pipeline (transformers 5), so
  the peer is `generate` on batches of like length, without beams as ours.

`speech` also has the pipeline `by_default`, which searches with 5 beams: other work, and other answers.

The peer's batch size, and in bf16 whether its weights are cast or autocast, are tried beforehand; the fastest is taken.
The arms take turns, so that a drift of the machine meets both alike; ratios are of neighbours in one round. Answers are
compared in fp32 on both sides and in the format of the rounds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "predict.json"
CLIPS = REPOSITORY / "recipes" / "offline" / "voice_prompts"
WHISPER = REPOSITORY / "weights" / "whisper-tiny.en"
TITLES = REPOSITORY / "weights" / "t5-titles"
ABSTRACTS = REPOSITORY / "data" / "paper_titles" / "test.jsonl"
ALL = 10**6
"""Classes that are asked for."""
SUMMARY_TOKENS, DOCUMENT_TOKENS = 32, 320
sys.path[:0] = [str(REPOSITORY)]

Answer = dict[str, Any]
"""`text`: the class or what is written; `scores`: of classes, their probabilities."""
Arm = Callable[[Sequence[str]], list[Answer]]
Setting = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to measure")
    parser.add_argument("--rounds", type=int, default=5, help="how often each arm runs")
    parser.add_argument("--inputs", type=int, default=96, help="inputs of a round, at most")
    parser.add_argument("--tried", type=int, default=32, help="inputs for each setting of the peer that is tried")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="`processor` is for machines with other work")
    parser.add_argument("--output", type=Path, default=RESULT, help="result file; other cases in it stay")
    parser.add_argument("--start", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--without-start", action="store_true", help="leave start-up out")
    options = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.cores)}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.start:
        start(*options.start)
        return
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, CASES[name](Path(folder), options.inputs), options)
        write(name, found, options.output)


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    from tltasks.runtime.precision import choose_precision

    precision = choose_precision("auto", torch.device("cpu"))
    torch.set_num_threads(options.cores)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    clock = CLOCKS[options.clock]
    arms: dict[str, Arm] = {"tltasks": tltasks_arm(case.model, case.task, precision)}
    settings, tried = {}, {}
    build = PEERS[case.task]
    for kind, keys in case.peers.items():
        arms[kind], settings[kind], tried[kind] = best_peer(partial(build, **keys), case, precision, options)
    rounds: list[dict[str, float]] = []
    for i in range(options.rounds):
        rounds.append({kind: speed(arm, case.inputs, clock) for kind, arm in arms.items()})
        print(f"{name} {i + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in rounds[-1].items()), file=sys.stderr)
    first = next(iter(case.peers))
    plain_setting = {**settings[first], "autocast": False, **case.peers[first]}
    ours, theirs = tltasks_arm(case.model, case.task, "fp32"), build("fp32", **plain_setting)
    answers = {
        "fp32": agreement(ours(case.inputs), theirs(case.inputs), case.references),
        precision: agreement(arms["tltasks"](case.inputs), arms[first](case.inputs), case.references),
    }
    return {
        "command": " ".join(["python benchmarks/predict.py", *sys.argv[1:]]),
        "clock": options.clock,
        "model": case.shown,
        "precision": precision,
        "inputs": len(case.inputs),
        "inputs_per_second": {arm: summary([r[arm] for r in rounds]) for arm in arms},
        "ratio_to": {kind: summary([r["tltasks"] / r[kind] for r in rounds]) for kind in case.peers},
        "answers": answers,
        "start_up_processor_seconds": {} if options.without_start else starts(case, options.cores),
        "peer": settings,
        "tried": tried,
        "rounds": rounds,
    }


def write(name: str, found: dict[str, Any], path: Path) -> None:
    from tltasks.runtime import devices

    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    machine = {"processor": devices.processor_name(), "cores": devices.cores(), "versions": devices.versions()}
    result = {**machine, "cases": {**known.get("cases", {}), name: found}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for kind, ratio in found["ratio_to"].items():
        shown = "  ".join(f"{value:.2f}" for value in ratio.values())
        print(f"{name}: so many times as fast as {kind} {found['peer'][kind]} (least, median, most): {shown}")
    print(f"{name}: answers {found['answers']}; start-up {found['start_up_processor_seconds']}")


# ----------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and what else answers them; ratios are to each peer, answers are compared with the first."""

    task: str
    model: Path
    shown: str
    inputs: list[str]
    peers: dict[str, Setting]
    """By name, the keys of the task's peer."""
    references: list[str] = field(default_factory=list)


def image_case(folder: Path, most: int) -> Case:
    import pyarrow.parquet as pq

    from benchmarks.images import save_model, save_photos

    save_photos(folder / "photos.parquet", most)
    save_model(folder / "vit")
    files = []
    for i, row in enumerate(pq.read_table(folder / "photos.parquet").to_pylist()):
        path = folder / "photos" / f"{i:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(row["image"]["bytes"])
        files.append(str(path))
    peer = {"model": folder / "vit"}
    return Case("image-classification", folder / "vit", "ViT-S/16, 224 px, random weights", files, {"pipeline": peer})


def speech_case(folder: Path, most: int) -> Case:
    files, texts = clips(most)
    peers = {
        "pipeline": {"model": WHISPER, "beams": 1},
        "pipeline by_default": {"model": WHISPER, "beams": None},
    }
    return Case("automatic-speech-recognition", WHISPER, "Whisper tiny.en, 30 s", files, peers, texts)


def speech_fitted_case(folder: Path, most: int) -> Case:
    from tltasks.config.loading import load_recipe
    from tltasks.hub.saved_model import load_saved_model, write_merged
    from tltasks.runs.story import run

    run(load_recipe(CLIPS.parent / "voice_prompts.yaml", ["stages.0.epochs=2"]), output=folder / "run")
    saved: Any = load_saved_model(str(folder / "run"))
    fitted = saved.folder
    if saved.base is not None:
        fitted = folder / "fitted"
        write_merged(saved, fitted)
    files, texts = clips(most)
    peers = {
        "pipeline": {"model": fitted, "beams": 1},
        "pipeline as_it_comes": {"model": WHISPER, "beams": 1},
    }
    shown = f"Whisper tiny.en, trained on {saved.task.recogniser.window_seconds:g} s"
    return Case("automatic-speech-recognition", fitted, shown, files, peers, texts)


def clips(most: int) -> tuple[list[str], list[str]]:
    with (CLIPS / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:most]
    return [str(CLIPS / row["audio"]) for row in rows], [row["text"] for row in rows]


def summaries_case(folder: Path, most: int) -> Case:
    rows = [json.loads(line) for line in ABSTRACTS.read_text(encoding="utf-8").splitlines()][:most]
    model = folder / "titles"
    model.mkdir()
    for path in TITLES.iterdir():
        (model / path.name).symlink_to(path.resolve())
    limits = {"summarization": {"max_document_tokens": DOCUMENT_TOKENS}}
    for name, more in (("config", {"task_specific_params": limits}), ("generation_config", {})):
        path = model / f"{name}.json"
        own = json.loads(path.read_text(encoding="utf-8")) | more
        if name == "generation_config":
            own["max_new_tokens"] = SUMMARY_TOKENS
        path.unlink()
        path.write_text(json.dumps(own), encoding="utf-8")
    peers = {"generate": {"model": model}}
    texts = [row["document"] for row in rows]
    return Case("summarization", model, "T5, titles-small", texts, peers, [row["summary"] for row in rows])


CASES: dict[str, Callable[[Path, int], Case]] = {
    "image": image_case,
    "speech": speech_case,
    "speech_fitted": speech_fitted_case,
    "summaries": summaries_case,
}


# ------------------------------------------------------------------------------------------------ arms


def tltasks_arm(model: Path, task: str, precision: str | None) -> Arm:
    """What `tltasks predict` does between opening the model and writing outputs."""
    import torch

    from tltasks.hub.saved_model import load_saved_model
    from tltasks.inference.predictor import Predictor

    predictor = Predictor.load(load_saved_model(str(model), tag=task), torch.device("cpu"), precision=precision)

    def run(inputs: Sequence[str]) -> list[Answer]:
        found = predictor(iter(inputs), top_k=ALL)
        return [
            {"text": o["prediction"], "scores": {e["label"]: e["probability"] for e in o.get("top", ())}} for o in found
        ]

    return run


def formats(precision: str, *, autocast: bool) -> tuple[Any, Callable[[], Any]]:
    """The format of a peer's weights, and what it computes within."""
    import torch

    low = precision == "bf16"
    dtype = torch.bfloat16 if low and not autocast else torch.float32
    return dtype, (lambda: torch.autocast("cpu", torch.bfloat16)) if low and autocast else nullcontext


def image_peer(precision: str, *, model: Path, batch_size: int, autocast: bool) -> Arm:
    from transformers import pipeline

    dtype, context = formats(precision, autocast=autocast)
    classify = pipeline("image-classification", model=str(model), dtype=dtype, device="cpu")

    def run(inputs: Sequence[str]) -> list[Answer]:
        with context():
            found = [
                {entry["label"]: entry["score"] for entry in scores}
                for scores in classify(list(inputs), batch_size=batch_size, top_k=ALL)
            ]
        return [{"text": max(scores, key=scores.__getitem__), "scores": scores} for scores in found]

    return run


def speech_peer(precision: str, *, model: Path, batch_size: int, autocast: bool, beams: int | None = 1) -> Arm:
    from transformers import pipeline

    from tltasks.tasks.speech.audio import decode_audio

    dtype, context = formats(precision, autocast=autocast)
    transcribe = pipeline("automatic-speech-recognition", model=str(model), dtype=dtype, device="cpu")
    hz = transcribe.feature_extractor.sampling_rate
    keys = {} if beams is None else {"generate_kwargs": {"num_beams": beams}}

    def decoded(files: Sequence[str]) -> Iterator[dict[str, Any]]:
        for path in files:
            yield {"raw": decode_audio(path, hz), "sampling_rate": hz}

    def run(inputs: Sequence[str]) -> list[Answer]:
        with context():
            found = list(transcribe(decoded(inputs), batch_size=batch_size, **keys))
        return [{"text": answer["text"].strip()} for answer in found]

    return run


def summaries_peer(precision: str, *, model: Path, batch_size: int, autocast: bool) -> Arm:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    dtype, context = formats(precision, autocast=autocast)
    tokenizer = AutoTokenizer.from_pretrained(model)
    writer = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=dtype).eval()

    def run(inputs: Sequence[str]) -> list[Answer]:
        ids = tokenizer(
            [f"summarize: {text}" for text in inputs], truncation=True, max_length=DOCUMENT_TOKENS
        ).input_ids
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        answers: list[Answer] = [{}] * len(ids)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            with torch.inference_mode(), context():
                written = writer.generate(**batch)
            for i, text in zip(rows, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
                answers[i] = {"text": text.strip()}
        return answers

    return run


PEERS: dict[str, Callable[..., Arm]] = {
    "image-classification": image_peer,
    "automatic-speech-recognition": speech_peer,
    "summarization": summaries_peer,
}


def best_peer(
    build: Callable[..., Arm], case: Case, precision: str, options: argparse.Namespace
) -> tuple[Arm, Setting, list[dict[str, Any]]]:
    """The fastest setting of a peer, and all that were tried."""
    few, tried = case.inputs[: options.tried], []
    # Under autocast Whisper's spectrograms are made in bf16, which numpy does not take (transformers 5.24).
    may_autocast = precision == "bf16" and case.task != "automatic-speech-recognition"
    for autocast in (False, True) if may_autocast else (False,):
        for batch_size in options.batch_sizes:
            setting = {"batch_size": batch_size, "autocast": autocast}
            arm = build(precision, **setting)
            tried.append({**setting, "inputs_per_second": speed(arm, few, CLOCKS[options.clock])})
    best = max(tried, key=lambda it: it["inputs_per_second"])
    setting = {key: best[key] for key in ("batch_size", "autocast")}
    return build(precision, **setting), setting, tried


# ------------------------------------------------------------------------------------------- start-up


def starts(case: Case, cores: int) -> dict[str, float]:
    """Processor time of a process from nothing to the first answer, for ours and for the first peer."""
    found = {}
    for arm in ("tltasks", "peer"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, __file__, "--cores", str(cores), "--start", arm, case.task, str(case.model)]
        subprocess.run([*command, case.inputs[0]], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[arm] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)
    return found


def start(kind: str, task: str, model: str, value: str) -> None:
    import torch

    from tltasks.runtime.precision import choose_precision

    precision = choose_precision("auto", torch.device("cpu"))
    if kind == "tltasks":
        arm = tltasks_arm(Path(model), task, precision)
    else:
        arm = PEERS[task](precision, model=Path(model), batch_size=1, autocast=False)
    print(arm([value]))


# --------------------------------------------------------------------------------------------- numbers

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def speed(arm: Arm, inputs: Sequence[str], clock: Callable[[], float]) -> float:
    """Inputs a second, over the whole list, after one pass over a few that does not count."""
    arm(inputs[:4])
    started = clock()
    count = len(arm(inputs))
    assert count == len(inputs)
    return count / (clock() - started)


def agreement(ours: list[Answer], theirs: list[Answer], references: list[str]) -> dict[str, float]:
    """The share of answers that are the same; the largest difference of a probability, or both's scores."""
    pairs = list(zip(ours, theirs, strict=True))
    found: dict[str, float] = {"same": sum(a["text"] == b["text"] for a, b in pairs) / len(pairs)}
    if references:
        from tltasks.metrics.error_rate import count_errors, error_rates, normaliser

        even = normaliser("english")
        for name, answers in (("ours", ours), ("theirs", theirs)):
            texts = [even(answer["text"]) for answer in answers]
            rates = error_rates(count_errors(texts, [even(text) for text in references], spaced=True))
            found[f"word_error_rate_{name}"] = round(rates["wer"], 4)
    else:
        found["largest_difference"] = max(abs(a["scores"][k] - b["scores"][k]) for a, b in pairs for k in a["scores"])
    return found


def summary(values: list[float]) -> dict[str, float]:
    found = {"least": min(values), "median": statistics.median(values), "most": max(values)}
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
