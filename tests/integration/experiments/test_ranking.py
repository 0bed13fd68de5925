"""`tltasks rank`: one pass for each checkpoint and target, estimates beside what compare has measured."""

import json
from pathlib import Path

import pytest

from tests.tiny.images import save_data, save_model
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.experiments import rank
from tltasks.experiments.transferability import ESTIMATORS
from tltasks.training import evaluation

EXPERIMENT = """\
recipe:
  task: image-classification
  model: {{name: one}}
  data:
    name: parquet
    files: {{train: data/train.parquet, test: data/test.parquet}}
  stages: [{{stage: transfer, steps: 1, batch_size: 4, learning_rate: 1e-6, keep: last}}]
  precision: fp32
axes:
  checkpoint:
    one:
    two: {{model.name: two}}
    three: {{model.name: three}}
candidates: checkpoint
output: {output}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranking")
    for seed, name in enumerate(("one", "two", "three")):
        save_model(folder / name, seed=seed)
    save_data(folder / "data", splits={"train": 30, "test": 12})
    path = folder / "experiment.yaml"
    path.write_text(EXPERIMENT.format(output=folder / "out"))
    return path


def test_candidates_are_judged_before_and_after_they_are_measured(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes: list[int] = []
    embed = evaluation.embed_rows

    def counted(*arguments: object, workers: int) -> object:
        passes.append(1)
        return embed(*arguments, workers=workers)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "embed_rows", counted)
    assert main(["rank", str(experiment)]) == 0
    assert "would measure it" in capsys.readouterr().err
    assert len(passes) == 3, "one for each checkpoint"
    result = experiment.parent / "out" / "rank.json"
    before = json.loads(result.read_text())
    assert [one["candidate"] for one in before["candidates"]] == ["one", "two", "three"]
    assert all(one["rows"] == 30 and one["estimates"].keys() == ESTIMATORS.keys() for one in before["candidates"])
    assert all(one["estimates"]["leep"] < 0 for one in before["candidates"]), "their own heads know five classes"
    assert len({one["estimates"]["log_me"] for one in before["candidates"]}) == 3
    page = (result.parent / "rank.html").read_text()
    assert before["winners"][0]["sentence"] in page
    assert load_recipe(result.parent / "best.yaml").model.name.endswith(before["winners"][0]["candidate"])
    assert "trains all of them" in page

    assert main(["compare", str(experiment)]) == 0
    trials = json.loads((experiment.parent / "out" / "result.json").read_text())["trials"]
    assert main(["rank", str(experiment)]) == 0
    after = json.loads(result.read_text())
    measured = {one["levels"]["checkpoint"]: one["targets"]["test"]["value"] for one in trials}
    assert {one["candidate"]: one["measured"]["fine-tuning"] for one in after["candidates"]} == measured
    assert [one["estimates"] for one in after["candidates"]] == [one["estimates"] for one in before["candidates"]]
    assert "weighted Kendall" in capsys.readouterr().err
    assert len(set(measured.values())) > 1
    assert "How far to trust them" in (result.parent / "rank.html").read_text()
    (trial,) = {one["id"] for one in trials if one["levels"]["checkpoint"] == "one"}
    assert "The weights were not kept" in (result.parent / "trials" / trial / "report.html").read_text()
    assert {one["estimator"] for one in after["agreement"]} == set(ESTIMATORS)

    result = rank(experiment)
    assert capsys.readouterr().err == "", "a value, and nothing is told"
    assert result.to_pandas()["measured_fine-tuning"].tolist() == list(measured.values())
    assert result._repr_html_().count("<table") == 2


def test_without_candidates_there_is_nothing_to_rank(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", str(experiment), "--set", "candidates=null"]) == 2
    assert "needs the key `candidates`" in capsys.readouterr().err
