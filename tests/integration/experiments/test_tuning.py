"""A search as a user runs it: strictly read, by validation alone, the same after any stop."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny.experiments import write_search
from tests.tiny.images import save_data, save_model
from tests.tiny.ray import FakeRay
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.errors import DataError
from tltasks.experiments import execution, tune, tuning
from tltasks.experiments.trials import PlannedTrial, TargetScore, TrialRecord, results_folder
from tltasks.runs.callbacks import EvaluationInfo, OnEvaluation
from tltasks.runtime import cluster, devices
from tltasks.runtime.files import locked
from tltasks.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    save_model(folder / "vit")
    save_data(folder / "data", rows=24)
    return folder


def trials(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "result.json").read_text())["trials"]
    return found


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    output = place / "finished"
    assert main(["tune", str(write_search(place, output))]) == 0
    return output


def test_the_recipes_own_setting_is_the_first_and_the_best_wins(finished: Path) -> None:
    found = trials(finished)
    assert [trial["number"] for trial in found] == list(range(7))
    assert found[0]["settings"]["stages.0.learning_rate"] == 1e-2
    assert found[0]["settings"]["stages.0.batch_size"] == 8
    assert found[0]["settings"]["stages.0.weight_decay"] == 0.01, "which is the default"
    done = [trial for trial in found if trial["state"] == "finished"]
    pruned = [trial for trial in found if trial["state"] == "pruned"]
    assert len(done) + len(pruned) == 7
    assert all(len(trial["curve"]) == 3 for trial in done)
    assert all(len(trial["curve"]) < 3 for trial in pruned)
    assert pruned, "a learning rate of 1e-5 is below the median at once"
    best = max(done, key=lambda trial: trial["value"])
    chosen = load_recipe(finished / "best.yaml", check_files=False)
    assert chosen.stages[0].learning_rate == best["settings"]["stages.0.learning_rate"]
    assert chosen.stages[0].batch_size == best["settings"]["stages.0.batch_size"]
    assert all(0 <= trial["settings"]["stages.0.weight_decay"] <= 0.1 for trial in found)


def test_in_python_it_is_a_value(finished: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tune(write_search(place, finished))
    assert capsys.readouterr().err == "", "all is there, and nothing is told unless a console is given"
    assert result.best is not None
    assert result.best.settings == load_recipe_settings(finished)
    assert len(result.to_pandas()) == 7
    assert {"trial", "state", "value", "stages.0.batch_size"} <= set(result.to_pandas())
    assert "the best setting: accuracy" in result._repr_html_()


def load_recipe_settings(output: Path) -> dict[str, Any]:
    stage = load_recipe(output / "best.yaml", check_files=False).stages[0]
    return {f"stages.0.{key}": getattr(stage, key) for key in ("learning_rate", "batch_size", "weight_decay")}


def test_the_test_set_is_looked_at_after_the_search_alone(finished: Path) -> None:
    records = [json.loads(path.read_text()) for path in finished.glob("trials/*.json")]
    assert len(records) >= 3
    assert {name for record in records for name in record["targets"]} == {"validation"}
    tested = json.loads((finished / "result.json").read_text())["tested"]
    assert {headline["split"] for headline in tested.values()} == {"test"}
    assert json.loads((finished / "best" / "result.json").read_text())["headline"]["split"] == "test"
    page = (finished / "report.html").read_text()
    assert "The best setting: accuracy" in page
    assert page.count("<figure") == 4
    assert page.count("<tr>") == 1 + 7


def stand_in(item: PlannedTrial, output: Path, *, keep_weights: bool, on_evaluation: OnEvaluation) -> TrialRecord:
    """A trial that takes no time: the larger its learning rate, the better."""
    value = item.trial.recipe.stages[0].learning_rate
    assert isinstance(value, float)
    for step in (1, 2, 3):
        info = EvaluationInfo("transfer", step, 3, float(step), {"accuracy": value * step}, "accuracy", None)
        on_evaluation(info)
    target = TargetScore(value, (0.0, 1.0), 24, "rows", {"accuracy": value})
    numbers = {"train_examples": 24, "trained_parameters": 1, "total_parameters": 1, "training_seconds": 0.0}
    return TrialRecord(
        id=item.id, recipe_sha256="", levels={}, seed=0, inputs={}, metric="accuracy", higher_is_better=True,
        row_scores="", targets={"validation": target}, seconds=0.0, versions={}, hardware={}, **numbers  # type: ignore[arg-type]
    )  # fmt: skip


def test_on_ray_one_at_a_time_it_is_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations are reported to a study elsewhere, by which trials are pruned as without Ray."""
    ray = FakeRay(cores=1.0)
    monkeypatch.setenv(devices.CORES_VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    monkeypatch.setattr(cluster, "joined", lambda command, n_cores: contextlib.nullcontext(ray))
    monkeypatch.setattr(cluster, "here", lambda ray: None)
    for module in (tuning, execution):
        monkeypatch.setattr(module, "carry_out", stand_in)
    monkeypatch.setattr(tuning, "_test", lambda base, own, best, output: {})
    for name, flags in {"one": (), "ray": ("--engine", "ray")}.items():
        assert main(["tune", str(write_search(place, place / name)), *flags]) == 0
    assert trials(place / "ray") == trials(place / "one")
    assert {trial["state"] for trial in trials(place / "ray")} == {"finished", "pruned"}
    assert ray.waited == 7
    assert ray.options[0]["max_retries"] > 0, "a trial whose machine is lost is begun again"


def test_it_goes_on_as_it_would_have(finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = place / "stopped"
    path = write_search(place, output)
    plain, calls = tuning.carry_out, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0].id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(tuning, "carry_out", stopping)
    assert main(["tune", str(path)]) == 143
    assert len(trials(output)) == 3
    assert main(["tune", str(path)]) == 0
    assert trials(output) == trials(finished)
    assert len(calls) == 8, "the one that was cut is taken up, and none is repeated"
    assert main(["tune", str(path), "--set", "trials=8"]) in {0, 3}
    assert [t["settings"] for t in trials(output)[:7]] == [t["settings"] for t in trials(finished)]
    assert len(trials(output)) == 8


class Killed(BaseException):
    """Ends a process as a kill would: nothing is saved on the way out."""


@pytest.mark.parametrize("step", [2, 4, 6])
def test_an_evaluation_is_counted_once_however_a_trial_is_cut(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Between an evaluation and the checkpoint behind it; with what Optuna leaves when it is killed while it writes."""
    keys = {
        "recipe": {
            "task": "image-classification",
            "model": {"name": str(place / "vit")},
            "data": {"name": "parquet", "files": {"train": str(place / "data" / "train.parquet")}}
            | {"splits": {"validation": 0.4, "test": None}},
            "stages": [
                {"stage": "transfer", "steps": 6, "batch_size": 8, "learning_rate": 1e-2, "keep": "last"}
                | {"checkpoint_every": 1, "evaluate_every": 2}
            ],
            "precision": "fp32",
        },
        "space": {"stages.0.batch_size": [8, 4]},
        "trials": 1,
        "output": "out",
    }
    save, monitored = Checkpoints.save, []

    def killed(self: Checkpoints, name: str, *rest: Any, **more: Any) -> None:
        monitored.append(name)
        if name == f"step-{step:09}" and monitored.count(name) == 1:
            raise Killed
        save(self, name, *rest, **more)

    monkeypatch.setattr(Checkpoints, "save", killed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Killed):
        tune(keys, output="out")
    journal = tmp_path / "out" / "trials.jsonl"
    (tmp_path / "out" / "trials.jsonl.lock").symlink_to("out/trials.jsonl")
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker_')
    (trial,) = tune(keys, output="out").trials
    assert len(trial.curve) == 3
    assert trial.value == trial.curve[-1]
    assert not list((tmp_path / "out").glob("*.lock"))
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_folder_that_another_process_writes_to_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "e.yaml"
    experiment.write_text(
        f"recipe: {{task: image-classification, model: {{name: {place / 'vit'}}}, data: {{name: parquet, files: "
        f"{{train: {place / 'data' / 'train.parquet'}}}, splits: {{test: 0.2}}}}, stages: [{{stage: probe}}]}}\n"
        "axes: {checkpoint: {one: }}\ncandidates: checkpoint\noutput: x\n"
    )
    for command, path in (("tune", write_search(place, tmp_path / "x")), ("compare", experiment), ("rank", experiment)):
        output = tmp_path / command
        with locked(output):
            assert main([command, str(path), "--output", str(output)]) == 2
        assert "another run is writing to it" in capsys.readouterr().err
        assert not list(output.iterdir())


def test_a_folder_that_was_only_begun_is_gone_on_with(tmp_path: Path) -> None:
    """A kill right after the lock, or before the first trial; but a search is no experiment."""
    for what, left in (("search", []), ("search", ["trials.jsonl"]), ("experiment", []), ("experiment", ["trials"])):
        output = tmp_path / f"{what}{len(left)}"
        output.mkdir()
        (output / ".lock").touch()
        for name in left:
            (output / name).mkdir() if name == "trials" else (output / name).touch()
        with results_folder(output, what):
            pass
        other = "experiment" if what == "search" else "search"
        with pytest.raises(DataError, match=f"holds no {other}"), results_folder(output, other):
            pass


def test_a_trial_that_fails_does_not_end_the_search(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, numbers = tuning.carry_out, iter(range(9))

    def failing(item: Any, *arguments: Any, **options: Any) -> Any:
        if next(numbers) == 1:
            return item.failure("no memory")
        return plain(item, *arguments, **options)

    monkeypatch.setattr(tuning, "carry_out", failing)
    path = write_search(place, tmp_path / "out")
    assert main(["tune", str(path), "--set", "trials=3", "--set", "recipe.stages.0.epochs=1"]) == 3
    assert [trial["state"] for trial in trials(tmp_path / "out")].count("failed") == 1


def test_trials_that_are_scored_on_other_rows_are_not_compared(place: Path, tmp_path: Path) -> None:
    save_data(tmp_path / "other", rows=24, seed=5)
    path = write_search(place, tmp_path / "out")  # a share of train is validated on
    files = [str(folder / "train.parquet") for folder in (place / "data", tmp_path / "other")]
    changed = {"recipe.stages.0.epochs": 1, "trials": 6, "prune": "none", "space": {"data.files.train": files}}
    changes = [part for key, value in changed.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["tune", str(path), *changes]) == 3
    found = trials(tmp_path / "out")
    assert {trial["state"] for trial in found} == {"finished", "failed"}
    assert len({trial["settings"]["data.files.train"] for trial in found if trial["state"] == "finished"}) == 1
    assert all("judged by other rows" in trial["message"] for trial in found if trial["state"] == "failed")


def test_a_dry_run_shows_the_space(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(write_search(place, tmp_path / "out")), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "7 trials" in said
    assert "stages.0.batch_size" in said
    assert not (tmp_path / "out").exists()


def test_another_search_is_not_mixed_in(finished: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_search(place, finished)
    shutil.copytree(finished, finished.parent / "copy")
    assert main(["tune", str(path), "--output", str(finished.parent / "copy"), "--set", "seed=3"]) == 1
    assert "holds a search in another space" in capsys.readouterr().err
    (finished.parent / "other").mkdir()
    (finished.parent / "other" / "thesis.tex").write_text("x")
    assert main(["tune", str(path), "--output", str(finished.parent / "other")]) == 1
    assert "holds no search" in capsys.readouterr().err
