"""Architectures and ways to adapt them: which work, which are refused and why, and whether merging changes them.

    python benchmarks/architectures.py                  # all that benchmarks/results/architectures.json has not yet
    python benchmarks/architectures.py --only 'timm*'   # these, again
    python benchmarks/architectures.py --summary        # counts of what is there

Each architecture is built with random weights, its configuration made small or a small member of its family taken, and
goes through the package's own functions: a new head, `adapt` by each method, a backward pass, and the adapter merged.
A row is

- `works`, `refused` (the package's own error) or `fails` (any other error, or one of the faults below);
- without_gradient: weights that would be trained and get none (one of an adapter or of the head makes the row fail);
- merge_error: the largest difference of the merged model's outputs from the adapter's, over the adapter's largest
  effect on them, in fp32 (more than 1e-4 makes the row fail), and that effect over the largest output;
- left_out: targets that an adapter does not fit;
- reached: the share of the weights of the backbone's layers that are in adapted ones.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import timm
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tltasks.config.model import Checkpoint
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import TltasksError
from tltasks.models.adapters import adapt, find_head, find_lora_targets, merged, relabel, set_training_mode
from tltasks.models.loading import initialise_head, load_pretrained
from tltasks.tasks.image.classification import classifier_logits
from tltasks.tasks.image.preprocessing import Preprocessing

RESULTS = Path(__file__).parent / "results" / "architectures.json"
METHODS = ("full", "head", "lora")
MOST_PARAMETERS = 30_000_000
MERGED_WITHIN = 1e-4
LEAST_EFFECT = 0.05
"""Adapters are made larger until they change the outputs by this share."""
SECONDS = 60
"""A row that takes longer fails."""
CLASSES = 5

Made = tuple[PretrainedConfig, tuple[int, ...]]
"""A configuration, and the shape of the model's input."""

# ------------------------------------------------------------------------------------- image classification

