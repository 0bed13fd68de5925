#!/usr/bin/env bash
# One would guess: Whisper's normaliser for English, by which word error rates are commonly counted, leaves words alone: of
# "Wait..." it makes "wait", as of "Wait.", and of "don’t" what it makes of "don't".
# transformers 5.24.0, `EnglishTextNormalizer`: three dots leave one, which is a word of its own to every scorer that splits at
# spaces; the typographic apostrophe is no apostrophe, so "don’t" becomes the two words "don t".
# Seen: 'Wait.' -> 'wait'; 'Wait...' -> 'wait .'; 'so…' -> 'so ..'; "don't" -> 'do not'; 'don’t' -> 'don t'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 2>"$folder/pip.log" \
    || { cat "$folder/pip.log"; exit 2; }
cat >"$folder/normalise.py" <<'PY'
import sys

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

seen = {"Wait.": "wait", "Wait...": "wait .", "so…": "so ..", "don't": "do not", "don’t": "don t"}
normalise = EnglishTextNormalizer({})
found = {text: normalise(text) for text in seen}
for text, words in found.items():
    print(f"{text!r} -> {words!r}")
if found != seen:
    sys.exit("changed: the normaliser answers otherwise now")
PY
"$folder/env/bin/python" "$folder/normalise.py"
