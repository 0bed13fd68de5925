"""Text classification: a head on any encoder or decoder, or classes that a checkpoint is only told by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self, cast

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.text import LabelledTextData, LabelledTextModel, LabelledTextStage
from tltasks.data.corruptions import corrupt_rows, corrupt_text
from tltasks.data.packing import padded, padded_inputs
from tltasks.data.splits import Columns, EncodedSplit, Split
from tltasks.errors import CheckpointError
from tltasks.models.adapters import MULTI_LABEL, find_head, input_of, relabel, unwrap_model
from tltasks.models.decoder_trial import FAILS
from tltasks.models.loading import ModelLoader, open_config, open_tokenizer
from tltasks.models.passes import forget_passes
from tltasks.tasks.base import Batch, BuiltModel, InputKind, OnnxInput, Prediction, Processor, content_key, digest_of
from tltasks.tasks.classes import (
    ClassificationTask,
    check_kept_head,
    check_same_classes,
    classes_of,
    count_classes,
    train_classes,
)
from tltasks.tasks.multi_label import MultiLabelTask, are_many
from tltasks.tasks.text.prompting import SUFFIXES, cut_shares, token_counts, token_room
from tltasks.tasks.text.reading import PLAIN, Reading, find_reading, inputs_beside, made_up_texts, no_cache, until_read
from tltasks.tasks.vocabulary import LOST, lost_columns, unknown_shares

Plan = StagePlan[LabelledTextModel, LabelledTextData, LabelledTextStage]
ZERO_SHOT_CLASSES = "zero_shot_classes"
"""Key of a saved configuration with the classes that the checkpoint was zero_shot, and how."""
ONNX_USAGE = """import numpy as np
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

