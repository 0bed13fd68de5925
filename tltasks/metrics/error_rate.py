"""Word and character error rates: normalisers, counts, alignment.

Rates are ratios of sums over utterances, never means of rates: errors / words (or characters) of the references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache

import jiwer
import numpy as np
import regex
from numpy.typing import NDArray

from tltasks.metrics.arrays import Floats
from tltasks.metrics.scripts import even_apostrophes, without_inner_marks, without_unseen

Normaliser = Callable[[str], str]

BUCKET_SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Upper ends of the durations by which errors are broken down."""
_GAP = regex.compile(r"[\p{P}\p{S}\p{C}]")
_SPOKEN = regex.compile(r"[\p{L}\p{N}]")
_DOTS = regex.compile(r"\.{2,}|…")
_SHAPING = "\u200c\u200dـ"


def normaliser(name: str) -> Normaliser:
    """The normaliser of that name: none, basic, unaccented or english."""
    return {"none": _evened, "basic": _basic, "unaccented": _unaccented, "english": _english}[name]


def _evened(text: str) -> str:
    """Even out what can be neither heard nor seen: one form of each character, one space between words.

    Joiners and the tatweel stay: they change how letters look.
    """
    return " ".join(without_unseen(unicodedata.normalize("NFC", text), keep=_SHAPING).split())


def _basic(text: str) -> str:
    """Case, width, punctuation and symbols evened out; marks stay, on which Indic and Arabic words depend.

    Whisper's own rule for other languages drops them (openai/whisper discussion 2849). Marks inside words go without a
    gap, and so does what is not seen.

    >>> _basic("¿Qué “tal”?  L'été — १२ कि.")
    'qué tal lété १२ कि'
    """
    even = unicodedata.normalize("NFKC", even_apostrophes(text)).replace("İ", "i").casefold()  # else i and a dot
    return _words(_GAP.sub(" ", without_inner_marks(without_unseen(even))))


def _words(text: str) -> str:
    """Words alone: what has neither letter nor digit is none."""
    return " ".join(word for word in text.split() if _SPOKEN.search(word))


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

    The rules leave dots and signs that stand alone, and know one form of the apostrophe.

    >>> _english("Mr. Brown won’t press twenty-one, um, twice ...")
    'mister brown will not press 21 twice'
    """
    return _words(_english_rules()(_DOTS.sub(" ", even_apostrophes(without_unseen(text)))))


@lru_cache(maxsize=1)
def _english_rules() -> Normaliser:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    rules: Normaliser = EnglishTextNormalizer({})
    return rules


# ------------------------------------------------------------------------------------------- counting

COLUMNS = ("substitutions", "deletions", "insertions", "words", "character_errors", "characters")


def count_errors(predictions: Sequence[str], references: Sequence[str], *, spaced: bool) -> NDArray[np.float64]:
    """Errors and sizes of each utterance, [utterances, COLUMNS], of texts that are normalised already.

    Characters are counted without spaces where the language has none.
    """
    gap = " " if spaced else ""
    found = np.zeros((len(references), len(COLUMNS)))
    for i, (reference, hypothesis) in enumerate(zip(references, predictions, strict=True)):
        by_word = jiwer.process_words(reference, hypothesis)
        by_character = jiwer.process_characters(gap.join(reference.split()), gap.join(hypothesis.split()))
        found[i] = (*_errors(by_word), _size(by_word), sum(_errors(by_character)), _size(by_character))
    return found


def _errors(aligned: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int, int]:
    return aligned.substitutions, aligned.deletions, aligned.insertions


def _size(aligned: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    """Words or characters of the reference."""
    return int(aligned.hits + aligned.substitutions + aligned.deletions)


def error_rates(counts: Floats) -> dict[str, float]:
    """Word and character error rates, and the parts of the former, of counts [utterances, COLUMNS]."""
    total = dict(zip(COLUMNS, counts.sum(0).tolist(), strict=True))
    words, characters = max(total["words"], 1.0), max(total["characters"], 1.0)
    parts = {name: total[name] / words for name in ("substitutions", "deletions", "insertions")}
    return {"wer": sum(parts.values()), "cer": total["character_errors"] / characters, **parts}


def rates_by_duration(counts: Floats, seconds: Sequence[float]) -> list[dict[str, float | None]]:
    """Error rates of short and of long utterances: `from, to, examples, wer, cer`; ranges without any are left out."""
    edges = (0.0, *BUCKET_SECONDS, None)
    bucket_of_row = np.digitize(np.asarray(seconds), BUCKET_SECONDS)
    rows: list[dict[str, float | None]] = []
    for i in np.unique(bucket_of_row):
        inside = counts[bucket_of_row == i]
        rates = error_rates(inside)
        examples = {"examples": len(inside), "wer": rates["wer"], "cer": rates["cer"]}
        rows.append({"from": edges[i], "to": edges[i + 1], **examples})
    return rows


def right_words(words: Sequence[str], even: Normaliser, reference: str) -> list[bool | None]:
    """Tell which words of a hypothesis are in a reference that is normalised already; None of one that is not counted.

    >>> right_words(["Press", "the", "...", "bound", "key."], _basic, "press the pound key")
    [True, True, None, False, True]
    """
    parts = [even(word).split() for word in words]
    apart, whole = [part for own in parts for part in own], even(" ".join(words)).split()
    if not whole or not reference:
        return [False if own else None for own in parts]
    hits = np.zeros(len(whole), dtype=bool)
    for chunk in jiwer.process_words(reference, " ".join(whole)).alignments[0]:
        hits[chunk.hyp_start_idx : chunk.hyp_end_idx] = chunk.type == "equal"
    right = hits
    if apart != whole:  # normalised together some words are one, as numbers are, and right or wrong as that is
        right = np.zeros(len(apart), dtype=bool)
        for kind, a, b, c, d in SequenceMatcher(None, apart, whole, autojunk=False).get_opcodes():
            right[a:b] = hits[c:d] if kind == "equal" else hits[c:d].all()
    ends = np.cumsum([len(own) for own in parts]).tolist()
    return [bool(right[end - len(own) : end].all()) if own else None for own, end in zip(parts, ends, strict=True)]


def align_words(hypothesis: str, reference: str, *, joiner: str = " ") -> list[tuple[str, str]]:
    """Stretches of both texts in order: what was said, and what was heard there; equal where there is no error.

    >>> align_words("press the bound key now", "press the pound key")
    [('press the', 'press the'), ('pound', 'bound'), ('key', 'key'), ('', 'now')]
    """
    aligned = jiwer.process_words(reference, hypothesis)
    said, heard = aligned.references[0], aligned.hypotheses[0]
    return [
        (
            joiner.join(said[part.ref_start_idx : part.ref_end_idx]),
            joiner.join(heard[part.hyp_start_idx : part.hyp_end_idx]),
        )
        for part in aligned.alignments[0]
    ]
