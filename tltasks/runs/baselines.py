"""Baselines of a stage: predictions without the trained model, and the scores of stages before it."""

from __future__ import annotations

import dataclasses

import numpy as np
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tltasks.data.splits import EncodedSplit
from tltasks.metrics import paired_difference
from tltasks.results.result import Score, StageResult
from tltasks.runs.context import Context, PreparedStage
from tltasks.runtime.precision import hold_cast
from tltasks.tasks.base import BuiltModel, Embeds, Prediction, TaskBase
from tltasks.training.evaluation import NEIGHBOUR_ROWS, cached_features, drawn_rows, predict_rows

ROW_SCORES = "row_scores.safetensors"
"""What each row of a split contributes to the headline, by which later stages are compared with a stage."""


def baseline_predictions(context: Context, stage: PreparedStage) -> dict[str, dict[str, list[Prediction]]]:
    """Predictions by baseline and split: the task's own, and what the checkpoint can do as it stands."""
    task, kind = stage.task, stage.plan.kind
    known = _known(stage)
    baselines: dict[str, dict[str, list[Prediction]]] = {}
    for name, split in stage.evaluated.items():
        for baseline, predicted in task.baselines(known, split.rows).items():
            baselines.setdefault(baseline, {})[name] = predicted
    if kind.weights == "random" or not kind.trains:
        return baselines
    if kind.head == "kept":
        baselines["checkpoint"] = _pretrained_predictions(context, stage)
    elif isinstance(task, Embeds):
        baselines["checkpoint_knn"] = _nearest_neighbours(context, stage)
    return baselines


def _known(stage: PreparedStage) -> EncodedSplit:
    """The training split, or what stands for it."""
    return stage.encoded.get("train") or next(iter(stage.evaluated.values()))


def _build_pretrained(context: Context, stage: PreparedStage) -> BuiltModel[TaskBase]:
    """The checkpoint as it stands; what it lacks is drawn as the stage has drawn it, whatever ran before."""
    set_seed(context.seed)
    return stage.task.as_pretrained().build(stage.plan.kind)


def _pretrained_predictions(context: Context, stage: PreparedStage) -> dict[str, list[Prediction]]:
    """Predictions of the checkpoint as it stands."""
    pretrained, workers = _build_pretrained(context, stage), context.workers(stage.plan)
    hold_cast(pretrained.model, context.precision)
    return {
        name: predict_rows(context.accelerator, pretrained.task, pretrained.model, split.rows, workers=workers)
        for name, split in stage.evaluated.items()
    }


def _nearest_neighbours(context: Context, stage: PreparedStage) -> dict[str, list[Prediction]]:
    """Predictions by the nearest training rows, in the features of the checkpoint as it stands."""
    task, model = stage.task, _build_pretrained(context, stage).model
    assert isinstance(task, Embeds)
    known = _known(stage)
    drawn = drawn_rows(len(known.rows), NEIGHBOUR_ROWS, seed=context.seed)
    looked = known
    if len(drawn) < len(known.rows) and not stage.plan.kind.cached:  # which takes the features of all rows
        fingerprint = f"{known.fingerprint}, {NEIGHBOUR_ROWS} rows by {context.seed}"
        looked = dataclasses.replace(known, rows=known.rows.select(drawn), fingerprint=fingerprint)

    def features(split: EncodedSplit) -> NDArray[np.float32]:
        workers = context.workers(stage.plan)
        return cached_features(context.accelerator, task, model, task.head(model)[0], split, workers=workers)

    vectors = features(looked)
    vectors = vectors if len(vectors) == len(drawn) else vectors[drawn]
    references = task.references(known.rows.select(drawn))
    return {name: task.knn_predict(vectors, references, features(split)) for name, split in stage.evaluated.items()}


def scores_of_earlier_stages(
    context: Context, stage: PreparedStage, row_scores: dict[str, NDArray[np.float64]], earlier: list[StageResult]
) -> dict[str, dict[str, Score]]:
    """Scores of earlier stages of the same task on the same rows: controls, and what has been forgotten since."""
    found: dict[str, dict[str, Score]] = {}
    for before, plan in zip(earlier, context.plan.stages, strict=False):
        path = context.folder(plan) / ROW_SCORES
        if before.task != stage.plan.task or not path.is_file():
            continue
        by_rows = {before.data[split].fingerprint: split for split in before.metrics}
        theirs = load_file(path)
        for name, ours in row_scores.items():
            if (split := by_rows.get(stage.encoded[name].fingerprint)) is not None:
                interval = paired_difference(ours, theirs[split], most=stage.task.top_score)
                score = dataclasses.replace(before.metrics[split], details={}, notes=[], difference_ci95=interval)
                found.setdefault(f"stage_{before.name}", {})[name] = score
    return found
