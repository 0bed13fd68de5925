"""`tltasks predict` in processes of its own: stopped, with many inputs, and of models from the Hub."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.hub_server import HubServer
from tests.integration.inference.test_predict import read, recorded, run
from tests.tiny import images, speech, texts
from tests.tiny.host import Host, shared_host
from tltasks.cli.commands import INTERRUPTED

__all__ = ["run"]
RNG = np.random.default_rng(0)


def put(hub: HubServer, repo: str, folder: Path) -> None:
    hub.add_repo(repo, {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})


BASE = Path("ada/base")
LORA = "{stage: %s, epochs: 2, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}}"


def _images(folder: Path, hub: HubServer) -> tuple[Path, Path]:
    put(hub, str(BASE), images.save_model(folder / "base"))
    images.save_data(folder / "data")
    return images.write_recipe(folder / "recipe.yaml", BASE, folder / "data"), folder / "data" / "test.parquet"


def _whisper(folder: Path, hub: HubServer) -> tuple[Path, Path]:
    put(hub, str(BASE), speech.save_whisper(folder / "base"))
    speech.save_data(folder / "data")
    keys = "language: es, beams: 2"
    stage = LORA % "finetune"
    made = speech.write_recipe(folder / "recipe.yaml", BASE, folder / "data", stage=stage, model_keys=keys)
    return made, folder / "data" / "test.csv"


def _ctc(folder: Path, hub: HubServer) -> tuple[Path, Path]:
    put(hub, str(BASE), speech.save_ctc(folder / "base"))
    speech.save_data(folder / "data")
    stage = LORA % "transfer"
    return speech.write_recipe(folder / "recipe.yaml", BASE, folder / "data", stage=stage), folder / "data" / "test.csv"


def _text(name: str) -> Any:
    def make(folder: Path, hub: HubServer) -> tuple[Path, Path]:
        put(hub, str(BASE), texts.save_model(folder / "base", name))
        texts.save_data(folder / "data")
        keys = ", prompt: 'now {document} then', generation: {num_beams: 2}"
        made = texts.write_recipe(folder / "recipe.yaml", BASE, folder / "data", model_keys=keys)
        return made, folder / "data" / "test.jsonl"

    return make


ROUND_TRIPS = {"images": _images, "whisper": _whisper, "ctc": _ctc, "bart": _text("bart"), "gpt2": _text("gpt2")}
SCRIPT = """
import json, shutil, sys
from accelerate.state import AcceleratorState
from tltasks.cli.commands import main

def tltasks(*words):
    AcceleratorState._reset_state(reset_partial_state=True)
    status = main(list(map(str, words)))
    assert status == 0, (status, words)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_stop_leaves_a_valid_part(run: Path, tmp_path: Path, suffix: str) -> None:
    many = tmp_path / "many"
    many.mkdir()
    pictures = sorted((run / "pictures").glob("*.png"))
    for i in range(6000):
        os.link(pictures[i % len(pictures)], many / f"{i:04}.png")
    output = tmp_path / f"answers{suffix}"
    words = ["predict", run / "output", many, "--output", output]
    started = output if suffix == ".jsonl" else output.with_name(f".{output.name}.tmp")
    job = shared_host().start(tmp_path / "log", *words)
    while not (started.exists() and started.stat().st_size > 1000):
        time.sleep(0.01)
    job.signal(signal.SIGINT)
    assert job.wait() == INTERRUPTED, job.said()
    assert "Traceback" not in job.said()
    assert "with --resume completes it" in job.said()
    part = read(output)
    assert 0 < len(part) < 6000
    shared_host().run(tmp_path / "log", *words, "--resume")
    rows = read(output)
    assert [row["input"] for row in rows] == [str(many / f"{i:04}.png") for i in range(6000)]
    assert rows[: len(part)] == part


