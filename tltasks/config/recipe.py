"""The recipe: what to do, as a frozen tree; its plan, resolved once and passed on; and its digest.

Pure data. Reading and checking a recipe imports neither torch nor any Hub library, so that
`tltasks check` answers at once. What a task adds to the shared keys is one row of `tltasks.config.tasks`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, Field, PrivateAttr, SerializeAsAny

from tltasks.config.data import BUILDERS, ClassData, Data, Files, Source
from tltasks.config.document import dotted
from tltasks.config.model import Model
from tltasks.config.section import Conflict, KeyPath, Name, Named, RepoName, Section
from tltasks.config.stage import STAGES, Stage, StagePlan
from tltasks.errors import RecipeError

T = TypeVar("T")
Kind = Literal["repository", "folder", "file"]
"""What may be local: a name that else stands for a Hub repository, a folder, a file or pattern of files."""
Change = Callable[[str, KeyPath, Kind], str]

FILE_KEYS = ("output", "hub", "trackers")
"""Keys that say where results go; all others decide what they are."""


class Emissions(Section):
    """Basis of the card's estimate of carbon dioxide (Lacoste et al., https://arxiv.org/abs/1910.09700)."""

    watts: Annotated[float, Field(gt=0)]
    """Power that one device draws with its share of the machine."""
    grams_per_kwh: Annotated[float, Field(ge=0)]
    """Grams of CO2-equivalent for each kilowatt-hour of the local grid."""
    location: str | None = None
    """Country or region of the grid, such as `France`."""

    def grams(self, seconds: float, *, devices: int) -> float:
        """Grams of CO2-equivalent of so many devices for so long."""
        return self.watts * devices * seconds / 3.6e6 * self.grams_per_kwh


class Hub(Section):
    """The repository that a push goes to, and what the card says that a run cannot know."""

    repo: RepoName | None = None
    """Repository to push to, `user/name`. `--push` needs it."""
    private: bool = True
    """Whether a repository that a push makes is seen by its owner alone."""
    publish: Literal["adapter", "merged"] = "adapter"
    """For PEFT: the adapter alone, or merged into the checkpoint's weights. Full fine-tuning and objectives
    without labels always publish all."""
    license: str | None = None
    """Licence of the published weights, a Hub identifier such as apache-2.0. Unset: the base model's, where known."""
    language: list[str] = []
    """Language codes for the card."""
    emissions: Emissions | None = None
    """Power and grid, for the card's estimate of carbon dioxide. Unset: the card has time and hardware alone."""


