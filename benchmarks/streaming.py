"""Training rows that are streamed beside the same rows stored and encoded first: time a row, memory, disk, resume.

    python benchmarks/streaming.py --rows 2000000

Shards of short texts in four classes are made in a temporary folder. `streamed` and `cached` train a small BERT (one
layer, 32 wide, random weights) for one epoch, each in a process of its own and with caches of its own, in turn;
preparing is part of the `seconds` of both, and `loop_seconds` are those of the steps alone: streamed rows are encoded
meanwhile, cached ones before. `resumed` is the streamed run told to stop near its middle and gone on with: its weights
are compared with those of `streamed`. Memory is the peak of the process, to be compared with that of a run of 1,000
rows (`few`); disk is the most that the caches held, looked at four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "streaming.json"
TOPICS = {"cats": "sleep all day", "trains": "leave at noon", "rain": "falls in spring", "bread": "smells of home"}
BUFFER = 10_000


def make_shards(folder: Path, rows: int, shards: int) -> None:
    """Parquet shards of `text` and `label`, and a few rows to score."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rng, names = np.random.default_rng(0), list(TOPICS)
    words = np.array([word for text in TOPICS.values() for word in text.split()] + ["the", "a", "of", "some", "they"])
    for name, n in [*((f"train-{i:03}", rows // shards) for i in range(shards)), ("validation", 400), ("test", 400)]:
        labels = rng.integers(0, 4, n)
        drawn = rng.choice(words, (n, 8))
        texts = [" ".join([*line, names[label], *line[:2]]) for line, label in zip(drawn, labels, strict=True)]
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{name}.parquet", row_group_size=50_000)


def make_model(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted(
        {word for text in TOPICS.values() for word in text.split()} | {*TOPICS, "the", "a", "of", "some", "they"}
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names, model_max_length=64).save_pretrained(folder)
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(core.get_vocab()), **sizes, hidden_dropout_prob=0.0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


def recipe(folder: Path, batch: int) -> Path:
    text = f"""task: text-classification
model: {{name: {folder / "model"}}}
data:
  name: parquet
  files:
    train: "{folder}/data/train-*.parquet"
    validation: {folder}/data/validation.parquet
    test: {folder}/data/test.parquet
  splits: {{validation: validation}}
  class_names: [cats, trains, rain, bread]
  leaks: "off"
  max_tokens: 32
stages:
  - {{stage: transfer, adapt: full, epochs: 1, batch_size: {batch}, learning_rate: 1e-3, keep: last}}
precision: fp32
"""
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


CODE = """
import json, resource, sys, time
started = time.perf_counter()
from tltasks.cli.commands import main
import tltasks.runs.story
imported = time.perf_counter()
try:
    status = main(sys.argv[1:])
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - imported, "peak_bytes": peak}))
"""


class Watch(threading.Thread):
    """The most bytes that a folder holds meanwhile."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.over = folder, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.25):
            sizes = []
            for file in self.folder.rglob("*"):
                try:
                    sizes.append(file.stat().st_size if file.is_file() else 0)
                except OSError:
                    continue
            self.most = max(self.most, sum(sizes))


def run(folder: Path, name: str, *flags: str, stop_at: int | None = None) -> dict[str, float]:
    caches, output = folder / f"caches-{name}", folder / f"run-{name}"
    caches.mkdir(exist_ok=True)
    places = {"HF_DATASETS_CACHE": str(caches), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    watch = Watch(caches)
    watch.start()
    command = [sys.executable, "-c", CODE, "run", str(folder / "r.yaml"), "--output", str(output), "--quiet", *flags]
    process = subprocess.Popen(command, env=os.environ | places, stdout=subprocess.PIPE, text=True)
    if stop_at is not None:
        log = output / "metrics.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text().count('"train"') >= stop_at):
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    watch.over.set()
    shutil.rmtree(caches)
    found = {**json.loads(said.splitlines()[-1]), "disk_bytes": watch.most}
    if (output / "result.json").is_file():
        training = json.loads((output / "result.json").read_text())["stages"][0]["training"]
        found["loop_seconds"] = training["seconds"]
    return found


def same_weights(a: Path, b: Path) -> bool:
    return all(
        file.read_bytes() == (b / "model" / file.name).read_bytes() for file in (a / "model").glob("*.safetensors")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=["few", "streamed", "cached", "resumed"])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model")
        make_shards(folder / "few", 1000, 1)
        make_shards(folder / "data", options.rows, options.shards)
        recipe(folder, options.batch)
        few = [f"data.files.train={folder}/few/train-000.parquet"]
        streamed = ["--set", "data.streaming=true", "--set", f"data.shuffle_buffer={BUFFER}"]
        found: dict[str, object] = {"rows": options.rows, "batch": options.batch, "buffer": BUFFER}
        for i in range(options.rounds):
            for arm, flags in {"few": ["--set", *few], "streamed": streamed, "cached": []}.items():
                if arm in options.arms and (arm != "few" or i == 0):
                    found[f"{arm}-{i}"] = run(folder, f"{arm}-{i}", *flags)
                    print(json.dumps(found, indent=1), flush=True)
        if "resumed" in options.arms:
            run(folder, "resumed", *streamed, stop_at=options.rows // options.batch // 2)
            run(folder, "resumed", *streamed, "--resume")
            found["resumed_exactly"] = same_weights(folder / "run-streamed-0", folder / "run-resumed")
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
