"""Weights that are not trained, held in 16, 8 or 4 bits: loaded so, computed with, put back as in the checkpoint."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv1d_input, conv2d_input
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tltasks.errors import CheckpointError
from tltasks.models.quantization import QUANTIZED, Quantization

FORMATS: dict[str, torch.dtype | Quantization] = {"bf16": torch.bfloat16, "fp16": torch.float16, **QUANTIZED}
_BESIDE_QUANTIZED = torch.bfloat16
"""The format of embeddings, and of what they are tied to, beside quantised matrices."""
_MOST_COLOURS = 4
"""Channels of what a first convolution reads. Models cast pixels to the format of its weight (transformers 5.24,
modeling_vit.py), which is small."""


class Held(nn.Module):
    """A layer whose weight is in another format than fp32, in which it computes unless autocast says other."""

    weight: Tensor
    held_as: str
    """Its name in the model as it was loaded, whatever wraps it since."""
    compute_dtype = torch.float32
    """The format in which PEFT makes an adapter beside it (peft 0.21, tuners_utils.py), from its first draw on."""

    def __new__(cls, *arguments: Any, **keys: Any) -> Any:
        """A plain layer where PEFT makes one of the same type beside it (0.21, tuners/lora/layer.py, `_ConvNd`)."""
        return _PLAIN[cls](*arguments, **keys) if arguments else super().__new__(cls)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight, for products in a format."""
        return self.weight.to(dtype)

    def stands_for(self, whole: Tensor) -> bool:
        """Tell whether this is what becomes of a weight in fp32 when it is held."""
        return torch.equal(whole.detach().to(self.weight.dtype), self.weight.detach().to(whole.device))


