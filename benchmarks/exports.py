"""Exports beside the models they are of: as good, and so many times as fast as transformers and faster-whisper?

    for name in voice_prompts voice_prompts_es paper_titles emoji_lora; do tltasks run recipes/offline/$name.yaml; done
    python -m venv /elsewhere/fw && /elsewhere/fw/bin/pip install faster-whisper
    python benchmarks/exports.py quality --faster-whisper /elsewhere/fw/bin/python
    python benchmarks/exports.py rows --only images --of emoji_lora_0 emoji_lora_1 emoji_lora_2
    python benchmarks/exports.py rows --only summaries
    python benchmarks/exports.py speed --faster-whisper /elsewhere/fw/bin/python

`quality` writes each run's export in int8 and takes its own re-scoring, whatever the difference is; what Whisper's
file makes in faster-whisper itself, in an environment of its own, goes through the same evaluation. `rows`: the paired
difference on more rows than the run's test set, none of them trained on, over several runs of it; an input's
differences are drawn together in the interval. Of summaries also nats a token of the references, in CTranslate2 as it
is and in int8. `speed`: the arms answer the same inputs in turns, reading and decoding included, and ratios are of
neighbours in one round. transformers' peers are those of benchmarks/predict.py, at the fastest batch size of those
tried, in bf16 where the processor has it; for speech also `as_it_comes`: Whisper without a fitted window, which is
filled up to 30 s.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "exports.json"
PROMPTS = {
    "speech": REPOSITORY / "recipes" / "offline" / "voice_prompts" / "test.csv",
    "spanish": REPOSITORY / "data" / "voice_prompts_es" / "test.csv",
}
sys.path[:0] = [str(REPOSITORY)]

RUNS: dict[str, tuple[str, str]] = {
    "speech": ("voice_prompts", "ctranslate2"),
    "spanish": ("voice_prompts_es", "ctranslate2"),
    "summaries": ("paper_titles", "ctranslate2"),
    "images": ("emoji_lora", "onnx"),
}
FASTER_WHISPER = """
import json, sys, time
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio
folder, cores, batch, language = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] or None
model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=cores)
keys = dict(beam_size=1, without_timestamps=True, language=language, temperature=0)
write = lambda segments: " ".join(segment.text.strip() for segment in segments)
def ask(paths):
    if not batch:
        return [write(model.transcribe(path, **keys)[0]) for path in paths]
    clips, at, spans = [decode_audio(path) for path in paths], 0, []
    for clip in clips:
        spans.append({"start": at / 16000, "end": (at + len(clip)) / 16000})
        at += len(clip)
    pipeline = BatchedInferencePipeline(model)
    return [write(pipeline.transcribe(np.concatenate(clips), batch_size=batch, clip_timestamps=spans, **keys)[0])]
for line in sys.stdin:
    paths = json.loads(line)
    ask(paths[:2])
    started = time.perf_counter()
    texts = ask(paths)
    print(json.dumps({"seconds": time.perf_counter() - started, "texts": texts}), flush=True)
