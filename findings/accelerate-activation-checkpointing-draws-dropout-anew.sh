#!/usr/bin/env bash
# One would guess: activation checkpointing trades time for memory and changes no gradient. torch's keeps the random state of a layer for
# that, and so does accelerate's `fsdp_activation_checkpointing` with FSDP 1.
# accelerate 1.15.0: with FSDP 2 it wraps layers with preserve_rng_state=False (utils/fsdp_utils.py, fsdp2_apply_ac), so that a layer is
# computed again in the backward pass with other dropout masks. The loss is the same, and nothing warns.
# Seen, BERT with its usual dropout of 0.1 and one seed: "the same loss: True", "gradient off by more than 5 % of its norm: True",
# and without dropout "gradient off by more than 5 % of its norm: False".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'accelerate==1.15.0' 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_apply_ac
from transformers import BertConfig, BertModel

sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=99)
tokens = torch.arange(24).view(2, 12)


def gradient(model):
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(input_ids=tokens).last_hidden_state[..., ::2].square().sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


for dropout in (0.1, 0.0):
    config = BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).train()
    plain_loss, plain = gradient(model)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", activation_checkpointing=True
    )
    # What Accelerator.prepare calls before it shards a model.
    model = fsdp2_apply_ac(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), model)
    loss, checkpointed = gradient(model)
    off = float((plain - checkpointed).norm() / plain.norm())
    print(f"dropout {dropout}: the same loss: {loss == plain_loss}, gradient off by more than 5 % of its norm: {off > 0.05}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: accelerate keeps the random state of layers now"; exit 1; }
dropout 0.1: the same loss: True, gradient off by more than 5 % of its norm: True
dropout 0.0: the same loss: True, gradient off by more than 5 % of its norm: False
SEEN
