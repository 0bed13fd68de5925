"""Experiments as they are written: strictly read, each mistake told with its place; and trials known by their content.

Files need not hold anything to be named and told apart.
"""

import os
import re
import time
from pathlib import Path

import pytest

from tests.tiny.experiments import EXPERIMENT, N_TRIALS, write_experiment
from tltasks.config.data import HeldOutRows
from tltasks.config.recipe import recipe_sha256
from tltasks.errors import RecipeError
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.experiment import load_experiment
from tltasks.experiments.trials import to_do


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("vit/config.json", "red/train.parquet", "red/test.parquet", "dark/train.parquet", "dark/test.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def mistakes(place: Path, tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_experiment(write_experiment(place, tmp_path / "out"), overrides)
    return str(caught.value)


def test_trials_are_recipes_of_every_combination(place: Path, tmp_path: Path) -> None:
    experiment, found = load_experiment(write_experiment(place, tmp_path / "out"))
    assert len(found) == N_TRIALS
    assert [trial.seed for trial in found] == [0] * 4 + [1] * 4
    assert {trial.recipe.seed for trial in found} == {0, 1}
    assert found[0].levels == {"source": "red", "method": "scratch", "shots": "2"}
    assert {trial.recipe.data.shots for trial in found if trial.recipe.data} == {2, None}
    assert experiment.keep_weights is False
    fewer = load_experiment(
        write_experiment(place, tmp_path / "out"),
        ["skip=[{method: probe, shots: ['2', all]}, {method: scratch, shots: all}]"],
    )[1]
    assert [trial.levels["method"] for trial in fewer] == ["scratch"] * 2


def test_mistakes_have_their_place(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path / "out")
    path.write_text(path.read_text().replace("stage: probe", "stage: prob").replace("learning_rate", "learning_rat"))
    with pytest.raises(RecipeError) as caught:
        load_experiment(path)
    text = str(caught.value)
    assert f"{path}:14:" in text
    assert f"{path}:15:" in text
    assert "did you mean `probe`?" in text
    assert "did you mean `learning_rate`?" in text
    assert text.count("learning_rat:") == 1, "once, however many trials have it"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("domains=sauce", "no axis is called `sauce`; did you mean `source`?"),
        ("domains=shots", "no level of `shots` has the name of a test set; there are dark, red"),
        ("contrast.controls=[scrach]", "no level is called `scrach`; did you mean `scratch`?"),
        ("axes.shots.all={seed: 3}", "`seeds` lists the seeds of all trials; leave it out"),
        ("axes.shots.all={stages.3.epochs: 1}", "`stages.3.epochs`: stages has one item, 0; there is no 3"),
        ("axes.shots.all={data.shoots: 1}", "unknown key; did you mean `shots`?"),
        ("seeds=[1, 1]", "has a seed twice"),
        ("skip=[{method: prob}]", "no level is called `prob`; did you mean `probe`?"),
        ("recipe.data.extra_test.red.files=nowhere.parquet", "there is no file nowhere.parquet"),
        ("extra=1", "unknown key"),
    ],
)
def test_what_does_not_fit_is_said(place: Path, tmp_path: Path, override: str, said: str) -> None:
    text = mistakes(place, tmp_path, override)
    assert said in text
    assert "--set" in text
    assert "nothing was loaded" in text


def test_a_recipe_of_its_own_file(place: Path, tmp_path: Path) -> None:
    """Its paths are relative to it, those of the levels to the experiment."""
    text = EXPERIMENT.format(output=tmp_path / "out")
    recipe, rest = text.split("axes:\n")
    (place / "base.yaml").write_text(re.sub("^  ", "", recipe.removeprefix("recipe:\n"), flags=re.MULTILINE))
    (place / "below").mkdir()
    path = place / "below" / "own.yaml"
    path.write_text("recipe: ../base.yaml\naxes:\n" + rest.replace("red/train", "../red/train"))
    inline = plan_trials(load_experiment(write_experiment(place, tmp_path / "out"))[1], tmp_path)
    assert [p.id for p in plan_trials(load_experiment(path)[1], tmp_path)] == [p.id for p in inline]


def test_other_data_weights_or_recipes_are_other_trials(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path / "out")

    def names(*overrides: str) -> list[str]:
        return [item.id for item in plan_trials(load_experiment(path, overrides)[1], tmp_path)]

    before = names()
    assert len(set(before)) == N_TRIALS
    assert names("output=elsewhere") == before
    assert not set(names("recipe.data.max_bad_share=0.5")) & set(before)
    assert set(names("seeds=[1, 2]")) & set(before) == set(before[4:])
    config = place / "vit" / "config.json"
    text = config.read_text()
    config.write_text(text + "\n")
    assert not set(names()) & set(before), "another checkpoint under the same name"
    config.write_text(text)
    assert names() == before


