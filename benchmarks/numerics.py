"""Every task, adaptation and stage in a few steps each: record all numbers of a commit, and compare another with them.

    python benchmarks/numerics.py record FILE [--offline] [--only NAME…]
    python benchmarks/numerics.py compare FILE [--only NAME…]

Of each run: loss, rate and gradient norm of every step, all metrics of every evaluation, stage and baseline, and a
digest of the tensors that it saves. Intervals are left to their own tests: they follow from rows and a method.
`--offline` adds the recipes of recipes/offline, cut to a few steps; the scripts that their headers name make what
they need. `compare` carries out again what is in the file, says which number moved, and ends with 1 if any did.
`--only` takes names and shell patterns. Bits are the same with the same processor and versions, which the file names;
elsewhere record the older commit anew. Nothing is timed, so the machine may have other work.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CACHES = tempfile.TemporaryDirectory(prefix="numbers-")
os.environ |= {  # before any library reads them
    "HF_HOME": f"{CACHES.name}/hub",
    "HF_DATASETS_CACHE": f"{CACHES.name}/datasets",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "TLTASKS_CORES": "1",
    "MPLBACKEND": "agg",
}

# ---------------------------------------------------------- what is known of tltasks, besides the keys of its recipes


def carry_out(recipe: Path, overrides: list[str], output: Path) -> None:
    """Run a recipe's file into a folder."""
    from accelerate.state import AcceleratorState

    from tltasks.config.loading import load_recipe
    from tltasks.errors import Interrupted
    from tltasks.runs.story import run

    try:
        run(load_recipe(recipe, overrides), output=output)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    finally:  # accelerate keeps one state for each process
        AcceleratorState._reset_state(reset_partial_state=True)


def found_in(output: Path) -> dict[str, Any]:
    """All numbers of a results folder, but for times and memory."""
    lines, logged = output / "metrics.jsonl", dict[str, Any]()
    for line in map(json.loads, lines.read_text().splitlines() if lines.exists() else ()):
        of_split = logged.setdefault(line.pop("stage"), {}).setdefault(line.pop("split"), {})
        for key in line.keys() - {"epoch", "examples_per_second"}:
            of_split.setdefault(key, []).append(line[key])
    stages = {}
    for stage in json.loads((output / "result.json").read_text())["stages"]:
        scores = {"own": stage["metrics"], **stage["baselines"]}
        stages[stage["name"]] = {
            "scores": {
                arm: {split: score["values"] for split, score in by_split.items()} for arm, by_split in scores.items()
            },
            "parameters": [stage["trainable_parameters"], stage["total_parameters"]],
            "robustness": without_intervals(stage["robustness"] or {}),
            "training": {
                k: (stage["training"] or {}).get(k) for k in ("best_step", "best_value", "l2", "interpolation")
            },
            "logged": logged.get(stage["name"], {}),
        }
    return {"stages": stages, "weights": digest_of_weights(output / "model")}


def without_intervals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_intervals(item) for key, item in value.items() if not key.endswith("ci95")}
    return [without_intervals(item) for item in value] if isinstance(value, list) else value


def make(name: str, folder: Path) -> None:
    """A tiny checkpoint or data set of the tests."""
    from tests.tiny import images, speech, texts

    makers: dict[str, Callable[[], object]] = {
        "pictures": lambda: images.save_data(folder),
        "larger-pictures": lambda: images.save_data(folder, rows=18, size=48, seed=1),
        "clips": lambda: speech.save_data(folder),
        "documents": lambda: texts.save_data(folder, rows=24),
        "vit-3": lambda: images.save_model(folder, "vit", labels=list(images.COLOURS)),
        "mae": lambda: images.save_mae(folder),
        "mae-architecture": lambda: images.save_mae(folder, weights=False),
        "clip": lambda: images.save_contrastive(folder, "clip"),
        "siglip": lambda: images.save_contrastive(folder, "siglip"),
        "whisper": lambda: speech.save_whisper(folder, seconds=4),
        "whisper.en": lambda: speech.save_whisper(folder, seconds=4, multilingual=False),
        "moonshine": lambda: speech.save_moonshine(folder),
        "speech_to_text": lambda: speech.save_speech_to_text(folder),
        "wav2vec2-said": lambda: speech.save_ctc(folder, vocabulary="abcdeghilnrtuw"),
        "wav2vec2-objective": lambda: speech.save_objective(folder),
        **{f"{n}-objective": lambda n=n: texts.save_objective(folder, n) for n in texts.OBJECTIVES},  # type: ignore[misc]
        **{n: lambda n=n: images.save_model(folder, n) for n in images.CONFIGS},  # type: ignore[misc]
        **{n: lambda n=n: speech.save_ctc(folder, n) for n in speech.CTC_CONFIGS},  # type: ignore[misc]
        **{n: lambda n=n: texts.save_model(folder, n) for n in texts.CONFIGS},  # type: ignore[misc]
    }
    makers[name]()


# ------------------------------------------------------------------------------------------- recipes of tiny models

