"""Adaptation of a model: what of it is frozen, what PEFT puts into it, and how it is taken apart to decide that."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tltasks.config.adaptation import AdaLora, Adapt
from tltasks.errors import CheckpointError, RecipeError, did_you_mean, first_line
from tltasks.models.exported import ExportedModel
from tltasks.models.held import is_quantized, weight_sizes
from tltasks.models.trial import FAULTS, IDLE, LAYERS, Trial, kept_targets, lend, with_embeddings

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    import peft

LEAST_REACHED = 0.1
"""Share of the weights of a model's layers that are to be in those that are adapted, where the recipe names none."""
LEAST_FIT = 0.5
"""Share of the weights of these that are to be left when the unfit ones are out: what is left is else no backbone."""

MOST_CONVOLUTIONS = 10
"""With more convolutions for each linear layer, these are the backbone, however large a linear layer of the head is."""


def adapt(
    model: PreTrainedModel,
    method: Adapt,
    *,
    freeze: Sequence[str] = (),
    new_head: bool,
    head: list[str],
    targets: list[str],
    display_name: str,
    revision: str,
    trial: Trial | None = None,
) -> nn.Module:
    """Freeze the model, or wrap it, as a stage's `adapt` and `freeze` say. A new head is always trained.

    `display_name` and `revision` are what a published adapter names as its base. Targets are tried where `trial` says
    how.
    """
    if method.is_virtual:
        _check_virtual(model)
    if method.is_peft:
        norms = method.peft is not None and method.peft.type.upper() == "LN_TUNING"
        own = _norms(model, head) if norms else targets
        config = _peft_config(method, head=head if new_head else [], targets=own)
        _check_size(model, method, config)
        if trial is not None:
            _try_targets(model, method, config, trial, head=head, chosen=targets)
        adapted: nn.Module = _wrapped(model, method, config, display_name=display_name, revision=revision)
    else:
        _freeze(model, method.method, freeze, whole=head if method.method == "head" or new_head else [])
        adapted = model
    return adapted


def _wrapped(
    model: PreTrainedModel, method: Adapt, config: peft.PeftConfig, *, display_name: str, revision: str
) -> peft.PeftModel:
    """The model with an adapter in it."""
    import peft

    config.revision = revision
    if odd := next((name for name, module in model.named_modules() if hasattr(module, "base_layer")), None):
        raise CheckpointError(  # which is how PEFT knows its own layers (peft 0.21, tuners_utils.py)
            f"adapt.{method.method}: PEFT takes {odd or 'the model'} of {type(model).__name__} for a layer of its own, "
            "and could not merge what is trained; use `adapt: full` or `adapt: head`."
        )
    if hasattr(config, "fan_in_fan_out"):  # PEFT would find it out itself, with a warning for each layer
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    try:
        with warnings.catch_warnings():
            # of norms, whose own tuning asks for no numbers of features (peft 0.21, tuners_utils.py)
            warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm")
            # of ranks that PEFT itself has put there for experts (utils/transformers_weight_conversion.py)
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
            with with_embeddings(model):
                wrapped = peft.get_peft_model(model, config)
        _free_namesakes(wrapped, getattr(config, "modules_to_save", None) or [])
        lend(wrapped)
    except (ValueError, TypeError, NotImplementedError, RuntimeError, MemoryError, OverflowError) as error:
        if "Unknown initialization" in str(error):  # peft 0.21, tuners/lora/layer.py, for convolutions
            raise CheckpointError(
                f"adapt.{method.method}.init: only linear layers can start so, and {type(model).__name__} has "
                "convolutions among its targets; leave `init` out, or name linear layers as `targets`."
            ) from error
        raise CheckpointError(
            f"adapt.{method.method}: PEFT cannot adapt {type(model).__name__} so: {first_line(error)}"
        ) from error
    # peft.get_peft_model (0.21, tuners_utils.py) overwrites both from the model's own name.
    wrapped.peft_config["default"].base_model_name_or_path = display_name
    if method.peft is not None:
        _check_merging(wrapped, method.peft.type)
    return wrapped


