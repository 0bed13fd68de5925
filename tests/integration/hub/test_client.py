"""Pushing results: the real client against the stand-in Hub, every request of a push disturbed in turn."""

import base64
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from tests.hub_server import Account, HubServer, hub_environment
from tests.tiny.runs import traces
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import HubError
from tltasks.hub.client import PushReceipt, RetryPolicy, check_push, find_model, pull, push
from tltasks.hub.results_plan import plan_results
from tltasks.hub.upload_plan import MANIFEST, plan_space
from tltasks.results.result import Headline, Provenance, RunResult, Score, StageResult

# The client itself uploads large files in a way that its HTTP library advises against (huggingface_hub 2.4, lfs.py).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "ada/tiny-vit"
QUICK = RetryPolicy(attempts=3, first_wait=0, longest_wait=5, timeout=20)
CARD = "---\nlibrary_name: transformers\n---\n# A card\n"
PUBLISHED = {
    ".eval_results/tltasks.yaml",
    ".tltasks.json",
    "README.md",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "preprocessor_config.json",
    "recipe.yaml",
    "report.html",
    "result.json",
}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The results folder of a finished run."""
    folder = tmp_path / "results"
    (folder / "model").mkdir(parents=True)
    (folder / "predictions").mkdir()
    (folder / "predictions" / "transfer-test.parquet").write_bytes(b"not published")
    save_file({"head.weight": np.arange(600, dtype="float32")}, folder / "model" / "model.safetensors")
    for name, text in {
        "model/config.json": "{}",
        "model/preprocessor_config.json": "{}",
        "model/README.md": "PEFT's own card",
        "README.md": CARD,
        "metrics.jsonl": '{"step": 1, "loss": 0.5}\n',
        "report.html": "<html></html>",
        "recipe.yaml": yaml.safe_dump(recipe()),
    }.items():
        (folder / name).write_text(text)
    score = Score({"accuracy": 0.75}, "accuracy", (0.7, 0.8))
    stage = StageResult(
        kind="transfer",
        name="transfer",
        task="image-classification",
        higher_is_better=True,
        metrics={"test": score},
        baselines={},
        seconds=1.0,
        examples_per_second=10.0,
        peak_memory_bytes=1,
        trainable_parameters=1,
        total_parameters=2,
        weights=Provenance("ada/vit"),
        data={},
    )
    headline = Headline("accuracy", 0.75, (0.7, 0.8), "transfer", "test")
    RunResult("5eed" * 16, headline, [stage], {}, {}).save(folder / "result.json")
    return folder


def recipe(**data: object) -> dict[str, object]:
    own = {"name": "uoft-cs/cifar10", "splits": {"train": "train", "test": "test"}} | data
    stage = {"stage": "transfer", "epochs": 1, "learning_rate": 1e-3}
    return {"task": "image-classification", "model": {"name": "ada/vit"}, "data": own, "stages": [stage], "output": "x"}


RUN = plan_run(load_recipe(recipe()))


def digest(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def remote_files(server: HubServer, repo: str = REPO) -> dict[str, bytes]:
    return {path: data for path, data in server.files(repo).items() if path != ".gitattributes"}


def do_push(
    server: HubServer,
    output: Path,
    repo: str = REPO,
    *,
    card: str | None = None,
    retries: RetryPolicy = QUICK,
    **options: bool,
) -> PushReceipt:
    return push(
        plan_results(output, RUN, card=None if card is None else lambda result: card),
        repo,
        endpoint=server.url,
        retries=retries,
        **options,
    )


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(HubError) as caught:
        act()
    message = str(caught.value)
    assert HubServer.token not in message
    assert "hf_standin" not in message
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    return message


# ------------------------------------------------------------------------------------------ the plan


def test_plan_is_the_model_at_the_root_and_what_describes_it(output: Path) -> None:
    plan = plan_results(output, RUN)
    assert {f.path for f in plan.files} == PUBLISHED
    assert plan.recipe_sha256 == "5eed" * 16
    by_path = {f.path: f for f in plan.files}
    assert by_path["README.md"].content == output / "README.md"
    weights = by_path["model.safetensors"]
    assert weights.size == (output / "model" / "model.safetensors").stat().st_size
    manifest = json.loads(bytes(by_path[MANIFEST].content))
    assert manifest["recipe_sha256"] == plan.recipe_sha256
    assert manifest["files"].keys() == PUBLISHED - {MANIFEST}
    assert (
        manifest["files"]["model.safetensors"]["sha256"] == weights.sha256 == digest(output)["model/model.safetensors"]
    )


def test_plan_leaves_what_is_no_part_of_a_model(output: Path) -> None:
    model, before = output / "model", {file.path for file in plan_results(output, RUN).files}
    for name in (".env", ".git/config", "notes.txt", "model.safetensors~", "pytorch_model.bin", "train.py", "a/b.json"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("canary")
    (output / "outside").mkdir()
    (output / "outside" / "vocab.txt").write_text("canary")
    (model / "linked").symlink_to(output / "outside")
    (model / "readme").symlink_to(output / "outside" / "vocab.txt")
    os.mkfifo(model / "pipe")
    plan = plan_results(output, RUN)
    assert {file.path for file in plan.files} == before
    assert dict(plan.left) == {
        **dict.fromkeys([".env", ".git/config"], "hidden"),
        **dict.fromkeys(["linked", "readme"], "a link"),
        **dict.fromkeys(
            ["notes.txt", "model.safetensors~", "pytorch_model.bin", "train.py", "a/b.json", "pipe"],
            "no part of a model",
        ),
    }
    assert "notes.txt (no part of a model)" in str(plan.note())
    (model / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["train.T", null]}}')
    assert "train.py" in {file.path for file in plan_results(output, RUN).files}, "its own code"


@pytest.mark.parametrize("name", ["model/vocab.txt", "model/config.json", "README.md", "metrics.jsonl"])
def test_plan_refuses_links_in_the_place_of_its_files(output: Path, name: str) -> None:
    (output / "outside").write_text("{}")
    (output / name).unlink(missing_ok=True)
    (output / name).symlink_to(output / "outside")
    assert f"{output / name}: is a link" in refused(lambda: plan_results(output, RUN))


def test_plan_refuses_what_is_not_finished(output: Path) -> None:
    (output / "report.html").unlink()
    (output / "model" / "model.safetensors").unlink()
    message = refused(lambda: plan_results(output, RUN))
    assert "report.html" in message
    assert "model/*.safetensors" in message
    assert "README.md" not in message
    assert "lacks" in refused(lambda: plan_results(output / "absent", RUN))


def test_plan_refuses_an_unreadable_result(output: Path) -> None:
    (output / "result.json").write_text('{"schema": 1}')
    assert "result.json" in refused(lambda: plan_results(output, RUN))


@pytest.mark.parametrize(
    ("data", "dataset"),
    [
        ({}, {"id": "uoft-cs/cifar10", "task_id": "default"}),
        ({"config": "plain", "revision": "a" * 40}, {"task_id": "plain", "revision": "a" * 40}),
        ({"splits": {"test": "test[:100]"}}, None),
        ({"splits": {"test": 0.1}}, None),
        ({"name": "/data/photos"}, None),
        ({"name": "./data/photos"}, None),
        ({"name": "imagefolder", "dir": "photos"}, None),
        ({"name": "parquet", "files": {"test": "x.parquet"}}, None),
    ],
)
def test_evaluation_results_for_whole_splits_of_hub_data_alone(
    output: Path, data: dict[str, object], dataset: dict[str, str] | None
) -> None:
    run = plan_run(load_recipe(recipe(**data), check_files=False))
    found = {f.path: f for f in plan_results(output, run).files}.get(".eval_results/tltasks.yaml")
    if dataset is None:
        assert found is None
    else:
        assert found is not None
        (entry,) = yaml.safe_load(bytes(found.content))
        assert entry["dataset"].items() >= dataset.items()
        assert entry["value"] == 0.75


# ------------------------------------------------------------------------------------------ the push


def test_push_is_one_private_commit_of_the_folder(server: HubServer, output: Path) -> None:
    before = digest(output)
    receipt = do_push(server, output)
    assert server.repositories["model", REPO].private
    assert remote_files(server).keys() == PUBLISHED == set(receipt.uploaded)
    assert remote_files(server)["model.safetensors"] == (output / "model" / "model.safetensors").read_bytes()
    assert remote_files(server)["README.md"].decode() == CARD
    ours, initial = server.commits(REPO)
    assert (receipt.commit, receipt.url) == (ours.oid, f"{server.url}/{REPO}")
    assert ours.parent == initial.oid
    assert "5eed" in ours.message
    assert ours.tree["model.safetensors"].lfs
    assert not ours.tree["README.md"].lfs
    assert digest(output) == before


def test_second_push_of_the_same_is_no_commit(server: HubServer, output: Path) -> None:
    first = do_push(server, output)
    server.requests.clear()
    second = do_push(server, output)
    assert (second.commit, second.uploaded) == (first.commit, ())
    assert len(server.commits(REPO)) == 2
    assert {r.method for r in server.requests} <= {"GET", "HEAD"}


def test_push_of_a_later_run_changes_what_has_changed(server: HubServer, output: Path) -> None:
    do_push(server, output)
    server.commit(REPO, {"notes.txt": b"by a person", "README.md": CARD.encode()})
    (output / "metrics.jsonl").write_text('{"step": 2}\n')
    receipt = do_push(server, output)
    assert set(receipt.uploaded) == {"metrics.jsonl", MANIFEST}
    assert remote_files(server).keys() == PUBLISHED | {"notes.txt"}
    assert remote_files(server)["metrics.jsonl"] == b'{"step": 2}\n'


def test_another_card_takes_the_place_of_the_folders(server: HubServer, output: Path) -> None:
    before = digest(output)
    do_push(server, output, card=CARD + "for another repository\n")
    assert remote_files(server)["README.md"].decode().endswith("for another repository\n")
    assert do_push(server, output, card=CARD + "for another repository\n").uploaded == ()
    assert digest(output) == before


def test_repository_name_alone_is_the_users(server: HubServer, output: Path) -> None:
    assert do_push(server, output, "tiny-vit").url == f"{server.url}/{REPO}"
    assert remote_files(server).keys() == PUBLISHED


def test_a_plan_needs_neither_login_nor_network(
    server: HubServer, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert {file.path for file in plan_results(output, RUN).files} == PUBLISHED
    assert server.requests == []


def test_push_later_and_elsewhere(server: HubServer, output: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(output, elsewhere / "copy")
    script = (
        "from pathlib import Path; from tltasks.config.loading import load_recipe; "
        "from tltasks.config.recipe import plan_run; from tltasks.hub.client import push; "
        "from tltasks.hub.results_plan import plan_results; run = plan_run(load_recipe('copy/recipe.yaml')); "
        f"print(push(plan_results(Path('copy'), run), '{REPO}').commit)"
    )
    environment = os.environ | hub_environment(server)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == server.commits(REPO)[0].oid
    assert remote_files(server).keys() == PUBLISHED
    assert done.stderr == ""


# -------------------------------------------------------------------------------- what others wrote


@pytest.mark.parametrize("theirs", ["README.md", "model.safetensors", MANIFEST])
def test_a_file_of_somebody_else_is_never_overwritten(server: HubServer, output: Path, theirs: str) -> None:
    server.add_repo(REPO, {theirs: b"theirs"}, private=True)
    message = refused(lambda: do_push(server, output))
    assert theirs in message
    assert f"tltasks push {output}" in message
    assert remote_files(server) == {theirs: b"theirs"}
    assert {r.method for r in server.requests} <= {"GET", "HEAD"}


def test_our_file_that_somebody_changed_is_theirs(server: HubServer, output: Path) -> None:
    do_push(server, output)
    server.commit(REPO, {"README.md": b"---\nlicense: mit\n---\nbetter"})
    (output / "metrics.jsonl").write_text("{}\n")
    assert "README.md" in refused(lambda: do_push(server, output))
    assert remote_files(server)["README.md"].endswith(b"better")
    assert len(server.commits(REPO)) == 3


def test_files_of_an_earlier_push_that_would_mix_are_named(server: HubServer, output: Path) -> None:
    do_push(server, output)
    (output / "model" / "config.json").rename(output / "model" / "adapter_config.json")
    message = refused(lambda: do_push(server, output))
    assert "that these results do not have: config.json." in message
    assert len(server.commits(REPO)) == 2


def test_force_overwrites_what_others_wrote_and_deletes_what_would_mix(server: HubServer, output: Path) -> None:
    do_push(server, output)
    server.commit(REPO, {"README.md": b"---\nlicense: mit\n---\nbetter", "notes.txt": b"theirs"})
    (output / "model" / "config.json").rename(output / "model" / "adapter_config.json")
    do_push(server, output, force=True)
    files = remote_files(server)
    assert files["README.md"] == (output / "README.md").read_bytes()
    assert files.keys() == (PUBLISHED - {"config.json"}) | {"adapter_config.json", "notes.txt"}


def test_a_pull_request_changes_nothing(server: HubServer, output: Path) -> None:
    server.add_repo(REPO, {"README.md": b"theirs"}, private=True)
    receipt = do_push(server, output, pull_request=True)
    assert receipt.url.endswith(f"{REPO}/discussions/1")
    assert remote_files(server) == {"README.md": b"theirs"}
    assert server.files(REPO, "refs/pr/1").keys() - {".gitattributes"} == PUBLISHED
    assert server.repositories["model", REPO].tags == {}


@pytest.mark.parametrize("fault", [{"status": 503}, None])
def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(
    server: HubServer, output: Path, fault: dict[str, int] | None
) -> None:
    server.add_repo(REPO, {}, private=True)
    if fault:
        server.fail("POST .*/commit/main", **fault)
    else:
        server.cut("POST .*/commit/main", after_bytes=20)
    message = refused(lambda: do_push(server, output, pull_request=True))
    assert f"{REPO}/discussions before pushing again" in message
    assert len(server.repositories["model", REPO].pulls) <= 1
    assert sum("/commit/" in r.path for r in server.requests) == 1


def test_the_results_of_a_recipe_are_found_by_its_digest(server: HubServer, output: Path) -> None:
    first = do_push(server, output).commit
    repository = server.repositories["model", REPO]
    (tag,) = repository.tags
    assert tag == f"recipe-{plan_results(output, RUN).recipe_sha256[:16]}"
    assert repository.tags[tag] == first
    (output / "metrics.jsonl").write_text("{}\n")
    second = do_push(server, output).commit
    assert repository.tags[tag] == second != first


def test_a_public_repository_is_no_place_for_private_results(server: HubServer, output: Path) -> None:
    server.add_repo(REPO, {})
    assert "hub.private" in refused(lambda: do_push(server, output))
    assert remote_files(server) == {}
    do_push(server, output, private=False)
    assert remote_files(server).keys() == PUBLISHED


def test_a_space_serves_the_demo_of_a_published_model(server: HubServer) -> None:
    def publish(**options: Any) -> Any:
        model = find_model("tiny-vit", endpoint=server.url, retries=QUICK)
        plan = plan_space(model, ["--top-k", "3"])
        return push(plan, "ada/page", endpoint=server.url, retries=QUICK, **options)

    assert f"the model {REPO} is not on the Hub" in refused(publish)
    server.add_repo(REPO, {"config.json": b"{}"})
    receipt = publish()
    assert receipt.url == f"{server.url}/spaces/ada/page"
    assert server.repositories["space", "ada/page"].private
    files = server.files("ada/page", type="space")
    assert files.keys() - {".gitattributes"} == {"README.md", "app.py", "requirements.txt", MANIFEST}
    _, front, _ = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "title": "tiny-vit",
        "sdk": "gradio",
        "app_file": "app.py",
        "models": [REPO],
        "tags": ["tltasks"],
    }
    assert files["requirements.txt"].startswith(b"tltasks[demo]==")
    ran: list[list[str]] = []
    exec(files["app.py"].decode().replace("from tltasks.cli import main", ""), {"main": ran.append})
    assert ran == [["demo", REPO, "--top-k", "3"]]
    assert publish().uploaded == (), "the same again is no commit"
    server.commit("ada/page", {"app.py": b"print()"}, type="space")
    assert "app.py" in refused(publish)
    assert server.files("ada/page", type="space")["app.py"] == b"print()"
    assert publish(force=True).uploaded == ("app.py",)


def test_a_commit_in_between_is_kept(server: HubServer, output: Path) -> None:
    server.before("POST .*/commit/main", lambda: server.commit(REPO, {"notes.txt": b"theirs"}))
    receipt = do_push(server, output)
    assert remote_files(server).keys() == PUBLISHED | {"notes.txt"}
    assert server.commits(REPO)[0].oid == receipt.commit
    assert [r.status for r in server.requests if "/commit/" in r.path] == [412, 200]


def test_a_commit_in_between_to_the_same_file_is_not_overwritten(server: HubServer, output: Path) -> None:
    server.before("POST .*/commit/main", lambda: server.commit(REPO, {"README.md": b"theirs"}))
    assert "README.md" in refused(lambda: do_push(server, output))
    assert remote_files(server) == {"README.md": b"theirs"}


def test_commits_in_between_without_end_are_an_error(server: HubServer, output: Path) -> None:
    count = itertools.count()
    server.before("POST .*/commit/main", lambda: server.commit(REPO, {f"{next(count)}.txt": b"theirs"}), times=-1)
    assert "somebody else changed the repository" in refused(lambda: do_push(server, output))
    assert remote_files(server).keys() == {"0.txt", "1.txt", "2.txt"}


def test_files_that_the_repository_ignores_are_reported(server: HubServer, output: Path) -> None:
    server.add_repo(REPO, {".gitignore": b"model.safetensors\n"}, private=True)
    message = refused(lambda: do_push(server, output))
    assert "lacks model.safetensors" in message
    assert ".gitignore" in message


# --------------------------------------------------------------------------------------------- faults


def record_requests(server: HubServer, output: Path, *, update: bool) -> list[tuple[str, int]]:
    """What a push asks, as (pattern, how many such requests came before), with `{repo}` for the repository."""
    prepare_remote(server, output, REPO, update=update)
    server.requests.clear()
    do_push(server, output)
    patterns = [
        f"{r.method} {re.sub('/lfs-storage/.*|/resolve/[0-9a-f]+|/revision/[0-9a-f]+', _cut_id, r.path)}".replace(
            REPO, "{repo}"
        )
        for r in server.requests
    ]
    return [(p, patterns[:i].count(p)) for i, p in enumerate(patterns)]


def _cut_id(match: re.Match[str]) -> str:
    return "/" + match[0].split("/")[1] + "/[0-9a-f]+"


def prepare_remote(server: HubServer, output: Path, repo: str, *, update: bool) -> None:
    """For an update, an earlier push of other metrics and weights; else no repository."""
    server.objects.clear()
    if update:
        metrics, weights = output / "metrics.jsonl", output / "model" / "model.safetensors"
        now = metrics.read_bytes(), weights.read_bytes()
        metrics.write_bytes(b"{}\n")
        weights.write_bytes(now[1][:-4] + b"\0\0\0\0")
        do_push(server, output, repo)
        metrics.write_bytes(now[0])
        weights.write_bytes(now[1])


FAULTS: dict[str, Callable[[HubServer, str, int], None]] = {
    **{
        str(status): lambda server, match, skip, status=status: server.fail(match, status=status, skip=skip)  # type: ignore[misc]
        for status in (400, 401, 403, 404, 409, 412, 500, 503)
    },
    "429": lambda server, match, skip: server.fail(match, status=429, skip=skip, headers={"Retry-After": "0"}),
    "502 page": lambda server, match, skip: server.fail(match, status=502, skip=skip, body=b"<html>Bad Gateway"),
    "503 for ever": lambda server, match, skip: server.fail(match, status=503, skip=skip, times=-1),
    "planted": lambda server, match, skip: server.fail(
        match, status=403, skip=skip, headers={"X-Error-Message": f"Bearer {server.token} hf_standinOther"}
    ),
    "no answer": lambda server, match, skip: server.cut(match, skip=skip),
    "half an answer": lambda server, match, skip: server.cut(match, skip=skip, after_bytes=150),
    "cut upload": lambda server, match, skip: server.cut(match, skip=skip, during="request", after_bytes=10),
    "cut for ever": lambda server, match, skip: server.cut(match, skip=skip, times=-1),
}
PASSING = {"409", "412", "429", "500", "503", "502 page", "no answer", "half an answer", "cut upload"}


@pytest.mark.parametrize("one_in", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("update", [False, True])
def test_faults_at_requests(
    server: HubServer,
    output: Path,
    update: bool,
    one_in: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every fault at every request; or one in four, so that each fault comes thrice and each request has four."""
    caplog.set_level(logging.INFO)  # below it the HTTP library tells every header that the server sends
    asked = record_requests(server, output, update=update)
    assert len(asked) == 12
    before = digest(output)
    covered, wrong = 0, []
    crossed = itertools.product(enumerate(asked), enumerate(FAULTS.items()))
    for (row, (pattern, skip)), (column, (name, fault)) in crossed:
        if (row + column + update) % one_in:
            continue
        repo = f"ada/case-{covered}"
        covered += 1
        prepare_remote(server, output, repo, update=update)
        old = remote_files(server, repo) if update else None
        fault(server, pattern.replace("{repo}", repo) + r"(\?|$)", skip)
        message = ""
        try:
            do_push(server, output, repo)
        except HubError as error:
            message = str(error)
        where = f"{name} at {pattern} ({skip}): {message}"
        if message and name in PASSING:
            wrong.append(f"not overcome: {where}")
        if message and (str(output) not in message or f"tltasks push {output}" not in message):
            wrong.append(f"says not how to go on: {where}")
        if "hf_standin" in message:
            wrong.append(f"shows a token: {where}")
        exists = ("model", repo) in server.repositories
        now = remote_files(server, repo) if exists else None
        if now not in (None, {}, old) and now.keys() != PUBLISHED:
            wrong.append(f"partial commit: {where}")
        server.clear_faults()
        do_push(server, output, repo)
        if len(server.commits(repo)) != (3 if update else 2):
            wrong.append(f"{len(server.commits(repo))} commits: {where}")
        expected = {f.path: f.sha256 for f in plan_results(output, RUN).files}
        if {p: hashlib.sha256(d).hexdigest() for p, d in remote_files(server, repo).items()} != expected:
            wrong.append(f"not completed: {where}")
    assert not wrong, "\n".join(wrong)
    assert covered == 12 * 16 / one_in
    assert digest(output) == before
    said = capfd.readouterr()
    assert caplog.text, "the client's own log is searched too"
    assert not traces(server.token, tmp_path, caplog.text, said.out, said.err)
    assert traces(server.token, base64.b64encode(f"Bearer {server.token} ".encode())), "it would be found"


