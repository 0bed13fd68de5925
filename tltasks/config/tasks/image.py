"""Tasks of images, and what a recipe says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from tltasks.config.data import ClassData, Columns, Corruptions, Data, LabelColumns, UnlabelledColumns
from tltasks.config.model import As, Model
from tltasks.config.section import Conflict, FileName, PositiveFloat, PositiveInt, Prompt, Section, Share
from tltasks.config.stage import ClassStage, JointStage, UnlabelledStage


class ImageModel(Model):
    image_size: Annotated[int, Field(gt=0, le=8192)] | None = None
    """Side of the square input in pixels; position embeddings are interpolated. Unset: the checkpoint's own."""
    config: dict[FileName, bool | int | float | str | list[int]] = {}
    """Keys of the checkpoint's config.json to change, such as `{num_hidden_layers: 6}`: another architecture, from
    random weights. A stage with `start: previous` has that of the stage before."""
    prompts: Annotated[list[Prompt], Field(min_length=1)] | None = None
    """Models of images and texts, as CLIP: what the name of a class is put into, several being averaged. Unset:
    `a photo of a {}.`"""
    as_: Annotated[As | None, Field(alias="as")] = None
    """Use a language checkpoint's transformer blocks for images, with a new input layer and head. frozen-transformer:
    the blocks stay as they are, but for normalisation layers and positions (Lu et al.,
    https://arxiv.org/abs/2103.05247). transformer: every weight is trained."""
    patch_size: PositiveInt | None = None
    """With `as`: side in pixels of the squares that the image is cut into."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.as_ is None:
            if self.patch_size is not None:
                yield Conflict("`patch_size` is a key of language models under `as`; other checkpoints have their own")
        elif self.image_size is None or self.patch_size is None:
            yield Conflict("`as` needs `image_size` and `patch_size`: a language checkpoint has none")
        elif self.image_size % self.patch_size:
            yield Conflict(f"`patch_size` {self.patch_size} does not divide `image_size` {self.image_size}")


ImageCorruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "defocus_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg",
]


class ImageCorruptions(Corruptions):
    """Source: Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261."""

    kinds: Annotated[list[ImageCorruption], Field(min_length=1)] = list(get_args(ImageCorruption))
    """Corruptions that are tried."""
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)] = [1, 2, 3, 4, 5]
    """As ImageNet-C has them; as CIFAR-10-C for pictures with a side below 64 pixels."""
    level: ClassVar[str] = "severity"

    @property
    def levels(self) -> list[float]:
        return [*sorted(self.severities)]


class ImageColumns(Columns):
    image: str = "image"
    """Column of pictures, or of their paths."""
    label: LabelColumns = "label"
    """Classes; or a column of 0 and 1 for each class, `[cat, dog]`, where rows may have several."""


class ImageData(ClassData):
    columns: ImageColumns = ImageColumns()
    """Names of the data set's columns."""
    corruptions: ImageCorruptions | None = None
    """Noise, blur, contrast, JPEG …: how much worse the model is on test images of lower quality."""


class UnlabelledImageColumns(UnlabelledColumns):
    image: str = "image"
    """Column of pictures, or of their paths."""


class UnlabelledImageData(Data):
    columns: UnlabelledImageColumns = UnlabelledImageColumns()
    """Names of the data set's columns."""


class RandAugment(Section):
    """Source: Cubuk et al., https://arxiv.org/abs/1909.13719."""

    ops: PositiveInt = 2
    """Operations on each picture, drawn anew each time."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of the operations, from 0 to 30."""


class ImageChanges(Section):
    """Training-time changes to images, each drawn from (seed, epoch, row)."""

    flip: bool = False
    """Mirror left and right with probability 1/2."""
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Random crop of at least this share of the area, resized back."""
    randaugment: RandAugment | None = None
    erase: Share = 0.0
    """Probability of erasing a rectangle. Source: Zhong et al., https://arxiv.org/abs/1708.04896."""


class ImageAugment(ImageChanges):
    """Training-time changes to images and their labels, each drawn from (seed, epoch, row)."""

    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of mixing two images and their labels. Source: Zhang et al., https://arxiv.org/abs/1710.09412."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of pasting a rectangle. Source: Yun et al., https://arxiv.org/abs/1905.04899."""


class ImageStage(ClassStage):
    model: ImageModel | None = None
    data: ImageData | None = None
    augment: ImageAugment = ImageAugment()


class Masking(Section):
    """The part of an image that an objective hides and has predicted."""

    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the image that is hidden. Unset: 0.75 for MAE, 0.6 for SimMIM."""
    square_pixels: PositiveInt | None = None
    """SimMIM: side of the squares that are hidden as a whole. Unset: about a sixth of the image's side, as in the
    paper (32 of 192)."""
    normalised_pixels: bool = True
    """MAE: predict the pixels of each patch less their mean, over their standard deviation."""


class MaskedImageStage(UnlabelledStage):
    model: ImageModel | None = None
    data: UnlabelledImageData | None = None
    augment: ImageChanges = ImageChanges()
    mask: Masking = Masking()


class Views(Section):
    """How the two views of an image are drawn, each from (seed, epoch, row); at evaluation they are always the same."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Random crop of at least this share of the area, resized back."""
    flip: bool = True
    """Mirror half of the pictures, left to right."""
    colour: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Strength of changes to brightness, contrast, saturation and hue, made with probability 0.8. The paper has 0.5 for
    CIFAR-10."""
    grey: Share = 0.2
    """Probability of taking the colour out."""
    blur: Share = 0.5
    """Probability of blurring. The paper has 0 for CIFAR-10."""


class ContrastiveStage(JointStage):
    """Keys of SimCLR, which are the paper's where they are unset; `loss_group` is the images that are each other's
    negatives. Source: Chen et al., https://arxiv.org/abs/2002.05709."""

    model: ImageModel | None = None
    data: UnlabelledImageData | None = None
    views: Views = Views()
    temperature: PositiveFloat = 0.1
    """What similarities are divided by. The paper has 0.5 for CIFAR-10."""
    projection: PositiveInt | None = None
    """Width in which views are compared, behind a hidden layer that is as wide as the features. Unset: that of a
    checkpoint which has such a projection, or 128."""
