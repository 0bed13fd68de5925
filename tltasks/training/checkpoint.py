"""Resume state: what a stage needs to go on exactly where it stopped.

Only what training changes is written (trained weights, buffers, optimiser, average), as safetensors and JSON: no
pickle. The loop draws its random numbers from (seed, step), so no random state has to be kept. A checkpoint appears
under its name only when it is complete; whatever a kill leaves behind is never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tltasks.data.streaming import Place
from tltasks.errors import CheckpointError
from tltasks.runtime.files import whole_folder
from tltasks.runtime.sharding import put, share_as

Tensors = dict[str, Tensor]

_DAMAGED = (ValueError, KeyError, TypeError, AttributeError)
"""What reading a manifest raises that is not JSON, not text, or not of our making."""


@dataclass
class Progress:
    """The only mutable state of a stage besides tensors."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    """Decides between evaluations of equal value, which small validation sets have many of."""
    evaluations_without_gain: int = 0
    halvings: int = 0
    """How often micro-batches were halved because memory did not suffice."""
    doublings: int | None = None
    """How often the usual micro-batch was doubled, as that was found to be faster; None before that was looked into."""
    pass_rows: int = 0
    """Most rows of a forward pass of one process."""
    place: Place | None = None
    """Where the window of the next step begins, in data that are streamed."""
    seconds: float = 0.0
    examples: int = 0
    ended: str = ""
    """Why training ended; empty while it goes on."""

    @property
    def net_halvings(self) -> int:
        """How often micro-batches are halved from the usual size on; below zero where they are doubled."""
        return self.halvings - (self.doublings or 0)

    def improve(self, value: float, loss: float, *, higher_is_better: bool) -> bool:
        """Take note of an evaluation; whether it is the best so far, by its value and then by its loss."""
        sign, best = 1 if higher_is_better else -1, (self.best_value, self.best_loss)
        better = best[0] is None or best[1] is None or (sign * value, -loss) > (sign * best[0], -best[1])
        self.evaluations_without_gain = 0 if better else self.evaluations_without_gain + 1
        if better:
            self.best_value, self.best_loss, self.best_step = value, loss, self.step
        return better


@dataclass(frozen=True)
class TrainingState:
    """All that a stage goes on from."""

    tensors: dict[str, Tensors]
    """By group, such as `model` and `optimizer`, and name."""
    progress: Progress
    data: str
    """Digest of the rows that it was trained on."""
    scaler: dict[str, float] | None = None
    """Of gradients in fp16."""


def model_state(model: nn.Module) -> Tensors:
    """The tensors that training can change: trained weights and floating-point buffers such as running statistics."""
    changed: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    changed |= {name: b for name, b in model.named_buffers() if _is_saved_buffer(model, name)}
    return {name: tensor.detach() for name, tensor in changed.items()}


def _is_saved_buffer(model: nn.Module, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf not in model.get_submodule(module)._non_persistent_buffers_set


def load_model_state(model: nn.Module, state: Tensors) -> None:
    """Put back what `model_state` gave; raises CheckpointError when it is of another model or adaptation."""
    own = model_state(model)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise CheckpointError(f"checkpoint: its weights are of another model or adaptation ({', '.join(odd[:3])}, …).")
    with torch.no_grad():
        for name, tensor in own.items():
            put(tensor, state[name])


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Tensors of the optimiser by weight name, `weight/quantity`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}/{key}": torch.as_tensor(value)
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Tensors) -> None:
    """Put back what `optimizer_state` gave."""
    by_name = dict(model.named_parameters())
    for key, tensor in state.items():
        name, _, quantity = key.rpartition("/")
        parameter = by_name[name]
        # Step counters stay where the optimiser made them: fused kernels want them beside the weight (torch 2.14,
        # optim/optimizer.py, _process_value_according_to_param_policy). bitsandbytes counts by a plain number.
        is_number = tensor.ndim == 0 and tensor.dtype == torch.int64
        optimizer.state[parameter][quantity] = tensor.item() if is_number else share_as(parameter, tensor.clone())


class Checkpoints:
    """The checkpoints of one stage in a folder; rank 0 writes, all ranks read."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, name: str, state: TrainingState) -> None:
        """Write under `name`, which appears only when it is complete; a damaged one of that name is replaced."""
        with whole_folder(self.folder / name) as folder:
            for group, tensors in state.tensors.items():
                save_file({k: v.contiguous().cpu().clone() for k, v in tensors.items()}, _group_file(folder, group))
            manifest = {
                "digests": {group: _digest(_group_file(folder, group)) for group in state.tensors},
                "progress": dataclasses.asdict(state.progress),
                "data": state.data,
                "scaler": state.scaler,
            }
            (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    def load(self, name: str) -> TrainingState:
        """Read a checkpoint. Raises CheckpointError for a damaged one."""
        folder = self.folder / name
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            tensors = {}
            for group, digest in manifest["digests"].items():
                path = _group_file(folder, group)
                if _digest(path) != digest:
                    raise CheckpointError(f"{path}: its content is damaged.")
                tensors[group] = load_file(path)
            return TrainingState(tensors, Progress(**manifest["progress"]), manifest["data"], manifest["scaler"])
        except (OSError, *_DAMAGED, SafetensorError) as error:
            raise CheckpointError(f"{folder}: the checkpoint cannot be read ({error}).") from error

    def prune(self) -> None:
        """Drop all but the newest `step-*`, and the `best-*` that none of those refers to."""
        steps = self.steps()
        for name in steps[: -self.keep]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        referred = set()
        for name in steps[-self.keep :]:
            with suppress(*_DAMAGED):  # one that training has passed over refers to nothing
                manifest = json.loads((self.folder / name / "manifest.json").read_text(encoding="utf-8"))
                referred.add(best_name(manifest["progress"]["best_step"]))
        for stale in [*self.folder.glob("best-*"), *self.folder.glob(".*.tmp")]:
            if stale.name not in referred:
                shutil.rmtree(stale, ignore_errors=True)

    def steps(self) -> list[str]:
        """Names of complete checkpoints, the oldest first."""
        return sorted(p.name for p in self.folder.glob("step-*") if (p / "manifest.json").is_file())

    def newest(self) -> tuple[str, TrainingState] | None:
        """The newest checkpoint that is whole, by its name; a damaged one is passed over for the one before."""
        damaged = []
        for name in reversed(self.steps()):
            try:
                return name, self.load(name)
            except CheckpointError as error:
                damaged.append(str(error))
        if damaged:
            raise CheckpointError("no checkpoint is whole:\n  " + "\n  ".join(damaged))
        return None


def step_name(step: int) -> str:
    """Name of the checkpoint after so many steps; names sort by step."""
    return f"step-{step:09d}"


def best_name(step: int | None) -> str:
    """Name of the checkpoint of the best weights, which are those of this step."""
    return f"best-{step or 0:09d}"


def _group_file(folder: Path, group: str) -> Path:
    return folder / f"{group}.safetensors"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
