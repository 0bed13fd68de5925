"""Examination of a checkpoint by its configuration and processors alone: it is opened, adapted and rehearsed."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import datasets
import numpy as np
import soundfile
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tltasks.config.adaptation import Adapt
from tltasks.config.model import Checkpoint
from tltasks.config.stage import STAGES, StageName, StagePlan
from tltasks.config.tasks import TASKS, TaskSpec
from tltasks.data.splits import Columns, Split
from tltasks.errors import CheckpointError, TltasksError, first_line
from tltasks.models.adapters import adapt, count_parameters, is_adapted, set_training_mode
from tltasks.models.held import FORMATS, hold
from tltasks.models.loading import open_config, open_tokenizer
from tltasks.models.memory import Memory, rehearse_step
from tltasks.models.shrinking import small_copies
from tltasks.models.trial import FAULTS
from tltasks.results.result import Provenance
from tltasks.runtime.precision import OVERFLOWING_FP16, choose_base_dtype
from tltasks.tasks import load_adapter, tasks_of
from tltasks.tasks.base import Batch, BuiltModel, TaskBase
from tltasks.tasks.image.decoding import to_png

MEASURED = ("full", "head", "lora")
"""Methods whose memory is found out; each takes seconds."""
METHODS = (*MEASURED, "dora", "ia3", "bitfit")
PRECISIONS = ("fp32", "bf16")
AUDIO_SECONDS = 10
SMALL = 20_000_000
"""Weights of a model that is made, rather than thought of on the meta device."""


@dataclass(frozen=True)
class MethodFacts:
    """A model as a method of adaptation makes it."""

    method: str
    refused: str | None = None
    trained: int = 0
    layers: int = 0
    """Layers that an adapter is put beside."""
    left_out: int = 0
    """Layers of the same kinds that it does not fit."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """By precision."""


@dataclass(frozen=True)
class TaskFacts:
    """A checkpoint as a task has it."""

    task: str
    refused: str | None = None
    stages: dict[str, str | None] = field(default_factory=dict)
    """Kinds of stages by name, with the reason for those that are refused."""
    model: str = ""
    """The class that transformers loads."""
    head: list[str] = field(default_factory=list)
    parameters: int = 0
    micro_batch: str = ""
    """The examples that memory is counted for."""
    methods: list[MethodFacts] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointFacts:
    """All that is found out."""

    name: str
    model_type: str
    architectures: list[str]
    tasks: list[TaskFacts]
    """Its own first."""
    notes: list[str] = field(default_factory=list)

    @property
    def is_of_use(self) -> bool:
        return any(task.refused is None for task in self.tasks)


def examine_checkpoint(source: Checkpoint, *, tag: str | None = None, rows: int = 8) -> CheckpointFacts:
    """Examine a checkpoint for the task `tag`, or for those that it serves; memory is of `rows` examples at a time.

    Raises CheckpointError for one whose configuration cannot be read.
    """
    config = open_config(source)
    own = tasks_of(config.architectures or ())
    tags = [tag] if tag else sorted((t for t in TASKS if _may_serve(config, t)), key=lambda t: t not in own)
    found: list[TaskFacts] = []
    for t in tags:
        is_next = t in own or not any(task.methods for task in found)
        facts = _examine_task(source, t, rows=rows, wholly=bool(tag) or is_next)
        if facts is not None:
            found.append(facts)
    return CheckpointFacts(
        source.display_name,
        str(config.model_type),
        [str(name) for name in config.architectures or ()],
        found,
        list(_notes(config)),
    )


def _may_serve(config: PretrainedConfig, tag: str) -> bool:
    """Tell whether transformers has a class for the task and this architecture, or the task is an objective."""
    spec, lists = TASKS[tag], importlib.import_module("transformers.models.auto.modeling_auto")
    if spec.is_self_supervised:
        return any(_may_serve(config, t) for t, it in TASKS.items() if it.auto_mappings and it.input == spec.input)
    return any(config.model_type in getattr(lists, name) for name in spec.auto_mappings)


def _has_class(task: TaskBase) -> bool:
    """Tell whether the class that loads the task's models has one for this architecture."""
    known = getattr(task.auto_class, "_model_mapping", None)
    return known is None or type(task.config) in known


def _notes(config: PretrainedConfig) -> Iterator[str]:
    if quantised := getattr(config, "quantization_config", None):
        told = quantised if isinstance(quantised, dict) else vars(quantised)
        yield f"Its weights are quantised ({told.get('quant_method', 'some way')}), and no training starts from such."


# ------------------------------------------------------------------------------------------- one task


@dataclass(frozen=True)
class _Opened:
    """A task on made-up rows."""

    task: TaskBase
    split: Split
    asked: str | None = None
    """The key of a recipe without which it opens for use alone."""


