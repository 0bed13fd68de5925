"""What somebody else has written, in recipes, models, names and tables: nothing of it reads, runs or publishes more."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tltasks
from tests.tiny import images, topics
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import CheckpointError, HubError, RecipeError, TltasksError, printable, without_secrets
from tltasks.hub.results_plan import plan_results
from tltasks.hub.saved_model import load_saved_model
from tltasks.inference.prediction_writer import open_writer
from tltasks.results.result import load_result

SECRET = "s3cretVALUE"
TOKEN = "hf_" + "aB3" * 11
CANARY = "CANARY of this machine"
RNG = np.random.default_rng(0)


# ------------------------------------------------------------------------------------- logins and tokens

HELD: dict[str, dict[str, Any]] = {
    "login in the data's address": {"data.files": f"https://ada:{SECRET}@example.org/train.csv"},
    "user alone": {"data.files": f"https://{SECRET}@example.org/train.csv"},
    "one of several files": {"data.files": {"train": "a.csv", "test": [f"s3://ada:{SECRET}@bucket/b.csv"]}},
    "token in a query": {"data.files": f"https://example.org/a.csv?token={SECRET}"},
    "later in the query": {"data.files": f"https://example.org/a.csv?part=1&access_token={SECRET}"},
    "signed address": {"data.files": f"https://example.org/a.csv?X-Amz-Signature={SECRET}&x=1"},
    "another store's signature": {"data.files": f"https://example.org/a.csv?sv=1&sig={SECRET}"},
    "token as a revision": {"model.revision": TOKEN},
    "token in a name": {"model.name": f"ada/{TOKEN}"},
    "token in a prompt": {"data.config": f"with {TOKEN}."},
    "token as a key": {"data.extra_test": {TOKEN: {"files": "a.csv"}}},
    "token in the licence": {"hub.license": f"see {TOKEN}"},
    "another's token": {"hub.license": "github_pat_" + SECRET * 3},
    "results folder": {"output": f"out/{TOKEN}"},
    "sign that parts logins, in a password": {"data.files": f"https://ada:a@{SECRET}@example.org/a.csv"},
    "quote in a password": {"data.files": f"https://ada:{SECRET}'{SECRET}@example.org/a.csv"},
    "slash in a password": {"data.files": f"s3://ada:{SECRET}/{SECRET}@bucket/a.csv"},
    "token behind a number sign": {"data.files": f"https://example.org/a.csv#access_token={SECRET}"},
    "token in one word": {"data.files": f"https://example.org/a.csv?part=1&accessToken={SECRET}"},
    "token behind a semicolon": {"data.files": f"https://example.org/a.csv?part=1;token={SECRET}"},
    "signature of a share": {"data.files": f"https://example.org/a.csv?sas={SECRET}"},
    "token of a code host": {"hub.license": "glpat-" + SECRET * 3},
    "token of an organisation": {"hub.license": "api_org_" + SECRET * 3},
}
PLAIN: dict[str, dict[str, Any]] = {
    "address": {"hub.license": "https://example.org/a.csv?part=1&author=ada"},
    "file at a revision": {"hub.license": "hf://datasets/ada/x@main/a.csv"},
    "mail": {"hub.license": "see https://example.org or ada@example.org"},
    "port, and a name at a version": {"hub.license": "http://example.org:8080/x@v1 and http://[::1]:80/x@v1"},
    "number of words": {"hub.license": "https://example.org/?monkey=1&tokens=3#key"},
    "words": {"hub.license": "sk-learn-contrib-documentation hf_bert hf_wav2vec2 hf-internal-testing"},
}
TREE: dict[str, Any] = {
    "task": "image-classification",
    "model": {"name": "ada/vit"},
    "data": {"name": "ada/pictures"},
    "stages": [{"stage": "zero_shot"}],
    "output": "out",
}


def hides(message: str) -> bool:
    return SECRET not in message and TOKEN not in message


@pytest.mark.parametrize("changes", HELD.values(), ids=HELD)
def test_a_recipe_with_a_login_or_token_is_refused(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match="holds a login or a token") as caught:
        load_recipe(TREE, changes, check_files=False)
    assert hides(str(caught.value))
    (key, value), *_ = changes.items()
    (tmp_path / "r.yaml").write_text(json.dumps(TREE))
    assert main(["check", str(tmp_path / "r.yaml"), "--set", f"{key}={json.dumps(value)}"]) == 2
    assert hides(said := capsys.readouterr().err)
    assert "holds a login or a token" in said
    (tmp_path / "r.yaml").write_text(json.dumps(TREE, indent=1) + f"\n# once: {json.dumps(value)}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:\d+  holds a login or a token") as caught:
        load_recipe(tmp_path / "r.yaml")
    assert hides(str(caught.value))
    assert hides(without_secrets(json.dumps(changes)))
    assert hides(printable(json.dumps(changes)))


@pytest.mark.parametrize("changes", PLAIN.values(), ids=PLAIN)
def test_what_only_looks_like_a_login_is_kept(changes: dict[str, Any]) -> None:
    found = load_recipe(TREE, changes, check_files=False)
    assert found.hub.license == changes["hub.license"]
    assert without_secrets(changes["hub.license"]) == changes["hub.license"]


# --------------------------------------------------------------------------------------- code of others


@pytest.fixture
def coded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose checkpoint ships code, which leaves a file where it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLTASKS_CANARY", str(tmp_path / "ran"))
    model = images.save_model(tmp_path / "vit", labels=list(images.COLOURS)) or tmp_path / "vit"
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "canary", "auto_map": {"AutoConfig": "code_of_others.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code_of_others.py").write_text(
        "import os, pathlib, transformers\npathlib.Path(os.environ['TLTASKS_CANARY']).touch()\n"
        "class Config(transformers.ViTConfig):\n    model_type = 'canary'\n"
    )
    images.save_data(tmp_path / "data", rows=12)
    stage = "{stage: transfer, epochs: 1, batch_size: 8, learning_rate: 5e-3}"
    recipe = images.write_recipe(tmp_path / "recipe.yaml", Path("vit"), tmp_path / "data", stage=stage)
    text = recipe.read_text()
    assert "name: vit" in text
    recipe.write_text(text.replace("name: vit", "name: vit, trust_remote_code: true"))
    axes = {"model": {"a": {"model.revision": "main"}, "b": {"model.revision": "v1"}}}
    experiment = {"recipe": "recipe.yaml", "axes": axes, "output": "e", "candidates": "model"}
    (tmp_path / "e.yaml").write_text(json.dumps(experiment))
    space = {"stages.0.learning_rate": [1e-3, 1e-2]}
    (tmp_path / "s.yaml").write_text(json.dumps({"recipe": "recipe.yaml", "space": space, "trials": 1, "output": "s"}))
    return recipe


COMMANDS = ["run recipe.yaml --dry-run", "run recipe.yaml", "range-test recipe.yaml --output t"]
COMMANDS += ["compare e.yaml", "compare e.yaml --dry-run", "rank e.yaml", "tune s.yaml", "tune s.yaml --dry-run"]


def test_code_of_others_runs_when_its_user_says_so(coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = coded.parent / "ran"
    for command in COMMANDS:
        assert main(command.split()) == 2, command
        said = capsys.readouterr().err
        assert "asks to run Python code that others have written" in said, command
        assert "model.trust_remote_code: " in said
        assert "--trust-remote-code" in said
        assert not ran.exists(), command
    recipe = load_recipe(coded)
    calls: list[Callable[[], object]] = [
        lambda: tltasks.run(recipe, output=coded.parent / "o"),
        lambda: tltasks.compare(coded.parent / "e.yaml"),
        lambda: tltasks.load(coded.parent / "vit"),
    ]
    for call in calls:
        with pytest.raises((TltasksError, ValueError, OSError)):
            call()
        assert not ran.exists()
    assert main(["check", "recipe.yaml", "e.yaml", "s.yaml"]) == 0
    assert not ran.exists()
    with pytest.raises(RecipeError, match=r"stages\[0\]\.metrics\[0\]\.trust_remote_code.*evaluate/f1"):
        tltasks.run(load_recipe(coded, {"model.trust_remote_code": False, "stages.0.metrics": [METRIC]}))
    main(["run", "recipe.yaml", "--dry-run", "--trust-remote-code"])
    assert ran.exists(), "the code of this test does run"
    assert "Python code of its authors is run here" in capsys.readouterr().err


METRIC = {"name": "evaluate/f1", "trust_remote_code": True}


# ---------------------------------------------------------------------------------- demos of others' models


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own, with a folder of pictures beside it."""
    folder = tmp_path_factory.mktemp("own")
    images.save_model(folder / "vit", labels=list(images.COLOURS))
    images.save_data(folder / "data", rows=12)
    run_recipe(
        images.write_recipe(folder / "r.yaml", Path("vit"), folder / "data", stage="{stage: zero_shot}"), folder / "o"
    )
    return folder


