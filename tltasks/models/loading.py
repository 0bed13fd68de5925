"""Load a checkpoint's weights, and say what was loaded, interpolated or newly initialised."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from tltasks.errors import CheckpointError, RecipeError, did_you_mean, first_line

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    from peft import PeftModel

LARGEST_SHARE_NEW = 0.1
"""A checkpoint that leaves more of the backbone's weights at random than this does not fit the architecture."""

_LOADING = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
"""What loading raises for weights that are missing, damaged or of another model."""

ENCODERS = {"vit_mae": "vit"}
"""Architectures of an objective's models, and those of the same encoder, with the same names of weights, for tasks."""


def open_config(name: str, *, shown: str, **arguments: Any) -> PretrainedConfig:
    """The configuration of a checkpoint, as it stands. Raises CheckpointError for what cannot be read."""
    try:
        return AutoConfig.from_pretrained(name, **arguments)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model {shown}: cannot be opened ({first_line(error)}). Name a Hub id, or a folder with config.json and "
            "weights (./folder); private models need `hf auth login`."
        ) from error


def read_config(
    auto_class: Any, name: str, *, shown: str, changes: dict[str, Any], **arguments: Any
) -> PretrainedConfig:
    """The configuration of a checkpoint, for a model that `auto_class` has: that of its encoder where need be.

    `changes` are what a recipe has under `model.config`. Raises CheckpointError for what cannot be read or served,
    and RecipeError for keys that the configuration does not have.
    """
    config = open_config(name, shown=shown, **arguments)
    known = config.to_dict().keys()
    for key, value in changes.items():
        if key not in known:
            hint = did_you_mean(key, known) or "."
            raise RecipeError(f"model.config.{key}: {type(config).__name__} of {shown} has no such key{hint}")
        try:
            setattr(config, key, value)
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise RecipeError(f"model.config.{key}: {type(config).__name__} refuses it: {reason}") from error
    if type(config) in auto_class._model_mapping or config.model_type not in ENCODERS:
        return config
    encoder = AutoConfig.for_model(ENCODERS[config.model_type])
    own = encoder.to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    shared = {key: value for key, value in config.to_dict().items() if key in own}
    return AutoConfig.for_model(encoder.model_type, **shared)


