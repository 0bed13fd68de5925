"""The same training work by tltasks and by transformers' Trainer: examples a second and peak memory, taking turns.

    python recipes/offline/fetch_t5_titles.py
    python recipes/offline/build_package_synopsis.py
    python recipes/offline/fetch_whisper.py tiny.en
    python benchmarks/same_work.py [--rounds 3] [--tasks text speech images] [--before CHECKOUT]

Both sides train the same weights of the same checkpoint on the same rows with the same cuts, for one epoch in batches
of 8, in bf16 autocast with AdamW and gradients clipped at 1:

- `text`: LoRA of rank 16 on every linear layer of a small T5; 256 tokens of a package's text, 24 of its
  synopsis.
- `speech`: LoRA of rank 16 on every linear layer of Whisper tiny.en, windows of 30 s, spoken prompts.
- `images`: every weight of ViT-S/16 (random; 22 M) on photos of 224 px, randomly cropped and flipped.

The `peer` is `Seq2SeqTrainer` with PEFT, or `Trainer`, as one who knows it would set it up: `bf16`, fused AdamW, rows
grouped by length, nothing evaluated, saved or logged meanwhile, no loader workers (they compete for the same two cores;
`--workers` tries some). Rows are encoded before the clock starts on both sides: token ids, spectrograms and photos
of 224 px for the peer; tltasks keeps sound as such, and makes spectrograms within the time. The clock runs from the
first batch that is read to the end of the last step. tltasks runs by a recipe with all else as it is by default.
`before` is tltasks of another checkout, whose steps may not know `group_by_length` and so have random rows.

Each arm is a process of its own. Its peak memory is the high-water mark of the whole process (VmHWM) when the last step
ends; what Python and the imported libraries take of it stands beside. That the work is the same is told by the numbers
of trained weights, and by the losses of the same plain passes of both models before and after.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "same_work.json"
TASKS = {"text": 96, "speech": 24, "images": 96}
"""Rows of an epoch of each."""
BATCH, RANK, JUDGED = 8, 16, 16
PREFIX, DOCUMENT_TOKENS, SUMMARY_TOKENS = "summarize: ", 256, 24
RATES = {"text": 1e-3, "speech": 2e-4, "images": 3e-5}
CLIPS = ROOT / "recipes" / "offline" / "voice_prompts"
MODELS = {"text": ROOT / "weights" / "t5-titles", "speech": ROOT / "weights" / "whisper-tiny.en"}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--before", type=Path, help="another checkout of tltasks, as one more arm of `text`")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="loader processes of the peer")
    parser.add_argument("--add", action="store_true", help="put the rounds beside those in the result file")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--arm", choices=("ours", "peer", "before"), help="run one arm and print its numbers")
    parser.add_argument("--folder", type=Path, help="where made-up photos are, or are made")
    options = parser.parse_args()
    if options.arm:
        run = train_with_trainer if options.arm == "peer" else train_with_tltasks
        print(json.dumps(run(options.tasks[0], options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        if "images" in options.tasks:
            made_up_photos(options.folder)
        compare(options)


# -------------------------------------------------------------------------------------- measurement


def imported_bytes() -> int:
    """Resident memory of the process by now."""
    return status("VmRSS")


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    sys.exit("Linux alone tells a process's peak memory so")


def measured(task: str, *, seconds: float, peak: int, base: int, trained: int, losses: list[float]) -> dict[str, Any]:
    return {
        "examples_per_second": round(TASKS[task] / seconds, 3),
        "seconds": round(seconds, 2),
        "peak_bytes": peak,
        "imports_bytes": base,
        "trained_weights": trained,
        "loss_before": losses[0],
        "loss_after": losses[1],
    }


def judge(task: str, model: Any, folder: Path) -> float:
    """Mean loss over the targets of some rows that are not trained on (of photos: that are), one row at a time."""
    import torch

    was, total, count = model.training, 0.0, 0
    model.eval()
    for inputs in plain_inputs(task, folder):
        n = int((inputs["labels"] != -100).sum())
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            total += float(model(**inputs).loss) * n
        count += n
    model.train(was)
    return round(total / count, 4)


def plain_inputs(task: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Arguments of transformers' own models for each row that is judged."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, WhisperProcessor

    for row in read_rows(task, "test", JUDGED, folder):
        if task == "text":
            tokenizer = AutoTokenizer.from_pretrained(MODELS[task])
            ids = tokenizer(PREFIX + row["document"], max_length=DOCUMENT_TOKENS, truncation=True).input_ids
            labels = tokenizer(text_target=row["summary"], max_length=SUMMARY_TOKENS, truncation=True).input_ids
            yield {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        elif task == "speech":
            processor = WhisperProcessor.from_pretrained(MODELS[task])
            features, labels = heard(row, processor)
            whole = torch.tensor([labels])
            start, targets = processor.tokenizer.bos_token_id, whole.masked_fill(whole == labels[0], -100)
            yield {
                "input_features": torch.tensor(features)[None],
                "decoder_input_ids": torch.tensor([[start, *labels[:-1]]]),
                "labels": targets,
            }
        else:
            processor = AutoImageProcessor.from_pretrained(folder / "vit")
            pixels = processor(row["image"].convert("RGB"), return_tensors="pt").pixel_values
            yield {"pixel_values": pixels, "labels": torch.tensor([row["label"]])}


def read_rows(task: str, split: str, n: int, folder: Path) -> list[dict[str, Any]]:
    """The first rows of a split as they are in the files."""
    import datasets

    if task == "text":
        data = {split: str(ROOT / "data" / "package_synopsis" / f"{split}.jsonl")}
        rows = datasets.load_dataset("json", data_files=data, split=split)
    elif task == "speech":
        with (CLIPS / f"{split}.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))[:n]
    else:
        rows = datasets.load_dataset("parquet", data_files=str(folder / "photos.parquet"), split="train")
    return list(rows.select(range(n)))


def heard(row: dict[str, Any], processor: Any) -> tuple[Any, list[int]]:
    """A clip's spectrogram of 30 s, and its labels: what follows the token that starts a text."""
    from tltasks.tasks.speech.audio import decode_audio

    samples = decode_audio(str(CLIPS / row["audio"]), 16000)
    features = processor.feature_extractor(samples, sampling_rate=16000).input_features[0]
    return features, processor.tokenizer(f" {row['text']}").input_ids[1:]


