"""Rows encoded once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.tiny.tables import load, save
from tltasks.data.encoding import encode_split
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import DataError

FEATURES = datasets.Features({"length": datasets.Value("int32")})


class Encoder:
    """Length of a picture's name; those of a label are bad."""

    def __init__(self, bad: str = "") -> None:
        self.bad, self.rows = bad, 0

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        self.rows += len(batch["row"])
        errors = [f"{label} is bad" if label == self.bad else None for label in batch["label"]]
        lengths = [None if e else len(i) for i, e in zip(batch["image"], errors, strict=True)]
        return {"length": lengths, "row": batch["row"], "error": errors}


def encode(split: Split, encoder: Encoder, *, key: str = "k", bad: float = 0.5) -> EncodedSplit:
    return encode_split(split, encoder, FEATURES, key=key, max_bad_share=bad)


def test_rows_are_encoded_once(tmp_path: Path) -> None:
    save(tmp_path, ["a"] * 100, "train")
    save(tmp_path, ["b"] * 7, "test")
    encoder = Encoder()
    first = encode(load(tmp_path)["train"], encoder)
    assert encoder.rows == 100
    again = encode(load(tmp_path)["train"], encoder)
    assert encoder.rows == 100, "found in the cache"
    assert again.fingerprint == first.fingerprint
    assert again.rows[:] == first.rows[:]
    encode(load(tmp_path)["train"], encoder, key="another")
    assert encoder.rows == 200
    encode(load(tmp_path, splits={"train": "train[:50]"})["train"], encoder)
    assert encoder.rows == 250
    held = {"splits": {"validation": 0.2}}
    for _ in range(2):
        encode(load(tmp_path, **held)["validation"], encoder)
    assert encoder.rows == 270, "shares drawn with the same seed are the same rows"


def test_fingerprints_are_of_the_content(tmp_path: Path) -> None:
    save(tmp_path / "one", ["a"] * 3, "train")
    save(tmp_path / "two", ["a"] * 3, "train")
    save(tmp_path / "three", ["a"] * 300, "train")
    found = []
    for name in ("one", "two", "three"):
        save(tmp_path / name, ["a"], "test")
        found.append(encode(load(tmp_path / name)["train"], Encoder(), key=name).fingerprint)
    assert found[0] == found[1] != found[2]


def test_bad_rows_are_left_out_named_and_counted(folder: Path) -> None:
    encoded = encode(load(folder)["train"], Encoder(bad="c"), key="bad", bad=0.1)
    assert encoded.skipped == dict.fromkeys(range(9, 100, 10), "c is bad")
    assert len(encoded.rows) == 90
    assert set(encoded.rows["row"]) == set(range(100)) - encoded.skipped.keys()
    assert encoded.rows.column_names == ["length", "row"]


def test_too_many_bad_rows_are_an_error_with_ten_examples(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        encode(load(folder)["train"], Encoder(bad="b"), key="worse", bad=0.29)
    said = str(caught.value)
    assert "30 of 100 examples cannot be used (data.max_bad_share allows 29.0%)" in said
    assert said.count("b is bad") == 10
    assert "and 20 more" in said
    assert said.startswith("data.splits.train: parquet")


def test_the_cache_knows_the_role_of_a_split(tmp_path: Path) -> None:
    save(tmp_path, ["a"] * 10, "train")
    save(tmp_path, ["b"], "test")
    encoder = Encoder()
    for n, name in ((10, "train"), (20, "validation"), (20, "other")):
        encode(replace(load(tmp_path)["train"], name=name), encoder)
        assert encoder.rows == n, "evaluated under any name alike"


def test_the_cache_knows_the_files_that_rows_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("picture,kind\na.png,x\nb.png,y\n")
    (tmp_path / "a.png").write_bytes(b"one")
    encoder, rows = Encoder(), 0
    steps = ((True, lambda: None), (False, lambda: None), (True, lambda: (tmp_path / "a.png").write_bytes(b"two")))
    for is_new, change in (*steps, (True, lambda: (tmp_path / "b.png").write_bytes(b"new"))):
        change()
        split = load(tmp_path, name="csv", files={s: str(tmp_path / f"{s}.csv") for s in ("train", "test")})["train"]
        encode_split(split, encoder, FEATURES, key="k", max_bad_share=0, media="image")
        rows += 2 * is_new
        assert encoder.rows == rows


def test_nothing_is_written_beside_a_data_set_saved_to_disk(folder: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(folder / "test.parquet"), split="train")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    before = sorted(path.name for path in (tmp_path / "saved").rglob("*"))
    encode(load(folder, name=str(tmp_path / "saved"), files=None)["train"], Encoder())
    assert sorted(path.name for path in (tmp_path / "saved").rglob("*")) == before
