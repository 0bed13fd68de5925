"""Experiments as a user runs them: strictly read, planned by content, carried out once, whole after any kill."""

import csv
import dataclasses
import io
import json
import re
import shutil
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.tiny.images import save_data, save_model
from tltasks.cli.commands import main
from tltasks.errors import RecipeError, TrainingError
from tltasks.experiments import compare, comparison, execution, plan_experiment
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.experiment import load_experiment
from tltasks.experiments.trials import read_record, to_do

EXPERIMENT = """\
recipe:
  task: image-classification
  model: {{name: vit}}
  data:
    name: parquet
    files: {{train: dark/train.parquet}}
    splits: {{test: null}}
    extra_test: {{red: {{files: red/test.parquet}}, dark: {{files: dark/test.parquet}}}}
  precision: fp32
axes:
  source:
    red: {{data.files: {{train: red/train.parquet}}}}
  method:
    scratch: {{stages: [{{stage: pretrain, steps: 2, batch_size: 8, learning_rate: 1e-3, keep: last}}]}}
    probe: {{stages: [{{stage: probe, l2: 0.1}}]}}
  shots:
    "2": {{data.shots: 2}}
    all:
seeds: [0, 1]
contrast: {{axis: method, controls: [scratch]}}
domains: source
curve: shots
output: {output}
"""
N_TRIALS = 8


def write_experiment(folder: Path, output: Path) -> Path:
    path = folder / f"{output.name}.yaml"
    path.write_text(EXPERIMENT.format(output=output))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    save_model(folder / "vit")
    for seed, name in enumerate(("red", "dark")):
        save_data(folder / name, rows=12, seed=seed, splits={"train": 12, "test": 12})
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The results folder of the whole experiment."""
    output = place / "finished"
    assert main(["compare", str(write_experiment(place, output))]) == 0
    return output


def journal(output: Path) -> Counter[tuple[str, str]]:
    lines = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
    return Counter((line["event"], line["trial"]) for line in lines)


def numbers(output: Path) -> list[dict[str, str]]:
    """The table but for times."""
    rows = csv.DictReader(io.StringIO((output / "table.csv").read_text()))
    return [{name: value for name, value in row.items() if name != "training_seconds"} for row in rows]


# ------------------------------------------------------------------------------------------ reading


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


# ----------------------------------------------------------------------------------------- planning


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


def test_a_thousand_trials_are_planned_in_seconds(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path / "out")
    started = time.perf_counter()
    found = load_experiment(path, [f"seeds={list(range(250))}"])[1]
    planned = plan_trials(found, tmp_path)
    assert len(to_do(planned)) == 1000
    assert time.perf_counter() - started < 10


def test_a_dry_run_says_how_many_how_long_and_how_large(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(place, tmp_path / "out")
    assert main(["compare", str(path), "--dry-run", "--set", "seeds=[0]"]) == 0
    said = capsys.readouterr().err
    assert "4 trials; 0 finished, 4 to carry out" in said
    assert re.search(r"about \d+.* one after another, with \d+\.\d GiB of memory", said)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- carrying out


def test_results_have_every_number(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    cells = result["findings"]["cells"]
    assert len(cells) == 4 * 2, "each trial answers for both test sets"
    assert {(cell["levels"]["source"] == cell["target"]) == cell["in_domain"] for cell in cells} == {True}
    assert result["findings"]["families"] == {"scratch": 4}
    assert len(result["findings"]["drops"]) == 4
    assert (result["failed"], result["unfinished"], len(result["trials"])) == ([], 0, N_TRIALS)
    probe = next(cell for cell in cells if cell["levels"]["method"] == "probe")
    assert probe["comparisons"][0]["control"] == "scratch"
    assert not list(finished.glob("trials/*/model")), "weights are removed"
    assert Counter(event for event, _ in journal(finished).elements()) == {"begun": N_TRIALS, "finished": N_TRIALS}


def test_in_python_it_is_a_value(finished: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(write_experiment(place, finished))
    assert capsys.readouterr().err == ""
    frame = result.to_pandas()
    assert len(frame) == len(result.findings.cells) == 8
    assert frame.columns[:4].tolist() == ["source", "method", "shots", "target"]
    assert frame["accuracy"].tolist() == [cell.score.mean for cell in result.findings.cells]
    assert result._repr_html_().count("<tr") == 1 + 4
    assert len(result.trials) == N_TRIALS


def test_an_experiment_of_plain_keys_is_the_same_one(
    finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its paths start at the working directory."""
    monkeypatch.chdir(place)
    keys = yaml.safe_load(write_experiment(place, finished).read_text().replace("1e-3", "0.001"))
    assert plan_experiment(keys, {"seeds": [0]}).seconds == 0.0, "all are finished"


def test_gains_are_of_the_same_rows_and_seeds(finished: Path) -> None:
    """Recomputed from the trials' own predictions."""
    result = json.loads((finished / "result.json").read_text())
    scores: dict[Any, dict[int, Any]] = {}
    for trial in result["trials"]:
        key = tuple(trial["levels"].values())
        scores.setdefault(key, {})[trial["seed"]] = load_file(finished / "trials" / trial["row_scores"])
    compared = 0
    for cell in result["findings"]["cells"]:
        for one in cell["comparisons"]:
            source, _, shots = cell["levels"].values()
            ours, theirs = (
                np.stack([scores[source, m, shots][seed][cell["target"]][:, 0] for seed in (0, 1)])
                for m in (cell["levels"]["method"], "scratch")
            )
            assert one["gain"]["mean"] == pytest.approx((ours - theirs).mean(), abs=1e-12)
            assert cell["score"]["mean"] == pytest.approx(ours.mean(), abs=1e-12)
            compared += 1
    assert compared == 4


