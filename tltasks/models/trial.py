"""Layers that an adapter can be put beside, found by trying: which of them it would reach, train and be merged into."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tltasks.errors import first_line
from tltasks.models.shrinking import Build, pattern, small_copies

if TYPE_CHECKING:  # imported where there is an adapter: it takes half a second
    import peft
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

Run = Callable[[nn.Module], Tensor]
"""Passes an example or two through a model."""

LAYERS = (nn.Linear, Conv1D, nn.Conv2d, nn.Conv1d)
"""Kinds of layers that adapters are put beside; transformers' Conv1D is GPT-2's linear layer."""
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
UNUSED = "the model does not run it for this"
OTHER_FUNCTION = "it computes with a function of its weight, such as a standardised one"
OTHER_USER = "its weight is used elsewhere, too"
NO_GRADIENT = "no gradient comes there"
NO_GRADIENT_AT_ALL = "no gradient comes there, nor to its weight"
IDLE = (UNUSED, NO_GRADIENT_AT_ALL)
"""Layers that full training leaves as they are, too."""
LARGEST_TRIED = 20_000_000
"""Weights of a model that is tried itself; of a larger one, a small copy is."""
FAULTS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, NotImplementedError)
"""What models and PEFT raise where they do not go together."""


@dataclass(frozen=True)
class Trial:
    """All that it takes to try the layers of a model, and where the outcome is kept."""

    examples: Callable[[], Run]
    """Makes up a pass of two examples."""
    build: Build | None = None
    """Builds the same architecture by another configuration; None where the model itself is to be tried."""
    folder: Path | None = None
    """Cache of outcomes; None to keep none."""
    write: Callable[[Path, object], None] | None = None
    """Writes a file of JSON that appears whole."""
    key: str = ""
    """What outcomes depend on besides the model's configuration, its layers and the adapter."""

    def unfit(self, model: PreTrainedModel, names: Sequence[str], config: peft.PeftConfig) -> dict[str, str]:
        """Those of the layers `names` that the adapter must not be put beside, and why; from the cache, if it is there.

        A large model is judged by a small random copy, whose layers stand for those of the same pattern. Weights that
        several modules have are told from the model itself, as its copy may have one of these (Zamba).
        """
        shared = _shared(model, names)
        names = [name for name in names if name not in shared]
        found = self._kept(model, names, None, lambda: self._tried(model, names))
        left = {name: model.get_submodule(name) for name in names if name not in found}
        found |= self._kept(model, names, config, lambda: misfits(left, config))
        return found | dict.fromkeys(shared, OTHER_USER)

    def _kept(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        config: peft.PeftConfig | None,
        find: Callable[[], dict[str, str]],
    ) -> dict[str, str]:
        """An outcome of all methods, or of one, from the cache or found."""
        path = None if self.folder is None else self.folder / f"{self._digest(model, names, config)}.json"
        found = None if path is None else _read(path, names)
        if found is None:
            found = find()
            if path is not None and self.write is not None:
                self.write(path, found)
        return found

    def without_weights(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model on the meta device to be judged instead of one whose weights are not there in fp32."""
        if self.build is None:
            return model
        with torch.device("meta"):
            return self.build(copy.deepcopy(model.config))

    def _digest(self, model: PreTrainedModel, names: Sequence[str], config: peft.PeftConfig | None) -> str:
        own = {key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "id2label")}
        method = config.to_dict() if config else {}
        method = {key: value for key, value in method.items() if key not in ("revision", "target_modules")}
        attention = model.config._attn_implementation
        parts = (self.key, version("peft"), type(model).__name__, attention, list(names), own, method)
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _tried(self, model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
        run = self.examples()
        if self.build is not None and sum(parameter.numel() for parameter in model.parameters()) > LARGEST_TRIED:
            for small in small_copies(model, model.config, self.build):
                try:
                    found = _by_copy(small, names, run)
                except FAULTS:  # of a configuration that does not hold together after all
                    continue
                if found is not None:
                    return found
        if self.build is not None and next(model.parameters()).device.type == "meta":
            with torch.random.fork_rng(devices=[]):  # a run that finds the outcome in the cache draws nothing either
                model = self.build(copy.deepcopy(model.config))
        return unfit_layers(model, names, run)


def _shared(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of some layers whose weight is another module's, too: beside each, an adapter would learn another update.

    How much of a gradient comes from the other tells little; where it is small, so is the error, but it is one.
    """
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return [name for name in names if users[id(model.get_submodule(name)._parameters.get("weight"))] > 1]


def _read(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """An outcome from the cache; a damaged file is as good as none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(name in names and isinstance(found[name], str) for name in found):
        return None
    return found


def _by_copy(small: nn.Module, names: Sequence[str], run: Run) -> dict[str, str] | None:
    """Unfit layers by a small copy; None where layers of one pattern fare differently and have no counterpart."""
    layers = {name for name, module in small.named_modules() if isinstance(module, LAYERS)}
    if layers.issuperset(names):
        return unfit_layers(small, names, run)
    wanted = {pattern(name) for name in names}
    own = [name for name in sorted(layers) if pattern(name) in wanted]
    found = unfit_layers(small, own, run)
    reasons = {pattern(name): reason for name, reason in found.items()}
    if any(pattern(name) in reasons for name in own if name not in found):
        return None
    return {name: reasons[pattern(name)] for name in names if pattern(name) in reasons}


def misfits(layers: Mapping[str, nn.Module], config: peft.PeftConfig) -> dict[str, str]:
    """Those of some layers that a method other than LoRA does not fit by their kind and size, and why.

    A layer of each kind is taken by itself: with its adapter it must give gradients, and compute the same when merged.
    """
    if config.peft_type == "LORA" and not getattr(config, "use_dora", False):  # by which all have been tried
        return {}
    kinds: dict[str, str | None] = {}
    found: dict[str, str] = {}
    for name, layer in layers.items():
        kind = f"{type(layer)} {layer.extra_repr()} {layer.weight.shape}"
        if kind not in kinds:
            kinds[kind] = _fault_alone(layer, config)
        if reason := kinds[kind]:
            found[name] = reason
    return found


class _Alone(nn.Module):
    """A layer by itself, with weights of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)
        if layer.weight.device.type == "meta":
            self.layer.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape) / 8)
        self.layer.float()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def _fault_alone(layer: nn.Module, config: peft.PeftConfig) -> str | None:
    """Why the adapter does not fit a layer that it is put beside alone."""
    from peft import PEFT_TYPE_TO_TUNER_MAPPING

    kind = config.peft_type.value
    own = copy.deepcopy(config)
    own.target_modules, own.inference_mode = {"layer"}, False
    for name in ("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(own, name):
            setattr(own, name, None)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about what is found out here
        torch.manual_seed(0)
        try:
            alone = _Alone(layer)
            x = torch.randn(_input_shape(layer))
            plain = alone(x)
            PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](alone, own, ADAPTER)
            trained = [parameter for parameter in alone.parameters() if parameter.requires_grad]
            with torch.no_grad():
                for parameter in trained:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            alone.eval()
            adapted = alone(x)
            adapted.square().sum().backward()
            if not trained or any(parameter.grad is None for parameter in trained):
                return f"{kind} gives its weights no gradient there"
            with torch.no_grad():
                tuner: BaseTunerLayer = alone.get_submodule("layer")
                tuner.merge(safe_merge=False, adapter_names=[ADAPTER])
                error, effect = (alone(x) - adapted).abs().max(), (adapted - plain).abs().max()
            if not error <= MERGED_WITHIN * effect + ROUNDING * plain.abs().max():
                return f"{kind} merges into another function there"
        except FAULTS as error:
            return f"{kind} does not fit it ({first_line(error)})"
    return None


