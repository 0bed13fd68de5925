#!/usr/bin/env bash
# One would guess: PEFT refuses LoRA beside those layers of Mamba that it could not train ("Module 'out_proj' is incompatible with
# Mamba-based models"), so a layer that it takes is one that the model calls.
# peft 0.21.2 with transformers 5.24.0: `dt_proj` is taken without a word, and MambaMixer multiplies by its weight instead of
# calling it, also without kernels (modeling_mamba.py, slow_forward). `out_proj`, which is refused, is called there.
# Seen: "out_proj refused", "dt_proj taken, gradient None, changes outputs beside the layer: False, merged: True".
# So the adapter learns nothing, and one that was set by other means makes another model once it is merged.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.14.1' 'transformers==5.24.0' 'peft==0.21.2' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import peft
import torch
from transformers import MambaConfig, MambaForCausalLM

torch.manual_seed(0)
config = MambaConfig(vocab_size=30, hidden_size=16, state_size=4, num_hidden_layers=2)
try:
    peft.get_peft_model(MambaForCausalLM(config), peft.LoraConfig(target_modules=["out_proj"]))
except ValueError:
    print("out_proj refused")
ids = torch.arange(12).view(2, 6)
plain = MambaForCausalLM(config).eval()
before = plain(ids).logits
model = peft.get_peft_model(plain, peft.LoraConfig(target_modules=["dt_proj"], init_lora_weights=False)).eval()
loss = model(ids, labels=ids).loss
if loss.requires_grad:
    loss.backward()
gradient = next(p.grad for name, p in model.named_parameters() if "lora_B" in name)
with torch.no_grad():
    beside = model(ids).logits
    merged = model.merge_and_unload()(ids).logits
changed = [not torch.allclose(before, logits, atol=1e-6) for logits in (beside, merged)]
print(f"dt_proj taken, gradient {gradient}, changes outputs beside the layer: {changed[0]}, merged: {changed[1]}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: LoRA beside Mamba's dt_proj does something now, or is refused"; exit 1; }
out_proj refused
dt_proj taken, gradient None, changes outputs beside the layer: False, merged: True
SEEN
