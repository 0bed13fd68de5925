"""Rows that tell their language: what summarisers are told, as recipes of one language each tell it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from tests.integration.tasks.text.test_encoder_decoders import opened
from tests.tiny import texts
from tltasks.data.splits import Split
from tltasks.errors import RecipeError
from tltasks.models.writing import write
from tltasks.tasks.text.summarization import Summarization

SPOKEN = ("German", "de", "English")


def tell(data: Path) -> None:
    """Give the tables of `save_data` a column of languages."""
    for table in data.glob("*.jsonl"):
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        told = [{**row, "spoken": SPOKEN[i % len(SPOKEN)]} for i, row in enumerate(rows)]
        table.write_text("".join(f"{json.dumps(row)}\n" for row in told))


def keep(begun: list[int], ids: torch.Tensor) -> torch.Tensor:
    """The language that each text begins with, the first token or the second."""
    begun += ids[:, 1 if len(set(ids[:, 0].tolist())) == 1 else 0].tolist()
    return ids


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("m2m_100", ("de", "en")),
        ("m2m_100/nllb-legacy", ("deu_Latn", "eng_Latn")),
    ],
)
def test_each_row_is_read_and_written_in_its_language(tmp_path: Path, name: str, codes: tuple[str, str]) -> None:
    """The same ids, losses and summaries as by recipes of one language, whatever stands beside a row."""
    texts.save_data(tmp_path / "data", rows=6)
    tell(tmp_path / "data")
    mixed = opened(tmp_path, name, data_keys="  columns: {language: spoken}\n")
    task, model, rows = mixed.task, mixed.model.eval(), mixed.rows
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # so that a language matters
    batch, told = task.collate_train(rows, range(6), epoch=0), [codes[0], codes[0], codes[1]] * 2
    begun: list[int] = []
    with mock.patch("tltasks.tasks.text.summarization.write", lambda *a, **k: keep(begun, write(*a, **k))):
        written = task.predict(model, task.collate_eval(rows, range(6)))
    assert begun == [task.form.language_ids[code] for code in told]
    assert task.groups(rows) == {"language": told}
    for code in codes:
        own = opened(tmp_path, name, model_keys=f", language: {code}")
        mine = [row for row, language in enumerate(told) if language == code]
        theirs = own.task.collate_train(own.rows, mine, epoch=0)
        for key, values in theirs.items():
            assert torch.equal(batch[key][mine][:, : values.shape[1]], values), key
        for row in mine:
            alone = [one.collate_train(of, [row], epoch=0) for one, of in ((task, rows), (own.task, own.rows))]
            assert torch.equal(*(one.loss(model, part) for one, part in zip((task, own.task), alone, strict=True)))
            answer = own.task.predict(model, own.task.collate_eval(own.rows, [row]))
            assert answer[0]["prediction"] == written[row]["prediction"]


def test_a_model_of_several_languages_asks_for_one_when_it_is_used(tmp_path: Path) -> None:
    texts.save_data(tmp_path / "data", rows=6)
    tell(tmp_path / "data")
    mixed = opened(tmp_path, "m2m_100", data_keys="  columns: {language: spoken}\n")
    mixed.task.save(tmp_path / "saved", mixed.model, adapter=False)
    source = dataclasses.replace(mixed.task.source, name=str(tmp_path / "saved"))
    again = Summarization.open(mixed.plan, {}, source, seed=0)
    split = Split("predict", mixed.rows.select_columns(["document"]), "", None, "")
    asked = {"document": ["some words"], "row": [0]}
    assert again.preprocess(split)(asked)["error"] == ["has no language, and model is told each row's"]
    assert again.preprocess(split)({**asked, "language": ["de"]})["error"] == [None]
    unnamed = dataclasses.replace(mixed.plan, data=mixed.plan.data.model_copy(update={"columns": {}}))
    with pytest.raises(RecipeError, match="name the one"):
        Summarization.open(
            dataclasses.replace(unnamed, data=type(mixed.plan.data)(name="m")), {"train": split}, source, seed=0
        )


def test_models_without_languages_are_scored_by_them(tmp_path: Path) -> None:
    texts.save_data(tmp_path / "data", rows=6)
    tell(tmp_path / "data")
    task = opened(tmp_path, "t5", data_keys="  columns: {language: spoken}\n")
    assert task.task.groups(task.rows) == {"language": ["de", "de", "en"] * 2}
    assert "language" not in task.task.collate_train(task.rows, [0, 1], epoch=0)
