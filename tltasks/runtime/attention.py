"""Attention of a training step in 16 bits on a CPU, by products of matrices a few heads at a time.

torch's kernels for CPUs (2.14) compute attention with a mask or dropout in fp32 and by its parts, and reach a third of
the rate of these products otherwise. Shares of attention are kept for the backward pass where they are small, and are
computed anew where they would be most of what a step keeps, as Dao et al. do (https://arxiv.org/abs/2205.14135).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

AT_ONCE = 2**21
"""Scores that are in memory at once: 4 MiB, which a processor's cache holds."""
KEPT = 2**17
"""Most scores of a head and row whose shares are kept for the backward pass."""

STEPS = 2**15
"""Dropout keeps a whole number of these."""
_BITS = {2: torch.int16, 4: torch.int32}
"""Formats of whole numbers by their bytes."""
_plain = functional.scaled_dot_product_attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`functional.scaled_dot_product_attention`, in another way where that is faster."""
    trains = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    formats = {query.dtype, key.dtype, value.dtype}
    shapes = query.shape[:2] == key.shape[:2] == value.shape[:2] and query.ndim == 4
    causal = is_causal and attn_mask is not None
    if not trains or formats != {torch.bfloat16} or not shapes or enable_gqa or causal or query.device.type != "cpu":
        return _plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    mask = None if attn_mask is None else remembered(attn_mask, "additive", lambda: _additive(attn_mask))
    if attn_mask is not None and (mask is None or attn_mask.requires_grad):
        return _by_torch(query, key, value, attn_mask, dropout_p, scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(query, key, value, mask, dropout_p, scale)  # type: ignore[no-any-return]


def _by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float, scale: float | None) -> Tensor:
    """By torch's own function; written out where there is dropout, for which that draws from what threads share."""
    if not dropout_p:
        return _plain(query, key, value, mask, scale=scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask.dtype == torch.bool:
        mask = torch.zeros(()).where(mask, -torch.inf)
    shares = torch._safe_softmax((query * scale) @ key.transpose(-2, -1) + mask, -1, dtype=torch.float32)
    factors = draw_kept(shares.shape, dropout_p).to(query.dtype).mul_(-STEPS / kept_steps(dropout_p))
    return (shares.to(query.dtype) * factors) @ value


def remembered(tensor: Tensor, made: Hashable, make: Callable[[], Any], other: Tensor | None = None) -> Any:
    """A thing that `make` makes of a tensor, and of another one: once for all who ask while neither changes."""
    state = made, tensor._version, None if other is None else other._version
    kept: tuple[object, Tensor | None, Any] | None = getattr(tensor, "_made", None)
    if kept is None or kept[0] != state or kept[1] is not other:
        kept = state, other, make()
        tensor._made = kept  # type: ignore[attr-defined]
    return kept[2]


def _additive(mask: Tensor) -> Tensor | None:
    """A finite mask that is added to scores; None where a position attends to nothing, which torch has an answer to."""
    least = torch.finfo(torch.bfloat16).min
    hidden = ~mask if mask.dtype == torch.bool else mask == -math.inf
    if bool(hidden.all(-1).any()):
        return None
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(hidden, least)
    return mask.detach().to(torch.bfloat16).masked_fill_(hidden, least) if bool(hidden.any()) else mask.bfloat16()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float
    ) -> Tensor:
        (rows, heads, length), width = query.shape[:3], value.shape[-1]
        query = query if scale == 1 else query * scale
        query, key, value = (tensor.flatten(0, 1).contiguous() for tensor in (query, key, value))
        kept, seeds = list[Tensor](), list[int]()
        output = query.new_empty(rows, length, heads, width)  # as the next layer reads it
        keeps = length * key.shape[-2] <= KEPT
        for part, n, own in _parts(rows, heads, length, key.shape[-2], mask):
            shares = _shares(query[part], key[part], n, own)
            used = shares
            if dropout:
                seeds.append(_draw_seed())
                drawn = draw_kept(shares.shape, dropout, seed=seeds[-1])
                used = keep_only(shares, drawn, dropout)
                kept += [drawn] if keeps else []
            kept += [shares] if keeps else []
            _put(output, part, torch.bmm(used, value[part]))
        ctx.save_for_backward(query, key, value, mask, *kept)
        ctx.shape, ctx.dropout, ctx.scale, ctx.seeds, ctx.keeps = (rows, heads), dropout, scale, seeds, keeps
        return output.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *kept = ctx.saved_tensors
        (rows, heads), dropout, left = ctx.shape, ctx.dropout, iter(kept)
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        of_query, of_key, of_value = found
        for i, (part, n, own) in enumerate(_parts(rows, heads, query.shape[-2], key.shape[-2], mask)):
            drawn = None
            if ctx.keeps:
                drawn = next(left) if dropout else None
                shares = next(left)
            else:
                shares = _shares(query[part], key[part], n, own)
                drawn = draw_kept(shares.shape, dropout, seed=ctx.seeds[i]) if dropout else None
            of_output = _taken(gradient, part)
            of_shares = torch.bmm(of_output, value[part].transpose(1, 2))
            used = shares
            if drawn is not None:
                used, of_shares = keep_only(shares, drawn, dropout), keep_only(of_shares, drawn, dropout)
            torch.bmm(used.transpose(1, 2), of_output, out=of_value[part])
            of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            torch.bmm(of_scores, key[part], out=of_query[part])
            torch.bmm(of_scores.transpose(1, 2), query[part], out=of_key[part])
        if ctx.scale != 1:
            of_query.mul_(ctx.scale)
        return *(tensor.view(rows, heads, *tensor.shape[1:]) for tensor in found), None, None, None


