"""Splits as recipes write them, and shares held out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from tests.tiny.tables import COLUMNS, data, load, pictures, save
from tltasks.config.data import ExtraTest, ExtraTrain, Splits
from tltasks.config.tasks.image import ImageColumns, ImageData
from tltasks.config.tasks.speech import UnlabelledSpeechData
from tltasks.config.tasks.text import LabelledTextData
from tltasks.data.loading import load_splits
from tltasks.data.splits import SOURCE, Split, located
from tltasks.errors import DataError

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


def test_shares_may_have_a_seed_of_their_own(folder: Path) -> None:
    """So that runs with other seeds are tested on the same rows; few shots are drawn with the run's."""
    runs = [load(folder, seed=s, shots=3, splits={"test": 0.2, "validation": 0.1, "seed": 5}) for s in (0, 1)]
    for name in ("test", "validation"):
        assert len({tuple(pictures(splits[name])) for splits in runs}) == 1
    assert len({tuple(pictures(splits["train"])) for splits in runs}) == 2
    own = load(folder, seed=5, splits={"test": 0.2, "validation": 0.1})
    assert pictures(own["test"]) == pictures(runs[0]["test"])


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


def test_rows_of_other_sources_stand_behind_the_rows_of_the_data(folder: Path, tmp_path: Path) -> None:
    save(tmp_path, ["a"] * 4, "elsewhere")
    extra = {"more": ExtraTrain(files=str(tmp_path / "elsewhere.parquet")), "end": ExtraTrain(split="test[-5:]")}
    held = load(folder, splits={"test": 0.2})
    splits = load(folder, splits={"test": 0.2}, extra_train=extra)
    assert pictures(splits["test"]) == pictures(held["test"])  # which is held out of the data's own rows alone
    assert pictures(splits["train"])[:80] == pictures(held["train"])
    assert [Path(name).name for name in pictures(splits["train"])[80:84]] == [f"elsewhere-{i}" for i in range(4)]
    assert splits["train"].rows[SOURCE][:] == [0] * 80 + [1] * 4 + [2] * 5
    assert "more adds 4 rows to train on" in splits["train"].notes
    assert SOURCE not in splits["test"].rows.column_names


def test_files_of_another_source_are_found_from_its_own_table(tmp_path: Path) -> None:
    for name, label in (("here", "cat"), ("there", "dog")):
        (tmp_path / name / "pictures").mkdir(parents=True)
        (tmp_path / name / "pictures" / "1.png").write_bytes(name.encode())
        (tmp_path / name / "labels.csv").write_text(f"image,label\npictures/1.png,{label}\n")
    keys = {"name": "csv", "columns": ImageColumns(image="image", label="label"), "splits": Splits(test="train")}
    more = {"there": ExtraTrain(files=str(tmp_path / "there" / "labels.csv"))}
    both = ImageData(files=str(tmp_path / "here" / "labels.csv"), extra_train=more, **keys)
    train = load_splits(both, seed=0, label="label")["train"]
    files = [str(located(value, train.folder)) for value in train.rows["image"]]
    assert [Path(file).read_bytes() for file in files] == [b"here", b"there"]
    assert train.rows["label"][:] == ["cat", "dog"]


def test_another_source_is_an_error_where_its_classes_are_numbers(folder: Path, tmp_path: Path) -> None:
    rows = {"picture": ["a", "b"], "kind": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match=r"data.extra_train: .* numbers without names in more"):
        load(folder, extra_train={"more": ExtraTrain(files=str(tmp_path / "numbers.parquet"))})


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
        splits = load(folder, name=str(tmp_path / name), files=None, splits={"train": spec, "test": spec})
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

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(DataError) as caught:
        load_splits(ImageData(name="a/b", columns=COLUMNS), seed=0, label="label")
    assert str(caught.value).startswith("data.name: a/b: ")
    assert said in str(caught.value)
    assert "more" not in str(caught.value)


def test_a_folder_of_sounds_needs_no_ffmpeg(tmp_path: Path) -> None:
    """As datasets finds it and with a table beside it, whose card declares the columns."""
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / "plain" / split / kind).mkdir(parents=True)
            soundfile.write(tmp_path / "plain" / split / kind / "1.wav", np.zeros(160), 16_000)
        (tmp_path / "table" / split).mkdir(parents=True)
        soundfile.write(tmp_path / "table" / split / "1.flac", np.zeros(160), 16_000)
        (tmp_path / "table" / split / "metadata.jsonl").write_text('{"file_name": "1.flac", "label": "cat"}\n')
    (tmp_path / "table" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: audio\n    dtype: audio\n  - name: label\n    dtype: string\n---\n"
    )
    for name, source in (("plain", "audiofolder"), ("table", "audiofolder"), ("table", str(tmp_path / "table"))):
        folder = str(tmp_path / name) if source == "audiofolder" else None
        keys = {"name": source, "dir": folder, "columns": {"audio": "audio", "label": "label"}}
        found = load_splits(UnlabelledSpeechData(**keys), seed=0, label=None)
        assert [len(found[split].rows) for split in ("train", "test")] == [2 if name == "plain" else 1] * 2
        row = found["train"].rows[0]["audio"]
        assert row["bytes"] is None
        assert Path(row["path"]).is_file()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_relative_media_start_at_their_table(tmp_path: Path, kind: str) -> None:
    for name in ("train", "test"):
        text = json.dumps({"picture": "x.png", "kind": "a"}) if kind == "json" else "picture,kind\nx.png,a"
        (tmp_path / f"{name}.{kind}").write_text(text + "\n")
    files = {name: str(tmp_path / f"{name}.{kind}") for name in ("train", "test")}
    assert load(tmp_path, name=kind, files=files)["train"].folder == tmp_path


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


def test_tables_on_the_web_are_read_as_written_too(tmp_path: Path) -> None:
    cells = ["007", "NA", "1e5", "", "true", "null", "2021-05-18"]
    (tmp_path / "a.csv").write_text("more,text,label\n" + "".join(f"1,word,{cell}\n" for cell in cells))
    address = (tmp_path / "a.csv").as_uri()  # not a name on this machine, by its scheme
    source = LabelledTextData(name="csv", files={"train": address, "test": address})
    found = load_splits(source, seed=0, label="label")
    assert found["test"].rows["label"] == [cell or None for cell in cells]
    assert found["test"].rows["text"] == ["word"] * len(cells)
