"""Tables and folders as people have them: read alike by runs, predictions and `push-data`, or refused by name."""

import bz2
import gzip
import json
import lzma
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tltasks.config.tasks.image import ImageData, UnlabelledImageData
from tltasks.config.tasks.text import LabelledTextData, TextData
from tltasks.data.encoding import encode_split
from tltasks.data.loading import load_splits
from tltasks.data.splits import ROW_NAME, Columns, Split, row_title
from tltasks.errors import DataError, TltasksError
from tltasks.hub.dataset import read_folder
from tltasks.inference.arguments import check_arguments
from tltasks.inference.inputs import Inputs
from tltasks.tasks.base import InputKind
from tltasks.tasks.classes import ClassificationTask, check_same_classes, count_classes, train_classes
from tltasks.tasks.image.decoding import SUFFIXES
from tltasks.training.evaluation import write_predictions

TEXTS = InputKind("text", frozenset({".txt"}), is_text=True)
IMAGES = InputKind("image", SUFFIXES)


def lines(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def row(text: object, label: object = "x") -> dict[str, object]:
    return {"text": text, "label": label}


def parquet(**columns: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


WORDS = ["007", "01", "1e5", "yes", "true", "None", "NA", "nan", "null", "2021-05-18", " padded ", "-", "0x1F", "1_000"]
TWO = lines(row("a"), row("b", "y"))
DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
AB = [("a", "b"), ("c", "d")]

RIGHT: dict[str, tuple[bytes, list[Any]]] = {
    "words.csv": (("text,label\n" + "".join(f"{w},{w}\n" for w in WORDS)).encode(), [(w, w) for w in WORDS]),
    "thousands.csv": (b'text,label\n"1,234","1,000"\n', [("1,234", "1,000")]),
    "bom.csv": ('\ufeff"text",label\nä,b\n'.encode(), [("ä", "b")]),
    "utf-16.csv": ("text,label\nä,b\n".encode("utf-16"), [("ä", "b")]),
    "semicolons.csv": (b"text;label\na, b;c\n", [("a, b", "c")]),
    "tabs.csv": (b"text\tlabel\na, b\tc\n", [("a, b", "c")]),
    "tabs.tsv": (b"text\tlabel\na, b\tc\n", [("a, b", "c")]),
    "bars.csv": (b"text|label\na, b|c\n", [("a, b", "c")]),
    "quoted breaks.csv": (b'text,label\n"a\nb",c\nd,e\n', [("a\nb", "c"), ("d", "e")]),
    "quotes.csv": (b'text,label\n"a ""q"" b",c\n', [('a "q" b', "c")]),
    "delimiters at the end.csv": (b"text,label,\na,b,\nc,d,\n", AB),
    "delimiters behind rows.csv": (b"text,label\na,b,\nc,d,\n", AB),
    "doubled column that is not wanted.csv": (b"text,label,z,z\na,b,1,2\nc,d,1,2\n", AB),
    "crlf.csv": (b"text,label\r\na,b\r\nc,d\r\n", AB),
    "blank lines.csv": (b"\ntext,label\n\na,b\n\nc,d\n", AB),
    "UPPER.CSV": (b"text,label\na,b\nc,d\n", AB),
    "empty cells.csv": (b"text,label\n,b\nc,\n", [(None, "b"), ("c", None)]),
    "packed.csv.gz": (gzip.compress(b"text,label\na,b\nc,d\n"), AB),
    "packed.jsonl.gz": (gzip.compress(TWO), [("a", "x"), ("b", "y")]),
    "packed.jsonl.bz2": (bz2.compress(TWO), [("a", "x"), ("b", "y")]),
    "packed.json.xz": (lzma.compress(TWO), [("a", "x"), ("b", "y")]),
    "packed.ndjson.zst": (pa.compress(TWO, codec="zstd", asbytes=True), [("a", "x"), ("b", "y")]),
    "array.json": (json.dumps([row("a"), row("b", "y")], indent=1).encode(), [("a", "x"), ("b", "y")]),
    "one after another.json": (json.dumps(row("a"), indent=2).encode() * 2, [("a", "x"), ("a", "x")]),
    "dates.jsonl": (lines(row("2021-05-18", "2021-05-18T00:00:00Z")), [("2021-05-18", "2021-05-18T00:00:00Z")]),
    "sentences.jsonl": (lines(row(["a", "b. "]), row(["c"])), [("a b.", "x"), ("c", "x")]),
    "nulls.jsonl": (lines(row("a"), row(None), {"label": "y"}), [("a", "x"), (None, "x"), (None, "y")]),
    "numbers as classes.jsonl": (lines(row("a", 1), row("b", 2)), [("a", 1), ("b", 2)]),
    "numbers beside blanks.jsonl": (lines(row("a", 1.0), row("b", float("nan"))), [("a", 1), ("b", None)]),
    "truths.jsonl": (lines(row("a", True), row("b", False)), [("a", "true"), ("b", "false")]),
    "half a character.jsonl": (b'{"text": "\\ud83d", "label": "x"}\n', [("?", "x")]),
    "line separators.jsonl": ('{"text": "a\u2028b", "label": "x"}\n'.encode() * 2, [("a\u2028b", "x")] * 2),
    "bom.jsonl": (b"\xef\xbb\xbf" + TWO, [("a", "x"), ("b", "y")]),
    "strings.parquet": (parquet(text=["a", "b"], label=["x", "007"]), [("a", "x"), ("b", "007")]),
    "sentences.parquet": (parquet(text=[["a", "b"], ["c"]], label=[1, 2]), [("a b", 1), ("c", 2)]),
    "categories.parquet": (parquet(text=["a"], label=pa.array(["x"]).dictionary_encode()), [("a", "x")]),
    "views.parquet": (parquet(text=pa.array(["a"], pa.string_view()), label=["x"]), [("a", "x")]),
    "no texts.parquet": (parquet(text=pa.nulls(1), label=["x"]), [(None, "x")]),
    "a [1] name.parquet": (parquet(text=["a"], label=["x"]), [("a", "x")]),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, str]] = {
    "ragged.csv": (b"text,label\na,b\nc,d,e\n", r"ragged\.csv:3 has 3 cells, where the header has 2"),
    "short.csv": (b"text,label\na,b\nc\n", r"short\.csv:3 has 1 cells"),
    "an index.csv": (b"text,label\n0,a,b\n", "has 3 cells"),
    "twice.csv": (b"text,label,text\na,b,c\n", "several columns called `text`"),
    "open quotes.csv": (b'text,label\na,b\n"c,d\ne,f\n', "line 3 cannot be read"),
    "text behind quotes.csv": (b'text,label\n"a" x,b\n', "line 2 cannot be read"),
    "latin-1.csv": ("text,label\nä,b\n".encode("latin-1"), "is not UTF-8"),
    "spaces in names.csv": (b"text, label\na, b\n", "no column `label`; did you mean ` label`"),
    "empty.csv": (b"", "no column `text`"),
    "header.csv": (b"text,label\n", "has no rows"),
    "cut.csv.gz": (gzip.compress(b"text,label\n" + b"a,b\n" * 9999)[:-20], "cannot be read"),
    "no gzip.csv.gz": (b"text,label\na,b\n", "Not a gzipped file"),
    "number.jsonl": (lines(row("a"), row(12.5)), r"number\.jsonl:2 `text` holds the number 12\.5"),
    "nan.jsonl": (lines(row("a"), row(float("nan"))), r"nan\.jsonl:2 `text` holds the number nan"),
    "object.jsonl": (lines(row("a"), row({})), r"object\.jsonl:2 `text` holds an object"),
    "mixed list.jsonl": (lines(row(["a", 1])), r"mixed list\.jsonl:1 `text` holds a list"),
    "truth.jsonl": (lines(row("a"), row(True)), r":2 `text` holds `true`"),
    "deep.jsonl": (lines(row("a"), DEEP), r"deep\.jsonl:2 .*nested"),
    "broken line.jsonl": (lines(row("a"), '{"text": "b"', row("c")), r"broken line\.jsonl:2 is not JSON"),
    "by column.json": (json.dumps({"text": ["a", "b"], "label": ["x", "y"]}).encode(), "a list for each column"),
    "wrapped.json": (json.dumps({"data": [row("a")]}).encode(), "It has: data"),
    "scalar.json": (b"3", "is the number 3"),
    "two kinds of classes.jsonl": (lines(row("a", 1), row("b", "1")), r":2 `label` is '1'"),
    "endless numbers.jsonl": (lines(row("a", 1e30)), r":1 `label` holds the number 10{14}.*; a class is"),
    "fractions.jsonl": (lines(row("a", 1.5)), "a class is a name or a whole number"),
    "integers.parquet": (parquet(text=[1, 2], label=[1, 2]), "`text` holds int64"),
    "bytes.parquet": (parquet(text=[b"a"], label=[1]), "`text` holds binary"),
    "structs.parquet": (parquet(text=[{"a": 1}], label=[1]), "a text is wanted"),
}  # fmt: skip


def load(path: Path, **keys: Any) -> dict[str, Split]:
    data = LabelledTextData(**{"name": str(path), "splits": {"test": "train"}, **keys})
    return load_splits(data, seed=0, label="label")


def pairs(split: Split) -> list[tuple[Any, Any]]:
    return list(zip(split.rows["text"], split.rows["label"], strict=True))


def predicted(path: Path) -> list[Any]:
    """The text of each row as `predict` reads it, or an error."""
    found: list[Any] = []
    for item in Inputs([str(path)], TEXTS, ["text"]):
        try:
            found.append(item.read(TEXTS))
        except DataError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("name", RIGHT)
def test_a_table_is_read_as_it_is_written_by_run_and_predict(name: str, tmp_path: Path) -> None:
    content, expected = RIGHT[name]
    (tmp_path / name).write_bytes(content)
    assert pairs(load(tmp_path / name)["train"]) == expected
    texts = predicted(tmp_path / name)
    assert len(texts) == len(expected), "an answer a row"
    for text, (wanted, _) in zip(texts, expected, strict=True):
        assert text == (wanted or "") or (wanted is None and isinstance(text, DataError))


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_holds_something_else_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load(tmp_path / name)
    assert "Traceback" not in str(caught.value)


def test_predict_goes_on_behind_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(lines(row("a"), row(2), "{", DEEP, row(["b", "c"])))
    first, *bad, last = predicted(tmp_path / "t.jsonl")
    assert (first, last) == ("a", "b c")
    assert [str(error).split(" ")[0] for error in bad] == ["holds", "is", "is"]
    (tmp_path / "t.csv").write_bytes(b"text,label\na,b\nc\nd,e\n")
    assert [str(text) for text in predicted(tmp_path / "t.csv")] == ["a", "has 1 cells, where the header has 2", "d"]


def test_tables_of_save_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "all")
    rows.save_to_disk(tmp_path / "one")
    assert predicted(tmp_path / "one") == ["a", "b"]
    assert predicted(tmp_path / "all") == ["a", "b"] * 2
    assert pairs(load(tmp_path / "all", splits={})["test"]) == [("a", "x"), ("b", "y")]


