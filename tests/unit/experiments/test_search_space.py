"""Searches as they are written: strictly read, and without a test set while they last."""

from pathlib import Path

import pytest

from tests.tiny.experiments import write_search
from tltasks.errors import RecipeError
from tltasks.experiments.search_space import load_search


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("vit/config.json", "data/train.parquet", "data/test.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("low: 1e-5, high: 3e-2, log: true", "low: 1, high: 1"), "`low` 1 is not below `high` 1"),
        (("low: 1e-5", "low: 0"), "`log` needs numbers above 0"),
        (("stages.0.batch_size: [4, 8]", "stages.0.batch_sise: [4, 8]"), r"stages\[0\].*batch_sise"),
        (("stages.0.batch_size: [4, 8]", "stages.0.batch_size: [4, x]"), "batch_size"),
        (("stages.0.batch_size: [4, 8]", "seed: [1, 2]"), "is no key that a score depends on"),
        (("validation: 0.4", "validation: null"), "no `data.splits.validation` to choose by"),
        (("trials: 7", "trails: 7"), "trails"),
    ],
)
def test_mistakes(change: tuple[str, str], said: str, place: Path, tmp_path: Path) -> None:
    path = write_search(place, tmp_path / "out")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(RecipeError, match=said):
        load_search(path)


def test_a_trial_has_no_test_set(place: Path, tmp_path: Path) -> None:
    search, base = load_search(write_search(place, tmp_path / "out"))
    trial = base.trial(4, {"stages.0.batch_size": 4})
    assert trial.recipe.data is not None
    assert trial.recipe.data.splits.test is None
    assert getattr(trial.recipe.data, "corruptions", None) is None
    assert trial.levels == {"trial": "4"}
    assert search.space.keys() == {"stages.0.learning_rate", "stages.0.batch_size", "stages.0.weight_decay"}
