"""What is speech and what is not, by real recordings and by noise."""

import csv
import itertools

import numpy as np
import pytest
import soundfile
import soxr

from tests.tiny.runs import REPOSITORY
from tltasks.tasks.speech.voice import HZ, speech_pieces, speech_spans

CLIPS = REPOSITORY / "recipes" / "offline" / "voice_prompts"


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    with (CLIPS / "test.csv").open() as file:
        paths = [row["audio"] for row in csv.DictReader(file)]
    return [soxr.resample(soundfile.read(CLIPS / path, dtype="float32")[0], 8000, HZ) for path in paths]


def test_every_clip_has_speech(clips: list[np.ndarray]) -> None:
    assert all(speech_spans(clip, HZ) for clip in clips)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", [0.0, 1e-4, 0.03, 0.3])
def test_noise_has_none(seed: int, level: float) -> None:
    noise = np.random.default_rng(seed).normal(0, level, 4 * HZ).astype(np.float32)
    assert speech_spans(noise, HZ) == []
    assert speech_pieces(noise, [], HZ, 2.0) == []


@pytest.mark.parametrize("hz", [8000, HZ])
def test_pieces_have_all_of_the_speech_and_no_pauses(clips: list[np.ndarray], hz: int) -> None:
    pause = np.zeros(3 * HZ, np.float32)
    parts = [part for clip in clips[:8] for part in (clip, pause)]
    whole = np.concatenate(parts)
    if hz != HZ:
        whole = soxr.resample(whole, HZ, hz)
    spans = speech_spans(whole, hz)
    pieces = speech_pieces(whole, spans, hz, 8.0)
    assert all(any(a <= start and end <= b for a, b in pieces) for start, end in spans if end - start < 8 * hz)
    assert all(a < b <= c for (a, b), (c, _) in itertools.pairwise([*pieces, (len(whole), 0)]))
    assert max(b - a for a, b in pieces) <= 8 * hz
    assert pieces[-1][1] < len(whole) - 2 * hz


def test_a_short_recording_stays_whole(clips: list[np.ndarray]) -> None:
    spans = speech_spans(clips[0], HZ)
    assert speech_pieces(clips[0], spans, HZ, 30.0) == [(0, len(clips[0]))]


def test_speech_without_a_pause_is_cut_where_it_is_quietest(clips: list[np.ndarray]) -> None:
    whole = np.concatenate(clips[:6])
    pieces = speech_pieces(whole, [(0, len(whole))], HZ, 4.0)
    assert [a for a, _ in pieces[1:]] == [b for _, b in pieces[:-1]]
    assert (pieces[0][0], pieces[-1][1]) == (0, len(whole))
