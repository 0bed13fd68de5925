"""Optimisers, their parameter groups, the learning-rate schedule and weight averaging."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tltasks.config.stage import Stage
from tltasks.runtime.sharding import put
from tltasks.training.blocks import blocks_above, trained


def build_optimizer(model: nn.Module, stage: Stage, *, head: Iterable[str] = ()) -> torch.optim.Optimizer:
    """Optimiser over the trained parameters; each group's `peak_lr` is what the schedule multiplies."""
    assert stage.learning_rate is not None
    named = trained(model)
    # Depth is read off the whole model, so that freezing the lower blocks does not raise the rates of the others.
    names = [name for name, _ in model.named_parameters()]
    scales = layer_scales(names, stage.layer_decay or 1.0, head=tuple(head))
    above = blocks_above(names, head=tuple(head))
    matrices = inner_matrices(model, head=head) if stage.optimizer == "muon" else set()
    groups: dict[tuple[float, float, int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = stage.weight_decay if _is_decayed(name, parameter) and stage.l2_sp is None else 0.0
        # The fused SGD wants all of a group to have momentum, or none (torch 2.14, optim/sgd.py).
        unfrozen = above[name] if stage.unfreeze_epochs else 0
        groups.setdefault((decay, scales[name], unfrozen, name in matrices), []).append(parameter)
    plain, inner = (
        [
            {"params": members, "weight_decay": decay, "lr": stage.learning_rate * scale}
            for (decay, scale, _, is_inner), members in groups.items()
            if is_inner == wanted
        ]
        for wanted in (False, True)
    )
    fused = all(p.device.type in {"cpu", "cuda", "mps", "xpu"} and p.is_floating_point() for _, p in named)
    rate, parts = stage.learning_rate, list[torch.optim.Optimizer]()
    if inner:  # in steps as large as AdamW's, so that its rates serve: Liu et al., https://arxiv.org/abs/2502.16982
        parts.append(torch.optim.Muon(inner, lr=rate, adjust_lr_fn="match_rms_adamw"))
    if plain and stage.optimizer == "sgd":
        whole = not any(isinstance(p, DTensor) for _, p in named)  # torch's fused SGD (2.14) knows no shares of weights
        parts.append(torch.optim.SGD(plain, lr=rate, momentum=stage.momentum, fused=fused and whole))
    elif plain and stage.optimizer == "adafactor":
        parts.append(torch.optim.Adafactor(plain, lr=rate, foreach=False))  # else all updates would be held at once
    elif plain and stage.optimizer == "adamw_8bit":
        parts.append(_adamw_8bit(plain, rate))
    elif plain:
        parts.append(torch.optim.AdamW(plain, lr=rate, fused=fused))
    optimizer = parts[0] if len(parts) == 1 else Together(*parts)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def _adamw_8bit(groups: list[dict[str, object]], rate: float) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW: Dettmers et al., https://arxiv.org/abs/2110.02861."""
    from bitsandbytes.optim.adamw import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=rate)  # type: ignore[no-untyped-call]
    return optimizer


def state_bytes(model: nn.Module, stage: Stage, *, head: Iterable[str] = ()) -> int:
    """Bytes that the optimiser of a stage keeps between steps, and the moving average of weights where there is one."""
    matrices = inner_matrices(model, head=head) if stage.optimizer == "muon" else set()
    numbers = 0.0
    for name, parameter in trained(model):
        n, shape = parameter.numel(), parameter.shape
        if stage.optimizer == "sgd":
            numbers += n if stage.momentum else 0
        elif stage.optimizer == "adafactor":  # of a matrix, means of its rows and columns
            numbers += n if len(shape) < 2 else shape[:-1].numel() + (shape[:-2] + shape[-1:]).numel()
        elif stage.optimizer == "adamw_8bit" and n >= _LEAST_IN_8_BITS:
            numbers += n / 2
        else:
            numbers += n if name in matrices else 2 * n
        numbers += n if stage.ema is not None else 0
    return int(4 * numbers)


_LEAST_IN_8_BITS = 4096
"""Numbers from which bitsandbytes keeps moments in 8 bits (0.50, optim/optimizer.py, `min_8bit_size`)."""


class Together(torch.optim.Optimizer):
    """Several optimisers, each of groups of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        start = 0
        for part in self.parts:  # groups and state are other objects once they have been loaded
            part.param_groups = self.param_groups[start : start + len(part.param_groups)]
            part.state = self.state
            part.step()
            start += len(part.param_groups)


def inner_matrices(model: nn.Module, *, head: Iterable[str] = ()) -> set[str]:
    """Names of the weights of linear layers that are neither the head nor an embedding, its use as output included.

    Those are what Muon is for; source: Jordan et al., https://kellerjordan.github.io/posts/muon/.
    """
    outer = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    outputs = [module.get_output_embeddings() for module in model.modules() if isinstance(module, PreTrainedModel)]
    outer |= {id(p) for output in outputs if isinstance(output, nn.Module) for p in output.parameters()}
    top = {
        name
        for name, above in blocks_above([n for n, _ in model.named_parameters()], head=tuple(head)).items()
        if not above
    }
    linear = (nn.Linear, Conv1D)
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, linear) and id(module.weight) not in outer and f"{name}.weight" not in top
    }


def _is_decayed(name: str, parameter: Tensor) -> bool:
    """Biases, normalisation weights and position tables are scales and offsets; decay would pull them to zero."""
    return parameter.ndim > 1 and not re.search(r"pos(ition)?_embed|relative_position|cls_token|mask_token", name)


def layer_scales(names: list[str], decay: float, *, head: tuple[str, ...] = ()) -> dict[str, float]:
    """Learning-rate factor of each parameter: decay ** (blocks above it), 1 for the head.

    A block is a numbered module, or a numbered module of a numbered stage, in the order of the model.
    Source: Clark et al., https://arxiv.org/abs/2003.10555, §3.2.

    >>> layer_scales(["emb.w", "layer.0.w", "layer.1.w", "classifier.w"], 0.5, head=("classifier",))
    {'emb.w': 0.125, 'layer.0.w': 0.25, 'layer.1.w': 0.5, 'classifier.w': 1.0}
    """
    return {name: decay**above for name, above in blocks_above(names, head=head).items()}


DECADES = 6
"""Powers of ten that an exponential schedule rises over."""


def learning_rate_factor(step: int, *, total: int, warmup: float, schedule: str) -> float:
    """Factor on the peak learning rate at a step in [0, total).

    Rises linearly over the first `warmup` share, then follows half a cosine or a line to zero, or stays.
    Source of the cosine: Loshchilov and Hutter, https://arxiv.org/abs/1608.03983.

    >>> [round(learning_rate_factor(s, total=4, warmup=0.25, schedule="linear"), 2) for s in range(4)]
    [1.0, 1.0, 0.67, 0.33]
    """
    rise = round(total * warmup)
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    if schedule == "exponential":
        return float(10 ** (-DECADES * (1 - (step - rise) / max(1, total - rise - 1))))
    share = (step - rise) / max(1, total - rise)
    return 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share


class MovingAverage:
    """Exponential moving average of the trained weights, held beside them; without `decay` of none.

    Starts with a shorter memory, min(decay, (1 + n) / (10 + n)) after n updates, so that the first weights do not
    linger. Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.weights = {} if decay is None else {name: p.detach().clone() for name, p in trained(model)}

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` updates."""
        if self.decay is not None:
            move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
            move(list(self.weights.values()), [p.detach() for _, p in trained(model)], None)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved weights, which come in another order."""
        for name, tensor in self.weights.items():
            put(tensor, weights[name])

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the average; a second call puts them back."""
        weights = dict(trained(model))
        for name, average in self.weights.items():
            kept = weights[name].detach().clone()
            weights[name].copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """The average as the model's weights, for as long as the block lasts."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)
