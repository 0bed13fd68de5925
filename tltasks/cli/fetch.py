"""Weights and data of the recipes that come with tltasks, made by the scripts beside them in the user's cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tltasks.config.shipped import FETCHED, cache_folder, needed_by, recipe_called, recipe_folder
from tltasks.errors import DataError, RecipeError, did_you_mean


def list_assets() -> str:
    """One line for each: its name, where it is or will be, and the recipes that it is for."""
    recipes = sorted((recipe_folder() / "offline").rglob("*.yaml"))
    users = {asset: [path.stem for path in recipes if asset in needed_by(path)] for asset in FETCHED}
    width = max(len(Path(asset).name) for asset in FETCHED)
    return "\n".join(
        f"{Path(asset).name:<{width}}  {'fetched' if _is_there(asset) else 'not yet'}  for {', '.join(names)}"
        for asset, names in users.items()
    )


def fetch(name: str) -> list[Path]:
    """Make what a recipe needs, or a single thing by its own name; what is there already stays as it is.

    Raises RecipeError for an unknown name, and DataError where something cannot be made.
    """
    recipe = recipe_called(Path(name))
    if recipe.suffix and recipe.is_file():
        assets = needed_by(recipe)
    else:
        assets = [asset for asset in FETCHED if name in (asset, Path(asset).name)]
    known = {Path(asset).name for asset in FETCHED}
    if not assets and not recipe.is_file():
        close = did_you_mean(name, known) or "."
        raise RecipeError(
            f"fetch {name}: nothing is called so{close} There are: {', '.join(sorted(known))}; and the recipes' names."
        )
    if unknown := [asset for asset in assets if asset not in FETCHED]:
        raise RecipeError(f"fetch {name}: no command makes {unknown[0]}; the first lines of {recipe} say how.")
    for asset in assets:
        if not _is_there(asset):
            _make(asset)
    return [cache_folder() / asset for asset in assets]


def _make(asset: str) -> None:
    """Have its script make it beside its place, so that what is there is whole."""
    (script, *arguments), place = FETCHED[asset], cache_folder() / asset
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder:
        made = Path(folder) / place.name
        places = [str(cache_folder() / one) if one in FETCHED else one for one in arguments if one != asset]
        command = [sys.executable, str(recipe_folder() / "offline" / script), *places, str(made)]
        if subprocess.run(command, check=False).returncode == 0 and made.is_dir():
            made.rename(place)
    if not _is_there(asset):
        raise DataError(f"fetch {Path(asset).name}: was not made; what {script} says above is why.")


def _is_there(asset: str) -> bool:
    place = cache_folder() / asset
    return place.is_dir() and any(place.iterdir())
