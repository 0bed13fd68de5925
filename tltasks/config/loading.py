"""A recipe, read strictly from a file or a mapping, with its local paths found; and written again.

Local folders and files are relative to the recipe's own folder, so that it works from anywhere; those that an override
or a mapping gives are relative to the working directory, where they were typed. They are made absolute once, here.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tltasks.config.checks import Findings
from tltasks.config.data import Data
from tltasks.config.document import (
    DOTTED_KEY,
    Document,
    Issue,
    Origin,
    clip,
    describe,
    dotted,
    from_python,
    list_mistakes,
)
from tltasks.config.model import Model
from tltasks.config.names import format_of, is_local_name
from tltasks.config.recipe import Kind, Recipe, as_written, map_paths, to_tree, with_paths
from tltasks.config.section import KeyPath
from tltasks.config.shipped import fetched, how_to_fetch, relative_path
from tltasks.config.stage import Stage
from tltasks.config.tasks import TASKS
from tltasks.config.yaml_reader import HELD, dump, parse_value, read_document
from tltasks.errors import RecipeError, closest, did_you_mean, has_secret, siblings

Overrides = Mapping[str, object] | Iterable[str]
"""Values by dotted keys (`{"stages.0.epochs": 1}`), or as they are typed at a shell (`["stages.0.epochs=1"]`)."""


def load_recipe(
    source: Path | str | Mapping[str, object],
    overrides: Overrides = (),
    *,
    check_files: bool = True,
    check_secrets: bool = True,
) -> Recipe:
    """Read and check a recipe from its file or from a mapping, with `overrides` in place of what it says.

    Raises RecipeError with every mistake, each with its place, what was found and what is allowed. With `check_files`,
    local folders and files that are not there are mistakes too.

    >>> load_recipe({"task": "summarization"}, {"seed": 1.5})
    Traceback (most recent call last):
    tltasks.errors.RecipeError: 3 mistakes in the recipe; nothing was loaded.
    stages[0]: needs the key `model`, here or for the whole recipe
    stages[0]: needs the key `data`, here or for the whole recipe
    overrides['seed']  seed: expected a whole number, found the number 1.5
    """
    tree = open_document(source, overrides, check_secrets=check_secrets)
    recipe, problems = read_recipe(tree, check_files=check_files)
    if recipe is None or problems:
        raise RecipeError(list_mistakes(problems, "the recipe"))
    return recipe


def open_document(
    source: Path | str | Mapping[str, object], overrides: Overrides = (), *, check_secrets: bool = True
) -> Document:
    """Read a file or a mapping, with overrides in it. Raises RecipeError for what cannot be read or followed, and for
    logins and tokens, since all of it is written into results, also comments.
    """
    if isinstance(source, Mapping):
        tree = from_python(source, Origin("", Path.cwd()))
    else:
        tree = read_document(Path(source), check_secrets=check_secrets)
    tree = override(tree, overrides)
    if check_secrets and (keys := _secret_keys(tree.value)) is not None:
        raise RecipeError(f"{tree.location(keys)}  {dotted(keys)}: {HELD}".strip())
    return tree


def _secret_keys(node: object, keys: KeyPath = ()) -> KeyPath | None:
    """The place of a secret in a tree, in a key or in a value."""
    if isinstance(node, str):
        return keys if has_secret(node) else None
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        found = keys if has_secret(str(key)) else _secret_keys(item, (*keys, key))
        if found is not None:
            return found
    return None


def override(tree: Document, overrides: Overrides) -> Document:
    """A document with other values in it. Raises RecipeError for keys that lead nowhere and values that are no YAML."""
    for key, part in _parts(overrides):
        try:
            tree = with_key(tree, key, part)
        except ValueError as error:
            raise RecipeError(f"{part.location(())}: {error}.") from error
    return tree


def _parts(overrides: Overrides) -> Iterator[tuple[str, Document]]:
    """Dotted keys and what is to stand there."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield key, from_python(value, Origin(f"overrides[{clip(key)!r}]", Path.cwd(), is_override=True))
        return
    for typed in overrides:
        key, equals, text = typed.partition("=")
        origin = Origin(f"--set {clip(typed)}", Path.cwd(), is_override=True)
        if not equals or not DOTTED_KEY.fullmatch(key.strip()):
            raise RecipeError(f"{origin.name}: write it as KEY=VALUE, e.g. `--set stages.0.epochs=1`.")
        yield key.strip(), parse_value(text, origin)


