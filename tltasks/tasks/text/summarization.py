"""Summarisation with any checkpoint that AutoModelForSeq2SeqLM or AutoModelForCausalLM loads."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.text import TextData, TextModel, TextStage
from tltasks.data.corruptions import corrupt_rows, corrupt_text
from tltasks.data.languages import Languages
from tltasks.data.packing import packed_batch, padded, padded_inputs, shifted
from tltasks.data.splits import LANGUAGE, Columns, EncodedSplit, Split, row_title
from tltasks.errors import CheckpointError, RecipeError
from tltasks.metrics import extractiveness, rouge
from tltasks.metrics.intervals import score_interval
from tltasks.models.adapters import generating_model, unwrap_model
from tltasks.models.cross_entropy import target_losses
from tltasks.models.decoder_trial import Habits, try_decoder
from tltasks.models.encoder_trial import reads_padded
from tltasks.models.loading import ModelLoader, open_config
from tltasks.models.writing import read_in_parts, write
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import (
    IGNORED,
    Batch,
    BuiltModel,
    InputKind,
    Outputs,
    Prediction,
    Processor,
    References,
    RowScores,
)
from tltasks.tasks.chat import PROMPT_DATE
from tltasks.tasks.text import prompting
from tltasks.tasks.text.baselines import DEFAULT_LEAD, Lead, choose_lead
from tltasks.tasks.text.language_model import LanguageModelTask
from tltasks.tasks.vocabulary import MOST_LOST, MOST_UNREAD, lost_share, n_characters, ordinary_ids

Plan = StagePlan[TextModel, TextData, TextStage]
PIECES_AT_ONCE = 16
"""Pieces in a pass of one document that is longer than the model reads at once."""
PASSES_TOGETHER = 8
"""Passes of a CPU through an encoder for which a decoder writes at once; the keys of all have to be in memory."""
SHOWN_EXAMPLES = 3
"""Worst, median and best summaries of the report, of each as many."""


@dataclass(frozen=True)
class Pair:
    """One row's texts, read when they are needed: documents of a whole split may not fit in memory."""

    rows: datasets.Dataset
    row: int

    @property
    def document(self) -> str:
        return str(self.rows[self.row]["document"])

    @property
    def summary(self) -> str:
        return str(self.rows[self.row]["summary"])


