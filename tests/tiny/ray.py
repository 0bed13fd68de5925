"""A stand-in for Ray that does all at once, in this process."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil


@dataclass(eq=False)
class Ref:
    """What is got of a call."""

    value: Any


@dataclass
class FakeRay:
    cores: float
    options: list[dict[str, Any]] = field(default_factory=list)
    """Of each thing that was made remote."""
    waited: int = 0

    def get(self, ref: Ref) -> Any:
        return ref.value

    def wait(self, refs: list[Ref], **options: Any) -> tuple[list[Ref], list[Ref]]:
        self.waited += 1
        return refs[:1], refs[1:]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.cluster_resources()}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def remote(self, **options: Any) -> Callable[[Any], SimpleNamespace]:
        self.options.append(options)

        def wrap(what: Any) -> SimpleNamespace:
            if not isinstance(what, type):
                return SimpleNamespace(remote=lambda *arguments: Ref(what(*arguments)))
            return SimpleNamespace(remote=lambda *arguments: Kept(what(*arguments)))

        return wrap


class Kept:
    """An object whose methods are called by `remote`."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self.held, name)
        return SimpleNamespace(remote=lambda *arguments: Ref(method(*arguments)))


def is_worker(process: psutil.Process) -> bool:
    """Tell a process of a run that Ray itself has started."""
    with contextlib.suppress(psutil.Error):
        return "".join(process.cmdline()[:1]).startswith("ray::RayTrainWorker")
    return False
