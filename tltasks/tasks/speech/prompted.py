"""Recognisers that are asked for a transcript: Canary, Cohere's, and language models that hear (Qwen3-ASR, Granite, …).

What a request is made of (a chat template, tokens of the language, places for the sound) only the checkpoint's own
processor knows, so it makes it, at each pass; what is learnt and answered goes on from there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    StoppingCriteriaList,
)

from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel
from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.models.adapters import generating_model
from tltasks.models.loading import open_generation
from tltasks.models.packages import cannot_open, missing_packages
from tltasks.tasks.base import IGNORED, Batch, Processor
from tltasks.tasks.chat import fix_date
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks, mask_samples
from tltasks.tasks.speech.recognition import Transcript, draw_nothing
from tltasks.tasks.speech.seq2seq import MOST_TOKENS, LoopCriterion, SequenceRecogniser, first_id, has_loop

LANGUAGE = ("language", "source_language")
"""Names that processors have for the language of the speech."""


PROMPT = "can you transcribe the speech into a written format?"
"""What a language model without a request of its own is asked beside the sound, as Granite Speech was trained."""


def makes_requests(processor: ProcessorMixin) -> bool:
    by_call = "language" in inspect.signature(type(processor).__call__).parameters
    return by_call or hasattr(processor, "apply_transcription_request") or is_chat(processor)


def is_chat(processor: ProcessorMixin) -> bool:
    """Tell whether requests are a chat's, in which there is a place for the sound, with a prompt beside it."""
    has_own = hasattr(processor, "apply_transcription_request")
    return not has_own and hasattr(processor, "audio_token") and _template_of(processor) is not None


