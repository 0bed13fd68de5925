"""The story of a run, from recipe to results folder, top to bottom."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file, save_file
from torch import nn
from tqdm import tqdm

from tltasks.config.loading import located, recipe_sha256, write_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.plan import StagePlan, plan_stages
from tltasks.config.recipe import Recipe
from tltasks.data.splits import EncodedSplit
from tltasks.errors import CheckpointError, DataError, Interrupted, RecipeError, TltasksError
from tltasks.hub import client
from tltasks.hub.upload_plan import plan_results
from tltasks.metrics import paired_difference
from tltasks.models.adapters import adapt, count_parameters
from tltasks.reports import html, model_card
from tltasks.reports.console import show_checks, show_plan, show_result
from tltasks.results.result import (
    Headline,
    Interpolation,
    Provenance,
    ReportExample,
    Robustness,
    RunResult,
    Score,
    SplitSummary,
    StageResult,
    TrainingSummary,
    lineage_after,
)
from tltasks.runs.output_folder import refuse_occupied
from tltasks.runs.prepare import DECIDING, PreparedStage, prepare_stages
from tltasks.runtime import devices
from tltasks.runtime.files import locked, whole_folder, write_json, write_text
from tltasks.runtime.precision import check_architecture, choose_attention, choose_precision
from tltasks.tasks import load_adapter
from tltasks.tasks.base import BuiltModel, Embeds, Prediction, Task
from tltasks.training.checkpoint import Checkpoints, Progress
from tltasks.training.evaluation import (
    NEIGHBOUR_ROWS,
    drawn_rows,
    predict_rows,
    score_beside_baselines,
    write_predictions,
)
from tltasks.training.linear_probe import Fit, cached_features, fit_probe
from tltasks.training.loop import Job, measure, train
from tltasks.training.robustness import measure_robustness
from tltasks.training.tracking import Tracker, check_trackers, read_metrics
from tltasks.training.weight_interpolation import interpolate

Scores = dict[str, Score]
ROW_SCORES = "row_scores.safetensors"
"""What each row of a split contributes to the headline, by which later stages are compared with a stage."""


Watch = Callable[[str, float], None]
"""Told of each evaluation on validation: the stage and the headline metric. What it raises ends the run."""


def run(
    recipe: Recipe, *, output: Path, resume: bool, push: bool, dry_run: bool, watch: Watch | None = None
) -> RunResult | None:
    """Carry out a recipe into `output`; a dry run ends before training and returns None.

    Raises a TltasksError for whatever the user can mend, in order of cost and before anything is written.
    """
    # ------------------------------------------------------------------- what can be refused at once
    digest = recipe_sha256(recipe)
    check_trackers(list(recipe.trackers))
    if push and recipe.hub.repo is None:
        raise RecipeError("--push: the recipe names no hub.repo; add it, or `--set hub.repo=user/name`.")

    def refuse() -> None:
        if not dry_run:
            refuse_occupied(output, digest, resume=resume)
        if push and recipe.hub.repo is not None and not dry_run:
            client.check_push(recipe.hub.repo, private=recipe.hub.private)

    # ------------------------------------------------------------------------------- the machine
    state = devices.init_distributed()
    _on_main_process(state, refuse)
    accelerator, precision = _accelerator(recipe, output, state)
    console = Console(stderr=True, quiet=not accelerator.is_main_process, highlight=False)

    # ------------------------------------------------------- data and checkpoints, opened and checked
    plans = plan_stages(located(recipe))
    opened = prepare_stages(accelerator, plans, recipe)
    for item in opened:
        check_architecture(precision, item.task.architecture, shown=item.source.display_name)
    for item in opened:
        show_checks(console, item.plan.name, item.checks)
        for note in item.notes:
            console.print(f"{item.plan.name}: {note}", soft_wrap=True)
    if dry_run:
        show_plan(console, [_measure(accelerator, item, recipe, output) for item in opened], str(output))
        return None

    # -------------------------------------------------------------------------------------- stages
    with _sole_writer(state, output), devices.stop_on_signals() as stop_requested:
        if accelerator.is_main_process and not (output / "recipe.yaml").exists():
            write_recipe(recipe, output / "recipe.yaml")
        accelerator.init_trackers("tltasks", config={"recipe_sha256": digest})
        context = Context(accelerator, recipe, output, precision, console, stop_requested, watch)
        results: list[StageResult] = []
        for item in opened:
            results.append(_run_stage(context, item, plans, results))

        # ---------------------------------------------------------------------------------- results
        hardware = devices.hardware(accelerator.device, accelerator.num_processes, precision)
        finished = RunResult(digest, _headline(results, plans), results, devices.versions(), hardware)
        if accelerator.is_main_process:
            write_results(recipe, finished, output)
            show_result(console, finished, output)
        accelerator.wait_for_everyone()

    # --------------------------------------------------------------------------------------------- Hub
    def publish() -> None:
        assert recipe.hub.repo is not None
        receipt = client.push(plan_results(output), recipe.hub.repo, private=recipe.hub.private)
        console.print(f"pushed   {receipt.url}", soft_wrap=True)

    if push:
        _on_main_process(state, publish)
    accelerator.end_training()  # also takes the processes apart, so nothing that joins them may follow
    return finished


@dataclass(frozen=True)
class Context:
    """What all stages of a run share."""

    accelerator: Accelerator
    recipe: Recipe
    output: Path
    precision: str
    console: Console
    stop_requested: Callable[[], bool]
    watch: Watch | None = None

    def workers(self, asked: int | None) -> int:
        return devices.loader_workers(self.accelerator.device, self.accelerator.num_processes, asked)


def _on_main_process(state: PartialState, action: Callable[[], None]) -> None:
    """Do something once; what it raises, every process raises, so that none is left waiting for the others."""
    failure: list[TltasksError | None] = [None]
    if state.is_main_process:
        try:
            action()
        except TltasksError as error:
            failure[0] = error
    if state.num_processes > 1:
        broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def _accelerator(recipe: Recipe, output: Path, state: PartialState) -> tuple[Accelerator, str]:
    """The devices, their number format and their share of the processor's cores."""
    precision = choose_precision(recipe.precision, state.device)
    devices.set_num_threads(state.num_processes)
    devices.quieten_libraries(interactive=state.is_main_process and sys.stderr.isatty())
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(recipe.trackers) or None,
        project_dir=str(output / "trackers"),
    )
    return accelerator, precision


