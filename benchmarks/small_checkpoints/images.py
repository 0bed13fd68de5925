"""Image classifiers: every architecture of transformers' mapping, and timm's families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from benchmarks.small_checkpoints import Small
from tltasks.models.shrinking import layer_kinds, smaller_configs

CLASSES = 5
SIZE = 64

CHANGES: dict[str, dict[str, Any]] = {
    "beit": {"use_relative_position_bias": True},
    "bit": {"embedding_size": 32, "hidden_sizes": [128, 128, 256, 256], "depths": [1, 1, 2, 1]},
    "donut-swin": {"image_size": 224},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "hiera": {"depths": [1, 2, 2, 1]},
    "imagegpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "perceiver": {
        "num_cross_attention_heads": 1,
        "num_self_attention_heads": 2,
        "num_self_attends_per_block": 2,
        "num_latents": 16,
        "d_latents": 32,
    },
    "siglip2": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "swin": {"image_size": 224},
    "textnet": {"image_size": [64, 64]},
}
"""What a configuration needs before it is made smaller, or instead."""
OTHER_TASK = {
    "shieldgemma2": "it answers yes or no to a policy that is put into words, and has no head to train",
}
"""Entries of the mapping that are no image classifiers, and why."""
PROCESSORS: dict[str, Callable[[dict[str, int]], Any]] = {
    "imagegpt": lambda size: transformers.ImageGPTImageProcessor(
        clusters=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], size=size
    ),
    "siglip2": lambda size: transformers.Siglip2ImageProcessor(),
}
"""Processors of those whose input is no image of fixed size."""
TIMM: dict[str, dict[str, Any]] = {
    "bat_resnext26ts": {"img_size": 256},
    "beit_base_patch16_224": {"img_size": 64, "depth": 2},
    "beitv2_base_patch16_224": {"img_size": 64, "depth": 2},
    "botnet26t_256": {},
    "cait_xxs24_224": {"img_size": 64, "depth": 2},
    "coat_lite_tiny": {"img_size": 64},
    "convit_tiny": {"img_size": 64, "depth": 12},
    "convmixer_768_32": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "crossvit_tiny_240": {},
    "cspresnet50": {},
    "davit_tiny": {},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "densenet121": {},
    "dla34": {},
    "dpn48b": {},
    "eca_nfnet_l0": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "efficientformerv2_s0": {},
    "efficientnet_b0": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
    "fastvit_t8": {},
    "focalnet_tiny_srf": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "gmixer_24_224": {"img_size": 64},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {},
    "hrnet_w18_small": {},
    "inception_next_atto": {},
    "inception_v3": {"img_size": 128},
    "inception_v4": {"img_size": 128},
    "lcnet_050": {},
    "legacy_seresnet18": {},
    "levit_128s": {},
    "mambaout_femto": {},
    "maxvit_rmlp_pico_rw_256": {},
    "mixer_s16_224": {"img_size": 64},
    "mixnet_s": {},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobileone_s0": {},
    "mobilevit_xxs": {},
    "mvitv2_tiny": {},
    "nasnetalarge": {"num_features": 192, "stem_size": 8},
    "nest_tiny": {"img_size": 64},
    "nextvit_small": {},
    "nf_resnet26": {},
    "nf_regnet_b0": {},
    "pit_ti_224": {"img_size": 64},
    "poolformer_s12": {},
    "pvt_v2_b0": {},
    "regnetx_002": {},
    "regnety_002": {},
    "regnetz_005": {},
    "repghostnet_050": {},
    "repvgg_a0": {},
    "repvit_m0_9": {},
    "res2net50_14w_8s": {},
    "resmlp_12_224": {"img_size": 64},
    "resnest14d": {},
    "resnet18": {},
    "resnet26d": {},
    "resnetv2_18": {},
    "resnetv2_50x1_bit": {},
    "resnext26ts": {},
    "rexnet_100": {},
    "selecsls42": {},
    "seresnext26d_32x4d": {},
    "shvit_s1": {},
    "skresnet18": {},
    "starnet_s1": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 1)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (1, 1)},
    "swinv2_cr_tiny_ns_224": {"img_size": 56, "depths": (1, 1)},
    "tf_efficientnet_lite0": {},
    "tiny_vit_5m_224": {},
    "tnt_s_patch16_224": {"img_size": 64, "depth": 2},
    "tresnet_m": {},
    "twins_svt_small": {},
    "vgg11": {"mlp_ratio": 0.01},
    "visformer_tiny": {"img_size": 64},
    "vit_relpos_small_patch16_224": {"img_size": 64, "depth": 2},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "vit_tiny_r_s16_p8_224": {"img_size": 64, "depth": 2},
    "vitamin_small_224": {"img_size": 64},
    "volo_d1_224": {"img_size": 64},
    "vovnet39a": {},
    "xception41": {},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
}
"""timm's families by a small member, with arguments that make it smaller."""

