"""What a recipe may leave out, and what is then chosen."""

from pathlib import Path
from typing import Any

import pytest

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import recipe_sha256
from tltasks.config.tasks import TASKS
from tltasks.errors import RecipeError
from tltasks.experiments.experiment import load_experiment
from tltasks.runs.prepare import _of_lengths
from tltasks.runs.refusals import refuse_occupied
from tltasks.runtime.files import empty, next_free

SHORT = "task: {task}\nmodel: {{name: a/b}}\ndata: {{name: c/d, splits: {{validation: 0.1}}}}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "my photos.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("task", "stage", "rate"),
    [
        ("image-classification", "transfer", 1e-3),
        ("text-classification", "transfer", 1e-3),
        ("summarization", "finetune", 2e-3),
        ("automatic-speech-recognition", "finetune", 1e-3),
    ],
)
def test_three_lines_are_a_recipe(tmp_path: Path, task: str, stage: str, rate: float) -> None:
    recipe = load_recipe(written(tmp_path, SHORT.format(task=task)))
    (only,) = recipe.stages
    assert (only.stage, only.adapt.method, only.learning_rate, recipe.output) == (
        stage,
        "lora",
        rate,
        "outputs/my photos",
    )
    assert recipe._chosen == [
        f"stages: {stage} with LoRA",
        f"learning_rate: {rate:g}",
        "batch_size: 32",
        "output: outputs/my photos",
    ]
    named = load_recipe(
        written(
            tmp_path,
            SHORT.format(task=task)
            + f"stages: [{{stage: {stage}, adapt: lora, learning_rate: {rate}, batch_size: 32}}]\noutput: elsewhere\n",
        )
    )
    assert recipe_sha256(named) == recipe_sha256(recipe)
    assert named._chosen == []


def test_all_weights_take_a_smaller_rate(tmp_path: Path) -> None:
    text = SHORT.format(task="image-classification") + "stages: [{stage: transfer, adapt: full}, {stage: zero_shot}]\n"
    recipe = load_recipe(written(tmp_path, text))
    assert [stage.learning_rate for stage in recipe.stages] == [5e-5, None]
    assert recipe._chosen[0] == "stages[0].learning_rate: 5e-05"
    changed = load_recipe(written(tmp_path, text), {"stages.0.learning_rate": 1.0})
    assert changed.stages[0].learning_rate == 1.0


def test_a_key_of_the_usual_stage_is_changed_where_none_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, SHORT.format(task="image-classification"))
    recipe = load_recipe(path, ["stages.0.epochs=3", "stages.0.adapt=full"])
    (only,) = recipe.stages
    assert (only.stage, only.adapt.method, only.epochs, only.learning_rate) == ("transfer", "full", 3, 5e-5)
    with pytest.raises(RecipeError, match="epohcs"):
        load_recipe(path, ["stages.0.epohcs=3"])
    axes = {"rate": {"low": {"stages.0.learning_rate": 1e-4}, "usual": None}}
    _, trials = load_experiment({"recipe": str(path), "axes": axes, "output": "x"})
    assert [trial.recipe.stages[0].learning_rate for trial in trials] == [1e-4, 1e-3]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{stage: pretrain, epochs: 1}", "needs `learning_rate`"),
        ("{stage: pretrain, learning_rate: 1.0}", "needs `epochs` or `steps`"),
        ("{stage: transfer, optimizer: sgd, epochs: 1}", "needs `learning_rate`"),
    ],
)
def test_nothing_is_usual_for_other_ways_to_train(tmp_path: Path, stage: str, message: str) -> None:
    text = SHORT.format(task="image-classification") + f"stages: [{stage}]\n"
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, text))


def test_an_objective_names_its_stages(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs the key `stages`, a list of at least one stage"):
        load_recipe(written(tmp_path, SHORT.format(task="masked-language-modeling")))


@pytest.mark.parametrize(
    ("rows", "batch", "epochs"),
    [(1, 32, 40), (235, 16, 27), (235, 32, 40), (640, 16, 10), (6400, 16, 2), (10**6, 32, 2)],
)
def test_epochs_by_the_size_of_the_data(rows: int, batch: int, epochs: float) -> None:
    stage = TASKS["image-classification"].stage(stage="transfer", batch_size=batch)
    assert stage.epochs_for(rows) == epochs
    assert stage.model_copy(update={"epochs": 0.5}).epochs_for(rows) == 0.5


def test_folders_number_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    assert next_free(folder, resume=False) == next_free(folder, resume=True) == folder
    for name in ("photos", "photos-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    assert next_free(folder, resume=False) == tmp_path / "photos-3"
    assert next_free(folder, resume=True) == tmp_path / "photos-2"


def test_a_folder_that_is_not_named_is_numbered_in_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tltasks.runs import story

    monkeypatch.chdir(tmp_path)
    places: list[Path | None] = []
    monkeypatch.setattr(story, "plan_run", lambda recipe, place: places.append(place) or 1 / 0)
    (tmp_path / "outputs" / "my photos").mkdir(parents=True)
    (tmp_path / "outputs" / "my photos" / "recipe.yaml").touch()
    recipe = load_recipe(written(tmp_path, SHORT.format(task="image-classification")))
    ways: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}, {"output": "mine"}]
    for options in ways:
        with pytest.raises(ZeroDivisionError):
            story.run(recipe, **options)
    assert places == [Path("outputs/my photos-2"), Path("outputs/my photos"), None, Path("mine")]


def test_grouping_by_length_says_where_it_does_nothing() -> None:
    assert _of_lengths([3, 4]) == []
    assert [len(_of_lengths(lengths)) for lengths in (None, [7, 7], [])] == [1, 1, 1]


def test_what_is_overwritten_is_an_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "a.jpg").touch()
    with pytest.raises(RecipeError, match=r"holds no run to overwrite \(no recipe.yaml\)"):
        refuse_occupied(tmp_path / "holiday", "x", resume=False, overwrite=True)
    (tmp_path / "run" / "model").mkdir(parents=True)
    for name in ("recipe.yaml", ".lock", "model/x"):
        (tmp_path / "run" / name).touch()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "holiday")
    with pytest.raises(RecipeError, match=r"holds a recipe\.yaml, but no run to overwrite"):
        refuse_occupied(tmp_path / "run", "x", resume=False, overwrite=True)
    (tmp_path / "run" / "log.txt").touch()
    refuse_occupied(tmp_path / "run", "x", resume=False, overwrite=True)
    empty(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert (tmp_path / "holiday" / "a.jpg").exists()
