"""Whole runs of tiny recipes, in this process or in others."""

from __future__ import annotations

import base64
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny.host import shared_host
from tltasks.config.loading import load_recipe
from tltasks.results.result import RunResult
from tltasks.runs.story import run
from tltasks.training.tracking import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]

gc.collect()
gc.freeze()
"""Accelerate collects garbage at the end of each run; what was imported before need not be gone through each time."""


def run_recipe(path: Path, output: Path, *overrides: str, figures: bool = False, **flags: Any) -> RunResult:
    """Carry out a recipe here; without figures its report is written as ever but for drawing them, half of the time."""
    with contextlib.nullcontext() if figures else mock.patch("tltasks.reports.charts.svg", return_value="<svg/>"):
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


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets that matters."""


def in_processes(
    count: int,
    recipe: Path,
    output: Path,
    *flags: object,
    stop_at_step: int | None = None,
    variables: Mapping[str, str] | None = None,
    apart: bool = False,
    succeeds: bool = True,
    code: str = "",
) -> str:
    """`tltasks run` in `count` processes that talk over gloo: what they said; ended by an error, it is one.

    Told to stop once they have made so many steps, they are to end with a status. `apart`, each is on a machine of its
    own, which sees no results folder but its own. `code` is run instead of the command, whose words it finds in
    `sys.argv`.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    world["LOCAL_WORLD_SIZE"] = "1" if apart else str(count)
    outputs = [output.with_name(f"{output.name}-of-{rank}") if apart and rank else output for rank in range(count)]
    jobs = [
        shared_host().start(
            output.with_name(f"{output.name}-{rank}{'-resumed' * output.exists()}.log"),
            *("run", recipe, "--output", outputs[rank], *flags),
            code=code,
            variables={**world, **(variables or {}), "RANK": str(rank), "LOCAL_RANK": "0" if apart else str(rank)},
        )
        for rank in range(count)
    ]
    if stop_at_step is not None:
        metrics = output / "metrics.jsonl"
        while len(read_metrics(metrics)) < stop_at_step:
            time.sleep(0.02)
        for job in jobs:
            job.signal(signal.SIGTERM)
    statuses = [job.wait() for job in jobs]
    said = "".join(job.said() for job in jobs)
    assert all((status == 0) == (succeeds and stop_at_step is None) for status in statuses), said[-3000:]
    return said


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
