"""Searches as they are written: strictly read, and without a test set while they last."""

from pathlib import Path

import pytest

from tests.tiny.experiments import write_search
from tltasks.data.loading import load_splits
from tltasks.errors import RecipeError
from tltasks.experiments.search_space import load_search
from tltasks.experiments.successive_halving import _short


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
        (("stages.0.batch_size: [4, 8]", "data.splits.validation: [0.2, 0.4]"), "decides by what trials are judged"),
        (("stages.0.batch_size: [4, 8]", "stages.0.metric: [accuracy, macro_f1]"), "decides by what trials are judged"),
        (
            ("stages.0.batch_size: [4, 8]", "stages.1.batch_size: [4, 8]"),
            r"yaml:14:3 .*stages has one item, 0; there is no 1",
        ),
        (("stages.0.batch_size: [4, 8]", "stages.0.batch_size: [4, 4]"), "has a value twice"),
        (("step: 0.01", "step: 0.5"), "`step` 0.5 is wider than the range"),
        (("validation: 0.4", "validation: null"), "no `data.splits.validation` to choose by"),
        (("trials: 7", "trails: 7"), "trails"),
    ],
)
def test_mistakes(change: tuple[str, str], said: str, place: Path, tmp_path: Path) -> None:
    path = write_search(place, tmp_path / "out")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(RecipeError, match=said) as caught:
        load_search(path)
    assert "expected a list, found a mapping" not in str(caught.value)  # a range with a mistake is a range


def test_keys_of_the_usual_stage_are_searched_where_none_is_written(place: Path, tmp_path: Path) -> None:
    path = write_search(place, tmp_path / "out")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "stages:" not in line and "- {stage" not in line))
    _, base = load_search(path)
    assert base.trial(0, {"stages.0.batch_size": 4}).recipe.stages[0].batch_size == 4


def test_a_trial_has_no_test_set(place: Path, tmp_path: Path) -> None:
    search, base = load_search(write_search(place, tmp_path / "out"))
    trial = base.trial(4, {"stages.0.batch_size": 4})
    assert trial.recipe.data is not None
    assert trial.recipe.data.splits.test is None
    assert getattr(trial.recipe.data, "corruptions", None) is None
    assert trial.levels == {"trial": "4"}
    assert search.space.keys() == {"stages.0.learning_rate", "stages.0.batch_size", "stages.0.weight_decay"}


@pytest.mark.parametrize("held", [0.25, {"share": 0.25, "group": "author"}])
def test_rows_held_out_as_test_set_choose_no_setting(held: object, tmp_path: Path) -> None:
    lines = [f"text number {i},{'ab'[i % 2]},{i // 4}" for i in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label,author", *lines]))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    recipe = {
        "task": "text-classification",
        "model": {"name": str(tmp_path / "bert")},
        "data": {"name": str(tmp_path / "rows.csv"), "splits": {"validation": 0.2, "test": held}},
        "stages": [{"stage": "transfer", "steps": 1, "learning_rate": 1e-3}],
    }
    space = {"stages.0.learning_rate": [1e-3, 1e-2]}
    _, base = load_search({"recipe": recipe, "space": space, "trials": 2, "output": str(tmp_path / "out")})
    whole, searched = (base.changed({}, tests=True), base.trial(0, {"stages.0.learning_rate": 1e-2}).recipe)
    assert whole.data is not None
    texts = {name: set(split.rows["text"]) for name, split in load_splits(whole.data, seed=0, label="label").items()}
    for short in (searched, _short(whole, 0)):
        assert short.data is not None
        found = load_splits(short.data, seed=0, label="label")
        assert {name: set(split.rows["text"]) for name, split in found.items()} == {
            name: texts[name] for name in ("train", "validation")
        }