def rows_of(path: str) -> str:
    return "\n".join(json.dumps({"image": path, "label": "red"}) for _ in range(4))


def published(own: Path, folder: Path, data: str, rows: str = "") -> Path:
    """A model as somebody may upload it: weights, recipe and a table side by side."""
    shutil.copytree(own / "o" / "model", folder)
    shutil.copyfile(own / "o" / "result.json", folder / "result.json")
    (folder / "data.json").write_text(rows)
    (folder / "recipe.yaml").write_text(
        f"task: image-classification\nmodel: {{name: ada/vit}}\ndata: {data}\noutput: o\nstages: [{{stage: zero_shot}}]"
    )
    return folder


TABLE = "{name: json, files: {test: data.json}, splits: {train: null}}"


def shown(model: Path, place: Path) -> list[bytes]:
    from tltasks.inference.demo import open_demo

    demo = open_demo(str(model), tag=None, revision="main", trust_remote_code=False, top_k=3, precision="fp32")
    place.mkdir()
    return [Path(path).read_bytes() for path in demo.examples(place)]


CASES = ["text", "picture by its path", "steps upwards", "link to a file", "link to a folder", "folder elsewhere"]
CASES += ["table elsewhere", "table behind a link", "address", "data of the Hub", "no picture below"]


@pytest.mark.parametrize("case", CASES)
def test_a_demo_shows_nothing_that_anothers_recipe_names(case: str, own: Path, tmp_path: Path) -> None:
    private, model = tmp_path / "private", tmp_path / "cats"
    private.mkdir()
    (private / "photo.png").write_bytes(images.png(images.picture("red", RNG, 32)))
    (private / "note.txt").write_text(CANARY)
    (private / "table.json").write_text(rows_of("photo.png"))
    match case:
        case "text":
            published(own, model, TABLE, rows_of(str(private / "note.txt")))
        case "picture by its path":
            published(own, model, TABLE, rows_of(str(private / "photo.png")))
        case "steps upwards":
            published(own, model, TABLE, rows_of("../private/photo.png"))
        case "link to a file":
            (published(own, model, TABLE, rows_of("a.png")) / "a.png").symlink_to(private / "photo.png")
        case "link to a folder":
            (published(own, model, TABLE, rows_of("a/photo.png")) / "a").symlink_to(private)
        case "folder elsewhere":
            published(own, model, f"{{name: imagefolder, dir: {private}, splits: {{train: null, test: train}}}}")
        case "table elsewhere":
            published(own, model, TABLE.replace("data.json", "../private/table.json"))
        case "table behind a link":
            (published(own, model, TABLE) / "data.json").unlink()
            (model / "data.json").symlink_to(private / "table.json")
        case "address":
            published(own, model, TABLE.replace("data.json", "http://127.0.0.1:9/data.json"))
        case "data of the Hub":
            published(own, model, "{name: ada/private}")
        case _:
            (published(own, model, TABLE, rows_of("a.png")) / "a.png").write_text(CANARY)
    assert shown(model, tmp_path / "shown") == []


