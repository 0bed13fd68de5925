#!/usr/bin/env bash
# One would guess: a checkpoint folder with a configuration and weights and no tokenizer file is an error for AutoTokenizer, as
# the same folder without weights is for AutoModel.
# transformers 5.24.0: for BERT, BART and T5 it makes a tokenizer that knows special tokens alone (T5's a space besides), without a
# word; every text becomes unknown tokens, or nothing. Llama's is an error.
# Seen: "bert: 5 tokens, [2, 1, 1, 3]", "bart: 5 tokens, [2, 3]", "t5: 104 tokens, [3, 2, 3, 2, 1]", "llama: ValueError".
# So look at the vocabulary of a tokenizer before anything is trained on what it gives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
cat >"$folder/open.py" <<'PY'
import sys
from pathlib import Path

from transformers import AutoTokenizer, BartConfig, BertConfig, LlamaConfig, T5Config

for config in (BertConfig(), BartConfig(), T5Config(), LlamaConfig()):
    place = Path(sys.argv[1]) / config.model_type
    config.save_pretrained(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        print(f"{config.model_type}: {len(tokenizer)} tokens, {tokenizer('the cats').input_ids}")
    except Exception as error:
        print(f"{config.model_type}: {type(error).__name__}")
PY
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/open.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN' || { echo "changed: a tokenizer of no files is made otherwise now"; exit 1; }
bert: 5 tokens, [2, 1, 1, 3]
bart: 5 tokens, [2, 3]
t5: 104 tokens, [3, 2, 3, 2, 1]
llama: ValueError
SEEN
