#!/usr/bin/env bash
# One would guess: a checkpoint that is loaded with other labels (`id2label`, `ignore_mismatched_sizes=True`) has a new head for one
# of these classes, as any checkpoint would, and its pipeline answers by the softmax.
# transformers 5.24.0: the head is new, and `problem_type` is the old head's: from a tagger the pipeline takes the sigmoid of each
# logit, from a regression the logits themselves. Trained with a loss of one's own, cross entropy say, nothing tells.
# Seen: "no problem named: 3 answers add up to 1", "multi_label_classification: 3 answers do not add up to 1", and so regression.
# So `problem_type` is set together with the labels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --extra-index-url https://download.pytorch.org/whl/cpu \
  'transformers==5.24.0' torch torchvision pillow 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import tempfile

import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "image_size": 32}
picture, processor = Image.new("RGB", (32, 32), "orange"), ViTImageProcessor(size={"height": 32, "width": 32})
for problem, n in ((None, 4), ("multi_label_classification", 4), ("regression", 1)):
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        ViTForImageClassification(ViTConfig(**sizes, num_labels=n, problem_type=problem)).save_pretrained(folder)
        names = {0: "cat", 1: "dog", 2: "owl"}
        model = AutoModelForImageClassification.from_pretrained(folder, id2label=names, ignore_mismatched_sizes=True)
    said = pipeline("image-classification", model=model, image_processor=processor)(picture)
    sums = "add up to 1" if abs(sum(one["score"] for one in said) - 1) < 1e-3 else "do not add up to 1"
    print(f"{problem or 'no problem named'}: {len(said)} answers {sums}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: a new head has a problem of its own now"; exit 1; }
no problem named: 3 answers add up to 1
multi_label_classification: 3 answers do not add up to 1
regression: 3 answers do not add up to 1
SEEN
