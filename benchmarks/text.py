"""Time until the quality that Seq2SeqTrainer reaches after one epoch on the same pairs, alternating, on this machine.

    python recipes/offline/fetch_t5_titles.py
    python recipes/offline/build_package_synopsis.py
    python benchmarks/text.py --repeats 3

The peer is set up as transformers' summarisation example (run_summarization.py with its README's flags): full
fine-tuning, AdamW at 5e-5, linear decay, batches of 4 padded to their longest. `peer-tuned` has bf16 and groups by
length. Ours is the shipped LoRA recipe for 0.6 of an epoch at 2e-3, in batches of 4 as well; it cuts documents at 128
tokens, the peer at 256. Each arm is a process of its own. The clock runs while pairs are read and trained on; loading
and evaluation stand outside it, for all arms. Quality is ROUGE-1 of greedy summaries of the first test pairs. Nothing
else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECIPE = ROOT / "recipes" / "offline" / "package_synopsis.yaml"
WEIGHTS, DATA = ROOT / "weights" / "t5-titles", ROOT / "data" / "package_synopsis"
RESULT = Path(__file__).parent / "results" / "text.json"
ARMS = ("peer", "peer-tuned", "tltasks")
PREFIX, DOCUMENT_TOKENS, SUMMARY_TOKENS = "summarize: ", 256, 24


def main() -> None:
    parser = argparse.ArgumentParser(description="tltasks beside Seq2SeqTrainer.")
    parser.add_argument("--arm", choices=ARMS, help="run this one alone and print its numbers as JSON")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--judged", type=int, default=100)
    options = parser.parse_args()
    if options.arm:
        measured = by_tltasks(options) if options.arm == "tltasks" else by_peer(options, tuned=options.arm != "peer")
        print(json.dumps(measured))
        return
    from tltasks.runtime import devices

    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for repeat in range(options.repeats):
        for arm in ARMS:
            found[arm].append(in_process(arm, options))
            print(f"{repeat + 1} {arm:10} {shown(found[arm][-1])}", flush=True)
    result = {
        "command": " ".join(["python benchmarks/text.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "times_our_time": ratios(found),
        "arms": found,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_process(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--arm", arm, "--pairs", str(options.pairs), "--judged", str(options.judged)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode:
        sys.exit(f"error: {arm} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return measured


def shown(measured: dict[str, Any]) -> str:
    return ", ".join(f"{seconds:.1f} s: ROUGE-1 {rouge1:.1f}" for seconds, rouge1 in measured["curve"])


def ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The peer's time for its quality over ours for the same, by peer and repeat."""
    all_quotients: dict[str, list[float]] = {}
    for peer in ARMS[:2]:
        quotients = []
        for theirs, ours in zip(found[peer], found["tltasks"], strict=True):
            seconds, quality = theirs["curve"][-1]
            reached = next((at for at, rouge1 in ours["curve"] if rouge1 >= quality), None)
            if reached is None:
                print(f"{peer}: ROUGE-1 {quality:.1f} was not reached")
                continue
            quotients.append(seconds / reached)
            print(f"{peer}: ROUGE-1 {quality:.1f} after {seconds:.1f} s, ours after {reached:.1f} s")
        if quotients:
            print(f"{peer}: {statistics.median(quotients):.1f} times our time (median of {len(quotients)})")
        all_quotients[peer] = [round(quotient, 2) for quotient in quotients]
    return all_quotients


# ----------------------------------------------------------------------------------------------- arms


def by_tltasks(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe on the same pairs, evaluated every few steps outside the clock."""
    from tltasks.config import loading
    from tltasks.runs import story
    from tltasks.tasks.text.summarization import Summarization
    from tltasks.training import tracking

    clock = 0.0
    curve: list[tuple[float, float]] = []
    read, log = Summarization.collate_train, tracking.Tracker.log

    def timed_read(self: Any, rows: Any, indices: Any, *, epoch: int) -> Any:
        nonlocal clock
        started = time.perf_counter()
        batch = read(self, rows, indices, epoch=epoch)
        clock += time.perf_counter() - started
        return batch

    def timed_log(self: Any, stage: str, split: str, step: int, **values: float) -> None:
        nonlocal clock
        if split == "train":
            clock += batch_size / values["examples_per_second"]
        else:
            curve.append((clock, values["rouge1"]))
        log(self, stage, split, step, **values)

    Summarization.collate_train, tracking.Tracker.log = timed_read, timed_log  # type: ignore[method-assign]
    overrides = [
        f"data.splits.train=train[:{options.pairs}]",
        f"data.splits.validation=test[:{options.judged}]",
        "data.splits.test=test[:1]",
        "model.generation.num_beams=1",
        "stages.0.batch_size=4",
        "stages.0.epochs=0.6",
        "stages.0.learning_rate=2e-3",
        "stages.0.evaluate_every=8",
        "stages.0.evaluate_rows=null",
    ]
    recipe = loading.load_recipe(RECIPE, overrides)
    batch_size = recipe.stages[0].batch_size
    with tempfile.TemporaryDirectory() as scratch:
        story.run(recipe, output=Path(scratch) / "run")
    return {"curve": curve}


def by_peer(options: argparse.Namespace, *, tuned: bool) -> dict[str, Any]:
    import datasets
    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    from tltasks.metrics.rouge import row_scores

    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForSeq2SeqLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    rows = datasets.load_dataset("json", data_files={s: str(DATA / f"{s}.jsonl") for s in ("train", "test")})

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        asked = [PREFIX + document for document in batch["document"]]
        inputs = tokenizer(asked, max_length=DOCUMENT_TOKENS, truncation=True)
        inputs["labels"] = tokenizer(text_target=batch["summary"], max_length=SUMMARY_TOKENS, truncation=True).input_ids
        return dict(inputs)

    train = rows["train"].select(range(options.pairs))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = Seq2SeqTrainingArguments(
            scratch,
            num_train_epochs=1,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=tuned,
            train_sampling_strategy="group_by_length" if tuned else "random",
        )
        trainer = Seq2SeqTrainer(
            model,
            arguments,
            train_dataset=train.map(encode, batched=True, remove_columns=train.column_names),
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    judged = rows["test"].select(range(options.judged))
    written: list[str] = []
    model.eval()
    for start in range(0, len(judged), 20):
        asked = [PREFIX + document for document in judged["document"][start : start + 20]]
        inputs = tokenizer(asked, max_length=DOCUMENT_TOKENS, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=SUMMARY_TOKENS
            )
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return {"curve": [(seconds, float(row_scores(written, list(judged["summary"]))[:, 0].mean()))]}


if __name__ == "__main__":
    main()
