"""The recipe: what to do, as a frozen tree read from one YAML file.

Pure data. Reading and checking a recipe imports neither torch nor any Hub library, so that
`tltasks check` answers at once. What a task adds to the shared keys is one row of `TASKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    model_validator,
)

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
HeldOut = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
"""Text that can name a file on any system."""
RepoName = Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$")]

FORMS = {
    r"^[\w-][\w.-]*$": "text of letters, digits, `_`, `-` and, but for the first, `.`",
    r"^([\w.-]+/)?[\w.-]+$": "text like `user/name`",
    r"\{document\}": "text with `{document}` in it",
}
"""The patterns above in words."""

BUILDERS = ("imagefolder", "audiofolder", "csv", "json", "parquet", "text")
"""Names of data sets that are read from local files by the datasets library."""


class Keys(BaseModel):
    """A mapping of a recipe: unknown keys are errors, values are not coerced, nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------------------------------------- model


class Model(Keys):
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


class Generation(Keys):
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


# ----------------------------------------------------------------------------------------------- data


class Splits(Keys):
    train: str | None = "train"
    """Split to train on, with slicing as in `train[:95%]`."""
    validation: str | HeldOut | None = None
    """Split that chooses the best weights; or a share held out of `train` (stratified by label, drawn with `seed`)."""
    test: str | HeldOut | None = "test"
    """Split of the headline; or a share held out of `train`."""


class Source(Keys):
    """Where examples come from."""

    name: Name | None = None
    """Hub id, local folder, or a builder of datasets: imagefolder, csv, json, parquet."""
    config: str | None = None
    """Configuration of the Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    dir: str | None = None
    """Folder for a builder, relative to the recipe; for a Hub id, folder of the repository."""
    files: str | list[str] | dict[str, str | list[str]] | None = None
    """Files for a builder (a glob, a list, or one of these for each split), relative to the recipe; for a Hub id, files
    of the repository."""


class ExtraTest(Source):
    """Another test set, e.g. of another domain. Keys that are not set are those of `data`."""

    split: str | None = None
    """Split to evaluate on. Unset: the only one, or else `data.splits.test`."""


class Data(Source):
    name: Name
    """Hub id, local folder, or a builder of datasets: imagefolder, csv, json, parquet."""
    splits: Splits = Splits()
    extra_test: dict[FileName, ExtraTest] = {}
    """Further test sets by name, scored beside `test`."""
    shots: PositiveInt | None = None
    """Few-shot: training examples, drawn with `seed` from what is not held out; of each class where rows have one."""
    max_bad_share: Share = 0.01
    """Share of a split's examples that may be unreadable; they are named, counted and left out. More is an error."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Loader processes per device. Unset: none on a CPU, up to 8 beside an accelerator."""

    def source_of(self, extra: ExtraTest) -> Source:
        """Where an extra test set comes from: what it does not say is said here."""
        own = {key: value for key in Source.model_fields if (value := getattr(extra, key)) is not None}
        elsewhere = {"dir", "files", "config", "revision"} if own.keys() & {"name", "dir", "files"} else set()
        return self.model_copy(update={**dict.fromkeys(elsewhere), **own})


class ImageColumns(Keys):
    image: str = "image"
    label: str = "label"


class ImageData(Data):
    columns: ImageColumns = ImageColumns()
    """Names of the data set's columns."""
    class_names: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of integer labels 0, 1, …, where the data set has none."""


class UnlabelledImageColumns(Keys):
    image: str = "image"
    label: str | None = None
    """Names of classes, which nothing is trained on: with them, features are judged by their nearest neighbours."""


class UnlabelledImageData(Data):
    columns: UnlabelledImageColumns = UnlabelledImageColumns()
    """Names of the data set's columns."""


class TextColumns(Keys):
    document: str = "document"
    summary: str = "summary"


class TextData(Data):
    columns: TextColumns = TextColumns()
    """Names of the data set's columns."""
    max_document_tokens: PositiveInt = 512
    """Tokens of a document with its prompt; what is longer is cut at the end, and the share of it is shown."""
    long_documents: Literal["truncate", "split"] = "truncate"
    """What becomes of longer documents outside training. truncate: they are cut, as in training. split: each piece is
    summarised and the summaries are joined, and summarised once more where they are too long together."""
    max_summary_tokens: PositiveInt = 64
    """Tokens of a summary, in training and as generated."""


