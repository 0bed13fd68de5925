"""Regularisation besides the loss: L2-SP, blocks that are unfrozen one by one, ranks that are taken away."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tltasks.config.stage import Stage
from tltasks.models.adapters import RankAllocation
from tltasks.training.blocks import blocks_above, trained


class Regularization:
    """Regularisation of one stage: a function of the model's start, weights, gradients, step and `state`."""

    def __init__(
        self, model: nn.Module, stage: Stage, *, head: Iterable[str] = (), new_head: bool, total_steps: int
    ) -> None:
        named, head = trained(model), tuple(head)
        self._l2_sp, self._held, self._new_head = stage.l2_sp, [], []
        if stage.l2_sp is not None:
            for name, p in named:
                if new_head and any(name.startswith(f"{module}.") for module in head):
                    self._new_head.append(p)
                else:
                    self._held.append((p, p.detach().clone()))
        adalora = stage.adapt.adalora
        self._ranks = None if adalora is None else RankAllocation(model, adalora, total_steps=total_steps)
        self._waiting: list[tuple[float, nn.Parameter]] = []
        if stage.unfreeze_epochs is not None:
            above = blocks_above([name for name, _ in model.named_parameters()], head=head)
            first = min(above[name] for name, _ in named)
            self._waiting = [((above[name] - first) * stage.unfreeze_epochs, p) for name, p in named]

    def penalty(self) -> Tensor | None:
        """α/2 ‖w − w⁰‖² over weights that the checkpoint has, + β/2 ‖w‖² over those of a new head; or AdaLoRA's.

        Source: Li et al., https://arxiv.org/abs/1802.01483, equation 2.
        """
        if self._l2_sp is None:
            return None if self._ranks is None else self._ranks.penalty()
        drift = torch.stack([(p - start).square().sum() for p, start in self._held]).sum()
        size = torch.stack([p.square().sum() for p in self._new_head]).sum() if self._new_head else drift.new_zeros(())
        return self._l2_sp.alpha / 2 * drift + self._l2_sp.beta / 2 * size

    def mask_gradients(self, epoch: float) -> None:
        """Take the gradients from blocks that are not unfrozen yet: the optimiser passes over them.

        Source: Howard and Ruder, https://arxiv.org/abs/1801.06146, §3.3.
        """
        for unfrozen_at, p in self._waiting:
            if epoch < unfrozen_at:
                p.grad = None

    def after_step(self, step: int) -> None:
        """Take ranks away after the optimiser's step `step`, the first being 1, while its gradients are there."""
        if self._ranks is not None:
            self._ranks.after_step(step)

    def ranks_final(self, step: int) -> bool:
        """Return whether ranks stay as they are after so many steps, so that weights may be kept as the best."""
        return self._ranks is None or self._ranks.ranks_final(step)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run goes on from besides the weights."""
        return {} if self._ranks is None else self._ranks.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        if self._ranks is not None:
            self._ranks.load(state)