def read_recipe(tree: Document, *, check_files: bool) -> tuple[Recipe | None, list[Issue]]:
    """The recipe that a tree holds, where it can be told, its paths absolute; and every mistake in it."""
    recipe, problems = _validate(tree)
    if recipe is None:
        return None, problems
    written: dict[str, str] = {}

    def locate(text: str, keys: KeyPath, kind: Kind) -> str:
        at = tree.location(keys)
        if "://" in text or (kind == "repository" and not is_local(text, at.folder)):
            return text
        # os.path rather than pathlib: a user who does not exist is no error, and a link keeps its own name.
        path = fetched(os.path.abspath(at.folder / os.path.expanduser(text)))  # noqa: PTH100, PTH111
        written[path] = text
        is_file = kind == "file" or (kind == "repository" and format_of(text) is not None)
        if check_files and not (is_file and _is_file(path)) and not (kind != "file" and os.path.isdir(path)):  # noqa: PTH112
            said = f"there is no {'file' if is_file else 'folder'} {clip(text)}{_beside(at.folder, tree)}"
            close = how_to_fetch(path) or did_you_mean(Path(path).name, siblings(Path(path)))
            if os.path.exists(path):  # noqa: PTH110
                said, close = f"{clip(text)} is no {'file' if is_file else 'folder, and no table by its suffix'}", ""
            problems.append(tree.issue(keys, said + close))
        return path

    recipe = map_paths(with_usual_rates(recipe), locate)
    recipe._chosen = _choices(tree.value, recipe)
    recipe._written, recipe._places = written, {keys: str(at) for keys, at in tree.locations.items()}
    return recipe, sorted(problems, key=lambda problem: problem.location)


# ------------------------------------------------------------------------------------- keys by their task


_UNREAD = Stage(stage="zero_shot", model=Model(name="unread"), data=Data(name="unread"))
"""Stands for stages that are not looked at, or cannot be read."""


def _validate(tree: Document) -> tuple[Recipe | None, list[Issue]]:
    """The recipe that a tree holds, and every mistake in it; the recipe is None when there are any."""
    given, findings, likely = _with_usual_keys(tree), Findings(tree), _likely_task(tree)
    if own := TASKS.get(likely or ""):
        findings.sections = {"stages[0]": own.stage, "data": own.data, "model": own.model, "": Recipe}
    shared = {key: value for key, value in given.items() if key not in {"model", "data", "stages"}}
    findings.read(Recipe, {**shared, "task": "", "stages": [_UNREAD]}, ())
    task = given.get("task")
    if task is None:
        findings.missing((), "task", allowed=TASKS)
    elif not isinstance(task, str) or task not in TASKS:
        _unknown_task(findings, ("task",), task)
    parts = _read_parts(findings, given, likely)
    findings.tell(Recipe.model_construct(task="", output="", **parts), ())
    return findings.finish(None if findings.issues else Recipe.model_validate({**shared, **parts}))


def _unknown_task(findings: Findings, keys: KeyPath, task: object) -> None:
    close = did_you_mean(task, TASKS) if isinstance(task, str) else ""
    findings.add(keys, f"no task is called {describe(task).removeprefix('the text ')}{close}", TASKS)


def _likely_task(tree: Document) -> str | None:
    """The task that was meant, so that the rest can be checked too: the name's nearest, or whose keys fit best."""
    name = tree.value.get("task")
    if isinstance(name, str):
        return closest(name, TASKS)

    def n_mistakes(task: str) -> int:
        findings = Findings(tree)
        _read_parts(findings, tree.value, task)
        return len(findings.issues)

    return min(TASKS, key=n_mistakes)


def _read_parts(findings: Findings, given: Mapping[str, object], task: str | None) -> dict[str, Any]:
    """Model, data and stages by the classes of their task; None for a model or data that cannot be read."""
    own = TASKS[task] if task is not None else None
    parts = {
        key: findings.read(getattr(own, key), given[key], (key,)) if own and given.get(key) is not None else None
        for key in ("model", "data")
    }
    items = given.get("stages")
    if "stages" not in given:
        findings.missing((), "stages", ", a list of at least one stage")
    elif not isinstance(items, list) or not items:
        findings.add(("stages",), f"expected a list of at least one stage, found {describe(items)}")
    stages: list[Stage] = []
    for i, value in enumerate(items if isinstance(items, list) else []):
        spec = own
        if isinstance(value, dict) and isinstance(name := value.get("task"), str):
            spec = TASKS.get(closest(name, TASKS) or "")
            if name not in TASKS:
                _unknown_task(findings, ("stages", i, "task"), name)
        stage = findings.read(spec.stage, value, ("stages", i)) if spec else None
        if stage is None:
            findings.unsound.add(("stages", i))
        stages.append(stage or _UNREAD)
    return {**parts, "stages": stages}


