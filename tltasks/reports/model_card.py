"""The model card: a finished run as its README.md on the Hub, from the templates in hub_cards/.

Two decisions that look odd on the Hub's side:
An adapter merged into its base is published as `finetune`, since the Hub means by `merge` a mixture of several models.
Models that transformers runs by its timm wrapper are `transformers`: timm cannot load what the wrapper saves
(transformers 5.24, modeling_timm_wrapper.py: every weight is prefixed `timm_model.`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tltasks.config.adaptation import Adapt, Head
from tltasks.config.data import BUILDERS, Source
from tltasks.config.loading import recipe_text
from tltasks.config.model import FROZEN_TRANSFORMER
from tltasks.config.recipe import Emissions, RunPlan, as_written, is_on_hub, shareable
from tltasks.config.stage import StagePlan
from tltasks.config.tasks import TASKS
from tltasks.reports.formatting import is_number
from tltasks.reports.templates import card_environment, fenced
from tltasks.results.comparison import (
    compare_groups,
    compare_test_sets,
    compare_with_baselines,
    compare_with_before,
    describe_forgetting,
    describe_leaks,
)
from tltasks.results.metric_names import METHODS
from tltasks.results.result import RunResult, StageResult

Metrics = dict[str, dict[str, Any]]
"""What a template says of each metric: its name, and its name on the Hub."""


def render_card(result: RunResult, plan: RunPlan, *, adapter: bool, repo: str | None) -> str:
    """README.md: front matter and text. Without a repository its snippet loads ./model of the results folder."""
    own = plan.stage(result.best.name)
    title = repo.rsplit("/", 1)[-1] if repo else Path(plan.recipe.output).name
    template = card_environment().get_template(TASKS[own.task].card_template)
    named = {"title": title, "where": repo or "./model", "local": repo is None, "adapter": adapter}
    page = template.make_module(named | _about_stage(result, plan, own) | _about_run(result, plan))
    tag, metrics = getattr(page, "pipeline_tag", own.task), page.metrics  # type: ignore[attr-defined]
    data = _front_matter(result, plan, own, title=title, tag=tag, metrics=metrics, adapter=adapter)
    return f"---\n{data.to_yaml()}\n---\n\n{str(page).strip()}\n"


def _about_stage(result: RunResult, plan: RunPlan, own: StagePlan) -> dict[str, object]:
    """Variables of the template: the stage whose weights are published, and what it stands beside."""
    stage, lineage, split = result.best, plan.ancestry(own), result.headline.split
    by_validation = stage.training is not None and stage.training.best_step is not None and own.stage.keep == "best"
    return {
        "stage": stage,
        "split": split,
        "score": result.score,
        "base": _base(lineage[0], result),
        "lineage": lineage,
        "method": _method(own),
        "trained_on": _trained_on(lineage),
        "chosen_by_validation": by_validation,
        "comparisons": compare_with_baselines(stage),
        "shifts": compare_test_sets(stage, split),
        "groups": compare_groups(stage),
        "leaks": [line for split in stage.metrics if (line := describe_leaks(stage, split))],
        "forgotten": [describe_forgetting(it) for it in compare_with_before(result, stage)],
        "trust": ", trust_remote_code=True" if lineage[0].model.trust_remote_code else "",
    }


def _about_run(result: RunResult, plan: RunPlan) -> dict[str, object]:
    """Variables of the template: all stages, what they were computed with, and how to repeat it."""
    recipe, shared, stated = plan.recipe, shareable(plan.recipe), plan.recipe.hub.emissions
    return {
        "result": result,
        "recipe": recipe,
        "bases": [_base(it, result) for it in plan.stages],
        "methods": [_method(it) for it in plan.stages],
        "stated": stated,
        "grams": None if stated is None else _grams(stated, result),
        "recipe_block": fenced(recipe_text(shared), "yaml"),
        "shortened": shared != as_written(recipe),
    }


# ----------------------------------------------------------------------------------------- front matter


def _front_matter(
    result: RunResult, plan: RunPlan, own: StagePlan, *, title: str, tag: str, metrics: Metrics, adapter: bool
) -> ModelCardData:
    """Keys by which the Hub knows what the model is of, and each measured number in its model-index."""
    hub, lineage, stage = plan.recipe.hub, plan.ancestry(own), result.best
    base, datasets = _base(lineage[0], result), [it.path for it in _trained_on(lineage) if it.on_hub]
    is_known, relation = base.on_hub and not base.random, "adapter" if adapter else "finetune"
    on_hub = {key: about for key, about in metrics.items() if "hub" in about}
    measured = {name for score in stage.metrics.values() for name in score.values}
    carbon = {"co2_eq_emissions": _emissions(hub.emissions, result)} if hub.emissions else {}
    return ModelCardData(
        base_model=base.name if is_known else None,
        base_model_relation=relation if is_known and _trained_on(lineage) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=tag,
        license=hub.license,
        language=hub.language or None,
        datasets=[path.removeprefix("datasets/") for path in datasets] or None,
        metrics=list(dict.fromkeys(about["hub"] for key, about in on_hub.items() if key in measured)),
        model_name=title,
        eval_results=[it for split in stage.metrics for it in _evaluations(own, stage, split, on_hub)],
        tags=["tltasks", *([own.stage.adapt.method] if adapter else [])],
        **carbon,  # type: ignore[arg-type]
    )


def _grams(stated: Emissions, result: RunResult) -> float:
    devices = int(result.hardware.get("processes", 1))
    return stated.grams(sum(it.seconds for it in result.stages), devices=devices)


def _emissions(stated: Emissions, result: RunResult) -> dict[str, object]:
    """As the Hub has it: https://huggingface.co/docs/hub/model-cards-co2."""
    location = {"geographical_location": stated.location} if stated.location else {}
    return {
        "emissions": float(f"{_grams(stated, result):.3g}"),
        "source": "running time x the power and the grid's intensity that the recipe states",
        "training_type": "fine-tuning" if result.stages[0].kind != "pretrain" else "pre-training",
        "hardware_used": result.hardware.get("device_name", "unknown"),
        **location,
    }


