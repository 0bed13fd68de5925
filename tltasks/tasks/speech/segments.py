"""Timestamps of long recordings, by which training cuts them into pieces that a model can hear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tltasks.errors import DataError


@dataclass(frozen=True)
class Segment:
    """What is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read_segments(value: Any, *, seconds: float) -> list[Segment]:
    """The segments of a recording of so many seconds, in order.

    They are given as `{start, end, text}`, or with `timestamp: [start, end]` as transformers' pipeline writes them; a
    column of structs may also come as one struct of lists. Raises DataError for what cannot be a timestamp: not
    numbers, backwards, overlapping by more than a tenth of a second, or behind the end of the recording.
    """
    if isinstance(value, dict):
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    segments: list[Segment] = []
    for i, item in enumerate(value or []):
        segment = _segment(item, seconds=seconds, place=f"segment {i}")
        if segments and segment.start < segments[-1].end - _SLACK_SECONDS:
            raise DataError(
                f"segment {i} begins at {segment.start:.2f} s, before the one before it ends ({segments[-1].end:.2f} s)"
            )
        segments.append(segment)
    return segments


_SLACK_SECONDS = 0.1
"""By which timestamps of aligners and of the Hub's data sets are off."""


def _segment(item: Any, *, seconds: float, place: str) -> Segment:
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        raise DataError(f"{place} is not {{start, end, text}}: {str(item)[:80]}")
    start: Any
    end: Any
    start, end = item.get("timestamp") or (item.get("start"), item.get("end"))
    if end is None and start is not None:  # the pipeline's last one may be open
        end = seconds
    if not all(isinstance(time, (int, float)) and math.isfinite(time) for time in (start, end)):
        raise DataError(f"{place} has no times in seconds: {start} to {end}")
    if not 0 <= start < end:
        raise DataError(f"{place} goes from {start:.2f} to {end:.2f} s")
    if end > seconds + _SLACK_SECONDS:
        raise DataError(f"{place} ends at {end:.2f} s, and the recording at {seconds:.2f} s")
    return Segment(float(start), min(float(end), seconds), item["text"].strip())


def join_segments(segments: Sequence[Segment], *, window_seconds: float, joint: str) -> list[Segment]:
    """Neighbours together, as many as the window holds, so that a model learns to hear whole windows.

    A segment without text parts its neighbours: what is said in it is not known. One that is longer than the window
    stays as it is.

    >>> said = [Segment(0, 4, "one"), Segment(4, 9, "two"), Segment(9, 12, ""), Segment(12, 14, "three")]
    >>> [piece.text for piece in join_segments(said, window_seconds=10, joint=" ")]
    ['one two', 'three']
    """
    pieces: list[Segment] = []
    parted = True
    for segment in segments:
        if not segment.text:
            parted = True
            continue
        if parted or segment.end - pieces[-1].start > window_seconds:
            pieces.append(segment)
        else:
            pieces[-1] = Segment(pieces[-1].start, segment.end, f"{pieces[-1].text}{joint}{segment.text}")
        parted = False
    return pieces
