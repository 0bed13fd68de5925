#!/usr/bin/env bash
# One would guess: a tokenizer that is trained twice on the same lines, with the same settings, is the same tokenizer; the
# library has no seed to set for it.
# tokenizers 0.23.3: `UnigramTrainer` gives another file in each process, with one thread and without parallelism too, and the
# same sentence other ids; `BpeTrainer` on the same lines is the same each time.
# Seen: "unigram: 6 different files of 6, 5 different encodings" (the second count varies), "bpe: 1 different files of 6".
# So a test, a benchmark or a cached data set that rests on ids must keep the trained file, never train it again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'tokenizers==0.23.3' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
cat >"$folder/train.py" <<'PY'
import hashlib
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

words = "the cat sat on the mat and the dog ran in the park while rain fell on old trees by the long road home".split()
lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 10
unigram = sys.argv[1] == "unigram"
made = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Metaspace()
settings = {"vocab_size": 60, "special_tokens": ["<unk>"], "show_progress": False}
made.train_from_iterator(
    lines, trainers.UnigramTrainer(**settings, unk_token="<unk>") if unigram else trainers.BpeTrainer(**settings)
)
print(hashlib.sha256(made.to_str().encode()).hexdigest(), *made.encode(lines[0]).ids)
PY
count() { # trainer: how many different files, and how many different encodings of one sentence, six processes make
    for _ in 1 2 3 4 5 6; do
        RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false "$folder/env/bin/python" "$folder/train.py" "$1"
    done >"$folder/$1"
    files=$(cut -d' ' -f1 "$folder/$1" | sort -u | wc -l)
    encodings=$(cut -d' ' -f2- "$folder/$1" | sort -u | wc -l)
    echo "$1: $files different files of 6, $encodings different encodings"
}
count unigram
[ "$files" -gt 1 ] || { echo "changed: Unigram training is the same each time now"; exit 1; }
count bpe
[ "$files" -eq 1 ] || { echo "changed: BPE training differs now, too"; exit 1; }
