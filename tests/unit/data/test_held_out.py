"""Rows held out of a training split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.model_selection import train_test_split

from tltasks.config.data import Splits
from tltasks.config.tasks.text import LabelledTextData
from tltasks.data.held_out import draw_held
from tltasks.data.loading import load_splits
from tltasks.data.splits import Split
from tltasks.errors import DataError
from tltasks.tasks.classes import count_classes

LABELS = {
    "one of a kind": ["a"] * 20 + ["b"] * 19 + ["rare"],
    "several of a kind": ["a"] * 10 + ["one"] + ["b"] * 10 + ["two", "three"],
    "pairs": ["a"] * 2 + ["b"] * 2 + ["c"] * 30,
    "more classes than are held out": [f"kind {i}" for i in range(10) for _ in range(3)],
    "blank": ["a"] * 9 + ["None"] + ["b"] * 9,
    "one class": ["a"] * 10,
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.7])
def test_no_label_loses_its_last_row_whatever_the_seed(name: str, share: float) -> None:
    labels = LABELS[name]
    n_held = min(max(1, round(len(labels) * share)), len(labels) - len(set(labels)))
    counts = Counter(labels)
    for seed in range(20):
        held = draw_held(labels, n_held, seed=seed)
        assert len(held) == n_held == len(set(held.tolist()))
        assert np.all(np.diff(held) > 0)
        taken = Counter(labels[i] for i in held)
        assert all(taken[label] < n for label, n in counts.items()), (seed, taken)
        large = [label for label, n in counts.items() if n >= 9]
        assert all(abs(taken[label] - n_held * counts[label] / len(labels)) <= 2 for label in large), (seed, taken)


def test_labels_that_are_many_enough_are_drawn_as_sklearn_does() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    for seed in range(5):
        expected = train_test_split(np.arange(100), test_size=20, random_state=seed, stratify=labels)[1]
        assert draw_held(labels, 20, seed=seed).tolist() == sorted(expected)


def test_more_rows_than_can_be_spared_are_held_out_all_the_same() -> None:
    labels = ["a", "b", "c", "d"]
    assert {len(draw_held(labels, n, seed=0)) for n in (1, 2, 3)} == {1, 2, 3}
    assert {tuple(draw_held(labels, 1, seed=seed)) for seed in range(30)} == {(0,), (1,), (2,), (3,)}


# ------------------------------------------------------------------------------------ by a column


def table(folder: Path, form: str, rows: list[dict[str, object]]) -> LabelledTextData:
    path = folder / f"rows.{form}"
    frame = pd.DataFrame(rows)
    match form:
        case "csv":
            frame.to_csv(path, index=False)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case _:
            frame.to_parquet(path)
    return LabelledTextData(name=str(path), splits=Splits(test=0.2))


def visits(n: int = 120) -> list[dict[str, object]]:
    """Six visits of each patient, of one kind or of another."""
    return [
        {"text": f"visit {i}", "label": "ab"[i // 6 % 2], "patient": 1000 + i // 6, "day": (i * 7) % n}
        for i in range(n)
    ]


def load(data: LabelledTextData, **splits: object) -> dict[str, Split]:
    chosen = data.model_copy(update={"splits": Splits.model_validate(splits)})
    return load_splits(chosen, seed=0, label="label")


def number(split: Split) -> list[int]:
    return [int(text.split()[1]) for text in split.rows["text"]]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.35])
def test_groups_are_held_out_whole(tmp_path: Path, form: str, share: float) -> None:
    by = {"share": share, "group": "patient"}
    splits = load(table(tmp_path, form, visits()), test=by, validation=by)
    patients = {name: {i // 6 for i in number(split)} for name, split in splits.items()}
    assert sum(map(len, patients.values())) == 20
    assert set.union(*patients.values()) == set(range(20))
    for name in ("test", "validation"):
        assert len(splits[name].rows) == pytest.approx(share * 120, abs=12)
        assert set(splits[name].rows["label"]) == {"a", "b"}
    assert all("tltasks:by patient" not in split.rows.column_names for split in splits.values())


def test_the_last_rows_of_an_order_are_held_out_by_numbers_and_by_dates(tmp_path: Path) -> None:
    found = load(table(tmp_path, "csv", visits()), test={"share": 0.25, "ordered_by": "day"})
    assert {(i * 7) % 120 for i in number(found["test"])} == set(range(90, 120))
    dated = [{**row, "day": f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}"} for i, row in enumerate(visits())][::-1]
    for form in ("csv", "parquet"):
        found = load(table(tmp_path, form, dated), test={"share": 0.25, "ordered_by": "day"})
        assert sorted(number(found["test"])) == list(range(90, 120))


def test_times_are_in_order_across_time_zones(tmp_path: Path) -> None:
    zones = [f"2024-03-{1 + i // 6:02d}T{11 + i % 6 + i % 2 * 5}:00+0{i % 2 * 5}:00" for i in range(120)]
    dated = [{**row, "day": day} for row, day in zip(visits(), zones, strict=True)]
    found = load(table(tmp_path, "csv", dated), test={"share": 0.025, "ordered_by": "day"})
    assert sorted(number(found["test"])) == [117, 118, 119]
    dated[0]["day"] = "2024-03-01T11:00"
    with pytest.raises(DataError, match="`day` has times with a time zone and without"):
        load(table(tmp_path, "csv", dated), test={"share": 0.025, "ordered_by": "day"})


def test_a_column_of_the_task_may_be_the_group(tmp_path: Path) -> None:
    twice = [{**row, "text": f"visit {i // 2}"} for i, row in enumerate(visits())]
    splits = load(table(tmp_path, "csv", twice), test={"share": 0.2, "group": "text"})
    assert not set(number(splits["train"])) & set(number(splits["test"]))


@pytest.mark.parametrize(
    ("changes", "by", "message"),
    [
        ({"patient": 1}, {"group": "patient"}, "`patient` has one value, '1', in all rows"),
        ({"patient": None}, {"group": "patient"}, "rows.csv train: 120 rows have no `patient`"),
        ({}, {"group": "patients"}, "no column `patients`; did you mean `patient`"),
        ({}, {"ordered_by": "date"}, "no column `date`"),
        ({"day": "03/12/2024"}, {"ordered_by": "day"}, "`day` holds '03/12/2024'; the order of dates is read from ISO"),
        ({"day": "2024-3-1"}, {"ordered_by": "day"}, "`day` holds '2024-3-1'"),
    ],
)
def test_a_column_that_cannot_divide_rows_is_an_error(
    tmp_path: Path, changes: dict[str, object], by: dict[str, object], message: str
) -> None:
    rows = [{**row, **changes} for row in visits()]
    with pytest.raises(DataError, match=message):
        load(table(tmp_path, "csv", rows), test={"share": 0.2, **by})


def test_a_share_takes_one_column() -> None:
    for keys in ({}, {"group": "a", "ordered_by": "b"}):
        with pytest.raises(ValidationError, match="takes `group` or `ordered_by`; a share alone is a number"):
            Splits.model_validate({"test": {"share": 0.2, **keys}})


@pytest.mark.parametrize("group", [None, "patient"])
def test_folds_hold_out_every_row_once(tmp_path: Path, group: str | None) -> None:
    data = table(tmp_path, "csv", visits())
    seen: list[int] = []
    for fold in range(5):
        splits = load(data, test={"fold": fold, "folds": 5, "group": group}, validation=0.1)
        held = number(splits["test"])
        assert len(held) == pytest.approx(24, abs=6 if group else 0)
        assert set(splits["test"].rows["label"]) == {"a", "b"}
        rest = number(splits["train"]) + number(splits["validation"])
        assert sorted(held + rest) == list(range(120))
        assert not group or not {i // 6 for i in held} & {i // 6 for i in rest}
        seen += held
    assert sorted(seen) == list(range(120))


def test_the_only_row_of_a_class_is_tested_in_no_fold(tmp_path: Path) -> None:
    rows = [{**row, "label": "rare" if i == 7 else row["label"]} for i, row in enumerate(visits())]
    data = table(tmp_path, "csv", rows)
    held = [number(load(data, test={"fold": fold, "folds": 4})["test"]) for fold in range(4)]
    assert sorted(row for part in held for row in part) == [i for i in range(120) if i != 7]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"fold": 5, "folds": 5}, "`fold` is one of `folds`, from 0 to 4"),
        ({"folds": 5}, "`fold` is one of `folds`"),
        ({"fold": 0, "folds": 5, "share": 0.2}, "`folds` takes the place of `share`"),
        ({"fold": 0, "folds": 5, "ordered_by": "day"}, "`folds` takes the place of `share` and `ordered_by`"),
        ({"group": "patient"}, "needs a `share`"),
    ],
)
def test_folds_that_are_none_are_mistakes(rows: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Splits.model_validate({"test": rows})


# --------------------------------------------------------------------------------- labels of another table


def test_rows_get_the_labels_of_another_table(tmp_path: Path) -> None:
    data = table(tmp_path, "csv", visits()).model_copy(update={"splits": Splits(test=0.2)})
    before = labels_of(load_splits(data, seed=0, label="label"))
    corrected = tmp_path / "looked_at.csv"
    corrected.write_text("path,label,suggested\nrows.csv:2,b,b\nrows.csv:3,b,a\nrows.csv:4,a,b\n")
    splits = load_splits(data.model_copy(update={"relabel": str(corrected)}), seed=0, label="label")
    after = labels_of(splits)
    assert {text: (before[text], after[text]) for text in after if after[text] != before[text]} == {
        "visit 0": ("a", "b"),
        "visit 1": ("a", "b"),
    }
    assert "2 rows have another label by looked_at.csv" in splits["train"].notes


def labels_of(splits: dict[str, Split]) -> dict[str, str]:
    rows = [row for split in splits.values() for row in split.rows]
    return {row["text"]: str(row["label"]) for row in rows}


def test_rows_without_names_are_known_by_their_numbers(tmp_path: Path) -> None:
    data = table(tmp_path, "parquet", visits()).model_copy(update={"splits": Splits(test=0.2)})
    (tmp_path / "new.csv").write_text("path,label\nrow 5,b\n")
    splits = load_splits(data.model_copy(update={"relabel": str(tmp_path / "new.csv")}), seed=0, label="label")
    assert [i for i in range(12) if labels_of(splits)[f"visit {i}"] == "b"] == [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nrows.csv:999,a\n", "new.csv: names rows that the data have not: rows.csv:999"),
        ("path,label\nrows.csv:3,\n", "new.csv: gives no label to rows.csv:3"),
        ("path,label\nrows.csv:3,a\nrows.csv:3,b\n", "new.csv: :3 is about rows.csv:3 again"),
        ("path,label\nrows.csv:3,aa\n", "gives labels that no row of the data has: aa; did you mean `a`"),
        ("row,label\nrows.csv:3,a\n", "new.csv: .*no column `path`"),
    ],
)
def test_a_table_of_labels_that_fits_no_rows_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    data = table(tmp_path, "csv", visits())
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_splits(data.model_copy(update={"relabel": str(tmp_path / "new.csv")}), seed=0, label="label")


def test_names_that_the_recipe_gives_to_numbers_are_labels(tmp_path: Path) -> None:
    rows = [{**row, "label": i % 2} for i, row in enumerate(visits())]
    data = table(tmp_path, "csv", rows).model_copy(update={"class_names": ["no", "yes"]})
    (tmp_path / "new.csv").write_text("path,label\nrows.csv:2,yes\n")
    splits = load_splits(data.model_copy(update={"relabel": str(tmp_path / "new.csv")}), seed=0, label="label")
    counts = count_classes(splits, data)
    assert sum((Counter(found) for found in counts.values()), Counter()) == {"no": 59, "yes": 61}