# ------------------------------------------------------------------------------------- what is unset


def _with_usual_keys(tree: Document) -> Mapping[str, object]:
    """The keys of a recipe, with an output and a stage where it names none."""
    given: dict[str, Any] = {**tree.value}
    file = str(tree.location(())).rsplit(":", 2)[0]
    given.setdefault("output", f"outputs/{Path(file).stem or 'run'}")
    task = given.get("task")
    if isinstance(task, str) and task in TASKS and not TASKS[task].is_self_supervised:
        annotated = "label" in TASKS[task].data.model_fields["columns"].annotation.model_fields  # type: ignore[union-attr]
        given.setdefault("stages", [{"stage": "transfer" if annotated else "finetune", "adapt": {"lora": {}}}])
    return given


def with_key(tree: Document, key: str, part: Document) -> Document:
    """A recipe with a dotted key set; where it names no stages, those of its usual one. Raises as `replaced` does."""
    return (with_usual_stage(tree) if key.startswith("stages.") else tree).replaced(key, part)


def with_usual_stage(tree: Document) -> Document:
    """A recipe that names no stages with its usual one written, so that keys of it can be changed."""
    if (
        not isinstance(tree.value, Mapping)
        or "stages" in tree.value
        or "stages" not in (given := _with_usual_keys(tree))
    ):
        return tree
    return dataclasses.replace(tree, value={**tree.value, "stages": given["stages"]})


def with_usual_rates(recipe: Recipe) -> Recipe:
    """The recipe with the usual learning rate in each stage that trains in the loop and names none."""
    stages = list(recipe.stages)
    for i, stage in enumerate(stages):
        spec = TASKS.get(stage.task or recipe.task)
        if stage.loops and stage.learning_rate is None and stage.is_usual and spec is not None:
            stages[i] = stage.model_copy(update={"learning_rate": spec.usual_rate(stage.adapt.method)})
    return recipe if stages == recipe.stages else recipe.model_copy(update={"stages": stages})


def _choices(given: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Choices that were made for unset keys, in words."""
    said = [f"stages: {recipe.stages[0].stage} with LoRA"] if "stages" not in given else []
    for i, stage in enumerate(recipe.stages):
        own = given["stages"][i] if "stages" in given else {}
        where = "" if len(recipe.stages) == 1 else f"stages[{i}]."
        if stage.loops and stage.learning_rate is not None and own.get("learning_rate") is None:
            said.append(f"{where}learning_rate: {stage.learning_rate:g}")
        if stage.loops and own.get("batch_size") is None:
            said.append(f"{where}batch_size: {stage.batch_size}")
    return [*said, f"output: {recipe.output}"] if "output" not in given else said


# ---------------------------------------------------------------------------------------------- places


def is_local(name: str, folder: Path) -> bool:
    """True if a name stands for a folder on this machine rather than for a Hub repository."""
    there = os.path.isdir(folder / name)  # noqa: PTH112 - Path.is_dir raises for an overlong name (3.13 and before)
    return there or is_local_name(name)


def _is_file(name: str) -> bool:
    """True if there is such a file, or one that the name fits as a pattern (`images/**/*.png`)."""
    if os.path.isfile(name):  # noqa: PTH113
        return True
    return any(os.path.isfile(found) for found in glob.iglob(name, recursive=True))  # noqa: PTH113, PTH207


def _beside(folder: Path, tree: Document) -> str:
    if folder == Path.cwd():
        return f" in the working directory ({folder})"
    return f" beside the recipe (in {folder})" if folder == tree.location(()).folder else f" (in {folder})"


# --------------------------------------------------------------------------------------------- written


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it back gives the same recipe."""
    return dump(to_tree(as_written(recipe)))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as resolved, its local paths relative to where it is written to."""
    folder = path.parent.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    there = with_paths(recipe, lambda name: relative_path(name, folder))
    path.write_text(dump(to_tree(there)), encoding="utf-8")