# -------------------------------------------------------------------------------------------- tltasks


def recipe_of(task: str, folder: Path, *, grouped: bool = True) -> dict[str, Any]:
    stage = {"stage": "finetune", "epochs": 1, "batch_size": BATCH, "learning_rate": RATES[task]}
    stage |= {"checkpoint_every": 10**6, "schedule": "linear", "warmup": 0.0}
    adapted = {"adapt": {"lora": {"rank": RANK}}, **({"group_by_length": True} if grouped else {})}
    rows = {"train": f"train[:{TASKS[task]}]", "test": "test[:1]"}
    found: dict[str, Any] = {"seed": 0, "output": "unused", "precision": "bf16"}
    if task == "text":
        data = ROOT / "data" / "package_synopsis"
        return found | {
            "task": "summarization",
            "model": {"name": str(MODELS[task])},
            "data": {
                "name": "json",
                "files": {name: str(data / f"{name}.jsonl") for name in ("train", "test")},
                "splits": rows,
                "max_document_tokens": DOCUMENT_TOKENS,
                "max_summary_tokens": SUMMARY_TOKENS,
            },
            "stages": [stage | adapted],
        }
    if task == "speech":
        return found | {
            "task": "automatic-speech-recognition",
            "model": {"name": str(MODELS[task])},
            "data": {
                "name": "csv",
                "files": {name: str(CLIPS / f"{name}.csv") for name in ("train", "test")},
                "splits": rows,
            },
            "stages": [stage | adapted],
        }
    return found | {
        "task": "image-classification",
        "model": {"name": str(folder / "vit")},
        "data": {
            "name": "parquet",
            "files": str(folder / "photos.parquet"),
            "splits": {"train": rows["train"], "test": "train[:20]"},
        },
        "stages": [stage | {"augment": {"crop": 0.08, "flip": True}}],
    }


