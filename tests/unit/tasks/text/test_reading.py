"""How texts of unequal length go through a model, and what is found by trying one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, RecipeError
from tltasks.tasks.base import TaskBase
from tltasks.tasks.text.reading import Reading, find_reading, until_read

TEXTS = [[5], [6, 7, 8], [9, 10, 11, 12, 13, 14]]
Model = Callable[[dict[str, Tensor]], Tensor]


def whole(batch: dict[str, Tensor]) -> Tensor:
    """Heeds padding, wherever it is."""
    return (batch["input_ids"] * batch["attention_mask"]).sum(1, keepdim=True).float()


def last(batch: dict[str, Tensor]) -> Tensor:
    """Reads the last token, whatever it is."""
    return batch["input_ids"][:, -1:].float()


def width(batch: dict[str, Tensor]) -> Tensor:
    """Heeds no padding."""
    return batch["input_ids"].float().sum(1, keepdim=True) / batch["input_ids"].shape[1]


def choosy(batch: dict[str, Tensor]) -> Tensor:
    """Reads nothing of fewer than three tokens."""
    if batch["input_ids"].shape[1] < 3:
        raise IndexError("index 4 is out of bounds")
    return whole(batch)


def stage(*, trains: bool) -> TaskBase:
    """As much of a task as trials ask."""
    plan = SimpleNamespace(kind=SimpleNamespace(trains=trains))
    return cast(TaskBase, SimpleNamespace(plan=plan, source=Checkpoint("it", display_name="it")))


def find(model: Model, *, trains: bool = True) -> Reading:
    def answer(_: object, rows: Sequence[int], reading: Reading) -> Tensor:
        return reading.run(model, reading.batch({"input_ids": [TEXTS[i] for i in rows]}, pad=1))

    plain = BertForSequenceClassification(BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    return find_reading(stage(trains=trains), plain, answer, len(TEXTS), lambda _: None)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (whole, Reading()),
        (last, Reading("left")),
        (width, Reading(apart=True)),
        (choosy, Reading(least=3)),
    ],
)
def test_what_a_model_needs_is_found_by_trying(model: Model, expected: Reading) -> None:
    assert find(model) == expected


def constant(batch: dict[str, Tensor]) -> Tensor:
    return torch.ones(len(batch["input_ids"]), 2)


def drawn(batch: dict[str, Tensor]) -> Tensor:
    return torch.randn(len(batch["input_ids"]), 2)


def blind(batch: dict[str, Tensor]) -> Tensor:
    raise ValueError("pixel_values are missing")


@pytest.mark.parametrize(
    ("model", "reason"),
    [(constant, "gives all texts the same answer"), (drawn, "differently each time"), (blind, "pixel_values")],
)
def test_a_model_that_reads_no_texts_is_refused(model: Model, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"model it: Bert.*{reason}"):
        find(model)


def test_a_trained_model_may_give_the_same_answer() -> None:
    assert find(constant, trains=False) == Reading()


def test_a_model_is_left_in_the_mode_it_was_in() -> None:
    plain = BertForSequenceClassification(BertConfig(hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    plain.eval()

    def answer(_: object, rows: Sequence[int], __: Reading) -> Tensor:
        return torch.tensor(rows)[:, None].float()

    find_reading(stage(trains=True), plain, answer, 3, lambda _: None)
    assert not any(module.training for module in plain.modules())


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_one_length_go_together_and_come_back_in_order(side: str) -> None:
    texts = [[5, 6], [7], [8, 9], [4, 4, 4]]
    sizes: list[tuple[int, ...]] = []

    def answer(batch: dict[str, Tensor]) -> Tensor:
        sizes.append(tuple(batch["input_ids"].shape))
        assert batch["attention_mask"].all()
        return batch["input_ids"].sum(1)

    reading = Reading("left" if side == "left" else "right", apart=True)
    assert reading.run(answer, reading.batch({"input_ids": texts}, pad=1)).tolist() == [11, 7, 17, 12]
    assert sorted(sizes) == [(1, 1), (1, 3), (2, 2)]


def test_texts_with_as_many_ends_go_together() -> None:
    """Heads of encoder-decoders want as many in each text of a batch; one may stand in a text as it is written."""
    texts, groups = [[5, 2], [5, 2, 6, 2], [7, 2]], []

    def answer(batch: dict[str, Tensor]) -> Tensor:
        groups.append(len(batch["input_ids"]))
        return batch["input_ids"][:, 0]

    reading = Reading()
    assert reading.run(answer, reading.batch({"input_ids": texts}, pad=1), end=2).tolist() == [5, 5, 7]
    assert groups == [2, 1]


@pytest.mark.parametrize(("places", "expected"), [(256, 256), (254, 254), (130, 128)])
def test_texts_are_as_long_as_the_model_reads_them(places: int, expected: int) -> None:
    def attempt(tokens: int) -> int:
        if tokens > places:
            raise CheckpointError("does not read texts") from IndexError("index out of range")
        return tokens

    assert until_read(stage(trains=False), 256, attempt) == expected
    if expected < 256:
        with pytest.raises(RecipeError, match=f"it reads {expected} tokens, and not the 256"):
            until_read(stage(trains=True), 256, attempt)
