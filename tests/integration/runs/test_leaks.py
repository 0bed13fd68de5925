"""Leaks are told, left out of train, or refused; and a score is also given without them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

from tests.tiny.images import COLOURS, save_data, save_mae, save_model, write_recipe
from tests.tiny.runs import equal, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import DataError, Interrupted
from tltasks.results.comparison import describe_leaks
from tltasks.results.result import load_result
from tltasks.runs.context import PreparedStage
from tltasks.runs.prepare import prepare_stages

TWINS = {12: 3, 13: 7}
"""Rows of test that are rows of train, saved as JPEG."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    save_data(folder / "data", rows=24)
    rows = {
        split: datasets.Dataset.from_parquet(str(folder / "data" / f"{split}.parquet")) for split in ("train", "test")
    }
    copies = [as_jpeg(rows["train"][row]["image"]) for row in TWINS.values()]
    labels = [rows["train"][row]["label"] for row in TWINS.values()]
    planted = datasets.Dataset.from_dict({"image": copies, "label": labels}, features=rows["test"].features)
    datasets.concatenate_datasets([rows["test"], planted]).to_parquet(folder / "data" / "test.parquet")
    save_model(folder / "vit")
    return folder


def as_jpeg(image: Image.Image) -> dict[str, object]:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90)
    return {"bytes": target.getvalue(), "path": None}


def prepared(
    zoo: Path, *overrides: str, stage: str = "{stage: transfer, steps: 1, learning_rate: 1e-3}"
) -> list[PreparedStage]:
    recipe = write_recipe(zoo / "prepared.yaml", zoo / "vit", zoo / "data", stage=stage)
    return prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(recipe, overrides)))


