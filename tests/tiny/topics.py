"""Tiny text classifiers, NLI checkpoints among them, and texts whose topic they can learn to name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from transformers import PretrainedConfig

from tests.tiny import texts

ENCODERS = ("bert", "distilbert", "roberta")
CLASSIFIERS = (*ENCODERS, "gpt2", "llama", "bart", "t5")
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def config_of(name: str, vocab_size: int, pad: int) -> PretrainedConfig:
    """Of an encoder without dropout."""
    shared = {"vocab_size": vocab_size, "pad_token_id": pad}
    match name:
        case "bert":
            return transformers.BertConfig(**_BERT, **_DROPOUT, max_position_embeddings=128, **shared)
        case "roberta":
            return transformers.RobertaConfig(**_BERT, **_DROPOUT, max_position_embeddings=130, **shared)
        case "distilbert":
            sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 128}
            return transformers.DistilBertConfig(
                **sizes, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **shared
            )
        case _:
            raise ValueError(name)


def save_model(folder: Path, name: str = "bert", *, labels: list[str] | None = None, seed: int = 0) -> Path:
    """A pretrained encoder or decoder; with `labels` a classifier of them."""
    if name not in ENCODERS and labels is None:
        return texts.save_model(folder, name, seed=seed)
    tokenizer = texts.save_tokenizer(folder, "t5" if name in ENCODERS else name)
    torch.manual_seed(seed)
    config = config_of(name, len(tokenizer), tokenizer.pad_token_id)
    if labels is None:
        model: Any = transformers.AutoModelForMaskedLM.from_config(config)
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return folder


def save_data(folder: Path, *, rows: int = 48, seed: int = 0, several: bool = False) -> Path:
    """train.jsonl, validation.jsonl and test.jsonl with columns `text` and `label`; with any number of topics each, if
    `several`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    topic_of = {sentence: topic for topic, sentence in texts.TOPICS.items()}
    for split, n_rows in {"train": rows, "validation": rows // 3, "test": rows // 2}.items():
        pairs = [texts.pair(rng) for _ in range(n_rows)]
        found = [{"text": pair["document"], "label": topic_of[pair["summary"]]} for pair in pairs]
        if several:
            parts = [[found[j] for j in rng.choice(n_rows, rng.integers(0, 3))] for _ in range(n_rows)]
            found = [
                {
                    "text": " ".join(["the", *(one["text"] for one in own)]),
                    "label": sorted({one["label"] for one in own}),
                }
                for own in parts
            ]
        datasets.Dataset.from_list(found).to_json(folder / f"{split}.jsonl")
    return folder


def write_recipe(
    path: Path, model: Path, data: Path, *, stage: str = "", model_keys: str = "", data_keys: str = "", **top: Any
) -> Path:
    """A recipe over `save_model` and `save_data`; `stage` is YAML that replaces the one stage."""
    stage = stage or "{stage: transfer, epochs: 4, batch_size: 8, learning_rate: 1e-2, adapt: full}"
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    values = {"output": str(path.parent / "output"), "precision": "fp32", **top}
    path.write_text(
        f"task: text-classification\nmodel: {{name: {model}{model_keys}}}\n"
        f"data:\n  name: json\n  files: {json.dumps(files)}\n  splits: {{validation: validation}}\n"
        f"  max_tokens: 96\n{data_keys}stages:\n  - {stage}\n"
        + "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    )
    return path
