"""Audio of any kind to mono samples at one rate, and long audio to pieces, by silence or by timestamps.

Decoding is libsndfile's (through soundfile): wav, flac, ogg, opus and mp3, recognised by content, without FFmpeg.
"""

from __future__ import annotations

import io
import json
import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import TypeGuard

import numpy as np
import soundfile
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tltasks.data import folders
from tltasks.data.near_duplicates import Sounds
from tltasks.errors import DataError
from tltasks.tasks.speech.containers import Part, open_parts

Samples = NDArray[np.float32]
"""Mono, in [-1, 1]."""

SUFFIXES = folders.SUFFIXES["audio"]
"""Endings of files that are taken for audio."""
SHORTEST_SECONDS = 0.05
"""Less than a phoneme: such files are clicks or mistakes."""
LONGEST_SECONDS = 3600.0
"""More would not fit into memory several at a time; cut such recordings into parts."""
LOWEST_HZ, HIGHEST_HZ = 4000, 1_000_000
"""Below there is no intelligible speech; beyond either the header is more likely wrong."""
MOST_BYTES = 2**32
"""More than a wav file can hold."""
_FRAMES_AT_ONCE = 2**20
_RARE = {"AVR", "MAT4", "MPC2K", "SDS", "WVE"}
"""Formats of which libsndfile's log alone says that they are cut short."""
_SLACK_SECONDS = 0.1
"""By which timestamps of aligners and of the Hub's data sets are off."""
SILENCE = 1e-4
"""Half of the span from the lowest to the highest sample below which nothing can be heard (-80 dB of full scale)."""
OPPOSITE = 0.1
"""Of the power that a mean of unlike channels has: below it they cancel each other."""


def made_up_audio(drawn: np.random.Generator) -> dict[str, object]:
    """A second and a half of noise."""
    return {"array": drawn.normal(0, 0.1, 24_000).astype(np.float32), "sampling_rate": 16_000}


def decode_audio(value: object, sampling_hz: int, *, may_be_silent: bool = False) -> Samples:
    """Mono samples at `sampling_hz` of a path, encoded bytes, `{path, bytes}` or `{array, sampling_rate}`.

    Files that were joined to one are read one after another. Raises DataError for what cannot be read or cannot be
    speech: missing, empty, cut short, silent, not finite, too short or too long. Samples beyond full scale are scaled
    down.
    """
    parts = [(samples, hz) for samples, hz in _decode(value) if len(samples)]
    seconds, n_samples = sum(len(samples) / hz for samples, hz in parts), sum(len(samples) for samples, _ in parts)
    if seconds < SHORTEST_SECONDS:
        raise DataError(f"is {seconds:.3f} s long ({n_samples} samples); speech takes {SHORTEST_SECONDS} s")
    if seconds > LONGEST_SECONDS:
        raise DataError(f"is {seconds:,.0f} s long; cut it into parts of at most {LONGEST_SECONDS:,.0f} s")
    if not all(np.isfinite(samples).all() for samples, _ in parts):
        raise DataError("holds samples that are not finite numbers")
    runs = [(hz, _joined([_mix(of) for of, _ in run])) for hz, run in groupby(parts, key=itemgetter(1))]
    high, low = (float(of([of(samples) for _, samples in runs])) for of in (np.max, np.min))
    if high - low < 2 * SILENCE and not may_be_silent:
        raise DataError("is silent")
    if (peak := max(high, -low)) > 1:
        runs = [(hz, samples / peak) for hz, samples in runs]
    found = [samples if hz == sampling_hz else soxr.resample(samples, hz, sampling_hz) for hz, samples in runs]
    return np.ascontiguousarray(_joined(found), dtype=np.float32)


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    joined: NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return joined


def audio_seconds(value: object) -> float | None:
    """Seconds of audio, decoded only where the header does not tell; None when it cannot be told."""
    try:
        if isinstance(value, dict) and value.get("array") is not None:
            return sum(len(samples) / hz for samples, hz in _decode(value))
        seconds = 0.0
        for part in open_parts(_content(value)):
            about = soundfile.info(io.BytesIO(part.content))
            frames = about.frames if part.is_counted else part.frames or len(_decode_part(part)[0])
            seconds += frames / about.samplerate
    except (soundfile.SoundFileError, DataError, OSError, TypeError, ZeroDivisionError):
        return None
    return seconds


