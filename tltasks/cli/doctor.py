"""Devices, number formats, versions, Hub login and free disk of this machine, as one table."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx2
import torch
from huggingface_hub import constants, get_token, whoami
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from rich.table import Table

from tltasks.errors import without_secrets
from tltasks.reports.console import open_terminal
from tltasks.runtime import devices
from tltasks.runtime.precision import choose_precision, fast_formats

FEW_BYTES = 10 * 2**30
"""Below this much free disk a Hub checkpoint and its data may not fit."""


def examine() -> int:
    """Print the table; returns 1 when a run could not work here."""
    state = devices.init_distributed()
    device = state.device
    facts = devices.hardware(device, state.num_processes, choose_precision("auto", device))
    free = shutil.disk_usage(_existing(Path(constants.HF_HOME))).free
    rows = [
        ("device", f"{facts['device']}: {facts['device_name']}"),
        ("devices of that kind", str(torch.cuda.device_count()) if device.type == "cuda" else "1"),
        ("cores, memory", f"{facts['cpu_cores']} cores, {int(facts['memory_bytes']) / 2**30:.1f} GiB"),
        ("precision: auto", f"{facts['precision']} (fast formats: {', '.join(fast_formats(device)) or 'fp32 alone'})"),
        ("versions", ", ".join(f"{name} {version}" for name, version in devices.versions().items())),
        ("Hub", f"{without_secrets(constants.ENDPOINT)}: {_login()}"),
        ("Hub cache", f"{constants.HF_HOME}, {free / 2**30:.0f} GiB free" + (" (little)" if free < FEW_BYTES else "")),
    ]
    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    open_terminal(stderr=False).print(table)
    return 0


def _login() -> str:
    if get_token() is None:
        return "not logged in (`hf auth login`); public repositories can be read"
    try:
        return f"logged in as {whoami()['name']}"
    except OfflineModeIsEnabled:
        return "a token is stored; offline mode is on (HF_HUB_OFFLINE)"
    except HfHubHTTPError:
        return "the stored token is refused; log in again (`hf auth login`)"
    except (OSError, httpx2.TransportError):
        return "a token is stored; the Hub cannot be reached"


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
