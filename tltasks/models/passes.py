"""Passes of a model that depend on their input alone, and not on the passes before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

Settings = dict[str, int | float | str | None]


def forget_passes(model: nn.Module, run: Callable[[], object]) -> list[tuple[str, str, int | float | str | None]]:
    """Let modules that `run`, a pass in evaluation mode, changes settings of have these put back before each pass.

    Gives the modules' names and these settings, as far as the modules have functions to set them.

    A short text leaves BigBird-PEGASUS in full attention for all that come after; NLLB-MoE's routers keep the size of
    the last evaluated batch as the most tokens that an expert takes in training (transformers 5.24).
    """
    before = {name: _settings(module) for name, module in model.named_modules()}
    training = model.training
    try:
        with torch.no_grad():  # what a model keeps of a pass is to serve training, too
            model.eval()
            run()
    finally:
        model.train(training)
    changed: dict[str, Settings] = {}
    for name, module in model.named_modules():
        held, now = before.get(name, {}), _settings(module)
        odd = {key: value for key, value in held.items() if key in now and now[key] != value}
        above = (outer for outer in changed if name.startswith(f"{outer}."))
        if odd and not any(odd.keys() <= changed[outer].keys() for outer in above):  # which sets what is in it
            changed[name] = odd
            module.register_forward_pre_hook(partial(_put_back, odd))
            _put_back(odd, module)
    return [
        (name, key, value)
        for name, odd in changed.items()
        for key, value in odd.items()
        if hasattr(model.get_submodule(name), f"set_{key}")
    ]


def _settings(module: nn.Module) -> Settings:
    kinds = int | float | str | None
    return {key: value for key, value in vars(module).items() if isinstance(value, kinds) and key != "training"}


def _put_back(settings: Mapping[str, int | float | str | None], module: nn.Module, *_: object) -> None:
    for key, value in settings.items():
        if getattr(module, key) != value:
            getattr(module, f"set_{key}", partial(setattr, module, key))(value)
