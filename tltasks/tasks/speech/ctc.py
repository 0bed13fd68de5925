"""CTC recognisers: wav2vec2, HuBERT, WavLM, w2v-BERT and their like, with the checkpoint's vocabulary or a new one."""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Wav2Vec2CTCTokenizer,
)

from tltasks.config.model import Checkpoint
from tltasks.data.languages import Languages, only_language
from tltasks.data.splits import Split
from tltasks.errors import CheckpointError, DataError, RecipeError, first_line
from tltasks.models.adapters import find_head, unwrap_model
from tltasks.models.exported import ExportedModel
from tltasks.models.frozen_transformer import FrozenTransformerCtcConfig, feature_extractor
from tltasks.models.loading import open_tokenizer
from tltasks.tasks.base import IGNORED, Batch, content_key
from tltasks.tasks.speech.recognition import (
    FRAMES_PER_SECOND,
    TOKENIZER_HINT,
    Family,
    Recogniser,
    Transcript,
    draw_nothing,
    each_alone,
    inputs_of,
    mask_of,
    open_feature_extractor,
    read_clips,
    with_parts,
)
from tltasks.tasks.speech.spelling import DELIMITER, Spelling, letters_of
from tltasks.tasks.speech.words import Word, ctc_tokens, token_ends, words_of
from tltasks.tasks.vocabulary import lost_characters

LONGEST_PIECE_SECONDS = 30.0
"""Attention over longer audio costs too much, and the checkpoints have not seen it."""
PAD, UNKNOWN = "[PAD]", "[UNK]"


