"""Transducers: an encoder that hears, a network that reads what is written, and one that joins them (Parakeet)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.loss.loss_tdt import tdt_loss

from tltasks.config.model import Checkpoint
from tltasks.data.languages import only_language
from tltasks.data.splits import Split
from tltasks.errors import RecipeError, first_line
from tltasks.models.adapters import generating_model, unwrap_model
from tltasks.models.loading import open_generation, open_tokenizer
from tltasks.tasks.base import IGNORED, Batch, Processor
from tltasks.tasks.speech.ctc import CtcRecogniser, count_steps
from tltasks.tasks.speech.recognition import (
    TOKENIZER_HINT,
    Family,
    Transcript,
    draw_nothing,
    each_alone,
    inputs_of,
    open_feature_extractor,
)


@dataclass(frozen=True)
class TransducerRecogniser(CtcRecogniser):
    """A checkpoint that goes along the steps of a clip and writes any number of tokens at each, or none and goes on.

    Some tell with each token how many steps to go on, too (TDT).
    """

    family: ClassVar[Family] = "transducer"

    generation: GenerationConfig = field(kw_only=True)
    """As the checkpoint has it."""

    @classmethod
    def listen(
        cls,
        processor: ProcessorMixin | None,
        source: Checkpoint,
        config: PretrainedConfig,
        language: str | None,
        splits: Mapping[str, Split] | None = None,
        *,
        trains: bool,
    ) -> Self:
        """With the checkpoint's own vocabulary, and a `language` for those that are told one."""
        extractor, tokenizer = open_feature_extractor(source), open_tokenizer(source, hint=TOKENIZER_HINT)
        if processor is not None and _takes_language(config, processor):
            spoken = only_language(splits or {}, f"{source.display_name} is told one language a run")
            language = language or spoken
        _set_language(config, processor, extractor.sampling_rate, language, source, trains=trains)
        draw_nothing(config)
        generation = open_generation(source)
        size, steps = config.vocab_size, list(getattr(config, "durations", ()))
        if steps:  # logits of durations stand behind those of tokens, among which decoding takes the largest
            generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *range(size, size + len(steps))})
        name = source.display_name
        return cls(config, extractor, tokenizer, name, built=False, processor=processor, generation=generation)

    # --------------------------------------------------------------------------------------- shape

    @property
    def code(self) -> str:
        return ""

    @property
    def tells_words(self) -> bool:
        return False

    @property
    def skips_signs(self) -> bool:
        return True

    @property
    def _has_pieces(self) -> bool:
        return True

    def misfit(self, seconds: float, labels: Sequence[int]) -> str | None:
        if seconds > self.window_seconds:
            return f"is {seconds:.1f} s long; longer than {self.window_seconds:g} s is not trained on"
        return None

    # ---------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        labels, wanted = batch["labels"].clamp(min=0), batch["labels"] != IGNORED
        read = functional.pad(labels, (1, 0), value=self.blank)
        logits, lengths = self._joined(model, batch, read)
        if isinstance(logits, FakeTensor):  # a rehearsal: its loops along the steps would take minutes, and no memory
            return logits.float().log_softmax(-1).mean()
        if durations := list(getattr(self.config, "durations", ())):
            n = self.config.vocab_size
            total: Tensor = tdt_loss(
                logits[..., :n],
                logits[..., n:],
                labels,
                lengths,
                wanted.sum(-1),
                blank_token_id=self.blank,
                durations=durations,
                reduction="sum",
            )
        else:
            total = transducer_losses(logits, labels, lengths, wanted.sum(-1), blank=self.blank).sum()
        return total / wanted.sum()

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [clips, steps, vocabulary] of the first token at each step, and the steps that are not padding."""
        read = torch.full((len(batch["frames"]), 1), self.blank, device=batch["frames"].device)
        logits, lengths = self._joined(model, batch, read)
        return logits[:, :, 0], lengths

    def _joined(self, model: nn.Module, batch: Batch, read: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [clips, steps, tokens, vocabulary] after each token that is `read`, and the steps of each clip."""
        if not self.is_apart:
            logits = model(**inputs_of(batch), decoder_input_ids=read).logits
        else:
            passes = enumerate(each_alone(batch))
            each = [model(**inputs, decoder_input_ids=read[i : i + 1]).logits[0] for i, inputs in passes]
            logits = nn.utils.rnn.pad_sequence(each, batch_first=True)
        return logits, self._lengths(model, batch, most=logits.shape[1])

    def transcribe(self, model: nn.Module, batch: Batch) -> list[Transcript]:
        # A clip for which it writes without end is cut as it is alone, by its own length.
        most = self.config.max_symbols_per_step * count_steps(unwrap_model(model), batch["frames"]).to(torch.long)
        passes = zip(each_alone(batch), most, strict=True) if self.is_apart else [(inputs_of(batch), most.max())]
        write = generating_model(model).generate
        ids = [row for inputs, n in passes for row in write(**inputs, max_length=int(n)).sequences.cpu()]
        # Without blanks, which some tokenizers take for a word; equal neighbours are two tokens here.
        kept = [row[:n][row[:n] != self.blank] for row, n in zip(ids, most.tolist(), strict=True)]
        texts = [self.tokenizer.decode(row, skip_special_tokens=True, group_tokens=False) for row in kept]
        return [Transcript(text) for text in texts]

    # -------------------------------------------------------------------------------------- saving

    @property
    def setup(self) -> Sequence[Processor]:
        return [*super().setup, *([] if self.processor is None else [self.processor]), self.generation]

    def prepare(self, model: PreTrainedModel) -> list[str]:
        model.generation_config = copy.deepcopy(self.generation)
        return []


