"""Pretraining on text without labels: denoising, masked and causal language modelling."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.text import (
    CausalLanguageStage,
    MaskedLanguageStage,
    TextModel,
    TextObjectiveStage,
    UnlabelledTextData,
)
from tltasks.data.near_duplicates import Likeness, Texts
from tltasks.data.packing import packed_batch, padded, padded_inputs
from tltasks.data.seeding import draw_seed
from tltasks.data.splits import Columns, EncodedSplit, Split, row_title
from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.models.adapters import unwrap_model
from tltasks.models.cross_entropy import target_losses
from tltasks.models.decoder_trial import FAILS, Habits, at_rest, try_decoder
from tltasks.models.loading import ModelLoader, open_config, open_tokenizer
from tltasks.results.result import ReportExample
from tltasks.tasks.base import IGNORED, Batch, BuiltModel, InputKind, Prediction, Processor, content_key, digest_of
from tltasks.tasks.self_supervised import EVALUATION, SelfSupervisedTask, rounded
from tltasks.tasks.text.language_model import LanguageModelTask
from tltasks.tasks.text.objectives import (
    CausalLanguage,
    Ids,
    MaskedLanguage,
    TextObjective,
    check_room,
    choose_objective,
)
from tltasks.tasks.text.prompting import SUFFIXES, cut_shares, known_languages, set_language, token_counts, token_room
from tltasks.tasks.text.reading import (
    LEAST_ROOM,
    PLAIN,
    ROUNDING,
    TRIED_TOKENS,
    Around,
    Reading,
    around,
    find_reading,
    inputs_beside,
    until_read,
)
from tltasks.tasks.vocabulary import LOST, MOST_LOST, lost_columns, ordinary_ids, unknown_shares

Plan = StagePlan[TextModel, UnlabelledTextData, TextObjectiveStage]
FEWEST_TOKENS = 2
"""Tokens of a text: one to see and one to predict."""


@dataclass(frozen=True)
class TextPretraining(
    LanguageModelTask[UnlabelledTextData, TextObjectiveStage],
    SelfSupervisedTask[TextModel, UnlabelledTextData, TextObjectiveStage],
):
    """An objective on stretches of text, with a loss over tokens, in nats, and features of the whole text.

    Beside the loss stands how often the right token was the likeliest; features are the mean over a text that is not
    corrupted.
    """

    input_kind: ClassVar[InputKind] = InputKind("text", SUFFIXES, is_text=True)
    rows_name: ClassVar[str] = "texts"
    shown_rows: ClassVar[int] = 8
    head_name: ClassVar[str] = "the head that writes text"
    new_head_hint: ClassVar[str] = "for masked-language-modeling, `stage: transfer` puts a new one on its encoder."

    tokenizer: PreTrainedTokenizerBase
    objective: TextObjective
    max_tokens: int
    reading: Reading = PLAIN
    """How texts of unequal length go through a model of masked words."""
    around: Around = field(default_factory=dict)
    """What such a model is told, beside their ids, of the tokens around a text."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        config, name = open_config(source), source.display_name
        tokenizer = open_tokenizer(source)
        set_language(tokenizer, plan.model.language, known_languages(tokenizer, config, display_name=name))
        objective = choose_objective(tokenizer, plan.stage, display_name=name)
        if type(config) not in objective.auto_class._model_mapping:
            raise CheckpointError(
                f"model {name}: transformers has no {objective.name} for {config.model_type}. Encoder-decoders "
                "(T5, BART) are for text-denoising, encoders (BERT) for masked-language-modeling, decoders (GPT-2, "
                "Llama) for causal-language-modeling."
            )
        puts_new_head = plan.kind.weights == "checkpoint" and plan.kind.head == "new"
        if puts_new_head and not isinstance(plan.stage, MaskedLanguageStage):
            raise RecipeError(
                f"stage {plan.name}: `{plan.stage.stage}` puts a new head on a checkpoint, and a head that writes "
                "text is its vocabulary. Use `stage: finetune`."
            )
        tokens = token_room(config, tokenizer, plan.data.max_tokens, with_data=bool(splits), name=name)
        check_room(objective.frame, tokens)
        task = cls(plan, source, config, seed, tokenizer, objective, tokens)
        if not isinstance(objective, MaskedLanguage):
            return task
        size, beside = (len(objective.frame.before), len(objective.frame.after)), inputs_beside(tokenizer, source)
        return replace(task, around=around(tokenizer, beside, size, name=name))

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """The shares of texts that are longer than what is read at once, and of characters that cannot be written."""
        cut = cut_shares(encoded, self._room)
        unknown = unknown_shares(encoded, most=MOST_LOST, whose=self.source.display_name)
        return {name: cut[name] | unknown[name] for name in encoded}

    @property
    def _room(self) -> int:
        return self.max_tokens - len(self.objective.frame)

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return self.objective.auto_class

    @property
    def settings(self) -> dict[str, object]:
        objective = self.objective
        return {"objective": objective.name, "mask_ratio": objective.ratio, "max_tokens": self.max_tokens}

    @property
    def may_pack(self) -> bool:
        return isinstance(self.stage, CausalLanguageStage) and self.stage.packing

    def try_habits(self, model: PreTrainedModel) -> Habits | None:
        if not isinstance(self.objective, CausalLanguage):
            return None
        ids, name = ordinary_ids(self.tokenizer), self.source.display_name
        asked = getattr(model.generation_config, "num_beams", None) or 1  # by which the saved model is to write
        beams = asked if asked > 1 else None
        return try_decoder(model, ids, tokens=self.max_tokens, pad=self._pad, beams=beams, display_name=name)

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        try:
            found = super(TextPretraining, self.tried(built.model)).finish_build(built)
            if not found.task.habits.caches:
                found.model.generation_config.use_cache = False  # RWKV has no beams beside one (transformers 5.24)
            return found
        except FAILS as error:
            raise CheckpointError(
                f"model {self.source.display_name}: {type(built.model).__name__} cannot be trained by "
                f"{self.objective.name} ({first_line(error)})."
            ) from error

    def tried(self, model: PreTrainedModel) -> Self:
        """The task with what texts of unequal length need; raises CheckpointError for a model that reads no texts."""
        if not isinstance(self.objective, MaskedLanguage):
            return self
        return until_read(self, self.max_tokens, lambda tokens: replace(self, max_tokens=tokens)._tried(model))

    def _tried(self, model: PreTrainedModel) -> Self:
        assert isinstance(self.objective, MaskedLanguage)
        ordinary = np.asarray(self.objective.ordinary)
        drawn, first = np.random.default_rng(0), ordinary[:1]
        sizes = (1, 4, 11, min(self._room, TRIED_TOKENS) - 1)
        ids = [self.objective.frame(np.concatenate([first, drawn.choice(ordinary, n)])) for n in sizes]

        def answer(tried: PreTrainedModel, rows: Sequence[int], reading: Reading) -> Tensor:
            task = replace(self, reading=reading)
            return task.embed(tried, task._whole([ids[i] for i in rows]))

        found = replace(self, reading=find_reading(self, model, answer, len(ids), self.forget_passes))
        found._check_attention(model)
        return found

    def _check_attention(self, model: PreTrainedModel) -> None:
        """Raise CheckpointError for a model that makes the same of a token whatever stands around it."""
        assert isinstance(self.objective, MaskedLanguage)
        frame, (first, *others) = self.objective.frame, np.resize(self.objective.ordinary, 3)
        texts = [frame(np.array([first, *[other] * max(1, LEAST_ROOM - len(frame) - 1)])) for other in others]
        batch = self.reading.batch({"input_ids": texts}, pad=self._pad)
        with at_rest(model):
            logits = model(**self.inputs(model, batch)).logits[:, len(frame.before)].float()
        if not (logits - logits[0]).abs().max() > ROUNDING * logits.abs().max():
            raise CheckpointError(
                f"model {self.source.display_name}: {type(model).__name__} makes the same of a token whatever stands "
                "around it: what attends to others does not run on this machine (MRA's attention is zero without a GPU "
                "and the package `kernels`), or its weights are damaged."
            )

    def probe(self) -> Batch:
        return self._collate([np.array([3, 4, 5, 6])], EVALUATION, [0])

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        if not is_random:
            _draw_head(model, head)

    def head(self, model: nn.Module) -> list[str]:
        return own_head(unwrap_model(model))

    @property
    def setup(self) -> Sequence[Processor]:
        return [self.config, self.tokenizer]

    # --------------------------------------------------------------------------------------- rows

    @property
    def row_features(self) -> dict[str, datasets.Value]:
        return {"ids": datasets.List(datasets.Value("int32")), "tokens": datasets.Value("int32"), **LOST}

    @property
    def cache_key(self) -> str:
        return digest_of("texts", content_key(self.tokenizer), self.objective.closing)

    @property
    def likeness(self) -> Likeness:
        def read(columns: Columns) -> list[str]:  # encoded rows have no text
            if "text" in columns:
                return [str(text or "") for text in columns["text"]]
            return list(self.tokenizer.batch_decode(columns["ids"], skip_special_tokens=True))

        return Texts(("ids",), read)

    def encode(self, batch: Columns, split: Split) -> Columns:
        texts = ["" if text is None else str(text).strip() for text in batch["text"]]
        plain = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [[*row, *self.objective.closing] for row in plain]
        faults = [_fault(text, row) for text, row in zip(texts, plain, strict=True)]
        lost = lost_columns(self.tokenizer, texts, plain)
        return {"ids": ids, "tokens": [len(row) for row in ids], **lost, "error": faults}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        lengths: list[int] = (np.minimum(token_counts(rows), self._room) + len(self.objective.frame)).tolist()
        return lengths

    def collate(self, columns: Columns, *, epoch: int) -> Batch:
        texts = [
            self._stretch(np.array(ids), epoch, row) for ids, row in zip(columns["ids"], columns["row"], strict=True)
        ]
        batch = self._collate(texts, epoch, columns["row"])
        if epoch == EVALUATION:  # the text as it is, for features
            batch |= self._whole([self.objective.frame(ids) for ids in texts])
        return batch

    def _whole(self, texts: Sequence[Ids]) -> Batch:
        whole = self.reading.batch({"input_ids": texts}, pad=self._pad)
        return {"whole_ids": whole["input_ids"], "whole_seen": whole["attention_mask"]}

    def _stretch(self, ids: Ids, epoch: int, row: int) -> Ids:
        spare = len(ids) - self._room
        if spare <= 0 or epoch == EVALUATION:
            return ids[: self._room]
        start = int(np.random.default_rng(draw_seed("stretch", self.seed, epoch, row)).integers(0, spare + 1))
        return ids[start : start + self._room]

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def _collate(self, texts: Sequence[Ids], epoch: int, rows: Sequence[int]) -> Batch:
        drawn = [
            self.objective.corrupt(ids, np.random.default_rng(draw_seed("text", self.seed, epoch, row)))
            for ids, row in zip(texts, rows, strict=True)
        ]
        if isinstance(self.objective, CausalLanguage):
            whole = [read for read, _ in drawn]
            packed = self.packs and epoch != EVALUATION
            return packed_batch([ids[:1] for ids in whole], [ids[1:] for ids in whole], packed=packed)
        read, wanted = zip(*drawn, strict=True)
        if not isinstance(self.objective, MaskedLanguage):
            return {**padded_inputs(read, pad=self._pad), "labels": padded(wanted, fill=IGNORED)}
        named = {"input_ids": read, "labels": wanted}  # a target for each token that is read
        return self.reading.batch(named, pad=self._pad, ignored=IGNORED)

    # --------------------------------------------------------------------------------------- step

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, object]:
        return {**super().inputs(model, batch), **self._beside(batch.get("attention_mask"))}

    def _beside(self, seen: Tensor | None) -> dict[str, Tensor]:
        """Numbers of each token, beside its id, of texts of which so much is seen."""
        if seen is None or not self.around:
            return {}
        lengths, left = seen.sum(1).tolist(), self.reading.side == "left"
        rows = {
            name: [[*before, *[0] * (n - len(before) - len(after)), *after] for n in lengths]
            for name, (before, after) in self.around.items()
        }
        return {n: padded(r, fill=0, left=left, least=seen.shape[1]).to(seen.device) for n, r in rows.items()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        parts = self.reading.parts(batch)
        if len(parts) == 1:
            return self.token_loss(model, batch)
        sums = [self.token_loss(model, part) * self.num_targets(part) for _, part in parts]
        return torch.stack(sums).sum() / self.num_targets(batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The loss of each text and its features; `prediction` is its mean over targets."""
        found = {
            row: answer
            for rows, part in self.reading.parts(batch)
            for row, answer in zip(rows.tolist(), self._predict(model, part), strict=True)
        }
        return [found[row] for row in sorted(found)]

    def _predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        inputs, labels = self.inputs(unwrap_model(model), batch), batch["labels"]
        losses, right = target_losses(model, inputs, labels, chunked=self.chunked_loss)
        counts = (labels != IGNORED).sum(1).tolist()
        features = self.embed(model, batch).cpu().numpy()
        by_row = zip(*(torch.split(values.cpu(), counts) for values in (losses, right)), features, strict=True)
        return [
            {
                "prediction": rounded(float(loss.mean())),
                "loss": float(loss.double().sum()),
                "targets": len(loss),
                "right": int(hits.sum()),
                "features": vector,
            }
            for loss, hits, vector in by_row
        ]

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over a text of what the encoder, or the decoder where that is all, makes of it, [texts, width]."""
        plain = unwrap_model(model)
        body = plain.get_encoder() if self.config.is_encoder_decoder else plain.base_model

        def mean(part: Batch) -> Tensor:
            seen = part["attention_mask"]
            inputs = {body.main_input_name: part["input_ids"], "attention_mask": seen, **self._beside(seen)}
            states: Tensor = body(**inputs).last_hidden_state.float()
            if states.shape[1] != seen.shape[1]:  # Perceiver's are of no token
                return states.mean(1)
            return (states * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)

        whole = {"input_ids": batch["whole_ids"], "attention_mask": batch["whole_seen"]}
        return self.reading.run(mean, whole)

    # --------------------------------------------------------------------------------- evaluation

    def metrics(self, predictions: Sequence[Prediction]) -> tuple[dict[str, float], list[str]]:
        loss, right, targets = (sum(p[key] for p in predictions) for key in ("loss", "right", "targets"))
        values = {"masked_accuracy": right / targets}
        if isinstance(self.objective, CausalLanguage):
            values["perplexity"] = math.exp(min(700.0, loss / targets))
        return values, []

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """Each token by how often it is asked for in these very rows: the best that can be done without context."""
        asked: list[list[int]] = []
        for start in range(0, len(rows), 64):
            labels = self.collate_eval(rows, range(start, min(start + 64, len(rows))))["labels"]
            asked += [row[row != IGNORED].tolist() for row in labels]
        counts = Counter(token for row in asked for token in row)
        likeliest, total = counts.most_common(1)[0][0], counts.total()
        guesses: list[Prediction] = []
        for row in asked:
            loss = -sum(math.log(counts[token] / total) for token in row)
            mean = rounded(loss / len(row))
            guesses.append({"prediction": mean, "loss": loss, "targets": len(row), "right": row.count(likeliest)})
        return {"token_frequencies": guesses}

    def own_columns(self, predictions: Sequence[Prediction]) -> Columns:
        return {name: [p[name] for p in predictions] for name in ("targets", "right")}

    def report_example(self, rows: datasets.Dataset, row: int, prediction: Prediction) -> ReportExample:
        """A text that is hard to complete: what was read, and what was to be written."""
        batch, title = self.collate_eval(rows, [row]), f"loss {prediction['loss'] / prediction['targets']:.3f}"
        read, wanted = batch["input_ids"][0], batch["labels"][0]
        texts = {"read": self.tokenizer.decode(read), "asked for": self.tokenizer.decode(wanted[wanted != IGNORED])}
        return ReportExample("texts", title, row_title(rows, row), json.dumps(texts).encode())


# ------------------------------------------------------------------------------------------ the tasks


class TextDenoising(TextPretraining):
    """T5's span corruption or BART's infilling, as the vocabulary has sentinels or a mask."""

    tag: ClassVar[str] = "text-denoising"


class MaskedLanguageModeling(TextPretraining):
    """BERT's objective."""

    tag: ClassVar[str] = "masked-language-modeling"


class CausalLanguageModeling(TextPretraining):
    """GPT's objective."""

    tag: ClassVar[str] = "causal-language-modeling"


# ----------------------------------------------------------------------------------------- texts, heads


def _fault(text: str, ids: Sequence[int]) -> str | None:
    if not text:
        return "empty text"
    return f"has a text of {len(ids)} tokens; {FEWEST_TOKENS} are needed" if len(ids) < FEWEST_TOKENS else None


def own_head(model: PreTrainedModel) -> list[str]:
    """Modules on the encoder and the decoder: those beside the base model, or the one that writes tokens (T5)."""
    base = model.base_model_prefix
    if hasattr(model, base):
        return [name for name, _ in model.named_children() if name != base]
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _draw_head(model: PreTrainedModel, head: list[str]) -> None:
    """Draw the head anew, but for what it shares with the embeddings of the input."""
    shared = {id(p) for p in model.get_input_embeddings().parameters()}
    for name in head:
        for module in model.get_submodule(name).modules():
            own = list(module.parameters(recurse=False))
            if not any(id(parameter) in shared for parameter in own):
                for parameter in own:
                    # transformers 5 (initialization.py) leaves loaded weights alone by this mark.
                    parameter._is_hf_initialized = False
                model._init_weights(module)
