"""Weights in 8 and 4 bits, as bitsandbytes has them: its kernels, for CPUs and for GPUs of NVIDIA, AMD and Intel.

Its layers are not used. On a CPU that computes in bf16 those of 4 bits repack their weight in evaluation, and from then
on give no gradient to what is before them (bitsandbytes 0.50, nn/modules.py, autograd/_functions.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch._ops import _OpNamespace

_BLOCK = 64
"""Weights that share a scale, as in the paper."""
_PIECE = 2**17
"""Weights that a CPU takes at a time: what is made on the way stays in its cache, an eighth of the time for int8, and
leaves no holes in memory between codes."""


class Quantization(Protocol):
    """A format of codes and their scales."""

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight in fp32, [outputs, inputs]."""

    def fill(self, whole: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Write the weights that they stand for into a tensor in any format, [weights]."""


class Int8:
    """Whole numbers up to 127 and a scale for each output, as Dettmers et al. have weights.

    Products are of the whole weight: activations are not rounded. Source: https://arxiv.org/abs/2208.07339, §2.
    """

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))
        rows = max(1, _piece(weight) // weight.shape[1])
        for piece, *places in _pieces((weight, rows), (codes, rows), (scales, rows)):
            for place, made in zip(places, _kernels().int8_vectorwise_quant.default(piece, 0.0), strict=False):
                place.copy_(made)
        return codes, scales

    def fill(self, whole: Tensor, codes: Tensor, scales: Tensor) -> None:
        rows = max(1, _piece(codes) // codes.shape[1])
        for piece, its_codes, its_scales in _pieces((whole.view_as(codes), rows), (codes, rows), (scales, rows)):
            piece.copy_(_kernels().int8_vectorwise_dequant.default(its_codes, its_scales))


class NormalFloat4:
    """Quantiles of a normal distribution in 4 bits, with a scale for 64 weights: 4.5 bits each.

    Source: Dettmers et al., https://arxiv.org/abs/2305.14314, §3.
    """

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        size, weight = _piece(weight), weight.flatten()
        codes = torch.empty_like(weight[::2], dtype=torch.uint8)
        scales = weight.new_empty(-(-len(weight) // _BLOCK))
        for piece, *places in _pieces((weight, size), (codes, size // 2), (scales, size // _BLOCK)):
            for place, made in zip(
                places, _kernels().quantize_4bit.default(piece, _BLOCK, "nf4", torch.uint8), strict=True
            ):
                place.copy_(made.view(-1))
        return codes, scales

    def fill(self, whole: Tensor, codes: Tensor, scales: Tensor) -> None:
        size = _piece(codes)
        for piece, its_codes, its_scales in _pieces((whole, size), (codes, size // 2), (scales, size // _BLOCK)):
            # Rows of odd length would be computed by another way, which is compiled first; there is one row.
            made = _kernels().dequantize_4bit.default(its_codes, its_scales, _BLOCK, "nf4", [len(piece)], whole.dtype)
            piece.copy_(made.view(-1))


QUANTIZED: dict[str, Quantization] = {"int8": Int8(), "nf4": NormalFloat4()}


def _pieces(*parts: tuple[Tensor, int]) -> Iterator[tuple[Tensor, ...]]:
    """Tensors cut into as many pieces each, by the sizes of these."""
    return zip(*(torch.split(tensor, size) for tensor, size in parts), strict=True)


def _piece(tensor: Tensor) -> int:
    return _PIECE if tensor.device.type == "cpu" else 2**62


def _kernels() -> _OpNamespace:
    import bitsandbytes  # noqa: F401 - registers them with torch

    return torch.ops.bitsandbytes
