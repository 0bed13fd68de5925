"""One stage of a run, top to bottom: build, adapt, train, evaluate, save, score."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object, set_seed
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import nn

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks import TASKS
from tltasks.data.batching import steps_per_epoch
from tltasks.errors import CheckpointError, DataError, RecipeError, first_line
from tltasks.models.adapters import adapt, count_parameters, is_adapted, merged, without_adapter
from tltasks.models.held import FORMATS, hold, hold_head, is_held, is_quantized, loading_held, restore
from tltasks.results.metric_names import metric_in_text
from tltasks.results.result import (
    EXAMPLES,
    LONG,
    Attribution,
    Interpolation,
    Leaks,
    Provenance,
    ReportExample,
    Robustness,
    Score,
    SplitSummary,
    StageMeasurement,
    StageResult,
    TrainingSummary,
    lineage_after,
)
from tltasks.runs.baselines import ROW_SCORES, baseline_predictions, scores_of_earlier_stages
from tltasks.runs.callbacks import EvaluationInfo, StepInfo
from tltasks.runs.context import Context, PreparedStage
from tltasks.runs.leaks import summarise, twin_examples
from tltasks.runs.memory import Parts, advise, built_bytes, expect_memory, is_large, shortage_told
from tltasks.runtime import devices
from tltasks.runtime.files import whole_file, whole_folder, write_text
from tltasks.runtime.peers import readable
from tltasks.runtime.precision import choose_attention, choose_base_dtype, hold_cast
from tltasks.runtime.progress import Bar
from tltasks.tasks.base import BuiltModel, Explains, Outputs, Prediction, TaskBase
from tltasks.training.checkpoint import Checkpoints, Progress
from tltasks.training.evaluation import (
    Predict,
    drawn_rows,
    explain_mistakes,
    forward_outputs,
    largest_difference,
    merging_makes,
    predict_rows,
    score_beside_baselines,
    settle,
    write_predictions,
)
from tltasks.training.linear_probe import Fit, fit_probe
from tltasks.training.loop import Job, seconds_per_step, train
from tltasks.training.robustness import measure_robustness
from tltasks.training.tracking import Tracker
from tltasks.training.weight_interpolation import interpolate
from tltasks.training.windows import Windows

BySplit = dict[str, list[Prediction]]
SAVED_WITHIN = 1e-3
"""Share of the largest output by which a saved model may differ; a head that is lost changes the first digits."""
CHECKED_ROWS = 8


@dataclass(frozen=True)
class _Trained:
    """How a stage was trained."""

    progress: Progress = field(default_factory=Progress)
    fit: Fit | None = None
    base_difference: float | None = None
    """How far the quantised base that it was trained beside makes its outputs others than its own does."""
    expected_memory: Parts = field(default_factory=dict)
    peak_memory: int | None = None
    """Bytes, of the loop alone."""


@dataclass(frozen=True)
class FinishedStage:
    """A stage's result, and examples of the split that decides, for the report."""

    result: StageResult
    examples: list[ReportExample]