# --------------------------------------------------------------------------------------- a dry run


def _measure(accelerator: Accelerator, item: PreparedStage, recipe: Recipe, output: Path) -> dict[str, Any]:
    """What a dry run says of a stage: its size, and the time and memory of its steps by one of them."""
    splits = {name: (len(split.rows), len(split.skipped)) for name, split in item.encoded.items()}
    set_seed(recipe.seed)
    row = item.plan.kind
    if item.plan.stage.start == "previous":  # whose weights there are none of yet, and time does not depend on them
        row = dataclasses.replace(row, weights="random")
    built = item.task.build(row)
    item, model = dataclasses.replace(item, task=built.task), built.model
    found: dict[str, Any] = {"stage": item.plan.name, "splits": splits}
    if item.plan.kind.trains and not item.plan.kind.cached:
        context = Context(accelerator, recipe, output, "", Console(quiet=True), lambda: False)
        model, head = _adapt(recipe, item, built)
        job = _job(context, item, head, on_step=lambda progress, loss: None, evaluate=None)
        seconds = measure(accelerator, job, model)
        found |= {"steps": job.total_steps, "seconds": seconds * job.total_steps}
    found["trainable"], found["total"] = count_parameters(model)
    found["memory_bytes"] = devices.peak_memory_bytes(accelerator.device)
    return found


def open_recipe(recipe: Recipe, output: Path) -> tuple[Accelerator, list[PreparedStage]]:
    """The devices, and all stages with their data and checkpoints opened; nothing is written to `output`."""
    accelerator, _ = _accelerator(recipe, output, devices.init_distributed())
    return accelerator, prepare_stages(accelerator, plan_stages(located(recipe)), recipe)


