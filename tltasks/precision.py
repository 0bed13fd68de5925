"""Which number format a device computes in."""

from __future__ import annotations

import torch

from tltasks.errors import RecipeError


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
