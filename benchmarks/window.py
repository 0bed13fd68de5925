"""How a Whisper encoder that is cut from 30 s to 6 s comes to hear again: the error rate over training, three ways.

    python recipes/offline/fetch_whisper.py tiny.en
    python benchmarks/window.py

`distil` trains the encoder to give the first frames of what the 30-second encoder gives (mean squared error), without
texts; `full` trains all weights and `lora` an adapter of rank 16, on the texts. All on the training clips of
recipes/offline/voice_prompts.yaml in batches of 16, AdamW at the better of two constant rates by its last error rate.
The word error rate is that of greedy decoding of the first test clips; it judges nothing but the curves. Seconds are
those of the steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECIPE = ROOT / "recipes" / "offline" / "voice_prompts.yaml"
RESULT = Path(__file__).parent / "results" / "window.json"
RATES = {"distil": (1e-4, 3e-4), "full": (1e-4, 3e-4), "lora": (1e-3, 3e-3)}
BATCH = 16

from tltasks.config.loading import load_recipe  # noqa: E402
from tltasks.config.model import Checkpoint  # noqa: E402
from tltasks.config.recipe import plan_run  # noqa: E402
from tltasks.data.batching import plan_epoch, steps_per_epoch  # noqa: E402
from tltasks.data.encoding import encode_split  # noqa: E402
from tltasks.data.loading import load_splits  # noqa: E402
from tltasks.data.splits import EncodedSplit  # noqa: E402
from tltasks.models.adapters import adapt  # noqa: E402
from tltasks.runtime import devices  # noqa: E402
from tltasks.tasks.base import Batch, BuiltModel  # noqa: E402
from tltasks.tasks.speech.asr import SpeechRecognition  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=4, help="steps between error rates")
    parser.add_argument("--clips", type=int, default=55, help="test clips that are transcribed (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    devices.quieten_libraries(interactive=False)
    recipe = load_recipe(RECIPE, ["stages.0.adapt={lora: {rank: 16}}"])
    plan = plan_run(recipe).stages[0]
    splits = load_splits(plan.data, seed=0, label=None)
    task = SpeechRecognition.open(plan, splits, Checkpoint(plan.model.name, display_name="tiny.en"), seed=0)
    encoded = {
        name: encode_split(
            splits[name], task.preprocess(splits[name]), task.features, key=task.cache_key, max_bad_share=0
        )
        for name in ("train", "test")
    }
    judged = encoded["test"]
    encoded["test"] = dataclasses.replace(judged, rows=judged.rows.select(range(min(options.clips, len(judged.rows)))))
    pretrained = task.as_pretrained().build(plan.kind)
    curves: dict[str, Any] = {"pretrained": error_rate(pretrained.task, pretrained.model.eval(), encoded["test"])}
    print(f"pretrained, 30 s: {curves['pretrained']:.1f} %", flush=True)
    curves["cut"] = error_rate(task, task.build(plan.kind).model, encoded["test"])
    print(f"cut to {task.recogniser.window_seconds:g} s: {curves['cut']:.1f} %", flush=True)
    for arm, rates in RATES.items():
        tried = {}
        for rate in rates:
            model: Any = task.build(plan.kind).model
            if arm == "lora":
                targets = task.lora_targets(model)
                model = adapt(
                    model,
                    plan.stage.adapt,
                    new_head=False,
                    head=[],
                    targets=targets,
                    display_name="tiny.en",
                    revision="main",
                )
            if arm == "distil":
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_("encoder" in name)
            tried[rate] = train(task, model, encoded, loss_of(arm, task, pretrained), rate, options)
            print(f"{arm:7} {rate:g}: " + ", ".join(f"{p['wer']:.1f} %" for p in tried[rate]), flush=True)
        best = min(tried, key=lambda rate: tried[rate][-1]["wer"])
        curves[arm] = {"learning_rate": best, "curve": tried[best], "others": {f"{r:g}": c for r, c in tried.items()}}
    result = {
        "command": " ".join(["python benchmarks/window.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "clips": {name: len(split.rows) for name, split in encoded.items()},
        "curves": curves,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


Loss = Callable[[nn.Module, EncodedSplit, list[int], int], Tensor]


def loss_of(arm: str, task: SpeechRecognition, pretrained: BuiltModel[SpeechRecognition]) -> Loss:
    teacher: Any = pretrained.model

    def texts(model: nn.Module, split: EncodedSplit, rows: list[int], epoch: int) -> Tensor:
        return task.loss(model, task.collate_train(split.rows, rows, epoch=epoch))

    def encoders(model: Any, split: EncodedSplit, rows: list[int], epoch: int) -> Tensor:
        short, long = (
            t.collate_train(split.rows, rows, epoch=epoch)["input_features"] for t in (task, pretrained.task)
        )
        with torch.no_grad():
            wanted = teacher.get_encoder()(long).last_hidden_state
        given = model.get_encoder()(short).last_hidden_state
        return functional.mse_loss(given, wanted[:, : given.shape[1]])

    return encoders if arm == "distil" else texts


def train(
    task: SpeechRecognition,
    model: nn.Module,
    encoded: dict[str, EncodedSplit],
    loss: Loss,
    rate: float,
    options: argparse.Namespace,
) -> list[dict[str, float]]:
    """The error rate after every so many steps."""
    split, curve, spent = encoded["train"], [], 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    in_epoch = steps_per_epoch(len(split.rows), BATCH)
    for step in range(options.steps + 1):
        if step and step % options.every == 0:
            curve.append({"step": step, "seconds": round(spent, 1), "wer": error_rate(task, model, encoded["test"])})
        epoch, place = divmod(step, in_epoch)
        started = time.perf_counter()
        model.train()
        rows = plan_epoch(len(split.rows), batch_size=BATCH, seed=0, epoch=epoch)[place]
        loss(model, split, [int(row) for row in rows], epoch).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        spent += time.perf_counter() - started
    return curve


@torch.no_grad()
def error_rate(task: SpeechRecognition, model: nn.Module, split: EncodedSplit) -> float:
    """In per cent."""
    model.eval()
    predictions = []
    for start in range(0, len(split.rows), BATCH):
        batch: Batch = task.collate_eval(split.rows, range(start, min(start + BATCH, len(split.rows))))
        predictions += task.predict(model, batch)
    score = task.score(predictions, task.references(split.rows), intervals=False)
    return round(100 * score.values["wer"], 2)


if __name__ == "__main__":
    main()
