"""Tiny image classifiers of many architectures, and pictures that they can learn to tell apart."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from transformers import PretrainedConfig

SIZE = 32
COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 40), "red": (230, 30, 30)}

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}


def _timm(architecture: str, **model_args: Any) -> Callable[[], PretrainedConfig]:
    cfg = {
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "fixed_input_size": "img_size" in model_args,
    }
    return lambda: transformers.TimmWrapperConfig(
        architecture=architecture, model_args=model_args, pretrained_cfg=cfg, num_labels=5
    )


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "vit": lambda: transformers.ViTConfig(**_VIT),
    "deit": lambda: transformers.DeiTConfig(**_VIT),
    "beit": lambda: transformers.BeitConfig(**_VIT, use_relative_position_bias=True),
    "dinov2": lambda: transformers.Dinov2Config(**{k: v for k, v in _VIT.items() if k != "intermediate_size"}),
    "swin": lambda: transformers.SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=SIZE, patch_size=4
    ),
    "convnext": lambda: transformers.ConvNextConfig(
        hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=SIZE
    ),
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
    ),
    "vgg16": _timm("vgg11", mlp_ratio=0.01),
    "timm-efficientnet": _timm("tf_efficientnet_lite0"),
    "timm-vit": _timm("vit_tiny_patch16_224", img_size=SIZE, embed_dim=24, depth=2, num_heads=2, patch_size=8),
}

_MAE = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


def save_mae(folder: Path, *, weights: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A tiny masked autoencoder with random weights, or its configuration alone."""
    torch.manual_seed(seed)
    config = transformers.ViTMAEConfig(**{**_VIT, **_MAE, **changes})
    config.save_pretrained(folder)
    if weights:
        transformers.ViTMAEForPreTraining(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": config.image_size, "width": config.image_size}).save_pretrained(
        folder
    )
    return folder


_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_SPECIAL = ["<pad>", "<eos>", "<unk>"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_WORDS = [*_SPECIAL, "a", "photo", "picture", "This", "is", "of", "the", ".", "blue", "green", "red", *CIFAR10]


def save_contrastive(folder: Path, name: str = "clip", *, seed: int = 0) -> Path:
    """A tiny model of images and texts with random weights, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    words = {word: i for i, word in enumerate(_WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    inputs = ["input_ids"] if name == "siglip" else ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_input_names=inputs
    ).save_pretrained(folder)
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    vision = {**_TOWER, "image_size": SIZE, "patch_size": 8}
    config = transformers.AutoConfig.for_model(name, text_config=_TOWER | text, vision_config=vision)
    if name != "siglip":  # whose two towers have the same width
        config.projection_dim = 8
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():  # as drawn, all texts would be alike
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


_PROCESSORS = {
    "convnext": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}),
    "resnet": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.875),
    "dinov2": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": SIZE, "width": SIZE}
    ),
    "deit": lambda: transformers.DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": SIZE, "width": SIZE}
    ),
}


def save_model(folder: Path, name: str = "vit", *, seed: int = 0, labels: list[str] | None = None) -> Path:
    """A checkpoint with random weights: five labels unless `labels` names others."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    names = labels or [f"class {i}" for i in range(5)]
    config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    classes: dict[str, Any] = {"deit": transformers.DeiTForImageClassification}
    build = classes.get(name, transformers.AutoModelForImageClassification.from_config)
    build(config).save_pretrained(folder)
    if config.model_type != "timm_wrapper":
        square = {"height": SIZE, "width": SIZE}
        processor = _PROCESSORS.get(name, lambda: transformers.ViTImageProcessor(size=square))()
        processor.save_pretrained(folder)
    return folder


def picture(label: str, rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """A noisy picture in which the label's colour prevails."""
    noise = rng.integers(0, 120, (size, size, 3))
    return Image.fromarray(np.clip(noise + np.array(COLOURS[label]) * 0.6, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def save_data(folder: Path, *, rows: int = 48, size: int = SIZE, seed: int = 0, splits: Any = None) -> Path:
    """train.parquet, validation.parquet and test.parquet with columns `image` and `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, n_rows in (splits or {"train": rows, "validation": rows // 3, "test": rows // 2}).items():
        labels = [i % len(names) for i in range(n_rows)]
        images = [{"bytes": png(picture(names[label], rng, size)), "path": None} for label in labels]
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
            folder / f"{split}.parquet"
        )
    return folder


def write_recipe(path: Path, model: Path, data: Path, *, stage: str = "", **top: Any) -> Path:
    """A recipe over `save_model` and `save_data`; `stage` is YAML that replaces the one stage."""
    stage = stage or "{stage: transfer, epochs: 2, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}}"
    files = {split: str(data / f"{split}.parquet") for split in ("train", "validation", "test")}
    values = {"output": str(path.parent / "output"), "precision": "fp32", **top}
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    path.write_text(
        f"task: image-classification\nmodel: {{name: {model}}}\n"
        f"data:\n  name: parquet\n  files: {json.dumps(files)}\n  splits: {{validation: validation}}\n"
        f"stages:\n  - {stage}\n" + "\n".join(lines) + "\n"
    )
    return path