def measure_stages(recipe: Recipe, output: Path) -> list[dict[str, Any]]:
    """What a dry run finds of each stage, as numbers: `stage, splits, trainable, total, memory_bytes`, and for those
    that the loop trains `steps, seconds`."""
    accelerator, opened = open_recipe(recipe, output)
    return [_measure(accelerator, item, recipe, output) for item in opened]


@contextmanager
def _sole_writer(state: PartialState, output: Path) -> Iterator[None]:
    with ExitStack() as stack:
        _on_main_process(state, lambda: stack.enter_context(locked(output)))
        yield


# ------------------------------------------------------------------------------------------ a stage


def _run_stage(
    context: Context, item: PreparedStage, plans: list[StagePlan], earlier: list[StageResult]
) -> StageResult:
    """Build, adapt, train, predict, save, score; or read back a stage that an earlier run has finished."""
    accelerator, plan = context.accelerator, item.plan
    folder = context.output / "stages" / plan.name
    if (folder / "result.json").is_file():
        finished = StageResult.from_json((folder / "result.json").read_bytes())
        changed = [n for n, split in item.encoded.items() if split.fingerprint != finished.data[n].fingerprint]
        if changed:
            raise DataError(
                f"output {context.output}: stage {plan.name} was carried out on other data than there is now "
                f"({', '.join(changed)}). Name another folder with --output."
            )
        return finished
    last = plan.index == _last_trained(plans)
    goes_on = any(later.stage.start == "previous" for later in plans[plan.index + 1 : plan.index + 2])
    if plan.stage.start == "previous":
        before = context.output / "stages" / plans[plan.index - 1].name / "model"
        source = Checkpoint(str(before), display_name=item.source.display_name)
        item = dataclasses.replace(item, source=source, task=item.task.starting_from(source))

    started = time.perf_counter()
    set_seed(context.recipe.seed)
    built = item.task.build(plan.kind)
    item, model = dataclasses.replace(item, task=built.task), built.model
    choose_attention(model, tokens=item.task.sequence_length, device=accelerator.device, precision=context.precision)
    progress = Progress()
    fit: Fit | None = None
    if plan.kind.cached:
        progress, fit = _probe(context, item, model)
    elif plan.kind.trains:
        model, head = _adapt(context.recipe, item, built)
        progress = _train(context, item, model, head)
    _heed_stop(context, f"stage {plan.name}: stopped after training, before evaluation")
    trained, total = count_parameters(model)

    predict = partial(predict_rows, accelerator, item.task, workers=context.workers(plan.data.workers))
    arms: dict[str, dict[str, list[Prediction]]] = {}
    between: Interpolation | None = None
    if plan.stage.interpolate is not None:
        start = item.task.build(plan.kind).model
        model, between, arms["not_interpolated"] = interpolate(
            item.task, start, model, plan.stage.interpolate, item.evaluated, predict
        )
        context.console.print(f"{plan.name}: interpolated to alpha {between.alpha:g}")
    predictions = {name: predict(model, split.rows) for name, split in item.evaluated.items()}
    robustness: Robustness | None = None
    if (corruptions := getattr(plan.data, "corruptions", None)) is not None:
        name = next(iter(item.evaluated))
        robustness = measure_robustness(
            item.task, model, item.evaluated[name], predictions[name], corruptions, predict, seed=context.recipe.seed
        )
        context.console.print(
            f"{plan.name}: {robustness.metric} on {name} {robustness.clean:.3f}, corrupted {robustness.mean:.3f}"
        )
    adapter = plan.kind.trains and last and _can_publish_adapter(context.recipe, item, built.provenance)
    for saved in [context.output / "model"] * last + [folder / "model"] * goes_on:
        if accelerator.is_main_process:
            with whole_folder(saved) as place:
                item.task.save(place, model, adapter=adapter)
        accelerator.wait_for_everyone()
        _check_saved(context, item, saved, predictions)
    del model
    accelerator.free_memory()
    metrics, baselines = _score(context, item, predictions, arms, earlier)
    result = StageResult(
        kind=plan.stage.stage,
        name=plan.name,
        task=plan.task,
        metrics=metrics,
        baselines=baselines,
        seconds=time.perf_counter() - started,
        examples_per_second=progress.examples / progress.seconds if progress.seconds else 0.0,
        peak_memory_bytes=devices.peak_memory_bytes(accelerator.device),
        trainable_parameters=trained if plan.kind.trains else 0,
        total_parameters=total,
        weights=_provenance(built.provenance, item, adapter=adapter),
        data={name: _describe_split(split, item.checks.get(name, {})) for name, split in item.encoded.items()},
        training=_describe_training(context, item, progress, fit, between) if plan.kind.trains else None,
        robustness=robustness,
        lineage=(
            lineage_after(earlier[-1], recipe_sha256(context.recipe))
            if plan.stage.start == "previous"
            else item.lineage
        ),
    )
    if accelerator.is_main_process:
        write_text(folder / "result.json", result.to_json())
        shutil.rmtree(context.output / "checkpoints" / plan.name, ignore_errors=True)
    accelerator.wait_for_everyone()
    return result


