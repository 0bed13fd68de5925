"""Refusals of a run before anything heavy is imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Recipe, RunPlan, recipe_sha256, with_paths
from tltasks.errors import RecipeError
from tltasks.runtime.environment import check_launch, shares_states
from tltasks.runtime.files import check_place, is_occupied, next_free
from tltasks.training.tracking import check_trackers

OF_A_RUN = ("log.txt", "metrics.jsonl", "result.json", "stages")
"""Of these a run has one beside its recipe.yaml, which may as well be its author's own."""


def refuse_at_once(plan: RunPlan, *, push: bool) -> None:
    """Raise RecipeError for what neither devices nor files have to be looked at for."""
    check_launch()
    check_trackers(list(plan.recipe.trackers))
    if shares_states():
        refuse_sharing(plan)
    for key, extra, values in (("optimizer", "8bit", {"adamw_8bit"}), ("base_dtype", "quantized", {"int8", "nf4"})):
        asked = values & {getattr(stage.stage, key) for stage in plan.stages}
        if asked and find_spec("bitsandbytes") is None:
            raise RecipeError(
                f"{key}: {asked.pop()} needs bitsandbytes, which is not installed: pip install 'tltasks[{extra}]'."
            )
    if push and plan.recipe.hub.repo is None:
        raise RecipeError("--push: the recipe names no hub.repo; add it, or `--set hub.repo=user/name`.")


def place_of(recipe: Recipe, output: Path | str | None, *, resume: bool, overwrite: bool) -> Path | None:
    """The results folder that is asked for, or of a recipe that names none one with a number; None: the recipe's."""
    if output is not None:
        return Path(output)
    chosen = f"output: {recipe.output}" in recipe._chosen
    return next_free(Path(recipe.output), resume=resume) if chosen and not overwrite else None


def refuse_sharing(plan: RunPlan) -> None:
    """Raise RecipeError for keys that look at weights as wholes in each step, which under FSDP 2 no process has."""
    for stage in plan.stages:
        if not stage.stage.loops:
            continue
        keys, adapt = stage.stage, stage.stage.adapt
        asked = {
            f"optimizer: {keys.optimizer}": keys.optimizer not in {"adamw", "sgd"},
            f"base_dtype: {keys.base_dtype}": keys.base_dtype in {"int8", "nf4"},
            "compile: true": keys.compile,
            "l2_sp": keys.l2_sp is not None,
            "adapt.adalora": adapt.adalora is not None,
            "batch_norm: batch": keys.batch_norm == "batch",
        }
        if found := [key for key, is_asked in asked.items() if is_asked]:
            raise RecipeError(
                f"stages[{stage.index}].{found[0]} is not supported where FSDP 2 shares weights out; leave it out, or "
                "launch without --use_fsdp."
            )


def refuse_occupied(output: Path, sha256: str, *, resume: bool, overwrite: bool = False) -> None:
    """Raise RecipeError when the folder holds something that this run would overwrite, or cannot be resumed from.

    What may be overwritten is an earlier run, and nothing else.
    """
    check_place(output)
    if output.exists() and not output.is_dir():
        raise RecipeError(f"output {output}: is a file; name a folder with --output.")
    occupied, recipe = is_occupied(output), output / "recipe.yaml"
    if occupied and not resume and not overwrite:
        raise RecipeError(
            f"output {output}: is not empty. Go on with that run with --resume, or name another folder with --output; "
            "--overwrite removes the run that is there."
        )
    if not occupied:
        return
    if not recipe.is_file():
        raise RecipeError(
            f"output {output}: holds no run to {'resume' if resume else 'overwrite'} (no recipe.yaml). Name another "
            "folder."
        )
    if not resume:
        if not any((output / name).exists() for name in OF_A_RUN):
            raise RecipeError(
                f"output {output}: holds a recipe.yaml, but no run to overwrite (none of {', '.join(OF_A_RUN)}). Name "
                "another folder."
            )
        return
    earlier = recipe_sha256(load_recipe(recipe, check_files=False))
    if earlier != sha256:
        raise RecipeError(
            f"output {output}: was begun with another recipe ({earlier[:12]}, now {sha256[:12]}). "
            f"Resume with {recipe}, or name another folder with --output."
        )


def refuse_loss(plan: RunPlan) -> None:
    """Raise RecipeError when a results folder that is to be overwritten holds more than an earlier run.

    That is what this one begins with, such as the earlier one's model, or the working directory.
    """
    output, held = plan.output.resolve(), {str(Path.cwd()): "the working directory"}

    def note(path: str) -> str:
        held.setdefault(path, path)
        return path

    with_paths(plan.recipe, note)
    for path, what in held.items():
        if Path(path).resolve().is_relative_to(output):
            raise RecipeError(f"--overwrite: would remove {what}, in output {plan.output}; choose another --output.")
