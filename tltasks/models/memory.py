"""Memory that a step of training needs, found without weights: by rehearsing it on tensors that hold no numbers."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

# Private names of torch (2.14), which has no public way to run a model in autocast without numbers, or to count bytes.
_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm}
_EMPTY = _aten.empty.memory_format
"""Has no numbers yet; those that are drawn into it, as for dropout, decide no shape."""


@dataclass(frozen=True)
class Memory:
    """Bytes of each part of training at the moment when most are in use."""

    weights: int
    """All of the model's, in the formats that they are held in."""
    gradients: int
    """One for each trained weight."""
    optimizer: int
    """AdamW's two moments of each trained weight."""
    activations: int
    """For one micro-batch: what the backward pass waits for, what is cast, and what is computed on the way."""
    kernels: int = 0
    """Their number: oneDNN makes one for each shape of a product in 16 bits on a CPU."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def rehearse_step(
    model: nn.Module,
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
    batch: dict[str, Tensor],
    *,
    precision: str,
    accumulates: bool = True,
) -> Memory:
    """Bytes that one micro-batch needs of a model as it stands: adapted, frozen, in its formats, on any device.

    Weights and their gradients are there all the time, as from the second micro-batch of a step on; where a step has
    one that `accumulates` nothing, gradients come as activations go. AdamW's moments are two for each trained weight,
    in its own format. What is measured is the most that is alive beside them.
    """
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _on_cpu(model, mode):
        rehearsal = _Rehearsal(mode)
        inputs = {name: rehearsal.known(tensor) for name, tensor in batch.items()}
        for parameter in model.parameters():
            if parameter.requires_grad and accumulates:
                parameter.grad = torch.empty_like(parameter)
        for tensor in (*model.parameters(), *model.buffers()):
            rehearsal.ignore(tensor)
            if tensor.grad is not None:
                rehearsal.ignore(tensor.grad)
        with rehearsal:
            with torch.autocast("cpu", _FORMATS.get(precision), enabled=precision in _FORMATS):
                found = loss(model, inputs)
            found.backward()  # type: ignore[no-untyped-call]
            del found
    weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
    most = rehearsal.most if accumulates else max(0, rehearsal.most - trained)
    return Memory(weights, trained, 2 * trained, most, len(rehearsal.products))


@contextlib.contextmanager
def _on_cpu(model: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """The model's weights as such of a CPU, for which torch casts as it does in training; tied ones stay tied."""
    tensors: dict[int, Tensor] = {}
    places = [
        (group, name, tensor)
        for module in model.modules()
        for group in (cast("dict[str, Tensor | None]", module._parameters), module._buffers)
        for name, tensor in group.items()
        if tensor is not None
    ]
    for _, _, tensor in places:
        if id(tensor) not in tensors:
            fake = FakeTensor(mode, tensor.detach().to("meta"), torch.device("cpu"))
            is_weight = isinstance(tensor, nn.Parameter)
            tensors[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
    for group, name, tensor in places:
        group[name] = tensors[id(tensor)]
    try:
        yield
    finally:
        for group, name, tensor in places:
            group[name] = tensor


class _Rehearsal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that are alive, and computes whole numbers and masks for real, since shapes depend on them."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode, self.alive, self.most = mode, 0, 0
        self.counted: set[int] = set()
        self.real = WeakIdKeyDictionary()
        self.products: set[tuple[object, ...]] = set()

    def known(self, tensor: Tensor) -> Tensor:
        """A tensor of the batch."""
        fake = self.mode.from_tensor(tensor)
        self._remember(fake, tensor)
        return fake

    def ignore(self, tensor: Tensor) -> None:
        """Leave a tensor that is there all the time out of the count."""
        self.counted.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "generator"}
        self._note_product(func, args)  # type: ignore[no-untyped-call]
        real = self._for_real(func, args, kwargs)  # type: ignore[no-untyped-call]
        if func is _aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in self._places(index)])
        try:
            output = self._grouped(*args, **kwargs) if func is _aten._grouped_mm.default else func(*args, **kwargs)
        except DynamicOutputShapeException:
            found = self._by_zeros(func, args, kwargs) if real is None else real  # type: ignore[no-untyped-call]
            output = tree_map_only(Tensor, self.mode.from_tensor, found)
        except DataDependentOutputException:  # of numbers that nothing holds: as if nothing was odd about them
            if real is not None:
                return real
            return 1.0 if func is _aten._local_scalar_dense.default and args[0].is_floating_point() else False
        if real is not None:
            for fake, number in zip(tree_leaves(output), tree_leaves(real), strict=True):
                if isinstance(fake, Tensor):
                    self._remember(fake, number)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return output

    def _grouped(self, rows: Tensor, weights: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The products of a mixture of experts, which without numbers are there in 16 bits alone (torch 2.14)."""
        found: Tensor = _aten._grouped_mm.default(rows.bfloat16(), weights.bfloat16(), *args, **kwargs)
        return found.to(rows.dtype)

    def _note_product(self, func, args):  # type: ignore[no-untyped-def]
        if func.overloadpacket in _PRODUCTS:
            tensors = [it for it in args if isinstance(it, Tensor)]
            if tensors[-1].dtype in _FORMATS.values():
                self.products.add((func.overloadpacket, *((it.dtype, it.shape, it.stride()) for it in tensors)))

    def _for_real(self, func, args, kwargs):  # type: ignore[no-untyped-def]
        """The outcome of an operation on whole numbers or masks alone; None for others."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor not in self.real for tensor in tensors) or (not tensors and "dtype" not in kwargs):
            return None
        if not tensors and (kwargs["dtype"] is None or kwargs["dtype"].is_floating_point or func is _EMPTY):
            return None
        args, kwargs = tree_map_only(Tensor, self.real.__getitem__, (args, kwargs))
        with _disable_current_modes():
            return func(*args, **kwargs)

    def _by_zeros(self, func, args, kwargs):  # type: ignore[no-untyped-def]
        """The outcome of an operation whose shape the known numbers alone decide."""
        with _disable_current_modes():
            args, kwargs = tree_map_only(
                Tensor,
                lambda it: self.real[it] if it in self.real else torch.zeros(it.shape, dtype=it.dtype),
                (args, kwargs),
            )
            return func(*args, **kwargs)

    def _remember(self, fake: Tensor, real: Tensor) -> None:
        if not real.dtype.is_floating_point:
            self.real[fake] = real

    def _places(self, mask: Tensor | None) -> list[Tensor | None]:
        """A mask by which a tensor is indexed as the places that it marks; other indices as they are."""
        if mask is None or mask.dtype != torch.bool or mask not in self.real:
            return [mask]
        with _disable_current_modes():
            places = self.real[mask].nonzero(as_tuple=True)
        return [self.mode.from_tensor(place) for place in places]

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.counted:
            self.counted.add(storage._cdata)
            self.alive += storage.nbytes()
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.alive -= size
