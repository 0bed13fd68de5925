"""Containers of sound, their lengths put right in memory, so that libsndfile reads all that is there.

It believes what a header says. One that was written to a pipe says nothing, an mp3 without a tag leaves its length to a
guess from the first frame, and of files that were joined only the first is counted.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from tltasks.errors import DataError

OPEN_FROM = 0x7F000000
"""Sizes from here on in a smaller file, and 0, are what programs leave that write to a pipe."""
JUNK_BYTES = 4096
"""So much of anything may stand behind the sound; more is sound that the header does not count."""


@dataclass(frozen=True)
class Part:
    """A file that libsndfile reads to its end; several if they were joined to one."""

    content: bytes
    frames: int = 0
    """Samples in time that the header counts, if it counts these."""
    promised: float = 1.0
    """Size of the sound by the header, in sizes of the sound that is there."""
    is_counted: bool = True
    """The length that libsndfile tells is the true one; otherwise only reading shows it."""


def open_parts(content: bytes) -> list[Part]:
    """Files that were joined to one, mostly one; raises DataError for sound that no header counts."""
    content = _without_leader(content)
    if (reader := _READERS.get(content[:4])) is not None:
        return reader(content)
    if parts := _mp3_parts(content):
        return parts
    counted = re.match(rb"NIST.{,900}?sample_count -i (\d+)", content[:1024], re.DOTALL)
    return [Part(content, frames=int(counted[1]) if counted else 0)]


def _without_leader(content: bytes) -> bytes:
    """The content without ID3 tags, and without zeros in front of an mp3's first frame."""
    at = 0
    while content[at : at + 3] == b"ID3":
        at += _id3_bytes(content, at)
    bare = content[at:].lstrip(b"\0") if content[at : at + 1] == b"\0" else b""
    return bare if _mpeg_frame(bare[:4]) else content[at:]


def _id3_bytes(content: bytes, at: int) -> int:
    if at + 10 > len(content):
        return 10
    size = 0
    for byte in content[at + 6 : at + 10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + 10 * bool(content[at + 5] & 0x10)  # with a foot like the head


# ----------------------------------------------------------------------------------------- wav and its kin


class _Layout(NamedTuple):
    """The order of a container of chunks."""

    first: int
    """Offset of the first chunk."""
    name_bytes: int
    size: str
    """Sizes, as `struct` has them."""
    align: int = 2
    overhead: int = 0
    """Bytes of a chunk's head that its size counts."""


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I"),
    b"RIFX": _Layout(12, 4, ">I"),
    b"RF64": _Layout(12, 4, "<I"),
    b"FORM": _Layout(12, 4, ">I"),
    b"caff": _Layout(8, 4, ">q", align=1),
    b"riff": _Layout(40, 16, "<q", align=8, overhead=24),  # Wave64
}


class _Sound(NamedTuple):
    """A container's sound: its place, and how much the header says that it is."""

    size_at: int
    """Offset of the size."""
    kind: str
    """The size, as `struct` has it."""
    start: int
    size: int
    overhead: int = 0


def _chunk_parts(content: bytes) -> list[Part]:
    """Wav, AIFF, Core Audio, RF64 and Wave64."""
    layout = _LAYOUTS[content[:4]]
    at, head = layout.first, layout.name_bytes + struct.calcsize(layout.size)
    sound, long_size, is_mp3 = None, 0, False
    while at + head <= len(content) and content[at : at + 4] not in _READERS:
        name, start = content[at : at + 4], at + head
        size = struct.unpack_from(layout.size, content, at + layout.name_bytes)[0] - layout.overhead
        if sound is None and name in {b"data", b"SSND", b"BODY"}:
            skip = 8 if name == b"SSND" else 4 if content[:4] == b"caff" else 0
            sound = _Sound(at + layout.name_bytes, layout.size, start + skip, size - skip, layout.overhead + skip)
            if long_size and size == 0xFFFFFFFF:
                sound = _Sound(long_size, "<q", start, struct.unpack_from("<q", content, long_size)[0])
            size = sound.size + skip
        elif not 0 <= size <= len(content) - start or not name.isascii() or not name.decode().isprintable():
            break  # no chunk
        elif name == b"ds64" and size >= 16:
            long_size = start + 8
        elif name == b"fmt ":
            is_mp3 = content[start : start + 2] in {b"\x55\0", b"\0\x55"}
        at = start + max(0, size)
        at += -at % layout.align
    if sound is None:
        return [Part(content)]
    return (_mp3_parts(content[sound.start :]) if is_mp3 else []) or _settle(content, sound, at)