def _examine_task(source: Checkpoint, tag: str, *, rows: int, wholly: bool) -> TaskFacts | None:
    """Facts on one task, `wholly` with its methods; None where transformers has no class for it."""
    split = _made_up(source, TASKS[tag], rows=max(2, rows))
    found = {stage: _open(source, tag, stage, split) for stage in ("finetune", "transfer")}
    stages = {stage: str(it) if isinstance(it, TltasksError) else None for stage, it in found.items()}
    works = [it for it in found.values() if isinstance(it, _Opened)]
    if not works:
        return TaskFacts(tag, refused=stages["finetune"], stages=stages)
    opened = works[-1]  # with a new head, where it may have one
    if not _has_class(opened.task):
        return None
    try:
        model = _without_weights(opened.task)
        task = _as_built(opened.task, model)
        batch, head = _batch(task, split, rows=rows), task.head(model)
    except (TltasksError, *FAULTS) as error:
        return TaskFacts(tag, refused=first_line(error), stages=stages)
    if len(works) == 2 and not _has_head(task, model):
        stages["finetune"] = "it has no head for this task; `stage: transfer` puts a new one on it."
    methods = [_examine_method(source, task, method, split, batch) for method in METHODS] if wholly else []
    notes = [*filter(None, [opened.asked]), *task.notes]
    if not model.supports_gradient_checkpointing:
        notes.append("`gradient_checkpointing` is not there for it.")
    if task.architecture in OVERFLOWING_FP16:
        notes.append("`precision: fp16` would overflow; bf16 has the range.")
    parameters = sum(p.numel() for p in model.parameters())
    shown = f"{rows} {_words(TASKS[tag], batch)}"
    return TaskFacts(tag, None, stages, type(model).__name__, head, parameters, shown, methods, notes)


def _open(source: Checkpoint, tag: str, stage: StageName, split: Split, method: str = "full") -> _Opened | TltasksError:
    """The task on made-up rows, or why it does not open."""
    spec, adapter = TASKS[tag], load_adapter(tag)
    keys = spec.stage(stage=stage, adapt=Adapt.model_validate({method: {}}), steps=1, learning_rate=1e-3)
    model, data = spec.model(name=source.name), spec.data(name="made-up")
    plan = StagePlan(0, stage, STAGES[stage], tag, model, data, keys, source.display_name)
    first: TltasksError | None = None
    for tried in _plans(plan):
        try:
            task = adapter.open(tried, {"train": split}, source, seed=0)
            return _Opened(task, split, None if first is None else str(first))
        except TltasksError as error:
            first = first or error
            if not str(error).startswith(("model.", "data.")):
                break
        except (*FAULTS, ArithmeticError, ImportError, OSError) as error:
            first = first or CheckpointError(f"opening it fails ({type(error).__name__}: {first_line(error)}).")
            break
    assert first is not None
    return first


