"""Documents that are longer than a model reads at once, in pieces that it can read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from tltasks.metrics.rouge import sentence_ends


def split_document(text: str, *, room: int, count: Callable[[Sequence[str]], list[int]]) -> list[str]:
    """Pieces of at most `room` tokens and much the same length, cut where sentences or lines end.

    `count` gives the tokens of each of several texts. Only a sentence that is too long itself is cut inside.

    >>> def words(texts): return [len(text.split()) for text in texts]
    >>> split_document("It rains. We stay in. Then it stops.", room=6, count=words)
    ['It rains. We stay in.', 'Then it stops.']
    """
    ends = sentence_ends(text)
    parts = [text[start:end] for start, end in itertools.pairwise([0, *ends])]
    sizes = count(parts)
    while any(size > room and len(part) > 1 for part, size in zip(parts, sizes, strict=True)):
        parts = [
            half
            for part, size in zip(parts, sizes, strict=True)
            for half in (_halves(part) if size > room and len(part) > 1 else (part,))
        ]
        sizes = count(parts)
    share = sum(sizes) / max(1, math.ceil(sum(sizes) / room))
    pieces: list[str] = []
    filled = room
    for part, size in zip(parts, sizes, strict=True):
        if filled + size > room or filled >= share:
            pieces.append("")
            filled = 0
        pieces[-1] += part
        filled += size
    return [piece.strip() for piece in pieces if piece.strip()]


def _halves(text: str) -> tuple[str, str]:
    """Cut at the space nearest before the middle, or else behind it, or else in the middle."""
    middle = len(text) // 2
    before, behind = text.rfind(" ", 1, middle), text.find(" ", middle, len(text) - 1)
    cut = next((space for space in (before, behind) if space > 0), middle)
    return text[:cut], text[cut:]
