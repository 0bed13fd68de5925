import re
from typing import Any

import pytest

from tltasks.errors import DataError
from tltasks.tasks.speech.audio import Segment, join_segments, read_segments

ONE = {"start": 0, "end": 1.5, "text": " one "}
TWO = {"start": 1.45, "end": 3, "text": "two"}


@pytest.mark.parametrize(
    "given",
    [
        [ONE, TWO],
        {key: [ONE[key], TWO[key]] for key in ONE},
        [{"timestamp": [0, 1.5], "text": " one"}, {"timestamp": (1.45, None), "text": " two"}],
    ],
    ids=["structs", "lists", "pipeline"],
)
def test_segments_are_read_in_every_form(given: Any) -> None:
    assert read_segments(given, seconds=3) == [Segment(0, 1.5, "one"), Segment(1.45, 3, "two")]


def test_one_segment_may_stand_alone() -> None:
    assert read_segments(ONE, seconds=3) == [Segment(0, 1.5, "one")]


def test_no_segments() -> None:
    assert read_segments(None, seconds=3) == read_segments([], seconds=3) == read_segments("NaN", seconds=3) == []


def test_the_last_one_may_end_a_little_late() -> None:
    assert read_segments([ONE], seconds=1.45) == [Segment(0, 1.45, "one")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "has segments that are no list of {start, end, text}: 5"),
        ("true", "has segments that are no list of {start, end, text}: True"),
        ('"one"', "has segments that are no list of {start, end, text}: one"),
        (["one"], "segment 0 is not {start, end, text}: one"),
        ([{"start": 0, "end": 1, "text": None}], "segment 0 is not {start, end, text}"),
        ([{"start": None, "end": 1, "text": "a"}], "segment 0 has no times in seconds: None to 1"),
        ([{"start": 0, "end": float("nan"), "text": "a"}], "segment 0 has no times in seconds: 0 to nan"),
        ([{"timestamp": [0, 1, 2], "text": "a"}], "segment 0 has no times in seconds: [0, 1, 2] to [0, 1, 2]"),
        ([{"timestamp": 1.5, "text": "a"}], "segment 0 goes from 1.50 to 1.50 s"),
        ([{"start": 4, "end": None, "text": "a"}], "segment 0 goes from 4.00 to 3.00 s"),
        ({"start": [0, 1], "end": [1, 2], "text": ["a"]}, "segment 1 is not {start, end, text}"),
        ([{"start": "0", "end": "1", "text": "a"}], "segment 0 has no times in seconds: 0 to 1"),
        ([ONE, {"start": 2, "end": 1.8, "text": "a"}], "segment 1 goes from 2.00 to 1.80 s"),
        ([{"start": -1, "end": 1, "text": "a"}], "segment 0 goes from -1.00 to 1.00 s"),
        ([TWO, ONE], "segment 1 begins at 0.00 s, before the one before it ends (3.00 s)"),
        ([ONE, {"start": 2, "end": 4, "text": "a"}], "segment 1 ends at 4.00 s, and the recording at 3.00 s"),
    ],
)
def test_what_cannot_be_a_timestamp_is_named(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_segments(given, seconds=3)


def test_what_is_too_long_stays_alone() -> None:
    said = [Segment(0, 2, "a"), Segment(2, 14, "b"), Segment(14, 15, "c")]
    assert join_segments(said, window_seconds=10, joint="") == said
