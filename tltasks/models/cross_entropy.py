"""Cross-entropy over a large vocabulary whose memory does not grow with the batch.

A batch of 32 × 128 tokens over mT5's 250,112 words would hold 4 GB of logits, and their gradient as much again. The
head is applied to the hidden states of the targets alone, some at a time, and again in the backward pass. torch's
`linear_cross_entropy` (2.14) does the same for a weight and a bias; a head here is any module, with an adapter or not.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tltasks.models.adapters import unwrap_model

LOGITS_AT_ONCE = 2**24
"""64 MiB in fp32."""
Inputs = Mapping[str, object]
"""Keyword arguments of a model's forward."""


@dataclass(frozen=True)
class Head:
    """The layer that makes a model's logits of hidden states, in the precision of the model's own forward."""

    layer: nn.Module
    autocast: torch.autocast

    def __call__(self, hidden: Tensor) -> Tensor:
        with self.autocast:
            logits: Tensor = self.layer(hidden)
        return logits

    def parts(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Hidden states [targets, width] and their targets, so many at a time that their logits are held at once."""
        at_once = max(1, LOGITS_AT_ONCE // max(parameter.shape[0] for parameter in self.layer.parameters()))
        return list(zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True))


def mean_loss(
    model: nn.Module, inputs: Inputs, targets: Tensor, *, smoothing: float = 0.0, chunked: bool = True
) -> Tensor:
    """Mean cross-entropy over the targets [rows, length] that are not -100; position i predicts target i.

    `chunked` needs a head that alone makes logits of hidden states (`has_plain_head`).
    """
    wanted = targets != -100
    if not chunked:
        logits = model(**inputs).logits[:, : wanted.shape[1]][wanted].float()  # Perceiver has some for every place
        return functional.cross_entropy(logits, targets[wanted], label_smoothing=smoothing)
    head, hidden = hidden_states(model, inputs)

    def total(hidden: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(head(hidden).float(), targets, label_smoothing=smoothing, reduction="sum")

    parts = head.parts(hidden[wanted], targets[wanted])
    if len(parts) == 1:
        return total(*parts[0]) / len(targets[wanted])
    sums = [checkpoint(total, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(sums).sum() / len(targets[wanted])


def target_losses(model: nn.Module, inputs: Inputs, targets: Tensor, *, chunked: bool = True) -> tuple[Tensor, Tensor]:
    """The loss of each target that is not -100, and whether it was the likeliest, both [targets]; for evaluation."""
    wanted = targets != -100

    def judge(logits: Tensor, targets: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == targets).float()])

    if chunked:
        head, hidden = hidden_states(model, inputs)
        found = torch.cat([judge(head(h), t) for h, t in head.parts(hidden[wanted], targets[wanted])], dim=1)
    else:
        found = judge(model(**inputs).logits[:, : wanted.shape[1]][wanted], targets[wanted])
    return found[0], found[1]


def hidden_states(model: nn.Module, inputs: Inputs) -> tuple[Head, Tensor]:
    """The head of a model, and the hidden states that it would have received, [rows, length, width].

    The model runs as ever, but its head is given no position.
    """
    layer: nn.Module = unwrap_model(model).get_output_embeddings()
    received: list[tuple[Head, Tensor]] = []

    thread = threading.get_ident()

    def withhold(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if threading.get_ident() != thread:  # another micro-batch's pass
            return arguments
        hidden, device = arguments[0], arguments[0].device.type
        # accelerate puts autocast around the forward alone.
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        received.append((Head(layer, torch.autocast(device, dtype, enabled)), hidden))
        return (hidden[:, :0],)

    hook = layer.register_forward_pre_hook(withhold)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return received[0]


def has_plain_head(model: PreTrainedModel, inputs: Inputs, targets: Tensor) -> bool:
    """Tell whether the model's logits are its head applied to hidden states, with nothing after it, by trying."""
    if model.get_output_embeddings() is None:
        return False
    trained = model.training
    with torch.no_grad():
        model.eval()
        whole = mean_loss(model, inputs, targets, chunked=False)
        try:
            ours = mean_loss(model, inputs, targets)
        except (RuntimeError, IndexError, TypeError):  # ProphetNet's has several predictions of each place
            return False
        finally:
            model.train(trained)
    return bool(torch.isclose(whole, ours, rtol=1e-4))
