"""Ways to run a decoder in which it reads a text as it does alone, found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from tltasks.errors import CheckpointError, first_line
from tltasks.models.cross_entropy import hidden_states
from tltasks.models.shrinking import small_copies

ALIKE = 1e-3
"""Share of the numbers' spread by which two passes over the same text may differ. Rounding is below 1e-5 of it; a text
that is seen elsewhere, or not seen, changes them by 4e-3 to 5."""
NEW_TOKENS = 3
"""Tokens that are written to see whether the cache holds what was read."""
LARGEST_COPY = 30_000_000
"""Parameters of a copy that is quicker to try than most models themselves."""
Packing = Literal["mask", "positions"]
Batches = Literal["any rows", "equal lengths", "single rows"]
WAYS: tuple[Packing, ...] = get_args(Packing)
FAILS = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Habits:
    """How a decoder may be run. Without a model to try, the slow way."""

    packing: Packing | None = None
    """What keeps several examples of a row apart: a mask of who sees whom, positions that begin anew, or nothing."""
    batches: Batches = "single rows"
    """Rows that are generated from together: any, filled up at the left, or those of a length, or none."""
    caches: bool = True
    """With its cache it writes what it writes without."""

    @property
    def pads(self) -> bool:
        """Tell whether rows of any length go together."""
        return self.batches == "any rows"


def attention_mask(segments: Tensor, model: PreTrainedModel) -> Tensor:
    """The tokens that each sees, [rows, 1, length, length]: earlier ones of its example, in the form of the model.

    Padding sees the padding before it, since attention to nothing is not a number.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & causal
    if model.config._attn_implementation == "sdpa":
        return seen
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(model.dtype).min)


def packed_inputs(
    segments: Tensor, position_ids: Tensor, model: PreTrainedModel, packing: Packing
) -> dict[str, Tensor]:
    """Arguments of the model's forward by which examples in a row are blind to each other."""
    if packing == "positions":  # of which transformers makes the mask of each kind of layer (5.24, masking_utils.py)
        return {"position_ids": position_ids}
    return {"attention_mask": attention_mask(segments, model), "position_ids": position_ids}


def try_decoder(
    model: PreTrainedModel, ids: Sequence[int], *, tokens: int, pad: int, beams: int | None, display_name: str
) -> Habits:
    """The habits of a decoder in rows of up to `tokens` of the tokens `ids`, by its small copy or, without one, itself.

    It is to generate by so many `beams`, or not at all. Windows and chunks are seen by longer texts alone.
    Raises CheckpointError for a model that reads what comes after, as encoders do, or does not run.
    """
    for tried in small_first(model):
        trial = _Trial(tried, ids, tokens, pad, display_name, is_copy=tried is not model)
        try:
            with at_rest(tried):
                habits = trial.habits(beams=beams)
        except CheckpointError:
            if tried is model:  # copies have faults of their own, and do not hold together each
                raise
        else:
            return habits
    raise AssertionError("the model itself is the last")


