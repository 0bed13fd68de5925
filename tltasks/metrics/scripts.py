"""Scripts that put no spaces between words, in which a character counts as a word."""

from __future__ import annotations

from collections.abc import Sequence

import regex

UNSPACED = "".join(
    rf"\p{{scx={script}}}"
    for script in ("Hani", "Hira", "Kana", "Bopo", "Yiii", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Lana", "Talu")
)
"""Their characters, for use within a set of a regular expression."""

_LETTER = regex.compile(r"\p{L}")
_UNSPACED_LETTER = regex.compile(rf"[[{UNSPACED}]&&\p{{L}}]", regex.V1)


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