def _try_targets(
    model: PreTrainedModel, method: Adapt, config: peft.PeftConfig, trial: Trial, *, head: list[str], chosen: list[str]
) -> None:
    """Leave out those of the `chosen` targets that an adapter does not fit, and refuse such as the recipe names."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if getattr(config, "target_modules", None) is None:
        return
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    names = [name for name in layers if check_target_module_exists(config, name)]
    if not names and config.peft_type == "LN_TUNING":
        return
    shown, experts = type(model).__name__, set[str]()
    try:
        if config.peft_type == "LORA":
            experts = set(names).difference(kept_targets(model, names))
            names = [name for name in names if name not in experts]
        unfit = trial.unfit(trial.without_weights(model) if is_quantized(model) else model, names, config)
    except FAULTS as error:
        raise CheckpointError(
            f"adapt.{method.method}: {shown} does not run with PEFT's layers in it ({first_line(error)}). Use "
            "`adapt: full` or `adapt: head`, or name `targets: […]`."
        ) from error
    examples = {reason: name for name, reason in reversed(unfit.items())}
    counts = Counter(unfit.values()).most_common(3)
    why = "; ".join(f"{examples[reason]}{f' and {n - 1} more' if n > 1 else ''}: {reason}" for reason, n in counts)
    others = "`adapt: full` or `adapt: head`"
    if any(reason.startswith(f"{config.peft_type.value} ") for reason in unfit.values()):  # what LoRA does fit
        others = f"`adapt: lora`, {others}"
    if isinstance(config.target_modules, str) or set(config.target_modules) != set(chosen):
        if unfit:
            raise CheckpointError(
                f"adapt.{method.method}: {len(unfit)} of the targets in {shown} cannot be adapted ({why}). Name "
                f"others as `targets`, or use {others}."
            )
        return
    idle = {name for name, reason in unfit.items() if reason in IDLE}  # of images, in a model that reads texts alone
    towers = {_tower(name) for name in idle} - {_tower(name) for name in names if name not in idle}
    left = experts | idle | {name for name in layers if _tower(name) in towers}
    whole = _size(it for name, it in layers.items() if name not in left and not _belongs(name, head))
    meant = _size(layers[name] for name in names if name not in idle)
    reached = _size(layers[name] for name in names if name not in unfit)
    if reached < max(LEAST_REACHED * whole, LEAST_FIT * meant, 1):
        found = f" ({why})" if unfit else ""
        raise CheckpointError(
            f"adapt.{method.method}: layers that can be adapted hold {reached / max(1, whole):.1%} of the weights of "
            f"{shown}{found}. Use {others}, or name `targets: […]`."
        )
    if method.lora is None or method.lora.dropout or method.lora.init != "zero":  # which PEFT has for no experts
        experts = set()
    if unfit or isinstance(config.target_modules, set):
        config.target_modules = (set(names) - unfit.keys()) | experts


def _size(layers: Iterable[nn.Linear | Conv1D | nn.Conv2d | nn.Conv1d]) -> int:
    """Numbers in the weights of some layers, a weight of several of them once."""
    sizes: dict[object, int] = {it._parameters.get("weight", it): it.weight.numel() for it in layers}
    return sum(sizes.values())


def _check_size(model: PreTrainedModel, method: Adapt, config: peft.PeftConfig) -> None:
    """Raise RecipeError for a rank, or for virtual tokens, beyond the widest layer: more memory, and nothing gained."""
    widest = max(max(s) for name, (s, _) in weight_sizes(model).items() if len(s) > 1 and "embed" not in name)
    for key in ("r", "init_r", "target_r", "num_virtual_tokens"):
        size = getattr(config, key, None)
        if isinstance(size, int) and size > widest:
            raise RecipeError(
                f"adapt.{method.method}: {size:,} ({key} in PEFT) is more than the {widest:,} of the widest layer of "
                f"{type(model).__name__}, and would hold more weights than it has; 4 to 64 are usual."
            )


def _freeze(model: PreTrainedModel, method: str, patterns: Sequence[str], *, whole: list[str]) -> None:
    """Leave in training the modules of `whole` or the biases alone, or all that no pattern names."""
    if method in {"head", "bitfit"}:
        biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_((method == "bitfit" and name in biases) or _belongs(name, whole))
        if method == "bitfit" and not biases:
            raise RecipeError(f"adapt.bitfit: {type(model).__name__} has no biases to train; use lora or ia3.")
    for pattern in patterns:  # of weights, or of modules that they are in
        meant = (pattern, f"{pattern}.*")
        hit = [p for name, p in model.named_parameters() if any(fnmatch.fnmatch(name, one) for one in meant)]
        if not hit:
            tops = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise RecipeError(f"freeze: no weight matches `{pattern}`. Modules: {', '.join(tops[:20])}.")
        for parameter in hit:
            parameter.requires_grad_(False)
    if method == "head" and not whole:
        raise RecipeError(
            f"adapt.head: {type(model).__name__} has no head apart from what it was pretrained with; use lora or full."
        )
    if method == "head" and not any(p.requires_grad for p in model.parameters()):
        raise RecipeError(f"adapt.head: the head of {type(model).__name__} is its embeddings, too; use lora or full.")
    if not any(p.requires_grad for p in model.parameters()):
        raise RecipeError(f"freeze: {', '.join(patterns)} leaves no weight to train.")


def _check_virtual(model: PreTrainedModel) -> None:
    """Raise RecipeError for models before whose input PEFT puts no virtual tokens, or not rightly."""
    writes = model.can_generate() and model.main_input_name == "input_ids"
    if not writes or not model.config.is_encoder_decoder:
        # PEFT gives a decoder's padded rows other positions than rows alone (peft 0.21, peft_model.py,
        # PeftModelForCausalLM.prepare_inputs_for_generation), so that answers would depend on the batch.
        raise RecipeError(
            f"adapt.prompt: virtual tokens are for encoder-decoders that read text (T5, BART, …), not for "
            f"{type(model).__name__}; use lora, adalora or ia3."
        )


def _check_merging(model: peft.PeftModel, kind: str) -> None:
    """Before anything is spent on it: what a run saves is a model that loads without PEFT."""
    try:
        merged(model)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"adapt.peft: {kind.upper()} cannot be merged into the weights of {type(model.get_base_model()).__name__}, "
            f"and so not be saved as a model of its own ({first_line(error)}); use lora, dora, ia3 or another method."
        ) from error


_UNFIT = {
    "ADALORA": "has a key of its own, `adapt: {adalora: {target_r: 8}}`; `peft` would leave its ranks where they start",
    "PROMPT_TUNING": "has a key of its own, `adapt: {prompt: {tokens: 20}}`, for encoder-decoders",
    "PREFIX_TUNING": "is left out by transformers 5 when it generates (peft 0.21, transformers 5.24)",
    **dict.fromkeys(
        ("P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"),
        "learns virtual tokens, which are no weights that a model could be saved with",
    ),
    **dict.fromkeys(("POLY", "XLORA", "SHADOW"), "combines adapters at each pass, and has no weights to merge"),
}
"""Methods that this loop would train wrongly or could not save, and why."""
_OWN_KEYS = {
    "inference_mode": "what is trained is never frozen",
    "layer_replication": "a model of layers that share their weights could not be saved as one of its own",
    "modules_to_save": "beside an adapter a new head is trained whole, and nothing else",
}
"""Keys of PEFT's configurations that no recipe sets, and why."""