DATA: dict[str, dict[str, Any]] = yaml.safe_load("""
pictures:
  name: parquet
  files: {train: pictures/train.parquet, validation: pictures/validation.parquet, test: pictures/test.parquet}
  splits: {validation: validation}
clips:
  name: csv
  files: {train: clips/train.csv, validation: clips/validation.csv, test: clips/test.csv}
  splits: {validation: validation}
documents:
  name: json
  files: {train: documents/train.jsonl, validation: documents/validation.jsonl, test: documents/test.jsonl}
  splits: {validation: validation}
""")
"""Where rows are; a name below stands for these keys."""

KINDS: dict[str, dict[str, Any]] = yaml.safe_load("""
image:
  task: image-classification
  data: {like: pictures}
speech:
  task: automatic-speech-recognition
  data: {like: clips}
text:
  task: summarization
  data: {like: documents, max_document_tokens: 80, max_summary_tokens: 24}
""")
"""What recipes have whose names begin so."""

LOOP: dict[str, Any] = {"steps": 5, "batch_size": 8, "learning_rate": 0.005, "evaluate_every": 3}
"""Keys of every stage that trains, where it has no others."""

CASES: dict[str, dict[str, Any]] = yaml.safe_load("""
# ------------------------------------------------------------------------------------------------ images
image-full-augment:
  model: {name: vit}
  data: {splits: {validation: 0.25}}
  stages: [{stage: transfer, optimizer: sgd, momentum: 0.8, label_smoothing: 0.1,
            augment: {flip: true, crop: 0.6, randaugment: {ops: 2, magnitude: 7}, erase: 0.5}}]
image-full-mixup-ema:
  model: {name: deit}
  stages: [{stage: transfer, ema: 0.8, schedule: linear, augment: {mixup: 0.4, cutmix: 0.5}}]
image-full-pretrain:
  model: {name: vit, config: {num_hidden_layers: 3}}
  stages: [{stage: pretrain, steps: null, epochs: 1.0, layer_decay: 0.75, weight_decay: 0.05, warmup: 0.2, keep: last}]
image-full-finetune-l2-sp:
  model: {name: vit-3}
  stages: [{stage: finetune, l2_sp: {alpha: 0.2, beta: 0.05}}]
image-full-transfer-l2-sp-unfreeze:
  model: {name: vit}
  stages: [{stage: transfer, l2_sp: {}, unfreeze_epochs: 0.34, batch_size: 16, micro_batch: 4}]
image-full-freeze:
  model: {name: beit}
  stages: [{stage: transfer, freeze: ["beit.embeddings*"], schedule: constant, max_grad_norm: null}]
image-full-batch-norm:
  model: {name: resnet}
  stages: [{stage: transfer, batch_norm: batch, micro_batch: 4}]
image-full-checkpointing:
  model: {name: dinov2}
  stages: [{stage: transfer, gradient_checkpointing: true, evaluate_rows: 7}]
image-full-timm:
  model: {name: vgg16}
  stages: [{stage: transfer, schedule: exponential, early_stopping: 1, evaluate_every: 1}]
image-head:
  model: {name: convnext}
  data: {shots: 6}
  stages: [{stage: transfer, adapt: head, early_stopping: 2, evaluate_every: 1}]
image-head-finetune:
  model: {name: vit-3}
  data: {extra_test: {larger: {files: larger-pictures/test.parquet, split: train}}}
  stages: [{stage: finetune, adapt: head}]
image-lora-convolutions:
  model: {name: timm-efficientnet}
  stages: [{stage: transfer, adapt: {lora: {rank: 4, dropout: 0.1}}, label_smoothing: 0.1,
            augment: {flip: true, crop: 0.6}}]
image-lora-hub:
  model: {name: hub/vit}
  stages: [{stage: transfer, adapt: {lora: {rank: 2, alpha: 8}}, augment: {mixup: 0.4}, ema: 0.9}]
image-lora-pissa:
  model: {name: vit}
  stages: [{stage: transfer, adapt: {lora: {rank: 2, init: pissa}}, unfreeze_epochs: 0.34}]
image-lora-olora:
  model: {name: timm-vit, image_size: 48}
  stages: [{stage: transfer, adapt: {lora: {rank: 2, init: olora, rslora: true}}}]
image-dora:
  model: {name: swin}
  stages: [{stage: transfer, adapt: {dora: {rank: 2}}, augment: {cutmix: 1.0}}]
image-adalora:
  model: {name: vit}
  stages: [{stage: transfer, adapt: {adalora: {target_r: 2, init_r: 4}}, steps: 8}]
image-ia3:
  model: {name: vit-3}
  stages: [{stage: finetune, adapt: ia3, learning_rate: 0.05}]
image-bitfit:
  model: {name: vit}
  data: {shots: 4}
  stages: [{stage: transfer, adapt: bitfit, optimizer: sgd}]
image-loha:
  model: {name: vit}
  stages: [{stage: transfer, adapt: {peft: {type: LOHA, r: 4}}, augment: {erase: 0.5}}]
image-oft:
  model: {name: vit-3}
  stages: [{stage: finetune, adapt: {peft: {type: OFT, oft_block_size: 8}}}]
image-probe-interpolate:
  model: {name: vit}
  data: {extra_test: {larger: {files: larger-pictures/test.parquet, split: train}}}
  stages: [{stage: probe, l2: [0.01, 1.0]}, {stage: finetune, start: previous, interpolate: true}]
image-interpolate-lora:
  model: {name: vit-3}
  stages: [{stage: finetune, adapt: {lora: {rank: 2}}, interpolate: {alphas: [0.25, 0.75]}}]
image-zero-shot-chain:
  model: {name: vit-3}
  stages: [{stage: zero_shot}, {stage: finetune, start: previous}, {stage: transfer, start: previous, adapt: lora}]
image-pretrain-chain:
  model: {name: vit}
  stages: [{stage: pretrain, name: first}, {stage: transfer, start: previous, adapt: {dora: {rank: 2}}},
           {stage: pretrain, start: previous, ema: 0.7}, {stage: probe, start: previous}]
image-corruptions:
  model: {name: vit}
  data: {corruptions: {severities: [1, 4], rows: 9}}
  stages: [{stage: transfer}]
image-clip:
  model: {name: clip, prompts: ["a photo of the {}.", "a {} picture"]}
  stages: [{stage: zero_shot}, {stage: finetune, adapt: {lora: {rank: 2}}, label_smoothing: 0.1}]
image-clip-interpolate:
  model: {name: clip}
  data: {shots: 5}
  stages: [{stage: finetune, interpolate: true, l2_sp: {}}]
image-clip-transfer:
  model: {name: clip}
  stages: [{stage: transfer, adapt: bitfit}, {stage: probe}]
image-siglip:
  model: {name: siglip}
  stages: [{stage: zero_shot}, {stage: finetune, adapt: lora, augment: {mixup: 0.4}}]
image-language-frozen:
  model: {name: bert-objective, as: frozen-transformer, image_size: 32, patch_size: 8}
  stages: [{stage: pretrain}, {stage: transfer, augment: {flip: true}}]
image-language-full:
  model: {name: gpt2, as: transformer, image_size: 32, patch_size: 8}
  stages: [{stage: pretrain, layer_decay: 0.8}, {stage: transfer, l2_sp: {}}]

# --------------------------------------------------------------------------------- images without labels
image-mae-chain:
  model: {name: mae-architecture}
  stages: [{stage: pretrain, name: mae, task: masked-image-modeling, data: {like: pictures, columns: {label: label}},
            augment: {flip: true, crop: 0.5}},
           {stage: transfer, start: previous, label_smoothing: 0.1}, {stage: probe, start: previous}]
image-mae-finetune:
  task: masked-image-modeling
  model: {name: mae}
  stages: [{stage: finetune, mask: {ratio: 0.5, normalised_pixels: false}, ema: 0.8}]
image-mae-transfer:
  task: masked-image-modeling
  model: {name: mae}
  stages: [{stage: transfer, layer_decay: 0.75, micro_batch: 3}]
image-mae-zero-shot:
  task: masked-image-modeling
  model: {name: mae}
  stages: [{stage: zero_shot}]
image-mae-l2-sp:
  task: masked-image-modeling
  model: {name: mae}
  stages: [{stage: finetune, l2_sp: {}, unfreeze_epochs: 0.34}]
image-simmim:
  task: masked-image-modeling
  model: {name: vit}
  stages: [{stage: pretrain, mask: {ratio: 0.4, square_pixels: 16}, augment: {randaugment: {}}}]
image-simmim-lora:
  task: masked-image-modeling
  model: {name: swin}
  stages: [{stage: transfer, adapt: {lora: {rank: 2}}}]
image-simmim-adalora:
  task: masked-image-modeling
  model: {name: vit}
  stages: [{stage: transfer, adapt: {adalora: {target_r: 2, init_r: 4}}, steps: 8}]
image-contrastive-chain:
  model: {name: vit}
  stages: [{stage: transfer, name: views, task: contrastive-image, loss_group: 4,
            data: {like: pictures, columns: {label: label}}},
           {stage: transfer, start: previous, adapt: {dora: {rank: 2}}}, {stage: probe, start: previous, l2: 0.1}]
image-contrastive-pretrain:
  task: contrastive-image
  model: {name: resnet}
  stages: [{stage: pretrain, temperature: 0.5, projection: 16, views: {colour: 0.5, blur: 0.0, crop: 0.3}}]
image-contrastive-lora:
  task: contrastive-image
  model: {name: timm-efficientnet}
  stages: [{stage: transfer, adapt: {lora: {rank: 2}}}]
image-contrastive-bitfit:
  task: contrastive-image
  model: {name: vit}
  stages: [{stage: transfer, adapt: bitfit, ema: 0.8, loss_group: 8, batch_size: 16}]
image-contrastive-finetune:
  task: contrastive-image
  model: {name: vit}
  stages: [{stage: pretrain, projection: 8}, {stage: finetune, start: previous, l2_sp: {}}]

# ------------------------------------------------------------------------------------------------ speech
speech-full-augment:
  model: {name: whisper, language: es}
  stages: [{stage: finetune, batch_size: 4, augment: {spec_augment: {}, speed: 0.1, gain_db: 3, noise_db: 20}}]
speech-full-english-l2-sp:
  model: {name: whisper.en, beams: 3}
  stages: [{stage: finetune, batch_size: 4, l2_sp: {}, ema: 0.8}]
speech-full-unfreeze:
  model: {name: whisper, language: hi, speech_task: translate}
  data: {normaliser: none}
  stages: [{stage: finetune, batch_size: 4, unfreeze_epochs: 0.4, micro_batch: 2}]
speech-full-freeze:
  model: {name: moonshine}
  stages: [{stage: finetune, batch_size: 4, freeze: ["model.encoder*"], layer_decay: 0.8}]
speech-pretrain-chain:
  model: {name: whisper, language: es}
  stages: [{stage: pretrain, batch_size: 4},
           {stage: finetune, start: previous, batch_size: 4, adapt: {lora: {rank: 2}}},
           {stage: zero_shot, start: previous}]
speech-lora-window:
  model: {name: whisper, language: es, audio_window: fit}
  data: {shots: 9}
  stages: [{stage: finetune, batch_size: 4, adapt: {lora: {rank: 4, dropout: 0.1}}}]
speech-lora-hub:
  model: {name: hub/whisper, language: es}
  stages: [{stage: finetune, batch_size: 4, adapt: {lora: {rank: 2, init: gaussian}}}]
speech-dora-interpolate:
  model: {name: whisper, language: es}
  stages: [{stage: finetune, batch_size: 4, adapt: {dora: {rank: 2}}, interpolate: {alphas: [0.5, 0.75]}}]
speech-adalora:
  model: {name: whisper, language: es}
  stages: [{stage: finetune, batch_size: 4, steps: 8, adapt: {adalora: {target_r: 2, init_r: 4}}}]
speech-ia3:
  model: {name: speech_to_text}
  stages: [{stage: finetune, batch_size: 4, adapt: ia3, learning_rate: 0.05}]
speech-bitfit-corruptions:
  model: {name: whisper, language: es}
  data: {corruptions: {snr_db: [20, 0], rows: 3}, normaliser: unaccented}
  stages: [{stage: finetune, batch_size: 4, adapt: bitfit, optimizer: sgd}]
speech-lokr:
  model: {name: whisper.en}
  stages: [{stage: finetune, batch_size: 4, adapt: {peft: {type: LOKR, r: 4}}, gradient_checkpointing: true}]
speech-zero-shot:
  model: {name: whisper}
  data: {normaliser: basic}
  stages: [{stage: zero_shot}]
speech-ctc-full:
  model: {name: wavlm}
  stages: [{stage: transfer, batch_size: 4, augment: {speed: 0.1, noise_db: 10}, ema: 0.8}]
speech-ctc-finetune:
  model: {name: wav2vec2-said}
  stages: [{stage: zero_shot}, {stage: finetune, batch_size: 4, l2_sp: {}, interpolate: true}]
speech-ctc-layer-norm-unfreeze:
  model: {name: wav2vec2-layer-norm}
  stages: [{stage: transfer, batch_size: 4, unfreeze_epochs: 0.4, micro_batch: 3}]
speech-ctc-head:
  model: {name: hubert}
  data: {shots: 9}
  stages: [{stage: transfer, batch_size: 4, adapt: head, augment: {spec_augment: {}}}]
speech-ctc-lora-chain:
  model: {name: wav2vec2-layer-norm}
  stages: [{stage: transfer, batch_size: 4, adapt: {lora: {rank: 2}}},
           {stage: finetune, start: previous, batch_size: 4}]
speech-ctc-dora:
  model: {name: wav2vec2-bert}
  stages: [{stage: transfer, batch_size: 4, adapt: {dora: {rank: 2}}}]
speech-ctc-adalora:
  model: {name: wav2vec2}
  stages: [{stage: transfer, batch_size: 4, steps: 8, adapt: {adalora: {target_r: 2, init_r: 4}}}]
speech-ctc-ia3:
  model: {name: wav2vec2}
  stages: [{stage: transfer, batch_size: 4, adapt: ia3}]
speech-ctc-bitfit:
  model: {name: wav2vec2-said}
  data: {corruptions: {kinds: [pink_noise], snr_db: [5], rows: 3}}
  stages: [{stage: finetune, batch_size: 4, adapt: bitfit}]
speech-ctc-loha:
  model: {name: wav2vec2-layer-norm}
  stages: [{stage: transfer, batch_size: 4, adapt: {peft: {type: LOHA, r: 2}}, optimizer: sgd}]
speech-ctc-pretrain:
  model: {name: hubert}
  stages: [{stage: pretrain, batch_size: 4, layer_decay: 0.8, schedule: linear}]
speech-language-frozen:
  model: {name: bert-objective, as: frozen-transformer, frame_ms: 60}
  stages: [{stage: pretrain, batch_size: 4, name: random},
           {stage: transfer, batch_size: 4, augment: {speed: 0.1, gain_db: 6}}]
speech-language-full:
  model: {name: gpt2, as: transformer}
  stages: [{stage: pretrain, batch_size: 4}, {stage: finetune, start: previous, batch_size: 4}]

# --------------------------------------------------------------------------------- speech without labels
speech-contrast-chain:
  model: {name: wav2vec2-objective}
  stages: [{stage: pretrain, name: objective, task: speech-pretraining, data: {like: clips, columns: {label: text}},
            batch_size: 4, loss_group: 2, mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5},
           {stage: transfer, start: previous, batch_size: 4, adapt: {lora: {rank: 2}}}]
speech-contrast-finetune:
  task: speech-pretraining
  model: {name: wav2vec2-objective}
  stages: [{stage: finetune, batch_size: 4, mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5,
            crop_seconds: 0.8, gumbel: {start: 1.0, decay: 0.9}, diversity_weight: 0.3, ema: 0.8}]
speech-contrast-lora:
  task: speech-pretraining
  model: {name: wav2vec2-objective}
  stages: [{stage: finetune, batch_size: 4, mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5,
            adapt: {lora: {rank: 2}}}]
speech-contrast-transfer:
  task: speech-pretraining
  model: {name: wav2vec2-layer-norm}
  stages: [{stage: transfer, batch_size: 4, mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5,
            layer_decay: 0.8}]
speech-contrast-zero-shot:
  task: speech-pretraining
  model: {name: wav2vec2-objective}
  stages: [{stage: zero_shot, name: untouched}]

# ------------------------------------------------------------------------------------------------- texts
text-full-label-smoothing:
  model: {name: t5}
  stages: [{stage: finetune, adapt: full, label_smoothing: 0.1, ema: 0.8}]
text-full-l2-sp-beams:
  model: {name: bart, generation: {num_beams: 3, length_penalty: 0.8, no_repeat_ngram_size: 2}}
  stages: [{stage: finetune, l2_sp: {}, evaluate_rows: 5}]
text-full-unfreeze:
  model: {name: mt5}
  data: {shots: 20}
  stages: [{stage: finetune, unfreeze_epochs: 0.7, micro_batch: 3}]
text-full-interpolate:
  model: {name: pegasus}
  stages: [{stage: finetune, interpolate: {alphas: [0.0, 0.5, 1.0]}, schedule: constant}]
text-full-freeze:
  model: {name: mbart}
  stages: [{stage: finetune, freeze: ["model.encoder*"], optimizer: sgd, layer_decay: 0.8}]
text-full-long-documents:
  model: {name: t5}
  data: {max_document_tokens: 24, long_documents: split}
  stages: [{stage: finetune, batch_size: 4}]
text-pretrain-chain:
  model: {name: t5}
  stages: [{stage: pretrain}, {stage: finetune, start: previous, adapt: {lora: {rank: 2}}},
           {stage: zero_shot, start: previous}]
text-lora:
  model: {name: bart}
  stages: [{stage: finetune, adapt: {lora: {rank: 4, dropout: 0.2}}, label_smoothing: 0.1}]
text-lora-hub:
  model: {name: hub/t5, prompt: "summarize: {document}"}
  stages: [{stage: finetune, adapt: {lora: {rank: 4}}}]
text-dora:
  model: {name: longt5}
  stages: [{stage: finetune, adapt: {dora: {rank: 2}}}]
text-adalora:
  model: {name: t5}
  stages: [{stage: finetune, steps: 8, adapt: {adalora: {target_r: 2, init_r: 4}}}]
text-ia3-corruptions:
  model: {name: t5}
  data: {corruptions: {rates: [0.1], kinds: [typos, drop], rows: 4}}
  stages: [{stage: finetune, adapt: ia3, learning_rate: 0.05}]
text-bitfit:
  model: {name: bart}
  stages: [{stage: finetune, adapt: bitfit, gradient_checkpointing: true}]
text-prompt-t5:
  model: {name: hub/t5}
  stages: [{stage: finetune, adapt: {prompt: {tokens: 4}}, learning_rate: 0.5}]
text-prompt-bart:
  model: {name: hub/bart}
  data: {shots: 12}
  stages: [{stage: finetune, adapt: {prompt: {tokens: 3}}, learning_rate: 0.5, label_smoothing: 0.1}]
text-loha:
  model: {name: t5}
  stages: [{stage: finetune, adapt: {peft: {type: LOHA, r: 2}}, ema: 0.8}]
text-zero-shot:
  model: {name: led}
  stages: [{stage: zero_shot}]
text-decoder-full:
  model: {name: gpt2}
  stages: [{stage: finetune, packing: true, label_smoothing: 0.1}]
text-decoder-unpacked:
  model: {name: gpt2}
  stages: [{stage: finetune, packing: false, l2_sp: {}, unfreeze_epochs: 0.7}]
text-decoder-pretrain-chain:
  model: {name: llama}
  stages: [{stage: zero_shot}, {stage: pretrain}, {stage: finetune, start: previous, ema: 0.8}]
text-decoder-lora-interpolate:
  model: {name: qwen2}
  stages: [{stage: finetune, adapt: {lora: {rank: 2, dropout: 0.2}}, interpolate: {alphas: [0.5]}, packing: false}]
text-decoder-lora-pissa:
  model: {name: gpt2}
  stages: [{stage: finetune, adapt: {lora: {rank: 2, init: pissa}}}]
text-decoder-dora:
  model: {name: llama}
  data: {corruptions: {rates: [0.05], rows: 4}}
  stages: [{stage: finetune, adapt: {dora: {rank: 2}}}]
text-decoder-adalora:
  model: {name: qwen3}
  stages: [{stage: finetune, steps: 8, adapt: {adalora: {target_r: 2, init_r: 4}}}]
text-decoder-ia3:
  model: {name: gpt2, generation: {num_beams: 2}}
  stages: [{stage: finetune, adapt: ia3, micro_batch: 3}]
text-decoder-bitfit:
  model: {name: gpt2}
  data: {shots: 12}
  stages: [{stage: finetune, adapt: bitfit}]
text-decoder-lokr:
  model: {name: llama}
  stages: [{stage: finetune, adapt: {peft: {type: LOKR, r: 4}}, optimizer: sgd}]

# ---------------------------------------------------------------------------------- texts without labels
text-denoising-chain:
  model: {name: t5-objective}
  stages: [{stage: pretrain, task: text-denoising,
            data: {like: documents, columns: {text: document, label: summary}, max_tokens: 64}},
           {stage: finetune, start: previous, adapt: {lora: {rank: 2}}}]
text-denoising-bart:
  task: text-denoising
  model: {name: bart-objective}
  data: {columns: {text: document}, max_tokens: 32}
  stages: [{stage: finetune, mask_ratio: 0.4, span_tokens: 2.0, ema: 0.8}]
text-denoising-lora:
  task: text-denoising
  model: {name: t5-objective}
  data: {columns: {text: document}, max_tokens: 64}
  stages: [{stage: zero_shot}, {stage: finetune, adapt: {lora: {rank: 2}}}]
text-denoising-l2-sp:
  task: text-denoising
  model: {name: t5-objective}
  data: {columns: {text: document}, max_tokens: 64}
  stages: [{stage: finetune, l2_sp: {}, unfreeze_epochs: 0.7}]
text-masked:
  task: masked-language-modeling
  model: {name: bert-objective}
  data: {columns: {text: document, label: summary}, max_tokens: 64}
  stages: [{stage: zero_shot}, {stage: pretrain, mask_ratio: 0.3}, {stage: finetune, start: previous, layer_decay: 0.8}]
text-masked-dora:
  task: masked-language-modeling
  model: {name: bert-objective}
  data: {columns: {text: document}, max_tokens: 32}
  stages: [{stage: finetune, adapt: {dora: {rank: 2}}, micro_batch: 3}]
text-masked-transfer:
  task: masked-language-modeling
  model: {name: bert-objective}
  data: {columns: {text: document}, max_tokens: 32}
  stages: [{stage: transfer, adapt: bitfit}]
text-causal-chain:
  model: {name: gpt2-objective}
  stages: [{stage: finetune, name: objective, task: causal-language-modeling, packing: true,
            data: {like: documents, columns: {text: document, label: summary}, max_tokens: 64}},
           {stage: finetune, start: previous, adapt: full}]
text-causal-unpacked:
  task: causal-language-modeling
  model: {name: llama-objective}
  data: {columns: {text: document}, max_tokens: 32}
  stages: [{stage: pretrain, packing: false, ema: 0.8}]
text-causal-lora:
  task: causal-language-modeling
  model: {name: llama-objective}
  data: {columns: {text: document}, max_tokens: 64, shots: 16}
  stages: [{stage: zero_shot}, {stage: finetune, adapt: {lora: {rank: 2, dropout: 0.1}}}]
text-causal-lokr:
  task: causal-language-modeling
  model: {name: llama-objective}
  data: {columns: {text: document}, max_tokens: 64}
  stages: [{stage: finetune, adapt: {peft: {type: LOKR, r: 2}}}]
""")

