"""Sound in every container, codec and length of header that can be made here: what was written is read, or refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tltasks.errors import DataError
from tltasks.tasks.speech.audio import audio_seconds, decode_audio

Samples = NDArray[np.float32]
HZ = 16000
CHUNK = HZ // 4


def levels(chunks: int, seed: int = 0) -> Samples:
    """Noise whose loudness is another in every quarter of a second, so that a piece too many or too few is seen."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.permutation(np.geomspace(0.02, 0.5, chunks)), CHUNK)
    tone = np.sin(2 * np.pi * 440 * np.arange(len(loud)) / HZ)
    return (loud * (tone + 0.2 * rng.uniform(-1, 1, len(loud))) / 1.3).astype(np.float32)


WHOLE = levels(25)
ONE, TWO = WHOLE[: 9 * CHUNK], WHOLE[9 * CHUNK :]


def written(samples: Samples = WHOLE, kind: str = "WAV", subtype: str | None = None, **keys: object) -> bytes:
    target = io.BytesIO()
    with soundfile.SoundFile(
        target, "w", keys.pop("hz", HZ), samples.shape[1] if samples.ndim > 1 else 1, subtype, format=kind, **keys
    ) as file:
        file.write(samples)
    return target.getvalue()


def put(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def check(content: object, wanted: Samples = WHOLE, *, frame: int = 0, is_exact: bool = True, gaps: int = 0) -> None:
    """What is read has the length of what was written, but for a codec's frame, and is as loud from place to place."""
    found = decode_audio(content, HZ)
    assert abs(len(found) - len(wanted)) <= frame, (len(found), len(wanted))
    seconds = audio_seconds(content)
    assert seconds is not None
    assert abs(seconds * HZ - len(found)) <= 1
    if is_exact:
        np.testing.assert_allclose(found[: len(wanted)], wanted[: len(found)], atol=2**-6)
        return
    wrong = 0
    for at in range(CHUNK, len(wanted) - CHUNK, CHUNK):  # but the first and the last, which codecs blur
        heard = found[at + 1500 : at + CHUNK - 1000].std()
        wrong += not 0.6 < heard / wanted[at + 1500 : at + CHUNK - 1000].std() < 1.6
    assert wrong <= gaps


# ------------------------------------------------------------------------------- containers and codecs

NOT_WRITTEN = {"RAW", "SD2"}
"""Without a header; in two files."""
LOSSY = {"IMA_ADPCM": 4096, "MS_ADPCM": 2048, "GSM610": 640, "G721_32": 120, "G723_24": 120, "G723_40": 120}
LOSSY |= {"NMS_ADPCM_16": 160, "NMS_ADPCM_24": 160, "NMS_ADPCM_32": 160, "VORBIS": 0, "OPUS": 0, "MPEG_LAYER_III": 0}
OWN_RATES = {"WVE": 8000, "XI": 44100}
KINDS = [
    (kind, subtype)
    for kind in soundfile.available_formats()
    if kind not in NOT_WRITTEN
    for subtype in soundfile.available_subtypes(kind)
    if (kind, subtype) not in {("AIFF", "DWVW_12"), ("WAV", "MPEG_LAYER_III")}  # libsndfile writes none of these
    if subtype not in {"MPEG_LAYER_I", "MPEG_LAYER_II"}
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_every_container_and_codec(kind: str, subtype: str) -> None:
    if kind in OWN_RATES:
        found = decode_audio(written(WHOLE, kind, subtype), OWN_RATES[kind])
        assert len(found) == len(WHOLE)
        return
    if (kind, subtype) == ("VOC", "PCM_U8"):  # whose rate is 1,000,000 over a whole number
        assert abs(len(decode_audio(written(WHOLE, kind, subtype), HZ)) - len(WHOLE) * HZ / 16129) < 2
        return
    frame = LOSSY.get(subtype, 10 if kind == "PAF" else 1)
    if kind == "SDS":  # libsndfile 1.2.2 gives zeros for its last block
        np.testing.assert_allclose(decode_audio(written(WHOLE, kind, subtype), HZ)[:-60], WHOLE[:-60], atol=2**-6)
        return
    check(written(WHOLE, kind, subtype), frame=frame, is_exact=subtype not in LOSSY)


# -------------------------------------------------------------------------------------- lengths of headers


class Held(NamedTuple):
    """Where a container has the size of its sound."""

    kind: str
    after: bytes
    """What stands before the size."""
    size: str


HOLDERS = {
    "wav": Held("WAV", b"data", "<I"),
    "wav, extensible": Held("WAVEX", b"data", "<I"),
    "RF64": Held("RF64", b"ds64\x1c\0\0\0" + struct.pack("<Q", len(written(WHOLE, "RF64", "PCM_16")) - 8), "<Q"),
    "AIFF": Held("AIFF", b"SSND", ">I"),
    "AU": Held("AU", b".snd\0\0\0\x18", ">I"),
    "Core Audio": Held("CAF", b"data", ">q"),
    "Wave64": Held("W64", b"data\xf3\xac\xd3\x11\x8c\xd1\0\xc0\x4f\x8e\xdb\x8a", "<q"),
}
SIZES = {"zero": 0, "SoX": 0x7FFFF000, "SoX, 24 bits": 0x7FFFEFFD, "2 GiB": 0x80000000, "all bits": 0xFFFFFFFF}
CASES = [(name, size) for name in HOLDERS for size in SIZES]


def sized(name: str, change: Callable[[int], int]) -> bytes:
    kind, after, size = HOLDERS[name]
    content = written(WHOLE, kind, "PCM_16")
    at = content.index(after) + len(after)
    return put(content, at, struct.pack(size, change(struct.unpack_from(size, content, at)[0])))


@pytest.mark.parametrize(("name", "size"), CASES)
def test_sizes_that_a_pipe_leaves_open(name: str, size: str) -> None:
    wide = HOLDERS[name].size[1] in "qQ"
    check(sized(name, lambda _: -1 if size == "all bits" and wide and name != "RF64" else SIZES[size]), frame=1)


@pytest.mark.parametrize("name", HOLDERS)
def test_files_cut_short(name: str) -> None:
    content = written(WHOLE, HOLDERS[name].kind, "PCM_16")
    with pytest.raises(DataError, match=r"cut short: (49,998|5\d,\d{3}) of 100,000 samples"):
        decode_audio(content[: len(content) - 100004], HZ)


@pytest.mark.parametrize("name", HOLDERS)
def test_sizes_that_count_a_part_of_the_sound(name: str) -> None:
    with pytest.raises(DataError, match=r"bytes behind the .* bytes of sound that its header counts"):
        decode_audio(sized(name, lambda size: size // 4), HZ)


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "GSM610", "ULAW", "FLOAT", "PCM_24", "PCM_U8"])
def test_other_codecs_cut_short_or_left_open(subtype: str) -> None:
    content = written(WHOLE, "WAV", subtype)
    with pytest.raises(DataError, match="cut short"):
        decode_audio(content[: len(content) // 2], HZ)
    opened = put(content, content.index(b"data") + 4, b"\0\0\0\0")
    check(opened, frame=LOSSY.get(subtype, 1), is_exact=subtype not in LOSSY)


TAIL = b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + b"\0" * 4
HARMLESS = {
    "chunks behind": written() + TAIL,
    "an ID3 tag of version 1": written() + b"TAG" + b"x" * 125,
    "zeros": written() + bytes(9000),
    "a chunk cut short": written() + b"LIST" + struct.pack("<I", 900) + b"INFO",
    "chunks in front": (head := written())[:12] + TAIL + head[12:],
    "an ID3 tag with a foot": b"ID3\x04\0\x10\0\0\x01\0" + bytes(128) + b"3DI\x04\0\x10\0\0\x01\0" + written(),
    "an ID3 tag of version 2 in front": b"ID3\x03\0\0\0\0\x01\0" + bytes(128) + written(),
    "big-endian": written(WHOLE, "WAV", endian="BIG"),
    "nist, sphere": written(WHOLE, "NIST", "PCM_16"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_else_a_file_holds_is_no_sound(kind: str) -> None:
    check(HARMLESS[kind])


@pytest.mark.parametrize("kind", ["AVR", "MAT4", "MPC2K", "SDS", "WVE", "VOC", "SVX", "WAVEX", "HTK"])
def test_rare_containers_cut_short(kind: str) -> None:
    subtype = "ALAW" if kind == "WVE" else "PCM_16"
    with pytest.raises(DataError, match=r"cut short|not audio that can be read"):
        decode_audio(written(WHOLE, kind, subtype)[:60000], HZ)


def test_no_sound_at_all_is_said() -> None:
    empty = written(WHOLE[:0])
    for content in (empty, empty + TAIL, empty[:-4] + b"\xff" * 4):
        with pytest.raises(DataError, match=r"0 samples"):
            decode_audio(content, HZ)
    nist = written(WHOLE, "NIST", "PCM_16")
    with pytest.raises(DataError, match="cut short: 49,488 of 100,000"):
        decode_audio(nist[:100000], HZ)
    with pytest.raises(DataError, match="cut short"):
        decode_audio(written(WHOLE, "VOC", "PCM_16")[:9000], HZ)


# --------------------------------------------------------------------------------------------------- mp3


def mp3(samples: Samples = WHOLE, *, mode: str = "VARIABLE", level: float = 0.5, hz: int = HZ) -> bytes:
    return written(samples, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=level, hz=hz)


def untagged(content: bytes) -> bytes:
    """Without the first frame, which only holds a tag."""
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    size = 72 * rates[content[2] >> 4] * 1000 // HZ + (content[2] >> 1 & 1)
    assert b"Xing" in content[:size] or b"Info" in content[:size]
    return content[size:]


def counting(content: bytes, frames: int) -> bytes:
    at = max(content.find(b"Xing", 0, 64), content.find(b"Info", 0, 64))
    return put(content, at + 8, struct.pack(">I", frames))


def frauenhofer(content: bytes) -> bytes:
    """As Fraunhofer's encoders tag."""
    bare = untagged(content)
    header = bytes([0xFF, bare[1], 0x88, bare[3]])
    return (header + bytes(32) + b"VBRI\0\x01" + bytes(200)).ljust(288, b"\0") + bare


ID3 = b"ID3\x03\0\0\0\0\x02\x03" + b"\xff\xfb\x90\xc4" + bytes(255)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 64, 1, 0x80000000) + bytes(8) + b"\xff\xf3" * 32
MP3 = {
    "tagged": mp3(),
    "no tag": untagged(mp3()),
    "no tag, high rate": untagged(mp3(level=0.0)),
    "no tag, low rate": untagged(mp3(level=0.95)),
    "no tag, constant rate": untagged(mp3(mode="CONSTANT")),
    "no tag, mean rate": untagged(mp3(mode="AVERAGE")),
    "no tag, silence first": untagged(mp3(np.concatenate([np.zeros(HZ, np.float32), WHOLE]))),
    "no tag, ID3 in front and behind": ID3 + untagged(mp3()) + b"TAG" + b"x" * 125,
    "two ID3 tags": ID3 + ID3 + mp3(),
    "APE tag": untagged(mp3()) + APE,
    "zeros in front": bytes(417) + mp3(),
    "junk amidst": (lambda c: c[: len(c) // 2] + b"\x12" * 3000 + c[len(c) // 2 :])(untagged(mp3())),
    "a tag that counts too few": counting(mp3(), 40),
    "a tag that counts none": counting(mp3(), 0),
    "Fraunhofer's tag": frauenhofer(mp3()),
    "joined": mp3(ONE) + mp3(TWO),
    "joined, no tags": untagged(mp3(ONE)) + untagged(mp3(TWO)),
    "joined, ID3 between": ID3 + mp3(ONE) + ID3 + mp3(TWO),
    "joined, one tag": untagged(mp3(ONE)) + mp3(TWO),
    "joined, of two rates": mp3(ONE) + mp3(np.repeat(TWO, 2), hz=2 * HZ),
    "joined, mono and stereo": mp3(ONE) + mp3(np.stack([TWO, TWO], axis=1)),
}  # fmt: skip
MP3["joined, one tag for both"] = counting(MP3["joined"], 180)


@pytest.mark.parametrize("kind", MP3)
def test_mp3s_of_every_writer(kind: str) -> None:
    wanted = np.concatenate([np.zeros(HZ, np.float32), WHOLE]) if "silence" in kind else WHOLE
    if "silence" in kind:
        assert abs(len(decode_audio(MP3[kind], HZ)) - len(wanted)) <= 2 * 1152
        return
    # Where no tag tells an encoder's delay, it parts the files that were joined.
    gaps = 6 if kind in {"joined, no tags", "joined, one tag for both"} else 2
    check(MP3[kind], wanted, frame=5 * 576, is_exact=False, gaps=gaps)


def test_mp3s_cut_short() -> None:
    content = mp3()
    with pytest.raises(DataError, match=r"cut short: 4\d,\d{3} of 99,\d{3} samples"):
        decode_audio(content[: len(content) // 2], HZ)
    half = decode_audio(untagged(content)[: len(content) // 2], HZ)  # nothing tells that more was meant
    assert len(half) == pytest.approx(len(WHOLE) / 2, rel=0.2)


def test_an_mp3_in_a_wav() -> None:
    content = mp3()
    head = struct.pack("<HHIIHHHHIHHH", 0x55, 1, HZ, 4000, 1, 0, 12, 1, 2, 288, 1, 1393)
    chunks = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(content)) + content
    check(b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks + TAIL, frame=2304, is_exact=False, gaps=2)


# ------------------------------------------------------------------------------------------ flac and ogg


def flac(samples: Samples = WHOLE, frames: int | None = None) -> bytes:
    content = written(samples, "FLAC")
    if frames is None:
        return content
    packed = int.from_bytes(content[18:26], "big")
    return put(content, 18, ((packed >> 36 << 36) + frames).to_bytes(8, "big"))


FLAC = {
    "from a pipe": flac(frames=0),
    "a header that counts too few": flac(frames=16000),
    "ID3 in front": ID3 + flac(),
    "a tag behind": flac() + b"TAG" + b"x" * 125,
    "joined": flac(ONE) + flac(TWO),
    "joined, from pipes": flac(ONE, 0) + flac(TWO, 0),
}


@pytest.mark.parametrize("kind", FLAC)
def test_flacs_of_every_writer(kind: str) -> None:
    if kind == "a header that counts too few":
        np.testing.assert_allclose(decode_audio(FLAC[kind], HZ), WHOLE, atol=1e-4)
        return
    check(FLAC[kind])


@pytest.mark.parametrize("content", [flac()[:60000], flac()[:-3], flac(frames=2**36 - 1), flac(frames=120000)])
def test_flacs_cut_short(content: bytes) -> None:
    with pytest.raises(DataError, match="cut short"):
        decode_audio(content, HZ)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_and_broken_ogg(subtype: str) -> None:
    one, two = (written(samples, "OGG", subtype) for samples in (ONE, TWO))
    check(one + two, is_exact=False)
    check(one + two + one, np.concatenate([ONE, TWO, ONE]), is_exact=False, gaps=1)
    whole = written(WHOLE, "OGG", subtype)
    last = whole.rindex(b"OggS")
    assert 0.5 * len(WHOLE) < len(decode_audio(whole[:last], HZ)) <= len(WHOLE)  # a recorder that was stopped
    with pytest.raises(DataError, match="cut short: 10 bytes of its last page, or more"):
        decode_audio(whole[:-10], HZ)


# ------------------------------------------------------------------------------------------- joined files


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF"])
def test_joined_files_are_read_one_after_another(kind: str) -> None:
    check(written(ONE, kind, "PCM_16") + written(TWO, kind, "PCM_16"))


def test_voice_files_in_blocks_are_refused() -> None:
    content = written(WHOLE, "VOC", "PCM_16")
    head, about, sound = content[:26], content[30:42], content[42:-1]
    blocks = [bytes([kind]) + len(body).to_bytes(3, "little") + body for kind, body in ((9, about + sound), (2, sound))]
    check(head + blocks[0] + b"\0")
    with pytest.raises(DataError, match="in several blocks"):
        decode_audio(head + b"".join(blocks) + b"\0", HZ)


# ------------------------------------------------------------------------------------ channels and values

MIXED = {
    "opposite": np.stack([WHOLE, -WHOLE], axis=1),
    "opposite, not quite as loud": np.stack([-0.97 * WHOLE, WHOLE], axis=1),
    "opposite among six": np.stack([WHOLE, -WHOLE, *4 * [0 * WHOLE]], axis=1),
    "one of six": np.stack([0 * WHOLE, 0 * WHOLE, WHOLE, *3 * [0 * WHOLE]], axis=1),
    "left alone": np.stack([WHOLE, 0 * WHOLE], axis=1),
    "equal": np.stack([WHOLE, WHOLE], axis=1),
}
HEARD = {"one of six": 1 / 6, "left alone": 1 / 2}


@pytest.mark.parametrize("kind", MIXED)
def test_channels_that_cancel_are_heard(kind: str) -> None:
    found = decode_audio(written(MIXED[kind], "WAV", "FLOAT"), HZ)
    np.testing.assert_allclose(found, HEARD.get(kind, 1) * WHOLE, atol=1e-6)


@pytest.mark.parametrize("hz", [4000, 8000, 11025, 22050, 44100, 48000, 96000, 192000, 384000, 655350])
def test_rates_from_low_to_very_high(hz: int) -> None:
    kind = "WAV" if hz % 10 or hz > 96000 else "FLAC"
    assert len(decode_audio(written(WHOLE, kind, hz=hz), HZ)) == pytest.approx(len(WHOLE) * HZ / hz, abs=1)


@pytest.mark.parametrize("hz", [1, 999, 2_000_000, 2**31 - 1])
def test_absurd_rates_are_refused(hz: int) -> None:
    with pytest.raises(DataError, match=f"says that it has {hz:,} samples a second"):
        decode_audio(put(written(), 24, struct.pack("<I", hz)), HZ)


def values(**changes: float) -> bytes:
    samples = WHOLE.copy()
    samples[:1] = changes["first"]
    return written(samples, "WAV", "FLOAT")


REFUSED = {
    "not a number": (values(first=float("nan")), "not finite"),
    "infinite": (values(first=float("-inf")), "not finite"),
    "zeros": (written(0 * WHOLE), "is silent"),
    "a constant": (written(0 * WHOLE + 0.5), "is silent"),
    "unsigned zeros": (written(0 * WHOLE - 1, "WAV", "PCM_U8"), "is silent"),
    "too long for a header's promise": (flac(frames=0)[:2000], "not audio that can be read|is cut short|samples"),
    "two letters of a header": (b"RI", "not audio that can be read"),
    "a header of no chunks": (b"RIFF\x04\0\0\0WAVE", "not audio that can be read"),
    "an array without a rate": ({"array": WHOLE, "sampling_rate": None}, "0 samples a second"),
    "an array with a rate that is none": ({"array": WHOLE, "sampling_rate": "fast"}, "not audio that can be read"),
    "an array of texts": ({"array": ["a", "b"], "sampling_rate": HZ}, "not audio that can be read"),
    "an array of blocks": ({"array": np.zeros((2, 3, 4)), "sampling_rate": HZ}, "3 dimensions"),
    "an empty array": ({"array": [], "sampling_rate": HZ}, "0 samples"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_speech_is_refused(kind: str) -> None:
    value, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        decode_audio(value, HZ)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64, "list"])
def test_arrays_of_every_type_are_as_loud(kind: type | str) -> None:
    sixteen = np.rint(WHOLE * 32767).astype(np.int64)
    array = {
        np.int16: sixteen.astype(np.int16),
        np.int32: (sixteen << 16).astype(np.int32),
        "list": sixteen.tolist(),
    }.get(kind, WHOLE.astype(kind) if kind != "list" else None)
    for rate in (HZ, float(HZ), str(HZ)):
        np.testing.assert_allclose(decode_audio({"array": array, "sampling_rate": rate}, HZ), WHOLE, atol=1e-4)
