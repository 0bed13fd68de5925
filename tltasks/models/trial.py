"""Layers that an adapter can be put beside, found by trying: which of them it would reach, train and be merged into."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from tltasks.errors import first_line

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    from peft.tuners.lora import LoraLayer

Run = Callable[[nn.Module], Tensor]
"""Passes an example or two through a model."""

ADAPTER = "tried"
RANK = 2
MERGED_WITHIN = 1e-2
"""Share of an adapter's effect by which merging it may change it. Rounding is below 1e-4 of it; another function of the
weight, or another user of it, makes a difference as large as the effect."""
GRADIENT_WITHIN = 0.1
"""The same for gradients, of which the sums over positions may nearly cancel out."""
ROUNDING = 1e-5
NOTHING = 1e-35
"""Below this, fp32 has few digits left."""

PASSED_BY = "the model passes it by (its weight is read past the layer, or not at all)"
OTHER_FUNCTION = "it computes with a function of its weight, such as a standardised one"
OTHER_USER = "its weight is used elsewhere, too"
NO_GRADIENT = "no gradient comes there"


def unfit_layers(model: nn.Module, names: Sequence[str], run: Run) -> dict[str, str]:
    """Those of the linear and convolutional layers `names` that a low-rank adapter must not be put beside, and why.

    Each gets one, as PEFT makes it, and the model is run: with an adapter the layer must compute what it computes with
    the adapter merged, be called with gradients and without, and the weight's whole gradient must come through it. The
    model is left as it was.
    """
    found: dict[str, str] = {}
    with _as_it_was(model):
        while left := [name for name in names if name not in found]:
            trial = _Trial(model, left)
            try:
                found |= trial.outcome(run)
                break
            except AttributeError as error:  # models ask layers for what PEFT's stand-ins for them do not have
                odd = next((name for name, layer in trial.layers.items() if layer is error.obj), None)
                if odd is None:
                    raise
                found[odd] = f"the model asks it for its `{error.name}`, which PEFT's layers do not have"
            finally:
                trial.undo()
    return {name: found[name] for name in names if name in found}


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with training mode, trained weights, gradients and torch's random state put back afterwards."""
    training = {module: module.training for module in model.modules()}
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, about what is found out here
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, trained, gradient in parameters:
            parameter.requires_grad_(trained)
            parameter.grad = gradient


class _Trial:
    """A model with an adapter beside each of some layers."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        import peft

        self.model, self.attributes = model, set(vars(model))
        self.base = {name: model.get_submodule(name) for name in names}
        groups = {name: int(getattr(layer, "groups", 1)) for name, layer in self.base.items()}
        self.transposed = any(isinstance(module, Conv1D) for module in model.modules())
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=rf"({'|'.join(re.escape(name) for name in names)})",
            rank_pattern={rf"^{re.escape(name)}": n for name, n in groups.items() if n > 1},  # as PEFT asks
            init_lora_weights=False,
            fan_in_fan_out=self.transposed,
        )
        peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
        self.layers: dict[str, LoraLayer] = {name: model.get_submodule(name) for name in names}
        self.reasons: dict[str, str] = {}
        self.called: set[str] = set()
        self.beside: dict[str, Tensor] = {}
        """The share of a weight's gradient that its adapter would see, if all of it came through the layer."""
        for name, layer in self.layers.items():
            layer.forward = self._tried(name, layer.forward)

    def outcome(self, run: Run) -> dict[str, str]:
        for with_gradient in (False, True):
            self.called.clear()
            with torch.set_grad_enabled(with_gradient):
                hooks = self._watch_gradients() if with_gradient else []
                output = run(self.model).float()
            self.reasons |= {name: PASSED_BY for name in self.layers if name not in self.called | self.reasons.keys()}
        generator = torch.Generator().manual_seed(0)
        if output.requires_grad:
            (output.cpu() * torch.randn(output.shape, generator=generator)).sum().backward()  # type: ignore[no-untyped-call]
        for hook in hooks:
            hook.remove()
        for name, layer in self.layers.items():
            if name not in self.reasons and (
                reason := self._fault_of_gradient(name, layer.lora_B[ADAPTER].weight.grad)
            ):
                self.reasons[name] = reason
        return self.reasons

    def undo(self) -> None:
        for name, layer in self.base.items():
            parent, _, own = name.rpartition(".")
            setattr(self.model.get_submodule(parent), own, layer)
        for name in vars(self.model).keys() - self.attributes:  # PEFT's marks of a model that has an adapter
            delattr(self.model, name)

    def _tried(self, name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A forward pass that is compared with that of the merged layer, and goes on without an adapter that fails."""
        base = self.base[name]

        def tried(*args: Tensor, **kwargs: Tensor) -> Tensor:
            self.called.add(name)
            plain: Tensor = base(*args, **kwargs)
            if name in self.reasons:
                return plain
            try:
                adapted = forward(*args, **kwargs)
                if not torch.is_grad_enabled():
                    merged = {"weight": base.weight + self.layers[name].get_delta_weight(ADAPTER)}
                    error = (functional_call(base, merged, args, kwargs) - adapted).abs().max()
                    effect, rounding = (adapted - plain).abs().max(), ROUNDING * plain.abs().max() + NOTHING
                    if "weight" not in base._parameters or error > MERGED_WITHIN * effect + rounding:
                        self.reasons[name] = OTHER_FUNCTION
            except (RuntimeError, TypeError, ValueError, KeyError, NotImplementedError) as error:
                self.reasons[name] = f"PEFT's adapter fails beside it ({first_line(error)})"
            return plain if name in self.reasons else adapted

        return tried

    def _watch_gradients(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Keep of each weight's gradient what the adapters of its layers would see of it, and drop the rest."""
        users: dict[nn.Parameter, list[str]] = {}
        for name, layer in self.base.items():
            weight = layer.weight
            if name not in self.reasons and isinstance(weight, nn.Parameter) and getattr(layer, "groups", 1) == 1:
                users.setdefault(weight, []).append(name)

        def keep(weight: nn.Parameter) -> None:
            assert weight.grad is not None
            whole = weight.grad.float()  # of a weight that is held in 16 bits
            gradient = whole.T if isinstance(self.base[users[weight][0]], Conv1D) else whole.flatten(1)
            for name in users[weight]:
                layer = self.layers[name]
                self.beside[name] = layer.scaling[ADAPTER] * gradient @ layer.lora_A[ADAPTER].weight.flatten(1).T
            weight.grad = None

        return [weight.requires_grad_().register_post_accumulate_grad_hook(keep) for weight in users]  # type: ignore[no-untyped-call]

    def _fault_of_gradient(self, name: str, gradient: Tensor | None) -> str | None:
        if gradient is None:
            return NO_GRADIENT
        expected = self.beside.get(name)
        if expected is None:
            return None
        difference, whole = (gradient.flatten(1) - expected).abs().max(), expected.abs().max()
        return OTHER_USER if difference > GRADIENT_WITHIN * whole + NOTHING else None
