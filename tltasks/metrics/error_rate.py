"""Texts that were heard against texts that were said: normalisers, error counts, aligned differences.

Rates are ratios of sums over utterances, never means of rates: errors / words (or characters) of the references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

Normaliser = Callable[[str], str]

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts, as the names of their characters begin, that put no spaces between words."""
BUCKET_SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Upper ends of the durations by which errors are broken down."""


def normaliser(name: str) -> Normaliser:
    """The normaliser of that name: none, basic, unaccented or english."""
    return {"none": _evened, "basic": _basic, "unaccented": _unaccented, "english": _english}[name]


def _evened(text: str) -> str:
    """No more than what cannot be heard nor seen: one form of each character, one space between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _basic(text: str) -> str:
    """Case, width, punctuation and symbols evened out; marks stay, on which Indic and Arabic words depend.

    Whisper's own rule for other languages drops them (openai/whisper discussion 2849). Apostrophes go without a gap.

    >>> _basic("¿Qué “tal”?  L'été — १२ कि.")
    'qué tal lété १२ कि'
    """
    kept = []
    for character in unicodedata.normalize("NFKC", text).casefold():
        if character in "'’ʼ":
            continue
        drop = unicodedata.category(character)[0] in "PSC"
        kept.append(" " if drop else character)
    return " ".join("".join(kept).split())


def _unaccented(text: str) -> str:
    """Basic, and Latin, Greek and Cyrillic letters without their accents, for references that leave them out.

    >>> _unaccented("Trés años; кий й"), _unaccented("कि")
    ('tres anos кии и', 'कि')
    """
    kept: list[str] = []
    accented = False
    for character in unicodedata.normalize("NFD", _basic(text)):
        if unicodedata.category(character) == "Mn":
            if not accented:
                kept.append(character)
            continue
        accented = unicodedata.name(character, "").startswith(("LATIN", "GREEK", "CYRILLIC"))
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def _english(text: str) -> str:
    """Whisper's rules for English: numbers as digits, contractions written out. Spelling variants stay apart.

    >>> _english("Mr. Brown won't press twenty-one, um, twice!")
    'mister brown will not press 21 twice'
    """
    return str(_english_rules()(text))


@lru_cache(maxsize=1)
def _english_rules() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def writes_without_spaces(texts: Sequence[str]) -> bool:
    """Whether a language puts no spaces between words, by the script of most letters of its texts.

    >>> writes_without_spaces(["今天天气很好", "OK"]), writes_without_spaces(["Guten Tag", "안녕 하세요"])
    (True, False)
    """
    letters = unspaced = 0
    for text in texts:
        for character in text:
            if character.isalpha():
                letters += 1
                unspaced += is_unspaced(character)
    return unspaced * 2 > letters


def is_unspaced(character: str) -> bool:
    return ord(character) > 0x0E00 and unicodedata.name(character, "").startswith(UNSPACED)


# ------------------------------------------------------------------------------------------- counting

COLUMNS = ("substitutions", "deletions", "insertions", "words", "character_errors", "characters")


def count_errors(predictions: Sequence[str], references: Sequence[str], *, spaced: bool) -> NDArray[np.float64]:
    """Errors and sizes of each utterance, [utterances, COLUMNS], of texts that are normalised already.

    Characters are counted without spaces where the language has none.
    """
    found = np.zeros((len(references), len(COLUMNS)))
    for i, (said, heard) in enumerate(zip(references, predictions, strict=True)):
        words, other = said.split(), heard.split()
        if not words:
            found[i, :4] = 0, 0, len(other), 0
        else:
            aligned = jiwer.process_words(said, heard)
            found[i, :4] = aligned.substitutions, aligned.deletions, aligned.insertions, len(words)
        gap = " " if spaced else ""
        characters, others = gap.join(words), gap.join(other)
        if characters:
            by_character = jiwer.process_characters(characters, others)
            errors = by_character.substitutions + by_character.deletions + by_character.insertions
        else:
            errors = len(others)
        found[i, 4:] = errors, len(characters)
    return found


def error_rates(counts: NDArray[np.float64]) -> dict[str, float]:
    """Word and character error rates, and the parts of the former, of counts by utterance."""
    total = dict(zip(COLUMNS, counts.sum(0).tolist(), strict=True))
    words, characters = max(total["words"], 1.0), max(total["characters"], 1.0)
    parts = {name: total[name] / words for name in ("substitutions", "deletions", "insertions")}
    return {"wer": sum(parts.values()), "cer": total["character_errors"] / characters, **parts}


def rates_by_duration(counts: NDArray[np.float64], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Error rates of short and of long utterances; ranges without any are left out."""
    edges = (0.0, *BUCKET_SECONDS, float("inf"))
    which = np.digitize(np.asarray(seconds), BUCKET_SECONDS)
    rows = []
    for i in range(len(edges) - 1):
        inside = counts[which == i]
        if len(inside):
            rates = error_rates(inside)
            upper = edges[i + 1] if np.isfinite(edges[i + 1]) else None
            rows.append(
                {"from": edges[i], "to": upper, "examples": len(inside), "wer": rates["wer"], "cer": rates["cer"]}
            )
    return rows


@dataclass(frozen=True)
class Difference:
    """One utterance's texts, one above the other: what was said, what was heard, and a mark below each error."""

    said: str
    heard: str
    marks: str

    def __str__(self) -> str:
        return f"said  {self.said}\nheard {self.heard}\n      {self.marks}".rstrip()


def align_words(heard: str, said: str) -> Difference:
    """Word by word, with S, D or I (substituted, deleted, inserted) below each error.

    >>> print(align_words("press the bound key now", "press the pound key"))
    said  press the pound key ***
    heard press the bound key now
                    S         I
    """
    ours, theirs = said.split(), heard.split()
    columns: list[tuple[str, str, str]] = []
    if not ours:
        columns = [("*" * len(word), word, "I") for word in theirs]
    else:
        for chunk in jiwer.process_words(" ".join(ours), " ".join(theirs)).alignments[0]:
            mine = ours[chunk.ref_start_idx : chunk.ref_end_idx]
            other = theirs[chunk.hyp_start_idx : chunk.hyp_end_idx]
            mark = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}[chunk.type]
            for i in range(max(len(mine), len(other))):
                left, right = mine[i] if i < len(mine) else "", other[i] if i < len(other) else ""
                columns.append((left or "*" * len(right), right or "*" * len(left), mark))
    lines = (" ".join(column[part].ljust(max(map(len, column))) for column in columns) for part in range(3))
    return Difference(*(line.rstrip() for line in lines))
