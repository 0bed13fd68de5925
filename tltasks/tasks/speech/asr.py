"""Speech recognition with any checkpoint that transformers loads for it, encoder-decoder or CTC."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig

from tltasks import metrics
from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.speech import SpeechData, SpeechModel, SpeechStage
from tltasks.data.corruptions import corrupt_audio, generator
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.metrics import error_rate
from tltasks.metrics.scripts import writes_without_spaces
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.frozen_transformer import wrap_for_speech
from tltasks.models.loading import check_loaded, initialise_head, load_pretrained, load_saved, open_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, OnnxInput, Prediction
from tltasks.tasks.speech import audio
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import augment_audio
from tltasks.tasks.speech.ctc import CtcRecogniser
from tltasks.tasks.speech.recognition import Recogniser, family
from tltasks.tasks.speech.segments import join_segments, read_segments
from tltasks.tasks.speech.seq2seq import SequenceRecogniser
from tltasks.tasks.speech.waveforms import located

PIECES_AT_ONCE = 16
"""Of one recording that is longer than the model hears at once."""
WORST_SHOWN = 16
"""Utterances of the report; each brings its audio along."""

ONNX_USAGE = """import numpy as np
import onnxruntime
from transformers import AutoFeatureExtractor, AutoTokenizer

session = onnxruntime.InferenceSession("model.onnx")
extract, tokenizer = AutoFeatureExtractor.from_pretrained("."), AutoTokenizer.from_pretrained(".")
samples = np.zeros(16000, np.float32)  # yours: samples, rate = soundfile.read("speech.wav", dtype="float32")
values = extract(samples, sampling_rate=extract.sampling_rate, return_tensors="np")["{name}"]
logits = session.run(None, {{"{name}": np.asarray(values, np.float32)}})[0]
print(tokenizer.decode(logits[0].argmax(-1)))
"""


@dataclass(frozen=True)
class SpeechRecognition:
    """One stage's view of a recogniser: how audio and text go in, and how texts are compared."""

    tag: ClassVar[str] = "automatic-speech-recognition"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    input_kind: ClassVar[InputKind] = InputKind("audio", audio.SUFFIXES)
    output_features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prediction": datasets.Value("string"),
            "repetition_loop": datasets.Value("bool"),
            "segments": datasets.List(
                {
                    "start": datasets.Value("float64"),
                    "end": datasets.Value("float64"),
                    "text": datasets.Value("string"),
                }
            ),
        }
    )

    source: Checkpoint
    recogniser: Recogniser
    normaliser: str
    spaced: bool
    """Whether the language puts spaces between words; where not, characters are what is counted."""
    stage: SpeechStage
    seed: int

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, SpeechModel)
        assert isinstance(plan.data, SpeechData)
        assert isinstance(plan.stage, SpeechStage)
        texts = _texts(splits)
        config = open_config(source.name, shown=source.display_name, **source.arguments())
        if plan.model.as_ is not None:
            config = wrap_for_speech(config, plan.model, plan.stage, plan.kind, shown=source.display_name)
        recogniser: Recogniser
        if family(config, shown=source.display_name) == "CTC":
            recogniser = _open_ctc(plan, splits, texts, source, config)
        else:
            recogniser = _open_sequence(plan, splits, source)
        spaced = not writes_without_spaces(texts)
        name = plan.data.normaliser
        if name == "auto":
            name = "english" if _is_english(plan.model, recogniser) else "basic"
        return cls(source, recogniser, name, spaced, plan.stage, seed)

    @property
    def headline(self) -> str:
        """Metric that decides which weights are best."""
        return "wer" if self.spaced else "cer"

    # -------------------------------------------------------------------------------------- model

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {}  # clips that cannot serve are left out and counted as they are encoded

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return dataclasses.replace(self, recogniser=self.recogniser.as_pretrained())

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        model, loaded = load_pretrained(
            self.recogniser.auto_class,
            copy.deepcopy(self.recogniser.config),
            self.source.name,
            shown=self.source.display_name,
            random=kind.weights == "random",
            **self.source.arguments(),
        )
        head = self.head(model)
        if kind.head == "new":
            initialise_head(model, head)
        elif lost := [name for name in loaded["newly_initialised"] if name.startswith(tuple(f"{h}." for h in head))]:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for its head ({', '.join(lost)}); "
                "use `stage: transfer`, which builds a vocabulary and puts a new head on it."
            )
        outer = [*head, *getattr(model, "input_layer", ())]
        share = check_loaded(model, loaded["newly_initialised"], head=outer, shown=self.source.display_name)
        cut = self.recogniser.prepare(model)
        provenance = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.recogniser.config.model_type,
            "family": "CTC" if isinstance(self.recogniser, CtcRecogniser) else "sequence-to-sequence",
            **loaded,
            "interpolated": [*loaded["interpolated"], *cut],
            "loaded_share": share,
        }
        return BuiltModel(model, self, provenance)

    @property
    def architecture(self) -> str:
        return str(self.recogniser.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        return list(self.recogniser.head)

    def lora_targets(self, model: nn.Module) -> list[str]:
        # The output layer shares its weights with the input embedding, or is the head.
        return find_lora_targets(model, head=["proj_out", "lm_head"])

    def save_setup(self, folder: Path) -> None:
        self.recogniser.save_setup(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source = self.source
        config = copy.deepcopy(self.recogniser.config)
        model = load_saved(self.recogniser.auto_class, folder, base=source.name, config=config, **source.arguments())
        self.recogniser.finish_loading(model, folder)
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        # 16-bit samples (32 kB a second), not spectrograms (Whisper's take 960 kB however short the clip): they serve
        # every window, and every augmentation of the sound stays possible. docs/speech.md has the measurements.
        return datasets.Features(
            {
                "audio": datasets.Value("binary"),
                "seconds": datasets.Value("float64"),
                "text": datasets.Value("string"),
                "labels": datasets.Sequence(datasets.Value("int32")),
            }
        )

    @property
    def sequence_length(self) -> int | None:
        return None

    @property
    def cache_key(self) -> str:
        recogniser = self.recogniser
        return hashlib.sha256(
            repr((type(recogniser).__name__, recogniser.sampling_hz, recogniser.key)).encode()
        ).hexdigest()

    @property
    def cpu_batch_budget(self) -> int:
        return self.recogniser.cpu_batch_budget

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        """Audio is decoded once; targets are of the training split alone, and so is the limit on its length."""
        trains, recogniser = split.name == "train", self.recogniser
        written = "text" in split.rows.column_names

        def encode(batch: Columns) -> Columns:
            encoded: Columns = {key: [] for key in (*self.features, "row", "error")}
            n_rows = len(batch["row"])
            texts = batch["text"] if written else [""] * n_rows
            segments = batch["segments"] if trains and "segments" in batch else [None] * n_rows

            def add(row: int, text: Any, samples: Samples | None, error: str | None = None) -> None:
                values: dict[str, Any] = {"audio": None, "seconds": None, "text": text, "labels": []}
                if samples is not None:
                    values["audio"], values["seconds"] = audio.to_int16(samples), len(samples) / recogniser.sampling_hz
                    if trains:
                        values["labels"], error = self._target(text, values["seconds"])
                for key, item in {**values, "row": row, "error": error}.items():
                    encoded[key].append(item)

            for value, text, times, row in zip(batch["audio"], texts, segments, batch["row"], strict=True):
                try:
                    if written and (not isinstance(text, str) or not text.strip()):
                        raise DataError("has no text")
                    samples = audio.decode_audio(located(value, split.folder), recogniser.sampling_hz)
                    clips = self._cut(samples, text, times) if times else [(samples, text)]
                except DataError as reason:
                    add(row, text, None, str(reason))
                    continue
                for clip, said in clips:
                    add(row, said, clip)
            return encoded

        return encode

    def _target(self, text: str, seconds: float) -> tuple[list[int], str | None]:
        """Labels of a text, or why they and so many seconds of audio cannot be trained on."""
        try:
            labels = self.recogniser.label_ids(text)
        except DataError as reason:
            return [], str(reason)
        return labels, self.recogniser.misfit(seconds, labels)

    def _cut(self, samples: Samples, text: str, times: Any) -> list[tuple[Samples, str]]:
        """A recording that is longer than the window in pieces, each with what is said in it."""
        hz, window = self.recogniser.sampling_hz, self.recogniser.window_seconds
        if len(samples) <= window * hz:
            return [(samples, text)]
        segments = read_segments(times, seconds=len(samples) / hz)
        pieces = join_segments(segments, window_seconds=window, joint=" " if self.spaced else "")
        if not pieces:
            raise DataError("has no text in its segments")
        # Rounded down, so that a piece that fits is not a sample longer than the window.
        return [(samples[int(p.start * hz) : int(p.start * hz) + int((p.end - p.start) * hz)], p.text) for p in pieces]

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        changed = [
            audio.to_int16(
                corrupt_audio(audio.from_int16(content), kind, level, generator(kind, level, seed=seed, row=row))
            )
            for content, row in zip(columns["audio"], columns["row"], strict=True)
        ]
        return {**columns, "audio": changed}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        costs: list[int] = self.recogniser.costs(np.asarray(rows["seconds"], dtype=np.float64)).tolist()
        return costs

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        hz, window = self.recogniser.sampling_hz, self.recogniser.window_seconds
        pieces: list[Samples] = []
        piece_of: list[int] = []
        for i, content in enumerate(rows[list(indices)]["audio"]):
            found = audio.split_at_silence(audio.from_int16(content), hz, window)
            pieces += found
            piece_of += [i] * len(found)
        samples = torch.tensor([len(piece) for piece in pieces])
        return {**self.recogniser.read(pieces), "piece_of": torch.tensor(piece_of), "piece_samples": samples}

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        columns = rows[list(indices)]
        hz = self.recogniser.sampling_hz
        changed = [
            augment_audio(
                audio.from_int16(content),
                self.stage.augment,
                sampling_hz=hz,
                longest=int(self.recogniser.window_seconds * hz),
                seed=self.seed,
                epoch=epoch,
                row=int(row),
            )
            for content, row in zip(columns["audio"], indices, strict=True)
        ]
        inputs = self.recogniser.read([samples for samples, _ in changed], [masks for _, masks in changed])
        return {**inputs, **self.recogniser.targets(columns["labels"])}

    # --------------------------------------------------------------------------------------- step

    def num_targets(self, batch: Batch) -> Tensor:
        return self.recogniser.num_targets(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.recogniser.loss(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        started = time.perf_counter()
        piece_of, samples = batch["piece_of"].tolist(), batch["piece_samples"].tolist()
        # Passes are cut between rows, and one long recording alone may be far more than a pass.
        at_once = PIECES_AT_ONCE if len(set(piece_of)) == 1 else len(piece_of)
        found = [
            transcript
            for i in range(0, len(piece_of), at_once)
            for transcript in self.recogniser.transcribe(model, {k: v[i : i + at_once] for k, v in batch.items()})
        ]
        n_rows = max(piece_of) + 1
        spent = (time.perf_counter() - started) / n_rows
        predictions = []
        for row in range(n_rows):
            mine = [i for i, owner in enumerate(piece_of) if owner == row]
            pieces = [found[i] for i in mine]
            starts = np.cumsum([0, *(samples[i] for i in mine)]) / self.recogniser.sampling_hz
            spans = list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))
            text = self.recogniser.joint.join(piece.text for piece in pieces).strip()
            looped = any(piece.looped for piece in pieces)
            spoken = [(*span, piece.text.strip()) for span, piece in zip(spans, pieces, strict=True)]
            predictions.append({"prediction": text, "looped": looped, "pieces": spoken, "compute_seconds": spent})
        return predictions

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        segments = [
            {"start": round(start, 3), "end": round(end, 3), "text": text} for start, end, text in prediction["pieces"]
        ]
        return {
            "prediction": prediction["prediction"],
            "repetition_loop": prediction["looped"],
            "segments": segments,
        }

    def onnx_input(self) -> OnnxInput | None:
        recogniser = self.recogniser
        if not isinstance(recogniser, CtcRecogniser):
            return None
        name = str(recogniser.feature_extractor.model_input_names[0])
        hz = recogniser.sampling_hz

        def heard(samples: Samples) -> Tensor:
            return recogniser.read([samples])[name]

        def made_up(n: int) -> list[Tensor]:
            random = np.random.default_rng(0)
            return [heard(random.normal(0, 0.1, hz + i * hz // 3).astype(np.float32)) for i in range(n)]

        shape: list[str | int] = [1, "time", *heard(np.zeros(hz, np.float32)).shape[2:]]
        return OnnxInput(
            name, shape, (1,), made_up, lambda value: heard(audio.decode_audio(value, hz)), ONNX_USAGE.format(name=name)
        )

    # --------------------------------------------------------------------------------- evaluation

    def target_texts(self, rows: datasets.Dataset) -> list[str]:
        return list(rows["text"])

    def references(self, rows: datasets.Dataset) -> list[dict[str, Any]]:
        return [{"text": text, "seconds": s} for text, s in zip(rows["text"], rows["seconds"], strict=True)]

    def _counts(
        self, predictions: Sequence[Prediction], references: Sequence[Any], normaliser: str
    ) -> NDArray[np.float64]:
        even = error_rate.normaliser(normaliser)
        return error_rate.count_errors(
            [even(p["prediction"]) for p in predictions], [even(r["text"]) for r in references], spaced=self.spaced
        )

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        counts = self._counts(predictions, references, self.normaliser)
        return np.stack([counts[:, :3].sum(1), counts[:, 3]], axis=1) if self.spaced else counts[:, 4:]

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        counts = self._counts(predictions, references, self.normaliser)
        rates = error_rate.error_rates(counts)
        rows = np.stack([counts[:, :3].sum(1), counts[:, 3]], axis=1) if self.spaced else counts[:, 4:]
        low, high = metrics.bootstrap_interval(rows, seed=self.seed) if intervals else (float("nan"), float("nan"))
        seconds = [r["seconds"] for r in references]
        plain = error_rate.error_rates(self._counts(predictions, references, "none"))
        values = {
            self.headline: rates[self.headline],
            **rates,
            "raw_wer": plain["wer"],
            "looped": sum(p["looped"] for p in predictions) / len(predictions),
        }
        details = {
            "normaliser": self.normaliser,
            "words": int(counts[:, 3].sum()),
            "audio_seconds": float(sum(seconds)),
            "real_time_factor": sum(p["compute_seconds"] for p in predictions) / max(sum(seconds), 1e-9),
            "split_in_pieces": sum(len(p["pieces"]) > 1 for p in predictions),
            "window_seconds": self.recogniser.window_seconds,
            "by_duration": error_rate.rates_by_duration(counts, seconds),
        }
        return Score(values, self.headline, (low, high), details)

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        return {}

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": [r["text"] for r in references],
            "seconds": [r["seconds"] for r in references],
            "errors": self.row_scores(predictions, references)[:, 0].tolist(),
            "looped": [p["looped"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The utterances with most errors, aligned word by word (or character by character), with their sound."""
        even, hz = error_rate.normaliser(self.normaliser), self.recogniser.sampling_hz
        scores = self.row_scores(predictions, references)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i, 0], -scores[i, 0] / max(1.0, scores[i, 1])))
        shown = []
        for i in [i for i in order if scores[i, 0]][:WORST_SHOWN]:
            heard, said = even(predictions[i]["prediction"]), even(references[i]["text"])
            if not self.spaced:
                heard, said = " ".join(heard.replace(" ", "")), " ".join(said.replace(" ", ""))
            columns = rows[[i]]
            unit = "words" if self.spaced else "characters"
            shown.append(
                ReportExample(
                    "audio",
                    f"{scores[i, 0]:.0f} errors in {scores[i, 1]:.0f} {unit}, {columns['seconds'][0]:.1f} s, "
                    f"row {columns['row'][0]}",
                    error_rate.align_words(heard, said),
                    audio.to_flac(audio.from_int16(columns["audio"][0]), hz),
                )
            )
        return shown


# ------------------------------------------------------------------------------------------ opening


def _open_sequence(plan: StagePlan, splits: dict[str, Split], source: Checkpoint) -> SequenceRecogniser:
    assert isinstance(plan.model, SpeechModel)
    if plan.stage.stage == "transfer":
        raise RecipeError(
            f"stage {plan.name}: {source.display_name} writes with a vocabulary that cannot be taken off; "
            "`stage: finetune` teaches it new text, also of another language."
        )
    if plan.stage.adapt.method == "head":
        raise RecipeError(f"stage {plan.name}: {source.display_name} has no head of its own; use adapt: lora or full.")
    window = plan.model.audio_window if plan.kind.trains else None  # a cut encoder must be trained before it is used
    return SequenceRecogniser.open(
        source.name,
        shown=source.display_name,
        language=plan.model.language,
        speech_task=plan.model.speech_task,
        window=_longest_clip(splits) if window == "fit" else window,
        beams=plan.model.beams if splits else None,
        trains=plan.kind.trains,
        **source.arguments(),
    )


def _open_ctc(
    plan: StagePlan, splits: dict[str, Split], texts: list[str], source: Checkpoint, config: PretrainedConfig
) -> CtcRecogniser:
    assert isinstance(plan.model, SpeechModel)
    keys = {"speech_task": plan.model.speech_task, "audio_window": plan.model.audio_window}
    given = [f"model.{key}" for key, value in keys.items() if value is not None]
    given += ["model.beams"] * (plan.model.beams > 1)
    if given:
        raise RecipeError(f"{', '.join(given)}: {source.display_name} is a CTC checkpoint, which has no such choice.")
    builds = plan.kind.head == "new"
    train = splits.get("train")
    recogniser = CtcRecogniser.open(
        source.name, shown=source.display_name, texts=texts if builds else None, config=config, **source.arguments()
    )
    if not builds and train is not None:
        recogniser.check_texts(texts, train.where)
    return recogniser


def _texts(splits: dict[str, Split]) -> list[str]:
    """The texts of the training split, or of the first there is; DataError where the column holds no text."""
    for split in splits.values():
        kind = str(getattr(split.rows.features["text"], "dtype", type(split.rows.features["text"]).__name__))
        if not kind.startswith(("string", "large_string")):
            raise DataError(f"{split.where}: column `text` holds {kind}; a transcript is text.")
    if not splits:
        return []
    split = splits.get("train") or next(iter(splits.values()))
    return [text for text in split.rows["text"] if text]


def _is_english(keys: SpeechModel, recogniser: Recogniser) -> bool:
    if keys.language is not None:
        return keys.language.lower() in {"en", "english"}
    generation = getattr(recogniser, "generation", None)
    return generation is not None and getattr(generation, "is_multilingual", None) is False


def _longest_clip(splits: dict[str, Split]) -> int:
    """Whole seconds that the longest clip of any split takes, by the files' headers."""
    longest = 0.0
    for split in splits.values():
        for value in split.rows["audio"]:
            longest = max(longest, audio.audio_seconds(located(value, split.folder)) or 0.0)
    return max(1, min(30, int(np.ceil(longest - 1e-6))))
