"""Gradient accumulation: the same four rows as one batch of 4 and as 4 of 1, by tltasks and by transformers' Trainer.

    python benchmarks/accumulation.py

Rows are of 2 to 20 target tokens and one step of plain SGD is taken, without dropout; the update of 4 × 1 should be
that of 1 × 4. `accepts_loss_kwargs = False` is the work-around that Trainer offers.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.tiny import texts
from tests.tiny.runs import run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.recipe import plan_run
from tltasks.tasks.text.summarization import Summarization

FAMILIES = ("t5", "bart", "gpt2", "llama")
SUMMARY_WORDS = (1, 2, 8, 14)
STAGE = (
    "{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1.0, optimizer: sgd, momentum: 0.0, adapt: full, "
    "schedule: constant, warmup: 0.0, weight_decay: 0.0, max_grad_norm: null}"
)
Update = dict[str, Tensor]


def main() -> None:
    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}: relative difference of the update, 4 x 1 against 1 x 4")
    print(f"{'model':8} {'tltasks':>10} {'Trainer':>10} {'Trainer, accepts_loss_kwargs=False':>36}")
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            recipe = prepare(folder, name)
            ours = difference(*(by_tltasks(recipe, folder / f"run-{size}", folder / name, size) for size in (4, 1)))
            rows, model = encoded(recipe, name)
            theirs, mended = (
                difference(*(by_trainer(model, rows, size, folder, accepts=accepts) for size in (4, 1)))
                for accepts in (True, False)
            )
        print(f"{name:8} {ours:10.1e} {theirs:10.1e} {mended:36.1e}", flush=True)


def prepare(folder: Path, name: str) -> Path:
    """A tiny checkpoint, four pairs with summaries of very different length, and a recipe of one step."""
    texts.save_model(folder / name, name)
    (folder / "data").mkdir()
    pairs = [{"document": " ".join(texts.FILLERS[:6]), "summary": " ".join(texts.FILLERS[:n])} for n in SUMMARY_WORDS]
    for split in ("train", "validation", "test"):
        lines = (json.dumps(pair) for pair in pairs)
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = texts.write_recipe(folder / "recipe.yaml", folder / name, folder / "data", stage=STAGE)
    recipe.write_text(recipe.read_text().replace("splits: {validation: validation}", "splits: {validation: null}"))
    return recipe


def by_tltasks(recipe: Path, output: Path, checkpoint: Path, micro_batch: int) -> Update:
    run_recipe(recipe, output, f"stages.0.micro_batch={micro_batch}")
    from safetensors.torch import load_file

    before = load_file(checkpoint / "model.safetensors")
    return {name: tensor - before[name] for name, tensor in weights(output).items()}


def encoded(recipe: Path, name: str) -> tuple[list[dict[str, list[int]]], transformers.PreTrainedModel]:
    """The same rows as plain token ids with labels, and the model."""
    from tltasks.data.encoding import encode_split
    from tltasks.data.loading import load_splits

    plan = plan_run(load_recipe(recipe)).stages[0]
    splits = load_splits(plan.data, seed=0, label=None)
    task = Summarization.open(plan, splits, Checkpoint(plan.model.name, display_name=name), seed=0)
    split = splits["train"]
    rows = encode_split(split, task.preprocess(split), task.features, key=task.cache_key, max_bad_share=0).rows
    if task.form.encoder_decoder:
        made = [{"input_ids": row["document_ids"], "labels": row["summary_ids"]} for row in rows]
    else:
        made = [
            {
                "input_ids": row["document_ids"] + row["summary_ids"],
                "labels": [-100] * len(row["document_ids"]) + row["summary_ids"],
            }
            for row in rows
        ]
    return made, task.build(plan.kind).model


def by_trainer(
    model: transformers.PreTrainedModel, rows: list[dict[str, list[int]]], size: int, folder: Path, *, accepts: bool
) -> Update:
    """The update of one step of Trainer, in micro-batches of `size` rows."""

    def collate(members: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        width = {key: max(len(row[key]) for row in members) for key in ("input_ids", "labels")}
        batch = {
            key: torch.tensor([row[key] + [fill] * (width[key] - len(row[key])) for row in members])
            for key, fill in (("input_ids", 0), ("labels", -100))
        }
        seen = [[1] * len(row["input_ids"]) + [0] * (width["input_ids"] - len(row["input_ids"])) for row in members]
        return batch | {"attention_mask": torch.tensor(seen)}

    trained = copy.deepcopy(model)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=4 // size,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_strategy="no",
    )
    trainer = Trainer(trained, arguments, train_dataset=rows, data_collator=collate)
    if not accepts:
        trainer.model_accepts_loss_kwargs = False
    trainer.train()
    before = dict(model.named_parameters())
    return {name: (p - before[name]).detach() for name, p in trained.named_parameters()}


def difference(whole: Update, parts: Update) -> float:
    a, b = (torch.cat([tensor.flatten() for _, tensor in sorted(update.items())]).double() for update in (whole, parts))
    return float((a - b).norm() / a.norm())


if __name__ == "__main__":
    main()