class Recipe(Section):
    """One experiment: stages in order, and what they share."""

    task: str
    """Hub pipeline tag of the task."""
    model: SerializeAsAny[Model] | None = None
    """Checkpoint that all stages start from, unless one names its own."""
    data: SerializeAsAny[Data] | None = None
    """Data of all stages, unless one names its own."""
    stages: Annotated[list[SerializeAsAny[Stage]], Field(min_length=1)]
    """What is done, in order. Unset: one stage of LoRA, `transfer` where the data have classes, else `finetune`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides all that is drawn: new weights, order of rows, dropout, augmentation, shares held out."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of products; weights that are trained stay in fp32. auto: bf16 where the device is faster in it."""
    output: Name
    """Results folder, relative to the working directory. Unset: outputs/NAME_OF_THE_RECIPE, numbered where it is taken.
    """
    hub: Hub = Hub()
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Where metrics go besides metrics.jsonl."""

    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    """`file:line:column` of each key that was written."""
    _written: dict[str, str] = PrivateAttr(default_factory=dict)
    """Local paths as they were written, by the absolute ones that they have become."""
    _chosen: list[str] = PrivateAttr(default_factory=list)
    """Choices that were made for keys that are unset, in words."""
    _trusts_code: bool = PrivateAttr(default=False)
    """Its user, who may not be its author, lets the code run that it asks for."""

    def conflicts(self) -> Iterator[Conflict]:
        for i, stage in enumerate(self.stages):
            at, before = ("stages", i), self.stages[i - 1] if i else None
            if stage.start == "previous" and before is None:
                yield Conflict("the first stage has no previous one; use `start: checkpoint`", (*at, "start"))
            if stage.start == "previous" and before is not None and before.adapt.is_virtual:
                what = f"virtual tokens (stage {i - 1}, adapt: prompt), which cannot be merged into weights"
                yield Conflict(f"goes on from {what}", (*at, "start"))
            for key in ("model", "data"):
                shared, own = getattr(self, key), getattr(stage, key)
                if own is None and shared is None:
                    text = f"needs the key `{key}`, here or for the whole recipe"
                    yield Conflict(text, at, ((key,), (*at, key)))
                elif own is None and not isinstance(shared, _class_of(stage, key)):
                    text = f"needs a `{key}` of its own: the recipe's is of another task"
                    yield Conflict(text, at, ((*at, key),))
            yield from self._of_splits(stage, at)

    def _of_splits(self, stage: Stage, at: KeyPath) -> Iterator[Conflict]:
        """Needs of the stage that its data's splits do not meet."""
        data, place = (self.data, ("data",)) if stage.data is None else (stage.data, (*at, "data"))
        if data is None:
            return
        grounds = ((*place, "splits"), (*at, "data"), (*at, "stage"))
        if data.splits.validation is None:
            needs = "needs a validation split: set data.splits.validation"
            for key in ("early_stopping", "evaluate_every"):
                if getattr(stage, key) is not None:
                    yield Conflict(needs, (*at, key), grounds)
            if stage.interpolate and len(stage.interpolate.alphas) > 1:
                text = "needs a validation split to choose by (set data.splits.validation), or one of `alphas` alone"
                yield Conflict(text, (*at, "interpolate"), grounds)
            if isinstance(stage.l2, list) and len(stage.l2) > 1:
                text = "several need a validation split to choose by: set data.splits.validation"
                yield Conflict(text, (*at, "l2"), grounds)
        if stage.loops and not stage.draws_rows and len(set(data.source_weights)) > 1:
            text = f"stage {at[1]} ({stage.stage}) draws rows by their class: leave out the weights of `extra_train`"
            yield Conflict(text, (*place, "extra_train"), grounds)
        if stage.trains and data.streaming:
            yield from _of_streaming(stage, data, at)
        if stage.trains and data.splits.train is None:
            text = f"stage {at[1]} ({stage.stage}) trains and needs a split to train on"
            yield Conflict(text, (*place, "splits", "train"), grounds)


def _of_streaming(stage: Stage, data: Data, at: KeyPath) -> Iterator[Conflict]:
    """Keys of a stage that would need all its rows at once."""
    keys = {
        "stage": None if stage.loops else stage.stage,
        "class_weights": "auto" if getattr(stage, "class_weights", None) == "auto" else None,
        "sampling": "balanced" if getattr(stage, "sampling", None) == "balanced" else None,
    }
    for key, value in keys.items():
        if value is not None:
            text = f"`{key}: {value}` needs all training rows at once, and `data.streaming` reads them as they come"
            yield Conflict(text, (*at, key))
    if data.shuffle_buffer < stage.batch_size:
        yield Conflict(f"`batch_size` {stage.batch_size} exceeds `data.shuffle_buffer`", (*at, "batch_size"))


def _class_of(stage: Stage, key: str) -> type[Section]:
    """The class of a stage's model or data, which its task decides."""
    found: type[Section] = get_args(type(stage).model_fields[key].annotation)[0]
    return found


# ---------------------------------------------------------------------------------------------- plan


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

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)

    def feeds_next(self, stage: StagePlan) -> bool:
        """True if the stage after it goes on from its weights."""
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
    folder = Path(os.path.expanduser(output or recipe.output))  # noqa: PTH111
    return RunPlan(recipe, recipe_sha256(recipe), folder, stages)