def _plans(plan: StagePlan) -> Iterator[StagePlan]:
    """The plan; and such as open where a key is asked for: with shorter texts, and as it is only used."""
    yield plan
    limits = {name: value for name, value in plan.data if name.startswith("max_") and name.endswith("_tokens")}
    for factor in (2, 8):
        if limits:
            shorter = {name: max(8, value // factor) for name, value in limits.items()}
            yield replace(plan, data=plan.data.model_copy(update=shorter))
    yield replace(plan, kind=STAGES["zero_shot"])


def _has_head(task: TaskBase, model: PreTrainedModel) -> bool:
    """Tell by the classes that a configuration names whether the checkpoint has the head of this one."""
    if task.config.model_type == "timm_wrapper":
        return int(task.config.num_labels) > 0
    return type(model).__name__ in (task.config.architectures or ())


def _without_weights(task: TaskBase) -> PreTrainedModel:
    """The model of a task's configuration on the meta device, or with random weights where it is small."""
    with torch.device("meta"):
        model = task.random_model(task.config)
    small = sum(p.numel() for p in model.parameters()) <= SMALL
    return task.random_model(task.config) if small else model


def _as_built(task: TaskBase, model: PreTrainedModel) -> TaskBase:
    """The task as it would be with the model's weights, by a small copy that runs; as it is where there is none."""
    is_real = next(model.parameters()).device.type != "meta"
    for copy in [model] if is_real else small_copies(model, task.config, task.random_model):
        try:
            return task.finish_build(BuiltModel(copy, task, Provenance("", ""))).task
        except FAULTS:
            continue
    return task


def _examine_method(source: Checkpoint, task: TaskBase, method: str, split: Split, batch: Batch) -> MethodFacts:
    opened = _open(source, task.tag, task.plan.stage.stage, split, method)
    if isinstance(opened, TltasksError):
        return MethodFacts(method, refused=str(opened))
    keys = opened.task.stage.adapt
    try:
        adapted = _adapted(task, keys, "fp32")
    except TltasksError as error:
        return MethodFacts(method, refused=str(error))
    layers = left_out = 0
    if is_adapted(adapted):
        layers = sum(hasattr(module, "base_layer") for module in adapted.modules())
        left_out = max(0, len(task.lora_targets(_without_weights(task))) - layers)
    memory = {}
    for precision in PRECISIONS if method in MEASURED else ():
        held = choose_base_dtype("auto", precision=precision, adapt=keys)
        for dtype in dict.fromkeys((held, "fp32")):  # as training does where a model does not run with held weights
            with contextlib.suppress(*FAULTS):
                model = adapted if dtype == "fp32" else _adapted(task, keys, dtype)
                memory[precision] = rehearse_step(model, task.loss, batch, precision=precision)
                break
    return MethodFacts(method, None, count_parameters(adapted)[0], layers, left_out, memory)


def _adapted(task: TaskBase, keys: Adapt, dtype: str) -> nn.Module:
    """The task's model, adapted, with its frozen weights in a format."""
    model = _without_weights(task)
    head, new_head = task.head(model), task.plan.kind.head == "new"
    if dtype in FORMATS:
        hold(model, FORMATS[dtype], keep=head if new_head else [], exact=True)
    adapted = adapt(
        model,
        keys,
        new_head=new_head,
        head=head,
        targets=task.lora_targets(model),
        display_name=task.source.display_name,
        revision=task.source.revision,
        trial=task.trial(),
    )
    set_training_mode(adapted, frozen_batch_norm=True)
    return adapted


# ------------------------------------------------------------------------------------------ made-up rows


def _made_up(source: Checkpoint, spec: TaskSpec, *, rows: int) -> Split:
    """Rows as a data set for the task might have them, as long as any that it reads whole."""
    columns: Columns = {}
    names = type(spec.data.model_fields["columns"].default).model_fields
    drawn = np.random.default_rng(0)
    for name in names:
        if name == "image":
            noise = torch.from_numpy(drawn.integers(0, 256, (3, 64, 64), dtype=np.uint8))
            columns[name] = [{"bytes": to_png(noise)}] * rows
        elif name == "audio":
            columns[name] = [{"bytes": _wav(drawn)}] * rows
        elif name == "label" and not spec.is_self_supervised:
            columns[name] = [_classes(source)[i % 2] for i in range(rows)]
        elif name in ("text", "document", "summary"):
            columns[name] = [_text(source, letters=60 if spec.input.kind == "audio" else 50_000)] * rows
    return Split("train", datasets.Dataset.from_dict(columns), "made-up rows", None, "data")


def _classes(source: Checkpoint) -> list[str]:
    own = list(open_config(source).id2label.values())
    return [str(name) for name in own[:2]] if len(own) > 1 else ["one", "other"]


def _wav(drawn: np.random.Generator) -> bytes:
    held = io.BytesIO()
    samples = drawn.standard_normal(AUDIO_SECONDS * 16_000) / 8
    soundfile.write(held, samples, 16_000, format="WAV", subtype="PCM_16")
    return held.getvalue()


def _text(source: Checkpoint, *, letters: int) -> str:
    """So many characters that the checkpoint's tokenizer knows, or of the alphabet where there is none."""
    known = ""
    with contextlib.suppress(TltasksError, *FAULTS):
        tokenizer = open_tokenizer(source)
        special = set(tokenizer.all_special_ids)
        known = tokenizer.decode([i for i in range(min(400, len(tokenizer))) if i not in special]).strip()
    known = " ".join(known.split()) or "the quick brown fox jumps over the lazy dog"
    return (f"{known} " * (letters // len(known) + 1))[:letters].strip()


def _batch(task: TaskBase, split: Split, *, rows: int) -> Batch:
    """So many rows as training would read them in one micro-batch."""
    n = len(split.rows)
    encoded = task.preprocess(split)({**split.rows[:], "row": list(range(n))})
    if any(encoded["error"]):
        raise CheckpointError(f"{task.tag}: made-up rows cannot be read ({next(filter(None, encoded['error']))})")
    kept = datasets.Features({**task.features, "row": datasets.Value("int64")})
    whole = datasets.Dataset.from_dict({name: encoded[name] for name in kept}, features=kept)
    return task.collate_train(whole, list(range(rows)), epoch=0)


def _words(spec: TaskSpec, batch: Batch) -> str:
    """The content of a micro-batch, in words."""
    if spec.input.kind == "audio":
        return f"clips of {AUDIO_SECONDS} s"
    name, sizes = next((name, values.shape) for name, values in batch.items() if values.ndim > 1)
    return f"images of {sizes[-1]} px" if spec.input.kind == "image" else f"texts of {sizes[-1]:,} tokens ({name})"
