"""Models that hear, whatever they are trained for: opening, frames, and the contract of recognisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForRNNT,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTDT,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
)

from tltasks.config.answers import Asked
from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel, Timestamps
from tltasks.data.languages import Languages
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.loading import ModelLoader
from tltasks.models.packages import cannot_open
from tltasks.tasks.base import Batch, Processor
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks, mask_samples
from tltasks.tasks.speech.joining import Window
from tltasks.tasks.speech.words import Word
from tltasks.tasks.vocabulary import MOST_LOST, lost_share, n_characters

FRAMES_PER_SECOND = 100
"""Unit of `costs`: hundredths of a second."""
MASKS = ("attention_mask", "padding_mask")
INPUTS = ("input_features", "input_values", *MASKS)
"""Arguments of models that hear."""
TRIED_SECONDS = (1.31, 0.4)
"""Clips by which a model is tried."""
ALIKE = 1e-3
"""Share of the largest logit by which padding may change one: beyond rounding, and well below what a leak does."""
Family = Literal["sequence-to-sequence", "CTC", "transducer"]
AUTO_CLASSES: dict[Family, tuple[ModelLoader, ...]] = {
    "CTC": (AutoModelForCTC,),
    "transducer": (AutoModelForTDT, AutoModelForRNNT),
    "sequence-to-sequence": (AutoModelForSpeechSeq2Seq,),
}
"""transformers' lists of the models of a family."""
TOKENIZER_HINT = "`stage: transfer` builds a vocabulary from the training text, for CTC checkpoints."
LETTERS_SHOWN = 12


@dataclass(frozen=True)
class Transcript:
    """The text of one piece of audio."""

    text: str
    repetition_loop: bool = False
    """Decoding went round in circles and was stopped."""
    language: str | None = None
    """Its code: as the model was told, or as it heard; None of a model that is told none and says none."""
    words: Sequence[Word] = ()
    """Where they are asked for; times are from the beginning of the piece."""