def _au_parts(content: bytes) -> list[Part]:
    order = ">" if content[:4] == b".snd" else "<"
    start, size = struct.unpack_from(f"{order}II", content.ljust(12, b"\0"), 4)
    return _settle(content, _Sound(8, f"{order}I", start, size), start + size)


def _settle(content: bytes, sound: _Sound, end: int) -> list[Part]:
    """Parts of a container whose sound and what follows it, as far as it is of its kind, go to `end`."""
    there = len(content) - sound.start
    is_open = (sound.size <= 0 and end <= sound.start + 8) or there < sound.size >= OPEN_FROM
    if there > 0 and (is_open or there < sound.size):
        closed = struct.pack(sound.kind, there + sound.overhead)
        whole = content[: sound.size_at] + closed + content[sound.size_at + len(closed) :]
        return [Part(whole, promised=1.0 if is_open else sound.size / there)]
    if content[end : end + 4] in _READERS:
        return [Part(content[:end]), *open_parts(content[end:])]
    if (beyond := len(content[end:].strip(b"\0"))) > JUNK_BYTES:
        raise DataError(
            f"has {beyond:,} bytes behind the {sound.size:,} bytes of sound that its header counts; if they are sound, "
            "write the file anew with a header that counts them"
        )
    return [Part(content)]


def _voc_parts(content: bytes) -> list[Part]:
    """Creative's voice files: libsndfile takes the heads of all blocks but the first for samples."""
    at, sounds = int.from_bytes(content[20:22], "little"), 0
    while at + 4 <= len(content) and content[at]:
        sounds += content[at] in {1, 2, 9}
        at += 4 + int.from_bytes(content[at + 1 : at + 4], "little")
    if sounds > 1 or at > len(content):
        raise DataError("is cut short, or has its sound in several blocks, which cannot be read; write it anew as wav")
    return [Part(content)]


# --------------------------------------------------------------------------------------------- ogg and flac


def _ogg_parts(content: bytes) -> list[Part]:
    """Chained streams: libsndfile reads the first."""
    at, bounds, starts = 0, [0], True
    while (at := content.find(b"OggS", at)) >= 0 and at + 27 <= len(content):
        opens = bool(content[at + 5] & 2)
        if opens and not starts:
            bounds.append(at)
        starts = opens
        n_segments = content[at + 26]
        at += 27 + n_segments + sum(content[at + 27 : at + 27 + n_segments])
        if at > len(content):
            raise DataError(f"is cut short: {at - len(content):,} bytes of its last page, or more, are not there")
    return [Part(content[i:j]) for i, j in pairwise([*bounds, len(content)])]


def _flac_parts(content: bytes) -> list[Part]:
    bounds = [match.start() for match in re.finditer(rb"fLaC[\0\x80]\0\0\x22", content)]
    return [_flac_part(content[i:j]) for i, j in pairwise([*(bounds or [0]), len(content)])]


def _flac_part(content: bytes) -> Part:
    """A stream that leaves its length open, beside what its header says of it."""
    packed = int.from_bytes(content[18:26], "big")
    frames = packed & (1 << 36) - 1
    return Part(content[:18] + (packed - frames).to_bytes(8, "big") + content[26:], frames=frames, is_counted=False)


# ----------------------------------------------------------------------------------------------- mp3


class _Frame(NamedTuple):
    """An MPEG frame, by its head."""

    size: int
    layer: int
    side_bytes: int
    """Bytes of Layer III's side information, behind which a tag stands."""
    format: tuple[int, ...]
    """All that a stream keeps: in Layers I and II, of which no tag tells, its bit rate too."""


