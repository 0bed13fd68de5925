"""docs/python.md as printed: its code, top to bottom in one namespace, as in a notebook."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tltasks
from tests.tiny import images
from tests.tiny.runs import REPOSITORY

PAGE = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's recipe, and a tiny checkpoint and pictures where it says that they are."""
    folder = tmp_path_factory.mktemp("notebook")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (folder / "recipe.yaml").write_text(recipe)
    images.save_model(folder / "vit")
    rng = np.random.default_rng(0)
    for split, n_pictures in (("train", 16), ("test", 6)):
        for colour in images.COLOURS:
            (folder / "photos" / split / colour).mkdir(parents=True)
            for i in range(n_pictures):
                images.picture(colour, rng).save(folder / "photos" / split / colour / f"{i}.png")
    images.picture("red", rng).save(folder / "photo.png")
    return folder


def shown(code: str, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines that a block prints."""
    capsys.readouterr()
    exec(compile(code, "docs/python.md", "exec"), names)
    return capsys.readouterr().out.splitlines()


def test_the_page_runs_as_printed(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    recipe, mistakes, run, callbacks, model, experiment = (shown(code, names, capsys) for code in BLOCKS)

    assert recipe == ["image-classification 1.0"]
    assert names["same"].stages == names["recipe"].stages
    assert mistakes[0] == "2 mistakes in the recipe; nothing was loaded."
    assert mistakes[1] == "overrides['sed']  sed: unknown key; did you mean `seed`?"

    assert run[0].startswith("accuracy ")
    assert any("this model" in line and "accuracy" in line for line in run)
    result = names["result"]
    assert isinstance(result, tltasks.RunResult)
    assert "<table" in result._repr_html_()

    n_steps, trained = map(int, callbacks[0].split())
    assert n_steps == trained > 0
    assert all(np.isfinite(names["losses"]))

    assert model[0] in images.COLOURS
    assert model[1] == str([model[0]] * 2)
    assert 0 < names["probability"] <= 1

    assert any("lora" in line for line in experiment)
    assert len(names["comparison"].trials) == 4
    assert "<table" in names["comparison"]._repr_html_()


def test_every_member_is_on_the_page() -> None:
    assert not [name for name in tltasks.__all__ if not re.search(rf"\b{name}\b", PAGE)]
    assert len(BLOCKS) == 6


def test_runs_of_other_number_formats_in_one_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for precision in ("fp32", "bf16", "fp32"):
        changes = {"precision": precision, "stages.0.epochs": 1}
        result = tltasks.run(tltasks.load_recipe("recipe.yaml", changes), output=f"outputs/{precision}", resume=True)
        assert result.hardware["precision"] == precision
