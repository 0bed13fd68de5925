"""Training-time changes to audio, each a function of (seed, epoch, row)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from tltasks.config.tasks.speech import SpecAugment, SpeechAugment
from tltasks.tasks.speech.audio import Samples, loudest_stretch

LARGEST_MASKED_SHARE = 0.2
"""Share of a clip's time that all its masks may take together."""


@dataclass(frozen=True)
class Masks:
    """Parts that SpecAugment takes out of one clip, as shares: stretches of its time and bands of its frequencies."""

    times: tuple[tuple[float, float], ...] = ()
    bands: tuple[tuple[float, float], ...] = ()


def augment_audio(
    samples: Samples, keys: SpeechAugment, *, sampling_hz: int, longest: int, seed: int, epoch: int, row: int
) -> tuple[Samples, Masks]:
    """The clip as this epoch hears it, at most `longest` samples, and the masks to apply to its features."""
    # Each change has its own random numbers, so that one does not alter another when it is switched on.
    speed, gain, noise, masks = (np.random.default_rng((seed, epoch, row, i)) for i in range(4))
    if keys.speed:
        samples = change_speed(samples, 1 + speed.uniform(-keys.speed, keys.speed), longest=longest)
    if keys.gain_db:
        samples = change_gain(samples, gain.uniform(-keys.gain_db, keys.gain_db))
    if keys.noise_db is not None:
        samples = add_noise(samples, keys.noise_db + noise.uniform(0, 20), noise, sampling_hz=sampling_hz)
    drawn = Masks()
    if keys.spec_augment is not None:
        drawn = draw_masks(keys.spec_augment, masks, seconds=len(samples) / sampling_hz)
    return samples, drawn


def change_speed(samples: Samples, factor: float, *, longest: int) -> Samples:
    """Play `factor` times as fast, or as slowly as `longest` samples allow."""
    factor = max(factor, len(samples) / longest)
    # One side is rounded to whole samples a second: 16,000 stand for a factor of one.
    changed: Samples = soxr.resample(samples, round(16000 * factor), 16000)
    return changed[:longest].astype(np.float32)


def change_gain(samples: Samples, decibels: float) -> Samples:
    """Louder or softer, kept within full scale."""
    louder: Samples = np.clip(samples * np.float32(10 ** (decibels / 20)), -1, 1).astype(np.float32)
    return louder


def add_noise(samples: Samples, decibels: float, rng: np.random.Generator, *, sampling_hz: int) -> Samples:
    """With white noise `decibels` below the loudest quarter of a second."""
    level = loudest_stretch(samples, sampling_hz // 4) * 10 ** (-decibels / 20)
    noisy = samples + rng.standard_normal(len(samples), dtype=np.float32) * np.float32(level)
    clipped: Samples = np.clip(noisy, -1, 1).astype(np.float32)
    return clipped


def draw_masks(keys: SpecAugment, rng: np.random.Generator, *, seconds: float) -> Masks:
    widest = min(keys.time_seconds / seconds, LARGEST_MASKED_SHARE / max(1, keys.time_masks))
    return Masks(
        tuple(_draw_span(rng, widest) for _ in range(keys.time_masks)),
        tuple(_draw_span(rng, keys.frequency_share) for _ in range(keys.frequency_masks)),
    )


def _draw_span(rng: np.random.Generator, widest: float) -> tuple[float, float]:
    width = rng.uniform(0, widest)
    start = rng.uniform(0, 1 - width)
    return start, start + width


def mask_spectrogram(features: NDArray[np.float32], masks: Masks, *, frames: int, fill: float) -> None:
    """Set the masked parts of features [bands, time] to `fill`, in place; the clip is their first `frames`."""
    for start, end in masks.times:
        features[:, round(start * frames) : round(end * frames)] = fill
    for start, end in masks.bands:
        features[round(start * len(features)) : round(end * len(features))] = fill


def mask_samples(samples: Samples, masks: Masks) -> Samples:
    """The same for models that hear samples: stretches are silenced and bands filtered out.

    Source: DropChunk and DropFreq of Ravanelli et al., SpeechBrain, https://arxiv.org/abs/2106.04624.
    """
    if masks.bands:
        spectrum = np.fft.rfft(samples)
        for start, end in masks.bands:
            spectrum[round(start * len(spectrum)) : round(end * len(spectrum))] = 0
        samples = np.fft.irfft(spectrum, n=len(samples)).astype(np.float32)
    else:
        samples = samples.copy()
    for start, end in masks.times:
        samples[round(start * len(samples)) : round(end * len(samples))] = 0
    return samples
