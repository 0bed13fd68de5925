"""Extractiveness and repetition of a summary, without regard to a reference."""

from __future__ import annotations

from collections.abc import Sequence

Tokens = Sequence[str]


def extractive_fragments(document: Tokens, summary: Tokens) -> list[int]:
    """Lengths of the longest runs of the document from which the summary is put together, taken greedily.

    Source: Grusky et al., https://arxiv.org/abs/1804.11283, figure 3.

    >>> extractive_fragments("the cat sat on the mat".split(), "a cat sat on my mat".split())
    [3, 1]
    """
    places: dict[str, list[int]] = {}
    for at, token in enumerate(document):
        places.setdefault(token, []).append(at)
    found: list[int] = []
    i = 0
    while i < len(summary):
        longest = 0
        for start in places.get(summary[i], ()):
            n = 0
            while i + n < len(summary) and start + n < len(document) and summary[i + n] == document[start + n]:
                n += 1
            longest = max(longest, n)
        if longest:
            found.append(longest)
        i += max(longest, 1)
    return found


def coverage_and_density(document: Tokens, summary: Tokens) -> tuple[float, float]:
    """Share of the summary's tokens that are in fragments of the document, and the mean squared fragment length.

    Source: Grusky et al., https://arxiv.org/abs/1804.11283, equations 1 and 2.

    >>> coverage_and_density("the cat sat on the mat".split(), "a cat sat on my mat".split())
    (0.6666666666666666, 1.6666666666666667)
    """
    if not summary:
        return 0.0, 0.0
    lengths = extractive_fragments(document, summary)
    return sum(lengths) / len(summary), sum(n * n for n in lengths) / len(summary)


def repetition(summary: Tokens, n: int = 3) -> float:
    """Share of a summary's n-grams that it has had before.

    >>> repetition("a b c a b c".split()), repetition("a b".split())
    (0.25, 0.0)
    """
    grams = ngrams(summary, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def new_ngrams(document: Tokens, summary: Tokens, n: int = 2) -> float:
    """Share of a summary's n-grams that are not in its document.

    >>> new_ngrams("the cat sat".split(), "the cat ran".split())
    0.5
    """
    grams = ngrams(summary, n)
    known = set(ngrams(document, n))
    return sum(gram not in known for gram in grams) / len(grams) if grams else 0.0


def ngrams(words: Tokens, n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order.

    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
