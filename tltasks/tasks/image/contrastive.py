"""Contrastive learning on pictures without labels: two views of an image are told from views of other images.

Source: SimCLR, Chen et al., https://arxiv.org/abs/2002.05709.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.image import ContrastiveStage, ImageModel, UnlabelledImageData, Views
from tltasks.data.seeding import draw_seed
from tltasks.data.splits import Columns, EncodedSplit, Split, row_title
from tltasks.errors import CheckpointError
from tltasks.models.adapters import find_head, input_of
from tltasks.models.loading import ModelLoader, random_model, saved_as
from tltasks.results.result import ReportExample
from tltasks.tasks.base import Batch, Prediction
from tltasks.tasks.image.augmentation import apply_steps, random_crop
from tltasks.tasks.image.classification import classifier_logits
from tltasks.tasks.image.decoding import to_png
from tltasks.tasks.image.preprocessing import ImageTask, open_preprocessing, read_image_config, read_pixels
from tltasks.tasks.self_supervised import EVALUATION, SelfSupervisedTask

Plan = StagePlan[ImageModel, UnlabelledImageData, ContrastiveStage]
DEFAULT_WIDTH = 128
"""Width of the projection."""


@dataclass(frozen=True)
class ContrastiveImage(
    ImageTask[UnlabelledImageData, ContrastiveStage],
    SelfSupervisedTask[ImageModel, UnlabelledImageData, ContrastiveStage],
):
    """One stage's view of SimCLR, over the backbone of any image classifier.

    The negatives of an image are the other images of its loss group, on however many devices. The loss of images held
    out is in groups of as many rows in their order, the last one filled up with rows before it. Beside it stands how
    often both views of an image are each other's nearest.
    """

    tag: ClassVar[str] = "contrastive-image"
    rows_name: ClassVar[str] = "images"
    least_rows: ClassVar[int] = 2
    head_name: ClassVar[str] = "its projection"
    new_head_hint: ClassVar[str] = "use `stage: transfer`, which puts a new one on its backbone."

    views: TwoViews
    model_class: type[PreTrainedModel]
    projection: str
    """The module that stands in for the classifier's head."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        stage, config = plan.stage, read_image_config(AutoModelForImageClassification, plan, source)
        config.projection_width = stage.projection or getattr(config, "projection_width", None) or DEFAULT_WIDTH
        base, head, features = find_classifier(config, source)
        preprocessing = open_preprocessing(source, config, image_size=plan.model.image_size)
        views = TwoViews(stage.views, size=preprocessing.size)
        model_class = projected(base, head, features, config.projection_width)
        return cls(plan, source, config, seed, preprocessing, views, model_class, head)

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return self.model_class

    @property
    def settings(self) -> dict[str, object]:
        return {"objective": "SimCLR", "loss_group": self.stage.rows_per_loss, "head": self.projection}

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        projection = model.get_submodule(self.projection)
        assert isinstance(projection, Projection)
        projection.reset_parameters()

    def head(self, model: nn.Module) -> list[str]:
        return [self.projection]

    # --------------------------------------------------------------------------------------- rows

    @property
    def cache_key(self) -> str:
        return self.preprocessing.cache_key("images and names")

    def collate(self, columns: Columns, *, epoch: int) -> Batch:
        """Two views of each image, `first` and `second`, and for evaluation `pixels`, the image as it is."""
        images, fitted = read_pixels(columns), columns["fitted"]
        drawn = [
            self.views(image, seed=self.seed, epoch=epoch, row=row)
            for image, row in zip(images, columns["row"], strict=True)
        ]
        batch = {
            name: self.preprocessing.stack(views, fitted)
            for name, views in zip(("first", "second"), zip(*drawn, strict=True), strict=True)
        }
        return batch | {"pixels": self.preprocessing.stack(images, fitted)} if epoch == EVALUATION else batch

    # --------------------------------------------------------------------------------------- step

    def _projections(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projections of both views, in one pass."""
        pixels = self.preprocessing.normalise(torch.cat([batch["first"], batch["second"]]))
        first, second = classifier_logits(model, pixels).float().chunk(2)
        return first, second

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["first"]), device=batch["first"].device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nt_xent(*self._projections(model, batch), temperature=self.stage.temperature)[0].mean()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The similarity of the views of each image, rounded so that other orders of summation do not show."""
        views = functional.normalize(torch.stack(self._projections(model, batch), dim=1), dim=-1)
        features = self.embed(model, batch).cpu().numpy()
        return [
            {"prediction": round(float(pair[0] @ pair[1]), 2), "views": pair, "features": vector}
            for pair, vector in zip(views.cpu().numpy(), features, strict=True)
        ]

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The projection's input for the image as it is, [images, width]."""
        head = [module for module in model.modules() if isinstance(module, Projection)][-1]
        pixels = self.preprocessing.normalise(batch["pixels"])
        return input_of(head, lambda: model(pixel_values=pixels)).float().flatten(1)

    # --------------------------------------------------------------------------------- evaluation

    def evaluated(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """With the loss of each image in its group, and whether its views were each other's nearest."""
        if not predictions or "loss" in predictions[0]:
            return predictions
        n, group = len(predictions), self._group(len(predictions))
        found: list[Prediction] = []
        for start in range(0, n, group):
            begin = min(start, n - group)  # the last group is as large as the others
            views = torch.from_numpy(np.stack([p["views"] for p in predictions[begin : begin + group]]))
            losses, matched = nt_xent(views[:, 0], views[:, 1], temperature=self.stage.temperature)
            own = zip(losses[start - begin :].tolist(), matched[start - begin :].tolist(), strict=True)
            found += [
                {**p, "loss": loss, "matched": hit} for p, (loss, hit) in zip(predictions[start:], own, strict=False)
            ]
        return found

    def _group(self, n_rows: int) -> int:
        assert self.stage.rows_per_loss is not None
        return min(self.stage.rows_per_loss, n_rows)

    def metrics(self, predictions: Sequence[Prediction]) -> tuple[dict[str, float], list[str]]:
        return {"views_matched": float(np.mean([p["matched"] for p in predictions]))}, []

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """The other view of an image by chance."""
        others = 2 * self._group(len(rows)) - 1
        guess = {"prediction": 0.0, "loss": math.log(others), "matched": 1 / others**2}
        return {"chance": [dict(guess) for _ in range(len(rows))]}

    def own_columns(self, predictions: Sequence[Prediction]) -> Columns:
        return {"matched": [bool(p["matched"]) for p in predictions]}

    def report_example(self, rows: datasets.Dataset, row: int, prediction: Prediction) -> ReportExample:
        """A picture with its views beside it."""
        batch = self.collate_eval(rows, [row])
        picture = torch.cat([batch[name][0] for name in ("pixels", "first", "second")], dim=2)
        caption = f"{row_title(rows, row)} · as it is, and its two views"
        return ReportExample("image", f"loss {prediction['loss']:.3f}", caption, to_png(picture, largest_side=320))


# ----------------------------------------------------------------------------------------- the objective


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of each image and whether both its views are each other's nearest, from views [images, width].

    Each of the 2n views has to be told from the 2n − 2 of other images; an image's loss is the mean of its two.
    Source: Chen et al., https://arxiv.org/abs/2002.05709, equation 1.

    >>> views = torch.eye(2)
    >>> losses, matched = nt_xent(views, views, temperature=1.0)  # similar by one to one view, by none to two
    >>> [round(loss, 4) for loss in losses.tolist()], matched.tolist()  # log(1 + 2/e)
    ([0.5514, 0.5514], [True, True])
    """
    n = len(first)
    views = functional.normalize(torch.cat([first, second]).float(), dim=-1)
    similar = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(2 * n, device=views.device).roll(n)
    losses = functional.cross_entropy(similar, other, reduction="none")
    matched = similar.argmax(-1) == other
    return losses.view(2, n).mean(0), matched.view(2, n).all(0)


class TwoViews:
    """Two random views of an image: crop, flip, colours, grey, blur. Source: Chen et al., arXiv 2002.05709, §2.1, A."""

    def __init__(self, keys: Views, *, size: int) -> None:
        self._steps: list[Callable[[Tensor], Tensor]] = [lambda image: random_crop(keys.crop, *image.shape[-2:])(image)]
        if keys.flip:
            self._steps.append(v2.RandomHorizontalFlip())
        if keys.colour:
            strength = (0.8 * keys.colour, 0.8 * keys.colour, 0.8 * keys.colour, min(0.5, 0.2 * keys.colour))
            self._steps.append(v2.RandomApply([v2.ColorJitter(*strength)], 0.8))
        if keys.grey:
            self._steps.append(v2.RandomGrayscale(keys.grey))
        if keys.blur:
            kernel = max(3, size // 10 | 1)  # a tenth of the side, and odd
            self._steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], keys.blur))

    def __call__(self, image: Tensor, *, seed: int, epoch: int, row: int) -> tuple[Tensor, Tensor]:
        """8-bit images [3, H, W], of the size of the given one."""
        numbers = (draw_seed(f"view {i}", seed, epoch, row) for i in (1, 2))
        first, second = (apply_steps(self._steps, image, number=number) for number in numbers)
        return first, second


# ---------------------------------------------------------------------------------------- the projection


class Projection(nn.Sequential):
    """A hidden layer with ReLU, and a linear one. Source: Chen et al., arXiv 2002.05709, §2.1 and §4.2."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))

    @property
    def weight(self) -> Tensor:
        """That of the last layer: some models draw their head's by name (transformers 5.24, modeling_siglip.py)."""
        return cast(nn.Linear, self[-1]).weight

    @property
    def bias(self) -> Tensor:
        return cast(nn.Linear, self[-1]).bias

    def reset_parameters(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


def projected(base: type[PreTrainedModel], head: str, features: int, width: int) -> type[PreTrainedModel]:
    """An image classifier's class with a projection in place of its head.

    It is saved as a checkpoint of that architecture: a classifier, or AutoModel, takes the backbone and leaves the
    projection.
    """

    class Projected(base):  # type: ignore[misc]
        def __init__(self, config: PretrainedConfig, *arguments: object, **keys: object) -> None:
            super().__init__(config, *arguments, **keys)
            self.set_submodule(head, Projection(features, width))

    return saved_as(base, Projected)


def find_classifier(config: PretrainedConfig, source: Checkpoint) -> tuple[type[PreTrainedModel], str, int]:
    """The image classifier's class for a configuration, the name of its head, and the width of the head's input.

    Raises CheckpointError for an architecture that has no single linear head, or needs a package that is missing.
    """
    mapping, display_name = AutoModelForImageClassification._model_mapping, source.display_name
    if type(config) not in mapping:
        raise CheckpointError(
            f"model {display_name}: transformers has no image classifier for {config.model_type}, by which the "
            "features of an image are known."
        )
    base = mapping[type(config)]
    base = base[0] if isinstance(base, tuple) else base
    with torch.device("meta"):
        plain = random_model(base, config, source)
    heads = find_head(plain)
    linear = [plain.get_submodule(name) for name in heads]
    if len(linear) != 1 or not isinstance(linear[0], nn.Linear):
        kinds = ", ".join(f"{n} ({type(m).__name__})" for n, m in zip(heads, linear, strict=True)) or "none"
        raise CheckpointError(
            f"model {display_name}: its head is not one linear layer that a projection could stand in for: {kinds}."
        )
    return base, heads[0], linear[0].in_features