ADAPTATIONS: dict[str, Any] = yaml.safe_load("""
full: full
head: head
lora: {lora: {rank: 2, dropout: 0.1}}
dora: {dora: {rank: 2}}
adalora: {adalora: {target_r: 2, init_r: 4}}
ia3: ia3
bitfit: bitfit
loha: {peft: {type: LOHA, r: 2}}
lokr: {peft: {type: LOKR, r: 2}}
oft: {peft: {type: OFT, oft_block_size: 8}}
""")
"""Every one of these, with PEFT's by name, is carried out for each of the following, where both go together."""

EACH: dict[str, dict[str, Any]] = yaml.safe_load("""
image-vit: {model: {name: vit}, stages: [{stage: transfer}]}
image-convolutions: {model: {name: resnet}, stages: [{stage: transfer}]}
image-clip-texts: {model: {name: clip}, stages: [{stage: finetune}]}
image-masked: {task: masked-image-modeling, model: {name: mae}, stages: [{stage: finetune}]}
image-sim-masked: {task: masked-image-modeling, model: {name: vit}, stages: [{stage: transfer}]}
image-views: {task: contrastive-image, model: {name: vit}, stages: [{stage: transfer}]}
speech-whisper: {model: {name: whisper, language: es}, stages: [{stage: finetune, batch_size: 4}]}
speech-letters: {model: {name: wav2vec2}, stages: [{stage: transfer, batch_size: 4}]}
speech-codes:
  task: speech-pretraining
  model: {name: wav2vec2-objective}
  stages: [{stage: finetune, batch_size: 4, mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5}]
text-t5: {model: {name: t5}, stages: [{stage: finetune}]}
text-bart: {model: {name: bart}, stages: [{stage: finetune}]}
text-gpt2: {model: {name: gpt2}, stages: [{stage: finetune}]}
text-denoise:
  {task: text-denoising, model: {name: t5-objective}, data: {columns: {text: document}}, stages: [{stage: finetune}]}
text-mask:
  {task: masked-language-modeling, model: {name: bert-objective}, data: {columns: {text: document}, max_tokens: 64},
   stages: [{stage: finetune}]}
text-next:
  {task: causal-language-modeling, model: {name: gpt2-objective}, data: {columns: {text: document}, max_tokens: 64},
   stages: [{stage: finetune}]}
""")
UNFIT = {
    *(f"{name}+head" for name in ("image-clip-texts", "speech-whisper", "text-t5", "text-bart", "text-gpt2")),
    *(f"{name}+head" for name in ("text-denoise", "text-next")),
    *(f"{name}+bitfit" for name in ("text-t5", "text-denoise")),  # T5 has no biases
    *(f"{name}+{by}" for name in ("text-gpt2", "text-next") for by in ("loha", "lokr", "oft")),  # PEFT has no Conv1D
    *(f"{name}+{by}" for name in ("image-sim-masked", "image-views") for by in ("ia3", "loha", "lokr", "oft")),
    "image-convolutions+oft",
}
"""What is refused: for want of a head, or since PEFT cannot adapt or merge it."""

