"""Models as they were exported, behind the calls that tasks make of transformers' own: so there is one way to predict.

Source: https://onnxruntime.ai, https://opennmt.net/CTranslate2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PretrainedConfig, StoppingCriteriaList

from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.writing import FirstTokens

Format = Literal["onnx", "ctranslate2"]
Quantize = Literal["int8", "fp16"]
ABOUT = "export.json"
"""Marks a folder as an export, and says of what."""
SETUP = "setup"
"""Folder with configuration and processors, where the format has a `config.json` of its own."""
ONNX_FILE = "model.onnx"
VOCABULARY = "shared_vocabulary.json"
DISTRIBUTIONS: dict[Format, tuple[tuple[str, ...], str]] = {
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "export"),
    "ctranslate2": (("ctranslate2",), "ctranslate2"),
}
"""What a format needs, and the extra of tltasks that brings it."""


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Export:
    """An export's folder, and what it says of itself."""

    folder: Path
    format: Format
    task: str
    columns: tuple[str, ...]
    """Names of the input's column in tables, the likeliest first."""
    quantize: Quantize | None = None
    language_column: str | None = None
    """That of rows' languages in the run's data."""
    prompt_column: str | None = None
    """That of the text before each row in the run's data."""

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The export that a folder holds, if it holds one; raises CheckpointError for one that is damaged."""
        if not (folder / ABOUT).is_file():
            return None
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about["format"] not in DISTRIBUTIONS:
                raise ValueError(f"format {about['format']}")
            told = about["task"], tuple(about["columns"]), about["quantize"]
            return cls(folder, about["format"], *told, about.get("language_column"), about.get("prompt_column"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / ABOUT}: cannot be read ({error!r}); export the model again.") from error

    def described(self, **beside: object) -> dict[str, object]:
        """Content of the file that marks it, with other findings."""
        own = {"format": self.format, "quantize": self.quantize, "task": self.task, "columns": self.columns}
        of_rows = {"language_column": self.language_column, "prompt_column": self.prompt_column}
        return {**own, **{key: name for key, name in of_rows.items() if name}, **beside}

    @property
    def setup(self) -> Path:
        """The folder with what a checkpoint has beside its weights."""
        return self.folder / SETUP if (self.folder / SETUP).is_dir() else self.folder

    def open(self, config: PretrainedConfig) -> ExportedModel:
        """The model; raises RecipeError where what runs it is not installed, CheckpointError where it is damaged."""
        check_libraries(self.format, f"model {self.folder}")
        kind = OnnxModel if self.format == "onnx" else CONVERTED[config.model_type]
        try:
            return kind(self, config)
        except Exception as error:  # the libraries' own kinds
            raise CheckpointError(f"model {self.folder}: {self.format} cannot open it ({error}).") from error


def check_libraries(kind: Format, where: str) -> None:
    """Raise RecipeError where a format's libraries are not installed."""
    needed, extra = DISTRIBUTIONS[kind]
    for name in needed:
        try:
            __import__(name)
        except ImportError as error:
            raise RecipeError(
                f"{where}: needs {name}, which is not installed: pip install 'tltasks[{extra}]'"
            ) from error


class ExportedModel(nn.Module):
    """A model that something else than torch computes, on the CPU."""

    generation_config: GenerationConfig

    def __init__(self, export: Export, config: PretrainedConfig) -> None:
        super().__init__()
        self.folder, self.config = export.folder, config
        if (export.setup / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(export.setup)


class OnnxModel(ExportedModel):
    """The file that `tltasks export --format onnx` writes. Texts go through it with those of their length alone: no
    padding stands beside them, which not every architecture passes by."""

    def __init__(self, export: Export, config: PretrainedConfig) -> None:
        import onnxruntime

        super().__init__(export, config)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path, providers = str(self.folder / ONNX_FILE), ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.name = str(self.session.get_inputs()[0].name)

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """`logits` of a batch, as the model's own forward gives them."""
        values, seen = inputs[self.name], inputs.get("attention_mask")
        if self.name != "input_ids" or seen is None:
            return SimpleNamespace(logits=self._run(values))
        lengths, found = seen.sum(1), torch.empty(0)
        for length in torch.unique(lengths).tolist():
            rows = (lengths == length).nonzero().flatten()
            logits = self._run(values[rows, :length])
            found = logits.new_empty(len(values), logits.shape[1]) if not len(found) else found
            found[rows] = logits
        return SimpleNamespace(logits=found)

    def _run(self, values: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.name: values.cpu().numpy()})[0])