def _norms(model: nn.Module, head: list[str]) -> list[str]:
    """Names of the normalisations of the backbone, by their weights: one number for each channel."""
    found = [name.rpartition(".") for name, p in model.named_parameters() if p.ndim == 1 and not _belongs(name, head)]
    return [module for module, _, own in found if own == "weight"]


def _tower(name: str) -> str:
    """The part of a model of several that a layer is in."""
    return ".".join(name.split(".")[:2])


def _belongs(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _peft_config(method: Adapt, *, head: list[str], targets: list[str]) -> peft.PeftConfig:
    """PEFT's configuration. No task type is set: PEFT's wrappers for them assume token inputs (peft issue 1988)."""
    import peft

    shared = {"modules_to_save": head or None, "inference_mode": False}
    if lora := method.lora or method.dora:
        return peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
            lora_dropout=lora.dropout,
            target_modules=targets if lora.targets == "auto" else lora.targets,
            use_rslora=lora.rslora,
            init_lora_weights=True if lora.init == "zero" else lora.init,
            use_dora=method.dora is not None,
            **shared,
        )
    if keys := method.adalora:
        return peft.AdaLoraConfig(
            target_r=keys.target_r,
            init_r=keys.init_r,
            lora_alpha=keys.alpha if keys.alpha is not None else 2 * keys.init_r,
            lora_dropout=keys.dropout,
            target_modules=targets if keys.targets == "auto" else keys.targets,
            deltaT=keys.interval,
            orth_reg_weight=keys.orthogonality,
            total_step=1,  # `RankAllocation` says how many there are
            **shared,
        )
    if method.prompt is not None:
        return peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=method.prompt.tokens,
            # One set, before what the encoder reads: PEFT would learn another for the decoder, and generate without it.
            num_transformer_submodules=1,
            inference_mode=False,
        )
    if method.ia3 is not None:
        chosen = targets if method.ia3.targets == "auto" else method.ia3.targets
        return peft.IA3Config(target_modules=chosen, feedforward_modules=[], **shared)
    assert method.peft is not None
    return _any_peft_config(method.peft.type, dict(method.peft.model_extra or {}), targets=targets, shared=shared)


