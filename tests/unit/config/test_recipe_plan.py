import typing
from pathlib import Path

import pytest

from tltasks.config.loading import load_recipe
from tltasks.config.recipe import is_on_hub, plan_run, stage_names
from tltasks.config.stage import STAGES, StageName

TRAINED = "epochs: 1, learning_rate: 1e-3"
HEAD = "task: image-classification\nmodel: {name: a/shared}\ndata: {name: b/shared}\noutput: x\nstages:\n"


def plans(tmp_path: Path, stages: str, head: str = HEAD):  # type: ignore[no-untyped-def]
    path = tmp_path / "r.yaml"
    path.write_text(head + stages)
    return plan_run(load_recipe(path)).stages


def test_every_stage_has_its_row() -> None:
    assert set(STAGES) == set(typing.get_args(StageName))
    rows = {name: (row.weights, row.head, row.trains) for name, row in STAGES.items()}
    assert rows == {
        "pretrain": ("random", "new", True),
        "finetune": ("checkpoint", "kept", True),
        "transfer": ("checkpoint", "new", True),
        "probe": ("checkpoint", "new", True),
        "zero_shot": ("checkpoint", "kept", False),
    }


@pytest.mark.parametrize("name", STAGES)
def test_rows_and_recipes_agree_on_what_trains(tmp_path: Path, name: str) -> None:
    needs = f", {TRAINED}" if STAGES[name].trains and not STAGES[name].cached else ""  # type: ignore[index]
    (plan,) = plans(tmp_path, f"  - {{stage: {name}{needs}}}\n")
    assert plan.kind is STAGES[plan.stage.stage]
    assert plan.stage.trains == plan.kind.trains


def test_a_stage_that_goes_on_does_not_begin_at_random(tmp_path: Path) -> None:
    stage = f"  - {{stage: pretrain, {TRAINED}}}\n"
    first, second = plans(tmp_path, stage + stage.replace("pretrain,", "pretrain, start: previous,"))
    assert (first.kind.weights, second.kind.weights) == ("random", "checkpoint")


def test_a_stage_takes_what_it_does_not_say_from_the_recipe(tmp_path: Path) -> None:
    shared, own = plans(
        tmp_path,
        f"  - {{stage: transfer, {TRAINED}}}\n"
        f"  - {{stage: zero_shot, task: image-classification, model: {{name: a/own}}, data: {{name: b/own}}}}\n",
    )
    assert (shared.index, shared.model.name, shared.data.name, shared.task) == (
        0,
        "a/shared",
        "b/shared",
        "image-classification",
    )
    assert (own.index, own.model.name, own.data.name, own.task) == (1, "a/own", "b/own", "image-classification")


def test_every_stage_may_bring_its_own(tmp_path: Path) -> None:
    head = "task: image-classification\noutput: x\nstages:\n"
    (plan,) = plans(tmp_path, "  - {stage: zero_shot, model: {name: a/own}, data: {name: b/own}}\n", head)
    assert (plan.model.name, plan.data.name) == ("a/own", "b/own")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["", "", ""], ["zero_shot", "zero_shot-2", "zero_shot-3"]),
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a-2"], ["a", "a-2", "a-2-2"]),
        (["a-2", "a", "a"], ["a-2", "a", "a-3"]),
        (["zero_shot-2", "", ""], ["zero_shot-2", "zero_shot", "zero_shot-3"]),
    ],
)
def test_names_are_unique(tmp_path: Path, given: list[str], expected: list[str]) -> None:
    stages = "".join(f"  - {{stage: zero_shot{f', name: {name}' if name else ''}}}\n" for name in given)
    planned = plans(tmp_path, stages)
    assert [plan.name for plan in planned] == expected
    assert stage_names(load_recipe(tmp_path / "r.yaml")) == expected


CHAIN = (
    f"  - {{stage: pretrain, {TRAINED}}}\n"
    f"  - {{stage: transfer, start: previous, {TRAINED}}}\n"
    f"  - {{stage: finetune, adapt: lora, {TRAINED}}}\n"
    "  - {stage: zero_shot}\n"
)


def test_a_run_knows_what_feeds_what(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(HEAD + CHAIN)
    plan = plan_run(load_recipe(tmp_path / "r.yaml"), tmp_path / "out")
    first, second, tuned, untouched = plan.stages
    assert plan.final is tuned, "zero_shot trains nothing"
    assert [plan.feeds_next(stage) for stage in plan.stages] == [True, False, False, False]
    assert plan.ancestry(second) == [first, second]
    assert plan.ancestry(untouched) == [untouched]
    assert [stage.may_publish_adapter for stage in plan.stages] == [False, False, True, False]
    assert plan.output == tmp_path / "out"


def test_names_are_shown_as_written_and_located_once(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    head = HEAD.replace("a/shared", "./weights")
    (plan,) = plans(tmp_path, f"  - {{stage: finetune, adapt: lora, {TRAINED}}}\n", head)
    assert (plan.checkpoint.name, plan.checkpoint.display_name) == (str(tmp_path / "weights"), "./weights")
    assert not plan.may_publish_adapter, "its base is nowhere but here"


def test_only_a_repository_is_on_the_hub() -> None:
    names = {"google/vit": True, "gpt2": True, "/data/pets": False, "imagefolder": False, None: False}
    assert {name: is_on_hub(name) for name in names} == names