names = AutoConfig.from_pretrained(".").id2label
session = onnxruntime.InferenceSession("model.onnx")
tokenize = AutoTokenizer.from_pretrained(".")
ids = tokenize("a text of yours", truncation=True, max_length=MOST, return_tensors="np")["input_ids"]
logits = session.run(None, {"input_ids": ids.astype(np.int64)})[0]
print(names[int(logits[0].argmax())])
"""
"""For the README of an exported model."""


@dataclass(frozen=True)
class ZeroShotClasses:
    """Classes that a checkpoint is told by name, without a head that was trained for them.

    By entailment a text is the premise and the name of each class a hypothesis, as in Yin et al.,
    https://arxiv.org/abs/1909.00161; by words the model is asked how well each class's words go on from the text, by
    their mean log-probability, as in Brown et al., https://arxiv.org/abs/2005.14165, §2.4.
    """

    by: Literal["entailment", "words"]
    template: str
    """With `{}` for the class (entailment), or `{text}` for the text (words)."""
    words: list[str]
    """What stands for each class."""
    entailment: int = 0
    """Index of the output that says that the hypothesis follows."""


@dataclass(frozen=True)
class TextClassification(ClassificationTask[LabelledTextModel, LabelledTextData, LabelledTextStage]):
    """One stage's view of a text classifier: its classes, its tokenizer, and how it is told classes without a head."""

    tag: ClassVar[str] = "text-classification"
    input_kind: ClassVar[InputKind] = InputKind("text", SUFFIXES, is_text=True)
    example_kind: ClassVar[Literal["image", "texts"]] = "texts"
    cpu_batch_budget: ClassVar[int] = 1024

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    zero_shot: ZeroShotClasses | None = None
    beside: tuple[str, ...] = ()
    """What the model is told of each token besides its id."""
    reading: Reading = PLAIN
    """How texts of unequal length go through the model."""
    found_head: tuple[str, ...] = ()
    """The head of a model that is built; with modules that the checkpoint has no weights for, as a pooler."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        found = count_classes(splits, plan.data)
        config, tokenizer = open_config(source), open_tokenizer(source)
        if plan.kind.head == "new":
            class_names, zero_shot = train_classes(splits["train"], found["train"], plan.data.class_names), None
            check_same_classes(class_names, found, splits)
        else:
            data_classes = classes_of(splits, found, plan.data.class_names) if splits else None
            class_names, zero_shot = _kept_classes(config, plan.model, data_classes, source)
            check_kept_head(class_names, found, splits, source)
        many = are_many(splits, config, plan.data, source, kept=plan.kind.head == "kept" and zero_shot is None)
        if plan.kind.head == "new":
            relabel(config, class_names, multi_label=many)
        elif many:
            config.problem_type = MULTI_LABEL
        if many and zero_shot is not None and zero_shot.by == "words":
            raise CheckpointError(
                f"model {source.display_name}: words that go on from a text tell which class fits best, and the data "
                "has any number for each; `stage: transfer` puts a head on it."
            )
        _check_architecture(config, zero_shot, source)
        if plan.kind.head == "new":  # by which a stage that goes on from this one knows its head
            config.architectures = [AutoModelForSequenceClassification._model_mapping[type(config)].__name__]
        _set_padding(config, tokenizer, source)
        beside = inputs_beside(tokenizer, source)
        room = token_room(config, tokenizer, plan.data.max_tokens, with_data=bool(splits), name=source.display_name)
        chosen = cast(type[Self], MultiLabelTexts) if many else cls
        weights = chosen.own_weights(plan.stage, splits, found, class_names)
        rest = (tokenizer, room, zero_shot, beside)
        task = chosen(plan, source, config, seed, class_names, *rest, class_weights=weights)
        return task.as_saved()

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        """The shares of texts that are longer than what is read of them, and of characters that are unknown."""
        cut = cut_shares(encoded, self.max_tokens)
        unknown = unknown_shares(encoded, most=1.0, whose=self.source.display_name)
        return {name: cut[name] | unknown[name] for name in encoded}

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return _loader(self.zero_shot)

    @property
    def settings(self) -> dict[str, object]:
        told = {} if self.zero_shot is None else vars(self.zero_shot)
        of_classes = {"zero_shot_by": told["by"], "template": told["template"]} if told else {}
        return {"max_tokens": self.max_tokens, **of_classes}

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        missing = {name.rpartition(".")[0] for name in built.provenance.newly_initialised if ".pooler." in name}
        head = (*sorted(missing), *self.head(built.model))
        return replace(built, task=replace(self, found_head=head).tried(built.model))

    def tried(self, model: PreTrainedModel) -> Self:
        """The task with what texts of unequal length need; raises CheckpointError for a model that reads no texts."""
        if self.zero_shot is not None:
            return self
        return until_read(self, self.max_tokens, lambda tokens: replace(self, max_tokens=tokens)._tried(model))

    def _tried(self, model: PreTrainedModel) -> Self:
        columns = self._encode(made_up_texts(self.tokenizer, longest=self.max_tokens))

        def answer(tried: PreTrainedModel, rows: Sequence[int], reading: Reading) -> Tensor:
            chosen = {name: [columns[name][i] for i in rows] for name in ("ids", *self.beside)}
            task = replace(self, reading=reading)
            return task.logits(tried, task._inputs(chosen))

        return replace(self, reading=find_reading(self, model, answer, len(columns["ids"]), self._forget_passes))

    def _forget_passes(self, model: nn.Module) -> None:
        """A short text leaves BigBird in full attention for all that come after it."""
        short = self._inputs(self._encode(made_up_texts(self.tokenizer, longest=1)[:1]))
        with suppress(*FAILS):  # of a model that reads no texts, of which the trial tells
            forget_passes(model, lambda: self.logits(model, short))

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
        if self.zero_shot is None:
            self._forget_passes(model)
        return model

    def head(self, model: nn.Module) -> list[str]:
        if self.zero_shot is not None or self.found_head:
            return list(self.found_head)
        plain = unwrap_model(model)
        beside = [name for name, _ in plain.named_children() if name != plain.base_model_prefix]
        found = [name for name in beside if any(True for _ in plain.get_submodule(name).parameters())]
        # Perceiver's is a part of its base model
        return found or sorted({".".join(name.split(".")[:2]) for name in find_head(plain)})

    @property
    def setup(self) -> Sequence[Processor]:
        return [self.config, self.tokenizer]

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        number = datasets.Value("int32")
        of_tokens = {name: datasets.List(number) for name in ("ids", *self.beside)}
        return datasets.Features(
            {"text": datasets.Value("string"), **of_tokens, "tokens": number, **LOST, "label": self.label_feature}
        )

    @property
    def cache_key(self) -> str:
        return digest_of(content_key(self.tokenizer), self.max_tokens, self.class_names, self.plan.data.class_names)

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        def encode(batch: Columns) -> Columns:
            texts = ["" if text is None else str(text).strip() for text in batch["text"]]
            faults = [None if text else "empty text" for text in texts]
            return {**self._encode(texts), "error": faults}

        return self.labelled(split, encode)

    def _encode(self, texts: list[str]) -> Columns:
        whole, most = self.tokenizer(texts, verbose=False), self.max_tokens
        tokens = [len(ids) for ids in whole["input_ids"]]
        columns: Columns = {name: list(whole["input_ids" if name == "ids" else name]) for name in ("ids", *self.beside)}
        for i in (i for i, count in enumerate(tokens) if count > most):
            cut = self.tokenizer(texts[i], truncation=True, max_length=most)
            for name in columns:
                columns[name][i] = cut["input_ids" if name == "ids" else name]
        return {"text": texts, **columns, "tokens": tokens, **lost_columns(self.tokenizer, texts, whole["input_ids"])}

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        texts = corrupt_rows(corrupt_text, columns["text"], columns["row"], kind, level, seed=seed)
        return {**columns, **self._encode(texts)}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        sizes = np.minimum(token_counts(rows), self.max_tokens)
        times = 1 if self.zero_shot is None else len(self.class_names)
        lengths: list[int] = (sizes * times).tolist()
        return lengths

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows.select_columns(["text", "ids", *self.beside, "label"])[list(indices)]
        batch = self._inputs(columns) if self.zero_shot is None else self._pairs(columns["text"], self.zero_shot)
        return {**batch, "labels": self.targets(columns["label"])}

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        return self.collate_eval(rows, indices)

    def _inputs(self, columns: Columns) -> Batch:
        named = {"input_ids": columns["ids"], **{name: columns[name] for name in self.beside}}
        return self.reading.batch(named, pad=self.config.pad_token_id)

    def _pairs(self, texts: Sequence[str], zero_shot: ZeroShotClasses) -> Batch:
        """Every text with every class, [texts × classes, tokens]; texts are cut, never what is said of the class."""
        if zero_shot.by == "entailment":
            hypotheses = [zero_shot.template.format(words) for words in zero_shot.words]
            pairs = [(text, hypothesis) for text in texts for hypothesis in hypotheses]
            encoded = self.tokenizer(
                [text for text, _ in pairs],
                [hypothesis for _, hypothesis in pairs],
                truncation="only_first",
                max_length=self.max_tokens,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            return dict(encoded)
        answers = [self.tokenizer(f" {words}", add_special_tokens=False)["input_ids"] for words in zero_shot.words]
        before, after = (
            self.tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            for part in zero_shot.template.split("{text}")
        )
        room = self.max_tokens - len(before) - len(after) - max(map(len, answers))
        read = [ids[:room] for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        rows = [([*before, *ids, *after], answer) for ids in read for answer in answers]
        asked = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows]
        whole = [[*prompt, *answer] for prompt, answer in rows]
        return {**padded_inputs(whole, pad=self.config.pad_token_id), "asked": padded(asked, fill=0)}

    # --------------------------------------------------------------------------------------- step

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: values for name, values in batch.items() if name not in {"labels", "asked"}}
        if self.zero_shot is None:
            keys = no_cache(model)
            return self.reading.run(lambda part: model(**part, **keys).logits.float(), inputs, end=self._end)
        logits: Tensor = model(**inputs).logits.float()
        if self.zero_shot.by == "entailment":
            follows = logits[:, self.zero_shot.entailment]
            if self.is_multi_label:  # beside its contradiction, as transformers' pipeline has it with `multi_label`
                follows = follows - logits[:, -1 if self.zero_shot.entailment == 0 else 0]
            return follows.view(-1, len(self.class_names))
        chosen = batch["input_ids"][:, 1:, None]
        log_likelihood = logits[:, :-1].log_softmax(-1).gather(2, chosen).squeeze(2)
        asked = batch["asked"][:, 1:]
        mean: Tensor = (log_likelihood * asked).sum(1) / asked.sum(1)
        return mean.view(-1, len(self.class_names))

    @property
    def _end(self) -> int | None:
        end = self.config.eos_token_id
        return end if self.config.is_encoder_decoder and isinstance(end, int) else None

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The head's input, [rows, width]: where that is one vector for each token (GPT-2, Llama), of the one it reads.

        That is the one of which the head makes the model's answer.
        """
        head = model.get_submodule(self.head(model)[-1])
        layers = [part for part in head.modules() if isinstance(part, nn.Linear)]

        def features(part: Batch) -> Tensor:
            answers: list[Tensor] = []
            found = input_of(layers[0], lambda: answers.append(self.logits(model, part))).float()
            if found.ndim == 2:
                return found
            layer = next(layer for layer in layers if layer.out_features == answers[0].shape[1])
            found = input_of(layer, lambda: self.logits(model, part)).float() if layer is not layers[0] else found
            distance = (layer(found).float() - answers[0][:, None]).abs().sum(-1)
            return found[torch.arange(len(found), device=found.device), distance.argmin(1)]

        return self.reading.run(features, batch, end=self._end)

    def onnx_input(self) -> OnnxInput | None:
        """Token ids; what is padding follows from them."""
        if self.zero_shot is not None or self.beside:
            return None
        pad = int(self.config.pad_token_id)

        def read(value: object) -> Tensor:
            return self._inputs(self._encode([str(value)]))["input_ids"]

        def made_up(n: int) -> list[Tensor]:
            words = [token for token in self.tokenizer.get_vocab() if token.isalpha()][:50] or ["a"]
            drawn = np.random.default_rng(0)
            return [read(" ".join(drawn.choice(words, drawn.integers(3, 20)))) for _ in range(n)]

        def arguments(ids: Tensor) -> Mapping[str, Tensor]:
            return {"input_ids": ids, "attention_mask": (ids != pad).long()}

        usage = self.onnx_usage(ONNX_USAGE.replace("MOST", str(self.max_tokens)))
        return OnnxInput("input_ids", ["batch", "tokens"], (0, 1), made_up, read, usage, arguments)

    # --------------------------------------------------------------------------------- evaluation

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """The majority class, and logistic regression on the words of the training texts, weighted by TF-IDF."""
        found = super().baselines(known, rows)
        labels = np.array(self.references(known.rows))
        if known.name != "train" or len(self.class_rows(known.rows)) < 2:
            return found
        words = _words_alone(known.rows["text"], labels, rows["text"], n_classes=len(self.class_names))
        return {**found, "tfidf": self.as_predictions(words)}

    def example_content(self, rows: datasets.Dataset, row: int) -> bytes:
        return json.dumps({"text": rows[row]["text"]}).encode()