class SpeechColumns(Keys):
    audio: str = "audio"
    text: str = "text"
    segments: str | None = None
    """Timestamps: a list of `{start, end, text}` in seconds, by which training cuts recordings that are longer than the
    model hears at once. Without it they are left out and counted."""


class SpeechData(Data):
    columns: SpeechColumns = SpeechColumns()
    """Names of the data set's columns."""
    normaliser: Literal["auto", "none", "basic", "unaccented", "english"] = "auto"
    """What is evened out before texts are compared. none: nothing. basic: case, punctuation and width. unaccented:
    also accents. english: Whisper's rules for English (numbers, contractions). auto: english, or else basic."""


# ---------------------------------------------------------------------------------------------- stage


class Lora(Keys):
    """Low-rank adaptation. Source: Hu et al., https://arxiv.org/abs/2106.09685."""

    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    """Scale of the update is alpha / rank. Unset: twice the rank."""
    dropout: Share = 0.0
    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Module name endings to adapt. `auto`: every linear layer of the backbone, or every convolution of a conv net."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank). Source: Kalajdzievski, https://arxiv.org/abs/2312.03732."""


class Ia3(Keys):
    """(IA)³: learned rescaling of activations. Source: Liu et al., https://arxiv.org/abs/2205.05638."""

    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"


class Full(Keys):
    """Every weight is trained, except those that `freeze` names."""


class Head(Keys):
    """Only the head is trained."""


class Peft(BaseModel):
    """Any other PEFT method; further keys go to its configuration class."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)
    type: str
    """PEFT's name of the method: LOHA, LOKR, OFT, BOFT, VERA, FOURIERFT, HRA, …"""


class Adapt(Keys):
    """What is trained: exactly one of the keys."""

    full: Full | None = None
    head: Head | None = None
    lora: Lora | None = None
    dora: Lora | None = None
    """Weight-decomposed LoRA. Source: Liu et al., https://arxiv.org/abs/2402.09353."""
    ia3: Ia3 | None = None
    peft: Peft | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            names = ", ".join(f"`{name}`" for name in type(self).model_fields)
            raise ValueError(f"takes exactly one of {names}")
        return self

    @property
    def method(self) -> str:
        """Name of the one key that is set."""
        return next(iter(self.model_fields_set))

    @property
    def is_peft(self) -> bool:
        return self.method not in {"full", "head"}


def _method_by_name(value: object) -> object:
    """`adapt: full` is `adapt: {full: {}}`; `adapt: {lora: null}` is `adapt: {lora: {}}`."""
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, dict):
        return {k: {} if v is None else v for k, v in value.items()}
    return value


AdaptMethod = Literal["full", "head", "lora", "dora", "ia3"]
StageName = Literal["finetune", "transfer", "pretrain", "probe", "zero_shot"]


