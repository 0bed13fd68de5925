"""Metrics of the evaluate library that a recipe names beside a task's own scores."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import ClassVar, Protocol

import datasets

from tltasks.config.stage import Metric
from tltasks.data.splits import Columns, EncodedSplit
from tltasks.errors import DataError, RecipeError, first_line
from tltasks.results.result import Score
from tltasks.tasks.base import TaskBase

HUB_PREFIX = "evaluate/"
Supply = Callable[[Columns], Sequence[object]]
"""A column of a metric, from those of `Task.columns`."""


class Columnar(Protocol):
    """A task, as far as its predictions become columns of a metric."""

    tag: ClassVar[str]
    output_features: ClassVar[datasets.Features]


class EvaluationModule(Protocol):
    """A metric as `evaluate.load` returns it."""

    features: datasets.Features | list[datasets.Features]

    def compute(self, **columns: object) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class ExtraMetric:
    """One metric, and where its columns come from."""

    name: str
    """`evaluate/NAME`, or the folder's name."""
    module: EvaluationModule
    columns: Mapping[str, Supply]
    options: Mapping[str, object]
    """Further arguments of its `compute`."""

    def __call__(self, score: Score, columns: Columns) -> Score:
        """The score with this metric's numbers, computed from `Task.columns`; with a note where it fails."""
        given = {key: supply(columns) for key, supply in self.columns.items()}
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


def load_extra_metrics(wanted: Sequence[Metric], task: Columnar) -> list[ExtraMetric]:
    """Load the metrics that a stage names.

    Raises RecipeError for one that is not found, that does not fit the task, or whose script is the Hub's and which
    the user has not said may run.
    """
    return [_load(metric, task) for metric in wanted]


def rehearse(metrics: Sequence[ExtraMetric], task: TaskBase, encoded: Mapping[str, EncodedSplit]) -> None:
    """Compute metrics of probabilities of the majority baseline; raises DataError for a split where one has no value.

    An area under a curve, for instance, is none where a class is missing.
    """
    for metric in metrics:
        if "prediction_scores" not in metric.columns:
            continue
        for name, split in encoded.items():
            if name == "train":
                continue
            predictions = task.baselines(encoded.get("train", split), split.rows)["majority_class"]
            columns = task.columns(predictions, task.references(split.rows))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = metric(Score({}, ""), columns)
            if found.notes or any(math.isnan(value) for value in found.values.values()):
                raise DataError(
                    f"{split.where}: {metric.name} has no value there: {' '.join(found.notes) or 'it is not a number'} "
                    "It needs rows of every class; a share held out of train (`test: 0.2`) has them."
                )


def _load(metric: Metric, task: Columnar) -> ExtraMetric:
    import evaluate  # takes seconds, and few recipes want it

    local = Path(metric.name).is_dir()
    name = Path(metric.name).name if local else metric.name
    if not local and not metric.trust_remote_code:
        raise RecipeError(
            f"metrics: {name}: would run a script of the Hub. Look at it there, then say so: "
            f"`{{name: {name}, trust_remote_code: true}}`, best with the `revision` that you have seen; "
            "a folder on this machine needs no say-so."
        )
    try:
        module: EvaluationModule = evaluate.load(
            metric.name.removeprefix(HUB_PREFIX), module_type="metric", revision=metric.revision, keep_in_memory=True
        )
    except Exception as error:
        raise RecipeError(
            f"metrics: {name}: cannot be loaded: {first_line(error)}. Name `evaluate/NAME`, or a folder with a script "
            "of its own name, ./NAME/NAME.py."
        ) from error
    supplies = _supplies(task)
    choices = module.features if isinstance(module.features, list) else [module.features]
    for features in choices:
        wants = {key: (key, _type_of(feature)) for key, feature in features.items()}
        if wants.items() and all(want in supplies for want in wants.values()):
            return ExtraMetric(name, module, {key: supplies[want] for key, want in wants.items()}, metric.options)
    described = " or ".join(", ".join(f"{key} ({_type_of(f)})" for key, f in choice.items()) for choice in choices)
    raise RecipeError(f"metrics: {name}: wants {described}, which {task.tag} does not have; leave it out.")


def _supplies(task: Columnar) -> dict[tuple[str, str], Supply]:
    """The columns that a task has for a metric, by name and type: texts, numbers of labels, probabilities."""
    if getattr(task.output_features["prediction"], "dtype", "") != "string":
        return {}
    sources = {"predictions": itemgetter("prediction"), "references": itemgetter("reference")}
    found: dict[tuple[str, str], Supply] = {(key, "string"): source for key, source in sources.items()}
    if class_names := getattr(task, "class_names", []):
        found |= {(key, "int"): _numbered(source, class_names) for key, source in sources.items()}
        if len(class_names) == 2:
            found["prediction_scores", "float"] = lambda columns: [row[1] for row in columns["probabilities"]]
    found |= {(key, f"list of {kind}"): _in_lists(supply) for (key, kind), supply in found.items()}
    if class_names:
        found["prediction_scores", "list of float"] = itemgetter("probabilities")
    return found


def _numbered(labels: Supply, class_names: list[str]) -> Supply:
    numbers: dict[object, int] = {name: i for i, name in enumerate(class_names)}
    return lambda columns: [numbers[label] for label in labels(columns)]


def _in_lists(values: Supply) -> Supply:
    return lambda columns: [[value] for value in values(columns)]


def _type_of(feature: object) -> str:
    """The type of a column without its width: `string`, `int`, `list of float`."""
    if isinstance(feature, datasets.List):
        return f"list of {_type_of(feature.feature)}"
    return str(getattr(feature, "dtype", "") or type(feature).__name__).rstrip("0123456789")