def transducer_losses(logits: Tensor, labels: Tensor, steps: Tensor, lengths: Tensor, *, blank: int) -> Tensor:
    """The negative log-likelihood of each text, over all ways to write it along the steps of its clip.

    logits: [clips, steps, tokens + 1, vocabulary], labels: [clips, tokens], steps and lengths: [clips].

    Of a step, all tokens are taken at once: with the sums over its row as a measure, the recursion along it is a
    cumulative sum. Source: Graves, https://arxiv.org/abs/1211.3711, section 2.4.
    """
    spread = logits.float().log_softmax(-1)
    skip = spread[..., blank]
    write = spread[:, :, :-1].gather(3, labels[:, None, :, None].expand(-1, logits.shape[1], -1, 1))[..., 0]
    if logits.device.type != "mps":  # which has no float64; sums over a long text are not what they differ by
        skip, write = skip.double(), write.double()
    sums = functional.pad(write.cumsum(-1), (1, 0))
    reached = [sums[:, 0]]
    for step in range(1, logits.shape[1]):
        here = sums[:, step]
        reached.append(here + torch.logcumsumexp(reached[-1] + skip[:, step - 1] - here, dim=-1))
    ends = torch.stack(reached, 1) + skip
    rows = torch.arange(len(labels), device=logits.device)
    return -ends[rows, steps.to(logits.device) - 1, lengths]


def _takes_language(config: PretrainedConfig, processor: ProcessorMixin) -> bool:
    known = inspect.signature(type(processor).__call__).parameters
    return hasattr(config, "default_prompt_id") and "language" in known


def _set_language(
    config: PretrainedConfig,
    processor: ProcessorMixin | None,
    sampling_hz: int,
    language: str | None,
    source: Checkpoint,
    *,
    trains: bool,
) -> None:
    """Write the language into the configuration, where a model is told one by a number (Nemotron 3.5)."""
    if processor is None or not _takes_language(config, processor):
        if language is not None:
            raise RecipeError(f"model.language: {source.display_name} takes none.")
        return
    if language is None:
        if trains:
            raise RecipeError(f"model.language: {source.display_name} knows several; name that of the text (`en-US`).")
        return
    try:
        found = processor(np.zeros(sampling_hz, np.float32), sampling_rate=sampling_hz, language=language)
    except (ValueError, KeyError) as error:
        raise RecipeError(f"model.language: {source.display_name}: {first_line(error)}") from error
    config.default_prompt_id = int(torch.as_tensor(found["prompt_ids"]).flatten()[0])
