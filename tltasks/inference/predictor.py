"""A trained model that answers: one input, a list of them, or a stream, a few at a time.

The command line, the demo and Python programs all predict through it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase, RawIOBase
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypedDict, TypeVar, cast, overload

import datasets
import numpy as np
import torch
import transformers
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tltasks.config.answers import Asked
from tltasks.config.tasks import TASKS
from tltasks.data.splits import LANGUAGE, PROMPT, Columns, Split
from tltasks.errors import DataError, RecipeError
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference.arguments import is_url
from tltasks.inference.inputs import Item
from tltasks.runtime import devices
from tltasks.runtime.precision import choose_precision
from tltasks.tasks.base import Prediction, TaskBase
from tltasks.training.evaluation import predict_rows

TOP_K = 5
CHUNK_ROWS = 64
"""Inputs that are read and predicted together: enough to put those of like length into one pass."""
CHUNK_BYTES = 2**25
"""Size of their files; sound and pictures are several times as large when they are decoded."""

Input: TypeAlias = (
    "str | PathLike[str] | BinaryIO | Image.Image | NDArray[Any] | tuple[NDArray[Any], int] | Mapping[str, object]"
)
"""A path, or the text itself where the task is of texts; a PIL image or an array [height, width(, channels)]; sound as
`(samples, sampling_hz)` or `{"array", "sampling_rate"}`; an open file, or its content as `{"bytes"}`; or a row of a
data set, whose `language` or `prompt`, under these names or those of the run's columns, models that take them are told.
"""


class LabelScore(TypedDict):
    """A class and its probability."""

    label: str
    probability: float


class Segment(TypedDict):
    """Words between two times, in seconds."""

    start: float
    end: float
    text: str


class SpokenWord(Segment):
    """A word of a transcript; its confidence is the probability that it is right."""

    confidence: float


class Output(TypedDict, total=False):
    """One answer; it has the keys of its task, or `error` alone."""

    prediction: str | float | list[str] | None
    """The class, or all that are likely enough, the likeliest first; the transcript or the summary; of an objective its
    loss; None where it is `abstained`."""
    probability: float | list[float]
    """Probability of the class, or of each."""
    abstained: bool
    """True where the class is not likely enough for a prediction; there only where that was asked for."""
    top: list[LabelScore]
    """The likeliest classes, the likeliest first."""
    segments: list[Segment]
    """Stretches of a transcript, as the model heard them."""
    words: list[SpokenWord]
    """Words of a transcript, where they were asked for."""
    language: str | None
    """Code of a transcript's language, as the model was told or heard it; None of one that is told none."""
    repetition_loop: bool
    """True if decoding went round in circles, so that a transcript is not to be trusted."""
    error: str
    """Reason for there being no answer."""


AnyInput = TypeVar("AnyInput", bound=Input)


def load(
    name: str | PathLike[str],
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    task: str | None = None,
    precision: str | None = None,
    language: str | None = None,
    words: bool = False,
    prompt: str | None = None,
    hotwords: str | None = None,
    vad: bool = True,
) -> Predictor:
    """Load a run's results folder, a folder with a model, or a model of the Hub, to predict with it.

    `task` is the Hub pipeline tag, where the model does not tell it; `precision` is that of the training unless it is
    named; `language` that of all inputs, for models that are told one. Of speech, `words` gives each word its times and
    confidence, and with `vad` only speech is answered; Whisper goes on from a `prompt`, the text before, and expects
    `hotwords`. Raises a TltasksError.

        classify = load("results/cats")
        classify("photo.jpg")["prediction"]
    """
    with _quiet():
        saved = load_saved_model(
            str(name),
            tag=task,
            revision=revision,
            trust_remote_code=trust_remote_code,
            language=language,
            asked=Asked(words, prompt, hotwords, vad),
        )
        return Predictor.load(saved, devices.init_distributed().device, precision=precision)