DEPTH = {
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_blocks": 1,
    "num_blocks_per_stage": 1,
    "num_self_attends_per_block": 2,
}
CHANGES: dict[str, dict[str, Any]] = {
    "beit": {"use_relative_position_bias": True},
    "efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    "donut-swin": {"image_size": 224},
    "hiera": {"depths": [1, 2, 2, 1]},
    "textnet": {"image_size": [64, 64]},
    "perceiver": {"num_cross_attention_heads": 1},
    "swin": {"image_size": 224},
}
"""What a configuration needs besides fewer layers."""
PROCESSORS: dict[str, Callable[[], Any]] = {
    "imagegpt": lambda: transformers.ImageGPTImageProcessor(clusters=[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    "siglip2": transformers.Siglip2ImageProcessor,
}
"""Processors of those whose input is no image."""
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
    "inception_v4": {},
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
    "nasnetalarge": {},
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

CONVOLUTIONAL = {"bat_resnext26ts", "inception_v3"}
"""Those that need images of the size given, but take no argument of it."""


def image_architectures() -> Iterator[tuple[str, Callable[[], Made]]]:
    """Names of image classifiers, each with a function that makes its small configuration."""
    for model_type, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        for i, name in enumerate([classes] if isinstance(classes, str) else classes):
            if model_type != "timm_wrapper":
                shown = f"transformers/{model_type}" + (f"/{name}" if i else "")
                yield shown, lambda kind=model_type, name=name: _small(kind, name)  # type: ignore[misc]
    for name, arguments in TIMM.items():
        yield f"timm/{name}", lambda name=name, arguments=arguments: _timm(name, arguments)  # type: ignore[misc]


def _small(model_type: str, architecture: str) -> Made:
    config = AutoConfig.for_model(model_type)
    config.architectures = [architecture]
    if model_type in PROCESSORS:
        Preprocessing(PROCESSORS[model_type](), name=model_type)
    for part in (config, getattr(config, "vision_config", None)):
        if part is None:
            continue
        known = part.to_dict()
        changes = {key: value for key, value in DEPTH.items() if isinstance(known.get(key), int)}
        depths = known.get("depths")
        if isinstance(depths, list | tuple) and all(isinstance(depth, int) for depth in depths):
            changes["depths"] = [min(2, depth) for depth in depths]
        if isinstance(known.get("image_size"), int):
            changes["image_size"] = 64 if 64 % int(known.get("patch_size") or 16) == 0 else 56
        for key, value in (changes | CHANGES.get(model_type, {})).items():
            setattr(part, key, value)
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 64
    return config, (2, 3, *((size, size) if isinstance(size, int) else size))


def _timm(name: str, arguments: dict[str, Any]) -> Made:
    known = timm.models.get_pretrained_cfg(name)
    assert known is not None
    size = arguments.get("img_size") or (known.input_size[-1] if known.fixed_input_size else 64)
    cfg = {**known.to_dict(), "input_size": [3, size, size]}
    config = transformers.TimmWrapperConfig(
        architecture=name, model_args=dict(arguments), pretrained_cfg=cfg, num_labels=CLASSES
    )
    if name in CONVOLUTIONAL:  # which know of no size
        config.model_args = {}
    return config, (2, 3, size, size)


TASKS = {"image-classification": image_architectures}

# ---------------------------------------------------------------------------------------------------- rows


class _Skip(Exception):  # noqa: N818
    """An architecture that the sweep has no small form of."""


def build(name: str, make: Callable[[], Made]) -> tuple[PreTrainedModel, Tensor]:
    """A random model with a new head whose every weight matters, and an input."""
    torch.manual_seed(0)
    config, shape = make()
    relabel(config, [f"class {i}" for i in range(CLASSES)])
    source = Checkpoint(name, display_name=name)
    with torch.device("meta"):  # of which it is known at once how large it is
        size = _size_on_meta(config)
    if size > MOST_PARAMETERS:
        raise _Skip(f"{size / 1e6:.0f} million parameters")
    model, _ = load_pretrained(AutoModelForImageClassification, config, source, random=True)
    initialise_head(model, find_head(model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # scales of zero would hide the layers before them
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), torch.randn(shape, generator=generator)


def _size_on_meta(config: PretrainedConfig) -> int:
    try:
        model = AutoModelForImageClassification.from_config(config)
    except (RuntimeError, NotImplementedError, ImportError):  # some read values while they are built
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    return classifier_logits(model, inputs)


def try_method(model: PreTrainedModel, inputs: Tensor, method: str) -> dict[str, Any]:
    """One row: a model adapted in place, a backward pass, and what is merged against what was trained."""
    stage = ImageStage.model_validate({"stage": "transfer", "learning_rate": 1e-3, "epochs": 1.0, "adapt": method})
    with torch.no_grad():
        before = logits(model, inputs)
    head = find_head(model)
    if not head:
        return {"outcome": "fails", "why": "no head is found"}
    weights, targets = _layer_weights(model, head), find_lora_targets(model, head=head)
    adapted = adapt(
        model,
        stage.adapt,
        new_head=True,
        head=head,
        targets=targets,
        display_name="base",
        revision="main",
        run=lambda model: logits(model, inputs),
    )
    set_training_mode(adapted, frozen_batch_norm=True)
    generator = torch.Generator().manual_seed(0)
    output = logits(adapted, inputs)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    missing = [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    row: dict[str, Any] = {"outcome": "works", "without_gradient": len(missing), "head": head}
    if silent := [name for name in missing if "lora_" in name or any(f"{part}." in name for part in head)]:
        row |= {"outcome": "fails", "why": f"no gradient for {silent[0]}"}
    if method == "lora":
        row |= _merge(adapted, inputs, before, generator)
        row["targets"] = len(reached := adapted.targeted_module_names)
        row["left_out"] = [name for name in targets if name not in reached]
        if len(reached) + len(row["left_out"]) != len(targets):
            row |= {"outcome": "fails", "why": "PEFT adapts other layers than were chosen"}
        row["reached"] = round(sum(weights.get(name, 0) for name in reached) / max(1, sum(weights.values())), 3)
        if row["merge_error"] is None or row["merge_error"] > MERGED_WITHIN:
            row |= {"outcome": "fails", "why": f"merging changes it by {row['merge_error']} of the adapter's effect"}
    return row


def _layer_weights(model: nn.Module, head: list[str]) -> dict[str, int]:
    kinds = (nn.Linear, nn.Conv2d, transformers.pytorch_utils.Conv1D)
    return {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, kinds) and name not in head}


@torch.no_grad()
def _merge(adapted: nn.Module, inputs: Tensor, before: Tensor, generator: torch.Generator) -> dict[str, Any]:
    adapted.eval()
    spread, effect, scale = 0.02, 0.0, float(before.abs().max())
    while effect < LEAST_EFFECT * scale and spread < 10:  # or rounding would be all that is seen
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        expected = logits(adapted, inputs)
        effect, spread = float((expected - before).abs().max()), 4 * spread
    error = float((logits(merged(adapted), inputs) - expected).abs().max()) / effect if effect else math.nan
    return {
        "effect": float(f"{effect / scale:.1e}") if scale else None,
        "merge_error": float(f"{error:.1e}") if math.isfinite(error) else None,
    }


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"takes longer than {SECONDS} s")


def rows_of(name: str, make: Callable[[], Made]) -> dict[str, dict[str, Any]]:
    """A row for each method."""
    signal.signal(signal.SIGALRM, _out_of_time)
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        started = time.perf_counter()
        signal.alarm(SECONDS)
        try:
            if method == METHODS[0]:
                model, inputs = build(name, make)
                parameters = sum(parameter.numel() for parameter in model.parameters())
            model.zero_grad()
            rows[method] = {"parameters": parameters, **try_method(model, inputs, method)}
        except _Skip as skip:
            return {"all": {"outcome": "skipped", "why": str(skip)}}
        except TltasksError as error:
            rows[method] = {"outcome": "refused", "why": str(error)}
        except Exception as error:
            rows[method] = {"outcome": "fails", "why": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        finally:
            signal.alarm(0)
        rows[method]["seconds"] = round(time.perf_counter() - started, 2)
        if "model" not in locals():
            return {"all": rows[method]}
    return rows


# ------------------------------------------------------------------------------------------------- command


def summary(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    counts: dict[str, Counter[str]] = {}
    for methods in rows.values():
        for method, row in methods.items():
            counts.setdefault(method, Counter())[row["outcome"]] += 1
    lines = [
        f"{method}: {', '.join(f'{n} {what}' for what, n in found.most_common())}" for method, found in counts.items()
    ]
    seconds = sum(row.get("seconds", 0) for methods in rows.values() for row in methods.values())
    return "\n".join([f"{len(rows)} architectures, {seconds:.0f} s", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", nargs="+", help="architectures to try, again where need be")
    parser.add_argument("--task", choices=TASKS, default="image-classification")
    parser.add_argument("--summary", action="store_true", help="show what is recorded, and try nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    whole = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    rows = whole.setdefault("tasks", {}).setdefault(arguments.task, {})
    for name, make in TASKS[arguments.task]() if not arguments.summary else ():
        wanted = any(fnmatch.fnmatch(name, p) for p in arguments.only) if arguments.only else name not in rows
        if not wanted:
            continue
        rows[name] = rows_of(name, make)
        shown = ", ".join(f"{method} {row['outcome']}" for method, row in rows[name].items())
        why = next((f": {row['why']}" for row in rows[name].values() if "why" in row), "")
        print(f"{name}: {shown}{why}"[:400], flush=True)
        whole["versions"] = {m.__name__: m.__version__ for m in (torch, transformers, timm, peft)}
        arguments.results.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    print(summary(rows))
    return int(any(row["outcome"] == "fails" for methods in rows.values() for row in methods.values()))


if __name__ == "__main__":
    sys.exit(main())
