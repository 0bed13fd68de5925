"""Memory that a dry run tells beside what the run then takes, and whether steps of varying lengths take more and more.

    python recipes/offline/fetch_efficientnet_lite0.py     # and fetch_whisper.py tiny.en, fetch_whisper.py base,
    python recipes/offline/fetch_t5_titles.py              # build_voice_prompts.py es, build_package_synopsis.py,
    python recipes/offline/build_paper_titles.py           # which the recipes need
    python benchmarks/memory.py                            # six recipes, two of each task
    python benchmarks/memory.py --slope                    # 500 steps of a small T5 and of Whisper base
    python benchmarks/memory.py --peak [--before CHECKOUT] # of two runs as a whole, beside those of an older tltasks

Each arm is a process of its own. `expected` is the sum of the parts that `tltasks run --dry-run` tells, without what
the process holds before the stage; `measured` is the most resident memory of the run's steps (the kernel's high-water
mark, which is set back before the loop), less what the process held before the stage. The recipes are cut to the rows
and steps of `CUT`. Everything is written to benchmarks/results/memory.json. Other work on the machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "memory.json"
RECIPES = ROOT / "recipes" / "offline"
WITHIN = 0.15
FEW = "data.splits={train: 'train[:%d]', validation: 'validation[:2]', test: 'test[:2]'}"
CUT: dict[str, tuple[str, list[str]]] = {
    "EfficientNet-Lite0, LoRA": ("emoji_lora", ["stages.0.epochs=1"]),
    "ViT-S/16, all weights": ("emoji_lora", ["model={name: VIT}", "stages.0.adapt=full", "stages.0.epochs=1"]),
    "Whisper tiny.en, LoRA": ("voice_prompts", ["stages.0.epochs=1"]),
    "Whisper base, LoRA": ("voice_prompts_es", [FEW % 64, "stages.0.epochs=1"]),
    "T5 small, LoRA": ("paper_titles", ["stages.0.epochs=1"]),
    "T5 small, all weights": ("package_synopsis", [FEW % 96, "stages.0.adapt=full"]),
}
"""Recipes of recipes/offline, and what is set in them."""
SLOPE = {
    "T5 small, LoRA": ("package_synopsis", ["stages.0.batch_size=4", "stages.0.base_dtype=bf16"]),
    "Whisper base, LoRA": ("voice_prompts_es", ["stages.0.batch_size=1", "stages.0.base_dtype=bf16"]),
}
PEAK = {
    "T5 small, LoRA": ("package_synopsis", [FEW.replace(":2]", ":16]") % 96]),
    "Whisper base, LoRA": ("voice_prompts_es", [FEW.replace(":2]", ":16]") % 48, "stages.0.epochs=1"]),
}


# --------------------------------------------------------------------------------------------------- arms


def parts_of(name: str, recipe: Path, overrides: list[str]) -> dict[str, int]:
    """The parts that a dry run tells of a recipe's one stage."""
    import tltasks
    from tltasks.runs.story import dry_run

    (stage,) = dry_run(tltasks.load_recipe(recipe, overrides))
    return stage.parts


def ran(name: str, recipe: Path, overrides: list[str]) -> dict[str, Any]:
    """What a run's result has on the memory of its one stage."""
    import tltasks

    with tempfile.TemporaryDirectory() as output:
        (stage,) = tltasks.run(tltasks.load_recipe(recipe, overrides), output=Path(output) / "run").stages
    training = stage.training
    assert training is not None
    assert training.peak_memory_bytes is not None
    before = training.expected_memory["process and data"]
    return {"before": before, "measured": training.peak_memory_bytes - before, "steps": training.steps}


def resident_by_step(name: str, recipe: Path, overrides: list[str], steps: int) -> list[int]:
    """Resident memory after each of so many steps."""
    import psutil

    import tltasks

    found: list[int] = []

    def on_step(info: Any) -> bool:
        found.append(psutil.Process().memory_info().rss)
        return len(found) >= steps

    overrides = [*overrides, f"stages.0.epochs={steps}", "stages.0.checkpoint_every=1000000"]
    few = "data.splits={train: train, test: 'test[:2]'}"
    with tempfile.TemporaryDirectory() as output:
        tltasks.run(tltasks.load_recipe(recipe, [*overrides, few]), output=Path(output) / "run", on_step=on_step)
    return found


def peak_of_run(name: str, recipe: Path, overrides: list[str]) -> int:
    """The most resident memory of a whole run: the kernel's high-water mark, kept over the times it is set back."""
    import tltasks

    with tempfile.TemporaryDirectory() as output:
        (stage,) = tltasks.run(tltasks.load_recipe(recipe, overrides), output=Path(output) / "run").stages
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return max(stage.peak_memory_bytes, int(found[1]) * 1024 if found else 0)


# ------------------------------------------------------------------------------------------------ tables