class Stage(Keys):
    stage: StageName
    """finetune keeps the head; transfer puts a new head on the checkpoint; pretrain starts from random weights
    (or goes on from a checkpoint with `start: previous`); probe fits a new linear head on the features of the frozen
    checkpoint, computed once; zero_shot evaluates the untouched checkpoint."""
    name: FileName | None = None
    """Name in results and file names. Unset: the stage's, numbered where it repeats."""
    start: Literal["checkpoint", "previous"] = "checkpoint"
    """Weights to start from: the recipe's checkpoint, or what the stage before has trained."""
    adapt: Annotated[Adapt, BeforeValidator(_method_by_name, json_schema_input_type=AdaptMethod | Adapt)] = Adapt(
        full=Full()
    )
    freeze: list[str] = []
    """Module name patterns (shell wildcards) whose weights stay as they are, e.g. `vit.embeddings*`."""
    batch_norm: Literal["auto", "frozen", "batch"] = "auto"
    """Statistics of batch normalisation: kept, or updated by each micro-batch (which makes results depend on its
    size). auto: frozen from a checkpoint, batch from random weights."""
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    """Optimiser steps, instead of `epochs`."""
    batch_size: PositiveInt = 32
    """Examples per optimiser step, over all devices together."""
    micro_batch: Literal["auto"] | PositiveInt = "auto"
    """Examples per forward pass on a device: speed and memory, never results. auto: as many as fit."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile: pays on long runs on an accelerator."""
    learning_rate: PositiveFloat | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Share = 0.9
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled decay of matrices; biases and normalisation weights are not decayed."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises from zero."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate from each block to the one below it. Source: Clark et al.,
    https://arxiv.org/abs/2003.10555."""
    max_grad_norm: PositiveFloat | None = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights that is evaluated and saved."""
    evaluate_every: PositiveInt | None = None
    """Steps between evaluations on `validation`. Unset: once an epoch."""
    evaluate_rows: PositiveInt | None = None
    """Rows of `validation`, drawn with `seed`, that evaluations during training look at. Unset: all."""
    early_stopping: PositiveInt | None = None
    """Stop after this many evaluations without improvement."""
    keep: Literal["best", "last"] = "best"
    """Weights that the stage ends with: the best by the headline metric on `validation`, or the last."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints for `--resume`. Unset: at each evaluation."""
    keep_checkpoints: PositiveInt = 2
    l2: PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """probe: weight of the penalty on the head's squared weights, or several, of which `validation` chooses. Unset:
    powers of ten from 1e-6 to 1 where there is a validation split, otherwise 1e-3."""

    @property
    def trains(self) -> bool:
        """Whether anything is fitted to a training split."""
        return self.stage != "zero_shot"

    @property
    def loops(self) -> bool:
        """Whether the training loop runs."""
        return self.stage not in {"probe", "zero_shot"}

    @property
    def effective_keys(self) -> set[str]:
        """The keys that this stage heeds."""
        if not self.loops:
            return {"stage", "name", "start", "task", "model", "data", *({"l2"} if self.stage == "probe" else set())}
        return set(type(self).model_fields) - {"l2"} - ({"momentum"} if self.optimizer != "sgd" else set())

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        """Raise ValueError with all contradictions; a list that is given as context takes them instead."""
        found = []
        given = self.model_fields_set
        if not self.loops:
            extra = given - self.effective_keys
            why = "zero_shot trains nothing" if self.stage == "zero_shot" else "probe fits the head in one go"
            if extra:
                found.append(f"{why}, so these keys have no effect: {', '.join(sorted(extra))}")
        else:
            if "l2" in given:
                found.append("`l2` is a key of `stage: probe`; the loop has `weight_decay`")
            if self.epochs is None and self.steps is None:
                found.append("needs `epochs` or `steps`")
            if self.epochs is not None and self.steps is not None:
                found.append("has both `epochs` and `steps`; keep one")
            if self.learning_rate is None:
                found.append("needs `learning_rate` (a start: 5e-4 for lora, 5e-5 for full with adamw, 1e-3 with sgd)")
        if self.loops and "momentum" in given and self.optimizer != "sgd":
            found.append("`momentum` is a key of `optimizer: sgd`")
        if self.micro_batch != "auto" and self.micro_batch > self.batch_size:
            found.append(f"`micro_batch` {self.micro_batch} exceeds `batch_size` {self.batch_size}")
        if self.adapt.method != "full" and self.freeze:
            found.append(f"`freeze` has no effect with `adapt: {self.adapt.method}`, which trains nothing else")
        if self.stage == "pretrain" and self.start == "checkpoint" and self.adapt.method != "full":
            found.append(f"pretrain from random weights trains all of them; `adapt: {self.adapt.method}` would not")
        if isinstance(info.context, list):
            info.context.extend(found)
        elif found:
            raise ValueError("\n".join(found))
        return self


class RandAugment(Keys):
    """Source: Cubuk et al., https://arxiv.org/abs/1909.13719."""

    ops: PositiveInt = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class ImageChanges(Keys):
    """Training-time changes to images, each drawn from (seed, epoch, row)."""

    flip: bool = False
    """Mirror left and right with probability 1/2."""
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    """Random crop of at least this share of the area, resized back."""
    randaugment: RandAugment | None = None
    erase: Share = 0.0
    """Probability of erasing a rectangle. Source: Zhong et al., https://arxiv.org/abs/1708.04896."""


class ImageAugment(ImageChanges):
    """Training-time changes to images and their labels, each drawn from (seed, epoch, row)."""

    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of mixing two images and their labels. Source: Zhang et al., https://arxiv.org/abs/1710.09412."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of pasting a rectangle. Source: Yun et al., https://arxiv.org/abs/1905.04899."""


