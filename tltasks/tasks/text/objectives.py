"""Objectives of text without labels: the tokens that are hidden, and the text that the model has to write for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tltasks.config.tasks.text import DenoisingStage, MaskedLanguageStage, TextObjectiveStage
from tltasks.errors import CheckpointError, RecipeError

Ids = NDArray[np.int64]
MOST_SENTINELS = 100
"""Sentinels of T5's vocabulary."""


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def __call__(self, ids: Ids) -> Ids:
        return np.concatenate([self.before, ids, self.after]).astype(np.int64)


class TextObjective(Protocol):
    """A way to make an exercise of the ids of a text."""

    auto_class: ClassVar[type[_BaseAutoModelClass]]
    name: ClassVar[str]

    @property
    def frame(self) -> Frame: ...

    @property
    def closing(self) -> tuple[int, ...]:
        """Ids that end a text, and are predicted like the rest of it."""
        ...

    @property
    def ratio(self) -> float | None:
        """Share of the tokens that is hidden."""
        ...

    def corrupt(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        """The ids that the model reads, and those that it is to write.

        For an encoder-decoder a text of its own; else the target of each position, -100 where nothing is asked.
        """
        ...


# ------------------------------------------------------------------------------------------- denoising


@dataclass(frozen=True)
class SpanCorruption:
    """T5: stretches are replaced by sentinels, and written out behind the same sentinels.

    15 % of the tokens in stretches of three on average; a text begins with a stretch that is seen and ends with one
    that is hidden, as in the authors' code. Source: Raffel et al., https://arxiv.org/abs/1910.10683, §3.1.4 and §3.3.4.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForSeq2SeqLM
    closing: ClassVar[tuple[int, ...]] = ()
    name: ClassVar[str] = "T5's span corruption"

    frame: Frame
    sentinels: tuple[int, ...]
    ratio: float
    span_tokens: float

    def corrupt(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        n_hidden = min(max(round(len(ids) * self.ratio), 1), len(ids) - 1)
        n_spans = max(1, round(n_hidden / self.span_tokens))
        n_spans = min(n_spans, n_hidden, len(ids) - n_hidden, len(self.sentinels))
        seen, hidden = (_cut(n, n_spans, rng) for n in (len(ids) - n_hidden, n_hidden))
        read, written, at = [], [], 0
        for sentinel, n_seen, n_hid in zip(self.sentinels, seen, hidden, strict=False):
            read += [*ids[at : at + n_seen], sentinel]
            written += [sentinel, *ids[at + n_seen : at + n_seen + n_hid]]
            at += n_seen + n_hid
        return self.frame(np.array(read)), self.frame(np.array(written))


def _cut(length: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Sizes of `parts` stretches of one at least that make up `length`, all divisions alike likely."""
    ends = np.sort(rng.choice(length - 1, parts - 1, replace=False)) + 1
    sizes: list[int] = np.diff([0, *ends, length]).tolist()
    return sizes


@dataclass(frozen=True)
class Infilling:
    """BART: stretches are replaced by one mask each, some of none are put in, and the whole text is written.

    30 % of the tokens in stretches whose lengths are of a Poisson distribution with mean three. The paper also shuffles
    sentences, which is not done here. Source: Lewis et al., https://arxiv.org/abs/1910.13461, §2.2 and §5.1.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForSeq2SeqLM
    closing: ClassVar[tuple[int, ...]] = ()
    name: ClassVar[str] = "BART's infilling"

    frame: Frame
    mask: int
    ratio: float
    span_tokens: float

    def corrupt(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        n_hidden = min(max(math.ceil(len(ids) * self.ratio), 1), len(ids))
        spans: list[int] = []
        while (left := n_hidden - sum(spans)) > 0:
            spans.append(min(int(rng.poisson(self.span_tokens)), left))
        # Behind how many of the tokens that are seen each stretch stands.
        places = np.sort(rng.integers(0, len(ids) - n_hidden + 1, len(spans))).tolist()
        read, at, n_seen = [], 0, 0
        for place, span in zip(places, spans, strict=True):
            read += [*ids[at : at + place - n_seen], self.mask]
            at += place - n_seen + span
            n_seen = place
        return self.frame(np.array([*read, *ids[at:]])), self.frame(ids)


# ----------------------------------------------------------------------------------- masked and causal


@dataclass(frozen=True)
class MaskedLanguage:
    """BERT: some tokens are predicted, of which most are hidden, some replaced and some left.

    15 %; of these 80 % are hidden, 10 % another token at random and 10 % as they were. Masks are drawn anew in each
    epoch. Source: Devlin et al., https://arxiv.org/abs/1810.04805, §3.1; Liu et al., arXiv 1907.11692, §4.1.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForMaskedLM
    closing: ClassVar[tuple[int, ...]] = ()
    name: ClassVar[str] = "masked language modelling"

    frame: Frame
    mask: int
    ordinary: tuple[int, ...]
    """Ids that are no special tokens."""
    ratio: float

    def corrupt(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        chosen = rng.choice(len(ids), max(1, round(len(ids) * self.ratio)), replace=False)
        fate = rng.random(len(chosen))
        read, wanted = ids.copy(), np.full(len(ids), -100)
        wanted[chosen] = ids[chosen]
        read[chosen[fate < 0.8]] = self.mask
        other = chosen[(fate >= 0.8) & (fate < 0.9)]
        read[other] = np.asarray(self.ordinary)[rng.integers(0, len(self.ordinary), len(other))]
        before, after = len(self.frame.before), len(self.frame.after)
        return self.frame(read), np.pad(wanted, (before, after), constant_values=-100)


@dataclass(frozen=True)
class CausalLanguage:
    """GPT: every token is predicted from those before it.

    Source: Radford et al., Improving Language Understanding by Generative Pre-Training, 2018, §3.1.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]] = AutoModelForCausalLM
    name: ClassVar[str] = "causal language modelling"

    frame: Frame
    closing: tuple[int, ...]

    @property
    def ratio(self) -> float | None:
        return None

    def corrupt(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids]:
        whole = self.frame(ids)
        return whole, np.append(whole[1:], -100)


# -------------------------------------------------------------------------------------------- choosing


def open_frame(tokenizer: PreTrainedTokenizerBase, *, display_name: str) -> Frame:
    """The ids that the tokenizer puts around a text, by looking at one."""
    plain: Sequence[int] = tokenizer("the", add_special_tokens=False)["input_ids"]
    whole: Sequence[int] = tokenizer("the")["input_ids"]
    at = next((i for i in range(len(whole)) if list(whole[i : i + len(plain)]) == list(plain)), None)
    if at is None:
        raise CheckpointError(
            f"model {display_name}: its tokenizer does not put special tokens around a text, but in it."
        )
    return Frame(tuple(whole[:at]), tuple(whole[at + len(plain) :]))


def choose_objective(
    tokenizer: PreTrainedTokenizerBase, stage: TextObjectiveStage, *, display_name: str
) -> TextObjective:
    """As the stage has it; denoising is span corruption where the vocabulary has sentinels, else infilling."""
    frame, known = open_frame(tokenizer, display_name=display_name), tokenizer.get_vocab()
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    if isinstance(stage, MaskedLanguageStage):
        if mask is None:
            raise CheckpointError(
                f"model {display_name}: its tokenizer has no mask token. For a decoder use "
                "causal-language-modeling, for an encoder-decoder text-denoising."
            )
        special = set(tokenizer.all_special_ids)
        return MaskedLanguage(frame, mask, tuple(sorted(set(known.values()) - special)), stage.mask_ratio)
    if not isinstance(stage, DenoisingStage):
        return CausalLanguage(frame, () if end is None or frame.after else (end,))
    sentinels = tuple(known[name] for i in range(MOST_SENTINELS) if (name := f"<extra_id_{i}>") in known)
    if sentinels:
        return SpanCorruption(frame, sentinels, stage.mask_ratio or 0.15, stage.span_tokens)
    if mask is None:
        raise CheckpointError(
            f"model {display_name}: its tokenizer has neither sentinels (<extra_id_0>, … as T5) nor a mask token "
            "(as BART) to put in place of what is hidden."
        )
    return Infilling(frame, mask, stage.mask_ratio or 0.3, stage.span_tokens)


def check_room(frame: Frame, tokens: int) -> None:
    """Raise RecipeError where a stretch of so many tokens leaves nothing to read."""
    if tokens < len(frame) + 2:
        raise RecipeError(f"data.max_tokens: {tokens} leaves no room; special tokens alone take {len(frame)}.")
