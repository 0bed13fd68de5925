#!/usr/bin/env bash
# One would guess: a LoRA adapter merged into its model gives the answers of the adapter, or PEFT says that it cannot.
# peft 0.21.2 with transformers 5.24.0: the blocks of attention of Zamba are one, whose weights are used in every sixth layer or so.
# They are modules of their own with the same weights, so each gets an adapter of its own; merging adds all of them to the one weight,
# and every use then has the updates of all. Nothing warns, with `safe_merge=True` neither; PEFT looks for tied embeddings alone.
# Seen: "uses of one weight: 2, adapters beside it: 2, warnings: 0", "merged, it differs by more than half of what the adapters do: True".
# So look which modules share a weight before putting adapters beside them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 'peft==0.21.2' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import warnings

import peft
import torch
from transformers import ZambaConfig, ZambaForCausalLM

torch.manual_seed(0)
config = ZambaConfig(
    vocab_size=50, hidden_size=32, attention_hidden_size=64, attention_head_dim=16, num_attention_heads=4, num_key_value_heads=4,
    intermediate_size=48, num_hidden_layers=4, layers_block_type=["linear_attention", "hybrid"] * 2, mamba_d_state=4, mamba_dt_rank=4,
    n_mamba_heads=2,
)
model = ZambaForCausalLM(config).eval()
uses = [module for name, module in model.named_modules() if name.endswith("self_attn.v_proj")]
assert uses[0] is not uses[1] and uses[0].weight is uses[1].weight
ids = torch.arange(5, 17)[None]
with warnings.catch_warnings(record=True) as said, torch.no_grad():
    warnings.simplefilter("always")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    adapters = sum(name.endswith("v_proj.lora_A.default.weight") for name, _ in adapted.named_parameters())
    beside = adapted(ids, use_cache=False).logits
    with adapted.disable_adapter():
        plain = adapted(ids, use_cache=False).logits
    merged = adapted.merge_and_unload(safe_merge=True)(ids, use_cache=False).logits
told = sum(word in str(it.message) for it in said for word in ("tied", "shared", "merge"))
print(f"uses of one weight: {len(uses)}, adapters beside it: {adapters}, warnings: {told}")
share = (merged - beside).abs().max() / (beside - plain).abs().max()
print(f"merged, it differs by more than half of what the adapters do: {bool(share > 0.5)}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: PEFT merges into shared weights in another way now"; exit 1; }
uses of one weight: 2, adapters beside it: 2, warnings: 0
merged, it differs by more than half of what the adapters do: True
SEEN