def test_other_pictures_under_the_names_of_a_table_are_other_trials(place: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (place / f"{name}.csv").write_text("image,label\na.png,x\nb.png,y\n")
    (place / "a.png").write_bytes(b"one")
    path = place / "tables.yaml"
    path.write_text(
        "recipe:\n  task: image-classification\n  model: {name: vit}\n  stages: [{stage: probe}]\n"
        "  data: {name: csv, files: {train: train.csv, test: test.csv}}\n"
        "axes: {method: {one: , other: {stages.0.l2: 0.1}}}\nseeds: [0, 1, 2]\noutput: out\n"
    )

    def names() -> list[str]:
        return [item.id for item in plan_trials(load_experiment(path)[1], tmp_path)]

    before = names()
    assert names() == before
    state = (place / "a.png").stat()
    (place / "a.png").write_bytes(b"two")
    os.utime(place / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not set(names()) & set(before)
    (place / "a.png").write_bytes(b"one")
    assert names() == before, "by content, whatever the times"


def test_a_thousand_trials_are_planned_in_seconds(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path / "out")
    started = time.perf_counter()
    found = load_experiment(path, [f"seeds={list(range(250))}"])[1]
    planned = plan_trials(found, tmp_path)
    assert len(to_do(planned)) == 1000
    assert time.perf_counter() - started < 10


SHARES = """\
recipe:
  task: image-classification
  model: {name: vit}
  data: {name: parquet, files: {train: dark/train.parquet}, splits: {test: 0.2}}
  stages:
    - {stage: probe}
    - stage: probe
      name: other
      data: {name: parquet, files: {train: red/train.parquet}, splits: {test: 0.5, validation: 0.1}}
axes: {method: {one: , own: {data.splits.seed: 9}, named: {data.splits: {test: test}}}}
seeds: [4, 1, 2]
output: out
"""


def test_every_seed_is_tested_on_the_same_rows(place: Path) -> None:
    """Shares are drawn with the first seed, unless a level says otherwise; further seeds move no earlier trial."""
    (place / "e.yaml").write_text(SHARES)
    trials = load_experiment(place / "e.yaml")[1]
    assert len(trials) == 9
    for trial in trials:
        assert trial.recipe.data is not None
        wanted = {"one": 4, "own": 9, "named": None}[trial.levels["method"]]
        assert trial.recipe.data.splits.seed == wanted
        assert trial.recipe.stages[1].data.splits.seed == 4  # type: ignore[union-attr]
        assert trial.recipe.seed == trial.seed
    alone = load_experiment(place / "e.yaml", ["seeds=[4]"])[1]
    known = {recipe_sha256(trial.recipe) for trial in trials}
    assert {recipe_sha256(trial.recipe) for trial in alone} <= known


FOLDED = ["recipe.data.splits.test=0.25", "recipe.data.extra_test={}", "domains=null", "folds=3"]


def test_folds_are_trials_that_are_tested_on_other_rows(place: Path, tmp_path: Path) -> None:
    found = load_experiment(write_experiment(place, tmp_path / "out"), FOLDED)[1]
    assert len(found) == 3 * N_TRIALS
    assert [trial.fold for trial in found] == [0, 1, 2] * N_TRIALS
    assert len({recipe_sha256(trial.recipe) for trial in found}) == 3 * N_TRIALS
    for trial in found:
        splits = trial.recipe.data.splits if trial.recipe.data else None
        assert splits is not None
        assert splits.seed == 0, "all seeds are tested on the same parts"
        assert splits.test == HeldOutRows(fold=trial.fold, folds=3)
    by_group = [*FOLDED, "recipe.data.splits.test={share: 0.2, group: g}"]
    found = load_experiment(write_experiment(place, tmp_path / "out"), by_group)[1]
    assert {trial.recipe.data.splits.test.group for trial in found} == {"g"}  # type: ignore[union-attr]


def test_folds_take_the_place_of_a_share(place: Path, tmp_path: Path) -> None:
    said = mistakes(place, tmp_path, "folds=3")
    assert "folds: deals the rows of train out as test sets" in said
    assert "is to hold a share out of it (`test: 0.2`" in said