for _name, _case in EACH.items():
    for _method, _adapt in ADAPTATIONS.items():
        if f"{_name}+{_method}" not in UNFIT:
            CASES[f"{_name}+{_method}"] = {**_case, "stages": [{**_case["stages"][0], "adapt": _adapt}]}

# ----------------------------------------------------------------------------- recipes/offline, cut to a few steps

FEW = "data.splits={{train: 'train[:{}]', validation: 'validation[:{}]', test: 'test[:{}]'}}"
OFFLINE: dict[str, list[str]] = {
    "emoji_lora": [],
    "voice_prompts_es": [FEW.format(32, 8, 12), "stages.0.batch_size=8"],
    "package_synopsis": [FEW.format(100, 8, 16)],
    "pretrain_finetune_transfer": [],
    "wise_ft": [],
    "paper_titles": [FEW.format(64, 8, 16), "stages.0.batch_size=8"],
    "language_to_vision": [],
    "voice_prompts": [FEW.format(64, 8, 16), "stages.0.batch_size=8"],
    "language_to_speech": ["data.splits={train: 'train[:64]', validation: null, test: 'test[:40]'}"],
}
"""What is said of each besides `steps`, the most telling first."""
OFFLINE_STEPS = 4

# ------------------------------------------------------------------------------------------------------------- runs


