"""Texts that a model writes, the same that `generate` of transformers gives, in less time where that can be."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AttentionInterface,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMode, logits_process
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

if TYPE_CHECKING:
    import peft


class FirstTokens(LogitsProcessor):  # type: ignore[misc]
    """Has each row begin with a token of its own, as ForcedBOSTokenLogitsProcessor has all begin with one."""

    def __init__(self, first: Tensor) -> None:
        self.first = first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > 1:
            return scores
        first = self.first.repeat_interleave(len(scores) // len(self.first))  # beams of a row are side by side
        return torch.full_like(scores, -torch.inf).scatter_(1, first[:, None], 0.0)


BY_ROW = {
    FirstTokens,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
}
"""What changes the scores of a row by its own tokens, and keeps nothing of it."""
OF_ROWS = {"attention_mask", "decoder_attention_mask", "position_ids", "decoder_position_ids", "token_type_ids"}
OF_ALL = {"use_cache", "encoder_outputs", "cache", "logits_to_keep"}
CACHED_SCORES = 2**18
"""Scores of a head that are worked on at once."""
LEAVING_SHARE = 1 / 8
"""Share of rows that have ended from which they are taken out: until then that costs more than it spares."""


def write(
    model: PreTrainedModel | peft.PeftModel,
    inputs: Mapping[str, object],
    *,
    generation: GenerationConfig | None = None,
    stopping: StoppingCriteriaList | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Token ids as `generate` gives them, [rows, tokens], by the model's own settings unless others are given.

    `inputs` stay as they are: with beams it repeats what an encoder has made where it is (transformers 5.24).
    `first`: the token, such as a language, that each row of an encoder-decoder has to begin with, [rows].
    Without beams or draws, rows that have ended leave the batch, so that they do not wait for the longest.
    """
    begin = None if first is None else LogitsProcessorList([FirstTokens(first)])
    asked = {"generation_config": generation, "stopping_criteria": stopping, "logits_processor": begin}
    keys = {name: value for name, value in asked.items() if value is not None}
    mode = (generation or model.generation_config).get_generation_mode()
    if isinstance(model, PreTrainedModel) and mode == GenerationMode.GREEDY_SEARCH:
        keys["custom_generate"] = _search
    own = {name: copy.copy(value) if isinstance(value, ModelOutput) else value for name, value in inputs.items()}
    written: Tensor = model.generate(**own, **keys)
    return written


