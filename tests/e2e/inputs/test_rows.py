"""Rows as people have them: labels of several files, blank ones, rare ones, sorted ones, and splits cut from them."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from tests.tiny import images, texts, topics
from tests.tiny.runs import run_recipe
from tests.tiny.tables import save_metric
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import TltasksError
from tltasks.runs.context import PreparedStage
from tltasks.runs.story import open_stages

Rows = list[tuple[Any, Any]]
Labels = list[Any]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return topics.save_model(tmp_path_factory.mktemp("bert"))


def parquet(path: Path, labels: Labels, *, names: list[str] | None = None) -> None:
    texts = [f"word {i}" for i in range(len(labels))]
    if names is None:
        pd.DataFrame({"text": texts, "label": labels}).to_parquet(path)
        return
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(path)


def csv(path: Path, labels: Labels) -> None:
    path.write_text("text,label\n" + "".join(f"word {i},{label}\n" for i, label in enumerate(labels)), encoding="utf-8")


def jsonl(path: Path, labels: Labels) -> None:
    rows = ({"text": f"word {i}", "label": label} for i, label in enumerate(labels))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prepare(folder: Path, model: Path, data: dict[str, Any], *, metrics: str = "[]") -> PreparedStage:
    """The stage of a recipe over text classification, its data loaded, encoded and checked."""
    (folder / "recipe.yaml").write_text(
        f"task: text-classification\nmodel: {{name: {model}}}\ndata: {json.dumps({'max_tokens': 64, **data})}\n"
        f"stages: [{{stage: transfer, steps: 1, batch_size: 8, learning_rate: 1e-3, metrics: {metrics}}}]\n"
        "output: out\nprecision: fp32\n"
    )
    return open_stages(plan_run(load_recipe(folder / "recipe.yaml")))[1][0]


def classes(stage: PreparedStage) -> dict[str, list[str]]:
    """The class of each row, by split."""
    names = stage.task.class_names  # type: ignore[attr-defined]
    return {split: [names[i] for i in encoded.rows["label"]] for split, encoded in stage.encoded.items()}


# ------------------------------------------------------------------------------------- right, or refused


@dataclass(frozen=True)
class Case:
    """Files by split with the writer of each, and what becomes of them."""

    files: dict[str, list[tuple[Callable[..., None], Labels] | tuple[Callable[..., None], Labels, list[str]]]]
    right: dict[str, Labels] = field(default_factory=dict)
    """Classes of rows, by split."""
    said: str = ""
    """Part of the error instead."""
    noted: str = ""
    keys: dict[str, Any] = field(default_factory=dict)


AB, BA = ["cat", "dog"], ["dog", "cat"]
CASES = {
    "files of one split number their classes differently": Case(
        {"train": [(parquet, [0, 1], AB), (parquet, [0, 1], BA)], "test": [(parquet, [0, 1], AB)]},
        {"train": ["cat", "dog", "dog", "cat"], "test": ["cat", "dog"]},
    ),
    "splits number their classes differently": Case(
        {"train": [(parquet, [0, 1, 1], AB)], "test": [(parquet, [0, 0, 1], BA)]},
        {"train": ["cat", "dog", "dog"], "test": ["dog", "dog", "cat"]},
    ),
    "joined splits number their classes differently": Case(
        {"train": [(parquet, [0, 1], AB)], "more": [(parquet, [0, 1], BA)], "test": [(parquet, [1, 0], AB)]},
        {"train": ["cat", "dog", "dog", "cat"], "test": ["dog", "cat"]},
        keys={"splits": {"train": "train+more"}},
    ),
    "numbers with names in one file and names in another": Case(
        {"train": [(parquet, [0, 1], BA), (parquet, ["cat", "dog"])], "test": [(parquet, ["cat", "dog"])]},
        {"train": ["dog", "cat", "cat", "dog"], "test": ["cat", "dog"]},
    ),
    "bare numbers in one file and names in another": Case(
        {"train": [(parquet, [0, 1], AB), (parquet, [0, 1])], "test": [(parquet, [0, 1], AB)]},
        said="holds numbers without names in train1.parquet and names of classes in train0.parquet",
    ),
    "bare numbers in train and names in test": Case(
        {"train": [(parquet, [0, 1])], "test": [(parquet, ["cat", "dog"])]}, said="has classes that train has not: cat"
    ),
    "bare numbers in train and names in test, with class_names": Case(
        {"train": [(parquet, [1, 0])], "test": [(parquet, ["cat", "dog"])]},
        {"train": ["dog", "cat"], "test": ["cat", "dog"]},
        keys={"class_names": AB},
    ),
    "numbers of csv with class_names": Case(
        {"train": [(csv, [1, 0])], "test": [(csv, ["cat", 1])]},
        {"train": ["dog", "cat"], "test": ["cat", "dog"]},
        keys={"class_names": AB},
    ),
    "a number beyond class_names, within the share": Case(
        {"train": [(csv, [1, 0] * 9 + [7, 0])], "test": [(csv, [0, 1])]},
        {"train": ["dog", "cat"] * 9 + ["cat"]},
        keys={"class_names": AB, "max_bad_share": 0.1},
    ),
    "a blank label within the share": Case(
        {"train": [(csv, ["a", "b"] * 9 + ["", "a"])], "test": [(csv, ["a", "b"])]},
        {"train": ["a", "b"] * 9 + ["a"]},
        keys={"max_bad_share": 0.1},
    ),
    "a null label within the share": Case(
        {"train": [(jsonl, ["a", "b"])], "test": [(jsonl, ["a", "b"] * 9 + [None])]},
        {"test": ["a", "b"] * 9},
        keys={"max_bad_share": 0.1},
    ),
    "a blank label beyond the share": Case(
        {"train": [(csv, ["a", "b", ""])], "test": [(csv, ["a", "b"])]},
        said="1 of 3 rows have no label or one outside the class list (row 2 (train0.csv:4) is the first: has no label",
    ),
    "whole numbers beside a blank, as pandas writes them": Case(
        {"train": [(parquet, [0, 1] * 9 + [None])], "test": [(parquet, [0, 1])]},
        {"train": ["0", "1"] * 9, "test": ["0", "1"]},
        keys={"max_bad_share": 0.1},
    ),
    "an unlabelled test set": Case(
        {"train": [(parquet, [0, 1], AB)], "test": [(parquet, [-1, -1, -1], AB)]}, said="often unlabelled"
    ),
    "digits that are no numbers": Case(
        {"train": [(csv, ["²", "①", "12"])], "test": [(csv, ["²", "①", "12"])]}, {"train": ["²", "①", "12"]}
    ),
    "a test set of one class": Case(
        {"train": [(csv, ["a"] * 8 + ["b"] * 8 + ["c"] * 8)], "test": [(csv, ["a"])]},
        said="all 1 rows are of the class a, and train has 3",
    ),
    "a validation set of one class, by a slice of sorted rows": Case(
        {"train": [(csv, ["a"] * 8 + ["b"] * 8)], "test": [(csv, ["a", "b"])]},
        said="`validation: 0.2` in data.splits holds a share out of train",
        keys={"splits": {"validation": "train[80%:]"}},
    ),
    "a test set without some classes, by a slice of sorted rows": Case(
        {"train": [(csv, ["a"] * 8 + ["b"] * 8 + ["c"] * 8)]},
        {"test": ["b"] + ["c"] * 8},
        noted="lacks 1 of the 3 classes of train: a.",
        keys={"splits": {"test": "train[15:]"}},
    ),
    "a train set that has lost a class to a slice": Case(
        {"train": [(csv, ["a"] * 8 + ["b"] * 8 + ["c"] * 4)]},
        said="a share held out of train (`test: 0.2` in data.splits)",
        keys={"splits": {"train": "train[:80%]", "test": "train[80%:]"}},
    ),
    "an extra test of one class": Case(
        {"train": [(csv, ["a", "b"])], "test": [(csv, ["a", "b"])], "other": [(csv, ["b", "b"])]},
        {"other": ["b", "b"]},
        noted="lacks 1 of the 2 classes of train: a.",
        keys={"extra_test": {"other": {"split": "other"}}},
    ),
    "no test split": Case(
        {"train": [(csv, ["a", "b"])]}, said="A share of train is held out, of each class in proportion, by a number"
    ),
    "an empty text within the share": Case(
        {"train": [(jsonl, ["a", "b"] * 9)], "test": [(jsonl, ["a", "b"])]}, {"train": ["a", "b"] * 9}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_are_right_or_refused(name: str, bert: Path, tmp_path: Path) -> None:
    case = CASES[name]
    files: dict[str, list[str]] = {}
    for split, parts in case.files.items():
        for i, (write, labels, *names) in enumerate(parts):
            path = tmp_path / f"{split}{i}.{write.__name__}"
            write(path, labels, **({"names": names[0]} if names else {}))
            files.setdefault(split, []).append(path.name)
    kind = {"csv": "csv", "jsonl": "json", "parquet": "parquet"}[write.__name__]
    data = {"name": kind, "files": files, "leaks": "off", **case.keys}  # the made-up texts are few
    if case.said:
        with pytest.raises(TltasksError) as caught:
            prepare(tmp_path, bert, data)
        assert case.said in " ".join(str(caught.value).split())
        return
    stage = prepare(tmp_path, bert, data)
    found = classes(stage)
    assert {split: found[split] for split in case.right} == case.right
    notes = [note for of_split in stage.split_notes.values() for note in of_split]
    assert len(notes) == (1 if case.noted else 0)
    assert all(note.startswith(case.noted) for note in notes)


def test_what_is_left_out_is_named_with_its_line_everywhere(bert: Path, tmp_path: Path) -> None:
    csv(tmp_path / "train.csv", ["a", "b"] * 20)
    csv(tmp_path / "test.csv", ["a", "b"] * 10 + [""])
    data = {"name": "csv", "files": {"train": "train.csv", "test": "test.csv"}, "max_bad_share": 0.1}
    stage = prepare(tmp_path, bert, data)
    assert stage.encoded["test"].skipped == {20: "has no label (test.csv:22)"}
    assert stage.encoded["test"].left_out == "1 row cannot be used, left out: row 20: has no label (test.csv:22)"
    result = run_recipe(tmp_path / "recipe.yaml", tmp_path / "out")
    assert result.stages[0].data["test"].skipped_rows == {"20": "has no label (test.csv:22)"}
    written = pd.read_parquet(tmp_path / "out" / "predictions" / "transfer-test.parquet")
    assert written["path"].tolist() == [f"test.csv:{i + 2}" for i in range(20)]
    assert "has no label (test.csv:22)" in (tmp_path / "out" / "report.html").read_text()


# --------------------------------------------------------------------------------------------- caches


def touch_back(path: Path, write: Callable[[], None]) -> None:
    """Write a file in place of one of the same name, with its modification time."""
    before = path.stat()
    write()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_are_read_as_they_are_now(kind: str, bert: Path, tmp_path: Path) -> None:
    write = {"csv": csv, "jsonl": jsonl, "parquet": parquet}[kind]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.{kind}", ["a", "b", "b"])
    reader = {"csv": "csv", "jsonl": "json", "parquet": "parquet"}[kind]
    data = {"name": reader, "files": {name: f"{name}.{kind}" for name in ("train", "test")}}
    assert classes(prepare(tmp_path, bert, data))["test"] == ["a", "b", "b"]
    path = tmp_path / f"test.{kind}"
    touch_back(path, lambda: write(path, ["b", "b", "a"]))
    assert classes(prepare(tmp_path, bert, data))["test"] == ["b", "b", "a"]


def test_pictures_of_folders_are_read_as_they_are_now(tmp_path: Path) -> None:
    model, rng = images.save_model(tmp_path / "vit"), np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("red", "green"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            for i in range(4):
                images.picture(kind, rng).save(tmp_path / "data" / split / kind / f"{i}.bmp")
    (tmp_path / "recipe.yaml").write_text(
        f"task: image-classification\nmodel: {{name: {model}}}\ndata: {{name: imagefolder, dir: data}}\n"
        "stages: [{stage: transfer, steps: 1, batch_size: 8, learning_rate: 1e-3}]\noutput: out\nprecision: fp32\n"
    )

    def fingerprint() -> str:
        return open_stages(plan_run(load_recipe(tmp_path / "recipe.yaml")))[1][0].encoded["test"].fingerprint

    first = fingerprint()
    assert fingerprint() == first
    path = tmp_path / "data" / "test" / "red" / "0.bmp"
    touch_back(path, lambda: images.picture("green", rng).save(path))
    assert fingerprint() != first


# -------------------------------------------------------------------------- rows that need each other


@pytest.mark.parametrize(
    ("rows", "batch_size", "more", "said"),
    [
        (9, 8, "", ""),
        (17, 8, ", micro_batch: 2", ""),
        (9, 4, ", micro_batch: 3", ""),
        (9, 2, "", "leave a forward pass with fewer than 2"),
        (8, 1, "", "leave a forward pass with fewer than 2"),
        (8, 8, ", micro_batch: 1", "leave a forward pass with fewer than 2"),
        (9, 1, ", batch_norm: frozen", ""),
    ],
)
def test_batch_statistics_are_of_two_rows_or_more(
    tmp_path: Path, rows: int, batch_size: int, more: str, said: str
) -> None:
    model, data = images.save_model(tmp_path / "net", "resnet"), tmp_path / "data"
    images.save_data(data, splits={"train": rows, "validation": 3, "test": 3})
    stage = f"{{stage: transfer, epochs: 1, batch_size: {batch_size}, learning_rate: 1e-3{more}}}"
    if "batch_norm" not in more:
        stage = stage.replace("}", ", batch_norm: batch}")
    recipe = images.write_recipe(tmp_path / "recipe.yaml", model, data, stage=stage)
    if said:
        with pytest.raises(TltasksError, match=said):
            run_recipe(recipe, tmp_path / "out")
    else:
        training = run_recipe(recipe, tmp_path / "out").stages[0].training
        assert training is not None
        assert training.steps == -(-rows // batch_size)


# ------------------------------------------------------------------------------------- many classes


def test_results_grow_no_faster_than_classes(tmp_path: Path) -> None:
    from tltasks.metrics.classification import classification

    rng, sizes = np.random.default_rng(0), {}
    for n in (150, 1500):
        probabilities = rng.dirichlet(np.ones(n), 2 * n)
        _, details = classification(probabilities, rng.integers(n, size=2 * n), [f"class {i}" for i in range(n)])
        sizes[n] = len(json.dumps(details))
    assert sizes[1500] < 12 * sizes[150]


@pytest.mark.parametrize(("lacks", "said"), [(False, ""), (True, "own has no value there")])
def test_a_metric_that_a_missing_class_leaves_without_value_is_refused(
    bert: Path, tmp_path: Path, *, lacks: bool, said: str
) -> None:
    features = "{'prediction_scores': datasets.List(datasets.Value('float')), 'references': datasets.Value('int32')}"
    area = "__import__('sklearn.metrics').metrics.roc_auc_score(references, prediction_scores, multi_class='ovr')"
    metric = save_metric(tmp_path / "own", features, f"{{'area': float({area})}}")
    csv(tmp_path / "train.csv", ["a", "b", "c"] * 4)
    csv(tmp_path / "test.csv", ["a", "b"] if lacks else ["a", "b", "c"])
    data = {"name": "csv", "files": {"train": "train.csv", "test": "test.csv"}}
    if said:
        with pytest.raises(TltasksError, match=said):
            prepare(tmp_path, bert, data, metrics=f"[{metric}]")
    else:
        prepare(tmp_path, bert, data, metrics=f"[{metric}]")


@pytest.mark.parametrize("column", ["document", "summary"])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_an_empty_cell_of_a_pair_is_left_out_of_baselines_too(column: str, value: object, tmp_path: Path) -> None:
    model, data = texts.save_model(tmp_path / "t5"), texts.save_data(tmp_path / "data")
    for split in ("train", "validation", "test"):
        path = data / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[3][column] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = texts.write_recipe(tmp_path / "recipe.yaml", model, data)
    stage = open_stages(plan_run(load_recipe(recipe, ["data.max_bad_share=0.1"])))[1][0]
    test, train = stage.encoded["test"], stage.encoded["train"]
    assert list(test.skipped) == [3]
    assert test.skipped[3].startswith(f"empty {column} (test.jsonl:4")
    (predicted,) = stage.task.baselines(train, test.rows).values()
    assert len(predicted) == len(test.rows)
