"""Speech and what is none in a recording, so that silence and noise are answered with nothing: Silero's detector.

Source: https://github.com/snakers4/silero-vad (6.2, `tinygrad_model.py`). The package brings its weights; it is not
imported, since that sets torch to one thread for the whole process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tltasks.errors import RecipeError
from tltasks.tasks.speech.audio import Samples, Span, split_at_silence

HZ, FRAME, BEFORE = 16_000, 512, 64
"""Samples of a frame, and of those before it that are heard with it."""
SPEECH, STILL = 0.2, 0.15
"""Probabilities at which speech begins and ends: noise stays below 0.12, and the authors' 0.5 loses single vowels."""
AROUND_SECONDS = 0.3
"""Left at the ends of speech, whose first and last sounds are soft."""


class Silero(nn.Module):
    """Probability of speech in each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    @classmethod
    def load(cls) -> Silero:
        found = importlib.util.find_spec("silero_vad")
        if found is None or not found.submodule_search_locations:
            raise RecipeError("speech is told from noise by silero-vad, which is not installed: pip install silero-vad")
        path = Path(found.submodule_search_locations[0]) / "data" / "silero_vad_16k.safetensors"
        model, weights = cls(), load_file(path)
        names = {name: name.replace("lstm_cell.", "lstm.") for name in weights}
        of_layer = {name: f"{own}_l0" if own.startswith("lstm.") else own for name, own in names.items()}
        model.load_state_dict({own: weights[name] for name, own in of_layer.items()})
        return model.eval()

    def forward(self, frames: Tensor) -> Tensor:
        """Probabilities [frames] of [frames, BEFORE + FRAME] samples that follow each other."""
        bands = self.stft_conv(functional.pad(frames, (0, BEFORE), "reflect")[:, None])
        found = torch.hypot(bands[:, :129], bands[:, 129:])
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            found = layer(found).relu()
        states = self.lstm(found.transpose(1, 2))[0].relu().transpose(1, 2)  # [frames, 1, 128] is a sequence of one row
        probabilities: Tensor = self.final_conv(states).sigmoid().flatten()
        return probabilities


@cache
def _silero() -> Silero:
    return Silero.load()


def speech_shares(samples: Samples, sampling_hz: int) -> NDArray[np.float32]:
    """Probability of speech in each FRAME of the recording at HZ."""
    heard = samples if sampling_hz == HZ else soxr.resample(samples, sampling_hz, HZ)
    whole = np.pad(heard, (BEFORE, -len(heard) % FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(whole, BEFORE + FRAME)[::FRAME]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        found: NDArray[np.float32] = _silero()(torch.from_numpy(np.array(frames, dtype=np.float32))).numpy()
    return found


def speech_spans(samples: Samples, sampling_hz: int) -> list[Span]:
    """Stretches of speech, in samples."""
    shares = speech_shares(samples, sampling_hz)
    spans: list[list[int]] = []
    inside = False
    for i, share in enumerate(shares.tolist()):
        inside = share >= (STILL if inside else SPEECH)
        if inside and spans and spans[-1][1] == i:
            spans[-1][1] = i + 1
        elif inside:
            spans.append([i, i + 1])
    each = FRAME * sampling_hz / HZ
    return [(int(a * each), min(len(samples), int(b * each))) for a, b in spans]


def speech_pieces(samples: Samples, spans: list[Span], sampling_hz: int, window_seconds: float) -> list[Span]:
    """Pieces of at most `window_seconds` that have all of the speech: a recording that is no longer stays whole.

    Neighbours are in one piece as far as the window holds them; it is cut in pauses, and where there is none for so
    long, where it is quietest.
    """
    longest = int(window_seconds * sampling_hz)
    if not spans or len(samples) <= longest:
        return [(0, len(samples))] if spans else []
    pieces: list[Span] = []
    for start, end in _with_surroundings(spans, int(AROUND_SECONDS * sampling_hz), len(samples)):
        if pieces and end - pieces[-1][0] <= longest:
            pieces[-1] = pieces[-1][0], end
        else:
            pieces.append((start, end))
    return [part for piece in pieces for part in _cut(samples, piece, sampling_hz, window_seconds)]


def _with_surroundings(spans: list[Span], around: int, n_samples: int) -> Iterator[Span]:
    """Spans with so many samples on both sides, or what there is: half of a pause at most."""
    for i, (start, end) in enumerate(spans):
        before = start - (spans[i - 1][1] + start) // 2 if i else start
        after = (end + spans[i + 1][0]) // 2 - end if i + 1 < len(spans) else n_samples - end
        yield start - min(around, before), end + min(around, after)


def _cut(samples: Samples, piece: Span, sampling_hz: int, window_seconds: float) -> Iterator[Span]:
    for start, end in split_at_silence(samples[slice(*piece)], sampling_hz, window_seconds):
        yield piece[0] + start, piece[0] + end