def test_rows_are_named_by_table_and_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"a\nb",c\nd,e\n')
    assert load(tmp_path / "t.csv")["train"].rows[ROW_NAME][:] == ["t.csv:2", "t.csv:4"]
    (tmp_path / "t.json").write_text(json.dumps([row("a"), row("b")]))
    assert load(tmp_path / "t.json")["train"].rows[ROW_NAME][:] == ["t.json[0]", "t.json[1]"]


def test_rows_are_named_in_messages_and_predictions(tmp_path: Path) -> None:
    """By table and line, and by the file that they are of; of a folder by the file alone."""
    album(tmp_path, "train/a", "train/b")
    (tmp_path / "t.csv").write_text("image,label\ntrain/a/0.png,a\ntrain/b/0.png,b\ntrain/b/1.png,b\n")

    def encode(batch: Columns) -> Columns:
        faults = [None if row else "is bad" for row in batch["row"]]
        return {"label": [0] * len(faults), "row": batch["row"], "error": faults}

    sources = {"name": str(tmp_path / "t.csv")}, {"name": "imagefolder", "dir": str(tmp_path)}
    expected = ("is bad (t.csv:2 (train/a/0.png))", "is bad (train/a/0.png)")
    for source, said in zip(sources, expected, strict=True):
        data = ImageData(**source, splits={"test": None, "validation": "train"})
        split = load_splits(data, seed=0, label="label")["train"]
        features = datasets.Features({"label": datasets.Value("int32")})
        encoded = encode_split(split, encode, features, key=said, max_bad_share=0.5, media="image")
        assert encoded.skipped == {0: said}
        task = SimpleNamespace(columns=lambda predictions, references: {"prediction": predictions})
        write_predictions(tmp_path / "p.parquet", task, encoded.rows, ["x"] * len(encoded.rows), [])  # type: ignore[arg-type]
        table = pq.read_table(tmp_path / "p.parquet")
        assert table["path"].to_pylist()[-1] == "train/b/1.png"
        assert table.column_names == ["row", "path", "prediction"]
        assert row_title(encoded.rows, 0).startswith("row 1 · train/")
    (tmp_path / "blank.csv").write_text("text,label\na,\nb,x\nc,y\n")
    with pytest.raises(DataError, match=r"row 0 \(blank.csv:2\) is the first: has no label"):
        count_classes(load(tmp_path / "blank.csv"), LabelledTextData(name="x"))


