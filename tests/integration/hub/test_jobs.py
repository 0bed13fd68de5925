"""Recipes as jobs: the real client against the stand-in Hub, which runs nothing by itself."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.hub_server import Account, HubServer, hub_environment
from tests.tiny.host import Host, environment
from tests.tiny.images import write_recipe
from tests.unit.config.test_loading import RECIPES
from tltasks.cli.commands import INTERRUPTED, MISUSED, RAISED, main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.hub.jobs import IMAGE
from tltasks.hub.submission import WHEEL

# The client itself uploads large files in a way that its HTTP library advises against (huggingface_hub 2.4, lfs.py).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
DATA, RESULTS = "ada/tltasks-photos", "ada/photos"


@pytest.fixture
def server(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub that runs jobs, too; nobody's waits take time, and it is the one that all addresses lead to."""
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in ("huggingface_hub.hf_api", "tltasks.hub.retries"):
        monkeypatch.setattr(f"{module}.time", quick)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    return server


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "photos.yaml", tiny / "vit", tiny / "data")


def submit(recipe: Path, *words: str, flavor: str = "a10g-large") -> int:
    timeout = [] if "--timeout" in words else ["--timeout", "2h"]
    return main(["submit", str(recipe), "--flavor", flavor, *timeout, *words])


def uploads(server: HubServer) -> list[str]:
    return [
        request.line for request in server.requests if request.method in ("PUT", "DELETE") or "commit" in request.path
    ]


