import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import speech, texts
from tests.tiny.images import write_recipe
from tests.tiny.runs import run_recipe
from tltasks.config.loading import load_recipe
from tltasks.errors import RecipeError

STAGE = "{stage: %s, steps: 20, batch_size: 8, learning_rate: 1e-2, keep: last}"


def robustness(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "result.json").read_text())["stages"][0]["robustness"]
    return found


@pytest.fixture(scope="module")
def recipe(tiny: Path) -> Path:
    return write_recipe(tiny / "robust.yaml", Path("vit"), Path("data"), stage=STAGE % "transfer")


@pytest.fixture(scope="module")
def ran(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    run_recipe(
        recipe, folder / "run", "data.corruptions={kinds: [contrast, gaussian_noise], severities: [5, 1], rows: 9}"
    )
    return folder / "run"


def test_every_kind_at_every_level_beside_the_clean_rows(ran: Path) -> None:
    found = robustness(ran)
    assert (found["split"], found["rows"], found["metric"], found["level"]) == ("test", 9, "accuracy", "severity")
    assert [(line["kind"], line["level"]) for line in found["table"]] == [
        ("contrast", 1), ("contrast", 5), ("gaussian_noise", 1), ("gaussian_noise", 5)
    ]  # fmt: skip
    assert found["mean"] == pytest.approx(sum(line["value"] for line in found["table"]) / 4)
    for line in found["table"]:
        assert line["difference"] == pytest.approx(line["value"] - found["clean"])
        low, high = line["difference_ci95"]
        assert low <= line["difference"] <= high
    assert found["clean"] > 0.8


def test_what_cannot_be_told_apart_costs_accuracy(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tltasks.tasks.image.classification.corrupt_image", lambda pixels, *_: np.zeros_like(pixels))
    keys = "data.corruptions={kinds: [contrast], severities: [1]}"
    run_recipe(recipe, tmp_path / "run", keys)
    (line,) = robustness(tmp_path / "run")["table"]
    assert line["value"] < 0.5 < robustness(tmp_path / "run")["clean"]
    assert line["difference_ci95"][1] < 0


def test_report_and_card_have_the_table(ran: Path) -> None:
    page, card = (ran / "report.html").read_text(), (ran / "README.md").read_text()
    assert "<h3>Test made worse</h3>" in page
    assert len(re.findall(r"<th class=.name.>(?:contrast|gaussian noise)</th>", page)) == 2
    assert "### Lower quality" in card
    assert re.search(r"^\| gaussian noise \| 0?\.?\d", card, re.MULTILINE)


def test_clips_get_noise(tmp_path: Path) -> None:
    speech.save_ctc(tmp_path / "ctc")
    speech.save_data(tmp_path / "data", rows=8)
    recipe = speech.write_recipe(
        tmp_path / "r.yaml",
        tmp_path / "ctc",
        tmp_path / "data",
        stage="{stage: transfer, steps: 1, batch_size: 4, learning_rate: 1e-3}",
        data_keys="corruptions: {snr_db: [0, 20], rows: 3}",
    )
    run_recipe(recipe, tmp_path / "run")
    found = robustness(tmp_path / "run")
    assert [(line["kind"], line["level"]) for line in found["table"]] == [
        ("white_noise", 20.0), ("white_noise", 0.0), ("pink_noise", 20.0), ("pink_noise", 0.0)
    ]  # fmt: skip
    assert (found["rows"], found["metric"]) == (3, "wer")


def test_documents_get_typos(tmp_path: Path) -> None:
    texts.save_model(tmp_path / "t5")
    data = texts.save_data(tmp_path / "data")
    stage = "{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3}"
    path = texts.write_recipe(tmp_path / "r.yaml", tmp_path / "t5", data, stage=stage)
    run_recipe(path, tmp_path / "run", "data.corruptions={rates: [0.1], kinds: [typos, drop], rows: 4}")
    found = robustness(tmp_path / "run")
    assert [line["kind"] for line in found["table"]] == ["typos", "drop"]
    assert found["level"] == "share of letters"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("{kinds: [jpg]}", r"corruptions\.kinds\[0\].*jpg"),
        ("{severities: [6]}", r"corruptions\.severities\[0\]"),
        ("{snr_db: [0]}", r"corruptions\.snr_db: unknown key"),
    ],
)
def test_mistakes(keys: str, said: str, tiny: Path) -> None:
    path = write_recipe(tiny / "mistaken.yaml", Path("vit"), Path("data"))
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, [f"data.corruptions={keys}"])