@dataclass(frozen=True)
class MultiLabelTexts(MultiLabelTask[LabelledTextModel, LabelledTextData, LabelledTextStage], TextClassification):
    """A classifier of texts of any number of classes each."""


def _kept_classes(
    config: PretrainedConfig, keys: LabelledTextModel, data_classes: list[str] | None, source: Checkpoint
) -> tuple[list[str], ZeroShotClasses | None]:
    """The classes of a checkpoint's own head; or of the data, and how it is told them, where it has no head for them.

    A checkpoint that was told its classes before keeps these where there are no data.
    """
    if data_classes is None and (saved := getattr(config, ZERO_SHOT_CLASSES, None)):
        return saved["classes"], ZeroShotClasses(**{key: value for key, value in saved.items() if key != "classes"})
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    own = list(config.id2label.values()) if has_head else []
    if data_classes is not None and not set(data_classes) <= set(own):
        zero_shot = _tell(config, keys, data_classes, has_head=has_head)
        if zero_shot is not None:
            config.update({ZERO_SHOT_CLASSES: {"classes": data_classes, **vars(zero_shot)}})
            return data_classes, zero_shot
    if not own:
        raise CheckpointError(
            f"model {source.display_name}: has no head that tells classes; `stage: transfer` puts one on it."
        )
    return own, None


