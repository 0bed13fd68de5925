"""Weights and data of the shipped recipes, in a cache of the user's; the scripts themselves are tested elsewhere."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tltasks.cli.commands import MISUSED, RAISED, main
from tltasks.config import shipped
from tltasks.config.loading import load_recipe

OFFLINE = shipped.recipe_folder() / "offline"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with the recipes, a cache with a space in its name, and scripts that make a file each."""
    package = tmp_path / "site-packages" / "tltasks"
    shutil.copytree(OFFLINE, package / "recipes" / "offline", ignore=shutil.ignore_patterns("*.parquet", "*.flac"))
    monkeypatch.setattr(shipped, "__file__", str(package / "config" / "shipped.py"))
    monkeypatch.setenv(shipped.CACHE_VARIABLE, str(tmp_path / "my cache"))

    def made(command: list[str], **_: object) -> SimpleNamespace:
        assert Path(command[1]).is_file()
        for name in ("config.json", "train.jsonl", "validation.jsonl", "test.jsonl"):
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
            (Path(command[-1]) / name).write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", made)
    return package


def test_recipes_find_what_was_fetched(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "paper_titles"]) == MISUSED
    assert "there is no folder ../../weights/t5-titles" in (said := capsys.readouterr().err)
    assert "`tltasks fetch t5-titles` fetches it" in said
    assert main(["fetch", "paper_titles"]) == 0
    assert main(["check", "paper_titles"]) == 0
    recipe = load_recipe(shipped.recipe_called(Path("paper_titles")))
    assert recipe.model is not None
    assert recipe.model.name == str(tmp_path / "my cache" / "weights" / "t5-titles")
    assert not (installed / "weights").exists()
    assert not (installed / "data").exists()
    (installed / "weights" / "t5-titles").mkdir(parents=True)  # as in a checkout: what lies there comes first
    recipe = load_recipe(shipped.recipe_called(Path("paper_titles")))
    assert recipe.model is not None
    assert recipe.model.name == str(installed / "weights" / "t5-titles")


def test_names_of_what_is_fetched(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "minilm"]) == 0
    assert main(["fetch"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "fetched" in lines["minilm"]
    assert "package_sections" in lines["minilm"]
    assert "not yet" in lines["t5-titles"]
    assert main(["fetch", "minilmm"]) == MISUSED
    assert "did you mean `minilm`?" in capsys.readouterr().err
    assert main(["fetch", "emoji_keywords"]) == MISUSED
    assert "no command makes data/emoji_keywords.parquet; the first lines of" in capsys.readouterr().err


def test_what_is_not_made_is_an_error(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(command: list[str], **_: object) -> SimpleNamespace:
        Path(command[-1]).mkdir(parents=True)
        (Path(command[-1]) / "config.json").write_text("{}")
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", half)
    assert main(["fetch", "minilm"]) == RAISED
    assert not list((shipped.cache_folder() / "weights").iterdir())
    assert main(["fetch", "minilm"]) == RAISED


def test_every_offline_recipe_is_served() -> None:
    needed = {path.stem: shipped.needed_by(path) for path in OFFLINE.rglob("*.yaml")}
    left = {name: set(assets) - shipped.FETCHED.keys() for name, assets in needed.items()}
    assert {name: assets for name, assets in left.items() if assets} == {
        "emoji_keywords": {"data/emoji_keywords.parquet"},
        "stamps_languages": {"data/stamps"},
    }
    assert all((OFFLINE / script).is_file() for script, *_ in shipped.FETCHED.values())
