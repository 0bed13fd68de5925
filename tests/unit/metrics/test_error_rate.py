import doctest

import numpy as np
import pytest

import tltasks.metrics.error_rate
import tltasks.metrics.scripts
from tltasks.metrics import rouge
from tltasks.metrics.error_rate import (
    COLUMNS,
    align_words,
    count_errors,
    error_rates,
    normaliser,
    rates_by_duration,
    right_words,
)
from tltasks.metrics.scripts import writes_without_spaces


def test_doctests() -> None:
    for module, least in ((tltasks.metrics.error_rate, 4), (tltasks.metrics.scripts, 3)):
        result = doctest.testmod(module)
        assert result.attempted >= least
        assert result.failed == 0


NORMALISED = {
    ("none", "  Two\u00a0 words.\n"): "Two words.",
    ("none", "cafe\u0301"): "café",
    ("basic", "ＡＢＣ １２３"): "abc 123",
    ("basic", "Straße"): "strasse",
    ("basic", "🎉 yes 🎉"): "yes",
    ("basic", "مرحبًا، بك!"): "مرحبًا بك",
    ("basic", "हिन्दी में।"): "हिन्दी में",
    ("basic", "well-known"): "well known",
    ("basic", "…"): "",
    ("unaccented", "Contraseña última"): "contrasena ultima",
    ("unaccented", "हिन्दी"): "हिन्दी",
    ("unaccented", "한국어"): "한국어",
    ("english", "It's 5 o'clock, colour."): "it is 50 clock colour",
    ("english", "Twenty five"): "25",
    ("english", "..."): "",
    ("english", "Wait... what? 3...4, so…"): "wait what 3 4 so",
    ("english", "% and $ alone ."): "and alone",
    ("english", "I don’t, I can‘t; it`s"): "i do not i can not it is",
    ("english", "Bei\u00adspiel"): "beispiel",
    ("basic", "\ufeffso \u2013 ... ?!"): "so",
    ("basic", "1\ufe0f\u20e3 \u25cc\u0301 2"): "1\u20e3 2",
    ("none", "Bei\u00adspiel \u200fmi\u200bt می\u200cرود ."): "Beispiel mit می\u200cرود .",
}
WORDS = {
    "Persian, half spaces": ("کتاب\u200cها را می\u200cخواهم", ["کتابها", "را", "میخواهم"]),
    "Sinhala, joiner": ("ක්\u200dරියා කරයි", ["ක්රියා", "කරයි"]),
    "Bengali, joiner": ("র\u200d্যাব আসে", ["র্যাব", "আসে"]),
    "Malayalam, joiner": ("അവന്\u200d വന്നു", ["അവന്", "വന്നു"]),
    "Hindi, no joiner wanted": ("लक्\u200cष्मी है", ["लक्ष्मी", "है"]),
    "German, soft hyphens": ("ein Bei\u00adspiel", ["ein", "beispiel"]),
    "word joiner and byte order mark": ("\ufeffno\u2060body knows", ["nobody", "knows"]),
    "space of no width within a Latin word": ("some\u200bwhere else", ["somewhere", "else"]),
    "marks of direction": ("\u200fשלום\u200e \u2067עולם\u2069", ["שלום", "עולם"]),
    "grapheme joiner": ("e\u034fe f", ["ee", "f"]),
    "Mongolian, vowel separator": ("ᠬᠠᠭᠠᠨ\u180eᠠ ᠪᠢ", ["ᠬᠠᠭᠠᠨᠠ", "ᠪᠢ"]),
    "Hangul filler": ("가\u3164 나", ["가", "나"]),
    "variation selector": ("b\U000e0100 a\ufe0fb", ["b", "ab"]),
    "Arabic, stretched": ("مـــرحبا عـالم", ["مرحبا", "عالم"]),
    "Turkish, a capital with its dot": ("İstanbul BİR", ["istanbul", "bir"]),
    "Khmer, words parted by a space of no width": ("ខ្ញុំ\u200bទៅ", ["ខ្ញុំ", "ទៅ"]),
}
"""Texts, and their words under `basic`; in scripts with spaces ROUGE finds the same."""


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_not_seen_parts_no_words(kind: str) -> None:
    text, words = WORDS[kind]
    assert normaliser("basic")(text).split() == words
    counts = count_errors([normaliser("basic")(text)], [" ".join(words)], spaced=True)
    assert counts[0, :4].tolist() == [0, 0, 0, len(words)]
    if not writes_without_spaces([text]):
        assert rouge.tokens(text) == words
        assert len(rouge.token_ends(text)) == len(words)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("don’t", "dont"), ("don‘t", "dont"), ("don´t", "dont"), ("don`t", "dont"), ("don＇t", "dont"),
        ("o‘zbek", "ozbek"), ("oʻzbek", "ozbek"), ("צה״ל", "צהל"), ('צה"ל', "צהל"), ("ג׳ירפה", "גירפה"),
        ("ինչպե՞ս", "ինչպես"), ("col·lecció", "collecció"), ("étudiant·e·s", "étudiantes"),
    ],
)  # fmt: skip
def test_marks_inside_words_part_none(text: str, word: str) -> None:
    assert normaliser("basic")(text) == word
    assert normaliser("basic")(f"“{text}”, {text}!") == f"{word} {word}"