def _any_peft_config(
    kind: str, keys: dict[str, object], *, targets: list[str], shared: Mapping[str, object]
) -> peft.PeftConfig:
    """The configuration of a method by PEFT's own name and keys. Raises RecipeError for those that it does not have."""
    import peft

    known = {str(it.value): config for it, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = kind.upper()
    if name not in known:
        hint = did_you_mean(name, known) or "."
        raise RecipeError(f"adapt.peft.type: PEFT has no {kind}{hint} It has: {', '.join(sorted(known))}.")
    if name in _UNFIT:
        raise RecipeError(f"adapt.peft.type: {name} {_UNFIT[name]}. Use lora, dora, adalora, ia3 or another method.")
    fields = {f.name for f in dataclasses.fields(known[name]) if f.init}
    for key in keys.keys() - fields:
        hint = did_you_mean(key, fields) or "."
        raise RecipeError(f"adapt.peft.{key}: {known[name].__name__} has no such key{hint}")
    for key in keys.keys() & _OWN_KEYS.keys():
        raise RecipeError(f"adapt.peft.{key}: {_OWN_KEYS[key]}; leave the key out.")
    if "target_modules" in fields:
        keys.setdefault("target_modules", targets)
    try:
        return known[name](**{**{k: v for k, v in shared.items() if k in fields}, **keys})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"adapt.peft: {known[name].__name__} refuses its keys: {error}") from error


# -------------------------------------------------------------------------------------- looking at the model


def unwrap_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside whatever wraps it, with any adapter's layers in place."""
    kinds = (PreTrainedModel, ExportedModel)  # the latter answers the same calls
    return next(cast(PreTrainedModel, module) for module in model.modules() if isinstance(module, kinds))


def is_adapted(model: nn.Module) -> TypeGuard[peft.PeftModel]:
    """Tell whether PEFT has wrapped the model, without the half second that importing PEFT takes."""
    return hasattr(model, "active_peft_config")


def generating_model(model: nn.Module) -> PreTrainedModel | peft.PeftModel:
    """The model that generates: transformers' own, or around it the adapter with virtual tokens before its input."""
    for module in model.modules():
        if is_adapted(module) and module.active_peft_config.is_prompt_learning:
            return module
    return unwrap_model(model)


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """The input of a module while `run` runs the model that it is part of."""
    received: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        run()
    finally:
        hook.remove()
    return received[0]


def find_head(model: PreTrainedModel, enlarge: Callable[[PretrainedConfig], None] | None = None) -> list[str]:
    """Modules whose weights change shape with the number of labels, so any architecture tells its own head's name.

    What else decides the head's size is to be enlarged by a function that is given.
    """
    config = copy.deepcopy(model.config)
    if enlarge is not None:
        enlarge(config)
    else:
        _label(config, [*config.id2label.values(), "one more"])
    text = json.dumps(config.to_dict(), default=str)
    own, sizes = weight_sizes(model, repeated=True), _sizes(_Architecture(type(model), text, config))
    head = {name.rpartition(".")[0] for name, (shape, _) in own.items() if name not in sizes or sizes[name][0] != shape}
    return [name for name, _ in model.named_modules() if name in head]