def run_stage(context: Context, stage: PreparedStage, earlier: list[StageResult]) -> FinishedStage:
    """Carry out a stage; or read back one that an earlier run has finished."""
    plan, folder = stage.plan, context.folder(stage.plan)
    if (finished := _read_finished(context, stage, folder)) is not None:
        _drop_checkpoints(context, finished.result)
        return finished
    # ------------------------------------------------------------------------------ build, adapt, train
    started, before = time.perf_counter(), devices.resident_bytes()
    stage, built = _build(context, stage)
    model, training = _train(context, stage, built, before=before)
    progress = training.progress
    provenance, trains = built.provenance, plan.kind.trains
    del built
    context.heed_stop(f"stage {plan.name}: stopped after training, before evaluation")
    trained, total = count_parameters(model)
    # --------------------------------------------------------------------------------------------- save
    predict = partial(predict_rows, context.accelerator, stage.task, workers=context.workers(plan))
    adapter = trains and plan.index == context.plan.final.index and can_publish_adapter(stage, provenance)
    model, difference, effect = _merge(context, stage, model, keep=adapter)  # what is scored is what is saved
    model, interpolation, baselines = _interpolate(context, stage, model, predict)
    stage, known = _settle(context, stage, model)
    predict = partial(predict_rows, context.accelerator, stage.task, workers=context.workers(plan))
    saved = _save(context, stage, model, adapter=adapter)
    # ----------------------------------------------------------------------------------------- evaluate
    hold_cast(model, context.precision)
    predictions = {n: known.get(n) or _answers(context, stage, model, n) for n, split in stage.evaluated.items()}
    robustness = _measure_robustness(context, stage, model, predictions, predict)
    attributions = _explain(context, stage, model, predictions)
    del model  # before it is loaded again
    context.accelerator.free_memory()
    difference = max(difference, _difference_when_loaded(context, stage, saved))
    weights = dataclasses.replace(
        provenance, start=plan.stage.start, adapter=adapter, saved_difference=difference, adapter_effect=effect
    )
    # -------------------------------------------------------------------------------------------- score
    scores, beside, leaks, examples = _score(context, stage, predictions, baselines, earlier, attributions)
    if doubt := _doubt(weights):
        scores = {n: dataclasses.replace(s, notes=[*s.notes, doubt]) for n, s in scores.items()}
    result = StageResult(
        kind=plan.stage.stage,
        name=plan.name,
        task=plan.task,
        higher_is_better=stage.task.higher_is_better,
        metrics=scores,
        baselines=beside,
        seconds=time.perf_counter() - started,
        examples_per_second=progress.examples / progress.seconds if progress.seconds else 0.0,
        peak_memory_bytes=devices.peak_memory_bytes(context.accelerator.device),
        trainable_parameters=trained if trains else 0,
        total_parameters=total,
        weights=weights,
        data=_describe_splits(stage, leaks, progress),
        training=_describe_training(context, stage, training, interpolation) if trains else None,
        robustness=robustness,
        lineage=lineage_after(earlier[-1], context.plan.sha256) if plan.continues else stage.lineage,
        baseline_names=dict(TASKS[plan.task].baseline_names),
    )
    context.on_main(lambda: write_text(folder / "result.json", result.to_json()))
    _drop_checkpoints(context, result)
    return FinishedStage(result, examples)


def _drop_checkpoints(context: Context, result: StageResult) -> None:
    if context.writes and _doubt(result.weights) is None:
        shutil.rmtree(context.plan.output / "checkpoints" / result.name, ignore_errors=True)