def row(expected: dict[str, int], measured: dict[str, int]) -> dict[str, Any]:
    """A recipe's line: expected beside measured, of what is above the process as it was before the stage."""
    told = sum(size for part, size in expected.items() if part != "process and data")
    return {
        "expected": told,
        "measured": measured["measured"],
        "ratio": round(told / measured["measured"], 3),
        "parts": expected,
        **{key: value for key, value in measured.items() if key != "measured"},
    }


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of Markdown: MiB of each part, their sum, what was measured, and the ratio."""
    names = [part for part in next(iter(rows.values()))["parts"] if part != "process and data"]
    head = ["", *names, "expected", "measured", "expected / measured"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, it in rows.items():
        sizes = [it["parts"][part] for part in names] + [it["expected"], it["measured"]]
        lines.append(" | ".join([name, *(f"{size / 2**20:,.0f}" for size in sizes), f"{it['ratio']:.2f}"]))
    return [f"| {line} |".replace("|  |", "| |") for line in lines]


def slope(resident: list[int], *, after: int = 100) -> dict[str, float]:
    """MiB by which resident memory grows in a hundred steps, by least squares, with its 95 % interval.

    The first steps are left out: all lengths have to have come once. Neighbouring steps are not independent, so the
    interval is of means over twenty of them.
    """
    import numpy as np

    means = np.array(resident[after:], dtype=float)
    means = means[: len(means) // 20 * 20].reshape(-1, 20).mean(1) / 2**20
    steps = np.arange(len(means)) / 5
    (rise, _), residual, *_ = np.polyfit(steps, means, 1, full=True)
    spread = np.sqrt(residual.sum() / (len(means) - 2) / ((steps - steps.mean()) ** 2).sum())
    return {
        "mib_per_100_steps": round(float(rise), 2),
        "ci95": [round(float(rise - 2 * spread), 2), round(float(rise + 2 * spread), 2)],
        "first_mib": round(float(means[0]), 1),
        "last_mib": round(float(means[-1]), 1),
        "most_mib": round(max(resident) / 2**20, 1),
        "steps": len(resident),
    }


# -------------------------------------------------------------------------------------------------- command


def vit(folder: Path) -> str:
    """A ViT-S/16 with random weights, saved to a folder."""
    import transformers

    config = transformers.ViTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6, num_labels=10)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    transformers.ViTImageProcessor().save_pretrained(folder / "vit")
    return str(folder / "vit")


def alone(arm: str, name: str, recipe: str, overrides: Iterable[str], *more: str, root: Path = ROOT) -> Any:
    """What an arm gives in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm, "--recipe", str(root / "recipes" / "offline" / f"{recipe}.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, "--name", name, *more, "--set", *overrides],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        cwd=root,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--slope", action="store_true")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--before", type=Path, help="a checkout of an older tltasks, for --peak")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--arm", choices=("dry", "run", "slope", "peak"), help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--set", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        arms = {"dry": parts_of, "run": ran, "peak": peak_of_run}
        given = (options.name, options.recipe, options.set)
        made = resident_by_step(*given, options.steps) if options.arm == "slope" else arms[options.arm](*given)
        print(json.dumps(made))
        return 0
    cases = SLOPE if options.slope else PEAK if options.peak else CUT
    for name, (recipe, overrides) in cases.items():
        if options.only is not None and name not in options.only:
            continue
        found = measured(name, recipe, overrides, options)
        kind = "slope" if options.slope else "peak" if options.peak else "steps"
        written = json.loads(options.output.read_text()) if options.output.exists() else {}
        written.setdefault(kind, {})[name] = found
        options.output.write_text(json.dumps(written | about(), indent=1) + "\n")
        print(name, found, flush=True)
    written = json.loads(options.output.read_text())
    print("\n".join(table(written["steps"])) if cases is CUT else "")
    return int(cases is CUT and any(abs(it["ratio"] - 1) > WITHIN for it in written["steps"].values()))


def measured(name: str, recipe: str, overrides: list[str], options: argparse.Namespace) -> dict[str, Any]:
    if options.slope:
        return slope(alone("slope", name, recipe, overrides, "--steps", str(options.steps)))
    if options.peak:
        found = {"now": alone("peak", name, recipe, [*overrides, "stages.0.base_dtype=bf16"])}
        if options.before:
            found["before"] = alone("peak", name, recipe, overrides, root=options.before)
            found["ratio"] = round(found["now"] / found["before"], 3)
        return found
    with tempfile.TemporaryDirectory() as folder:
        if any("VIT" in it for it in overrides):
            overrides = [it.replace("VIT", vit(Path(folder))) for it in overrides]
        return row(alone("dry", name, recipe, overrides), alone("run", name, recipe, overrides))


def about() -> dict[str, Any]:
    import torch

    from tltasks.runtime import devices

    machine = devices.hardware(torch.device("cpu"), 1, "bf16")
    return {"processor": machine["device_name"], "cores": machine["cpu_cores"], "versions": devices.versions()}


if __name__ == "__main__":
    sys.exit(main())