@dataclass(frozen=True)
class Summarization(LanguageModelTask[TextData, TextStage]):
    """One stage's view of a summariser: how it reads, writes, and is compared with the lead."""

    tag: ClassVar[str] = "summarization"
    higher_is_better: ClassVar[bool] = True
    top_score: ClassVar[float | None] = 100.0
    input_kind: ClassVar[InputKind] = InputKind("document", prompting.SUFFIXES, is_text=True)
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("string")})
    converts: ClassVar[bool] = True
    head_name: ClassVar[str] = "the head that writes text"
    new_head_hint: ClassVar[str] = "name a checkpoint that was trained to write."

    form: prompting.TextFormat
    splits: dict[str, Split]

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        if plan.kind.weights == "checkpoint" and plan.kind.head == "new":
            raise RecipeError(
                f"stage {plan.name}: `{plan.stage.stage}` puts a new head on a checkpoint, and a summariser's head is "
                "its vocabulary. Use `stage: finetune`."
            )
        config = open_config(source)
        _check_architecture(config, source)
        if not splits:
            plan = replace(plan, data=prompting.own_limits(source, config, plan.data))
        elif not plan.kind.trains and "max_summary_tokens" not in plan.data.model_fields_set:
            own = prompting.own_summary_limit(source, config) or plan.data.max_summary_tokens
            plan = replace(plan, data=plan.data.model_copy(update={"max_summary_tokens": own}))
        by_row = plan.data.columns.language is not None or not splits
        form = prompting.open_format(source, config, plan.model, plan.data, by_row=by_row)
        config.task_specific_params = prompting.stored_task(form, prompting.stored_batches(config))
        return cls(plan, source, config, seed, form, splits)

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        keys = self.plan.data
        unknown = self._check_vocabulary(encoded)
        found = check_pairs(
            encoded,
            max_document_tokens=keys.max_document_tokens,
            max_summary_tokens=keys.max_summary_tokens,
            splits_long=self.form.splits,
        )
        return {name: counts | unknown[name] for name, counts in found.items()}

    def _check_vocabulary(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """The shares of characters that are lost; raises DataError where that would teach the model other summaries."""
        whose, found = self.source.display_name, dict[str, dict[str, float]]()
        most_lost = MOST_LOST if self.stage.trains else 1.0  # the summaries themselves are what answers are scored by
        for name, split in encoded.items():
            found[name] = {
                f"{part}_characters_unknown_share": lost_share(
                    split.rows[f"{part}_lost"],
                    sum(map(n_characters, split.rows[part])),
                    most=most,
                    where=f"{split.origin}: column `{part}`: the tokenizer of {whose} does not know",
                )
                for part, most in (("document", MOST_UNREAD), ("summary", most_lost))
            }
        return found

    @property
    def notes(self) -> list[str]:
        told = (
            f"the chat template says what day it is; {PROMPT_DATE:%d %B %Y} stands in it, here and where it is saved."
        )
        return [told] if self.form.dated else []

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return _loader(self.config)

    @property
    def settings(self) -> dict[str, object]:
        told: dict[str, object] = {"prompt_date": PROMPT_DATE.isoformat()} if self.form.dated else {}
        if self.form.tail:
            told["prompt_tail"] = self.form.tail
        return told | {
            "prompt": self.form.prompt,
            "chat": self.form.chat,
            "encoder_decoder": self.form.encoder_decoder,
            "max_document_tokens": self.form.max_document_tokens,
            "long_documents": self.plan.data.long_documents,
        }

    @property
    def passes_together(self) -> int:
        return PASSES_TOGETHER if self.form.encoder_decoder else 1

    @property
    def languages(self) -> Languages:
        return self.form.languages

    @property
    def may_pack(self) -> bool:
        return not self.form.encoder_decoder and self.stage.packing

    def probe(self) -> Batch:
        return self._collate([[self.form.end] * 3], [[self.form.end] * 2])

    def examples(self) -> Columns:
        return super().examples() | {"summary": ["a", "the"]}

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        """Leave a head as it was drawn: only models that are random as a whole have a new one."""

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        built = super().finish_build(built)
        model, habits = built.model, built.task.habits
        model.generation_config = self._decoding(model)
        if not habits.caches:
            model.generation_config.use_cache = False
        for config in (self.config, model.config):
            config.task_specific_params = prompting.stored_task(self.form, None if habits.pads else habits.batches)
        settings = {
            **built.provenance.settings,
            "decoding": _decoding_words(model.generation_config),
            "global_attention": _has_global_attention(model),
            "line_end": prompting.LINE_END in self.form.tokenizer.get_vocab(),
        }
        return replace(built, provenance=replace(built.provenance, settings=settings))

    def try_habits(self, model: PreTrainedModel) -> Habits | None:
        form, most = self.form, self.form.max_document_tokens + self.form.max_summary_tokens
        ids, name = ordinary_ids(form.tokenizer), self.source.display_name
        if form.encoder_decoder:
            longest = form.max_document_tokens
            padded = reads_padded(model, ids, tokens=longest, run=self._read, display_name=name)
            return Habits(batches="any rows" if padded else "equal lengths")
        beams = self._decoding(model).num_beams or 1
        return try_decoder(model, ids, tokens=most, pad=form.pad, beams=beams, display_name=name)

    def _read(self, model: PreTrainedModel, documents: list[list[int]]) -> Tensor:
        """The logits of an encoder-decoder for each document's first tokens."""
        batch = self._collate(documents, [[self.form.end] * 3] * len(documents))
        inputs = self.inputs(model, {name: values.to(model.device) for name, values in batch.items()})
        logits: Tensor = model(**inputs).logits.float()
        return logits

    def _decoding(self, model: PreTrainedModel) -> GenerationConfig:
        return self.form.decoding(model.generation_config, self.plan.model.generation)

    def head(self, model: nn.Module) -> list[str]:
        head = unwrap_model(model).get_output_embeddings()
        return [name for name, module in model.named_modules() if module is head]

    @property
    def setup(self) -> Sequence[Processor]:
        return [self.config, self.form.tokenizer]

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        super().save(folder, model, adapter=adapter)
        if adapter:
            unwrap_model(model).generation_config.save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
        if (folder / "generation_config.json").is_file():  # which an adapter has beside it
            unwrap_model(model).generation_config = GenerationConfig.from_pretrained(folder)
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        number, text = datasets.Value("int32"), datasets.Value("string")
        ids = datasets.List(number)
        return datasets.Features(
            {
                "document": text,
                "summary": text,
                "document_ids": ids,
                "summary_ids": ids,
                "pieces": datasets.List(ids),
                "document_tokens": number,
                "summary_tokens": number,
                "document_lost": text,
                "summary_lost": text,
                "length": number,
            }
        )

    @property
    def cache_key(self) -> str:
        return self.form.key

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        summarised = "summary" in split.rows.column_names

        def encode(batch: Columns) -> Columns:
            documents = [_text(value) for value in batch["document"]]
            summaries = [_text(value) for value in batch["summary"]] if summarised else [""] * len(documents)
            faults = [_fault(d, s if summarised else None) for d, s in zip(documents, summaries, strict=True)]
            names = batch.get(LANGUAGE)
            if names is None and self.languages.codes and self.languages.default is None:
                faults = [
                    fault or f"has no language, and {self.source.display_name} is told each row's" for fault in faults
                ]
            encoded = self._encode(documents, summaries, names, trains=split.name == "train")
            return {**encoded, "row": batch["row"], "error": faults}

        return encode

    def _told(self, names: Sequence[str | None] | None) -> list[int] | None:
        """Ids of rows' languages, by their names in the data; None where the model is told none."""
        return None if names is None or not self.languages.codes else [self.form.own_language(name) for name in names]

    def _encode(
        self, documents: list[str], summaries: list[str], names: Sequence[str | None] | None, *, trains: bool
    ) -> Columns:
        told: Sequence[int | None] = self._told(names) or [None] * len(documents)
        document_ids, document_tokens, document_lost = self.form.encode_documents(documents)
        summary_ids, summary_tokens, summary_lost = self.form.encode_summaries(summaries)
        in_pieces = self.form.splits and not trains  # training sees a bounded length
        pieces = self.form.encode_pieces(documents) if in_pieces else [[ids] for ids in document_ids]
        pieces = [[self.form.in_language(ids, own) for ids in of] for of, own in zip(pieces, told, strict=True)]
        document_ids, summary_ids = (
            [self.form.in_language(ids, own) for ids, own in zip(rows, told, strict=True)]
            for rows in (document_ids, summary_ids)
        )
        return {
            "document": documents,
            "summary": summaries,
            "document_ids": document_ids,
            "summary_ids": summary_ids,
            "pieces": pieces,
            "document_tokens": document_tokens,
            "summary_tokens": summary_tokens,
            "document_lost": document_lost,
            "summary_lost": summary_lost,
            "length": [sum(map(len, p)) + len(s) for p, s in zip(pieces, summary_ids, strict=True)],
        }

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        documents = corrupt_rows(corrupt_text, columns["document"], columns["row"], kind, level, seed=seed)
        kept = {name: columns[name] for name in ("row", LANGUAGE) if name in columns}
        return {**self._encode(documents, columns["summary"], columns.get(LANGUAGE), trains=False), **kept}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        lengths: Sequence[int] = rows.with_format("numpy")["length"][:]
        return lengths

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows.select_columns(_present(rows, "pieces", LANGUAGE))[list(indices)]
        return self._asked_in_pieces(columns["pieces"], self._told(columns.get(LANGUAGE)))

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        columns = rows.select_columns(_present(rows, "document_ids", "summary_ids", LANGUAGE))[list(indices)]
        told = self._told(columns.get(LANGUAGE))
        batch = self._collate(columns["document_ids"], columns["summary_ids"])
        return batch if told is None else {**batch, "language": torch.tensor(told)}

    def _asked_in_pieces(self, documents: Sequence[Sequence[Sequence[int]]], told: Sequence[int] | None) -> Batch:
        piece_of = [i for i, pieces in enumerate(documents) for _ in pieces]
        languages = {} if told is None else {"language": torch.tensor([told[row] for row in piece_of])}
        asked = self._asked([ids for pieces in documents for ids in pieces])
        return {**asked, **languages, "piece_of": torch.tensor(piece_of)}

    def _asked(self, documents: Sequence[Sequence[int]]) -> Batch:
        """A batch to generate summaries from; a decoder goes on from its right end, so its padding is at the left."""
        return padded_inputs(documents, pad=self.form.pad, left=not self.form.encoder_decoder)

    def _collate(self, documents: Sequence[Sequence[int]], summaries: Sequence[Sequence[int]]) -> Batch:
        if self.form.encoder_decoder:
            return {**self._asked(documents), "labels": padded(summaries, fill=IGNORED)}
        prompts, answers = ([np.array(ids, dtype=np.int64) for ids in rows] for rows in (documents, summaries))
        return packed_batch(prompts, answers, packed=self.packs)

    # --------------------------------------------------------------------------------------- step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        parts = [batch] if self.habits.pads or not self.form.encoder_decoder else [part for _, part in _by_size(batch)]
        shares = [self.num_targets(part) / self.num_targets(batch) for part in parts]
        losses = (self.token_loss(model, part, smoothing=self.stage.label_smoothing) for part in parts)
        return torch.stack([share * loss for share, loss in zip(shares, losses, strict=True)]).sum()

    def collate_outputs(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        return self.collate_train(rows, indices, epoch=0)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """The loss of each token of the reference summaries."""
        inputs = self.inputs(unwrap_model(model), batch)
        return {"losses": target_losses(model, inputs, batch["labels"], chunked=self.chunked_loss)[0]}

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, object]:
        found = super().inputs(model, batch) | self.global_attention(model, batch["input_ids"])
        if "language" in batch and self.form.start == self.form.language:  # what a decoder writes after is the language
            ids = self.decoder_inputs(model, batch["labels"])
            found["decoder_input_ids"] = torch.cat([batch["language"][:, None], ids[:, 1:]], 1)
        return found

    def decoder_inputs(self, model: PreTrainedModel, labels: Tensor) -> Tensor:
        return shifted(labels, start=self.form.start, fill=self.form.pad)

    def global_attention(self, model: PreTrainedModel, input_ids: Tensor) -> dict[str, Tensor]:
        """LED's first token sees, and is seen by, all. Source: Beltagy et al., https://arxiv.org/abs/2004.05150, §5."""
        if not _has_global_attention(model):
            return {}
        everywhere = torch.zeros_like(input_ids)
        everywhere[:, 0] = 1
        return {"global_attention_mask": everywhere}

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        written = self._write_pieces(model, batch)
        joined = ["\n".join(text for text in texts if text) for texts in written]
        # Together they may be too long for a summary; then they are the document of one.
        sizes = self.form.encode_summaries(joined)[1]
        again = [i for i, texts in enumerate(written) if len(texts) > 1 and sizes[i] > self.form.max_summary_tokens]
        if again:
            device, rows = batch["input_ids"].device, [batch["piece_of"].tolist().index(i) for i in again]
            told = batch["language"][rows].tolist() if "language" in batch else [None] * len(again)
            ids = self.form.encode_documents([joined[i] for i in again])[0]
            asked = self._asked([self.form.in_language(row, own) for row, own in zip(ids, told, strict=True)])
            if "language" in batch:
                asked["language"] = batch["language"][rows]
            texts = self._write(model, {name: values.to(device) for name, values in asked.items()})
            joined = [dict(zip(again, texts, strict=True)).get(i, text) for i, text in enumerate(joined)]
        return [
            {"prediction": text, "pieces": len(written[i]), "summarised_twice": i in again}
            for i, text in enumerate(joined)
        ]

    def _write_pieces(self, model: nn.Module, batch: Batch) -> list[list[str]]:
        """The texts that are generated for the pieces of each row."""
        piece_of = batch["piece_of"].tolist()
        written: list[list[str]] = [[] for _ in range(piece_of[-1] + 1)]
        # Passes are cut between rows, and one long document alone may be far more than a pass.
        at_once = PIECES_AT_ONCE if len(written) == 1 else len(piece_of)
        for start in range(0, len(piece_of), at_once):
            some = {name: values[start : start + at_once] for name, values in batch.items()}
            for row, text in zip(piece_of[start : start + at_once], self._write(model, some), strict=True):
                written[row].append(text)
        return written

    def _write(self, model: nn.Module, batch: Batch) -> list[str]:
        """The text that is generated for each row of the batch, at once as far as the model may be asked so."""
        inputs = {name: values for name, values in batch.items() if name in ("input_ids", "attention_mask", "language")}
        batches = prompting.stored_batches(unwrap_model(model).config)
        if batches is None:
            return self._generate(model, inputs)
        texts = [""] * len(inputs["input_ids"])
        for rows, part in _by_size(inputs, single=batches == "single rows"):
            for row, text in zip(rows, self._generate(model, part), strict=True):
                texts[row] = text
        return texts

    def _generate(self, model: nn.Module, inputs: Batch) -> list[str]:
        own, writer = unwrap_model(model), generating_model(model)
        generation = self._decoding(own)
        inputs, first = dict(inputs), None
        if (told := inputs.pop("language", None)) is not None:
            if self.form.start == self.form.language:
                generation.decoder_start_token_id = told.tolist()
            else:
                first = told
        asked = {**inputs, **self.global_attention(own, inputs["input_ids"])}
        if self.passes_together > 1 and inputs["input_ids"].numel() > self.cpu_batch_budget and writer is own:
            asked = read_in_parts(own, asked, budget=self.cpu_batch_budget) or asked
        written = write(writer, asked, generation=generation, first=first)
        start = 0 if self.form.encoder_decoder else inputs["input_ids"].shape[1]
        return [self.form.decode(ids) for ids in written[:, start:]]

    # --------------------------------------------------------------------------------- evaluation

    def target_texts(self, rows: datasets.Dataset) -> list[str]:
        return list(rows["summary"])

    def references(self, rows: datasets.Dataset) -> list[Pair]:
        texts = rows.select_columns(["document", "summary"])
        return [Pair(texts, row) for row in range(len(texts))]

    @property
    def headline(self) -> str:
        return self.stage.metric or "rouge1"

    def row_scores(self, predictions: Sequence[Prediction], references: References) -> RowScores:
        scores = _all_row_scores(predictions, references)[:, rouge.KINDS.index(self.headline)]
        return np.stack([scores, np.ones(len(scores))], axis=1)

    def score(self, predictions: Sequence[Prediction], references: References, *, intervals: bool) -> Score:
        scores = _all_row_scores(predictions, references)
        values = dict(zip(rouge.KINDS, map(float, scores.mean(0)), strict=True))
        values |= _statistics([p["prediction"] for p in predictions], references)
        if not intervals:
            return Score(values, self.headline)
        ends = {
            kind: score_interval(np.stack([column, np.ones(len(column))], axis=1), most=self.top_score)
            for kind, column in zip(rouge.KINDS, scores.T, strict=True)
        }
        details = {
            "ci95": {kind: list(interval) for kind, interval in ends.items()},
            "split_in_pieces": sum(p.get("pieces", 1) > 1 for p in predictions),
            "summarised_twice": sum(p.get("summarised_twice", False) for p in predictions),
        }
        return Score(values, self.headline, ends[self.headline], details)

    @cached_property
    def lead(self) -> Lead:
        """The lead baseline, its length chosen on validation, or on train where there is none."""
        split = self.splits.get("validation") or self.splits.get("train")
        if split is None:
            return DEFAULT_LEAD
        texts = ([_text(value) for value in split.rows[column]] for column in ("document", "summary"))
        pairs = [pair for pair in zip(*texts, strict=True) if _fault(*pair) is None]
        if not pairs:
            return DEFAULT_LEAD
        return choose_lead(*zip(*pairs, strict=True), seed=self.seed)

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        return {self.lead.name: [{"prediction": self.lead(pair.document)} for pair in self.references(rows)]}

    def columns(self, predictions: Sequence[Prediction], references: References) -> Columns:
        scores = _all_row_scores(predictions, references)
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": [pair.summary for pair in references],
            **{kind: column.tolist() for kind, column in zip(rouge.KINDS, scores.T, strict=True)},
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: References
    ) -> list[ReportExample]:
        """The worst, the median and the best summaries, each with its document and the reference."""
        scores = self.row_scores(predictions, references)[:, 0]
        order = np.argsort(scores, kind="stable").tolist()
        n, middle = min(SHOWN_EXAMPLES, -(-len(order) // 3)), len(order) // 2
        shown = []
        for kind, chosen in (("worst", order[:n]), ("median", order[middle - n // 2 :][:n]), ("best", order[-n:])):
            for i in chosen:
                texts = {
                    "document": references[i].document,
                    "reference": references[i].summary,
                    "summary": predictions[i]["prediction"],
                }
                caption = f"{kind} · {row_title(rows, i)}"
                shown.append(ReportExample("texts", f"ROUGE-1 {scores[i]:.1f}", caption, json.dumps(texts).encode()))
        return shown


# -------------------------------------------------------------------------------------------- texts


def _by_size(batch: Batch, *, single: bool = False) -> Iterator[tuple[list[int], Batch]]:
    """Rows of each number of tokens, or each row, and the batch of these without padding, which is all on one side."""
    seen = batch["attention_mask"]
    sizes = seen.sum(1).tolist()
    keys = range(len(sizes)) if single else sizes
    for key in sorted(set(keys)):
        rows = [row for row, own in enumerate(keys) if own == key]
        size = sizes[rows[0]]
        cut = slice(size) if bool(seen[rows[0], 0]) else slice(-size, None)
        yield rows, {k: v[rows, cut] if k in ("input_ids", "attention_mask") else v[rows] for k, v in batch.items()}


def _present(rows: datasets.Dataset, *names: str) -> list[str]:
    return [name for name in names if name in rows.column_names]


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _fault(document: str, summary: str | None) -> str | None:
    empty = [name for name, text in (("document", document), ("summary", summary)) if text == ""]
    return f"empty {' and '.join(empty)}" if empty else None


def _all_row_scores(predictions: Sequence[Prediction], references: Sequence[Pair]) -> NDArray[np.float64]:
    return rouge.row_scores([p["prediction"] for p in predictions], [pair.summary for pair in references])


def _statistics(summaries: Sequence[str], references: Sequence[Pair]) -> dict[str, float]:
    """Means over rows: the share of a summary that its document has, and its length against the reference's."""
    rows = []
    for summary, pair in zip(summaries, references, strict=True):
        written, document = rouge.tokens(summary), rouge.tokens(pair.document)
        coverage, density = extractiveness.coverage_and_density(document, written)
        rows.append(
            (
                len(written),
                len(rouge.tokens(pair.summary)),
                coverage,
                density,
                extractiveness.repetition(written),
                extractiveness.new_ngrams(document, written),
            )
        )
    n_written, n_reference, coverage, density, repetition, new = np.mean(rows, axis=0).tolist()
    return {
        "length_ratio": n_written / max(n_reference, 1e-12),
        "coverage": coverage,
        "density": density,
        "repetition": repetition,
        "new_bigrams": new,
    }


def _loader(config: PretrainedConfig) -> type[_BaseAutoModelClass]:
    loader: type[_BaseAutoModelClass] = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return loader


def _check_architecture(config: PretrainedConfig, source: Checkpoint) -> None:
    """Raise CheckpointError for models of pictures, of sound or without a head that writes."""
    own_code = source.trust_remote_code and getattr(config, "auto_map", None)
    if type(config) not in _loader(config)._model_mapping and not own_code:
        raise CheckpointError(
            f"model {source.display_name}: transformers has no model of kind {config.model_type} that reads a text and "
            "writes another. Name an encoder-decoder (T5, BART, …) or a decoder (GPT-2, Llama, …)."
        )


def _has_global_attention(model: PreTrainedModel) -> bool:
    return "global_attention_mask" in inspect.signature(model.forward).parameters


def _decoding_words(config: GenerationConfig) -> str:
    """The settings that decide what is generated, as one line."""
    shown = ("num_beams", "max_new_tokens", "min_new_tokens", "min_length", "length_penalty", "early_stopping")
    values = {name: getattr(config, name, None) for name in (*shown, "no_repeat_ngram_size", "repetition_penalty")}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


# ------------------------------------------------------------------------------------- checks of the data


def check_pairs(
    splits: Mapping[str, EncodedSplit], *, max_document_tokens: int, max_summary_tokens: int, splits_long: bool
) -> dict[str, dict[str, float]]:
    """Counts by split; documents are the same when they differ in case and white space alone.

    `splits_long`: outside training, documents beyond the limit are read in pieces, not cut.
    """
    digests = {name: [_digest(document) for document, *_ in _rows(split)] for name, split in splits.items()}
    train = set(digests.get("train", ()))
    found: dict[str, dict[str, float]] = {}
    for name, split in splits.items():
        counts: dict[str, float] = {
            "summaries_equal_to_document": 0,
            "summaries_longer_than_document": 0,
            "repeated_documents": len(digests[name]) - len(set(digests[name])),
        }
        cut_documents = cut_summaries = 0
        for document, summary, document_tokens, summary_tokens in _rows(split):
            counts["summaries_equal_to_document"] += _plain(document) == _plain(summary)
            counts["summaries_longer_than_document"] += len(summary) > len(document)
            cut_documents += document_tokens > max_document_tokens
            cut_summaries += summary_tokens > max_summary_tokens
        if name != "train" and "train" in splits:
            counts["documents_also_in_train"] = sum(digest in train for digest in digests[name])
        n_rows = max(1, len(split.rows))
        fate = "split" if splits_long and name != "train" else "cut"
        counts |= {f"documents_{fate}_share": cut_documents / n_rows, "summaries_cut_share": cut_summaries / n_rows}
        found[name] = counts
    return found


def _rows(split: EncodedSplit) -> Iterator[tuple[str, str, int, int]]:
    columns = ["document", "summary", "document_tokens", "summary_tokens"]
    for row in split.rows.select_columns(columns):
        yield row["document"], row["summary"], row["document_tokens"], row["summary_tokens"]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(_plain(text).encode(), digest_size=12).digest()
