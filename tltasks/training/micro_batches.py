"""Micro-batches that fill an accelerator: the size that is fastest within its memory, found before the first step.

Steps do not depend on it beyond rounding and what dropout draws. What was found is kept for each kind of device and
shape of work, so that the next run of the same work begins with it and computes the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from tltasks.models.adapters import set_training_mode
from tltasks.runtime.files import write_json
from tltasks.runtime.sharding import shares

LEAST_STEPS = 100
"""Steps from which a search pays: it takes about as long as ten of them."""
GAIN = 0.05
"""Share of the time that twice the size has to save to be taken: less is within what timings differ by."""


def doublings_of_whole(*, share: int, longest: int, budget: int) -> int:
    """How often a budget of rows × longest length is doubled until one pass takes all `share` rows of a process.

    >>> doublings_of_whole(share=32, longest=100, budget=1000), doublings_of_whole(share=8, longest=1, budget=64)
    (2, 0)
    """
    return max(0, math.ceil(math.log2(max(1, share * longest) / budget)))


def fastest(seconds: Callable[[int], float], *, most: int) -> int:
    """Doublings, `most` or fewer, after which twice the size would gain nothing or find no memory (infinite seconds).

    >>> fastest([8.0, 5.0, 4.0, 3.9].__getitem__, most=3), fastest([8.0, 5.0, math.inf].__getitem__, most=2)
    (2, 1)
    """
    found, least = 0, math.inf
    for doublings in range(most + 1):
        needed = seconds(doublings)
        if needed == math.inf or needed > (1 - GAIN) * least:
            break
        found, least = doublings, needed
    return found


class Found:
    """A size that was found for one kind of device and shape of work, kept among the caches of this machine."""

    def __init__(self, device: torch.device, model: nn.Module, *work: object) -> None:
        card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
        kind = device.type if card is None else (card.name, card.total_memory)
        shapes = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]
        key = hashlib.sha256(repr((kind, torch.__version__, type(model).__name__, shapes, work)).encode())
        self.file = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-micro-batches" / f"{key.hexdigest()[:32]}.json"

    def read(self) -> int | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(self.file.read_text(encoding="utf-8"))["doublings"])
        return None

    def write(self, doublings: int) -> None:
        with suppress(OSError):  # it is looked for again
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {"doublings": doublings})


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes that leave no trace: they tell what memory suffices for, and how long they take.

    Processes take them each by itself, so that one without memory keeps none waiting, and then agree.
    """

    accelerator: Accelerator
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    model: nn.Module
    """Not as DDP wraps it, whose forward waits for the other processes: they take other numbers of passes."""
    frozen_batch_norm: bool
    is_short: Callable[[BaseException], bool]
    """Tell memory that does not suffice from other errors."""
    fast: Callable[[], AbstractContextManager[None]]
    """Round each pass, as in a step."""

    @property
    def are_possible(self) -> bool:
        """No process can pass by itself where weights are in parts on several devices."""
        return not shares(self.accelerator)

    def seconds(self, batches: Sequence[dict[str, Tensor]], *, reserve: int) -> float:
        """Time of the passes on the slowest process; infinite where memory does not suffice on one.

        `reserve` bytes are held meanwhile, for what is yet to be asked for.
        """
        held, needed = None, math.inf
        device = self.accelerator.device
        set_training_mode(self.model, frozen_batch_norm=self.frozen_batch_norm)
        with buffers_kept(self.model):
            try:
                held = torch.empty(reserve, dtype=torch.uint8, device=device)
                started = time.perf_counter()
                for batch in batches:
                    with self.fast():
                        loss = self.loss(self.model, send_to_device(batch, device))
                        loss.backward()  # type: ignore[no-untyped-call]
                    loss.item()  # waits for the device
                needed = time.perf_counter() - started
            except (RuntimeError, MemoryError) as error:
                if not self.is_short(error):
                    raise
        del held
        self.model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return self.most(needed)

    def most(self, value: float) -> float:
        """The largest of the processes' values."""
        found: Tensor = self.accelerator.gather(
            torch.tensor([value], dtype=torch.float32, device=self.accelerator.device)
        )
        return float(found.max())


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put buffers back as they were: statistics, and those of an image's size that ConViT replaces (timm 1.0.31)."""
    held = [
        (m, name, b, b.detach().clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in held:
                buffer.copy_(values)
                module._buffers[name] = buffer
