"""Every task with a tiny checkpoint of each family and data for it: what a contract of tasks is checked on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tiny import images, speech, texts, topics
from tltasks.config.stage import UnlabelledStage
from tltasks.config.tasks import TASKS

Maker = Callable[[Path], object]
AUGMENTED = {"speed": 0.1, "gain_db": 3, "noise_db": 20, "spec_augment": {}}


@dataclass(frozen=True)
class Subject:
    """A task on a checkpoint, whose dropout is zero, and how a recipe of it differs from others."""

    task: str
    save_model: Maker
    save_data: Maker
    loader: tuple[str, str]
    """The loader of `datasets` and the ending of its files."""
    kind: str = "finetune"
    """A stage for which the checkpoint will do."""
    model: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    stage: Mapping[str, object] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        """As against an objective that trains an encoder."""
        return not issubclass(TASKS[self.task].stage, UnlabelledStage)

    def save(self, folder: Path) -> None:
        self.save_model(folder / "model")
        self.save_data(folder / "data")

    def write(self, path: Path, folder: Path, **stage: object) -> Path:
        """A recipe of one stage over what was saved in a folder; YAML reads JSON."""
        loader, ending = self.loader
        files = {split: str(folder / "data" / f"{split}.{ending}") for split in ("train", "validation", "test")}
        data = {"name": loader, "files": files, "splits": {"validation": "validation"}, **self.data}
        recipe = {
            "task": self.task,
            "model": {"name": str(folder / "model"), **self.model},
            "data": data,
            "stages": [{"stage": self.kind, **self.stage, **stage}],
            "output": str(path.parent / "output"),
            "precision": "fp32",
        }
        path.write_text(json.dumps(recipe))
        return path


def _language_model(folder: Path, name: str, **dropout: float) -> None:
    torch.manual_seed(0)
    sizes = {
        "bert": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2},
    }
    auto: Any = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(name, vocab_size=50, **sizes[name], **dropout)
    auto.from_config(config).save_pretrained(folder)


def _pictures(name: str) -> Subject:
    augment = {"augment": {"flip": True, "crop": 0.5, "mixup": 0.4}, "adapt": "full"}
    return Subject(
        "image-classification", lambda f: images.save_model(f, name), _few_pictures, ("parquet", "parquet"), "transfer",
        stage=augment,
    )  # fmt: skip


def _few_pictures(folder: Path) -> None:
    images.save_data(folder, rows=24)


def _spoken(save: Maker, kind: str = "transfer", **model: object) -> Subject:
    return Subject(
        "automatic-speech-recognition", save, speech.save_data, ("csv", "csv"), kind, model,
        stage={"augment": AUGMENTED},
    )  # fmt: skip


def _summaries(name: str) -> Subject:
    return Subject(
        "summarization", lambda f: texts.save_model(f, name), lambda f: texts.save_data(f, rows=24), ("json", "jsonl"),
        data={"max_document_tokens": 80, "max_summary_tokens": 32}, stage={"adapt": "full"},
    )  # fmt: skip


def _documents(task: str, name: str, **stage: object) -> Subject:
    return Subject(
        task, lambda f: texts.save_objective(f, name), lambda f: texts.save_data(f, rows=24), ("json", "jsonl"),
        data={"columns": {"text": "document", "label": "summary"}, "max_tokens": 64}, stage=stage,
    )  # fmt: skip


def _unlabelled(task: str, save: Maker, kind: str = "finetune", **stage: object) -> Subject:
    return Subject(
        task, save, _few_pictures, ("parquet", "parquet"), kind, data={"columns": {"label": "label"}}, stage=stage
    )  # fmt: skip


def _ctc(name: str) -> Subject:
    return _spoken(lambda f: speech.save_ctc(f, name))


SUBJECTS: dict[str, Subject] = {
    "vit": _pictures("vit"),
    "mae": _unlabelled("masked-image-modeling", images.save_mae, augment={"flip": True, "crop": 0.5}),
    "simclr": Subject(
        "contrastive-image", images.save_model, _few_pictures, ("parquet", "parquet"), "transfer",
        data={"columns": {"label": "label"}}, stage={"loss_group": 4, "batch_size": 8},
    ),
    "whisper": _spoken(lambda f: speech.save_whisper(f, seconds=4), "finetune", language="es"),
    "wav2vec2": _ctc("wav2vec2"),
    "bert-for-speech": _spoken(
        lambda f: _language_model(f, "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        **{"as": "frozen-transformer"},
    ),
    "wav2vec2-objective": Subject(
        "speech-pretraining", speech.save_objective, speech.save_data, ("csv", "csv"),
        data={"columns": {"label": "text"}},
        stage={"mask": {"mask_time_prob": 0.4, "mask_time_length": 4}, "negatives": 5},
    ),
    "bert": Subject(
        "text-classification", topics.save_model, lambda f: topics.save_data(f, rows=24), ("json", "jsonl"), "transfer",
        data={"max_tokens": 96}, stage={"adapt": "full"},
    ),
    "t5": _summaries("t5"),
    "gpt2": _summaries("gpt2"),
    "t5-objective": _documents("text-denoising", "t5", mask_ratio=0.3, span_tokens=2),
    "bert-objective": _documents("masked-language-modeling", "bert"),
    "gpt2-objective": _documents("causal-language-modeling", "gpt2"),
}  # fmt: skip
"""A subject for each way in which tasks and families differ."""
MORE: dict[str, Subject] = {
    "bert-several-classes": Subject(
        "text-classification",
        topics.save_model,
        lambda f: topics.save_data(f, rows=24, several=True),
        ("json", "jsonl"),
        "transfer",
        data={"max_tokens": 96},
        stage={"adapt": "full", "class_weights": "auto"},
    ),
    "simmim": _unlabelled("masked-image-modeling", images.save_model, "transfer"),
    "moonshine": _spoken(speech.save_moonshine, "finetune"),
    "speech-to-text": _spoken(speech.save_speech_to_text, "finetune"),
    "wav2vec2-layer-norm": _ctc("wav2vec2-layer-norm"),
    "wav2vec2-bert": _ctc("wav2vec2-bert"),
    "gpt2-for-speech": _spoken(
        lambda f: _language_model(f, "gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        **{"as": "frozen-transformer"},
    ),
    "bart": _summaries("bart"),
    "llama": _summaries("llama"),
}
"""Further families, for the exhaustive tier."""