class ConvertedWriter(ExportedModel):
    """An encoder-decoder of texts in CTranslate2."""

    def __init__(self, export: Export, config: PretrainedConfig) -> None:
        import ctranslate2

        super().__init__(export, config)
        self.translator = ctranslate2.Translator(**_opening(self.folder))
        self.vocabulary: list[str] = json.loads((self.folder / VOCABULARY).read_text(encoding="utf-8"))
        self.ids = {token: i for i, token in enumerate(self.vocabulary)}

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[FirstTokens] = (),
    ) -> Tensor:
        """Token ids of what is written for each row, [rows, tokens], without the token that all begin after."""
        asked = generation_config or self.generation_config
        if asked.decoder_start_token_id != self.generation_config.decoder_start_token_id:
            raise RecipeError(f"model {self.folder}: writes in the one language that it was exported with.")
        rows = [ids[seen.bool()].tolist() for ids, seen in zip(input_ids, attention_mask, strict=True)]
        first = [asked.forced_bos_token_id] * len(rows)
        for processor in logits_processor:
            first = processor.first.tolist()
        most = int(asked.max_new_tokens or asked.max_length)
        found = self.translator.translate_batch(
            [[self.vocabulary[i] for i in ids] for ids in rows],
            target_prefix=[[] if i is None else [self.vocabulary[i]] for i in first],
            max_input_length=0,  # it would cut at 1,024 tokens, and say nothing (ctranslate2 4.8)
            max_decoding_length=most - (asked.forced_eos_token_id is not None),  # the last one is the end then
            min_decoding_length=max(asked.min_new_tokens or 0, (asked.min_length or 0) - 1, 0),
            **search_keys(asked),
        )
        pad = int(asked.pad_token_id or 0)
        texts = [torch.tensor([self.ids[token] for token in it.hypotheses[0]], dtype=torch.long) for it in found]
        return pad_sequence(texts, batch_first=True, padding_value=pad)


