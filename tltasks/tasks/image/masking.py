"""The two objectives of masked image modelling: what is hidden, what is predicted, and how well.

Rows are independent of each other, and masks are drawn from (seed, epoch, row) alone, so nothing depends on batches.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForMaskedImageModeling, AutoModelForPreTraining, PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tltasks.config.tasks.image import Masking
from tltasks.data.seeding import draw_seed
from tltasks.errors import CheckpointError, RecipeError

HEAD = "decoder"
"""Module that the objective's models put on the encoder, in all classes of transformers."""


@dataclass(frozen=True)
class Objective(ABC):
    """Masked image modelling with one family of models."""

    auto_class: ClassVar[type[_BaseAutoModelClass]]
    name: ClassVar[str]

    patch: int
    """Pixels along a side of a patch."""
    side: int
    """Patches along a side of the image."""
    ratio: float
    """Share of the image that is hidden."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """Keys of the model's configuration."""

    @abstractmethod
    def draw_mask(self, *, seed: int, epoch: int, row: int) -> NDArray[np.float32]:
        """The patches that one row has hidden, in the form that the model takes, [patches]."""

    @abstractmethod
    def row_losses(self, model: nn.Module, pixels: Tensor, masks: Tensor) -> Tensor:
        """Loss of each row over what it has hidden, [rows]."""

    @abstractmethod
    def mean_patch_losses(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Loss of each row if every hidden pixel had the mean colour of those that are seen, [rows]."""

    @abstractmethod
    def features(self, model: PreTrainedModel, pixels: Tensor) -> Tensor:
        """The encoder's mean output over the whole image, [rows, width]."""

    def initialise(self, model: PreTrainedModel, *, encoder: bool) -> None:  # noqa: B027 (SimMIM has nothing to do)
        """Draw weights that transformers leaves at zero in a new decoder, and in a new encoder."""


def choose_objective(config: PretrainedConfig, masking: Masking, *, image_size: int, display_name: str) -> Objective:
    """MAE or SimMIM, as the architecture has it; CheckpointError for one that has neither."""
    mae, simmim = config.model_type == "vit_mae", type(config) in AutoModelForMaskedImageModeling._model_mapping
    if not mae and not simmim:
        raise CheckpointError(
            f"model {display_name}: masked image modelling is MAE for vit_mae, and SimMIM for vit, deit, swin, swinv2 "
            f"and focalnet, and not for {config.model_type}."
        )
    patch = config.patch_size
    if not isinstance(patch, int) or patch < 1 or image_size % patch:
        raise CheckpointError(
            f"model {display_name}: images of {image_size} pixels are not whole patches of {patch}; set "
            "model.image_size."
        )
    side = image_size // patch
    if mae:
        if masking.square_pixels is not None:
            raise RecipeError("mask.square_pixels: MAE hides single patches; this is a key for SimMIM.")
        if config.hidden_size % 4 or config.decoder_hidden_size % 4:
            raise CheckpointError(f"model {display_name}: a vit_mae's hidden sizes have to be multiples of 4.")
        ratio = 0.75 if masking.ratio is None else masking.ratio
        if not 0 < int(side**2 * (1 - ratio)) < side**2:
            raise RecipeError(f"mask.ratio: {ratio} of {side**2} patches leaves none to see, or none to predict.")
        return MaskedAutoencoder(patch, side, ratio, masking.normalised_pixels)
    ratio = 0.6 if masking.ratio is None else masking.ratio
    square = masking.square_pixels or _default_square(image_size, patch)
    if square % patch or image_size % square:
        raise RecipeError(
            f"mask.square_pixels: {square} is not a multiple of the patches' {patch} pixels that divides the "
            f"image's {image_size}."
        )
    squares = (image_size // square) ** 2
    if math.ceil(squares * ratio) == squares:
        raise RecipeError(f"mask.ratio: {ratio} of {squares} squares leaves none to see.")
    depths = getattr(config, "depths", None)
    stride = patch * 2 ** (len(depths) - 1) if depths else patch
    return SimMIM(patch, side, ratio, square // patch, stride)


def _default_square(image_size: int, patch: int) -> int:
    """The largest multiple of the patch that divides the image and is at most a sixth of it, or the patch."""
    fitting = [s for s in range(patch, image_size // 6 + 1, patch) if image_size % s == 0]
    return max(fitting, default=patch)


@dataclass(frozen=True)
class MaskedAutoencoder(Objective):
    """MAE: the encoder sees the few patches that are not hidden, a small decoder predicts the pixels of the others.

    Mean squared error over hidden patches, a ratio of 0.75, each patch normalised by its own mean and deviation.
    Source: He et al., https://arxiv.org/abs/2111.06377, §3 and Table 1.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForPreTraining
    name: ClassVar[str] = "MAE"

    normalised: bool

    def settings(self) -> dict[str, object]:
        return {"mask_ratio": self.ratio, "norm_pix_loss": self.normalised}

    def draw_mask(self, *, seed: int, epoch: int, row: int) -> NDArray[np.float32]:
        """Noise by which the model sorts the patches: those with the most are hidden."""
        rng = np.random.default_rng(draw_seed("mask", seed, epoch, row))
        return rng.random(self.side**2, dtype=np.float32)

    def row_losses(self, model: nn.Module, pixels: Tensor, masks: Tensor) -> Tensor:
        output = model(pixel_values=pixels, noise=masks)
        return self._over_hidden(self._errors(output.logits.float(), pixels), output.mask)

    def mean_patch_losses(self, pixels: Tensor, masks: Tensor) -> Tensor:
        hidden = masks.argsort(1).argsort(1) >= int(self.side**2 * (1 - self.ratio))
        patches = _patches(pixels, self.patch)
        if self.normalised:  # a flat patch of any colour
            guess = torch.zeros_like(patches)
        else:
            seen = (~hidden).float()
            colours = patches.view(*patches.shape[:2], -1, 3).mean(2)
            colour = (colours * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
            guess = colour[:, None, :].repeat(1, patches.shape[1], self.patch**2)
        return self._over_hidden(self._errors(guess, pixels), hidden.float())

    def _errors(self, guess: Tensor, pixels: Tensor) -> Tensor:
        target = _patches(pixels, self.patch)
        if self.normalised:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (guess - target).square().mean(-1)

    @staticmethod
    def _over_hidden(errors: Tensor, hidden: Tensor) -> Tensor:
        return (errors * hidden).sum(1) / hidden.sum(1)

    def features(self, model: PreTrainedModel, pixels: Tensor) -> Tensor:
        with _nothing_hidden(model.config):
            order = torch.arange(self.side**2, device=pixels.device, dtype=torch.float32).expand(len(pixels), -1)
            hidden: Tensor = model.base_model(pixel_values=pixels, noise=order).last_hidden_state
        return hidden[:, 1:].float().mean(1)

    def initialise(self, model: PreTrainedModel, *, encoder: bool) -> None:
        """Position tables, special tokens and patch projection as in the paper's appendix A.

        Built from a configuration, a ViTMAE has tables of zeros that are never trained, so that it cannot tell patches
        apart (transformers 5.24, modeling_vit_mae.py: the embeddings' initialize_weights returns early, the
        decoder's is overwritten by _init_weights).
        """
        decoder, std = model.get_submodule(HEAD), model.config.initializer_range
        with torch.no_grad():
            decoder.get_parameter("decoder_pos_embed").copy_(sine_cosine_table(self.side, decoder.config.hidden_size))
            nn.init.normal_(decoder.get_parameter("mask_token"), std=std)
            if encoder:
                embeddings = model.base_model.get_submodule("embeddings")
                embeddings.get_parameter("position_embeddings").copy_(
                    sine_cosine_table(self.side, model.config.hidden_size)
                )
                nn.init.normal_(embeddings.get_parameter("cls_token"), std=std)
                weight = embeddings.get_submodule("patch_embeddings.projection").get_parameter("weight")
                nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))


@dataclass(frozen=True)
class SimMIM(Objective):
    """SimMIM: the encoder sees the image with squares of it replaced by a token; one linear layer predicts pixels.

    Mean absolute error over hidden pixels, a ratio of 0.6, squares of 32 pixels at 192.
    Source: Xie et al., https://arxiv.org/abs/2111.09886, §3 and §4.1.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForMaskedImageModeling
    name: ClassVar[str] = "SimMIM"

    square: int
    """Patches along a side of what is hidden as a whole."""
    stride: int
    """Pixels along a side of what one output of the encoder predicts."""

    def settings(self) -> dict[str, object]:
        return {"encoder_stride": self.stride}

    def draw_mask(self, *, seed: int, epoch: int, row: int) -> NDArray[np.float32]:
        """One for each patch that is hidden."""
        squares = (self.side // self.square) ** 2
        rng = np.random.default_rng(draw_seed("mask", seed, epoch, row))
        hidden = np.zeros(squares, dtype=np.float32)
        hidden[rng.permutation(squares)[: math.ceil(squares * self.ratio)]] = 1
        grid = hidden.reshape(self.side // self.square, -1)
        return grid.repeat(self.square, 0).repeat(self.square, 1).reshape(-1)

    def row_losses(self, model: nn.Module, pixels: Tensor, masks: Tensor) -> Tensor:
        output = model(pixel_values=pixels, bool_masked_pos=masks.bool())
        return self._losses(output.reconstruction.float(), pixels, masks)

    def mean_patch_losses(self, pixels: Tensor, masks: Tensor) -> Tensor:
        seen = 1 - self._pixel_mask(masks)
        colour = (pixels * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
        return self._losses(colour.expand_as(pixels), pixels, masks)

    def _losses(self, guess: Tensor, pixels: Tensor, masks: Tensor) -> Tensor:
        hidden = self._pixel_mask(masks)
        return ((guess - pixels).abs() * hidden).sum((1, 2, 3)) / (hidden.sum((1, 2, 3)) * pixels.shape[1])

    def _pixel_mask(self, masks: Tensor) -> Tensor:
        grid = masks.view(-1, 1, self.side, self.side)
        return grid.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def features(self, model: PreTrainedModel, pixels: Tensor) -> Tensor:
        hidden: Tensor = model.base_model(pixel_values=pixels).last_hidden_state
        return hidden.float().mean(1)


def sine_cosine_table(side: int, width: int) -> Tensor:
    """Fixed positions of a class token (zeros) and of a grid of patches, [1, 1 + side², width].

    A quarter of the width each for sine and cosine of the column, then of the row, as in the authors' published
    weights. Source: He et al., https://arxiv.org/abs/2111.06377, §3; Vaswani et al., arXiv 1706.03762, §3.5.
    """
    frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    waves = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    along = torch.cat([waves.sin(), waves.cos()], dim=1)
    columns, rows = along.repeat(side, 1), along.repeat_interleave(side, 0)
    table = torch.cat([torch.zeros(1, width, dtype=torch.float64), torch.cat([columns, rows], dim=1)])
    return table.float().unsqueeze(0)


def _patches(pixels: Tensor, patch: int) -> Tensor:
    """[rows, 3, height, width] to [rows, patches, patch² × 3], as transformers' `patchify`."""
    grid = pixels.unfold(2, patch, patch).unfold(3, patch, patch)
    return grid.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


@contextlib.contextmanager
def _nothing_hidden(config: PretrainedConfig) -> Iterator[None]:
    """The encoder reads how much to hide from the configuration each time."""
    ratio, config.mask_ratio = config.mask_ratio, 0.0
    try:
        yield
    finally:
        config.mask_ratio = ratio
