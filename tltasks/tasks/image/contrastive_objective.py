"""SimCLR: two views of each image, a projection in place of the head, and the loss of telling a view from others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from tltasks.config.tasks.image import Views
from tltasks.data.seeding import draw_seed
from tltasks.errors import CheckpointError
from tltasks.models.adapters import find_head
from tltasks.tasks.image.augmentation import apply_steps, random_crop


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


# ---------------------------------------------------------------------------------------- projection


class Projection(nn.Sequential):
    """A hidden layer with ReLU, and a linear one. Source: Chen et al., arXiv 2002.05709, §2.1 and §4.2."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))

    def reset_parameters(self) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()


@dataclass(frozen=True)
class ProjectedModel:
    """Loads an image classifier's architecture with a projection in place of its head, as an auto class would.

    What it saves is a checkpoint of that architecture: a classifier, or AutoModel, takes the backbone and leaves the
    projection.
    """

    config: PretrainedConfig
    base: type[PreTrainedModel]
    head: str
    """The module that the projection stands in for."""
    features: int
    width: int
    _model_mapping = AutoModelForImageClassification._model_mapping

    @property
    def model_class(self) -> type[PreTrainedModel]:
        base, head, features, width = self.base, self.head, self.features, self.width

        def initialise(model: Any, config: PretrainedConfig, *arguments: Any, **keys: Any) -> None:
            base.__init__(model, config, *arguments, **keys)
            model.set_submodule(head, Projection(features, width))

        return type(base.__name__, (base,), {"__init__": initialise, "__module__": base.__module__})

    def from_config(self, config: PretrainedConfig, **arguments: Any) -> PreTrainedModel:
        model: PreTrainedModel = self.model_class._from_config(copy.deepcopy(config))
        return model

    def from_pretrained(self, name: Any, **arguments: Any) -> Any:
        config = arguments.pop("config", None) or copy.deepcopy(self.config)
        return self.model_class.from_pretrained(name, config=config, **arguments)


def open_projected(config: PretrainedConfig, *, width: int, shown: str) -> ProjectedModel:
    """For the architecture of a configuration; raises CheckpointError for one that has no single linear head."""
    mapping = AutoModelForImageClassification._model_mapping
    if type(config) not in mapping:
        raise CheckpointError(
            f"model {shown}: transformers has no image classifier for {config.model_type}, by which the features of an "
            "image are known."
        )
    base = mapping[type(config)]
    base = base[0] if isinstance(base, tuple) else base
    try:
        with torch.device("meta"):
            plain = base(copy.deepcopy(config))
    except (ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(f"model {shown}: no model can be built of its configuration: {error}") from error
    heads = find_head(plain)
    linear = [plain.get_submodule(name) for name in heads]
    if len(linear) != 1 or not isinstance(linear[0], nn.Linear):
        kinds = ", ".join(f"{n} ({type(m).__name__})" for n, m in zip(heads, linear, strict=True)) or "none"
        raise CheckpointError(
            f"model {shown}: its head is not one linear layer that a projection could stand in for: {kinds}."
        )
    return ProjectedModel(config, base, heads[0], linear[0].in_features, width)