class ConvertedWhisper(ExportedModel):
    """Whisper in CTranslate2: clips of the task's window, though the file holds the positions of 30 s."""

    def __init__(self, export: Export, config: PretrainedConfig) -> None:
        import ctranslate2

        super().__init__(export, config)
        self.whisper = ctranslate2.models.Whisper(**_opening(self.folder))

    def detect_language(self, input_features: Tensor) -> Tensor:
        """Id of the token of each clip's language, [clips]."""
        known: dict[str, int] = self.generation_config.lang_to_id
        found = self.whisper.detect_language(_view(input_features))
        return torch.tensor([known[languages[0][0]] for languages in found])

    def generate(
        self,
        input_features: Tensor,
        language: Sequence[str] | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Token ids of what is heard in each clip, [clips, tokens], behind the prompt and what was said `before`, whose
        ids are those that are not negative."""
        own, rows = self.generation_config, len(input_features)
        said = [[]] * rows if before is None else [ids[ids >= 0].tolist() for ids in before]
        told = [language[i] if language else None for i in range(rows)]
        prompts = [[*ids, *whisper_prompt(own, self.config, one)] for ids, one in zip(said, told, strict=True)]
        room = min(own.max_length or self.config.max_target_positions, self.config.max_target_positions)
        texts = [torch.empty(0)] * rows
        for length in {len(ids) for ids in prompts}:  # of one length at a time (ctranslate2 4.8, whisper.cc)
            alike = [i for i, ids in enumerate(prompts) if len(ids) == length]
            found = self.whisper.generate(
                _view(input_features[alike]),
                [prompts[i] for i in alike],
                max_length=2 * (room - length),  # half of it is written at most (ctranslate2 4.8, whisper.cc)
                **search_keys(own),
            )
            for i, it in zip(alike, found, strict=True):
                texts[i] = _until_stopped(torch.tensor(it.sequences_ids[0], dtype=torch.long), stopping_criteria)
        return pad_sequence(texts, batch_first=True, padding_value=own.eos_token_id)

    def align(
        self,
        input_features: Tensor,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        steps: Sequence[int],
    ) -> list[tuple[Floats, Floats]]:
        """The position at which each token of a text, and its end, begins, and the tokens' probabilities.

        `steps`: positions that a clip takes. The file attends by the heads of generation_config.json.
        """
        known = [i for i in (getattr(self.generation_config, "no_timestamps_token_id", None),) if i is not None]
        found = []
        for clip, prompt, text, n in zip(input_features, prompts, texts, steps, strict=True):
            begin = [i for i in prompt if i not in known]  # it puts that there itself (ctranslate2 4.8, whisper.cc)
            [it] = self.whisper.align(_view(clip[None]), begin, [list(text)], 2 * n)
            starts = np.full(len(text) + 1, float(n))
            for token, step in reversed(it.alignments):
                starts[token] = step
            found.append((starts, np.array(it.text_token_probs, dtype=np.float64)))
        return found


class ConvertedCtc(ExportedModel):
    """wav2vec 2.0 in CTranslate2, which knows no mask: clips go through it one by one."""

    def __init__(self, export: Export, config: PretrainedConfig) -> None:
        import ctranslate2

        super().__init__(export, config)
        self.encoder = ctranslate2.models.Wav2Vec2(**_opening(self.folder))

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """`logits` of a clip, [1, steps, vocabulary]."""
        values = inputs["input_values"]
        assert len(values) == 1, "clips go through alone"
        logits: NDArray[np.float32] = np.array(self.encoder.encode(_view(values[:, None]), to_cpu=True))
        return SimpleNamespace(logits=torch.from_numpy(logits))


CONVERTED: Mapping[str, type[ExportedModel]] = {
    "whisper": ConvertedWhisper,
    **dict.fromkeys(("t5", "mt5", "bart", "mbart", "pegasus"), ConvertedWriter),
    "wav2vec2": ConvertedCtc,
}
"""Architectures that CTranslate2's converters write and these classes run."""


def whisper_prompt(own: GenerationConfig, config: PretrainedConfig, language: str | None = None) -> tuple[int, ...]:
    """Tokens with which Whisper begins: the start, the language and the task as told, and that it writes no times."""
    start = own.decoder_start_token_id
    prompt = [int(start if start is not None else config.decoder_start_token_id)]
    if told := language or own.language:
        prompt += [own.lang_to_id[f"<|{told.strip('<|>')}|>"], own.task_to_id[own.task]]
    if getattr(own, "no_timestamps_token_id", None) is not None:
        prompt.append(own.no_timestamps_token_id)
    return tuple(prompt)


def search_keys(asked: GenerationConfig) -> dict[str, float]:
    """How CTranslate2 is to search, as transformers is told."""
    return {
        "beam_size": asked.num_beams or 1,
        "length_penalty": 1.0 if asked.length_penalty is None else asked.length_penalty,
        "repetition_penalty": asked.repetition_penalty or 1.0,
        "no_repeat_ngram_size": asked.no_repeat_ngram_size or 0,
    }


def _opening(folder: Path) -> dict[str, object]:
    """Arguments with which CTranslate2 opens a model."""
    return {"model_path": str(folder), "device": "cpu", "intra_threads": torch.get_num_threads()}


def _view(values: Tensor):  # type: ignore[no-untyped-def]
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(values.float().cpu().numpy()))


def _until_stopped(ids: Tensor, criteria: StoppingCriteriaList | None) -> Tensor:
    """The tokens up to where transformers would have stopped, which CTranslate2 is not asked at each."""
    for n in range(1, len(ids) + 1 if criteria else 0):
        if criteria(ids[None, :n], None).any():  # type: ignore[misc]
            return ids[:n]
    return ids