@dataclass(frozen=True)
class PromptedRecogniser(SequenceRecogniser):
    """A checkpoint whose processor makes the request that an answer goes on from."""

    asked: tuple[tuple[str, object], ...]
    """Arguments of each request besides the sound."""
    chat: str | None
    """The text of a request, with a place for the sound, where it is a chat's."""

    @classmethod
    def ask(
        cls,
        processor: ProcessorMixin,
        source: Checkpoint,
        config: PretrainedConfig,
        keys: SpeechModel,
        *,
        as_saved: bool,
    ) -> Self:
        """As the recipe's `keys` say, or `as_saved` in the settings of generation."""
        if keys.speech_task or keys.audio_window is not None:
            raise RecipeError(f"model.speech_task, model.audio_window: {config.model_type} takes neither.")
        generation = open_generation(source)
        own = {name: getattr(generation, name, None) if as_saved else None for name in ("language", "prompt")}
        language, prompt = keys.language or own["language"], keys.prompt or own["prompt"]
        if is_chat(processor):
            prompt = prompt or PROMPT
        generation.language, generation.do_sample = language, False
        if prompt is not None:
            generation.prompt = prompt
        generation.temperature = generation.top_p = generation.top_k = None
        if not as_saved:
            generation.num_beams = keys.beams
        draw_nothing(config)
        for part in (processor, processor.tokenizer):
            fix_date(part, display_name=source.display_name)
        if not config.is_encoder_decoder:
            processor.tokenizer.padding_side = "left"  # a text goes on from where all requests end
        extractor = (
            processor.feature_extractor if hasattr(processor, "feature_extractor") else processor.audio_processor
        )
        recogniser = cls(
            config=config,
            feature_extractor=extractor,
            tokenizer=processor.tokenizer,
            display_name=source.display_name,
            generation=generation,
            prompt=(),
            window=None,
            processor=processor,
            asked=tuple(_arguments(processor, source, extractor.sampling_rate, language, prompt)),
            chat=_chat(processor, str(prompt), source) if is_chat(processor) else None,
        )
        try:
            inputs = recogniser.request([torch.ones(recogniser.sampling_hz).numpy()])
        except (ValueError, TypeError, KeyError, ImportError, AttributeError, RuntimeError, OSError) as error:
            if missing_packages(error):
                raise cannot_open("processor", source.display_name, error, "") from error
            raise CheckpointError(
                f"model {source.display_name}: its processor makes no request for a transcript ({first_line(error)}). "
                "Name a `language` that it knows, and see that its files (chat_template.jinja among them) are there."
            ) from error
        if generation.max_new_tokens is None:
            taken = inputs[_text_of(inputs)].shape[1] if config.is_encoder_decoder else 0
            generation.max_length = None
            generation.max_new_tokens = min(MOST_TOKENS, recogniser._longest_labels - taken)
        return recogniser

    # ------------------------------------------------------------------------------------------ requests

    @property
    def code(self) -> str:
        """Python that makes a request of `samples` with the `processor`."""
        given = "".join(f", {name}={name if name in self.texts else repr(value)}" for name, value in self.asked)
        if self.chat is not None:
            return f'processor(text=chat, audio=samples{given}, return_tensors="pt")'
        if hasattr(self.processor, "apply_transcription_request"):
            return f'processor.apply_transcription_request(samples{given}, return_tensors="pt")'
        return f"processor(samples{given})"

    @property
    def texts(self) -> dict[str, str]:
        prompts = {name: str(value) for name, value in self.asked if name == "prompt"}
        return {"chat": self.chat} if self.chat is not None else prompts

    @property
    def reading(self) -> str:
        return ', return_format="transcription_only"' if self._parses else ""

    @property
    def _parses(self) -> bool:
        """Answers come with more than the text (a language, speakers, times), and the processor takes it out."""
        assert self.processor is not None
        return "return_format" in inspect.signature(self.processor.decode).parameters

    def request(self, clips: Sequence[Samples]) -> dict[str, Tensor]:
        """Arguments of the model for clips, up to where their texts begin."""
        given = dict(self.asked)
        assert self.processor is not None
        if self.chat is not None:
            text = [self.chat] * len(clips)
            found = self.processor(text=text, audio=list(clips), return_tensors="pt", **given)
        elif hasattr(self.processor, "apply_transcription_request"):
            found = self.processor.apply_transcription_request(list(clips), return_tensors="pt", **given)
        else:
            found = self.processor(list(clips), **given)
        inputs = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        start = self.config.is_encoder_decoder and first_id((self.generation, self.config), "decoder_start_token_id")
        name = _text_of(inputs)
        if start is not False and bool((inputs[name][:, 0] != start).all()):  # decoding would put it there
            inputs[name] = functional.pad(inputs[name], (1, 0), value=start)
        return inputs

    def read(self, pieces: Sequence[Samples], masks: Sequence[Masks] | None = None) -> Batch:
        clips = [mask_samples(*pair) for pair in zip(pieces, masks, strict=True)] if masks is not None else list(pieces)
        samples = [torch.as_tensor(clip) for clip in clips]
        return {"samples": pad_sequence(samples, batch_first=True), "frames": torch.tensor(list(map(len, samples)))}

    def targets(self, labels: Sequence[Sequence[int]], before: Tensor | None = None) -> Batch:
        rows = [torch.tensor(list(ids)) for ids in labels]
        return {"labels": pad_sequence(rows, batch_first=True, padding_value=IGNORED)}

    def _passes(self, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        samples, device = batch["samples"], batch["samples"].device
        clips = [clip[:n].cpu().numpy() for clip, n in zip(samples, batch["frames"].tolist(), strict=True)]
        at_once = 1 if self.is_apart else len(clips)
        for i in range(0, len(clips), at_once):
            inputs = self.request(clips[i : i + at_once])
            yield slice(i, i + at_once), {name: value.to(device) for name, value in inputs.items()}

    # ---------------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        found = []
        for rows, inputs in self._passes(batch):
            labels, name = batch["labels"][rows], _text_of(inputs)
            given, n = labels[:, :-1].clamp(min=0), inputs[name].shape[1]  # what fills up is read by nothing before it
            inputs[name] = torch.cat([inputs[name], given], 1)
            if name == "input_ids" and "attention_mask" in inputs:
                mask = inputs["attention_mask"]
                inputs["attention_mask"] = torch.cat([mask, torch.ones_like(given, dtype=mask.dtype)], 1)
            found.append(model(**inputs, use_cache=False).logits[:, n - 1 :])
        wanted = batch["labels"] != IGNORED
        return functional.cross_entropy(torch.cat(found)[wanted].float(), batch["labels"][wanted])

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found = [model(**inputs, use_cache=False).logits[:, -1:] for _, inputs in self._passes(batch)]
        return torch.cat(found)

    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        ids: list[Tensor] = []
        for _, inputs in self._passes(batch):
            criteria = StoppingCriteriaList([LoopCriterion()])
            written = generating_model(model).generate(**inputs, stopping_criteria=criteria)
            ids += written[:, inputs[_text_of(inputs)].shape[1] :].cpu()
        if self._parses:
            assert self.processor is not None
            texts = [self.processor.decode(row, return_format="transcription_only") for row in ids]
        else:
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Transcript(text, has_loop(row[row != self.end])) for text, row in zip(texts, ids, strict=True)]

    # -------------------------------------------------------------------------------------------- saving

    @property
    def setup(self) -> Sequence[Processor]:
        # A tokenizer would be saved with how it has filled up rows, which other parts of a processor take for theirs
        # (transformers 5.24, processing_utils.py, _merge_kwargs).
        if hasattr(self.tokenizer, "backend_tokenizer"):
            self.tokenizer.backend_tokenizer.no_padding()
        return [self.config, self.processor, self.generation]

    def prepare(self, model: PreTrainedModel) -> list[str]:
        model.generation_config = copy.deepcopy(self.generation)
        return []


