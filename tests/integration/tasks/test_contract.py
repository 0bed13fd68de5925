"""The contract of a task, on every one: what the loop, a resumed run and a reader of its checkpoints rely on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.tiny.runs import equal, largest_difference, run_recipe, weights
from tests.tiny.subjects import MORE, SUBJECTS, Subject
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.config.tasks import TASKS
from tltasks.errors import Interrupted
from tltasks.models.trial import unfit_layers
from tltasks.results.result import RunResult
from tltasks.runs import stage as stage_module
from tltasks.runs.prepare import prepare_stages
from tltasks.training.checkpoint import Progress
from tltasks.training.loop import Job
from tltasks.training.optimizer import trained

SGD = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2, "optimizer": "sgd", "keep": "last"}
"""Equal gradients make equal weights, but for rounding; momentum is state to be resumed."""


@dataclass(frozen=True)
class Finished:
    """A subject, its recipe, and a run of this."""

    subject: Subject
    recipe: Path
    output: Path
    result: RunResult


@pytest.fixture(
    scope="module", params=[*SUBJECTS, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE)]
)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    subject = (SUBJECTS | MORE)[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    subject.save(folder)
    recipe = subject.write(folder / "recipe.yaml", folder, **SGD)
    return Finished(subject, recipe, folder / "run", run_recipe(recipe, folder / "run"))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
class TestTaskContract:
    def test_training_moves_the_weights(self, finished: Finished) -> None:
        before = load_file(finished.recipe.parent / "model" / "model.safetensors")
        after = weights(finished.output)
        shared = [name for name in before if name in after and before[name].shape == after[name].shape]
        moved = [name for name in shared if not torch.equal(before[name], after[name])]
        assert finished.subject.model.get("as") or len(moved) > len(shared) / 2 > 2
        (stage,) = finished.result.stages
        assert stage.training is not None
        assert stage.training.steps == 3
        assert all(0 <= score.values["loss"] < 20 for score in stage.metrics.values() if "loss" in score.values)

    def test_a_step_does_not_depend_on_its_micro_batches(self, finished: Finished, tmp_path: Path) -> None:
        if hasattr(load_recipe(finished.recipe).stages[0], "loss_group"):
            pytest.skip("its passes are groups, which share their loss")
        run_recipe(finished.recipe, tmp_path / "parts", "stages.0.micro_batch=3")
        assert largest_difference(weights(finished.output), weights(tmp_path / "parts")) < 5e-6

    def test_a_stopped_run_goes_on_with_the_same_bits(
        self, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        polls: list[int] = []

        @contextlib.contextmanager
        def stop_in_second_step() -> Any:
            yield lambda: polls.append(0) or len(polls) >= 2

        monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_second_step)
        with pytest.raises(Interrupted, match="after step 2 of 3"):
            run_recipe(finished.recipe, tmp_path / "run")
        monkeypatch.undo()
        result = run_recipe(finished.recipe, tmp_path / "run", resume=True)
        assert equal(weights(finished.output), weights(tmp_path / "run"))
        assert result.headline == finished.result.headline

    def test_what_is_saved_scores_the_same(self, finished: Finished, tmp_path: Path) -> None:
        """Read as a checkpoint like any other: by a stage without training, or as the baseline of further training."""
        answers = finished.subject.answers
        if finished.subject.task == "contrastive-image":
            pytest.skip("its projection is not saved")
        further = ["stages.0.stage=finetune", "stages.0.learning_rate=1e-9"]
        changes = ["stages=[{stage: zero_shot}]"] if answers else further
        again = run_recipe(finished.recipe, tmp_path / "again", f"model.name={finished.output / 'model'}", *changes)
        (ours,), (theirs,) = finished.result.stages, again.stages
        recorded = ours.metrics["test"].values
        read = (
            theirs.metrics["test"].values if finished.subject.answers else theirs.baselines["checkpoint"]["test"].values
        )
        shared = read.keys() & recorded.keys()
        assert shared
        assert {name: read[name] for name in shared} == pytest.approx({n: recorded[n] for n in shared}, abs=1e-3)

    def test_what_is_drawn_depends_on_seed_epoch_and_row_alone(self, finished: Finished) -> None:
        (item,) = prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(finished.recipe)))
        rows, task = item.encoded["train"].rows, item.task

        def drawn(indices: list[int], epoch: int) -> dict[str, Any]:
            return dict(task.collate_train(rows, indices, epoch=epoch))

        first, again = drawn([5, 2], 0), drawn([5, 2], 0)
        later = [drawn([5, 2], epoch) for epoch in (1, 2, 3)]
        assert all(_same(first[name], again[name]) for name in first), "drawn twice, they are the same"
        other_way = drawn([2, 5], 0)
        names = first.keys() - {"negatives"}  # which are places in the batch
        assert not [name for name in names if not _same(first[name], other_way[name].flip(0))], "wherever they stand"
        draws = finished.subject.task not in {"summarization", "text-classification", "causal-language-modeling"}
        assert draws == any(not _same(first[name], other[name]) for other in later for name in first)

    def test_made_up_examples_have_a_loss_that_all_layers_learn_by(self, finished: Finished) -> None:
        (item,) = prepare_stages(Accelerator(cpu=True), plan_run(load_recipe(finished.recipe)))
        task = (built := item.task.build(item.plan.kind)).task
        run = task.example_pass()
        for model in (built.model, task.random_model(built.model.config)):
            targets = task.lora_targets(model)
            assert run(model.eval()).item() > 0
            assert unfit_layers(model, targets, run) == {}
            assert targets or finished.subject.model.get("as")


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_every_task_is_here() -> None:
    assert {subject.task for subject in SUBJECTS.values()} == set(TASKS)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
@pytest.mark.parametrize(
    "name",
    ["vit", "t5", *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("whisper", "wav2vec2", "bert", "gpt2"))],
)
def test_recomputed_activations_give_every_weight_of_an_adapter_its_gradient(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    subject.save(tmp_path)
    keys = {**SGD, "adapt": {"lora": {"rank": 2, "dropout": 0.2}}}
    recipe = subject.write(tmp_path / "recipe.yaml", tmp_path, **keys)
    kept: dict[str, dict[str, torch.Tensor]] = {}
    for recomputed in (False, True):
        output = tmp_path / f"run-{recomputed}"
        with trained_weights() as kept[output.name]:
            run_recipe(recipe, output, f"stages.0.gradient_checkpointing={json.dumps(recomputed)}")
    plain, again = kept.values()
    moved = [key for key, tensor in plain.items() if "lora_B" in key and tensor.abs().max() > 0]
    assert len(moved) == sum("lora_B" in key for key in plain) > 3
    assert largest_difference(plain, again) < 5e-6


@contextlib.contextmanager
def trained_weights() -> Iterator[dict[str, torch.Tensor]]:
    """What a run has trained, filled in when it ends."""
    found: dict[str, torch.Tensor] = {}
    train = stage_module.train

    def watched(accelerator: Accelerator, job: Job, model: torch.nn.Module) -> Progress:
        progress = train(accelerator, job, model)
        found.update({name: p.detach().clone() for name, p in trained(model)})
        return progress

    with mock.patch.object(stage_module, "train", watched):
        yield found
