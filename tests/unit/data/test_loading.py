"""Splits as recipes write them, shares held out, and rows encoded once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from tltasks.config.data import ExtraTest, Splits
from tltasks.config.tasks.image import ImageColumns, ImageData
from tltasks.data.loading import EncodedSplit, Split, encode_split, load_splits
from tltasks.errors import DataError

COLUMNS = ImageColumns(image="picture", label="kind")


def save(folder: Path, kinds: list[str], name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"picture": [f"{name}-{i}" for i in range(len(kinds))], "kind": kinds, "other": list(range(len(kinds)))}
    datasets.Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 rows of train in three kinds (60, 30, 10), and 20 of test."""
    folder = tmp_path_factory.mktemp("data")
    save(folder, (["a"] * 6 + ["b"] * 3 + ["c"]) * 10, "train")
    save(folder, ["a", "b"] * 10, "test")
    return folder


def data(folder: Path, **keys: Any) -> ImageData:
    files = {name: str(folder / f"{name}.parquet") for name in ("train", "test")}
    splits = Splits(**keys.pop("splits", {}))
    return ImageData(**{"name": "parquet", "files": files, "columns": COLUMNS, "splits": splits, **keys})


def load(folder: Path, *, seed: int = 0, label: str | None = "label", **keys: Any) -> dict[str, Split]:
    return load_splits(data(folder, **keys), seed=seed, label=label)


def pictures(split: Split) -> list[str]:
    return list(split.rows["image"])


# ------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", range(100)),
        ("train[:95%]", range(95)),
        ("train[95%:]", range(95, 100)),
        ("train[10:12]", range(10, 12)),
        ("train[-3:]", range(97, 100)),
        ("train[90:1000]", range(90, 100)),
        ("train[:2]+train[-1:]", [0, 1, 99]),
    ],
)
def test_slices(folder: Path, spec: str, expected: Any) -> None:
    split = load(folder, splits={"train": spec})["train"]
    assert pictures(split) == [f"train-{i}" for i in expected]
    assert split.origin == f"parquet train.parquet test.parquet {spec}"
    assert split.rows.column_names == ["image", "label"]


def test_splits_may_be_joined(folder: Path) -> None:
    assert pictures(load(folder, splits={"train": "train[:1]+test[:1]"})["train"]) == ["train-0", "test-0"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("trian", r"data.splits.train: .* has no split `trian`; did you mean `train`\? It has: train \(100 rows\)"),
        ("train[", "has no split"),
        ("train[a:b]", "has no split"),
        ("train[:200%]", "has no split"),
        ("train+nope", "has no split"),
        ("train[5:5]", "has no rows"),
        ("train[200:300]", "has no rows"),
        ("train[9:3]", "has no rows"),
    ],
)
def test_slices_that_are_none(folder: Path, spec: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(folder, splits={"train": spec})


def test_what_is_evaluated_alone_needs_no_train(folder: Path) -> None:
    assert load_splits(data(folder), seed=0, label="label", train=False).keys() == {"test"}
    held = data(folder, splits={"test": 0.2})
    splits = load_splits(held, seed=0, label="label", train=False)
    assert len(splits["test"].rows) == 20, "a share is held out of train all the same"


def test_columns_that_are_missing_are_told_with_those_there_are(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(folder, columns=ImageColumns(image="pictrue", label="kind"))
    assert str(caught.value).count("has no column `pictrue`; did you mean `picture`?") == 1
    assert "Its columns: picture (string), kind (string), other (int64)" in str(caught.value)


# ------------------------------------------------------------------------------------------------ held out


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.25, None), (0.3, 0.3)])
def test_shares_are_disjoint_stratified_and_of_their_size(folder: Path, validation: float, test: float | None) -> None:
    parts = load(folder, splits={"validation": validation, "test": test})
    expected = {"validation": validation, "test": test or 0, "train": 1 - validation - (test or 0)}
    assert parts.keys() == {name for name, share in expected.items() if share}
    rows = [row for split in parts.values() for row in pictures(split)]
    assert sorted(rows) == sorted(f"train-{i}" for i in range(100))
    for name, split in parts.items():
        assert len(split.rows) == round(100 * expected[name])
        counts = Counter(split.rows["label"])
        for kind, share in {"a": 0.6, "b": 0.3, "c": 0.1}.items():
            assert abs(counts[kind] - share * len(split.rows)) <= 1, (name, kind)
    assert parts["validation"].name == "validation"
    assert parts["validation"].place == "data.splits.validation"
    assert "held out" in parts["validation"].origin
    assert "held out" not in parts["train"].origin


def test_shares_are_drawn_with_the_seed_and_keep_the_order(folder: Path) -> None:
    one, same, other = (load(folder, seed=s, splits={"validation": 0.2})["validation"] for s in (0, 0, 1))
    assert pictures(one) == pictures(same)
    assert pictures(one) != pictures(other)
    numbers = [int(p.split("-")[1]) for p in pictures(one)]
    assert numbers == sorted(numbers)


def test_labels_that_are_too_few_are_not_stratified(tmp_path: Path) -> None:
    save(tmp_path, [f"kind {i}" for i in range(10)], "train")
    save(tmp_path, ["kind 0"], "test")
    splits = load(tmp_path, splits={"validation": 0.2})
    assert (len(splits["train"].rows), len(splits["validation"].rows)) == (8, 2)
    assert len(load(tmp_path, label=None, splits={"validation": 0.01})["validation"].rows) == 1, "at least one"


def test_one_row_cannot_be_shared(tmp_path: Path) -> None:
    save(tmp_path, ["a"], "train")
    save(tmp_path, ["a"], "test")
    with pytest.raises(DataError, match=r"data.splits.validation: .*too few rows \(1\) to hold 1 of them out"):
        load(tmp_path, splits={"validation": 0.5})


