"""wav2vec 2.0's objective: frames of a clip that are hidden, the code of each, and how well it is told.

A clip's masks, negatives and the noise of its codes are drawn from (seed, epoch, row) alone. The diversity of codes is
that of all clips of a pass, as it has to be; the recipe says how many these are (`loss_group`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from tltasks.data.seeding import draw_seed

HEAD = ("quantizer", "project_hid", "project_q")
"""Modules that the objective's models put on the encoder."""


# ---------------------------------------------------------------------------------------------- draws


def draw_mask(
    frames: int, *, mask_time_prob: float, mask_time_length: int, seed: int, epoch: int, row: int
) -> NDArray[np.bool_]:
    """Draw the frames of a clip that are hidden: stretches from distinct random starts, which may overlap.

    One start in `mask_time_length / mask_time_prob` frames, rounded by chance, one at least. With the paper's numbers
    about half of a long clip is hidden.
    Source: Baevski et al., https://arxiv.org/abs/2006.11477, §3.1 and §4.2.
    """
    rng = np.random.default_rng(draw_seed("speech mask", seed, epoch, row))
    places = frames - mask_time_length + 1
    n_starts = min(max(1, int(mask_time_prob * frames / mask_time_length + rng.random())), places)
    starts = rng.choice(places, n_starts, replace=False)
    hidden = np.zeros(frames, dtype=bool)
    hidden[(starts[:, None] + np.arange(mask_time_length)).ravel()] = True
    return hidden


def draw_negatives(hidden: int, count: int, *, seed: int, epoch: int, row: int) -> NDArray[np.int64]:
    """For each hidden frame of a clip, `count` others of them, with replacement; [hidden, count] of indices.

    Source: Baevski et al., https://arxiv.org/abs/2006.11477, §3.2.
    """
    rng = np.random.default_rng(draw_seed("negatives", seed, epoch, row))
    drawn = rng.integers(0, hidden - 1, size=(hidden, count))
    return drawn + (drawn >= np.arange(hidden)[:, None])


# ---------------------------------------------------------------------------------------------- codes


