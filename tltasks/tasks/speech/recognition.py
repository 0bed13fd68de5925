"""Models that hear, whatever they are trained for: opening, frames, and the contract of recognisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel
from tltasks.errors import CheckpointError
from tltasks.models.loading import ModelLoader
from tltasks.models.packages import cannot_open
from tltasks.tasks.base import Batch, Processor
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks, mask_samples
from tltasks.tasks.vocabulary import MOST_LOST, lost_share, n_characters

FRAMES_PER_SECOND = 100
"""Unit of `costs`: hundredths of a second."""
INPUTS = ("input_features", "input_values", "attention_mask")
"""Arguments of models that hear."""
Family = Literal["sequence-to-sequence", "CTC"]
TOKENIZER_HINT = "`stage: transfer` builds a vocabulary from the training text, for CTC checkpoints."
LETTERS_SHOWN = 12
SEQUENCE_FAMILIES = ("moonshine", "speech_to_text", "whisper")
"""Model types that transformers generates from in the same way; others are prompted, or answer with audio."""


@dataclass(frozen=True)
class Transcript:
    """The text of one piece of audio."""

    text: str
    repetition_loop: bool = False
    """Decoding went round in circles and was stopped."""


@dataclass(frozen=True)
class Recogniser(ABC):
    """A family of models: how audio goes in, and how text goes in and comes out."""

    auto_class: ClassVar[ModelLoader]
    family: ClassVar[Family]
    head: ClassVar[tuple[str, ...]]
    """Modules that depend on the vocabulary; empty where it cannot be taken off."""
    cpu_batch_budget: ClassVar[int]
    """Sum of `costs` of one forward pass that keeps a CPU busy."""
    joint: ClassVar[str]
    """Text between those of two pieces of one clip."""

    config: PretrainedConfig
    feature_extractor: SequenceFeatureExtractor
    tokenizer: PreTrainedTokenizerBase
    display_name: str

    @property
    def sampling_hz(self) -> int:
        return int(self.feature_extractor.sampling_rate)

    @property
    @abstractmethod
    def window_seconds(self) -> float:
        """Longest audio of one forward pass."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Everything that labels depend on."""

    @property
    @abstractmethod
    def is_apart(self) -> bool:
        """Tell whether clips go through the model one by one: a norm over a clip's length would count its padding."""

    def as_pretrained(self) -> Self:
        """As the checkpoint stands, without what the recipe changes in its architecture."""
        return self

    def prepare(self, model: PreTrainedModel) -> list[str]:
        """Change a loaded model as the recipe says; returns the weights that were cut or resampled."""
        return []

    # ---------------------------------------------------------------------------------------- rows

    @abstractmethod
    def label_ids(self, text: str) -> list[int]:
        """Targets of a text; raises DataError for one that cannot be written in the vocabulary."""

    @abstractmethod
    def lost(self, texts: Sequence[str]) -> list[str]:
        """Characters of each text that its labels leave out."""

    def check_texts(self, texts: Sequence[str], where: str) -> tuple[float, list[str]]:
        """The share of the training text's characters that is lost, and which; raises DataError for too many."""
        lost, total = self.lost(texts), sum(map(n_characters, texts))
        begin = f"the vocabulary of {self.display_name} cannot write"
        share = lost_share(lost, total, most=MOST_LOST, where=f"{where}: {begin}", hint=TOKENIZER_HINT)
        found = Counter("".join(lost))
        some = ", ".join(f"{letter} ×{n:,}" for letter, n in found.most_common(LETTERS_SHOWN))
        some += ", …" if len(found) > LETTERS_SHOWN else ""
        note = f"{begin} {found.total():,} of the {total:,} characters of the training text: {some}. They are left out."
        return share, [note] if found else []

    @abstractmethod
    def misfit(self, seconds: float, labels: Sequence[int]) -> str | None:
        """Why a pair of audio and text cannot be trained on."""

    @abstractmethod
    def costs(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """Work of each clip, in hundredths of a second of audio."""

    def read(self, pieces: Sequence[Samples], masks: Sequence[Masks] | None = None) -> Batch:
        """The model's input for pieces of audio no longer than the window."""
        clips = [mask_samples(*pair) for pair in zip(pieces, masks, strict=True)] if masks is not None else list(pieces)
        return read_clips(clips, self.feature_extractor)

    @abstractmethod
    def targets(self, labels: Sequence[Sequence[int]]) -> Batch:
        """Parts of a batch that `loss` needs besides the input."""

    # ---------------------------------------------------------------------------------------- step

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the targets."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of one forward pass over pieces: of all steps, or of the first tokens."""

    @abstractmethod
    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        """One transcript for each piece."""

    # -------------------------------------------------------------------------------------- saving

    @property
    def setup(self) -> Sequence[Processor]:
        """All that a pipeline needs besides the weights: the configuration as `prepare` leaves it, the processor."""
        return [self.config, self.feature_extractor, self.tokenizer]

    def finish_loading(self, model: nn.Module, folder: Path) -> None:  # noqa: B027 (most have nothing to do)
        """Give a saved model back what loading did not."""


# --------------------------------------------------------------------------------------------- opening


def family(config: PretrainedConfig, *, display_name: str) -> Family:
    """The way in which a checkpoint turns audio into text, which its architecture decides."""
    if config.model_type in SEQUENCE_FAMILIES:
        return "sequence-to-sequence"
    if type(config) in AutoModelForCTC._model_mapping:  # with those that were registered
        return "CTC"
    other = config.model_type in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    why = "takes its audio in a way of its own" if other else "does not recognise speech"
    raise CheckpointError(
        f"model {display_name}: {config.model_type} {why}. What can be trained: "
        f"{', '.join(sorted({*SEQUENCE_FAMILIES, *MODEL_FOR_CTC_MAPPING_NAMES}))}."
    )


def given_keys(model: SpeechModel, *names: str) -> str:
    """Those keys of a recipe that are not as where they are left out, for a message."""
    given = [name for name in names if getattr(model, name) != SpeechModel.model_fields[name].default]
    return ", ".join(f"model.{name.removesuffix('_')}" for name in given)


def open_feature_extractor(source: Checkpoint) -> SequenceFeatureExtractor:
    try:
        return AutoFeatureExtractor.from_pretrained(source.name, **source.arguments())
    except (OSError, ValueError, ImportError) as error:
        hint = "A preprocessor_config.json must stand beside the weights."
        raise cannot_open("feature extractor", source.display_name, error, hint) from error


# ---------------------------------------------------------------------------------------------- frames


def output_frames(config: PretrainedConfig, n_samples: int) -> int:
    """Steps of the output of convolutions like wav2vec 2.0's for so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n_samples = (n_samples - kernel) // stride + 1
    return max(0, n_samples)


def goes_apart(config: PretrainedConfig) -> bool:
    """Tell whether clips go through the model one by one: a norm over a clip's length would count its padding."""
    return getattr(config, "feat_extract_norm", None) == "group"


def drop_no_layers(config: PretrainedConfig) -> None:
    """Turn layer drop off: a layer that one process drops and another keeps would leave them waiting for a gradient."""
    for name in ("layerdrop", "conformer_layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)


def read_clips(clips: Sequence[Samples], extractor: SequenceFeatureExtractor) -> Batch:
    """Clips of samples as the model's input, padded to the longest."""
    found = extractor(
        clips, sampling_rate=extractor.sampling_rate, padding=True, return_attention_mask=True, return_tensors="pt"
    )
    return {name: torch.as_tensor(values) for name, values in found.items()}
