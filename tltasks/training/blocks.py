"""The weights of a model that are trained, and the blocks that they are in, by their names."""

from __future__ import annotations

import re

from torch import nn

Named = list[tuple[str, nn.Parameter]]

_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)(?:\.(?:[^.]+\.)*?\d+(?=\.))?")  # `encoder.stages.1.layers.0`


def trained(model: nn.Module) -> Named:
    """The parameters that are trained, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def blocks_above(names: list[str], *, head: tuple[str, ...] = ()) -> dict[str, int]:
    """Number of blocks, the head among them, above each parameter: 0 for the head, 1 for the topmost block.

    >>> blocks_above(["emb.w", "layer.0.w", "layer.1.w", "classifier.w"], head=("classifier",))
    {'emb.w': 3, 'layer.0.w': 2, 'layer.1.w': 1, 'classifier.w': 0}
    """
    depth: dict[str, int | None] = {}
    blocks: dict[str, int] = {}
    last = 0
    for name in names:
        plain = name.removeprefix("base_model.model.")
        if any(plain.startswith(f"{module}.") for module in head):
            depth[name] = None
            continue
        if block := _BLOCK.match(plain):
            last = blocks.setdefault(block.group(), len(blocks) + 1)
        depth[name] = last
    top = len(blocks) + 1
    return {name: 0 if d is None else top - d for name, d in depth.items()}