def _input_shape(layer: nn.Module) -> list[int]:
    """The shape of a small input of a layer."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        reach = [d * (k - 1) + 3 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [2, layer.in_channels, *reach]
    assert isinstance(layer, nn.Linear | Conv1D)
    return [2, 3, layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.weight.shape[1]]


def kept_targets(model: nn.Module, targets: str | Sequence[str]) -> str | set[str]:
    """The targets that LoRA of PEFT keeps; of mixtures it takes some for layers of experts, which it adapts instead.

    Where transformers holds all experts in one weight, every name that ends like a layer of an expert, also of a layer
    beside the experts, stands for theirs (peft 0.21, utils/transformers_weight_conversion.py).
    """
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = peft.LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
    convert_peft_config_for_transformers(config, model, None)
    kept: str | set[str] = config.target_modules
    return kept


def unfit_layers(model: nn.Module, names: Sequence[str], run: Run) -> dict[str, str]:
    """Those of the linear and convolutional layers `names` that a low-rank adapter must not be put beside, and why.

    Each gets one, as PEFT makes it, and the model is run: with an adapter the layer must compute what it computes with
    the adapter merged, be called with gradients and without, and the weight's whole gradient must come through it. The
    model is left as it was.
    """
    found: dict[str, str] = {}
    with _as_it_was(model):
        while left := [name for name in names if name not in found]:
            trial = _Adapted(model, left)
            try:
                if refused := trial.refused():
                    found |= refused
                    continue
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
def with_embeddings(model: nn.Module) -> Iterator[None]:
    """Have a model that has no embeddings say that there is nothing in them, meanwhile.

    PEFT asks those that tie other weights for them (peft 0.21, utils/other.py), as Granite Speech 5 ties its two heads.
    """
    ask, has_none = getattr(model, "get_input_embeddings", lambda: None), False
    try:
        ask()
    except NotImplementedError:
        has_none = True
        object.__setattr__(model, "get_input_embeddings", nn.Identity)
    try:
        yield
    finally:
        if has_none:
            del model.get_input_embeddings


def lend(model: nn.Module) -> None:
    """Give PEFT's layers what else models ask of the layers below them, such as a convolution's stride (MobileNet)."""
    for module in list(model.modules()):
        base = getattr(module, "base_layer", None)
        for key, value in vars(base).items() if isinstance(base, nn.Module) else ():
            if not key.startswith("_") and not hasattr(module, key):
                setattr(module, key, value)


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


class _Adapted:
    """A model with an adapter beside each of some layers."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.attributes = model, set(vars(model))
        self.base = {name: model.get_submodule(name) for name in names}
        self.layers: dict[str, LoraLayer] = {}
        self.reasons: dict[str, str] = {}
        self.called: set[str] = set()
        self.read: set[str] = set()
        """Layers whose weights have a gradient, called or not."""
        self.beside: dict[str, Tensor] = {}
        """The share of a weight's gradient that its adapter would see, if all of it came through the layer."""

    def refused(self) -> dict[str, str]:
        """Put adapters beside the layers; or say which of them PEFT refuses, by the last part of their names."""
        try:
            self._inject(list(self.base))
        except (ValueError, TypeError, NotImplementedError):
            found: dict[str, str] = {}
            for kind in sorted({name.rpartition(".")[2] for name in self.base}):
                self.undo()
                alike = [name for name in self.base if name.rpartition(".")[2] == kind]
                try:
                    self._inject(alike)
                except (ValueError, TypeError, NotImplementedError) as refusal:
                    found |= dict.fromkeys(alike, f"PEFT refuses it ({first_line(refusal)})")
            if not found:
                raise
            return found
        return {}

    def _inject(self, names: Sequence[str]) -> None:
        import peft

        groups = {name: int(getattr(layer, "groups", 1)) for name, layer in self.base.items()}
        exact = rf"({'|'.join(re.escape(name) for name in names)})"
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=exact,
            rank_pattern={rf"^{re.escape(name)}": n for name, n in groups.items() if n > 1},  # as PEFT asks
            init_lora_weights=False,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),
        )
        own = vars(self.model)
        hidden = () if kept_targets(self.model, exact) == exact else ("config",)  # by which PEFT would move targets
        kept = {key: own.pop(key) for key in hidden}
        try:
            with with_embeddings(self.model):
                peft.inject_adapter_in_model(config, self.model, adapter_name=ADAPTER)
        finally:
            own.update(kept)
        lend(self.model)
        self.layers = {name: self.model.get_submodule(name) for name in names}
        for name, layer in self.layers.items():
            layer.forward = self._tried(name, layer.forward)

    def outcome(self, run: Run) -> dict[str, str]:
        self.called.clear()
        with torch.no_grad():
            run(self.model)
        self._note_passed_by(set(self.layers))
        trained = self._backward(run)
        self._note_passed_by(set(self.layers))
        for name, layer in self.layers.items():
            if trained and self.reasons.get(name) == PASSED_BY and name not in self.read:
                self.reasons[name] = UNUSED
            if name not in self.reasons and (
                reason := self._fault_of_gradient(name, layer.lora_B[ADAPTER].weight.grad)
            ):
                idle = reason == NO_GRADIENT and name not in self.read
                self.reasons[name] = NO_GRADIENT_AT_ALL if idle else reason
        self.model.train()  # in which Gemma 3n reads clamped weights (transformers 5.24, modeling_gemma3n.py)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        with suppress(*FAULTS):  # what is masked in training may ask for more than two small examples
            self._backward(run)
            self._note_passed_by(self.read)  # layers that are dropped in training have no gradient either
        self.model.eval()
        return self.reasons

    def _note_passed_by(self, names: set[str]) -> None:
        self.reasons |= {name: PASSED_BY for name in self.layers if name in names - self.called - self.reasons.keys()}

    def _backward(self, run: Run) -> bool:
        """Note the gradients of a pass; False for a model without any."""
        self.called.clear()
        self.read.clear()
        hooks = self._watch_gradients()
        try:
            with torch.enable_grad():
                output = run(self.model).float()
            generator = torch.Generator().manual_seed(0)
            if output.requires_grad:
                (output.cpu() * torch.randn(output.shape, generator=generator)).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
        return output.requires_grad

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
            plain: object = base(*args, **kwargs)
            if not isinstance(plain, Tensor):
                self.reasons[name] = "it gives more than its product"
                return plain  # type: ignore[return-value]
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
            if self.reasons.get(name, PASSED_BY) == PASSED_BY and isinstance(weight, nn.Parameter):
                users.setdefault(weight, []).append(name)

        def keep(weight: nn.Parameter) -> None:
            assert weight.grad is not None
            whole = weight.grad.float()  # of a weight that is held in 16 bits
            gradient = whole.T if isinstance(self.base[users[weight][0]], Conv1D) else whole.flatten(1)
            self.read.update(users[weight])
            told = [name for name in users[weight] if name not in self.reasons]
            for name in (name for name in told if getattr(self.base[name], "groups", 1) == 1):
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
