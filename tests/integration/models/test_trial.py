"""Layers that an adapter does not fit, of each kind; and architectures that have them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tests.tiny.images import SIZE
from tltasks.config.stage import STAGES
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import CheckpointError
from tltasks.models import trial as trial_module
from tltasks.models.adapters import adapt, find_head, find_lora_targets, merged, relabel
from tltasks.models.trial import Trial, _by_copy, misfits, unfit_layers
from tltasks.runtime.files import write_json
from tltasks.tasks.image.classification import classifier_logits
from tltasks.tasks.image.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

# ------------------------------------------------------------------------------------------ kinds of layers


class Net(nn.Module):
    """A layer between two that are as layers should be."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Conv2d(8, 8, 1)
        self.call = call or (lambda layer, x: layer(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self.layer, self.before(x).relu())).mean((2, 3))


class OnLast(nn.Module):
    """A layer over the last axis, of images' channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1).contiguous()).movedim(-1, 1)


class Encoder(nn.Module):
    """torch's own block, which reads its layers' weights past them where no gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


def twice(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) + functional.conv2d(x, layer.weight)  # type: ignore[arg-type]


def clamped(layer: nn.Module, x: Tensor) -> Tensor:
    """As Gemma 3n does in training."""
    return functional.conv2d(x, layer.weight.clamp(-1, 1)) if layer.training else layer(x)