def _read_finished(context: Context, stage: PreparedStage, folder: Path) -> FinishedStage | None:
    try:
        with readable(context.accelerator.state, folder, without="model") as seen:
            if not (seen / "result.json").is_file():
                return None
            result = StageResult.from_json((seen / "result.json").read_bytes())
            examples = EXAMPLES.validate_json((seen / "examples.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: what is kept of the finished stage cannot be read ({first_line(error)}). Remove this folder: "
            "--resume then carries the stage out again."
        ) from error
    changed = [n for n, split in stage.encoded.items() if split.fingerprint != result.data[n].fingerprint]
    if changed:
        raise DataError(
            f"output {context.plan.output}: stage {result.name} was carried out on other data than there is now "
            f"({', '.join(changed)}). Name another folder with --output."
        )
    return FinishedStage(result, examples)


@dataclass(frozen=True)
class OpenStage:
    """A stage with its model as its steps begin; without a job, where the loop trains nothing."""

    stage: PreparedStage
    model: nn.Module
    job: Job | None = None
    memory: Callable[..., Parts] = dict
    """`expect_memory` of its steps."""


def open_stage(context: Context, stage: PreparedStage) -> OpenStage:
    """Build and adapt a stage's model; one that goes on from an earlier stage has random weights."""
    plan, before = stage.plan, devices.resident_bytes()
    set_seed(context.seed)
    # A stage that continues has no weights to go on from yet, and time does not depend on them.
    kind = dataclasses.replace(plan.kind, weights="random") if plan.continues else plan.kind
    with _holding(context, stage):
        built = stage.task.build(kind)
    stage, model = dataclasses.replace(stage, task=built.task), built.model
    if not plan.kind.trains or plan.kind.cached:
        return OpenStage(stage, model)
    model, head = adapt_model(stage, built)
    hold_frozen(context, stage, model)
    job = make_job(context, stage, head)
    memory = partial(expect_memory, context, job, model, before=before, built=built_bytes(model))
    return OpenStage(stage, model, job, memory)


def measure_stage(context: Context, stage: PreparedStage) -> StageMeasurement:
    """Size of a stage, and time and memory of its steps by one of them; nothing is written."""
    opened = open_stage(context, stage)
    model, job, parts = opened.model, opened.job, opened.memory()
    trainable, total = count_parameters(model)
    splits = {name: (split.n_rows, len(split.skipped)) for name, split in stage.encoded.items()}
    if job is None:
        memory = devices.peak_memory_bytes(context.accelerator.device)
        return StageMeasurement(stage.plan.name, splits, trainable, total, memory, parts=parts)
    of_one, waiting = seconds_per_step(context.accelerator, job, model)
    seconds, memory = of_one * job.total_steps, devices.peak_memory_bytes(context.accelerator.device)
    shorter = _shorter(stage.plan.index, job, of_one)
    return StageMeasurement(
        stage.plan.name, splits, trainable, total, memory, job.total_steps, seconds, parts, waiting, shorter
    )


def _shorter(index: int, job: Job, of_one: float) -> str:
    """The keys to set for a training of `LONG` at most; empty where it is that already."""
    steps = LONG / of_one if of_one else math.inf
    if steps >= job.total_steps:
        return ""
    if job.stage.steps:
        return f"stages.{index}.steps={max(1, int(steps))}"
    epochs = steps / job.steps_per_epoch
    return f"stages.{index}.epochs={int(epochs) if epochs >= 1 else f'{epochs:.1g}'}"


# --------------------------------------------------------------------------------- build, adapt, train


def _build(context: Context, stage: PreparedStage) -> tuple[PreparedStage, BuiltModel[TaskBase]]:
    plan = stage.plan
    if plan.continues:
        saved = context.folder(context.plan.stages[plan.index - 1]) / "model"
        before = context.until_end.enter_context(readable(context.accelerator.state, saved))
        source = Checkpoint(str(before), display_name=stage.source.display_name)
        stage = dataclasses.replace(stage, source=source, task=stage.task.starting_from(source))
    set_seed(context.seed)
    with _holding(context, stage):
        built = stage.task.build(plan.kind)
    if is_held(built.model) and (reason := _stumbles(built)) is not None:
        if plan.stage.base_dtype != "auto":
            raise CheckpointError(
                f"base_dtype: {type(built.model).__name__} reads weights past their layers, and does not run with "
                f"some of them in {plan.stage.base_dtype} ({reason}). Use `base_dtype: fp32`."
            )
        set_seed(context.seed)
        built = stage.task.build(plan.kind)
    elif is_held(built.model) and not _trains_head(plan) and plan.stage.base_dtype == "auto":
        hold_head(built.model, FORMATS[_base_dtype(context, plan)])
    devices.release_memory()  # what weights were made from
    stage = dataclasses.replace(stage, task=built.task)
    device, tokens = context.accelerator.device, stage.task.sequence_length
    choose_attention(built.model, tokens=tokens, device=device, precision=context.precision)
    return stage, built


def _train(
    context: Context, stage: PreparedStage, built: BuiltModel[TaskBase], *, before: int
) -> tuple[nn.Module, _Trained]:
    """The model after the loop, or after a probe's fit; as it was built where nothing is trained."""
    plan, task = stage.plan, stage.task
    if plan.kind.cached:
        own_head, workers = task.head(built.model), context.workers(plan)
        progress, fit = fit_probe(
            context.accelerator, task, built.model, own_head, plan.stage, stage.encoded, workers=workers
        )
        context.say(
            plan,
            f"fitted the head to {progress.examples:,} rows of features in {progress.seconds:.1f} s "
            f"(l2 {fit.l2:g}, {fit.iterations} iterations)",
        )
        return built.model, _Trained(progress, fit)
    if not plan.kind.trains:
        return built.model, _Trained()
    model, head = adapt_model(stage, built)
    hold_frozen(context, stage, model)
    trained = _loop(context, stage, model, head, before=(before, built_bytes(model)))
    context.accelerator.free_memory()  # it keeps the optimiser
    devices.release_memory()
    beside = _outputs(context, stage, model) if is_quantized(model) else None
    if is_held(model):
        set_seed(context.seed)
        restore(model, stage.task.build(plan.kind).model, display_name=stage.source.display_name)
    if beside is not None:
        difference = largest_difference(beside, _outputs(context, stage, model))
        base = plan.stage.base_dtype
        context.say(plan, f"back on the checkpoint's own weights, from {base}: outputs differ by {difference:.2g}")
        trained = dataclasses.replace(trained, base_difference=difference)
    return model, trained


# ------------------------------------------------------------------------------ frozen weights


def _base_dtype(context: Context, plan: StagePlan) -> str:
    """The format in which the stage holds weights that it does not train."""
    if not plan.stage.loops or plan.kind.weights == "random":
        return "fp32"
    return choose_base_dtype(plan.stage.base_dtype, precision=context.precision, adapt=plan.stage.adapt)


def _holding(context: Context, stage: PreparedStage) -> AbstractContextManager[None]:
    """A context in which a model is loaded straight in the format that its frozen weights are held in."""
    plan = stage.plan
    dtype, method = _base_dtype(context, plan), plan.stage.adapt.method
    if dtype not in FORMATS or method == "full":
        return nullcontext()
    exact = plan.stage.base_dtype == "auto"
    return loading_held(FORMATS[dtype], stage.task.head if _trains_head(plan) else lambda model: [], exact=exact)


def _trains_head(plan: StagePlan) -> bool:
    return plan.kind.head == "new" or plan.stage.adapt.method == "head"


def _stumbles(built: BuiltModel[TaskBase]) -> str | None:
    """Why the model does not run with weights in 16 bits, where it does not."""
    run = built.task.example_pass()
    try:
        with torch.no_grad():
            run(built.model)
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)
    return None


