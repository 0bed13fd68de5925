#!/usr/bin/env bash
# One would guess: what training changes of a model is in what save_pretrained writes; and a table of positions that is made
# frozen stays so when a checkpoint is loaded into it.
# transformers 5.24.0 with torch 2.14.1: Marian makes its sines and cosines with requires_grad False, from_pretrained puts new
# parameters in their places, which are trained, and save_pretrained leaves these out, as they can be made anew.
# Seen: "made: frozen", "loaded: trained", "one step of SGD, saved and loaded again: other logits", "without the step: the same".
# So a fine-tuned Marian is another model once it is saved, unless model.*.embed_positions.weight are frozen after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - "$folder/model" 2>/dev/null <<'PY' | tee "$folder/seen"
import sys

import torch
from transformers import MarianConfig, MarianMTModel

place, words = sys.argv[1], torch.arange(2, 12)[None]
sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
torch.manual_seed(0)
model = MarianMTModel(MarianConfig(vocab_size=20, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **sizes))


def state(model):
    return "trained" if model.model.encoder.embed_positions.weight.requires_grad else "frozen"


def saved(model):
    model.save_pretrained(place)
    again = MarianMTModel.from_pretrained(place).eval()
    with torch.no_grad():
        ours, theirs = (one(input_ids=words, decoder_input_ids=words).logits for one in (model.eval(), again))
    return "the same" if torch.allclose(ours, theirs, atol=1e-5) else "other logits"


print("made:", state(model))
before = saved(model)
model = MarianMTModel.from_pretrained(place)
print("loaded:", state(model))
model(input_ids=words, labels=words).loss.backward()
torch.optim.SGD(model.parameters(), lr=1.0).step()
print("one step of SGD, saved and loaded again:", saved(model))
print("without the step:", before)
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: Marian's positions are trained or saved otherwise now"; exit 1; }
made: frozen
loaded: trained
one step of SGD, saved and loaded again: other logits
without the step: the same
SEEN
