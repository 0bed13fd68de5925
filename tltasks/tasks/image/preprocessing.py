"""A checkpoint's image processor, split into geometry (done once, kept as 8-bit pixels) and colour (on the device);
and what tasks of images have in common.

Processors differ in resizing, cropping, rescaling, normalising and channel order, and timm's are closed functions.
All are linear in colour at each pixel, so four plain images reveal that map, and its inverse turns the processor's
output back into the 8-bit pixels that it had resized. What the model then sees is what the processor would give it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tltasks.config.model import Checkpoint
from tltasks.config.stage import DataT, StagePlan, StageT
from tltasks.config.tasks.image import ImageModel
from tltasks.data.near_duplicates import Likeness, Pictures
from tltasks.data.splits import Columns, EncodedSplit, Split, located
from tltasks.errors import CheckpointError, DataError, first_line
from tltasks.models.loading import read_config
from tltasks.models.packages import cannot_open
from tltasks.tasks.base import InputKind, Processor, TaskBase, digest_of
from tltasks.tasks.image.decoding import ODDITY, SUFFIXES, TRANSPARENT, decode_image, to_png

Pixels = NDArray[np.uint8]
ENCODED = {
    "pixels": datasets.Value("binary"),
    "height": datasets.Value("int32"),
    "width": datasets.Value("int32"),
    "fitted": datasets.Value("bool"),
    ODDITY: datasets.Value("string"),
}
"""Columns of an encoded image: 8-bit pixels, at the model's size where `fitted`, and what is worth knowing of it."""
_PRIMARIES = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