def dense_weight(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer, held or not, for products in a format: [outputs, inputs]."""
    return layer.dense(dtype) if isinstance(layer, Held) else layer.weight.to(dtype)


class HeldLinear(Held, nn.Linear):
    """`nn.Linear`; nothing of it is kept in another format for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        computed, weight = _computed(x), self._parameters.get("weight")
        if weight is not None and weight.dtype == computed:
            return super().forward(x)
        return _Product.apply(x.to(computed), self, weight, self.bias)  # type: ignore[no-any-return]


class HeldConv1D(Held, Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight is transposed."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        return super().dense(dtype).T

    def forward(self, x: Tensor) -> Tensor:
        computed, weight = _computed(x), self._parameters.get("weight")
        if weight is not None and weight.dtype == computed:
            return super().forward(x)  # type: ignore[no-any-return]
        return _Product.apply(x.to(computed), self, None if weight is None else weight.T, self.bias)  # type: ignore[no-any-return]


class HeldEmbedding(Held, nn.Embedding):
    """`nn.Embedding`, whose vectors come out in fp32 as ever: what is added up from here on stays in fp32."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


class _HeldConvolution(Held):
    bias: Tensor | None
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(_computed(x))
        if "weight" in self._parameters and self.weight.requires_grad:
            return self._conv_forward(x, self.dense(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        return _Convolution.apply(x, self, self.bias)  # type: ignore[no-any-return]


class HeldConv2d(_HeldConvolution, nn.Conv2d):
    """`nn.Conv2d` with a frozen weight."""


class HeldConv1d(_HeldConvolution, nn.Conv1d):
    """`nn.Conv1d` with a frozen weight."""


class _Places(threading.local):
    """Places in which quantised weights are made whole, by the format; each thread has its own."""

    def __init__(self) -> None:
        self.by_dtype: dict[torch.dtype, Tensor] = {}


_places = _Places()


class Quantized(Held):
    """A layer whose weight is codes and scales, and whole while it is computed with.

    Until its checkpoint's weight has come it has an empty one. Who reads the weight past the layer gets one in fp32.
    """

    codes: Tensor
    scales: Tensor
    quantization: Quantization
    dense_shape: torch.Size

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        empty = self._parameters.get("weight")
        if empty is not None:
            return empty
        place = self.scales.new_empty(self.dense_shape.numel(), dtype=torch.float32)
        whole = _as_stored(self, self._filled(place))
        whole._is_hf_initialized = True  # type: ignore[attr-defined] # or transformers would draw it anew
        return whole

    def __setattr__(self, name: str, value: Any) -> None:
        # by which transformers tells what is from a checkpoint (5.24, core_model_loading.py, set_param_for_module)
        if name == "weight" and isinstance(value, Tensor) and getattr(value, "_is_hf_initialized", False):
            self.take(value)
        elif name == "weight" and isinstance(value, Tensor) and name not in self._parameters:
            _release(self, nn.Parameter(value, requires_grad=False))  # as whole as what it is given
        else:
            super().__setattr__(name, value)

    def take(self, weight: Tensor) -> None:
        """Hold a weight, which may be on the meta device."""
        codes = self._quantized(weight)
        self._parameters.pop("weight", None)
        for name, tensor in zip(("codes", "scales"), codes, strict=True):
            own = nn.Parameter(tensor, requires_grad=False)  # of which processes keep no copies alike, as of buffers
            own._is_hf_initialized = True  # type: ignore[attr-defined]
            self.register_parameter(name, own)

    def _quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantization.quantize(_as_stored(self, weight.detach().float()).flatten(1).contiguous())

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight, until another layer asks for its own: on a CPU all use one place, as large as the largest."""
        size = self.dense_shape.numel()
        if self.codes.device.type != "cpu" or type(self.codes) is not nn.Parameter:  # one without numbers
            return self._filled(self.codes.new_empty(size, dtype=dtype))
        if len(_places.by_dtype.get(dtype, ())) < size:
            _places.by_dtype[dtype] = torch.empty(size, dtype=dtype)
        return self._filled(_places.by_dtype[dtype][:size])

    def _filled(self, place: Tensor) -> Tensor:
        self.quantization.fill(place, self.codes, self.scales)
        return place.view(self.dense_shape)

    def stands_for(self, whole: Tensor) -> bool:
        return all(map(torch.equal, self._quantized(whole.cpu()), (self.codes.cpu(), self.scales.cpu())))


def _as_stored(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as its layer stores it from [outputs, inputs, …], or the other way round."""
    return weight.T if isinstance(layer, Conv1D) else weight


class QuantizedLinear(Quantized, HeldLinear):  # type: ignore[override]
    """`nn.Linear`."""


class QuantizedConv1D(Quantized, HeldConv1D):
    """GPT-2's linear layer."""


class QuantizedConv2d(Quantized, HeldConv2d):  # type: ignore[override]
    """`nn.Conv2d`."""


class QuantizedConv1d(Quantized, HeldConv1d):  # type: ignore[override]
    """`nn.Conv1d`."""


def _computed(x: Tensor) -> torch.dtype:
    """The format of a product; models that cast to the format of a weight are not followed in that."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


class _Product(torch.autograd.Function):
    """A product with a weight of another format, made whole in each pass rather than kept whole in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Held, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x if weight is not None and weight.requires_grad else None)
        whole, rows = layer.dense(x.dtype), x.reshape(-1, x.shape[-1])
        output = x.new_empty(*x.shape[:-1], len(whole))  # no view, which layers around it could not add to
        if bias is None:
            torch.mm(rows, whole.T, out=output.view(-1, len(whole)))
        else:
            torch.addmm(bias.to(x.dtype), rows, whole.T, out=output.view(-1, len(whole)))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_weight = None if x is None else rows.T @ x.reshape(-1, x.shape[-1])
        of_bias = rows.sum(0) if ctx.needs_input_grad[3] else None
        of_x = gradient @ ctx.layer.dense(gradient.dtype) if ctx.needs_input_grad[0] else None
        return of_x, None, of_weight, of_bias


class _Convolution(torch.autograd.Function):
    """The same for a convolution with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _HeldConvolution, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer._conv_forward(x, layer.dense(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer, of_x = ctx.layer, None
        if ctx.needs_input_grad[0]:
            to_input = conv2d_input if gradient.ndim == 4 else conv1d_input
            weight, how = layer.dense(gradient.dtype), (layer.stride, layer.padding, layer.dilation, layer.groups)
            of_x = to_input(ctx.shape, weight, gradient, *how)  # type: ignore[no-untyped-call]
        of_bias = gradient.transpose(0, 1).flatten(1).sum(1) if ctx.needs_input_grad[2] else None
        return of_x, None, of_bias


_HELD: dict[type[nn.Module], type[Held]] = {
    nn.Linear: HeldLinear,
    Conv1D: HeldConv1D,
    nn.Embedding: HeldEmbedding,
    nn.Conv2d: HeldConv2d,
    nn.Conv1d: HeldConv1d,
}
"""By exact type: what derives from these may compute with another function of the weight."""
_QUANTIZED: dict[type[nn.Module], type[Quantized]] = {
    nn.Linear: QuantizedLinear,
    Conv1D: QuantizedConv1D,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv1d: QuantizedConv1d,
}
_PLAIN = {held: plain for kinds in (_HELD, _QUANTIZED) for plain, held in kinds.items()}

Keep = Callable[[PreTrainedModel], Sequence[str]]


@contextmanager
def loading_held(held: torch.dtype | Quantization, keep: Keep, *, exact: bool) -> Iterator[None]:
    """Have checkpoints loaded with the weights of their layers held so, of which no other copy is made on the way.

    Modules that `keep` names stay in fp32, and with them all that is no layer's matrix or not in the checkpoint; so do
    embeddings and convolutions if the result is to be `exact`: what autocast computes. transformers loads a weight in
    the dtype that the model has it in while it is still without weights (5.24, core_model_loading.py), and asks it for
    its plan of dtypes just before; then it draws what was not there. Raises CheckpointError where nothing is held.
    """
    plan, draw = PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights

    def held_plan(model: PreTrainedModel, asked: torch.dtype) -> dict[str, torch.dtype]:
        hold(model, held, keep=keep(model), exact=exact, loading=True)
        found: dict[str, torch.dtype] = plan(model, asked)
        return found

    def draw_whole(model: PreTrainedModel) -> None:
        for module in model.modules():
            weight = module._parameters.get("weight") if isinstance(module, Held) else None
            if isinstance(module, Held) and not (weight is None or getattr(weight, "_is_hf_initialized", False)):
                _release(module, nn.Parameter(torch.empty_like(weight, dtype=torch.float32)))
        for parameter in model.parameters():
            if parameter.dtype == torch.float32:  # a view of the file, which would stay in memory as a whole
                parameter.data = parameter.data.clone()
        draw(model)

    PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights = held_plan, draw_whole
    asynchronous = os.environ.get(_ONE_BY_ONE)
    if not isinstance(held, torch.dtype):
        os.environ[_ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan, PreTrainedModel.initialize_weights = plan, draw
        os.environ.pop(_ONE_BY_ONE, None)
        if asynchronous is not None:
            os.environ[_ONE_BY_ONE] = asynchronous


_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""Has transformers read a weight when the one before is in its place, rather than all in fp32 before they are held."""


def hold(
    model: nn.Module,
    held: torch.dtype | Quantization,
    *,
    keep: Sequence[str] = (),
    exact: bool,
    loading: bool = False,
) -> None:
    """Hold the weights of a model's layers so; those that are trained are to be among those to `keep`.

    With quantised ones, embeddings and what they are tied to or answer with are in bf16; while the model is `loading`,
    weights are quantised when they come. Raises CheckpointError where nothing is held, unless it was to be `exact`.
    """
    layers = {name: module for name, module in model.named_modules() if type(module) in _HELD}
    ends = tuple(f"{name}." for name in keep)
    left = {id(p) for name, p in model.named_parameters() if name.startswith(ends)}
    vectors = _vectors(model, layers)
    if exact:
        left |= vectors | {id(m.weight) for m in layers.values() if isinstance(m, nn.Conv1d | nn.Conv2d)}
    made: dict[int, nn.Parameter] = {}  # one for weights that are one
    for name, module in layers.items():
        weight = module.weight
        if id(weight) in left or weight.dtype != torch.float32 or not _may_be_held(module):
            continue
        module.held_as = name
        if not isinstance(held, torch.dtype) and id(weight) not in vectors and weight.numel() % 2 == 0:
            module.quantization, module.dense_shape = held, _as_stored(module, weight).shape
            module.__class__ = _QUANTIZED[type(module)]
            if not loading:
                module.take(weight)
            continue
        if id(weight) not in made:
            dtype = held if isinstance(held, torch.dtype) else _BESIDE_QUANTIZED
            made[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
        module.weight = made[id(weight)]
        module.__class__ = _HELD[type(module)]
    if not (exact or is_held(model)):
        raise CheckpointError(
            f"base_dtype: {type(model).__name__} has no weights that could be held in another format beside those that "
            "are trained. Leave `base_dtype` out."
        )


def hold_head(model: PreTrainedModel, held: torch.dtype | Quantization) -> None:
    """Hold what makes words of vectors, too, once a model is loaded and it is seen that it is tied to nothing."""
    head = model.get_output_embeddings()
    uses = (p for _, p in model.named_parameters(remove_duplicate=False))
    if type(head) is nn.Linear and sum(p is head.weight for p in uses) == 1:
        keep = [name for name, module in model.named_modules() if type(module) in _HELD and module is not head]
        hold(model, held, keep=keep, exact=False)


def _vectors(model: nn.Module, layers: dict[str, nn.Module]) -> set[int]:
    """Weights of embeddings and of what makes words of vectors, and all that are tied."""
    named = dict(model.named_parameters(remove_duplicate=False))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found = {id(named[name]) for pair in tied.items() for name in pair if name in named}
    found |= {id(module.weight) for module in layers.values() if isinstance(module, nn.Embedding)}
    answers = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found |= {id(p) for p in answers.parameters()} if isinstance(answers, nn.Module) else set()
    return found | {key for key, n in Counter(id(module.weight) for module in layers.values()).items() if n > 1}


def _may_be_held(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return True
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and layer.in_channels > _MOST_COLOURS


def is_held(model: nn.Module) -> bool:
    return any(isinstance(module, Held) for module in model.modules())


def saved_by_holding(model: nn.Module, *, bits: float) -> int:
    """Bytes that frozen weights would take less in a format of so many bits; below 16, those of no embedding."""
    kinds = {*_HELD, *_HELD.values()} if bits >= 16 else {*_QUANTIZED, HeldLinear, HeldConv1D}
    found = 0.0
    layers = [module for module in model.modules() if type(module) in kinds and _may_be_held(module)]
    for weight in {id(it): it for it in map(_weight, layers)}.values():
        found += 0 if weight.requires_grad else max(0.0, weight.element_size() - bits / 8) * weight.numel()
    return int(found)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def weight_sizes(model: nn.Module, *, repeated: bool = False) -> dict[str, tuple[torch.Size, bool]]:
    """The shape of each weight, those of quantised layers as they are when whole, and whether it is trained.

    Weights of several names are there once, unless they are to be `repeated`.
    """
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=not repeated):
        module, _, own = name.rpartition(".")
        layer = model.get_submodule(module)
        if not isinstance(layer, Quantized) or own == "bias":
            found[name] = parameter.shape, parameter.requires_grad
        elif own == "codes":
            found[f"{module}.weight"] = layer.dense_shape, False
    return found


def restore(model: nn.Module, original: PreTrainedModel, *, display_name: str) -> None:
    """Give all held layers the weights of `original`, the same checkpoint in fp32, and make them plain layers again.

    Raises CheckpointError where these, rounded, are not what was held: an adapter would stand on another base.
    """
    for module in model.modules():
        if not isinstance(module, Held):
            continue
        whole = original.get_submodule(module.held_as).weight
        if not module.stands_for(whole):
            raise CheckpointError(
                f"model {display_name}: {module.held_as} is no longer what training began with; the checkpoint has "
                "changed meanwhile. Fetch it again, and go on with --resume."
            )
        _release(module, whole.requires_grad_(False))


def _release(module: Held, weight: nn.Parameter) -> None:
    for name in ("weight", "codes", "scales"):
        module._parameters.pop(name, None)
    for name in ("held_as", "quantization", "dense_shape"):
        vars(module).pop(name, None)
    module.__class__ = _PLAIN[type(module)]  # type: ignore[assignment]
    module.register_parameter("weight", weight)
