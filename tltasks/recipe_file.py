"""A recipe's file: read it strictly, write it as resolved, find what it names, and tell it from others.

Names of local folders and files are relative to the recipe's own folder, so that it works from anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tltasks.errors import RecipeError
from tltasks.recipe import BUILDERS, Data, Model, Recipe, Source, Stage
from tltasks.source import Keys, Problem, dotted, dump, parse, read_text
from tltasks.validation import validate

M = TypeVar("M", bound=BaseModel)

FILE_KEYS = ("output", "hub", "trackers")
"""Keys that say where results go; all others decide what they are."""


def load_recipe(path: Path, overrides: Iterable[str] = (), *, check_files: bool = True) -> Recipe:
    """Read and check a recipe, with `overrides` such as `stages.0.epochs=1` in place of what it says.

    Raises RecipeError with every mistake, each with its line, what was found and what is allowed. With `check_files`,
    local folders and files that are not there are mistakes too.
    """
    tree = parse(read_text(path), str(path), overrides)
    recipe, problems = validate(tree)
    if recipe is not None:
        # An override is typed at a shell, so its paths start where the shell stands, unless the recipe has them.
        recipe._folder, recipe._locations = path.parent, {k: str(v) for k, v in tree.locations.items()}
        if check_files:
            problems = [Problem(tree.location(keys), dotted(keys), text) for keys, text in _missing_files(recipe)]
    if recipe is None or problems:
        raise RecipeError(_message(problems))
    return recipe


def _message(problems: list[Problem]) -> str:
    """One line for each mistake, what is allowed once after the first mistake that it answers."""
    lines: list[str] = []
    listed: set[tuple[str, ...]] = set()
    for problem in problems:
        where = f"{problem.where}: " if problem.where else ""
        lines.append(f"{problem.location}  {where}{problem.text}")
        if problem.allowed and problem.allowed not in listed:
            listed.add(problem.allowed)
            lines.append(f"    allowed: {', '.join(problem.allowed)}")
    n = len(problems)
    return f"{n} mistake{'s' if n > 1 else ''} in the recipe; nothing was loaded.\n" + "\n".join(lines)


# --------------------------------------------------------------------------------------------- places


def located(recipe: Recipe) -> Recipe:
    """The recipe with every local folder and file as an absolute path."""
    return _map_paths(recipe, lambda path: str((recipe._folder / Path(path).expanduser()).resolve()))


def written_at(recipe: Recipe, keys: str) -> str:
    """Where the recipe says something, as `file:line:column`; for what it does not say, where its parent stands."""
    steps: list[str | int] = [int(k) if k.isdigit() else k for k in keys.replace("[", ".").replace("]", "").split(".")]
    while tuple(steps) not in recipe._locations and steps:
        steps.pop()
    return recipe._locations.get(tuple(steps), str(recipe._folder))


def is_local(name: str, folder: Path) -> bool:
    """Whether a name stands for a folder on this machine rather than for a Hub repository."""
    return name.startswith((".", "/", "~")) or Path(name).is_absolute() or (folder / name).is_dir()


def _map_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """A copy of the recipe with `change` applied to every local folder and file that it names."""

    def named(name: str) -> str:
        return change(name) if name not in BUILDERS and is_local(name, recipe._folder) else name

    def file(name: str) -> str:
        return name if "://" in name else change(name)

    def files(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: files(names) for key, names in value.items()}
        if isinstance(value, list):
            return [file(name) for name in value]
        return file(value) if isinstance(value, str) else value

    def source(data: Source) -> Source:
        update: dict[str, Any] = {
            "name": named(data.name) if data.name else data.name,
            "dir": change(data.dir) if data.dir else data.dir,
            "files": files(data.files),
        }
        if isinstance(data, Data):
            update["extra_test"] = {key: source(extra) for key, extra in data.extra_test.items()}
        return _updated(data, update)

    def both(owner: Recipe | Stage) -> dict[str, Any]:
        model: Model | None = getattr(owner, "model", None)
        data: Data | None = getattr(owner, "data", None)
        update: dict[str, Any] = {}
        if model is not None:
            update["model"] = _updated(model, {"name": named(model.name)})
        if data is not None:
            update["data"] = source(data)
        return update

    return recipe.model_copy(update={**both(recipe), "stages": [_updated(s, both(s)) for s in recipe.stages]})


def _updated(model: M, update: dict[str, Any]) -> M:
    """A copy in which only keys that change count as given."""
    return model.model_copy(update={k: v for k, v in update.items() if v != getattr(model, k)})


def _missing_files(recipe: Recipe) -> list[tuple[Keys, str]]:
    found: list[tuple[Keys, str]] = []
    there = located(recipe)

    def check_model(model: Model | None, resolved: Model | None, keys: Keys) -> None:
        if model is None or resolved is None:
            return
        if Path(resolved.name).is_absolute() and not Path(resolved.name).is_dir():
            found.append(((*keys, "name"), f"there is no folder {model.name}{_from(recipe)}"))

    def check_data(data: Source | None, resolved: Source | None, keys: Keys) -> None:
        if data is None or resolved is None:
            return
        if resolved.name and Path(resolved.name).is_absolute() and not Path(resolved.name).is_dir():
            found.append(((*keys, "name"), f"there is no folder {data.name}{_from(recipe)}"))
        if resolved.dir and not Path(resolved.dir).is_dir():
            found.append(((*keys, "dir"), f"there is no folder {data.dir}{_from(recipe)}"))
        for at, name in _each_file(resolved.files, (*keys, "files")):
            path = Path(name)
            if "://" not in name and not (any(path.parent.glob(path.name)) if "*" in name else path.is_file()):
                found.append((at, f"there is no file {_shown(path)}{_from(recipe)}"))
        for name, extra in getattr(data, "extra_test", {}).items():
            check_data(extra, getattr(resolved, "extra_test")[name], (*keys, "extra_test", name))  # noqa: B009

    def _shown(path: Path) -> str:
        return os.path.relpath(path, recipe._folder)

    for owner, resolved, keys in (
        (recipe, there, ()),
        *((s, r, ("stages", i)) for i, (s, r) in enumerate(zip(recipe.stages, there.stages, strict=True))),
    ):
        check_model(getattr(owner, "model", None), getattr(resolved, "model", None), (*keys, "model"))
        check_data(getattr(owner, "data", None), getattr(resolved, "data", None), (*keys, "data"))
    return found


def _from(recipe: Recipe) -> str:
    return f" beside the recipe (in {recipe._folder})"


def _each_file(files: Any, keys: Keys) -> Iterable[tuple[Keys, str]]:
    if isinstance(files, dict):
        for key, value in files.items():
            yield from _each_file(value, (*keys, key))
    elif isinstance(files, list):
        for i, value in enumerate(files):
            yield from _each_file(value, (*keys, i))
    elif files:
        yield keys, files


# --------------------------------------------------------------------------------------------- written


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; reading it back gives the same recipe."""
    return dump(_resolved(recipe))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as resolved, its local paths relative to where it is written to."""
    folder = path.parent.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    there = _map_paths(located(recipe), lambda name: os.path.relpath(name, folder))
    path.write_text(recipe_text(there), encoding="utf-8")


def _resolved(value: Any) -> Any:
    if isinstance(value, BaseModel):
        tree = {}
        for key, field in type(value).model_fields.items():
            own = getattr(value, key)
            silent = own is None and not field.is_required() and field.default is None
            without_effect = isinstance(value, Stage) and key not in value.effective_keys
            if not silent and not without_effect:
                tree[key] = _resolved(own)
        return tree | dict(value.model_extra or {})
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    return value


def recipe_sha256(recipe: Recipe) -> str:
    """Digest of all that decides the results, wherever the recipe and the files that it names may lie."""
    tree = _resolved(_map_paths(recipe, lambda path: Path(path).name))
    for key in FILE_KEYS:
        tree.pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- shipped


def recipe_folder() -> Path:
    """The recipes that come with tltasks: of the checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "recipes"
    return beside if beside.is_dir() else package / "recipes"


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
