"""A temperature from training to answers: what is saved, told, abstained from, and trained on again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig, pipeline

import tltasks
from tests.tiny import images
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import MISUSED, main
from tltasks.errors import RecipeError
from tltasks.results.result import RunResult

TEMPERATURE = 2.5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A folder with a run in `output`, its temperature as if validation had asked for it, its data and pictures."""
    folder = tmp_path_factory.mktemp("run")
    images.save_model(folder / "vit")
    images.save_data(folder / "data")
    stage = "{stage: transfer, steps: 6, batch_size: 8, learning_rate: 5e-3, adapt: full}"
    recipe = images.write_recipe(folder / "recipe.yaml", folder / "vit", folder / "data", stage=stage)
    with mock.patch("tltasks.tasks.classes.fit_temperature", side_effect=[TEMPERATURE, 1.0, 7.0]):
        result = run_recipe(recipe, folder / "output")
    for i, row in enumerate(pq.read_table(folder / "data" / "test.parquet").to_pylist()):
        (folder / f"{i:02}.png").write_bytes(row["image"]["bytes"])
    return folder, result


def recorded(output: Path, split: str = "test") -> tuple[np.ndarray, list[str]]:
    (path,) = (output / "predictions").glob(f"*-{split}.parquet")
    table = pq.read_table(path).to_pydict()
    return np.array(table["probabilities"]), table["prediction"]


def test_answers_scores_card_and_report_tell_the_same(run: tuple[Path, RunResult]) -> None:
    folder, result = run
    output = folder / "output"
    config = AutoConfig.from_pretrained(output / "model")
    assert config.calibration_temperature == TEMPERATURE
    pictures = sorted(folder.glob("*.png"))
    said = pipeline("image-classification", str(output / "model"))([*map(str, pictures)], top_k=len(images.COLOURS))
    own = np.array(
        [[{it["label"]: it["score"] for it in each}[name] for name in config.id2label.values()] for each in said]
    )
    told, names = recorded(output)
    assert names == [each[0]["label"] for each in said]  # no answer is another
    sharp = own ** (1 / TEMPERATURE)
    assert told == pytest.approx(sharp / sharp.sum(1, keepdims=True), abs=1e-5)
    answers = tltasks.load(output, precision="fp32")(pictures)
    assert [answer["probability"] for answer in answers] == pytest.approx(told.max(1).tolist(), abs=1e-5)
    score = result.score
    calibration = score.details["calibration"]
    assert isinstance(calibration, dict)
    assert (calibration["temperature"], calibration["after"]["loss"]) == (TEMPERATURE, score.values["loss"])
    labels = [
        list(images.COLOURS).index(row["label"]) if isinstance(row["label"], str) else row["label"]
        for row in pq.read_table(folder / "data" / "test.parquet").to_pylist()
    ]
    assert calibration["before"]["loss"] == pytest.approx(-np.log(own[range(len(labels)), labels]).mean(), abs=1e-4)
    card, report = (output / "README.md").read_text(), (output / "report.html").read_text()
    assert "logits divided by 2.500" in card
    assert "config.calibration_temperature" in card
    assert "a temperature of 2.500 that was fitted on the validation split" in report


def test_baselines_have_temperatures_of_their_own(run: tuple[Path, RunResult]) -> None:
    """The second fit was that of the majority class, and left its shares as they are."""
    folder, result = run
    shares = np.unique(pq.read_table(folder / "data" / "train.parquet")["label"].to_numpy(), return_counts=True)[1]
    expected = -np.log(shares / shares.sum())
    truth = pq.read_table(folder / "data" / "test.parquet")["label"].to_numpy()
    found = result.best.baselines["majority_class"]["test"].values["loss"]
    assert found == pytest.approx(expected[truth].mean(), abs=1e-4)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_is_not_sure_is_no_prediction(run: tuple[Path, RunResult], tmp_path: Path, suffix: str) -> None:
    folder, _ = run
    told, names = recorded(folder / "output")
    limit = float(np.median(told.max(1)))
    path = tmp_path / f"out{suffix}"
    arguments = ["predict", str(folder / "output"), str(folder / "data" / "test.parquet"), "--output", str(path)]
    assert main([*arguments, "--abstain-below", str(limit)]) == 0
    if suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif suffix == ".csv":
        rows = [
            {**row, "abstained": json.loads(row["abstained"])} for row in csv.DictReader(path.read_text().splitlines())
        ]
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    low = [float(row["probability"]) < limit for row in rows]
    assert 0 < sum(low) < len(rows)
    assert [row["abstained"] for row in rows] == low
    wanted = [None if abstained else name for abstained, name in zip(low, names, strict=True)]
    assert [row.get("prediction") or None for row in rows] == wanted
    assert main([*arguments, "--resume"]) == MISUSED


def test_limits_that_mean_nothing_are_refused(
    run: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run[0] / "output"
    assert main(["predict", str(output), str(run[0] / "00.png"), "--abstain-below", "70"]) == MISUSED
    assert "--abstain-below. Must be <= 1" in capsys.readouterr().err
    assert tltasks.load(output)(run[0] / "00.png", abstain_below=1.0)["prediction"] is None
    copied = tmp_path / "several"
    shutil.copytree(output / "model", copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with pytest.raises(RecipeError, match="image-classification of any number of classes"):
        tltasks.load(copied)(run[0] / "00.png", abstain_below=0.5)


def test_weights_that_are_trained_on_lose_it(run: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder, _ = run
    stage = "{stage: finetune, steps: 1, batch_size: 8, learning_rate: 1e-4, adapt: full}"
    recipe = images.write_recipe(tmp_path / "on.yaml", folder / "output", folder / "data", stage=stage)
    text = re.sub(r'"validation": "[^"]*", ', "", recipe.read_text()).replace(
        "  splits: {validation: validation}\n", ""
    )
    recipe.write_text(text)
    result = run_recipe(recipe, tmp_path / "output")
    assert "calibration" not in result.score.details
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "output" / "model"), "calibration_temperature")
    # a stage that trains nothing keeps it
    recipe.write_text(re.sub(r"  - \{stage: finetune.*\}", "  - {stage: zero_shot}", text))
    result = run_recipe(recipe, tmp_path / "kept")
    assert result.score.details["calibration"]["temperature"] == TEMPERATURE  # type: ignore[index]
