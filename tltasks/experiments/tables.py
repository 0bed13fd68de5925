"""An experiment's numbers as tables: CSV for other programs, LaTeX for a paper."""

from __future__ import annotations

import csv
import io
from collections import defaultdict

from tltasks.experiments.analysis import Arm, Findings
from tltasks.experiments.experiment import Experiment

MARKS = {"positive": "$^{+}$", "negative": "$^{-}$", "neutral": ""}


def csv_table(experiment: Experiment, findings: Findings) -> str:
    """A line for each arm and test set, with its comparison with each control."""
    controls = experiment.contrast.controls if experiment.contrast is not None else []
    columns = [*experiment.axes, "target", "in_domain", "seeds", "rows", findings.metric, "low", "high"]
    columns += ["train_examples", "trained_parameters", "training_seconds"]
    for control in controls:
        columns += [f"{name}_{control}" for name in ("gain_over", "low_over", "high_over", "p_holm", "verdict_against")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for arm in findings.arms:
        score = arm.score
        row: list[object] = [*arm.levels.values(), arm.target, "" if arm.in_domain is None else arm.in_domain]
        row += [score.seeds, score.rows, *map(_number, (score.mean, score.low, score.high, arm.train_examples))]
        row += [arm.trained_parameters, _number(arm.training_seconds)]
        for control in controls:
            one = next((c for c in arm.comparisons if c.control == control), None)
            numbers = (one.gain.mean, one.gain.low, one.gain.high, one.p_adjusted) if one else ()
            row += [*map(_number, numbers), one.verdict] if one else [""] * 5
        writer.writerow(row)
    return buffer.getvalue()


def _number(value: float) -> str:
    return f"{value:.6g}"


def latex_table(experiment: Experiment, findings: Findings) -> str:
    """Rows for the levels, columns for the test sets: mean ± half the 95 % interval, marked by transfer."""
    targets = list(dict.fromkeys(arm.target for arm in findings.arms))
    by_levels: dict[tuple[str, ...], dict[str, Arm]] = defaultdict(dict)
    for arm in findings.arms:
        by_levels[tuple(arm.levels.values())][arm.target] = arm
    best = {
        (target, context): (max if findings.higher_is_better else min)(arm.score.mean for arm in arms)
        for (target, context), arms in _contexts(experiment, findings).items()
    }
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * len(experiment.axes)}{'r' * len(targets)}}}",
        "\\toprule",
        " & ".join(map(escaped, [*experiment.axes, *targets])) + " \\\\",
        "\\midrule",
    ]
    before: tuple[str, ...] = ()
    for levels, arms in by_levels.items():
        shown = [escaped(level) if levels[: i + 1] != before[: i + 1] else "" for i, level in enumerate(levels)]
        cells = [
            _latex_cell(arms[target], best[target, _context(experiment, arms[target])]) if target in arms else "--"
            for target in targets
        ]
        lines.append(" & ".join([*shown, *cells]) + " \\\\")
        before = levels
    lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_cell(arm: Arm, best: float) -> str:
    half = (arm.score.high - arm.score.low) / 2
    value = f"{arm.score.mean:.3f}"
    mark = MARKS[arm.comparisons[0].verdict] if arm.comparisons else ""
    return (f"\\textbf{{{value}}}" if arm.score.mean == best else value) + f" $\\pm$ {half:.3f}{mark}"


def _context(experiment: Experiment, arm: Arm) -> tuple[str, ...]:
    axis = experiment.contrast.axis if experiment.contrast is not None else None
    return tuple(level for name, level in arm.levels.items() if name != axis)


def _contexts(experiment: Experiment, findings: Findings) -> dict[tuple[str, tuple[str, ...]], list[Arm]]:
    found: dict[tuple[str, tuple[str, ...]], list[Arm]] = defaultdict(list)
    for arm in findings.arms:
        found[arm.target, _context(experiment, arm)].append(arm)
    return found


def escaped(text: str) -> str:
    r"""
    >>> escaped("from_scratch & 5 %")
    'from\\_scratch \\& 5 \\%'
    """
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)