def hold_frozen(context: Context, stage: PreparedStage, model: nn.Module) -> None:
    """Hold what `freeze` has left of a model that is else trained in full."""
    dtype = _base_dtype(context, stage.plan)
    if dtype in FORMATS and stage.plan.stage.adapt.method == "full":
        keep = [name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad]
        hold(model, FORMATS[dtype], keep=keep, exact=False)


def adapt_model(stage: PreparedStage, built: BuiltModel[TaskBase]) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with what is to be trained set free, and the names of its head's modules."""
    task, keys, model = built.task, stage.plan.stage, built.model
    if keys.adapt.is_virtual and not can_publish_adapter(stage, built.provenance):
        raise RecipeError(
            f"adapt.{keys.adapt.method}: virtual tokens cannot be merged into weights, so the run saves an adapter: "
            "the checkpoint must be one of the Hub, `hub.publish: adapter`, the task one that answers, and no weights "
            "interpolated."
        )
    if keys.gradient_checkpointing:
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise CheckpointError(f"gradient_checkpointing: {type(model).__name__} does not support it.") from error
    head = task.head(model)
    adapted = adapt(
        model,
        keys.adapt,
        freeze=keys.freeze,
        new_head=stage.plan.kind.head == "new",
        head=head,
        targets=task.lora_targets(model),
        display_name=stage.source.display_name,
        revision=str(built.provenance.commit or stage.source.revision),  # what a branch holds may change
        trial=task.trial(),
    )
    devices.release_memory()  # what passes of the trial have taken
    return adapted, tuple(head)


