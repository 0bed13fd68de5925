#!/usr/bin/env bash
# One would guess: a model whose attention needs a compiled kernel fails where there is none, or is slower; it says so at least.
# transformers 5.24.0 with torch 2.14.0: without a GPU, or without the package `kernels`, the attention of MRA is a tensor of zeros,
# and nothing is said. Each token is then read by itself, and a classifier, which reads the first one, gives all texts the same
# answer, also in training.
# Seen: "bert: texts differ in their answers", "mra: all texts have the same answer".
# So try MRA with two texts before it is trained or used.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import BertConfig, BertForSequenceClassification, MraConfig, MraForSequenceClassification

sizes = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
for name, model in {
    "bert": BertForSequenceClassification(BertConfig(**sizes)),
    "mra": MraForSequenceClassification(MraConfig(**sizes, max_position_embeddings=64)),
}.items():
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        texts = torch.tensor([[1, 5, 6, 7, 2], [1, 30, 31, 32, 2]])
        first, second = model.eval()(input_ids=texts, attention_mask=torch.ones_like(texts)).logits
    same = torch.allclose(first, second, atol=1e-6)
    print(f"{name}: {'all texts have the same answer' if same else 'texts differ in their answers'}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: MRA attends otherwise without its kernel now"; exit 1; }
bert: texts differ in their answers
mra: all texts have the same answer
SEEN