@dataclasses.dataclass(frozen=True)
class _Architecture:
    model_class: type[PreTrainedModel]
    text: str
    config: PretrainedConfig = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=8)
def _sizes(of: _Architecture) -> dict[str, tuple[torch.Size, bool]]:
    """Shapes of the weights of an architecture; a run asks for its head a dozen times."""
    with torch.device("meta"):
        return weight_sizes(of.model_class(of.config), repeated=True)


def find_lora_targets(model: nn.Module, *, head: list[str]) -> list[str]:
    """Names of every linear layer of the backbone, and of every dense convolution where convolutions dominate.

    Adapting all layers, not attention alone, is what makes LoRA match full fine-tuning (Hu et al. 2021 §7.1 leave it
    open; Biderman et al., https://arxiv.org/abs/2405.09673, measure it). Depthwise convolutions are left out: their
    low-rank update is as large as they are. So is the stem, the first layer that sees pixels.
    """
    # torch's own attention reads the weight of its output layer past the layer (torch 2.14, nn/modules/activation.py).
    head = [*head, *(name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))]
    linear: list[str] = []
    dense: list[str] = []
    size = {"linear": 0, "convolution": 0}
    for name, module in model.named_modules():
        if _belongs(name, head):
            continue
        if isinstance(module, (nn.Linear, Conv1D)):  # Conv1D is GPT-2's linear layer, with its weight transposed
            linear.append(name)
            size["linear"] += module.weight.numel()
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            dense.append(name)
            size["convolution"] += module.weight.numel()
    if size["convolution"] > size["linear"] or len(dense) > MOST_CONVOLUTIONS * len(linear):
        return dense[1:] + linear
    return linear


def freeze_unused(model: nn.Module, unused: set[str]) -> None:
    """Stop training weights that the loss does not reach (mask tokens, unused poolers).

    Otherwise several processes would wait for gradients that never come. Raises CheckpointError for an adapter's
    weights, which would silently stay at their start (transformers issue 42489, peft issue 137), and where it reaches
    none.
    """
    is_peft = any(is_adapted(module) for module in model.modules())
    adapters = sorted(name for name in unused if is_peft and ".default" in name)  # PEFT's name of the only adapter
    if adapters:
        raise CheckpointError(
            f"{len(adapters)} adapter weights receive no gradient, e.g. {adapters[0]}. "
            "Set `targets` to modules that the forward pass uses."
        )
    for name, parameter in model.named_parameters():
        if name in unused:
            parameter.requires_grad_(False)
    if unused and not any(p.requires_grad for p in model.parameters()):
        raise CheckpointError(
            f"The loss reaches none of the {len(unused)} weights that would be trained, e.g. {min(unused)}. "
            "Use `adapt: lora` or `adapt: full`."
        )


def set_training_mode(model: nn.Module, *, frozen_batch_norm: bool) -> None:
    """Training mode, with batch normalisation left on its stored statistics where asked.

    Statistics of a micro-batch would make a step depend on how it is split, and an adapter does not save them.
    """
    model.train()
    if frozen_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Trained and all parameters, PEFT's frozen copies of a replaced head not counted."""
    sizes = [it for name, it in weight_sizes(model).items() if ".original_module." not in name]
    return sum(shape.numel() for shape, is_trained in sizes if is_trained), sum(shape.numel() for shape, _ in sizes)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model with what was trained beside its layers put aside; a new head, trained whole, stays."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain transformers model with any adapter merged into a copy of its weights, in fp32."""
    if is_adapted(model):
        if model.active_peft_config.is_prompt_learning:
            raise CheckpointError(
                "virtual tokens (adapt: prompt) cannot be merged into weights; they are used as an adapter."
            )
        with warnings.catch_warnings():
            # T5's configuration claims a tied head where the checkpoint has its own (transformers 5.24,
            # configuration_t5.py); PEFT mends the claim, and says so.
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            whole: PreTrainedModel = _with_own_modules(_second(model)).merge_and_unload(safe_merge=True)
        _keep_tied(whole, said=getattr(unwrap_model(model).config, "tie_word_embeddings", False))
        return whole
    assert isinstance(model, PreTrainedModel)
    return model