def run_tiny(name: str, zoo: Path, output: Path) -> dict[str, Any]:
    case, kind = CASES[name], KINDS[name.partition("-")[0]]
    task = case.get("task", kind["task"])
    data = {**(kind["data"] if task == kind["task"] else {"like": kind["data"]["like"]}), **case.get("data", {})}
    stages = [whole_stage(stage, zoo) for stage in case["stages"]]
    model = {**case["model"], "name": checkpoint(case["model"]["name"], zoo)}
    recipe = {"task": task, "model": model, "data": whole_data(data, zoo), "stages": stages}
    path = zoo / f"{name}.yaml"
    path.write_text(json.dumps({**recipe, "precision": "fp32", "seed": 3, "output": "unused"}))
    carry_out(path, [], output)
    return found_in(output)


def run_offline(name: str, output: Path) -> dict[str, Any]:
    path = ROOT / "recipes" / "offline" / f"{name}.yaml"
    overrides = ["precision=fp32", "seed=0", *OFFLINE[name]]
    for i, stage in enumerate(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]):
        if stage["stage"] not in {"probe", "zero_shot"}:
            overrides += [f"stages.{i}.epochs=null", f"stages.{i}.steps={OFFLINE_STEPS}"]
    carry_out(path, overrides, output)
    return found_in(output)