def read_in_parts(model: PreTrainedModel, inputs: Mapping[str, Tensor], *, budget: int) -> dict[str, Tensor] | None:
    """Inputs with what an encoder makes of them, some rows at a time: no more than `budget` rows × longest.

    Padding is at the right. None for a model that reads in its own way.
    """
    if type(model).generate is not GenerationMixin.generate:
        return None
    seen, encoder = inputs["attention_mask"], model.get_encoder()
    known = inspect.signature(encoder.forward).parameters
    states, left = list[Tensor](), seen.sum(1).argsort(descending=True, stable=True)
    places = left.argsort()
    while len(left):
        longest = max(1, int(seen[left[0]].sum()))
        rows, left = left[: max(1, budget // longest)], left[max(1, budget // longest) :]
        part = {name: values[rows, :longest] for name, values in inputs.items() if name in known}
        output = encoder(**part, return_dict=True)
        if list(output) != ["last_hidden_state"] or output[0].shape[1] != longest:
            return None
        states.append(functional.pad(output[0], (0, 0, 0, seen.shape[1] - longest)))
    return {"attention_mask": seen, "encoder_outputs": BaseModelOutput(last_hidden_state=torch.cat(states)[places])}


# ---------------------------------------------------------------------------------------------- search


def _search(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **kwargs: object,
) -> Tensor:
    """Greedy search as `GenerationMixin._sample` (transformers 5.24, generation/utils.py), which keeps all rows."""
    kwargs.pop("synced_gpus", None)
    may_leave = (
        all(type(it) in BY_ROW and getattr(it, "prompt_ignore_length", None) is None for it in logits_processor)
        and _are_by_row(kwargs)
        and generation_config.prefill_chunk_size is None
        and generation_config._pad_token_tensor is not None
        and not (generation_config.return_dict_in_generate or generation_config.do_sample)
    )
    if not may_leave:
        written: Tensor = type(model)._sample(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **kwargs,
        )
        return written
    processors = [_quick(processor) for processor in logits_processor]
    pad = generation_config._pad_token_tensor
    texts, rows, ids = [input_ids[:0]] * len(input_ids), torch.arange(len(input_ids)), input_ids
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    outputs = model._prefill(ids, generation_config, kwargs)
    while True:
        kwargs = model._update_model_kwargs_for_generation(
            outputs, kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        scores = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        del outputs
        for processor in processors:
            scores = processor(ids, scores)
        chosen = scores.argmax(-1)
        ids = torch.cat([ids, torch.where(ended, pad, chosen)[:, None]], dim=1)
        ended = ended | stopping_criteria(ids, None)
        n_ended = int(ended.sum())
        if n_ended == len(ids) or (n_ended >= max(1, LEAVING_SHARE * len(ids)) and _are_by_row(kwargs)):
            for row in ended.nonzero().flatten().tolist():
                texts[int(rows[row])] = ids[row]
            if n_ended == len(ids):
                return pad_sequence(texts, batch_first=True, padding_value=int(pad))
            kept = (~ended).nonzero().flatten()
            ids, rows, ended, kwargs = ids[kept], rows[kept.cpu()], ended[kept], _rows_of(kwargs, kept)
        outputs = model(**model.prepare_inputs_for_generation(ids, **_next(kwargs), **kwargs), return_dict=True)


def _next(kwargs: Mapping[str, object]) -> dict[str, int | None]:
    return {"next_sequence_length": 1 if kwargs.get("use_cache") else None}


def _are_by_row(kwargs: Mapping[str, object]) -> bool:
    """Tell what `_rows_of` can take rows out of; models may add states of their own with a pass."""
    known = OF_ROWS | OF_ALL
    return all(name in known for name, value in kwargs.items() if value is not None) and _has_rows(kwargs.get("cache"))


def _has_rows(cache: object) -> bool:
    """Tell a cache that keeps keys and values of each row, or none."""
    if cache is None:
        return True
    if isinstance(cache, EncoderDecoderCache):
        return _has_rows(cache.self_attention_cache) and _has_rows(cache.cross_attention_cache)
    if not isinstance(cache, DynamicCache):
        return False
    return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= {DynamicLayer}


def _rows_of(kwargs: Mapping[str, object], rows: Tensor) -> dict[str, object]:
    found = dict(kwargs)
    for name in OF_ROWS & found.keys():
        if isinstance(values := found[name], Tensor):
            found[name] = values[rows]
    if isinstance(read := found.get("encoder_outputs"), ModelOutput):
        found["encoder_outputs"] = type(read)(**{name: values[rows] for name, values in read.items()})
    if (cache := found.get("cache")) is not None:
        cache.batch_select_indices(rows)  # type: ignore[attr-defined]
    return found


def _quick(processor: LogitsProcessor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same processor; of those that suppress tokens one that does not look for them in all others at each step."""
    kind = type(processor)
    if kind is logits_process.SuppressTokensLogitsProcessor:
        asked, known = processor.suppress_tokens, list[Tensor]()  # may be none, or of no token that there is

        def suppress(_: Tensor, scores: Tensor) -> Tensor:
            if not known:
                known.append(torch.isin(torch.arange(scores.shape[1], device=scores.device), asked).nonzero().flatten())
            return scores.index_fill_(1, known[0], -torch.inf)

        return suppress
    if kind is logits_process.SuppressTokensAtBeginLogitsProcessor:
        return lambda ids, scores: processor(ids, scores) if ids.shape[1] == processor.begin_index else scores
    return processor  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------- passes


@contextmanager
def fast_passes(*, products: bool = True) -> Iterator[None]:
    """Compute the same in other ways where a CPU answers in 16 bits, while the block lasts.

    torch's fused attention (2.14, FlashAttentionKernel.cpp) orders all keys anew for each block of queries, which takes
    8 to 25 times as long as the product itself where there is one query, and twice as long with hundreds. GELU by tanh
    is eight passes over the activations in transformers (5.24). Many queries are left to torch where the processor has
    no kernels for `products` in 16 bits.
    """
    AttentionInterface.register("sdpa", partial(_attend, products=products))
    NewGELUActivation.forward = _gelu
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", sdpa_attention_forward)
        NewGELUActivation.forward = _plain_gelu


_plain_gelu = NewGELUActivation.forward


def _is_quick(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled()


def _gelu(self: NewGELUActivation, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh") if _is_quick(x) else _plain_gelu(self, x)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    products: bool = True,
    **keys: object,
) -> tuple[Tensor, None]:
    """Attention of queries [rows, heads, queries, width] to keys, whose heads several of the queries' may share.

    Some queries at a time, so that their scores stay in the processor's cache.
    """
    rows, heads, n, width = query.shape
    is_causal = n > 1 and attention_mask is None and keys.get("is_causal", getattr(module, "is_causal", True))
    groups = heads // key.shape[1]
    few = n == 1 or (groups == 1 and products)
    if is_causal or len(key) != rows or not few or not _is_quick(query) or keys.get("softcap"):
        keys |= {"scaling": scaling, "position_bias": position_bias}
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **keys)
        return found
    query = query * (width**-0.5 if scaling is None else scaling)
    parts, step = [], max(1, CACHED_SCORES // key.shape[2])
    for start in range(0, n, step):
        some = slice(start, start + step)
        asked = query[:, :, some].reshape(rows, key.shape[1], -1, width)
        scores = (asked @ key.transpose(-1, -2)).view(rows, heads, -1, key.shape[2])
        for added in (position_bias, attention_mask):
            if added is not None:
                part = added if added.shape[2] == 1 else added[:, :, some]
                lowest = torch.finfo(scores.dtype).min
                scores = scores.masked_fill(~part, lowest) if part.dtype == torch.bool else scores + part
        shares = functional.softmax(scores, dim=-1).to(value.dtype).view(*asked.shape[:3], -1)
        parts.append((shares @ value).view(rows, heads, -1, value.shape[-1]))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
