"""metrics.jsonl, always; and Accelerate's trackers where the recipe names them."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tltasks.errors import RecipeError
from tltasks.runtime.files import write_text


class Logger(Protocol):
    """The part of an Accelerator that trackers need."""

    def log(self, values: dict[str, float], step: int | None = None) -> None: ...


def check_trackers(names: list[str]) -> None:
    """Raise RecipeError for a tracker that is not installed; Accelerate (1.15, tracking.py) drops it silently."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"trackers: {', '.join(missing)} not installed; run `pip install {' '.join(missing)}`.")


class Tracker:
    """A file with one JSON object a line, flushed at once, so that a killed run has all it measured."""

    def __init__(self, path: Path | None, logger: Logger | None = None) -> None:
        self._path, self._logger = path, logger

    def log(self, stage: str, split: str, step: int, **values: float) -> None:
        """Add a line; a number that is not finite is null in it, and is not sent."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "split": split, "step": step, **finite}) + "\n")
        if self._logger is not None:
            self._logger.log({f"{stage}/{split}/{k}": v for k, v in finite.items() if v is not None}, step=step)

    def rewind(self, stage: str, step: int) -> None:
        """Drop what a resumed stage will measure again: its lines after `step`, and a line cut off by a kill."""
        if self._path is None or not self._path.exists():
            return
        kept = [row for row in read_metrics(self._path) if row["stage"] != stage or row["step"] <= step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a killed run
        if isinstance(row, Mapping):
            rows.append(dict(row))
    return rows
