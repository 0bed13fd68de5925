"""The registry: one row for each task, in step with what is beside it."""

import ast
import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tltasks.config.tasks
from tltasks.config.data import Data
from tltasks.config.model import Model
from tltasks.config.stage import Stage, UnlabelledStage
from tltasks.config.tasks import TASKS, supervised_tasks, task_of_folder

PACKAGE = Path(tltasks.config.tasks.__file__).parents[2]


def test_doctests() -> None:
    result = doctest.testmod(tltasks.config.tasks)
    assert result.attempted >= 1
    assert result.failed == 0


def test_tags_are_unique() -> None:
    assert len(TASKS) == len(tltasks.config.tasks._ROWS) >= 9
    assert all(tag == spec.tag for tag, spec in TASKS.items())


@pytest.mark.parametrize("tag", TASKS)
def test_a_row_names_what_there_is(tag: str) -> None:
    spec = TASKS[tag]
    module, name = spec.adapter.split(":")
    file = PACKAGE.parent / (module.replace(".", "/") + ".py")
    assert name in {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}
    assert (PACKAGE.parent / "hub_cards" / spec.card_template).is_file()
    assert issubclass(spec.model, Model)
    assert issubclass(spec.data, Data)
    assert issubclass(spec.stage, Stage)
    assert re.fullmatch(r"[a-z(][^\n]{10,110}[^.]", spec.summary)


def test_transformers_lists_are_there() -> None:
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    lists = (Path(found.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    named = [name for spec in TASKS.values() for name in spec.auto_mappings]
    assert len(named) >= 6
    assert [name for name in named if f"\n{name} = " not in lists] == []


def test_tasks_that_answer() -> None:
    answering = ["image-classification", "automatic-speech-recognition", "summarization", "text-classification"]
    assert supervised_tasks() == answering
    objectives = {tag for tag, spec in TASKS.items() if issubclass(spec.stage, UnlabelledStage)}
    assert objectives == {tag for tag, spec in TASKS.items() if spec.is_self_supervised}


def test_what_a_folder_is_data_for() -> None:
    assert task_of_folder("image", {"classes", "text"}) == "image-classification"
    assert task_of_folder("audio", {"text"}) == "automatic-speech-recognition"
    assert task_of_folder("audio", {"classes"}) is None
    assert task_of_folder("image", set()) is None


def test_a_task_is_named_in_no_other_file_of_the_package() -> None:
    """A new task touches its adapter and its row; whoever lists tags elsewhere would have to be told of it."""
    tags = "|".join(map(re.escape, TASKS))
    elsewhere = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if len(set(re.findall(rf'"({tags})"', path.read_text(encoding="utf-8")))) > 1
    }
    assert elsewhere <= {"config/tasks/__init__.py", "tasks/text/pretraining.py"}


def test_the_registry_is_light() -> None:
    heavy = ("torch", "numpy", "jinja2", "pyarrow", "pydantic")
    code = f"import sys, tltasks.config.tasks; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
