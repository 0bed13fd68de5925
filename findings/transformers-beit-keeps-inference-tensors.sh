#!/usr/bin/env bash
# One would guess: models of one process share nothing but code; that one was evaluated under torch.inference_mode, as is advised
# for evaluation, is nothing to another that is made and trained afterwards.
# transformers 5.24.0 with torch 2.14.0: BEiT computes the places of its patches in a static method behind an lru_cache, so the
# first pass of any model makes a tensor for all of them; in inference mode that is one that no backward pass may use.
# Seen: "evaluated under no_grad: the next model is trained", "evaluated under inference_mode: the next model is not trained".
# So evaluate under torch.no_grad() in a process that goes on to train.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import BeitConfig, BeitForImageClassification

sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
for mode, size in ((torch.no_grad, 32), (torch.inference_mode, 48)):
    config = BeitConfig(**sizes, image_size=size, use_relative_position_bias=True)
    images = torch.zeros(1, 3, size, size)
    with mode():
        BeitForImageClassification(config)(images)
    another = BeitForImageClassification(config)
    try:
        another(images).logits.sum().backward()
        outcome = "is trained"
    except RuntimeError:
        outcome = "is not trained"
    print(f"evaluated under {mode.__name__}: the next model {outcome}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: BEiT keeps its tensors otherwise now"; exit 1; }
evaluated under no_grad: the next model is trained
evaluated under inference_mode: the next model is not trained
SEEN
