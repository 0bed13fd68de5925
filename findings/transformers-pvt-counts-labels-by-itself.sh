#!/usr/bin/env bash
# One would guess: a configuration of transformers has as many labels as `id2label` names, and renaming these sets the number of
# a new head's outputs: `num_labels` is computed from `id2label`, and is not kept.
# transformers 5.24.0: PvtConfig has a field `num_labels` of its own, 1000 unless it is given, that hides the computed one.
# Seen: "vit: 2 names, num_labels 2", "pvt: 2 names, num_labels 1000".
# So a head for two classes has 1000 outputs, unless `num_labels` is set too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
from transformers import PvtConfig, ViTConfig

for kind in (ViTConfig, PvtConfig):
    config = kind(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    print(f"{config.model_type}: {len(config.id2label)} names, num_labels {config.num_labels}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: PvtConfig counts its labels otherwise now"; exit 1; }
vit: 2 names, num_labels 2
pvt: 2 names, num_labels 1000
SEEN
