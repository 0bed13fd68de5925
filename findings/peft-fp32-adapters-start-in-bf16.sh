#!/usr/bin/env bash
# One would guess: PEFT holds adapters in fp32 beside a model in bf16 (`autocast_adapter_dtype=True`, the default: "the adapter
# weights are cast to float32"), so that with one seed an adapter starts with the same weights whatever its base is held in.
# peft 0.21.2: they are drawn in fp32, moved to the base's bf16, and only then cast to fp32 again, which gives nothing back.
# Seen: "base float32: lora_A is float32, values that bf16 can hold: 0%", "base bfloat16: lora_A is float32, values that bf16 can
# hold: 100%", "the same start: False".
# So runs beside a base in bf16 do not begin as those beside fp32 do; a layer that says `compute_dtype`, as bitsandbytes' do, is
# left in fp32 ("the same start: True").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'peft==0.21.2' 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" \
  || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import peft
import torch
from torch import nn


class Told(nn.Linear):
    compute_dtype = torch.float32


def start(dtype, kind=nn.Linear):
    torch.manual_seed(0)
    base = nn.Sequential(kind(256, 64)).to(dtype)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["0"]))
    return model.base_model.model[0].lora_A["default"].weight.detach()


found = {dtype: start(dtype) for dtype in (torch.float32, torch.bfloat16)}
for dtype, weight in found.items():
    share = (weight.bfloat16().to(weight.dtype) == weight).double().mean()
    name = str(weight.dtype).removeprefix("torch.")
    print(f"base {str(dtype).removeprefix('torch.')}: lora_A is {name}, values that bf16 can hold: {share:.0%}")
print("the same start:", torch.equal(*found.values()))
print("with compute_dtype, the same start:", torch.equal(found[torch.float32], start(torch.bfloat16, Told)))
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: adapters beside bf16 start otherwise now"; exit 1; }
base float32: lora_A is float32, values that bf16 can hold: 0%
base bfloat16: lora_A is float32, values that bf16 can hold: 100%
the same start: False
with compute_dtype, the same start: True
SEEN
