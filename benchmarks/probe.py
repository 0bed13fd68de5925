"""A probe on cached features beside fifty epochs of training the same head through the frozen backbone, in one run.

    python recipes/offline/fetch_efficientnet_lite0.py
    python benchmarks/probe.py [--rounds 3]

Both put a new head on EfficientNet-Lite0 (224 pixels) and train it alone on the 235 emoji of Google's set; the backbone
runs in evaluation mode, without augmentation. The probe's time has its one pass through the backbone in it, since its
cache is new in every round. Times are those of training, evaluation left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECIPE = ROOT / "recipes" / "offline" / "emoji_lora.yaml"
RESULT = Path(__file__).parent / "results" / "probe.json"
STAGES = {
    "probe": "{stage: probe}",
    "through the backbone": "{stage: transfer, adapt: head, epochs: 50, batch_size: 32, learning_rate: 1e-3, "
    "batch_norm: frozen, keep: last, evaluate_every: 1000000}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        rounds.append({arm: in_process(stage) for arm, stage in STAGES.items()})
        print({arm: found["seconds"] for arm, found in rounds[-1].items()}, flush=True)
    ratios = [found["through the backbone"]["seconds"] / found["probe"]["seconds"] for found in rounds]
    print(f"the probe is {statistics.median(ratios):.0f} times as fast (median of {len(ratios)})")
    from tltasks.runtime import devices

    result = {
        "command": " ".join(["python benchmarks/probe.py", *sys.argv[1:]]),
        "processor": devices.processor_name(),
        "cores": devices.cores(),
        "versions": devices.versions(),
        "ratios": ratios,
        "rounds": rounds,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_process(stage: str) -> dict[str, Any]:
    """Seconds of training and test accuracy of a run with caches of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "tltasks", "run", str(RECIPE), "--output", f"{scratch}/run"]
        command += ["--set", f"stages=[{stage}]"]
        variables = os.environ | {"HF_DATASETS_CACHE": f"{scratch}/cache", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, env=variables, check=True, capture_output=True)
        (found,) = json.loads(Path(scratch, "run", "result.json").read_text(encoding="utf-8"))["stages"]
    return {"seconds": found["training"]["seconds"], "accuracy": found["metrics"]["test"]["values"]["accuracy"]}


if __name__ == "__main__":
    main()
