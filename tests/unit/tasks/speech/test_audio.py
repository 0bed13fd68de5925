"""Forty kinds of audio, good and bad; what is kept of them; where long audio is cut; augmentation."""

import doctest
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tltasks.tasks.speech.audio
from tltasks.config.tasks.speech import SpecAugment, SpeechAugment
from tltasks.errors import DataError
from tltasks.tasks.speech.audio import audio_seconds, decode_audio, from_int16, split_at_silence, to_flac, to_int16
from tltasks.tasks.speech.augmentation import Masks, augment_audio, mask_samples, mask_spectrogram

HZ = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(HZ // 2) / HZ)).astype(np.float32)


def test_doctests() -> None:
    result = doctest.testmod(tltasks.tasks.speech.audio)
    assert result.attempted >= 2
    assert result.failed == 0


def written(samples: Any = TONE, hz: int = HZ, kind: str = "WAV", subtype: str | None = None) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, hz, format=kind, subtype=subtype)
    return target.getvalue()


def tone(hz: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(hz * seconds)) / hz)).astype(np.float32)


def with_rate(hz: int) -> bytes:
    content = bytearray(written())
    content[24:28] = struct.pack("<I", hz)
    return bytes(content)


def open_ended(size: int) -> bytes:
    """As written to a pipe: the sizes are not filled in."""
    content = bytearray(written())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    return bytes(content)


def with_holes(value: float) -> bytes:
    samples = TONE.copy()
    samples[100] = value
    return written(samples, subtype="FLOAT")


STEREO = np.stack([TONE, TONE], axis=1)
READABLE: dict[str, Any] = {
    "wav, 16 bits": written(),
    "wav, 8 bits": written(subtype="PCM_U8"),
    "wav, 24 bits": written(subtype="PCM_24"),
    "wav, 32 bits": written(subtype="PCM_32"),
    "wav, float": written(subtype="FLOAT"),
    "wav, double": written(subtype="DOUBLE"),
    "wav, mu-law": written(subtype="ULAW"),
    "wav, IMA ADPCM": written(subtype="IMA_ADPCM"),
    "wav, extensible": written(kind="WAVEX"),
    "wav, RF64": written(kind="RF64"),
    "wav to a pipe": open_ended(0xFFFFFFFF),
    "aiff": written(kind="AIFF"),
    "au": written(kind="AU"),
    "flac": written(kind="FLAC"),
    "flac, 24 bits": written(kind="FLAC", subtype="PCM_24"),
    "ogg vorbis": written(kind="OGG", subtype="VORBIS"),
    "ogg opus": written(kind="OGG", subtype="OPUS"),
    "mp3": written(kind="MP3"),
    "8 kHz": written(tone(8000), 8000),
    "11,025 Hz": written(tone(11025), 11025),
    "44.1 kHz": written(tone(44100), 44100),
    "48 kHz": written(tone(48000), 48000),
    "192 kHz": written(tone(192000), 192000),
    "stereo": written(STEREO),
    "channels that cancel": written(np.stack([TONE, -TONE], axis=1)),
    "six channels": written(np.repeat(TONE[:, None], 6, axis=1)),
    "array": {"array": TONE, "sampling_rate": HZ},
    "array, channels first": {"array": STEREO.T, "sampling_rate": HZ},
    "bytes in a row": {"bytes": written(), "path": "clip.wav"},
    "mp3 called wav": {"bytes": written(kind="MP3"), "path": "clip.wav"},
}

UNREADABLE: dict[str, tuple[Any, str]] = {
    "nothing": (None, "has no audio"),
    "an empty row": ({"bytes": None, "path": None}, "has no audio"),
    "an empty file": ({"bytes": b"", "path": ""}, "has no audio"),
    "a missing file": ("/nowhere/clip.wav", "cannot be opened: clip.wav: No such file"),
    "a folder": (".", "cannot be opened"),
    "text called wav": (b"this is no audio at all" * 9, "is not audio that can be read"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(200), "is not audio that can be read"),
    "a header alone": (written()[:44], "is 0.000 s long|is cut short|not audio"),
    "half a header": (written()[:20], "is not audio that can be read"),
    "no samples": (written(np.zeros(0, np.float32)), r"is 0.000 s long \(0 samples\)"),
    "one sample": (written(TONE[:1]), r"is 0.000 s long \(1 samples\); speech takes 0.05 s"),
    "a click": (written(TONE[:500]), "is 0.031 s long"),
    "wav cut short": (written()[:9000], "is cut short: 4,4[0-9]{2} of 8,000 samples"),
    "flac cut short": (written(kind="FLAC")[:3000], "is cut short|is not audio that can be read"),
    "0 Hz": (with_rate(0), "is not audio that can be read|says that it has 0 samples a second"),
    "100 Hz": (with_rate(100), "says that it has 100 samples a second"),
    "NaN": (with_holes(float("nan")), "not finite"),
    "infinity": (with_holes(float("inf")), "not finite"),
    "silence": (written(np.zeros(HZ, np.float32)), "is silent"),
    "all but silence": (written(TONE * 1e-5, subtype="FLOAT"), "is silent"),
    "an hour and more": ({"array": np.ones(4000 * 3601, np.float32), "sampling_rate": 4000}, "is 3,601 s long; cut it"),
}


def test_at_least_forty_kinds() -> None:
    assert len(READABLE) + len(UNREADABLE) >= 40


