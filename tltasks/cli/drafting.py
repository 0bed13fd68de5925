"""Recipes for data that are named without one: drafted, and what they will take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from tltasks.cli.process import begin, say
from tltasks.errors import DataError, RecipeError, TltasksError, first_line

MOST_TIMED = 5000
"""Rows up to which `init` opens data as a run does, to tell what the run will take."""


def draft_for(data: str, overrides: Sequence[str], *, task: str | None, model: str | None) -> dict[str, object]:
    """The recipe for data that are named without one, in the working directory; `overrides` are looked at first."""
    _refuse_mistaken(overrides, task=task)
    begin(about(data))
    from tltasks.data.survey import survey
    from tltasks.runs.draft import draft

    name = name_of(data)
    found = draft(survey(data), task=task, model=model, folder=Path.cwd(), name=name)
    if found.table:
        raise RecipeError(f"run: the files of {data} need a table that names their content: `tltasks init` it.")
    say("\n".join(f"- {line}" for line in found.said))
    return found.keys


def _refuse_mistaken(overrides: Sequence[str], *, task: str | None) -> None:
    """Raise RecipeError for `--set` of what no recipe has, before what looks at data is imported."""
    from tltasks.config.document import list_mistakes
    from tltasks.config.loading import open_document, read_recipe
    from tltasks.config.tasks import supervised_tasks

    found = []
    for tag in [task] if task else supervised_tasks():
        blank = {"task": tag, "model": {"name": "any"}, "data": {"name": "any"}}
        _, problems = read_recipe(open_document(blank, overrides), check_files=False)
        found.append([one for one in problems if one.text.startswith(("unknown key", "expected"))])
    if all(found):
        raise RecipeError(list_mistakes(min(found, key=len), "the recipe"))


def time_of(path: Path, *, rows: int) -> str:
    """A sentence on how long a recipe will train, by one of its steps here where its model is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run

    plan, unknown = plan_run(load_recipe(path)), "how long it takes is not estimated: {}; `--dry-run` tells"
    model = plan.stages[0].checkpoint.name
    files = ("model.safetensors", "model.safetensors.index.json")
    if not Path(model).is_dir() and not any(isinstance(try_to_load_from_cache(model, file), str) for file in files):
        return unknown.format("the model is not on this machine yet, and `--model FOLDER` takes one that is")
    if rows > MOST_TIMED:
        return unknown.format(f"{rows:,} rows take a while to open")
    from tltasks.reports.console import BUSY
    from tltasks.reports.formatting import show_duration
    from tltasks.results.result import LONG
    from tltasks.runs.story import measure_stages

    try:
        measured = measure_stages(plan)
    except (RecipeError, DataError) as error:
        return f"to be mended before it runs: {shorten(first_line(error).rstrip('.'), 200, placeholder=' …')}"
    except TltasksError as error:
        return unknown.format(first_line(error))
    about = f"about {show_duration(sum(stage.seconds or 0 for stage in measured))} of training on this machine"
    busy = "; other work had the processor meanwhile" if max(stage.waiting for stage in measured) > BUSY else ""
    shorter = "".join(f"; `--set {stage.shorter}`: at most {LONG // 60} min" for stage in measured if stage.shorter)
    return f"{about}, an estimate by one step{busy}; scoring comes on top{shorter}"


def about(data: str) -> str:
    """Words said while data are looked at."""
    return f"looking at {data}{'' if Path(data).expanduser().exists() else ', by that name on the Hub'}"


def name_of(data: str) -> str:
    """A name for a recipe by that of its data."""
    return re.sub(r"[^\w-]+", "_", Path(data).expanduser().absolute().name.split(".")[0]).strip("_") or "recipe"
