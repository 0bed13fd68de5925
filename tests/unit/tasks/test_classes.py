"""Weights of classes in the loss, and what is said of classes with few rows."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

from tltasks.config.stage import ClassStage
from tltasks.data.batching import balanced_rows
from tltasks.errors import DataError
from tltasks.tasks.classes import weights_of
from tltasks.tasks.image.classification import ImageClassification

NAMES = ["cat", "dog", "owl", "emu"]
ROWS = Counter({"cat": 90, "dog": 6, "owl": 4})


def stage(**keys: object) -> ClassStage:
    return ClassStage.model_validate({"stage": "transfer", "epochs": 1, "learning_rate": 1e-3, **keys})


def test_weights_make_classes_weigh_alike() -> None:
    weights = weights_of(stage(class_weights="auto"), ROWS, NAMES)
    assert weights is not None
    whole = {name: weight * ROWS[name] for name, weight in zip(NAMES, weights, strict=True)}
    assert whole == pytest.approx({"cat": 100 / 3, "dog": 100 / 3, "owl": 100 / 3, "emu": 0})
    assert weights_of(stage(class_weights={"owl": 5}), ROWS, NAMES) == (1, 1, 5, 1)
    assert weights_of(stage(), ROWS, NAMES) is None
    assert weights_of(stage(class_weights="auto"), None, NAMES) is None


def test_the_weight_of_a_class_that_there_is_not_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"no class is called 'owls'; did you mean `owl`\? There are: cat, dog, owl, emu"
    ):
        weights_of(stage(class_weights={"owls": 5}), ROWS, NAMES)


def losses(weights: tuple[float, ...] | None, **keys: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    task = object.__new__(ImageClassification)
    object.__setattr__(task, "class_weights", weights)
    object.__setattr__(task, "plan", type("Plan", (), {"stage": stage(**keys)}))
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(16, 4, generator=generator), torch.randint(0, 4, (16,), generator=generator)
    return task.row_losses(logits, labels), logits, labels


def test_the_loss_of_rows_is_weighted_and_focused() -> None:
    weights = (0.5, 1.0, 4.0, 2.0)
    found, logits, labels = losses(weights)
    # torch divides by the weights of the rows at hand; here each row counts once
    torch_mean = functional.cross_entropy(logits, labels, weight=torch.tensor(weights))
    assert found.sum() / torch.tensor(weights)[labels].sum() == pytest.approx(float(torch_mean))
    found, logits, labels = losses(None, focal=2.0)
    likelihood = logits.softmax(1)[torch.arange(16), labels]
    assert torch.allclose(found, -((1 - likelihood) ** 2) * likelihood.log())


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_drawn_of_each_class_alike_and_rare_ones_in_turn(seed: int) -> None:
    classes = np.array([0] * 91 + [1] * 6 + [2] * 3)
    drawn = balanced_rows(classes.tolist(), seed=seed, epoch=0)
    times = np.bincount(drawn, minlength=100)
    assert len(drawn) == 100
    assert sorted(times[classes == kind].sum() for kind in range(3)) == [33, 33, 34]
    assert times[classes == 0].max() == 1
    for kind in (1, 2):
        own = times[classes == kind]
        assert own.max() - own.min() <= 1
    assert not np.array_equal(drawn, balanced_rows(classes.tolist(), seed=seed, epoch=1))
    assert np.array_equal(drawn, balanced_rows(classes.tolist(), seed=seed, epoch=0))
