"""Steps in 16 bits on a CPU without what they could spare: other ways to compute the same, in training alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.integrations import sdpa_attention

from tltasks.models.held import HeldLinear, QuantizedLinear, dense_weight
from tltasks.runtime.attention import attend, draw_kept, keep_only, remembered

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    from peft.tuners.lora import Linear as LoraLinear


@contextmanager
def fast_steps(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Train so while the block lasts, where the device is a CPU and autocast computes in 16 bits."""
    if device.type != "cpu":
        yield
        return
    with one_pass(model), fast_dropout(), fast_attention(), fast_activations(model), fast_norms(model):
        yield


@contextmanager
def _changed(*changes: tuple[object, str, object]) -> Iterator[None]:
    """Attributes of objects, classes among them, as they are given while the block lasts."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for change in changes:
        setattr(*change)
    try:
        yield
    finally:
        for change in before:
            setattr(*change)


def _trains() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------ low-rank updates


@contextmanager
def one_pass(model: nn.Module) -> Iterator[None]:
    """Have PEFT's linear layers with one plain low-rank update apply it with their frozen weight as one function."""
    layers: list[LoraLinear] = []
    if hasattr(model, "active_peft_config"):
        from peft.tuners.lora import Linear as LoraLinear

        layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    with _changed(*((layer, "__class__", _one_pass_class()) for layer in layers)):
        yield


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
            if not _trains() or args or kwargs or self.merged or self.disable_adapters:
                return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            (name,), base = self.active_adapters, self.base_layer
            down, up = self.lora_A[name].weight, self.lora_B[name].weight
            dtype = torch.get_autocast_dtype("cpu")
            if x.dtype != dtype:  # once for all layers that read it, such as queries, keys and values
                x = remembered(x, dtype, lambda: x.to(dtype))
            output: Tensor = _LowRank.apply(x, base, base.bias, down, up, self.scaling[name])
            return output

    return OnePassLora


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
    """Have `functional.dropout`, and so `nn.Dropout`, draw its masks four at a time, and apply them by bits."""
    with _changed((functional, "dropout", _fast_dropout)):
        yield


def _fast_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`functional.dropout` with four random numbers out of one, and a mask of a byte each for the backward pass."""
    is_other = inplace or x.device.type != "cpu" or x.dtype not in {torch.float32, torch.bfloat16, torch.float16}
    if not training or not 0 < p < 1 or is_other or not torch.is_autocast_enabled("cpu"):
        return _dropout(x, p, training, inplace)
    return _Dropout.apply(x, p)  # type: ignore[no-any-return]


_dropout = functional.dropout


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = draw_kept(x.shape, p)
        ctx.save_for_backward(mask)
        ctx.p = p
        return keep_only(x, mask, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return keep_only(gradient, mask, ctx.p), None


# ------------------------------------------------------------------------- attention, activations, norms


@contextmanager
def fast_attention() -> Iterator[None]:
    """Have `functional.scaled_dot_product_attention` computed by `runtime/attention.py`, and masks made once."""
    masks = sdpa_attention, "create_position_bias_mask", _position_bias_mask
    with _changed((functional, "scaled_dot_product_attention", attend), masks):
        yield


def _position_bias_mask(
    position_bias: Tensor, attention_mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor
) -> Tensor:
    """transformers' own (5.24), for all layers that have the same."""
    make = functools.partial(_plain_mask, position_bias, attention_mask, is_causal, query, key)
    asked = is_causal, query.shape[2], key.shape[2], key.dtype
    is_kept = _trains() and not position_bias.requires_grad
    mask: Tensor = remembered(position_bias, asked, make, attention_mask) if is_kept else make()
    return mask


_plain_mask = sdpa_attention.create_position_bias_mask


@contextmanager
def fast_activations(model: nn.Module) -> Iterator[None]:
    """Have GELU by its approximation with tanh computed at once, where transformers (5.24) writes it out in parts."""
    parts = [module for module in model.modules() if type(module) is NewGELUActivation]
    with _changed(*((module, "__class__", _Gelu) for module in parts)):
        yield


class _Gelu(NewGELUActivation):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = functional.gelu(x, approximate="tanh") if _trains() else super().forward(x)
        return found


@contextmanager
def fast_norms(model: nn.Module) -> Iterator[None]:
    """Have normalisation by the root mean square computed as one function, where its parts are written out."""
    norms = [m for m in model.modules() if isinstance(getattr(m, "variance_epsilon", None), float)]
    with _changed(*((module, "__class__", _norm_class(module)) for module in norms)):
        yield


_norm_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _norm_class(example: Any) -> type[nn.Module]:
    """A faster class for modules of a kind; their own where one of them is found to compute anything else."""
    kind = type(example)
    if kind not in _norm_classes and [name for name, _ in example.named_parameters()] == ["weight"]:
        x = torch.randn(3, example.weight.numel(), generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), torch.autocast("cpu", enabled=False), contextlib.suppress(Exception):  # gated ones fail
            ours = functional.rms_norm(x, x.shape[-1:], example.weight.float(), example.variance_epsilon)
            _norm_classes[kind] = _faster_norm(kind) if torch.allclose(example(x), ours) else kind
    return _norm_classes.setdefault(kind, kind)


def _faster_norm(kind: type[nn.Module]) -> type[nn.Module]:
    class Norm(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            if args or kwargs or not _trains() or not x.dtype == self.weight.dtype == torch.float32:
                return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
            found: Tensor = _RmsNorm.apply(x, self.weight, self.variance_epsilon)
            return found

    return Norm


class _RmsNorm(torch.autograd.Function):
    """w x / √(mean of x² + ε): Zhang and Sennrich, https://arxiv.org/abs/1910.07467."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rate = (x * x).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (x * rate).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        weighted = gradient * weight
        along = (weighted * x).mean(-1, keepdim=True).mul_(rate.pow(3))
        of_x = weighted.mul_(rate).addcmul_(x, along, value=-1)
        of_weight = (gradient * x).mul_(rate).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None
