#!/usr/bin/env bash
# One would guess: a layer of bitsandbytes that has been evaluated can be trained through again, as any module of torch.
# bitsandbytes 0.50.2 on a CPU with avx512_bf16: the first pass in evaluation mode repacks the weight of a Linear4bit for good;
# after it, a pass in training mode is by a kernel without a backward pass, and what stands before the layer gets no gradient
# through it. Nothing raises; torch warns that it "may lead to silently incorrect behavior".
# Seen: "before an evaluation: gradient", "after it: none".
# So of a 4-bit model that is evaluated once an epoch, every layer below the last is trained wrongly from the second epoch on, as
# residual branches still give some gradient.
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || { echo "needs a CPU with avx512_bf16"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'bitsandbytes==0.50.2' 'torch==2.14.1' 'numpy' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from bitsandbytes.nn import Linear4bit

torch.manual_seed(0)
layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")


def told() -> str:
    below = torch.nn.Linear(64, 64)
    layer.train()(below(torch.randn(4, 64))).sum().backward()
    return "none" if below.weight.grad is None else "gradient"


print("before an evaluation:", told())
with torch.no_grad():
    layer.eval()(torch.randn(4, 64))
print("after it:", told())
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: gradients pass a 4-bit layer after an evaluation, too"; exit 1; }
before an evaluation: gradient
after it: none
SEEN
