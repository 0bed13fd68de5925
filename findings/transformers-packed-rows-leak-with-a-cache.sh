#!/usr/bin/env bash
# One would guess: texts that are packed into one row, with `position_ids` that begin anew for each and no attention mask, are kept
# apart by transformers, as its masking code says; and a mask of four dimensions that keeps them apart does so for every layer.
# transformers 5.24.0: the first holds with `use_cache=False` alone. By default a forward pass makes a cache, in training as well, and
# with one the positions are not looked at (masking_utils.py, `_preprocess_mask_arguments`). The second takes the place of a sliding
# window's mask, too: layers with a window see the whole text.
# Seen: "positions: other, positions without a cache: same, mask of four dimensions: other, the same where the window is longer: same".
# So pack with positions and `use_cache=False`, and compare with rows of their own, by texts longer than the window.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import MistralConfig, MistralForCausalLM

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
texts = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 13)]
row = torch.cat(texts)[None]
positions = torch.cat([torch.arange(len(text)) for text in texts])[None]
number = torch.tensor([[0] * 20 + [1] * 13])
mask = ((number[:, :, None] == number[:, None]) & torch.ones(33, 33, dtype=torch.bool).tril())[:, None]


def told(window, **inputs):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=60, sliding_window=window, **SIZE)).train()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    alone = torch.cat([model(text[None], use_cache=False).logits[0] for text in texts])
    return "same" if torch.allclose(alone, model(row, position_ids=positions, **inputs).logits[0], atol=1e-3) else "other"


print(f"positions: {told(8)}, positions without a cache: {told(8, use_cache=False)}, ", end="")
print(f"mask of four dimensions: {told(8, attention_mask=mask, use_cache=False)}, ", end="")
print(f"the same where the window is longer: {told(64, attention_mask=mask, use_cache=False)}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: packed rows are kept apart otherwise now"; exit 1; }
positions: other, positions without a cache: same, mask of four dimensions: other, the same where the window is longer: same
SEEN
