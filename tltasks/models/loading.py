"""Load a checkpoint's weights, and say what was loaded, interpolated or newly initialised."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import CONFIG_NAME

from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, RecipeError, did_you_mean, first_line
from tltasks.models.held import weight_sizes
from tltasks.models.packages import cannot_open, missing_packages
from tltasks.models.trial import lend
from tltasks.results.result import Provenance

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    from peft import PeftModel

ModelLoader: TypeAlias = type[_BaseAutoModelClass] | type[PreTrainedModel]
"""An Auto class of transformers, or a class of models."""

LoadingInfo: TypeAlias = dict[str, list[Any]]
"""Keys by kind as transformers gives them, those of other shapes with these."""

MOST_LAYERS = 10_000
LARGEST_SHARE_NEW = 0.1
"""A checkpoint that leaves more of the backbone's weights at random than this does not fit the architecture."""

_LOADING = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    ImportError,
    UserWarning,
    SafetensorError,
)
"""Errors of loading for weights that are missing, damaged or of another model."""

ENCODERS = {"vit_mae": "vit"}
"""Architectures of an objective's models, and those of the same encoder, with the same names of weights, for tasks."""


def open_config(source: Checkpoint) -> PretrainedConfig:
    """The configuration of a checkpoint, as it stands. Raises CheckpointError for one that cannot be read."""
    try:
        return AutoConfig.from_pretrained(source.name, **source.arguments())
    except ImportError as error:
        raise cannot_open(
            "configuration", source.display_name, error, "The repository's own code does not run here."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model {source.display_name}: cannot be opened ({first_line(error)}). Name a Hub id, or a folder with "
            "config.json and weights (./folder); private models need `hf auth login`."
        ) from error


def open_generation(source: Checkpoint) -> GenerationConfig:
    """A checkpoint's settings of generation, as the model has them that transformers loads.

    Older ones have these in config.json, of which a configuration that has been read holds them no longer
    (transformers 5.24, configuration_utils.py, __init__; generation/utils.py, adjust_generation_fn).
    """
    try:
        generation = GenerationConfig.from_pretrained(source.name, **source.arguments())
    except OSError:
        generation = GenerationConfig.from_pretrained(
            source.name, config_file_name=CONFIG_NAME, _from_model_config=True, **source.arguments()
        )
    # Saved with it, settings that are a model's own, as its language, are not read again (GenerationConfig.__init__).
    generation._from_model_config = None
    return generation


def open_tokenizer(
    source: Checkpoint, *, hint: str = "tokenizer.json or its vocabulary must stand beside the weights."
) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer. Raises CheckpointError, with a hint to what may be done, where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name, **source.arguments())
        # Where there are no files, transformers 5.24 makes a tokenizer that knows special tokens and at most a space.
        if len(tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}) < 2:
            raise ValueError("its vocabulary is empty")
        with suppress(ValueError, TypeError):  # of those that read pages or tables
            tokenizer("a")  # some ask for a package only now
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise cannot_open("tokenizer", source.display_name, error, hint) from error
    return tokenizer