class DrawnQuantizer(nn.Module):
    """A checkpoint's quantizer, with the same weights under the same names, whose noise is drawn by row.

    The original draws it from torch's state, which depends on the batch, and also for frames that are not hidden
    (transformers 5.24, modeling_wav2vec2.py, Wav2Vec2GumbelVectorQuantizer).
    """

    def __init__(self, original: Wav2Vec2GumbelVectorQuantizer) -> None:
        super().__init__()
        self.codevectors, self.weight_proj = original.codevectors, original.weight_proj
        self.codebooks, self.codes_each = int(original.num_groups), int(original.num_vars)
        self.temperature = 1.0
        self.seeds: list[int] = []
        """Seeds of the noise of each clip of the next pass."""
        self.chosen: list[Tensor] = []
        """Codes of the hidden frames of each pass, [frames, codebooks]."""
        self.shares: list[Tensor] = []
        """Probabilities of all codes, [frames, codebooks, codes]."""

    def forward(self, hidden_states: Tensor, mask_time_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Code vectors of the hidden frames alone, [frames, width], and their perplexity."""
        logits: Tensor = self.weight_proj(hidden_states[mask_time_indices])
        logits = logits.view(len(logits), self.codebooks, self.codes_each).float()
        shares, noisy = logits.softmax(-1), logits
        if self.training:
            noisy = (logits + self._noise(mask_time_indices.sum(1).tolist(), logits.device)) / self.temperature
        chosen = noisy.argmax(-1)
        hard = functional.one_hot(chosen, self.codes_each).to(logits.dtype)
        if self.training:  # the gradient is that of the soft choice
            soft = noisy.softmax(-1)
            hard = hard - soft.detach() + soft
        else:
            shares = hard
        self.chosen.append(chosen)
        self.shares.append(shares)
        book = self.codevectors.view(self.codebooks, self.codes_each, -1)
        vectors = torch.einsum("fgc,gcw->fgw", hard.to(book.dtype), book).flatten(1)
        return vectors, perplexity(shares)

    def _noise(self, counts: list[int], device: torch.device) -> Tensor:
        """Gumbel noise for so many frames of each clip."""
        drawn = []
        for seed, frames in zip(self.seeds, counts, strict=True):
            generator = torch.Generator(device).manual_seed(seed)
            empty = torch.empty(frames, self.codebooks, self.codes_each, device=device)
            drawn.append(-empty.exponential_(generator=generator).log())
        return torch.cat(drawn)


def perplexity(shares: Tensor) -> Tensor:
    """Perplexity of shares [frames, codebooks, codes], in the mean over frames, summed over codebooks."""
    mean = shares.mean(0)
    return torch.exp(-torch.xlogy(mean, mean).sum(-1)).sum()


def install_quantizer(model: PreTrainedModel) -> None:
    quantizer = model.get_submodule("quantizer")
    model.set_submodule("quantizer", DrawnQuantizer(quantizer))


def initialise_contrast(model: PreTrainedModel) -> None:
    """Draw the head anew, as transformers does: the quantizer after its parts, the projections as any linear layer."""
    for name in HEAD:
        for parameter in model.get_submodule(name).parameters():
            parameter._is_hf_initialized = False
    model._init_weights(model.get_submodule("quantizer"))
    for name in HEAD[1:]:
        projection = model.get_submodule(name)
        assert isinstance(projection, nn.Linear)
        projection.reset_parameters()


# ---------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class ContrastiveOutput:
    """The telling of each hidden frame of a batch from its negatives."""

    losses: Tensor
    """[frames]"""
    right: Tensor
    """Its own code was the most similar, [frames]."""
    codes: Tensor
    """[frames, codebooks]"""
    diversity: Tensor
    """Share of the codes that the pass could have used and has not, 0 to 1."""


@contextmanager
def _drawing(model: nn.Module, *, temperature: float) -> Iterator[DrawnQuantizer]:
    """The model's quantizer: the one that an adapter trains a copy of, where there is one."""
    quantizer = [module for module in model.modules() if isinstance(module, DrawnQuantizer)][-1]
    quantizer.temperature = temperature
    try:
        yield quantizer
    finally:  # tensors with a graph behind them cannot be copied with the model
        quantizer.seeds, quantizer.chosen, quantizer.shares = [], [], []


def contrast(
    model: nn.Module, batch: dict[str, Tensor], *, temperature: float, gumbel: float, one_by_one: bool
) -> ContrastiveOutput:
    """The objective on a batch: `input_values`, `attention_mask`, `mask` [clips, frames], `negatives`, `noise_seeds`.

    `negatives` [hidden frames, count] are indices into their own clip's hidden frames. With `one_by_one` no clip sees
    another's padding. Source: Baevski et al., https://arxiv.org/abs/2006.11477, equations 3 and 4.
    """
    mask = batch["mask"]
    counts = mask.sum(1).tolist()
    seeds = batch["noise_seeds"].tolist()
    predicted: list[Tensor] = []
    wanted: list[Tensor] = []
    with _drawing(model, temperature=gumbel) as quantizer:
        for clips in [slice(i, i + 1) for i in range(len(mask))] if one_by_one else [slice(None)]:
            inputs, hidden = clip_inputs(batch, clips, one_by_one=one_by_one), mask[clips]
            if one_by_one:
                hidden = hidden[:, : int(batch["frames"][clips])]
            quantizer.seeds = seeds[clips]
            output = model(**inputs, mask_time_indices=hidden)
            predicted.append(output.projected_states[hidden].float())
            wanted.append(output.projected_quantized_states.float())
        codes = torch.cat(quantizer.chosen)
        shares = torch.cat(quantizer.shares)
    diversity = 1 - perplexity(shares) / shares[0].numel()
    by_clip = [torch.split(t, counts) for t in (torch.cat(predicted), torch.cat(wanted), codes, batch["negatives"])]
    with torch.autocast(mask.device.type, enabled=False):  # 16 bits would round differences away
        told = [_told(*clip, temperature=temperature) for clip in zip(*by_clip, strict=True)]
    losses, right = (torch.cat(values) for values in zip(*told, strict=True))
    return ContrastiveOutput(losses, right, codes, diversity)


def _told(
    predicted: Tensor, wanted: Tensor, codes: Tensor, negatives: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """The loss of each hidden frame of a clip, and whether its own code was the most similar, both [frames]."""
    similar = functional.normalize(predicted, dim=-1, eps=1e-8) @ functional.normalize(wanted, dim=-1, eps=1e-8).T
    similar = similar / temperature
    same = (codes[:, None] == codes[None]).all(-1).gather(1, negatives)  # is no negative
    others = similar.gather(1, negatives).masked_fill(same, -torch.inf)
    logits = torch.cat([similar.diagonal()[:, None], others], dim=1)
    return -logits.log_softmax(-1)[:, 0], logits.argmax(-1) == 0


def clip_inputs(batch: dict[str, Tensor], clips: slice, *, one_by_one: bool) -> dict[str, Tensor]:
    """The model's input for some clips of a batch; alone, without padding."""
    values, seen = batch["input_values"][clips], batch["attention_mask"][clips]
    if one_by_one:
        return {"input_values": values[:, : int(seen.sum())]}
    return {"input_values": values, "attention_mask": seen}
