"""Each lever of a training step against the step without it, alternating in one process, for two shipped recipes.

    python benchmarks/levers.py [--repeats 5] [--recipes package_synopsis voice_prompts_es]

Weights and data are made as the recipes' headers say. Times are of the processor, on one core, so that other work on
the machine weighs less on them; a ratio is of steps of the same rows, one right after the other. The first round warms
up. `fp32` holds frozen weights in fp32 and casts them in each pass, as PEFT beside autocast does; `held` has them in
bf16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tltasks.config.loading import load_recipe  # noqa: E402
from tltasks.config.recipe import plan_run  # noqa: E402
from tltasks.models.fast_steps import fast_activations, fast_attention, fast_dropout, fast_norms, one_pass  # noqa: E402
from tltasks.runs import context, prepare, stage  # noqa: E402
from tltasks.runtime import devices  # noqa: E402
from tltasks.training import loop  # noqa: E402

RESULT = Path(__file__).parent / "results" / "levers.json"
RECIPES = {
    "package_synopsis": ["data.splits.train=train[:96]", "data.splits.validation=validation[:4]"],
    "voice_prompts_es": [],
}
Lever = Callable[[nn.Module], AbstractContextManager[None]]
ARMS: dict[str, tuple[str, tuple[Lever, ...]]] = {
    "fp32": ("fp32", ()),
    "held": ("auto", ()),
    "held, one pass": ("auto", (one_pass,)),
    "held, fast dropout": ("auto", (lambda model: fast_dropout(),)),
    "held, attention": ("auto", (lambda model: fast_attention(),)),
    "held, activations": ("auto", (fast_activations,)),
    "held, norms": ("auto", (fast_norms,)),
    "all": (
        "auto",
        (one_pass, lambda model: fast_dropout(), lambda model: fast_attention(), fast_activations, fast_norms),
    ),
}


class Arm:
    """A model in training, and a few steps of it."""

    def __init__(self, recipe: str, base_dtype: str, folder: Path) -> None:
        keys = [f"stages.0.base_dtype={base_dtype}", "precision=bf16", "stages.0.batch_size=6"]
        path = ROOT / "recipes" / "offline" / f"{recipe}.yaml"
        plan = plan_run(load_recipe(path, [*RECIPES[recipe], *keys, f"output={folder / base_dtype}"]))
        opened = context.open_context(plan, PartialState(), quiet=True)
        torch.set_num_threads(1)
        (prepared,) = prepare.prepare_stages(opened.accelerator, plan)
        prepared, built = stage._build(opened, prepared)
        self.model, head = stage.adapt_model(prepared, built)
        self.training = loop._Training(opened.accelerator, stage.make_job(opened, prepared, head), self.model)
        self.steps = [step for step, _ in zip(self.training.read_steps(), range(3), strict=False)]

    def step(self, number: int, levers: tuple[Lever, ...]) -> float:
        """Seconds of the processor for a step."""
        with contextlib.ExitStack() as stack:
            for lever in levers:
                stack.enter_context(lever(self.model))
            self.training.set_learning_rate()
            started = time.process_time()
            self.training.step(*self.steps[number % len(self.steps)])
            return time.process_time() - started


def measured(recipe: str, repeats: int, folder: Path) -> dict[str, Any]:
    arms = {base: Arm(recipe, base, folder) for base in ("fp32", "auto")}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for repeat in range(repeats + 1):
        for name, (base, levers) in ARMS.items():
            seconds[name].append(arms[base].step(repeat, levers))
        print(recipe, repeat, {name: round(values[-1], 2) for name, values in seconds.items()}, flush=True)
    found = {}
    for name in ARMS:
        ratios = [before / after for before, after in zip(seconds["fp32"][1:], seconds[name][1:], strict=True)]
        found[name] = {
            "times_the_speed": round(statistics.median(ratios), 3),
            "least_and_most": [round(min(ratios), 3), round(max(ratios), 3)],
            "seconds": [round(value, 3) for value in seconds[name][1:]],
        }
        print(recipe, name, found[name], flush=True)
    return found


def main() -> None:
    # each arm says what it has of it
    loop.fast_steps = lambda model, device: contextlib.nullcontext()  # type: ignore[attr-defined]
    parser = argparse.ArgumentParser(description="Levers of a step, each alone and together.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: measured(name, options.repeats, Path(scratch) / name) for name in options.recipes}
    result = {
        "command": " ".join(["python benchmarks/levers.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "versions": devices.versions(),
        "recipes": found,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
