"""What happened, as JSON, as a table, and in a notebook."""

import dataclasses
import math
from math import nan
from pathlib import Path

import pytest

from tests.tiny.results import result_of, score, stage, usual
from tltasks.results.result import (
    EXAMPLES,
    Interpolation,
    ReportExample,
    RunResult,
    Score,
    StageResult,
    load_result,
)


def two_stages() -> RunResult:
    before = stage({"validation": score(0.5)}, name="first", training=None)
    return result_of(before, stage({"test": score(0.8), "validation": score(0.9)}, name="second"))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    result = usual()
    training = dataclasses.replace(result.best.training, interpolation=Interpolation(0.5, "accuracy", [0.5], {}))
    result = dataclasses.replace(result, stages=[dataclasses.replace(result.best, training=training)])
    result.save(tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == result
    assert StageResult.from_json(result.best.to_json()) == result.best


def test_numbers_that_are_not_finite_are_null_and_read_as_nan(tmp_path: Path) -> None:
    odd = Score({"accuracy": nan, "loss": math.inf}, "accuracy")
    result_of(stage({"test": odd})).save(tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = load_result(tmp_path / "result.json").score
    assert all(math.isnan(value) for value in (*read.values.values(), *read.ci95))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"validation error|Invalid JSON"):
        load_result(tmp_path / "result.json")


def test_examples_are_read_back_with_their_bytes() -> None:
    examples = [ReportExample("image", "a", "b", b"\x89PNG\x00"), ReportExample("audio", "c", "d", b"")]
    assert EXAMPLES.validate_json(EXAMPLES.dump_json(examples)) == examples


def test_the_best_stage_is_the_headlines() -> None:
    result = two_stages()
    assert result.best.name == "second"
    assert result.score is result.best.metrics["test"]


def test_a_table_has_a_row_for_every_number() -> None:
    result = two_stages()
    table = result.to_pandas()
    assert list(table.columns) == ["stage", "split", "model", "metric", "value", "low", "high"]
    assert len(table) == (1 + 2) * 4 * 5, "stages with splits × the model and three baselines × metrics"
    (row,) = (
        table[(table.stage == "second") & (table.split == "test") & (table.metric == "accuracy")]
        .query("model == 'this model'")
        .to_dict("records")
    )
    assert (row["value"], row["low"], row["high"]) == (0.8, pytest.approx(0.78), pytest.approx(0.82))
    assert table[table.metric == "loss"].low.isna().all(), "the metric that decides has an interval"


def test_a_notebook_shows_stages_beside_their_baselines() -> None:
    html = two_stages()._repr_html_()
    assert html.count("<tr") == 1 + 3
    for cell in ("first", "second", "0.800 [0.780, 0.820]", "majority_class", "0.100"):
        assert f"{cell}</t" in html
    evil = dataclasses.replace(two_stages().best, name="<script>")
    assert "<script>" not in result_of(evil)._repr_html_()