# ------------------------------------------------------------------------------------------------- sources


def test_extra_tests_take_what_they_do_not_say_from_the_data(folder: Path, tmp_path: Path) -> None:
    save(tmp_path, ["a"] * 4, "elsewhere")
    extra = {
        "other": ExtraTest(files={"only": str(tmp_path / "elsewhere.parquet")}),
        "end": ExtraTest(split="train[-5:]"),
    }
    splits = load(folder, extra_test=extra)
    assert pictures(splits["other"]) == [f"elsewhere-{i}" for i in range(4)]
    assert splits["other"].place == "data.extra_test.other.split"
    assert pictures(splits["end"]) == [f"train-{i}" for i in range(95, 100)]


def test_every_mistake_comes_at_once(folder: Path, tmp_path: Path) -> None:
    extra = {"gone": ExtraTest(name=str(tmp_path / "gone")), "odd": ExtraTest(split="odd")}
    with pytest.raises(DataError) as caught:
        load(folder, splits={"validation": "valid"}, extra_test=extra)
    said = str(caught.value)
    for key in ("data.splits.validation: ", "data.extra_test.gone: ", "data.extra_test.odd.split: "):
        assert key in said
    assert len(said.splitlines()) == 3


def test_a_data_set_saved_to_disk(folder: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset("parquet", data_files=str(folder / "test.parquet"), split="train")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "dict")
    rows.save_to_disk(tmp_path / "single")
    for name, spec in (("dict", "test"), ("single", "train")):
        splits = load(folder, name=str(tmp_path / name), files=None, splits={"train": spec, "test": None})
        assert len(splits["train"].rows) == 20
        assert splits["train"].origin == f"{name} {spec}", "without the folders of this machine"


def test_media_are_not_decoded(tmp_path: Path) -> None:
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")})
    broken = {"picture": [{"bytes": b"no picture", "path": None}], "kind": ["a"]}
    for name in ("train", "test"):
        datasets.Dataset.from_dict(broken, features=features).to_parquet(tmp_path / f"{name}.parquet")
    assert load(tmp_path)["train"].rows[0]["image"]["bytes"] == b"no picture"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ada/none", "offline|could not be reached"),
        ("./no/such/folder", "not found .*existing folder"),
    ],
)
def test_a_source_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"data.name: {name}: .*({said})"):
        load_splits(ImageData(name=name, columns=COLUMNS), seed=0, label="label")


def test_a_file_that_is_damaged(folder: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes((folder / f"{name}.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"data.name: parquet train.parquet test.parquet: could not be read: "):
        load(tmp_path)


def _http_error() -> Exception:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    request = httpx2.Request("GET", "https://hub.test")
    return HfHubHTTPError("403 Forbidden\nmore", response=httpx2.Response(403, request=request))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_http_error, "the Hub refused: 403 Forbidden. For gated data run `hf auth login`."),
        (
            lambda: datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset"),
            "ask on https://huggingface.co/datasets/a/b. 2. When access is granted: `hf auth login`",
        ),
        (lambda: ConnectionError("Couldn't reach\nmore"), "the Hub could not be reached (Couldn't reach)."),
        (lambda: ValueError("Config name is missing.\nPlease"), "could not be read: Config name is missing."),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Any, said: str) -> None:
    def refuse(*arguments: Any, **keys: Any) -> None:
        raise error()

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        load_splits(ImageData(name="a/b", columns=COLUMNS), seed=0, label="label")
    assert str(caught.value).startswith("data.name: a/b: ")
    assert said in str(caught.value)
    assert "more" not in str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_relative_media_start_at_their_table(tmp_path: Path, kind: str) -> None:
    for name in ("train", "test"):
        text = json.dumps({"picture": "x.png", "kind": "a"}) if kind == "json" else "picture,kind\nx.png,a"
        (tmp_path / f"{name}.{kind}").write_text(text + "\n")
    files = {name: str(tmp_path / f"{name}.{kind}") for name in ("train", "test")}
    assert load(tmp_path, name=kind, files=files)["train"].folder == tmp_path


# --------------------------------------------------------------------------------------------- encoding

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


# --------------------------------------------------------------------------------------------------- shots


def kinds(split: Split) -> Counter[str]:
    return Counter(split.rows["label"])


def test_shots_are_of_each_label_and_no_more_than_there_are(folder: Path) -> None:
    for shots, expected in ((1, (1, 1, 1)), (5, (5, 5, 5)), (20, (20, 20, 10)), (100, (60, 30, 10))):
        splits = load(folder, shots=shots)
        assert kinds(splits["train"]) == dict(zip("abc", expected, strict=True))
        assert len(splits["test"].rows) == 20, "only training is few-shot"
    assert f"100 shots of each label: {sum(expected)} rows" in splits["train"].origin


def test_shots_are_drawn_with_the_seed_and_more_of_them_include_the_fewer(folder: Path) -> None:
    drawn = [pictures(load(folder, seed=seed, shots=3)["train"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) < set(pictures(load(folder, shots=5)["train"]))


def test_shots_of_a_task_without_labels_are_examples(folder: Path) -> None:
    assert len(load(folder, label=None, shots=7)["train"].rows) == 7


def test_shots_leave_what_is_held_out_as_it_is(folder: Path) -> None:
    few, all_rows = (load(folder, shots=shots, splits={"validation": 0.2}) for shots in (2, None))
    assert pictures(few["validation"]) == pictures(all_rows["validation"])
    assert set(pictures(few["train"])) < set(pictures(all_rows["train"]))
    assert kinds(few["train"]) == {"a": 2, "b": 2, "c": 2}