def test_what_is_finished_is_found_again(finished: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, begun = numbers(finished), journal(finished)
    report = (finished / "report.html").read_bytes()
    assert main(["compare", str(write_experiment(place, finished))]) == 0
    assert "8 finished, 0 to carry out" in capsys.readouterr().err
    assert (numbers(finished), journal(finished)) == (before, begun)
    assert (finished / "report.html").read_bytes() == report


def test_whatever_a_kill_leaves_of_a_trial_it_is_made_whole(finished: Path, place: Path) -> None:
    """A folder without anything in it, with half a recipe, and with all but the record."""
    before = numbers(finished)
    records = sorted(finished.glob("trials/*.json"))[:3]
    for record in records:
        record.unlink()
    empty, half = (record.with_suffix("") for record in records[:2])
    shutil.rmtree(empty)
    empty.mkdir()
    (half / "recipe.yaml").write_text((half / "recipe.yaml").read_text()[:40])
    assert main(["compare", str(write_experiment(place, finished))]) == 0
    assert all(record.is_file() for record in records)
    assert numbers(finished) == before


def test_a_trial_that_fails_is_told_and_does_not_stop_the_rest(
    finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [path for path in sorted(finished.glob("trials/*.json")) if json.loads(path.read_text())["seed"] == 1][:2]
    kept = [path.read_text() for path in records]
    for path in records:
        path.unlink()
    causes = [TrainingError("the loss is not finite."), RuntimeError("broken\nin detail")]

    def fail(recipe: Any, **flags: Any) -> None:
        raise causes.pop(0)

    monkeypatch.setattr(execution, "run", fail)
    assert main(["compare", str(write_experiment(place, finished))]) == 3
    said = capsys.readouterr().err
    assert "failed: the loss is not finite." in said
    assert "failed: RuntimeError: broken" in said
    assert not causes
    result = json.loads((finished / "result.json").read_text())
    assert len(result["failed"]) == 2
    assert {tuple(cell["missing"]) for cell in result["findings"]["cells"]} == {(), (1,)}
    page = (finished / "report.html").read_text()
    assert "the loss is not finite." in page
    assert "1 of 2 seeds" in page
    log = (finished / "logs" / f"{result['failed'][1]['id']}.log").read_text()
    assert "RuntimeError: broken" in log + (finished / "logs" / f"{result['failed'][0]['id']}.log").read_text()
    for path, text in zip(records, kept, strict=True):
        path.write_text(text)


def test_where_all_fail_it_is_an_error(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(recipe: Any, **flags: Any) -> None:
        raise TrainingError("no luck.")

    monkeypatch.setattr(execution, "run", fail)
    assert main(["compare", str(write_experiment(place, tmp_path / "out"))]) == 1
    assert "no trial could be carried out; the first: no luck." in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert main(["compare", str(write_experiment(place, tmp_path))]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_workers_are_for_ray(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = write_experiment(place, tmp_path / "out")
    assert main(["compare", str(experiment), "--workers", "2"]) == 2
    assert "are for --engine ray" in capsys.readouterr().err


def test_bookkeeping_is_a_hundredth_of_the_work(finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand trials, 20 are carried out by a stand-in that takes no time; a real one takes two seconds."""
    record = read_record(finished, next(finished.glob("trials/*.json")).stem)
    assert record is not None
    output = place / "many"
    (output / "trials").mkdir(parents=True)
    found = load_experiment(write_experiment(place, output), [f"seeds={list(range(250))}"])[1]
    progress = comparison.Progress(plan_trials(found, output), comparison.Console(file=io.StringIO()))
    monkeypatch.setattr(execution, "_run", lambda item, output, on_evaluation: None)
    monkeypatch.setattr(execution, "describe_trial", lambda item, run, seconds: dataclasses.replace(record, id=item.id))
    started = time.process_time()
    for item in to_do(progress.planned)[:20]:
        progress.take(item, execution.carry_out(item, output, keep_weights=False))
    assert len(list(output.glob("trials/*.json"))) == 20
    assert (time.process_time() - started) / 20 < 0.02


# ------------------------------------------------------------------------------------------- report


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value or "")
            elif name in {"src", "href"}:
                self.outside.append(value or "")


def test_the_report_stands_alone(finished: Path) -> None:
    page = _Page()
    page.feed((finished / "report.html").read_text())
    pictures = sorted(path.stem for path in finished.glob("figures/*.png"))
    contexts = ("red-red", "red-dark")
    assert set(pictures) >= {f"{kind}-{name}" for kind in ("curve", "parameters", "seconds") for name in contexts}
    assert len(page.images) == len(pictures) == 8
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert page.outside == []


def test_tables(finished: Path) -> None:
    rows = numbers(finished)
    assert len(rows) == 8
    assert {row["verdict_against_scratch"] for row in rows} <= {"", "positive", "neutral", "negative"}
    latex = (finished / "table.tex").read_text()
    assert latex.count("\\\\\n") == 1 + 4
    assert "\\textbf{" in latex
