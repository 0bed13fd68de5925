"""Steps in 16 bits on a CPU without what they could spare: other ways to compute the same, in training alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import NewGELUActivation

from tltasks.models.held import HeldLinear, QuantizedLinear, dense_weight
from tltasks.runtime.attention import STEPS, attend, draw_kept, kept_steps

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    from peft.tuners.lora import Linear as LoraLinear


@contextmanager
def fast_steps(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Train so while the block lasts, where the device is a CPU and autocast computes in 16 bits."""
    if device.type != "cpu":
        yield
        return
    with one_pass(model), fast_dropout(), fast_attention(), fast_activations(model):
        yield


# ------------------------------------------------------------------------------------------ low-rank updates


@contextmanager
def one_pass(model: nn.Module) -> Iterator[None]:
    """Have PEFT's linear layers with one plain low-rank update apply it with their frozen weight as one function."""
    layers: list[LoraLinear] = []
    if hasattr(model, "active_peft_config"):
        from peft.tuners.lora import Linear as LoraLinear

        layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    for layer in layers:
        layer.__class__ = _one_pass_class()
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = LoraLinear


def _is_plain(layer: LoraLinear) -> bool:
    """Tell one low-rank update, as Hu et al. have it, of a frozen linear layer that is not transposed."""
    return (
        type(layer.base_layer) in {nn.Linear, HeldLinear, QuantizedLinear}
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and list(layer.lora_A) == layer.active_adapters
        and len(layer.lora_A) == 1
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and all(isinstance(dropout, nn.Identity) for dropout in layer.lora_dropout.values())
    )


@functools.cache
def _one_pass_class() -> type[LoraLinear]:
    from peft.tuners.lora import Linear as LoraLinear

    class OnePassLora(LoraLinear):  # type: ignore[misc]
        """PEFT's layer while it trains under autocast, and unchanged otherwise."""

        def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            trains = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
            if not trains or args or kwargs or self.merged or self.disable_adapters:
                return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            (name,), base = self.active_adapters, self.base_layer
            down, up = self.lora_A[name].weight, self.lora_B[name].weight
            x = _cast_once(x, torch.get_autocast_dtype("cpu"))
            output: Tensor = _LowRank.apply(x, base, base.bias, down, up, self.scaling[name])
            return output

    return OnePassLora


def _cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another format; one and the same for all layers that read it, such as queries, keys and values."""
    if x.dtype == dtype:
        return x
    kept: tuple[int, Tensor] | None = getattr(x, "_cast", None)
    if kept is None or kept[0] != x._version or kept[1].dtype != dtype:
        kept = (x._version, x.to(dtype))
        x._cast = kept  # type: ignore[attr-defined]
    return kept[1]


class _LowRank(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ for a frozen W and b; of the forward pass x and x Aᵀ are kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: nn.Linear, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        down, up = down.to(x.dtype), (up * scale).to(x.dtype)
        inner = rows @ down.T
        output = functional.linear(rows, dense_weight(base, x.dtype), None if bias is None else bias.to(x.dtype))
        output.addmm_(inner, up.T)
        ctx.save_for_backward(rows, inner, down, up)
        ctx.scale, ctx.shape, ctx.base = scale, x.shape, base
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        of_inner = gradient @ up
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ dense_weight(ctx.base, gradient.dtype)).addmm_(of_inner, down).view(ctx.shape)
        return of_x, None, None, of_inner.T @ rows, (gradient.T @ inner).float().mul_(ctx.scale), None


# -------------------------------------------------------------------------------------------------- dropout


@contextmanager
def fast_dropout() -> Iterator[None]:
    """Have `functional.dropout`, and so `nn.Dropout`, draw its masks four at a time."""
    plain = functional.dropout
    functional.dropout = _fast_dropout  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.dropout = plain


def _fast_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`functional.dropout` with four random numbers out of one, and a mask of a byte each for the backward pass."""
    if not training or not 0 < p < 1 or inplace or not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
        return _dropout(x, p, training, inplace)
    return _Dropout.apply(x, p)  # type: ignore[no-any-return]


_dropout = functional.dropout


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = draw_kept(x.shape, p)
        ctx.save_for_backward(mask)
        ctx.scale = STEPS / kept_steps(p)
        output: Tensor = mask.to(x.dtype).mul_(x).mul_(ctx.scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask.to(gradient.dtype).mul_(gradient).mul_(ctx.scale), None


# --------------------------------------------------------------------------------- attention, activations


@contextmanager
def fast_attention() -> Iterator[None]:
    """Have `functional.scaled_dot_product_attention` computed by `runtime/attention.py`."""
    plain = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


@contextmanager
def fast_activations(model: nn.Module) -> Iterator[None]:
    """Have GELU by its approximation with tanh computed at once, where transformers (5.24) writes it out in parts."""
    parts = [module for module in model.modules() if type(module) is NewGELUActivation]
    for module in parts:
        module.__class__ = _Gelu
    try:
        yield
    finally:
        for module in parts:
            module.__class__ = NewGELUActivation


class _Gelu(NewGELUActivation):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        trains = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        found: Tensor = functional.gelu(x, approximate="tanh") if trains else super().forward(x)
        return found
