"""bitsandbytes fetches and says nothing when it is imported, as PEFT does for itself."""

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tltasks.runtime import imports

AS_IT_IS = """
import logging
try:
    from kernels import get_kernel
    found = get_kernel("kernels-community/quantization-bitsandbytes", version=1)
except Exception as error:
    found = None
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load: %s", error)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bitsandbytes that does what 0.50 does; not yet imported, nor watched."""
    (tmp_path / "bitsandbytes.py").write_text(AS_IT_IS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))  # afterwards as before, or gone
    del sys.modules["bitsandbytes"]
    monkeypatch.setattr(sys, "meta_path", [it for it in sys.meta_path if not isinstance(it, imports._Watch)])
    return "bitsandbytes"


def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install a package `kernels`; what it is asked to fetch."""
    fetched: list[str] = []
    package = ModuleType("kernels")
    package.get_kernel = lambda name, version: fetched.append(name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", package)
    return fetched


@pytest.mark.parametrize(("said", "times"), [(None, 0), ("no", 0), ("yes", 1), ("1", 1)])
def test_code_of_the_hub_is_fetched_at_the_users_word_alone(
    library: str, monkeypatch: pytest.MonkeyPatch, said: str | None, times: int
) -> None:
    monkeypatch.delenv(imports.ALLOWED, raising=False)
    if said is not None:
        monkeypatch.setenv(imports.ALLOWED, said)
    fetched = kernels(monkeypatch)
    package = sys.modules["kernels"]
    imports.fetch_no_kernels()
    importlib.import_module(library)
    assert len(fetched) == times
    assert sys.modules["kernels"] is package  # who uses it otherwise still can


def test_nothing_is_said_of_a_package_that_is_missing(library: str, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    imports.fetch_no_kernels()
    imports.fetch_no_kernels()
    assert sum(isinstance(finder, imports._Watch) for finder in sys.meta_path) == 1
    with caplog.at_level(logging.WARNING):
        importlib.import_module(library)
    assert not caplog.records
    assert "kernels" not in sys.modules
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("other")
    assert [record.message for record in caplog.records] == ["other"]


def test_whoever_imports_models_has_it_watched() -> None:
    importlib.import_module("tltasks.models")
    assert any(isinstance(finder, imports._Watch) for finder in sys.meta_path)
