"""Libraries that do more than be there when they are imported."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALLOWED = "USE_HUB_KERNELS"
"""Environment variable of transformers (5.24, integrations/hub_kernels.py) by which users say whether to fetch any."""


class _Watch(MetaPathFinder):
    """Finds bitsandbytes as others do, and has it loaded while there is no package `kernels`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "bitsandbytes":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _without_kernels(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec


def fetch_no_kernels() -> None:
    """Have bitsandbytes fetch no code when it is imported, unless the environment says USE_HUB_KERNELS=1.

    PEFT imports it wherever it is installed (0.21, helpers.py). On a processor with bf16 instructions it then fetches a
    library from the Hub by the package `kernels`, and runs it, or warns that there is no such package (0.50,
    backends/cpu/ops.py). The library is for layers of 4 bits that are not used here.
    """
    is_allowed = os.environ.get(ALLOWED, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    if not is_allowed and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _without_kernels(load: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def loaded(module: ModuleType) -> None:
        absent = object()
        logger, kernels = logging.getLogger("bitsandbytes.backends.cpu.ops"), sys.modules.get("kernels", absent)
        was_disabled, logger.disabled = logger.disabled, True
        sys.modules["kernels"] = None  # type: ignore[assignment] # by which Python tells that there is none
        try:
            load(module)
        finally:
            logger.disabled = was_disabled
            del sys.modules["kernels"]
            if kernels is not absent:
                sys.modules["kernels"] = kernels  # type: ignore[assignment]

    return loaded
