"""What is published of every task, loaded by its id with what its card prints, says what the run has recorded."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.hub_server import HubServer
from tests.tiny import images, speech, texts, topics
from tests.tiny.host import Host
from tests.tiny.hub import files_of
from tltasks.config.stage import UnlabelledStage
from tltasks.config.tasks import TASKS

FINETUNE = (
    "{stage: finetune, steps: %d, batch_size: 8, learning_rate: %g, adapt: {lora: {rank: 32}}, keep: last, "
    "evaluate_every: 1000}"
)
TRANSFER = FINETUNE.replace("finetune", "transfer")


@dataclass(frozen=True)
class Case:
    """A base checkpoint on the Hub, the task that it is trained for, and the form in which it is published."""

    base: str
    task: str
    form: str
    """What `hub.publish` says."""

    @property
    def repo(self) -> str:
        return f"ada/{self.base}-{self.form}"


FORMS = ("adapter", "merged")
BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "vit": ("image-classification", FORMS),
    "whisper": ("automatic-speech-recognition", FORMS),
    "wav2vec2": ("automatic-speech-recognition", ("merged",)),
    "t5": ("summarization", FORMS),
    "bart": ("summarization", ("merged",)),
    "mbart": ("summarization", ("adapter",)),
    "gpt2": ("summarization", ("adapter",)),
    "llama": ("summarization", ("merged",)),
    "bert": ("text-classification", FORMS),
}
"""Bases with their task and the forms in which they are published."""
HELD = {"vit": "int8", "whisper": "nf4"}
"""The format of what is not trained, where not `auto`; what is published stands on the checkpoint's own weights."""
CASES = [(base, form) for base, (_, forms) in BASES.items() for form in forms]


def save_base(case: Case, folder: Path) -> Path:
    if case.task == "image-classification":
        return images.save_model(folder, case.base)
    if case.task == "text-classification":
        return topics.save_model(folder, case.base)
    if case.base in {"bart", "mbart"}:
        if case.base == "bart":
            texts.save_model(folder, case.base)
        else:
            texts.save_multilingual(folder, transformers.MBartTokenizer)
        make_louder(folder)
        return folder
    if case.task == "summarization":
        return texts.save_model(folder, case.base)
    # Larger weights, so that what is heard shows in what is written after a few steps.
    return (
        speech.save_whisper(folder, seconds=2, init_std=0.1)
        if case.base == "whisper"
        else speech.save_ctc(folder, case.base, vocabulary="".join(speech.WORDS))
    )


def make_louder(folder: Path) -> None:
    """Larger weights: of 0.02, as they begin, an adapter learns next to nothing in a hundred steps."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)


def save_data(case: Case, folder: Path) -> Path:
    """Data for the task; returns the file of its test split."""
    if case.task == "image-classification":
        return images.save_data(folder) / "test.parquet"
    if case.task == "text-classification":
        return topics.save_data(folder, rows=96) / "test.jsonl"
    if case.task == "summarization":
        return texts.save_data(folder, rows=96, longest=5) / "test.jsonl"
    return speech.save_data(folder, rows=24) / "test.csv"


def write_recipe(case: Case, folder: Path, data: Path) -> Path:
    """A recipe over the base by its id."""
    held = f"base_dtype: {HELD.get(case.base, 'auto')}, evaluate_every"
    finetune, transfer = (stage.replace("evaluate_every", held) for stage in (FINETUNE, TRANSFER))
    path, base = folder / f"{case.base}-{case.form}.yaml", Path("ada", case.base)
    top: dict[str, Any] = {
        "output": str(folder / f"{case.base}-{case.form}"),
        "hub": {"repo": case.repo, "publish": case.form},
    }
    if case.task == "image-classification":
        return images.write_recipe(path, base, data, stage=transfer % (12, 5e-3), **top)
    if case.task == "text-classification":
        return topics.write_recipe(path, base, data, stage=transfer % (60, 1e-2), **top)
    if case.task == "summarization":
        # Without its guard a model of a hundred steps goes round in circles, near ties at every word.
        keys = ", generation: {no_repeat_ngram_size: 2}" + ", language: en_XX" * (case.base == "mbart")
        return texts.write_recipe(path, base, data, stage=finetune % (100, 5e-3), model_keys=keys, **top)
    # An untrained CTC model writes this and that; the first thing that it learns is to write nothing.
    steps, keys = (60, "language: es") if case.base == "whisper" else (4, "")
    return speech.write_recipe(path, base, data, stage=finetune % (steps, 1e-2), model_keys=keys, **top)


SAY = """
import contextlib, csv, datasets, io, json, soundfile, sys
from pathlib import Path
def read(path):
    if path.suffix == ".parquet":
        return [row["image"].convert("RGB") for row in datasets.load_dataset("parquet", data_files=str(path))["train"]]
    if path.suffix == ".csv":
        rows = csv.DictReader(path.open())
        return [soundfile.read(path.parent / row["audio"], dtype="float32")[0] for row in rows]
    rows = [json.loads(line) for line in path.open()]
    return [row.get("document") or row["text"] for row in rows]