def small_first(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Small random copies of the model where there are any, and itself."""

    def build(config: PretrainedConfig) -> PreTrainedModel:
        made = type(model)(config)
        if sum(parameter.numel() for parameter in made.parameters()) > LARGEST_COPY:
            raise ValueError("not small")
        return made

    yield from small_copies(model, model.config, build)
    yield model


@contextmanager
def at_rest(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()
            yield
    finally:
        model.train(training)


class _Trial:
    """A long text and the first half of it, put through a model in several ways."""

    def __init__(
        self, model: PreTrainedModel, ids: Sequence[int], tokens: int, pad: int, shown: str, *, is_copy: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(ids), (tokens,), generator=generator).tolist()
        long = torch.tensor([ids[i] for i in drawn], device=model.device)
        self.model, self.pad, self.texts = model, pad, [long, long[: max(2, tokens // 2)]]
        self.prompts = [text[: max(1, len(text) - NEW_TOKENS)] for text in self.texts]  # there is room for no more
        self.is_copy, self.shown = is_copy, f"model {shown}: {type(model).__name__}"

    def habits(self, *, beams: int | None) -> Habits:
        alone = self._alone()
        packing = next((way for way in WAYS if self._keeps_apart(alone, way)), None)
        if beams is None:
            return Habits(packing)
        caches = self._caches(beams)
        try:
            long = self._write(self.prompts[:1], cached=caches)[1]
        except FAILS as error:
            raise CheckpointError(
                f"{self.shown} cannot generate with this transformers ({first_line(error)})."
            ) from error
        return Habits(packing, self._batches(long, cached=caches), caches)

    def _alone(self) -> list[Tensor]:
        """The states of each text; raises CheckpointError for models that cannot be trained to write."""
        short = None
        try:
            short = self._read(self.texts[1:])
            long, size = self._read(self.texts[:1]), short.shape[1]
            seen = torch.ones(2, long.shape[1], dtype=torch.long, device=long.device)
            seen[1, size:] = 0
            together = self._read(self.texts, attention_mask=seen)
            self.model.train()  # in which Reformer takes texts of one length alone
            self._read(self.texts[1:])
            self.model.eval()
        except FAILS as error:
            advice = "" if short is None else "lower `data.max_document_tokens`, or "
            raise CheckpointError(
                f"{self.shown} does not run on {len(self.texts[0])} tokens ({first_line(error)}); {advice}name another "
                "decoder."
            ) from error
        if not alike(long[:, :size], short):
            raise CheckpointError(
                f"{self.shown} reads what comes after a word, as encoders do, and so has not learnt to write. Name a "
                "decoder (GPT-2, Llama, …) or an encoder-decoder (T5, BART, …); the config.json of one that was "
                "trained to write says `is_decoder: true`."
            )
        if not (alike(long[0], together[0]) and alike(short[0], together[1, :size])):
            raise CheckpointError(
                f"{self.shown} reads a text otherwise beside a longer one, so that what it learns would depend on the "
                "batch. Name another decoder."
            )
        return [long, short]

    def _read(self, texts: Sequence[Tensor], **inputs: Tensor) -> Tensor:
        """The states that the head receives, or the logits where it receives none, of texts filled up at the right."""
        rows = {"input_ids": torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True), **inputs}
        if self.model.get_output_embeddings() is not None:
            try:
                return hidden_states(self.model, {**rows, "use_cache": False})[1].float()
            except IndexError:  # its head is passed by
                pass
        logits: Tensor = self.model(**rows, use_cache=False).logits.float()
        return logits

    def _keeps_apart(self, alone: Sequence[Tensor], way: Packing) -> bool:
        row, sizes = torch.cat(self.texts), [len(text) for text in self.texts]
        places = torch.cat([torch.arange(size, device=row.device) for size in sizes])
        segments = torch.cat([torch.full((size,), i + 1, device=row.device) for i, size in enumerate(sizes)])
        try:
            packed = self._read([row], **packed_inputs(segments[None], places[None], self.model, way))
        except FAILS:  # no such argument, or another form of mask
            return False
        return alike(torch.cat(list(alone), dim=1), packed)

    def _write(self, texts: Sequence[Tensor], *, cached: bool, **keys: int) -> tuple[Tensor, Tensor]:
        """Texts filled up at the left with what the model writes behind them, and the logits of that."""
        width = max(map(len, texts))
        rows = torch.full((len(texts), width), self.pad, device=texts[0].device)
        seen = torch.zeros_like(rows)
        for i, text in enumerate(texts):
            rows[i, width - len(text) :], seen[i, width - len(text) :] = text, 1
        lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        ids = {"pad_token_id": self.pad, "eos_token_id": self.pad}
        config = GenerationConfig(
            **lengths,
            **ids,
            **keys,
            use_cache=cached,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        made = self.model.generate(input_ids=rows, attention_mask=seen, generation_config=config)
        return made.sequences, torch.stack(made.logits, 1).float()

    def _caches(self, beams: int) -> bool:
        """Tell whether tokens have the logits, as they are written with a cache, that they have in a single pass."""
        try:
            sequences, written = self._write(self.prompts[:1], cached=True)
            few = {"logits_to_keep": NEW_TOKENS} if "logits_to_keep" in signature(self.model.forward).parameters else {}
            logits = self.model(input_ids=sequences[:, :-1], use_cache=False, **few).logits.float()
            if beams > 1:  # whose states are put in another order
                with_it, without = (self._write(self.prompts, cached=on, num_beams=beams)[0] for on in (True, False))
                if not torch.equal(with_it, without):
                    return False
        except FAILS as error:
            return self._without(error)
        return alike(logits[:, -NEW_TOKENS:], written)

    def _batches(self, long: Tensor, *, cached: bool) -> Batches:
        first, half = self.prompts
        others: dict[Batches, Tensor] = {"any rows": half, "equal lengths": first.flip(0)}
        for batches, other in others.items():
            try:
                alone, both = (self._write(texts, cached=cached)[1] for texts in ([other], [first, other]))
                if alike(torch.cat([long, alone]), both):
                    return batches
            except FAILS as error:
                self._without(error)
        return "single rows"

    def _without(self, error: Exception) -> bool:
        """False for a model that fails; raises CheckpointError for a copy, of which that says little."""
        if self.is_copy:
            raise CheckpointError(f"{self.shown}, a copy of it, fails ({first_line(error)}).") from error
        return False


def alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= ALIKE * float(one.std())