def _heed_stop(context: Context, text: str) -> None:
    """End the run where any process was told to stop; all of them come here at the same point."""
    asked = torch.tensor(float(context.stop_requested()), device=context.accelerator.device)
    if float(context.accelerator.reduce(asked, "sum")) > 0:
        raise Interrupted(text)


def _adapt(recipe: Recipe, item: PreparedStage, built: BuiltModel[Task]) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with what is to be trained set free, and the names of its head's modules."""
    task, stage, model = built.task, item.plan.stage, built.model
    if stage.adapt.is_virtual and not _can_publish_adapter(recipe, item, built.provenance):
        raise RecipeError(
            f"adapt.{stage.adapt.method}: virtual tokens cannot be merged into weights, so the run saves an adapter: "
            "the checkpoint must be one of the Hub, `hub.publish: adapter`, the task one that answers, and no weights "
            "interpolated."
        )
    if stage.gradient_checkpointing:
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise CheckpointError(f"gradient_checkpointing: {type(model).__name__} does not support it.") from error
    head = task.head(model)
    adapted = adapt(
        model,
        stage,
        item.plan.kind,
        head=head,
        targets=task.lora_targets(model),
        shown_name=item.source.display_name,
        revision=str(built.provenance.get("commit") or item.source.revision),  # what a branch holds may change
    )
    return adapted, tuple(head)


def _probe(context: Context, item: PreparedStage, model: nn.Module) -> tuple[Progress, Fit]:
    """Fit the head to the frozen rest's features."""
    accelerator, task = context.accelerator, item.task
    workers = context.workers(item.plan.data.workers)
    progress, fit = fit_probe(
        accelerator, task, model, task.head(model), item.plan.stage, item.encoded, workers=workers
    )
    context.console.print(
        f"{item.plan.name}: fitted the head to {progress.examples:,} rows of features in {progress.seconds:.1f} s "
        f"(l2 {fit.l2:g}, {fit.iterations} iterations)",
        soft_wrap=True,
    )
    return progress, fit