def whole_stage(stage: dict[str, Any], zoo: Path) -> dict[str, Any]:
    loop = {} if stage["stage"] in {"probe", "zero_shot"} else LOOP
    own = {"data": whole_data(stage["data"], zoo)} if "data" in stage else {}
    return {**loop, **stage, **own}


def whole_data(data: dict[str, Any], zoo: Path) -> dict[str, Any]:
    kept = {key: value for key, value in data.items() if key != "like"}
    there(data["like"], zoo)
    if "extra_test" in data:
        there("larger-pictures", zoo)
    return {**DATA[data["like"]], **kept}


def checkpoint(name: str, zoo: Path) -> str:
    """What a recipe calls a checkpoint: a folder beside it, or, of the Hub, one in the cache."""
    if not name.startswith("hub/"):
        return f"./{there(name, zoo).name}"
    repo = Path(os.environ["HF_HOME"]) / "hub" / name.replace("hub/", "models--tiny--")
    commit = "0" * 39 + "1"
    if not repo.exists():
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        make(name.removeprefix("hub/"), repo / "snapshots" / commit)
    return name.replace("hub/", "tiny/")


def there(name: str, zoo: Path) -> Path:
    if not (zoo / name).exists():
        make(name, zoo / name)
    return zoo / name


def digest_of_weights(model: Path) -> str:
    """sha256 of all tensors in the order of their names: name, type, shape and bytes."""
    from safetensors import safe_open

    digest, tensors = hashlib.sha256(), {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return f"{digest.hexdigest()} of {len(tensors)}"


def outcomes(names: list[str]) -> Iterator[tuple[str, dict[str, Any] | None, float]]:
    """Each case with its numbers, or None where it failed, and its seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        zoo = Path(scratch) / "zoo"
        zoo.mkdir()
        for name in names:
            started, output = time.perf_counter(), Path(scratch) / "runs" / name.replace("/", "-")
            output.parent.mkdir(exist_ok=True)
            said = Path(scratch) / "said"
            found = None
            try:
                with said.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
                    offline = name.startswith("offline/")
                    found = run_offline(name[8:], output) if offline else run_tiny(name, zoo, output)
            except (Exception, SystemExit):
                print(f"{name}: failed\n{traceback.format_exc(limit=-3)}{said.read_text()[-1500:]}", flush=True)
            yield name, json.loads(json.dumps(found)), time.perf_counter() - started
            subprocess.run(["rm", "-rf", str(output)], check=True)


# ------------------------------------------------------------------------------------------------------------- files


def conditions() -> dict[str, Any]:
    """What the bits depend on besides the code."""
    from importlib.metadata import version

    import torch

    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    names = ("torch", "torchvision", "transformers", "peft", "accelerate", "datasets", "timm", "numpy", "tokenizers")
    return {
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


def inputs() -> dict[str, str]:
    """Digests of the files that the offline recipes fetched or built."""
    found = [*ROOT.glob("weights/*/model.safetensors"), *ROOT.glob("data/*/*.jsonl"), *ROOT.glob("data/*/*.csv")]
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


def commit() -> str:
    """The newest that changes more than benchmarks."""
    command = ["git", "log", "-1", "--format=%H", "--", ".", ":!benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def chosen(names: list[str], only: list[str]) -> list[str]:
    if not only:
        return names
    unknown = [pattern for pattern in only if not fnmatch.filter(names, pattern)]
    if unknown:
        sys.exit(f"error: no case is called {', '.join(unknown)}; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in only)]


def record(file: Path, *, offline: bool, only: list[str]) -> int:
    """Carry out and write; cases that the file has besides stay as they are."""
    names = chosen([*CASES, *(f"offline/{name}" for name in OFFLINE if offline)], only)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"cases": {}}
    failed = []
    for name, found, seconds in outcomes(names):
        print(f"{name:40} {'failed' if found is None else 'recorded'} {seconds:6.1f} s", flush=True)
        if found is None:
            failed.append(name)
            continue
        cases = {**kept["cases"], name: found}
        kept = {**conditions(), "commit": commit(), "inputs": kept.get("inputs", {}), "cases": cases}
        if offline:
            kept["inputs"] = inputs()
        write(file, kept)
    print(f"{len(names) - len(failed)} recorded, {len(failed)} failed {' '.join(failed)}")
    return int(bool(failed))


def compare(file: Path, *, only: list[str]) -> int:
    """Carry out again what the file has, and say what moved."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    known = [*CASES, *(f"offline/{name}" for name in OFFLINE)]
    names = chosen([name for name in known if name in kept["cases"]], only)
    moved = []
    for name, found, seconds in outcomes(names):
        differences = ["failed"] if found is None else differing(kept["cases"][name], found)
        print(f"{name:40} {f'{len(differences)} moved' if differences else 'same'} {seconds:6.1f} s", flush=True)
        for line in differences:
            print(f"    {line}", flush=True)
        if differences:
            moved.append(name)
    for name in kept["cases"].keys() - set(known):
        print(f"{name}: is in the file alone")
    now = {**conditions(), "inputs": inputs()}
    for key, value in now.items():
        before = {k: v for k, v in kept[key].items() if k in value} if key == "inputs" else kept[key]
        for line in differing(before, {k: value[k] for k in before} if key == "inputs" else value, key):
            print(f"note: not the recorded machine or input, so bits may differ: {line}")
    print(f"{len(names) - len(moved)} of {len(names)} same as at {kept['commit']}; moved: {' '.join(moved) or 'none'}")
    return int(bool(moved))


def write(file: Path, found: dict[str, Any]) -> None:
    """One line for each case, and for all else."""
    cases = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(found["cases"].items()))
    rest = "".join(
        f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)},\n" for k, v in sorted(found.items()) if k != "cases"
    )
    file.write_text(f'{{\n{rest}"cases": {{\n{cases}\n}}}}\n', encoding="utf-8")


def differing(before: Any, after: Any, at: str = "") -> list[str]:
    """One line for each number, text or key that is not the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        pairs = [(key, before.get(key, "nothing"), after.get(key, "nothing")) for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(before, after, strict=True))]
    elif before == after:
        return []
    else:
        both = all(isinstance(value, float) for value in (before, after))
        size = f" (relative {abs(after - before) / max(abs(before), 1e-300):.1e})" if both else ""
        return [f"{at}: {before!r} -> {after!r}{size}"]
    return [line for key, a, b in pairs for line in differing(a, b, f"{at}.{key}" if at else key)]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--offline", action="store_true", help="record the recipes of recipes/offline, too")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    options = parser.parse_args()
    if options.what == "record":
        return record(options.file, offline=options.offline, only=options.only)
    return compare(options.file, only=options.only)


if __name__ == "__main__":
    sys.exit(main())
