#!/usr/bin/env bash
# One would guess: a multilingual Whisper that is told neither a language nor a task transcribes: as its `generate` with a language and no
# task, which puts <|transcribe|> behind the language, it does so behind the language that it detects.
# transformers 5.24.0: where the language is detected, no task is put there, unless the settings name one (`task`, or `forced_decoder_ids`
# as in OpenAI's old files). The decoder then goes on from a prompt that it has never seen; whisper-base says a word of each clip over and over.
# Seen: "told the language: start, language, transcribe, notimestamps", "detects it: start, language, notimestamps",
# "detects it, with `task` in generation_config.json: start, language, transcribe, notimestamps".
# So write `task` into the generation_config.json of a checkpoint that is converted, or fine-tuned and saved without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

names = {1: "start", 2: "language", 3: "language", 4: "translate", 5: "transcribe", 6: "notimestamps"}
ids = {"decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0}
size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
torch.manual_seed(0)
model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=20, num_mel_bins=8, **size, **ids)).eval()
settings = {"lang_to_id": {"<|en|>": 2, "<|es|>": 3}, "task_to_id": {"translate": 4, "transcribe": 5}, "is_multilingual": True}
settings |= {"no_timestamps_token_id": 6, "return_timestamps": False, "suppress_tokens": list(range(1, 7))}
sound = torch.randn(1, 8, 3000)
for said, keys in (
    ("told the language", {"language": "en"}),
    ("detects it", {}),
    ("detects it, with `task` in generation_config.json", {"task": "transcribe"}),
):
    model.generation_config = GenerationConfig(**ids, **settings, **keys)
    found = model.generate(sound, return_dict_in_generate=True, force_unique_generate_call=True, max_new_tokens=1)
    print(f"{said}: {', '.join(names[i] for i in found.sequences[0].tolist() if i in names)}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: Whisper begins otherwise now"; exit 1; }
told the language: start, language, transcribe, notimestamps
detects it: start, language, notimestamps
detects it, with `task` in generation_config.json: start, language, transcribe, notimestamps
SEEN