def _template_of(processor: ProcessorMixin) -> ProcessorMixin | PreTrainedTokenizerBase | None:
    """The processor or its tokenizer: the one that has the template of a chat."""
    return next((it for it in (processor, processor.tokenizer) if getattr(it, "chat_template", None)), None)


def _chat(processor: ProcessorMixin, prompt: str, source: Checkpoint) -> str:
    """The text of a request. Templates take what is said in parts, or as a text that has the place of the sound."""
    owner = _template_of(processor)
    assert owner is not None
    for content in ([{"type": "audio"}, {"type": "text", "text": prompt}], f"{processor.audio_token}{prompt}"):
        messages = [{"role": "user", "content": content}]
        with contextlib.suppress(TypeError, ValueError, TemplateError):
            text: str = owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if text.count(processor.audio_token) == 1 and prompt in text:
                return text
    raise CheckpointError(f"model {source.display_name}: its chat template has no place for sound and a prompt.")


def takes_language(processor: ProcessorMixin) -> bool:
    """Tell a processor whose requests have a language of their own from one that is asked in words."""
    known = inspect.signature(getattr(processor, "apply_transcription_request", processor.__call__)).parameters
    return not is_chat(processor) and any(name in known for name in LANGUAGE)


def _arguments(
    processor: ProcessorMixin, source: Checkpoint, sampling_hz: int, language: str | None, prompt: str | None
) -> Iterator[tuple[str, object]]:
    """Arguments of a request besides the sound, as the recipe says and its signature has them."""
    if is_chat(processor):
        if language is not None:
            raise RecipeError(f"model.language: {source.display_name} takes none; ask for it in `prompt`.")
        yield "padding", True
        owner = processor.tokenizer
        if owner.bos_token is not None and _chat(processor, str(prompt), source).startswith(owner.bos_token):
            yield "add_special_tokens", False
        return
    known = inspect.signature(getattr(processor, "apply_transcription_request", processor.__call__)).parameters
    given = {**dict.fromkeys(LANGUAGE, language), "prompt": prompt}
    for key, names in (("language", LANGUAGE), ("prompt", ("prompt",))):
        name = next((name for name in names if name in known), None)
        if given[key] is not None and name is None:
            raise RecipeError(f"model.{key}: {source.display_name} takes none.")
        if given[key] is not None and name is not None:
            yield name, given[key]
    for name, value in {"sampling_rate": sampling_hz, "format": "wav", "model_id": "model"}.items():
        if name in known or (name == "sampling_rate" and not hasattr(processor, "apply_transcription_request")):
            yield name, value


def _text_of(inputs: dict[str, Tensor]) -> str:
    return "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