def _loop(
    context: Context, stage: PreparedStage, model: nn.Module, head: tuple[str, ...], *, before: tuple[int, int]
) -> _Trained:
    """Train with a bar or lines of what is done, and a line for each evaluation."""
    plan, accelerator = stage.plan, context.accelerator

    def on_step(progress: Progress, loss: float) -> bool | None:
        bar.update(progress.step - bar.done, f"loss {loss:.3f}, {progress.examples / progress.seconds:,.1f} examples/s")
        info = StepInfo(*place(progress), loss, progress.examples, progress.seconds)
        return context.on_step and context.on_step(info)

    def evaluate(model: nn.Module) -> dict[str, float]:
        with peak.left_out():
            score = _validate(context, stage, model)
        with bar.bar.external_write_mode(file=sys.stderr):
            _say_validation(context, stage, score)
        return score.values

    def on_evaluation(progress: Progress, values: dict[str, float]) -> bool | None:
        info = EvaluationInfo(*place(progress), values, stage.task.headline, progress.best_step)
        return context.on_evaluation and context.on_evaluation(info)

    def place(progress: Progress) -> tuple[str, int, int, float]:
        return plan.name, progress.step, job.total_steps, progress.step / job.steps_per_epoch

    job = dataclasses.replace(
        make_job(context, stage, head),
        on_step=on_step,
        on_evaluation=on_evaluation,
        evaluate=evaluate if "validation" in stage.encoded else None,
        advise=lambda halvings, asked: advise(context, stage, job, model, halvings=halvings, asked=asked),
        say=lambda text: context.say(plan, text),
    )
    trained, total = count_parameters(model)
    context.say(
        plan,
        f"trains {trained:,} of {total:,} parameters ({trained / total:.2%}); {_examples(stage, job)}, "
        f"{job.total_steps:,} steps of {plan.stage.batch_size}{_chosen_epochs(job)}; {context.precision} on "
        f"{accelerator.device.type}" + (f" x {accelerator.num_processes}" if accelerator.num_processes > 1 else ""),
    )
    peak = devices.PeakMemory(accelerator.device)
    short = shortage_told(f"stage {plan.name}", lambda asked: job.advise(0, asked))
    with Bar(plan.name, job.total_steps, "steps", leave=True) as bar, short:
        progress = train(accelerator, job, model)
    highest = peak.bytes()
    # By now the model has kept what it keeps of passes of these shapes, with numbers in it.
    parts: Parts = {}
    if is_large(model):
        parts = expect_memory(context, job, model, before=before[0], built=before[1], halvings=progress.net_halvings)
    return _Trained(progress, expected_memory=parts, peak_memory=highest)


def _validate(context: Context, stage: PreparedStage, model: nn.Module) -> Score:
    """The score on validation, or on the rows of it that evaluations during training look at."""
    rows, most = stage.encoded["validation"].rows, stage.plan.stage.evaluate_rows
    rows = rows.select(drawn_rows(len(rows), most, seed=context.seed))
    workers = context.workers(stage.plan)
    predictions = predict_rows(context.accelerator, stage.task, model, rows, workers=workers)
    references = stage.task.references(rows)
    task = stage.task.settled(predictions, references)
    return task.score(task.decided(predictions), references, intervals=False)


def _examples(stage: PreparedStage, job: Job) -> str:
    stream = stage.encoded["train"].stream
    if stream is None:
        return f"{job.n_rows:,} examples"
    return f"{'' if stream.count is None else f'{stream.count:,} '}examples streamed by {stream.buffer:,}"


def _chosen_epochs(job: Job) -> str:
    """Words on epochs that the recipe leaves open."""
    chosen = job.stage.epochs is None and job.stage.steps is None
    return f" (epochs: {job.stage.epochs_for(job.n_rows):g}, chosen by the size of the data)" if chosen else ""


def _say_validation(context: Context, stage: PreparedStage, score: Score) -> None:
    values = score.values
    told = list(values) if len(values) <= 3 else [name for name in (score.headline, "loss") if name in values]
    shown = ", ".join(f"{metric_in_text(name)} {values[name]:.3f}" for name in told)
    for line in (f"validation {shown}", *score.notes):
        context.say(stage.plan, line)


