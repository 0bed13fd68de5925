"""What the campaigns of kills and of full disks share: commands in forks of this process, and how their ends compare.

All that takes long to import is imported once, here; each command is a fork.
"""
# ruff: noqa: E402 (variables come before the libraries that read them)

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TLTASKS_CORES": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
}

import datasets
import matplotlib.figure
import optuna
import peft
import pyarrow.parquet as pq
import safetensors.torch
import scipy.stats
import sklearn.linear_model
import torch
import transformers

import tltasks.experiments.comparison
import tltasks.experiments.tuning
import tltasks.hub.client
import tltasks.inference.predict
import tltasks.inference.predictor
import tltasks.runs.story
from benchmarks.processes import enter
from tests.hub_server import HubServer
from tests.tiny.experiments import write_experiment, write_search
from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.runs import FSDP
from tltasks.cli.commands import main as tltasks_main

__all__ = ["matplotlib", "optuna", "peft", "scipy", "sklearn", "tltasks", "transformers"]

STAGE = (
    "{stage: transfer, epochs: 3, batch_size: 7, learning_rate: 2e-3, adapt: {lora: {rank: 2, dropout: 0.3}}, "
    "checkpoint_every: 2, evaluate_every: 3, ema: 0.9, augment: {flip: true, crop: 0.5, mixup: 0.4}}"
)
"""Much that draws random numbers or keeps state."""
STEPS = 12
WORLDS: dict[str, tuple[int, int, dict[str, str]]] = {
    "two ranks": (2, 1, {}),
    "one rank": (2, 1, {}),
    "shared rank": (2, 1, FSDP),
    "machine": (4, 2, {}),
}
"""Kinds of several processes: how many, on how many machines, which are network namespaces, and their variables."""
WORKERS = 2
"""Of Ray's."""
LONGEST = 300.0
"""Seconds after which a command hangs."""
POLL = 0.005
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}


