"""Micro-batches of a step that are computed at once, each on a part of a CPU's cores.

A product of a few hundred rows does not keep two cores busy, and what is between the products keeps one. So each lane
has a micro-batch of its own and its share of the threads. Gradients are added in the order of the micro-batches, and
each of these has random numbers of its own: which lane is faster changes no number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.runtime.allocator import share_freed_memory
from tltasks.runtime.attention import drawing_from

LANES = 2
"""As measured on two cores; on more, each lane has more of them."""
ARCHITECTURES = {"t5", "vit", "whisper"}
"""Those that it is worth it for, and whose source was read (transformers 5.24): a pass changes nothing in modules, and
only dropout draws in it, and layers that are left out at random, for which a configuration may ask."""

Found = tuple[Tensor, tuple[Tensor | None, ...]]


class Lanes:
    """Threads that compute micro-batches of one model."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        threads = max(1, torch.get_num_threads() // LANES)
        share_freed_memory()
        self.pool = ThreadPoolExecutor(LANES, initializer=torch.set_num_threads, initargs=(threads,))

    def backward(self, loss: Callable[[int], Tensor], seeds: Sequence[int]) -> Tensor:
        """Add the gradients of `loss(i)` for each of the seeds to those of the weights; the sum of the losses."""

        def compute(i: int) -> Found:
            with drawing_from(torch.Generator().manual_seed(seeds[i])):
                found = loss(i)
                return found.detach(), torch.autograd.grad(found, self.weights, allow_unused=True)

        total, begun = torch.zeros(()), deque[Future[Found]]()
        try:
            for i in range(len(seeds)):
                begun.append(self.pool.submit(compute, i))
                if len(begun) > LANES:  # so many gradients are held at once
                    total += self._add(begun.popleft().result())
            while begun:
                total += self._add(begun.popleft().result())
        finally:
            for left in begun:
                left.cancel()
            wait(begun)
        return total

    def _add(self, found: Found) -> Tensor:
        loss, gradients = found
        kept = set[int]()
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is None:
                continue
            if weight.grad is not None:
                weight.grad.add_(gradient)
                continue
            # Some are views of others, as of a class token and of positions, to which it is added, where a pass has one
            # row; they must not be added to through each other.
            place = gradient.untyped_storage().data_ptr()
            weight.grad = gradient.clone() if place in kept else gradient
            kept.add(place)
        return loss


def is_known(model: nn.Module) -> bool:
    """Tell whether the model's passes may be computed beside each other."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None or inner.config.model_type not in ARCHITECTURES or inner.is_activation_checkpointing:
        return False
    return not any(getattr(inner.config, f"{part}_layerdrop", 0) for part in ("encoder", "decoder"))