class Preprocessing:
    """A processor's work on an image in two steps.

    `fit` gives 8-bit pixels [images, 3, size, size]; `normalise` maps them to the model's input.
    """

    def __init__(self, processor: BaseImageProcessor, *, name: str) -> None:
        self.processor, self.name = processor, name
        try:
            shapes = {tuple(self._run([Image.new("RGB", wh)]).shape) for wh in ((64, 48), (48, 64), (256, 256))}
        except (ValueError, KeyError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
            raise CheckpointError(
                f"{name}: its image processor makes nothing of an image ({first_line(error)}); see model.image_size."
            ) from error
        if any(len(shape) != 4 for shape in shapes):
            raise CheckpointError(
                f"{name}: its image processor gives no images ({sorted(shapes)}, where [images, colours, height, "
                "width] is served); use a checkpoint for images of one size (of SigLIP 2, one without `naflex`)."
            )
        sizes = {shape[-2:] for shape in shapes}
        if len(sizes) > 1 or len(set(next(iter(sizes)))) > 1:
            raise CheckpointError(
                f"{name}: its image processor gives images of different shapes ({sorted(sizes)}). "
                "Set model.image_size to the side of a square."
            )
        self.size: int = next(iter(sizes))[0]
        black, *primaries = (self._run([Image.new("RGB", (64, 64), colour)])[0].mean((1, 2)) for colour in _PRIMARIES)
        self._offset = black.float()
        self._matrix = torch.stack([(p - black) / 255 for p in primaries], dim=1).float()
        if torch.linalg.matrix_rank(self._matrix) < 3:
            raise CheckpointError(f"{name}: its image processor does not keep three colour channels apart.")
        self._inverse = torch.linalg.inv(self._matrix.double()).float()

    def _run(self, images: Sequence[Image.Image]) -> Tensor:
        made = self.processor(list(images), return_tensors="pt")
        if "pixel_values" not in made:  # ImageGPT
            raise CheckpointError(
                f"{self.name}: its image processor makes {', '.join(made)} of an image, and only models that read "
                "pixels are served; use another checkpoint (ViT, ConvNeXt, …)."
            )
        output: Tensor = made["pixel_values"]
        return output.float()  # 8-bit where the processor neither rescales nor normalises

    @cached_property
    def seen(self) -> tuple[float, bool]:
        """The share of a square image's sides that is left of it, and whether of others the middle square is seen."""
        ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB")
        square, wide = (
            self.fit([ramp.resize((width, 256))])[0, 0, self.size // 2].astype(float) for width in (256, 512)
        )
        span = (
            (square[-1] - square[0]) / 255 * self.size / (self.size - 1)
        )  # between the middles of the outermost points
        return min(round(float(span), 2), 1.0), bool(wide[0] > square[0] + 255 / 8)

    def fit(self, images: Sequence[Image.Image]) -> Pixels:
        """Resize and crop as the processor does; RGB images of any size to [images, 3, size, size]."""
        values = self._run(images) - self._offset.view(1, 3, 1, 1)
        pixels = torch.einsum("ij,njhw->nihw", self._inverse, values)
        return pixels.round_().clamp_(0, 255).to(torch.uint8).numpy()

    def normalise(self, pixels: Tensor) -> Tensor:
        """8-bit pixels [images, 3, size, size], on any device, to the model's input in fp32."""
        matrix, offset = self._matrix.to(pixels.device), self._offset.to(pixels.device)
        if torch.equal(self._matrix, torch.diag(self._matrix.diagonal())):
            return torch.addcmul(offset.view(1, 3, 1, 1), pixels.float(), matrix.diagonal().view(1, 3, 1, 1))
        with torch.autocast(pixels.device.type, enabled=False):  # 16 bits hold no 256 levels
            return torch.einsum("ij,njhw->nihw", matrix, pixels.float()) + offset.view(1, 3, 1, 1)

    # --------------------------------------------------------------------------------- encoded rows

    @property
    def pass_rows(self) -> int:
        """Images that keep a CPU busy in one forward pass."""
        return max(1, 16 * 224**2 // self.size**2)

    def cache_key(self, *parts: object) -> str:
        """Everything besides the images that encoded rows depend on."""
        processor = self.processor
        return digest_of(type(processor).__name__, processor.to_dict(), *parts)

    def encode(self, values: Sequence[object], folder: Path | None) -> Columns:
        """Images as columns `ENCODED` and `error`; paths are relative to `folder`.

        One that is no larger than the model's input stays as it is; a larger one is resized once, here.
        """
        encoded: Columns = {key: [] for key in (*ENCODED, "error")}
        for value in values:
            pixels: Pixels | None = None
            error, fitted, oddity = None, False, None
            try:
                image = decode_image(located(value, folder))
                oddity = image.info[ODDITY]
                fitted = image.width * image.height > self.size**2
                pixels = self.fit([image])[0] if fitted else np.asarray(image).transpose(2, 0, 1)
            except DataError as reason:  # told in results that may be published: without this machine's folders
                error = str(reason).replace(f"{folder}/", "")
            row = {
                "pixels": None if pixels is None else pixels.tobytes(),
                "height": None if pixels is None else pixels.shape[1],
                "width": None if pixels is None else pixels.shape[2],
                "fitted": fitted,
                ODDITY: oddity,
                "error": error,
            }
            for key, item in row.items():
                encoded[key].append(item)
        return encoded

    def stack(self, pixels: Sequence[Tensor], fitted: Sequence[bool]) -> Tensor:
        """Images as [images, 3, size, size], those resized that were kept at their own size."""
        whole = list(pixels)
        loose = [i for i, done in enumerate(fitted) if not done]
        if loose:
            resized = self.fit([Image.fromarray(pixels[i].permute(1, 2, 0).numpy()) for i in loose])
            for i, image in zip(loose, resized, strict=True):
                whole[i] = torch.from_numpy(image)
        return torch.stack(whole)


def read_pixels(columns: Columns) -> list[Tensor]:
    """A batch of encoded images, each uint8 [3, height, width]."""
    flat = (torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in columns["pixels"])
    return [
        image.view(3, height, width)
        for image, height, width in zip(flat, columns["height"], columns["width"], strict=True)
    ]


# ------------------------------------------------------------------------------------- tasks of images


def made_up_image(drawn: np.random.Generator) -> Pixels:
    """An image of noise."""
    return drawn.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@dataclass(frozen=True)
class ImageTask(TaskBase[ImageModel, DataT, StageT]):
    """A task whose rows are images, as its checkpoint's processor makes them."""

    input_kind: ClassVar[InputKind] = InputKind("image", SUFFIXES, made_up=made_up_image)

    preprocessing: Preprocessing

    def encode(self, batch: Columns, split: Split) -> Columns:
        return self.preprocessing.encode(batch["image"], split.folder)

    @property
    def row_features(self) -> dict[str, datasets.Value]:
        return ENCODED

    @property
    def likeness(self) -> Likeness:
        return Pictures(*self.preprocessing.seen, lambda columns: to_png(read_pixels(columns)[0]))

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """How many images are transparent. Raises DataError where the same numbers mean another brightness in some."""
        counts = {name: Counter(split.rows[ODDITY]) for name, split in encoded.items()}
        levels = sum(counts.values(), Counter())
        for kind in ("integers", "floats"):
            found = [f"{n:,} of {oddity}" for oddity, n in levels.items() if str(oddity).startswith(kind)]
            if len(found) > 1:
                raise DataError(
                    f"{next(iter(encoded.values())).origin}: some images hold {' and '.join(found)}, going by the "
                    "largest of each, so that one brightness would be two. Save all with 8 or 16 bits."
                )
        return {name: {"transparent_blended_with_white": count[TRANSPARENT]} for name, count in counts.items()}

    @property
    def cpu_batch_budget(self) -> int:
        return self.preprocessing.pass_rows

    @property
    def setup(self) -> Sequence[Processor]:
        # timm's processor is part of config.json
        is_timm = self.config.model_type == "timm_wrapper"
        return [self.config] if is_timm else [self.config, self.preprocessing.processor]


def read_image_config(
    auto_class: type[_BaseAutoModelClass], plan: StagePlan[ImageModel, DataT, StageT], source: Checkpoint
) -> PretrainedConfig:
    """The checkpoint's configuration, with what the recipe changes in it and the image size that it asks for."""
    changes = plan.model.config if plan.stage.start == "checkpoint" else {}
    config = read_config(auto_class, source, changes=changes)
    if arguments := getattr(config, "model_args", None):
        # timm (1.0.31) writes the number of classes there, too, and the wrapper would give it twice (transformers 5.24)
        config.model_args = {key: value for key, value in arguments.items() if key != "num_classes"}
    if plan.model.image_size is not None:
        set_image_size(config, plan.model.image_size)
    return config


def open_preprocessing(source: Checkpoint, config: PretrainedConfig, *, image_size: int | None) -> Preprocessing:
    return Preprocessing(load_processor(source, config, image_size=image_size), name=source.display_name)


def load_processor(source: Checkpoint, config: PretrainedConfig, *, image_size: int | None) -> BaseImageProcessor:
    """The checkpoint's own processor, set to another image size where one is given. Raises CheckpointError."""
    try:
        processor = AutoImageProcessor.from_pretrained(source.name, **source.arguments())
    except (OSError, ValueError, ImportError) as error:
        hint = "A preprocessor_config.json must stand beside the weights."
        raise cannot_open("image processor", source.display_name, error, hint) from error
    if image_size is None:
        return processor
    if config.model_type == "timm_wrapper":
        # timm keeps the processor's settings in the model's config.json; set_image_size has already changed them.
        return type(processor)(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    square = {"height": image_size, "width": image_size}
    if crop and getattr(processor, "do_center_crop", False):
        scale = image_size / crop.get("height", image_size)
        processor.size = {side: round(length * scale) for side, length in size.items()}
        processor.crop_size = square
    elif "shortest_edge" in size and hasattr(processor, "crop_pct"):
        processor.size = {"shortest_edge": image_size}
    else:
        processor.size = square
    return processor


def set_image_size(config: PretrainedConfig, image_size: int) -> None:
    """Write another input size into a model's configuration, for transformers' own classes and for timm's."""
    if config.model_type != "timm_wrapper":
        seeing = getattr(config, "vision_config", config)  # of models that also read texts
        if hasattr(seeing, "image_size"):
            seeing.image_size = image_size
        return
    config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, image_size, image_size]}
    if _has_fixed_input(config):
        config.model_args = {**(config.model_args or {}), "img_size": image_size}


def _has_fixed_input(config: PretrainedConfig) -> bool:
    import timm

    known = config.pretrained_cfg.get("fixed_input_size")
    if known is None:
        declared = timm.get_pretrained_cfg(config.architecture)
        known = declared is not None and declared.fixed_input_size
    return bool(known)
