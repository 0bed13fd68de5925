"""How an encoder-decoder reads texts beside longer ones, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.errors import CheckpointError, first_line
from tltasks.models.decoder_trial import FAILS, alike, at_rest, small_first

MANY = 16
"""Experts of a layer from which on a router that reaches but an eighth of them with a long text reaches no other."""


def reads_padded(
    model: PreTrainedModel,
    ids: Sequence[int],
    *,
    tokens: int,
    run: Callable[[PreTrainedModel, list[list[int]]], Tensor],
    display_name: str,
) -> bool:
    """Tell whether an encoder-decoder reads texts beside longer ones as it does alone, by its small copy or itself.

    `run` gives its numbers for texts filled up at the right, [texts, …]. BigBird-PEGASUS reads short ones otherwise.
    Raises CheckpointError for a model that does not run, or not as it was trained.
    """
    shown = f"model {display_name}: {type(model).__name__}"
    drawn = torch.randint(len(ids), (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [[ids[i] for i in drawn[:size]] for size in (tokens, tokens // 2 + 1, min(3, tokens))]
    for tried in small_first(model):
        try:
            with at_rest(tried):
                idle = _idle_experts(tried, partial(run, tried, texts[:1]))
                alone = torch.cat([run(tried, [text]) for text in texts])
                padded = alike(alone, run(tried, texts))
        except FAILS as error:
            if tried is model:  # a copy may have faults of its own
                raise CheckpointError(
                    f"{shown} does not run on {tokens} tokens ({first_line(error)}); lower `data.max_document_tokens`."
                ) from error
        else:
            if idle:
                raise CheckpointError(
                    f"{shown} has experts that never read anything, as it runs with this transformers "
                    f"({idle}), so that its answers are not what it was trained to give. Use another architecture."
                )
            return padded
    raise AssertionError("the model itself is the last")


def _idle_experts(model: PreTrainedModel, run: Callable[[], object]) -> str:
    """A list of modules of which `run` calls few, whatever a router says; empty where there is none.

    Of NLLB-MoE's only the first two are called (transformers 5.24, modeling_nllb_moe.py, NllbMoeExperts).
    """
    reads = model.get_encoder().named_modules()
    lists = {n: [*m.children()] for n, m in reads if isinstance(m, nn.ModuleList | nn.ModuleDict) and len(m) >= MANY}
    called: set[nn.Module] = set()
    parts = [part for some in lists.values() for part in some]
    hooks = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in parts]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    few = (f"{n} of {name}" for name, some in lists.items() if 0 < (n := len(called & {*some})) <= len(some) / MANY * 2)
    return next(few, "")