@dataclass
class Child:
    """A command in a process of its own."""

    pid: int
    log: Path
    status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = LONGEST) -> int | None:
        """Its exit status; None where it has not ended by then. Time in which all are suspended does not count."""
        for _ in range(math.ceil(seconds / POLL)):
            if self.poll() is not None:
                break
            time.sleep(POLL)
        return self.status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def start(
    log: Path,
    words: list[object],
    *,
    variables: Mapping[str, str] | None = None,
    setup: Callable[[], object] = lambda: None,
    action: Callable[[], int] | None = None,
) -> Child:
    """Begin a command, or an action, in a fork; `setup` is called in it first."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log)
    status = 70
    try:
        os.setsid()
        os.environ.update(variables or {})
        file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(file, 1), os.dup2(file, 2)
        setup()
        status = action() if action is not None else tltasks_main([str(word) for word in words])
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def finish(log: Path, words: list[object], **more: Any) -> Child:
    child = start(log, words, **more)
    if child.wait() is None:
        child.kill()
        raise Wrong(f"hung: {words}")
    return child


class Wrong(Exception):  # noqa: N818
    """Something was lost, doubled, cut, hung or ended in a traceback."""


def with_cache(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder


# ------------------------------------------------------------------------------------------ subjects


@dataclass
class Subjects:
    """Tiny models, data and recipes, and the ends that are to be come to."""

    place: Path
    seconds: dict[str, float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    ends: dict[str, Any] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.place / "cache"

    @property
    def recipe(self) -> Path:
        return self.place / "recipe.yaml"

    def make(self) -> None:
        child = finish(self.place / "make.log", [], action=self._make)
        assert child.status == 0, child.said()

    def _make(self) -> int:
        os.chdir(self.place)
        model = save_model(self.place / "vit")
        data = save_data(self.place / "data", splits={"train": 28, "validation": 8, "test": 12})
        save_data(self.place / "many", splits={"many": 400})
        for i, name in enumerate(("dark", "red")):
            save_data(self.place / name, splits={"train": 18, "test": 12}, seed=i)
        write_recipe(self.recipe, model, data, stage=STAGE)
        return 0

    def words(self, kind: str, output: Path) -> list[object]:
        """The command of a kind; given again, it goes on with what it finds."""
        if kind in {"run", "cache", "checkpoint", "worker", *WORLDS}:
            more = ["--set", "stages.0.checkpoint_every=1"] if kind == "checkpoint" else []
            more = ["--engine", "ray", "--workers", WORKERS] if kind == "worker" else more
            return ["run", self.recipe, "--output", output, "--resume", *more]
        if kind == "compare":
            path = self.place / "experiment.yaml"
            if not path.exists():
                write_experiment(self.place, self.place / "experiment")
            small = ["--set", "seeds=[0]", "--set", "axes.shots={all: null}", "--set", "curve=null"]
            return ["compare", path, *small, "--output", output]
        if kind == "tune":
            path = self.place / "search.yaml"
            if not path.exists():
                write_search(self.place, self.place / "search")
            small = ["--set", "trials=3", "--set", "recipe.stages.0.epochs=2", "--set", "recipe.data.corruptions=null"]
            return ["tune", path, *small, "--output", output]
        if kind == "push":
            return ["push", self.place / "ends" / "run", "--repo", f"ada/{output.name}"]
        return [
            "predict",
            self.place / "ends" / "run",
            self.place / "many" / "many.parquet",
            "--output",
            output,
            "--resume",
        ]

    def output(self, kind: str, folder: Path) -> Path:
        suffix = kind.removeprefix("predict ") if kind.startswith("predict") else ""
        return folder / f"{kind.replace(' ', '-')}{'.' * bool(suffix)}{suffix}"

    def begin(self, kind: str, output: Path, log: Path, **more: Any) -> list[Child]:
        """Start a kind: its one process, or all; `setup` is called in the first."""
        setup = more.pop("setup", lambda: None)
        cache = more.pop("cache", self.cache)

        words, (count, machines, variables) = self.words(kind, output), WORLDS.get(kind, (1, 1, {}))
        if kind == "worker":  # processes of its own import all anew
            variables = {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": str(REPOSITORY)}
        local = count // machines
        if count > 1:
            with socket.socket() as found:
                found.bind(("127.0.0.1", 0))
                port = found.getsockname()[1]
            variables = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            variables |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(local)}

        def begin(rank: int) -> Child:
            def own() -> None:
                os.chdir(self.place)
                with_cache(cache)
                if kind == "push":
                    to_hub(more["url"])
                if machines > 1:
                    enter(rank // local)
                if rank == 0:
                    setup()

            places = {"RANK": str(rank), "LOCAL_RANK": str(rank % local)} if count > 1 else {}
            return start(log, words, setup=own, variables={**variables, **places})

        return [begin(rank) for rank in range(count)]

    def complete(self, kind: str, output: Path, log: Path, **more: Any) -> None:
        """Have a kind come to its end; Wrong where it does not, in time and with the right status."""
        children = self.begin(kind, output, log, **more)
        for child in children:
            if child.wait() is None:
                for other in children:
                    other.kill()
                raise Wrong(f"{kind}: hung")
        if any(child.status for child in children):
            raise Wrong(f"{kind}: ended with {[child.status for child in children]}: {children[0].said()[-1500:]}")

    def learn(self, kind: str) -> None:
        """Find the undisturbed end of a kind, its seconds, and its operations on files."""
        folder = self.place / "ends"
        folder.mkdir(exist_ok=True)
        output, report = self.output(kind, folder), self.place / "operations"
        with hub(self.place) as url:
            warm = self.output(kind, self.place / "warm")
            warm.parent.mkdir(exist_ok=True)
            if kind != "push":
                self.complete(kind, warm, self.place / "warm.log")  # its cache is there from now on
            counting = {} if kind in {"push", "worker"} else {"setup": counted(report, self.place)}
            started = time.monotonic()
            self.complete(kind, output, self.place / "ends.log", url=url, **counting)
            self.seconds[kind] = time.monotonic() - started
            self.ends[kind] = self.end(kind, output, url)
        self.operations[kind] = int(report.read_text()) if report.exists() else 0
        report.unlink(missing_ok=True)

    def end(self, kind: str, output: Path, url: str = "") -> Any:
        """All of an end that must not depend on how it was come to; Wrong where files are cut or left over."""
        if kind == "push":
            return state_of(url, f"ada/{output.name}")
        if kind.startswith("predict"):
            left = [path.name for path in output.parent.iterdir() if path.name.startswith(f".{output.name}")]
            if left:
                raise Wrong(f"{kind}: left over {left}")
            if output.suffix == ".parquet":
                return digest(json.dumps(pq.read_table(output).to_pylist()).encode())
            return digest(output.read_bytes())
        check_whole(output)
        if left := [
            str(p.relative_to(output)) for p in output.rglob(".*") if p.name == ".lock" or p.name.endswith(".tmp")
        ]:
            raise Wrong(f"{kind}: left over {left}")
        if kind == "compare":
            result = json.loads((output / "result.json").read_text())
            journal = [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]
            finished = [line["trial"] for line in journal if line["event"] == "finished"]
            if len(finished) != len(set(finished)) or result["failed"]:
                raise Wrong(f"{kind}: {finished}, {result['failed']}")
            return {trial["id"]: trial["targets"] for trial in result["trials"]}
        if kind == "tune":
            result = json.loads((output / "result.json").read_text())
            return [
                [
                    trial["number"],
                    trial["settings"],
                    trial["state"],
                    trial["value"],
                    trial.get("curve", trial.get("values")),
                ]
                for trial in result["trials"]
            ]
        return end_of_run(output)


def is_operation(event: str, values: tuple[Any, ...], place: str) -> bool:
    """Whether an audit event of Python's is one that changes files below a folder."""
    if event not in EVENTS or not values or not str(values[0]).startswith(place):
        return False
    flags = values[2] if event == "open" and len(values) > 2 else os.O_WRONLY
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def at_operations(below: Path, act: Callable[[int], object]) -> None:
    """Have `act` called with its number just before each change that this process makes to files."""
    count, place = [0], str(below)

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if is_operation(event, values, place):
            count[0] += 1
            act(count[0])

    sys.addaudithook(watch)


