#!/usr/bin/env bash
# One would guess: importing a detector of speech leaves a program's other models as fast as they were; it computes when it is called.
# silero-vad 6.2.3: `import silero_vad` calls torch.set_num_threads(1) (model.py, at the top), for the whole process.
# Seen: "before 2, after 1".
# So a recogniser that is run beside it in the same program uses one core, whatever OMP_NUM_THREADS or torch.set_num_threads said before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'silero-vad==6.2.3' 'torch==2.14.1' numpy 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch

torch.set_num_threads(2)
before = torch.get_num_threads()
import silero_vad

print(f"before {before}, after {torch.get_num_threads()}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: importing silero_vad leaves torch's threads alone now"; exit 1; }
before 2, after 1
SEEN
