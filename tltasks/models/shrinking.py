"""Small random copies of an architecture: shallow and narrow, with every kind of layer that the model has."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig

Build = Callable[[PretrainedConfig], nn.Module]
"""Builds a model with random weights."""

LEAST_LAYERS = 2
"""Some architectures treat even and odd layers differently, or the last one."""
LARGEST_COPY = 500_000_000
"""Weights beyond which a copy is not worth building."""
NARROWEST_HEAD = 16
"""Width of an attention head below which rotary embeddings cannot be cut into their sections."""

_DEPTH = re.compile(
    r"(conf_|speech_|t2u_|text_)?((en|de)coder_)?(num_|n_)?((en|de)coder_)?(hidden_)?layers?|depth|num_blocks"
)
"""Keys of how many layers there are."""
_ABOUT_LAYERS = re.compile(r"layer|depth|block|period|interval|offset|step|every|frequency|replace|_idxs|_ids$")
"""Keys that may say which layer is of which kind, by counts and places."""
_HEADS = re.compile(r"(.*_)?((num|n)_(.*_)?heads?|attention_heads)")
_WIDTH = re.compile(
    r"(.*_)?(hidden_sizes?|hidden_size_per_layer_input|hidden_dim|intermediate_size|d_model|d_ff|d_ssm|d_inner|n_embd|n_inner|embed_dims?|dim|"
    r"ffn_dim|ffn_size|feature_size|conv_dim|output_hidden_size|classifier_proj_size|proj_size|embedding_size|inner_dim)"
)
_HEAD_WIDTH = re.compile(r"(.*_)?(head_dim|d_kv|head_size|d_head)")


def pattern(name: str) -> str:
    """The name of a layer with the places in lists of layers left open.

    >>> pattern("encoder.layers.11.fc1"), pattern("layer1.0.conv2")
    ('encoder.layers.*.fc1', 'layer1.*.conv2')
    """
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The class of the layers that have weights, by the pattern of their names; in 16 bits they are the same layers."""
    return {
        pattern(name): type(module).__name__.removeprefix("Held")
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


def small_copies(model: nn.Module, config: PretrainedConfig, build: Build) -> Iterator[nn.Module]:
    """Random models with the same kinds of layers as `model`, the smallest first; whether they run is for trying.

    There are none where no half as large one can be had. `model` may be on the meta device. Weights
    are drawn so that each matters: scales that start at zero would hide the layers before them.
    """
    kinds, most = layer_kinds(model), min(_size(model) // 2, LARGEST_COPY)
    for smaller in smaller_configs(config):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                with torch.device("meta"):
                    found = build(copy.deepcopy(smaller))
                if layer_kinds(found) != kinds or _size(found) > most:
                    continue
                found = build(copy.deepcopy(smaller))
            except Exception:  # noqa: S112 - of a configuration that does not hold together, which may be any
                continue
            with torch.no_grad():
                for parameter in found.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        yield found.float().eval()


def smaller_configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Configurations of smaller models, the smallest first; not all of them need hold together."""
    for shallow, narrow in ((True, 2), (True, 1), (False, 2), (False, 1), (True, 0)):
        smaller = copy.deepcopy(config)
        for part in _parts(smaller):
            if narrow:
                _make_narrow(part, heads_too=narrow == 2)
            if shallow:
                _make_shallow(part)
        if smaller.to_dict() != config.to_dict():
            yield smaller


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """A configuration and those inside it."""
    inner = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return [config, *(found for part in inner for found in _parts(part))]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _make_shallow(config: PretrainedConfig) -> None:
    """Keep the first layers, so many that there is one of each kind, and lists about layers as long as these."""
    known = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    depths = {k: v for k, v in known.items() if _DEPTH.fullmatch(k) and type(v) is int and v > LEAST_LAYERS}
    for key, depth in depths.items():
        told = [v for k, v in known.items() if k not in depths and _ABOUT_LAYERS.search(k) and type(v) is int]
        listed = [v for v in known.values() if isinstance(v, list | tuple) and len(v) == depth]
        places = [v for k, v in known.items() if _ABOUT_LAYERS.search(k) and _is_places(v, depth)]
        least = max([LEAST_LAYERS, *(2 * number + 2 for number in told if 0 < number < depth)])
        least = max([least, *(value[0] + 2 for value in places)])
        while least < depth and any(_kinds(v[:least]) != _kinds(v) for v in listed):
            least += 1
        if least >= depth:
            continue
        for other, value in known.items():
            if value in listed:
                setattr(config, other, value[:least])
            elif value in places:
                setattr(config, other, [place for place in value if place < least])
        setattr(config, key, least)
    for key in ("depths", "num_block_repeats", "stage_numb_of_layers"):
        stages = known.get(key)
        if isinstance(stages, list | tuple) and all(type(depth) is int for depth in stages):
            setattr(config, key, [min(LEAST_LAYERS, depth) for depth in stages])


def _is_places(value: object, depth: int) -> bool:
    """Tell a list of some layers' places from one of a value for each layer."""
    if not isinstance(value, list | tuple) or not 0 < len(value) < depth:
        return False
    return all(type(item) is int and 0 <= item < depth for item in value)


def _kinds(values: Sequence[object]) -> set[str]:
    return {repr(value) for value in values}


def _make_narrow(config: PretrainedConfig, *, heads_too: bool) -> None:
    """Leave as few heads as their numbers allow, and widths in proportion; with `heads_too` heads are narrow, too."""
    known = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    heads = {key: value for key, value in known.items() if _HEADS.fullmatch(key) and _numbers(value)}
    widths = {key: value for key, value in known.items() if _WIDTH.fullmatch(key) and _numbers(value)}
    each = {key: value for key, value in known.items() if _HEAD_WIDTH.fullmatch(key) and _numbers(value)}
    counts = {number for value in heads.values() for number in _numbers(value)}
    fewer, narrower = math.gcd(*counts) if counts else 1, 1
    if len(counts) == 1 and fewer % 2 == 0:  # two: a single one may hide how they are taken apart
        fewer //= 2
    if heads_too:  # of the first stage, where there are several
        most = max((_numbers(value)[0] for value in heads.values()), default=1)
        shared = [_numbers(value)[0] // most for value in widths.values() if _numbers(value)[0] % most == 0]
        width = min((_numbers(value)[0] for value in each.values()), default=min(shared, default=1))
        while width >= 2 * NARROWEST_HEAD * narrower:
            narrower *= 2
    for found, by in ((heads, fewer), (widths, fewer * narrower), (each, narrower)):
        for key, value in found.items():
            smaller = [-(-number // by) for number in _numbers(value)]
            setattr(config, key, type(value)(smaller) if isinstance(value, list | tuple) else smaller[0])


def _numbers(value: object) -> list[int]:
    """Positive whole numbers: one, or a list of them; nothing for anything else."""
    numbers: list[int] = []
    for number in value if isinstance(value, list | tuple) else [value]:
        if type(number) is not int or number <= 0:
            return []
        numbers.append(number)
    return numbers
