"""Registry of tasks: one torch-free row for each, beside the sections of a recipe that are its own.

A new task is a row, with its sections, in one of these files, an adapter in `tltasks/tasks/`, and a card template in
`hub_cards/`; nothing else in the package names it.
"""

from __future__ import annotations

from tltasks.config.stage import TaskSpec
from tltasks.config.tasks import image, speech, text

__all__ = ["TASKS", "TaskSpec", "supervised_tasks", "task_of_folder"]

TASKS: dict[str, TaskSpec] = {spec.tag: spec for spec in (*image.TASKS, *speech.TASKS, *text.TASKS)}
"""By tag."""


def supervised_tasks() -> list[str]:
    """Tags of the tasks that answer, as against objectives that train an encoder for them."""
    return [tag for tag, spec in TASKS.items() if not spec.is_self_supervised]


def task_of_folder(kind: str, annotations: set[str]) -> str | None:
    """The task that inputs of a kind (`image`, `audio`) with these annotations (`classes`, `text`) are data for.

    >>> task_of_folder("image", {"classes"}), task_of_folder("audio", set())
    ('image-classification', None)
    """
    return next((t for t, spec in TASKS.items() if spec.input.kind == kind and spec.annotation in annotations), None)
