"""Registry of tasks: one row for each, beside the sections of a recipe that are its own.

A new task is a row here, its sections in one of these files, an adapter in `tltasks/tasks/`, and a card template in
`hub_cards/`; nothing else in the package names it. A row imports its sections when they are asked for: their classes
take a tenth of a second to build, and a recipe has use for one task's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tltasks.config.data import Data
    from tltasks.config.model import Model
    from tltasks.config.stage import Stage


@dataclass(frozen=True)
class Input:
    """Kind of input that a visitor of the demo, or a folder of data, gives to a task."""

    kind: Literal["image", "audio", "text"]
    label: str
    """What the demo calls its field."""
    placeholder: str = ""


IMAGE = Input("image", "Image")
AUDIO = Input("audio", "Recording")
TEXT = Input("text", "Text", placeholder="Paste a text")


@dataclass(frozen=True)
class TaskSpec:
    """A task's row: the code that does it, what a recipe says of it, and what the commands ask of it."""

    tag: str
    """Hub pipeline tag; or the name of an objective that needs no labels."""
    summary: str
    """One line for people."""
    adapter: str
    """`module:Class` of its adapter, imported when a recipe names the task."""
    sections: tuple[str, str, str, str]
    """File beside this one, and its classes of `model`, `data` and a stage."""
    input: Input
    annotation: Literal["classes", "text"] | None = None
    """What inputs in a folder come with when `push-data` publishes them for this task."""
    auto_mappings: tuple[str, ...] = ()
    """transformers' lists of the classes that serve it, in its modeling_auto.py."""
    own_models: frozenset[str] = frozenset()
    """This package's classes that serve it."""
    usual_model: str = ""
    """A checkpoint that a laptop can adapt, for data that come without one."""
    usual_learning_rate: float = 1e-3
    """Of LoRA and other adapters on it."""
    baseline_names: Mapping[str, str] = field(default_factory=dict)
    """Names in a sentence of its own baselines, where theirs in result.json do not say what they are."""

    @property
    def card_template(self) -> str:
        """File in hub_cards/ that its model cards are made from."""
        return f"{self.tag}.md.jinja"

    def usual_rate(self, method: str) -> float:
        """A learning rate for a method of adapting, with AdamW; a start, and no measurement."""
        return self.usual_learning_rate / 20 if method == "full" else self.usual_learning_rate

    @property
    def is_self_supervised(self) -> bool:
        """True for an objective, which trains an encoder for other tasks and gives no answers itself."""
        return not self.auto_mappings

    @cached_property
    def model(self) -> type[Model]:
        """Class of the recipe's `model`."""
        found: type[Model] = self._section(1)
        return found

    @cached_property
    def data(self) -> type[Data]:
        """Class of the recipe's `data`."""
        found: type[Data] = self._section(2)
        return found

    @cached_property
    def stage(self) -> type[Stage]:
        """Class of its stages."""
        found: type[Stage] = self._section(3)
        return found

    def _section(self, place: int) -> Any:
        return getattr(import_module(f"{__name__}.{self.sections[0]}"), self.sections[place])


