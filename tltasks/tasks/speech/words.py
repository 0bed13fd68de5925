"""Words of a transcript with their times and confidence, by what a model attends to or where CTC writes.

Source: Radford et al., https://github.com/openai/whisper (`timing.py`), for attention and the way through it; Graves et
al., https://www.cs.toronto.edu/~graves/icml_2006.pdf, for CTC.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import regex
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from tltasks.metrics.scripts import UNSPACED

NEIGHBOURS = 8
"""Tokens before one that its text may depend on: spaces, and characters of several tokens."""
FILTER_WIDTH = 7
"""Positions over which attention is evened out, as OpenAI does."""
Floats = NDArray[np.float64]

_WORD = regex.compile(
    rf"[[{UNSPACED}]&&\p{{L}}][\p{{M}}]*[^\s\p{{L}}\p{{N}}]*|(?:[^\s[{UNSPACED}]]|[{UNSPACED}--\p{{L}}])+", regex.V1
)
"""What is between spaces; of scripts without them each letter, with the marks behind it."""


@dataclass(frozen=True)
class Word:
    """A word as it stands in a transcript, punctuation included."""

    text: str
    start: float
    """Seconds from the beginning of the recording."""
    end: float
    confidence: float
    """Probability that it is right, as far as the model can tell."""


def words_of(text: str, behind: Sequence[int], starts: Floats, ends: Floats, shares: Floats) -> list[Word]:
    """The words of a text whose tokens end `behind` so many of its characters each.

    `starts` and `ends` of the tokens are seconds, `shares` their probabilities; a word has that of the least likely.

    >>> found = words_of(" good bye", [3, 5, 9], np.array([0.0, 0.2, 0.5]), np.array([0.2, 0.5, 0.9]), np.ones(3))
    >>> [(word.text, word.start, word.end) for word in found]
    [('good', 0.0, 0.5), ('bye', 0.5, 0.9)]
    """
    words = []
    for found in _WORD.finditer(text) if behind else ():
        first = min(bisect_right(behind, found.start()), len(behind) - 1)
        last = min(max(first, bisect_left(behind, found.end())), len(behind) - 1)
        start, share = float(starts[first]), float(shares[first : last + 1].min())
        words.append(Word(found[0], start, max(start, float(ends[last])), share))
    return words


def token_ends(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[int]:
    """How many characters of the whole text stand up to the end of each token; half a character is none.

    By what each adds to the few before it: how a token is written depends on its neighbours alone.
    """

    def length(part: Sequence[int]) -> int:
        return len(decode(list(part)).rstrip("\ufffd")) if part else 0

    found, total = list[int](), 0
    for n in range(len(ids)):
        begin = max(0, n - NEIGHBOURS)
        total += length(ids[begin : n + 1]) - length(ids[begin:n])
        found.append(max(total, found[-1] if found else 0))
    return found


def within_speech(words: Sequence[Word], spans: Sequence[Sequence[float]]) -> list[Word]:
    """Words without the pauses around them, by where there is speech [stretches, 2], in seconds.

    Attention and CTC tell a word from its neighbours, and leave the pause between two of them to either.

    >>> [(it.start, it.end) for it in within_speech([Word("so", 0.0, 2.0, 1.0)], [[0.3, 0.8], [1.9, 2.5]])]
    [(0.3, 0.8)]
    """
    found = []
    for word in words:
        parts = [(max(word.start, a), min(word.end, b)) for a, b in spans if a < word.end and b > word.start]
        start, end = max(parts, key=lambda part: part[1] - part[0], default=(word.start, word.end))
        found.append(replace(word, start=start, end=end))
    return found


# ----------------------------------------------------------------------------------------- confidence


@dataclass(frozen=True)
class Calibration:
    """Confidence as the share of words that are right with it: log-odds × `slope` + `shift`.

    Source: Platt, Advances in Large Margin Classifiers, 1999.
    """

    slope: float = 1.0
    shift: float = 0.0

    @classmethod
    def fit(cls, shares: Floats, right: NDArray[np.bool_]) -> Self:
        """By words of which it is known whether they are right; with few of them it stays near what it was."""
        signs = np.where(right, 1.0, -1.0)

        def loss(own: Floats) -> float:
            misfit = np.logaddexp(0, -signs * (_odds(shares) * own[0] + own[1])).sum()
            return float(misfit + ((own - [1, 0]) ** 2).sum() / 2)

        slope, shift = minimize(loss, np.array([1.0, 0.0])).x
        return cls(float(f"{slope:.6g}"), float(f"{shift:.6g}"))

    def __call__(self, shares: Floats) -> Floats:
        found: Floats = expit(_odds(shares) * self.slope + self.shift)
        return found


def _odds(shares: Floats) -> Floats:
    found: Floats = logit(np.clip(shares, 1e-6, 1 - 1e-6))
    return found


# ------------------------------------------------------------------------------------------------ CTC


def ctc_tokens(spread: Tensor, *, blank: int, seconds_per_step: float) -> tuple[list[int], Floats, Floats, Floats]:
    """The tokens that probabilities [steps, vocabulary] of one clip write, where their spikes begin and end, and how
    high they are."""
    shares, path = (values.cpu().numpy() for values in spread.float().max(-1))
    new = np.flatnonzero(np.concatenate([[True], path[1:] != path[:-1]])) if len(path) else np.zeros(0, np.int64)
    behind = np.append(new[1:], len(path))
    kept = [(a, b) for a, b in zip(new.tolist(), behind.tolist(), strict=True) if path[a] != blank]
    spans = np.array(kept, dtype=np.float64).reshape(-1, 2) * seconds_per_step
    most = np.array([shares[a:b].max() for a, b in kept], dtype=np.float64)
    return [int(path[a]) for a, _ in kept], spans[:, 0], spans[:, 1], most


# ------------------------------------------------------------------------------------------- attention


def alignment_heads(generation: GenerationConfig, config: PretrainedConfig) -> list[tuple[int, int]]:
    """Layers and heads whose attention follows the speech; those of the upper half where a model names none."""
    own = getattr(generation, "alignment_heads", None)
    if own:
        return [(int(layer), int(head)) for layer, head in own]
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def steps_by_attention(
    model: PreTrainedModel,
    heads: Sequence[tuple[int, int]],
    encoded: Tensor,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    steps: Sequence[int],
    *,
    end: int,
    silent: Container[int] = (),
) -> list[tuple[Floats, Floats]]:
    """The position at which each token of a text, and its end, begins, and the tokens' probabilities.

    By one pass of Whisper over texts that it has written. `encoded`: what the encoder makes of the clips, [clips,
    positions, width]; `steps`: positions that a clip takes. `silent` tokens, which are not said, take no time.
    """
    rows = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows], device=encoded.device)
    with _watched(model, sorted({layer for layer, _ in heads})) as seen:
        logits = model(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False).logits
    found = []
    for row, (prompt, text, n) in enumerate(zip(prompts, texts, steps, strict=True)):
        begin, behind = len(prompt) - 1, len(prompt) + len(text)
        spread = logits[row, begin : behind - 1, :end].float().log_softmax(-1)  # signs come behind all text
        own = torch.tensor(list(text), dtype=torch.long, device=spread.device)
        shares = spread.gather(1, own[:, None])[:, 0].exp().cpu().double().numpy()
        each = [(seen[layer][0], seen[layer][1], head) for layer, head in heads]
        weights = torch.stack([_attention(query[row, :behind, h], key[row, :n, h]) for query, key, h in each])
        said = [i for i, token in enumerate([*text, end]) if token not in silent]
        firsts = first_steps(-_evened(weights)[begin:behind][said])
        found.append((firsts[np.searchsorted(said, np.arange(len(text) + 1))], shares))
    return found


@contextmanager
def _watched(model: PreTrainedModel, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Queries [rows, tokens, heads, width] and keys [rows, positions, heads, width] of some layers' attention to sound.

    They are taken where they are made: only plain attention would hand out its weights, and slow the model down.
    """
    seen: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    hooks = []
    for layer in layers:
        attention = model.get_decoder().layers[layer].encoder_attn

        keep = partial(_keep, seen[layer], attention.num_heads)
        hooks += [attention.q_proj.register_forward_hook(keep), attention.k_proj.register_forward_hook(keep)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keep(own: list[Tensor], heads: int, module: nn.Module, given: object, made: Tensor) -> None:
    own.append(made.view(*made.shape[:-1], heads, -1))


def _attention(query: Tensor, key: Tensor) -> Tensor:
    """Attention of a head's queries [tokens, width] to its keys [steps, width], [tokens, steps]."""
    scores = query.float() @ key.float().T * query.shape[-1] ** -0.5
    return functional.softmax(scores, dim=-1)


def _evened(weights: Tensor) -> Floats:
    """Attention of several heads [heads, tokens, steps] as one, beside what they give to every token alike."""
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    scaled = ((weights - mean) / deviation.clamp(min=1e-9)).cpu().double().numpy()
    if scaled.shape[-1] > FILTER_WIDTH // 2:
        scaled = median_filter(scaled, (1, 1, FILTER_WIDTH), mode="mirror")
    mean_of_heads: Floats = scaled.mean(0)
    return mean_of_heads


def first_steps(cost: Floats) -> Floats:
    """The first step of each token on the cheapest way through costs [tokens, steps], each token on a step at least.

    Where there are fewer steps than tokens, several share one.

    >>> first_steps(np.array([[0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0.0]])).tolist()
    [0.0, 1.0, 3.0]
    """
    n, each = len(cost), -(-len(cost) // cost.shape[1])
    sums = np.cumsum(np.repeat(cost, each, axis=1), axis=1)
    steps = np.arange(sums.shape[1])
    total, begins = sums[0], [np.zeros(len(steps), np.int64)]
    for own in sums[1:]:
        entered = np.concatenate([[np.inf], total[:-1] - own[:-1]])
        least = np.minimum.accumulate(entered)
        begins.append(np.maximum.accumulate(np.where(entered == least, steps, 0)))
        total = own + least
    found, at = np.zeros(n), len(steps) - 1
    for i in reversed(range(1, n)):
        found[i] = begins[i][at]
        at = int(found[i]) - 1
    firsts: Floats = found / each
    return firsts
