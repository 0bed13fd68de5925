#!/usr/bin/env bash
# One would guess: where a package is missing that a tokenizer is read with, the error names that package.
# transformers 5.24.0: a vocabulary of SentencePiece (spiece.model, as google/mt5-small has it) is read with `sentencepiece` and
# `protobuf`. Where either is missing, the error asks for `tiktoken`, which is what is tried next; once that is installed, the
# vocabulary is read as one of tiktoken's, and the error is about the tokenizer.
# Seen: "with sentencepiece: ValueError, pip install tiktoken", "with tiktoken: ValueError, no word of protobuf",
# "with protobuf: T5Tokenizer, the cats".
# So a package that reads such checkpoints depends on both, and looks for them itself before it believes the message.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
get() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }; }
get 'transformers==5.24.0' 'sentencepiece==0.2.3'
cat >"$folder/make.py" <<'PY'
import json
import sys
from pathlib import Path

import sentencepiece

place = Path(sys.argv[1])
place.mkdir()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["the cats sleep", "the dogs run", "cats and dogs"] * 50),
    model_prefix=str(place / "spiece"), vocab_size=40, hard_vocab_limit=False,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
)
(place / "config.json").write_text(json.dumps({"model_type": "mt5"}))
(place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
PY
cat >"$folder/open.py" <<'PY'
import re
import sys

from transformers import AutoTokenizer

try:
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    read_back = tokenizer.decode(tokenizer("the cats").input_ids, skip_special_tokens=True)
    print(f"with {sys.argv[2]}: {type(tokenizer).__name__}, {read_back}")
except Exception as error:
    asked = re.search(r"pip install \w+", str(error))
    told = asked[0] if asked else ("protobuf" if "protobuf" in str(error) else "no word of protobuf")
    print(f"with {sys.argv[2]}: {type(error).__name__}, {told}")
PY
export HF_HUB_OFFLINE=1
"$folder/env/bin/python" "$folder/make.py" "$folder/pieces"
{
    "$folder/env/bin/python" "$folder/open.py" "$folder/pieces" sentencepiece
    get 'tiktoken==0.12.0'
    "$folder/env/bin/python" "$folder/open.py" "$folder/pieces" tiktoken
    get 'protobuf==7.36.2'
    "$folder/env/bin/python" "$folder/open.py" "$folder/pieces" protobuf
} 2>/dev/null | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN' || { echo "changed: another package is asked for now"; exit 1; }
with sentencepiece: ValueError, pip install tiktoken
with tiktoken: ValueError, no word of protobuf
with protobuf: T5Tokenizer, the cats
SEEN
