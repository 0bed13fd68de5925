"""Recognisers that are asked for a transcript: Canary, Cohere's, and language models that hear (Qwen3-ASR, OmniASR, …).

What a request is made of (a chat template, tokens of the language, places for the sound) only the checkpoint's own
processor knows, so it makes it, at each pass; what is learnt and answered goes on from there.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin, StoppingCriteriaList

from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel
from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.models.adapters import generating_model
from tltasks.models.loading import open_generation
from tltasks.tasks.base import IGNORED, Batch, Processor
from tltasks.tasks.speech.audio import Samples
from tltasks.tasks.speech.augmentation import Masks, mask_samples
from tltasks.tasks.speech.recognition import Transcript, draw_nothing
from tltasks.tasks.speech.seq2seq import MOST_TOKENS, LoopCriterion, SequenceRecogniser, first_id, has_loop

LANGUAGE = ("language", "source_language")
"""Names that processors have for the language of the speech."""


def makes_requests(processor: ProcessorMixin) -> bool:
    by_call = "language" in inspect.signature(type(processor).__call__).parameters
    return by_call or hasattr(processor, "apply_transcription_request")


@dataclass(frozen=True)
class PromptedRecogniser(SequenceRecogniser):
    """A checkpoint whose processor makes the request that an answer goes on from."""

    asked: tuple[tuple[str, str], ...]
    """Arguments of each request besides the sound."""

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
        language = keys.language or (getattr(generation, "language", None) if as_saved else None)
        generation.language, generation.do_sample = language, False
        generation.temperature = generation.top_p = generation.top_k = None
        if not as_saved:
            generation.num_beams = keys.beams
        draw_nothing(config)
        request = getattr(processor, "apply_transcription_request", processor.__call__)
        named = next((name for name in LANGUAGE if name in inspect.signature(request).parameters), None)
        if language is not None and named is None:
            raise RecipeError(f"model.language: {source.display_name} takes none.")
        asked = ((named, language),) if named is not None and language is not None else ()
        recogniser = cls(
            config=config,
            feature_extractor=processor.feature_extractor,
            tokenizer=processor.tokenizer,
            display_name=source.display_name,
            generation=generation,
            prompt=(),
            window=None,
            processor=processor,
            asked=asked,
        )
        try:
            inputs = recogniser.request([torch.ones(recogniser.sampling_hz).numpy()])
        except (ValueError, TypeError, KeyError, ImportError, AttributeError, RuntimeError, OSError) as error:
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
        given = "".join(f", {name}={value!r}" for name, value in self.asked)
        if hasattr(self.processor, "apply_transcription_request"):
            return f'processor.apply_transcription_request(samples{given}, return_tensors="pt")'
        return f"processor(samples{given}, sampling_rate={self.sampling_hz})"

    def request(self, clips: Sequence[Samples]) -> dict[str, Tensor]:
        """Arguments of the model for clips, up to where their texts begin."""
        given = dict(self.asked)
        assert self.processor is not None
        if hasattr(self.processor, "apply_transcription_request"):
            found = self.processor.apply_transcription_request(list(clips), return_tensors="pt", **given)
        else:
            found = self.processor(list(clips), sampling_rate=self.sampling_hz, **given)
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

    def targets(self, labels: Sequence[Sequence[int]]) -> Batch:
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
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Transcript(text, has_loop(row[row != self.end])) for text, row in zip(texts, ids, strict=True)]

    # -------------------------------------------------------------------------------------------- saving

    @property
    def setup(self) -> Sequence[Processor]:
        return [self.config, self.processor, self.generation]

    def prepare(self, model: PreTrainedModel) -> list[str]:
        model.generation_config = copy.deepcopy(self.generation)
        return []


def _text_of(inputs: dict[str, Tensor]) -> str:
    return "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
