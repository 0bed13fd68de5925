"""Activations without outliers, for products in eight bits: a channel's scale goes from activations into weights.

Source: SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4 with α = 0.5. CTranslate2 measures the range of
activations row by row, so that one large channel leaves the others few levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

PAIRS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("layer_norm", ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v")),
    ("SelfAttention.v", ("SelfAttention.o",)),
    ("layer_norm", ("EncDecAttention.q",)),
    ("EncDecAttention.v", ("EncDecAttention.o",)),
    ("layer_norm", ("DenseReluDense.wi_0", "DenseReluDense.wi_1")),
    ("layer_norm", ("DenseReluDense.wi",)),
    ("DenseReluDense.wi_1", ("DenseReluDense.wo",)),
)
"""What gives a channel, and what alone takes it, by their names in a layer of T5. A product with the gate and a mean
over positions keep a channel's scale."""
ARCHITECTURES = ("t5", "mt5")
LEAST = 1e-5


def smooth(model: nn.Module, run: Callable[[], object]) -> None:
    """Scale the channels of a T5's weights in place, by what `run` sends through the model. What it answers stays."""
    places = list(_places(model))
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        largest = inputs[0].detach().abs().flatten(0, -2).amax(0)
        seen[module] = torch.maximum(seen[module], largest) if module in seen else largest

    hooks = [takers[0].register_forward_hook(see) for _, takers in places]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for giver, takers in places:
            if takers[0] in seen:
                _scale(giver, takers, seen[takers[0]])


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Each module that gives channels, with those that take them."""
    for layer in model.modules():
        known = dict(layer.named_modules())
        for giver, takers in PAIRS:
            if giver in known and set(takers) <= set(known):
                yield known[giver], [known[name] for name in takers]
    stacks = dict(model.named_children())
    if "encoder" in stacks:
        heard = ("EncDecAttention.k", "EncDecAttention.v")
        yield (
            stacks["encoder"].get_submodule("final_layer_norm"),
            [part for name, part in stacks["decoder"].named_modules() if name.endswith(heard)],
        )
        if stacks["lm_head"].weight is not stacks["shared"].weight:
            yield stacks["decoder"].get_submodule("final_layer_norm"), [stacks["lm_head"]]


def _scale(giver: nn.Module, takers: list[nn.Module], largest: Tensor) -> None:
    given, taken = giver.get_parameter("weight"), [taker.get_parameter("weight") for taker in takers]
    weights = torch.stack([it.abs().amax(0) for it in taken]).amax(0)
    scale = (largest.clamp(min=LEAST) / weights.clamp(min=LEAST)).sqrt()
    scale /= scale.log().mean().exp()  # gates in 16 bits stay in their range
    given.div_(scale if given.dim() == 1 else scale[:, None])
    for it in taken:
        it.mul_(scale)
