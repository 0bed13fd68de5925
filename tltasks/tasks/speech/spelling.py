"""Texts in the letters of a CTC vocabulary: what it writes otherwise is mapped, and what it cannot write is told."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property

import regex
from transformers import PreTrainedTokenizerBase

from tltasks.metrics.scripts import APOSTROPHES, even_apostrophes, without_inner_marks, without_unseen

DASHES, QUOTES = "-‐‑‒–—―−", '"“”„‟«»‹›'
DELIMITER = "|"
"""Stands for the space, as everywhere with CTC."""
_SILENT = {"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Zs", "Sk", "Cc"}
"""Categories of characters that nobody hears, but for a few."""
_SAID = "%‰&@#§"
_GRAPHEME = regex.compile(r"\X")


class Spelling:
    """The letters of a vocabulary, the space among them."""

    def __init__(self, letters: Mapping[str, str], unknown: str | None = None) -> None:
        self._letters, self._unknown = dict(letters), unknown
        """Tokens by the letter, in its composed form, that they write; and the sign of an unknown one."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Spelling:
        delimiter = str(getattr(tokenizer, "word_delimiter_token", None) or " ")
        written = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - {delimiter}
        forms = [(unicodedata.normalize("NFC", token), token) for token in written if _GRAPHEME.fullmatch(token)]
        letters = dict(sorted(forms, key=lambda form: (form[0] == form[1], form)))  # of two, the composed one
        space = {" ": delimiter} if delimiter in tokenizer.get_vocab() else {}
        return cls(letters | space, tokenizer.unk_token)

    def write(self, text: str) -> tuple[list[str], str]:
        """Tokens of a text, and those of its characters that are lost.

        A letter that the vocabulary lacks is written in the other case, in another form of the same character, or
        plainly; punctuation that it lacks parts words, and apostrophes do not.

        >>> tokens, lost = Spelling({c: c for c in "ABCDEFINORT' "}).write("Don’t  fret – ①, café!")
        >>> "".join(tokens), lost
        ("DON'T FRET CAF", '①É')
        """
        tokens: list[str] = []
        lost: list[str] = []
        for letter in self._pattern.findall(self._even(text)):
            found = self._stand_in(letter)
            if found is None:
                lost.append(letter)
                found = "" if unicodedata.category(letter[0])[0] in "LMN" else " "
            tokens += [self._letters[c] for c in ([found] if found in self._letters else found) if c in self._letters]
        space = self._letters.get(" ")
        kept = [t for i, t in enumerate(tokens) if t != space or (i and tokens[i - 1] != space)]
        return kept[:-1] if kept and kept[-1] == space else kept, "".join(lost)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longer = sorted((re.escape(letter) for letter in self._letters if len(letter) > 1), key=len, reverse=True)
        return re.compile("|".join([*longer, "."]), re.DOTALL)

    def _even(self, text: str) -> str:
        """The text in the vocabulary's case and its apostrophes, dashes and quotes."""
        plain = without_unseen(spaced(text), keep=self._letters)
        if self._unknown:
            plain = plain.replace(self._unknown, "\N{REPLACEMENT CHARACTER}")
        if not any(c.islower() for c in self._letters):
            plain = plain.upper()
        elif not any(c.isupper() for c in self._letters):
            plain = plain.replace("İ", "i").lower()
        plain = unicodedata.normalize("NFC", plain).translate(self._alike)
        if self._letters.keys().isdisjoint(APOSTROPHES):
            plain = even_apostrophes(plain)
        return without_inner_marks(plain, keep=self._letters)

    @cached_property
    def _alike(self) -> dict[int, str]:
        """Marks that the vocabulary lacks, with another of their kind that it has."""
        found: dict[int, str] = {}
        for kind in (APOSTROPHES, DASHES, QUOTES):
            if known := [mark for mark in kind if mark in self._letters]:
                found |= {ord(mark): known[0] for mark in kind if mark not in self._letters}
        return found

    def _stand_in(self, letter: str) -> str | None:
        """Letters of the vocabulary for one; a space for punctuation; None for one that is lost."""
        if letter in self._letters:
            return letter
        forms = [letter.casefold(), str(unicodedata.decimal(letter, ""))]
        forms += [unicodedata.normalize(kind, letter) for kind in ("NFC", "NFD", "NFKC", "NFKD")]
        for written in (cased for form in forms for cased in (form, form.upper(), form.lower())):
            if written and all(c in self._letters for c in written):
                return written
        is_silent = unicodedata.category(letter) in _SILENT and letter not in _SAID
        return " " if is_silent or letter in APOSTROPHES + DASHES else None


def spaced(text: str) -> str:
    """A text in composed characters, with single spaces, which no bar can be taken for."""
    return " ".join(unicodedata.normalize("NFC", text).replace(DELIMITER, " ").split())


def letters_of(texts: Iterable[str]) -> set[str]:
    """All characters of texts as they are written, the space among them, but what is not seen."""
    found: set[str] = set()
    for text in texts:
        found.update(without_unseen(spaced(text), keep="\u200c\u200d"))
    return found
