"""The table of stages, and the plan that a recipe makes of them.

A stage is a row: where its weights come from, what happens to the head, what is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Literal

from typing_extensions import TypeVar

from tltasks.config.recipe import Recipe
from tltasks.config.stage import DataT, ModelT, Stage, StageName


@dataclass(frozen=True)
class StageKind:
    """How a stage begins."""

    weights: Literal["checkpoint", "random"]
    head: Literal["kept", "new"]
    trains: bool
    cached: bool = False
    """Whether the head is fitted on features that the frozen rest gives once, rather than by the loop."""


STAGES: dict[StageName, StageKind] = {
    "pretrain": StageKind(weights="random", head="new", trains=True),
    "finetune": StageKind(weights="checkpoint", head="kept", trains=True),
    "transfer": StageKind(weights="checkpoint", head="new", trains=True),
    "probe": StageKind(weights="checkpoint", head="new", trains=True, cached=True),
    "zero_shot": StageKind(weights="checkpoint", head="kept", trains=False),
}


StageT = TypeVar("StageT", bound=Stage, default=Stage, covariant=True)


@dataclass(frozen=True)
class StagePlan(Generic[ModelT, DataT, StageT]):
    """One stage with everything it needs, whether said by the stage or by the recipe.

    An adapter names the sections of its task: `StagePlan[ImageModel, ImageData, ImageStage]`.
    """

    index: int
    name: str
    kind: StageKind
    task: str
    model: ModelT
    data: DataT
    stage: StageT


def plan_stages(recipe: Recipe) -> list[StagePlan]:
    """The stages in order, each with its own or the recipe's task, model and data."""
    plans: list[StagePlan] = []
    for index, stage in enumerate(recipe.stages):
        model, data = stage.model or recipe.model, stage.data or recipe.data
        assert model is not None and data is not None, "the recipe's check guarantees both"  # noqa: PT018
        kind = STAGES[stage.stage]
        if stage.start == "previous":  # a stage that goes on never begins at random
            kind = replace(kind, weights="checkpoint")
        plans.append(
            StagePlan(
                index=index,
                name=stage_names(recipe)[index],
                kind=kind,
                task=stage.task or recipe.task,
                model=model,
                data=data,
                stage=stage,
            )
        )
    return plans


def stage_names(recipe: Recipe) -> list[str]:
    """A unique name for each stage: its own, or the kind of stage, numbered from its second use."""
    names: list[str] = []
    for stage in recipe.stages:
        name, n = stage.name or stage.stage, 2
        while name in names:
            name, n = f"{stage.name or stage.stage}-{n}", n + 1
        names.append(name)
    return names
