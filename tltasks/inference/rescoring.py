"""Worth of an export beside its model: the run's test set, answered by each in a process of its own."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
from torch import Tensor

from tltasks.config.tasks import TASKS
from tltasks.data.encoding import encode_split
from tltasks.data.loading import load_splits
from tltasks.data.splits import EncodedSplit, Split, located
from tltasks.errors import CheckpointError, DataError
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference.predictor import Predictor
from tltasks.results.result import Rescored, load_result
from tltasks.runtime import devices
from tltasks.tasks.base import OnnxInput, Prediction, TaskBase
from tltasks.training.evaluation import drawn_rows, score_beside_baselines

WARMING_ROWS = 2
CALIBRATION_ROWS = 160
SMOOTHING_ROWS = 32
TRAINED = "trained"


@dataclass(frozen=True)
class TestSet:
    """The split that a run is judged by, as its task reads and scores it, and the rows that were trained on."""

    task: TaskBase
    encoded: EncodedSplit
    train: Split | None


@dataclass(frozen=True)
class Answers:
    """A model's answers to a test set, and what they took."""

    predictions: list[Prediction]
    seconds: float
    memory_bytes: int
    """Largest of a process that loads the model and answers."""
    disk_bytes: int


def open_test_set(saved: SavedModel) -> TestSet:
    """Load and encode the split by which a run is judged; raises DataError where its data are gone."""
    assert saved.run is not None, "the caller looks"
    assert saved.recipe is not None
    split, spec = load_result(saved.run / "result.json").headline.split, TASKS[saved.task.tag]
    trained = next(it for it in saved.recipe.stages if (it.name or it.stage) == saved.plan.name)
    metric = getattr(trained, "metric", None)
    stage = spec.stage.model_validate({"stage": "zero_shot"} | ({"metric": metric} if metric else {}))
    plan, adapter = dataclasses.replace(saved.plan, stage=stage), type(saved.task)
    splits = load_splits(plan.data, seed=saved.recipe.seed, label=adapter.label)
    task = adapter.open(plan, splits, saved.task.source, seed=saved.recipe.seed)
    return TestSet(task, _encoded(task, splits[split], plan.data.max_bad_share), splits.get("train"))


def _encoded(task: TaskBase, split: Split, max_bad_share: float) -> EncodedSplit:
    media = None if task.input_kind.is_text else task.input_kind.column
    told: dict[str, Any] = {"key": task.cache_key, "max_bad_share": max_bad_share, "media": media}
    return encode_split(split, task.preprocess(split), task.features, **told, processes=devices.cores())


def training_rows(test: TestSet) -> datasets.Dataset | None:
    """Some training rows as the model reads them, drawn with the seed."""
    if test.train is None:
        return None
    drawn = drawn_rows(len(test.train.rows), SMOOTHING_ROWS, seed=test.task.seed)
    return _encoded(test.task, dataclasses.replace(test.train, rows=test.train.rows.select(drawn)), 1.0).rows


def training_inputs(test: TestSet, about: OnnxInput) -> list[Tensor]:
    """Inputs of some training rows, drawn with the seed, as an ONNX file takes them; those that cannot be read not."""
    if test.train is None:
        return []
    split, column, found = test.train, test.task.input_kind.column, []
    for row in drawn_rows(len(split.rows), CALIBRATION_ROWS, seed=test.task.seed):
        with suppress(DataError):
            found.append(about.read(located(split.rows[row][column], split.folder)))
    return found


def answer_apart(name: str, trained: str, *, tag: str, trust_remote_code: bool) -> Answers:
    """The answers of a model, or export, to the test set of the run that `trained` names.

    In a process of its own, so that the memory is that of this model alone.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(answer, name, trained, tag=tag, trust_remote_code=trust_remote_code).result()
        except BrokenProcessPool as error:
            raise CheckpointError(
                f"export {trained}: answering its test set was ended from outside (memory?)."
            ) from error


def answer(name: str, trained: str, *, tag: str, trust_remote_code: bool) -> Answers:
    """The same in this process."""
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    device = devices.init_distributed().device
    rows = open_test_set(load_saved_model(trained, tag=tag, trust_remote_code=trust_remote_code)).encoded.rows
    saved = load_saved_model(name, tag=tag, trust_remote_code=trust_remote_code)
    predictor = Predictor.load(saved, device)
    predictor.predict_rows(rows.select(range(min(WARMING_ROWS, len(rows)))))
    started = time.perf_counter()
    predictions = predictor.predict_rows(rows)
    seconds = time.perf_counter() - started
    folder = saved.folder if saved.export is None else saved.export.folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Answers(predictions, seconds, devices.peak_memory_bytes(predictor.device), size)


def rescore(test: TestSet, trained: Answers, others: dict[str, Answers]) -> dict[str, Rescored]:
    """Scores of exports by name, and of the trained model, by the evaluation that the run was judged by."""
    task, rows = test.task, test.encoded.rows
    references = task.references(rows)
    ours = trained.predictions
    found = {}
    for name, answers in {TRAINED: trained, **others}.items():
        beside = {} if name == TRAINED else {TRAINED: ours}
        score, differences = score_beside_baselines(task, answers.predictions, references, beside)
        pairs = zip(answers.predictions, ours, strict=True)
        found[name] = Rescored(
            name,
            score.headline,
            score.value,
            score.ci95,
            differences[TRAINED].difference_ci95 if differences else None,
            len(rows),
            sum(a["prediction"] == b["prediction"] for a, b in pairs),
            len(rows) / answers.seconds,
            answers.memory_bytes,
            answers.disk_bytes,
        )
    return found


def loss_in_points(rescored: Rescored, trained: Rescored, task: TaskBase) -> float:
    """Points by which an export may be worse: by the end of the interval, or as it is where rows cannot tell."""
    assert rescored.difference_ci95 is not None
    ends = [end for end in rescored.difference_ci95 if not math.isnan(end)] or [rescored.value - trained.value]
    scale = 1.0 if task.top_score == 100.0 else 100.0
    return scale * (-min(ends) if task.higher_is_better else max(ends))