def make_job(context: Context, stage: PreparedStage, head: tuple[str, ...]) -> Job:
    """A job for the loop, which tells nobody of it yet."""
    plan, keys, output = stage.plan, stage.plan.stage, context.plan.output
    train_rows, decides = stage.encoded["train"], ("train", "validation")
    logger = context.accelerator if context.plan.recipe.trackers else None
    from_checkpoint = plan.kind.weights != "random"
    return Job(
        name=plan.name,
        task=stage.task,
        rows=train_rows.rows,
        fingerprint=" ".join(split.fingerprint for name, split in stage.encoded.items() if name in decides),
        stage=keys,
        seed=context.seed,
        head=head,
        frozen_batch_norm=keys.batch_norm == "frozen" or (keys.batch_norm == "auto" and from_checkpoint),
        workers=context.workers(plan),
        evaluate=None,
        checkpoints=Checkpoints(output / "checkpoints" / plan.name, keep=keys.keep_checkpoints),
        tracker=Tracker(output / "metrics.jsonl" if context.writes else None, logger),
        stop_requested=context.stop_requested,
        on_step=lambda progress, loss: None,
        new_head=plan.kind.head == "new",
        windows=_windows(context, stage),
        n_rows=stage.rows_of_epoch,
    )


def _windows(context: Context, stage: PreparedStage) -> Windows | None:
    """The windows of training rows that are streamed: written once on each machine, for all of its processes."""
    train, accelerator = stage.encoded["train"], context.accelerator
    if train.windows is None:
        return None

    def agree(failure: str | None) -> None:
        told = [failure] if accelerator.num_processes == 1 else gather_object([failure])
        if failures := [text for text in told if text is not None]:
            raise DataError(failures[0])

    parts = platform.node(), context.plan.output.absolute(), stage.plan.name  # machines may share a disk
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-streamed" / name
    return Windows(train.windows, folder, bool(accelerator.is_local_main_process), agree)


# ---------------------------------------------------------------------------------------------- evaluate


def _interpolate(
    context: Context, stage: PreparedStage, model: nn.Module, predict: Predict
) -> tuple[nn.Module, Interpolation | None, dict[str, BySplit]]:
    """The model between its start and its end where the recipe asks for it, and the baselines that this gives."""
    plan = stage.plan
    if plan.stage.interpolate is None:
        return model, None, {}
    start = stage.task.build(plan.kind).model
    between, found, trained = interpolate(stage.task, start, model, plan.stage.interpolate, stage.evaluated, predict)
    context.say(plan, f"interpolated to alpha {found.alpha:g}")
    return between, found, {"not_interpolated": trained}


def _settle(context: Context, stage: PreparedStage, model: nn.Module) -> tuple[PreparedStage, BySplit]:
    """The stage with its task as predictions for `validation` settle it, and these; none where there is no choice."""
    if not stage.task.settles or "validation" not in stage.encoded:
        return stage, {}
    found = {"validation": _answers(context, stage, model, "validation")}
    task, found = settle(stage.task, found, stage.encoded, calibrates=True)
    return dataclasses.replace(stage, task=task), found


def _answers(context: Context, stage: PreparedStage, model: nn.Module, name: str) -> list[Prediction]:
    """Predictions for a split with all that the task chooses by, and is judged by."""
    rows, workers = stage.encoded[name].rows, context.workers(stage.plan)
    return predict_rows(context.accelerator, stage.task.settling, model, rows, workers=workers)


def _measure_robustness(
    context: Context, stage: PreparedStage, model: nn.Module, predictions: BySplit, predict: Predict
) -> Robustness | None:
    keys = getattr(stage.plan.data, "corruptions", None)
    if keys is None:
        return None
    name, split = next(iter(stage.evaluated.items()))
    found = measure_robustness(stage.task, model, split, predictions[name], keys, predict, seed=context.seed)
    context.say(stage.plan, f"{found.metric} on {name} {found.clean:.3f}, corrupted {found.mean:.3f}")
    return found


def _explain(context: Context, stage: PreparedStage, model: nn.Module, predictions: BySplit) -> list[Attribution]:
    """Which parts of the worst mistakes the answers go by, in the order of the report's examples."""
    task, (name, split) = stage.task, next(iter(stage.evaluated.items()))
    if not isinstance(task, Explains) or stage.plan.index != context.plan.final.index:
        return []
    wrong = task.mistakes(predictions[name], task.references(split.rows))
    return explain_mistakes(context.accelerator, task, model, split.rows, wrong)