@dataclass(frozen=True)
class CtcRecogniser(Recogniser):
    """A checkpoint's configuration with the vocabulary that its head writes in."""

    family: ClassVar[Family] = "CTC"
    cpu_batch_budget: ClassVar[int] = 16 * 1000
    joint: ClassVar[str] = " "

    built: bool
    """The vocabulary is of the training text, rather than the checkpoint's own."""
    switched: tuple[str, str] | None = None
    """A language whose adapter layers and head replace those of the weights (MMS), and the revision they are of."""

    @classmethod
    def open(
        cls,
        source: Checkpoint,
        config: PretrainedConfig,
        *,
        texts: Iterable[str] | None,
        language: str | None = None,
        splits: Mapping[str, Split] | None = None,
    ) -> Self:
        """With a vocabulary built from `texts`, or the checkpoint's own where there are none, in a `language` of it.

        One of several vocabularies is of the one language that the rows of `splits` tell, where they do.
        """
        if isinstance(config, FrozenTransformerCtcConfig):
            extractor = feature_extractor(config)
        else:
            extractor = open_feature_extractor(source)
        if texts is not None:
            tokenizer = build_tokenizer(texts)
        else:
            tokenizer = open_tokenizer(source, hint=TOKENIZER_HINT)
            if switched := _switch(tokenizer, language, source, splits or {}):
                return cls(config, extractor, tokenizer, source.display_name, False, switched)._quietened()
            if tokenizer.pad_token_id is None or len(tokenizer) > config.vocab_size:
                raise CheckpointError(
                    f"model {source.display_name}: its tokenizer has {len(tokenizer)} entries and its head "
                    f"{config.vocab_size}; `stage: transfer` builds a vocabulary from the training text and puts a new "
                    "head on it."
                )
        return cls(config, extractor, tokenizer, source.display_name, texts is not None)._quietened()

    def _quietened(self) -> Self:
        """With the vocabulary in its configuration, and what makes training depend on how it is split turned off."""
        config = self.config
        if self.built:
            set_vocabulary(config, len(self.tokenizer))
            if hasattr(config, "blank_token_id"):
                config.blank_token_id = self.tokenizer.pad_token_id
        config.pad_token_id = self.tokenizer.pad_token_id
        draw_nothing(config)
        return self

    def prepare(self, model: PreTrainedModel) -> list[str]:
        if self.switched is not None:
            language, revision = self.switched
            try:
                model.load_adapter(language, revision=revision, use_safetensors=True)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"model {self.display_name}: its adapter for {language} cannot be loaded ({first_line(error)}); it "
                    f"is in adapter.{language}.safetensors."
                ) from error
        return []

    # --------------------------------------------------------------------------------------- shape

    @property
    def window_seconds(self) -> float:
        return min(LONGEST_PIECE_SECONDS, getattr(self.config, "longest_seconds", LONGEST_PIECE_SECONDS))

    @property
    def key(self) -> str:
        return content_key(self.tokenizer)

    @property
    def blank(self) -> int:
        """The class of steps that write nothing, which most architectures call padding."""
        own = getattr(self.config, "blank_token_id", None)
        return int(self.config.pad_token_id if own is None else own)

    @property
    def tells_words(self) -> bool:
        return True

    @property
    def skips_signs(self) -> bool:
        """Tokenizers drop what pads, and where that is not the blank, this as a special token."""
        return bool(self.blank != self.tokenizer.pad_token_id)

    @property
    def code(self) -> str:
        padded = bool((mask_of(self.read([np.ones(self.sampling_hz, np.float32)])) == 0).any())
        return 'extract(samples, sampling_rate=rate, return_tensors="pt")' if padded else super().code

    def head(self, model: PreTrainedModel) -> list[str]:
        with torch.random.fork_rng(devices=[]):  # building a model draws
            return find_head(model, lambda config: set_vocabulary(config, config.vocab_size + 1))

    # ---------------------------------------------------------------------------------------- rows

    @cached_property
    def spelling(self) -> Spelling:
        return Spelling.of(self.tokenizer)

    def label_ids(self, text: str) -> list[int]:
        [ids] = self._ids_of([text])
        if not ids:
            raise DataError("has a text of which the vocabulary writes nothing")
        return ids

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        if self._has_pieces:
            found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
            return found
        return [list(map(int, self.tokenizer.convert_tokens_to_ids(self.spelling.write(text)[0]))) for text in texts]

    @property
    def _has_pieces(self) -> bool:
        """Tell whether the vocabulary is of parts of words, and so written by rules of its own."""
        return bool(self.tokenizer.is_fast)

    def lost(self, texts: Sequence[str]) -> list[str]:
        if not self._has_pieces:
            return [self.spelling.write(text)[1] for text in texts]
        pad = self.tokenizer.pad_token_id  # between equal neighbours, which would be read as one
        return lost_characters(
            self.tokenizer, texts, [[t for i in ids for t in (i, pad)] for ids in self._ids_of(texts)]
        )

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
        model, one, two = self._skeleton
        features = one + (n_samples - self.sampling_hz) * (two - one) // self.sampling_hz
        return max(0, int(count_steps(model, torch.tensor(features))))

    @cached_property
    def _skeleton(self) -> tuple[PreTrainedModel, int, int]:
        """The model without weights, and the number of features, or samples, of one second and of two."""
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = self.auto_class.from_config(copy.deepcopy(self.config))
        one, two = (read_clips([np.ones(n * self.sampling_hz, np.float32)], self.feature_extractor) for n in (1, 2))
        return model, int(mask_of(one).sum()), int(mask_of(two).sum())

    def costs(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        costs: NDArray[np.int64] = np.ceil(seconds * FRAMES_PER_SECOND).astype(np.int64)
        return costs

    def targets(self, labels: Sequence[Sequence[int]], before: Tensor | None = None) -> Batch:
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
                blank=self.blank,
                reduction="sum",
                zero_infinity=True,  # a clip sped up until its text no longer fits
            )
        return total / wanted.sum()

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, lengths = self._logits(model, batch)
        beyond = torch.arange(logits.shape[1], device=logits.device)[None] >= lengths[:, None]
        return logits.masked_fill(beyond[..., None], 0.0)

    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        logits, lengths = self._logits(model, batch)
        ids = logits.argmax(-1)
        beyond = torch.arange(ids.shape[1], device=ids.device)[None] >= lengths[:, None]
        ids[beyond] = self.blank
        texts = self.tokenizer.batch_decode(ids.cpu(), skip_special_tokens=self.skips_signs)
        if not self.wanted.words:
            return [Transcript(text) for text in texts]
        steps, samples = lengths.tolist(), batch["piece_samples"].tolist()
        clips = zip(texts, logits.float().softmax(-1), steps, samples, strict=True)
        return [Transcript(text, words=self._words(text, spread[:n], size)) for text, spread, n, size in clips]

    def _words(self, text: str, spread: Tensor, samples: int) -> list[Word]:
        """The words of a text that was read off probabilities [steps, vocabulary] of so many samples."""
        seconds = samples / self.sampling_hz / max(1, len(spread))
        ids, *timed = ctc_tokens(spread, blank=self.blank, seconds_per_step=seconds)

        def decode(part: list[int]) -> str:  # with blanks, without which equal neighbours would be one
            apart = [i for token in part for i in (token, self.blank)]
            return str(self.tokenizer.decode(apart, skip_special_tokens=self.skips_signs))

        return words_of(text, token_ends(decode, ids), *timed)

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [clips, steps, vocabulary] and the steps of each clip that are not padding."""
        passes = each_alone(batch) if self.is_apart else [inputs_of(batch)]
        each = [logits for inputs in passes for logits in model(**inputs).logits]
        return pad_sequence(each, batch_first=True), self._lengths(model, batch, most=max(map(len, each)))

    def _lengths(self, model: nn.Module, batch: Batch, *, most: int) -> Tensor:
        """Steps of each clip, of `most` that the output has."""
        own = unwrap_model(model)
        counts = self._skeleton[0] if isinstance(own, ExportedModel) else own
        return count_steps(counts, mask_of(batch).sum(-1)).to(torch.long).clamp(max=most)


def count_steps(model: PreTrainedModel, n_features: Tensor) -> Tensor:
    """Steps of the output for numbers of features, or samples, by the model's own count."""
    names = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")
    own = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if own is None:
        raise CheckpointError(
            f"{type(model).__name__} does not tell how many steps its output has for a clip's length."
        )
    steps: Tensor = own(n_features)
    return steps


def set_vocabulary(config: PretrainedConfig, size: int) -> None:
    """Write the size of the vocabulary wherever a configuration, or one inside it, has it."""
    old = config.vocab_size
    for part in with_parts(config):
        if getattr(part, "vocab_size", None) == old:
            part.vocab_size = size


# ------------------------------------------------------------------------------------------ vocabulary


def _switch(
    tokenizer: PreTrainedTokenizerBase, language: str | None, source: Checkpoint, splits: Mapping[str, Split]
) -> tuple[str, str] | None:
    """Turn a tokenizer of several vocabularies to that of a language, if it is not on it; what is to be loaded then."""
    own = getattr(tokenizer, "target_lang", None)
    if own is None:
        return None
    why = f"{source.display_name} writes with the adapter layers and the vocabulary of one language, `model.language`"
    spoken, languages = only_language(splits, why), Languages(tuple(tokenizer.vocab), source.display_name)
    try:
        code = languages.code(language or spoken or own)
    except DataError as error:
        raise RecipeError(f"{'model.language' if language else 'data.columns.language'}: {error}") from error
    if spoken is not None and code not in languages.find(spoken):
        raise RecipeError(f"model.language: {language}, and the rows tell `{spoken}`; they have to be the same.")
    if code == own:
        return None
    tokenizer.set_target_lang(code)
    return code, source.revision


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
