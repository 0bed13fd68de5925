#!/usr/bin/env bash
# One would guess: what is set in a model's `generation_config` and saved is there when it is loaded again; Whisper's languages and
# SeamlessM4T's (`lang_to_id`, `text_decoder_lang_to_code_id`) are such settings, that no other model has.
# transformers 5.24.0: the settings of a model that is built from its configuration carry `_from_model_config: true`. This is saved
# along, and where it is read every setting that not all models have is passed over, without a word.
# Seen: "in the file: {'<|en|>': 50259}, loaded again: None"; with the mark taken off, both are there.
# So a recogniser that is trained from nothing, or put together of two models, forgets its languages in saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import json
import tempfile
from pathlib import Path

from transformers import GenerationConfig, WhisperConfig

for mark in (True, None):
    settings = GenerationConfig.from_model_config(WhisperConfig())  # as the constructor of each model that writes does
    settings.lang_to_id = {"<|en|>": 50259}
    if not mark:
        settings._from_model_config = None
    with tempfile.TemporaryDirectory() as folder:
        settings.save_pretrained(folder)
        written = json.loads((Path(folder) / "generation_config.json").read_text())
        again = GenerationConfig.from_pretrained(folder)
    print(f"in the file: {written.get('lang_to_id')}, loaded again: {getattr(again, 'lang_to_id', None)}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: settings of a new model are read back otherwise now"; exit 1; }
in the file: {'<|en|>': 50259}, loaded again: None
in the file: {'<|en|>': 50259}, loaded again: {'<|en|>': 50259}
SEEN
