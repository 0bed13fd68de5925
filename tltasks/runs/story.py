"""The story of a run, from recipe to results folder, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tltasks.config.loading import load_recipe, write_recipe
from tltasks.config.recipe import Recipe, RunPlan, consented, plan_run
from tltasks.config.tasks import supervised_tasks
from tltasks.errors import RecipeError
from tltasks.hub import client
from tltasks.hub.results_plan import plan_results
from tltasks.reports import html, model_card
from tltasks.reports.console import show_checks, show_plan, show_result
from tltasks.results.result import Headline, ReportExample, RunResult, StageMeasurement, StageResult
from tltasks.runs.callbacks import OnEvaluation, OnStep
from tltasks.runs.context import DECIDING, Context, PreparedStage, open_context, sole_writer
from tltasks.runs.memory import SCARCE, shortage_told
from tltasks.runs.prepare import prepare_stages
from tltasks.runs.refusals import place_of, refuse_at_once, refuse_loss, refuse_occupied
from tltasks.runs.stage import FinishedStage, check_saved, measure_stage, run_stage
from tltasks.runtime import devices
from tltasks.runtime.devices import on_main_process
from tltasks.runtime.files import empty, whole_file, write_text
from tltasks.runtime.precision import check_architecture
from tltasks.training.tracking import read_metrics


def run(
    recipe: Recipe | Path | str | Mapping[str, object],
    *,
    output: Path | str | None = None,
    resume: bool = False,
    push: bool = False,
    overwrite: bool = False,
    on_step: OnStep | None = None,
    on_evaluation: OnEvaluation | None = None,
    trust_remote_code: bool = False,
) -> RunResult:
    """Carry out a recipe into its own results folder or `output`; `resume` goes on with the run that is there, and
    `overwrite` removes it once data and checkpoints are in order. A folder that nobody named is numbered.
    Code of others that the recipe asks for is run with `trust_remote_code` alone.

    `on_step` is called after each step of training, `on_evaluation` after each evaluation on validation. Where one
    returns True, the stage's training ends there, as by early stopping, and the run goes on with the weights that
    `keep` chooses. What one raises ends the run, which `resume` can go on with from the last checkpoint.

    Raises a TltasksError for whatever the user can mend, in order of cost and before anything is written; and
    Interrupted, with its state saved, when the process is told to stop.
    """
    # ------------------------------------------------------------------------------------- resolve
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    place = place_of(recipe, output, resume=resume, overwrite=overwrite)
    plan = plan_run(consented(recipe, trust_remote_code), place)
    refuse_at_once(plan, push=push)
    state = devices.init_distributed()
    on_main_process(state, lambda: _refuse(plan, resume=resume, push=push, overwrite=overwrite))
    context = replace(open_context(plan, state), on_step=on_step, on_evaluation=on_evaluation)

    # ------------------------------------------------------------------------------------- prepare
    prepared = _prepare(context)

    with sole_writer(state, plan.output), devices.stop_on_signals() as stop_requested, ExitStack() as stack:
        # ------------------------------------------------------------------------------- each stage
        context = replace(context, stop_requested=stop_requested, until_end=stack)
        on_main_process(state, lambda: _begin(plan, resume=resume, overwrite=overwrite))
        stack.enter_context(context.console.logged(plan.output / "log.txt" if context.writes else None))
        context.accelerator.init_trackers("tltasks", config={"recipe_sha256": plan.sha256})
        finished: list[FinishedStage] = []
        for stage in prepared:
            with shortage_told(f"stage {stage.plan.name}, beside its training", lambda asked: SCARCE):
                finished.append(run_stage(context, stage, [it.result for it in finished]))
            if plan.feeds_next(stage.plan):
                check_saved(finished[-1].result)

        # ----------------------------------------------------------------------------------- report
        result = _conclude(context, [it.result for it in finished])
        examples = finished[plan.final.index].examples
        on_main_process(state, lambda: write_results(plan, result, examples))
        show_result(context.console, result, plan.output, answers=result.best.task in supervised_tasks())
        for stage_result in result.stages:
            check_saved(stage_result)

    # ---------------------------------------------------------------------------------------- push
    if push:
        on_main_process(state, lambda: _publish(context, result))
    context.accelerator.end_training()  # also takes the processes apart, so nothing that joins them may follow
    return result


def dry_run(
    recipe: Recipe, *, output: Path | str | None = None, push: bool = False, trust_remote_code: bool = False
) -> list[StageMeasurement]:
    """Open data and checkpoints and measure a step of each stage, as `run` would begin; nothing is written.

    Raises a TltasksError for whatever the user can mend.
    """
    plan = plan_run(consented(recipe, trust_remote_code), None if output is None else Path(output))
    refuse_at_once(plan, push=push)
    context = open_context(plan, devices.init_distributed())
    measured = [measure_stage(context, stage) for stage in _prepare(context)]
    show_plan(context.console, measured, plan.output)
    return measured


def open_stages(plan: RunPlan) -> tuple[Context, list[PreparedStage]]:
    """Open the devices, and all stages with their data and checkpoints; nothing is written."""
    context = open_context(plan, devices.init_distributed(), quiet=True)
    return context, prepare_stages(context.accelerator, plan)


def measure_stages(plan: RunPlan) -> list[StageMeasurement]:
    """Measure a step of each stage, and say nothing of it."""
    context, prepared = open_stages(plan)
    return [measure_stage(context, stage) for stage in prepared]


# ------------------------------------------------------------------------------------------ its parts


def _refuse(plan: RunPlan, *, resume: bool, push: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise RecipeError("--resume and --overwrite: one goes on with a run, the other removes it; say one.")
    refuse_occupied(plan.output, plan.sha256, resume=resume, overwrite=overwrite)
    if overwrite:
        refuse_loss(plan)
    if push and plan.recipe.hub.repo is not None:
        client.check_push(plan.recipe.hub.repo, private=plan.recipe.hub.private)


def _begin(plan: RunPlan, *, resume: bool, overwrite: bool) -> None:
    # By now another run may have come and gone.
    refuse_occupied(plan.output, plan.sha256, resume=resume, overwrite=overwrite)
    if overwrite:
        empty(plan.output)
    if not (plan.output / "recipe.yaml").exists():
        with whole_file(plan.output / "recipe.yaml") as place:
            write_recipe(plan.recipe, place)


def _prepare(context: Context) -> list[PreparedStage]:
    """Open the stages, and say what is odd about their data and checkpoints."""
    prepared = prepare_stages(context.accelerator, context.plan)
    for stage in prepared:
        check_architecture(context.precision, stage.task.architecture, shown=stage.source.display_name)
    for stage in prepared:
        show_checks(context.console, stage.plan.name, stage.checks)
        told = {name: [split.left_out, *stage.split_notes.get(name, [])] for name, split in stage.encoded.items()}
        lines = [f"{name}: {note}" for name, notes in told.items() for note in notes if note]
        for note in (*stage.notes, *lines):
            context.say(stage.plan, note)
    return prepared


def _conclude(context: Context, stages: list[StageResult]) -> RunResult:
    """The run's result, judged by its final stage on the first split that there is."""
    best, accelerator = stages[context.plan.final.index], context.accelerator
    split = next(name for name in (*DECIDING, *best.metrics) if name in best.metrics)
    score = best.metrics[split]
    return RunResult(
        recipe_sha256=context.plan.sha256,
        headline=Headline(score.headline, score.value, score.ci95, best.name, split),
        stages=stages,
        versions=devices.versions(),
        hardware=devices.hardware(accelerator.device, accelerator.num_processes, context.precision),
    )


def write_results(plan: RunPlan, result: RunResult, examples: list[ReportExample]) -> None:
    """Write result.json, the report and the card."""
    output, repo = plan.output, plan.recipe.hub.repo
    with whole_file(output / "result.json") as place:
        result.save(place)
    recipe_text = (output / "recipe.yaml").read_text(encoding="utf-8")
    with whole_file(output / "report.html") as place:
        metrics = read_metrics(output / "metrics.jsonl")
        html.write_report(place, result, recipe_text, metrics, examples, written=datetime.now(UTC).date())
    card = model_card.render_card(result, plan, adapter=result.best.weights.adapter, repo=repo)
    write_text(output / "README.md", card)


def _publish(context: Context, result: RunResult) -> None:
    plan, hub = context.plan, context.plan.recipe.hub
    assert hub.repo is not None
    upload = plan_results(plan.output, plan, result)
    if note := upload.note():
        context.console.print(note, soft_wrap=True)
    receipt = client.push(upload, hub.repo, private=hub.private)
    context.console.print(f"pushed   {receipt.url}", soft_wrap=True)
