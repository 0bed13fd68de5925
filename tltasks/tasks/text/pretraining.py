"""Pretraining on text without labels: denoising, masked and causal language modelling."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.text import (
    CausalLanguageStage,
    MaskedLanguageStage,
    TextModel,
    TextObjectiveStage,
    UnlabelledTextData,
)
from tltasks.data.packing import attention_mask, keeps_examples_apart, packed_batch, padded
from tltasks.data.seeding import draw_seed
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.cross_entropy import has_plain_head, mean_loss, target_losses, unwrap_model
from tltasks.models.loading import check_loaded, load_pretrained, load_saved, open_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, Prediction
from tltasks.tasks.self_supervised import EVALUATION, label_namer, loss_rows, score_objective
from tltasks.tasks.text.objectives import CausalLanguage, Ids, TextObjective, check_room, choose_objective
from tltasks.tasks.text.prompting import SUFFIXES, open_tokenizer, positions, set_language, tokenizer_key

FEWEST_TOKENS = 2
"""Of a text: one to see and one to predict."""
SHOWN = 8
"""Texts of the report."""


@dataclass(frozen=True)
class TextPretraining:
    """What the three tasks have in common: texts in stretches, a loss over tokens, features of the whole text.

    The headline is the mean loss, in nats, over the tokens asked for in texts held out, under draws that are always
    the same. Beside it stand how often the right token was the likeliest, how well features (the mean over a text that
    is not corrupted) tell apart labels that the data may have, and how far features of different texts spread.
    """

    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    input_kind: ClassVar[InputKind] = InputKind("text", SUFFIXES, is_text=True)
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("float32")})

    source: Checkpoint
    config: PretrainedConfig
    tokenizer: Any
    objective: TextObjective
    max_tokens: int
    stage: TextObjectiveStage
    seed: int
    packs: bool = False
    """Whether the model takes several examples in a row; `build` finds it out, and it changes no result."""
    chunked_loss: bool = False
    """Whether the loss may be computed some targets at a time, likewise."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, TextModel)
        assert isinstance(plan.data, UnlabelledTextData)
        assert isinstance(plan.stage, TextObjectiveStage)
        config = open_config(source.name, shown=source.display_name, **source.arguments())
        tokenizer = open_tokenizer(source.name, shown=source.display_name, **source.arguments())
        set_language(tokenizer, plan.model.language, shown=source.display_name)
        objective = choose_objective(tokenizer, plan.stage, shown=source.display_name)
        if type(config) not in objective.auto_class._model_mapping:
            raise CheckpointError(
                f"model {source.display_name}: transformers has no {objective.name} for {config.model_type}. "
                "Encoder-decoders (T5, BART) are for text-denoising, encoders (BERT) for masked-language-modeling, "
                "decoders (GPT-2, Llama) for causal-language-modeling."
            )
        if (
            plan.kind.weights == "checkpoint"
            and plan.kind.head == "new"
            and not isinstance(plan.stage, MaskedLanguageStage)
        ):
            raise RecipeError(
                f"stage {plan.name}: `{plan.stage.stage}` puts a new head on a checkpoint, and a head that writes "
                "text is its vocabulary. Use `stage: finetune`."
            )
        longest = positions(config)[0]
        if longest is not None:  # RoBERTa's table has two positions that are never used
            longest = min(longest, tokenizer.model_max_length)
        tokens = plan.data.max_tokens if splits else min(plan.data.max_tokens, longest or plan.data.max_tokens)
        check_room(objective.frame, tokens, longest, shown=source.display_name)
        return cls(source, config, tokenizer, objective, tokens, plan.stage, seed)

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """How many texts are longer than what is read of them at once."""
        found = {}
        for name, split in encoded.items():
            sizes = np.asarray(split.rows.with_format("numpy")["tokens"][:])
            found[name] = {"texts_cut_share": float((sizes > self._room).mean())}
        return found

    @property
    def _room(self) -> int:
        return self.max_tokens - len(self.objective.frame)

    # -------------------------------------------------------------------------------------- model

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        model, loaded = load_pretrained(
            self.objective.auto_class,
            copy.deepcopy(self.config),
            self.source.name,
            shown=self.source.display_name,
            random=kind.weights == "random",
            **self.source.arguments(),
        )
        head = own_head(model)
        if kind.head == "new" and kind.weights != "random":
            _draw_head(model, head)
        elif lost := [n for n in loaded["newly_initialised"] if n.startswith(tuple(f"{h}." for h in head))]:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for the head that writes text "
                f"({', '.join(lost[:3])}); for masked-language-modeling, `stage: transfer` puts a new one on "
                "its encoder."
            )
        share = check_loaded(model, loaded["newly_initialised"], head=head, shown=self.source.display_name)
        packs = isinstance(self.stage, CausalLanguageStage) and self.stage.packing and keeps_examples_apart(model)
        task = dataclasses.replace(self, packs=packs)
        probe = task._collate([np.array([3, 4, 5, 6])], EVALUATION, [0])
        chunked = has_plain_head(model, task._inputs(model, probe), probe["labels"])
        provenance = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "objective": self.objective.name,
            "mask_ratio": self.objective.ratio,
            "max_tokens": self.max_tokens,
            **loaded,
            "loaded_share": share,
            "packing": packs,
            "chunked_loss": chunked,
        }
        return BuiltModel(model, dataclasses.replace(task, chunked_loss=chunked), provenance)

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        return own_head(unwrap_model(model))

    def lora_targets(self, model: nn.Module) -> list[str]:
        return find_lora_targets(model, head=self.head(model))

    def save_setup(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source, config = self.source, copy.deepcopy(self.config)
        return load_saved(self.objective.auto_class, folder, base=source.name, config=config, **source.arguments())

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features(
            {
                "ids": datasets.List(datasets.Value("int32")),
                "tokens": datasets.Value("int32"),
                "label": datasets.Value("string"),
            }
        )

    @property
    def sequence_length(self) -> int | None:
        return None

    @property
    def cache_key(self) -> str:
        return hashlib.sha256(
            repr(("texts", tokenizer_key(self.tokenizer), self.objective.closing)).encode()
        ).hexdigest()

    @property
    def cpu_batch_budget(self) -> int:
        return 1024

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        name = label_namer(split)

        def encode(batch: Columns) -> Columns:
            texts = ["" if text is None else str(text).strip() for text in batch["text"]]
            plain = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            ids = [[*row, *self.objective.closing] for row in plain]
            return {
                "ids": ids,
                "tokens": [len(row) for row in ids],
                "label": [name(label) for label in batch.get("label", [None] * len(texts))],
                "row": batch["row"],
                "error": [_fault(text, row) for text, row in zip(texts, plain, strict=True)],
            }

        return encode

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        sizes = np.asarray(rows.with_format("numpy")["tokens"][:])
        lengths: list[int] = (np.minimum(sizes, self._room) + len(self.objective.frame)).tolist()
        return lengths

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        return self._batch(rows[list(indices)], EVALUATION)

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        return self._batch(rows[list(indices)], epoch)

    def _batch(self, columns: Columns, epoch: int) -> Batch:
        texts = [
            self._stretch(np.array(ids), epoch, row) for ids, row in zip(columns["ids"], columns["row"], strict=True)
        ]
        batch = self._collate(texts, epoch, columns["row"])
        if epoch == EVALUATION:  # the text as it is, for features
            whole = [self.objective.frame(ids).tolist() for ids in texts]
            batch["whole_ids"] = torch.from_numpy(padded(whole, fill=self._pad))
            batch["whole_seen"] = torch.from_numpy(padded([[1] * len(ids) for ids in whole], fill=0))
        return batch

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
            together = epoch != EVALUATION and self.packs
            return packed_batch([ids[:1] for ids in whole], [ids[1:] for ids in whole], together=together)
        return {
            "input_ids": torch.from_numpy(padded([read.tolist() for read, _ in drawn], fill=self._pad)),
            "attention_mask": torch.from_numpy(padded([[1] * len(read) for read, _ in drawn], fill=0)),
            "labels": torch.from_numpy(padded([wanted.tolist() for _, wanted in drawn], fill=-100)),
        }

    # --------------------------------------------------------------------------------------- step

    def _inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if isinstance(self.objective, CausalLanguage):
            inputs["use_cache"] = False
            if not self.packs:
                return inputs | {"attention_mask": (batch["segments"] > 0).long()}
            seen = attention_mask(batch["segments"], model)
            return inputs | {"attention_mask": seen, "position_ids": batch["position_ids"]}
        inputs["attention_mask"] = batch["attention_mask"]
        if self.config.is_encoder_decoder:
            inputs["use_cache"] = False
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return inputs

    def num_targets(self, batch: Batch) -> Tensor:
        return (batch["labels"] != -100).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = self._inputs(unwrap_model(model), batch)
        return mean_loss(model, inputs, batch["labels"], chunked=self.chunked_loss)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The mean loss of each text, rounded so that other orders of summation do not show, and its features."""
        inputs, labels = self._inputs(unwrap_model(model), batch), batch["labels"]
        losses, right = target_losses(model, inputs, labels, chunked=self.chunked_loss)
        counts = (labels != -100).sum(1).tolist()
        features = self.embed(model, batch).cpu().numpy()
        by_row = zip(*(torch.split(values.cpu(), counts) for values in (losses, right)), features, strict=True)
        return [
            {
                "prediction": float(f"{float(loss.mean()):.3g}"),
                "loss": float(loss.double().sum()),
                "targets": len(loss),
                "right": int(hits.sum()),
                "features": vector,
            }
            for loss, hits, vector in by_row
        ]

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        return {"prediction": prediction["prediction"]}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over a text of what the encoder, or the decoder where that is all, makes of it, [texts, width]."""
        plain, seen = unwrap_model(model), batch["whole_seen"]
        body = plain.get_encoder() if self.config.is_encoder_decoder else plain.base_model
        states = body(input_ids=batch["whole_ids"], attention_mask=seen).last_hidden_state.float()
        mean: Tensor = (states * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
        return mean

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[str | None]:
        return list(rows["label"])

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        return loss_rows(predictions)

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        targets = sum(p["targets"] for p in predictions)
        values = {"masked_accuracy": sum(p["right"] for p in predictions) / targets}
        if isinstance(self.objective, CausalLanguage):
            values["perplexity"] = math.exp(min(700.0, sum(p["loss"] for p in predictions) / targets))
        return score_objective(
            predictions, references, values=values, what="texts", intervals=intervals, seed=self.seed
        )

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """Each token by how often it is asked for in these very rows: the best that can be done without context."""
        asked: list[list[int]] = []
        for start in range(0, len(rows), 64):
            labels = self.collate_eval(rows, range(start, min(start + 64, len(rows))))["labels"]
            asked += [row[row != -100].tolist() for row in labels]
        counts = Counter(token for row in asked for token in row)
        likeliest, total = counts.most_common(1)[0][0], counts.total()
        guesses: list[Prediction] = []
        for row in asked:
            loss = -sum(math.log(counts[token] / total) for token in row)
            mean = float(f"{loss / len(row):.3g}")
            guesses.append({"prediction": mean, "loss": loss, "targets": len(row), "right": row.count(likeliest)})
        return {"token_frequencies": guesses}

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": list(references),
            "loss": [p["loss"] / p["targets"] for p in predictions],
            "targets": [p["targets"] for p in predictions],
            "right": [p["right"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The texts that are hardest to complete: what was read, and what was to be written."""
        means = [p["loss"] / p["targets"] for p in predictions]
        shown = []
        for i in sorted(range(len(means)), key=lambda i: -means[i])[:SHOWN]:
            batch, row = self.collate_eval(rows, [i]), rows[i]["row"]
            read, wanted = batch["input_ids"][0], batch["labels"][0]
            texts = {"read": self.tokenizer.decode(read), "asked for": self.tokenizer.decode(wanted[wanted != -100])}
            shown.append(ReportExample("texts", f"loss {means[i]:.3f}", f"row {row}", json.dumps(texts).encode()))
        return shown


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
    """What stands on the encoder and the decoder: modules beside the base model, or what writes tokens (T5)."""
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