@pytest.mark.parametrize(("name", "text"), NORMALISED)
def test_normalisers(name: str, text: str) -> None:
    assert normaliser(name)(text) == NORMALISED[name, text]


def test_rates_are_ratios_of_sums() -> None:
    counts = count_errors(["a x c", "d", "e f"], ["a b c d", "d", "e"], spaced=True)
    assert dict(zip(COLUMNS, counts.sum(0).astype(int).tolist(), strict=True)) == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "words": 6,
        "character_errors": 5,
        "characters": 9,
    }
    rates = error_rates(counts)
    assert rates["wer"] == pytest.approx(3 / 6)
    assert rates["cer"] == pytest.approx(5 / 9)


def test_nothing_said_and_nothing_heard() -> None:
    counts = count_errors(["", "a b", ""], ["", "", "a b"], spaced=True)
    assert counts[:, :4].tolist() == [[0, 0, 0, 0], [0, 0, 2, 0], [0, 2, 0, 2]]
    assert error_rates(counts)["wer"] == pytest.approx(2.0)
    assert error_rates(np.zeros((1, 6)))["wer"] == 0


def test_spaces_do_not_count_where_there_are_none() -> None:
    heard, said = ["今天 天气 很好"], ["今天天气很坏"]
    assert error_rates(count_errors(heard, said, spaced=False))["cer"] == pytest.approx(1 / 6)
    assert error_rates(count_errors(heard, said, spaced=True))["cer"] == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("今天天气很好", True),
        ("今日はいい天気", True),
        ("สวัสดีครับ", True),
        ("မင်္ဂလာပါ", True),
        ("안녕하세요 여러분", False),
        ("Привет мир", False),
        ("iPhone 手机很好用,也很便宜", True),
        ("123", False),
    ],
)
def test_languages_without_spaces(text: str, unspaced: bool) -> None:
    assert writes_without_spaces([text]) is unspaced


def test_rates_by_duration() -> None:
    counts = count_errors(["a", "x", "c d"], ["a", "b", "c d"], spaced=True)
    rows = rates_by_duration(counts, [1.0, 31.0, 45.0])
    assert [(row["from"], row["to"], row["examples"]) for row in rows] == [(0.0, 2.0, 1), (30.0, None, 2)]
    assert rows[1]["wer"] == pytest.approx(1 / 3)


def test_alignment_marks_every_error() -> None:
    shown = align_words("one three tree four", "one two three four five")
    assert " ".join(filter(None, (said for said, _ in shown))) == "one two three four five"
    assert " ".join(filter(None, (heard for _, heard in shown))) == "one three tree four"
    wrong = [pair for pair in shown if pair[0] != pair[1]]
    assert wrong in ([("two", ""), ("", "tree"), ("five", "")], [("two three", "three tree"), ("five", "")])
    assert align_words("same", "same") == [("same", "same")]
    assert align_words("heard this", "") == [("", "heard this")]
    assert align_words("一 三", "一 二", joiner="") == [("一", "一"), ("二", "三")]


def test_words_that_are_normalised_together_are_right_together() -> None:
    even = normaliser("english")
    said = "I have twenty five dollars and two hundred and one cents"
    assert right_words(said.split(), even, even(said)) == [True] * 11
    found = right_words(said.split(), even, even(said.replace("five", "nine")))
    assert found == [True, True, *[False] * 3, *[True] * 6]
