"""Metrics of the evaluate library that a recipe names beside a task's own scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Protocol

import datasets

from tltasks.config.stage import Metric
from tltasks.data.splits import Columns
from tltasks.errors import RecipeError, first_line
from tltasks.results.result import Score
from tltasks.tasks.base import Task

HUB_PREFIX = "evaluate/"
SCORES = "prediction_scores"
"""The column that metrics of rankings, such as evaluate/roc_auc, want in place of `predictions`."""


class EvaluationModule(Protocol):
    """What `evaluate.load` returns."""

    features: datasets.Features | list[datasets.Features]

    def compute(self, **columns: object) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class ExtraMetric:
    """One metric, and what it is computed from."""

    name: str
    """`evaluate/NAME`, or the folder's name."""
    module: EvaluationModule
    features: datasets.Features
    """Columns that it takes."""
    options: Mapping[str, object]
    """Further arguments of its `compute`."""
    class_names: Sequence[str]
    """By whose order labels become numbers, where it takes numbers."""

    def add_to(self, score: Score, columns: Columns) -> Score:
        """The score with this metric's numbers, computed from `task.columns`; with a note where it fails."""
        given = {key: self._column(key, feature, columns) for key, feature in self.features.items()}
        try:
            found = self.module.compute(**given, **self.options)
        except Exception as error:
            note = f"{self.name} could not be computed: {first_line(error)}"
            return dataclasses.replace(score, notes=[*score.notes, note])
        values = dict(score.values)
        for key, value in found.items():
            if isinstance(value, Real):
                alone = key == self.name.removeprefix(HUB_PREFIX) and self.name not in values
                values[self.name if alone else f"{self.name}/{key}"] = float(value)
        return dataclasses.replace(score, values=values)

    def _column(self, key: str, feature: object, columns: Columns) -> list[object]:
        """A column in the type that the metric wants: texts, labels' numbers, or probabilities; in lists of one."""
        nested = isinstance(feature, datasets.List)
        if key == SCORES:
            return [row if nested else row[1] for row in columns["probabilities"]]
        values: list[object] = columns[key.removesuffix("s")]
        if _type_of(feature) != "string":
            numbers: dict[object, int] = {name: i for i, name in enumerate(self.class_names)}
            values = [numbers[value] for value in values]
        return [[value] for value in values] if nested else values


def load_extra_metrics(wanted: Sequence[Metric], task: Task) -> list[ExtraMetric]:
    """The metrics that a stage names.

    Raises RecipeError for one that is not found, that does not fit the task, or whose script is the Hub's and which
    the user has not said may run.
    """
    return [_load(metric, task) for metric in wanted]


def _load(metric: Metric, task: Task) -> ExtraMetric:
    import evaluate  # takes seconds, and few recipes want it

    local = Path(metric.name).is_dir()
    where = f"metrics: {Path(metric.name).name if local else metric.name}"
    if not local and not metric.trust_remote_code:
        raise RecipeError(
            f"{where}: would run a script of the Hub. Look at it there, then say so: "
            f"`{{name: {metric.name}, trust_remote_code: true}}`, best with the `revision` that you have seen; "
            "a folder on this machine needs no say-so."
        )
    try:
        module: EvaluationModule = evaluate.load(
            metric.name.removeprefix(HUB_PREFIX), module_type="metric", revision=metric.revision, keep_in_memory=True
        )
    except Exception as error:
        raise RecipeError(
            f"{where}: cannot be loaded: {first_line(error)}. Name `evaluate/NAME`, or a folder with a script of its "
            "own name, ./NAME/NAME.py."
        ) from error
    class_names: list[str] = getattr(task, "class_names", [])
    choices = module.features if isinstance(module.features, list) else [module.features]
    fitting = [features for features in choices if _fits(features, task, class_names)]
    if not fitting:
        wants = " or ".join(", ".join(f"{key} ({_type_of(f)})" for key, f in choice.items()) for choice in choices)
        raise RecipeError(f"{where}: wants {wants}, which {task.tag} does not have; leave it out.")
    return ExtraMetric(
        Path(metric.name).name if local else metric.name, module, fitting[0], metric.options, class_names
    )


def _fits(features: datasets.Features, task: Task, class_names: list[str]) -> bool:
    answers_texts = getattr(task.output_features["prediction"], "dtype", "") == "string"
    return answers_texts and all(
        (key == SCORES and len(class_names) > 0 and (isinstance(feature, datasets.List) or len(class_names) == 2))
        or (
            key in {"predictions", "references"}
            and (_type_of(feature) == "string" or (len(class_names) > 0 and _type_of(feature).startswith("int")))
        )
        for key, feature in features.items()
    )


def _type_of(feature: object) -> str:
    """The type of a column's values, in a list or not."""
    inner = feature.feature if isinstance(feature, datasets.List) else feature
    return str(getattr(inner, "dtype", "") or type(inner).__name__)
