#!/usr/bin/env bash
# One would guess: parquet files that each declare their class names, in an order of their own, keep each row's class when
# `load_dataset` reads them together: names are read by name, or the difference is an error.
# datasets 5.2.0 takes the names of the first file for the numbers of all, also over splits, without a word.
# Seen: "train ['cat', 'dog'], test ['dog', 'cat'] (written: ['cat', 'dog'])".
# So a test set that was exported by itself is scored with its classes exchanged, until names are compared file by file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'datasets==5.2.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$folder/env/bin/python" - <<'PY'
import sys

import datasets

for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict({"label": ["cat", "dog"]}, features=features).to_parquet(f"{split}.parquet")
files = {split: f"{split}.parquet" for split in ("train", "test")}
loaded = datasets.load_dataset("parquet", data_files=files)
found = {split: rows.features["label"].int2str(rows["label"][:]) for split, rows in loaded.items()}
print(f"train {found['train']}, test {found['test']} (written: ['cat', 'dog'])")
if found != {"train": ["cat", "dog"], "test": ["dog", "cat"]}:
    sys.exit("changed")
PY