def test_leaks_are_told_and_the_score_is_given_without_them(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(
        zoo / "run.yaml", zoo / "vit", zoo / "data", stage="{stage: transfer, steps: 2, learning_rate: 1e-3}"
    )
    result = run_recipe(recipe, tmp_path / "run")
    data, score = result.best.data, result.score
    leaks = data["test"].leaks
    assert leaks.examples == 2
    assert leaks.rows == {"row 12": "row 3 of train", "row 13": "row 7 of train"}
    assert leaks.by_stage == {"transfer": 2}
    assert not leaks.dropped
    assert (data["validation"].leaks.examples, data["train"].leaks) == (0, None)
    right = np.array([row == most for row, most in zip(*said(tmp_path / "run"), strict=True)])
    assert leaks.value == pytest.approx(right[:12].mean())
    low, high = leaks.difference_ci95
    assert low <= score.value - leaks.value <= high
    assert load_result(tmp_path / "run" / "result.json").best.data["test"].leaks == leaks
    sentence, note = describe_leaks(result.best, "test"), data["test"].notes[-1]
    assert "2 of 14 rows have near-duplicates among those trained on: row 12 is like row 3 of train" in note
    assert "Without the 2 of 14 examples of test" in sentence
    page, card = ((tmp_path / "run" / name).read_text() for name in ("report.html", "README.md"))
    assert sentence.replace("95 %", "95\xa0%") in page
    pairs = re.findall(r'class="sides">\s*<div><h3>(row 1\d)</h3>\s*<img .*?</div>\s*<div><h3>(row \d) of train', page)
    assert pairs == [("row 12", "row 3"), ("row 13", "row 7")], "each beside the row it is like"
    assert page.count('alt="row 3 of train"') == 1
    assert sentence in card
    told = capsys.readouterr().err
    assert sentence in told
    assert note in told


def said(output: Path) -> tuple[list[str], list[str]]:
    table = datasets.Dataset.from_parquet(str(output / "predictions" / "transfer-test.parquet"))
    return table["prediction"], table["reference"]


def test_dropped_rows_are_not_trained_on(zoo: Path) -> None:
    (noted,), (dropped,) = prepared(zoo), prepared(zoo, "data.leaks=drop")
    rows = dropped.encoded["train"].rows["row"]
    assert sorted({*range(24)} - {*rows}) == sorted(TWINS.values())
    assert dropped.encoded["train"].fingerprint != noted.encoded["train"].fingerprint
    assert dropped.encoded["test"].fingerprint == noted.encoded["test"].fingerprint
    assert dropped.split_notes["train"] == ["2 rows are left out, near-duplicates of rows that are scored"]


def test_each_fold_is_looked_through_for_itself(zoo: Path, tmp_path: Path) -> None:
    """Twins in two folds: of each fold's trial the one that it is not tested on is left out of train, and no other."""
    whole = [datasets.Dataset.from_parquet(str(zoo / "data" / f"{split}.parquet")) for split in ("train", "test")]
    both = datasets.concatenate_datasets([whole[0], whole[1].select([12, 13])])
    both.to_parquet(tmp_path / "train.parquet")
    pairs, told, left_out = {24: 3, 25: 7}, set[int](), set[int]()
    for fold in range(3):
        splits = f"data.splits={{train: train, validation: null, test: {{fold: {fold}, folds: 3}}}}"
        (stage,) = prepared(zoo, f"data.files={{train: {tmp_path / 'train.parquet'}}}", splits, "data.leaks=drop")
        train, test = (as_numbers(stage.encoded[name].rows["path"]) for name in ("train", "test"))
        mine = {test[row] for row in stage.twins["test"]}
        twins = pairs | {theirs: ours for ours, theirs in pairs.items()}
        assert mine == {row for row in twins if row in test and twins[row] not in test}
        dropped = {*range(26)} - {*train} - {*test}
        assert dropped == {twins[row] for row in mine}
        told, left_out = told | mine, left_out | dropped
    assert told == left_out
    assert told, "the seed parts some twins"


def as_numbers(names: list[str]) -> list[int]:
    return [int(re.findall(r"\d+", name)[-1]) for name in names]


def test_a_resumed_run_leaves_out_the_same_rows_and_refuses_others(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(zoo / "data", tmp_path / "data")
    stage = "{stage: transfer, steps: 4, evaluate_every: 2, batch_size: 8, learning_rate: 1e-3}"
    recipe = write_recipe(tmp_path / "r.yaml", zoo / "vit", tmp_path / "data", stage=stage)
    run_recipe(recipe, tmp_path / "whole", "data.leaks=drop")
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_third_step() -> Iterator[object]:
        yield lambda: polls.append(0) or len(polls) >= 3

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_third_step)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", "data.leaks=drop")
    monkeypatch.undo()
    for split in ("test", "validation"):  # a row of train more among those that are scored
        file = tmp_path / "data" / f"{split}.parquet"
        held, rows = file.read_bytes(), datasets.Dataset.from_parquet(str(file))
        train = datasets.Dataset.from_parquet(str(tmp_path / "data" / "train.parquet"))
        datasets.concatenate_datasets([rows, train.select([11])]).to_parquet(file)
        with pytest.raises(DataError, match="trained or validated on other data"):
            run_recipe(recipe, tmp_path / "run", "data.leaks=drop", resume=True)
        file.write_bytes(held)
    file = tmp_path / "data" / "validation.parquet"
    held, rows = file.read_bytes(), datasets.Dataset.from_parquet(str(file))
    rows.select(range(len(rows) - 1)).to_parquet(file)  # which leaves out the same rows of train
    with pytest.raises(DataError, match="trained or validated on other data"):
        run_recipe(recipe, tmp_path / "run", "data.leaks=drop", resume=True)
    file.write_bytes(held)
    run_recipe(recipe, tmp_path / "run", "data.leaks=drop", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_class_weights_are_counted_after_rows_are_left_out(zoo: Path) -> None:
    stage = "{stage: transfer, steps: 1, learning_rate: 1e-3, class_weights: auto}"
    (noted,), (dropped,) = prepared(zoo, stage=stage), prepared(zoo, "data.leaks=drop", stage=stage)
    for one in (noted, dropped):
        counts = one.task.class_rows(one.encoded["train"].rows)
        n_rows = len(one.encoded["train"].rows)
        wanted = [n_rows / (len(counts) * counts[i]) for i in range(len(one.task.class_names))]
        assert one.task.class_weights == pytest.approx(wanted)
    assert dropped.task.class_weights != noted.task.class_weights


def test_rows_of_one_content_with_two_classes_are_named(zoo: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_parquet(str(zoo / "data" / "train.parquet"))
    label = (rows[5]["label"] + 1) % len(COLOURS)
    copies = {"image": [rows[i]["image"] for i in (5, 6)], "label": [label, rows[6]["label"]]}
    added = datasets.Dataset.from_dict(copies, features=rows.features)
    datasets.concatenate_datasets([rows, added]).to_parquet(tmp_path / "train.parquet")
    (stage,) = prepared(zoo, f"data.files.train={tmp_path / 'train.parquet'}")
    names = stage.task.class_names
    told = f"1 row has the content of another and not its class: row 24 ({names[label]}) and row 5"
    assert any(note.startswith(told) for note in stage.split_notes["train"])
    assert not any("has the content" in note for (one,) in [prepared(zoo)] for note in one.split_notes.get("train", []))


def test_pairs_of_another_image_processor_are_others(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images no larger than the model's input are encoded alike by all, and compared as each sees them."""
    prepared(zoo)
    monkeypatch.setattr("tltasks.runs.leaks.find_alike", lambda *of: ({}, {}))
    shutil.copytree(zoo / "vit", zoo / "other")
    config = json.loads((zoo / "other" / "preprocessor_config.json").read_text())
    config["image_mean"] = [0.1, 0.2, 0.3]
    (zoo / "other" / "preprocessor_config.json").write_text(json.dumps(config))
    (other,) = prepared(zoo, f"model.name={zoo / 'other'}")
    assert other.twins["test"] == {}


def test_leaks_are_refused_where_that_is_asked(zoo: Path) -> None:
    with pytest.raises(DataError, match=r"test.*2 of 14 rows have near-duplicates among those trained on.*leaks: drop"):
        prepared(zoo, "data.leaks=error")


def test_nothing_is_looked_for_where_it_is_off_or_nothing_is_trained(zoo: Path) -> None:
    (off,) = prepared(zoo, "data.leaks=off")
    assert off.twins == off.split_notes == {}
    assert off.encoded["test"].marks is None
    save_model(zoo / "coloured", labels=list(COLOURS))
    (untrained,) = prepared(zoo, f"model.name={zoo / 'coloured'}", stage="{stage: zero_shot}")
    assert untrained.twins == {}


def test_what_an_earlier_stage_was_trained_on_leaks_too(zoo: Path) -> None:
    save_mae(zoo / "mae")
    half = json.dumps({split: str(zoo / "data" / f"{split}.parquet") for split in ("train", "test")})
    stages = (
        "[{stage: pretrain, task: masked-image-modeling, steps: 1, learning_rate: 1e-3, data: {name: parquet, files: "
        f"{half}, splits: {{validation: null, test: 'test[:4]'}}}}}}, "
        "{stage: transfer, start: previous, steps: 1, learning_rate: 1e-3}]"
    )
    recipe = write_recipe(zoo / "chain.yaml", zoo / "mae", zoo / "data")
    overrides = [f"stages={stages}", "data.splits.train=train[8:]"]
    before, after = prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(recipe, overrides)))
    assert before.twins == {"test": {}}
    assert {row: (twin.stage, twin.row) for row, twin in after.twins["test"].items()} == {
        row: ("pretrain", other) for row, other in TWINS.items()
    }
    assert "row 12 is like row 3 of train of stage pretrain" in after.split_notes["test"][-1]
    overrides += ["data.leaks=drop"]
    before, after = prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(recipe, overrides)))
    assert (len(before.encoded["train"].rows), len(after.encoded["train"].rows)) == (22, 16)


def test_pairs_are_found_again(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = prepared(zoo)
    monkeypatch.setattr("tltasks.runs.leaks.find_alike", lambda *of: pytest.fail("looked for again"))
    (again,) = prepared(zoo)
    assert {row: twin.row for row, twin in again.twins["test"].items()} == TWINS
    assert first.split_notes == again.split_notes
