"""Time until Whisper tiny.en is as good as `Seq2SeqTrainer` makes it in one epoch, on the same clips, alternating.

    python recipes/offline/fetch_whisper.py tiny.en
    python benchmarks/speech.py [--rounds 3]

The peer is set up as transformers' example `run_speech_recognition_seq2seq.py` for Whisper: 30-second spectrograms made
beforehand, batches of 16, learning rate 1e-5, warm-up, everything trained; once in fp32, its default, and once tuned
with bf16 and length grouping. Ours is recipes/offline/voice_prompts.yaml with one epoch: a window fitted to the clips
and LoRA, once in fp32 and once in bf16. Both are judged by greedy decoding of the test clips under one normaliser.

Two times are taken: of the optimiser steps alone, and of everything from opening the files to the last transcript.
Each run has a process of its own, so that neither finds the other's memory or caches.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLIPS = ROOT / "recipes" / "offline" / "voice_prompts"
MODEL = ROOT / "weights" / "whisper-tiny.en"
RESULT = Path(__file__).parent / "results" / "speech.json"
ARMS = ("peer fp32", "ours fp32", "peer bf16, grouped", "ours bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs of ours (default: %(default)s)")
    parser.add_argument("--arm", choices=ARMS, help="run one arm and print its numbers; used by the benchmark itself")
    arguments = parser.parse_args()
    if not (MODEL / "config.json").is_file():
        sys.exit(f"{MODEL}: is missing; run `python recipes/offline/fetch_whisper.py tiny.en`")
    if arguments.arm:
        kind, _, rest = arguments.arm.partition(" ")
        found = run_peer(tuned="grouped" in rest) if kind == "peer" else run_ours(rest, arguments.epochs)
        print(json.dumps(found))
        return
    rounds = [{arm: in_process(arm, arguments.epochs) for arm in ARMS} for _ in range(arguments.rounds)]
    from tltasks.runtime import devices

    result = {
        "command": " ".join(["python benchmarks/speech.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "ratios": report(rounds),
        "rounds": rounds,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_process(arm: str, epochs: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--arm", arm, "--epochs", str(epochs)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as caches:
        environment["HF_DATASETS_CACHE"] = caches
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arm:20} {describe(found)}", flush=True)
    return found


def describe(found: dict[str, float]) -> str:
    return f"steps {found['steps']:7.1f} s   everything {found['everything']:7.1f} s   WER {found['wer']:.1%}"


def report(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Ratios of medians over the rounds."""
    ratios: dict[str, dict[str, float]] = {}
    middle = {
        arm: {key: sorted(r[arm][key] for r in rounds)[len(rounds) // 2] for key in ("steps", "everything", "wer")}
        for arm in ARMS
    }
    for ours, peer, most in (("ours fp32", "peer fp32", 1 / 5), ("ours bf16", "peer bf16, grouped", 1 / 2.5)):
        reached = middle[ours]["wer"] <= middle[peer]["wer"]
        ratio = middle[ours]["steps"] / middle[peer]["steps"]
        whole = middle[ours]["everything"] / middle[peer]["everything"]
        print(
            f"{ours} / {peer}: steps {ratio:.3f} (at most {most:.3f}: {'yes' if ratio <= most else 'NO'}), "
            f"everything {whole:.3f}; WER {middle[ours]['wer']:.1%} against {middle[peer]['wer']:.1%} "
            f"({'reached' if reached else 'NOT reached'})"
        )
        ratios[f"{ours} / {peer}"] = {"steps": round(ratio, 4), "everything": round(whole, 4)}
    return ratios


# ------------------------------------------------------------------------------------------------ arms


def run_ours(precision: str, epochs: float) -> dict[str, float]:
    started = time.perf_counter()
    from tltasks.config.loading import load_recipe
    from tltasks.runs.story import run

    overrides = [f"stages.0.epochs={epochs}", f"precision={precision}", "data.splits.validation=null"]
    recipe = load_recipe(ROOT / "recipes" / "offline" / "voice_prompts.yaml", overrides)
    with tempfile.TemporaryDirectory() as folder:
        result = run(recipe, output=Path(folder) / "run")
    stage = result.stages[0]
    return {
        "steps": float(stage.training.seconds),
        "everything": time.perf_counter() - started,
        "wer": stage.metrics["test"].values["wer"],
    }


def run_peer(*, tuned: bool) -> dict[str, float]:
    started = time.perf_counter()
    import datasets
    import numpy as np
    import torch
    import transformers
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperForConditionalGeneration, WhisperProcessor

    from tltasks.metrics.error_rate import count_errors, error_rates, normaliser
    from tltasks.tasks.speech.audio import decode_audio

    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    processor = WhisperProcessor.from_pretrained(MODEL)
    model = WhisperForConditionalGeneration.from_pretrained(MODEL)

    def prepared(split: str) -> datasets.Dataset:
        with (CLIPS / f"{split}.csv").open(encoding="utf-8") as file:
            rows = datasets.Dataset.from_list(list(csv.DictReader(file)))

        def prepare(row: dict[str, Any]) -> dict[str, Any]:
            samples = decode_audio(str(CLIPS / row["audio"]), 16000)
            features = processor.feature_extractor(samples, sampling_rate=16000).input_features[0]
            return {
                "input_features": features,
                "input_length": len(samples),
                "labels": processor.tokenizer(row["text"]).input_ids,
            }

        return rows.map(prepare, remove_columns=["audio"])

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = processor.feature_extractor.pad(
            [{"input_features": row["input_features"]} for row in rows], return_tensors="pt"
        )
        labels = processor.tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        ids = labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)
        if (ids[:, 0] == model.config.decoder_start_token_id).all():
            ids = ids[:, 1:]
        return {**batch, "labels": ids}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        ids = np.where(prediction.predictions == -100, processor.tokenizer.pad_token_id, prediction.predictions)
        even = normaliser("english")
        heard = [even(text) for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return error_rates(count_errors(heard, [even(text) for text in test["text"]], spaced=True))

    train, test = prepared("train"), prepared("test")
    with tempfile.TemporaryDirectory() as folder:
        more = {"bf16": True, "train_sampling_strategy": "group_by_length"} if tuned else {}
        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=16,
                learning_rate=1e-5,
                warmup_steps=1,
                num_train_epochs=1,
                predict_with_generate=True,
                length_column_name="input_length",
                remove_unused_columns=False,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                **more,
            ),
            train_dataset=train,
            eval_dataset=test,
            data_collator=collate,
            compute_metrics=compute_metrics,
            processing_class=processor.feature_extractor,
        )
        before = time.perf_counter()
        trainer.train()
        steps = time.perf_counter() - before
        wer = trainer.evaluate()["eval_wer"]
    return {"steps": steps, "everything": time.perf_counter() - started, "wer": wer}


if __name__ == "__main__":
    main()
