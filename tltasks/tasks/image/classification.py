"""Image classification with any checkpoint that AutoModelForImageClassification loads, timm's included, or that names
classes by text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification, PretrainedConfig

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.image import ImageData, ImageModel, ImageStage
from tltasks.data.corruptions import corrupt_image, corrupt_rows
from tltasks.data.splits import Columns, Split
from tltasks.errors import CheckpointError, DataError, RecipeError, first_line
from tltasks.models.adapters import relabel
from tltasks.models.frozen_transformer import FrozenTransformerConfig, image_processor, wrap_for_images
from tltasks.models.loading import ModelLoader
from tltasks.results.result import Attribution
from tltasks.tasks.base import Batch, BuiltModel, OnnxInput, Processor
from tltasks.tasks.classes import (
    ClassCounts,
    ClassificationTask,
    check_kept_head,
    check_same_classes,
    classes_of,
    count_classes,
    train_classes,
)
from tltasks.tasks.image import zero_shot
from tltasks.tasks.image.attribution import attribute_image
from tltasks.tasks.image.augmentation import ImageAugmentation, apply_mix, draw_mix
from tltasks.tasks.image.decoding import to_png
from tltasks.tasks.image.preprocessing import (
    ImageTask,
    Preprocessing,
    open_preprocessing,
    read_image_config,
    read_pixels,
)
from tltasks.tasks.multi_label import MultiLabelTask, are_many

Plan = StagePlan[ImageModel, ImageData, ImageStage]
TOO_SMALL = ("Kernel size can't be greater than actual input size", "Output size is too small")
"""torch's words for what is smaller than a convolution, or a pooling, that it comes to (2.14)."""
ONNX_USAGE = """import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

names = AutoConfig.from_pretrained(".").id2label
session = onnxruntime.InferenceSession("model.onnx")
image = Image.new("RGB", (224, 224), "orange")  # yours: Image.open("photo.jpg").convert("RGB")
pixels = AutoImageProcessor.from_pretrained(".")(image, return_tensors="TENSORS")["pixel_values"]
logits = session.run(None, {"pixel_values": np.asarray(pixels, np.float32)})[0]
print(names[int(logits[0].argmax())])
"""
"""For the README of an exported model."""


