"""Weights that are not trained, held in 16 bits: loaded so, computed with, and exchanged for the checkpoint's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tltasks.errors import CheckpointError

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Held(nn.Module):
    """A layer whose weight is in 16 bits. It computes in fp32 unless autocast says other."""

    weight: Tensor
    held_as: str
    """Its name in the model as it was loaded, whatever wraps it since."""
    compute_dtype = torch.float32
    """The format in which PEFT makes an adapter beside it (peft 0.21, tuners_utils.py), from its first draw on."""


class HeldLinear(Held, nn.Linear):
    """`nn.Linear`; nothing of it is kept in another format for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        computed = _computed(x)
        if computed == self.weight.dtype:
            return super().forward(x)
        return _Product.apply(x.to(computed), self.weight, self.bias)  # type: ignore[no-any-return]


class HeldConv1D(Held, Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight is transposed."""

    def forward(self, x: Tensor) -> Tensor:
        computed = _computed(x)
        if computed == self.weight.dtype:
            return super().forward(x)  # type: ignore[no-any-return]
        return _Product.apply(x.to(computed), self.weight.T, self.bias)  # type: ignore[no-any-return]


class HeldEmbedding(Held, nn.Embedding):
    """`nn.Embedding`, whose vectors come out in fp32 as ever: what is added up from here on stays in fp32."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


def _computed(x: Tensor) -> torch.dtype:
    """The format of a product; models that cast to the format of a weight are not followed in that."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class _Product(torch.autograd.Function):
    """A product with a weight of another format, cast in each pass rather than kept cast in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, x if weight.requires_grad else None)
        return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_weight = None if x is None else (rows.T @ x.flatten(0, -2)).to(weight.dtype)
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return gradient @ weight.to(gradient.dtype) if ctx.needs_input_grad[0] else None, of_weight, of_bias


_HELD: dict[type[nn.Module], type[Held]] = {
    nn.Linear: HeldLinear,
    Conv1D: HeldConv1D,
    nn.Embedding: HeldEmbedding,
}
"""By exact type: what derives from these may compute with another function of the weight. Convolutions are small beside
their activations, and models cast pixels to the format of the first (transformers 5.24, modeling_vit.py)."""
_PLAIN = {held: plain for plain, held in _HELD.items()}

Keep = Callable[[PreTrainedModel], Sequence[str]]


@contextmanager
def loading_held(dtype: torch.dtype, keep: Keep, *, exact: bool) -> Iterator[None]:
    """Have checkpoints loaded with the weights of their layers in `dtype`, of which no other copy is made on the way.

    Modules that `keep` names stay in fp32, and with them all that is no layer's matrix or not in the checkpoint; so do
    embeddings if the result is to be `exact`: what autocast computes. transformers loads a weight in the dtype that the
    model has it in while it is still without weights (5.24, core_model_loading.py), and asks it for its plan of dtypes
    just before; then it draws what was not there.
    """
    plan, draw = PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights

    def held_plan(model: PreTrainedModel, asked: torch.dtype) -> dict[str, torch.dtype]:
        hold(model, dtype, keep=keep(model), exact=exact)
        found: dict[str, torch.dtype] = plan(model, asked)
        return found

    def draw_whole(model: PreTrainedModel) -> None:
        for module in model.modules():
            if isinstance(module, Held) and not getattr(module.weight, "_is_hf_initialized", False):
                _release(module, nn.Parameter(torch.empty_like(module.weight, dtype=torch.float32)))
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:  # a view of the file, which would stay in memory as a whole
                parameter.data = parameter.data.clone()
        draw(model)

    PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights = held_plan, draw_whole
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights = plan, draw


def hold(model: nn.Module, dtype: torch.dtype, *, keep: Sequence[str] = (), exact: bool) -> None:
    """Turn the weights of a model's layers into `dtype`; those that are trained are to be among those to `keep`."""
    layers = {name: module for name, module in model.named_modules() if type(module) in _HELD}
    ends = tuple(f"{name}." for name in keep)
    left = {id(p) for name, p in model.named_parameters() if name.startswith(ends)}
    if exact:
        left |= {id(module.weight) for module in layers.values() if isinstance(module, nn.Embedding)}
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        named = dict(model.named_parameters(remove_duplicate=False))
        left |= {id(named[name]) for pair in tied.items() for name in pair if name in named}
    made: dict[int, nn.Parameter] = {}  # one for weights that are one
    for name, module in layers.items():
        weight = module.weight
        if id(weight) in left or weight.dtype != torch.float32:
            continue
        if id(weight) not in made:
            made[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
        module.weight = made[id(weight)]
        module.__class__ = _HELD[type(module)]
        module.held_as = name


def is_held(model: nn.Module) -> bool:
    return any(isinstance(module, Held) for module in model.modules())


def restore(model: nn.Module, original: PreTrainedModel, *, display_name: str) -> None:
    """Give all held layers the weights of `original`, the same checkpoint in fp32, and make them plain layers again.

    Raises CheckpointError where these, rounded, are not what was held: an adapter would stand on another base.
    """
    for module in model.modules():
        if not isinstance(module, Held):
            continue
        whole, held = original.get_submodule(module.held_as).weight, module.weight
        if not torch.equal(whole.detach().to(held.dtype), held.detach().to(whole.device)):
            raise CheckpointError(
                f"model {display_name}: {module.held_as} is no longer what training began with; the checkpoint has "
                "changed meanwhile. Fetch it again, and go on with --resume."
            )
        _release(module, whole.requires_grad_(False))


def _release(module: Held, weight: nn.Parameter) -> None:
    module.weight, plain = weight, _PLAIN[type(module)]
    module.__class__ = plain  # type: ignore[assignment]
    del module.held_as
