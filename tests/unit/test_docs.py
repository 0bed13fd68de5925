"""README and docs: every block of YAML, shell and Python is checked here, and counted; links lead somewhere."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

import tltasks
from tltasks.cli.commands import STANDARD_INPUT, app
from tltasks.config.document import Origin
from tltasks.config.loading import load_recipe
from tltasks.config.schema import json_schema
from tltasks.config.yaml_reader import parse_value
from tltasks.errors import DataError, RecipeError
from tltasks.experiments.experiment import Contrast, Experiment
from tltasks.experiments.search_space import Search

ROOT = Path(tltasks.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
COUNTED = {"whole recipes": 7, "parts of recipes": 11, "commands": 18, "python": 8}
"""Of each kind, all of which are checked and none of which is run here."""


NAMED_BY_USERS = {
    "axes",
    "candidates",
    "class_weights",
    "extra_test",
    "extra_train",
    "files",
    "options",
    "peft",
    "skip",
}
NAMED_BY_USERS |= {"space"}
"""Keys below which the user, or another library, has names of its own."""


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Place and text of each fenced block; of a console the commands alone."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found["kind"] == kind:
                yield f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}", found["text"]


def commands() -> Iterator[tuple[str, list[str]]]:
    for place, text in blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ ").split(" | ")[-1], comments=True)
            if line.startswith("$ ") and words and Path(words[0]).name == "tltasks":
                yield place, words[1:]


@cache
def known_keys() -> frozenset[str]:
    found = {*Experiment.model_fields, *Contrast.model_fields, *Search.model_fields}
    for kind in json_schema()["$defs"].values():  # type: ignore[attr-defined]
        found |= kind.get("properties", {}).keys()
    return frozenset(found)


def unknown(value: Any) -> Iterator[str]:
    """Keys of a part of a recipe that no section has; names that the user chooses stand below some."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key in NAMED_BY_USERS:
                continue
            if str(key) not in {*known_keys(), "…"}:
                yield str(key)
            yield from unknown(below)
    elif isinstance(value, list):
        for one in value:
            yield from unknown(one)


def test_blocks_of_yaml() -> None:
    whole = parts = 0
    for place, text in blocks("yaml"):
        keys = parse_value(text, Origin(place, ROOT)).value
        if isinstance(keys, dict) and {"task", "model", "data"} <= keys.keys() and "…" not in text:
            load_recipe(keys, check_files=False)
            whole += 1
        else:
            assert not list(unknown(keys)), place
            parts += 1
    assert {"whole recipes": whole, "parts of recipes": parts} == {
        key: COUNTED[key] for key in ("whole recipes", "parts of recipes")
    }


def test_commands() -> None:
    n = 0
    for place, words in commands():
        n += 1
        try:
            words = [STANDARD_INPUT if word == "-" else word for word in words]
            app.parse_args(words, print_error=False, exit_on_error=False)
        except CycloptsError as error:
            if not isinstance(error.__cause__, (DataError, RecipeError, ValueError)):
                pytest.fail(f"{place}: {shlex.join(words)}: {error}")
        except (DataError, RecipeError):
            pass  # files of the reader's, which are not here
    assert n == COUNTED["commands"]


def test_blocks_of_python() -> None:
    n = 0
    for place, text in blocks("python"):
        n += 1
        for node in ast.walk(ast.parse(text, place)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tltasks":
                assert hasattr(tltasks, node.attr), f"{place}: tltasks.{node.attr}"
    assert n == COUNTED["python"]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_messages_that_are_explained_are_said() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tltasks").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    told = re.findall(r"^## `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(told) >= 14
    assert [message for message in told if message not in source] == []


def test_every_key_of_a_recipe_has_its_meaning_on_the_page() -> None:
    for name, kind in json_schema()["$defs"].items():  # type: ignore[attr-defined]
        for key, value in kind.get("properties", {}).items():
            assert value.get("description") or "const" in value, f"{name}.{key}"
    shown = subprocess.run(
        [sys.executable, "-c", "import runpy; print(runpy.run_path('docs/make_keys.py')['page'](), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert shown == (ROOT / "docs" / "keys.md").read_text(encoding="utf-8"), "python docs/make_keys.py"


def test_the_site_has_every_page() -> None:
    nav = json.dumps(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert {page.name for page in PAGES[1:]} == set(re.findall(r"[\w-]+\.md", nav))
