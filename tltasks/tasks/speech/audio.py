"""Audio of any kind to mono samples at one rate, and long audio to pieces, by silence or by timestamps.

Decoding is libsndfile's (through soundfile): wav, flac, ogg, opus and mp3, recognised by content, without FFmpeg.
"""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tltasks.data import folders
from tltasks.errors import DataError

Samples = NDArray[np.float32]
"""Mono, in [-1, 1]."""

SUFFIXES = folders.SUFFIXES["audio"]
"""Endings of files that are taken for audio."""
SHORTEST_SECONDS = 0.05
"""Less than a phoneme: such files are clicks or mistakes."""
LONGEST_SECONDS = 3600.0
"""More would not fit into memory several at a time; cut such recordings into parts."""
LOWEST_HZ = 4000
"""Below this there is no intelligible speech, and the header is more likely wrong."""
_SLACK_SECONDS = 0.1
"""By which timestamps of aligners and of the Hub's data sets are off."""
SILENCE = 1e-4
"""Peak below which nothing can be heard (-80 dB of full scale)."""


def decode_audio(value: object, sampling_hz: int) -> Samples:
    """Mono samples at `sampling_hz` of a path, encoded bytes, `{path, bytes}` or `{array, sampling_rate}`.

    Raises DataError for what cannot be read or cannot be speech: missing, empty, cut short, silent, not finite, too
    short or too long. Channels are averaged; samples beyond full scale are scaled down.
    """
    samples, own_hz = _samples(value)
    if own_hz < LOWEST_HZ:
        raise DataError(f"says that it has {own_hz:,} samples a second; speech needs at least {LOWEST_HZ:,}")
    seconds = samples.shape[0] / own_hz
    if seconds < SHORTEST_SECONDS:
        raise DataError(f"is {seconds:.3f} s long ({samples.shape[0]} samples); speech takes {SHORTEST_SECONDS} s")
    if seconds > LONGEST_SECONDS:
        raise DataError(f"is {seconds:,.0f} s long; cut it into parts of at most {LONGEST_SECONDS:,.0f} s")
    if not np.isfinite(samples).all():
        raise DataError("holds samples that are not finite numbers")
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    peak = float(np.abs(mono).max())
    if peak < SILENCE:
        raise DataError("is silent")
    if peak > 1:
        mono = mono / peak
    if own_hz != sampling_hz:
        mono = soxr.resample(mono, own_hz, sampling_hz)
    return np.ascontiguousarray(mono, dtype=np.float32)


def audio_seconds(value: object) -> float | None:
    """Seconds of audio by its header, without decoding it; None when it cannot be told."""
    if isinstance(value, dict) and value.get("array") is not None:
        return max(np.shape(value["array"]), default=0) / max(1, int(value.get("sampling_rate") or 0))
    try:
        about = soundfile.info(io.BytesIO(content) if (content := _content(value)) else "")
    except (soundfile.SoundFileError, DataError, OSError, TypeError):
        return None
    return float(about.frames / about.samplerate) if about.samplerate else None


def _samples(value: object) -> tuple[NDArray[np.float32], int]:
    """Samples [frames, channels] and their rate."""
    if isinstance(value, dict) and value.get("array") is not None:
        array = np.asarray(value["array"], dtype=np.float32)
        # Arrays come as [samples], [samples, channels] or [channels, samples]; there are never more channels.
        wide = array[:, None] if array.ndim == 1 else array
        return wide if wide.shape[0] >= wide.shape[1] else wide.T, int(value.get("sampling_rate") or 0)
    content = _content(value)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.samplerate and file.frames / file.samplerate > LONGEST_SECONDS:
                raise DataError(
                    f"is {file.frames / file.samplerate:,.0f} s long; cut it into parts of at most "
                    f"{LONGEST_SECONDS:,.0f} s"
                )
            expected, own_hz = file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError) as error:
        raise DataError(f"is not audio that can be read ({_reason(error)})") from error
    promised = _promised_frames(content, samples.shape[1]) or expected
    if 0 < samples.shape[0] < promised - 1:
        raise DataError(f"is cut short: {samples.shape[0]:,} of {promised:,} samples are there")
    return samples, own_hz


def _content(value: object) -> bytes:
    """The bytes of a file, wherever they are."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
    elif isinstance(value, (str, Path)) and str(value):
        try:
            content = Path(value).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be opened: {Path(value).name}: {error.strerror}") from error
    else:
        raise DataError("has no audio")
    if not content:
        raise DataError("is an empty file")
    return content


def _promised_frames(content: bytes, channels: int) -> int | None:
    """Frames that a wav file says it has; libsndfile silently gives those that are there."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    at, width = 12, 0
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack("<I", content[at + 4 : at + 8])[0]
        if name == b"fmt " and at + 22 <= len(content):
            width = struct.unpack("<H", content[at + 20 : at + 22])[0]
        if name == b"data":
            # Programs that write to a pipe leave the size at zero or at its largest.
            open_ended = size == 0 or size >= 0x7FFFFF00
            return None if open_ended or not width else size // width
        at += 8 + size + size % 2
    return None