def read_config(
    auto_class: type[_BaseAutoModelClass], source: Checkpoint, *, changes: Mapping[str, object]
) -> PretrainedConfig:
    """The configuration of a checkpoint, for a model that `auto_class` has: that of its encoder where need be.

    `changes` are what a recipe has under `model.config`. Raises CheckpointError for a checkpoint that cannot be read
    or served, and RecipeError for keys that the configuration does not have.
    """
    config = open_config(source)
    known = config.to_dict().keys()
    for key, value in changes.items():
        if key not in known:
            hint = did_you_mean(key, known) or "."
            raise RecipeError(
                f"model.config.{key}: {type(config).__name__} of {source.display_name} has no such key{hint}"
            )
        if isinstance(value, int) and value > MOST_LAYERS and re.search("layer|depth", key):
            raise RecipeError(f"model.config.{key}: {value:,} is more than {MOST_LAYERS:,}, which no model has.")
        try:
            setattr(config, key, value)
        except (TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise RecipeError(f"model.config.{key}: {type(config).__name__} refuses it: {reason}") from error
    return config if type(config) in auto_class._model_mapping else _of_encoder(config)


def _of_encoder(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of an objective's encoder alone, or the same for another architecture."""
    if config.model_type not in ENCODERS:
        return config
    encoder = AutoConfig.for_model(ENCODERS[config.model_type])
    own = encoder.to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    shared = {key: value for key, value in config.to_dict().items() if key in own}
    return AutoConfig.for_model(encoder.model_type, **shared)


def saved_as(base: type[PreTrainedModel], own: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A subclass whose saved configuration names its base.

    transformers goes by a class's name (5.24, modeling_utils.py, `save_pretrained`), and by its module for the kinds of
    attention that its code has.
    """
    own.__name__, own.__module__ = base.__name__, base.__module__
    return own


def load_pretrained(
    loader: ModelLoader,
    config: PretrainedConfig,
    source: Checkpoint,
    *,
    random: bool,
    outer: Callable[[PreTrainedModel], list[str]] | None = None,
) -> tuple[PreTrainedModel, Provenance]:
    """The model of `config` in fp32 with the weights of a checkpoint, or random ones, and where they come from.

    Weights whose shape depends on the labels are left to the caller; position tables of another image size are
    interpolated. Raises CheckpointError for weights that cannot be loaded, and, given the modules that may be `outer`
    to the checkpoint, for others that its configuration does not fit.
    """
    shown, about = source.display_name, Provenance(source.display_name, source.revision, model_type=config.model_type)
    if random:
        return _without_unsaved(random_model(loader, config, source)), replace(about, newly_initialised=["all"])
    try:
        # dtype: the default keeps the dtype of the file (transformers 5.24, modeling_utils.py), and half-precision
        # master weights do not train.
        model, info = loader.from_pretrained(
            source.name,
            config=copy.deepcopy(config),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            **source.arguments(),
        )
    except _LOADING as error:
        if missing_packages(error):
            raise cannot_open(f"model ({config.model_type})", source.display_name, error, "") from error
        raise CheckpointError(f"model {shown}: its weights cannot be loaded: {_told(error)}") from error
    if getattr(model, "_hf_peft_config_loaded", False):  # a LoRA of its authors', as Granite Speech 3.3 has
        raise CheckpointError(
            f"model {shown}: it brings an adapter beside its weights (adapter_config.json), which training would not "
            "tell from its own. Merge it into them (PEFT's merge_and_unload), and name the folder with the result."
        )
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    positions = sorted(key for key in mismatched if _is_position_table(key))
    if outer is not None:
        _check_fit(model, config, source, info, outer=outer(model))
    if positions:
        own = open_config(source)
        own = own if type(own) is type(config) else _of_encoder(own)
        original = loader.from_pretrained(
            source.name, config=own, dtype=torch.float32, use_safetensors=True, **source.arguments()
        ).state_dict()
        _interpolate(model, original, positions, display_name=shown)
    return _without_unsaved(model), replace(
        about,
        newly_initialised=sorted((set(info["missing_keys"]) | mismatched) - set(positions)),
        interpolated=positions,
        left=dict(Counter(key.partition(".")[0] for key in sorted(info["unexpected_keys"]))),
        commit=_commit(source),
    )


def _without_unsaved(model: PreTrainedModel) -> PreTrainedModel:
    """The model with those weights frozen that it is never saved with, as it makes them anew.

    Marian's sines and cosines are frozen when they are made, and no longer once a checkpoint is loaded (transformers
    5.24, modeling_marian.py).
    """
    unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    saved = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name not in unsaved}
    for parameter in model.parameters():
        if id(parameter) not in saved:
            parameter.requires_grad_(False)
    return model


def _check_fit(
    model: PreTrainedModel,
    config: PretrainedConfig,
    source: Checkpoint,
    info: LoadingInfo,
    *,
    outer: list[str],
) -> None:
    """Raise CheckpointError for weights of other shapes, and for layers that only the file or the model has."""

    def is_inner(key: str) -> bool:
        return not key.startswith(tuple(f"{name}." for name in outer))

    odd = [
        f"{key} is {list(held)} in the file and {list(asked)} by the configuration"
        for key, held, asked in sorted(info["mismatched_keys"])
        if is_inner(key) and not _is_position_table(key)
    ]
    own = model.state_dict()
    odd += [
        f"{key} is not in the file"
        for key in sorted(info["missing_keys"])
        if key in own and is_inner(key) and _layer(key)
    ]
    ends: dict[str, int] = {}
    for stack, number in filter(None, map(_layer, own)):
        ends[stack] = max(number, ends.get(stack, 0))
    if _depth(config) == _depth(open_config(source)):  # the recipe may want fewer layers
        deeper = {key: _layer(key) for key in sorted(info["unexpected_keys"])}
        odd += [
            f"{key} has no place in the model" for key, at in deeper.items() if at and at[1] > ends.get(at[0], at[1])
        ]
    if odd:
        more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"model {source.display_name}: its configuration does not fit its weights ({'; '.join(odd[:3])}{more}), or "
            f"these are not of a {type(model).__name__}: name a checkpoint of one."
        )


def _layer(key: str) -> tuple[str, int] | None:
    """The stack of layers that a weight is in, and its place; None for what no layer could do without."""
    found = re.match(r"(.*?\.)([0-9]+)\.", key)
    return (found[1], int(found[2])) if found and not key.endswith(".num_batches_tracked") else None


def _depth(config: PretrainedConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if re.search("layer|depth", key)}


def random_model(loader: ModelLoader, config: PretrainedConfig, source: Checkpoint) -> PreTrainedModel:
    """A model of a configuration with random weights. Raises CheckpointError for one that cannot be built."""
    own = copy.deepcopy(config)
    try:
        if issubclass(loader, PreTrainedModel):
            return loader._from_config(own)
        return loader.from_config(own, trust_remote_code=source.trust_remote_code)
    except (ValueError, RuntimeError, KeyError, ZeroDivisionError, ImportError) as error:
        if missing_packages(error):
            raise cannot_open(f"model ({config.model_type})", source.display_name, error, "") from error
        raise CheckpointError(
            f"model {source.display_name}: no model can be built of its configuration: {str(error).strip()}"
        ) from error


def _commit(source: Checkpoint) -> str | None:
    """The commit that was loaded, by the cache of the Hub's client: transformers 5.24 keeps it no longer."""
    if Path(source.name).is_dir():
        return None
    found = try_to_load_from_cache(source.name, CONFIG_NAME, revision=source.revision)
    return Path(found).parent.name if isinstance(found, str) else None


def check_loaded(model: PreTrainedModel, new: list[str], *, head: list[str], display_name: str) -> float:
    """The share of the backbone's weights that was in the checkpoint; raises CheckpointError when that is too little.

    Zero for a model that is random as a whole.
    """
    if new == ["all"]:
        return 0.0
    sizes = {k: t.numel() for k, t in model.state_dict().items() if not k.endswith((".codes", ".scales"))}
    sizes |= {k: shape.numel() for k, (shape, _) in weight_sizes(model, repeated=True).items()}
    backbone = {k: size for k, size in sizes.items() if not any(k.startswith(f"{h}.") for h in head)}
    lost = [key for key in new if key in backbone]
    share: float = sum(backbone[key] for key in lost) / max(1, sum(backbone.values()))
    if share > LARGEST_SHARE_NEW:
        raise CheckpointError(
            f"model {display_name}: {share:.0%} of the backbone is not in the checkpoint ({', '.join(lost[:3])}, …); "
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


def _interpolate(model: PreTrainedModel, original: dict[str, Tensor], keys: list[str], *, display_name: str) -> None:
    """Resample position tables to the model's grid, bicubic, as in Dosovitskiy et al., arXiv 2010.11929, §3.2."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for key in keys:
        old, new = original[key], own[key]
        with torch.no_grad():
            if "relative_position_bias_table" in key:
                new.copy_(_resize_relative(old, new))
            else:
                new.copy_(_resize_absolute(old, new, key=key, display_name=display_name))


def _resize_absolute(old: Tensor, new: nn.Parameter | Tensor, *, key: str, display_name: str) -> Tensor:
    table = old if old.ndim == 3 else old.unsqueeze(0)
    n_old, n_new = table.shape[1], new.shape[-2]
    prefix = n_old - math.isqrt(n_old) ** 2
    side = math.isqrt(n_new - prefix)
    if old.ndim > 3 or side**2 != n_new - prefix:
        raise CheckpointError(
            f"model {display_name}: positions {key} are not on a square grid; unset model.image_size."
        )
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


def save_whole(model: PreTrainedModel, folder: Path) -> None:
    """Save a model; weights of a layer that has several names, as CoaT's have, once under each.

    transformers knows of weights that are tied, and refuses others that are shared (5.24, modeling_utils.py).
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(f"{name}.")
    again = tuple(name for of_module in names.values() for name in of_module[1:])
    state = {k: t.clone() if k.startswith(again) else t for k, t in model.state_dict().items()} if again else None
    model.save_pretrained(folder, state_dict=state)


def load_saved(loader: ModelLoader, folder: Path, *, base: Checkpoint, config: PretrainedConfig) -> nn.Module:
    """The model that a user gets who loads `folder`: a plain one, or `base` with the adapter on it."""
    try:
        if not (folder / "adapter_config.json").is_file():
            model: nn.Module = loader.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            return model
        plain = loader.from_pretrained(
            base.name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **base.arguments(),
        )
        from peft import PeftModel

        with warnings.catch_warnings():
            # AdaLoRA's pattern of ranks is taken for LoRA's, which has other keys (peft 0.21, tuners_utils.py).
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            # of which PEFT only warns, and goes on with an adapter that does nothing there
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: nn.Module = PeftModel.from_pretrained(plain, folder)
            lend(adapted)
        return adapted
    except _LOADING as error:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {_told(error)}") from error


def _told(error: Exception) -> str:
    """The message of an error in a line; torch's first one says that there are errors, and the next what they are."""
    first, *others = str(error).strip().splitlines() or [""]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first_line(error)
