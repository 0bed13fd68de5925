"""metrics.jsonl through kills and resumes, and what trackers are given."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tltasks.errors import CheckpointError, RecipeError
from tltasks.training.tracking import Tracker, check_trackers, read_metrics


class Recorder:
    """In the place of an Accelerator."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values, step))


def test_each_line_is_there_at_once_and_is_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = Tracker(path)
    for step in (1, 2):
        tracker.log("transfer", "train", step, loss=0.5 / step)
        assert len(path.read_text().splitlines()) == step
    assert json.loads(path.read_text().splitlines()[1]) == {
        "stage": "transfer",
        "split": "train",
        "step": 2,
        "loss": 0.25,
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_not_sent(tmp_path: Path, value: float) -> None:
    recorder = Recorder()
    Tracker(tmp_path / "m.jsonl", recorder).log("s", "train", 1, loss=value, lr=0.1)
    assert "NaN" not in (tmp_path / "m.jsonl").read_text()
    assert read_metrics(tmp_path / "m.jsonl")[0]["loss"] is None
    assert recorder.logged == [({"s/train/lr": 0.1}, 1)]


def test_trackers_get_numbers_under_stage_and_split() -> None:
    recorder = Recorder()
    Tracker(None, recorder).log("s", "validation", 7, accuracy=0.5, n=3)
    assert recorder.logged == [({"s/validation/accuracy": 0.5, "s/validation/n": 3}, 7)]


def test_rewinding_drops_what_comes_again_and_the_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tracker = Tracker(path)
    for stage in ("first", "second"):
        for step in range(1, 5):
            tracker.log(stage, "train", step, loss=1.0)
    with path.open("a") as file:
        file.write('{"stage": "second", "split": "train", "st')
    tracker.rewind("second", 2)
    steps = [(row["stage"], row["step"]) for row in read_metrics(path)]
    assert steps == [("first", 1), ("first", 2), ("first", 3), ("first", 4), ("second", 1), ("second", 2)]
    tracker.log("second", "train", 3, loss=1.0)
    assert read_metrics(path)[-1]["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_rewinding_nothing(tmp_path: Path) -> None:
    Tracker(None).rewind("s", 0)
    Tracker(tmp_path / "absent.jsonl").rewind("s", 0)
    assert not list(tmp_path.iterdir())


ROW = '{"stage": "s", "step": 1}\n'


def test_reading_passes_over_the_line_that_a_kill_has_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_metrics(path) == []
    path.write_text(ROW + ROW[:-1])
    assert read_metrics(path) == [{"stage": "s", "step": 1}]


@pytest.mark.parametrize(
    "line", [b"3", b"", b'{"step": 1}', b'{"stage": "s"', b'{"stage": "s", "step": "x"}', b"\0\0\0", b"\xff\xfe"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(ROW.encode() + line + b"\n" + ROW.encode())
    with pytest.raises(CheckpointError, match=r"m\.jsonl: line 2 is damaged .* Remove it to go on\."):
        Tracker(path).rewind("s", 1)


def test_trackers_that_are_not_installed_are_refused_with_what_to_install() -> None:
    check_trackers([])
    check_trackers(["json"])
    with pytest.raises(RecipeError, match="no_such_tracker, nor_this not installed; run `pip install no_such_tracker"):
        check_trackers(["json", "no_such_tracker", "nor_this"])
