"""Experiments as a user runs them: carried out once, whole after any kill, told in numbers, figures and words."""

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

from tests.tiny.experiments import N_TRIALS, write_experiment
from tests.tiny.images import save_data, save_model
from tltasks.cli.commands import main
from tltasks.errors import TrainingError
from tltasks.experiments import compare, comparison, execution, plan_experiment
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.experiment import load_experiment
from tltasks.experiments.trials import read_record, to_do


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


# ------------------------------------------------------------------------------------- carrying out


def test_a_dry_run_says_how_many_how_long_and_how_large(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(place, tmp_path / "out")
    assert main(["compare", str(path), "--dry-run", "--set", "seeds=[0]"]) == 0
    said = capsys.readouterr().err
    assert "4 trials; 0 finished, 4 to carry out" in said
    assert re.search(r"about \d+.* one after another, with \d+\.\d GiB of memory", said)
    assert not (tmp_path / "out").exists()


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


def test_the_report_stands_alone(finished: Path, place: Path) -> None:
    assert main(["compare", str(write_experiment(place, finished))]) == 0  # whatever other tests made of it
    page = _Page()
    page.feed((finished / "report.html").read_text())
    pictures = sorted(path.stem for path in finished.glob("figures/*.png"))
    contexts = ("red-red", "red-dark")
    assert set(pictures) >= {f"{kind}-{name}" for kind in ("curve", "parameters", "seconds") for name in contexts}
    assert len(page.images) == len(pictures) == 8
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert all((finished / link).exists() for link in page.outside), "what lies beside the page"
    assert sum(link.endswith("/report.html") for link in page.outside) == 8


def test_tables(finished: Path) -> None:
    rows = numbers(finished)
    assert len(rows) == 8
    assert {row["verdict_against_scratch"] for row in rows} <= {"", "better", "unclear", "worse"}
    latex = (finished / "table.tex").read_text()
    assert latex.count("\\\\\n") == 1 + 4
    assert "\\textbf{" in latex


def test_folds_are_one_score_over_all_rows(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path / "folds")
    skip = "skip=[{shots: '2'}]"
    folded = ["recipe.data.splits.test=0.25", "recipe.data.extra_test={}", "domains=null", "folds=3", "seeds=[0]", skip]
    result = compare(path, folded)
    records = [trial for trial in result.trials if trial.levels["method"] == "probe"]
    assert sorted(record.fold or 0 for record in records) == [0, 1, 2]
    rows = [load_file(tmp_path / "folds" / "trials" / record.row_scores)["test"] for record in records]
    assert [len(part) for part in rows] == [4, 4, 4]
    (cell,) = (cell for cell in result.findings.cells if cell.levels["method"] == "probe")
    assert cell.score.rows == 12
    assert cell.score.mean == pytest.approx(np.concatenate(rows)[:, 0].mean())
    assert cell.score.low < cell.score.mean < cell.score.high or cell.score.mean in (0, 1)
    assert cell.train_examples == 8
    assert cell.comparisons
    assert len(result.trials) == 6
    suspected = list(csv.DictReader((tmp_path / "folds" / "suspected_labels.csv").read_text().splitlines()))
    assert len({row["path"] for row in suspected}) == len(suspected) == 12
    confidences = [float(row["confidence"]) for row in suspected]
    assert confidences == sorted(confidences)
    assert all(float(row["confidence_in_suggested"]) >= float(row["confidence"]) for row in suspected)
    assert "Labels to look at again" in (tmp_path / "folds" / "report.html").read_text()
