"""Tasks of speech, and what a recipe says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tltasks.config.data import Corruptions, Data, LanguageColumns, UnlabelledColumns
from tltasks.config.model import As, Model
from tltasks.config.section import Conflict, PositiveFloat, PositiveInt, Section
from tltasks.config.stage import JointStage, LengthStage


class SpeechModel(Model):
    language: str | None = None
    """Language of the text: a code (`es`) or an English name (`spanish`); SeamlessM4T and MMS have codes of their own.
    A multilingual checkpoint needs it for training; without it, it detects the language of each clip. English-only
    and CTC checkpoints, but for MMS, take none."""
    speech_task: Literal["transcribe", "translate"] | None = None
    """What a multilingual checkpoint is asked for. Unset: transcribe."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """What a language model that hears is asked beside the sound (Granite Speech, VibeVoice-ASR, Qwen3-ASR): what to
    do, or words to expect, as its authors have it. Unset: its processor's own request."""
    audio_window: Literal["fit"] | PositiveInt | None = None
    """Seconds of audio that Whisper's encoder takes at once: `fit` is the data's longest clip, in whole seconds. A
    shorter window is faster in proportion, and must be trained. Unset: the checkpoint's own (30)."""
    beams: PositiveInt = 1
    """Hypotheses kept in decoding, at evaluation and in the saved generation config."""
    as_: Annotated[As | None, Field(alias="as")] = None
    """Use a language checkpoint's transformer blocks for speech, with a new input layer and a head for CTC.
    frozen-transformer: the blocks stay as they are, but for normalisation layers and positions (Lu et al.,
    https://arxiv.org/abs/2103.05247). transformer: every weight is trained."""
    frame_ms: Annotated[int, Field(ge=20, le=200, multiple_of=20)] | None = None
    """With `as`: milliseconds of sound in the place of a word, a multiple of 20. Unset: 40."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.as_ is None and self.frame_ms is not None:
            yield Conflict("`frame_ms` is a key of language models under `as`; other checkpoints have their own")


class SpeechCorruptions(Corruptions):
    kinds: Annotated[list[Literal["white_noise", "pink_noise"]], Field(min_length=1)] = ["white_noise", "pink_noise"]
    """Noises that are added."""
    snr_db: Annotated[list[Annotated[float, Field(ge=-20, le=60)]], Field(min_length=1)] = [20.0, 10.0, 5.0, 0.0]
    """Ratios of signal to noise in dB, by mean power."""
    level: ClassVar[str] = "SNR in dB"

    @property
    def levels(self) -> list[float]:
        return sorted(self.snr_db, reverse=True)


class SpeechColumns(LanguageColumns):
    audio: str = "audio"
    """Column of recordings, or of their paths."""
    text: str = "text"
    """Column of what is said."""
    prompt: str | None = None
    """Column of the text before each recording, or of names to expect: Whisper goes on from it, in training (no loss is
    over it) and in scores. Of long ones the last 223 tokens are read."""
    segments: str | None = None
    """Timestamps: a list of `{start, end, text}` in seconds, by which training cuts recordings that are longer than the
    model hears at once. Without it they are left out and counted."""


class SpeechData(Data):
    columns: SpeechColumns = SpeechColumns()
    """Names of the data set's columns."""
    normaliser: Literal["auto", "none", "basic", "unaccented", "english"] = "auto"
    """What is evened out before texts are compared. none: nothing. basic: case, punctuation and width. unaccented:
    also accents. english: Whisper's rules for English (numbers, contractions). auto: english, or else basic."""
    corruptions: SpeechCorruptions | None = None
    """How much worse the model is on test clips with noise."""


class UnlabelledSpeechColumns(UnlabelledColumns):
    audio: str = "audio"
    """Column of recordings, or of their paths."""


class UnlabelledSpeechData(Data):
    columns: UnlabelledSpeechColumns = UnlabelledSpeechColumns()
    """Names of the data set's columns."""


class SpecAugment(Section):
    """Source: Park et al., https://arxiv.org/abs/1904.08779."""

    time_masks: Annotated[int, Field(ge=0)] = 2
    """Stretches of time that are silenced."""
    time_seconds: PositiveFloat = 0.5
    """Longest of them; together they take at most a fifth of a clip."""
    frequency_masks: Annotated[int, Field(ge=0)] = 2
    """Bands of frequency that are taken out."""
    frequency_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Widest of them, as a share of the bands."""


class SpeechAugment(Section):
    """Training-time changes to audio, each drawn from (seed, epoch, row)."""

    spec_augment: SpecAugment | None = None
    speed: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Play up to this share faster or slower (pitch changes too). Source: Ko et al., Interspeech 2015."""
    gain_db: Annotated[float, Field(ge=0, le=40)] = 0.0
    """Make up to this many decibels louder or softer."""
    noise_db: Annotated[float, Field(ge=0, le=80)] | None = None
    """Add white noise at a signal-to-noise ratio drawn between this many decibels and 20 more."""


class Timestamps(Section):
    """Rows joined into windows as long as Whisper hears at once, with pauses between them, anew each epoch, and their
    times written as its tokens: so it keeps what it transcribes long recordings by. `batch_size` counts windows.
    Source: Radford et al., https://arxiv.org/abs/2212.04356."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the windows, whose texts have times; those of the others have none, as answers without times."""
    pause_seconds: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Longest pause between two rows."""


class SpeechStage(LengthStage):
    model: SpeechModel | None = None
    data: SpeechData | None = None
    metric: Literal["wer", "cer"] | None = None
    """Metric that decides which weights are best, and that reports, cards and experiments compare by. Unset: wer, or
    cer of scripts without spaces."""
    augment: SpeechAugment = SpeechAugment()
    timestamps: Timestamps | None = None

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.timestamps is not None and self.augment.speed:
            yield Conflict("`augment.speed` moves what is said, and `timestamps` are of when; keep one")


class SpeechMasking(Section):
    """Which frames of a clip (20 ms each in the usual checkpoints) are hidden."""

    mask_time_prob: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Share of the frames that would be hidden if stretches did not overlap, as in transformers: about half are."""
    mask_time_length: Annotated[int, Field(ge=2)] = 10
    """Frames of a stretch."""


class GumbelTemperature(Section):
    """At which codes are drawn while training: `start` × `decay` to the power of the step, `end` at least."""

    start: PositiveFloat = 2.0
    """Temperature at the first step."""
    end: PositiveFloat = 0.5
    """The paper's for its smaller model; 0.1 for the larger."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.999995
    """Factor on the temperature from each step to the next."""


class SpeechObjectiveStage(JointStage):
    """Keys of wav2vec 2.0's objective, which are the paper's where they are unset; `loss_group` is the clips among
    which the diversity of codes is measured. Source: Baevski et al., https://arxiv.org/abs/2006.11477."""

    model: SpeechModel | None = None
    data: UnlabelledSpeechData | None = None
    mask: SpeechMasking = SpeechMasking()
    negatives: PositiveInt = 100
    """Other hidden frames of the same clip among which each has to be told."""
    temperature: PositiveFloat = 0.1
    """What similarities are divided by."""
    gumbel: GumbelTemperature = GumbelTemperature()
    diversity_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the loss that has all codes used alike."""
    crop_seconds: PositiveFloat = 15.625
    """Longer clips are cropped to this: at random while training, their beginning at evaluation."""
