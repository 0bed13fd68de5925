"""Scripts that put no spaces between words, characters that are not seen, and marks that stand inside words."""

from __future__ import annotations

from collections.abc import Container, Sequence

import regex

UNSPACED = "".join(
    rf"\p{{scx={script}}}"
    for script in ("Hani", "Hira", "Kana", "Bopo", "Yiii", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Talu")
)
"""Their characters, for use within a set of a regular expression."""

UNSEEN = r"\p{Default_Ignorable_Code_Point}ـ"
"""Joiners, soft hyphens, marks of direction, variation selectors and their like, and the tatweel that stretches Arabic
words; for use within a set."""
APOSTROPHES = "'‘’‛`´ʹʻʼʽ′＇"
"""Characters that stand for an apostrophe between two letters."""

_LETTER = regex.compile(r"\p{L}")
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}]&&\p{{L}}]", regex.V1)

_UNSEEN = regex.compile(rf"(?<=[{UNSPACED}])\u200b(?=[{UNSPACED}])|([{UNSEEN}])")
_BETWEEN = regex.compile(rf"(?<=[\p{{L}}\p{{M}}])[{APOSTROPHES}](?=\p{{L}})")
_IN_WORD = regex.compile(
    r"['’ʼ՚՛՜՞᠆]"  # Armenian asks and calls out within the word
    r"|(?<=\p{Hebrew})[\"”״׳](?=\p{Hebrew})"  # of numbers and of words made of initials
    r"|(?<=\p{L})[·‧](?=\p{L})"  # Catalan's long l
)


def without_unseen(text: str, keep: Container[str] = "") -> str:
    """Leave out what is not seen, so that a word stays one word, and the same one, with it or without; `keep` stays.

    The space of no width stays a space where it parts words, in scripts that write no other.

    >>> without_unseen("Bei\u00adspiel, می\u200cخواهم"), without_unseen("ខ្ញុំ\u200bទៅ")
    ('Beispiel, میخواهم', 'ខ្ញុំ ទៅ')
    """
    seen: str = _UNSEEN.sub(lambda found: found[0] if found[0] in keep else "" if found[1] else " ", text)
    return seen


def even_apostrophes(text: str) -> str:
    """Apostrophes between letters in the one form, whatever they are written with."""
    even: str = _BETWEEN.sub("'", text)
    return even


def without_inner_marks(text: str, keep: Container[str] = "") -> str:
    """Leave out the marks that stand inside words and part none: apostrophes, gershayim, Catalan's dot; `keep` stays.

    >>> without_inner_marks("l’été, צה״ל, col·lecció")
    'lété, צהל, collecció'
    """
    whole: str = _IN_WORD.sub(lambda found: found[0] if found[0] in keep else "", text)
    return whole


def is_unspaced(character: str) -> bool:
    """Return whether the character is a letter of a script that puts no spaces between words."""
    return _UNSPACED_LETTER.match(character) is not None


def writes_without_spaces(texts: Sequence[str]) -> bool:
    """Return whether a language puts no spaces between words, by the script of most letters of its texts.

    >>> writes_without_spaces(["今天天气很好", "OK"]), writes_without_spaces(["Guten Tag", "안녕 하세요"])
    (True, False)
    """
    letters = sum(len(_LETTER.findall(text)) for text in texts)
    return 2 * sum(len(_UNSPACED_LETTER.findall(text)) for text in texts) > letters