def _train(context: Context, item: PreparedStage, model: nn.Module, head: tuple[str, ...]) -> Progress:
    """Train with a progress bar on a terminal, and a line for each evaluation elsewhere."""
    plan, task, accelerator = item.plan, item.task, context.accelerator
    validation = item.encoded.get("validation")
    workers = context.workers(plan.data.workers)
    bar = tqdm(desc=plan.name, unit=" steps", disable=None if accelerator.is_main_process else True, dynamic_ncols=True)

    def on_step(progress: Progress, loss: float) -> None:
        bar.update(progress.step - bar.n)
        bar.set_postfix_str(f"loss {loss:.3f}, {progress.examples / progress.seconds:.0f} examples/s", refresh=False)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert validation is not None
        rows = validation.rows.select(
            drawn_rows(len(validation.rows), plan.stage.evaluate_rows, seed=context.recipe.seed)
        )
        predictions = predict_rows(accelerator, task, model, rows, workers=workers)
        score = task.score(predictions, task.references(rows), intervals=False)
        values = score.values
        if accelerator.is_main_process:
            told = values if len(values) <= 3 else dict.fromkeys((task.headline, "loss"))
            shown = ", ".join(f"{name} {values[name]:.3f}" for name in told if name in values)
            with bar.external_write_mode(file=sys.stderr):
                context.console.print(f"{plan.name}: validation {shown}")
                for note in score.notes:
                    context.console.print(f"{plan.name}: {note}", soft_wrap=True)
        if context.watch is not None:
            context.watch(plan.name, values[task.headline])
        return values

    job = _job(context, item, head, on_step=on_step, evaluate=evaluate if validation is not None else None)
    bar.total = job.total_steps
    trained, total = count_parameters(model)
    context.console.print(
        f"{plan.name}: trains {trained:,} of {total:,} parameters ({trained / total:.2%}); {len(job.rows):,} examples, "
        f"{job.total_steps:,} steps of {plan.stage.batch_size}; {context.precision} on {accelerator.device.type}"
        + (f" x {accelerator.num_processes}" if accelerator.num_processes > 1 else ""),
        soft_wrap=True,
    )
    try:
        return train(accelerator, job, model)
    finally:
        bar.close()


def _job(
    context: Context,
    item: PreparedStage,
    head: tuple[str, ...],
    *,
    on_step: Callable[[Progress, float], None],
    evaluate: Callable[[nn.Module], dict[str, float]] | None,
) -> Job:
    plan, stage = item.plan, item.plan.stage
    metrics = context.output / "metrics.jsonl" if context.accelerator.is_main_process else None
    return Job(
        name=plan.name,
        task=item.task,
        rows=item.encoded["train"].rows,
        fingerprint=item.encoded["train"].fingerprint,
        stage=stage,
        seed=context.recipe.seed,
        head=head,
        frozen_batch_norm=stage.batch_norm == "frozen"
        or (stage.batch_norm == "auto" and plan.kind.weights != "random"),
        workers=context.workers(plan.data.workers),
        evaluate=evaluate,
        checkpoints=Checkpoints(context.output / "checkpoints" / plan.name, keep=stage.keep_checkpoints),
        tracker=Tracker(metrics, context.accelerator if context.recipe.trackers else None),
        stop_requested=context.stop_requested,
        on_step=on_step,
        new_head=plan.kind.head == "new",
    )


def _can_publish_adapter(recipe: Recipe, item: PreparedStage, provenance: Mapping[str, object]) -> bool:
    """An adapter can stand alone when its base is one that everyone can fetch, used as it is."""
    return (
        item.plan.stage.adapt.stands_alone
        and recipe.hub.publish == "adapter"
        and not item.plan.stage.publishes_whole
        and item.plan.stage.start == "checkpoint"
        and not Path(item.source.name).is_dir()
        and not provenance.get("interpolated")
        and not provenance.get("prompts")  # the classes that texts name are not in an adapter
    )