_ROWS = (
    TaskSpec(
        tag="image-classification",
        summary="the class of a picture",
        adapter="tltasks.tasks.image.classification:ImageClassification",
        sections=("image", "ImageModel", "ImageData", "ImageStage"),
        input=IMAGE,
        annotation="classes",
        usual_model="google/vit-base-patch16-224-in21k",
        auto_mappings=(
            "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
            "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        ),
        own_models=frozenset({"FrozenTransformerForImageClassification"}),
    ),
    TaskSpec(
        tag="masked-image-modeling",
        summary="an encoder from pictures without labels, which fills in what is hidden of them (MAE, SimMIM)",
        adapter="tltasks.tasks.image.masked_modeling:MaskedImageModeling",
        sections=("image", "ImageModel", "UnlabelledImageData", "MaskedImageStage"),
        input=IMAGE,
    ),
    TaskSpec(
        tag="contrastive-image",
        summary="an encoder from pictures without labels, which tells two views of one from those of others (SimCLR)",
        adapter="tltasks.tasks.image.contrastive:ContrastiveImage",
        sections=("image", "ImageModel", "UnlabelledImageData", "ContrastiveStage"),
        input=IMAGE,
    ),
    TaskSpec(
        tag="automatic-speech-recognition",
        summary="the text of a recording",
        adapter="tltasks.tasks.speech.asr:SpeechRecognition",
        sections=("speech", "SpeechModel", "SpeechData", "SpeechStage"),
        input=AUDIO,
        annotation="text",
        usual_model="openai/whisper-base",
        auto_mappings=(
            "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
            "MODEL_FOR_CTC_MAPPING_NAMES",
            "MODEL_FOR_TDT_MAPPING_NAMES",
            "MODEL_FOR_RNNT_MAPPING_NAMES",
        ),
    ),
    TaskSpec(
        tag="speech-pretraining",
        summary="an encoder from recordings without texts, which tells hidden frames from others (wav2vec 2.0)",
        adapter="tltasks.tasks.speech.pretraining:SpeechPretraining",
        sections=("speech", "SpeechModel", "UnlabelledSpeechData", "SpeechObjectiveStage"),
        input=AUDIO,
    ),
    TaskSpec(
        tag="summarization",
        summary="a summary of a text",
        adapter="tltasks.tasks.text.summarization:Summarization",
        sections=("text", "TextModel", "TextData", "TextStage"),
        input=TEXT,
        usual_model="google-t5/t5-small",
        usual_learning_rate=2e-3,
        auto_mappings=("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    ),
    TaskSpec(
        tag="text-classification",
        summary="one of several classes for a text",
        adapter="tltasks.tasks.text.classification:TextClassification",
        sections=("text", "LabelledTextModel", "LabelledTextData", "LabelledTextStage"),
        input=TEXT,
        usual_model="microsoft/MiniLM-L12-H384-uncased",
        auto_mappings=("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",),
        baseline_names={"tfidf": "logistic regression on the words of the training texts (TF-IDF of words and pairs)"},
    ),
    TaskSpec(
        tag="text-denoising",
        summary="an encoder-decoder from texts alone, which restores hidden stretches (T5, BART)",
        adapter="tltasks.tasks.text.pretraining:TextDenoising",
        sections=("text", "TextModel", "UnlabelledTextData", "DenoisingStage"),
        input=TEXT,
    ),
    TaskSpec(
        tag="masked-language-modeling",
        summary="an encoder from texts alone, which predicts hidden tokens (BERT)",
        adapter="tltasks.tasks.text.pretraining:MaskedLanguageModeling",
        sections=("text", "TextModel", "UnlabelledTextData", "MaskedLanguageStage"),
        input=TEXT,
    ),
    TaskSpec(
        tag="causal-language-modeling",
        summary="a decoder from texts alone, which predicts the next token (GPT)",
        adapter="tltasks.tasks.text.pretraining:CausalLanguageModeling",
        sections=("text", "TextModel", "UnlabelledTextData", "CausalLanguageStage"),
        input=TEXT,
    ),
)
TASKS: dict[str, TaskSpec] = {spec.tag: spec for spec in _ROWS}
"""By tag."""


def supervised_tasks() -> list[str]:
    """Tags of the tasks that answer, as against objectives that train an encoder for them."""
    return [tag for tag, spec in TASKS.items() if not spec.is_self_supervised]


def task_of_folder(kind: str, annotations: set[str]) -> str | None:
    """The task that inputs of a kind (`image`, `audio`) with these annotations (`classes`, `text`) are data for.

    >>> task_of_folder("image", {"classes"}), task_of_folder("audio", set())
    ('image-classification', None)
    """
    return next((t for t, spec in TASKS.items() if spec.input.kind == kind and spec.annotation in annotations), None)