@dataclass(frozen=True, repr=False)
class Predictor:
    """A model on its device. Values are returned, and nothing is printed.

    One input gives one Output, or raises DataError where it cannot be read. A list gives a list, and any other iterable
    an iterator that reads ahead by a chunk at most; in these an input that cannot be read has an Output with `error`
    alone, so that one bad file among thousands loses no others.

        predictor("photo.jpg")
        predictor(["a.wav", (samples, 16_000)])
        for output in predictor(Path("photos").glob("*.jpg")): ...
    """

    saved: SavedModel
    model: nn.Module
    device: torch.device
    precision: str

    @classmethod
    def load(cls, saved: SavedModel, device: torch.device, *, precision: str | None = None) -> Predictor:
        """Load the weights, in the number format of the training unless another is named."""
        if saved.export is not None:
            if precision is not None:
                raise RecipeError(
                    f"precision {precision}: {saved.export.folder} computes as it was exported; leave it."
                )
            device = torch.device("cpu")
        precision = choose_precision(precision or saved.precision(device), device)
        saved, model = saved.build(device=device, precision=precision)
        return cls(saved, model, device, precision)

    @property
    def task(self) -> TaskBase:
        return self.saved.task

    def __repr__(self) -> str:
        return f"Predictor({self.task.tag}, {self.device.type}, {self.precision})"

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: list[AnyInput], *, top_k: int = TOP_K, abstain_below: float | None = None
    ) -> list[Output]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: Input, *, top_k: int = TOP_K, abstain_below: float | None = None
    ) -> Output: ...
    @overload
    def __call__(
        self, inputs: Iterable[Input], *, top_k: int = TOP_K, abstain_below: float | None = None
    ) -> Iterator[Output]: ...
    def __call__(
        self, inputs: Input | Iterable[Input], *, top_k: int = TOP_K, abstain_below: float | None = None
    ) -> Output | list[Output] | Iterator[Output]:
        """Predict one input, a list, or a stream; classes come with the `top_k` likeliest.

        A class less probable than `abstain_below` is no prediction.
        """
        if top_k < 1:
            raise RecipeError(f"top_k {top_k}: name at least one class.")
        check_abstention(self.task, abstain_below)
        if not isinstance(inputs, Iterable) or isinstance(
            inputs,
            (str, bytes, PathLike, Image.Image, np.ndarray, torch.Tensor, tuple, Mapping, RawIOBase, BufferedIOBase),
        ):
            item = self._item(inputs)
            output = self.predict_one(item, top_k=top_k, abstain_below=abstain_below)
            if "error" in output:
                raise DataError(f"{item.name or self.task.input_kind.column}: {output['error']}")
            return output
        items = map(self._item, inputs)
        chunks = self.stream(items, top_k=top_k, abstain_below=abstain_below)
        outputs = (output for chunk in chunks for _, output in chunk)
        return list(outputs) if isinstance(inputs, Sequence) else outputs

    def fault(self, item: Item) -> str | None:
        """Why an input cannot be read; None if it can."""
        _, encoded = _Encoding(self.task)[[item]]
        reason: str | None = encoded["error"][0]
        return reason

    def predict_one(self, item: Item, *, top_k: int, abstain_below: float | None = None) -> Output:
        """Predict in this process alone."""
        (((_, output),),) = self.stream([item], top_k=top_k, abstain_below=abstain_below, workers=0)
        return output

    def stream(
        self, items: Iterable[Item], *, top_k: int, abstain_below: float | None = None, workers: int | None = None
    ) -> Iterator[list[tuple[Item, Output]]]:
        """Predict in order, a chunk at a time."""
        chunks = _chunks(items, devices.pass_budget(self.device, CHUNK_ROWS))
        workers = devices.loader_workers(self.device, 1, workers)
        # The sampler runs here and hands each chunk to a worker: standard input has one reader, and order is kept.
        loader: DataLoader[_Encoded] = DataLoader(
            _Encoding(self.task),
            sampler=chunks,
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,  # type: ignore[arg-type]
        )
        for chunk, encoded in loader:
            outputs: list[Output] = [{"error": reason} for reason in encoded["error"]]
            good = [i for i, reason in enumerate(encoded["error"]) if reason is None]
            for i, output in zip(good, self._predict(encoded, good, top_k=top_k), strict=True):
                outputs[i] = output if abstain_below is None else _abstaining(output, abstain_below)
            yield list(zip(chunk, outputs, strict=True))

    def _predict(self, encoded: Columns, good: list[int], *, top_k: int) -> list[Output]:
        """Outputs of the encoded rows that are good."""
        if not good:
            return []
        task = self.task
        features = dict(task.features)
        features |= {name: datasets.Value("string") for name in (LANGUAGE, PROMPT) if name in encoded}
        columns = {name: [encoded[name][i] for i in good] for name in features}
        # Objectives hide parts of a row by its number: with one for all, no answer depends on the others.
        columns["row"] = [0] * len(good)
        features["row"] = datasets.Value("int64")
        predictions = self.predict_rows(datasets.Dataset.from_dict(columns, features=datasets.Features(features)))
        return [cast("Output", task.to_output(prediction, top_k=top_k)) for prediction in predictions]

    def predict_rows(self, rows: datasets.Dataset) -> list[Prediction]:
        """Predictions for encoded rows, in order."""
        with _quiet():
            return predict_rows(_OneProcess(self.device, self.precision), self.task, self.model, rows, workers=0)

    def _item(self, value: object) -> Item:
        """An input of a program as one of the command line."""
        kind = TASKS[self.task.tag].input.kind
        if isinstance(value, RawIOBase | BufferedIOBase):
            return Item(value={"bytes": value.read()})
        if isinstance(value, Mapping) and (column := next((n for n in self.saved.columns if n in value), None)):
            told = {LANGUAGE: self.saved.language_column, PROMPT: self.saved.prompt_column}
            found = (next((value[name] for name in (own, key) if name in value), None) for key, own in told.items())
            language, prompt = (None if it is None else str(it) for it in found)
            return dataclasses.replace(self._item(value[column]), language=language, prompt=prompt)
        if isinstance(value, PathLike) or (isinstance(value, str) and kind != "text"):
            name = str(value)
            if is_url(name):
                return Item(name, error="is a URL; download it and name the file")
            return Item(name, value=Path(name).expanduser())
        if kind == "audio" and isinstance(value, tuple) and len(value) == 2:
            return Item(value={"array": value[0], "sampling_rate": value[1]})
        if kind == "audio" and isinstance(value, np.ndarray):
            return Item(error="has samples without their rate: give (samples, sampling_hz)")
        return Item(value=value)