@pytest.mark.parametrize("kind", READABLE)
def test_every_kind_of_audio_becomes_mono_at_one_rate(kind: str) -> None:
    samples = decode_audio(READABLE[kind], HZ)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - len(TONE)) <= 0.05 * HZ  # codecs pad
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert abs(spectrum.argmax() * HZ / len(samples) - 440) < 5
    assert 0.4 < np.abs(samples[1000:-1000]).max() < 0.6
    assert audio_seconds(READABLE[kind]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_bad_audio_is_named(kind: str) -> None:
    value, message = UNREADABLE[kind]
    with pytest.raises(DataError, match=message) as caught:
        decode_audio(value, HZ)
    assert "0x" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with (tmp_path / "huge.wav").open("wb") as file:
        file.truncate(2**33)
    for path, message in (
        (str(tmp_path / "pipe.wav"), "pipe.wav is no file"),
        ("/dev/zero", "zero is no file"),
        (str(tmp_path / "huge.wav"), "holds 8,589,934,592 bytes"),
        ("clip\0.wav", "cannot be opened"),
    ):
        with pytest.raises(DataError, match=message):
            decode_audio(path, HZ)


def test_sixteen_bits_are_kept_exactly(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, HZ).astype("<i2")
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, HZ, subtype="PCM_16")
    kept = to_int16(decode_audio(str(path), HZ))
    np.testing.assert_array_equal(np.frombuffer(kept, "<i2"), samples)
    back, hz = soundfile.read(io.BytesIO(to_flac(from_int16(kept), HZ)), dtype="int16")
    assert hz == HZ
    np.testing.assert_array_equal(back, samples)


def test_beyond_full_scale_is_scaled_not_cut() -> None:
    samples = decode_audio(written(TONE * 4, subtype="FLOAT"), HZ)
    np.testing.assert_allclose(samples, TONE / np.abs(TONE).max(), atol=1e-4)


# ------------------------------------------------------------------------------------------- splitting


def test_long_audio_is_cut_in_its_pauses() -> None:
    pause = np.zeros(HZ // 2, np.float32)
    spoken = np.concatenate([tone(HZ, 3), pause, tone(HZ, 3), pause, tone(HZ, 3)])
    pieces = [spoken[a:b] for a, b in split_at_silence(spoken, HZ, 4.0)]
    np.testing.assert_array_equal(np.concatenate(pieces), spoken)
    assert [round(len(p) / HZ, 1) for p in pieces] == [3.3, 3.5, 3.2]
    assert all(len(p) <= 4 * HZ for p in pieces)


def test_audio_without_pauses_is_cut_all_the_same() -> None:
    pieces = [range(a, b) for a, b in split_at_silence(tone(HZ, 21), HZ, 5.0)]
    assert [i for piece in pieces for i in piece] == list(range(21 * HZ))
    assert max(map(len, pieces)) <= 5 * HZ
    assert min(map(len, pieces[:-1])) >= 2.5 * HZ


# ----------------------------------------------------------------------------------------- augmentation

EVERYTHING = SpeechAugment(speed=0.1, gain_db=6.0, noise_db=20.0, spec_augment=SpecAugment())


def augmented(keys: SpeechAugment = EVERYTHING, **drawn: int) -> tuple[np.ndarray, Masks]:
    place = {"seed": 0, "epoch": 0, "row": 0} | drawn
    return augment_audio(TONE, keys, sampling_hz=HZ, longest=HZ, **place)


def test_augmentation_is_a_function_of_seed_epoch_and_row() -> None:
    samples, masks = augmented()
    again, same = augmented()
    np.testing.assert_array_equal(samples, again)
    assert masks == same
    for other in ({"seed": 1}, {"epoch": 1}, {"row": 1}):
        changed, others = augmented(**other)
        assert others != masks
        assert len(changed) != len(samples) or not np.array_equal(changed, samples)


def test_nothing_asked_for_changes_nothing() -> None:
    samples, masks = augmented(SpeechAugment())
    assert samples is TONE
    assert masks == Masks()


@pytest.mark.parametrize("row", range(8))
def test_speed_stays_within_bounds_and_the_window(row: int) -> None:
    keys = SpeechAugment(speed=0.25)
    samples, _ = augment_audio(TONE, keys, sampling_hz=HZ, longest=9000, seed=0, epoch=0, row=row)
    assert len(TONE) / 1.25 - 2 <= len(samples) <= 9000


def test_noise_and_gain_are_as_loud_as_asked() -> None:
    noisy, _ = augmented(SpeechAugment(noise_db=10.0))
    ratio = 10 * np.log10((TONE**2).mean() / ((noisy - TONE) ** 2).mean())
    assert 9 < ratio < 31
    loud, _ = augmented(SpeechAugment(gain_db=6.0))
    assert 0.5 <= loud.max() / TONE.max() <= 2
    assert abs(loud.max() / TONE.max() - 1) > 0.01


def test_masks_cover_what_they_say() -> None:
    features = np.random.default_rng(0).normal(size=(20, 100)).astype(np.float32)
    masked = features.copy()
    mask_spectrogram(masked, Masks(times=((0.2, 0.4),), bands=((0.5, 0.6),)), frames=50, fill=-1.0)
    assert (masked[:, 10:20] == -1).all()
    assert (masked[10:12] == -1).all()
    assert (masked != features).sum() == 20 * 10 + 2 * 90
    heard = mask_samples(TONE, Masks(times=((0.25, 0.5),), bands=((0.04, 0.07),)))
    assert (heard[2000:4000] == 0).all()
    assert np.abs(heard).max() < 0.3  # 440 of 8,000 Hz is in the band; its edges ring
