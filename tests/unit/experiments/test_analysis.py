"""Scores of an experiment's folds, taken together."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from sklearn.metrics import balanced_accuracy_score, f1_score

from tltasks.experiments.analysis import CellScore, ControlComparison, Findings, _whole, analyse
from tltasks.experiments.experiment import Experiment
from tltasks.experiments.statistics import Estimate
from tltasks.experiments.trials import TargetScore, TrialRecord
from tltasks.metrics.classification import class_row_scores
from tltasks.results.comparison import Verdict

MEASURES = {
    "macro_f1": lambda true, chosen: f1_score(true, chosen, average="macro"),
    "balanced_accuracy": balanced_accuracy_score,
    "accuracy": lambda true, chosen: float(np.mean(true == chosen)),
}


@pytest.mark.parametrize(("metric", "in_lists"), [*((metric, False) for metric in MEASURES), ("macro_f1", True)])
def test_the_metric_of_folds_is_that_of_all_their_rows(metric: str, in_lists: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    true = random.choice(3, 60, p=[0.8, 0.1, 0.1])
    chosen = np.where(random.random(60) < 0.7, true, random.choice(3, 60))
    records = []
    for fold, rows in enumerate(np.array_split(np.arange(60), 5)):
        part = {"test": class_row_scores(metric, chosen[rows], true[rows])}
        (tmp_path / "trials" / f"{fold}" / "stages" / "head").mkdir(parents=True)
        save_file(part, tmp_path / "trials" / f"{fold}" / "stages" / "head" / "rows.safetensors")
        (tmp_path / "trials" / f"{fold}" / "predictions").mkdir()
        table = pd.DataFrame({"prediction": chosen[rows].astype(str), "reference": true[rows].astype(str)})
        if in_lists:  # as of rows that may have any number of classes
            table = table.map(lambda name: [name])
        table.to_parquet(tmp_path / "trials" / f"{fold}" / "predictions" / "head-test.parquet")
        target = TargetScore(0.0, (0.0, 1.0), len(rows), f"rows {fold}", {}, leaks=fold)
        records.append(
            TrialRecord(
                id=str(fold),
                recipe_sha256="",
                levels={"method": "head"},
                seed=0,
                inputs={},
                metric=metric,
                higher_is_better=True,
                row_scores=f"{fold}/stages/head/rows.safetensors",
                targets={"test": target},
                train_examples=48,
                trained_parameters=1,
                total_parameters=1,
                training_seconds=1.0,
                seconds=1.0,
                versions={},
                hardware={},
                fold=fold,
            )
        )
    ((whole, scores),) = _whole(records, 5, tmp_path)
    expected = MEASURES[metric](true, chosen)
    assert whole.targets["test"].value == pytest.approx(expected)
    assert scores["test"].mean(0) == pytest.approx([expected, 1.0])
    experiment = Experiment(recipe={}, axes={"method": {"head": {}}}, output="x", seeds=[0], folds=5)
    findings = analyse(experiment, records, tmp_path)
    assert findings.leaks == {"test": 0 + 1 + 2 + 3 + 4}
    assert any("Up to 10 rows of test have near-duplicates" in text for _, text in findings.sentences())
    findings = dataclasses.replace(findings, leaks={"test": 1})
    assert any("Up to 1 row of test has a near-duplicate among" in text for _, text in findings.sentences())
    without = [
        dataclasses.replace(record, targets={"test": dataclasses.replace(target, leaks=0)}) for record in records
    ]
    assert not any("near-duplicates" in text for _, text in analyse(experiment, without, tmp_path).sentences())


def cell(method: str, mean: float, *comparisons: ControlComparison) -> CellScore:
    score = Estimate(mean, mean - 0.1, mean + 0.1, 0.0, 3, 100, 0.5)
    return CellScore({"method": method}, "test", None, score, {}, [], 100, 1, 1.0, list(comparisons))


@pytest.mark.parametrize(
    ("probe", "verdict", "kind", "said"),
    [
        (
            0.6,
            "worse",
            "better",
            "probe scores best: accuracy 0.600 (0.500 to 0.700), better than lora: +0.090 (+0.018 to",
        ),
        (0.51, "unclear", "unclear", "On test, probe and lora score the same: accuracy 0.510 (0.410 to 0.610)."),
        (0.6, "unclear", "unclear", "not shown to be better than lora: +0.090"),
        (0.4, "better", "better", "lora scores best: accuracy 0.510 (0.410 to 0.610), better than probe: −0.090"),
    ],
)
def test_the_answer_is_by_rows_that_are_paired_also_where_the_control_is_best(
    probe: float, verdict: Verdict, kind: str, said: str
) -> None:
    gain = Estimate(-0.09, -0.16, -0.018, 0.01, 3, 100, 0.5)
    cells = [cell("probe", probe), cell("lora", 0.51, ControlComparison("probe", gain, 0.01, verdict, None, (1, 1)))]
    (first, sentence), *_ = Findings("accuracy", True, cells, [], {}, 0, {}).sentences()
    assert (first, said in sentence) == (kind, True), sentence
