"""Models of images and texts as classifiers: each class is named by texts, and an image belongs to the nearest.

Source: Radford et al., https://arxiv.org/abs/2103.00020, §3.1; with a sigmoid for each class, Zhai et al.,
https://arxiv.org/abs/2303.15343.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import ImageClassifierOutput

from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.adapters import unwrap_model
from tltasks.models.loading import saved_as
from tltasks.models.packages import cannot_open
from tltasks.runtime.precision import usable_accelerator

FAMILIES = ("clip", "metaclip_2", "siglip")
"""Architectures that compare an image's features with a text's by their cosine."""
SIGMOID_FAMILIES = ("siglip",)
"""Those that ask of each text by itself whether it fits; the others, which of the texts fits best."""
PROMPTS = ["a photo of a {}."]
"""Radford et al., §3.1.4."""
PROMPTS_KEY = "zero_shot_prompts"
"""Key of a saved config.json that holds the prompts."""
TEXTS_AT_ONCE = 256
_KNOWN: dict[str, Tensor] = {}
"""Features by the content of text tower and texts, so that all stages of a run compute them once."""


def is_contrastive(config: PretrainedConfig) -> bool:
    """Tell whether a checkpoint holds towers for images and texts, and no classifier's head."""
    classes = config.architectures or []
    return config.model_type in FAMILIES and not any("ForImageClassification" in name for name in classes)


@dataclass(frozen=True)
class PromptClassifier:
    """A classifier that a checkpoint's texts make of the names of classes."""

    model_class: type[PreTrainedModel]
    prompts: list[str]
    tokenizer: PreTrainedTokenizerBase
    sigmoid: bool

    @classmethod
    def open(cls, source: Checkpoint, config: PretrainedConfig, class_names: list[str]) -> PromptClassifier:
        """By the prompts of `config`; raises CheckpointError for a tokenizer that cannot tell the classes apart."""
        name = source.display_name
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.name, **source.arguments())
        except (OSError, ValueError, ImportError) as error:
            hint = "Naming classes by text needs one: put its files beside the weights."
            raise cannot_open("tokenizer", name, error, hint) from error
        read: dict[tuple[int, ...], str] = {}
        for class_name in class_names:
            # transformers 5.24 makes up a tokenizer without words for a CLIP without tokenizer files.
            tokens = tuple(tokenizer(_readable(class_name)).input_ids)
            if tokens in read or not set(tokens) - set(tokenizer.all_special_ids):
                other = (
                    f"the classes {read[tokens]} and {class_name} alike"
                    if tokens in read
                    else f"nothing in {class_name}"
                )
                raise CheckpointError(
                    f"model {name}: its tokenizer reads {other}. Are its tokenizer files beside the weights, and the "
                    "names of classes in its language? See data.class_names."
                )
            read[tokens] = class_name
        model_class = called_with_images(AutoModelForZeroShotImageClassification._model_mapping[type(config)])
        return cls(model_class, saved_prompts(config) or PROMPTS, tokenizer, config.model_type in SIGMOID_FAMILIES)

    def name_classes(self, model: PreTrainedModel, class_names: list[str]) -> None:
        """Give a model of `model_class` the features of the classes' texts, which it compares images with."""
        unwrap_model(model).register_buffer("class_features", self._features(model, class_names), persistent=False)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.sigmoid else logits.softmax(-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over rows of the loss that `targets` [rows, classes], each row summing to one, make of `logits`."""
        if not self.sigmoid:
            return functional.cross_entropy(logits, targets)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()

    @torch.no_grad()
    def _features(self, model: PreTrainedModel, class_names: list[str]) -> Tensor:
        """A unit vector for each class, [classes, width]: the mean direction of its texts (Radford et al., §3.1.4)."""
        texts = [prompt.replace("{}", _readable(name)) for name in class_names for prompt in self.prompts]
        digest = hashlib.sha256("\0".join(texts).encode())
        for name, tensor in sorted(model.state_dict().items()):
            if name.startswith("text_"):
                digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        key = digest.hexdigest()
        if key not in _KNOWN:
            model.eval().to(usable_accelerator() or "cpu")
            longest = model.config.text_config.max_position_embeddings
            # SigLIP was trained on texts of one length (transformers 5.24, zero_shot_image_classification.py).
            padding = "max_length" if self.sigmoid else "longest"
            vectors = []
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = self.tokenizer(
                    texts[start : start + TEXTS_AT_ONCE],
                    padding=padding,
                    truncation=True,
                    max_length=longest,
                    return_tensors="pt",
                ).to(model.device)
                vectors.append(functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1).cpu())
            model.to("cpu")
            by_class = torch.cat(vectors).view(len(class_names), len(self.prompts), -1).mean(1)
            _KNOWN[key] = functional.normalize(by_class, dim=-1)
        return _KNOWN[key].clone()


def called_with_images(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class of models of images and texts whose forward takes images alone; it is saved as `base`."""

    class CalledWithImages(base):  # type: ignore[misc]
        class_features: Tensor
        """A unit vector for each class, [classes, width]."""

        def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
            """Logits of pixels for each class, by their likeness to its text."""
            image = self.get_image_features(pixel_values=pixel_values).pooler_output
            with torch.autocast(image.device.type, enabled=False):  # a scale of 100 would show what 16 bits round away
                unit = functional.normalize(image.float(), dim=-1)
                logits = unit @ self.class_features.T * self.logit_scale.float().exp()
                bias = getattr(self, "logit_bias", None)
                return ImageClassifierOutput(logits=logits if bias is None else logits + bias.float())

    return saved_as(base, CalledWithImages)


def _readable(class_name: str) -> str:
    return class_name.replace("_", " ")


def saved_prompts(config: PretrainedConfig) -> list[str] | None:
    """The prompts of a checkpoint that a run has saved, whose classes are its labels."""
    found: list[str] | None = getattr(config, PROMPTS_KEY, None)
    return found


def refuse_prompts(config: PretrainedConfig, *, display_name: str) -> None:
    """Raise RecipeError for prompts that a checkpoint has no text tower to read."""
    if config.model_type not in FAMILIES:
        raise RecipeError(
            f"model.prompts: {display_name} ({config.model_type}) reads no text, so prompts have no effect. "
            f"Models of images and texts that are known here: {', '.join(FAMILIES)}."
        )
