"""Pictures, sounds and texts made worse in standard ways, each a function of its level, the seed and the row."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")
Pixels = NDArray[np.uint8]
Samples = NDArray[np.float32]
Random = np.random.Generator
Amounts = tuple[float, float, float, float, float]

SMALL_PIXELS = 64
"""Pictures with a shorter side take the severities of CIFAR-10-C instead of ImageNet-C's."""


def generator(kind: str, level: float, *, seed: int, row: int) -> Random:
    """Random numbers of one row's corruption, whatever else is computed."""
    return np.random.default_rng((seed, zlib.crc32(kind.encode()), int(level * 1000) & 0xFFFFFFFF, row))


def corrupt_rows(
    corrupt: Callable[[T, str, float, Random], T],
    values: Iterable[T],
    rows: Sequence[int],
    kind: str,
    level: float,
    *,
    seed: int,
) -> list[T]:
    """The values of some rows after a corruption, each with its row's random numbers."""
    return [
        corrupt(value, kind, level, generator(kind, level, seed=seed, row=row))
        for value, row in zip(values, rows, strict=True)
    ]


# --------------------------------------------------------------------------------------------- images

_EDGES = {3: 0.1, 4: 0.5, 6: 0.5, 8: 0.5, 10: 0.5, 0.3: 0.4, 0.4: 0.5, 0.5: 0.6, 1.0: 0.2, 1.5: 0.1}
"""Width of the Gaussian that softens the edge of a disc, by its radius."""


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(picture: Pixels, scale: float, random: Random) -> Pixels:
    return _to_pixels(picture / 255 + random.normal(0, scale, picture.shape))


def _shot_noise(picture: Pixels, photons: float, random: Random) -> Pixels:
    return _to_pixels(random.poisson(picture / 255 * photons) / photons)


def _impulse_noise(picture: Pixels, share: float, random: Random) -> Pixels:
    hit = random.random(picture.shape) < share
    return np.where(hit, np.where(random.random(picture.shape) < 0.5, 0, 255), picture).astype(np.uint8)


def _gaussian_blur(picture: Pixels, sigma: float, random: Random) -> Pixels:
    from scipy import ndimage  # slow to import

    return _to_pixels(ndimage.gaussian_filter(picture / 255, (sigma, sigma, 0)))


def _defocus_blur(picture: Pixels, radius: float, random: Random) -> Pixels:
    """Blur by a disc with a softened edge."""
    from scipy import ndimage, signal  # slow to import

    places = np.arange(-max(8, int(radius)), max(8, int(radius)) + 1)
    disc = (places[:, None] ** 2 + places[None, :] ** 2 <= radius**2).astype(float)
    soft = ndimage.gaussian_filter(disc / disc.sum(), _EDGES[radius], radius=1 if radius <= 8 else 2)
    filled = np.pad(picture / 255, ((len(places) // 2,) * 2, (len(places) // 2,) * 2, (0, 0)), mode="reflect")
    return _to_pixels(signal.fftconvolve(filled, soft[:, :, None], mode="valid", axes=(0, 1)))


def _brightness(picture: Pixels, more: float, random: Random) -> Pixels:
    """Added to the value of hue, saturation and value: all channels by the factor that their largest grows by."""
    scaled = picture / 255
    largest = scaled.max(-1, keepdims=True)
    raised = np.clip(largest + more, 0, 1)
    return _to_pixels(np.where(largest > 0, scaled * raised / np.maximum(largest, 1e-9), raised))


def _contrast(picture: Pixels, share: float, random: Random) -> Pixels:
    scaled = picture / 255
    mean = scaled.mean((0, 1), keepdims=True)
    return _to_pixels((scaled - mean) * share + mean)


def _pixelate(picture: Pixels, share: float, random: Random) -> Pixels:
    image = Image.fromarray(picture)
    size = (max(1, int(image.width * share)), max(1, int(image.height * share)))
    return np.asarray(image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX))


def _jpeg(picture: Pixels, quality: float, random: Random) -> Pixels:
    target = io.BytesIO()
    Image.fromarray(picture).save(target, "JPEG", quality=int(quality))
    return np.asarray(Image.open(target).convert("RGB"))


_IMAGES: dict[str, tuple[Callable[[Pixels, float, Random], Pixels], Amounts, Amounts]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10), (0.3, 0.4, 0.5, 1.0, 1.5)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
"""Each kind with its parameters of severities 1 to 5, of ImageNet-C and of CIFAR-10-C.

Source: Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261, and its code,
https://github.com/hendrycks/robustness.
"""


def corrupt_image(pixels: Pixels, kind: str, severity: float, random: Random) -> Pixels:
    """Pixels [3, height, width] after a corruption of severity 1 to 5."""
    change, large, small = _IMAGES[kind]
    amount = (small if min(pixels.shape[1:]) < SMALL_PIXELS else large)[int(severity) - 1]
    picture = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return np.ascontiguousarray(change(picture, amount, random).transpose(2, 0, 1))


# --------------------------------------------------------------------------------------------- sounds


def corrupt_audio(samples: Samples, kind: str, snr_db: float, random: Random) -> Samples:
    """Samples [n] with noise at a ratio of signal to noise in dB, by their mean powers; scaled down beyond full scale.

    `white_noise` has the same power at all frequencies, `pink_noise` the same in each octave.
    """
    noise = random.standard_normal(len(samples))
    if kind == "pink_noise":
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(samples))
    power = np.mean(samples.astype(np.float64) ** 2)
    noise *= np.sqrt(power / 10 ** (snr_db / 10) / np.maximum(np.mean(noise**2), 1e-12))
    heard = samples + noise
    return (heard / max(1.0, float(np.abs(heard).max(initial=0.0)))).astype(np.float32)


# --------------------------------------------------------------------------------------------- texts

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {
    letter: [
        other
        for near in (r - 1, r, r + 1)
        if 0 <= near < len(_ROWS)
        for j, other in enumerate(_ROWS[near])
        if abs(j - i) <= 1 and other != letter
    ]
    for r, row in enumerate(_ROWS)
    for i, letter in enumerate(row)
}
"""Keys that touch on a QWERTY keyboard."""


def corrupt_text(text: str, kind: str, rate: float, random: Random) -> str:
    """The text with typos in a share `rate` of its letters: `swap` (with the next letter), `drop`, `double`, `key` (one
    that touches it on the keyboard, for Latin letters), or `typos`, each of these in turn.

    Source: Belinkov and Bisk, https://arxiv.org/abs/1711.02173, §4, with a rate instead of one typo a word.
    """
    kinds = ("swap", "drop", "double", "key")
    letters, out, i = list(text), [], 0
    hits = random.random(len(letters)) < rate
    while i < len(letters):
        letter = letters[i]
        if not (hits[i] and letter.isalpha()):
            out.append(letter)
            i += 1
            continue
        chosen = kinds[random.integers(4)] if kind == "typos" else kind
        following = letters[i + 1] if i + 1 < len(letters) else ""
        if chosen == "swap" and following.isalpha():
            out += [following, letter]
            i += 1
        elif chosen == "double":
            out += [letter, letter]
        elif chosen == "key":
            near = _NEIGHBOURS.get(letter.lower(), [letter])
            typed = near[random.integers(len(near))]
            out.append(typed.upper() if letter.isupper() else typed)
        elif chosen != "drop":
            out.append(letter)
        i += 1
    return "".join(out)