# -------------------------------------------------------------------------------------------------- save


def can_publish_adapter(stage: PreparedStage, provenance: Provenance) -> bool:
    """An adapter can stand alone: its base is one that everyone can fetch, used as it is."""
    return (
        stage.plan.may_publish_adapter
        and not Path(stage.source.name).is_dir()  # an earlier run, or an adapter merged into its base
        and not provenance.interpolated
        and not provenance.settings.get("prompts")  # the classes that texts name are not in an adapter
    )


def _merge(
    context: Context, stage: PreparedStage, model: nn.Module, *, keep: bool
) -> tuple[nn.Module, float, float | None]:
    """The model with its adapter merged, how far that has changed its outputs, and how far the adapter itself does.

    The adapter may be one to `keep`; without any there is no effect.
    """
    if not is_adapted(model):
        return model, 0.0, None
    ours = _outputs(context, stage, model)
    with without_adapter(model):
        effect = largest_difference(ours, _outputs(context, stage, model))
    whole = model if keep else merged(model)
    return whole, 0.0 if keep else largest_difference(ours, _outputs(context, stage, whole)), effect


def _save(
    context: Context, stage: PreparedStage, model: nn.Module, *, adapter: bool
) -> tuple[list[Path], list[Outputs]]:
    """Save the model where the run, or the next stage, takes it from: these folders, and its outputs for some rows."""
    plan, run = stage.plan, context.plan
    folders = [run.output] * (plan.index == run.final.index) + [context.folder(plan)] * run.feeds_next(plan)
    for folder in folders:

        def write(folder: Path = folder) -> None:
            with whole_folder(folder / "model") as place:
                stage.task.save(place, model, adapter=adapter)

        context.on_main(write)
    return [folder / "model" for folder in folders], _outputs(context, stage, model)


def _difference_when_loaded(context: Context, stage: PreparedStage, saved: tuple[list[Path], list[Outputs]]) -> float:
    """How far the model that `_save` has saved is another when it is loaded again.

    The commonest fault of published models is a head that did not come along.
    """
    folders, ours = saved
    worst = 0.0
    for folder in folders:
        with readable(context.accelerator.state, folder) as seen:
            worst = max(worst, largest_difference(ours, _outputs(context, stage, stage.task.reload(seen))))
    return worst


def _outputs(context: Context, stage: PreparedStage, model: nn.Module) -> list[Outputs]:
    rows = next(iter(stage.evaluated.values())).rows
    return forward_outputs(context.accelerator, stage.task, model, rows.select(range(min(CHECKED_ROWS, len(rows)))))


def _doubt(weights: Provenance) -> str | None:
    """A sentence on a model that is saved as another than was trained."""
    difference, effect = weights.saved_difference or 0.0, weights.adapter_effect
    most = SAVED_WITHIN if effect is None or weights.adapter else min(SAVED_WITHIN, merging_makes(effect))
    if difference <= most:
        return None
    beside = "" if effect is None else f" (the adapter makes {effect:.2g})"
    return (
        f"Loaded again, the saved model gives outputs that differ by {difference:.2g} of the largest{beside}, where "
        f"rounding makes less than {most:.2g}: it is not the model that was trained, and not to be trusted."
    )


def check_saved(result: StageResult) -> None:
    """Raise CheckpointError where the model that a stage has saved is not the one that was trained."""
    if doubt := _doubt(result.weights):
        raise CheckpointError(f"stage {result.name}: {doubt} checkpoints/ still holds the trained state.")


# ------------------------------------------------------------------------------------------------- score


