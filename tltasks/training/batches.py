"""Batches in the order of a plan, read by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from tltasks.data.batching import Rows

Batch = TypeVar("Batch", covariant=True)


class _Pieces(Dataset[Batch]):
    def __init__(self, collate: Callable[[list[int]], Batch], pieces: Sequence[Rows]) -> None:
        self.collate, self.pieces = collate, pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, i: int) -> Batch:
        return self.collate(self.pieces[i].tolist())


def read_batches(
    collate: Callable[[list[int]], Batch], pieces: Sequence[Rows], *, workers: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """One batch for each piece, in order; `collate` is pickled where workers do not fork."""
    return iter(DataLoader(_Pieces(collate, pieces), batch_size=None, num_workers=workers, pin_memory=pin_memory))
