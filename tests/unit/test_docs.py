"""README and docs: every block of YAML, shell and Python is checked here, and counted; links lead somewhere."""

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError

import tltasks
from benchmarks import memory
from tests.tiny.pages import FENCE, PAGES, blocks, commands, is_run, is_whole
from tltasks.cli.commands import STANDARD_INPUT, app
from tltasks.config.document import Origin
from tltasks.config.loading import load_recipe
from tltasks.config.schema import json_schema
from tltasks.config.tasks import TASKS
from tltasks.config.yaml_reader import parse_value
from tltasks.errors import DataError, RecipeError
from tltasks.experiments.experiment import Contrast, Experiment
from tltasks.experiments.search_space import Search

ROOT = Path(tltasks.__file__).parents[1]
COUNTED = {
    "recipes run": 9,
    "recipes checked": 13,
    "commands run": 25,
    "commands checked": 40,
    "python run": 8,
    "python checked": 1,
}
"""Blocks of YAML and Python and lines of consoles: those that are run, by tests/e2e/test_pages.py or
tests/integration/test_python.py, and those that are only checked here. Who adds or removes one changes its number."""


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


def is_counted(**found: int) -> None:
    found = {key.replace("_", " "): n for key, n in found.items()}
    assert found == {key: COUNTED[key] for key in found}


def fits(part: dict[str, Any]) -> bool:
    """True where these keys and values are right in a recipe of some task."""
    for task in TASKS if "task" not in part else [part["task"]]:
        model = {"name": "ada/any", **part.get("model", {})}
        data = {"name": "ada/any", "splits": {"validation": 0.1, "test": 0.2}, **part.get("data", {})}
        try:
            load_recipe({**part, "task": task, "model": model, "data": data}, check_files=False)
        except RecipeError:
            continue
        return True
    return False


def test_blocks_of_yaml() -> None:
    n = Counter[str]()
    for block in (block for block in blocks() if block.kind == "yaml"):
        keys = parse_value(block.text, Origin(block.place, ROOT)).value
        assert isinstance(keys, dict)
        if "recipe" in keys and "…" not in block.text:
            Experiment.model_validate(keys)
        elif "…" in block.text:
            assert not list(unknown(keys)), block.place
        else:
            assert fits(keys), block.place
        n["run" if block.named or is_whole(block) else "checked"] += 1
    is_counted(recipes_run=n["run"], recipes_checked=n["checked"])


def test_commands() -> None:
    n = Counter[bool]()
    for command in (one for block in blocks() if block.kind == "console" for one in commands(block)):
        n[command.is_run] += 1
        if Path(command.words[0]).name == "tltasks":
            try:
                words = [STANDARD_INPUT if word == "-" else word for word in command.words[1:]]
                app.parse_args(words, print_error=False, exit_on_error=False)
            except CycloptsError as error:
                if not isinstance(error.__cause__, (DataError, RecipeError, ValueError)):
                    pytest.fail(f"{command.place}: {shlex.join(command.words)}: {error}")
            except (DataError, RecipeError):
                pass  # files of the reader's, which are not here
    is_counted(commands_run=n[True], commands_checked=n[False])


def test_blocks_of_python() -> None:
    n = Counter[bool]()
    for block in (block for block in blocks() if block.kind == "python"):
        n[is_run(block)] += 1
        for node in ast.walk(ast.parse(block.text, block.place)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tltasks":
                assert hasattr(tltasks, node.attr), f"{block.place}: tltasks.{node.attr}"
    is_counted(python_run=n[True], python_checked=n[False])


def test_no_code_stands_outside_a_fence() -> None:
    """Where it would be neither run nor checked."""
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"^ {4,}\$? ?(?:tltasks|pip|python|from|import) .*", text, re.MULTILINE), page.name


def anchors(page: Path) -> set[str]:
    heads = re.findall("^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "docs" / "decisions").glob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", text):
            to = page.parent / target if target else page
            assert to.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(to), f"{page.name}: {target}#{anchor}"


def test_links_out_of_the_site_lead_to_copies_within_it(tmp_path: Path) -> None:
    mend = runpy.run_path(str(ROOT / "docs" / "make_links.py"))["mend"]
    page, site = tmp_path / "site" / "images" / "index.html", tmp_path / "site"
    page.parent.mkdir(parents=True)
    kept = '<a href="https://x.org/a">a</a><a class=x href="../index.html#b">b</a><a href="#c">c</a>'
    page.write_text(f'{kept}<a title="d" href="../../recipes/a%20b.yaml#L1">d</a>')
    (site / "index.html").write_text("<a href=images/>e</a>")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a b.yaml").write_text("task: x")
    assert mend(site, tmp_path) == []
    assert page.read_text() == f'{kept}<a title="d" href="../files/recipes/a%20b.yaml">d</a>'
    assert (site / "files" / "recipes" / "a b.yaml").read_text() == "task: x"
    (site / "index.html").write_text('<a href="speech/">f</a><a href="../recipes/none.yaml">g</a>')
    assert sorted(mend(site, tmp_path)) == ["index.html: ../recipes/none.yaml", "index.html: speech/"]


def test_messages_that_are_explained_are_said() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tltasks").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    told = [one for line in re.findall("^## (.+)$", page, re.MULTILINE) for one in re.findall("`(.+?)`", line)]
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


def test_the_reference_has_every_member() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in set(tltasks.__all__) - {"__version__"}:
        member = getattr(tltasks, name)
        place = "tltasks.errors" if member.__module__ == "tltasks.errors" else f"{member.__module__}.{name}"
        assert f"::: {place}\n" in page, name


def test_memory_that_was_told_stands_beside_what_was_measured() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))["steps"]
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert len(rows) == 6
    assert "\n".join(memory.table(rows)) in page
    for it in rows.values():
        assert it["expected"] == sum(size for part, size in it["parts"].items() if part != "process and data")
