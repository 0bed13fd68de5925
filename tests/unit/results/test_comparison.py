"""What a stage cost on tests that are not its own, as the report and the card say it."""

from __future__ import annotations

import dataclasses
import re
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny.results import plan_of, result_of, score, stage, usual
from tltasks.reports.formatting import show_gain
from tltasks.reports.html import write_report
from tltasks.reports.model_card import render_card
from tltasks.results.comparison import compare_with_baselines, compare_with_before, describe_forgetting
from tltasks.results.result import Ancestor, Provenance, RunResult, StageResult


def tuned(interval: tuple[float, float] | None, **changed: Any) -> StageResult:
    """A stage after `cifar10`, tested on `old` as that one was, where it scores 0.9."""
    metrics = {"test": score(0.8), "old": score(0.9)}
    before = {"stage_cifar10": {split: score(0.95, difference=interval) for split in metrics}}
    weights = Provenance("ada/vit", start="previous")
    lineage = [Ancestor("cifar10", "", "", "ada/vit", "main", {})]
    made = stage(metrics, name="finetune", kind="finetune", weights=weights, lineage=lineage)
    return dataclasses.replace(made, **{"baselines": {**made.baselines, **before}, **changed})


def result(last: StageResult) -> RunResult:
    return result_of(stage({"test": score(0.95), "old": score(0.95)}, name="cifar10"), last)


@pytest.mark.parametrize(
    ("interval", "verdict", "said"),
    [
        ((-0.08, -0.02), "worse", "Something was forgotten on old"),
        ((-0.08, 0.01), "unclear", "Nothing is shown to be forgotten or learnt on old"),
        ((0.01, 0.02), "better", "Nothing was forgotten, more was learnt on old"),
    ],
)
def test_the_sentence_goes_by_the_interval(interval: tuple[float, float], verdict: str, said: str) -> None:
    last = tuned(interval)
    (change,) = compare_with_before(result(last), last)
    assert change.verdict == verdict
    sentence = describe_forgetting(change)
    assert sentence.startswith(f"{said}: ")
    assert "than stage cifar10" in sentence
    assert sentence.endswith("; accuracy was 0.950 and is 0.900 after this stage.")


def test_an_error_rate_is_worse_when_it_rises() -> None:
    last = dataclasses.replace(tuned((0.02, 0.08)), higher_is_better=False)
    (change,) = compare_with_before(result(last), last)
    assert (change.verdict, change.ci95) == ("worse", (-0.08, -0.02))
    assert change.gain == pytest.approx(0.05)


def test_from_a_checkpoint_the_checkpoint_is_what_was_before() -> None:
    metrics = {"test": score(0.8), "sketches": score(0.9)}
    last = stage(metrics)
    (change,) = compare_with_before(result_of(last), last)
    assert (change.split, change.name, change.theirs.value) == ("sketches", "the untouched checkpoint", 0.99)


def test_without_a_score_from_before_nothing_is_said() -> None:
    for last in (
        tuned(None),
        tuned((nan, nan)),
        tuned((-0.1, -0.05), task="masked-image-modeling"),
        tuned((0.1, 0.2), training=None),
    ):
        run = result(tuned((0.0, 0.0)))
        assert list(compare_with_before(run, last)) == []


def test_report_and_card_say_it(tmp_path: Path) -> None:
    last = tuned((-0.08, -0.02))
    sentence = "Something was forgotten on old: worse than stage cifar10 by 0.050 (95 % interval 0.020 to 0.080)"
    write_report(tmp_path / "report.html", result(last), "", [], [])
    assert sentence in (tmp_path / "report.html").read_text(encoding="utf-8").replace("\xa0", " ")
    card = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "### What was forgotten\n\n- Something was forgotten on " in card


CLOSE = (0.0, 1e-9, 4e-8, 0.0002, 0.00049, 0.0005, 0.004, 0.01, 0.3)


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("middle", [0.0, 0.005, -0.004, 0.00051])
def test_no_verdict_contradicts_the_numbers_beside_it(middle: float, higher_is_better: bool) -> None:
    """In the sentence of card, report, terminal and demo, and in the cells of tables."""
    seen = set()
    for below in CLOSE:
        for above in CLOSE:
            ends = middle - below, middle + above
            theirs = dataclasses.replace(score(0.5), difference_ci95=ends)
            made = stage({"test": score(0.5 + middle)}, higher_is_better=higher_is_better)
            (it,) = compare_with_baselines(dataclasses.replace(made, baselines={"chance": {"test": theirs}}))
            seen.add(it.verdict)
            shown = [
                float(text.replace("−", "-"))
                for text in re.findall(r"[+−]?\d+(?:\.\d+|e-\d+)", show_gain(it.gain, it.ci95))
            ]
            assert [np.sign(value) for value in shown] == [np.sign(round(value, 12)) for value in (it.gain, *it.ci95)]
            contains_zero = shown[1] <= 0 <= shown[2]
            assert contains_zero == (it.verdict == "unclear") == ("contains zero" in it.sentence)
            assert not re.search(r"[+−]0\.0+(?!\d)| by 0\.0+ ", it.sentence), "zero has no sign, and is no difference"
    assert "unclear" in seen
