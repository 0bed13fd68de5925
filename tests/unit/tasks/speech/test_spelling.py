"""Texts in the letters of a vocabulary that has them in another case or form, or not at all."""

import doctest
import unicodedata

import pytest

import tltasks.tasks.speech.spelling
from tltasks.tasks.speech.spelling import Spelling, letters_of

CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SMALL = CAPITALS.lower()


def test_doctests() -> None:
    result = doctest.testmod(tltasks.tasks.speech.spelling)
    assert result.attempted >= 1
    assert result.failed == 0


def spelt(letters: str, text: str) -> tuple[str, str]:
    tokens, lost = Spelling({letter: letter for letter in letters}, "<unk>").write(text)
    return "".join(tokens), lost


KEPT = {
    "case": (CAPITALS + " ", "Hello there", "HELLO THERE"),
    "the other case": (SMALL + " ", "HELLO There", "hello there"),
    "both cases, one letter in one": ("Aab ", "AB ab", "Ab ab"),
    "typographic apostrophe": (CAPITALS + "' ", "don’t, it‘s; he´s", "DON'T IT'S HE'S"),
    "the typographic one kept": (SMALL + "’ ", "don't", "don’t"),
    "no apostrophe": (CAPITALS + " ", "don’t it's", "DONT ITS"),
    "quotes about words": (CAPITALS + "' ", "“so”, said ‘she’", "SO SAID 'SHE'"),
    "hyphens of every length": (SMALL + "- ", "well\u2010known – yes", "well-known - yes"),
    "no hyphen": (SMALL + " ", "well-known—yes", "well known yes"),
    "composed in the text": ("cafe\u0301", "café", "cafe\u0301"),
    "decomposed in the text": ("café", "cafe\u0301", "café"),
    "ligatures and width": (SMALL + " ", "ﬁne ｗｉｄｅ", "fine wide"),
    "sharp s": (CAPITALS + " ", "Straße", "STRASSE"),
    "final sigma": ("σοφό ", "ΣΟΦΌΣ", "σοφόσ"),
    "Turkish capital": ("istanbul ", "İstanbul", "istanbul"),
    "other digits": (SMALL + "0123456789 ", "room ٣ १२ ²", "room 3 12 2"),
    "soft hyphen and mark of direction": (SMALL + " ", "Bei\u00adspiel\u200e", "beispiel"),
    "a joiner kept": ("می\u200cخواهم", "می\u200cخواهم", "می\u200cخواهم"),
    "a joiner left out": ("میخواهم", "می\u200cخواهم", "میخواهم"),
    "gershayim": ("צהל ", 'צה״ל צה"ל', "צהל צהל"),
    "spaces of every kind": (SMALL + " ", "a\u00a0b\u2009c\n d", "a b c d"),
    "no spaces": ("今天好", "今天 好", "今天好"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_written_otherwise_is_mapped(kind: str) -> None:
    letters, text, wanted = KEPT[kind]
    assert spelt(letters, text) == (wanted, "")


LOST = {
    "digits": (CAPITALS + " ", "in 1984 so", "IN SO", "1984"),
    "accents that are no form of a letter": (SMALL + " ", "café olé", "caf ol", "éé"),
    "signs that are said": (SMALL + " ", "5% of $ & more", "of more", "5%$&"),
    "another script": (SMALL + " ", "ok Привет", "ok", "привет"),
    "marks": ("مرحبا", "مرحبًا", "مرحبا", "\u064b"),
    "the sign of unknown words": (SMALL + " ", "so <unk> then", "so then", "\ufffd"),
    "a half": (SMALL + "12 ", "½ mile", "mile", "½"),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_cannot_be_written_is_told(kind: str) -> None:
    letters, text, wanted, lost = LOST[kind]
    assert spelt(letters, text) == (wanted, lost)


def test_letters_in_another_form_than_composed() -> None:
    nukta = unicodedata.normalize("NFC", "\u0958")  # two characters, which Unicode never composes
    assert Spelling({nukta: "\u0958", "e": "e"}).write("\u0958e")[0] == ["\u0958", "e"]
    assert Spelling({"é": "e\u0301"}).write("éé")[0] == ["e\u0301"] * 2


def test_letters_of_texts_are_seen() -> None:
    assert letters_of(["a\u00adb|c", "می\u200cر"]) == set("abc میر\u200c")
