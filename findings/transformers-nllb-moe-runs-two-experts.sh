#!/usr/bin/env bash
# One would guess: a model with a mixture of experts runs those experts that its router chooses for a token.
# transformers 5.24.0 with torch 2.14.1: the router of NLLB-MoE gives NllbMoeExperts a mask of zeros and ones, which takes it for
# the numbers of experts: whatever is chosen, the first expert reads what the mask says no to, the second one what it says yes to.
# Seen: "chosen by the router: 0 1 2 3 4 5 6 7", "run: 0 1".
# So the answers of facebook/nllb-moe-54b are not those that it was trained to give, and training reaches two of 128 experts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

torch.manual_seed(0)
layer = NllbMoeSparseMLP(NllbMoeConfig(d_model=16, num_experts=8), ffn_dim=16).eval()
chosen, ran = set(), set()
layer.router.classifier.register_forward_hook(lambda _, inputs, logits: chosen.update(logits.topk(2).indices.flatten().tolist()))
for number, expert in enumerate(layer.experts.values()):
    expert.register_forward_hook(lambda *_, number=number: ran.add(number))
with torch.no_grad():
    layer(torch.randn(4, 50, 16))
print("chosen by the router:", *sorted(chosen))
print("run:", *sorted(ran))
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: NLLB-MoE runs other experts now"; exit 1; }
chosen by the router: 0 1 2 3 4 5 6 7
run: 0 1
SEEN
