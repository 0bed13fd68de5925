"""The lead baseline: the beginning of a document as its summary, which many trained models do not beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tltasks.metrics.rouge import pair_scores, sentences, token_ends

CANDIDATE_SENTENCES = (1, 2, 3, 4, 5)
CANDIDATE_WORDS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96)
LARGEST_SAMPLE = 500
"""Pairs that k is chosen on; more would take minutes and move it little."""


@dataclass(frozen=True)
class Lead:
    """The first k sentences or words."""

    k: int
    unit: Literal["sentences", "words"]

    @property
    def name(self) -> str:
        return f"lead_{self.k}_{self.unit if self.k > 1 else self.unit.removesuffix('s')}"

    def __call__(self, document: str) -> str:
        """
        >>> Lead(3, "words")("The cat, that sat."), Lead(1, "sentences")("It rains. Stay in.")
        ('The cat, that', 'It rains.')
        """
        if self.unit == "sentences":
            return " ".join(sentences(document)[: self.k])
        ends = token_ends(document)[: self.k]
        return document[: ends[-1]].strip() if ends else document


DEFAULT_LEAD = Lead(3, "sentences")
"""The usual choice for news, where there is nothing to choose k on."""


def choose_lead(documents: Sequence[str], summaries: Sequence[str], *, seed: int) -> Lead:
    """The number of sentences or words with the best mean ROUGE-1 on these pairs."""
    sample = list(range(len(documents)))
    if len(documents) > LARGEST_SAMPLE:
        sample = sorted(np.random.default_rng(seed).choice(len(documents), LARGEST_SAMPLE, replace=False).tolist())
    pairs = [(documents[i], summaries[i]) for i in sample]
    candidates = [Lead(k, "sentences") for k in CANDIDATE_SENTENCES] + [Lead(k, "words") for k in CANDIDATE_WORDS]
    return max(candidates, key=lambda lead: sum(pair_scores(lead(d), s)[0] for d, s in pairs))
