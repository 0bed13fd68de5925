"""Temperatures fitted to validation: is the calibration error on test lower with them, and do few rows do harm?

    python recipes/offline/fetch_efficientnet_lite0.py
    python benchmarks/calibration.py seeds                 # the emoji recipe with a probe in the place of LoRA
    python benchmarks/calibration.py seeds --l2 1e-6       # one that is too sure of itself, with hardly a penalty
    python benchmarks/calibration.py seeds --as-written    # the recipe itself; runs that have ended are not repeated
    python benchmarks/calibration.py rows              # made-up logits, whose right temperature is known

`seeds` carries out the recipe, in which each seed holds out other 35 pictures for validation, and reads result.json:
numbers of the test set with probabilities as the model gives them and as told. A curve of abstention is monotone
where no point's interval lies below the accuracy of a point that answers more. `rows`: loss above that of the right
temperature, on average over draws, without a temperature, with that of `fit_temperature`, and without its two guards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special
from scipy.optimize import minimize_scalar

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "calibration.json"
RECIPE = REPOSITORY / "recipes" / "offline" / "emoji_lora.yaml"
MEASURES = ("ece", "loss", "brier")
sys.path[:0] = [str(REPOSITORY)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=["seeds", "rows"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--as-written", action="store_true", help="the recipe's own stage")
    parser.add_argument(
        "--runs", type=Path, default=REPOSITORY / "outputs", help="folder of the recipe's runs, SEED behind"
    )
    parser.add_argument("--l2", type=float, help="penalty of the probe; unset: as validation chooses it")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULT, help="result file; the other part of it stays")
    options = parser.parse_args()
    probe = "probe" if options.l2 is None else f"probe, l2 {options.l2:g}"
    name = options.what if options.what == "rows" else "recipe" if options.as_written else probe
    write = partial(write_part, options.output, name)
    if options.what == "rows":
        write(few_rows(options.draws))
    else:
        seeds(options.seeds, write, l2=options.l2, runs=options.runs if options.as_written else None)


def write_part(path: Path, name: str, found: dict[str, Any]) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | {name: found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found}, indent=1), flush=True)


# ----------------------------------------------------------------------------------------------- seeds


def seeds(count: int, write: Callable[[dict[str, Any]], None], *, l2: float | None, runs: Path | None) -> None:
    rows: list[dict[str, Any]] = []
    features = Features()
    for seed in range(count):
        rows.append(one_seed(seed, features, l2=l2, runs=runs))
        told = [row for row in rows if row["temperature"] != 1]
        write(
            {
                "seeds": len(rows),
                "temperature_other_than_1": len(told),
                "lower_with_it": {m: sum(row["after"][m] < row["before"][m] for row in rows) for m in MEASURES},
                "mean_before": {m: float(np.mean([row["before"][m] for row in rows])) for m in MEASURES},
                "mean_after": {m: float(np.mean([row["after"][m] for row in rows])) for m in MEASURES},
                "monotone_curves": sum(row["monotone"] for row in rows),
                "rows": rows,
            }
        )


def one_seed(seed: int, features: Features, *, l2: float | None, runs: Path | None) -> dict[str, Any]:
    score = run_recipe(seed, runs) if runs else fit_probe(seed, features, l2)
    details: dict[str, Any] = score.details
    calibration, curve = details["calibration"], details["answered"]
    return {
        "seed": seed,
        "accuracy": score.values["accuracy"],
        "temperature": calibration["temperature"],
        "before": calibration["before"],
        "after": calibration["after"],
        "monotone": is_monotone(curve),
        "answered": [
            [round(point[key], 4) for key in ("coverage", "accuracy", "low", "high")] for point in curve[4::5]
        ],
    }


def run_recipe(seed: int, runs: Path) -> Any:
    """The score of the recipe's run with this seed, which is kept: one that has ended is not repeated."""
    from tltasks.config.loading import load_recipe
    from tltasks.results.result import load_result
    from tltasks.runs.story import run

    place = runs / f"{RECIPE.stem}_{seed}"
    if (place / "result.json").is_file():
        return load_result(place / "result.json").stages[-1].metrics["test"]
    return run(load_recipe(RECIPE, [f"seed={seed}"]), output=place).score


