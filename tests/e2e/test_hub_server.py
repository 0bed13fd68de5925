"""The stand-in Hub, asked by the real clients: what they get from it is what they would get from the Hub."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    close_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

from tests.hub_server import Account, HubServer, hub_environment

# The client itself uploads large files in a way that its HTTP library advises against (huggingface_hub 2.4, lfs.py).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "deep/er/notes.txt": b"notes"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as running:
        yield running
        close_session()


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token=server.token)


def run_client(server: HubServer, script: str) -> None:
    environment = os.environ | hub_environment(server) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("all good")


def test_downloads_are_whole_and_pinned(server: HubServer, tmp_path: Path) -> None:
    first = server.add_repo("ada/vit", FILES).oid
    server.commit("ada/vit", {"config.json": b"{'v': 2}"})

    def read(path: str, revision: str) -> bytes:
        found = hf_hub_download("ada/vit", path, revision=revision, endpoint=server.url, cache_dir=tmp_path)
        return Path(found).read_bytes()

    assert read("model.safetensors", "main") == WEIGHTS
    assert read("config.json", "main") == b"{'v': 2}"
    assert read("config.json", first) == b"{}"
    folder = Path(snapshot_download("ada/vit", revision=first, endpoint=server.url, cache_dir=tmp_path))
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == server.files("ada/vit", first)
    assert found.items() >= FILES.items()
    with pytest.raises(RemoteEntryNotFoundError):
        read("absent.txt", "main")


def test_a_cut_download_is_resumed_by_range(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # what it keeps of a broken download
    server.add_repo("ada/vit", FILES)
    server.cut("GET .*/model.safetensors", after_bytes=5000)
    found = hf_hub_download("ada/vit", "model.safetensors", endpoint=server.url, cache_dir=tmp_path)
    assert Path(found).read_bytes() == WEIGHTS
    ranges = [r.headers["range"] for r in server.requests if "range" in r.headers]
    assert [r.status for r in server.requests if r.method == "GET"] == [0, 206]
    assert ranges == ["bytes=4500-"]


def test_who_may_see_a_private_repository(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    server.add_repo("ada/secret", FILES, private=True)
    server.tokens["hf_standinBob"] = Account("bob")

    def pull(token: str | bool) -> str:
        return hf_hub_download("ada/secret", "config.json", token=token, endpoint=server.url, cache_dir=tmp_path)

    with pytest.raises(RepositoryNotFoundError) as anonymous:
        pull(False)
    with pytest.raises(RepositoryNotFoundError) as stranger:
        pull("hf_standinBob")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as bad:
        pull("hf_standinUnknown")
    statuses = [caught.value.response.status_code for caught in (anonymous, stranger, bad)]
    assert statuses == [401, 404, 401]
    assert Path(pull(server.token)).read_bytes() == b"{}"
    api.update_repo_settings("ada/secret", private=False)
    assert Path(pull(False)).read_bytes() == b"{}"


def test_who_may_write(server: HubServer) -> None:
    server.tokens["hf_standinReader"] = Account("ada", role="read")
    server.tokens["hf_standinBob"] = Account("bob")
    for token, status in (("hf_standinReader", 403), ("hf_standinBob", 403), ("hf_standinUnknown", 401)):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(endpoint=server.url, token=token).create_repo("ada/new")
        assert caught.value.response.status_code == status
    assert not server.repositories


def test_commits_branches_tags_and_pull_requests(server: HubServer, api: HfApi) -> None:
    api.create_repo("ada/new", private=True)
    first = api.create_commit(
        "ada/new",
        [CommitOperationAdd("a.txt", b"one"), CommitOperationAdd("w.safetensors", WEIGHTS)],
        commit_message="first",
    )
    api.create_tag("ada/new", tag="v1")
    api.create_branch("ada/new", branch="draft")
    second = api.create_commit(
        "ada/new", [CommitOperationDelete("a.txt")], commit_message="second", parent_commit=first.oid
    )
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as stale:
        api.create_commit(
            "ada/new", [CommitOperationAdd("b.txt", b"b")], commit_message="third", parent_commit=first.oid
        )
    assert stale.value.response.status_code == 412
    pull = api.create_commit("ada/new", [CommitOperationAdd("c.txt", b"c")], commit_message="please", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    refs = api.list_repo_refs("ada/new", include_pull_requests=True)
    assert {r.name: r.target_commit for r in refs.branches} == {"main": second.oid, "draft": first.oid}
    assert [r.target_commit for r in refs.tags] == [first.oid]
    assert [c.title for c in api.list_repo_commits("ada/new")] == ["second", "first", "initial commit"]
    assert server.files("ada/new", "v1")["a.txt"] == b"one"
    assert "a.txt" not in server.files("ada/new")
    assert server.files("ada/new", "refs/pr/1").keys() == server.files("ada/new").keys() | {"c.txt"}
    api.delete_repo("ada/new")
    assert not api.repo_exists("ada/new")


def test_listings_agree_with_each_other(server: HubServer, api: HfApi) -> None:
    server.add_repo("ada/data", FILES, type="dataset")
    tree = {e.path: e for e in api.list_repo_tree("ada/data", repo_type="dataset", recursive=True, expand=True)}
    assert tree.keys() == FILES.keys() | {".gitattributes", "deep", "deep/er"}
    top = {e.path for e in api.list_repo_tree("ada/data", repo_type="dataset")}
    assert top == {".gitattributes", "config.json", "model.safetensors", "deep"}
    below = [e.path for e in api.list_repo_tree("ada/data", "deep", repo_type="dataset")]
    assert below == ["deep/er"]
    named = api.get_paths_info("ada/data", ["model.safetensors", "deep", "absent"], repo_type="dataset")
    assert [e.path for e in named] == ["model.safetensors", "deep"]
    info = api.dataset_info("ada/data", files_metadata=True)
    siblings = {s.rfilename: s for s in info.siblings or []}
    weights = siblings["model.safetensors"]
    assert weights.lfs is not None
    assert weights.lfs == named[0].lfs == tree["model.safetensors"].lfs
    assert siblings["config.json"].blob_id == tree["config.json"].blob_id


def test_faults_come_as_often_as_asked(server: HubServer, api: HfApi) -> None:
    server.add_repo("ada/vit", FILES)
    server.fail("GET /api/models/ada/vit$", status=503, times=2, skip=1)
    statuses = []
    for _ in range(4):
        try:
            api.model_info("ada/vit")
            statuses.append(200)
        except HfHubHTTPError as error:
            statuses.append(error.response.status_code)
    assert statuses == [200, 503, 503, 200] == [r.status for r in server.requests]


def test_datasets_loads_a_parquet_repository(server: HubServer) -> None:
    """As `uoft-cs/cifar10` is laid out: a folder of parquet files whose card declares the features."""
    run_client(
        server,
        """
        import datasets, numpy
        from huggingface_hub import HfApi
        features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "owl"]))
        pixels = numpy.arange(6 * 4 * 4 * 3, dtype="uint8").reshape(6, 4, 4, 3)
        made = datasets.Dataset.from_dict({"img": list(pixels), "label": [0, 1, 2, 0, 1, 2]}, features)
        HfApi().create_repo("analytical-engines/tiny", repo_type="dataset")
        made.push_to_hub("analytical-engines/tiny", "plain_text", split="train")
        made.select([0]).push_to_hub("analytical-engines/tiny", "plain_text", split="test")
        loaded = datasets.load_dataset("analytical-engines/tiny")
        assert {k: len(v) for k, v in loaded.items()} == {"train": 6, "test": 1}, loaded
        assert loaded["train"].features == features
        assert (numpy.array(loaded["train"][3]["img"]) == pixels[3]).all()
        assert len(datasets.load_dataset("analytical-engines/tiny", split="train[:50%]")) == 3
        try:
            datasets.load_dataset("analytical-engines/absent")
        except datasets.exceptions.DatasetNotFoundError:
            print("all good")
        """,
    )
    assert "plain_text/train-00000-of-00001.parquet" in server.files("analytical-engines/tiny", type="dataset")


def test_transformers_and_peft_push_and_load(server: HubServer) -> None:
    run_client(
        server,
        """
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig
        from transformers import ViTForImageClassification, ViTImageProcessor
        shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **shape)).eval()
        model.push_to_hub("ada/tiny-vit", private=True)
        ViTImageProcessor(size={"height": 8, "width": 8}).push_to_hub("ada/tiny-vit")
        pixels = torch.rand(2, 3, 8, 8)
        loaded = AutoModelForImageClassification.from_pretrained("ada/tiny-vit").eval()
        assert torch.equal(model(pixels).logits, loaded(pixels).logits)
        assert AutoImageProcessor.from_pretrained("ada/tiny-vit").size["height"] == 8
        adapted = get_peft_model(loaded, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
        adapted.push_to_hub("ada/tiny-lora")
        base = AutoModelForImageClassification.from_pretrained("ada/tiny-vit")
        again = PeftModel.from_pretrained(base, "ada/tiny-lora").eval()
        assert torch.equal(adapted(pixels).logits, again(pixels).logits)
        print("all good")
        """,
    )
    assert "adapter_model.safetensors" in server.files("ada/tiny-lora")
    assert server.repositories["model", "ada/tiny-vit"].private
