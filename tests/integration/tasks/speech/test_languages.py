"""Rows that tell their language: what recognisers are told, and scores by language."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

import tltasks
from tests.integration.tasks.speech.test_architectures import CHAT, SMALL
from tests.tiny import speech
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import DataError, RecipeError
from tltasks.results.result import RunResult
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.base import Batch

BY_ROW = "columns: {language: spoken}"
SPOKEN = ["Spanish", "en", "es-MX", "<|hi|>"]


def tell(data: Path, spoken: Sequence[str] = SPOKEN) -> Path:
    """Give the tables of `save_data` a column of languages."""
    for table in data.glob("*.csv"):
        with table.open() as file:
            rows = list(csv.DictReader(file))
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["audio", "text", "spoken"])
            writer.writeheader()
            writer.writerows({**row, "spoken": spoken[i % len(spoken)]} for i, row in enumerate(rows))
    return data


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    speech.save_whisper(folder / "whisper", seconds=4)
    tell(speech.save_data(folder / "data"))
    return folder


@pytest.fixture(scope="module")
def finished(told: Path) -> tuple[Path, RunResult]:
    recipe = speech.write_recipe(told / "r.yaml", told / "whisper", told / "data", data_keys=BY_ROW)
    return told / "run", run_recipe(recipe, told / "run")


def prepared(recipe: Path):  # type: ignore[no-untyped-def]
    from accelerate import Accelerator

    return prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(recipe)))[0]


def one_by_one(batch: Batch) -> list[Batch]:
    return [{name: values[i : i + 1] for name, values in batch.items()} for i in range(len(batch["labels"]))]


def test_each_row_is_trained_and_answered_in_its_language(told: Path, tmp_path: Path) -> None:
    """As recipes of one language each do it: the same losses, and the same texts, whatever stands beside a row."""
    mixed = prepared(speech.write_recipe(tmp_path / "m.yaml", told / "whisper", told / "data", data_keys=BY_ROW))
    rows, indices = mixed.encoded["train"].rows, [0, 1, 2, 3]
    task, model = (lambda built: (built.task, built.model.eval()))(mixed.task.build(mixed.plan.kind))
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight, std=1.0)  # so that a language matters
    batch = task.collate_train(rows, indices, epoch=0)
    losses = [task.loss(model, row) for row in one_by_one(batch)]
    asked = task.collate_eval(rows, indices)
    answers = task.predict(model, asked)
    assert [answer["language"] for answer in answers] == ["es", "en", "es", "hi"]
    untold = rows.remove_columns("language")
    for i, code in enumerate(["es", "en", "es", "hi"]):
        recipe = speech.write_recipe(
            tmp_path / "o.yaml", told / "whisper", told / "data", model_keys=f"language: {code}"
        )
        own = prepared(recipe).task.tried(model)
        assert torch.equal(own.loss(model, one_by_one(own.collate_train(untold, indices, epoch=0))[i]), losses[i])
        model.generation_config.language = code
        alone = own.predict(model, own.collate_eval(untold, [i]))[0]
        assert alone["prediction"] == answers[i]["prediction"]
        model.generation_config.language = None
    assert len({loss.item() for loss in losses}) == 4


def test_scores_are_by_language_too(finished: tuple[Path, RunResult]) -> None:
    output, result = finished
    score, before = result.score, result.best.baselines["checkpoint"]["test"]
    groups = score.groups["language"]
    assert {name: it.examples for name, it in groups.items()} == {"es": 3, "en": 2, "hi": 1}
    assert before.groups["language"].keys() == groups.keys()
    assert all(it.difference_ci95 is not None for it in before.groups["language"].values())
    stored = json.loads((output / "result.json").read_text())["stages"][0]["metrics"]["test"]["groups"]["language"]
    assert stored["en"]["value"] == groups["en"].value
    assert "by language" in (output / "README.md").read_text()
    assert "by language" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("spoken", "error"),
    [
        (["es", "klingon"], r"row 1 \(train\.csv:3\): .*whisper does not know `klingon`.*en .english., es .spanish."),
        (["es", ""], r"row 1 .*has no language"),
    ],
)
def test_a_language_that_is_not_known_is_told_at_once(
    told: Path, tmp_path: Path, spoken: list[str], error: str
) -> None:
    speech.save_data(tmp_path / "data", rows=2, splits={"train": 2, "validation": 2, "test": 2})
    data = tell(tmp_path / "data", spoken)
    with pytest.raises(DataError, match=error):
        prepared(speech.write_recipe(tmp_path / "r.yaml", told / "whisper", data, data_keys=BY_ROW))


def test_predictions_are_told_languages(
    finished: tuple[Path, RunResult], told: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, table = str(finished[0]), str(told / "data/test.csv")
    with (told / "data/test.csv").open() as file:
        rows = [{"audio": str(told / "data" / row["audio"]), "language": row["spoken"]} for row in csv.DictReader(file)]
    answers = tltasks.load(output, vad=False)(rows)
    assert [answer["language"] for answer in answers] == ["es", "en", "es", "hi", "es", "en"]
    assert main(["predict", output, table, "--no-vad", "--language-column", "spoken"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prediction"] for line in lines] == [answer["prediction"] for answer in answers]
    assert main(["predict", output, table, "--no-vad", "--language", "Hindi"]) == 0
    assert {json.loads(line)["language"] for line in capsys.readouterr().out.splitlines()} == {"hi"}
    wrong = tltasks.load(output, vad=False)([{**rows[0], "language": "klingon"}, rows[1]])
    assert "does not know `klingon`" in wrong[0]["error"]
    assert wrong[1] == answers[1]
    with pytest.raises(RecipeError, match="does not know `klingon`"):
        tltasks.load(output, language="klingon")


def test_adapters_of_a_language_take_no_others(tmp_path: Path) -> None:
    SMALL["wav2vec2/mms"].save(tmp_path / "mms")
    data = tell(speech.save_data(tmp_path / "data"), ["French", "fra"])
    recipe = speech.write_recipe(tmp_path / "r.yaml", tmp_path / "mms", data, data_keys=BY_ROW)
    assert prepared(recipe).task.recogniser.switched[0] == "fra"
    tell(data, ["fr", "eng"])
    with pytest.raises(DataError, match=r"row 1 .*`eng`.*rows in fr.*one language"):
        prepared(recipe)


def test_a_chat_is_told_none_and_takes_rows_in_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.Qwen3ASRProcessor, "apply_transcription_request")
    SMALL["qwen3_asr"].save(tmp_path / "chat")
    template = CHAT.replace("AUDIO", "<|audio_start|><|audio_pad|><|audio_end|>")
    (tmp_path / "chat/chat_template.jinja").write_text(template)
    data = tell(speech.save_data(tmp_path / "data"), ["French", "en"])
    task = prepared(speech.write_recipe(tmp_path / "r.yaml", tmp_path / "chat", data, data_keys=BY_ROW)).task
    assert task.languages.codes == ()
