"""Rows of the sweep over architectures, each with a trap of its own: they are what benchmarks/results says they are.

The whole of it is benchmarks/architectures.py, and the page that is made of it is docs/architectures.md.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import architectures
from benchmarks.small_checkpoints import Small, row
from benchmarks.small_checkpoints.page import render

IMAGES, SPEECH, SUMMARIES, TOPICS = (
    "image-classification",
    "automatic-speech-recognition",
    "summarization",
    "text-classification",
)
ORDINARY = [
    (IMAGES, "transformers/beit", "full"),  # keeps a tensor of its first pass for all models
    (IMAGES, "transformers/bit", "lora"),  # convolutions that standardise their weights
    (IMAGES, "transformers/pvt", "head"),  # has a number of labels of its own
    (SPEECH, "transformers/wav2vec2", "lora"),  # weight_norm, a new vocabulary
    (SUMMARIES, "transformers/t5", "lora"),
    (SUMMARIES, "transformers/longt5/local", "full"),  # lengths that are no multiple of its window
    (SUMMARIES, "transformers/llama", "lora"),  # padded on the left
    (TOPICS, "transformers/gpt2", "lora"),  # transposed weights; the head reads the last token
]
EXHAUSTIVE = [
    (IMAGES, "transformers/vit", "full"),
    (IMAGES, "transformers/vit", "dora"),
    (IMAGES, "transformers/dinat", "full"),  # needs a package
    (IMAGES, "transformers/pp_lcnet", "full"),  # gives no logits
    (IMAGES, "transformers/siglip2", "lora"),  # reads patches of images of any shape
    (IMAGES, "transformers/levit/LevitForImageClassificationWithTeacher", "head"),  # two heads
    (IMAGES, "transformers/mobilenet_v2", "lora"),  # asks its layers for their stride
    (IMAGES, "transformers/convnext", "lora"),  # scales that start near zero
    (IMAGES, "transformers/regnet", "bitfit"),  # biases of batch normalisation alone
    (IMAGES, "transformers/shieldgemma2", "full"),  # is no classifier
    (IMAGES, "timm/coat_lite_tiny", "lora"),  # layers with several names
    (IMAGES, "timm/vit_tiny_patch16_224", "probe"),
    (SPEECH, "transformers/wav2vec2-bert", "full"),
    (SPEECH, "transformers/sew-d", "lora"),
    (SPEECH, "transformers/parakeet_tdt", "lora"),  # writes several tokens at a step, and skips some
    (SPEECH, "transformers/whisper", "full"),
    (SPEECH, "transformers/moonshine", "lora"),
    (SPEECH, "transformers/speech_to_text", "lora"),
    (SUMMARIES, "transformers/bart", "dora"),
    (SUMMARIES, "transformers/bigbird_pegasus", "lora"),  # attention in blocks
    (SUMMARIES, "transformers/led", "full"),
    (SUMMARIES, "transformers/prophetnet", "full"),  # predicts several tokens at once
    (SUMMARIES, "transformers/mbart/en-ro", "lora"),  # language tokens
    (SUMMARIES, "transformers/m2m_100/nllb", "full"),
    (SUMMARIES, "transformers/switch_transformers", "lora"),  # experts
    (SUMMARIES, "transformers/mamba", "lora"),  # no attention
    (SUMMARIES, "transformers/mixtral", "lora"),  # experts as one tensor
    (SUMMARIES, "transformers/bloom", "full"),  # positions from the mask
    (SUMMARIES, "transformers/bert", "lora"),  # writes nothing
    (TOPICS, "transformers/t5", "head"),
    (TOPICS, "transformers/xlnet", "full"),  # pads on the left
    (TOPICS, "transformers/deberta-v2", "lora"),
    (IMAGES, "timm/convit_tiny", "head"),  # makes a table of the images' size at its first pass
    (SUMMARIES, "transformers/zamba", "lora"),  # a block that several layers share
    ("causal-language-modeling", "transformers/rwkv", "full"),  # has beams without a cache alone
    (TOPICS, "transformers/camembert", "ia3"),  # a tanh in the head hides what is learnt at a high rate
    ("masked-language-modeling", "transformers/luke", "lora"),  # ties other weights than the head
]
assert len({*ORDINARY, *EXHAUSTIVE}) >= 40

Case = tuple[str, str, str]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(architectures.RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, str], Small]:
    return {(small.task, small.name): small for small in architectures.checkpoints()}


def test_the_page_is_made_of_the_results(recorded: dict[str, Any]) -> None:
    assert render(recorded) == architectures.PAGE.read_text(encoding="utf-8")


def test_no_row_fails(recorded: dict[str, Any]) -> None:
    rows = [(task, name, row) for task, of in recorded["tasks"].items() for name, r in of.items() for row in r.values()]
    assert len(rows) > 100
    assert [row for row in rows if row[2]["outcome"] not in {"works", "refused", "not of this task"}] == []
    assert [row for row in rows if row[2]["outcome"] != "works" and len(row[2]["why"]) < 20] == []


@pytest.mark.skipif(sys.platform != "linux", reason="rows are limited in memory as Linux counts it")
@pytest.mark.parametrize(
    "case",
    [*ORDINARY, *(pytest.param(case, marks=pytest.mark.exhaustive) for case in EXHAUSTIVE)],
    ids=lambda case: f"{case[1].partition('/')[2]}-{case[2]}",
)
def test_a_row_is_what_is_recorded(
    case: Case, recorded: dict[str, Any], known: dict[tuple[str, str], Small], tmp_path: Path
) -> None:
    task, name, method = case
    rows = recorded["tasks"][task][name]
    expected = rows.get(method) or rows["all"]
    found = architectures.try_checkpoint(known[task, name], [method], tmp_path / "row")
    (row,) = found.values()
    told = ("outcome", "why", "targets", "left_out", "trained", "without_gradient")
    assert {key: row.get(key) for key in told} == {key: expected.get(key) for key in told}


@pytest.mark.skipif(sys.platform != "linux", reason="rows are limited in memory as Linux counts it")
def test_a_row_that_dies_beside_others_is_tried_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def carry_out(small: Small, method: str, model: Path, data: Path, folder: Path) -> dict[str, Any]:
        if method == "dora" and folder.name == "dora":
            os._exit(1)
        return {"outcome": "works", "folder": folder.name}

    monkeypatch.setattr(row, "carry_out", carry_out)
    monkeypatch.setattr(row, "save_data", lambda task, folder: folder)
    small = Small("transformers/one", IMAGES, lambda folder: None)
    found = architectures.try_checkpoint(small, ["lora", "dora", "ia3"], tmp_path / "row")
    assert {method: of["folder"] for method, of in found.items()} == {
        "lora": "lora",
        "dora": "dora-alone",
        "ia3": "ia3-alone",
    }


def test_a_row_that_says_nothing_is_tried_at_a_lower_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def carried_out(*given: Any) -> dict[str, Any]:
        share = given[-1]
        (tmp_path / "run").mkdir()
        return {"outcome": "fails" if share == 1 else "works", "says_nothing": share == 1}

    monkeypatch.setattr(row, "_carried_out", carried_out)
    small = Small("transformers/one", IMAGES, lambda folder: None)
    assert row.carry_out(small, "ia3", tmp_path, tmp_path, tmp_path) == {"outcome": "works"}
