"""What a recipe says under `model`, for each task."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tltasks.config.section import FileName, Name, PositiveInt, Prompt, Section

FROZEN_TRANSFORMER = "frozen-transformer"
As = Literal["frozen-transformer", "transformer"]
"""How a language checkpoint's transformer blocks are used for other input: as they are, or trained."""


class Model(Section):
    name: Name
    """Hub id (`google/vit-base-patch16-224-in21k`) or local folder (`./weights/vit`, relative to the recipe)."""
    revision: str = "main"
    """Branch, tag or commit of the Hub repository."""
    trust_remote_code: bool = False
    """Run Python code that the repository ships. Off: a checkpoint is weights, not a program."""


class ImageModel(Model):
    image_size: PositiveInt | None = None
    """Side of the square input in pixels; position embeddings are interpolated. Unset: the checkpoint's own."""
    config: dict[FileName, bool | int | float | str | list[int]] = {}
    """Keys of the checkpoint's config.json to change, such as `{num_hidden_layers: 6}`: another architecture, from
    random weights. A stage with `start: previous` has that of the stage before."""
    prompts: Annotated[list[Prompt], Field(min_length=1)] | None = None
    """Models of images and texts, as CLIP: what the name of a class is put into, several being averaged. Unset:
    `a photo of a {}.`"""
    as_: Annotated[As | None, Field(alias="as")] = None
    """Use a language checkpoint's transformer blocks for images, with a new input layer and head. frozen-transformer:
    the blocks stay as they are, but for normalisation layers and positions (Lu et al.,
    https://arxiv.org/abs/2103.05247). transformer: every weight is trained."""
    patch_size: PositiveInt | None = None
    """With `as`: side in pixels of the squares that the image is cut into."""

    @model_validator(mode="after")
    def _has_patches(self) -> Self:
        if self.as_ is None:
            if self.patch_size is not None:
                raise ValueError(
                    "`patch_size` is a key of language models under `as`; other checkpoints have their own"
                )
        elif self.image_size is None or self.patch_size is None:
            raise ValueError("`as` needs `image_size` and `patch_size`: a language checkpoint has none")
        elif self.image_size % self.patch_size:
            raise ValueError(f"`patch_size` {self.patch_size} does not divide `image_size` {self.image_size}")
        return self


class Generation(Section):
    """How summaries are generated; what is unset is as the checkpoint's own generation_config.json says."""

    num_beams: PositiveInt | None = None
    """Beams of the search; 1 takes the likeliest token at each step."""
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Exponent of the length that a beam's score is divided by: above 0 favours longer summaries."""
    early_stopping: bool | None = None
    """Stop when there are as many finished summaries as beams."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    """Tokens of the shortest run that may not come twice; 0 allows all."""
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None


class TextModel(Model):
    prompt: Annotated[str, Field(pattern=r"\{document\}")] | None = None
    """What the document is put into, such as `summarize: {document}`. Unset: as the checkpoint was trained."""
    language: str | None = None
    """Language token of checkpoints that have them (mBART: `en_XX`), for documents and summaries."""
    generation: Generation = Generation()


class SpeechModel(Model):
    language: str | None = None
    """Language of the text: a code (`es`) or an English name (`spanish`). A multilingual checkpoint needs it for
    training; without it, it detects the language of each clip. English-only and CTC checkpoints take none."""
    speech_task: Literal["transcribe", "translate"] | None = None
    """What a multilingual checkpoint is asked for. Unset: transcribe."""
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

    @model_validator(mode="after")
    def _has_frames(self) -> Self:
        if self.as_ is None and self.frame_ms is not None:
            raise ValueError("`frame_ms` is a key of language models under `as`; other checkpoints have their own")
        return self