def test_classes_that_look_alike_are_kept_and_said(tmp_path: Path) -> None:
    labels = ["cat", "Cat", "cat ", "dog", "d\u00e9j\u00e0", "de\u0301ja\u0300"]
    task = SimpleNamespace(class_names=labels, references=lambda rows: [0], _imbalance=lambda train: None)
    task._disagreement = lambda train: None
    task.stage = SimpleNamespace(trains=True)
    task.class_rows, task.is_multi_label = lambda rows: {0: 1}, False
    notes = ClassificationTask.data_notes(task, {"train": SimpleNamespace(rows=None)})  # type: ignore[arg-type, dict-item]
    assert list(notes) == ["train"]
    said = "differ in case, spaces or the form of characters alone"
    assert f"the classes 'cat', 'Cat', 'cat ' {said}" in notes["train"][0]
    assert said in notes["train"][1]


@pytest.mark.parametrize("order", [1, -1])
def test_parquet_files_of_one_split_need_not_have_the_same_columns(order: int, tmp_path: Path) -> None:
    contents = [
        parquet(text=["a"], label=["x"]),
        parquet(note=[1], label=["y"], text=["b"]),
        parquet(text=["c"], label=pa.nulls(1)),
    ]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.parquet").write_bytes(content)
    files = [str(tmp_path / f"{i}.parquet") for i in range(3)[::order]]
    found = load(tmp_path, name="parquet", files={"train": files})["train"]
    assert sorted(pairs(found), key=str) == [("a", "x"), ("b", "y"), ("c", None)]
    (tmp_path / "9.parquet").write_bytes(parquet(text=["d"]))
    with pytest.raises(DataError, match=r"9\.parquet has no column `label`, and others have it"):
        load(tmp_path, name="parquet", files={"train": [*files, str(tmp_path / "9.parquet")]})


