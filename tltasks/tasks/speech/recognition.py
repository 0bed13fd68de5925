"""What the two families of speech recognisers have in common: the contract, and how they are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from tltasks.errors import CheckpointError, first_line
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks

FRAMES_PER_SECOND = 100
"""Unit of `costs`: hundredths of a second."""
Family = Literal["sequence-to-sequence", "CTC"]
SEQUENCE_FAMILIES = ("moonshine", "speech_to_text", "whisper")
"""That transformers generates from in the same way; others are prompted, or answer with audio."""


@dataclass(frozen=True)
class Transcript:
    """What was heard in one piece of audio."""

    text: str
    looped: bool = False
    """Decoding went round in circles and was stopped."""


class Recogniser(Protocol):
    """A family of models: how audio goes in, and how text goes in and comes out."""

    auto_class: ClassVar[Any]
    head: ClassVar[tuple[str, ...]]
    """Modules that depend on the vocabulary; empty where it cannot be taken off."""
    cpu_batch_budget: ClassVar[int]
    """Sum of `costs` of one forward pass that keeps a CPU busy."""
    joint: ClassVar[str]
    """What stands between the texts of two pieces of one clip."""

    @property
    def config(self) -> PretrainedConfig: ...

    @property
    def window_seconds(self) -> float:
        """Longest audio of one forward pass."""
        ...

    @property
    def sampling_hz(self) -> int: ...

    @property
    def key(self) -> str:
        """Everything that labels depend on."""
        ...

    def as_pretrained(self) -> Self:
        """As the checkpoint stands, without what the recipe changes in its architecture."""
        ...

    def prepare(self, model: PreTrainedModel) -> list[str]:
        """Change a loaded model as the recipe says; returns the weights that were cut or resampled."""
        ...

    def label_ids(self, text: str) -> list[int]:
        """Targets of a text; raises DataError for one that cannot be written in the vocabulary."""
        ...

    def misfit(self, seconds: float, labels: Sequence[int]) -> str | None:
        """Why a pair of audio and text cannot be trained on."""
        ...

    def costs(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Work of each clip, in hundredths of a second of audio."""
        ...

    def read(self, pieces: Sequence[Samples], masks: Sequence[Masks] | None = None) -> dict[str, Tensor]:
        """The model's input for pieces of audio no longer than the window."""
        ...

    def targets(self, labels: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What `loss` needs besides the input."""
        ...

    def num_targets(self, batch: dict[str, Tensor]) -> Tensor: ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor: ...

    def transcribe(self, model: nn.Module, batch: dict[str, Tensor]) -> list[Transcript]:
        """One transcript for each piece."""
        ...

    def save_setup(self, folder: Path) -> None:
        """Write what a pipeline needs besides the weights: the configuration as `prepare` leaves it, the processor."""
        ...

    def finish_loading(self, model: nn.Module, folder: Path) -> None:
        """Give a saved model back what loading did not."""
        ...


# --------------------------------------------------------------------------------------------- opening


def family(config: PretrainedConfig, *, shown: str) -> Family:
    """How a checkpoint turns audio into text, which its architecture decides."""
    if config.model_type in SEQUENCE_FAMILIES:
        return "sequence-to-sequence"
    if type(config) in AutoModelForCTC._model_mapping:  # with those that were registered
        return "CTC"
    other = config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    why = "takes its audio in a way of its own" if other else "does not recognise speech"
    raise CheckpointError(
        f"model {shown}: {config.model_type} {why}. What can be trained: "
        f"{', '.join(sorted({*SEQUENCE_FAMILIES, *MODEL_FOR_CTC_MAPPING_NAMES}))}."
    )


def open_feature_extractor(name: str, *, shown: str, **arguments: Any) -> Any:
    try:
        return AutoFeatureExtractor.from_pretrained(name, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"model {shown}: has no feature extractor that can be loaded ({first_line(error)}). "
            "A preprocessor_config.json must stand beside the weights."
        ) from error


def open_tokenizer(name: str, *, shown: str, **arguments: Any) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"model {shown}: has no tokenizer that can be loaded ({first_line(error)}). `stage: transfer` builds a "
            "vocabulary from the training text, for CTC checkpoints."
        ) from error