def _parts(
    rows: int, heads: int, length: int, keys: int, mask: Tensor | None
) -> Iterator[tuple[slice, int, Tensor | None]]:
    """Heads of all rows, so many at a time as `AT_ONCE` says: where, how many of a row, and what their scores get."""
    if rows * heads * length * keys <= AT_ONCE:
        yield slice(None), heads, mask
        return
    at_once = max(1, min(heads, AT_ONCE // (length * keys)))
    whole = None if mask is None else mask.expand(rows, heads, length, keys)
    for row in range(rows):
        for head in range(0, heads, at_once):
            end = min(heads, head + at_once)
            yield (
                slice(row * heads + head, row * heads + end),
                end - head,
                None if whole is None else whole[row, head:end],
            )


def _shares(query: Tensor, key: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        scores.view(-1, heads, *scores.shape[1:]).add_(mask)
    return torch.softmax(scores, -1)


def _put(output: Tensor, part: slice, made: Tensor) -> None:
    """Write [rows × heads, length, width] where they belong in [rows, length, heads, width]."""
    rows, _, heads, _ = output.shape
    if part == slice(None):
        output.copy_(made.view(rows, heads, *made.shape[1:]).transpose(1, 2))
    else:
        row, head = divmod(part.start, heads)
        output[row, :, head : head + len(made)].copy_(made.transpose(0, 1))


def _taken(gradient: Tensor, part: slice) -> Tensor:
    """Those heads [heads, length, width] of the gradient [rows, heads, length, width]."""
    if part == slice(None):
        return gradient.flatten(0, 1).contiguous()
    row, head = divmod(part.start, gradient.shape[1])
    return gradient[row, head : head + part.stop - part.start].contiguous()


_thread = threading.local()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Have this thread draw its masks from a generator of its own."""
    _thread.generator = generator
    try:
        yield
    finally:
        del _thread.generator


def _draw_seed() -> int:
    drawn = torch.empty((), dtype=torch.int64).random_(generator=getattr(_thread, "generator", None))
    return int(drawn)


def draw_kept(shape: torch.Size, p: float, *, seed: int | None = None) -> Tensor:
    """A mask of values that dropout keeps: -1, all of whose bits are set, where it does, and 0 elsewhere.

    Four are of one random number. torch (2.14, ATen/native/Dropout.cpp) draws one for each, at ten times the time, and
    keeps them in the format of its input.
    """
    size = shape.numel()
    numbers = np.random.SFC64(_draw_seed() if seed is None else seed).random_raw(-(-size // 4))
    drawn = torch.from_numpy(numbers.view(np.int16)[:size]).view(shape)
    # A number below it has a negative difference, whose sign is spread over all bits.
    least = kept_steps(p) - STEPS // 2
    return drawn.bitwise_right_shift_(1).sub_(least).bitwise_right_shift_(15).to(torch.int8)


def kept_steps(p: float) -> int:
    """So many of `STEPS` are kept."""
    return max(1, round((1 - p) * STEPS))


def keep_only(values: Tensor, kept: Tensor, p: float) -> Tensor:
    """Values as dropout leaves them. By their bits, as torch's conversions from truth values take most of the time."""
    bits = _BITS[values.element_size()]
    return kept.to(bits).bitwise_and_(values.view(bits)).view(values.dtype).mul_(STEPS / kept_steps(p))