@pytest.mark.parametrize(
    ("train", "other", "shared"),
    [("train", "train", 10), ("train[:60%]", "train[40%:]", 2), ("train[:3]+train[8:]", "train[2:9]", 2)],
)
def test_rows_that_are_trained_on_and_tested_by_are_told(train: str, other: str, shared: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{i},x\n" for i in range(10)))
    found = load(tmp_path / "t.csv", splits={"train": train, "test": other})["test"]
    assert f"{shared} rows of `{other}`, the test split, are in train (`{train}`), too" in found.notes
    apart = load(tmp_path / "t.csv", splits={"train": "train[:5]", "validation": "train[5:7]", "test": "train[7:]"})
    assert not any(split.notes for split in apart.values())


def test_the_advice_fits_the_way_in_which_rows_were_held_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{i},c{i}\n" for i in range(10)))
    for splits, advice in (({"test": 0.3}, "of few rows"), ({"train": "train[:7]", "test": "train[7:]"}, "a share")):
        found = load(tmp_path / "t.csv", splits=splits)
        counts = count_classes(found, LabelledTextData(name="x"))
        with pytest.raises(DataError, match=f"has classes that train has not.*\\n.*{advice}"):
            check_same_classes(train_classes(found["train"], counts["train"], None), counts, found)
    with pytest.raises(DataError, match=r"\ndata.class_names lists: a, b\.$"):
        check_same_classes(["a", "b"], counts, found)


def test_a_table_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text in ("one", "two"):
        path.write_text(f"text,label\n{text},x\n")
        os.utime(path, ns=(10**18, 10**18))
        assert pairs(load(path)["train"]) == [(text, "x")]


def test_pictures_of_two_tables_start_at_their_own(tmp_path: Path) -> None:
    """Both name `img/1.png`, which is another picture for each."""
    for name in ("one", "two"):
        (tmp_path / name / "img").mkdir(parents=True)
        (tmp_path / name / "t.csv").write_text("image,label\nimg/1.png,a\n")
    files = {"train": str(tmp_path / "one" / "t.csv"), "test": str(tmp_path / "two" / "t.csv")}
    found = load_splits(ImageData(name="csv", files=files), seed=0, label="label")
    for split, name in (("train", "one"), ("test", "two")):
        assert found[split].rows[0]["image"] == str(tmp_path / name / "img/1.png")


def test_documents_of_sentences(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(lines({"document": ["a", " b"], "summary": "x"}))
    keys = {"name": str(tmp_path / "d.jsonl"), "splits": {"test": "train"}}
    assert load_splits(TextData(**keys), seed=0, label=None)["test"].rows[0]["document"] == "a b"


# ----------------------------------------------------------------------------------------- folders of tables


def tables(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text,label\n{name},b\n")
    return folder


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train.csv", "test.csv", "notes.csv"], ["train.csv"], ["test.csv"]),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev.csv", "test.csv"], None, ["test.csv"]),
        (["train/x.csv", "train/test.csv", "test/y.csv"], ["train/test.csv", "train/x.csv"], ["test/y.csv"]),
        (["data/train.csv", "data/eval.csv"], ["data/train.csv"], ["data/eval.csv"]),
    ],
)
def test_tables_of_a_folder(names: list[str], train: list[str] | None, test: list[str], tmp_path: Path) -> None:
    found = load(tables(tmp_path, *names), splits={})
    assert [text for text, _ in pairs(found["train"])] == (train or names[:2])
    assert [text for text, _ in pairs(found["test"])] == test