_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Rates by version and layer; the third layer of version 2 has those of the second."""


@lru_cache(maxsize=4096)
def _mpeg_frame(head: bytes) -> _Frame | None:
    """The frame that begins with these four bytes; None for what is no frame or leaves its size open."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, rate, hz = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or rate in {0, 15} or hz == 3:
        return None
    is_first, is_mono, unit = version == 3, head[3] >> 6 == 3, 4 if layer == 1 else 1
    hz = (44100, 48000, 32000)[hz] >> (0 if is_first else 1 if version == 2 else 2)
    kbits = _KBITS[(1, layer) if is_first else (2, min(layer, 2))][rate - 1]
    samples = 384 if layer == 1 else 1152 if is_first or layer == 2 else 576
    size = (samples * kbits * 125 // (hz * unit) + (head[2] >> 1 & 1)) * unit
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return _Frame(size, layer, side, (layer, hz, is_mono, kbits if layer < 3 else 0))


def _mp3_frames(content: bytes) -> list[tuple[int, _Frame]]:
    """Frames and their places, with tags and whatever else lies between them left out."""
    frames: list[tuple[int, _Frame]] = []
    at, end = 0, len(content)
    while 0 <= at < end - 3:
        frame = _mpeg_frame(content[at : at + 4])
        # Behind something else, two in a row are wanted.
        is_next = not frames or at == frames[-1][0] + frames[-1][1].size
        if frame is not None and (is_next or _mpeg_frame(content[at + frame.size : at + frame.size + 4])):
            if at + frame.size > end:
                break
            frames.append((at, frame))
            at += frame.size
        elif not frames:
            return []
        elif content[at : at + 3] == b"ID3":
            at += _id3_bytes(content, at)
        elif content[at : at + 8] == b"APETAGEX":
            at += 32 + int.from_bytes(content[at + 12 : at + 16], "little")
        else:
            at = content.find(b"\xff", at + 1)
    return frames


def _mp3_parts(content: bytes) -> list[Part]:
    """Streams, each begun by a tag or by another format; none if this is no mp3."""
    frames = _mp3_frames(content)
    if len(frames) < 2:
        return []
    starts = [at for at, _ in frames]
    tagged = {
        bisect_right(starts, found.start()) - 1
        for found in re.finditer(rb"Xing|Info|VBRI", content)
        if _tag_at(content, *frames[bisect_right(starts, found.start()) - 1])
    }
    changes = {i for i, ((_, one), (_, two)) in enumerate(pairwise(frames), 1) if one.format != two.format}
    bounds = sorted({0} | tagged | changes)
    if not changes and _tagged_frames(content, *frames[0]) >= len(frames) - len(bounds):
        bounds = [0]  # the first tag counts them all
    return [_mp3_part(content, frames[i:j]) for i, j in pairwise([*bounds, len(frames)])]


def _tag_at(content: bytes, at: int, frame: _Frame) -> int:
    """Offset of the tag in a frame that holds one in place of sound; 0 for one that does not."""
    for place in (at + 4 + frame.side_bytes, at + 36):
        if content[place : place + 4] in {b"Xing", b"Info", b"VBRI"} and not any(content[at + 6 : at + 12]):
            return place
    return 0


def _tagged_frames(content: bytes, at: int, frame: _Frame) -> int:
    """Frames that a tag counts besides its own; 0 where it does not."""
    place = _tag_at(content, at, frame)
    has_count = content[place : place + 4] in {b"Xing", b"Info"} and content[place + 7 : place + 8] > b"\0"
    return int.from_bytes(content[place + 8 : place + 12], "big") if has_count and content[place + 7] & 1 else 0


def _mp3_part(content: bytes, frames: list[tuple[int, _Frame]]) -> Part:
    """One stream, without what is no frame, under a tag that counts its frames."""
    at, first = frames[0]
    own = b"".join(content[i : i + each.size] for i, each in frames)
    place, counted = _tag_at(content, at, first) - at, _tagged_frames(content, at, first)
    n_frames = len(frames) - (place > 0)
    if counted in {n_frames, n_frames + 1} or first.layer != 3 or not n_frames:
        return Part(own)
    if counted > n_frames:
        return Part(own, promised=counted / n_frames)
    if counted:  # what else the tag says, of the encoder's delay, stays
        return Part(own[: place + 8] + struct.pack(">I", n_frames) + own[place + 12 :])
    return Part(_tag_frame(own[:4], n_frames) + (own[first.size :] if place > 0 else own))


def _tag_frame(head: bytes, n_frames: int) -> bytes:
    """A frame of a stream that says nothing but how many there are."""
    for rate in range(1, 15):
        like = bytes([0xFF, head[1] | 1, rate << 4 | head[2] & 0x0C, head[3]])
        frame = _mpeg_frame(like)
        if frame is not None and frame.size >= 64:
            tag = b"Xing" + struct.pack(">II", 1, n_frames)
            return (like.ljust(4 + frame.side_bytes, b"\0") + tag).ljust(frame.size, b"\0")
    raise AssertionError("every rate of Layer III has frames of 64 bytes")


_READERS: dict[bytes, Callable[[bytes], list[Part]]] = {
    **dict.fromkeys(_LAYOUTS, _chunk_parts),
    b".snd": _au_parts,
    b"dns.": _au_parts,
    b"Crea": _voc_parts,
    b"OggS": _ogg_parts,
    b"fLaC": _flac_parts,
}
