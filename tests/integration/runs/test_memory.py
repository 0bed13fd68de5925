"""Memory that steps are expected to need, what they take, and which keys would have helped where it is not there."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import texts
from tests.tiny.runs import run_recipe
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import TrainingError
from tltasks.runs import memory, stage, story
from tltasks.runtime import devices

MIB = 2**20


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    texts.save_model(folder / "t5", "t5")
    texts.save_data(folder / "data")
    keys = "{stage: finetune, steps: 2, batch_size: 8, learning_rate: 1e-3}"
    return texts.write_recipe(folder / "recipe.yaml", folder / "t5", folder / "data", stage=keys)


def test_the_cheapest_key_that_would_have_helped_is_named(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no bitsandbytes
    context, (item,) = story.open_stages(plan_run(load_recipe(t5), t5.parent / "none"))
    item, built = stage._build(context, item)
    model, head = stage.adapt_model(item, built)
    job = stage.make_job(context, item, head)

    def advised(asked: int) -> list[str]:
        told = memory.advise(context, item, job, model, halvings=0, asked=asked)
        assert " 0.0 MiB" not in told
        return re.findall(r"`(\S+): ", told)

    assert advised(2**50) == ["gradient_checkpointing", "optimizer", "max_document_tokens", "adapt"]
    whole = sum(memory.expect_memory(context, job, model, before=0).values())
    saved = {it.key: it.saved for it in memory._reliefs(context, item, job, model, whole, 0)}
    assert advised(saved["gradient_checkpointing: true"]) == ["gradient_checkpointing"]
    other = dataclasses.replace(job, stage=job.stage.model_copy(update={"optimizer": "adafactor"}))
    less = sum(memory.expect_memory(context, other, model, before=0).values())
    assert saved["optimizer: adafactor"] == whole - less > 0


def test_memory_that_does_not_suffice_outside_of_steps_is_an_error_that_helps(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(self: Any, closure: Any = None) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes"
        )

    monkeypatch.setattr(torch.optim.AdamW, "step", scarce)
    with pytest.raises(TrainingError, match=r"stage finetune: out of memory\. Of .*`gradient_checkpointing: true`"):
        run_recipe(t5, tmp_path / "run")


def test_the_most_memory_of_some_work_alone() -> None:
    pieces = [
        torch.ones(2**14) for _ in range(1200)
    ]  # whose place the allocator keeps, and fills before it asks for more
    last = torch.ones(2**14)
    del pieces
    devices.release_memory()
    peak = devices.PeakMemory(torch.device("cpu"))
    before = devices.resident_bytes()
    with peak.left_out():
        torch.ones(40 * MIB // 4)
    inside = peak.bytes()
    torch.ones(10 * MIB // 4)
    if inside is None:
        pytest.skip("this system does not tell")
    assert inside - before < 5 * MIB
    assert 8 * MIB < (peak.bytes() or 0) - before < 20 * MIB
    assert devices.peak_memory_bytes(torch.device("cpu")) - before > 35 * MIB
    assert len(last) == 2**14, "above the pieces until here"