def _tell(
    config: PretrainedConfig, keys: LabelledTextModel, classes: list[str], *, has_head: bool
) -> ZeroShotClasses | None:
    """How a checkpoint can be told these classes; None where it cannot."""
    words = [keys.label_words.get(name, name.replace("_", " ")) for name in classes]
    if has_head:
        follows = [i for i, name in config.id2label.items() if name.lower().startswith("entail")]
        return ZeroShotClasses("entailment", keys.hypothesis, words, follows[0]) if follows else None
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())
    return ZeroShotClasses("words", keys.prompt, words) if writes else None


def _loader(zero_shot: ZeroShotClasses | None) -> ModelLoader:
    by_words = zero_shot is not None and zero_shot.by == "words"
    loader: ModelLoader = AutoModelForCausalLM if by_words else AutoModelForSequenceClassification
    return loader


def _check_architecture(config: PretrainedConfig, zero_shot: ZeroShotClasses | None, source: Checkpoint) -> None:
    if type(config) not in _loader(zero_shot)._model_mapping:
        raise CheckpointError(
            f"model {source.display_name}: transformers has no classifier of texts for {config.model_type}; "
            "encoders (BERT), decoders (GPT-2, Llama) and encoder-decoders (BART, T5) have one."
        )


def _set_padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, source: Checkpoint) -> None:
    """Give both the same padding, before which the head of a decoder looks for the last token.

    A tokenizer without any, as most of decoders, takes the configuration's, the end or what stands for the unknown.
    """
    if tokenizer.pad_token_id is None:
        own = config.get_text_config().pad_token_id
        known = isinstance(own, int) and 0 <= own < len(tokenizer)
        token = tokenizer.convert_ids_to_tokens(own) if known else tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise CheckpointError(
                f"model {source.display_name}: its tokenizer has no token for padding, nor for the end or the unknown; "
                "set `pad_token` in tokenizer_config.json."
            )
        tokenizer.pad_token = token
    for part in (config, config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id


def _words_alone(
    texts: Sequence[str], labels: NDArray[np.int64], asked: Sequence[str], *, n_classes: int
) -> NDArray[np.float32]:
    """Probabilities of each class for the texts `asked`, by words and pairs of words alone, [texts, classes].

    Labels are [texts], or 0 and 1 for each class, [texts, classes].
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\w+")  # noqa: S106
    model = LogisticRegression(C=10.0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that no text or every text has
        learnt = vectorizer.fit_transform(texts)
        fitted = (model if labels.ndim == 1 else OneVsRestClassifier(model)).fit(learnt, labels)
    probabilities = np.zeros((len(asked), n_classes), np.float32)
    probabilities[:, fitted.classes_] = fitted.predict_proba(vectorizer.transform(asked))
    return probabilities
