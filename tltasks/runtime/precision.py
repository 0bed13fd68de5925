"""Number formats of a device, and its way to attend."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from tltasks.config.adaptation import Adapt
from tltasks.errors import RecipeError
from tltasks.runtime.attention import attend


def usable_accelerator() -> torch.device | None:
    """The accelerator to compute on. Not Apple's (mps), on which nothing is tested: a Mac computes on its CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None or found.type == "mps" else found


def fast_formats(device: torch.device) -> list[str]:
    """Formats in which the device computes faster than in fp32, the best first."""
    if device.type == "cuda":
        return ["bf16", "fp16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp16"]
    if device.type == "mps":
        return ["bf16", "fp16"]
    if device.type == "xpu":
        return ["bf16"]
    # Private names (torch 2.14, torch/cpu/__init__.py): the public capability string stops at AVX512.
    cpu = torch.cpu
    return ["bf16"] if cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported() else []


@cache
def multiplies_in_16_bits() -> bool:
    """Tell whether this CPU has kernels for products in bf16 (AVX-512 at least): torch else multiplies one by one,
    twenty times as slow as its fused attention."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(requested: str, device: torch.device) -> str:
    """`auto` is bf16 where the device is faster in it, else fp32. Weights and optimiser stay in fp32 in any case.

    Raises RecipeError for fp16 without hardware for it: a CPU would accept it and be slow and inexact.
    """
    fast = fast_formats(device)
    if requested == "auto":
        return "bf16" if "bf16" in fast else "fp32"
    if requested == "fp16" and "fp16" not in fast:
        raise RecipeError(f"precision: fp16 needs a GPU, found {device.type}. Use `auto`, `bf16` or `fp32`.")
    return requested


_BESIDE = {"lora", "adalora", "ia3", "prompt"}
"""Methods that leave the product with a frozen weight to its layer, rather than compute with the weight themselves."""


def choose_base_dtype(requested: str, *, precision: str, adapt: Adapt) -> str:
    """`auto` is what products are computed in where the weights are not trained: casting them once or each time is one.

    Methods that read the weights themselves, or start out of them, have them in fp32.
    """
    if requested == "auto":
        return precision if adapt.method in _BESIDE and adapt.stands_alone else "fp32"
    return requested


_QUANTIZING = ("cpu", "cuda", "xpu")
"""Kinds of devices for which bitsandbytes 0.50 brings kernels; AMD's are `cuda`, too."""


def check_base_dtype(requested: str, device: torch.device) -> None:
    """Raise RecipeError for a format that the device cannot compute beside."""
    if requested in {"int8", "nf4"} and device.type not in _QUANTIZING:
        raise RecipeError(
            f"base_dtype: {requested} is computed by bitsandbytes, which has nothing for {device.type}. Use "
            "`base_dtype: bf16`, which needs half of the memory of fp32."
        )


OVERFLOWING_FP16 = {"t5", "mt5", "umt5", "longt5", "switch_transformers", "pegasus"}
"""Architectures whose activations exceed fp16's 65504: trained in bf16, which has the range of fp32."""


def check_architecture(precision: str, architecture: str, *, shown: str) -> None:
    """Raise RecipeError for a format in which the architecture is known to overflow."""
    if precision == "fp16" and architecture in OVERFLOWING_FP16:
        raise RecipeError(
            f"precision: fp16 cannot hold the activations of {shown} ({architecture}); its loss would not be finite. "
            "Use `bf16`, or `fp32` where the device has no bf16."
        )


LONGEST_PLAIN = 256
"""Tokens up to which a CPU attends faster by plain products than by torch's fused kernel in 16 bits.

Measured with torch 2.14: forward and backward passes of ViT-S/16 at 224 px (197 tokens) are 1.3 times as fast; from
about 500 tokens the fused kernel wins, and in fp32 there is no difference up to 197.
"""


def choose_attention(model: nn.Module, *, tokens: int | None, device: torch.device, precision: str) -> None:
    """Let a model attend to `tokens` at once in the way that is fastest here; results agree to rounding."""
    if device.type != "cpu" or precision == "fp32" or not multiplies_in_16_bits():
        return
    if tokens is None or tokens > LONGEST_PLAIN:
        return
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_PLAIN)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def hold_cast(model: nn.Module, precision: str) -> None:
    """Hold weights of products as autocast would cast them at each pass: the same bits, for a model that only answers.

    Weights that are also embeddings, which autocast leaves in fp32, stay as they are.
    """
    if precision not in _DTYPES:
        return
    products = [module for module in model.modules() if type(module) in _PRODUCTS]
    held = {id(module) for module in products}
    elsewhere = {
        id(p) for module in model.modules() if id(module) not in held for p in module.parameters(recurse=False)
    }
    for module in products:
        if not any(id(p) in elsewhere for p in module.parameters(recurse=False)):
            module.to(_DTYPES[precision])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of [rows, heads, tokens, width] each, as [rows, tokens, heads, width].

    transformers' own plain way holds the shares in fp32 in between, which a softmax does not need: it sums in fp32.
    """
    fixed = attention_mask is None or not attention_mask.requires_grad
    if fixed and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
        mixed = attend(query, key, value, attention_mask, dropout if module.training else 0.0, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores + attention_mask
    shares = functional.dropout(functional.softmax(scores, dim=-1), dropout, training=module.training)
    return (shares @ value).transpose(1, 2).contiguous(), None


_PLAIN = "plain_16_bit"
AttentionInterface.register(_PLAIN, _attend)