job = json.loads(sys.argv[1])
printed, (given, after) = io.StringIO(), job["rest"]
names = {}
with contextlib.redirect_stdout(printed):
    exec(job["code"], names)
said = []
for names[given] in read(Path(job["data"])):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(after, names)
    said.append(out.getvalue().strip())
Path(job["answer"]).write_text(json.dumps({"printed": printed.getvalue(), "said": said}))
"""


@dataclass(frozen=True)
class Published:
    """All that is left of a case here: what is on the Hub, the recorded predictions, and what the card's code said."""

    case: Case
    files: dict[str, bytes]
    code: str
    recorded: dict[str, list[Any]]
    log: Path
    answer: Path


@pytest.fixture(scope="module")
def published(
    request: pytest.FixtureRequest, hub: HubServer, hub_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Published]:
    """A base trained and pushed in each form; then, with nothing left of it here, loaded from the Hub."""
    folder = tmp_path_factory.mktemp(request.param)
    task, forms = BASES[request.param]
    cases = [Case(request.param, task, form) for form in forms]
    base = save_base(cases[0], folder / "base")
    hub.add_repo(f"ada/{request.param}", files_of(base))
    shutil.rmtree(base)
    tests = save_data(cases[0], folder / "data")
    made, jobs = {}, []
    for case in cases:
        recipe = write_recipe(case, folder, folder / "data")
        output, log = recipe.with_suffix(""), recipe.with_suffix(".log")
        hub_host.start(log, "run", recipe, "--push").wait()
        assert ("model", case.repo) in hub.repositories, log.read_text()[-3000:]
        files = hub.files(case.repo)
        code = snippet(files["README.md"].decode())
        recorded = pq.read_table(next(output.glob("predictions/*-test.parquet"))).to_pydict()
        item = Published(case, files, code, recorded, recipe.with_suffix(".said"), recipe.with_suffix(".json"))
        job = {"code": code, "rest": after_yours(code), "data": str(tests), "answer": str(item.answer)}
        jobs.append((item.log, json.dumps(job)))
        made[case.form] = item
        shutil.rmtree(output)
    for cached in (hub.home / "hub").glob("models--ada--*"):
        shutil.rmtree(cached)
    for log, job in jobs:
        hub_host.start(log, job, code=SAY).wait()
    return made


def snippet(card: str) -> str:
    """The code for users, as the card prints it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    (code,) = [token.content for token in tokens if token.type == "fence" and token.info == "python"]
    return code


def after_yours(code: str) -> tuple[str, str]:
    """The name of what is given to the model, in the one line that says it is the user's, and the code below it."""
    lines = code.splitlines(keepends=True)
    (given,) = [i for i, line in enumerate(lines) if "# yours" in line]
    return lines[given].split(" = ")[0], "".join(lines[given + 1 :])


@pytest.mark.parametrize(("published", "form"), CASES, indirect=["published"], scope="module")
def test_the_code_on_the_card_says_what_the_run_recorded(published: dict[str, Published], form: str) -> None:
    item = published[form]
    assert item.answer.exists(), item.log.read_text()[-3000:] + "\n" + item.code
    answer = json.loads(item.answer.read_text())
    assert answer["printed"].endswith("\n")
    recorded = item.recorded["prediction"]
    assert len(set(recorded)) > 1, "a model that always says the same would agree with anything"
    assert len(answer["said"]) == len(recorded) >= 6
    if item.case.task.endswith("-classification"):
        recorded = [f"{name} {max(p):.3f}" for name, p in zip(recorded, item.recorded["probabilities"], strict=True)]
    # Rows are read one by one here and in padded batches by the run, so a tie between two tokens may fall otherwise.
    differing = [pair for pair in zip(answer["said"], recorded, strict=True) if pair[0] != pair[1]]
    assert len(differing) <= 1, differing


@pytest.mark.parametrize(("published", "form"), CASES, indirect=["published"], scope="module")
def test_an_adapter_is_published_alone_and_a_merged_model_whole(published: dict[str, Published], form: str) -> None:
    item = published[form]
    weights = {name for name in item.files if name.endswith(".safetensors")}
    assert weights == {f"{'adapter_' if form == 'adapter' else ''}model.safetensors"}
    data = ModelCard(item.files["README.md"].decode()).data
    assert (data.base_model, data.pipeline_tag) == (f"ada/{item.case.base}", item.case.task)
    assert data.base_model_relation == ("adapter" if form == "adapter" else "finetune")


def test_every_task_that_answers_is_here() -> None:
    objectives = {task for task, keys in TASKS.items() if issubclass(keys.stage, UnlabelledStage)}
    assert len(objectives) == 6
    assert {task for task, _ in BASES.values()} == set(TASKS) - objectives
    assert len(CASES) == 13
