"""Texts as a model reads them, each in a batch as it would be alone; what a model needs for that is found by trying."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tltasks.config.model import Checkpoint
from tltasks.data.packing import padded
from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.models.adapters import set_training_mode, unwrap_model
from tltasks.models.decoder_trial import FAILS, at_rest, small_first
from tltasks.tasks.base import TaskBase

Ids = Sequence[Sequence[int] | NDArray[np.int64]]
Around = dict[str, tuple[list[int], list[int]]]
"""By name: numbers for the tokens before a text, and for those behind it."""
LEAST_TOKENS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
"""Lengths that texts are padded to, where a model reads no shorter ones."""
KNOWN_TOKENS = 3000
"""As many of a vocabulary as have words among them; CANINE's is of all characters."""
LEAST_ROOM = 8
TRIED_TOKENS = 1024
"""Longest text that a model is tried with."""
ALIKE = 1e-4
"""Share of the difference between texts by which the answer to one may depend on the others of its batch."""
ROUNDING = 2e-6


@dataclass(frozen=True)
class Reading:
    """How texts of unequal length go through a model, so that each is answered as it is alone."""

    side: Literal["right", "left"] = "right"
    """Where padding stands."""
    apart: bool = False
    """Only texts of one length go through together: the model does not heed padding (FNet, ConvBERT, CANINE)."""
    least: int = 1
    """Tokens that shorter texts are padded to (Funnel reads none of fewer than five)."""

    def batch(self, columns: Mapping[str, Ids], *, pad: int, ignored: int = 0) -> dict[str, Tensor]:
        """Token ids and what else is told of each token, [texts, tokens], with their attention mask."""
        left, seen = self.side == "left", [[1] * len(ids) for ids in columns["input_ids"]]
        fills = {"input_ids": pad, "labels": ignored}
        return {
            name: padded(rows, fill=fills.get(name, 0), left=left, least=self.least)
            for name, rows in {**columns, "attention_mask": seen}.items()
        }

    def run(
        self, answer: Callable[[dict[str, Tensor]], Tensor], batch: dict[str, Tensor], *, end: int | None = None
    ) -> Tensor:
        """The outcome of `answer` for a batch, [texts, …]: for all at once, or for those together that may go together.

        The heads of encoder-decoders (BART, T5) read the last `end` token, and want as many in each text of a batch.
        """
        parts = self.parts(batch, None if end is None else (batch["input_ids"] == end).sum(1))
        if len(parts) == 1:
            return answer(batch)
        return torch.cat([answer(part) for _, part in parts])[torch.cat([rows for rows, _ in parts]).argsort()]

    def parts(self, batch: dict[str, Tensor], kinds: Tensor | None = None) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Rows that go together, by their places, and the batch of them: of one kind and, where they must be, length.

        All that has several numbers for a text has one for each token.
        """
        if not self.apart and kinds is None:
            return [(torch.arange(len(next(iter(batch.values())))), batch)]
        width, lengths = batch["input_ids"].shape[1], batch["attention_mask"].sum(1).clamp(min=self.least)
        key = torch.zeros_like(lengths) if kinds is None else kinds
        key = key * (width + 1) + lengths if self.apart else key
        groups = [(key == value).nonzero().flatten() for value in torch.unique(key)]
        found = []
        for rows in groups:
            longest = int(lengths[rows].max())
            cut = slice(width - longest, None) if self.side == "left" else slice(longest)
            found.append((rows, {n: t[rows] if t.ndim == 1 else t[rows][:, cut] for n, t in batch.items()}))
        return found


PLAIN = Reading()
Task = TypeVar("Task")


def until_read(task: TaskBase, most: int, attempt: Callable[[int], Task]) -> Task:
    """The outcome of `attempt` for the most tokens of a text with which it raises no error of the model's.

    Some tables of positions have places that no text can take (RoBERTa's, as many as its padding's number and one), and
    not every configuration says how long texts may be (MPT). Raises RecipeError where it is fewer than a recipe asks.
    """
    first: CheckpointError | None = None
    for size in (most, *(most - n for n in range(1, 5)), most // 2, most // 4, most // 8):
        try:
            found = attempt(max(LEAST_ROOM, size))
        except CheckpointError as error:
            if error.__cause__ is None:
                raise
            first = first or error
            continue
        if size < most and task.plan.kind.trains:
            name = task.source.display_name
            raise RecipeError(f"data.max_tokens: {name} reads {size} tokens, and not the {most} of the recipe.")
        return found
    assert first is not None
    raise first


def find_reading(
    task: TaskBase,
    model: PreTrainedModel,
    answer: Callable[[PreTrainedModel, Sequence[int], Reading], Tensor],
    texts: int,
    prepare: Callable[[PreTrainedModel], object],
) -> Reading:
    """How a model reads texts of unequal length, by trying: each alone, and all together in one way after another.

    `answer` is the answer of a model to those texts, [rows, …]: of a small copy that `prepare` has been given, or of
    the model itself. Raises CheckpointError for a model that does not read texts, or whose answers do not depend on
    them alone; one that is to be trained reads them in training, too.
    """
    said, trains = f"model {task.source.display_name}: {type(model).__name__}", task.plan.kind.trains
    prepare(model)
    for tried in small_first(model):
        try:
            if tried is not model:
                prepare(tried)
            with at_rest(tried):
                reading = _find(partial(answer, tried), range(texts), trains=trains, said=said)
                if trains:
                    set_training_mode(tried, frozen_batch_norm=True)
                    answer(tried, range(texts), reading)
            return reading
        except FAILS as error:
            if tried is model:  # a copy may have faults of its own
                raise CheckpointError(f"{said} reads texts, but not in training: {first_line(error)}") from error
        except CheckpointError:
            if tried is model:
                raise
    raise AssertionError("the model itself is the last")


def _find(
    answer: Callable[[Sequence[int], Reading], Tensor], rows: Sequence[int], *, trains: bool, said: str
) -> Reading:
    faults: list[Exception] = []
    for least in LEAST_TOKENS:
        try:
            alone, again = (torch.cat([answer([row], Reading(least=least)) for row in rows]) for _ in range(2))
            break
        except FAILS as error:
            faults.append(error)
    else:
        raise CheckpointError(f"{said} does not read texts ({first_line(faults[0])}).") from faults[0]
    spread = float((alone - alone[:1]).abs().max())
    if trains and (alone - again).abs().max() > ALIKE * spread:
        raise CheckpointError(
            f"{said} answers the same text differently each time, as it draws lots for its attention. Set the seed "
            "for that in config.json (`hash_seed` of Reformer) where it has one, or use another architecture."
        )
    if trains and not spread > ROUNDING * float(alone.abs().max()):
        raise CheckpointError(
            f"{said} gives all texts the same answer: what it is made of does not run on this machine (MRA's attention "
            "is zero without a GPU and the package `kernels`), or its weights are damaged."
        )
    for side in ("right", "left"):
        try:
            together = answer(rows, reading := Reading(side, least=least))
        except FAILS:
            continue
        if (together - alone).abs().max() <= ALIKE * spread + ROUNDING * alone.abs().max():
            return reading
    return Reading(apart=True, least=least)


def around(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], size: tuple[int, int], *, name: str) -> Around:
    """Numbers, beside ids, of the tokens that stand around each text, so many before it and behind.

    Raises CheckpointError where the tokens of a text itself are told apart so, as RoCBert's by their shapes.
    """
    found, (before, after) = tokenizer("the words of a text"), size
    for kind in names:
        row = found[kind]
        if any(row[before : len(row) - after]):
            raise CheckpointError(
                f"model {name}: its tokenizer gives {kind} for each token besides its id, and this objective hides and "
                "replaces ids alone. Use text-classification."
            )
    return {kind: (found[kind][:before], found[kind][len(found[kind]) - after :]) for kind in names}


def no_cache(model: nn.Module) -> dict[str, bool]:
    """The argument that keeps a model from storing keys and values for tokens to come, where it has one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(unwrap_model(model).forward).parameters else {}


