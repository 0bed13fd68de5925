"""Resume state: what is kept, and what is left of it after every kind of damage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tltasks.errors import CheckpointError
from tltasks.training.checkpoint import (
    Checkpoints,
    Progress,
    TrainingState,
    best_name,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    step_name,
)


def write(checkpoints: Checkpoints, step: int, *, best: int | None = None) -> str:
    name = step_name(step)
    tensors: dict[str, dict[str, Tensor]] = {"model": {"w": torch.full((200,), float(step))}, "optimizer": {}}
    checkpoints.save(name, TrainingState(tensors, Progress(step=step, best_step=best), "digest"))
    return name


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


# ------------------------------------------------------------------------------------------ the state


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.norm, self.head = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.frozen.requires_grad_(False)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.frozen(x)))


def test_state_is_what_training_changes() -> None:
    assert model_state(Net()).keys() == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_goes_on_to_the_bit_through_a_file(checkpoints: Checkpoints, optimizer: str) -> None:
    def make(net: Net) -> torch.optim.Optimizer:
        trained = [p for p in net.parameters() if p.requires_grad]
        if optimizer == "sgd":
            return torch.optim.SGD(trained, lr=0.1, momentum=0.9, fused=True)
        return torch.optim.AdamW(trained, lr=0.1, fused=True)

    def steps(net: Net, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
            net(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    straight = Net()
    frozen = {k: v.clone() for k, v in straight.state_dict().items()}
    own = make(straight)
    steps(straight, own, range(3))
    tensors = {"model": model_state(straight), "optimizer": optimizer_state(straight, own)}
    checkpoints.save("x", TrainingState(tensors, Progress(), ""))
    steps(straight, own, range(3, 6))

    resumed = Net()
    resumed.load_state_dict(frozen)
    again = make(resumed)
    tensors = checkpoints.load("x").tensors
    load_model_state(resumed, tensors["model"])
    load_optimizer_state(resumed, again, tensors["optimizer"])
    steps(resumed, again, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert not torch.equal(straight.head.weight, frozen["head.weight"])


def test_state_of_another_adaptation_is_refused_with_what_differs() -> None:
    net = Net()
    state = model_state(net)
    net.frozen.requires_grad_(True)
    with pytest.raises(CheckpointError, match=r"another model or adaptation \(frozen.bias, frozen.weight"):
        load_model_state(net, state)


# ------------------------------------------------------------------------------------- whole or absent


def test_values_and_tensors_come_back(checkpoints: Checkpoints) -> None:
    strided = torch.arange(6.0).view(2, 3).T
    shared = torch.ones(4)
    tensors = {"m": {"strided": strided, "x": shared, "y": shared[:2]}, "none": {}}
    progress = Progress(step=3, best_value=0.5, seconds=1 / 3, ended="all steps done")
    checkpoints.save("a", TrainingState(tensors, progress, "digest", {"scale": 1024.0}))
    found = checkpoints.load("a")
    assert (found.progress, found.data, found.scaler) == (progress, "digest", {"scale": 1024.0})
    assert found.tensors["none"] == {}
    assert torch.equal(found.tensors["m"]["strided"], strided)
    assert found.tensors["m"]["y"].tolist() == [1, 1]


def test_newest_is_the_newest(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    for step in (9, 10, 100):
        write(checkpoints, step)
    found = checkpoints.newest()
    assert found is not None
    name, state = found
    assert name == step_name(100)
    assert state.tensors["model"]["w"][0] == 100
    assert state.progress.step == 100
    assert checkpoints.steps() == [step_name(9), step_name(10), step_name(100)]


def test_a_save_that_fails_leaves_the_one_before(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    write(checkpoints, 1)
    saves: list[str] = []

    def disk_full(tensors: object, path: Path) -> None:
        saves.append(path.name)
        path.write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tltasks.training.checkpoint.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(checkpoints, 2)
    assert saves == ["model.safetensors"]
    monkeypatch.undo()
    assert checkpoints.steps() == [step_name(1)]
    assert not list(checkpoints.folder.glob(".*.tmp")), "nothing is left half-written"
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == step_name(1)
    write(checkpoints, 2)
    checkpoints.prune()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [step_name(1), step_name(2)]


def test_nothing_has_its_name_before_all_is_written(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    rename = Path.rename

    def watch(self: Path, target: Path) -> Path:
        assert not target.exists()
        if not target.name.startswith("."):  # an earlier one is put aside
            seen.append(sorted(p.name for p in self.iterdir()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    write(checkpoints, 1)
    write(checkpoints, 1)
    assert seen == [["manifest.json", "model.safetensors", "optimizer.safetensors"]] * 2


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a truncated file": _truncate,
    "one flipped bit": _flip,
    "a missing file": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text()[:40]
    ),
    "a manifest of zeros": lambda folder: (folder / "manifest.json").write_bytes(bytes(100)),
    "a manifest of noise": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x80"),
    "a manifest of another kind": lambda folder: (folder / "manifest.json").write_text("null"),
    "a manifest without progress": lambda folder: (folder / "manifest.json").write_text('{"digests": {}}'),
    "a list for digests": lambda folder: (folder / "manifest.json").write_text('{"digests": [], "progress": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_pruned(checkpoints: Checkpoints, damage: str) -> None:
    write(checkpoints, 1)
    DAMAGE[damage](checkpoints.folder / write(checkpoints, 2))
    with pytest.raises(CheckpointError):
        checkpoints.load(step_name(2))
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == step_name(1)
    write(checkpoints, 3)
    checkpoints.prune()  # training that went on from step 1 keeps the damaged one until it is old
    write(checkpoints, 4)
    checkpoints.prune()
    assert checkpoints.steps() == [step_name(3), step_name(4)]


def test_without_a_manifest_it_is_none(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / write(checkpoints, 1) / "manifest.json").unlink()
    assert checkpoints.steps() == []
    assert checkpoints.newest() is None


def test_when_all_are_damaged_each_is_named(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        _flip(checkpoints.folder / write(checkpoints, step))
    with pytest.raises(CheckpointError, match="no checkpoint is whole") as caught:
        checkpoints.newest()
    assert step_name(1) in str(caught.value)
    assert step_name(2) in str(caught.value)


def test_a_damaged_one_of_the_same_name_is_replaced(checkpoints: Checkpoints) -> None:
    _truncate(checkpoints.folder / write(checkpoints, 1))
    write(checkpoints, 1)
    assert checkpoints.load(step_name(1)).tensors["model"]["w"][0] == 1


# ---------------------------------------------------------------------------------------------- pruning


def test_pruning_keeps_the_newest_and_the_best_that_they_refer_to(checkpoints: Checkpoints) -> None:
    for best in (1, 2, 3):
        checkpoints.save(best_name(best), TrainingState({"model": {}}, Progress(), ""))
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 3)):
        write(checkpoints, step, best=best)
    (checkpoints.folder / ".step-000000005.77.tmp").mkdir()
    checkpoints.prune()
    kept = {p.name for p in checkpoints.folder.iterdir()}
    assert kept == {step_name(3), step_name(4), best_name(2), best_name(3)}


def test_pruning_before_there_is_a_best(checkpoints: Checkpoints) -> None:
    checkpoints.prune()  # not even a folder
    write(checkpoints, 1)
    checkpoints.prune()
    assert checkpoints.steps() == [step_name(1)]


def test_no_pickle_is_written(checkpoints: Checkpoints) -> None:
    folder = checkpoints.folder / write(checkpoints, 1)
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "manifest.json").read_text())["progress"]["step"] == 1
    shutil.rmtree(folder)