@dataclass(frozen=True)
class Recogniser(ABC):
    """A family of models: how audio goes in, and how text goes in and comes out."""

    family: ClassVar[Family]
    cpu_batch_budget: ClassVar[int]
    """Sum of `costs` of one forward pass that keeps a CPU busy."""
    cpu_training_budget: ClassVar[int | None] = None
    """The same for training, where less will do: answers are written for all rows at once, a token at a time."""
    joint: ClassVar[str]
    """Text between those of two pieces of one clip."""

    config: PretrainedConfig
    feature_extractor: SequenceFeatureExtractor
    tokenizer: PreTrainedTokenizerBase
    display_name: str
    is_apart: bool = field(default=True, kw_only=True)
    """Clips go through the model one by one, as they must where their padding would change what is heard."""
    processor: ProcessorMixin | None = field(default=None, kw_only=True)
    """What puts feature extractor and tokenizer together, where the checkpoint has one."""
    languages: Languages = field(default=Languages(), kw_only=True)
    """Those that it can be told of each clip."""
    wanted: Asked = field(default=Asked(), kw_only=True)
    """What is asked of transcripts beside the text."""

    @property
    def auto_class(self) -> ModelLoader:
        return auto_class(self.config, self.family)

    @property
    def sampling_hz(self) -> int:
        return int(self.feature_extractor.sampling_rate)

    @property
    def multiple(self) -> int:
        """Samples of which a clip has to have a multiple."""
        return int(getattr(self.processor, "audio_kwargs", {}).get("pad_to_multiple_of", 1))

    @property
    @abstractmethod
    def window_seconds(self) -> float:
        """Longest audio of one forward pass."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Everything that labels depend on."""

    @property
    def skips_signs(self) -> bool:
        """Special tokens are left out of texts."""
        return True

    @property
    def code(self) -> str:
        """Python that makes the model's input of `samples`, where transformers' pipeline answers otherwise.

        That pads no clip to a multiple of samples, knows one name for what tells padding, and reads steps of CTC that
        are padding (transformers 5.24, pipelines/automatic_speech_recognition.py, `preprocess` and `_forward`).
        """
        if self.multiple == 1 and "padding_mask" not in self.feature_extractor.model_input_names:
            return ""
        padding = f"padding=True, pad_to_multiple_of={self.multiple}, " if self.multiple > 1 else ""
        return f'extract(samples, sampling_rate=rate, {padding}return_attention_mask=True, return_tensors="pt")'

    @property
    def texts(self) -> dict[str, str]:
        """Texts that `code` refers to by name."""
        return {}

    @property
    def reading(self) -> str:
        """Further arguments of `decode` that `code`'s answers are read with."""
        return ""

    @property
    def tells_words(self) -> bool:
        """It can tell when each word is said."""
        return False

    @property
    def takes_prompts(self) -> bool:
        """It goes on from text before a clip."""
        return False

    def prompt_ids(self, text: str | None) -> list[int]:
        """Tokens of what was said before a clip; RecipeError for a model that takes none, DataError for a text."""
        raise RecipeError(f"prompt, hotwords: {self.config.model_type} takes none; Whisper does.")

    def joins(self, keys: Timestamps) -> Window:
        """The windows that rows are joined into, with their times; raises RecipeError for a model that writes none."""
        raise RecipeError(f"timestamps: {self.config.model_type} writes no times; Whisper does.")

    def answering(self, asked: Asked) -> Self:
        """The same asked for so much; raises RecipeError for what the architecture does not serve."""
        if asked.words and not self.tells_words:
            raise RecipeError(
                f"words: {self.config.model_type} does not tell when words are said; Whisper and models with CTC do. "
                "`segments` of its answers have times."
            )
        if asked.prompt or asked.hotwords:
            self.prompt_ids(None)
        return replace(self, wanted=asked)

    def as_pretrained(self) -> Self:
        """As the checkpoint stands, without what the recipe changes in its architecture."""
        return self

    def prepare(self, model: PreTrainedModel) -> list[str]:
        """Change a loaded model as the recipe says; returns the weights that were cut or resampled."""
        return []

    def head(self, model: PreTrainedModel) -> list[str]:
        """Modules that depend on the vocabulary; none where it cannot be taken off."""
        return []

    def tried(self, model: PreTrainedModel) -> Self:
        """With several clips in a pass, where a model answers them as it answers each alone."""
        hz, random = self.sampling_hz, np.random.default_rng(0)
        clips = [random.normal(0, 0.1, int(seconds * hz)).astype(np.float32) for seconds in TRIED_SECONDS]
        together, trains = replace(self, is_apart=False), model.training
        read = [self.read([clip]) for clip in clips]
        if all(values.shape == read[1][name].shape for name, values in read[0].items()):  # nothing is filled up
            return together
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                both = together.logits(model, self.read(clips))
            except (RuntimeError, ValueError):  # some cannot take two
                both = torch.full((2, 1), float("nan"))
            *alone, again = (together.logits(model, batch)[0] for batch in (*read, read[-1]))
        model.train(trains)
        if (again - alone[-1]).abs().max() > ALIKE * again.abs().max():
            raise CheckpointError(
                f"model {self.display_name}: {type(model).__name__} answers the same clip otherwise each time (it "
                "draws noise as it hears), so that no score and no saved model could be trusted."
            )
        pairs = [(padded[: len(logits)], logits) for padded, logits in zip(both, alone, strict=True)]
        return together if all((a - b).abs().max() <= ALIKE * b.abs().max() for a, b in pairs) else self

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
        return read_clips(clips, self.feature_extractor, multiple=self.multiple)

    def told(self, names: Sequence[str | None]) -> Batch:
        """The part of a batch that tells the model the language of each piece, by its name in the data."""
        return {}

    def preceded(self, prompts: Sequence[str | None]) -> Batch:
        """The part of a batch with what was said before each piece: `before`, filled up at the left with IGNORED."""
        return {}

    @abstractmethod
    def targets(self, labels: Sequence[Sequence[int]], before: Tensor | None = None) -> Batch:
        """Parts of a batch that `loss` needs besides the input, which go on from what was said `before`."""

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
    for name, loaders in AUTO_CLASSES.items():
        if any(type(config) in loader._model_mapping for loader in loaders):  # with those that were registered
            return name
    raise CheckpointError(
        f"model {display_name}: {config.model_type} does not recognise speech. Name an encoder-decoder, as Whisper and "
        "Moonshine, or one with CTC, as wav2vec2 and Parakeet CTC."
    )


