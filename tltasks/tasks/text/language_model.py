"""Models that write tokens: several texts in a row where the model allows it, and a loss whose memory has a bound."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.config.stage import DataT, StageT
from tltasks.config.tasks.text import TextModel
from tltasks.data.packing import attention_mask, keeps_examples_apart, shifted
from tltasks.models.adapters import unwrap_model
from tltasks.models.cross_entropy import has_plain_head, mean_loss
from tltasks.tasks.base import Batch, BuiltModel, TaskBase


@dataclass(frozen=True)
class LanguageModelTask(TaskBase[TextModel, DataT, StageT]):
    """A task whose loss is over tokens. A built model tells how it may be computed, which changes no result."""

    cpu_batch_budget: ClassVar[int] = 1024

    packs: bool = field(default=False, kw_only=True)
    """The model takes several examples in a row."""
    chunked_loss: bool = field(default=False, kw_only=True)
    """The model's head can be applied to some targets at a time."""

    @property
    @abstractmethod
    def may_pack(self) -> bool:
        """Tell whether the recipe would have several examples in a row."""

    @abstractmethod
    def probe(self) -> Batch:
        """A small training batch, by which a model is tried."""

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        model, packs = built.model, self.may_pack and keeps_examples_apart(built.model)
        task = replace(self, packs=packs)
        batch = task.probe()
        chunked = has_plain_head(model, task.inputs(model, batch), batch["labels"])
        settings = {**built.provenance.settings, "packing": packs, "chunked_loss": chunked}
        provenance = replace(built.provenance, settings=settings)
        return BuiltModel(model, replace(task, chunked_loss=chunked), provenance)

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, object]:
        """Arguments of the model's forward for a batch."""
        inputs: dict[str, object] = {"input_ids": batch["input_ids"]}
        if "segments" in batch:
            inputs["use_cache"] = False
            if not self.packs:
                return inputs | {"attention_mask": (batch["segments"] > 0).long()}
            seen = attention_mask(batch["segments"], model)
            return inputs | {"attention_mask": seen, "position_ids": batch["position_ids"]}
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
