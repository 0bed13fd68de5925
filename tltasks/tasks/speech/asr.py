"""Speech recognition with any checkpoint that transformers loads for it, encoder-decoder or CTC."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSpeechSeq2Seq, PretrainedConfig, PreTrainedModel

from tltasks.config.answers import Asked
from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.speech import SpeechData, SpeechModel, SpeechStage
from tltasks.data.corruptions import corrupt_audio, corrupt_rows
from tltasks.data.languages import Languages, only_language, standard, told_languages
from tltasks.data.near_duplicates import Likeness
from tltasks.data.splits import LANGUAGE, PROMPT, Columns, EncodedSplit, Split, located, row_title
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.metrics import error_rate
from tltasks.metrics.calibration import expected_calibration_error
from tltasks.metrics.scripts import writes_without_spaces
from tltasks.models.adapters import find_lora_targets, unwrap_model
from tltasks.models.frozen_transformer import wrap_for_speech
from tltasks.models.loading import ModelLoader, open_config
from tltasks.results.comparison import counted
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import (
    Batch,
    BuiltModel,
    InputKind,
    OnnxInput,
    Outputs,
    Prediction,
    Processor,
    References,
    RowScores,
    TaskBase,
    config_content,
    digest_of,
)
from tltasks.tasks.speech import audio, voice
from tltasks.tasks.speech.audio import Samples, Segment, join_segments, read_segments
from tltasks.tasks.speech.augmentation import augment_audio
from tltasks.tasks.speech.ctc import CtcRecogniser
from tltasks.tasks.speech.joining import Window, joined
from tltasks.tasks.speech.prompted import PromptedRecogniser, makes_requests, takes_language
from tltasks.tasks.speech.recognition import Recogniser, Transcript, family, given_keys, open_processor
from tltasks.tasks.speech.seq2seq import SequenceRecogniser
from tltasks.tasks.speech.transducer import TransducerRecogniser
from tltasks.tasks.speech.words import Calibration, Word, within_speech

Plan = StagePlan[SpeechModel, SpeechData, SpeechStage]
CALIBRATION = "word_confidence"
"""Key of a configuration with the slope and the shift of words' confidence."""
UNSETTLED = Calibration()
PIECES_AT_ONCE = 16
"""Pieces in a pass of one recording that is longer than the model hears at once."""
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
class SpeechRecognition(TaskBase[SpeechModel, SpeechData, SpeechStage]):
    """One stage's view of a recogniser: how audio and text go in, and how texts are compared."""

    tag: ClassVar[str] = "automatic-speech-recognition"
    higher_is_better: ClassVar[bool] = False
    top_score: ClassVar[float | None] = 1.0
    input_kind: ClassVar[InputKind] = InputKind("audio", audio.SUFFIXES, made_up=audio.made_up_audio)
    output_features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prediction": datasets.Value("string"),
            "language": datasets.Value("string"),
            "repetition_loop": datasets.Value("bool"),
            "segments": datasets.List(
                {
                    "start": datasets.Value("float64"),
                    "end": datasets.Value("float64"),
                    "text": datasets.Value("string"),
                }
            ),
            "words": datasets.List(
                {
                    "start": datasets.Value("float64"),
                    "end": datasets.Value("float64"),
                    "text": datasets.Value("string"),
                    "confidence": datasets.Value("float64"),
                }
            ),
        }
    )
    converts: ClassVar[bool] = True
    settles: ClassVar[bool] = True
    new_head_hint: ClassVar[str] = "use `stage: transfer`, which builds a vocabulary and puts a new head on it."

    recogniser: Recogniser
    normaliser: str
    spaced: bool
    """The language puts spaces between words; where not, characters are what is counted."""
    lost_share: float = 0.0
    """Share of the training text's characters that cannot be learnt."""
    lost_note: Sequence[str] = ()
    calibration: Calibration = UNSETTLED

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        texts = _texts(splits)
        config = open_config(source)
        if plan.model.as_ is not None:
            config = wrap_for_speech(config, plan.model, plan.stage, plan.kind, display_name=source.display_name)
        recogniser: Recogniser
        found = family(config, display_name=source.display_name)
        if found == "CTC":
            recogniser = _open_ctc(plan, splits, texts, source, config)
        elif found == "transducer":
            recogniser = _open_transducer(plan, splits, source, config)
        else:
            recogniser = _open_sequence(plan, splits, source, config)
        if plan.data.columns.prompt is not None:
            recogniser.prompt_ids(None)
        if plan.stage.timestamps is not None:
            recogniser.joins(plan.stage.timestamps)
            if "train" in splits and splits["train"].stream is not None:
                raise RecipeError(f"stage {plan.name}: `timestamps` joins the rows of an epoch; leave `streaming` out.")
        name = plan.data.normaliser
        if name == "auto":
            name = "english" if _is_english(plan, splits, recogniser) else "basic"
        lost = recogniser.check_texts(texts, splits["train"].where) if "train" in splits else (0.0, [])
        known = getattr(config, CALIBRATION, None)
        if plan.kind.trains and known is not None:  # it is of other weights
            delattr(recogniser.config, CALIBRATION)
            known = None
        spaced, calibration = not writes_without_spaces(texts), Calibration(*(known or ()))
        return cls(plan, source, config, seed, recogniser, name, spaced, *lost, calibration)

    @property
    def notes(self) -> list[str]:
        return list(self.lost_note)

    def data_notes(self, encoded: dict[str, EncodedSplit]) -> dict[str, list[str]]:
        if self._window is None or "train" not in encoded:
            return {}
        rows, longest = encoded["train"].rows, self._window.seconds
        n_windows = len(self.epoch_rows(rows, epoch=0))
        return {"train": [f"an epoch joins {len(rows):,} clips into {n_windows:,} windows of up to {longest:g} s"]}

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {"train": {"characters_unknown_share": self.lost_share}} if self.lost_share else {}

    @property
    def languages(self) -> Languages:
        return self.recogniser.languages

    @property
    def takes_prompts(self) -> bool:
        return self.recogniser.takes_prompts

    def _told(self, columns: Columns, rows: Sequence[int]) -> Batch:
        """The part of a batch with the language of so many of some rows, and what was said before, if they tell any."""
        names, prompts = columns.get(LANGUAGE), columns.get(PROMPT)
        told = {} if names is None else self.recogniser.told([names[row] for row in rows])
        return told | self.recogniser.preceded([prompts[row] if prompts else None for row in rows])

    @cached_property
    def _window(self) -> Window | None:
        """The windows that training rows are joined into, if they are."""
        keys = self.stage.timestamps
        return None if keys is None else self.recogniser.joins(keys)

    @property
    def headline(self) -> str:
        return self.stage.metric or ("wer" if self.spaced else "cer")

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return self.recogniser.auto_class

    @property
    def settings(self) -> dict[str, object]:
        it = self.recogniser
        found: dict[str, object] = {"family": it.family, "auto_class": it.auto_class.__name__}
        if it.code:
            found |= {"request": it.code, "texts": it.texts, "skips_signs": it.skips_signs}
            found |= {"reading": it.reading, "rate": it.sampling_hz}
        return found

    def as_pretrained(self) -> Self:
        return dataclasses.replace(self, recogniser=self.recogniser.as_pretrained())

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        interpolated = [*built.provenance.interpolated, *self.recogniser.prepare(built.model)]
        provenance = dataclasses.replace(built.provenance, interpolated=interpolated)
        return BuiltModel(built.model, self.tried(built.model), provenance)

    def tried(self, model: PreTrainedModel) -> Self:
        return dataclasses.replace(self, recogniser=self.recogniser.tried(model))

    def head(self, model: nn.Module) -> list[str]:
        return self.recogniser.head(unwrap_model(model))

    def lora_targets(self, model: nn.Module) -> list[str]:
        # The output layer shares its weights with the input embedding, or is the head.
        output = unwrap_model(model).get_output_embeddings()
        own = [name for name, module in model.named_modules() if module is output]
        return find_lora_targets(model, head=["proj_out", "lm_head", *own, *self.head(model)])

    def examples(self) -> Columns:
        letters = sorted(token for token in self.recogniser.tokenizer.get_vocab() if token.isalpha())[:2]
        return super().examples() | {"text": letters[:1] + letters[-1:]}

    @property
    def setup(self) -> Sequence[Processor]:
        return self.recogniser.setup

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
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
    def cache_key(self) -> str:
        recogniser = self.recogniser
        timed = () if self._window is None else ("with times",)
        own = type(recogniser).__name__, recogniser.sampling_hz, recogniser.key, config_content(self.config)
        return digest_of(*own, *timed)

    @property
    def likeness(self) -> Likeness:
        return audio.likeness(self.recogniser.sampling_hz)

    @property
    def cpu_batch_budget(self) -> int:
        return self.recogniser.cpu_batch_budget

    @property
    def cpu_training_budget(self) -> int:
        return self.recogniser.cpu_training_budget or self.recogniser.cpu_batch_budget

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        """Audio is decoded once; targets are of the training split alone, and so is the limit on its length."""

        def encode(batch: Columns) -> Columns:
            encoded: Columns = {key: [] for key in (*self.features, "row", "error")}
            for i, row in enumerate(batch["row"]):
                example = {key: values[i] for key, values in batch.items()}
                for clip in self._clips(example, split):
                    for key, item in {"labels": [], "error": None, **clip, "row": row}.items():
                        encoded[key].append(item)
            return encoded

        return encode

    def _clips(self, example: dict[str, object], split: Split) -> Iterator[dict[str, object]]:
        """An example as encoded rows: one, or one for each piece of a long recording that is trained on."""
        is_written, trains, hz = "text" in example, split.name == "train", self.recogniser.sampling_hz
        text, times = example.get("text", ""), example.get("segments") if trains else None
        try:
            if not isinstance(text, str) or (is_written and not text.strip()):
                raise DataError("has no text")
            samples = audio.decode_audio(
                located(example["audio"], split.folder), hz, may_be_silent=self.recogniser.wanted.vad
            )
            if isinstance(prompt := example.get(PROMPT), str):
                self.recogniser.prompt_ids(prompt)
            clips = self._cut(samples, text, times) if times else [(samples, text, [])]
        except DataError as reason:
            yield {"audio": None, "seconds": None, "text": text, "error": str(reason)}
            return
        for clip, reference, segments in clips:
            row = {"audio": audio.to_int16(clip), "seconds": len(clip) / hz, "text": reference}
            if trains:
                row["labels"], row["error"] = self._target(reference, len(clip) / hz, segments)
            yield row

    def _target(self, text: str, seconds: float, segments: list[Segment]) -> tuple[list[int], str | None]:
        """Labels of a text, or why they and so many seconds of audio cannot be trained on."""
        try:
            labels = self.recogniser.label_ids(text)
            if self._window is not None:
                labels = self._window.timed(segments or [Segment(0.0, seconds, text)], self.recogniser.label_ids)
        except DataError as reason:
            return [], str(reason)
        return labels, self.recogniser.misfit(seconds, labels)

    def _cut(self, samples: Samples, text: str, times: object) -> list[tuple[Samples, str, list[Segment]]]:
        """A recording that is longer than the window in pieces, each with what is said in it, and when."""
        hz, window = self.recogniser.sampling_hz, self.recogniser.window_seconds
        segments = read_segments(times, seconds=len(samples) / hz)
        if len(samples) <= window * hz:
            return [(samples, text, segments if all(segment.text for segment in segments) else [])]
        pieces = join_segments(segments, window_seconds=window, joint=" " if self.spaced else "")
        if not pieces:
            raise DataError("has no text in its segments")
        # Rounded down, so that a piece that fits is not a sample longer than the window.
        spans = [(p, int(p.start * hz), int((p.end - p.start) * hz)) for p in pieces]
        return [(samples[at : at + n], piece.text, piece.within(segments)) for piece, at, n in spans]

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        clips = map(audio.from_int16, columns["audio"])
        changed = corrupt_rows(corrupt_audio, clips, columns["row"], kind, level, seed=seed)
        return {**columns, "audio": [audio.to_int16(clip) for clip in changed]}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        seconds = np.asarray(rows.with_format(None)["seconds"], dtype=np.float64)  # without the sound of windows
        costs: list[int] = self.recogniser.costs(seconds).tolist()
        return costs

    def epoch_rows(self, rows: datasets.Dataset, *, epoch: int) -> datasets.Dataset:
        if self._window is not None:
            rows = joined(rows, self._window, seed=self.seed, epoch=epoch)
        return super().epoch_rows(rows, epoch=epoch)

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        hz, pieces = self.recogniser.sampling_hz, list[Samples]()
        piece_of, starts, speech = list[int](), list[int](), list[Tensor]()
        columns = rows[list(indices)]
        for i, content in enumerate(columns["audio"]):
            samples = audio.from_int16(content)
            spans, cut = self._pieces(samples)
            for start, end in cut:
                pieces.append(samples[start:end])
                piece_of.append(i)
                starts.append(start)
                speech.append((torch.tensor(spans).reshape(-1, 2) - start) / hz)
        found = {
            "told_of_rows": torch.tensor([self._code_told(columns, i) for i in range(len(indices))]),
            "piece_of": torch.tensor(piece_of),
            "piece_starts": torch.tensor(starts),
            "piece_samples": torch.tensor([len(piece) for piece in pieces]),
        }
        if not pieces:  # no recording with speech, and nothing to read
            return found
        found["speech"] = pad_sequence(speech, batch_first=True, padding_value=torch.nan)
        return {**self.recogniser.read(pieces), **self._told(columns, piece_of), **found}

    def _code_told(self, columns: Columns, row: int) -> int:
        """The place among the model's codes of the language that it is told of a row, -1 if it is told none."""
        known, name = self.languages, columns[LANGUAGE][row] if LANGUAGE in columns else None
        return known.codes.index(known.code(name)) if known.codes and (name or known.default) else -1

    def _pieces(self, samples: Samples) -> tuple[list[audio.Span], list[audio.Span]]:
        """Speech in a recording, as far as it is looked for, and the pieces that are heard at once."""
        hz, window = self.recogniser.sampling_hz, self.recogniser.window_seconds
        if not self.recogniser.wanted.vad:
            return [], audio.split_at_silence(samples, hz, window)
        spans = voice.speech_spans(samples, hz)
        return spans, voice.speech_pieces(samples, spans, hz, window)

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
        told = self._told(columns, range(len(changed)))
        return {**inputs, **self.recogniser.targets(columns["labels"], told.pop("before", None)), **told}

    # --------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.recogniser.loss(model, batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        return {"logits": self.recogniser.logits(model, batch)}

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        started = time.perf_counter()
        batch = dict(batch)
        told, piece_of = batch.pop("told_of_rows").tolist(), batch["piece_of"].tolist()
        # Passes are cut between rows, and one long recording alone may be far more than a pass.
        at_once = PIECES_AT_ONCE if len(set(piece_of)) == 1 else max(1, len(piece_of))
        found = [
            transcript
            for i in range(0, len(piece_of), at_once)
            for transcript in self.recogniser.transcribe(model, {k: v[i : i + at_once] for k, v in batch.items()})
        ]
        spent = (time.perf_counter() - started) / len(told)
        own = [[i for i, owner in enumerate(piece_of) if owner == row] for row in range(len(told))]
        codes = [self.languages.codes[i] if i >= 0 else None for i in told]
        answers = (self._joined(found, batch, *pair) for pair in zip(own, codes, strict=True))
        return [{**prediction, "compute_seconds": spent} for prediction in answers]

    def _joined(self, found: Sequence[Transcript], batch: Batch, places: Sequence[int], told: str | None) -> Prediction:
        """The prediction of one recording by the transcripts of its pieces, which are at these places of a batch.

        One without speech is in the language that was `told`.
        """
        hz, pieces = self.recogniser.sampling_hz, [found[i] for i in places]
        starts = [int(batch["piece_starts"][i]) / hz for i in places]
        ends = [start + int(batch["piece_samples"][i]) / hz for start, i in zip(starts, places, strict=True)]
        words = [
            dataclasses.replace(word, start=start + word.start, end=start + word.end)
            for start, i in zip(starts, places, strict=True)
            for word in within_speech(found[i].words, batch["speech"][i].tolist())
        ]
        return {
            "prediction": self.recogniser.joint.join(piece.text for piece in pieces).strip(),
            "language": statistics.mode(piece.language for piece in pieces) if pieces else told,
            "repetition_loop": any(piece.repetition_loop for piece in pieces),
            "pieces": [(a, b, piece.text.strip()) for a, b, piece in zip(starts, ends, pieces, strict=True)],
            "words": words if self.recogniser.wanted.words else None,
        }

    def answering(self, asked: Asked) -> Self:
        return dataclasses.replace(self, recogniser=self.recogniser.answering(asked))

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, object]:
        segments = [
            {"start": round(start, 3), "end": round(end, 3), "text": text} for start, end, text in prediction["pieces"]
        ]
        found = {key: prediction[key] for key in ("prediction", "language", "repetition_loop")} | {"segments": segments}
        if not self.recogniser.wanted.words:
            return found
        words = [
            {
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "text": word.text,
                "confidence": round(float(self.calibration(np.array(word.confidence))), 4),
            }
            for word in prediction["words"]
        ]
        return {**found, "words": words}

    def onnx_input(self) -> OnnxInput | None:
        recogniser = self.recogniser
        if recogniser.family != "CTC":
            return None
        name = str(recogniser.feature_extractor.model_input_names[0])
        hz = recogniser.sampling_hz

        def values(samples: Samples) -> Tensor:
            return recogniser.read([samples])[name]

        def made_up(n: int) -> list[Tensor]:
            random = np.random.default_rng(0)
            return [values(random.normal(0, 0.1, hz + i * hz // 3).astype(np.float32)) for i in range(n)]

        shape: list[str | int] = [1, "time", *values(np.zeros(hz, np.float32)).shape[2:]]
        usage = ONNX_USAGE.format(name=name)
        return OnnxInput(name, shape, (1,), made_up, lambda value: values(audio.decode_audio(value, hz)), usage)

    # --------------------------------------------------------------------------------- confidence

    @property
    def settling(self) -> Self:
        if not self.recogniser.tells_words or not self.spaced:
            return self
        wanted = dataclasses.replace(self.recogniser.wanted, words=True)
        return dataclasses.replace(self, recogniser=dataclasses.replace(self.recogniser, wanted=wanted))

    def settled(self, predictions: Sequence[Prediction], references: References) -> Self:
        shares, right = self._words_known(predictions, references)
        if not len(right):
            return self
        calibration, config = Calibration.fit(shares, right), copy.deepcopy(self.config)
        setattr(config, CALIBRATION, [calibration.slope, calibration.shift])
        recogniser = dataclasses.replace(self.recogniser, config=config)
        return dataclasses.replace(self, config=config, recogniser=recogniser, calibration=calibration)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        if hasattr(self.config, CALIBRATION):
            setattr(unwrap_model(model).config, CALIBRATION, getattr(self.config, CALIBRATION))
        super().save(folder, model, adapter=adapter)

    def _words_known(
        self, predictions: Sequence[Prediction], references: References
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The probability that the model gives each word by itself, and which of them are right."""
        even, pairs = error_rate.normaliser(self.normaliser), list[tuple[float, bool]]()
        for prediction, reference in zip(predictions, references, strict=True):
            words: Sequence[Word] = prediction.get("words") or ()
            marks = error_rate.right_words([word.text for word in words], even, even(reference["text"]))
            own = zip(words, marks, strict=True)
            pairs += [(word.confidence, mark) for word, mark in own if mark is not None]
        return np.array([share for share, _ in pairs]), np.array([right for _, right in pairs], dtype=bool)

    # --------------------------------------------------------------------------------- evaluation

    def target_texts(self, rows: datasets.Dataset) -> list[str]:
        return list(rows["text"])

    def references(self, rows: datasets.Dataset) -> list[dict[str, object]]:
        return [{"text": text, "seconds": s} for text, s in zip(rows["text"], rows["seconds"], strict=True)]

    def _counts(self, predictions: Sequence[Prediction], references: References, normaliser: str) -> RowScores:
        """Errors of each row by kind, [rows, 6], as `error_rate.count_errors` has them."""
        even = error_rate.normaliser(normaliser)
        return error_rate.count_errors(
            [even(p["prediction"]) for p in predictions], [even(r["text"]) for r in references], spaced=self.spaced
        )

    def _of_headline(self, counts: RowScores) -> RowScores:
        by_words = self.headline == "wer"
        return np.stack([counts[:, :3].sum(1), counts[:, 3]], axis=1) if by_words else counts[:, 4:]

    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        return self._of_headline(self._counts(predictions, references, self.normaliser))

    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        counts = self._counts(predictions, references, self.normaliser)
        rates = error_rate.error_rates(counts)
        seconds = [r["seconds"] for r in references]
        values = {
            self.headline: rates[self.headline],
            **rates,
            "raw_wer": error_rate.error_rates(self._counts(predictions, references, "none"))["wer"],
            "repetition_loop": sum(p["repetition_loop"] for p in predictions) / len(predictions),
        }
        details = {
            "normaliser": self.normaliser,
            "words": int(counts[:, 3].sum()),
            "audio_seconds": float(sum(seconds)),
            "real_time_factor": sum(p["compute_seconds"] for p in predictions) / max(sum(seconds), 1e-9),
            "split_in_pieces": sum(len(p["pieces"]) > 1 for p in predictions),
            "window_seconds": self.recogniser.window_seconds,
            "by_duration": error_rate.rates_by_duration(counts, seconds),
            "words_confidence": self._worth_of_confidence(predictions, references),
        }
        interval = self.interval(self._of_headline(counts), intervals=intervals)
        return Score(values, self.headline, interval, details)

    def _worth_of_confidence(self, predictions: Sequence[Prediction], references: References) -> dict[str, float]:
        """How far words' confidence is from the share that is right, and how well it tells right ones from wrong."""
        shares, right = self._words_known(predictions, references)
        if not 0 < right.sum() < len(right):
            return {}
        told = self.calibration(shares)
        return {
            "words": len(right),
            "right": float(right.mean()),
            "calibration_error": expected_calibration_error(told, right),
            "auroc": float(roc_auc_score(right, shares)),
        }

    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": [r["text"] for r in references],
            "seconds": [r["seconds"] for r in references],
            "errors": self.row_scores(predictions, references)[:, 0].tolist(),
            "repetition_loop": [p["repetition_loop"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: References
    ) -> list[ReportExample]:
        """The utterances with most errors, aligned word by word (or character by character), with their sound."""
        scores = self.row_scores(predictions, references)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i, 0], -scores[i, 0] / max(1.0, scores[i, 1])))
        worst = [i for i in order if scores[i, 0]][:WORST_SHOWN]
        return [
            self._report_example(rows[[i]], row_title(rows, i), scores[i], predictions[i], references[i]) for i in worst
        ]

    def _report_example(
        self, columns: Columns, title: str, score: RowScores, prediction: Prediction, reference: dict[str, str]
    ) -> ReportExample:
        even, unit = error_rate.normaliser(self.normaliser), "word" if self.headline == "wer" else "character"
        pair = [even(text) for text in (prediction["prediction"], reference["text"])]
        if not self.spaced:
            pair = [" ".join(text.replace(" ", "")) for text in pair]
        return ReportExample(
            "audio",
            f"{counted(score[0], 'error')} in {counted(score[1], unit)}, {columns['seconds'][0]:.1f} s, {title}",
            "",
            audio.to_flac(audio.from_int16(columns["audio"][0]), self.recogniser.sampling_hz),
            aligned=error_rate.align_words(*pair, joiner=" " if self.spaced else ""),
        )


# ------------------------------------------------------------------------------------------ opening


def _open_sequence(
    plan: Plan, splits: dict[str, Split], source: Checkpoint, config: PretrainedConfig
) -> SequenceRecogniser:
    kind, processor = AutoModelForSpeechSeq2Seq._model_mapping[type(config)], open_processor(source)
    prompted = processor is not None and makes_requests(processor)
    if "text" not in kind.output_modalities:
        raise CheckpointError(f"model {source.display_name}: {config.model_type} writes sound, and no text.")
    if not (prompted or config.is_encoder_decoder):
        raise CheckpointError(
            f"model {source.display_name}: {config.model_type} takes its audio in a way of its own: no "
            "encoder-decoder, and no processor that makes a request for a transcript (`apply_transcription_request`, "
            "or a chat template), which a text could go on from. Name Whisper, Canary or Qwen3-ASR, or one with CTC."
        )
    _keep_vocabulary(plan, source)
    if plan.stage.adapt.method == "head":
        raise RecipeError(f"stage {plan.name}: {source.display_name} has no head of its own; use adapt: lora or full.")
    if prompted:
        keys, told = plan.model, splits if takes_language(processor) else {}
        if (spoken := only_language(told, f"{source.display_name} is asked in one language a run")) is not None:
            keys = keys.model_copy(update={"language": keys.language or spoken})
        return PromptedRecogniser.ask(processor, source, config, keys, as_saved=not splits)
    if plan.model.prompt is not None:
        raise RecipeError(f"model.prompt: {source.display_name} takes none; leave it out.")
    window = plan.model.audio_window if plan.kind.trains else None  # a cut encoder must be trained before it is used
    return SequenceRecogniser.open(
        source,
        config,
        plan.model,
        processor=processor,
        window=_longest_clip(splits) if window == "fit" else window,
        as_saved=not splits,
        trains=plan.kind.trains,
        by_row=plan.data.columns.language is not None and bool(splits),
    )


def _open_ctc(
    plan: Plan, splits: dict[str, Split], texts: list[str], source: Checkpoint, config: PretrainedConfig
) -> CtcRecogniser:
    if given := given_keys(plan.model, "speech_task", "audio_window", "beams", "prompt"):
        raise RecipeError(f"{given}: {source.display_name} is a CTC checkpoint, which has no such choice.")
    if plan.kind.head == "new" and "train" in splits and splits["train"].stream is not None:
        raise RecipeError(
            f"{splits['train'].where}: a new head's vocabulary is of all training texts, and `streaming` reads them as "
            "they come: begin with a checkpoint that has one (`stage: finetune`)."
        )
    texts_of_head = texts if plan.kind.head == "new" else None
    return CtcRecogniser.open(source, config, texts=texts_of_head, language=plan.model.language, splits=splits)


def _open_transducer(
    plan: Plan, splits: dict[str, Split], source: Checkpoint, config: PretrainedConfig
) -> TransducerRecogniser:
    if given := given_keys(plan.model, "speech_task", "audio_window", "beams", "prompt"):
        raise RecipeError(f"{given}: {source.display_name} is a transducer, which has no such choice.")
    _keep_vocabulary(plan, source)
    processor = open_processor(source)
    language = plan.model.language
    return TransducerRecogniser.listen(processor, source, config, language, splits, trains=plan.kind.trains)


def _keep_vocabulary(plan: Plan, source: Checkpoint) -> None:
    if plan.stage.stage == "transfer":
        raise RecipeError(
            f"stage {plan.name}: {source.display_name} writes with a vocabulary that cannot be taken off; "
            "`stage: finetune` teaches it new text, also of another language."
        )


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


def _is_english(plan: Plan, splits: dict[str, Split], recogniser: Recogniser) -> bool:
    names = {name for _, name in told_languages(splits)}
    if names or plan.model.language is not None:
        return all(standard(name or plan.model.language or "") == "en" for name in names or {None})
    generation = getattr(recogniser, "generation", None)
    return generation is not None and getattr(generation, "is_multilingual", None) is False


def _longest_clip(splits: dict[str, Split]) -> int:
    """Whole seconds that the longest clip of any split takes, by the files' headers."""
    if any(split.stream is not None for split in splits.values()):
        raise RecipeError(
            "audio_window: fit asks for the longest clip of all, and `streaming` reads them as they come."
        )
    longest = 0.0
    for split in splits.values():
        for value in split.rows["audio"]:
            longest = max(longest, audio.audio_seconds(located(value, split.folder)) or 0.0)
    return max(1, min(30, int(np.ceil(longest - 1e-6))))
