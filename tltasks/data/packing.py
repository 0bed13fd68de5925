"""Token ids as batches; several examples in one row of a decoder-only model's batch, each blind to the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Examples that share a row: first-fit decreasing, no row longer than `capacity`.

    >>> pack([5, 9, 3, 4], capacity=9)
    [[1], [0, 3], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((row for row, left in enumerate(room) if left >= lengths[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(capacity)
        rows[at].append(i)
        room[at] -= lengths[i]
    return rows


def packed_batch(
    prompts: Sequence[NDArray[np.int64]], summaries: Sequence[NDArray[np.int64]], *, packed: bool
) -> dict[str, Tensor]:
    """Rows of examples [rows, longest example]: `input_ids`, `labels`, `position_ids` and `segments`.

    Label i is what follows token i, and -100 but for the summary. Segments number the examples of a row from 1; 0 is
    padding. Without `packed` each example has a row of its own.
    """
    lengths = [len(prompt) + len(summary) for prompt, summary in zip(prompts, summaries, strict=True)]
    width = max(lengths)
    rows = pack(lengths, capacity=width) if packed else [[i] for i in range(len(lengths))]
    batch = {
        "input_ids": np.zeros((len(rows), width), dtype=np.int64),
        "labels": np.full((len(rows), width), -100, dtype=np.int64),
        "position_ids": np.zeros((len(rows), width), dtype=np.int64),
        "segments": np.zeros((len(rows), width), dtype=np.int64),
    }
    for row, members in enumerate(rows):
        start = 0
        for number, i in enumerate(members, start=1):
            end = start + lengths[i]
            batch["input_ids"][row, start:end] = np.concatenate([prompts[i], summaries[i]])
            batch["labels"][row, start + len(prompts[i]) - 1 : end - 1] = summaries[i]
            batch["position_ids"][row, start:end] = np.arange(lengths[i])
            batch["segments"][row, start:end] = number
            start = end
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def padded(
    rows: Sequence[Sequence[int] | NDArray[np.int64]], *, fill: int, left: bool = False, least: int = 0
) -> Tensor:
    """Rows of unequal length as int64 [rows, longest or `least`], filled up at the right, or at the left."""
    width = max(least, *(len(row) for row in rows))
    array = np.full((len(rows), width), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        array[i, width - len(row) if left else 0 : width if left else len(row)] = row
    return torch.from_numpy(array)


def padded_inputs(
    rows: Sequence[Sequence[int] | NDArray[np.int64]], *, pad: int, left: bool = False
) -> dict[str, Tensor]:
    """Rows of token ids as a model's `input_ids` and `attention_mask`."""
    seen = [[1] * len(row) for row in rows]
    return {"input_ids": padded(rows, fill=pad, left=left), "attention_mask": padded(seen, fill=0, left=left)}


def shifted(labels: Tensor, *, start: int, fill: int) -> Tensor:
    """Inputs by which a decoder writes the labels: their ids one place later, after the one that it starts with."""
    ids = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return ids.masked_fill(ids < 0, fill)