def test_tables_that_no_name_tells_apart(tmp_path: Path) -> None:
    folder = tables(tmp_path, "en/train.csv", "en/test.csv", "de/train.csv", "de/test.csv")
    with pytest.raises(DataError, match="tables in several folders"):
        load(folder)
    assert pairs(load(folder, config="de")["train"]) == [("de/train.csv", "b")]


def test_splits_that_the_card_declares(tmp_path: Path) -> None:
    tables(tmp_path, "one.csv", "two.csv", "three.csv")
    files = [{"split": "train", "path": ["one.csv", "two.csv"]}, {"split": "test", "path": "th*.csv"}]
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(files)}\n---\n"
    )
    found = load(tmp_path, splits={})
    assert [text for text, _ in pairs(found["train"])] == ["one.csv", "two.csv"]
    assert [text for text, _ in pairs(found["test"])] == ["three.csv"]


@pytest.mark.parametrize(("name", "said"), [("trian.csv", "did you mean `train.csv`"), ("gone", "there is no folder")])
def test_what_is_not_there_is_told_with_what_is(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load(tables(tmp_path, "train.csv") / name)


def test_a_misspelt_name_is_not_only_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables(tmp_path, "pictures/train.csv"))
    with pytest.raises(DataError, match="no folder of this name is here; did you mean `pictures`"):
        load(Path("pictres"))


# ----------------------------------------------------------------------------------------- folders of media


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), shade % 256, np.uint8)).save(path, "PNG")


def album(folder: Path, *parts: str, n: int = 2) -> Path:
    """So many pictures in each of these folders."""
    for part in parts:
        for i in range(n):
            picture(folder / part / f"{i}.png", hash((part, i)))
    return folder


