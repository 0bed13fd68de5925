"""Weights, gradients and moments shared out over processes (FSDP 2), and gathered where they are needed whole.

By torch's `fully_shard`, with the settings of accelerate's `fsdp_config`. Accelerate (1.15) itself would share nothing
out on CPUs (state.py), and in 16 bits compute all of a layer in them, where autocast keeps norms and sums in 32
(utils/dataclasses.py, set_mixed_precision): other losses than without. Source: Zhao et al.,
https://arxiv.org/abs/2304.11277.

Where a run shares nothing out, each function here does what is done without it.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tltasks.errors import RecipeError, TrainingError
from tltasks.runtime.environment import shares_states


def shares(accelerator: Accelerator) -> bool:
    """Tell whether each process keeps a share of the states alone."""
    return accelerator.num_processes > 1 and shares_states()


@contextmanager
def unknown_to_accelerate() -> Iterator[None]:
    """Have an Accelerator that is made in this block leave FSDP to this module."""
    before = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["ACCELERATE_USE_FSDP"] = before


def share_out(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model to be trained: a copy of which each process keeps a share, of process 0's weights as with DDP.

    Raises RecipeError for a model that cannot be shared out.
    """
    if not shares(accelerator):
        return model
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin = FullyShardedDataParallelPlugin()
    refuse_mixed(model)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        _of_main_process(tensor)
    copied = copy.deepcopy(model.to("cpu"))
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    of_none = {p for p in copied.parameters() if p.ndim == 0}
    for layer in _layers(copied, plugin.transformer_cls_names_to_wrap):
        reshards = bool(plugin.reshard_after_forward)
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards, ignored_params=of_none)
    fully_shard(copied, mesh=mesh, ignored_params=of_none)
    return copied


def refuse_mixed(model: nn.Module) -> None:
    """Raise RecipeError for a model that cannot be shared out, or that would then compute something else."""
    if trained := [name for name, p in model.named_parameters() if p.requires_grad and p.ndim == 0]:
        raise RecipeError(f"FSDP 2 cannot share out single numbers, as {trained[0]} is; launch without --use_fsdp.")
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise RecipeError("FSDP 2 leaves statistics of batches apart; set `batch_norm: frozen`, or launch without it.")
    if dropped := _drops_layers(model):
        raise RecipeError(f"FSDP 2 mixes up layers that are dropped, by the model's {dropped}; launch without it.")


def layer_bytes(model: nn.Module) -> list[int]:
    """Bytes of each part whose weights are gathered at once when a model is shared out: its layers, then the rest."""
    found, seen = list[int](), set[int]()
    for module in (*_layers(model, None), model):
        own = {id(p): p for p in module.parameters() if id(p) not in seen}
        seen |= own.keys()
        found.append(sum(p.numel() * p.element_size() for p in own.values()))
    return found


def _drops_layers(model: nn.Module) -> str | None:
    """The key by which a model of transformers passes by layers that are drawn, on each process others."""
    configs = (vars(m.config) for m in model.modules() if hasattr(getattr(m, "config", None), "model_type"))
    return next((key for own in configs for key, value in own.items() if key.endswith("layerdrop") and value), None)


def _layers(model: nn.Module, named: list[str] | None) -> list[nn.Module]:
    """The layers that are gathered one after another, inner ones first: of these classes, or the model's own."""
    own = next((sorted(names) for m in model.modules() if (names := getattr(m, "_no_split_modules", None))), [])
    wanted = set(own if named is None else named)
    found = [m for m in model.modules() if type(m).__name__ in wanted and m is not model]
    if named is not None and (missing := wanted - {type(m).__name__ for m in found}):
        raise RecipeError(
            f"fsdp_transformer_layer_cls_to_wrap: the model has no {', '.join(sorted(missing))}; leave it out"
            + (f", or name {', '.join(own)}." if own else ".")
        )
    return found[::-1]


@torch.no_grad()
def _of_main_process(tensor: Tensor) -> None:
    whole = tensor.detach().contiguous()
    torch.distributed.broadcast(whole, 0)
    tensor.copy_(whole)


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """The model as a step calls it, its gradients averaged over processes, and its optimiser."""
    if not shares(accelerator):
        wrapped, prepared = accelerator.prepare(model, optimizer)
    else:  # in evaluation mode nothing is wrapped by DDP
        wrapped = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        prepared = accelerator.prepare_optimizer(optimizer)
    return wrapped, prepared


def check_gradients(model: nn.Module) -> None:
    """Raise TrainingError where a weight that is shared out has no gradient after a step's passes."""
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad is None and isinstance(p, DTensor):
            raise TrainingError(f"{name} gets no gradient under FSDP 2; launch without --use_fsdp.")


def refuse_rare(accelerator: Accelerator) -> None:
    """Raise RecipeError where weights that not all rows reach, as of experts, would be shared out.

    Where one process reaches one expert and one another, the gradients of the two are added up (torch 2.14,
    _fsdp_param_group.py, post_backward: what has none is left out), which nobody sees after several passes.
    """
    if shares(accelerator):
        raise RecipeError("FSDP 2 mixes gradients of experts that not all rows reach; launch without --use_fsdp.")


def full(tensor: Tensor) -> Tensor:
    """A tensor as a whole; all processes take part where it is shared out."""
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole


def gathered(tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors as wholes, one by one; those shared out are on the CPU, of the processes that `keep` them."""
    found = {}
    for name, tensor in tensors.items():
        whole = full(tensor)
        if whole is tensor or keep:
            found[name] = whole if whole is tensor else whole.cpu()
    return found


def put(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, or this process's share of it, into another."""
    target.copy_(share_as(target, whole))


def share_as(target: Tensor, whole: Tensor) -> Tensor:
    """This process's share of a whole tensor, where `target`, of its shape, is shared out."""
    whole = whole.to(target.device)
    if not isinstance(target, DTensor) or target.shape != whole.shape:
        return whole
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def gather_into(model: nn.Module, trained: nn.Module) -> None:
    """Give a model the weights of its copy that is trained, and process 0's buffers."""
    if model is trained:
        return
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, p in trained.named_parameters():
        if p.requires_grad:
            parameters[name].copy_(full(p))
    for name, buffer in trained.named_buffers():
        _of_main_process(buffer)
        buffers[name].copy_(buffer)


@contextmanager
def whole_model(model: nn.Module, trained: nn.Module) -> Iterator[nn.Module]:
    """The model with the weights of its copy that is trained; it does not stay on the device beside that."""
    gather_into(model, trained)
    try:
        yield model
    finally:
        if model is not trained:
            model.to("cpu")