def made_up_texts(tokenizer: PreTrainedTokenizerBase, *, longest: int) -> list[str]:
    """Texts of a word, of some more, and of as many as are read."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), KNOWN_TOKENS))))
    words = sorted({word for token in tokens if token and (word := token.strip("▁Ġ#")).isalpha()}) or ["a", "b"]
    drawn = np.random.default_rng(0)
    return [" ".join(drawn.choice(words, n)) for n in (1, 5, 12, min(longest, TRIED_TOKENS))]


def inputs_beside(tokenizer: PreTrainedTokenizerBase, source: Checkpoint) -> tuple[str, ...]:
    """Names of what a tokenizer gives for each token besides its id, such as XLNet's kinds of tokens.

    Those that are zero, as BERT's for a text alone, are left to the model. Raises CheckpointError for a tokenizer of
    something else than texts.
    """
    try:
        found = tokenizer(["a text", "some words of another"], verbose=False)
        ids = found["input_ids"]
        counts = [len(row) for row in ids]
        if len(ids) != 2:  # words of one text
            raise ValueError(f"two texts are {len(ids)} rows to it")
        beside = {name: rows for name, rows in found.items() if name not in ("input_ids", "attention_mask")}
        if nested := [name for name, rows in beside.items() if any(np.ndim(row) > 1 for row in rows)]:
            raise ValueError(f"{nested[0]} has several numbers for each token")
    except (ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise CheckpointError(
            f"model {source.display_name}: its tokenizer ({type(tokenizer).__name__}) does not read plain texts, but "
            f"documents with their layout or tables: {first_line(error)}"
        ) from error
    of_tokens = {name: rows for name, rows in beside.items() if [len(row) for row in rows] == counts}
    return tuple(name for name, rows in of_tokens.items() if any(np.any(row) for row in rows))
