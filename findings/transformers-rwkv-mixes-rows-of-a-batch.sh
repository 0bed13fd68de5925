#!/usr/bin/env bash
# One would guess: a model that writes for two prompts of one length in a batch writes for each what it writes for it alone.
# transformers 5.24.0: from the second token on RWKV does not. Of a single token, `RwkvSelfAttention` and `RwkvFeedForward` take the
# last states as [rows, width] where the hidden states are [rows, 1, width] (modeling_rwkv.py, `shifted`), so that each row is mixed
# with the states of all rows, and no error comes. Alone, there is only one to mix with.
# Seen: "first step: same, second step: other, without a cache: same".
# So let RWKV write for one row at a time, or without its cache.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import GenerationConfig, RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)).eval()
for parameter in model.parameters():
    parameter.data += 0.1 * torch.randn_like(parameter)
prompts = torch.randint(3, 60, (2, 12))


def logits(rows, **keys):
    config = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0, **keys)
    made = model.generate(rows, generation_config=config, output_logits=True, return_dict_in_generate=True)
    return [step[0] for step in made.logits]


def told(alone, together):
    return "same" if torch.allclose(alone, together, atol=1e-4) else "other"


(first, second), (first_of_two, second_of_two) = logits(prompts[:1]), logits(prompts)
plain, plain_of_two = (logits(rows, use_cache=False)[1] for rows in (prompts[:1], prompts))
print(f"first step: {told(first, first_of_two)}, second step: {told(second, second_of_two)}, ", end="")
print(f"without a cache: {told(plain, plain_of_two)}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: RWKV in a batch is another now"; exit 1; }
first step: same, second step: other, without a cache: same
SEEN
