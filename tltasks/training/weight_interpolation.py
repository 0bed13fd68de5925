"""Weights between those that a stage began with and those that it has trained (WiSE-FT).

Source: Wortsman et al., https://arxiv.org/abs/2109.01903, equation 1: (1 − α) θ₀ + α θ₁.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.config.stage import Interpolate
from tltasks.data.splits import EncodedSplit
from tltasks.errors import CheckpointError
from tltasks.models.adapters import merged
from tltasks.results.result import Interpolation
from tltasks.tasks.base import Prediction, TaskBase
from tltasks.training.evaluation import Predict, settle


def interpolate(
    task: TaskBase,
    start: PreTrainedModel,
    trained: nn.Module,
    keys: Interpolate,
    splits: dict[str, EncodedSplit],
    predict: Predict,
) -> tuple[PreTrainedModel, Interpolation, dict[str, list[Prediction]]]:
    """The model at the α that does best on `validation`, by the headline metric and then by loss; and, by split, what
    the trained weights predict.

    An adapter is merged first, so that LoRA's update is scaled by α. Each α is evaluated on all `splits`, and no split
    but validation is looked at to choose. Raises CheckpointError for models whose weights do not correspond.
    """
    model = merged(trained)
    ends = _copy(start), _copy(model)
    shapes = [{name: tensor.shape for name, tensor in end.items()} for end in ends]
    if odd := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise CheckpointError(f"interpolate: the weights before and after training differ in shape ({odd[0]}, …).")
    sign = 1 if task.higher_is_better else -1
    alphas = sorted({0.0, *keys.alphas, 1.0})
    by_split: dict[str, list[float]] = {name: [] for name in splits}
    best: tuple[float, float] | None = None
    chosen, at_one = keys.alphas[0], {}
    for alpha in alphas:
        _set(model, *ends, alpha)
        predictions = {name: predict(model, split.rows) for name, split in splits.items()}
        settled, decided = settle(task, predictions, splits)
        for name, split in splits.items():
            values = settled.score(decided[name], task.references(split.rows), intervals=False).values
            by_split[name].append(values[task.headline])
            found = sign * values[task.headline], -values.get("loss", 0.0)
            if name == "validation" and alpha in keys.alphas and (best is None or found > best):
                best, chosen = found, alpha
        at_one = predictions  # the last
    _set(model, *ends, chosen)
    return model, Interpolation(chosen, task.headline, alphas, by_split), at_one


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items() if t.is_floating_point()}


@torch.no_grad()
def _set(model: nn.Module, start: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> None:
    own = model.state_dict()
    for name, tensor in start.items():
        own[name].copy_(torch.lerp(tensor, end[name], alpha))  # exact at both ends
