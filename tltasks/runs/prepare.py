"""Stages before training: data loaded and encoded, checkpoints found and checked; no weights yet."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from tltasks.config.model import Checkpoint
from tltasks.config.recipe import Recipe, RunPlan, written_at
from tltasks.config.stage import StagePlan
from tltasks.config.tasks import TASKS
from tltasks.data.encoding import encode_split
from tltasks.data.languages import check_languages
from tltasks.data.loading import load_splits
from tltasks.errors import RecipeError
from tltasks.hub.saved_model import ResolvedCheckpoint, resolve_checkpoint
from tltasks.runs.context import PreparedStage
from tltasks.runs.leaks import look_for_leaks
from tltasks.runtime import devices
from tltasks.tasks import load_adapter
from tltasks.tasks.base import Embeds
from tltasks.training.extra_metrics import load_extra_metrics, rehearse


def prepare_stages(accelerator: Accelerator, plan: RunPlan) -> list[PreparedStage]:
    """All stages, each that goes on from another opened with what that one will leave: its labels, its sizes."""
    prepared: list[PreparedStage] = []
    for stage in plan.stages:
        found = ResolvedCheckpoint(Checkpoint(""), [], [])
        with tempfile.TemporaryDirectory() as setup:
            if stage.continues:
                source = prepared[-1].source
                prepared[-1].task.save_setup(Path(setup))
                start = dataclasses.replace(source, name=setup, revision="main")
            else:
                with accelerator.local_main_process_first():
                    found = resolve_checkpoint(stage.checkpoint, tag=stage.task)
                source = start = found.checkpoint
            item = _prepare(accelerator, plan.recipe, stage, source=source, start=start)
            prepared.append(dataclasses.replace(item, lineage=found.lineage, notes=[*found.notes, *item.notes]))
    return look_for_leaks(accelerator, prepared)


def _prepare(
    accelerator: Accelerator, recipe: Recipe, stage: StagePlan, *, source: Checkpoint, start: Checkpoint
) -> PreparedStage:
    """Load and encode the stage's data and read the configuration that it starts from; no weights."""
    adapter = load_adapter(stage.task)
    if stage.kind.cached and not issubclass(adapter, Embeds):
        raise RecipeError(f"stages[{stage.index}]: {stage.task} has no head that a probe could fit; use `transfer`.")
    with accelerator.local_main_process_first():
        splits = load_splits(
            stage.data, seed=recipe.seed, label=adapter.label, train=stage.kind.trains, locate=_locate(recipe, stage)
        )
        task = adapter.open(stage, splits, start, seed=recipe.seed)
        check_languages(splits, task.languages)
        if stage.data.streaming and TASKS[stage.task].is_self_supervised:
            raise RecipeError(f"data.streaming: {stage.task} reads rows that are held; leave it out.")
        extra_metrics, key = load_extra_metrics(stage.stage.metrics, task), task.cache_key
        media = None if task.input_kind.is_text else task.input_kind.column
        encoded = {
            name: encode_split(
                split,
                # A window is encoded while tokenizers are used to train on another; they are not for two threads.
                (task if split.stream is None else copy.deepcopy(task)).preprocess(split),
                task.features,
                key=key,
                max_bad_share=stage.data.max_bad_share,
                media=media,
                likeness=None if stage.data.leaks == "off" or stage.data.streaming else task.likeness,
                processes=devices.cores(),
                batch_size=stage.stage.batch_size,
            )
            for name, split in splits.items()
        }
    held = [split for split in splits.values() if split.stream is None]
    notes = [*dict.fromkeys(note for split in held for note in split.notes), *task.notes]
    checks, told = task.data_checks(encoded), task.data_notes(encoded)
    for name, split in splits.items():
        if split.stream is not None:  # the report's reader has to know it, too
            told = told | {name: [*split.notes, *told.get(name, [])]}
    if stage.stage.groups_lengths and "train" in encoded:
        notes += _of_lengths(task.lengths(encoded["train"].rows))
    rehearse(extra_metrics, task, encoded)
    prepared = PreparedStage(stage, task, source, encoded, checks, told, extra_metrics, notes=notes)
    if stage.stage.loops:
        prepared.rows_of_epoch  # noqa: B018 (tells at once what the recipe lacks for rows that nobody counts)
    return prepared


def _of_lengths(lengths: Sequence[int] | None) -> list[str]:
    """A note where rows are to be grouped by length and there is nothing to group by."""
    alike = lengths is None or len(set(lengths)) < 2
    return ["`group_by_length` has no effect: to this model all rows are alike in length."] if alike else []


def _locate(recipe: Recipe, stage: StagePlan) -> Callable[[str], str]:
    """Name a key of the stage's data, its own or the whole recipe's, with its place in the file."""
    own = recipe.stages[stage.index].data is not None
    prefix = f"stages[{stage.index}].data" if own else "data"
    return lambda key: written_at(recipe, f"{prefix}.{key}")