def test_a_demo_shows_what_lies_with_the_model_and_what_is_ones_own(own: Path, tmp_path: Path) -> None:
    picture = images.png(images.picture("red", RNG, 32))
    (published(own, tmp_path / "cats", TABLE, rows_of("a.png")) / "a.png").write_bytes(picture)
    assert shown(tmp_path / "cats", tmp_path / "theirs") == [picture] * 4
    assert len(shown(own / "o", tmp_path / "mine")) == 4
    given = tmp_path / "given"  # a results folder that names its data by an absolute path, which no run writes
    shutil.copytree(own / "o", given)
    recipe = (given / "recipe.yaml").read_text()
    assert "../data" in recipe
    (given / "recipe.yaml").write_text(recipe.replace("../data", str(own / "data")))
    assert shown(given, tmp_path / "none") == []


@pytest.mark.parametrize("name", ["recipe.yaml", "README.md", "result.json"])
def test_a_login_that_was_added_to_results_is_not_published(name: str, own: Path, tmp_path: Path) -> None:
    output = tmp_path / "o"
    shutil.copytree(own / "o", output)
    plan = plan_run(load_recipe(output / "recipe.yaml", check_files=False))
    assert plan_results(output, plan).files
    with (output / name).open("a") as file:
        file.write(f"\n# {TOKEN}\n")
    with pytest.raises(HubError, match="holds a login or a token") as caught:
        plan_results(output, plan, load_result(own / "o" / "result.json"))
    assert hides(str(caught.value))


