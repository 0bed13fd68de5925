"""Encoder-decoder recognisers: Whisper of every size, and others that transformers generates from in the same way."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import regex
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    SequenceFeatureExtractor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from tltasks.config.answers import Asked
from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel, Timestamps
from tltasks.data.languages import Languages, standard
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.metrics.scripts import is_unspaced
from tltasks.models.adapters import generating_model, unwrap_model
from tltasks.models.exported import ConvertedWhisper, whisper_prompt
from tltasks.models.loading import open_generation, open_tokenizer
from tltasks.models.writing import write
from tltasks.tasks.base import IGNORED, Batch, Processor, content_key
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks, mask_spectrogram
from tltasks.tasks.speech.joining import PER_SECOND, Window
from tltasks.tasks.speech.recognition import (
    FRAMES_PER_SECOND,
    TOKENIZER_HINT,
    Family,
    Recogniser,
    Transcript,
    draw_nothing,
    each_alone,
    inputs_of,
    open_feature_extractor,
)
from tltasks.tasks.speech.words import Word, alignment_heads, steps_by_attention, token_ends, words_of
from tltasks.tasks.vocabulary import lost_characters, writes_bytes

LONGEST_PIECE_SECONDS = 30.0
"""Window of models without one of their own: attention over more costs too much, and they have not seen more."""
POSITIONS_PER_SECOND = 50  # of Whisper's encoder
POSITIONS = "model.encoder.embed_positions.weight"
MOST_TOKENS = 448
"""Longest text, as Whisper's, of models that tell no other."""
UNSAID = regex.compile(r"[\s\p{P}--[%&@#*/]]+", regex.V1)
"""Tokens that take no time: punctuation, but for what is said."""
LOOPS = ((24, 6), (64, 16))
"""Decoding loops when its last so many tokens repeat with a period of at most so many."""