def _score(
    context: Context,
    stage: PreparedStage,
    predictions: BySplit,
    baselines: dict[str, BySplit],
    earlier: list[StageResult],
    attributions: list[Attribution],
) -> tuple[dict[str, Score], dict[str, dict[str, Score]], dict[str, Leaks | None], list[ReportExample]]:
    """Scores by split, baselines by name and split, what leaks into each split, and examples of the first split.

    What rows gave is written.
    """
    task, folder = stage.task, context.folder(stage.plan)
    baselines = baseline_predictions(context, stage) | baselines
    settled = {name: settle(task, by_split, stage.encoded, calibrates=True)[1] for name, by_split in baselines.items()}
    scores: dict[str, Score] = {}
    leaks: dict[str, Leaks | None] = {}
    beside: dict[str, dict[str, Score]] = {}
    row_scores: dict[str, NDArray[np.float64]] = {}
    examples: list[ReportExample] = []
    for name, predicted in predictions.items():
        rows = stage.encoded[name].rows
        references = task.references(rows)
        row_scores[name] = task.row_scores(predicted, references)
        theirs = {baseline: by_split[name] for baseline, by_split in settled.items()}
        extra, groups = stage.extra_metrics, task.groups(rows)
        scores[name], found = score_beside_baselines(task, predicted, references, theirs, extra=extra, groups=groups)
        leaks[name] = summarise(stage, name, predicted, references, row_scores[name])
        for baseline, score in found.items():
            beside.setdefault(baseline, {})[name] = score
        if context.writes:
            path = context.plan.output / "predictions" / f"{stage.plan.name}-{name}.parquet"
            write_predictions(path, task, rows, predicted, references)
        if context.writes and len(scores) == 1:
            shown = task.report_examples(rows, predicted, references)
            pairs = zip(shown, chain(attributions, repeat(Attribution())), strict=False)
            shown = [dataclasses.replace(example, attribution=it) for example, it in pairs]
            examples = [*shown, *twin_examples(stage, name)]
            write_text(folder / "examples.json", EXAMPLES.dump_json(examples, indent=1).decode())
    if context.writes:
        with whole_file(folder / ROW_SCORES) as place:
            save_file(row_scores, place)
    return scores, beside | scores_of_earlier_stages(context, stage, row_scores, earlier), leaks, examples


# ---------------------------------------------------------------------------------------------- describe


def _describe_splits(
    stage: PreparedStage, leaks: dict[str, Leaks | None], progress: Progress
) -> dict[str, SplitSummary]:
    found = {
        name: SplitSummary(
            examples=len(split.rows),
            skipped=len(split.skipped),
            skipped_rows={str(row): reason for row, reason in list(split.skipped.items())[:100]},
            source=split.origin,
            fingerprint=split.fingerprint,
            checks=stage.checks.get(name, {}),
            notes=stage.split_notes.get(name, []),
            leaks=leaks.get(name),
        )
        for name, split in stage.encoded.items()
    }
    if (place := progress.place) is not None:  # of data that are streamed: as far as they were read
        met, bad = place["size"] or progress.examples, place["lost"] or place["bad"]
        found["train"] = dataclasses.replace(found["train"], examples=met, skipped=bad)
    return found


def _describe_training(
    context: Context, stage: PreparedStage, trained: _Trained, interpolation: Interpolation | None
) -> TrainingSummary:
    keys, progress, fit = stage.plan.stage, trained.progress, trained.fit
    per_epoch = steps_per_epoch(stage.rows_of_epoch, keys.batch_size)
    return TrainingSummary(
        steps=progress.step,
        ended=progress.ended,
        seconds=round(progress.seconds, 3),
        method="head" if fit else keys.adapt.method,
        precision=context.precision,
        base_dtype=_base_dtype(context, stage.plan) if keys.adapt.method != "full" or keys.freeze else None,
        base_difference=trained.base_difference,
        expected_memory=trained.expected_memory,
        peak_memory_bytes=trained.peak_memory,
        epochs=None if fit else round(progress.step / per_epoch, 3),
        best_step=progress.best_step,
        best_value=progress.best_value,
        batch_size=None if fit else keys.batch_size,
        micro_batch=None if fit else keys.micro_batch,
        halvings=progress.halvings,
        doublings=progress.doublings or 0,
        pass_rows=progress.pass_rows or None,
        learning_rate=keys.learning_rate,
        keep=keys.keep,
        l2=fit.l2 if fit else None,
        interpolation=interpolation,
    )