def _reason(error: Exception) -> str:
    """The message of libsndfile, without the address of the object that it was given."""
    text = str(getattr(error, "error_string", "") or error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


# ------------------------------------------------------------------------------------------- keeping


def to_int16(samples: Samples) -> bytes:
    """As kept in the cache: 16 bits, little-endian. Exact for what came from 16 bits."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def from_int16(content: bytes) -> Samples:
    return np.frombuffer(content, dtype="<i2").astype(np.float32) / np.float32(32768)


def to_flac(samples: Samples, sampling_hz: int) -> bytes:
    """A file that browsers play."""
    target = io.BytesIO()
    soundfile.write(target, samples, sampling_hz, format="FLAC", subtype="PCM_16")
    return target.getvalue()


# ------------------------------------------------------------------------------------------- splitting


def split_at_silence(samples: Samples, sampling_hz: int, window_seconds: float) -> list[Samples]:
    """Pieces of at most `window_seconds` that together are all of the audio, cut where it is quietest.

    Each cut lies in the second half of the window that it ends, at the middle of the quietest 0.2 s.

    >>> tone = np.ones(100, dtype=np.float32); tone[60:70] = 0
    >>> [len(piece) for piece in split_at_silence(tone, 20, 4)]
    [65, 35]
    """
    longest = int(window_seconds * sampling_hz)
    quiet = max(1, min(sampling_hz // 5, longest // 4))
    pieces = []
    while len(samples) > longest:
        second_half = samples[longest // 2 : longest]
        # The energy of every stretch of 0.2 s, from one running sum.
        energy = np.cumsum(np.concatenate([[0.0], second_half.astype(np.float64) ** 2]))
        stretches = energy[quiet:] - energy[:-quiet]
        quietest = np.flatnonzero(stretches <= stretches.min() + 1e-9)
        cut = longest // 2 + int(quietest[len(quietest) // 2]) + quiet // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def loudest_stretch(samples: Samples, width: int) -> float:
    """Root mean square of the loudest stretch of `width` samples: how loud the speech is, whatever the pauses."""
    width = min(width, len(samples))
    stretches = sliding_window_view(samples, width)[:: max(1, width // 2)]
    return float(np.sqrt((stretches.astype(np.float64) ** 2).mean(axis=1).max()))


# ------------------------------------------------------------------------------------------- timestamps


@dataclass(frozen=True)
class Segment:
    """A text that is said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read_segments(value: object, *, seconds: float) -> list[Segment]:
    """The segments of a recording of so many seconds, in order.

    They are given as `{start, end, text}`, or with `timestamp: [start, end]` as transformers' pipeline writes them; a
    column of structs may also come as one struct of lists. Raises DataError for what cannot be a timestamp: not
    numbers, backwards, overlapping by more than a tenth of a second, or behind the end of the recording.
    """
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, dict):
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    segments: list[Segment] = []
    for i, item in enumerate(value if isinstance(value, Sequence) else []):
        segment = _segment(item, seconds=seconds, place=f"segment {i}")
        if segments and segment.start < segments[-1].end - _SLACK_SECONDS:
            raise DataError(
                f"segment {i} begins at {segment.start:.2f} s, before the one before it ends ({segments[-1].end:.2f} s)"
            )
        segments.append(segment)
    return segments


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"has segments that are not JSON ({error})") from error


def _segment(item: object, *, seconds: float, place: str) -> Segment:
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        raise DataError(f"{place} is not {{start, end, text}}: {str(item)[:80]}")
    start, end = item.get("timestamp") or (item.get("start"), item.get("end"))
    if end is None and start is not None:  # the pipeline's last one may be open
        end = seconds
    if not (_is_time(start) and _is_time(end)):
        raise DataError(f"{place} has no times in seconds: {start} to {end}")
    if not 0 <= start < end:
        raise DataError(f"{place} goes from {start:.2f} to {end:.2f} s")
    if end > seconds + _SLACK_SECONDS:
        raise DataError(f"{place} ends at {end:.2f} s, and the recording at {seconds:.2f} s")
    return Segment(float(start), min(float(end), seconds), item["text"].strip())


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def join_segments(segments: Sequence[Segment], *, window_seconds: float, joint: str) -> list[Segment]:
    """Neighbours together, as many as the window holds, so that a model learns to hear whole windows.

    A segment without text parts its neighbours: what is said in it is not known. One that is longer than the window
    stays as it is.

    >>> found = [Segment(0, 4, "one"), Segment(4, 9, "two"), Segment(9, 12, ""), Segment(12, 14, "three")]
    >>> [piece.text for piece in join_segments(found, window_seconds=10, joint=" ")]
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