def test_a_hub_that_hangs_is_given_up(server: HubServer, output: Path) -> None:
    server.delay("POST /api/repos/create", 30, times=-1)
    retries = dataclasses.replace(QUICK, attempts=2, timeout=0.2)
    began = time.monotonic()
    message = refused(lambda: do_push(server, output, retries=retries))
    assert "did not answer in time. Tried 2 times." in message
    assert time.monotonic() - began < 10


def test_a_commit_whose_answer_came_too_late_is_found(server: HubServer, output: Path) -> None:
    server.delay("POST .*/commit/main", 1.0)
    receipt = do_push(server, output, retries=dataclasses.replace(QUICK, first_wait=1.5, timeout=0.4))
    assert len(server.commits(REPO)) == 2
    assert receipt.commit == server.commits(REPO)[0].oid


def test_retry_after_is_respected_up_to_a_limit(
    server: HubServer, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tltasks.hub.retries.time", SimpleNamespace(sleep=waits.append))
    server.fail("POST /api/repos/create", status=429, headers={"Retry-After": "3"})
    server.fail("POST /api/repos/create", status=429, headers={"RateLimit": '"api";r=0;t=4'})
    do_push(server, output)
    assert waits == [3, 4]
    server.fail("GET /api/models", status=429, headers={"Retry-After": "3600"})
    assert "too many requests" in refused(lambda: do_push(server, output))
    assert waits == [3, 4]


def test_nobody_listens(output: Path, server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    message = refused(lambda: push(plan_results(output, RUN), REPO, endpoint="http://127.0.0.1:9", retries=QUICK))
    assert "the connection to the Hub broke" in message
    assert "Tried 3 times" in message
    said = [record.getMessage() for record in caplog.records if record.name == "tltasks.hub.retries"]
    assert [line.partition("Trying again in ")[2] for line in said] == ["0 s (1 of 3).", "0 s (2 of 3)."]
    assert all(line.startswith(f"push to {REPO}: the connection to the Hub broke") for line in said)


def test_push_without_login_or_offline(server: HubServer, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(lambda: do_push(server, output))
    monkeypatch.setenv("HF_TOKEN", "hf_standinUnknown")
    assert "hf auth login" in refused(lambda: do_push(server, output))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(lambda: do_push(server, output))
    assert not server.repositories


# ------------------------------------------------------------------------------------------ preflight


def check(server: HubServer, repo: str = REPO, **options: Any) -> None:
    check_push(repo, endpoint=server.url, retries=QUICK, **options)


def test_check_finds_nothing_wrong_and_changes_nothing(server: HubServer, output: Path) -> None:
    check(server)
    check(server, "tiny-vit")
    check(server, "analytical-engines/tiny-vit")
    assert not server.repositories
    do_push(server, output)
    check(server, private=True)
    assert {r.method for r in server.requests[:5]} == {"GET"}


@pytest.mark.parametrize(
    ("account", "repo", "says"),
    [
        (Account("ada", role="read"), REPO, "may only read"),
        (Account("ada", role="fineGrained", scopes=({"permissions": ["repo.content.read"]},)), REPO, "may only read"),
        (Account("ada"), "byron/tiny-vit", "not write to `byron`, only to: ada"),
        (Account("ada", orgs={"royal": "read"}), "royal/tiny-vit", "organisation `royal`"),
        (Account("ada", role="fineGrained", scopes=({"permissions": ["repo.write"]},)), REPO, None),
        (Account("ada", orgs={"royal": "write"}), "royal/tiny-vit", None),
    ],
)
def test_check_of_rights(server: HubServer, account: Account, repo: str, says: str | None) -> None:
    server.tokens[HubServer.token] = account
    if says is None:
        check(server, repo)
    else:
        message = refused(lambda: check(server, repo))
        assert says in message
        assert "--no-push" in message


@pytest.mark.parametrize("answer", [{"name": "ada"}, {"type": "user", "name": "ada", "auth": {}, "orgs": None}])
def test_check_trusts_an_account_of_which_little_is_told(server: HubServer, answer: dict[str, object]) -> None:
    server.fail("GET /api/whoami-v2", status=200, body=json.dumps(answer).encode())
    check(server)


def test_check_of_the_login(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_standinUnknown")
    assert "hf auth login" in refused(lambda: check(server))
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(lambda: check(server))


def test_check_of_the_repository(server: HubServer, output: Path) -> None:
    server.add_repo("ada/public", {})
    check(server, "ada/public")
    assert "hub.private" in refused(lambda: check(server, "ada/public", private=True))
    server.add_repo(REPO, {"README.md": b"theirs"})
    assert "README.md" in refused(lambda: check(server))


def test_published_results_are_read_with_a_token_alone(server: HubServer, output: Path, tmp_path: Path) -> None:
    do_push(server, output)
    folder = HfApi(endpoint=server.url, token=server.token).snapshot_download(REPO, cache_dir=tmp_path / "cache")
    assert (Path(folder) / "model.safetensors").read_bytes() == (output / "model" / "model.safetensors").read_bytes()
    assert not HfApi(endpoint=server.url, token=False).repo_exists(REPO)


# ----------------------------------------------------------------------------------------------- pull


@pytest.fixture
def model(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    names = [
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "pytorch_model.bin",
        "code.py",
        "other/model.safetensors",
    ]
    server.add_repo(REPO, {name: name.encode() for name in names})
    return server


def test_a_pull_takes_what_a_model_is_read_from(model: HubServer) -> None:
    first = model.commits(REPO)[0].oid
    model.commit(REPO, {"config.json": b"later"})
    folder = pull(REPO, endpoint=model.url, retries=QUICK)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "recipe.yaml"}
    assert (folder / "config.json").read_bytes() == b"later"
    assert (pull(REPO, revision=first, endpoint=model.url) / "config.json").read_bytes() == b"config.json"
    assert (pull(REPO, trust_remote_code=True, endpoint=model.url) / "code.py").is_file()


def test_a_pull_of_a_mistyped_folder_names_the_folder(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "photos").mkdir(parents=True)
    message = refused(lambda: pull("outputs/photo", endpoint=server.url, retries=QUICK))
    assert message.endswith("There is no folder outputs/photo; did you mean `photos`? The folder outputs holds photos")


def test_a_pull_outlasts_trouble_at_each_request(model: HubServer, tmp_path: Path) -> None:
    model.requests.clear()
    pull(REPO, endpoint=model.url, retries=QUICK)
    count = len(model.requests)
    assert count >= 4
    for i in range(count):
        for fault in (503, 429, "cut"):
            shutil.rmtree(tmp_path / "cache")
            if isinstance(fault, int):
                model.fail(".", status=fault, skip=i)
            else:
                model.cut(".", skip=i, after_bytes=20)
            folder = pull(REPO, endpoint=model.url, retries=QUICK)
            assert (folder / "model.safetensors").read_bytes() == b"model.safetensors", (i, fault)
            model.clear_faults()


def test_a_pull_that_cannot_succeed_says_why(model: HubServer) -> None:
    for repo, revision in (("ada/none", "main"), (REPO, "gone")):
        with pytest.raises(HubError, match=rf"model {repo}: not found.*Name a model that is there") as caught:
            pull(repo, revision=revision, endpoint=model.url, retries=QUICK)
        assert HubServer.token not in str(caught.value)
    model.fail("/resolve/", status=403, times=-1)
    with pytest.raises(HubError, match=r"model ada/tiny-vit: .*\(403\)"):
        pull(REPO, endpoint=model.url, retries=QUICK)