def is_on_hub(name: str | None) -> bool:
    """True if the name of a plan's model or data set is a Hub repository's: local ones are absolute paths.

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


# ---------------------------------------------------------------------------------- code of others


def remote_code(value: object, keys: KeyPath = ()) -> Iterator[tuple[str, str]]:
    """Keys of models and metrics whose repositories' code a recipe asks to run, and their names."""
    if isinstance(value, Named) and getattr(value, "trust_remote_code", False):
        yield dotted(keys), str(value.name)
    if isinstance(value, Section):
        for key in type(value).model_fields:
            yield from remote_code(getattr(value, key), (*keys, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from remote_code(item, (*keys, i))


def consented(recipe: Recipe, trust_remote_code: bool) -> Recipe:
    """The recipe as one that may run. Raises RecipeError where it asks for code of others, and nobody has said yes."""
    asked = [f"{written_at(recipe, f'{keys}.trust_remote_code')}: {name}" for keys, name in remote_code(recipe)]
    if asked and not (trust_remote_code or recipe._trusts_code):
        raise RecipeError(
            "\n".join(["the recipe asks to run Python code that others have written; nothing was loaded.", *asked])
            + "\nLook at it there, and name the `revision` that you have seen. Then say so yourself: "
            "--trust-remote-code (in Python: trust_remote_code=True)."
        )
    recipe = recipe.model_copy()
    recipe._trusts_code = trust_remote_code or recipe._trusts_code
    return recipe


# -------------------------------------------------------------------------------- paths and digest


def map_paths(value: T, change: Change, keys: KeyPath = (), among: str = "") -> T:
    """A copy of a recipe with `change` applied to every name and path that may be local, and to its keys.

    `among` is the repository or builder that a further test set takes over.
    """
    if isinstance(value, list):
        return cast(T, [map_paths(item, change, (*keys, i), among) for i, item in enumerate(value)])
    if isinstance(value, dict):
        return cast(T, {key: map_paths(item, change, (*keys, key), among) for key, item in value.items()})
    if not isinstance(value, Section):
        return value
    update: dict[str, object] = {}
    name = value.name or "" if isinstance(value, Named) else ""
    if name and name not in BUILDERS:
        update["name"] = name = change(name, (*keys, "name"), "repository")
    owner = name or among
    if isinstance(value, Source) and (owner in BUILDERS or Path(owner).is_absolute()):  # else places in the repository
        update["dir"] = value.dir and change(value.dir, (*keys, "dir"), "folder")
        update["files"] = _map_files(value.files, change, (*keys, "files"))
    if isinstance(value, ClassData) and value.relabel is not None:
        update["relabel"] = change(value.relabel, (*keys, "relabel"), "file")
    section = cast(Section, value)
    for key in [key for key in type(section).model_fields if key not in update]:
        update[key] = map_paths(getattr(value, key), change, (*keys, key), owner)
    changed = {k: v for k, v in update.items() if v != getattr(value, k)}  # others do not count as given
    return cast(T, section.model_copy(update=changed))


def _map_files(value: Files, change: Change, keys: KeyPath) -> Files:
    if isinstance(value, dict):
        return {key: _map_files(names, change, (*keys, key)) for key, names in value.items()}  # type: ignore[misc]
    if isinstance(value, list):
        return [change(name, (*keys, i), "file") for i, name in enumerate(value)]
    return change(value, keys, "file") if value else value


def with_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """A copy of the recipe with every local path changed."""
    return map_paths(recipe, lambda text, *_: change(text) if Path(text).is_absolute() else text)


def as_written(recipe: Recipe) -> Recipe:
    """The recipe with its local paths as they were written: for people, never to open anything by."""
    return with_paths(recipe, lambda path: recipe._written.get(path, path))


def shareable(recipe: Recipe) -> Recipe:
    """The recipe as it may be published: of folders and files that are not below its own folder, the names alone."""

    def shortened(path: str) -> str:
        written = recipe._written.get(path, path)
        away = written.startswith(("~", "..")) or Path(written).is_absolute()
        return Path(written).name if away else written

    return with_paths(recipe, shortened).model_copy(update={"output": shortened(recipe.output)})


def written_at(recipe: Recipe, keys: str) -> str:
    """A key and where the recipe says it, as `file:line:column  key`; for what it does not say, where its parent is."""
    steps: list[str | int] = [
        int(k) if k.isdecimal() else k for k in keys.replace("[", ".").replace("]", "").split(".")
    ]
    while steps and tuple(steps) not in recipe._places:
        steps.pop()
    place = recipe._places.get(tuple(steps), "")
    return f"{place}  {keys}" if place else keys


def to_tree(value: Any) -> Any:
    """A recipe as mappings and lists, with defaults, but without keys that are silent or have no effect."""
    if isinstance(value, BaseModel):
        tree = {}
        for key, field in type(value).model_fields.items():
            own = getattr(value, key)
            silent = own is None and not field.is_required() and field.default is None
            without_effect = isinstance(value, Stage) and key not in value.effective_keys
            if not silent and not without_effect:
                tree[field.alias or key] = to_tree(own)
        return tree | dict(value.model_extra or {})
    if isinstance(value, list):
        return [to_tree(item) for item in value]
    if isinstance(value, dict):
        return {key: to_tree(item) for key, item in value.items()}
    return value


def recipe_sha256(recipe: Recipe) -> str:
    """Digest of all that decides the results, wherever the recipe and the files that it names may lie."""
    tree = to_tree(with_paths(recipe, lambda path: Path(path).name))
    for key in FILE_KEYS:
        tree.pop(key, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