def train_with_tltasks(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """One stage as `tltasks run` carries it out, up to the end of its loop."""
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run
    from tltasks.runs import stage as stages
    from tltasks.runs import story
    from tltasks.training.loop import train

    base = imported_bytes()
    with tempfile.TemporaryDirectory() as output:
        recipe = Path(output) / "recipe.yaml"
        recipe.write_text(
            json.dumps(recipe_of(task, options.folder, grouped=options.arm == "ours")), encoding="utf-8"
        )  # which is YAML, too
        context, (item,) = story.open_stages(plan_run(load_recipe(recipe, []), Path(output) / "run"))
        (Path(output) / "run").mkdir()
        item, built = stages._build(context, item)
        model, head = stages.adapt_model(item, built)
        if hold := getattr(stages, "hold_frozen", None):
            hold(context, item, model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        before = judge(task, model, options.folder)
        progress = train(context.accelerator, stages.make_job(context, item, head), model)
        peak = status("VmHWM")
        after = judge(task, model, options.folder)
    assert progress.examples == TASKS[task], progress
    return measured(task, seconds=progress.seconds, peak=peak, base=base, trained=trained, losses=[before, after])


# ---------------------------------------------------------------------------------------------- peer


def train_with_trainer(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trainer, and PEFT where an adapter is trained."""
    import torch
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

    base = imported_bytes()
    torch.set_num_threads(options.cores)
    torch.manual_seed(0)
    model, rows, collate = {"text": peer_text, "speech": peer_speech, "images": peer_images}[task](options.folder)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    before = judge(task, model, options.folder)
    warm_up(model, collate([rows[0], rows[1]]))
    arguments, trainer_class = (
        (TrainingArguments, Trainer) if task == "images" else (Seq2SeqTrainingArguments, Seq2SeqTrainer)
    )
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_class(
            model=model,
            args=arguments(
                output,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=RATES[task],
                weight_decay=0.01,
                bf16=True,
                optim="adamw_torch_fused",
                train_sampling_strategy="random" if task == "images" else "group_by_length",
                dataloader_num_workers=options.workers,
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[Clock()],
        )
        trainer.train()
    peak = status("VmHWM")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(times) == 1 + TASKS[task] // BATCH, times
    losses = [before, judge(task, model, options.folder)]
    return measured(task, seconds=times[-1] - times[0], peak=peak, base=base, trained=trained, losses=losses)


def warm_up(model: Any, batch: dict[str, Any]) -> None:
    """A pass before the clock starts: tltasks has one, too, in which it looks for weights that get no gradient."""
    import torch

    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**{name: values for name, values in batch.items() if name != "length"}).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


def with_lora(model: Any, **keys: Any) -> Any:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", **keys))


def peer_text(folder: Path) -> tuple[Any, Any, Callable[[list[Any]], Any]]:
    import datasets
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

    tokenizer = AutoTokenizer.from_pretrained(MODELS["text"])
    model = with_lora(
        AutoModelForSeq2SeqLM.from_pretrained(MODELS["text"], dtype=torch.float32), task_type="SEQ_2_SEQ_LM"
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        asked = [PREFIX + document for document in batch["document"]]
        inputs = tokenizer(asked, max_length=DOCUMENT_TOKENS, truncation=True)
        labels = tokenizer(text_target=batch["summary"], max_length=SUMMARY_TOKENS, truncation=True).input_ids
        return {**inputs, "labels": labels, "length": [len(ids) for ids in inputs.input_ids]}

    rows = datasets.Dataset.from_list(read_rows("text", "train", TASKS["text"], folder))
    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def collate(examples: list[dict[str, Any]]) -> Any:
        return pad([{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in examples])

    return model, rows.map(encode, batched=True, remove_columns=rows.column_names), collate


def peer_speech(folder: Path) -> tuple[Any, Any, Callable[[list[Any]], Any]]:
    import datasets
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(MODELS["speech"])
    model = with_lora(WhisperForConditionalGeneration.from_pretrained(MODELS["speech"], dtype=torch.float32))
    model.config.use_cache = False
    rows = datasets.Dataset.from_list(read_rows("speech", "train", TASKS["speech"], folder))

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        features, labels = heard(row, processor)
        return {"input_features": features, "labels": labels, "length": len(labels)}

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        labels = [torch.as_tensor(row["labels"]) for row in examples]
        return {
            "input_features": torch.stack([torch.as_tensor(row["input_features"]) for row in examples]),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    return model, rows.map(encode, remove_columns=rows.column_names).with_format("torch"), collate


def peer_images(folder: Path) -> tuple[Any, Any, Callable[[list[Any]], Any]]:
    import datasets
    import numpy as np
    import torch
    from torchvision.transforms import v2
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    side = processor.size["height"]
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=processor.image_mean, std=processor.image_std),
        ]
    )

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        photo = row["image"].convert("RGB").resize((side, side))
        return {"pixels": np.asarray(photo).transpose(2, 0, 1), "label": row["label"]}

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([augment(row["pixels"]) for row in examples]),
            "labels": torch.stack([row["label"] for row in examples]),
        }

    rows = datasets.load_dataset("parquet", data_files=str(folder / "photos.parquet"), split="train")
    pixels = datasets.Array3D((3, side, side), "uint8")
    kept = rows.map(
        encode,
        remove_columns=["image"],
        features=datasets.Features({"pixels": pixels, "label": datasets.Value("int64")}),
    ).with_format("torch")
    return AutoModelForImageClassification.from_pretrained(folder / "vit", dtype=torch.float32), kept, collate


def made_up_photos(folder: Path) -> None:
    """The photos and the ViT of benchmarks/images.py."""
    import images  # type: ignore[import-not-found]  # beside this script

    if not (folder / "vit").is_dir():
        images.save_photos(folder / "photos.parquet", TASKS["images"])
        images.save_model(folder / "vit")
        config = json.loads((folder / "vit" / "config.json").read_text(encoding="utf-8"))
        names = [f"class {i}" for i in range(images.CLASSES)]  # which the photos have, too
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        (folder / "vit" / "config.json").write_text(json.dumps(config), encoding="utf-8")


# ----------------------------------------------------------------------------------------- comparison


def compare(options: argparse.Namespace) -> None:
    """Let the arms take turns; print and write what they reached."""
    from tltasks.runtime import devices

    found: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    if options.add and options.output.is_file():
        kept = json.loads(options.output.read_text(encoding="utf-8"))["tasks"]
        found |= {task: kept[task]["rounds"] for task in kept}
    for _ in range(options.rounds):
        for task in options.tasks:
            arms = ["ours", "peer", *(["before"] if options.before and task == "text" else [])]
            turn = len(found[task]) % len(arms)  # another one first each time
            found[task].append({arm: run_arm(arm, task, options) for arm in [*arms[turn:], *arms[:turn]]})
            show(task, found[task])
    result = {
        "command": "python benchmarks/same_work.py --rounds 3 --before CHECKOUT",
        "processor": devices.processor_name(),
        "cores": options.cores,
        "versions": devices.versions(),
        "rows": TASKS,
        "tasks": {task: {**summary(rounds), "rounds": rounds} for task, rounds in found.items() if rounds},
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run_arm(arm: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    checkout = options.before if arm == "before" else ROOT
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(options.folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(options.cores),
        "PYTHONPATH": str(checkout),
        "TLTASKS_CORES": str(options.cores),
        "TOKENIZERS_PARALLELISM": "false",
    }
    words = ["--arm", arm, "--tasks", task, "--folder", str(options.folder), "--workers", str(options.workers)]
    command = [sys.executable, __file__, *words, "--cores", str(options.cores)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"error: {arm} of {task} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    numbers: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return numbers


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios by round: examples a second of ours over each other arm, and peak memory of ours over the peer's."""
    ratios = {
        f"speed_to_{other}": [r["ours"]["examples_per_second"] / r[other]["examples_per_second"] for r in rounds]
        for other in ("peer", "before")
        if all(other in r for r in rounds)
    }
    ratios["peak_memory_to_peer"] = [r["ours"]["peak_bytes"] / r["peer"]["peak_bytes"] for r in rounds]
    return {
        name: {"median": round(statistics.median(v), 3), "least": round(min(v), 3), "most": round(max(v), 3)}
        for name, v in ratios.items()
    }


def show(task: str, rounds: list[dict[str, Any]]) -> None:
    for arm, found in rounds[-1].items():
        print(
            f"{task:7}{len(rounds):2} {arm:7}{found['examples_per_second']:8.2f} examples/s, peak "
            f"{found['peak_bytes'] / 1e9:.2f} GB ({found['imports_bytes'] / 1e9:.2f} imports), "
            f"{found['trained_weights']:,} weights trained, loss {found['loss_before']} to {found['loss_after']}",
            flush=True,
        )
    for name, ratio in summary(rounds).items():
        print(f"{task:7}   {name}: {ratio['median']} [{ratio['least']}, {ratio['most']}]", flush=True)


if __name__ == "__main__":
    main()
