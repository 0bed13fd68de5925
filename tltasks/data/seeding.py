"""Seeds of random draws, from (seed, epoch, row) alone."""

from __future__ import annotations

import hashlib


def draw_seed(purpose: str, seed: int, epoch: int, row: int) -> int:
    """A seed for one row's draws: the same on every machine, unrelated between neighbours."""
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
