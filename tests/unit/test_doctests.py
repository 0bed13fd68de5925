"""Every example in a docstring, of whichever module."""

import doctest
import importlib
import pkgutil

import tltasks

EXAMPLES = 59
"""How many there are at least; raise it with them."""


def test_examples_in_docstrings() -> None:
    names = [m.name for m in pkgutil.walk_packages(tltasks.__path__, "tltasks.") if m.name != "tltasks.__main__"]
    assert {"tltasks.metrics.classification", "tltasks.tasks.image.classification"} <= set(names)
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names if name != "tltasks.run"}
    assert {name: r.failed for name, r in results.items() if r.failed} == {}
    assert sum(r.attempted for r in results.values()) >= EXAMPLES
