"""Every adapter has what the loop asks of a task, by the same names and with the same arguments."""

import inspect

import pytest

from tltasks.config.tasks import TASKS
from tltasks.tasks import load_adapter
from tltasks.tasks.base import Embeds, TaskBase

MEMBERS = sorted(
    {name for name in vars(TaskBase) if not name.startswith("_")}
    | {name for name in TaskBase.__annotations__ if name[0] != "_"}
)


def test_the_contract_is_more_than_a_few_members() -> None:
    assert len(TASKS) >= 9
    assert len(MEMBERS) >= 25


def test_a_task_embeds_and_votes_or_has_neither() -> None:
    """No adapter has a method that only says that it cannot."""
    embedding = {tag for tag in TASKS if issubclass(load_adapter(tag), Embeds)}
    assert "image-classification" in embedding
    for tag in TASKS.keys() - embedding:
        assert not hasattr(load_adapter(tag), "knn_predict")
    assert not [tag for tag in TASKS if "raise NotImplementedError" in inspect.getsource(load_adapter(tag))]


@pytest.mark.parametrize("tag", TASKS)
def test_an_adapter_meets_the_contract(tag: str) -> None:
    adapter = load_adapter(tag)
    assert adapter.tag == tag
    assert issubclass(adapter, TaskBase)
    assert not inspect.isabstract(adapter)
    for name in set(MEMBERS) & set(dir(adapter)):
        own, asked = inspect.getattr_static(adapter, name), vars(TaskBase).get(name)
        if inspect.isfunction(asked):
            assert list(inspect.signature(own).parameters) == list(inspect.signature(asked).parameters), name


@pytest.mark.parametrize("tag", TASKS)
def test_an_adapter_says_what_has_no_default(tag: str) -> None:
    adapter = load_adapter(tag)
    declared = ("tag", "higher_is_better", "input_kind", "output_features", "headline")
    assert not [name for name in declared if not hasattr(adapter, name)]
