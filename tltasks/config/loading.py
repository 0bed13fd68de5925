"""A recipe's file: read it strictly, write it as resolved, find what it names, and tell it from others.

Names of local folders and files are relative to the recipe's own folder, so that it works from anywhere; those that
an override gives are relative to the working directory, where they were typed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tltasks.config.checks import validate
from tltasks.config.data import BUILDERS, Data, Source
from tltasks.config.model import Model
from tltasks.config.recipe import Recipe
from tltasks.config.stage import Stage
from tltasks.config.yaml_reader import Document, Issue, KeyPath, clip, dotted, dump, parse, read_text
from tltasks.errors import RecipeError

M = TypeVar("M", bound=BaseModel)

FILE_KEYS = ("output", "hub", "trackers")
"""Keys that say where results go; all others decide what they are."""


def load_recipe(path: Path, overrides: Iterable[str] = (), *, check_files: bool = True) -> Recipe:
    """Read and check a recipe, with `overrides` such as `stages.0.epochs=1` in place of what it says.

    Local paths of the file are relative to its folder; those of overrides, typed at a shell, to the working directory.
    Raises RecipeError with every mistake, each with its line, what was found and what is allowed. With `check_files`,
    local folders and files that are not there are mistakes too.
    """
    tree = parse(read_text(path), str(path), overrides)
    typed_in = {keys: Path.cwd() for keys, at in tree.locations.items() if at.is_override}
    recipe, problems = read_recipe(tree, path.parent, typed_in, check_files=check_files)
    if recipe is None or problems:
        raise RecipeError(list_mistakes(problems, "the recipe"))
    return recipe


def read_recipe(
    tree: Document, folder: Path, folders: dict[KeyPath, Path], *, check_files: bool
) -> tuple[Recipe | None, list[Issue]]:
    """The recipe that a tree holds, where it can be told, and every mistake in it.

    Its local paths start at `folder`, but those below a key of `folders` at another.
    """
    recipe, problems = validate(tree)
    if recipe is not None:
        recipe._folder, recipe._locations = folder, {k: str(v) for k, v in tree.locations.items()}
        recipe._typed_in = folders
        if check_files:
            missing = [Issue(tree.location(keys), dotted(keys), text) for keys, text in _missing_files(recipe)]
            problems = sorted(missing, key=lambda problem: problem.location)
    return recipe, problems


def list_mistakes(problems: list[Issue], where: str) -> str:
    """One line for each mistake, what is allowed once after the first mistake that it answers."""
    lines: list[str] = []
    listed: set[tuple[str, ...]] = set()
    for problem in problems:
        at = f"{problem.where}: " if problem.where else ""
        lines.append(f"{problem.location}  {at}{problem.text}")
        if problem.allowed and problem.allowed not in listed:
            listed.add(problem.allowed)
            lines.append(f"    allowed: {', '.join(problem.allowed)}")
    n = len(problems)
    return f"{n} mistake{'s' if n > 1 else ''} in {where}; nothing was loaded.\n" + "\n".join(lines)


# --------------------------------------------------------------------------------------------- places


def located(recipe: Recipe) -> Recipe:
    """The recipe with every local folder and file as an absolute path, symbolic links unresolved."""
    return _map_paths(recipe, lambda path, keys: _absolute(path, _start(recipe, keys)))


def _absolute(path: str, folder: Path) -> str:
    # os.path rather than pathlib: a user who does not exist is no error, and a link keeps its own name.
    return os.path.abspath(folder / os.path.expanduser(path))  # noqa: PTH100, PTH111


def _start(recipe: Recipe, keys: KeyPath) -> Path:
    """The folder that a local path is relative to."""
    while keys and keys not in recipe._locations:
        keys = keys[:-1]
    return recipe._typed_in.get(keys, recipe._folder)


def written_at(recipe: Recipe, keys: str) -> str:
    """Where the recipe says something, as `file:line:column`; for what it does not say, where its parent stands."""
    steps: list[str | int] = [int(k) if k.isdigit() else k for k in keys.replace("[", ".").replace("]", "").split(".")]
    while tuple(steps) not in recipe._locations and steps:
        steps.pop()
    return recipe._locations.get(tuple(steps), str(recipe._folder))


def is_local(name: str, folder: Path) -> bool:
    """Whether a name stands for a folder on this machine rather than for a Hub repository."""
    there = os.path.isdir(folder / name)  # noqa: PTH112 - Path.is_dir raises for an overlong name (3.13 and before)
    return name.startswith((".", "/", "~")) or Path(name).is_absolute() or there


def _on_hub(name: str | None, folder: Path) -> bool:
    """Whether data are of a Hub repository, where folders and files are places in it."""
    return name is not None and name not in BUILDERS and not is_local(name, folder)


def _map_paths(recipe: Recipe, change: Callable[[str, KeyPath], str]) -> Recipe:
    """A copy of the recipe with `change` applied to every local folder and file that it names, and to its keys."""

    def named(name: str, keys: KeyPath) -> str:
        return change(name, keys) if name not in BUILDERS and is_local(name, _start(recipe, keys)) else name

    def files(value: Any, keys: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: files(names, (*keys, key)) for key, names in value.items()}
        if isinstance(value, list):
            return [files(name, (*keys, i)) for i, name in enumerate(value)]
        return value if not value or "://" in value else change(value, keys)

    def source(data: Source, keys: KeyPath, among: str | None = None) -> Source:
        """`among` is the repository or builder that a further test set takes over."""
        owner = data.name or among
        update: dict[str, Any] = {"name": named(data.name, (*keys, "name")) if data.name else data.name}
        if not _on_hub(owner, _start(recipe, (*keys, "name"))):  # there both are places in the repository
            update["dir"] = change(data.dir, (*keys, "dir")) if data.dir else data.dir
            update["files"] = files(data.files, (*keys, "files"))
        if isinstance(data, Data):
            extra_keys = (*keys, "extra_test")
            update["extra_test"] = {
                key: source(extra, (*extra_keys, key), data.name) for key, extra in data.extra_test.items()
            }
        return _updated(data, update)

    def both(owner: Recipe | Stage, keys: KeyPath) -> dict[str, Any]:
        model: Model | None = getattr(owner, "model", None)
        data: Data | None = getattr(owner, "data", None)
        update: dict[str, Any] = {}
        if model is not None:
            update["model"] = _updated(model, {"name": named(model.name, (*keys, "model", "name"))})
        if data is not None:
            update["data"] = source(data, (*keys, "data"))
        if isinstance(owner, Stage):
            update["metrics"] = [
                _updated(metric, {"name": named(metric.name, (*keys, "metrics", i, "name"))})
                for i, metric in enumerate(owner.metrics)
            ]
        return update

    stages = [_updated(stage, both(stage, ("stages", i))) for i, stage in enumerate(recipe.stages)]
    return recipe.model_copy(update={**both(recipe, ()), "stages": stages})


def _updated(model: M, update: dict[str, Any]) -> M:
    """A copy in which only keys that change count as given."""
    return model.model_copy(update={k: v for k, v in update.items() if v != getattr(model, k)})


def _missing_files(recipe: Recipe) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    there = located(recipe)

    def check_model(model: Model | None, resolved: Model | None, keys: KeyPath) -> None:
        if model is None or resolved is None:
            return
        if _is_missing_folder(resolved.name):
            found.append(((*keys, "name"), f"there is no folder {clip(model.name)}{_from(recipe, (*keys, 'name'))}"))

    def check_data(data: Source | None, resolved: Source | None, keys: KeyPath) -> None:
        if data is None or resolved is None:
            return
        for key in ("name", "dir"):
            if _is_missing_folder(getattr(resolved, key)):
                at = (*keys, key)
                found.append((at, f"there is no folder {clip(getattr(data, key))}{_from(recipe, at)}"))
        for (at, name), (_, said) in zip(
            _each_file(resolved.files, (*keys, "files")), _each_file(data.files, (*keys, "files")), strict=True
        ):
            if Path(name).is_absolute() and not _is_file(name):  # others are in a Hub repository
                found.append((at, f"there is no file {clip(said)}{_from(recipe, at)}"))
        for name, extra in getattr(data, "extra_test", {}).items():
            check_data(extra, getattr(resolved, "extra_test")[name], (*keys, "extra_test", name))  # noqa: B009

    for owner, resolved, keys in (
        (recipe, there, ()),
        *((s, r, ("stages", i)) for i, (s, r) in enumerate(zip(recipe.stages, there.stages, strict=True))),
    ):
        check_model(getattr(owner, "model", None), getattr(resolved, "model", None), (*keys, "model"))
        check_data(getattr(owner, "data", None), getattr(resolved, "data", None), (*keys, "data"))
    for i, (stage, absolute) in enumerate(zip(recipe.stages, there.stages, strict=True)):
        for j, (said, metric) in enumerate(zip(stage.metrics, absolute.metrics, strict=True)):
            if _is_missing_folder(metric.name):
                at = ("stages", i, "metrics", j)
                found.append((at, f"there is no folder {clip(said.name)}{_from(recipe, at)}"))
    return found


def _is_missing_folder(name: str | None) -> bool:
    return name is not None and Path(name).is_absolute() and not os.path.isdir(name)  # noqa: PTH112


def _is_file(name: str) -> bool:
    """Whether there is such a file, or one that the name fits as a pattern (`images/**/*.png`)."""
    if os.path.isfile(name):  # noqa: PTH113
        return True
    return any(os.path.isfile(found) for found in glob.iglob(name, recursive=True))  # noqa: PTH113, PTH207


def _from(recipe: Recipe, keys: KeyPath) -> str:
    folder = _start(recipe, keys)
    if folder == recipe._folder:
        return f" beside the recipe (in {folder})"
    return f" in the working directory ({folder})" if folder == Path.cwd() else f" (in {folder})"


def _each_file(files: Any, keys: KeyPath) -> Iterable[tuple[KeyPath, str]]:
    if isinstance(files, dict):
        for key, value in files.items():
            yield from _each_file(value, (*keys, key))
    elif isinstance(files, list):
        for i, value in enumerate(files):
            yield from _each_file(value, (*keys, i))
    elif files:
        yield keys, str(files)


# --------------------------------------------------------------------------------------------- written


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it back gives the same recipe."""
    return dump(_resolved(recipe))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as resolved, its local paths relative to where it is written to."""
    folder = path.parent.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    there = _map_paths(located(recipe), lambda name, _: _relative(name, folder))
    path.write_text(recipe_text(there), encoding="utf-8")


def _relative(name: str, folder: Path) -> str:
    """The path from a folder, written so that it cannot be taken for a Hub id."""
    relative = os.path.relpath(name, folder)
    return relative if relative.startswith(".") else os.path.join(".", relative)  # noqa: PTH118


def _resolved(value: Any) -> Any:
    if isinstance(value, BaseModel):
        tree = {}
        for key, field in type(value).model_fields.items():
            own = getattr(value, key)
            silent = own is None and not field.is_required() and field.default is None
            without_effect = isinstance(value, Stage) and key not in value.effective_keys
            if not silent and not without_effect:
                tree[field.alias or key] = _resolved(own)
        return tree | dict(value.model_extra or {})
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    return value


def recipe_sha256(recipe: Recipe) -> str:
    """Digest of all that decides the results, wherever the recipe and the files that it names may lie."""
    tree = _resolved(_map_paths(located(recipe), lambda path, _: Path(path).name))
    for key in FILE_KEYS:
        tree.pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- shipped


def recipe_folder() -> Path:
    """The recipes that come with tltasks: inside the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def describe_recipes() -> str:
    """One line for each recipe that comes with tltasks: where it is, and the first line of its header."""
    folder = recipe_folder()
    lines = []
    for path in sorted(folder.rglob("*.yaml")):
        comments = (
            line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
        )
        title = next((line for line in comments if line and not line.startswith("yaml-language-server")), "")
        lines.append((_shortest(path), title))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {title}" for name, title in lines)


def _shortest(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