class Pair(nn.Conv2d):
    """Two outputs, as of Llama 4's routers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


def asked(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) * layer.stride[0]  # type: ignore[index]


def conv(kind: Any = nn.Conv2d, size: int = 3, **keys: Any) -> nn.Module:
    layer: nn.Module = kind(8, 8, size, **keys)
    return layer


def pinned(parametrization: Any) -> nn.Module:
    layer: nn.Module = parametrization(nn.Conv2d(8, 8, 1))
    return layer


KINDS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "convolution": (lambda: Net(conv(padding=1)), None),
    "strides": (lambda: Net(conv(stride=2)), None),
    "same": (lambda: Net(conv(timm.layers.Conv2dSame, stride=2)), None),
    "linear": (lambda: Net(OnLast(nn.Linear(8, 8))), None),
    "gpt2": (lambda: Net(OnLast(Conv1D(8, 8))), None),
    "called twice": (lambda: Net(conv(padding=1), lambda layer, x: layer(layer(x))), None),
    "by forward": (lambda: Net(conv(padding=1), lambda layer, x: layer.forward(x)), None),
    "tiny scale": (lambda: Net(conv(padding=1), lambda layer, x: x + 1e-43 * layer(x)), None),
    "zero scale": (lambda: Net(conv(padding=1), lambda layer, x: x + 0 * layer(x)), None),
    "standardised": (lambda: Net(conv(timm.layers.StdConv2d)), "function of its weight"),
    "scaled": (lambda: Net(conv(timm.layers.ScaledStdConv2d)), "function of its weight"),
    "weight norm": (lambda: Net(pinned(nn.utils.parametrizations.weight_norm)), "function of its weight"),
    "spectral norm": (lambda: Net(pinned(nn.utils.parametrizations.spectral_norm)), "function of its weight"),
    "dilated": (lambda: Net(conv(dilation=2)), "PEFT's adapter fails"),
    "dilated, same": (lambda: Net(conv(dilation=2, padding=2)), "PEFT's adapter fails"),
    "read past": (lambda: Net(conv(size=1), lambda layer, x: functional.conv2d(x, layer.weight)), "passes it by"),
    "never used": (lambda: Net(conv(), lambda layer, x: x), "does not run it"),
    "read past in training": (lambda: Net(conv(size=1), clamped), "passes it by"),
    "two outputs": (lambda: Net(Pair(8, 8, 1), lambda layer, x: layer(x)[0]), "gives more than its product"),
    "read past for inference": (lambda: Net(Encoder()), "passes it by"),
    "read past, too": (lambda: Net(conv(size=1), twice), "used elsewhere"),
    "result unused": (lambda: Net(conv(), lambda layer, x: x + 0 * layer(x).detach().mean()), "no gradient"),
    "asked": (lambda: Net(conv(padding=1), asked), None),
    "asked for a method": (lambda: Net(conv(), lambda layer, x: layer._conv_forward(x, layer.weight, None)), "asks it"),
}


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | Conv1D)]


def run(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_an_adapter_does_not_fit_is_found(kind: str) -> None:
    torch.manual_seed(0)
    make, reason = KINDS[kind]
    model = make()
    found = unfit_layers(model, layers_of(model), run)
    assert not found.keys() & {"before", "after"}, "the layers around it are as they should be"
    if reason is None:
        assert found == {}
    else:
        assert found.keys() == {name for name in layers_of(model) if name.startswith("layer")}
        assert all(reason in told for told in found.values()), found


def test_a_model_that_ties_weights_and_has_no_embeddings_is_adapted() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 8, "vocab_size": 8}
    config = transformers.AutoConfig.for_model("granite_speech5_ctc", encoder_config=sizes, vocab_size=8)
    model = transformers.AutoModelForCTC.from_config(config)
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()
    with trial_module.with_embeddings(model):
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["encoder.input_linear"]), model)
    with pytest.raises(NotImplementedError):
        model.get_input_embeddings()


def test_two_layers_of_one_weight() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    model[3].weight = model[2].weight
    found = unfit_layers(model, ["1", "2", "3", "4"], run)
    assert found == dict.fromkeys(["2", "3"], "its weight is used elsewhere, too")


def test_a_shared_weight_is_found_however_little_comes_through_its_other_layer() -> None:
    class Faint(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-3 * super().forward(x)

    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 6), nn.Linear(6, 6), Faint(6, 6), nn.Linear(6, 2))
    model[3].weight = model[2].weight
    found = Trial(lambda: run).unfit(model, ["1", "2", "4"], peft.LoraConfig())  # type: ignore[arg-type]
    assert found == {"2": "its weight is used elsewhere, too"}


def test_a_grouped_convolution_is_tried_as_it_is() -> None:
    """PEFT warns that such cannot be merged, which is so for some."""
    torch.manual_seed(0)
    model = Net(conv(groups=4, padding=1))
    found = unfit_layers(model, ["layer"], run)
    config = peft.LoraConfig(r=4, target_modules=["layer"], init_lora_weights=False)
    with pytest.warns(UserWarning, match="groups > 1"):
        wrapped = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        try:
            before, after = run(wrapped), run(wrapped.merge_and_unload())
            fits = torch.allclose(before, after, atol=1e-5)
        except RuntimeError:
            fits = False
    assert bool(found) is not fits


def test_trying_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = Net(nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(), conv(timm.layers.StdConv2d)))
    model.layer[0].eval()
    model.before.weight.requires_grad_(False)
    model.after.bias.grad = torch.ones(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules, attributes, state = dict(model.named_modules()), set(vars(model)), torch.get_rng_state()
    assert unfit_layers(model, layers_of(model), run).keys() == {"layer.2"}
    assert {name: id(m) for name, m in model.named_modules()} == {name: id(m) for name, m in modules.items()}
    assert set(vars(model)) == attributes
    assert all("forward" not in vars(module) for module in modules.values())
    assert [name for name, m in model.named_modules() if not m.training] == ["layer.0"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["before.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["after.bias"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------ copies and the cache


def words(model: nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=torch.arange(5, 17).view(2, 6), use_cache=False).logits
    return logits


def test_a_large_model_is_judged_by_a_small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba multiplies by the weight of `dt_proj`; here the model itself has no weights, so that it cannot be run."""
    monkeypatch.setattr(trial_module, "LARGEST_TRIED", 0)
    config = transformers.MambaConfig(vocab_size=50, hidden_size=64, num_hidden_layers=8, state_size=8)
    auto = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    names = find_lora_targets(model, head=["lm_head"])
    found = Trial(lambda: words, auto.from_config).unfit(model, names, peft.LoraConfig(target_modules=names))
    reasons = {name.rpartition(".")[2]: reason for name, reason in found.items()}
    assert len(found) == 2 * config.num_hidden_layers
    assert reasons.keys() == {"dt_proj", "out_proj"}
    assert "passes it by" in reasons["dt_proj"]
    assert "PEFT refuses it" in reasons["out_proj"]