def classes(split: Split) -> list[str]:
    return [split.rows.features["label"].names[i] for i in split.rows["label"]]


def look(folder: Path, **keys: Any) -> dict[str, Split]:
    return load_splits(ImageData(name="imagefolder", dir=str(folder), **keys), seed=0, label="label")


TRAIN_TEST = ["train/a", "train/b", "test/a", "test/b"]
FOLDERS: dict[str, tuple[str, str, str]] = {
    "a class called as a split": ("train test", "bus train", "train test"),
    "capitals": ("Train EVAL", "a b", "train test"),
    "three splits": ("train val test", "a b", "train validation test"),
    "another split": ("train test night", "a b", "train test night"),
    "two for one split": ("train val dev", "a b", "train val dev"),
    "words in names": ("training testing", "dev-kit test-strip", "train test"),
    "classes alone": ("", "bus train tram", "train"),
    "one class called test": ("", "bus test", "train"),
}
"""Folders just below, those below these, and the splits that they are."""


@pytest.mark.parametrize("name", FOLDERS)
def test_splits_are_the_folders_just_below(name: str, tmp_path: Path) -> None:
    tops, labels, splits = (words.split() for words in FOLDERS[name])
    parts = [f"{top}/{label}" for top in tops or ["."] for label in labels]
    folder = album(tmp_path, *parts)
    for split in splits:
        found = look(folder, splits={"train": split, "test": split})["train"]
        assert classes(found) == [label for label in labels for _ in range(2)]
    media = read_folder(folder)
    assert sum(it.examples for it in media.facts.values()) == 2 * len(parts) == len(list(inputs(folder)))
    assert set(splits) == set(media.facts)


