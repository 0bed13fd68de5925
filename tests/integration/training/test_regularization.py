"""L2-SP by a hand-worked case and in the loop; blocks unfrozen in their order; both exact on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny.images import write_recipe
from tests.tiny.runs import equal, run_recipe, weights
from tltasks.config.adaptation import Adapt, Full
from tltasks.config.loading import load_recipe
from tltasks.config.stage import L2Sp
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import Interrupted, RecipeError
from tltasks.training import loop
from tltasks.training.regularization import Regularization

TUNE = "{stage: transfer, steps: 8, batch_size: 8, learning_rate: 5e-2, optimizer: sgd, adapt: full%s}"


def stage(**keys: Any) -> ImageStage:
    return ImageStage(**{"stage": "transfer", "adapt": Adapt(full=Full()), "learning_rate": 1.0, "epochs": 9.0, **keys})


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Linear(1, 1, bias=False)
        self.layer = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
        self.classifier = nn.Linear(1, 1, bias=False)
        for p in self.parameters():
            nn.init.constant_(p, 2.0)


@pytest.mark.parametrize(("new_head", "of_head", "penalty"), [(True, 0.5 * 3.0, 2.85), (False, 0.2 * 1.0, 0.7)])
def test_weights_decay_to_their_start_and_a_new_head_to_zero(new_head: bool, of_head: float, penalty: float) -> None:
    model = Blocks()
    held = Regularization(
        model, stage(l2_sp=L2Sp(alpha=0.2, beta=0.5)), head=("classifier",), new_head=new_head, total_steps=4
    )
    start = held.penalty()
    assert start is not None
    assert start.item() == pytest.approx(0.5 / 2 * 4.0 if new_head else 0.0)
    with torch.no_grad():
        model.embeddings.weight.fill_(0.0)  # 2 away
        model.layer[0].weight.fill_(3.0)  # 1 away
        model.layer[1].weight.fill_(1.0)  # 1 away
        model.classifier.weight.fill_(3.0)  # 1 away from its start, 3 from zero
    value = held.penalty()
    assert value is not None
    assert value.item() == pytest.approx(penalty)
    value.backward()
    gradients = {name: p.grad.item() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients == pytest.approx(
        {"embeddings.weight": -0.4, "layer.0.weight": 0.2, "layer.1.weight": -0.2, "classifier.weight": of_head}
    )


def test_blocks_are_unfrozen_from_the_top() -> None:
    model = Blocks()
    held = Regularization(model, stage(unfreeze_epochs=0.5), head=("classifier",), new_head=True, total_steps=4)
    seen = []
    for epoch in (0.0, 0.49, 0.5, 1.0, 1.5):
        for p in model.parameters():
            p.grad = torch.ones(1, 1)
        held.mask_gradients(epoch)
        seen.append([name.removesuffix(".weight") for name, p in model.named_parameters() if p.grad is not None])
    head, top = ["classifier"], ["layer.1", "classifier"]
    assert seen == [head, head, top, ["layer.0", *top], ["embeddings", "layer.0", *top]]


def test_without_a_head_the_topmost_block_begins() -> None:
    model = Blocks()
    held = Regularization(model, stage(unfreeze_epochs=1.0), new_head=False, total_steps=4)
    for p in model.parameters():
        p.grad = torch.ones(1, 1)
    held.mask_gradients(0.0)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "layer.1.weight",
        "classifier.weight",
    ]


@pytest.fixture(scope="module")
def moved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How far a run's weights are from the checkpoint's, by weight."""
    folder = tmp_path_factory.mktemp("regularization")

    def moved(name: str, more: str) -> dict[str, float]:
        path = write_recipe(tiny / f"{name}.yaml", Path("vit"), Path("data"), stage=TUNE % more)
        run_recipe(path, folder / name)
        start = weights_of(tiny / "vit")
        return {
            key: float((tensor - start[key]).norm())
            for key, tensor in weights(folder / name).items()
            if tensor.shape == start[key].shape
        }

    return moved


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_l2_sp_keeps_the_backbone_near_its_checkpoint(moved: Any) -> None:
    free, held = (
        moved("free", ", max_grad_norm: null, weight_decay: 0"),
        moved("held", ", max_grad_norm: null, l2_sp: {alpha: 15.0}"),
    )
    assert free.keys() == held.keys()
    assert sum(held.values()) < 0.5 * sum(free.values())
    assert min(held.values()) >= 0


def test_what_is_not_unfrozen_yet_stays_bit_for_bit(moved: Any) -> None:
    found = moved("gradual", ", unfreeze_epochs: 1.0")  # 8 steps of 8 rows are an epoch and a third
    lower = {name for name in found if "embeddings" in name or "layer.0." in name}
    upper = {name for name in found if "layer.1." in name}
    assert len(lower) > 10
    assert {found[name] for name in lower} == {0.0}
    assert len([name for name in upper if found[name] > 0]) >= 12


@pytest.mark.parametrize("keys", ["optimizer: sgd, l2_sp: {}, unfreeze_epochs: 0.3", "unfreeze_epochs: 0.6"])
def test_resuming_gives_the_same_bits(tiny: Path, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{{stage: transfer, steps: 8, batch_size: 8, learning_rate: 1e-2, checkpoint_every: 1, {keys}}}"
    path = write_recipe(tiny / "resumed.yaml", Path("vit"), Path("data"), stage=text)
    run_recipe(path, tmp_path / "whole")
    log = loop._Training.log

    def stopping(training: loop._Training, split: str, **values: float) -> None:
        log(training, split, **values)
        if split == "train" and training.progress.step == 5:
            raise Interrupted("here")

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "log", stopping)
        with pytest.raises(Interrupted):
            run_recipe(path, tmp_path / "cut")
    run_recipe(path, tmp_path / "cut", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("l2_sp: {}, weight_decay: 0.1", "`l2_sp` takes the place of `weight_decay`"),
        ("l2_sp: {}, adapt: lora", "`adapt: lora` leaves the checkpoint's alone"),
        ("unfreeze_epochs: 1, adapt: head", "nothing to unfreeze"),
    ],
)
def test_keys_that_contradict_each_other(tiny: Path, keys: str, said: str) -> None:
    text = f"{{stage: transfer, steps: 1, batch_size: 8, learning_rate: 1e-2, {keys}}}"
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tiny / "contradiction.yaml", Path("vit"), Path("data"), stage=text))


def test_pretraining_from_random_weights_has_no_start_to_keep(tiny: Path) -> None:
    text = "{stage: pretrain, steps: 1, batch_size: 8, learning_rate: 1e-2, l2_sp: {}}"
    with pytest.raises(RecipeError, match="pretrain starts from random ones"):
        load_recipe(write_recipe(tiny / "contradiction.yaml", Path("vit"), Path("data"), stage=text))
