"""The table of stages, and the plan that a recipe makes of them: resolved once, and passed on.

A stage is a row: where its weights come from, what happens to the head, what is trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal

from typing_extensions import TypeVar

from tltasks.config.data import BUILDERS
from tltasks.config.loading import as_written, recipe_sha256
from tltasks.config.model import Checkpoint
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
    """Local folders and files are absolute paths, here and in `data`."""
    data: DataT
    stage: StageT
    display_name: str = ""
    """Name of the model as the recipe writes it."""
    may_publish_adapter: bool = False
    """Whether an adapter can stand alone, as far as the recipe tells: for a base that everyone can fetch, as it is."""

    @property
    def continues(self) -> bool:
        """Whether the stage goes on from the one before."""
        return self.stage.start == "previous"

    @property
    def checkpoint(self) -> Checkpoint:
        """What the recipe has the stage start from."""
        model = self.model
        return Checkpoint(model.name, model.revision, model.trust_remote_code, display_name=self.display_name)


@dataclass(frozen=True)
class RunPlan:
    """A recipe, resolved: all that later steps need of it."""

    recipe: Recipe
    sha256: str
    """Digest of all that decides the results."""
    output: Path
    stages: list[StagePlan]

    @property
    def final(self) -> StagePlan:
        """The stage whose model is the run's, and by which it is judged: the last that trains, or the last."""
        return next((stage for stage in reversed(self.stages) if stage.kind.trains), self.stages[-1])

    def feeds_next(self, stage: StagePlan) -> bool:
        """Whether the stage after it goes on from its weights."""
        return any(later.continues for later in self.stages[stage.index + 1 : stage.index + 2])

    def ancestry(self, stage: StagePlan) -> list[StagePlan]:
        """The stage and those that its weights went through, the first one first."""
        chain = [stage]
        while chain[0].continues:
            chain.insert(0, self.stages[chain[0].index - 1])
        return chain


def plan_run(recipe: Recipe, output: Path | None = None) -> RunPlan:
    """Resolve a recipe: its paths, its digest, its results folder, and each stage's own or the recipe's sections."""
    plain = as_written(recipe)
    stages: list[StagePlan] = []
    for index, (name, stage, said) in enumerate(zip(stage_names(recipe), recipe.stages, plain.stages, strict=True)):
        model, data, written = stage.model or recipe.model, stage.data or recipe.data, said.model or plain.model
        assert model is not None and data is not None and written is not None, "the recipe's check guarantees all"  # noqa: PT018
        kind = STAGES[stage.stage]
        if stage.start == "previous":  # a stage that goes on never begins at random
            kind = replace(kind, weights="checkpoint")
        alone = stage.adapt.stands_alone and not stage.publishes_whole and stage.start == "checkpoint"
        stages.append(
            StagePlan(
                index=index,
                name=name,
                kind=kind,
                task=stage.task or recipe.task,
                model=model,
                data=data,
                stage=stage,
                display_name=written.name,
                may_publish_adapter=alone and recipe.hub.publish == "adapter" and is_on_hub(model.name),
            )
        )
    # os.path: a user who does not exist is no error
    folder = output or Path(os.path.expanduser(recipe.output))  # noqa: PTH111
    return RunPlan(recipe, recipe_sha256(recipe), folder, stages)


def is_on_hub(name: str | None) -> bool:
    """Whether the name of a plan's model or data set is a Hub repository's: local ones are absolute paths.

    >>> is_on_hub("google/vit"), is_on_hub("gpt2"), is_on_hub("/weights/vit"), is_on_hub("imagefolder")
    (True, True, False, False)
    """
    return name is not None and name not in BUILDERS and not Path(name).is_absolute()


def stage_names(recipe: Recipe) -> list[str]:
    """A unique name for each stage: its own, or the kind of stage, numbered from its second use."""
    names: list[str] = []
    for stage in recipe.stages:
        name, n = stage.name or stage.stage, 2
        while name in names:
            name, n = f"{stage.name or stage.stage}-{n}", n + 1
        names.append(name)
    return names
