"""`import tltasks` in Python: its members, what importing costs, and that types travel with the package."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tltasks

ROOT = Path(tltasks.__file__).parents[1]
ERRORS = {"TltasksError", "RecipeError", "DataError", "CheckpointError", "TrainingError", "HubError", "StorageError"}
FUNCTIONS = {"compare", "examine", "load", "load_recipe", "run"}
MEMBERS = ERRORS | FUNCTIONS | {"Interrupted", "Predictor", "Recipe", "RunResult", "__version__"}


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_the_members_are_exactly_these() -> None:
    assert set(tltasks.__all__) == MEMBERS
    assert set(dir(tltasks)) == MEMBERS
    assert list(tltasks.__all__) == sorted(tltasks.__all__)


def test_each_is_what_its_module_defines_and_documents() -> None:
    for name in MEMBERS - {"__version__"}:
        member = getattr(tltasks, name)
        assert member.__name__ == name
        assert member.__module__.startswith("tltasks.")
        assert member.__doc__
    for name in ERRORS:
        assert issubclass(getattr(tltasks, name), tltasks.TltasksError)


def test_type_checkers_see_the_same_members() -> None:
    tree = ast.parse(Path(tltasks.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    found = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*found, "__version__"} == MEMBERS
    assert found == {name: f"tltasks.{tltasks._MODULES.get(name, 'errors')}" for name in found}


def test_importing_costs_nothing() -> None:
    code = "import sys, json, tltasks; print(json.dumps([name for name in sys.modules if name.startswith('tltasks')]))"
    assert json.loads(python(code)) == ["tltasks"]
    code = "import sys, json, tltasks; tltasks.load_recipe; print(json.dumps(list(sys.modules)))"
    assert not {"torch", "transformers", "datasets", "numpy"} & set(json.loads(python(code)))


def test_an_unknown_member_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        tltasks.train  # type: ignore[attr-defined]  # noqa: B018


def test_the_wheel_says_that_it_is_typed() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert wheel["wheel"]["packages"] == ["tltasks"]
    assert not {"include", "exclude", "only-include"} & wheel["wheel"].keys()
    assert (ROOT / "tltasks" / "py.typed").read_bytes() == b""