def check_abstention(task: TaskBase, below: float | None) -> None:
    """Raise RecipeError for a limit that is no probability, and for answers that have not one probability each."""
    if below is None:
        return
    if not 0 < below <= 1:
        raise RecipeError(f"abstain_below {below:g}: is a probability, above 0 and up to 1.")
    if not isinstance(task.output_features.get("probability"), datasets.Value):
        raise RecipeError(
            f"abstain_below {below:g}: is for classifiers of one class for each input, whose answer has a probability; "
            f"this is {task.tag}{' of any number of classes' if 'probability' in task.output_features else ''}."
        )


def _abstaining(output: Output, below: float) -> Output:
    abstained = cast("float", output["probability"]) < below
    return {**output, "prediction": None if abstained else output["prediction"], "abstained": abstained}


@dataclass(frozen=True)
class _OneProcess:
    """The part of an Accelerator that predictions need. One of its own would be a state of the whole process, with one
    number format for good."""

    device: torch.device
    precision: str
    process_index: int = 0
    num_processes: int = 1

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)


# -------------------------------------------------------------------------------------------- reading

_Encoded = tuple[list[Item], Columns]
"""A chunk, and the columns of its rows."""


def _chunks(items: Iterable[Item], most_rows: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        # Those that tell no language are not with those that do: they are answered as they are alone.
        apart = chunk and bool(item.language) != bool(chunk[-1].language)
        if chunk and (apart or len(chunk) >= most_rows or size + item.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += item.size
    if chunk:
        yield chunk


class _Encoding(Dataset[_Encoded]):
    """Reads and encodes a chunk, in whichever process it is."""

    def __init__(self, task: TaskBase) -> None:
        self.task = task
        rows = datasets.Dataset.from_dict({task.input_kind.column: []})
        self.split = Split("predict", rows, origin="", folder=None, place="")

    def __getitem__(self, chunk: list[Item]) -> _Encoded:
        values, errors = [], {}
        for i, item in enumerate(chunk):
            try:
                values.append(item.read(self.task.input_kind))
            except DataError as reason:
                values.append(None)
                errors[i] = str(reason)
        batch: Columns = {self.task.input_kind.column: values, "row": list(range(len(values)))}
        if any(item.language for item in chunk) and self.task.languages.codes:
            batch[LANGUAGE], faults = self._codes(chunk)
            errors = faults | errors
        if any(item.prompt for item in chunk) and self.task.takes_prompts:
            batch[PROMPT] = [item.prompt for item in chunk]
        encoded = self.task.preprocess(self.split)(batch)
        encoded |= {name: batch[name] for name in (LANGUAGE, PROMPT) if name in batch}
        for i, error in errors.items():
            encoded["error"][i] = error
        return chunk, encoded

    def _codes(self, chunk: list[Item]) -> tuple[list[str], dict[int, str]]:
        """The code of each input's language, and why there is none; where there is none, another stands for it."""
        codes, faults = list[str](), dict[int, str]()
        for i, item in enumerate(chunk):
            try:
                codes.append(self.task.languages.code(item.language))
            except DataError as reason:
                codes.append(self.task.languages.codes[0])
                faults[i] = str(reason)
        return codes, faults


def _unchanged(encoded: _Encoded) -> _Encoded:
    return encoded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from printing; what their users have set is theirs again afterwards."""
    logging = transformers.utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), disable_progress_bars():
            warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|peft)")  # theirs to mend
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