class Features:
    """Features of pictures by their content, each computed once: they are the same whatever split a seed puts it in."""

    def __init__(self) -> None:
        self.known: dict[bytes, Any] = {}
        self.model: Any = None

    def __call__(self, context: Any, stage: Any, split: str) -> Any:
        from tltasks.training.evaluation import embed_rows

        rows = stage.encoded[split].rows
        keys = [hashlib.sha256(pixels).digest() for pixels in rows["pixels"]]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            self.model = self.model or stage.task.build(stage.plan.kind).model
            vectors = embed_rows(context.accelerator, stage.task, self.model, rows.select(new), workers=0)
            self.known |= {keys[i]: vector for i, vector in zip(new, vectors, strict=True)}
        return np.stack([self.known[key] for key in keys])


def fit_probe(seed: int, features: Features, l2: float | None) -> Any:
    """The score of a linear head on the recipe's frozen checkpoint, by what `stage: probe` calls."""
    import torch
    import yaml

    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run
    from tltasks.runs.story import open_stages
    from tltasks.training.evaluation import settle
    from tltasks.training.linear_probe import choose_fit

    written = yaml.safe_load(RECIPE.read_text(encoding="utf-8")) | {"stages": [{"stage": "probe"}]}
    place = RECIPE.with_name(f".calibration-{seed}.yaml")  # paths are relative to the recipe
    try:
        place.write_text(yaml.safe_dump(written), encoding="utf-8")
        plan = plan_run(load_recipe(place, [f"seed={seed}"]))
    finally:
        place.unlink(missing_ok=True)
    context, (stage,) = open_stages(plan)
    splits = ("train", "validation", "test")
    vectors = {split: features(context, stage, split) for split in splits}
    labels = {split: np.array(stage.task.references(stage.encoded[split].rows)) for split in splits}
    task: Any = stage.task
    fit = choose_fit(vectors, labels, n_classes=len(task.class_names), l2=l2)
    predictions = {}
    for split in ("validation", "test"):
        logits = torch.from_numpy(vectors[split]) @ fit.weight.float().T + fit.bias.float()
        predictions[split] = task.as_predictions(logits.softmax(-1).numpy())
    task, found = settle(stage.task, predictions, stage.encoded, calibrates=True)
    return task.score(found["test"], labels["test"].tolist(), intervals=True)


def is_monotone(curve: Sequence[dict[str, float]]) -> bool:
    return all(fewer["high"] >= more["accuracy"] for i, fewer in enumerate(curve) for more in curve[i + 1 :])


# ------------------------------------------------------------------------------------------------ rows


def few_rows(draws: int) -> dict[str, Any]:
    """Mean loss above that of the right temperature, and its 95th percentile, by that and the rows for validation."""
    from tltasks.metrics.calibration import fit_temperature

    random, found = np.random.default_rng(0), {}
    ways: dict[str, Callable[[Any, Any], float]] = {
        "none": lambda logits, labels: 1.0,
        "no_guards": plain_temperature,
        "fitted": lambda logits, labels: fit_temperature(special.softmax(logits, axis=1), labels),
    }
    for right in (0.6, 1.0, 1.7):
        for n_rows in (35, 100, 500):
            losses: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(draws):
                (logits, labels), (other, truth) = (drawn(random, n, right) for n in (n_rows, 1000))
                for name, way in ways.items():
                    gap = loss(other, truth, way(logits, labels)) - loss(other, truth, right)
                    losses[name].append(gap)
            found[f"temperature {right}, {n_rows} rows"] = {
                name: [round(float(np.mean(it)), 4), round(float(np.quantile(it, 0.95)), 4)]
                for name, it in losses.items()
            }
    return found


def drawn(random: np.random.Generator, n_rows: int, right: float, n_classes: int = 10) -> tuple[Any, Any]:
    """Logits that are calibrated at the temperature `right`, and labels."""
    logits = random.normal(0, 2.2, (n_rows, n_classes))
    labels = (special.softmax(logits, axis=1).cumsum(1) > random.random((n_rows, 1))).argmax(1)
    return logits * right, labels


def loss(logits: Any, labels: Any, temperature: float) -> float:
    return float(-special.log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def plain_temperature(logits: Any, labels: Any) -> float:
    best = minimize_scalar(lambda t: loss(logits, labels, np.exp(t)), bounds=(-3, 3), method="bounded")
    return float(np.exp(best.x))


if __name__ == "__main__":
    main()