def test_layers_of_one_pattern_that_fare_differently_are_not_told_by_a_copy() -> None:
    def second_is_read_past(model: Any) -> Tensor:
        found: Tensor = functional.linear(model.layers[0](torch.ones(2, 8)), model.layers[1].weight)
        return found

    small = nn.Module()
    small.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    assert _by_copy(small, ["layers.0", "layers.1"], second_is_read_past) is not None
    assert _by_copy(small, ["layers.0", "layers.7"], second_is_read_past) is None


def test_outcomes_are_kept_by_configuration_and_method(tmp_path: Path) -> None:
    asked: list[int] = []

    def examples() -> Callable[[nn.Module], Tensor]:
        asked.append(1)
        return outputs

    model = build("timm-beit")
    names = find_lora_targets(model, head=find_head(model))
    trial, lora = (
        Trial(examples, folder=tmp_path, write=write_json, key="1"),
        peft.LoraConfig(r=4, target_modules=names),
    )
    found = trial.unfit(model, names, lora)
    assert {name.rpartition(".")[2] for name in found} == {"qkv"}
    assert trial.unfit(build("timm-beit"), names, lora) == found
    assert len(asked) == 1
    for key in ("2", "3"):
        assert dataclasses.replace(trial, key=key).unfit(model, names, lora) == found
    assert len(asked) == 3
    ia3 = peft.IA3Config(target_modules=names, feedforward_modules=[])
    assert trial.unfit(model, names, ia3).keys() >= found.keys()
    assert len(asked) == 3, "what the model tells by itself holds for every method"
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text()[:-9])
    assert trial.unfit(model, names, lora) == found, "a damaged file is as good as none"
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (peft.LoraConfig(use_dora=True), None),
        (peft.AdaLoraConfig(total_step=1), None),
        (peft.IA3Config(feedforward_modules=[]), None),
        (peft.LoHaConfig(), None),
        (peft.C3AConfig(block_size=5), "block size should be a factor"),
    ],
)
def test_methods_are_tried_beside_each_kind_of_layer(config: Any, reason: str | None) -> None:
    layers = {"linear": nn.Linear(8, 8), "convolution": conv(stride=2, padding=1), "again": nn.Linear(8, 8)}
    found = misfits(layers, config)
    if reason is None:
        assert found == {}
    else:
        assert {"linear", "again"} <= found.keys()
        assert reason in found["linear"]


# -------------------------------------------------------------------------------------------- architectures


def timm_config(name: str, size: int = SIZE, **arguments: Any) -> transformers.PretrainedConfig:
    cfg = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    return transformers.TimmWrapperConfig(architecture=name, model_args=arguments, pretrained_cfg=cfg)


SMALL_BEIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
ARCHITECTURES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "bit": lambda: transformers.BitConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4),
    "nfnet": lambda: timm_config("nf_resnet26"),
    "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "nf-regnet": lambda: timm_config("nf_regnet_b0"),
    "mobilenet": lambda: transformers.MobileNetV2Config(image_size=SIZE, depth_multiplier=0.35),
    "dla": lambda: timm_config("dla46_c"),
    "timm-beit": lambda: timm_config("beit_base_patch16_224", **SMALL_BEIT),
    "eva": lambda: timm_config("eva02_tiny_patch14_224", **SMALL_BEIT),
    "distilled": lambda: timm_config("deit_tiny_distilled_patch16_224", **SMALL_BEIT),
    "efficientvit": lambda: timm_config("efficientvit_b0"),
    "pvt": lambda: transformers.PvtConfig(
        image_size=SIZE, hidden_sizes=[8, 16, 20, 32], num_attention_heads=[1, 1, 1, 1], depths=[1, 1, 1, 1]
    ),
}


