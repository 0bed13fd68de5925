"""What a recipe says under `data`, for each task."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from tltasks.config.section import FileName, HeldOut, Name, PositiveInt, Section, Share

BUILDERS = ("imagefolder", "audiofolder", "csv", "json", "parquet", "text")
"""Names of data sets that are read from local files by the datasets library."""


class Splits(Section):
    train: str | None = "train"
    """Split to train on, with slicing as in `train[:95%]`."""
    validation: str | HeldOut | None = None
    """Split that chooses the best weights; or a share held out of `train` (stratified by label, drawn with `seed`)."""
    test: str | HeldOut | None = "test"
    """Split of the headline; or a share held out of `train`."""


class Source(Section):
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


ImageCorruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "gaussian_blur",
    "defocus_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg",
]


class Corruptions(Section):
    """The test set made worse, to see what the model bears."""

    rows: PositiveInt = 1000
    """Examples of the test set, drawn with `seed`, that are corrupted."""

    @property
    def chosen(self) -> list[tuple[str, float]]:
        """Each kind at each level, the mildest first."""
        raise NotImplementedError

    @property
    def level(self) -> str:
        """What the levels are."""
        raise NotImplementedError


class ImageCorruptions(Corruptions):
    """Source: Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261."""

    kinds: Annotated[list[ImageCorruption], Field(min_length=1)] = list(get_args(ImageCorruption))
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)] = [1, 2, 3, 4, 5]
    """As ImageNet-C has them; as CIFAR-10-C for pictures with a side below 64 pixels."""

    @property
    def chosen(self) -> list[tuple[str, float]]:
        return [(kind, level) for kind in self.kinds for level in sorted(self.severities)]

    @property
    def level(self) -> str:
        return "severity"


class SpeechCorruptions(Corruptions):
    kinds: Annotated[list[Literal["white_noise", "pink_noise"]], Field(min_length=1)] = ["white_noise", "pink_noise"]
    snr_db: Annotated[list[Annotated[float, Field(ge=-20, le=60)]], Field(min_length=1)] = [20.0, 10.0, 5.0, 0.0]
    """Ratios of signal to noise in dB, by mean power."""

    @property
    def chosen(self) -> list[tuple[str, float]]:
        return [(kind, level) for kind in self.kinds for level in sorted(self.snr_db, reverse=True)]

    @property
    def level(self) -> str:
        return "SNR in dB"


class TextCorruptions(Corruptions):
    """Source: Belinkov and Bisk, https://arxiv.org/abs/1711.02173."""

    kinds: Annotated[list[Literal["swap", "drop", "double", "key", "typos"]], Field(min_length=1)] = ["typos"]
    rates: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.02, 0.05, 0.1]
    """Shares of letters with a typo. typos: each of the four others in turn."""

    @property
    def chosen(self) -> list[tuple[str, float]]:
        return [(kind, level) for kind in self.kinds for level in sorted(self.rates)]

    @property
    def level(self) -> str:
        return "share of letters"


class ImageColumns(Section):
    image: str = "image"
    label: str = "label"


class ImageData(Data):
    columns: ImageColumns = ImageColumns()
    """Names of the data set's columns."""
    class_names: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of integer labels 0, 1, …, where the data set has none."""
    corruptions: ImageCorruptions | None = None
    """Noise, blur, contrast, JPEG …: how much worse the model is on test images of lower quality."""


class UnlabelledImageColumns(Section):
    image: str = "image"
    label: str | None = None
    """Names of classes, which nothing is trained on: with them, features are judged by their nearest neighbours."""


class UnlabelledImageData(Data):
    columns: UnlabelledImageColumns = UnlabelledImageColumns()
    """Names of the data set's columns."""


class UnlabelledTextColumns(Section):
    text: str = "text"
    label: str | None = None
    """Names of classes, which nothing is trained on: with them, features are judged by their nearest neighbours."""


class UnlabelledTextData(Data):
    columns: UnlabelledTextColumns = UnlabelledTextColumns()
    """Names of the data set's columns."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens that are read of a text, special ones included: of a longer one another stretch in each epoch, and its
    beginning at evaluation."""


class TextColumns(Section):
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
    corruptions: TextCorruptions | None = None
    """How much worse the model is on test documents with typos."""


class UnlabelledSpeechColumns(Section):
    audio: str = "audio"
    label: str | None = None
    """Names of classes (speakers, intents), which nothing is trained on: they judge features by their neighbours."""


class UnlabelledSpeechData(Data):
    columns: UnlabelledSpeechColumns = UnlabelledSpeechColumns()
    """Names of the data set's columns."""


class SpeechColumns(Section):
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
    corruptions: SpeechCorruptions | None = None
    """How much worse the model is on test clips with noise."""
