"""Weights in 8 and 4 bits, as bitsandbytes has them: its kernels, for CPUs and for GPUs of NVIDIA, AMD and Intel.

Its layers are not used. On a CPU that computes in bf16 those of 4 bits repack their weight in evaluation, and from then
on give no gradient to what is before them (bitsandbytes 0.50, nn/modules.py, autograd/_functions.py).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch._ops import _OpNamespace

_BLOCK = 64
"""Weights that share a scale, as in the paper."""


class Quantization(Protocol):
    """A format of codes and their scales."""

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight in fp32, [outputs, inputs]."""

    def dense(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight that they stand for, which may have lost its shape."""


class Int8:
    """Whole numbers up to 127 and a scale for each output, as Dettmers et al. have weights.

    Products are of the whole weight: activations are not rounded. Source: https://arxiv.org/abs/2208.07339, §2.
    """

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales, _ = _kernels().int8_vectorwise_quant.default(weight, 0.0)
        return codes, scales

    def dense(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        whole: Tensor = _kernels().int8_vectorwise_dequant.default(codes, scales)
        return whole.to(dtype)


class NormalFloat4:
    """Quantiles of a normal distribution in 4 bits, with a scale for 64 weights: 4.5 bits each.

    Source: Dettmers et al., https://arxiv.org/abs/2305.14314, §3.
    """

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = _kernels().quantize_4bit.default(weight, _BLOCK, "nf4", torch.uint8)
        return codes, scales

    def dense(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        # By itself a row of odd length would be computed by another way, which is compiled first.
        whole: Tensor = _kernels().dequantize_4bit.default(codes, scales, _BLOCK, "nf4", [2 * codes.numel()], dtype)
        return whole


QUANTIZED: dict[str, Quantization] = {"int8": Int8(), "nf4": NormalFloat4()}


def _kernels() -> _OpNamespace:
    import bitsandbytes  # noqa: F401 - registers them with torch

    return torch.ops.bitsandbytes
