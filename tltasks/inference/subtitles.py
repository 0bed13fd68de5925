"""Subtitles of a recording from its words, in lines and for times that can be read: SubRip and WebVTT.

Source: https://partnerhelp.netflixstudios.com/hc/en-us/articles/215758617 (lines, durations, gaps),
https://www.w3.org/TR/webvtt1/.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tltasks.metrics.scripts import is_unspaced

if TYPE_CHECKING:
    from tltasks.inference.predictor import SpokenWord

    _Spaced = tuple[str, SpokenWord]
    """The space before a word, and the word."""

LINE, UNSPACED_LINE = 42, 16
"""Most characters of a line, of which a cue has two at most; of scripts whose letters are twice as wide, fewer."""
LEAST_SECONDS, MOST_SECONDS = 5 / 6, 7.0
GAP_SECONDS = 1 / 12
"""Between two cues: two frames of film."""
PER_SECOND = 17
"""Characters that are read in a second: a cue stays that long where the next one leaves it time."""
PAUSE_SECONDS = 0.8
"""A pause that parts two cues."""
CLAUSE_SECONDS = 0.25
"""The same behind a sentence."""
ENDS = (".", "!", "?", "…", "。", "！", "？", "؟", "।")


@dataclass(frozen=True)
class Cue:
    """Lines that are shown from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def write(text: str, words: Sequence[SpokenWord], suffix: str) -> str:
    """The content of a file that ends in `.srt` or `.vtt`, of a transcript and its words."""
    is_web, blocks = suffix == ".vtt", []
    for i, cue in enumerate(cues(text, words), 1):
        times = " --> ".join(_time(seconds, "." if is_web else ",") for seconds in (cue.start, cue.end))
        lines = "\n".join(html.escape(line, quote=False) if is_web else line for line in cue.lines)
        blocks.append(f"{times}\n{lines}\n" if is_web else f"{i}\n{times}\n{lines}\n")
    return "\n".join([*(["WEBVTT\n"] if is_web else []), *blocks])


def cues(text: str, words: Sequence[SpokenWord]) -> list[Cue]:
    """The cues of a text that has these words, in order."""
    groups, found = list(_groups(_spaced(text, words))), list[Cue]()
    for i, group in enumerate(groups):
        start, shown = group[0][1]["start"], max(LEAST_SECONDS, len(_joined(group)) / PER_SECOND)
        latest = groups[i + 1][0][1]["start"] - GAP_SECONDS if i + 1 < len(groups) else float("inf")
        end = min(max(group[-1][1]["end"], start + min(shown, MOST_SECONDS)), latest)
        found.append(Cue(start, max(end, start + 0.001), tuple(_lines(group))))
    return found


def _spaced(text: str, words: Sequence[SpokenWord]) -> Iterator[_Spaced]:
    at = 0
    for word in words:
        begin = text.index(word["text"], at)
        yield " " * (begin > at), word
        at = begin + len(word["text"])


def _groups(words: Iterable[_Spaced]) -> Iterator[list[_Spaced]]:
    """Words of one cue each: parted at pauses and sentences, or where two lines or the longest time are full."""
    group: list[_Spaced] = []
    for word in words:
        if group and (_is_parted(group[-1], word) or not _fits([*group, word])):
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _is_parted(before: _Spaced, after: _Spaced) -> bool:
    last, word = before[1], after[1]
    pause = word["start"] - last["end"]
    return pause >= (CLAUSE_SECONDS if last["text"].endswith(ENDS) else PAUSE_SECONDS)


def _fits(group: Sequence[_Spaced]) -> bool:
    return len(_lines(group)) <= 2 and group[-1][1]["end"] - group[0][1]["start"] <= MOST_SECONDS


def _lines(group: Sequence[_Spaced]) -> list[str]:
    """The words in lines; two are as long as each other, as far as words allow."""
    text = _joined(group)
    longest = UNSPACED_LINE if sum(map(is_unspaced, text)) * 2 > len(text) else LINE
    lines = _filled(group, longest)
    if len(lines) == 2:
        for most in range(len(text) // 2, longest):
            if len(even := _filled(group, most)) == 2:
                return even
    return lines


def _filled(group: Sequence[_Spaced], longest: int) -> list[str]:
    lines: list[list[_Spaced]] = [[]]
    for word in group:
        if lines[-1] and len(_joined([*lines[-1], word])) > longest:
            lines.append([])
        lines[-1].append(word)
    return [_joined(line) for line in lines]


def _joined(group: Sequence[_Spaced]) -> str:
    return "".join(space + word["text"] for space, word in group).strip()


def _time(seconds: float, point: str) -> str:
    """
    >>> _time(3661.5, ",")
    '01:01:01,500'
    """
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"
