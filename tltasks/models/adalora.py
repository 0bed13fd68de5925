"""AdaLoRA: singular values are taken from the layers that need them least, until the average rank is as asked.

PEFT has the layers and the rule (peft 0.21, tuners/adalora); here it is told when, and its state is kept for resuming.
Source: Zhang et al., https://arxiv.org/abs/2303.10512.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tltasks.config.adaptation import AdaLora

_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""Of PEFT's allocator: the smoothed importance of each weight, and how uncertain that is."""


class RankAllocation:
    """Of one model, over a number of optimiser steps that is known when it begins."""

    def __init__(self, model: Any, keys: AdaLora, *, total_steps: int) -> None:
        self._tuner = model.base_model
        self._config: Any = model.peft_config["default"]
        self._config.total_step = total_steps
        self._config.tinit = int(keys.initial_share * total_steps)
        self._config.tfinal = int(keys.final_share * total_steps)
        self._vectors = {name: p for name, p in self._tuner.model.named_parameters() if _is_vectors(name)}

    def penalty(self) -> Tensor:
        """Mean distance of the singular vectors' products from the identity (equation 4, as PEFT weighs it)."""
        distances = []
        for name, p in self._vectors.items():
            product = p @ p.T if "lora_A" in name else p.T @ p
            distances.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device)))
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        """Take what is least important away after step `step`, the first being 1, while gradients are there."""
        self._tuner.update_and_allocate(step)

    def ranks_final(self, step: int) -> bool:
        """Whether the ranks after so many steps are those of the end."""
        return step >= int(self._config.total_step - self._config.tfinal)

    def state(self) -> dict[str, Tensor]:
        """What the next steps depend on besides weights and gradients."""
        allocator = self._tuner.rankallocator
        kept = {f"{group}/{name}": t for group in _AVERAGES for name, t in getattr(allocator, group).items()}
        pattern = self._config.rank_pattern or {}
        return kept | {f"pattern/{name}": torch.tensor(mask) for name, mask in pattern.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        allocator, device = self._tuner.rankallocator, next(iter(self._vectors.values())).device
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*_AVERAGES, "pattern")}
        for key, tensor in state.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        for group in _AVERAGES:
            setattr(allocator, group, {name: tensor.to(device) for name, tensor in groups[group].items()})
        allocator.ipt = {name: torch.zeros_like(t) for name, t in allocator.exp_avg_ipt.items()}
        self._config.rank_pattern = {name: mask.tolist() for name, mask in groups["pattern"].items()} or None


def _is_vectors(name: str) -> bool:
    return "lora_A." in name or "lora_B." in name
