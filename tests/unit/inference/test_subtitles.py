"""Subtitles: what is shown when, and that real parsers read it."""

import io
import itertools
from typing import TYPE_CHECKING

import pysubs2
import pytest
import webvtt

from tltasks.inference.subtitles import GAP_SECONDS, LEAST_SECONDS, LINE, MOST_SECONDS, cues, write

if TYPE_CHECKING:
    from tltasks.inference.predictor import SpokenWord


def spoken(text: str, *, each: float = 0.3, pauses: dict[int, float] | None = None) -> "list[SpokenWord]":
    """Words of a text, a third of a second each, with pauses before some."""
    words: list[SpokenWord] = []
    at = 0.0
    for i, word in enumerate(text.split()):
        at += (pauses or {}).get(i, 0.0)
        words.append({"text": word, "start": round(at, 3), "end": round(at + each, 3), "confidence": 0.9})
        at += each
    return words


TEXT = "Tom & Jerry say a < b. " + " ".join(f"word{i}" for i in range(70)) + " end. Then --> more, and that is all!"


def test_cues_are_read_at_ease() -> None:
    found = cues(TEXT, spoken(TEXT, pauses={7: 1.0, 40: 2.5}))
    assert " ".join(line for cue in found for line in cue.lines) == TEXT
    assert all(len(line) <= LINE for cue in found for line in cue.lines)
    assert all(1 <= len(cue.lines) <= 2 for cue in found)
    assert all(LEAST_SECONDS - 0.01 <= cue.end - cue.start <= MOST_SECONDS + 0.01 for cue in found)
    assert all(b.start - a.end >= GAP_SECONDS - 1e-6 for a, b in itertools.pairwise(found))
    assert found[0].lines == ("Tom & Jerry say a < b.",)
    assert any(cue.lines[0].startswith("word33") for cue in found)  # behind the pause


def test_a_short_answer_stays_long_enough_and_leaves_the_next_its_time() -> None:
    [only] = cues("Yes.", spoken("Yes."))
    assert only.end == pytest.approx(LEAST_SECONDS)
    first, second = cues("Yes. No.", spoken("Yes. No.", pauses={1: 0.3}))
    assert first.end == pytest.approx(second.start - GAP_SECONDS)


def test_scripts_without_spaces_have_none() -> None:
    text = "今天天气很好。" * 4 + "OK 吧"
    words: list[SpokenWord] = [
        {"text": piece, "start": i * 0.2, "end": i * 0.2 + 0.2, "confidence": 1.0}
        for i, piece in enumerate([*(("今", "天", "天", "气", "很", "好。") * 4), "OK", "吧"])
    ]
    lines = [line for cue in cues(text, words) for line in cue.lines]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(map(len, lines)) <= 16


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_parsers_read_them(suffix: str) -> None:
    words = spoken(TEXT, pauses={7: 1.0, 40: 3600.0})
    content = write(TEXT, words, suffix)
    found = [(cue.start, cue.end, "\n".join(cue.lines)) for cue in cues(TEXT, words)]
    if suffix == ".vtt":
        read = [(c.start_in_seconds, c.end_in_seconds, c.text) for c in webvtt.from_buffer(io.StringIO(content))]
        assert [text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">") for *_, text in read] == [
            text for *_, text in found
        ]
    else:
        events = pysubs2.SSAFile.from_string(content, format_="srt")
        read = [(event.start / 1000, event.end / 1000, event.plaintext) for event in events]
        assert [text for *_, text in read] == [text for *_, text in found]
    for (a, b, _), (c, d, _) in zip(read, found, strict=True):
        assert int(a) == int(c)
        assert abs(b - d) < 1.01
