"""ROUGE for any script: the reference implementation's arithmetic on tokens that do not lose non-Latin text.

The reference tokenizer keeps a-z and 0-9 and drops the rest, so that a Chinese or Arabic summary scores 0
(evaluate issues 108, 256 and 465). Here a token is a run of letters, marks and digits; in scripts that are written
without spaces it is one character with its marks. On plain English both give the same tokens.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import regex
from numpy.typing import NDArray

from tltasks.metrics.scripts import UNSEEN, UNSPACED, without_unseen

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_TOKEN = regex.compile(
    rf"[[{UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"  # one character and its marks
    rf"|[[\p{{L}}\p{{N}}]--[{UNSPACED}{UNSEEN}]][[\p{{L}}\p{{M}}\p{{N}}{UNSEEN}]--[{UNSPACED}]]*",
    regex.V1,
)
_SENTENCE_END = regex.compile(r"\n+|(?<=[.!?…؟۔।][\"'”’»)\]]*)\s+|(?<=[。！？｡]+[」』”’）]*)(?![。！？｡」』”’）])")


def tokens(text: str) -> list[str]:
    """Words in lower case, or characters where a script has no spaces between words.

    >>> tokens("Don't panic: it's 42!"), tokens("2024年の東京")
    (['don', 't', 'panic', 'it', 's', '42'], ['2024', '年', 'の', '東', '京'])
    """
    even = without_unseen(unicodedata.normalize("NFKC", text)).replace("İ", "i").lower()  # else i and a dot
    found: list[str] = _TOKEN.findall(even)
    return found


def token_ends(text: str) -> list[int]:
    """The ends of the tokens in the text, to cut it after a number of them; case and form are left alone.

    >>> token_ends("One, two.")
    [3, 8]
    """
    return [match.end() for match in _TOKEN.finditer(text)]


def sentence_ends(text: str) -> list[int]:
    """The ends of the sentences in the text, the space behind each included.

    >>> sentence_ends("It rains. Stay in!")
    [10, 18]
    """
    inner = [found.end() for found in _SENTENCE_END.finditer(text)]
    return inner if inner and inner[-1] == len(text) else [*inner, len(text)]


def sentences(text: str) -> list[str]:
    """Sentences by their closing marks; lines are sentences of their own.

    >>> sentences("It rains. Stay in!"), sentences("今日は雨。家にいる。")
    (['It rains.', 'Stay in!'], ['今日は雨。', '家にいる。'])
    """
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


class _Tokenizer:
    tokenize = staticmethod(tokens)


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second

    return RougeScorer(list(KINDS), tokenizer=_Tokenizer())


@lru_cache(maxsize=100_000)
def pair_scores(prediction: str, reference: str) -> tuple[float, ...]:
    """F-measures of one pair in the order of `KINDS`, from 0 to 100.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, https://aclanthology.org/W04-1013.
    """
    scored = _scorer().score("\n".join(sentences(reference)), "\n".join(sentences(prediction)))
    return tuple(100 * float(scored[kind].fmeasure) for kind in KINDS)


def row_scores(predictions: list[str], references: list[str]) -> NDArray[np.float64]:
    """F-measures of each pair, [rows, 4] in the order of `KINDS`."""
    pairs = zip(predictions, references, strict=True)
    return np.array([pair_scores(*pair) for pair in pairs], dtype=np.float64).reshape(-1, len(KINDS))
