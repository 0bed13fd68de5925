"""A folder becomes a data set on the stand-in Hub, through the real client, and is read back from there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from huggingface_hub import DatasetCard, HfApi, close_session
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from tests.hub_server import HubServer, hub_environment
from tests.tiny import speech
from tests.tiny.images import picture, png, save_data, save_model
from tests.tiny.runs import REPOSITORY
from tltasks.cli.commands import main
from tltasks.config.tasks import TASKS
from tltasks.data.loading import load_splits
from tltasks.hub.dataset import read_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    # datasets leaves metadata.csv open (datasets 5.2, folder_based_builder.py)
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RNG = np.random.default_rng(0)
REPO = "ada/pictures"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    offline = {"HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(tmp_path / "no-token")}
    for name, value in offline.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", HubServer.token)
    with disable_progress_bars(), HubServer() as running:
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running
        close_session()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for split, n in {"train": 4, "test": 2}.items():
        for label in ("red", "green"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                (folder / split / label / f"{i}.png").write_bytes(png(picture(label, RNG)))
    return folder


def fetched(server: HubServer, repo: str, folder: Path) -> Path:
    api = HfApi(endpoint=server.url)
    return Path(api.snapshot_download(repo, repo_type="dataset", cache_dir=folder / "cache"))


def test_what_is_loaded_is_what_was_pushed(
    server: HubServer, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push-data", str(pictures), "--repo", REPO, "--license", "cc-by-4.0"]) == 0
    said = capsys.readouterr().err
    assert "train: 8 examples in 2 classes" in said
    assert f"pushed {server.url}/datasets/{REPO}" in said
    place = fetched(server, REPO, tmp_path)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(pictures))
    files = {split: str(place / f"data/{split}-*.parquet") for split in ("train", "test")}
    again = datasets.load_dataset("parquet", data_files=files)
    for split in files:
        assert again[split].features == loaded[split].features
        assert list(again[split]["label"]) == list(loaded[split]["label"])
        pairs = list(zip(again[split]["image"], loaded[split]["image"], strict=True))
        assert len(pairs) == {"train": 8, "test": 4}[split]
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
    card = DatasetCard.load(place / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.task_categories == ["image-classification"]
    assert "| red | 4 | 2 |" in card.text
    front = card.data.to_dict()
    assert front["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*"},
        {"split": "test", "path": "data/test-*"},
    ]
    assert HfApi(endpoint=server.url).dataset_info(REPO).private is True


def test_a_second_push_changes_nothing_and_a_strangers_file_is_safe(
    server: HubServer, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["push-data", str(pictures), "--repo", REPO]
    api = HfApi(endpoint=server.url)
    assert main(arguments) == 0
    before = api.dataset_info(REPO).sha
    assert main(arguments) == 0
    assert api.dataset_info(REPO).sha == before
    api.upload_file(
        path_or_fileobj=b"---\nlicense: mit\n---\nmine", path_in_repo="README.md", repo_id=REPO, repo_type="dataset"
    )
    capsys.readouterr()
    assert main(arguments) == 1
    assert "files that no tltasks push wrote" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_bad_files_are_named_before_anything_is_sent(
    server: HubServer, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "train" / "red" / "broken.png").write_bytes(b"no picture")
    (pictures / "test" / "red" / "copy.png").write_bytes((pictures / "train" / "red" / "0.png").read_bytes())
    arguments = ["push-data", str(pictures), "--repo", REPO]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "cannot be read: train/red/broken.png" in said
    assert "same content: train/red/0.png and test/red/copy.png" in said
    assert "1 contents are in more than one split" in said
    assert ("dataset", REPO) not in server.repositories
    assert main([*arguments, "--skip-bad"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--skip-bad", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "1 files that could not be read were left out" in said
    assert "so that a test on these is no test" in said


def test_links_out_of_the_folder_are_not_followed(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(picture("red", RNG, 33)))
    (pictures / "train" / "red" / "mine.png").symlink_to(outside)
    (pictures / "train" / "red" / "twice.png").symlink_to(pictures / "train" / "red" / "0.png")
    assert main(["push-data", str(pictures), "--repo", REPO, "--dry-run"]) == 1
    assert "cannot be read: train/red/mine.png (leads out of the folder)" in capsys.readouterr().err
    assert read_folder(pictures).facts["train"].sizes != (33, 33)
    (pictures / "train" / "red" / "mine.png").unlink()
    (tmp_path / "table.csv").write_text("file_name,label\nred/0.png,canary\n")
    (pictures / "train" / "metadata.csv").symlink_to(tmp_path / "table.csv")
    assert main(["push-data", str(pictures), "--repo", REPO, "--dry-run"]) == 1
    assert "metadata.csv: leads out of the folder" in (said := capsys.readouterr().err)
    assert "canary" not in said


def test_recordings_have_a_text_and_a_length(server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = ["file_name,transcription"]
    for i, word in enumerate(("red", "blue", "green")):
        soundfile.write(folder / f"{i}.wav", speech.say([word] * (i + 1), RNG), 16000)
        lines.append(f"{i}.wav,{' '.join([word] * (i + 1))}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    media = read_folder(folder)
    assert media.kind == "audio"
    assert media.facts["train"].seconds == pytest.approx([0.4, 1.2, 2.4], abs=0.01)
    assert main(["push-data", str(folder), "--repo", "ada/clips", "--language", "en", "--public"]) == 0
    assert HfApi(endpoint=server.url).dataset_info("ada/clips").private is False
    place = fetched(server, "ada/clips", tmp_path)
    card = (place / "README.md").read_text()
    assert "columns: {audio: audio, text: transcription}" in card
    assert "licence was not stated" in card
    rows = datasets.load_dataset("parquet", data_files=str(place / "data/*.parquet"), split="train")
    assert isinstance(rows.features["audio"], datasets.Audio)
    assert rows.features["audio"].decode
    plain = rows.cast_column("audio", datasets.Audio(decode=False))
    assert plain[1]["audio"]["bytes"] == (folder / "1.wav").read_bytes()


def test_a_recipe_reads_it_by_its_id(server: HubServer, pictures: Path, tmp_path: Path) -> None:
    assert main(["push-data", str(pictures), "--repo", REPO]) == 0
    save_model(tmp_path / "vit")
    recipe: dict[str, Any] = {
        "task": "image-classification",
        "model": {"name": str(tmp_path / "vit")},
        "data": {"name": REPO},
        "stages": [{"stage": "transfer", "steps": 1, "batch_size": 4, "learning_rate": 1e-3}],
        "output": str(tmp_path / "run"),
        "precision": "fp32",
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    done = subprocess.run(
        [sys.executable, "-m", "tltasks", "run", str(tmp_path / "r.yaml")],
        env=os.environ | hub_environment(server, tmp_path / "home") | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stages"][0]["data"]["train"]["examples"] == 8
    assert result["stages"][0]["data"]["test"]["examples"] == 4


@pytest.mark.parametrize(("name", "said"), [("gone", "not a folder"), ("empty", "neither images nor recordings")])
def test_what_is_no_data_set_is_refused(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["push-data", str(tmp_path / name), "--repo", "ada/x"]) == 1
    assert said in capsys.readouterr().err


def test_training_rows_are_streamed_from_their_shards(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.url)
    save_data(tmp_path / "data")
    whole = datasets.Dataset.from_parquet(str(tmp_path / "data" / "train.parquet"))
    (tmp_path / "data" / "train.parquet").unlink()
    for i in range(3):
        whole.shard(3, i, contiguous=True).to_parquet(str(tmp_path / "data" / f"train-0000{i}-of-00003.parquet"))
    for split in ("validation", "test"):
        (tmp_path / "data" / f"{split}.parquet").rename(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    api = HfApi(endpoint=server.url)
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, repo_type="dataset", folder_path=tmp_path / "data", path_in_repo="data")
    keys = {"name": REPO, "streaming": True, "shuffle_buffer": 16, "splits": {"validation": "validation"}}
    splits = load_splits(TASKS["image-classification"].data.model_validate(keys), seed=0, label="label")
    stream = splits["train"].stream
    assert stream is not None
    read = [(rows["label"][:], numbers) for rows, numbers, *_ in stream.read(1, 0, 0)]
    by_number = {n: label for labels, numbers in read for n, label in zip(numbers, labels, strict=True)}
    assert [by_number[number] for number in sorted(by_number)] == whole["label"][:]
    assert len({number >> 32 for number in by_number}) == 3
    assert (len(splits["test"].rows), splits["test"].rows.features["label"].names) == (24, ["blue", "green", "red"])
    assert splits["train"].rows.features["label"].names == ["blue", "green", "red"]
    stored = [file.name for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("*train*.arrow")]
    assert not any("pictures" in name for name in stored)