def build(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = ARCHITECTURES[name]()
    relabel(config, [f"class {i}" for i in range(5)])
    model: transformers.PreTrainedModel = transformers.AutoModelForImageClassification.from_config(config)
    return model.eval()


def outputs(model: nn.Module) -> Tensor:
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return classifier_logits(model, pixels)


def adapted(model: transformers.PreTrainedModel, how: Any) -> nn.Module:
    stage = ImageStage.model_validate({"stage": "transfer", "learning_rate": 1e-3, "epochs": 1.0, "adapt": how})
    head = find_head(model)
    return adapt(
        model,
        stage.adapt,
        new_head=STAGES["transfer"].head == "new",
        head=head,
        targets=find_lora_targets(model, head=head),
        display_name="ada/base",
        revision="main",
        trial=Trial(lambda: outputs),
    )


@pytest.mark.parametrize("how", ["lora", "dora", "ia3", {"peft": {"type": "loha", "r": 2}}])
@pytest.mark.parametrize("name", ["bit", "nfnet", "nf-regnet"])
def test_a_backbone_of_standardised_weights_is_refused(name: str, how: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"^adapt\.\w+: layers that can be adapted hold .*function of its weight.*full"
    ):
        adapted(build(name), how)


def test_what_peft_cannot_adapt_is_refused_before_training() -> None:
    with pytest.raises(CheckpointError, match=r"for a layer of its own.*use `adapt: full`"):
        adapted(build("dla"), "lora")


def test_a_method_without_convolutions_is_refused_for_another() -> None:
    """VeRA has none; LoRA would do."""
    with pytest.raises(CheckpointError, match=r"VERA does not fit it.*Use `adapt: lora`, `adapt: full`"):
        adapted(build("resnet"), {"peft": {"type": "vera", "r": 2}})


def test_targets_by_name_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"^adapt\.lora: 2 of the targets .*attn\.qkv and 1 more: the model passes"
    ):
        adapted(build("timm-beit"), {"lora": {"targets": ["qkv", "proj"]}})


def test_a_model_that_does_not_run_with_adapters_is_refused() -> None:
    model = build("distilled")
    head = find_head(model)
    stage = ImageStage.model_validate({"stage": "transfer", "learning_rate": 1e-3, "epochs": 1.0, "adapt": "lora"})

    def fails(model: nn.Module) -> Tensor:
        if any(isinstance(module, peft.tuners.lora.LoraLayer) for module in model.modules()):
            raise TypeError("expected a Linear")
        return outputs(model)

    with pytest.raises(CheckpointError, match=r"does not run with PEFT's layers in it \(expected a Linear\)"):
        adapt(
            model,
            stage.adapt,
            new_head=True,
            head=head,
            targets=find_lora_targets(model, head=head),
            display_name="",
            revision="",
            trial=Trial(lambda: fails),
        )
    assert outputs(model).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("timm-beit", {"qkv"}), ("distilled", set()), ("efficientvit", set()), ("pvt", set()), ("mobilenet", set())],
)
def test_the_others_are_adapted_and_merge(name: str, left_out: set[str]) -> None:
    model = build(name)
    chosen = set(find_lora_targets(model, head=find_head(model)))
    wrapped = adapted(model, {"lora": {"rank": 2}})
    assert isinstance(wrapped, peft.PeftModel)
    assert {target.rpartition(".")[2] for target in chosen - set(wrapped.targeted_module_names)} == left_out
    assert len(wrapped.targeted_module_names) > 5, "a backbone, rather than a layer of it"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = outputs(wrapped.eval())
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        expected = outputs(wrapped)
        found = outputs(merged(wrapped))
    effect = float((expected - before).abs().max())
    assert effect > 1e-2 * float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-4 * effect


def test_a_number_of_classes_that_is_the_configurations_own() -> None:
    model = build("pvt")
    assert outputs(model).shape == (2, 5)
    assert find_head(model) == ["classifier"]


def test_images_smaller_than_a_convolution_are_refused() -> None:
    class Deep(nn.Conv2d):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values)

    with pytest.raises(CheckpointError, match=r"Deep does not run on images of 2 × 4 .* set `model.image_size`"):
        classifier_logits(Deep(3, 3, 3), torch.zeros(1, 3, 2, 4))
    with pytest.raises(RuntimeError, match="expected input"):
        classifier_logits(Deep(3, 3, 3), torch.zeros(1, 2, 4, 4))


def test_a_classifier_without_logits_is_refused() -> None:
    model = transformers.PPLCNetForImageClassification(transformers.PPLCNetConfig(scale=0.25, class_expand=16)).eval()
    with pytest.raises(CheckpointError, match=r"PPLCNetForImageClassification gives .* without logits"):
        outputs(model)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (lambda: transformers.ImageGPTImageProcessor(clusters=[[0.0] * 3, [1.0] * 3]), "makes input_ids of an image"),
        (transformers.Siglip2ImageProcessor, r"gives no images \(\[\(1, 256, 768\)\]"),
    ],
)
def test_a_processor_that_gives_no_images_is_refused(processor: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        Preprocessing(processor(), name="a/b")