def _evaluations(plan: StagePlan, stage: StageResult, split: str, metrics: Metrics) -> Iterator[EvalResult]:
    data, spec = plan.data.evaluated_on(split)
    name, shown = data.name or "", _place(data).name
    on_hub = is_on_hub(name) and not data.dir and not data.files and spec is not None
    revision = data.revision if on_hub and re.fullmatch(r"[0-9a-f]{40}", data.revision or "") else None
    for key, about in metrics.items():
        if is_number(value := stage.metrics[split].values.get(key)):
            yield EvalResult(
                task_type=stage.task,
                task_name=stage.task.replace("-", " ").capitalize(),
                dataset_type="local" if Path(name).is_absolute() else name,
                dataset_name=shown if on_hub or shown == split else f"{shown} ({split})",
                dataset_config=data.config if on_hub else None,
                # Of local data our own name of the split: theirs may be alike for several test sets.
                dataset_split=spec if on_hub else split,
                dataset_revision=revision,
                metric_type=about["hub"],
                metric_name=about["name"],
                metric_args=about.get("args"),
                metric_value=round(value, 6),
            )


# ------------------------------------------------------------------------------------------- described


@dataclass(frozen=True)
class Place:
    """A checkpoint or data set as its reader may know it; for a local one the folder's name alone."""

    name: str
    on_hub: bool
    path: str = ""
    """Address below huggingface.co."""


@dataclass(frozen=True)
class Base(Place):
    """The checkpoint that a stage starts from."""

    revision: str = "main"
    random: bool = False
    """Whether only its architecture was used."""


def _base(plan: StagePlan, result: RunResult) -> Base:
    name, on_hub = plan.model.name, is_on_hub(plan.model.name)
    revision = result.stages[plan.index].weights.commit or plan.model.revision
    shown = name if on_hub else Path(name).name
    return Base(shown, on_hub, name if on_hub else "", revision, random=plan.kind.weights == "random")


def _trained_on(lineage: list[StagePlan]) -> list[Place]:
    return list(dict.fromkeys(_place(it.data) for it in lineage if it.kind.trains))


def _place(data: Source) -> Place:
    name = data.name or ""
    if is_on_hub(name):
        return Place(f"{name} ({data.config})" if data.config else name, True, f"datasets/{name}")
    if name in BUILDERS:
        return Place(Path(data.dir).name if data.dir else f"{name} files", False)
    return Place(Path(name).name, False)


def _method(plan: StagePlan) -> str:
    adapt = Adapt(head=Head()) if plan.kind.cached else plan.stage.adapt
    if not plan.kind.trains:
        return "nothing"
    if getattr(plan.model, "as_", None) == FROZEN_TRANSFORMER and adapt.method == "full":
        return "the input layer, normalisation layers, positions and the head"
    return METHODS.get(adapt.method) or (adapt.peft.type if adapt.peft else adapt.method)