def test_memory_does_not_grow_with_the_inputs(run: Path, tmp_path: Path) -> None:
    """Two thousand pictures of 400 px, of which one takes half a megabyte when decoded, beside two hundred."""
    picture = images.png(images.picture("red", RNG, 400))
    for folder, count in (("few", 200), ("many", 2000)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "first.png").write_bytes(picture)
        for i in range(count - 1):
            os.link(tmp_path / folder / "first.png", tmp_path / folder / f"{i:04}.png")
    script = """
from resource import RUSAGE_SELF, getrusage
peaks = []
for folder in ("few", "many"):
    tltasks("predict", sys.argv[1], f"{sys.argv[2]}/{folder}", "--output", f"{sys.argv[2]}/{folder}.jsonl")
    peaks.append(getrusage(RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""
    job = shared_host().run(tmp_path / "log", run / "output", tmp_path, code=SCRIPT + script)
    few, many = json.loads(job.printed().splitlines()[-1])
    assert len(read(tmp_path / "many.jsonl")) == 2000
    assert many - few < 16 * 1024, "kibibytes"


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_was_pushed_predicts_as_recorded(hub: HubServer, hub_host: Host, tmp_path: Path, name: str) -> None:
    """Train, push, delete everything local, the base moves on: the same answers, and those of transformers and PEFT."""
    recipe, inputs = ROUND_TRIPS[name](tmp_path, hub)
    base = hub.commits(str(BASE))[0].oid
    script = """
        from huggingface_hub import HfApi, constants
        for publish in ("adapter", "merged"):
            output, repo = f"{sys.argv[2]}/{publish}", f"ada/{sys.argv[3]}-{publish}"
            tltasks("run", sys.argv[4], "--output", output, "--push",
                "--set", f"hub.repo={repo}", "--set", f"hub.publish={publish}")
            shutil.rmtree(f"{output}/model")
        shutil.rmtree(constants.HF_HUB_CACHE)
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="ada/base")
        for publish in ("adapter", "merged"):
            tltasks("predict", f"ada/{sys.argv[3]}-{publish}", sys.argv[1],
                "--output", f"{sys.argv[2]}/{publish}.jsonl", "--no-vad")
        tltasks("run", sys.argv[4], "--output", f"{sys.argv[2]}/again", "--set", "stages=[{stage: zero_shot}]",
            "--set", f"model.name=ada/{sys.argv[3]}-adapter", "--set", "hub.repo=null")
    """
    code = SCRIPT + textwrap.dedent(script) + textwrap.dedent(PEERS[name])
    done = hub_host.run(tmp_path / "log", inputs, tmp_path, name, recipe, code=code)
    theirs = json.loads(done.printed().splitlines()[-1])
    assert json.loads(hub.files(f"ada/{name}-adapter")["adapter_config.json"])["revision"] == base
    for publish in ("adapter", "merged"):
        before, rows = recorded(tmp_path / publish), read(tmp_path / f"{publish}.jsonl")
        assert len(rows) >= 6
        assert [row["prediction"] for row in rows] == before["prediction"], publish
        if publish in theirs:
            assert theirs[publish] == before["prediction"], publish
    # A run goes on from a published adapter, on the base that it was trained on, and says that the base has moved.
    (path,) = (tmp_path / "again" / "predictions").glob("*-test.parquet")
    assert pq.read_table(path)["prediction"].to_pylist() == recorded(tmp_path / "adapter")["prediction"]
    assert f"goes on from ada/base as it was at {base[:8]}; the Hub has" in done.said()


PEERS = {
    "images": """
        import io, torch, pyarrow.parquet as pq
        from peft import PeftModel
        from PIL import Image
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline
        pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in pq.read_table(sys.argv[1]).to_pylist()]
        merged = [found[0]["label"] for found in pipeline("image-classification", "ada/images-merged")(pictures)]
        repo = "ada/images-adapter"
        config = AutoConfig.from_pretrained(repo)
        base = AutoModelForImageClassification.from_pretrained(
            f"{sys.argv[2]}/base", config=config, ignore_mismatched_sizes=True)
        model = PeftModel.from_pretrained(base, repo).eval()
        with torch.inference_mode():
            logits = model(**AutoImageProcessor.from_pretrained(repo)(pictures, return_tensors="pt")).logits
        adapter = [config.id2label[i] for i in logits.argmax(-1).tolist()]
        print(json.dumps({"merged": merged, "adapter": adapter}))
    """,
    **dict.fromkeys(
        ("whisper", "ctc"),
        """
        import csv, pathlib, soundfile
        from transformers import pipeline
        place = pathlib.Path(sys.argv[1])
        files = [place.parent / row["audio"] for row in csv.DictReader(place.open())]
        clips = [soundfile.read(file, dtype="float32")[0] for file in files]
        transcribe = pipeline("automatic-speech-recognition", f"ada/{sys.argv[3]}-merged")
        print(json.dumps({"merged": [transcribe(clip)["text"].strip() for clip in clips]}))
    """,
    ),
    **dict.fromkeys(
        ("bart", "gpt2"),
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
        repo = f"ada/{sys.argv[3]}-merged"
        kind = AutoModelForCausalLM if sys.argv[3] == "gpt2" else AutoModelForSeq2SeqLM
        tokenizer, model = AutoTokenizer.from_pretrained(repo), kind.from_pretrained(repo).eval()
        found = []
        for line in open(sys.argv[1]):
            ids = tokenizer("now " + json.loads(line)["document"] + " then", return_tensors="pt")
            ids = {key: ids[key] for key in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                written = model.generate(**ids)[0]
            written = written[ids["input_ids"].shape[1]:] if sys.argv[3] == "gpt2" else written
            found.append(tokenizer.decode(written, skip_special_tokens=True).strip())
        print(json.dumps({"merged": found}))
    """,
    ),
}
