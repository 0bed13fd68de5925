"""Which weights a loss does not reach, and that experts are not among them."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tltasks.training.loop import _unreached, _unused_weights


class Routed(nn.Module):
    """Each row goes to the expert that its number names, and past a layer that nothing reaches."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(2, 1) for i in range(experts)})

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.layers[0](torch.ones(len(rows), 2))
        parts = [self.experts[f"expert_{row}"](hidden[i]) for i, row in enumerate(rows.tolist())]
        return torch.stack(parts).mean()


def unused(rows: list[int], *, experts: int = 4) -> tuple[set[str], bool]:
    def collate(rows: list[int], indices: list[int], *, epoch: int) -> dict[str, Tensor]:
        return {"rows": torch.tensor([rows[i] for i in indices])}

    task = SimpleNamespace(collate_train=collate, loss=lambda model, batch: model(batch["rows"]))
    job: Any = SimpleNamespace(task=task, rows=rows, frozen_batch_norm=False)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    return _unused_weights(accelerator, job, Routed(experts))


def test_experts_of_which_other_rows_reach_others_are_used() -> None:
    assert unused([0, 1, 2]) == ({"layers.1.weight", "layers.1.bias"}, True), "expert 3 may yet be reached"


def test_parts_that_are_passed_by_for_every_row_are_unused() -> None:
    never = {f"experts.expert_{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert unused([0, 0, 0]) == ({"layers.1.weight", "layers.1.bias"} | never, False)


class Gridded(nn.Module):
    """Makes its table of places of the size of what it is given, as ConViT does, and counts passes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("places", torch.zeros(1), persistent=False)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, rows: Tensor) -> Tensor:
        if self.places.shape != rows.shape:
            self.places = torch.arange(len(rows)).float()
        self.passes += 1
        return self.layer(self.places[:, None]).mean()


def test_what_a_pass_has_made_of_buffers_is_undone() -> None:
    """Values of the old table, copied into the new one, would be other places."""
    model = Gridded()
    task = SimpleNamespace(collate_train=lambda rows, indices, epoch: torch.zeros(3), loss=lambda model, b: model(b))
    job: Any = SimpleNamespace(task=task, rows=[0, 1, 2], frozen_batch_norm=False)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    assert _unreached(accelerator, job, model, [0, 1, 2]) == set()
    assert (model.places.tolist(), model.passes.tolist()) == ([0], [0])
    model(torch.zeros(3))
    assert model.places.tolist() == [0, 1, 2]
