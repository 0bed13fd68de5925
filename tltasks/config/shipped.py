"""Recipes that come with tltasks, and the user's cache, in which they find the weights and data that are fetched."""

from __future__ import annotations

import os
import re
from pathlib import Path

CACHE_VARIABLE = "TLTASKS_CACHE"
"""Environment variable with the folder that is fetched into, instead of `~/.cache/tltasks`."""
FETCHED = {
    "weights/candidates": ("build_candidates.py", "weights/efficientnet-lite0", "weights/candidates"),
    "weights/efficientnet-lite0": ("fetch_efficientnet_lite0.py", "weights/efficientnet-lite0"),
    "weights/minilm": ("fetch_minilm.py", "weights/minilm"),
    "weights/t5-titles": ("fetch_t5_titles.py", "weights/t5-titles"),
    "weights/whisper-base": ("fetch_whisper.py", "base", "weights/whisper-base"),
    "weights/whisper-tiny.en": ("fetch_whisper.py", "tiny.en", "weights/whisper-tiny.en"),
    "data/package_sections": ("build_package_sections.py", "data/package_sections"),
    "data/package_synopsis": ("build_package_synopsis.py", "data/package_synopsis"),
    "data/paper_titles": ("build_paper_titles.py", "data/paper_titles"),
    "data/voice_prompts_es": ("build_voice_prompts.py", "es", "data/voice_prompts_es"),
}
"""What scripts beside the recipes make, by its place below the cache: the script, and its arguments, places among them.
"""


def relative_path(name: Path | str, folder: Path) -> str:
    """The path from a folder, with slashes, written so that it cannot be taken for a Hub id; from another drive of
    Windows the absolute one.
    """
    try:
        relative = Path(os.path.relpath(name, folder)).as_posix()
    except ValueError:  # there is no way from one drive to another
        return Path(name).absolute().as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def cache_folder() -> Path:
    """The folder that `tltasks fetch` fills: as with other tools below XDG_CACHE_HOME or `~/.cache`."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tltasks"


def recipe_folder() -> Path:
    """The recipes that come with tltasks: inside the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipe_called(name: Path) -> Path:
    """The path of a recipe that comes with tltasks by its name alone, such as `emoji_lora`; another path as it is."""
    if name.suffix or len(name.parts) != 1 or name.exists():
        return name
    return next(iter(sorted(recipe_folder().rglob(f"{name}.yaml"))), name)


def fetched(path: str) -> str:
    """The place of a file or folder that a recipe of tltasks names: beside the recipes, or in the user's cache."""
    asset = _asset_of(path)
    if asset is None or os.path.exists(path):  # noqa: PTH110
        return path
    there = cache_folder() / Path(path).relative_to(recipe_folder().parent)
    return str(there) if there.exists() else path


def how_to_fetch(path: str) -> str:
    """Words that end a message on something that is not there, where a command makes it."""
    asset = _asset_of(path)
    return f"; `tltasks fetch {Path(asset).name}` fetches it" if asset else ""


def _asset_of(path: str) -> str | None:
    root = recipe_folder().parent
    return next((one for one in FETCHED if Path(path).is_relative_to(root / one)), None)


def needed_by(recipe: Path) -> list[str]:
    """The fetched things that a recipe of tltasks names, in the order in which they can be made."""
    lines = (line.partition("#")[0] for line in recipe.read_text(encoding="utf-8").splitlines())
    named = re.findall(r"\.\./((?:weights|data)/[^/\s,}]+)", "\n".join(lines))
    needs_another = "weights/candidates" in named and "weights/efficientnet-lite0" not in named
    return [*(["weights/efficientnet-lite0"] if needs_another else []), *dict.fromkeys(named)]


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
    relative = relative_path(path, Path.cwd()).removeprefix("./")
    return relative if len(relative) < len(str(path)) else str(path)
