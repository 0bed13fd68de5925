"""A checkpoint's image processor, split into geometry (done once, kept as 8-bit pixels) and colour (on the device).

Processors differ in resizing, cropping, rescaling, normalising and channel order, and timm's are closed functions.
All are linear in colour at each pixel, so four plain images reveal that map, and its inverse turns the processor's
output back into the 8-bit pixels that it had resized. What the model then sees is what the processor would give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, PretrainedConfig

from tltasks.errors import CheckpointError, first_line

Pixels = NDArray[np.uint8]
_PRIMARIES = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


class Preprocessing:
    """What a processor does to an image, in two steps.

    `fit` gives 8-bit pixels [images, 3, size, size]; `normalise` maps them to the model's input.
    """

    def __init__(self, processor: Any, *, name: str) -> None:
        self.processor = processor
        sizes = {tuple(self._run([Image.new("RGB", wh)]).shape[-2:]) for wh in ((64, 48), (48, 64), (256, 256))}
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
        output: Tensor = self.processor(list(images), return_tensors="pt")["pixel_values"]
        return output.float()  # 8-bit where the processor neither rescales nor normalises

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
        return torch.einsum("ij,njhw->nihw", matrix, pixels.float()) + offset.view(1, 3, 1, 1)


def load_processor(name: str, config: PretrainedConfig, *, image_size: int | None, **arguments: Any) -> Any:
    """The checkpoint's own processor, set to another image size where one is given."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, **arguments)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: has no image processor that can be loaded ({first_line(error)}). "
            "A preprocessor_config.json must stand beside the weights."
        ) from error
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
