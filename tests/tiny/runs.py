"""Whole runs of tiny recipes, in this process or in others."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tltasks.config.loading import load_recipe
from tltasks.results.result import RunResult
from tltasks.runs.story import run
from tltasks.training.tracking import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]


def run_recipe(path: Path, output: Path, *overrides: str, **flags: Any) -> RunResult:
    """Carry out a recipe here."""
    return run(load_recipe(path, overrides), output=output, **flags)


def weights(output: Path) -> dict[str, Tensor]:
    """The weights that a run has saved."""
    files = list((output / "model").glob("*.safetensors"))
    assert len(files) == 1
    return load_file(files[0])


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    assert a
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def traces(secret: str, *places: Path | bytes | str) -> list[str]:
    """Where a secret stands, as it is or in base64 however that is cut: files below folders, and texts."""
    raw = secret.encode()
    # In base64 it has three forms, by what stands before it; ends depend on the neighbours and are left out.
    forms = [raw, *(base64.b64encode(b"x" * n + raw)[4:-4] for n in range(3))]
    found = []
    for place in places:
        if isinstance(place, Path):
            files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
            assert files, f"{place} holds nothing to search"
            found += [str(path) for path in files if any(form in path.read_bytes() for form in forms)]
        elif any(form in (place if isinstance(place, bytes) else place.encode()) for form in forms):
            found.append("a text")
    return found


def environment(**more: str) -> dict[str, str]:
    """Variables for a subprocess: one thread, the caches of this test session, the package from this checkout."""
    import datasets

    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        "PYTHONPATH": str(REPOSITORY),
        **more,
    }


def in_processes(
    count: int, *arguments: object, stop_at_step: int | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`tltasks run` in `count` processes that talk over gloo; told to stop once it has made so many steps."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["--module", "tltasks.run", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    if stop_at_step is not None:
        metrics = Path(str(arguments[arguments.index("--output") + 1])) / "metrics.jsonl"
        while process.poll() is None and len(read_metrics(metrics)) < stop_at_step:
            time.sleep(0.02)
        process.terminate()  # torchrun passes it on to its processes
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