def inputs(folder: Path) -> Inputs:
    return Inputs([str(folder)], IMAGES, ["image"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["train", "test", "bus"], "splits or classes"),
        (["train/a/day", "train/b/day", "test/a/day", "test/b/day"], "folders deep"),
        ([*TRAIN_TEST, "train/a/more"], "train/a/more/0.png lies 2 folders deep"),
        ([*TRAIN_TEST, "train"], "train/0.png lies in no folder of a class"),
        (["train/a", "train/b", "test"], "test/0.png lies in no folder of a class"),
        ([f"images/{part}" for part in TRAIN_TEST], "images"),
        (["a/train", "b/train", "a/test", "b/test"], "folders deep"),
        (["train/a", "test/a"], "all its files lie in one folder, a"),
    ],
)
def test_folders_that_could_be_read_in_two_ways_are_refused(parts: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        look(album(tmp_path, *parts))


def test_folders_that_macos_has_named(tmp_path: Path) -> None:
    """Accents are characters of their own there, and archives have a second tree beside the pictures."""
    folder = album(tmp_path, "train/\u00e9", "train/b", "test/e\u0301", "test/b", "__MACOSX/train/b")
    found = look(folder)
    assert classes(found["test"]) == ["b", "b", "\u00e9", "\u00e9"]
    assert classes(found["train"]) == classes(found["test"])
    assert "hidden: __MACOSX" in found["train"].notes[0]


def test_two_folders_for_one_split_are_told(tmp_path: Path) -> None:
    found = look(album(tmp_path, "TRAIN/a", "TRAIN/b", *TRAIN_TEST))
    assert "TRAIN: another folder stands for the same split" in "\n".join(found["train"].notes)


def test_every_file_counts_or_is_named(tmp_path: Path) -> None:
    folder = album(tmp_path, *TRAIN_TEST)
    at = folder / "train" / "a"
    picture(folder / "loose.png")
    (at / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (at / "notes.txt").write_text("x")
    (at / ".hidden.png").write_bytes(b"x")
    (folder / "more.zip").write_bytes(b"PK")
    os.mkfifo(at / "pipe.png")
    (at / "endless.png").symlink_to("/dev/zero")
    (at / "gone.png").symlink_to("nowhere")
    (at / "loop").symlink_to("..")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(at / "socket.png"))
    names = ["notes.txt", "more.zip", "pipe.png", "endless.png", "gone.png", "loop", "socket.png"]
    found = look(folder)
    assert len(found["train"].rows) == 5, "phone.HEIC among them, as a bad row"
    for said in ("\n".join(found["train"].notes), "\n".join(read_folder(folder).notes)):
        assert all(name in said for name in [*names, ".hidden.png", "loose.png"])
    assert read_folder(folder).bad.keys() == {"train/a/phone.HEIC"}
    stream = inputs(folder)
    assert len(list(stream)) == stream.count() == 10
    assert all(name in "\n".join(stream.notes) for name in names)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_pipes_among_tables(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"train.{kind}")
    files = {"train": str(tmp_path / f"train.{kind}"), "test": str(tmp_path / f"train.{kind}")}
    with pytest.raises(DataError, match="a pipe"):
        load(tmp_path, name=kind, files=files)
    with pytest.raises(TltasksError, match="is a pipe"):
        check_arguments([files["train"]], fetches=False)


def with_metadata(folder: Path, **texts: str) -> Path:
    album(folder, "train", "test", n=3)
    for split, text in texts.items():
        name = "metadata.jsonl" if text.startswith("{") else "metadata.csv"
        (folder / split.replace("root", "") / name).write_text(text)
    return folder


CSV = "file_name,label\n0.png,007\n1.png,012\n2.png,007\n"


def test_metadata(tmp_path: Path) -> None:
    found = look(with_metadata(tmp_path / "each", train=CSV, test=CSV))
    assert [split.rows["label"][:] for split in found.values()] == [["007", "012", "007"]] * 2
    both = "file_name,label\n" + "".join(f"{split}/{i}.png,c{i}\n" for split in ("train", "test") for i in range(3))
    found = look(with_metadata(tmp_path / "above", root=both))
    assert [split.rows["label"][:] for split in found.values()] == [["c0", "c1", "c2"]] * 2
    found = look(with_metadata(tmp_path / "other", train=CSV.replace(",", ";") + "0.png;009\n", test=CSV))
    assert found["train"].rows["label"][:] == ["007", "012", "007", "009"]
    assert "listed more than once in the metadata of train: train/0.png" in found["train"].notes
    some = '{"file_name": "0.png", "label": 1}\n{"file_name": "7.png", "label": 2}\n'
    found = look(with_metadata(tmp_path / "some", train=some, test=some))
    assert found["train"].rows["label"][:] == [1, 2]
    assert "in no metadata file: train/1.png, train/2.png" in "\n".join(found["train"].notes)
    assert read_folder(tmp_path / "some").bad.keys() == {"train/7.png", "test/7.png"}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"train": CSV}, "train has a metadata file .*test has none"),
        ({"train": CSV.replace("label", "age"), "test": CSV.replace("label", "age")}, "add a label column"),
        ({"root": "file_name,label\n/etc/passwd,x\n"}, "metadata.csv:2 file_name is /etc/passwd"),
        ({"root": "file_name,label\n../x.png,x\n"}, "files lie below the folder"),
        ({"train": "name,label\n0.png,x\n"}, "train/metadata.csv:2 has no file_name"),
        ({"train": '{"file_name": "0.png", "label": {}}\n'}, "train/metadata.jsonl:1 `label` holds an object"),
    ],
)  # fmt: skip
def test_metadata_that_says_too_little(texts: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        look(with_metadata(tmp_path, **texts))


def test_files_by_name_lie_in_the_folders_of_their_classes(tmp_path: Path) -> None:
    album(tmp_path, "x/deep/a", "x/deep/b", "y/a", "y/b")
    files = {"train": str(tmp_path / "x/**/*.png"), "test": [str(tmp_path / "y/*/*.png")]}
    found = load_splits(ImageData(name="imagefolder", files=files), seed=0, label="label")
    assert [classes(split) for split in found.values()] == [["a", "a", "b", "b"]] * 2


def test_unlabelled_pictures_may_lie_anywhere(tmp_path: Path) -> None:
    data = UnlabelledImageData(name="imagefolder", dir=str(album(tmp_path, "a/b/c", "d", "e/f")), splits={"test": 0.5})
    assert sum(len(split.rows) for split in load_splits(data, seed=0, label=None).values()) == 6