def test_the_whole_way(server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def go_on() -> None:
        (job,) = server.jobs.values()
        job.stage, job.lines = "RUNNING", [*job.lines, f"step {len(job.lines)}"]
        if len(job.lines) == 3:
            job.end("COMPLETED")

    server.before("GET .*/logs", go_on, times=-1)
    assert submit(recipe, "--yes", "--attempts", "3") == 0
    shown = capsys.readouterr()
    (job,) = server.jobs.values()
    assert shown.out.splitlines()[-3:] == ["step 0", "step 1", "step 2"]  # each once
    assert "at most $3.00, each of 3 attempts, at $0.025 a minute" in shown.out
    assert f"job {job.id} completed" in shown.err

    spec = job.spec
    assert (spec["dockerImage"], spec["flavor"], spec["timeoutSeconds"], spec["attempts"]) == (
        IMAGE,
        "a10g-large",
        7200,
        3,
    )
    assert spec["secrets"] == {"HF_TOKEN": server.token}
    sha256 = spec["labels"]["tltasks"]
    assert re.fullmatch("[0-9a-f]{16}", sha256)
    assert spec["labels"]["name"] == "photos"
    bash, flag, script = spec["command"]
    assert (bash, flag) == ("bash", "-c")
    assert "\n" not in script
    commit = server.commits(DATA, type="dataset")[0]
    assert f"hf download {DATA} --repo-type dataset --revision {commit.oid} --local-dir submission &&" in script
    assert script.endswith(f"exec tltasks carry-out submission ada/tltasks-photos-{sha256[:8]} --until $end")

    assert server.repositories["dataset", DATA].private
    files = server.files(DATA, type="dataset")
    assert {"recipe.yaml", WHEEL, "files/0/vit/model.safetensors", "files/1/train.parquet"} <= files.keys()
    everything = b"".join(files.values()) + json.dumps({**spec, "secrets": None}).encode() + shown.out.encode()
    assert server.token.encode() not in everything + shown.err.encode()


def test_the_recipe_that_goes_is_the_same_elsewhere(server: HubServer, recipe: Path, tmp_path: Path) -> None:
    assert submit(recipe, "--yes", "--detach", "--set", "seed=5") == 0
    for name, content in server.files(DATA, type="dataset").items():
        place = tmp_path / "elsewhere" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    there = load_recipe(tmp_path / "elsewhere" / "recipe.yaml")
    assert (there.seed, there.hub.repo) == (5, RESULTS)
    assert plan_run(there).sha256 == plan_run(load_recipe(recipe, ["seed=5"])).sha256
    with zipfile.ZipFile(io.BytesIO((tmp_path / "elsewhere" / WHEEL).read_bytes())) as wheel:
        assert wheel.testzip() is None
        cards = {f"tltasks/hub_cards/{card.name}" for card in (RECIPES.parent / "hub_cards").iterdir()}
        assert {"tltasks/cli/commands.py", "tltasks/py.typed", *cards} <= {*wheel.namelist()}


def test_a_dry_run_sends_nothing(server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(recipe, "--dry-run") == 0
    shown = capsys.readouterr().out
    for line in (
        "job ",
        "command ",
        "timeout  2 h 0 min",
        "cost ",
        "uploads ",
        "secrets ",
        "state ",
        f"results  {RESULTS}",
    ):
        assert f"\n{line}" in f"\n{shown}"
    server.fail("GET /api/jobs/hardware", status=404)
    assert submit(recipe, "--dry-run") == 0
    assert "cost     unknown: the Hub tells no price" in capsys.readouterr().out
    assert not server.repositories
    assert not server.jobs
    assert not uploads(server)


def test_refused_before_anything_is_uploaded(
    server: HubServer, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(status: int, said: str, *words: str, flavor: str = "a10g-large", path: Path = recipe) -> None:
        assert submit(path, *words, flavor=flavor) == status
        shown = capsys.readouterr().err
        assert said in shown, shown
        assert shown.count("error:") == 1
        assert not uploads(server)

    refused(MISUSED, "say --yes")
    refused(MISUSED, "no such hardware; did you mean `a10g-large`?", flavor="a10g-lage")
    refused(MISUSED, "--timeout 5: write a time", "--timeout", "5")
    refused(MISUSED, "no such variable is set", "--secret", "ABSENT_KEY")
    refused(MISUSED, "there is no file", "--set", "data.files=./absent.csv")
    server.fail("GET /api/jobs/hardware", status=503, times=-1)
    refused(RAISED, "the Hub is in trouble (503)", "--yes")
    server.clear_faults()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(recipe.read_text().replace("epochs", "epoch"))
    refused(MISUSED, "epoch", path=wrong)
    table = tmp_path / "listed" / "train.csv"
    table.parent.mkdir()
    (tmp_path / "beside.png").write_bytes(b"")
    table.write_text("image,label\n../beside.png,a\n")
    refused(RAISED, "not below its folder", "--yes", "--set", f"data={{name: csv, files: {table}}}")
    for account, said in (
        (Account("ada", role="read"), "may only read"),
        (Account("ada", may_run=False), "(403)"),
    ):
        server.tokens[server.token] = account
        refused(RAISED, said, "--yes")
    monkeypatch.delenv("HF_TOKEN")
    refused(RAISED, "not logged in", "--yes")


def test_without_credit(server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.tokens[server.token] = Account("ada", credit=False)
    assert submit(recipe, "--yes") == RAISED
    assert "no credit for this" in capsys.readouterr().err


def test_an_upload_that_breaks_is_gone_on_with(server: HubServer, recipe: Path) -> None:
    server.fail("PUT /lfs-storage", status=500, times=-1, skip=1)
    assert submit(recipe, "--yes", "--detach") == RAISED
    (kept,) = server.objects
    assert not server.jobs
    server.clear_faults()
    server.requests.clear()
    assert submit(recipe, "--yes", "--detach") == 0
    sent = [request.path.split("/")[-1] for request in server.requests if request.method == "PUT"]
    assert sent
    assert kept not in sent
    server.requests.clear()
    (job,) = server.jobs.values()
    job.end("ERROR", "Job timeout")
    assert submit(recipe, "--yes", "--detach") == 0  # nothing has changed
    assert not uploads(server)
    assert len(server.jobs) == 2


def test_data_of_somebody_else_stay(server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.add_repo(DATA, {"README.md": b"---\nlicense: mit\n---\nmine"}, type="dataset", private=True)
    assert submit(recipe, "--yes", "--detach") == RAISED
    assert "rename the recipe" in capsys.readouterr().err
    assert not uploads(server)
    server.repositories.clear()
    assert submit(recipe, "--yes", "--detach") == 0
    assert "files/0/vit/config.json" in server.files(DATA, type="dataset")
    assert submit(recipe, "--yes", "--detach", "--set", "model.name=ada/vit") == 0
    names = server.files(DATA, type="dataset").keys()
    assert "files/0/train.parquet" in names
    assert not [name for name in names if "vit" in name]  # of the earlier recipe


def test_a_job_whose_answer_was_lost_is_not_begun_twice(server: HubServer, recipe: Path) -> None:
    server.cut("POST /api/jobs/ada")
    assert submit(recipe, "--yes", "--detach") == 0
    assert len(server.jobs) == 1


def test_one_job_of_a_recipe_at_a_time(server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(recipe, "--yes", "--detach") == 0
    assert submit(recipe, "--yes", "--detach") == MISUSED
    (job,) = server.jobs
    assert f"job {job} carries out this recipe already" in capsys.readouterr().err
    assert submit(recipe, "--yes", "--detach", "--set", "seed=1") == 0  # another one


def test_other_local_data_are_another_run(server: HubServer, recipe: Path, tiny: Path, tmp_path: Path) -> None:
    """It does not go on from the state of the one before, whose steps were of other rows."""
    data = tmp_path / "data"
    shutil.copytree(tiny / "data", data)
    recipe = write_recipe(recipe, tiny / "vit", data)
    assert submit(recipe, "--yes", "--detach") == 0
    shutil.copy(data / "test.parquet", data / "train.parquet")
    assert submit(recipe, "--yes", "--detach") == 0
    states = {job.spec["command"][-1].split(" carry-out submission ")[1].split()[0] for job in server.jobs.values()}
    assert len(states) == 2


@pytest.mark.parametrize(("stage", "message"), [("ERROR", "Job timeout"), ("ERROR", "exit 1"), ("CANCELED", None)])
def test_how_a_job_may_end(
    server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str], stage: str, message: str | None
) -> None:
    server.before("GET .*/logs", lambda: next(iter(server.jobs.values())).end(stage, message))
    assert submit(recipe, "--yes") == 1
    said = capsys.readouterr().err
    assert stage.lower() in said
    assert (message or "") in said
    assert "goes on from there" in said


def test_jobs_are_listed_followed_and_ended(
    server: HubServer, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(recipe, "--yes", "--detach") == 0
    (job,) = server.jobs.values()
    other = server.jobs["other"] = type(job)("other", "ada", {"labels": {"name": "another"}, "flavor": "cpu-basic"})
    capsys.readouterr()
    assert main(["jobs"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{job.id}  SCHEDULING  a10g-large")
    assert other.stage == "SCHEDULING"

    job.lines = ["one", "two \x1b[31m hf_notATokenButItLooksLikeOne"]
    server.cut("GET .*/logs", after_bytes=250)
    server.fail("GET .*/logs", status=502, skip=1)
    assert main(["jobs", job.id]) == RAISED
    shown = capsys.readouterr()
    assert f"goes on. Follow it again: tltasks jobs {job.id}" in shown.err

    assert main(["jobs", job.id, "--cancel"]) == 0
    assert job.stage == "CANCELED"
    capsys.readouterr()
    assert main(["jobs", job.id]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["one", "two \\u001b[31m …"]
    assert "canceled" in shown.err
    assert main(["jobs"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["jobs", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["jobs", "absent"]) == RAISED
    assert "job absent: not found" in capsys.readouterr().err
    assert main(["jobs", "--cancel"]) == MISUSED


# ------------------------------------------------------------------------------------- inside a job

CARRY_OUT = """
import multiprocessing, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from tltasks.cli.commands import main
from tltasks.hub import carrying_out

class Run:  # as subprocess.Popen, without the seconds that imports take
    def __init__(self, command):
        words = command[command.index("tltasks") + 1 :]
        self.process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(words)))
        self.process.start()
        self.pid = self.process.pid
    returncode = property(lambda self: self.process.exitcode)
    def poll(self):
        return self.process.exitcode
    def wait(self, timeout):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("run", timeout)

carrying_out.subprocess.Popen = Run
submission, state, stopped = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "stopped"
clock = lambda: 2 if stopped and any(submission.glob("run/checkpoints/*/step-*")) else 0
carrying_out.time = SimpleNamespace(time=clock, monotonic=time.monotonic)
say = lambda text: print(text, file=sys.stderr, flush=True)
say(f"status {carrying_out.carry_out(submission, state, [], until=1, processes=1, say=say, seconds=0.02)}")
"""
"""Begins a job; `stopped` ends its time with the first checkpoint."""


@pytest.mark.exhaustive
def test_a_run_goes_on_in_another_job(hub: HubServer, hub_host: Host, tiny: Path, tmp_path: Path) -> None:
    stage = "{stage: transfer, epochs: 12, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}}"
    recipe = write_recipe(tmp_path / "pictures.yaml", tiny / "vit", tiny / "data", stage=stage)
    hub_host.run(tmp_path / "plain.txt", "run", recipe, "--output", tmp_path / "plain")
    words = ("submit", recipe, "--flavor", "cpu-basic", "--yes", "--detach")
    hub_host.run(tmp_path / "submit.txt", *words)
    (job,) = [job for job in hub.jobs.values() if job.spec["labels"]["name"] == "pictures"]
    estimated = job.spec["timeoutSeconds"]
    assert 1800 <= estimated < 2400
    state = job.spec["command"][-1].split(" carry-out submission ")[1].split()[0]

    def fetched(name: str) -> Path:
        for path, content in hub.files("ada/tltasks-pictures", type="dataset").items():
            place = tmp_path / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return tmp_path / name

    def carried_out(name: str, *words: str) -> str:
        log = tmp_path / f"{name}.txt"
        return hub_host.run(log, fetched(name), state, *words, "", code=CARRY_OUT).said()

    said = carried_out("first", "stopped")
    assert "time is almost over" in said
    assert f"status {INTERRUPTED}" in said
    job.end("ERROR", "exit code 143")
    kept = hub.files(state)
    assert any(re.match("checkpoints/transfer/step-[0-9]+/model.safetensors", path) for path in kept), kept.keys()
    assert len(hub.commits(state)) == 1  # earlier checkpoints take no room
    assert hub.repositories["model", state].private
    words = (*words, "--timeout", "2h")
    hub_host.run(tmp_path / "again.txt", *words)
    hub.fail("POST .*/super-squash", status=500, times=1)
    said = carried_out("last")
    assert f"going on from {state}" in said
    assert "status 0" in said
    assert hub.files("ada/pictures")["model.safetensors"] == (tmp_path / "plain/model/model.safetensors").read_bytes()
    kept = hub.files(state)
    assert {"result.json", "log.txt", "predictions/transfer-test.parquet"} <= kept.keys()
    assert not [path for path in kept if path.endswith("model.safetensors")]
    for job in hub.jobs.values():
        job.end("COMPLETED")
    again = hub_host.run(tmp_path / "done.txt", *words, status=RAISED).said()
    assert "this recipe has been carried out: results are in ada/pictures" in again


@pytest.mark.exhaustive
def test_the_command_of_a_job(hub: HubServer, hub_host: Host, tiny: Path, tmp_path: Path) -> None:
    """It is run as it is, but for `uv`, which finds all installed already."""
    recipe = write_recipe(tmp_path / "snapshots.yaml", tiny / "vit", tiny / "data")
    words = ("--flavor", "cpu-basic", "--timeout", "1h", "--yes", "--detach")
    hub_host.run(tmp_path / "submit.txt", "submit", recipe, *words)
    (job,) = [job for job in hub.jobs.values() if job.spec["labels"]["name"] == "snapshots"]
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = Path(sysconfig.get_path("scripts"))
    for name, text in {
        "uv": f'echo "$@" >> {tmp_path}/uv.txt',
        "hf": f'exec {scripts}/hf "$@"',
        "tltasks": f'exec {sys.executable} -m tltasks "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "home").mkdir()
    variables = environment() | hub_environment(hub, tmp_path / "cache", token=None) | job.spec["environment"]
    variables |= job.spec["secrets"] | {"HOME": str(tmp_path / "home"), "PATH": f"{tools}:{os.environ['PATH']}"}
    ended = subprocess.run(job.spec["command"], env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "model.safetensors" in hub.files("ada/snapshots")
    assert hub.token not in ended.stdout + ended.stderr
    asked = (tmp_path / "uv.txt").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["huggingface_hub", f"submission/{WHEEL}"]
    assert (tmp_path / "home" / "submission" / WHEEL).is_file()
