"""Models that write tokens: several texts in a row where the model allows it, and a loss whose memory has a bound."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.config.stage import DataT, StageT
from tltasks.config.tasks.text import TextModel
from tltasks.data.packing import shifted
from tltasks.models.adapters import unwrap_model
from tltasks.models.cross_entropy import has_plain_head, mean_loss
from tltasks.models.decoder_trial import Habits, packed_inputs
from tltasks.models.passes import forget_passes
from tltasks.tasks.base import Batch, BuiltModel, TaskBase


@dataclass(frozen=True)
class LanguageModelTask(TaskBase[TextModel, DataT, StageT]):
    """A task whose loss is over tokens. A built model tells how it may be computed, which changes no result."""

    cpu_batch_budget: ClassVar[int] = 1024
    cpu_training_budget: ClassVar[int] = 2048

    habits: Habits = field(default=Habits(), kw_only=True)
    """How a decoder may be run."""
    chunked_loss: bool = field(default=False, kw_only=True)
    """The model's head can be applied to some targets at a time."""

    @property
    @abstractmethod
    def may_pack(self) -> bool:
        """Tell whether the recipe would have several examples in a row."""

    @property
    def packs(self) -> bool:
        """Tell whether rows hold several examples."""
        return self.may_pack and self.habits.packing is not None

    @abstractmethod
    def try_habits(self, model: PreTrainedModel) -> Habits | None:
        """The habits of a decoder, by trying; None for other models."""

    @abstractmethod
    def probe(self) -> Batch:
        """A small training batch, by which a model is tried."""

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        model = built.model
        put_back = self.forget_passes(model)
        habits = self.try_habits(model)
        task = self if habits is None else replace(self, habits=habits)
        batch = task.probe()
        chunked = has_plain_head(model, task.inputs(model, batch), batch["labels"])
        settings = {**built.provenance.settings, "packing": task.packs, "chunked_loss": chunked}
        if put_back:
            settings["put_back"] = put_back
        if habits is not None:
            settings |= {"batches": habits.batches, "cache": habits.caches}
        provenance = replace(built.provenance, settings=settings)
        return BuiltModel(model, replace(task, chunked_loss=chunked), provenance)

    def forget_passes(self, model: PreTrainedModel) -> list[tuple[str, str, int | float | str | None]]:
        """Let the model's numbers for a text not depend on those that it has read before."""
        return forget_passes(model, lambda: model(**self.inputs(model, self.probe())))

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
        self.forget_passes(unwrap_model(model))
        return model

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        super().save(folder, model, adapter=adapter)
        own = unwrap_model(model).config
        if not adapter and type(own) is not type(self.config) and type(own) not in self.auto_class._model_mapping:
            # the part of Emu3 and Mllama that reads texts, which no auto class of transformers 5.24 opens by itself
            whole = copy.deepcopy(self.config)
            whole.architectures = own.architectures
            whole.save_pretrained(folder)

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, object]:
        """Arguments of the model's forward for a batch."""
        inputs: dict[str, object] = {"input_ids": batch["input_ids"]}
        if "segments" in batch:
            inputs["use_cache"] = False
            if not self.packs or self.habits.packing is None:
                return inputs | {"attention_mask": (batch["segments"] > 0).long()}
            return inputs | packed_inputs(batch["segments"], batch["position_ids"], model, self.habits.packing)
        inputs["attention_mask"] = batch["attention_mask"]
        if self.config.is_encoder_decoder:
            inputs["use_cache"] = False
            inputs["decoder_input_ids"] = self.decoder_inputs(model, batch["labels"])
        return inputs

    def decoder_inputs(self, model: PreTrainedModel, labels: Tensor) -> Tensor:
        """Ids that a decoder reads to write the labels."""
        if shift := getattr(model, "prepare_decoder_input_ids_from_labels", None):
            ids: Tensor = shift(labels=labels.clone())  # FSMT's writes over them (transformers 5.24, modeling_fsmt.py)
            return ids
        return shifted(labels, start=model.config.decoder_start_token_id, fill=model.config.pad_token_id)

    def token_loss(self, model: nn.Module, batch: Batch, *, smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy over the batch's targets."""
        inputs = self.inputs(unwrap_model(model), batch)
        return mean_loss(model, inputs, batch["labels"], smoothing=smoothing, chunked=self.chunked_loss)