@dataclass(frozen=True)
class ImageClassification(ImageTask[ImageData, ImageStage], ClassificationTask[ImageModel, ImageData, ImageStage]):
    """One stage's view of an image classifier: its classes, its processor, its augmentation."""

    tag: ClassVar[str] = "image-classification"
    example_kind: ClassVar[Literal["image", "texts"]] = "image"

    texts: zero_shot.PromptClassifier | None = None
    """For a kept head of a model of images and texts: the head that its texts make of the classes' names."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        found = count_classes(splits, plan.data)
        config = read_image_config(AutoModelForImageClassification, plan, source)
        if plan.model.prompts is not None:
            zero_shot.refuse_prompts(config, display_name=source.display_name)
        if plan.model.as_ is not None:
            config = wrap_for_images(config, plan.model, plan.stage, plan.kind, display_name=source.display_name)
        by_text = plan.kind.head == "kept" and zero_shot.is_contrastive(config)
        many = are_many(splits, config, plan.data, source, kept=plan.kind.head == "kept" and not by_text)
        if by_text:
            class_names = _named_classes(splits, found, plan.data.class_names, config, source)
            config.update(
                {zero_shot.PROMPTS_KEY: plan.model.prompts or zero_shot.saved_prompts(config) or zero_shot.PROMPTS}
            )
        elif plan.kind.head == "kept":
            class_names = list(config.id2label.values())
            check_kept_head(class_names, found, splits, source)
        else:
            class_names = train_classes(splits["train"], found["train"], plan.data.class_names)
            check_same_classes(class_names, found, splits)
            _name_architecture(config)
        relabel(config, class_names, multi_label=many)
        if isinstance(config, FrozenTransformerConfig):
            preprocessing = Preprocessing(image_processor(config), name=source.display_name)
        else:
            preprocessing = open_preprocessing(source, config, image_size=plan.model.image_size)
        texts = zero_shot.PromptClassifier.open(source, config, class_names) if by_text else None
        chosen = cast(type[Self], MultiLabelImages) if many else cls
        weights = chosen.own_weights(plan.stage, splits, found, class_names)
        if by_text and (weights or plan.stage.focal):
            raise RecipeError("`class_weights` and `focal` are for a head, not for prompts; use `sampling: balanced`.")
        if texts is not None and many and not (texts.sigmoid and not plan.kind.trains):
            raise CheckpointError(
                f"model {source.display_name}: its texts tell which class fits an image best, and the data has any "
                "number for each. `stage: transfer` puts a head on it; SigLIP tells each by itself in `zero_shot`."
            )
        task = chosen(plan, source, config, seed, class_names, preprocessing, texts, class_weights=weights)
        return task.as_saved()

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return AutoModelForImageClassification if self.texts is None else self.texts.model_class

    @property
    def settings(self) -> dict[str, object]:
        return {} if self.texts is None else {"prompts": self.texts.prompts}

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        if self.texts is not None:
            self.texts.name_classes(built.model, self.class_names)
        return built

    def head(self, model: nn.Module) -> list[str]:
        return [] if self.texts is not None else super().head(model)

    def lora_targets(self, model: nn.Module) -> list[str]:
        found = super().lora_targets(model)
        return [name for name in found if not (self.texts is not None and name.startswith("text_"))]

    @property
    def setup(self) -> Sequence[Processor]:
        return super().setup if self.texts is None else [*super().setup, self.texts.tokenizer]

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
        if self.texts is not None:
            self.texts.name_classes(model, self.class_names)
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features({**self.row_features, "label": self.label_feature})

    @property
    def sequence_length(self) -> int | None:
        """The patches of an image, for plain vision transformers."""
        patch = getattr(self.config, "patch_size", None)
        if not isinstance(patch, int) or hasattr(self.config, "window_size") or hasattr(self.config, "backbone_config"):
            return None
        return (self.preprocessing.size // patch) ** 2

    @property
    def cache_key(self) -> str:
        return self.preprocessing.cache_key(self.class_names, self.plan.data.class_names)

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        return self.labelled(split, partial(self.encode, split=split))

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        pixels = (image.numpy() for image in read_pixels(columns))
        changed = corrupt_rows(corrupt_image, pixels, columns["row"], kind, level, seed=seed)
        return {**columns, "pixels": [image.tobytes() for image in changed]}

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows[list(indices)]
        pixels = self.preprocessing.stack(read_pixels(columns), columns["fitted"])
        return {"pixels": pixels, "labels": self.targets(columns["label"])}

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        keys, drawn = self.stage.augment, {"seed": self.seed, "epoch": epoch}
        augment = ImageAugmentation(keys)
        mixes = [draw_mix(keys, rows=len(rows), row=int(row), **drawn) for row in indices]
        needed = list(dict.fromkeys([*map(int, indices), *(mix.partner for mix in mixes if mix)]))
        columns = rows[needed]
        place = {row: i for i, row in enumerate(needed)}
        originals = zip(needed, read_pixels(columns), strict=True)
        images = {row: augment(image, row=row, **drawn) for row, image in originals}
        pixels, partners, weights = [], [], []
        for row, mix in zip(map(int, indices), mixes, strict=True):
            image, weight = images[row], 1.0
            if mix is not None:
                image, weight = apply_mix(image, images[mix.partner], mix)
            pixels.append(image)
            weights.append(weight)
            partners.append(columns["label"][place[mix.partner if mix else row]])
        labels = [columns["label"][place[int(row)]] for row in indices]
        fitted = [columns["fitted"][place[int(row)]] for row in indices]
        batch = {"pixels": self.preprocessing.stack(pixels, fitted), "labels": self.targets(labels)}
        if any(mix is not None for mix in mixes):
            batch |= {"partner_labels": self.targets(partners), "own_share": torch.tensor(weights)}
        return batch

    # --------------------------------------------------------------------------------------- step

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return classifier_logits(model, self.preprocessing.normalise(batch["pixels"])).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(logits) if self.texts is None else self.texts.probabilities(logits)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        smoothing = self.stage.label_smoothing
        if self.texts is None and "own_share" not in batch:
            return super().loss(model, batch)
        logits = self.logits(model, batch)
        if self.texts is not None:
            return self.texts.loss(logits, _soft_targets(batch, logits.shape[1], smoothing=smoothing))
        own, partner = (self.row_losses(logits, batch[key]) for key in ("labels", "partner_labels"))
        return (own * batch["own_share"] + partner * (1 - batch["own_share"])).mean()

    def onnx_input(self) -> OnnxInput:
        size = self.preprocessing.size

        def made_up(n: int) -> list[Tensor]:
            drawn = np.random.default_rng(0).integers(0, 256, (n, 1, 3, size, size), dtype=np.uint8)
            return [self.preprocessing.normalise(torch.from_numpy(pixels)) for pixels in drawn]

        def read(value: object) -> Tensor:
            encoded = self.preprocessing.encode([value], None)
            if encoded["error"][0]:
                raise DataError(encoded["error"][0])
            return self.preprocessing.normalise(self.preprocessing.stack(read_pixels(encoded), encoded["fitted"]))

        # timm's processor has no other tensors (transformers 5.24, image_processing_timm_wrapper.py)
        tensors = "pt" if self.config.model_type == "timm_wrapper" else "np"
        usage = self.onnx_usage(ONNX_USAGE.replace("TENSORS", tensors))
        return OnnxInput("pixel_values", ["batch", 3, size, size], (0,), made_up, read, usage)

    # --------------------------------------------------------------------------------- evaluation

    def example_content(self, rows: datasets.Dataset, row: int) -> bytes:
        return to_png(read_pixels(rows[[row]])[0])

    def explain(self, model: nn.Module, batch: Batch, answer: int) -> Attribution:
        def probability(pixels: Tensor) -> Tensor:
            logits = self.logits(model, {"pixels": pixels}) / (self.temperature or 1.0)
            return self.probabilities(logits)[:, answer]

        return attribute_image(probability, batch["pixels"], at_once=self.preprocessing.pass_rows)


@dataclass(frozen=True)
class MultiLabelImages(MultiLabelTask[ImageModel, ImageData, ImageStage], ImageClassification):
    """A classifier of images of any number of classes each."""


def classifier_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """A classifier's logits. Raises CheckpointError for one that names none, as transformers' pipeline would, and for
    images that are too small for its convolutions.
    """
    try:
        output = model(pixel_values=pixels)
    except RuntimeError as error:
        if not any(words in str(error) for words in TOO_SMALL):
            raise
        shape = " × ".join(map(str, pixels.shape[2:]))
        raise CheckpointError(
            f"{type(model).__name__} does not run on images of {shape} ({first_line(error)}); set `model.image_size` "
            "to a larger one."
        ) from error
    try:
        logits: Tensor = output.logits
    except AttributeError as error:  # PP-LCNet (transformers 5.24, modeling_pp_lcnet.py)
        raise CheckpointError(
            f"{type(model).__name__} gives {type(output).__name__} without logits; use another architecture."
        ) from error
    return logits


def _named_classes(
    splits: dict[str, Split],
    found: ClassCounts,
    class_names: list[str] | None,
    config: PretrainedConfig,
    source: Checkpoint,
) -> list[str]:
    """The classes that a model of images and texts is to tell apart: the data's, or those that it was saved with."""
    if splits:
        return classes_of(splits, found, class_names)
    if zero_shot.saved_prompts(config) is None:
        raise CheckpointError(
            f"model {source.display_name}: is to be told its classes, and nothing names them here. Use the results "
            "folder of a run with `stage: zero_shot`, whose model has the classes of its data."
        )
    return list(config.id2label.values())


def _name_architecture(config: PretrainedConfig) -> None:
    """A new head on a tower for images makes another class of it, which whoever opens the configuration goes by."""
    classes = AutoModelForImageClassification._model_mapping
    if zero_shot.is_contrastive(config) and type(config) in classes:
        config.architectures = [classes[type(config)].__name__]
        # SigLIP's pooling, which its classifier passes by (transformers 5.24, modeling_siglip.py)
        config.vision_config.vision_use_head = False


def _soft_targets(batch: Batch, n_classes: int, *, smoothing: float) -> Tensor:
    """The share of each class in each row's target, [rows, classes]."""
    targets = functional.one_hot(batch["labels"], n_classes).float()
    if "own_share" in batch:
        own = batch["own_share"].unsqueeze(1)
        targets = own * targets + (1 - own) * functional.one_hot(batch["partner_labels"], n_classes)
    return (1 - smoothing) * targets + smoothing / n_classes
