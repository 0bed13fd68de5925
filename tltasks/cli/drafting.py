"""Recipes for data that are named without one: drafted, and what they will take."""

from __future__ import annotations

import re
from pathlib import Path

from tltasks.cli.process import say
from tltasks.errors import RecipeError, TltasksError, first_line

MOST_TIMED = 5000
"""Rows up to which `init` opens data as a run does, to tell what the run will take."""


def draft_for(data: str, *, task: str | None, model: str | None) -> dict[str, object]:
    """The recipe for data that are named without one, in the working directory."""
    from tltasks.data.survey import survey
    from tltasks.runs.draft import draft

    name = name_of(data)
    found = draft(survey(data), task=task, model=model, folder=Path.cwd(), name=name)
    if found.table:
        raise RecipeError(f"run: the files of {data} need a table that names their content: `tltasks init` it.")
    say("\n".join(f"- {line}" for line in found.said))
    return found.keys


def time_of(path: Path, *, rows: int) -> str:
    """A sentence on how long a recipe will train, by one of its steps here where its model is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run

    plan, unknown = plan_run(load_recipe(path)), "how long it takes is not estimated: {}; `--dry-run` tells"
    model = plan.stages[0].checkpoint.name
    files = ("model.safetensors", "model.safetensors.index.json")
    if not Path(model).is_dir() and not any(isinstance(try_to_load_from_cache(model, file), str) for file in files):
        return unknown.format("the model is not on this machine yet")
    if rows > MOST_TIMED:
        return unknown.format(f"{rows:,} rows take a while to open")
    from tltasks.reports.formatting import show_duration
    from tltasks.runs.story import measure_stages

    try:
        seconds = sum(stage.seconds or 0 for stage in measure_stages(plan))
    except TltasksError as error:
        return unknown.format(first_line(error))
    return f"about {show_duration(seconds)} of training on this machine, an estimate by one step; scoring comes on top"


def name_of(data: str) -> str:
    """A name for a recipe by that of its data."""
    return re.sub(r"[^\w-]+", "_", Path(data).expanduser().absolute().name.split(".")[0]).strip("_") or "recipe"