def auto_class(config: PretrainedConfig, name: Family) -> ModelLoader:
    """The class of transformers that loads a checkpoint of a family."""
    loaders = AUTO_CLASSES[name]
    return next((loader for loader in loaders if type(config) in loader._model_mapping), loaders[0])


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


def open_processor(source: Checkpoint) -> ProcessorMixin | None:
    """The checkpoint's processor, around its feature extractor and tokenizer, or None."""
    try:
        processor = AutoProcessor.from_pretrained(source.name, **source.arguments())
    except ImportError as error:
        hint = "A preprocessor_config.json must stand beside the weights."
        raise cannot_open("processor", source.display_name, error, hint) from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return processor if isinstance(processor, ProcessorMixin) else None


# ---------------------------------------------------------------------------------------------- frames


def output_frames(config: PretrainedConfig, n_samples: int) -> int:
    """Steps of the output of convolutions like wav2vec 2.0's for so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n_samples = (n_samples - kernel) // stride + 1
    return max(0, n_samples)


def goes_apart(config: PretrainedConfig) -> bool:
    """Tell whether clips go through the model one by one: a norm over a clip's length would count its padding."""
    return getattr(config, "feat_extract_norm", None) == "group"


def draw_nothing(config: PretrainedConfig) -> None:
    """Turn layer drop, the models' own SpecAugment and noise on what they hear off, also in configurations inside.

    A layer that one process drops and another keeps would leave them waiting for a gradient. SpecAugment is ours: the
    models' draws from numpy's global state (transformers 5.24, modeling_wav2vec2.py).
    """
    off = dict.fromkeys(("layerdrop", *(f"{part}_layerdrop" for part in ("conformer", "encoder", "decoder"))), 0.0)
    for part in with_parts(config):
        for name, value in {**off, "apply_spec_augment": False, "vae_std": 0.0}.items():
            if hasattr(part, name):
                setattr(part, name, value)


def with_parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """A configuration, and those inside it."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    return [config, *(found for part in inner if isinstance(part, PretrainedConfig) for found in with_parts(part))]


def read_clips(clips: Sequence[Samples], extractor: SequenceFeatureExtractor, *, multiple: int = 1) -> Batch:
    """Clips of samples as the model's input, each read alone and padded to the longest; `frames` of each are not."""
    asked = {"sampling_rate": extractor.sampling_rate, "return_attention_mask": True, "return_tensors": "pt"}
    asked |= {"pad_to_multiple_of": multiple} if multiple > 1 else {}
    found = [extractor([clip], padding=True, **asked) for clip in clips]
    batch = {name: _stacked([torch.as_tensor(each[name][0]) for each in found]) for name in found[0] if name in INPUTS}
    return {**batch, "frames": torch.tensor([mask_of(each).shape[-1] for each in found])}


def mask_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The mask that tells a clip from its padding, [clips, features or samples]."""
    return next(batch[name] for name in MASKS if name in batch)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Values that differ in the size of one axis, with zeros where they end."""
    whole = torch.stack([torch.tensor(value.shape) for value in values]).amax(0)
    ends = [[side for n in (whole - torch.tensor(value.shape)).flip(0) for side in (0, int(n))] for value in values]
    return torch.stack([nn.functional.pad(value, end) for value, end in zip(values, ends, strict=True)])


def inputs_of(batch: Batch) -> Batch:
    """Those parts of a batch that the model is called with."""
    return {name: values for name, values in batch.items() if name in INPUTS}


def each_alone(batch: Batch) -> Iterator[Batch]:
    """The model's input for each clip without its padding."""
    inputs = inputs_of(batch)
    whole = mask_of(inputs).shape[-1]
    for row, n in enumerate(batch["frames"].tolist()):
        own = {name: values[row : row + 1] for name, values in inputs.items()}
        yield {name: values.narrow(1 + values.shape[1:].index(whole), 0, n) for name, values in own.items()}
