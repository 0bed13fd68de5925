"""What a recipe says of a stage whose objective needs no labels."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, model_validator

from tltasks.config.data import UnlabelledImageData, UnlabelledSpeechData, UnlabelledTextData
from tltasks.config.model import ImageModel, SpeechModel, TextModel
from tltasks.config.section import PositiveFloat, PositiveInt, Section, Share
from tltasks.config.stage import ImageChanges, Stage


class UnlabelledStage(Stage):
    """A stage that trains an encoder for later stages, with an objective that needs no labels."""

    @property
    def publishes_whole(self) -> bool:
        return True


class JointStage(UnlabelledStage):
    """A stage whose loss is over several rows at once."""

    group: PositiveInt | None = None
    """Rows that one loss is over; they share a forward pass, on however many devices. Part of the experiment, unlike
    `micro_batch`, and a divisor of `batch_size`, which it is when unset."""

    @property
    def together(self) -> int | None:
        return self.group or self.batch_size

    @property
    def effective_keys(self) -> set[str]:
        return super().effective_keys - {"micro_batch"}

    @model_validator(mode="after")
    def _whole_groups(self, info: ValidationInfo) -> Self:
        found = []
        if self.loops and "micro_batch" in self.model_fields_set:
            found.append("`micro_batch` has no effect: a forward pass takes a `group`, whose rows share their loss")
        if self.loops and self.group is not None and self.batch_size % self.group:
            found.append(f"`batch_size` {self.batch_size} is not a multiple of `group` {self.group}")
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise ValueError("\n".join(found))
        return self


class Masking(Section):
    """What a masked image modelling objective hides and has predicted."""

    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the image that is hidden. Unset: 0.75 for MAE, 0.6 for SimMIM."""
    square_pixels: PositiveInt | None = None
    """SimMIM: side of the squares that are hidden as a whole. Unset: about a sixth of the image's side, as in the
    paper (32 of 192)."""
    normalised_pixels: bool = True
    """MAE: predict the pixels of each patch less their mean, over their standard deviation."""


class MaskedImageStage(UnlabelledStage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: ImageModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: UnlabelledImageData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    augment: ImageChanges = ImageChanges()
    mask: Masking = Masking()


class Views(Section):
    """How the two views of an image are drawn, each from (seed, epoch, row); at evaluation they are always the same."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Random crop of at least this share of the area, resized back."""
    flip: bool = True
    colour: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Strength of changes to brightness, contrast, saturation and hue, made with probability 0.8. The paper has 0.5 for
    CIFAR-10."""
    grey: Share = 0.2
    """Probability of taking the colour out."""
    blur: Share = 0.5
    """Probability of blurring. The paper has 0 for CIFAR-10."""


class ContrastiveStage(JointStage):
    """Keys of SimCLR, which are the paper's where they are unset; `group` is the images that are each other's
    negatives. Source: Chen et al., https://arxiv.org/abs/2002.05709."""

    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: ImageModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: UnlabelledImageData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    views: Views = Views()
    temperature: PositiveFloat = 0.1
    """What similarities are divided by. The paper has 0.5 for CIFAR-10."""
    projection: PositiveInt | None = None
    """Width in which views are compared, behind a hidden layer that is as wide as the features. Unset: that of a
    checkpoint which has such a projection, or 128."""


class TextObjectiveStage(UnlabelledStage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: TextModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: UnlabelledTextData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""


class DenoisingStage(TextObjectiveStage):
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the tokens that is hidden. Unset: 0.15 for span corruption (T5), 0.3 for infilling (BART)."""
    span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean tokens of a hidden stretch."""


class MaskedLanguageStage(TextObjectiveStage):
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that is predicted: eight of ten of them hidden, one another token, one as it was."""


class CausalLanguageStage(TextObjectiveStage):
    packing: bool = True
    """Several texts in one row, blind to each other. Speed, never results."""


class SpeechMasking(Section):
    """Which frames of a clip (20 ms each in the usual checkpoints) are hidden."""

    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.065
    """Share of the frames at which a hidden stretch begins; stretches may overlap."""
    span_frames: Annotated[int, Field(ge=2)] = 10
    """Frames of a stretch."""


class GumbelTemperature(Section):
    """At which codes are drawn while training: `start` × `decay` to the power of the step, `end` at least."""

    start: PositiveFloat = 2.0
    end: PositiveFloat = 0.5
    """The paper's for its smaller model; 0.1 for the larger."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.999995


class SpeechObjectiveStage(JointStage):
    """Keys of wav2vec 2.0's objective, which are the paper's where they are unset; `group` is the clips among which the
    diversity of codes is measured. Source: Baevski et al., https://arxiv.org/abs/2006.11477."""

    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: SpeechModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: UnlabelledSpeechData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    mask: SpeechMasking = SpeechMasking()
    negatives: PositiveInt = 100
    """Other hidden frames of the same clip among which each has to be told."""
    temperature: PositiveFloat = 0.1
    """What similarities are divided by."""
    gumbel: GumbelTemperature = GumbelTemperature()
    diversity_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the loss that has all codes used alike."""
    crop_seconds: PositiveFloat = 15.625
    """Longer clips are cropped to this: at random while training, their beginning at evaluation."""
