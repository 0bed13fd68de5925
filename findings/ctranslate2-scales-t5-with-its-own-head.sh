#!/usr/bin/env bash
# One would guess: CTranslate2's converter gives a T5 with a head of its own (T5 1.1, flan-T5: `tie_word_embeddings: false`) the
# probabilities that transformers gives it.
# transformers 5.24.0 keeps that setting as `scale_decoder_outputs`, and says `tie_word_embeddings` True of every T5; the converter of
# ctranslate2 4.8.5 goes by the latter, and scales the decoder's outputs by the root of the model's width too little.
# Seen: "tied: the same", "a head of its own: other probabilities". Greedy search writes the same all the same; beams, scores and
# sampling do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'ctranslate2==4.8.5' 'torch>=2.10' 2>"$folder/pip.log" ||
  { cat "$folder/pip.log"; exit 2; }
cat >"$folder/seen.py" <<'PY'
import json
import sys
from pathlib import Path

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(29))]
plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
sizes = {"d_model": 32, "d_kv": 16, "num_heads": 2, "d_ff": 64, "num_layers": 2, "vocab_size": len(words)}
source, target = ["w1", "w2", "</s>"], ["w3", "w4", "</s>"]
for name, tied in (("tied", True), ("a head of its own", False)):
    folder = Path(sys.argv[1]) / name.replace(" ", "-")
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes, tie_word_embeddings=tied, decoder_start_token_id=0)).eval()
    model.lm_head.weight.data.mul_(10.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": tied}))
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    ids = [torch.tensor([tokenizer.convert_tokens_to_ids(tokens)]) for tokens in (source, target)]
    with torch.no_grad():
        spread = model(input_ids=ids[0], labels=ids[1]).logits.log_softmax(-1)
    wanted = spread.gather(2, ids[1][..., None]).flatten()
    TransformersConverter(str(folder)).convert(str(folder / "ct2"))
    found = ctranslate2.Translator(str(folder / "ct2")).score_batch([source], [target[:-1]])[0].log_probs
    same = torch.allclose(torch.tensor(found), wanted, atol=1e-3)
    print(f"{name}: {'the same' if same else 'other probabilities'}")
PY
"$folder/env/bin/python" "$folder/seen.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN' || { echo "changed: the converter reads how outputs are scaled otherwise now"; exit 1; }
tied: the same
a head of its own: other probabilities
SEEN
