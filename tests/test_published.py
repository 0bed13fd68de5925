"""What is published of every task, loaded by its id with what its card prints, says what the run has recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import transformers
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.hub_server import HubServer, hub_environment
from tests.tiny import images, speech, texts
from tests.tiny.hub import files_of
from tests.tiny.runs import REPOSITORY, environment

pytestmark = pytest.mark.slow

FINETUNE = (
    "{stage: finetune, steps: %d, batch_size: 8, learning_rate: %g, adapt: {lora: {rank: 8}}, keep: last, "
    "evaluate_every: 1000}"
)
TRANSFER = FINETUNE.replace("finetune", "transfer")


@dataclass(frozen=True)
class Case:
    """A base checkpoint on the Hub, the task that it is trained for, and the form in which it is published."""

    base: str
    task: str
    publish: str

    @property
    def repo(self) -> str:
        return f"ada/{self.base}-{self.publish}"


BASES = {
    "vit": "image-classification",
    "whisper": "automatic-speech-recognition",
    "wav2vec2": "automatic-speech-recognition",
    "t5": "summarization",
    "mbart": "summarization",
    "gpt2": "summarization",
    "llama": "summarization",
}
CASES = [Case(base, task, publish) for base, task in BASES.items() for publish in ("adapter", "merged")]


def save_base(case: Case, folder: Path) -> Path:
    if case.task == "image-classification":
        return images.save_model(folder, case.base)
    if case.task == "summarization":
        if case.base == "mbart":
            return texts.save_multilingual(folder, transformers.MBartTokenizer)
        return texts.save_model(folder, case.base)
    # Larger weights, so that what is heard shows in what is written after a few steps.
    return (
        speech.save_whisper(folder, seconds=2, init_std=0.1)
        if case.base == "whisper"
        else speech.save_ctc(folder, case.base)
    )


def write_recipe(case: Case, folder: Path, data: Path) -> Path:
    """A recipe over the base by its id."""
    path, base = folder / f"{case.base}-{case.publish}.yaml", Path("ada", case.base)
    top: dict[str, Any] = {
        "output": str(folder / f"{case.base}-{case.publish}"),
        "hub": {"repo": case.repo, "publish": case.publish},
    }
    if case.task == "image-classification":
        return images.write_recipe(path, base, data / "images", stage=TRANSFER % (12, 5e-3), **top)
    if case.task == "summarization":
        keys = ", language: ro_RO" if case.base == "mbart" else ""
        return texts.write_recipe(path, base, data / "texts", stage=FINETUNE % (100, 1e-2), model_keys=keys, **top)
    stage, keys = (FINETUNE, "language: es") if case.base == "whisper" else (TRANSFER, "")
    return speech.write_recipe(path, base, data / "clips", stage=stage % (60, 1e-2), model_keys=keys, **top)


HOST = """
import json, os, sys, traceback
from pathlib import Path
import datasets, peft, torch, transformers  # the imports, which take most of a start, are done once
{imports}
for job in json.loads(sys.stdin.read()):
    child = os.fork()
    if child == 0:
        os.dup2(os.open(job["log"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        status = 1
        try:
            status = do(job)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    os.waitpid(child, 0)
"""
TRAIN = """
import tltasks.runner
from tltasks.cli import main
def do(job):
    return main(["run", job["recipe"], "--push"])
"""
SAY = """
import contextlib, csv, io, soundfile
def read(path):
    if path.suffix == ".parquet":
        return [row["image"].convert("RGB") for row in datasets.load_dataset("parquet", data_files=str(path))["train"]]
    if path.suffix == ".csv":
        rows = csv.DictReader(path.open())
        return [soundfile.read(path.parent / row["audio"], dtype="float32")[0] for row in rows]
    return [json.loads(line)["document"] for line in path.open()]
def do(job):
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
    return 0
"""


def in_host(hub: HubServer, home: Path, work: str, jobs: list[dict[str, Any]]) -> None:
    """Do the jobs one after another in a process of its own, whose caches are below `home`."""
    done = subprocess.run(
        [sys.executable, "-c", HOST.replace("{imports}", work)],
        input=json.dumps(jobs),
        env=environment() | hub_environment(hub, home),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@dataclass(frozen=True)
class Published:
    """All that is left of a case: what is on the Hub, the recorded predictions, and what the card's code said."""

    files: dict[str, bytes]
    code: str
    recorded: dict[str, list[Any]]
    log: Path
    answer: Path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Published]:
    """Every case trained and pushed; then, with nothing left of it here, loaded from the Hub."""
    folder = tmp_path_factory.mktemp("published")
    data = folder / "data"
    images.save_data(data / "images")
    speech.save_data(data / "clips", rows=24)
    texts.save_data(data / "texts", rows=96)
    tests = {
        "image-classification": data / "images" / "test.parquet",
        "automatic-speech-recognition": data / "clips" / "test.csv",
        "summarization": data / "texts" / "test.jsonl",
    }
    with HubServer() as hub:
        for case in CASES:
            if case.publish == "merged":
                hub.add_repo(f"ada/{case.base}", files_of(save_base(case, folder / "bases" / case.base)))
        shutil.rmtree(folder / "bases")
        recipes = {case: write_recipe(case, folder, data) for case in CASES}
        in_host(
            hub,
            folder / "trainer",
            TRAIN,
            [{"recipe": str(path), "log": str(path.with_suffix(".log"))} for path in recipes.values()],
        )
        made, jobs = {}, []
        for case, recipe in recipes.items():
            output, log = recipe.with_suffix(""), recipe.with_suffix(".log")
            assert ("model", case.repo) in hub.repositories, log.read_text()[-3000:]
            files = hub.files(case.repo)
            code = snippet(files["README.md"].decode())
            recorded = pq.read_table(next(output.glob("predictions/*-test.parquet"))).to_pydict()
            item = Published(files, code, recorded, recipe.with_suffix(".said.log"), recipe.with_suffix(".json"))
            job = {"code": code, "rest": after_yours(code), "data": str(tests[case.task])}
            jobs.append(job | {"answer": str(item.answer), "log": str(item.log)})
            made[case] = item
            shutil.rmtree(output)
        shutil.rmtree(folder / "trainer")
        in_host(hub, folder / "reader", SAY, jobs)
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.base}-{case.publish}")
def test_the_card_s_own_code_says_what_the_run_recorded(published: dict[Case, Published], case: Case) -> None:
    item = published[case]
    assert item.answer.exists(), item.log.read_text()[-3000:] + "\n" + item.code
    answer = json.loads(item.answer.read_text())
    assert answer["printed"].endswith("\n")
    recorded = item.recorded["prediction"]
    assert len(set(recorded)) > 1, "a model that always says the same would agree with anything"
    assert len(answer["said"]) == len(recorded) >= 6
    if case.task == "image-classification":
        recorded = [f"{name} {max(p):.3f}" for name, p in zip(recorded, item.recorded["probabilities"], strict=True)]
    assert answer["said"] == recorded


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.base}-{case.publish}")
def test_an_adapter_is_published_alone_and_a_merged_model_whole(published: dict[Case, Published], case: Case) -> None:
    weights = {name for name in published[case].files if name.endswith(".safetensors")}
    assert weights == {f"{'adapter_' if case.publish == 'adapter' else ''}model.safetensors"}
    data = ModelCard(published[case].files["README.md"].decode()).data
    assert (data.base_model, data.pipeline_tag) == (f"ada/{case.base}", case.task)
    assert data.base_model_relation == ("adapter" if case.publish == "adapter" else "finetune")


def test_every_task_is_here() -> None:
    from tltasks.recipe import TASKS

    assert {case.task for case in CASES} == set(TASKS)
    assert len({dataclasses.astuple(case) for case in CASES}) == 14