def test_a_card_behind_a_link_is_not_shown(own: Path, tmp_path: Path) -> None:
    from tltasks.inference.demo import open_demo

    (tmp_path / "note.txt").write_text(CANARY)
    model = published(own, tmp_path / "cats", TABLE)
    (model / "README.md").unlink(missing_ok=True)
    (model / "README.md").symlink_to(tmp_path / "note.txt")
    demo = open_demo(str(model), tag=None, revision="main", trust_remote_code=False, top_k=3, precision="fp32")
    assert CANARY not in (demo.card() or "")


def test_what_comes_from_the_hub_names_no_folder_of_this_machine(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "cache" / "models--ada--x" / "snapshots" / "1"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(own / "vit")}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"is an adapter for .*, which is not there"):
        load_saved_model(str(adapter), tag="image-classification")
    theirs = published(own, tmp_path / "cats", TABLE)
    recipe = theirs / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("ada/vit", str(own / "vit")))
    assert load_saved_model(str(theirs)).origin is None
    assert load_saved_model(str(own / "o")).origin is not None


def test_what_visitors_are_told_names_no_place() -> None:
    from tltasks.inference.demo import sentence

    for place in ("/home/ada/models/vit", "~/models/vit", "../../models/vit", "./a/b"):
        told = sentence(CheckpointError(f"model {place}: its config.json cannot be read ({place}/config.json)\nmore"))
        assert told == "Model …: its config.json cannot be read (…)"
    assert sentence(CheckpointError("google/vit: gone")) == "Google/vit: gone"


# ------------------------------------------------------------------------------------------ names, cells

LABELS = ["=1+1", "+a", "-b", "@c", "a:cat:b", "[red]"]


def test_labels_come_back_from_csv_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topics.save_model(tmp_path / "bert", labels=LABELS)
    (tmp_path / "=in.jsonl").write_text("\n".join(json.dumps({"text": f"text {i}"}) for i in range(3)))
    output = tmp_path / "out.csv"
    words = ["predict", str(tmp_path / "bert"), str(tmp_path / "=in.jsonl"), "--task", "text-classification"]
    assert main([*words, "--column", "text", "--output", str(output), "--top-k", "6"]) == 0
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [sorted(each["label"] for each in json.loads(row["top"])) for row in rows] == [sorted(LABELS)] * 3
    assert {row["prediction"] for row in rows} <= set(LABELS)
    n_formulas = sum(row["prediction"][0] in "=+-@" for row in rows)
    said = capsys.readouterr().err
    assert (f"{n_formulas} cells begin as a formula does" in said) == bool(n_formulas)


def test_json_lines_steer_no_terminal_and_say_the_same(tmp_path: Path) -> None:
    text = "a\x1b[31m b\x9b c\u202e d\x7f e\u2028 f:cat: 猫 \ud800"
    writer = open_writer(tmp_path / "a.jsonl", pa.schema([("input", pa.string())]), resume=False, flags={})
    writer.write([{"input": text}])
    writer.close()
    written = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert not any(character in written for character in "\x1b\x9b\u202e\x7f\u2028\ud800")
    assert "f:cat: 猫" in written
    assert json.loads(written) == {"input": text}