def _second(model: peft.PeftModel) -> peft.PeftModel:
    """A copy that shares the model's weights until they are replaced, as merging with `safe_merge` does."""
    shared: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()
    }
    # Handles of hooks on modules that are gone cannot be copied (torch 2.14, utils/hooks.py); none is needed.
    shared |= {id(it): it for module in model.modules() for it in getattr(module, "_require_grads_hooks", ())}
    return copy.deepcopy(model, shared)


def _keep_tied(model: PreTrainedModel, *, said: bool) -> None:
    """Leave what the configuration `said` of tied weights, where any of those that it ties are one.

    PEFT compares the head with the embeddings of what is read (0.21, tuners/tuners_utils.py): of T5Gemma and FSMT the
    head is tied to the decoder's, LUKE ties its entities, and BART with a head of its own two embeddings. Saved as
    untied, these would be random when loaded; a head that is in the file beside them is not tied in any case.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    if any(weights.get(name, 0) is weights.get(source) for name, source in tied.items()):
        model.config.tie_word_embeddings = said


def _free_namesakes(model: peft.PeftModel, head: Sequence[str]) -> None:
    """Put back modules that PEFT takes for the head, as their names end like its: ModernVBERT's `vision_model.head`.

    It goes by the ends of names (peft 0.21, utils/other.py, `_set_trainable`).
    """
    from peft.utils import ModulesToSaveWrapper

    base = model.get_base_model()
    for name, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper) and name not in head:
            parent, _, own = name.rpartition(".")
            setattr(base.get_submodule(parent), own, module.original_module)


def _with_own_modules(model: peft.PeftModel) -> peft.PeftModel:
    """Put modules that were trained whole in their places; unloading IA³ asks them for a weight (peft 0.21, ia3)."""
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.modules_to_save[module.active_adapter])
    return model


def _label(config: PretrainedConfig, names: list[str]) -> None:
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    if "num_labels" in vars(config):  # PVT's is a number of its own (transformers 5.24, configuration_pvt.py)
        config.num_labels = len(names)


MULTI_LABEL = "multi_label_classification"
"""`problem_type` of a configuration by which transformers' pipelines take the sigmoid of each logit."""


def relabel(config: PretrainedConfig, class_names: list[str], *, multi_label: bool = False) -> None:
    """Give a configuration its labels, and whether a row may have several of them."""
    _label(config, class_names)
    if multi_label or config.problem_type != "single_label_classification":  # another would be that of an earlier head
        config.problem_type = MULTI_LABEL if multi_label else None
    if "label_names" in vars(config):
        # timm_wrapper keeps the names that it was read with, and saves those (transformers 5.24,
        # configuration_timm_wrapper.py, to_dict)
        config.label_names = list(class_names)


# -------------------------------------------------------------------------------------------- AdaLoRA


_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""Averages of PEFT's allocator: the smoothed importance of each weight, and how uncertain that is."""


class RankAllocation:
    """AdaLoRA on one model, over a number of optimiser steps that is known when it begins.

    Singular values are taken from the layers that need them least, until the average rank is as asked. PEFT has the
    layers and the rule (peft 0.21, tuners/adalora); here it is told when, and its state is kept for resuming.
    Source: Zhang et al., https://arxiv.org/abs/2303.10512.
    """

    def __init__(self, model: peft.PeftModel, keys: AdaLora, *, total_steps: int) -> None:
        self._tuner = model.base_model
        self._config = model.peft_config["default"]
        self._config.total_step = total_steps
        self._config.tinit = int(keys.initial_share * total_steps)
        self._config.tfinal = int(keys.final_share * total_steps)
        named = self._tuner.model.named_parameters()
        self._vectors = {name: p for name, p in named if "lora_A." in name or "lora_B." in name}

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
        """Tell whether the ranks after so many steps are those of the end."""
        return step >= int(self._config.total_step - self._config.tfinal)

    def state(self) -> dict[str, Tensor]:
        """All that the next steps depend on besides weights and gradients."""
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
