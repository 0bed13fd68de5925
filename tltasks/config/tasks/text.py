"""Tasks of text, and what a recipe says of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tltasks.config.data import ClassData, Corruptions, Data, LabelColumns, LanguageColumns, UnlabelledColumns
from tltasks.config.model import Model
from tltasks.config.section import Name, PositiveInt, Prompt, Section, Share
from tltasks.config.stage import ClassStage, LengthStage, UnlabelledStage


class Generation(Section):
    """How summaries are generated; what is unset is as the checkpoint's own generation_config.json says."""

    num_beams: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Beams of the search; 1 takes the likeliest token at each step."""
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Exponent of the length that a beam's score is divided by: above 0 favours longer summaries."""
    early_stopping: bool | None = None
    """Stop when there are as many finished summaries as beams."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    """Tokens of the shortest run that may not come twice; 0 allows all."""
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    """Fewest tokens of an answer. Unset: as the checkpoint says."""


class TextModel(Model):
    prompt: Annotated[str, Field(pattern=r"\{document\}")] | None = None
    """What the document is put into, such as `summarize: {document}`. Unset: as the checkpoint was trained."""
    language: str | None = None
    """Language of documents and summaries, for checkpoints with language tokens (mBART: `en_XX`, M2M-100: `en`)."""
    generation: Generation = Generation()


class TextCorruptions(Corruptions):
    """Source: Belinkov and Bisk, https://arxiv.org/abs/1711.02173."""

    kinds: Annotated[list[Literal["swap", "drop", "double", "key", "typos"]], Field(min_length=1)] = ["typos"]
    """Mistakes that are made in words: neighbouring letters swapped, letters dropped, doubled or hit beside;
    typos: one of these."""
    rates: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.02, 0.05, 0.1]
    """Shares of letters with a typo. typos: each of the four others in turn."""
    level: ClassVar[str] = "share of letters"

    @property
    def levels(self) -> list[float]:
        return sorted(self.rates)


class TextColumns(LanguageColumns):
    document: str = "document"
    """Column of texts to summarise."""
    summary: str = "summary"
    """Column of their summaries."""


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


class LabelledTextModel(Model):
    hypothesis: Prompt = "This text is about {}."
    """`stage: zero_shot` with a checkpoint that tells whether a hypothesis follows from a text (NLI): the hypothesis
    that a class makes, with its words for `{}`."""
    prompt: Annotated[str, Field(pattern=r"\{text\}")] = "{text}\nThis text is about"
    """`stage: zero_shot` with a decoder (GPT-2, Llama): what the words of the classes are to go on from."""
    label_words: dict[str, Name] = {}
    """Words that stand for classes in both; unset: the name of the class."""


class LabelledTextColumns(LanguageColumns):
    text: str = "text"
    """Column of texts."""
    label: LabelColumns = "label"
    """Classes; or a column of 0 and 1 for each class, `[cat, dog]`, where rows may have several."""


class LabelledTextData(ClassData):
    columns: LabelledTextColumns = LabelledTextColumns()
    """Names of the data set's columns."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens that are read of a text, special ones included; what is longer is cut, and the share of it is shown."""
    corruptions: TextCorruptions | None = None
    """How much worse the model is on test texts with typos."""


class LabelledTextStage(LengthStage, ClassStage):
    """A stage of text classification."""

    model: LabelledTextModel | None = None
    data: LabelledTextData | None = None


class UnlabelledTextColumns(UnlabelledColumns):
    text: str = "text"
    """Column of texts."""


class UnlabelledTextData(Data):
    columns: UnlabelledTextColumns = UnlabelledTextColumns()
    """Names of the data set's columns."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens that are read of a text, special ones included: of a longer one another stretch in each epoch, and its
    beginning at evaluation."""


class TextStage(LengthStage):
    model: TextModel | None = None
    data: TextData | None = None
    label_smoothing: Share = 0.0
    """Share of each target that is spread evenly over all tokens."""
    metric: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] | None = None
    """Metric that decides which weights are best, and that reports, cards and experiments compare by. Unset:
    rouge1."""
    """Source: Szegedy et al., https://arxiv.org/abs/1512.00567."""
    packing: bool = True
    """Decoder-only models: several examples in one row, blind to each other. Speed, never results."""


class TextObjectiveStage(LengthStage, UnlabelledStage):
    """Keys of all objectives of texts."""

    model: TextModel | None = None
    data: UnlabelledTextData | None = None


class DenoisingStage(TextObjectiveStage):
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the tokens that is hidden. Unset: 0.15 for span corruption (T5), 0.3 for infilling (BART)."""
    span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean tokens of a hidden stretch."""


class MaskedLanguageStage(TextObjectiveStage):
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that is predicted: eight of ten of them hidden, one another token, one as it was."""


class CausalLanguageStage(TextObjectiveStage):
    packing: bool = True
    """Several texts in one row, blind to each other. Speed, never results."""