@dataclass(frozen=True)
class SequenceRecogniser(Recogniser):
    """A checkpoint's configuration, with the language, the window and the beams that the recipe asks for."""

    family: ClassVar[Family] = "sequence-to-sequence"
    cpu_batch_budget: ClassVar[int] = 8 * 3600
    cpu_training_budget: ClassVar[int | None] = 4 * 3600
    joint: ClassVar[str] = ""

    generation: GenerationConfig
    """As saved: language, task, beams and longest output included."""
    prompt: tuple[int, ...]
    """Tokens with which decoding begins; the second is that of the language, which rows may have one each of."""
    window: int | None
    """Seconds that the encoder is cut to; None leaves it."""
    before: tuple[int, ...] = field(default=(), kw_only=True)
    """Tokens that stand before all that is written, as if they had been said: names to expect, and a prompt."""

    @classmethod
    def open(
        cls,
        source: Checkpoint,
        config: PretrainedConfig,
        keys: SpeechModel,
        *,
        processor: ProcessorMixin | None = None,
        window: int | None,
        as_saved: bool,
        trains: bool,
        by_row: bool = False,
    ) -> Self:
        """As the recipe's `keys` say; decoding `as_saved` where they leave it, for a checkpoint that is only used.

        With rows that tell their language (`by_row`), none has to be named.
        """
        extractor, tokenizer = open_feature_extractor(source), open_tokenizer(source, hint=TOKENIZER_HINT)
        generation = _open_generation(source, config)
        language, speech_task, name = keys.language, keys.speech_task, source.display_name
        if as_saved:
            own = str(getattr(generation, "language", None) or "").strip("<|>")
            language, speech_task = language or own or None, speech_task or getattr(generation, "task", None)
        else:
            generation.num_beams = keys.beams
        trains = trains and not by_row
        if config.model_type == "whisper":
            languages = _set_language(generation, language, speech_task, trains=trains, display_name=name)
            first = languages.codes[0] if by_row and languages.codes else None
            prompt = whisper_prompt(generation, config, generation.language or first)
        else:
            languages = _force_language(generation, language, trains=trains, display_name=name)
            if speech_task:
                raise RecipeError(f"model.speech_task: {config.model_type} takes none.")
            if window is not None:
                raise RecipeError(f"model.audio_window: {config.model_type} has no fixed window; leave it unset.")
            forced = generation.forced_bos_token_id  # which decoding puts first
            if forced is None and by_row and languages.codes:
                forced = generation.text_decoder_lang_to_code_id[languages.codes[0]]
            prompt = (_start_token(generation, config), *([] if forced is None else [int(forced)]))
        if window is not None and window > _window_of(config):
            raise CheckpointError(
                f"model {name}: its encoder takes {_window_of(config):g} s; audio_window cannot be {window} s."
            )
        draw_nothing(config)
        found = (config, extractor, tokenizer, name, generation, prompt, window)
        apart = config.model_type != "whisper"  # whose input is of one size
        return cls(*found, processor=processor, languages=languages, is_apart=apart)

    # --------------------------------------------------------------------------------------- shape

    @property
    def is_whisper(self) -> bool:
        return bool(self.config.model_type == "whisper")

    @property
    def tells_words(self) -> bool:
        return self.is_whisper

    @property
    def takes_prompts(self) -> bool:
        return self.is_whisper

    def answering(self, asked: Asked) -> Self:
        if not self.is_whisper or not (asked.prompt or asked.hotwords):
            return super().answering(asked)
        return dataclasses.replace(self, wanted=asked, before=self._before(asked.hotwords, asked.prompt))

    def _before(self, *texts: str | None) -> tuple[int, ...]:
        """Texts as Whisper was trained to go on from: behind a token of their own, at most half of what it can hold."""
        try:
            ids = [i for text in texts if text for i in self._prompt_ids(text)]
        except DataError as reason:
            raise RecipeError(f"prompt, hotwords: {reason}") from reason
        if not 0 < len(ids) <= self._longest_prompt:
            most = self._longest_prompt
            raise RecipeError(f"prompt, hotwords: {len(ids)} tokens; {self.display_name} takes 1 to {most} of them.")
        return (self._begins_prompt, *ids)

    @property
    def _longest_prompt(self) -> int:
        return self._longest_labels // 2 - 1

    @property
    def _begins_prompt(self) -> int:
        """The token before what was said before; raises RecipeError for a model that has none."""
        begin = getattr(self.generation, "prev_sot_token_id", None) if self.is_whisper else None
        if begin is None and self.is_whisper:
            begin = self.tokenizer.convert_tokens_to_ids("<|startofprev|>")
        if begin is None or begin == self.tokenizer.unk_token_id:
            raise RecipeError(f"prompt, hotwords: {self.display_name} has no token for what was said before.")
        return int(begin)

    def _prompt_ids(self, text: str) -> list[int]:
        [ids] = self._text_ids([text])
        if signs := sorted(set(self.tokenizer.convert_ids_to_tokens(ids)) & self._signs):
            raise DataError(f"has a prompt with {', '.join(signs)}, which means something else to the tokenizer")
        return ids

    def prompt_ids(self, text: str | None) -> list[int]:
        if not self.is_whisper:
            return super().prompt_ids(text)
        begin, asked = self._begins_prompt, self.wanted
        if not (text or "").strip():
            return list(self.before)
        first = self._prompt_ids(asked.hotwords) if asked.hotwords else []
        left = self._longest_prompt - len(first)
        return [begin, *first, *self._prompt_ids(str(text))[-left:][:left]]

    @property
    def _first_time(self) -> int:
        """The token `<|0.00|>`, behind which there are only others of times; behind all where there is none."""
        before = getattr(self.generation, "no_timestamps_token_id", None)
        return int(self.config.vocab_size if before is None else before + 1)

    def joins(self, keys: Timestamps) -> Window:
        last = self._first_time + round(self.window_seconds * PER_SECOND)
        if not self.is_whisper or last >= self.config.vocab_size:
            return super().joins(keys)
        most = self._longest_labels - len(self.prompt)
        return Window(self.sampling_hz, self.window_seconds, self._first_time, most, keys)

    @property
    def window_seconds(self) -> float:
        if not self.is_whisper:
            return LONGEST_PIECE_SECONDS
        return self.window if self.window is not None else _window_of(self.config)

    @property
    def extractor(self) -> SequenceFeatureExtractor:
        """The feature extractor for the window."""
        if not self.is_whisper or self.window is None:
            return self.feature_extractor
        fitted = copy.deepcopy(self.feature_extractor)
        fitted.chunk_length = self.window
        fitted.n_samples = self.window * fitted.sampling_rate
        fitted.nb_max_frames = fitted.n_samples // fitted.hop_length
        return fitted

    @property
    def key(self) -> str:
        return repr((self.prompt, content_key(self.tokenizer), self.window_seconds))

    @property
    def _longest_labels(self) -> int:
        names = ("max_target_positions", "max_text_positions", "max_position_embeddings")
        text = self.config.get_text_config(decoder=True)
        found = [getattr(part, name, None) for part in (self.config, text) for name in names]
        return min([size for size in found if size], default=MOST_TOKENS)

    @property
    def end(self) -> int:
        """The token that ends a text: the tokenizer's, where decoding stops at several."""
        ends, own = self.generation.eos_token_id, self.tokenizer.eos_token_id
        if isinstance(ends, list) and own in ends:
            return int(own)
        return first_id((self.generation, self.config, self.config.get_text_config(decoder=True)), "eos_token_id")

    def as_pretrained(self) -> Self:
        return dataclasses.replace(self, window=None)

    def prepare(self, model: PreTrainedModel) -> list[str]:
        model.generation_config = copy.deepcopy(self.generation)
        # Old checkpoints force their decoding prompt here, against the language that is asked for.
        model.config.forced_decoder_ids = None
        if not self.is_whisper or self.window is None or self.window == _window_of(model.config):
            return []
        shorten_encoder(model, self.window * POSITIONS_PER_SECOND)
        return [POSITIONS]

    # ---------------------------------------------------------------------------------------- rows

    def label_ids(self, text: str) -> list[int]:
        [ids] = self._text_ids([text])
        if not ids:
            raise DataError("has a text that the tokenizer leaves nothing of")
        if signs := sorted(set(self.tokenizer.convert_ids_to_tokens(ids)) & self._signs):
            raise DataError(f"has a text with {', '.join(signs)}, by which the tokenizer means something else")
        return [*ids, self.end]

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts; Whisper's begin with a space where its script has them: so it was trained and answers."""
        plain = [" ".join(text.split()) for text in texts]
        led = [f" {text}" if self.is_whisper and not is_unspaced(text[:1] or " ") else text for text in plain]
        ids: list[list[int]] = self.tokenizer(led, add_special_tokens=False).input_ids
        return ids

    @cached_property
    def _signs(self) -> set[str]:
        """Special tokens, but that of unknown characters where these are not written as the end."""
        tokenizer = self.tokenizer
        harmless = {tokenizer.unk_token} if tokenizer.unk_token != tokenizer.eos_token else set()
        return set(tokenizer.all_special_tokens) - harmless

    def lost(self, texts: Sequence[str]) -> list[str]:
        return [] if writes_bytes(self.tokenizer) else lost_characters(self.tokenizer, texts, self._text_ids(texts))

    def misfit(self, seconds: float, labels: Sequence[int]) -> str | None:
        if seconds > self.window_seconds:
            return f"is {seconds:.1f} s long, and the model hears {self.window_seconds:g} s at once"
        longest = self._longest_labels - len(self.prompt)
        if len(labels) > longest:
            return f"has a text of {len(labels)} tokens, and the model writes at most {longest}"
        return None

    def costs(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        own = np.ceil(seconds * FRAMES_PER_SECOND)
        if self.is_whisper:  # the encoder hears whole windows; the decoder writes in proportion to what is said
            pieces = np.maximum(1, np.ceil(seconds / self.window_seconds))
            own = own + pieces * self.window_seconds * FRAMES_PER_SECOND
        costs: NDArray[np.int64] = own.astype(np.int64)
        return costs

    def read(self, pieces: Sequence[Samples], masks: Sequence[Masks] | None = None) -> Batch:
        if not self.is_whisper:
            return super().read(pieces, masks)
        extractor = self.extractor
        features = extractor(list(pieces), sampling_rate=self.sampling_hz, return_tensors="np").input_features
        for clip, samples, drawn in zip(features, pieces, masks or [], strict=False):
            frames = math.ceil(len(samples) / extractor.hop_length)
            mask_spectrogram(clip, drawn, frames=frames, fill=float(clip.min()))
        return {"input_features": torch.from_numpy(features)}

    def told(self, names: Sequence[str | None]) -> Batch:
        if not self.languages.codes:
            return {}
        return {"language": torch.tensor([self._language_ids[self.languages.code(name)] for name in names])}

    @cached_property
    def _language_ids(self) -> dict[str, int]:
        """Tokens by code."""
        known = self.generation.lang_to_id if self.is_whisper else self.generation.text_decoder_lang_to_code_id
        return {token.strip("<|>"): int(i) for token, i in known.items()}

    def preceded(self, prompts: Sequence[str | None]) -> Batch:
        if not (self.before or any(prompts)):
            return {}
        rows = [torch.tensor(self.prompt_ids(prompt), dtype=torch.long) for prompt in prompts]
        return {"before": pad_sequence(rows, batch_first=True, padding_value=IGNORED, padding_side="left")}

    def targets(self, labels: Sequence[Sequence[int]], before: Tensor | None = None) -> Batch:
        inputs, outputs = list[Tensor](), list[Tensor]()
        for i, ids in enumerate(labels):
            start = list(self.prompt[:-1] if ids[0] >= self._first_time else self.prompt)
            if before is not None:
                said = before[i][before[i] != IGNORED].tolist()
                room = self._longest_labels - len(start) - len(ids) - 1
                start = [*said[:1], *said[max(1, len(said) - room) :], *start] if said and room > 0 else start
            inputs.append(torch.tensor([*start, *ids[:-1]]))
            # The prompt is given, not learnt: no loss on it.
            outputs.append(torch.tensor([IGNORED] * (len(start) - 1) + list(ids)))
        return {
            "decoder_input_ids": pad_sequence(inputs, batch_first=True, padding_value=self.end),
            "labels": pad_sequence(outputs, batch_first=True, padding_value=IGNORED),
        }

    # ---------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        wanted, read = batch["labels"] != IGNORED, self._in_language(batch["decoder_input_ids"], batch)
        logits = torch.cat(
            [
                model(**inputs, decoder_input_ids=read[rows], use_cache=False).logits
                for rows, inputs in self._passes(batch)
            ]
        )
        return functional.cross_entropy(logits[wanted].float(), batch["labels"][wanted])

    def _in_language(self, ids: Tensor, batch: Batch) -> Tensor:
        """First tokens of a decoder, with each row's own language where the batch tells it."""
        if "language" not in batch:
            return ids
        starts = (ids == self.prompt[0]).int().argmax(1, keepdim=True)  # behind what was said before
        return ids.scatter(1, starts + 1, batch["language"][:, None])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        device = next(model.parameters()).device
        n_rows = len(next(iter(inputs_of(batch).values())))
        prompts = self._in_language(torch.tensor([self.prompt], device=device).expand(n_rows, -1), batch)
        found = [
            model(**inputs, decoder_input_ids=prompts[rows], use_cache=False) for rows, inputs in self._passes(batch)
        ]
        return torch.cat([output.logits for output in found])

    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        ids: list[Tensor] = []
        spoken: list[str | None] = []
        told, known = getattr(self.generation, "language", None), getattr(self.generation, "lang_to_id", None) or {}
        names = {i: name for name, i in known.items()}
        own, encoded = unwrap_model(model), list[Tensor]()
        for rows, inputs in self._passes(batch):
            heard: dict[str, object] = {}
            first = batch["language"][rows] if "language" in batch else None
            if self.is_whisper and known:
                # Told whatever the model's own settings are, which may be of another; else heard as `generate` would,
                # which keeps it to itself.
                heard, first = {"language": self._spoken(model, inputs["input_features"], names, first)}, None
            with _heard(own, encoded if self.wanted.words else None):
                if "before" in batch:
                    written = self._go_on(model, {**inputs, **heard}, batch["before"])
                else:
                    asked = {**inputs, **heard}
                    written = list(write(generating_model(model), asked, stopping=_stopping(), first=first).cpu())
            ids += written
            spoken += cast("list[str]", heard.get("language", [told] * len(written)))
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        codes = [language and language.strip("<|>") for language in spoken]
        words = self._words(own, batch, encoded, texts, ids, codes) if self.wanted.words else [()] * len(texts)
        return [
            Transcript(text, has_loop(row[row != self.end]), code, found)
            for text, row, code, found in zip(texts, ids, codes, words, strict=True)
        ]

    def _go_on(self, model: nn.Module, inputs: Mapping[str, Any], before: Tensor) -> list[Tensor]:
        """Texts that go on from what was said before, of rows that have any apart from the others."""
        texts, plain = [torch.empty(0)] * len(before), (before == IGNORED).all(1)
        for rows in (plain.nonzero().flatten().tolist(), (~plain).nonzero().flatten().tolist()):
            if not rows:
                continue
            part = {name: _of(values, rows) for name, values in inputs.items()}
            if not plain[rows[0]] and isinstance(unwrap_model(model), ConvertedWhisper):
                part["before"] = before[rows]
            elif not plain[rows[0]]:
                part |= self._begun(before[rows], part.get("language"), unwrap_model(model).generation_config)
            written = write(generating_model(model), part, stopping=_stopping()).cpu()
            for row, ids in zip(rows, written, strict=True):
                texts[row] = ids
        return texts

    def _begun(
        self, before: Tensor, told: Sequence[str] | None, generation: GenerationConfig
    ) -> dict[str, Tensor | int]:
        """The beginning of each row: `generate` itself has one prompt for all of them (transformers 5.24).

        It writes no more than the longest prompt leaves room for, so that no text depends on the prompts of others.
        """
        starts = [whisper_prompt(generation, self.config, told[i] if told else None) for i in range(len(before))]
        room = self._longest_labels - self._longest_prompt - 1 - len(starts[0])
        ids = torch.cat([before, torch.tensor(starts, device=before.device)], dim=1)
        seen = ids != IGNORED
        begun = {"decoder_input_ids": ids.where(seen, self.end), "decoder_attention_mask": seen.long()}
        # It would go on behind times that are written unasked, and without what it began with.
        return {**begun, "max_new_tokens": room, "force_unique_generate_call": True}

    def _words(
        self,
        model: PreTrainedModel | ConvertedWhisper,
        batch: Batch,
        encoded: Sequence[Tensor],
        texts: Sequence[str],
        ids: Sequence[Tensor],
        codes: Sequence[str | None],
    ) -> list[Sequence[Word]]:
        """The words of texts that Whisper has written, by what it attends to as it reads them.

        `encoded`: what its encoder made while they were written. Texts in several parts are heard more than once.
        """
        written = [[i for i in row.tolist() if i < self.end] for row in ids]  # behind it are signs, times among them
        prompts = [whisper_prompt(self.generation, self.config, code) for code in codes]
        hz = POSITIONS_PER_SECOND
        steps = [math.ceil(n * hz / self.sampling_hz) for n in batch["piece_samples"].tolist()]
        if isinstance(model, ConvertedWhisper):
            found = model.align(batch["input_features"], prompts, written, steps)
        else:
            once = len(encoded) == 1 and len(encoded[0]) == len(written)
            sound = encoded[0] if once else model.get_encoder()(batch["input_features"])[0]
            heads = alignment_heads(self.generation, self.config)
            marks = {i for row in written for i in row if UNSAID.fullmatch(self.tokenizer.decode([i]))}
            found = steps_by_attention(model, heads, sound, prompts, written, steps, end=self.end, silent=marks)
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        return [
            words_of(text, token_ends(decode, row), begun[:-1] / hz, begun[1:] / hz, shares)
            for text, row, (begun, shares) in zip(texts, written, found, strict=True)
        ]

    def _spoken(self, model: nn.Module, clips: Tensor, names: Mapping[int, str], told: Tensor | None) -> list[str]:
        """The language of each clip for Whisper: as it is told of the clip, or of all, or as it is heard."""
        if told is None and (language := getattr(self.generation, "language", None)) is not None:
            return [language] * len(clips)
        found = unwrap_model(model).detect_language(clips) if told is None else told
        return [names[i] for i in found.tolist()]

    def _passes(self, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        """The model's inputs, for all rows at once, or for each without its padding."""
        if not self.is_apart:
            yield slice(None), inputs_of(batch)
            return
        for row, inputs in enumerate(each_alone(batch)):
            yield slice(row, row + 1), inputs

    # -------------------------------------------------------------------------------------- saving

    @property
    def setup(self) -> Sequence[Processor]:
        config = copy.deepcopy(self.config)
        if self.is_whisper and self.window is not None:
            config.max_source_positions = self.window * POSITIONS_PER_SECOND
        return [config, self.extractor, self.tokenizer, self.generation]

    def finish_loading(self, model: nn.Module, folder: Path) -> None:
        own = GenerationConfig.from_pretrained(folder)
        if (forced := self.generation.forced_bos_token_id) is not None:  # another language may be asked for
            own.forced_bos_token_id = forced
        unwrap_model(model).generation_config = own


def _stopping() -> StoppingCriteriaList:
    return StoppingCriteriaList([LoopCriterion()])


def _of(values: Any, rows: list[int]) -> Any:
    return values[rows] if isinstance(values, Tensor) else [values[i] for i in rows]


@contextmanager
def _heard(model: PreTrainedModel | ConvertedWhisper, kept: list[Tensor] | None) -> Iterator[None]:
    """Keep what the encoder makes meanwhile, [clips, positions, width].

    `generate` is not handed it instead of the sound: of texts in several parts it would hear the first again and again,
    and fails where rows are done before others (transformers 5.24, `_maybe_reduce_batch`).
    """
    if kept is None or isinstance(model, ConvertedWhisper):
        yield
        return
    hook = model.get_encoder().register_forward_hook(lambda module, given, made: kept.append(made[0]))
    try:
        yield
    finally:
        hook.remove()


def _open_generation(source: Checkpoint, config: PretrainedConfig) -> GenerationConfig:
    """The checkpoint's settings of decoding, without timestamps."""
    generation = open_generation(source)
    generation.return_timestamps = False
    if generation.max_length is None:
        generation.max_length = getattr(config, "max_target_positions", None) or MOST_TOKENS
    return generation


def _window_of(config: PretrainedConfig) -> float:
    return float(config.max_source_positions / POSITIONS_PER_SECOND)


def shorten_encoder(model: PreTrainedModel, positions: int) -> None:
    """Keep the first positions of Whisper's encoder: it then hears shorter audio, and must be trained before use."""
    encoder = model.get_encoder()
    table = encoder.embed_positions.weight
    kept = nn.Embedding(positions, table.shape[1], _weight=table.detach()[:positions].clone())
    kept.weight.requires_grad_(table.requires_grad)
    encoder.embed_positions = kept
    encoder.max_source_positions = positions
    model.config.max_source_positions = positions


# -------------------------------------------------------------------------------------------- language


def _set_language(
    generation: GenerationConfig, language: str | None, speech_task: str | None, *, trains: bool, display_name: str
) -> Languages:
    """Write language and task into the generation config, in the one form that is not deprecated; what it knows."""
    generation.forced_decoder_ids = None
    known = getattr(generation, "lang_to_id", None)
    if not known or getattr(generation, "is_multilingual", True) is False:
        if (language is not None and standard(language) != "en") or speech_task is not None:
            given = "model.speech_task" if language is None else f"model.language: {language}"
            raise RecipeError(f"{given}: {display_name} knows English alone, which it transcribes; leave the key out.")
        generation.language = generation.task = None
        return Languages()
    languages = Languages(tuple(sorted(token.strip("<|>") for token in known)), display_name, TO_LANGUAGE_CODE)
    code = _named(languages, language, trains=trains)
    task = speech_task or "transcribe"
    if code is not None and task not in (getattr(generation, "task_to_id", None) or {}):
        raise RecipeError(f"model.speech_task: {display_name} does not know `{task}`.")
    generation.language, generation.task = code, task
    return dataclasses.replace(languages, default=code)


def _named(languages: Languages, language: str | None, *, trains: bool) -> str | None:
    """The code of a language that a recipe names; RecipeError for one that is not known, or not named for training."""
    known, name = languages.codes, languages.display_name
    if language is None and trains:
        example = "en" if "en" in known else known[0]
        raise RecipeError(
            f"model.language: {name} knows {len(known)} languages; name the one of the text, e.g. `language: {example}`"
            f", or in `data.columns.language` a column of each row's. It knows: {', '.join(known)}."
        )
    try:
        return None if language is None else languages.code(language)
    except DataError as reason:
        raise RecipeError(f"model.language: {reason}") from reason


def _force_language(
    generation: GenerationConfig, language: str | None, *, trains: bool, display_name: str
) -> Languages:
    """Have decoding begin with the language, for models that know several by their codes (SeamlessM4T)."""
    known: dict[str, int] = getattr(generation, "text_decoder_lang_to_code_id", None) or {}
    if not known:
        if language is not None:
            raise RecipeError(f"model.language: {language}: {display_name} takes none.")
        return Languages()
    languages = Languages(tuple(sorted(known)), display_name)
    code = _named(languages, language, trains=trains and generation.forced_bos_token_id is None)
    if code is not None:
        generation.forced_bos_token_id = known[code]
    own = {i: name for name, i in known.items()}
    return dataclasses.replace(languages, default=own.get(generation.forced_bos_token_id))


def _start_token(generation: GenerationConfig, config: PretrainedConfig) -> int:
    return first_id((generation, config), "decoder_start_token_id", "bos_token_id")


def first_id(places: Sequence[GenerationConfig | PretrainedConfig], *names: str) -> int:
    """The first of some ids that is set, in the order in which transformers looks for them."""
    found = (getattr(place, name, None) for name in names for place in places)
    first = next((value for value in found if value is not None), None)
    if first is None:
        raise CheckpointError(f"config.json and generation_config.json have no {names[0]}; write it into one of them.")
    return int(first[0] if isinstance(first, list) else first)


# -------------------------------------------------------------------------------------------- decoding


def has_loop(ids: Tensor) -> bool:
    """Tell whether the end of a sequence of tokens goes round in circles.

    >>> has_loop(torch.tensor([9, *[1, 2] * 12])), has_loop(torch.tensor([*range(40), 1, 1, 1]))
    (True, False)
    """
    return any(
        len(ids) >= tail and any(torch.equal(ids[-tail:-period], ids[period - tail :]) for period in range(1, most + 1))
        for tail, most in LOOPS
    )


class LoopCriterion(StoppingCriteria):  # type: ignore[misc]
    """Stops the rows that loop: without it, each would go on to the longest output, and its batch with it."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for tail, most in LOOPS:
            for period in range(1, most + 1) if input_ids.shape[1] >= tail else ():
                done |= (input_ids[:, -tail:-period] == input_ids[:, period - tail :]).all(1)
        return done