CONVOLUTIONAL = {"bat_resnext26ts", "inception_v3", "inception_v4"}
"""Those that need images of the size given, but take no argument of it."""


def checkpoints() -> Iterator[Small]:
    """Every entry of the mapping, and a member of each family of timm."""
    for model_type, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        for i, name in enumerate([classes] if isinstance(classes, str) else classes):
            if model_type != "timm_wrapper":
                shown = f"transformers/{model_type}" + (f"/{name}" if i else "")
                yield Small(
                    shown,
                    "image-classification",
                    partial(_save, model_type, name),
                    other_task=OTHER_TASK.get(model_type, ""),
                )
    for name, arguments in TIMM.items():
        yield Small(f"timm/{name}", "image-classification", partial(_save_timm, name, arguments))


def _save(model_type: str, architecture: str, folder: Path) -> None:
    config = _small(model_type, architecture)
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or SIZE
    height, width = (size, size) if isinstance(size, int) else size
    PROCESSORS.get(model_type, lambda size: transformers.ViTImageProcessor(size=size))(
        {"height": height, "width": width}
    ).save_pretrained(folder)
    build: Callable[[PretrainedConfig], Any] = getattr(transformers, architecture)
    smaller = (_with_own_stages(smaller) for smaller in smaller_configs(config))
    config = next((found for found in smaller if _runs(build, config, found, height, width)), config)
    _save_weights(lambda: build(config), config, folder)


def _with_own_stages(config: PretrainedConfig) -> PretrainedConfig:
    """The same with names of its stages that fit its depth."""
    named = {"stage_names", "out_features", "out_indices"}
    found: PretrainedConfig = type(config).from_dict({k: v for k, v in config.to_dict().items() if k not in named})
    return found


def _runs(
    build: Callable[[PretrainedConfig], Any],
    config: PretrainedConfig,
    smaller: PretrainedConfig,
    height: int,
    width: int,
) -> bool:
    """Tell whether a smaller configuration holds together, and its model has the layers of the other."""
    try:
        with torch.device("meta"):
            kinds = layer_kinds(build(config))
        model = build(smaller).eval()
        with torch.no_grad():
            model(torch.zeros(2, 3, height, width))
    except Exception:
        return False
    return layer_kinds(model) == kinds


def _save_timm(name: str, arguments: dict[str, Any], folder: Path) -> None:
    """As timm saves checkpoints (1.0.31), but for weights that two layers share, at which it fails."""
    known = timm.models.get_pretrained_cfg(name)
    assert known is not None
    size = arguments.get("img_size") or (known.input_size[-1] if known.fixed_input_size else SIZE)
    arguments = {} if name in CONVOLUTIONAL else arguments
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **arguments)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}
    _draw(model, narrow=False)
    save_config_for_hf(model, folder / "config.json", model_args=arguments)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def _save_weights(build: Callable[[], Any], config: PretrainedConfig, folder: Path) -> None:
    """A model of random weights, each of which matters; its configuration alone where it cannot be built here."""
    torch.manual_seed(0)
    try:
        model = build()
    except ImportError:
        config.save_pretrained(folder)
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
        return
    _draw(model, narrow=True)
    model.save_pretrained(folder)


@torch.no_grad()
def _draw(model: nn.Module, *, narrow: bool) -> None:
    """No scales of zero, which would hide the layers before them; and where layers are narrow, weights so large that
    what an image shows comes through.
    """
    for parameter in model.parameters():
        fan_in = parameter.numel() // len(parameter) if narrow and parameter.ndim > 1 else 2500
        parameter.add_(fan_in**-0.5 * torch.randn(parameter.shape))
    for module in model.modules():  # MobileViT draws their scales around zero
        if isinstance(module, nn.BatchNorm2d) and float(module.weight.mean()) < 0.5:
            module.weight.add_(1.0)


def _small(model_type: str, architecture: str) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(model_type)
    config.architectures = [architecture]
    for part in (config, getattr(config, "vision_config", None)):
        if part is None:
            continue
        known = part.to_dict()
        if isinstance(known.get("image_size"), int):
            part.image_size = SIZE if SIZE % int(known.get("patch_size") or 16) == 0 else 56
        for key, value in CHANGES.get(model_type, {}).items():
            setattr(part, key, value)
    config.id2label = {i: f"class {i}" for i in range(CLASSES)}
    config.label2id = {f"class {i}": i for i in range(CLASSES)}
    if "num_labels" in vars(config):  # PVT's is a number of its own
        config.num_labels = CLASSES
    return config
