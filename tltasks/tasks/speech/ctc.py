"""CTC recognisers: wav2vec2, HuBERT, WavLM, w2v-BERT and their like, with the checkpoint's vocabulary or a new one."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCTC, PretrainedConfig, Wav2Vec2CTCTokenizer

from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.models.adapters import unwrap_model
from tltasks.models.frozen_transformer import FrozenTransformerCtcConfig, feature_extractor
from tltasks.models.loading import ModelLoader, open_tokenizer
from tltasks.tasks.base import IGNORED, Batch, content_key
from tltasks.tasks.speech.recognition import (
    FRAMES_PER_SECOND,
    INPUTS,
    TOKENIZER_HINT,
    Family,
    Recogniser,
    Transcript,
    drop_no_layers,
    goes_apart,
    open_feature_extractor,
    output_frames,
)
from tltasks.tasks.speech.spelling import DELIMITER, Spelling, letters_of

LONGEST_PIECE_SECONDS = 30.0
"""Attention over longer audio costs too much, and the checkpoints have not seen it."""
PAD, UNKNOWN = "[PAD]", "[UNK]"


@dataclass(frozen=True)
class CtcRecogniser(Recogniser):
    """A checkpoint's configuration with the vocabulary that its head writes in."""

    auto_class: ClassVar[ModelLoader] = AutoModelForCTC
    family: ClassVar[Family] = "CTC"
    head: ClassVar[tuple[str, ...]] = ("lm_head",)
    cpu_batch_budget: ClassVar[int] = 16 * 1000
    joint: ClassVar[str] = " "

    built: bool
    """The vocabulary is of the training text, rather than the checkpoint's own."""

    @classmethod
    def open(cls, source: Checkpoint, config: PretrainedConfig, *, texts: Iterable[str] | None) -> Self:
        """With a vocabulary built from `texts`, or the checkpoint's own where there are none."""
        if isinstance(config, FrozenTransformerCtcConfig):
            extractor = feature_extractor(config)
        else:
            extractor = open_feature_extractor(source)
        if texts is not None:
            tokenizer = build_tokenizer(texts)
        else:
            tokenizer = open_tokenizer(source, hint=TOKENIZER_HINT)
            if tokenizer.pad_token_id is None or len(tokenizer) > config.vocab_size:
                raise CheckpointError(
                    f"model {source.display_name}: its tokenizer has {len(tokenizer)} entries and its head "
                    f"{config.vocab_size}; `stage: transfer` builds a vocabulary from the training text and puts a new "
                    "head on it."
                )
        recogniser = cls(config, extractor, tokenizer, source.display_name, texts is not None)
        recogniser._write_vocabulary(config)
        return recogniser

    def _write_vocabulary(self, config: PretrainedConfig) -> None:
        """Into a configuration, with what would make training depend on how it is split turned off."""
        if self.built:
            config.vocab_size = len(self.tokenizer)
        config.pad_token_id = self.tokenizer.pad_token_id
        drop_no_layers(config)
        # SpecAugment is ours: the model's draws from numpy's global state (transformers 5.24, modeling_wav2vec2.py).
        config.apply_spec_augment = False

    # --------------------------------------------------------------------------------------- shape

    @property
    def window_seconds(self) -> float:
        return min(LONGEST_PIECE_SECONDS, getattr(self.config, "longest_seconds", LONGEST_PIECE_SECONDS))

    @property
    def key(self) -> str:
        return content_key(self.tokenizer)

    @property
    def is_apart(self) -> bool:
        return goes_apart(self.config)

    # ---------------------------------------------------------------------------------------- rows

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling.of(self.tokenizer)

    def label_ids(self, text: str) -> list[int]:
        tokens, _ = self.spelling.write(text)
        if not tokens:
            raise DataError("has a text of which the vocabulary writes nothing")
        return [int(i) for i in self.tokenizer.convert_tokens_to_ids(tokens)]

    def lost(self, texts: Sequence[str]) -> list[str]:
        return [self.spelling.write(text)[1] for text in texts]

    def misfit(self, seconds: float, labels: Sequence[int]) -> str | None:
        if seconds > self.window_seconds:
            return f"is {seconds:.1f} s long; longer than {self.window_seconds:g} s is not trained on"
        # Equal neighbours need a blank between them.
        needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
        frames = self._frames(int(seconds * self.sampling_hz))
        if frames < needed:
            return f"has {len(labels)} characters of text for {seconds:.1f} s of audio, which is {frames} steps"
        return None

    def _frames(self, n_samples: int) -> int:
        """Steps of the model's output for so many samples."""
        if isinstance(self.config, FrozenTransformerCtcConfig):
            return n_samples // self.config.inputs_to_logits_ratio
        if not hasattr(self.config, "conv_kernel"):  # features of 10 ms, two to a step
            return n_samples // (2 * self.sampling_hz // FRAMES_PER_SECOND)
        return output_frames(self.config, n_samples)

    def costs(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        costs: NDArray[np.int64] = np.ceil(seconds * FRAMES_PER_SECOND).astype(np.int64)
        return costs

    def targets(self, labels: Sequence[Sequence[int]]) -> Batch:
        rows = [torch.tensor(list(ids), dtype=torch.long) for ids in labels]
        return {"labels": pad_sequence(rows, batch_first=True, padding_value=IGNORED)}

    # ---------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, lengths = self._logits(model, batch)
        wanted = batch["labels"] != IGNORED
        # float32 throughout: sums over thousands of alignments do not survive half precision.
        spread = logits.float().log_softmax(-1).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):
            total = functional.ctc_loss(
                spread,
                batch["labels"][wanted],
                lengths,
                wanted.sum(-1),
                blank=int(self.config.pad_token_id),
                reduction="sum",
                zero_infinity=True,  # a clip sped up until its text no longer fits
            )
        return total / wanted.sum()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._logits(model, batch)[0]

    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        logits, lengths = self._logits(model, batch)
        ids = logits.argmax(-1)
        beyond = torch.arange(ids.shape[1], device=ids.device)[None] >= lengths[:, None]
        ids[beyond] = int(self.config.pad_token_id)
        return [Transcript(text) for text in self.tokenizer.batch_decode(ids.cpu())]

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [clips, steps, vocabulary] and the steps of each clip that are not padding."""
        inputs = {k: v for k, v in batch.items() if k in INPUTS}
        if self.is_apart:
            sizes = inputs["attention_mask"].sum(-1).tolist()
            each = [model(values[None, :n]).logits[0] for values, n in zip(inputs["input_values"], sizes, strict=True)]
            lengths = torch.tensor([len(logits) for logits in each], device=each[0].device)
            return pad_sequence(each, batch_first=True), lengths
        logits = model(**inputs).logits
        lengths = unwrap_model(model)._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).to(torch.long)
        return logits, lengths.clamp(max=logits.shape[1])


# ------------------------------------------------------------------------------------------ vocabulary


def build_tokenizer(texts: Iterable[str]) -> Wav2Vec2CTCTokenizer:
    """A vocabulary of every character of the texts as they are written: case, digits and marks included.

    The bar stands for the space, as everywhere with CTC, so a bar in a text is taken for one.
    """
    found = letters_of(texts)
    letters = sorted(found - {" "})
    if not letters:
        raise RecipeError("the training text has no characters to build a vocabulary from.")
    words = [DELIMITER] if " " in found else []
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, *words, *letters])}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocab.json"
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(path),
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN,
            pad_token=PAD,
            word_delimiter_token=DELIMITER,
            clean_up_tokenization_spaces=False,
        )
