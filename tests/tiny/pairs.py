"""Two lists crossed: each value of both is tested by default, and every pair in the exhaustive tier."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def crossed(first: Iterable[Any], second: Sequence[Any]) -> list[Any]:
    """Parameters (a, b), with the mark `exhaustive` but for one b of each a, these by turns.

    >>> [param.values for param in crossed("abc", [1, 2]) if not param.marks]
    [('a', 1), ('b', 2), ('c', 1)]
    """
    return [
        pytest.param(a, b, marks=() if i % len(second) == j else pytest.mark.exhaustive)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
