"""Rows with any number of classes, however they are written: read alike, held out alike, or refused with the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from tltasks.config.tasks.text import LabelledTextData
from tltasks.data.held_out import deal_out
from tltasks.data.loading import load_splits
from tltasks.data.splits import Split
from tltasks.errors import DataError
from tltasks.tasks.classes import count_classes

KINDS = ["bird", "cat", "dog"]
LISTS = [[kind for j, kind in enumerate(KINDS) if (i * 7 + j * 3) % 5 < 2] for i in range(40)]
Rows = list[dict[str, object]]


def rows(label: Callable[[list[str]], object]) -> Rows:
    return [{"text": f"text {i}", "label": label(own)} for i, own in enumerate(LISTS)]


def csv(place: Path, found: Rows) -> str:
    pd.DataFrame(found).to_csv(place / "rows.csv", index=False)
    return str(place / "rows.csv")


def jsonl(place: Path, found: Rows) -> str:
    (place / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return str(place / "rows.jsonl")


def parquet(place: Path, found: Rows) -> str:
    pd.DataFrame(found).to_parquet(place / "rows.parquet")
    return str(place / "rows.parquet")


def numbered(place: Path, found: Rows) -> str:
    features = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=KINDS))}
    datasets.Dataset.from_list(found, features=datasets.Features(features)).save_to_disk(place / "saved")
    return str(place / "saved")


FORMS: dict[str, tuple[Callable[[Path, Rows], str], Rows, dict[str, Any]]] = {
    "lists in JSON": (jsonl, rows(list), {}),
    "lists in parquet": (parquet, rows(list), {}),
    "lists of numbered classes": (numbered, rows(lambda own: [KINDS.index(kind) for kind in own]), {}),
    "lists of numbers": (jsonl, rows(lambda own: [KINDS.index(k) for k in own]), {"class_names": KINDS}),
    "lists written out": (csv, rows(list), {}),
    "zeros and ones": (jsonl, rows(lambda own: [int(kind in own) for kind in KINDS]), {"class_names": KINDS}),
    "delimiter named": (csv, rows(" / ".join), {"label_delimiter": "/"}),
    "delimiter found": (csv, rows("; ".join), {"multi_label": True}),
    "columns": (
        csv,
        [{"text": f"text {i}", **{k: int(k in own) for k in KINDS}} for i, own in enumerate(LISTS)],
        {"columns": {"label": KINDS}},
    ),
    "columns of truths": (
        parquet,
        [{"text": f"text {i}", **{k: k in own for k in KINDS}} for i, own in enumerate(LISTS)],
        {"columns": {"label": KINDS}},
    ),
}


def load(name: str, *, test: object = 0.25, **keys: Any) -> dict[str, Split]:
    data = LabelledTextData.model_validate({"name": name, "splits": {"test": test}, **keys})
    return load_splits(data, seed=0, label="label")


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_the_same_rows(tmp_path: Path, form: str) -> None:
    save, found, keys = FORMS[form]
    splits = load(save(tmp_path, found), **keys)
    data = LabelledTextData.model_validate({"name": "x", "splits": {"test": None, "validation": "v"}, **keys})
    counts = sum(count_classes(splits, data).values(), Counter())
    assert counts == Counter(kind for own in LISTS for kind in own)
    assert all(isinstance(split.rows.features["label"], datasets.List) for split in splits.values())
    assert len(splits["test"].rows) == pytest.approx(10, abs=1)


WRONG: dict[str, tuple[Callable[[Path, Rows], str], Rows, dict[str, Any], str]] = {
    "lists and texts": (
        jsonl,
        [{"text": "a", "label": ["cat"]}, {"text": "b", "label": "dog"}],
        {},
        r"rows.jsonl:2 `label` is 'dog', and in the rows before a list, each class a name",
    ),
    "lists refused": (jsonl, rows(list), {"multi_label": False}, "holds lists, and `data.multi_label: false`"),
    "several delimiters": (
        csv,
        rows(lambda own: ";".join(own) + ", x"),
        {"multi_label": True},
        r"`;` and `,` in them; `data.label_delimiter` says which",
    ),
    "no class at all": (jsonl, rows(lambda own: []), {}, "no row has a class"),
    "no such column": (
        csv,
        FORMS["columns"][1],
        {"columns": {"label": ["cat", "dgo"]}},
        "no column `dgo`; did you mean `dog`",
    ),
    "no 0 or 1": (
        csv,
        [{"text": "a", "cat": 1, "dog": 2}],
        {"columns": {"label": ["cat", "dog"]}},
        r"rows.csv:2 `dog` holds '2'; a column for each class holds 0 and 1",
    ),
    "names for others": (
        FORMS["zeros and ones"][0],
        FORMS["zeros and ones"][1],
        {"class_names": ["a", "b"]},
        "holds 3 zeros and ones a row, and `class_names` names 2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_be_read_in_several_ways_is_refused(tmp_path: Path, case: str) -> None:
    save, found, keys, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        load(save(tmp_path, found), test=0.5, **keys)


def test_a_split_is_read_as_all_are(tmp_path: Path) -> None:
    """Two rows of zeros and ones look like numbers of classes, alone."""
    train = rows(lambda own: [int(kind in own) for kind in KINDS])
    few: Rows = [{"text": "a", "label": [0, 1, 0]}, {"text": "b", "label": [1, 0, 0]}]
    (tmp_path / "data").mkdir()
    for name, found in {"train": train, "test": few}.items():
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    splits = load(str(tmp_path / "data"), test="test", class_names=KINDS)
    assert splits["test"].rows["label"][:] == [["cat"], ["bird"]]


def test_a_row_whose_classes_are_not_known_is_bad_and_one_without_any_is_not(tmp_path: Path) -> None:
    found = [*rows(list), {"text": "unknown", "label": None}]
    data = LabelledTextData.model_validate({"name": jsonl(tmp_path, found), "splits": {"test": 0.25}})
    splits = load_splits(data, seed=0, label="label")
    with pytest.raises(DataError, match="rows have no label or one outside the class list"):
        count_classes(splits, data)


@pytest.mark.parametrize(
    "keys",
    [
        {"multi_label": False, "label_delimiter": ";"},
        {"multi_label": False, "columns": {"label": KINDS}},
        {"label_delimiter": ";", "columns": {"label": KINDS}},
        {"multi_label": True, "relabel": "a.csv"},
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"one class for each row|one column of labels|a class each"):
        LabelledTextData.model_validate({"name": "x", **keys})


# -------------------------------------------------------------------------------------- held out


def long_tail(n: int, seed: int) -> list[list[str]]:
    random, shares = np.random.default_rng(seed), 1 / np.arange(2, 42)
    return [[f"label {j}" for j in np.flatnonzero(random.random(40) < shares)] for _ in range(n)]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_labels_are_dealt_in_the_share_more_nearly_than_by_chance(share: float) -> None:
    off: dict[str, list[float]] = {"dealt": [], "chance": []}
    for seed in range(3):
        sets = [*long_tail(300, seed), ["only here", "label 1"]]
        dealt = deal_out(sets, [1 - share, share], seed=seed, keeps=True) == 1
        chance = np.random.default_rng(seed).permutation(len(sets)) < share * len(sets)
        counts = Counter(label for own in sets for label in own)
        for name, held in {"dealt": dealt, "chance": chance}.items():
            taken = Counter(label for own, is_held in zip(sets, held, strict=True) if is_held for label in own)
            off[name] += [abs(taken[label] - share * n) for label, n in counts.items()]
            assert name == "chance" or not taken["only here"]
        assert dealt.sum() == pytest.approx(share * len(sets), rel=0.2)
    assert np.mean(off["dealt"]) < 0.4 * np.mean(off["chance"])


def test_folds_are_of_the_labels_in_proportion(tmp_path: Path) -> None:
    found: Rows = [{"text": f"text {i}", "label": own} for i, own in enumerate(long_tail(200, 0))]
    name = jsonl(tmp_path, found)
    held = [load(name, test={"fold": i, "folds": 4})["test"].rows for i in range(4)]
    assert sorted(text for fold in held for text in fold["text"]) == sorted(str(row["text"]) for row in found)
    for label in ("label 0", "label 5"):
        assert np.ptp([sum(label in own for own in fold["label"]) for fold in held]) <= 2


def test_groups_stay_whole_and_shots_reach_every_label(tmp_path: Path) -> None:
    found: Rows = [{"text": f"text {i}", "label": own, "who": i // 4} for i, own in enumerate(long_tail(200, 0))]
    splits = load(jsonl(tmp_path, found), test={"share": 0.25, "group": "who"})
    who = {name: {int(text.split()[1]) // 4 for text in split.rows["text"]} for name, split in splits.items()}
    assert not who["train"] & who["test"]
    few = load(jsonl(tmp_path, found), shots=2)["train"].rows
    counts = Counter(label for own in few["label"] for label in own)
    assert len(few) < 60
    assert all(n >= 2 for label, n in counts.items() if int(label.split()[1]) < 20)