def _check_saved(context: Context, item: PreparedStage, folder: Path, predictions: dict[str, list[Prediction]]) -> None:
    """Load what was saved and compare; the commonest fault of published models is a head that did not come along."""
    name, expected = next(iter(predictions.items()))
    rows = item.encoded[name].rows.select(range(min(64, len(expected))))
    again = predict_rows(context.accelerator, item.task, item.task.reload(folder), rows, workers=0)
    differing = sum(not _alike(a["prediction"], b["prediction"]) for a, b in zip(again, expected, strict=False))
    # Merging rounds differently, which may turn a tie; a lost head or adapter changes most predictions.
    if differing > max(1, len(again) // 10):
        raise CheckpointError(
            f"{folder}: loaded again, the saved model answers {differing} of {len(again)} examples differently. "
            "It is not to be trusted; checkpoints/ still holds the trained state."
        )


def _alike(a: Any, b: Any) -> bool:
    """Equal; numbers, such as an objective's losses, as far as 16 bits and another kernel for attention leave them."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=0.02)
    return bool(a == b)


# ----------------------------------------------------------------------------------------- evaluation


def _score(
    context: Context,
    item: PreparedStage,
    predictions: dict[str, list[Prediction]],
    arms: dict[str, dict[str, list[Prediction]]],
    earlier: list[StageResult],
) -> tuple[Scores, dict[str, Scores]]:
    """Scores by split and baselines by name and split; writes predictions/ and the report's examples."""
    task, writes = item.task, context.accelerator.is_main_process
    arms = _baseline_predictions(context, item) | arms
    metrics: Scores = {}
    baselines: dict[str, Scores] = {}
    row_scores: dict[str, NDArray[np.float64]] = {}
    for i, (name, predicted) in enumerate(predictions.items()):
        rows = item.encoded[name].rows
        references = task.references(rows)
        row_scores[name] = task.row_scores(predicted, references)
        beside = {arm: by_split[name] for arm, by_split in arms.items()}
        metrics[name], scored = score_beside_baselines(
            task, predicted, references, beside, seed=context.recipe.seed, extra=item.extra_metrics
        )
        for arm, score in scored.items():
            baselines.setdefault(arm, {})[name] = score
        if writes:
            path = context.output / "predictions" / f"{item.plan.name}-{name}.parquet"
            write_predictions(path, task, rows, predicted, references)
        if writes and i == 0:
            shown = [
                dataclasses.asdict(e) | {"content": base64.b64encode(e.content).decode()}
                for e in task.report_examples(rows, predicted, references)
            ]
            write_json(context.output / "stages" / item.plan.name / "report_examples.json", shown)
    if writes:
        save_file(row_scores, context.output / "stages" / item.plan.name / ROW_SCORES)
    return metrics, baselines | _earlier_stages(context, item, row_scores, earlier)


def _earlier_stages(
    context: Context, item: PreparedStage, row_scores: dict[str, NDArray[np.float64]], earlier: list[StageResult]
) -> dict[str, Scores]:
    """What earlier stages of the same task made of the same rows: controls, and what has been forgotten since."""
    found: dict[str, Scores] = {}
    for stage in earlier:
        path = context.output / "stages" / stage.name / ROW_SCORES
        if stage.task != item.plan.task or not path.is_file():
            continue
        by_rows = {stage.data[split].fingerprint: split for split in stage.metrics}
        theirs = load_file(path)
        for name, ours in row_scores.items():
            if (split := by_rows.get(item.encoded[name].fingerprint)) is not None:
                interval = paired_difference(ours, theirs[split], seed=context.recipe.seed)
                theirs_score = stage.metrics[split]
                score = Score(theirs_score.values, theirs_score.headline, theirs_score.ci95, difference_ci95=interval)
                found.setdefault(f"stage_{stage.name}", {})[name] = score
    return found


def _baseline_predictions(context: Context, item: PreparedStage) -> dict[str, dict[str, list[Prediction]]]:
    """Predictions by baseline and split: the task's own, and what the pretrained checkpoint can do."""
    accelerator, task, plan = context.accelerator, item.task, item.plan
    workers = context.workers(plan.data.workers)
    train_rows = (item.encoded.get("train") or next(iter(item.evaluated.values()))).rows
    references = task.references(train_rows)
    arms: dict[str, dict[str, list[Prediction]]] = {}
    for name, split in item.evaluated.items():
        for arm, predicted in task.baselines(references, split.rows).items():
            arms.setdefault(arm, {})[name] = predicted
    if (
        plan.kind.weights == "random"
        or not plan.kind.trains
        or not (plan.kind.head == "kept" or isinstance(task, Embeds))
    ):
        return arms
    pretrained = task.as_pretrained().build(plan.kind)
    if plan.kind.head == "kept":
        arms["checkpoint"] = {
            name: predict_rows(accelerator, pretrained.task, pretrained.model, split.rows, workers=workers)
            for name, split in item.evaluated.items()
        }
        return arms
    assert isinstance(task, Embeds)
    head, known = task.head(pretrained.model)[0], item.encoded.get("train") or next(iter(item.evaluated.values()))
    if len(known.rows) > NEIGHBOUR_ROWS:
        sample = known.rows.select(drawn_rows(len(known.rows), NEIGHBOUR_ROWS, seed=context.recipe.seed))
        fingerprint = f"{known.fingerprint}, {NEIGHBOUR_ROWS} rows by {context.recipe.seed}"
        known = dataclasses.replace(known, rows=sample, fingerprint=fingerprint)
    vectors = cached_features(accelerator, task, pretrained.model, head, known, workers=workers)
    for name, split in item.evaluated.items():
        asked = cached_features(accelerator, task, pretrained.model, head, split, workers=workers)
        arms.setdefault("checkpoint_knn", {})[name] = task.knn_predict(vectors, task.references(known.rows), asked)
    return arms


# -------------------------------------------------------------------------------------------- results


def _last_trained(plans: list[StagePlan]) -> int:
    """The stage whose model is the run's: the last that trains, or the last."""
    return max((plan.index for plan in plans if plan.kind.trains), default=len(plans) - 1)


def _headline(results: list[StageResult], plans: list[StagePlan]) -> Headline:
    stage = results[_last_trained(plans)]
    split = next(name for name in (*DECIDING, *stage.metrics) if name in stage.metrics)
    score = stage.metrics[split]
    task = load_adapter(stage.task)
    return Headline(score.headline, score.value, score.ci95, task.higher_is_better, stage.name, split)


def _provenance(found: dict[str, Any], item: PreparedStage, *, adapter: bool) -> Provenance:
    own = {key.name for key in dataclasses.fields(Provenance)}
    settings = {key: value for key, value in found.items() if key not in own}
    known = {key: value for key, value in found.items() if key in own}
    return Provenance(**known, start=item.plan.stage.start, adapter=adapter, settings=settings)


def _describe_split(split: EncodedSplit, checks: dict[str, float]) -> SplitSummary:
    return SplitSummary(
        examples=len(split.rows),
        skipped=len(split.skipped),
        skipped_rows={str(row): reason for row, reason in list(split.skipped.items())[:100]},
        source=split.origin,
        fingerprint=split.fingerprint,
        checks=checks,
    )


def _describe_training(
    context: Context, item: PreparedStage, progress: Progress, fit: Fit | None, between: Interpolation | None
) -> TrainingSummary:
    stage = item.plan.stage
    per_epoch = -(-len(item.encoded["train"].rows) // stage.batch_size)
    return TrainingSummary(
        steps=progress.step,
        ended=progress.ended,
        seconds=round(progress.seconds, 3),
        method="head" if fit else stage.adapt.method,
        precision=context.precision,
        epochs=None if fit else round(progress.step / per_epoch, 3),
        best_step=progress.best_step,
        best_value=progress.best_value,
        batch_size=None if fit else stage.batch_size,
        micro_batch=None if fit else stage.micro_batch,
        halvings=progress.halvings,
        learning_rate=stage.learning_rate,
        keep=stage.keep,
        l2=fit.l2 if fit else None,
        interpolation=between,
    )


def write_results(recipe: Recipe, result: RunResult, output: Path) -> None:
    """result.json, the report and the card, from what the stages have written."""
    result.save(output / "result.json")
    text = (output / "recipe.yaml").read_text(encoding="utf-8")
    report_examples = [
        ReportExample(**{**e, "content": base64.b64decode(e["content"])})
        for e in json.loads(
            (output / "stages" / result.headline.stage / "report_examples.json").read_text(encoding="utf-8")
        )
    ]
    html.write_report(output / "report.html", result, text, read_metrics(output / "metrics.jsonl"), report_examples)
    adapter = result.best.weights.adapter
    write_text(output / "README.md", model_card.render_card(result, recipe, adapter=adapter, repo=recipe.hub.repo))
