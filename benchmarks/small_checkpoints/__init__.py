"""Small checkpoints of every architecture of a task, with random weights; a module for each group of tasks.

Each module goes through transformers' own mapping in a loop, so that the entries of a new release appear by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Small:
    """A checkpoint that can be saved, and how a recipe trains it."""

    name: str
    """`transformers/MODEL_TYPE`, with `/CLASS` where a model type has several, or `timm/MODEL`."""
    task: str
    """The registry's tag."""
    save: Callable[[Path], object]
    """Writes what `from_pretrained` reads: configuration, weights, and the files of a processor or tokenizer. Where the
    architecture itself cannot be built here, it writes what it can: the row then says what a user is told."""
    model_keys: dict[str, Any] = field(default_factory=dict)
    """Keys of a recipe under `model`."""
    stage_keys: dict[str, Any] = field(default_factory=dict)
    """Keys under `stages`, which go before those of the task and the method."""
    data_keys: dict[str, Any] = field(default_factory=dict)
    """Keys under `data`."""
    methods: tuple[str, ...] | None = None
    """Methods that have a meaning for it; None for all that have one for the task."""
    other_task: str = ""
    """Why it is no model of this task, where a mapping lists it all the same."""
    needs: str = ""
    """The package that a user has to install for it besides."""
