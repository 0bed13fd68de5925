#!/usr/bin/env bash
# One would guess: a model into which an adapter is merged can be saved and loaded, and gives the same logits.
# peft 0.21.2 with transformers 5.24.0 and torch 2.14.1: merge_and_unload compares the head with get_input_embeddings(). Of T5Gemma
# these are the encoder's, and its head shares the weight of the decoder's. So PEFT takes the head for untied and writes
# tie_word_embeddings: false, save_pretrained leaves the shared weight out all the same, and the loaded head is random.
# Seen: "tied: True, said so: False", "loaded again: other logits"; with the claim put back: "loaded again: the same".
# So set model.config.tie_word_embeddings = True after merging.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'peft==0.21.2' 'transformers==5.24.0' 'torch==2.14.1' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - "$folder/model" 2>/dev/null <<'PY' | tee "$folder/seen"
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

place, words = sys.argv[1], torch.arange(3, 11)[None]
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40}
torch.manual_seed(0)
config = T5GemmaConfig(encoder=sizes, decoder={**sizes, "cross_attention_hidden_size": 32}, vocab_size=40)
adapted = get_peft_model(T5GemmaForConditionalGeneration(config), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
model = adapted.merge_and_unload().eval()


def saved():
    model.save_pretrained(place)
    again = T5GemmaForConditionalGeneration.from_pretrained(place).eval()
    with torch.no_grad():
        ours, theirs = (one(input_ids=words, decoder_input_ids=words).logits for one in (model, again))
    return "the same" if torch.allclose(ours, theirs, atol=1e-5) else "other logits"


tied = model.lm_head.out_proj.weight is model.model.decoder.embed_tokens.weight
print(f"tied: {tied}, said so: {model.config.tie_word_embeddings}")
print("loaded again:", saved())
model.config.tie_word_embeddings = True
print("with the claim put back, loaded again:", saved())
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: PEFT merges T5Gemma otherwise now"; exit 1; }
tied: True, said so: False
loaded again: other logits
with the claim put back, loaded again: the same
SEEN
