"""Texts are answered beside others as they are alone, and as transformers' own pipeline answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

import tltasks
from benchmarks.small_checkpoints.shrinking import save_random, small_config
from benchmarks.small_checkpoints.texts import MORE, save_text_model, special_ids
from benchmarks.small_checkpoints.vocabularies import save_tokenizer
from tltasks.errors import CheckpointError
from tltasks.tasks.text.pretraining import MaskedLanguageModeling

TEXTS = [
    "trains of rain sleep",
    "one some they said that it was new old long very much more",
    "fresh bread",
    "fast trains leave at noon and old trains of one fresh bread leave when " * 3 + "heavy rain falls in spring",
    "to</s> in",
]
LABELS = dict(enumerate("abc"))


def save_classifier(folder: Path, model_type: str, architecture: str) -> Path:
    tokenizer = save_tokenizer(folder, model_type)
    labels = {"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}}
    config = small_config(model_type, {**special_ids(tokenizer), **labels}, MORE.get(model_type))
    torch.manual_seed(0)
    save_random(folder, getattr(transformers, architecture)(config), spread=0.2)
    return folder


def probabilities(found: list[Any], value: str) -> list[list[float]]:
    return [[float(entry[value]) for entry in sorted(row, key=lambda entry: entry["label"])] for row in found]


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("convbert", "ConvBertForSequenceClassification"),  # whose convolutions see padding
        ("fnet", "FNetForSequenceClassification"),  # which has no mask
        ("t5gemma", "T5GemmaForSequenceClassification"),  # which reads another token of the longest text
        ("xlnet", "XLNetForSequenceClassification"),  # padded at the left, and with a kind for each token
        ("roc_bert", "RoCBertForSequenceClassification"),  # with a shape and a sound for each token
        ("funnel", "FunnelForSequenceClassification"),  # which reads nothing of fewer than five tokens
        ("big_bird", "BigBirdForSequenceClassification"),  # which stays in full attention after a short text
        ("bart", "BartForSequenceClassification"),  # which wants as many ends in each text
        ("ctrl", "CTRLForSequenceClassification"),  # whose tokenizer has no padding and no end
        ("qwen3_5_text", "Qwen3_5TextForSequenceClassification"),  # with a recurrent state
    ],
)
def test_a_text_is_answered_alike_alone_and_beside_others(tmp_path: Path, model_type: str, architecture: str) -> None:
    folder = save_classifier(tmp_path, model_type, architecture)
    predict = tltasks.load(folder, task="text-classification", precision="fp32")
    alone = probabilities([predict(text)["top"] for text in TEXTS], "probability")
    together = probabilities([answer["top"] for answer in predict(TEXTS)], "probability")
    assert torch.tensor(alone).std(0).max() > 1e-3
    assert torch.allclose(torch.tensor(alone), torch.tensor(together), atol=1e-5)
    for text, ours in zip(TEXTS, alone, strict=True):
        if model_type == "funnel" and len(text) < 12:
            continue  # which ends in an error there
        ask = transformers.pipeline("text-classification", str(folder), top_k=None)  # which has read nothing before
        assert torch.allclose(torch.tensor(probabilities(ask(text), "score")), torch.tensor([ours]), atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("layoutlmv3", "LayoutLMv3ForSequenceClassification"),
        ("markuplm", "MarkupLMForSequenceClassification"),
        ("tapas", "TapasForSequenceClassification"),
    ],
)
def test_a_model_of_pages_or_tables_is_refused(tmp_path: Path, model_type: str, architecture: str) -> None:
    folder = save_classifier(tmp_path, model_type, architecture)
    with pytest.raises(CheckpointError, match="does not read plain texts"):
        tltasks.load(folder, task="text-classification", precision="fp32")


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("fnet", "FNetForMaskedLM"), ("convbert", "ConvBertForMaskedLM"), ("perceiver", "PerceiverForMaskedLM")],
)
def test_masked_words_are_as_hard_alone_as_beside_others(tmp_path: Path, model_type: str, architecture: str) -> None:
    save_text_model(tmp_path, model_type, architecture)
    predict = tltasks.load(tmp_path, task="masked-language-modeling", precision="fp32")
    task = predict.task
    assert isinstance(task, MaskedLanguageModeling)
    encoded = task.encode({"text": TEXTS}, None)  # type: ignore[arg-type]
    rows = datasets.Dataset.from_dict({"ids": encoded["ids"], "row": range(len(TEXTS))})
    with torch.inference_mode():
        together = task.predict(predict.model, task.collate_eval(rows, range(len(TEXTS))))
        alone = [task.predict(predict.model, task.collate_eval(rows, [i]))[0] for i in range(len(TEXTS))]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["features"] == pytest.approx(theirs["features"], abs=1e-4)