class ImageStage(Stage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: ImageModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: ImageData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    augment: ImageAugment = ImageAugment()
    label_smoothing: Share = 0.0
    """Source: Szegedy et al., https://arxiv.org/abs/1512.00567."""


class Masking(Keys):
    """What a masked image modelling objective hides and has predicted."""

    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the image that is hidden. Unset: 0.75 for MAE, 0.6 for SimMIM."""
    square_pixels: PositiveInt | None = None
    """SimMIM: side of the squares that are hidden as a whole. Unset: about a sixth of the image's side, as in the
    paper (32 of 192)."""
    normalised_pixels: bool = True
    """MAE: predict the pixels of each patch less their mean, over their standard deviation."""


class MaskedImageStage(Stage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: ImageModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: UnlabelledImageData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    augment: ImageChanges = ImageChanges()
    mask: Masking = Masking()


class TextStage(Stage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: TextModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: TextData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    label_smoothing: Share = 0.0
    """Source: Szegedy et al., https://arxiv.org/abs/1512.00567."""
    packing: bool = True
    """Decoder-only models: several examples in one row, blind to each other. Speed, never results."""


class SpecAugment(Keys):
    """Source: Park et al., https://arxiv.org/abs/1904.08779."""

    time_masks: Annotated[int, Field(ge=0)] = 2
    """Stretches of time that are silenced."""
    time_seconds: PositiveFloat = 0.5
    """Longest of them; together they take at most a fifth of a clip."""
    frequency_masks: Annotated[int, Field(ge=0)] = 2
    """Bands of frequency that are taken out."""
    frequency_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Widest of them, as a share of the bands."""


class SpeechAugment(Keys):
    """Training-time changes to audio, each drawn from (seed, epoch, row)."""

    spec_augment: SpecAugment | None = None
    speed: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Play up to this share faster or slower (pitch changes too). Source: Ko et al., Interspeech 2015."""
    gain_db: Annotated[float, Field(ge=0, le=40)] = 0.0
    """Make up to this many decibels louder or softer."""
    noise_db: Annotated[float, Field(ge=0, le=80)] | None = None
    """Add white noise at a signal-to-noise ratio drawn between this many decibels and 20 more."""


class SpeechStage(Stage):
    task: str | None = None
    """Task of this stage. Unset: the recipe's."""
    model: SpeechModel | None = None
    """Checkpoint of this stage, replacing the recipe's `model` as a whole."""
    data: SpeechData | None = None
    """Data of this stage, replacing the recipe's `data` as a whole."""
    augment: SpeechAugment = SpeechAugment()


# --------------------------------------------------------------------------------------------- recipe


class Hub(Keys):
    repo: RepoName | None = None
    """Repository to push to, `user/name`. `--push` needs it."""
    private: bool = True
    publish: Literal["adapter", "merged"] = "adapter"
    """For PEFT: the adapter alone, or merged into the checkpoint's weights. Full fine-tuning always publishes all."""
    licence: str | None = None
    """Licence of the published weights, a Hub identifier such as apache-2.0. Unset: the base model's, where known."""
    language: list[str] = []
    """Language codes for the card."""


class Recipe(Keys):
    """One experiment: stages in order, and what they share."""

    task: str
    """Hub pipeline tag of the task."""
    model: SerializeAsAny[Model] | None = None
    data: SerializeAsAny[Data] | None = None
    stages: Annotated[list[SerializeAsAny[Stage]], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    output: Name
    """Results folder, relative to the working directory."""
    hub: Hub = Hub()
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Where metrics go besides metrics.jsonl."""

    _folder: Path = PrivateAttr(default=Path())
    """Where local paths start: the folder of the recipe's file."""
    _locations: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    """`file:line:column` of each key that was written."""
    _typed_in: dict[tuple[str | int, ...], Path] = PrivateAttr(default_factory=dict)
    """For keys that were set on the command line, the working directory: where their local paths start."""


@dataclass(frozen=True)
class TaskKeys:
    """What a task adds to the shared keys."""

    model: type[Model]
    data: type[Data]
    stage: type[Stage]


TASKS: dict[str, TaskKeys] = {
    "image-classification": TaskKeys(ImageModel, ImageData, ImageStage),
    "masked-image-modeling": TaskKeys(ImageModel, UnlabelledImageData, MaskedImageStage),
    "summarization": TaskKeys(TextModel, TextData, TextStage),
    "automatic-speech-recognition": TaskKeys(SpeechModel, SpeechData, SpeechStage),
}
