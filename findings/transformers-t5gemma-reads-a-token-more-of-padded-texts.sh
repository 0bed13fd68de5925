#!/usr/bin/env bash
# One would guess: a classifier gives a text the same answer alone and beside a longer one, as padding is masked and the head looks
# for the last token that is none; so it is for Gemma.
# transformers 5.24.0 with torch 2.14.0: T5Gemma's decoder is given the text shifted by one place, and its head reads the place
# behind the last token, where there is one: it is there for texts that are padded, and of the longest of a batch, as of a text
# alone, it reads the place before, which has not seen the last token.
# Seen: "gemma: alone and padded alike", "t5gemma: alone and padded differ", "t5gemma: padded by one token is as padded by ten".
# So put texts of one length alone through such a classifier, in training as in use.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'torch==2.14.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import torch
from transformers import GemmaConfig, GemmaForSequenceClassification, T5GemmaConfig, T5GemmaForSequenceClassification

ids = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
part = {**ids, **sizes, "head_dim": 16}
torch.manual_seed(0)
models = {
    "gemma": GemmaForSequenceClassification(GemmaConfig(**part)),
    "t5gemma": T5GemmaForSequenceClassification(T5GemmaConfig(encoder=part, decoder=part, **ids)),
}
text = [5, 6, 7, 8]
for name, model in models.items():
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        answers = []
        for padding in (0, 1, 10):
            seen = torch.tensor([[1] * len(text) + [0] * padding])
            answers.append(model.eval()(input_ids=torch.tensor([text + [0] * padding]), attention_mask=seen).logits)
    alone, by_one, by_ten = answers
    same = torch.allclose(alone, by_ten, atol=1e-4)
    print(f"{name}: alone and padded {'alike' if same else 'differ'}")
print(f"t5gemma: padded by one token is{'' if torch.allclose(by_one, by_ten, atol=1e-4) else ' not'} as padded by ten")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: T5Gemma's head reads other places now"; exit 1; }
gemma: alone and padded alike
t5gemma: alone and padded differ
t5gemma: padded by one token is as padded by ten
SEEN