"""
"""Batched, it is given all clips as one sound with their times, as it makes batches of a single sound alone."""


class FasterWhisper:
    """faster-whisper in an environment of its own, which answers lists of files."""

    def __init__(self, python: str, folder: Path, cores: int, batch: int = 0, language: str = "") -> None:
        command = [python, "-c", FASTER_WHISPER, str(folder), str(cores), str(batch), language]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, paths: Sequence[str]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(list(paths)) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=["quality", "rows", "speed"])
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "outputs", help="folder with the runs")
    parser.add_argument("--of", nargs="+", help="rows: runs, each with its export in int8; default: the recipe's")
    parser.add_argument("--most", type=int, default=400, help="rows: of summaries")
    parser.add_argument("--faster-whisper", help="Python of an environment that has it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=48, help="inputs of a round, at most")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT, help="result file; other cases in it stay")
    options = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    for name in options.only:
        run, kind = options.runs / RUNS[name][0], RUNS[name][1]
        if options.what == "quality":
            found = quality(name, run, kind, options)
        elif options.what == "rows":
            found = on_more_rows(name, [options.runs / it for it in options.of or [RUNS[name][0]]], kind, options.most)
        elif name == "spanish":  # as fast as `speech` for what its model is
            continue
        else:
            os.environ["OMP_NUM_THREADS"] = str(options.cores)
            found = speed_of(name, run, run / f"{kind}-int8", options)
        write(options.output, name, options.what, found)


def write(path: Path, name: str, what: str, found: dict[str, Any]) -> None:
    from tltasks.runtime import devices

    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}
    known |= {"processor": devices.processor_name(), "versions": devices.versions()}
    known["cases"].setdefault(name, {})[what] = found
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    print(name, what, json.dumps(found, indent=1))


# --------------------------------------------------------------------------------------------- quality


def quality(name: str, run: Path, kind: Any, options: argparse.Namespace) -> dict[str, Any]:
    from tltasks.hub.saved_model import load_saved_model
    from tltasks.inference import rescoring
    from tltasks.inference.export import export

    folder = run / f"{kind}-int8"
    shutil.rmtree(folder, ignore_errors=True)
    outcome = export(str(run), folder, kind=kind, quantize="int8", tolerance=100)
    found: dict[str, Any] = {name: asdict(row) for name, row in outcome.rescored.items()}
    saved: Any = load_saved_model(str(run))
    if options.faster_whisper and saved.task.architecture == "whisper":
        test = rescoring.open_test_set(saved)
        with PROMPTS[name].open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        paths = [str(PROMPTS[name].parent / rows[row]["audio"]) for row in test.encoded.rows["row"]]
        ours = rescoring.answer(str(run), str(run), tag=saved.task.tag, trust_remote_code=False)
        theirs = FasterWhisper(options.faster_whisper, folder, options.cores, language=saved.plan.model.language or "")
        answers = theirs(paths)
        theirs.close()
        predictions = [{**it, "prediction": text} for it, text in zip(ours.predictions, answers["texts"], strict=True)]
        other = rescoring.Answers(predictions, answers["seconds"], 0, 0)
        found["faster_whisper"] = asdict(rescoring.rescore(test, ours, {"faster_whisper": other})["faster_whisper"])
    return found


# ------------------------------------------------------------------------------------------------ rows


def on_more_rows(name: str, runs: Sequence[Path], kind: str, most: int) -> dict[str, Any]:
    import numpy as np

    import tltasks
    from tltasks.metrics.intervals import paired_difference

    inputs, truth, keys = emoji() if name == "images" else titles(most)
    measure = right if name == "images" else rouge1
    ours, theirs, same = list[list[float]](), list[list[float]](), 0
    for run in runs:
        told = [[it["prediction"] for it in tltasks.load(place)(inputs)] for place in (run, run / f"{kind}-int8")]
        same += sum(a == b for a, b in zip(*told, strict=True))
        for scores, answers in zip((ours, theirs), told, strict=True):
            scores.append([100 * measure(*pair) for pair in zip(answers, truth, strict=True)])
    groups = {key: [i for i, it in enumerate(keys) if it == key] for key in keys}
    by_input = [
        np.array([[np.mean(scores, 0)[rows].sum(), len(rows)] for rows in groups.values()]) for scores in (ours, theirs)
    ]
    difference = float(np.mean(theirs) - np.mean(ours))
    found = {
        "runs": [run.name for run in runs],
        "rows": len(inputs),
        "inputs": len(groups),
        "same_answers": same / len(inputs) / len(runs),
        "trained": float(np.mean(ours)),
        "int8": float(np.mean(theirs)),
        "difference": difference,
        "difference_ci95": paired_difference(by_input[1], by_input[0], most=100.0),
    }
    if name == "summaries":
        found["nats_a_token"] = likelihood(runs[0], inputs, truth)
    return found


def right(answer: str, truth: str) -> float:
    return float(answer == truth)


def rouge1(answer: str, truth: str) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rouge1"], use_stemmer=True).score(truth, answer)["rouge1"].fmeasure)


def emoji() -> tuple[list[Any], list[str], list[str]]:
    """Pictures that no run of the recipe is trained on, their class, and the emoji that each is of."""
    import datasets
    import pyarrow.parquet as pq

    files = [f"recipes/offline/emoji/{it}.parquet" for it in ("google-test", "twitter-test", "twitter-train")]
    tables = [pq.read_table(REPOSITORY / it) for it in files]
    rows = [row for table in tables for row in table.to_pylist()]
    names = datasets.Features.from_arrow_schema(tables[0].schema)["label"].names
    return [it["image"]["bytes"] for it in rows], [names[it["label"]] for it in rows], [it["unified"] for it in rows]


def titles(most: int) -> tuple[list[Any], list[str], list[str]]:
    """Abstracts and titles of the test set and of validation, and descriptions and synopses of packages."""
    rows = []
    for table in ("paper_titles/test", "paper_titles/validation", "package_synopsis/test"):
        lines = (REPOSITORY / f"data/{table}.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [json.loads(line) for line in lines]
    rows = rows[:most]
    return [it["document"] for it in rows], [it["summary"] for it in rows], [str(i) for i in range(len(rows))]


def likelihood(run: Path, documents: Sequence[str], summaries: Sequence[str]) -> dict[str, Any]:
    """Nats a token of the references by the export in int8, and the difference to one that is not quantised."""
    import ctranslate2
    import numpy as np
    from transformers import AutoTokenizer

    from tltasks.inference.export import export
    from tltasks.metrics.intervals import paired_difference

    sums = []
    with tempfile.TemporaryDirectory() as scratch:
        export(str(run), Path(scratch) / "plain", kind="ctranslate2", scored=False)
        tokenizer = AutoTokenizer.from_pretrained(Path(scratch) / "plain" / "setup")
        cut = [tokenizer(text, truncation=True, max_length=320).input_ids for text in documents]
        source = [tokenizer.convert_ids_to_tokens(ids) for ids in cut]
        target = [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[:-1] for text in summaries]
        for place in (Path(scratch) / "plain", run / "ctranslate2-int8"):
            scorer = ctranslate2.Translator(str(place), device="cpu", intra_threads=1)
            rows = scorer.score_batch(source, target, max_batch_size=8, max_input_length=0)
            sums.append(np.array([[-sum(it.log_probs), len(it.log_probs)] for it in rows]))
    plain, int8 = (float(it[:, 0].sum() / it[:, 1].sum()) for it in sums)
    ci95 = paired_difference(sums[1], sums[0], most=None)
    return {"plain": plain, "int8": int8, "difference": int8 - plain, "difference_ci95": ci95}


# ----------------------------------------------------------------------------------------------- speed


def speed_of(name: str, run: Path, export: Path, options: argparse.Namespace) -> dict[str, Any]:
    import time

    import torch

    from benchmarks import predict
    from tltasks.hub.saved_model import load_saved_model, write_merged
    from tltasks.runtime.precision import choose_precision

    torch.set_num_threads(options.cores)
    precision, saved = choose_precision("auto", torch.device("cpu")), load_saved_model(str(run))
    inputs = inputs_of(name, run, options.inputs)
    with tempfile.TemporaryDirectory() as scratch:
        whole = saved.folder
        if saved.base is not None:
            whole = Path(scratch) / "whole"
            write_merged(saved, whole)
        task = saved.task.tag
        arms = {
            "export": predict.tltasks_arm(export, task, None),  # which computes as it was exported
            "tltasks": predict.tltasks_arm(run, task, precision),
        }
        timed = partial(predict.speed, clock=time.perf_counter)
        best = {}
        for peer, (model, keys) in peers_of(name, whole).items():
            tries = {
                size: predict.PEERS[task](precision, model=model, batch_size=size, autocast=False, **keys)
                for size in options.batch_sizes
            }
            tried = {size: timed(arm, inputs[:16]) for size, arm in tries.items()}
            best[peer] = max(tried, key=lambda size: tried[size])
            arms[peer] = tries[best[peer]]
        others = faster_whispers(export, options) if name == "speech" and options.faster_whisper else {}
        rounds = []
        for _ in range(options.rounds):
            found = {kind: timed(arm, inputs) for kind, arm in arms.items()}
            found |= {kind: len(inputs) / other(inputs)["seconds"] for kind, other in others.items()}
            rounds.append({kind: round(value, 3) for kind, value in found.items()})
        for other in others.values():
            other.close()
    ratios = {kind: [it["export"] / it[kind] for it in rounds] for kind in rounds[0] if kind != "export"}
    return {
        "inputs": len(inputs),
        "cores": options.cores,
        "precision_of_peers": precision,
        "peer_batch_sizes": best,
        "export_is_times_as_fast_as": {kind: statistics.median(values) for kind, values in ratios.items()},
        "least": {kind: min(values) for kind, values in ratios.items()},
        "rounds": rounds,
    }


def peers_of(name: str, whole: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """transformers on the trained model, whose window is fitted, and on Whisper as it comes, which hears 30 s."""
    from benchmarks import predict

    as_it_comes: dict[str, Any] = {"transformers_as_it_comes": (predict.WHISPER, {"beams": 1})}
    return {"transformers": (whole, {})} | (as_it_comes if name == "speech" else {})


def faster_whispers(export: Path, options: argparse.Namespace) -> dict[str, FasterWhisper]:
    """faster-whisper, clip by clip and through its batched pipeline."""
    made = partial(FasterWhisper, options.faster_whisper, export, options.cores)
    return {"faster_whisper": made(0), "faster_whisper_batched": made(16)}


def inputs_of(name: str, run: Path, most: int) -> list[str]:
    from benchmarks import predict

    if name == "speech":
        return predict.clips(most)[0]
    if name == "summaries":
        rows = predict.ABSTRACTS.read_text(encoding="utf-8").splitlines()[:most]
        return [json.loads(row)["document"] for row in rows]
    import pyarrow.parquet as pq

    folder = run / "benchmark-inputs"
    folder.mkdir(exist_ok=True)
    rows = pq.read_table(REPOSITORY / "recipes/offline/emoji/google-test.parquet").to_pylist()[:most]
    files = [folder / f"{i:03}.png" for i in range(len(rows))]
    for path, row in zip(files, rows, strict=True):
        path.write_bytes(row["image"]["bytes"])
    return [str(path) for path in files]


if __name__ == "__main__":
    main()
