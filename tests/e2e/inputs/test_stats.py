"""Intervals and verdicts as runs have them: each interval is one that can be, and each sentence agrees with it."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny.results import result_of, score, stage
from tltasks.errors import DataError, RecipeError
from tltasks.experiments.experiment import load_experiment
from tltasks.experiments.lr_finder import read_range
from tltasks.experiments.statistics import estimate
from tltasks.metrics import paired_difference, score_interval
from tltasks.reports.console import show_result
from tltasks.reports.formatting import show_gain, show_interval
from tltasks.results.comparison import compare_with_baselines

Floats = NDArray[np.float64]


def right(n: int, of: int) -> Floats:
    return np.stack([np.arange(of) < n, np.ones(of)], axis=1).astype(np.float64)


def rows(*pairs: tuple[float, float]) -> Floats:
    return np.array(pairs, dtype=np.float64)


ACCURACY: dict[str, tuple[Floats, float | None]] = {
    "all of 12": (right(12, 12), 1.0),
    "none of 12": (right(0, 12), 1.0),
    "one of one": (right(1, 1), 1.0),
    "one of two": (right(1, 2), 1.0),
    "58 of 60": (right(58, 60), 1.0),
    "all of 100,000": (right(100_000, 100_000), 1.0),
    "99,999 of 100,000": (right(99_999, 100_000), 1.0),
    "no word wrong": (rows(*[(0, n) for n in range(1, 20)]), 1.0),
    "one word wrong": (rows((1, 7), *[(0, 9)] * 30), 1.0),
    "every word wrong": (rows(*[(n, n) for n in range(1, 9)]), 1.0),
    "more errors than words": (rows((9, 2), (0, 5), (1, 6)), 1.0),
    "an empty reference": (rows((2, 0), (0, 5), (1, 6)), 1.0),
    "one utterance": (rows((1, 4)), 1.0),
    "ROUGE of nothing": (rows(*[(0, 1)] * 8), 100.0),
    "ROUGE of the references": (rows(*[(100, 1)] * 8), 100.0),
    "ROUGE alike": (rows(*[(41.5, 1)] * 8), 100.0),
    "ROUGE": (rows((0, 1), (12.5, 1), (66.7, 1)), 100.0),
    "losses": (rows((2.1, 1), (0.4, 3), (9.0, 2)), None),
    "two losses": (rows((2.1, 1), (2.2, 1)), None),
}


@pytest.mark.parametrize("name", ACCURACY)
def test_scores_and_differences(name: str) -> None:
    """An interval holds its score, is within what can be, has a width; differences turn with their arms."""
    scores, most = ACCURACY[name]
    value = scores[:, 0].sum() / scores[:, 1].sum()
    low, high = score_interval(scores, most=most)
    assert 0 <= low <= value <= high
    assert low < high
    if "more" not in name and "empty" not in name and most is not None:
        assert high <= most
    shown = [float(end.replace(",", "")) for end in show_interval((low, high)).split(" to ")]
    assert shown[0] < shown[1], "as it is printed too"
    none = scores * [0, 1]
    ours, theirs = paired_difference(scores, none, most=most), paired_difference(none, scores, most=most)
    assert ours == pytest.approx((-theirs[1], -theirs[0]), nan_ok=True)
    if not math.isnan(ours[0]):
        assert ours[0] - 1e-12 <= value <= ours[1] + 1e-12
    same = paired_difference(scores, scores, most=most)
    assert math.isnan(same[0]) or same[0] < 0 < same[1]


@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
@pytest.mark.parametrize("n", [0, 1, 11, 12])
def test_cells_of_experiments(n: int, seeds: int) -> None:
    table = np.tile(right(n, 12)[:, 0], (seeds, 1))
    found = estimate(table, bounds=(0.0, 1.0))
    assert 0 <= found.low <= n / 12 <= found.high <= 1
    assert 0.05 < found.high - found.low < 0.6
    gain = estimate(table - 0.0, bounds=(-1.0, 1.0))
    assert (gain.p < 0.05) == (not gain.low <= 0 <= gain.high)


@pytest.mark.parametrize(
    ("gain", "ends"),
    [
        (0.005, (0.0, 0.009)),
        (0.005, (-0.00049, 0.009)),
        (-0.0004, (-0.0012, -0.0001)),
        (0.0, (-1e-7, 1e-7)),
        (0.3, (4e-5, 0.6)),
        (12.0, (0.0002, 24.0)),
        (-0.02, (-0.05, -0.0)),
        (0.0, (float("nan"), float("nan"))),
    ],
)
def test_sentences(gain: float, ends: tuple[float, float]) -> None:
    beside = dataclasses.replace(score(0.5), difference_ci95=ends)
    made = stage({"test": score(0.5 + gain)})
    (it,) = compare_with_baselines(dataclasses.replace(made, baselines={"chance": {"test": beside}}))
    assert not re.search(r"[+−]0\.0+(?!\d)", f"{it.sentence} {show_gain(it.gain, it.ci95)}"), "a zero has no sign"
    assert ("contains zero" in it.sentence) == (ends[0] <= 0 <= ends[1])
    assert ("without an interval" in it.sentence) == math.isnan(ends[0])


def test_a_terminal_without_an_interval(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    alone = dataclasses.replace(score(1.0), ci95=(float("nan"), float("nan")))
    show_result(Console(width=200), result_of(stage({"test": alone})), Path("out"))
    said = capsys.readouterr().out
    assert "no interval" in said
    assert "nan" not in said


LOSSES = {
    "a plateau, a fall, an explosion": (
        [2.0] * 40 + [2 - 0.03 * i for i in range(40)] + [3.0**i for i in range(20)],
        True,
    ),
    "a fall from the first step": ([3 - 0.02 * i for i in range(100)], True),
    "steps that end early": ([2.0] * 8 + [2 - 0.05 * i for i in range(22)], True),
    "a first loss of a thousand": ([1000.0, 500.0] + [2.0] * 40 + [2 - 0.03 * i for i in range(58)], True),
    "a loss that rises": ([1 + 0.001 * i for i in range(100)], False),
    "one loss throughout": ([2.0] * 100, False),
    "nine steps": ([2 - 0.1 * i for i in range(9)], False),
    "no steps": ([], False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_learning_rates(name: str) -> None:
    losses, is_read = LOSSES[name]
    rates = [10 ** (-6 + 6 * i / 99) for i in range(100)]
    if not is_read:
        with pytest.raises(DataError, match=r"^range-test: "):
            read_range(rates, losses)
        return
    found = read_range(rates, losses)
    assert found.rates[0] > rates[9] > 3e-6
    assert found.rates[0] < found.suggested < found.rates[-1]


@pytest.mark.parametrize(
    ("splits", "level", "seed"),
    [
        ({"test": 0.2}, {}, 7),
        ({"test": "test", "validation": 0.2}, {}, 7),
        ({"test": 0.2, "validation": 0.2, "seed": 1}, {}, 1),
        ({"test": "test"}, {}, None),
        ({"test": 0.2}, {"data.splits.seed": 3}, 3),
        ({"test": 0.2}, {"data.splits.test": "test"}, None),
        ({"test": 0.2}, {"data.splits": {"validation": 0.1}}, 7),
        ({"test": 0.2}, {"data.splits.seed": -1}, "at least 0"),
    ],
)
def test_test_sets_that_stay(
    tmp_path: Path, splits: dict[str, Any], level: dict[str, Any], seed: int | str | None
) -> None:
    (tmp_path / "train.json").write_text("{}")
    keys = {
        "recipe": {
            "task": "image-classification",
            "model": {"name": "google/vit-base-patch16-224"},
            "data": {"name": "json", "files": {"train": "train.json", "test": "train.json"}, "splits": splits},
            "stages": [{"stage": "probe"}],
        },
        "axes": {"level": {"one": level}},
        "seeds": [7, 8, 9],
        "output": "out",
    }
    (tmp_path / "e.yaml").write_text(json.dumps(keys))
    if isinstance(seed, str):
        with pytest.raises(RecipeError, match=r"data\.splits\.seed"):
            load_experiment(tmp_path / "e.yaml")
        return
    found = {trial.recipe.data.splits.seed for trial in load_experiment(tmp_path / "e.yaml")[1] if trial.recipe.data}
    assert found == {seed}
