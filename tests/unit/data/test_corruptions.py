import math
from typing import get_args

import numpy as np
import pytest

from tltasks.config.tasks.image import ImageCorruption
from tltasks.data.corruptions import corrupt_audio, corrupt_image, corrupt_text, generator

KINDS = get_args(ImageCorruption)
TEXT = "The quick brown fox jumps over the lazy dog, 42 times; wirklich? Да."


def picture(side: int) -> np.ndarray:
    rows, columns = np.mgrid[0:side, 0:side] / side
    return (np.stack([rows, columns, (rows * 8 % 1 > 0.5) * 0.8]) * 255).astype(np.uint8)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_get_worse_with_severity(kind: str, side: int) -> None:
    clean = picture(side)
    found = [corrupt_image(clean, kind, severity, generator(kind, severity, seed=0, row=3)) for severity in range(1, 6)]
    assert all(pixels.shape == clean.shape and pixels.dtype == np.uint8 for pixels in found)
    errors = [float(np.abs(pixels.astype(float) - clean).mean()) for pixels in found]
    assert 0 < errors[0] < errors[4]
    if kind not in {"pixelate", "jpeg"}:  # which depend on how the picture's stripes lie
        assert errors == sorted(errors)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_row_is_corrupted_the_same(kind: str) -> None:
    first, again, other = (corrupt_image(picture(64), kind, 3, generator(kind, 3, seed=0, row=r)) for r in (5, 5, 6))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (kind not in {"gaussian_noise", "shot_noise", "impulse_noise"})


def test_severities_are_those_of_the_paper() -> None:
    grey = np.full((3, 224, 224), 128, np.uint8)
    noisy = corrupt_image(grey, "gaussian_noise", 2, generator("gaussian_noise", 2, seed=0, row=0))
    assert np.std(noisy / 255) == pytest.approx(0.12, rel=0.02)
    small = corrupt_image(grey[:, :32, :32], "gaussian_noise", 2, generator("gaussian_noise", 2, seed=0, row=0))
    assert np.std(small / 255) == pytest.approx(0.06, rel=0.05)
    hit = corrupt_image(grey, "impulse_noise", 5, generator("impulse_noise", 5, seed=0, row=0)) != grey
    assert hit.mean() == pytest.approx(0.27, abs=0.01)
    shot = corrupt_image(grey, "shot_noise", 3, generator("shot_noise", 3, seed=0, row=0)) / 255
    assert np.var(shot) == pytest.approx(0.5 / 12, rel=0.1)  # of Poisson: mean over photons; some is clipped
    brighter = corrupt_image(grey, "brightness", 1, generator("brightness", 1, seed=0, row=0))
    assert brighter.mean() / 255 == pytest.approx(128 / 255 + 0.1, abs=0.005)
    flat = corrupt_image(picture(224), "contrast", 4, generator("contrast", 4, seed=0, row=0))
    assert np.std(flat[0]) == pytest.approx(np.std(picture(224)[0]) * 0.1, rel=0.03)


@pytest.mark.parametrize("kind", ["white_noise", "pink_noise"])
@pytest.mark.parametrize("snr_db", [20.0, 0.0])
def test_noise_is_as_loud_as_stated(kind: str, snr_db: float) -> None:
    clean = (0.1 * np.sin(np.arange(32_000) / 7)).astype(np.float32)
    heard = corrupt_audio(clean, kind, snr_db, generator(kind, snr_db, seed=1, row=0))
    noise = heard.astype(np.float64) - clean
    assert heard.dtype == np.float32
    assert 10 * math.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1000:2000].sum(), power[8000:16000].sum()]
    assert octaves[1] / octaves[0] == pytest.approx(8 if kind == "white_noise" else 1, rel=0.2)
    loud = corrupt_audio(9 * clean, kind, snr_db, generator(kind, snr_db, seed=1, row=0))
    assert np.abs(loud).max() <= 1


@pytest.mark.parametrize("kind", ["swap", "drop", "double", "key", "typos"])
def test_typos_are_of_letters_and_as_many_as_stated(kind: str) -> None:
    text = TEXT * 30
    worse = corrupt_text(text, kind, 0.1, generator(kind, 0.1, seed=0, row=0))
    assert worse != text
    assert worse == corrupt_text(text, kind, 0.1, generator(kind, 0.1, seed=0, row=0))
    assert [c for c in worse if not c.isalpha()] == [c for c in text if not c.isalpha()]
    letters = sum(c.isalpha() for c in text)
    if kind in {"drop", "double"}:
        assert abs(len(worse) - len(text)) == pytest.approx(0.1 * letters, rel=0.2)
    if kind in {"swap", "key"}:
        assert len(worse) == len(text)
    if kind == "swap":
        assert sorted(worse) == sorted(text)
    if kind == "key":
        changed = [(a, b) for a, b in zip(text, worse, strict=True) if a != b]
        assert len(changed) == pytest.approx(0.1 * letters, rel=0.2)
        assert ("Q", "W") in changed or ("q", "w") in changed or ("q", "a") in changed
        assert all(a.isupper() == b.isupper() for a, b in changed)