def load_pretrained(
    auto_class: Any, config: PretrainedConfig, name: str, *, shown: str, random: bool, **arguments: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model of `config` in fp32 with the weights of `name`, or random ones.

    Weights whose shape depends on the labels are left to the caller; position tables of another image size are
    interpolated. Returns the model and `{newly_initialised, interpolated, left, commit}`, where `left` counts the
    tensors of the checkpoint that the model has no place for, by the module that they belong to.
    """
    if random:
        try:
            model = auto_class.from_config(config, trust_remote_code=arguments["trust_remote_code"])
        except (ValueError, RuntimeError, KeyError, ZeroDivisionError) as error:
            raise CheckpointError(f"model {shown}: no model can be built of its configuration: {error}") from error
        return model, {"newly_initialised": ["all"], "interpolated": []}
    try:
        # dtype: the default keeps the dtype of the file (transformers 5.24, modeling_utils.py), and half-precision
        # master weights do not train.
        model, info = auto_class.from_pretrained(
            name,
            config=copy.deepcopy(config),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            **arguments,
        )
    except _LOADING as error:
        raise CheckpointError(f"model {shown}: its weights cannot be loaded: {first_line(error)}") from error
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    positions = sorted(key for key in mismatched if _is_position_table(key))
    if positions:
        own = read_config(auto_class, name, shown=shown, changes={}, **arguments)
        original = auto_class.from_pretrained(
            name, config=own, dtype=torch.float32, use_safetensors=True, **arguments
        ).state_dict()
        _interpolate(model, original, positions, shown=shown)
    new = sorted((set(info["missing_keys"]) | mismatched) - set(positions))
    return model, {
        "newly_initialised": new,
        "interpolated": positions,
        "left": dict(Counter(key.partition(".")[0] for key in sorted(info["unexpected_keys"]))),
        "commit": _commit(name, arguments["revision"]),
    }


def _commit(name: str, revision: str) -> str | None:
    """The commit that was loaded, by the cache of the Hub's client: transformers 5.24 keeps it no longer."""
    found = None if Path(name).is_dir() else try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def check_loaded(model: PreTrainedModel, new: list[str], *, head: list[str], shown: str) -> float:
    """The share of the backbone's weights that was in the checkpoint; raises CheckpointError when that is too little.

    Zero for a model that is random as a whole.
    """
    if new == ["all"]:
        return 0.0
    backbone = {k: t.numel() for k, t in model.state_dict().items() if not any(k.startswith(f"{h}.") for h in head)}
    lost = [key for key in new if key in backbone]
    share: float = sum(backbone[key] for key in lost) / max(1, sum(backbone.values()))
    if share > LARGEST_SHARE_NEW:
        raise CheckpointError(
            f"model {shown}: {share:.0%} of the backbone is not in the checkpoint ({', '.join(lost[:3])}, …); "
            f"it does not hold a {type(model).__name__}."
        )
    return 1 - share


def initialise_head(model: PreTrainedModel, head: list[str]) -> None:
    """Draw the head's weights anew, as its architecture does, from torch's random state."""
    for name in head:
        for module in model.get_submodule(name).modules():
            for parameter in module.parameters(recurse=False):
                # transformers 5 (initialization.py) leaves loaded weights alone by this mark.
                parameter._is_hf_initialized = False
            model._init_weights(module)


def _is_position_table(key: str) -> bool:
    return any(part in key for part in ("position_embedding", "pos_embed", "relative_position_bias_table"))


def _interpolate(model: PreTrainedModel, original: dict[str, Tensor], keys: list[str], *, shown: str) -> None:
    """Resample position tables to the model's grid, bicubic, as in Dosovitskiy et al., arXiv 2010.11929, §3.2."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for key in keys:
        old, new = original[key], own[key]
        with torch.no_grad():
            if "relative_position_bias_table" in key:
                new.copy_(_resize_relative(old, new))
            else:
                new.copy_(_resize_absolute(old, new, key=key, shown=shown))


def _resize_absolute(old: Tensor, new: nn.Parameter | Tensor, *, key: str, shown: str) -> Tensor:
    table = old if old.ndim == 3 else old.unsqueeze(0)
    n_old, n_new = table.shape[1], new.shape[-2]
    prefix = n_old - math.isqrt(n_old) ** 2
    side = math.isqrt(n_new - prefix)
    if old.ndim > 3 or side**2 != n_new - prefix:
        raise CheckpointError(f"model {shown}: positions {key} are not on a square grid; unset model.image_size.")
    from timm.layers import resample_abs_pos_embed  # slow to import, as all of timm comes along

    resampled: Tensor = resample_abs_pos_embed(table, new_size=[side, side], num_prefix_tokens=prefix)
    return resampled.view(new.shape)


def _resize_relative(old: Tensor, new: nn.Parameter | Tensor) -> Tensor:
    window = (math.isqrt(new.shape[0]) + 1) // 2
    from timm.layers import resize_rel_pos_bias_table_simple

    resized: Tensor = resize_rel_pos_bias_table_simple(
        old, new_window_size=(window, window), new_bias_shape=tuple(new.shape)
    )
    return resized


# -------------------------------------------------------------------------------------------- saving


def save_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter with its new head, without PEFT's own README."""
    with warnings.catch_warnings():
        # AdaLoRA leaves layers without a rank, which PEFT takes for lost shards (peft 0.21, utils/save_and_load.py).
        warnings.filterwarnings("ignore", message=r"Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape")
        # "auto" asks the Hub whether the base's vocabulary changed (the same file)
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def load_saved(auto_class: Any, folder: Path, *, base: str, config: PretrainedConfig, **arguments: Any) -> nn.Module:
    """What a user gets who loads `folder`: a plain model, or `base` with the adapter on it."""
    try:
        if not (folder / "adapter_config.json").is_file():
            model: nn.Module = auto_class.from_pretrained(folder, dtype=torch.float32)
            return model
        plain = auto_class.from_pretrained(
            base, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True, **arguments
        )
        from peft import PeftModel

        with warnings.catch_warnings():
            # AdaLoRA's pattern of ranks is taken for LoRA's, which has other keys (peft 0.21, tuners_utils.py).
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            adapted: nn.Module = PeftModel.from_pretrained(plain, folder)
        return adapted
    except _LOADING as error:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {first_line(error)}") from error