def _mix(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the channels; the loudest of those that cancel, as of a cable with its poles exchanged.

    Channels that have nothing in common have a mean of 1/n of their mean power, and those that agree have more.
    """
    n_channels = samples.shape[1]
    if n_channels == 1:
        return samples[:, 0]
    mono: NDArray[np.float32] = samples.mean(axis=1)
    power = np.einsum("ij,ij->j", samples, samples) / len(samples)
    if n_channels * float(np.mean(mono * mono)) < OPPOSITE * float(power.mean()):
        return samples[:, int(power.argmax())]
    return mono


def _decode(value: object) -> list[tuple[NDArray[np.float32], int]]:
    """Samples [frames, channels] and their rate, of each of the files that were joined."""
    if isinstance(value, dict) and value.get("array") is not None:
        return [_of_array(value["array"], value.get("sampling_rate"))]
    return [_decode_part(part) for part in open_parts(_content(value))]


def _of_array(given: object, rate: object) -> tuple[NDArray[np.float32], int]:
    """Arrays come as [samples], [samples, channels] or [channels, samples]; there are never more channels."""
    try:
        array, hz = np.asarray(given), int(float(str(rate or 0)))
        if array.ndim not in {1, 2} or array.dtype.kind not in "iuf":
            raise ValueError(f"it is an array of {array.dtype} with {array.ndim} dimensions")
    except (ValueError, OverflowError) as error:
        raise DataError(f"is not audio that can be read ({error})") from error
    if array.dtype.kind != "f":  # 16 or 32 bits, whatever they are kept in
        array = array / (2**15 if np.abs(array).max(initial=0) <= 2**15 else 2**31)
    wide = array[:, None] if array.ndim == 1 else array.T if array.shape[0] < array.shape[1] else array
    return wide.astype(np.float32), _checked_rate(hz)


def _checked_rate(hz: int) -> int:
    if not LOWEST_HZ <= hz <= HIGHEST_HZ:
        limit = f"at least {LOWEST_HZ:,}" if hz < LOWEST_HZ else f"no more than {HIGHEST_HZ:,}"
        raise DataError(f"says that it has {hz:,} samples a second; speech needs {limit}")
    return hz


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its beginning to its end.

    soundfile seeks after every read where it can (soundfile 0.14, _cdata_io), which some codecs cannot, and others do
    wrong: of a MIDI sample dump every block came twice.
    """

    def seekable(self) -> bool:
        return False


def _decode_part(part: Part) -> tuple[NDArray[np.float32], int]:
    """Samples [frames, channels] and their rate."""
    n_read = 0
    try:
        with _Stream(io.BytesIO(part.content)) as file:
            hz = _checked_rate(file.samplerate)
            most, blocks = LONGEST_SECONDS * hz, []
            if part.is_counted and file.frames > most:
                raise DataError(f"is {file.frames / hz:,.0f} s long; cut it into parts of at most {most / hz:,.0f} s")
            if file.format in _RARE and _is_cut(file.extra_info, file.frames, is_padded=file.format == "SDS"):
                raise DataError("is cut short: its header counts more sound than is there")
            # What the header promises is read by itself: junk behind it is an error of all that is read with it.
            while (left := (part.frames if n_read < part.frames else file.frames) - n_read) > 0 and n_read <= most:
                block = file.read(min(left, _FRAMES_AT_ONCE), dtype="float32", always_2d=True)
                if not len(block):
                    break
                n_read += len(block)
                blocks.append(block)
    except (soundfile.SoundFileError, RuntimeError, OSError, ValueError) as error:
        if not part.frames:
            raise DataError(f"is not audio that can be read ({_reason(error)})") from error
        if n_read < part.frames:
            raise DataError(f"is cut short or damaged: its {part.frames:,} samples cannot be read") from error
    promised = max(part.frames, round(n_read * part.promised))
    if 0 < n_read < promised - 1:
        raise DataError(f"is cut short: {n_read:,} of {promised:,} samples are there")
    if n_read > most:
        raise DataError(f"is longer than {LONGEST_SECONDS:,.0f} s; cut it into parts")
    return _joined(blocks or [np.zeros((0, 1), np.float32)]), hz


def _is_cut(log: str, frames: int, *, is_padded: bool) -> bool:
    """Tell from libsndfile's log whether a file ends early; `is_padded` where it makes up for what is not there."""
    counted = re.search(r"^ *Frames +: (\d+)$", log, re.MULTILINE)
    says_so = "truncated" in log or "should be" in log
    return says_so or (counted is not None and (int(counted[1]) < frames if is_padded else int(counted[1]) > frames))


def _content(value: object) -> bytes:
    """The bytes of a file, wherever they are."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
    elif isinstance(value, (str, Path)) and str(value):
        path = Path(value)
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise DataError(f"cannot be opened: {path.name} is no file")
            if about.st_size > MOST_BYTES:
                raise DataError(f"holds {about.st_size:,} bytes; cut it into parts")
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # a path may hold no zero
            raise DataError(f"cannot be opened: {path.name}: {getattr(error, 'strerror', error)}") from error
    else:
        raise DataError("has no audio")
    if not content:
        raise DataError("is an empty file")
    return content


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


def likeness(sampling_hz: int) -> Sounds:
    """How encoded recordings of the column `audio` are told to be nearly the same."""
    return Sounds(sampling_hz, from_int16, lambda columns: to_flac(from_int16(columns["audio"][0]), sampling_hz))


Span = tuple[int, int]
"""First sample, and the one behind the last."""


def split_at_silence(samples: Samples, sampling_hz: int, window_seconds: float) -> list[Span]:
    """Pieces of at most `window_seconds` that together are all of the audio, cut where it is quietest.

    Each cut lies in the second half of the window that it ends, at the middle of the quietest 0.2 s.

    >>> tone = np.ones(100, dtype=np.float32); tone[60:70] = 0
    >>> split_at_silence(tone, 20, 4)
    [(0, 65), (65, 100)]
    """
    longest = int(window_seconds * sampling_hz)
    quiet = max(1, min(sampling_hz // 5, longest // 4))
    pieces, begin = list[Span](), 0
    while len(samples) - begin > longest:
        second_half = samples[begin + longest // 2 : begin + longest]
        # The energy of every stretch of 0.2 s, from one running sum.
        energy = np.cumsum(np.concatenate([[0.0], second_half.astype(np.float64) ** 2]))
        stretches = energy[quiet:] - energy[:-quiet]
        quietest = np.flatnonzero(stretches <= stretches.min() + 1e-9)
        cut = begin + longest // 2 + int(quietest[len(quietest) // 2]) + quiet // 2
        pieces.append((begin, cut))
        begin = cut
    return [*pieces, (begin, len(samples))]


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

    def within(self, others: Sequence[Segment]) -> list[Segment]:
        """Those that are all in this one, their times from its beginning on."""
        inside = (it for it in others if self.start <= it.start and it.end <= self.end)
        return [Segment(it.start - self.start, it.end - self.start, it.text) for it in inside]


def read_segments(value: object, *, seconds: float) -> list[Segment]:
    """The segments of a recording of so many seconds, in order.

    They are given as `{start, end, text}`, or with `timestamp: [start, end]` as transformers' pipeline writes them; a
    column of structs may also come as one struct of lists. Raises DataError for what cannot be a timestamp: not
    numbers, backwards, overlapping by more than a tenth of a second, or behind the end of the recording.
    """
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, dict):
        columns = [column if isinstance(column, list) else [column] for column in value.values()]
        value = [dict(zip(value, items, strict=False)) for items in zip_longest(*columns)]
    if value is None or value != value:  # NaN, as pandas writes blanks
        return []
    if not isinstance(value, list):
        raise DataError(f"has segments that are no list of {{start, end, text}}: {str(value)[:80]}")
    segments: list[Segment] = []
    for i, item in enumerate(value):
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
    times = item.get("timestamp") or (item.get("start"), item.get("end"))
    start, end = times if isinstance(times, Sequence) and len(times) == 2 else (times, times)
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
