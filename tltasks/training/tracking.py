"""metrics.jsonl, always; and Accelerate's trackers where the recipe names them."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, Protocol

from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.runtime.files import append, write_text


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
            append(self._path, json.dumps({"stage": stage, "split": split, "step": step, **finite}) + "\n")
        if self._logger is not None:
            self._logger.log({f"{stage}/{split}/{k}": v for k, v in finite.items() if v is not None}, step=step)

    def rewind(self, stage: str, step: int) -> None:
        """Drop what a resumed stage will measure again: its lines after `step`, and a line cut off by a kill."""
        if self._path is None or not self._path.exists():
            return
        kept = [row for row in read_metrics(self._path) if row["stage"] != stage or row["step"] <= step]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics.jsonl. Raises CheckpointError for one that is damaged, but for the last."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(lines[:-1], 1):  # what follows the last line break was cut off by a kill
        try:
            row = json.loads(line)
            rows.append({**row, "stage": str(row["stage"]), "step": int(row["step"])})
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: line {i} is damaged ({first_line(error)}). Remove it to go on.") from error
    return rows