def counted(report: Path, below: Path) -> Callable[[], None]:
    """Have a process write how often it has changed files."""

    def setup() -> None:
        file = os.open(report, os.O_CREAT | os.O_WRONLY)
        at_operations(below, lambda number: os.pwrite(file, str(number).encode(), 0))

    return setup


def kill_at(number: int, below: Path) -> Callable[[], None]:
    """Have a process end by SIGKILL just before it changes files for the so-manieth time."""

    def act(now: int) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: at_operations(below, act)


# ---------------------------------------------------------------------------------------------- ends


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def end_of_run(output: Path) -> Any:
    """Weights, answers and scores of a run to the bit, and its steps."""
    result = json.loads((output / "result.json").read_text())
    steps = [
        row["step"]
        for row in map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        if row["split"] == "train"
    ]
    if steps != list(range(1, STEPS + 1)):
        raise Wrong(f"steps {steps}")
    weights = safetensors.torch.load_file(next((output / "model").glob("*.safetensors")))
    return {
        "weights": {
            name: digest(tensor.contiguous().view(torch.uint8).numpy().tobytes()) for name, tensor in weights.items()
        },
        "answers": {
            p.name: digest(json.dumps(pq.read_table(p).to_pylist(), default=str).encode())
            for p in sorted((output / "predictions").glob("*"))
        },
        "scores": [[stage["metrics"], stage["baselines"]] for stage in result["stages"]],
        "files": sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()),
    }


def check_whole(folder: Path) -> None:
    """Wrong where a file that has its name is cut."""
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                content = path.read_text()
                assert content.endswith("\n") or not content, "a cut line"
                for line in content.splitlines():
                    json.loads(line)
            elif path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".safetensors":
                safetensors.torch.load_file(path)
            elif path.suffix in {".html", ".yaml", ".md"}:
                assert path.read_text().strip(), "empty"
        except Exception as error:
            raise Wrong(f"cut: {path.relative_to(folder)}: {error}") from error


# ------------------------------------------------------------------------------------------- the Hub


@contextlib.contextmanager
def hub(place: Path) -> Iterator[str]:
    """A stand-in Hub in a process of its own; its address."""
    reading, writing = os.pipe()

    def serve() -> int:
        with HubServer() as server:
            os.write(writing, server.url.encode() + b"\n")
            signal.pause()
        return 0

    child = start(place / "hub.log", [], action=serve)
    with os.fdopen(reading) as file:
        url = file.readline().strip()
    os.close(writing)
    try:
        yield url
    finally:
        child.kill()


def to_hub(url: str) -> None:
    """Have this process take an address for the Hub's."""
    from huggingface_hub import constants

    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = url, False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    os.environ["HF_TOKEN"] = HubServer.token


def state_of(url: str, repo: str) -> Any:
    """The files of a repository, by another process."""
    reading, writing = os.pipe()

    def look() -> int:
        to_hub(url)
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        api = HfApi(endpoint=url, token=HubServer.token)
        try:
            found = sorted([f.path, f.size, f.blob_id] for f in api.list_repo_tree(repo, recursive=True))
            commits = len(api.list_repo_commits(repo))
        except RepositoryNotFoundError:
            found, commits = None, 0
        os.write(writing, json.dumps([found, commits]).encode())
        return 0

    child = start(Path(os.devnull), [], action=look)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    child.wait()
    return json.loads(text)[0]


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
