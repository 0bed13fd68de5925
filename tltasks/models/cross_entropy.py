"""Cross-entropy over a large vocabulary whose memory does not grow with the batch.

A batch of 32 × 128 tokens over mT5's 250,112 words would hold 4 GB of logits, and their gradient as much again. The
head is applied to the hidden states of the targets alone, some at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

LOGITS_AT_ONCE = 2**24
"""64 MiB in fp32."""


def unwrap_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside whatever wraps it, with any adapter's layers in place."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    """Tell whether PEFT has wrapped the model, without the half second that importing PEFT takes."""
    return hasattr(model, "active_peft_config")


def writer(model: nn.Module) -> Any:
    """What generates: the transformers model, or around it the adapter that puts virtual tokens before its input."""
    for module in model.modules():
        if is_adapted(module) and module.active_peft_config.is_prompt_learning:
            return module
    return unwrap_model(model)


def mean_loss(
    model: nn.Module, inputs: Mapping[str, Any], targets: Tensor, *, smoothing: float = 0.0, chunked: bool = True
) -> Tensor:
    """Mean cross-entropy over the targets [rows, length] that are not -100; position i predicts target i.

    `chunked` needs a head that alone makes logits of hidden states (`has_plain_head`).
    """
    wanted = targets != -100
    if not chunked:
        logits = model(**inputs).logits[wanted].float()
        return functional.cross_entropy(logits, targets[wanted], label_smoothing=smoothing)
    return _in_place_of_head(
        model, inputs, lambda head, hidden: _mean_of_head(head, hidden[wanted], targets[wanted], smoothing=smoothing)
    )


def target_losses(
    model: nn.Module, inputs: Mapping[str, Any], targets: Tensor, *, chunked: bool = True
) -> tuple[Tensor, Tensor]:
    """The loss of each target that is not -100, and whether it was the likeliest, both [targets]; for evaluation."""
    wanted = targets != -100

    def judge(logits: Tensor, targets: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == targets).float()])

    def over_parts(head: nn.Module, hidden: Tensor) -> Tensor:
        at_once = max(1, LOGITS_AT_ONCE // _vocabulary(head))
        parts = zip(torch.split(hidden[wanted], at_once), torch.split(targets[wanted], at_once), strict=True)
        return torch.cat([judge(head.forward(h), t) for h, t in parts], dim=1)

    if chunked:
        found = _in_place_of_head(model, inputs, over_parts)
    else:
        found = judge(model(**inputs).logits[wanted], targets[wanted])
    return found[0], found[1]


def _in_place_of_head(
    model: nn.Module, inputs: Mapping[str, Any], function: Callable[[nn.Module, Tensor], Tensor]
) -> Tensor:
    """What a function makes of the head and of the hidden states that it would have received."""
    head = unwrap_model(model).get_output_embeddings()
    found: list[Tensor] = []

    def take_over(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        # Inside the model's forward, so that autocast and DDP see the head at work as ever.
        hidden = arguments[0]
        found.append(function(module, hidden))
        return (hidden[:, :0],)

    hook = head.register_forward_pre_hook(take_over)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return found[0]


def _mean_of_head(head: nn.Module, hidden: Tensor, targets: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross-entropy of hidden states [targets, width]."""

    def total(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head.forward(hidden).float()  # not head(…), which would come back to the hook
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")

    at_once = max(1, LOGITS_AT_ONCE // _vocabulary(head))
    if len(targets) <= at_once:
        return total(hidden, targets) / len(targets)
    parts = [
        checkpoint(total, h, t, use_reentrant=False, preserve_rng_state=False)
        for h, t in zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True)
    ]
    return torch.stack(parts).sum() / len(targets)


def _vocabulary(head: nn.Module) -> int:
    return max(parameter.shape[0] for parameter in head.parameters())


def has_plain_head(model: PreTrainedModel, inputs: Mapping[str, Any], targets: Tensor) -> bool:
    """Whether the model's logits are its head applied to hidden states, with nothing after it, by trying."""
    if model.get_output_embeddings() is None:
        return False
    trained = model.training
    with torch.inference_mode():
        model.eval()
        whole, ours = (mean_loss(model, inputs, targets, chunked=chunked) for chunked in (False, True))
        model.train(trained)
    return bool(torch.isclose(whole, ours, rtol=1e-4))
