"""Linear probing: the frozen backbone runs once, its features are kept on disk, and the head is fitted to them.

Source of the method: Alain and Bengio, https://arxiv.org/abs/1610.01644; of fitting it by L-BFGS with the penalty
chosen on validation: Radford et al., https://arxiv.org/abs/2103.00020, appendix A.3.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tltasks.config.stage import Stage
from tltasks.data.splits import EncodedSplit
from tltasks.errors import CheckpointError
from tltasks.metrics.multi_label import mean_average_precision
from tltasks.tasks.base import TaskBase
from tltasks.training.checkpoint import Progress
from tltasks.training.evaluation import Features, cached_features

PENALTIES = tuple(10.0**power for power in range(-6, 1))
"""Tried where the recipe names none and there is a validation split."""
PENALTY = 1e-3
"""Where there is nothing to choose by."""
MOST_ITERATIONS = 1000
LEAST = 1e-18
"""Deviation of a feature from which on it is scaled: gradients of the weights of smaller ones are beyond fp32."""


@dataclass(frozen=True)
class Fit:
    """A linear layer fitted to features, and how it does where it is chosen."""

    weight: Tensor
    bias: Tensor
    l2: float
    iterations: int
    validation_accuracy: float | None


def fit_probe(
    accelerator: Accelerator,
    task: TaskBase,
    model: nn.Module,
    head: Sequence[str],
    stage: Stage,
    encoded: dict[str, EncodedSplit],
    *,
    workers: int,
) -> tuple[Progress, Fit]:
    """Freeze `model` but for its head, and set the head to the best fit on the training split's features.

    Raises CheckpointError for a head that is not one linear layer on one vector for each row, and for features that do
    not differ between rows.
    """
    linear = model.get_submodule(head[0]) if len(head) == 1 else None
    if not isinstance(linear, nn.Linear):
        raise CheckpointError(
            f"probe: the head of {type(model).__name__} ({', '.join(head) or 'none'}) is not one linear layer; "
            "use `stage: transfer` with `adapt: head`."
        )
    started = time.perf_counter()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(f"{head[0]}."))
    wanted: list[str] = [name for name in ("train", "validation") if name in encoded]
    features = {
        name: cached_features(accelerator, task, model, head[0], encoded[name], workers=workers) for name in wanted
    }
    width = features["train"].shape[1]
    if width != linear.in_features:
        raise CheckpointError(
            f"probe: the head of {type(model).__name__} takes {linear.in_features} numbers, but its features are "
            f"{width}; use `stage: transfer` with `adapt: head`."
        )
    if not _varies(torch.from_numpy(features["train"])).any():
        raise CheckpointError(
            f"probe: the features of {type(model).__name__} are the same for all rows of `train`, as those of weights "
            "that were never trained can be: nothing tells classes apart. Use another model, or `adapt: full`."
        )
    labels = {name: np.array(task.references(encoded[name].rows)) for name in wanted}
    best = choose_fit(features, labels, n_classes=linear.out_features, l2=stage.l2)
    with torch.no_grad():
        linear.weight.copy_(best.weight)
        if linear.bias is not None:
            linear.bias.copy_(best.bias)
    progress = Progress(
        step=best.iterations,
        best_value=best.validation_accuracy,
        examples=len(features["train"]),
        seconds=time.perf_counter() - started,
        ended="converged" if best.iterations < MOST_ITERATIONS else f"{MOST_ITERATIONS} iterations",
    )
    model.eval()
    return progress, best


# ---------------------------------------------------------------------------------------------- fit


def choose_fit(
    features: dict[str, Features],
    labels: dict[str, NDArray[np.int64]],
    *,
    n_classes: int,
    l2: float | list[float] | None,
) -> Fit:
    """The fit to `train` with the penalty that does best on `validation`: by accuracy, or the mean average precision of
    rows with any number of classes, then by loss."""
    tried = [l2] if isinstance(l2, float) else l2 or (PENALTIES if "validation" in features else (PENALTY,))
    best: tuple[tuple[float, float], Fit] | None = None
    start: Fit | None = None
    for penalty in sorted(tried, reverse=True):
        fit = fit_linear(features["train"], labels["train"], n_classes=n_classes, l2=penalty, start=start)
        start, value = fit, (0.0, 0.0)
        if "validation" in features:
            logits = torch.from_numpy(features["validation"]).double() @ fit.weight.T + fit.bias
            known = torch.from_numpy(labels["validation"])
            accuracy = _accuracy(logits, known)
            value = accuracy, -float(_loss(logits, known))
            fit = Fit(fit.weight, fit.bias, penalty, fit.iterations, accuracy)
        if best is None or value > best[0]:
            best = value, fit
    assert best is not None
    return best[1]


def _varies(features: Tensor) -> Tensor:
    """Features that differ between rows by more than what single precision rounds in a backbone, as a mask."""
    return features.std(0, correction=0) > 1e-5 * features.abs().max()


def fit_linear(
    features: Features, labels: NDArray[np.int64], *, n_classes: int, l2: float, start: Fit | None = None
) -> Fit:
    """The weights that minimise mean cross entropy + l2 / 2 × their squared norm, in double precision; of labels [rows,
    classes] the sum of each class's, which is logistic regression of one against the rest.

    The penalty is on the weights of features scaled to unit variance, so that it means the same for every backbone;
    the scale is folded into the weights that are returned. The bias is free. A feature that varies by no more than what
    single precision rounds is left as it is: scaled up, its rounding would decide.
    """
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    centre, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(_varies(x) & (scale > LEAST), scale, torch.ones_like(scale))
    x = (x - centre) / scale
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64)
    bias = torch.zeros(n_classes, dtype=torch.float64)
    if start is not None:
        weight, bias = start.weight * scale, start.bias + start.weight @ centre
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = _loss(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    iterations = int(optimizer.state[weight]["n_iter"])
    with torch.no_grad():
        plain = weight / scale
        return Fit(plain, bias - plain @ centre, l2, iterations, None)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none").sum(1).mean()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    if labels.ndim == 1:
        return float((logits.argmax(1) == labels).double().mean())
    return mean_average_precision(logits.detach().numpy(), labels.numpy())
