"""The loop on a tiny ViT: exact however a step is split, and exact however often it is interrupted."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import speech, texts
from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.runs import REPOSITORY, environment, equal, in_processes, largest_difference, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.errors import DataError, Interrupted, TrainingError
from tltasks.results.result import load_result
from tltasks.training.tracking import read_metrics

STAGE = "{stage: transfer, steps: 4, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full%s}"


@pytest.fixture(scope="module")
def exact(tiny: Path) -> Path:
    """A recipe whose four steps are plain SGD, so that equal gradients make equal weights."""
    return write_recipe(tiny / "exact.yaml", Path("vit"), Path("data"), stage=STAGE % "")


@pytest.fixture(scope="module")
def whole(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(exact, output, "stages.0.micro_batch=8")
    return weights(output)


# ------------------------------------------------------------------------------------ exact when split


@pytest.mark.parametrize("micro_batch", [4, 2, 3, 1])
def test_a_step_does_not_depend_on_its_micro_batches(
    exact: Path, whole: dict[str, torch.Tensor], micro_batch: int, tmp_path: Path
) -> None:
    run_recipe(exact, tmp_path / "run", f"stages.0.micro_batch={micro_batch}")
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


def test_the_split_would_be_seen(exact: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Another batch, or another order of rows, moves the weights by far more than the bound of these tests."""
    run_recipe(exact, tmp_path / "run", "stages.0.batch_size=4")
    assert largest_difference(whole, weights(tmp_path / "run")) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_a_step_does_not_depend_on_the_number_of_processes(
    exact: Path, whole: dict[str, torch.Tensor], micro_batch: int, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    done = in_processes(2, exact, "--output", output, "--set", f"stages.0.micro_batch={micro_batch}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_result(output / "result.json").hardware["processes"] == 2
    assert largest_difference(whole, weights(output)) < 1e-6
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert len({line for line in lines if '"train"' in line}) == 4


@pytest.mark.slow
def test_an_uneven_last_step_is_exact_over_processes(tiny: Path, tmp_path: Path) -> None:
    """47 rows in steps of 8 leave 7, and 3 processes share them 3, 2, 2; with 1 row, two processes have none."""
    save_data(tiny / "odd", splits={"train": 25, "validation": 7, "test": 5})
    stage = "{stage: transfer, epochs: 1, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full}"
    recipe = write_recipe(tiny / "odd.yaml", Path("vit"), Path("odd"), stage=stage)
    run_recipe(recipe, tmp_path / "one")
    done = in_processes(3, recipe, "--output", tmp_path / "three")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_result(tmp_path / "three" / "result.json").hardware["processes"] == 3
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "three")) < 1e-6
    one, three = (load_result(tmp_path / name / "result.json").stages[0] for name in ("one", "three"))
    assert one.metrics["test"].values == pytest.approx(three.metrics["test"].values, abs=1e-5)
    assert one.data["test"].fingerprint == three.data["test"].fingerprint


# ---------------------------------------------------------------------------------- exact when resumed


RICH = (
    "{stage: transfer, epochs: 4, batch_size: 7, learning_rate: 2e-3, adapt: {lora: {rank: 2, dropout: 0.3}}, "
    "checkpoint_every: 2, evaluate_every: 5, ema: 0.9, augment: {flip: true, crop: 0.5, mixup: 0.4, cutmix: 1.0}, "
    "label_smoothing: 0.1}"
)
"""Everything that draws random numbers or keeps state."""

KILLED = """
import os, sys
from pathlib import Path
from tests.tiny.runs import run_recipe  # the imports, which take most of a start, are done once
recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    name = line.strip()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(folder / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        os.setsid()
        run_recipe(recipe, folder / name, resume=True)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


class Runner:
    """Runs of one recipe, each in a process of its own that can be killed."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(recipe), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=REPOSITORY,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, name: str, *, kill_after: float | None = None, stop_at_step: int | None = None) -> tuple[int, float]:
        """Start or resume; returns the wait status, and the seconds that it took.

        Killed after so many seconds, or asked to stop once it has made so many steps.
        """
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        child, started = int(self._line()), time.perf_counter()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster than the one that was timed
                os.kill(child, signal.SIGKILL)
        if stop_at_step is not None:
            metrics = self.folder / name / "metrics.jsonl"
            while not metrics.exists() or len(read_metrics(metrics)) < stop_at_step:
                time.sleep(0.01)
            os.kill(child, signal.SIGTERM)
        status = int(self._line())
        return status, time.perf_counter() - started

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def runner(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = write_recipe(tiny / "rich.yaml", Path("vit"), Path("data"), stage=RICH)
    started = Runner(recipe, tmp_path_factory.mktemp("killed"))
    yield started
    started.close()


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(runner: Runner) -> None:
    status, _ = runner.run("encode")  # fills the cache of encoded rows, so that the times below are alike
    assert status == 0
    status, seconds = runner.run("undisturbed")
    assert status == 0
    undisturbed = weights(runner.folder / "undisturbed")
    expected = load_result(runner.folder / "undisturbed" / "result.json")
    draw = random.Random(0)
    while_training = 0
    for i in range(10):
        status, _ = runner.run(f"killed-{i}", kill_after=seconds * draw.uniform(0.1, 0.75))
        folder = runner.folder / f"killed-{i}"
        while_training += os.WIFSIGNALED(status) and (folder / "metrics.jsonl").exists()
        status, _ = runner.run(f"killed-{i}")
        assert status == 0, (runner.folder / f"killed-{i}.log").read_text()[-3000:]
        assert equal(undisturbed, weights(folder))
        result = load_result(folder / "result.json")
        assert result.headline == expected.headline
        steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
        assert steps == list(range(1, 29))
    assert while_training >= 5, "most kills should come during training"


@pytest.mark.slow
def test_sigterm_saves_and_ends_and_the_rest_gives_the_same_bits(runner: Runner) -> None:
    status, _ = runner.run("undisturbed-2")
    assert status == 0
    status, _ = runner.run("stopped", stop_at_step=9)
    assert status != 0
    assert "stopped after step" in (runner.folder / "stopped.log").read_text()
    status, _ = runner.run("stopped")
    assert status == 0
    assert equal(weights(runner.folder / "undisturbed-2"), weights(runner.folder / "stopped"))


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    save_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "r.yaml", tiny / "vit", Path("data"))

    def stop(self: object, text: str) -> None:
        raise Interrupted(text)

    monkeypatch.setattr("tltasks.runs.context.Context.heed_stop", stop)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1")
    monkeypatch.undo()
    save_data(tmp_path / "data", seed=1)
    with pytest.raises(DataError, match="trained on other data"):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)
    save_data(tmp_path / "data", seed=0)
    run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)
    save_data(tmp_path / "data", seed=1)
    with pytest.raises(DataError, match="carried out on other data"):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)


def test_a_request_to_stop_is_heeded_after_the_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_third_step() -> Any:
        yield lambda: polls.append(0) or len(polls) >= 3

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_third_step)
    with pytest.raises(Interrupted, match="after step 3 of 12"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints" / "transfer").iterdir()] == ["step-000000003"]
    polls[:] = [-100]  # does not reach 3 again
    monkeypatch.undo()
    run_recipe(tiny / "recipe.yaml", tmp_path / "run", resume=True)
    run_recipe(tiny / "recipe.yaml", tmp_path / "straight")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


def image_recipe(folder: Path, stage: str) -> Path:
    save_model(folder / "model")
    return write_recipe(folder / "recipe.yaml", Path("model"), save_data(folder / "data"), stage=stage)


def speech_recipe(folder: Path, stage: str) -> Path:
    model, data = speech.save_whisper(folder / "model", seconds=4), speech.save_data(folder / "data", rows=24)
    stage = stage.replace("transfer", "finetune").replace("}}}", "}}, augment: {speed: 0.1, spec_augment: {}}}")
    return speech.write_recipe(folder / "recipe.yaml", model, data, stage=stage, model_keys="language: es")


def text_recipe(folder: Path, stage: str) -> Path:
    model, data = texts.save_model(folder / "model", "t5"), texts.save_data(folder / "data")
    return texts.write_recipe(folder / "recipe.yaml", model, data, stage=stage.replace("transfer", "finetune"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe_of", [image_recipe, speech_recipe, text_recipe])
def test_two_processes_resume_exactly(recipe_of: Callable[[Path, str], Path], tmp_path: Path) -> None:
    stage = "{stage: transfer, epochs: 3, batch_size: 8, learning_rate: 2e-3, adapt: {lora: {rank: 2, dropout: 0.2}}}"
    recipe = recipe_of(tmp_path, stage)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for output in (whole, stopped):
        done = in_processes(2, recipe, "--output", output, stop_at_step=7 if output == stopped else None)
        assert (done.returncode == 0) == (output == whole), done.stderr[-3000:]
    assert "stopped after step" in done.stderr
    assert not (stopped / "result.json").exists()
    done = in_processes(2, recipe, "--output", stopped, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_result(stopped / "result.json").hardware["processes"] == 2
    assert equal(weights(whole), weights(stopped))


# ------------------------------------------------------------------------------------------- trouble


def test_a_loss_that_is_not_finite_names_step_and_rows(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the (loss|gradient) is (nan|inf|not finite) at step \d+, rows \d+"
    ) as caught:
        run_recipe(
            tiny / "recipe.yaml",
            tmp_path / "run",
            "stages.0.adapt=full",
            "stages.0.learning_rate=1e30",
            "stages.0.max_grad_norm=null",
            "stages.0.warmup=0",
        )
    assert "learning_rate" in str(caught.value)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    exact: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    loss = ImageClassification.loss
    refused: list[int] = []

    def scarce(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["labels"]) > 3:
            refused.append(len(batch["labels"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", scarce)
    result = run_recipe(exact, tmp_path / "run")
    assert refused == [8, 4]
    assert result.stages[0].training.halvings == 2
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


def test_out_of_memory_with_one_example_is_an_error_that_helps(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    loss = ImageClassification.loss

    def scarce(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["labels"]) != 2:  # the pass that looks for unused weights has two
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", scarce)
    with pytest.raises(TrainingError, match=r"one example at a time.*gradient_checkpointing"):
        run_recipe(exact, tmp_path / "run", "stages.0.micro_batch=1")


# ------------------------------------------------------------------------------------- what ends a stage


def test_early_stopping_and_the_best_weights(tiny: Path, tmp_path: Path) -> None:
    """A rate of nearly zero gains nothing after the first evaluation but a smaller loss."""
    result = run_recipe(
        tiny / "recipe.yaml",
        tmp_path / "run",
        "stages.0.learning_rate=0.02",
        "stages.0.epochs=30",
        "stages.0.early_stopping=2",
        "stages.0.schedule=constant",
        "stages.0.adapt=full",
    )
    training = result.stages[0].training
    assert "no gain in 2 evaluations" in training.ended
    assert training.steps < 30 * 6
    evaluated = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "validation"]
    best = max(evaluated, key=lambda row: (row["accuracy"], -row["loss"]))
    assert training.best_step == best["step"]
    assert result.stages[0].metrics["validation"].values["loss"] == pytest.approx(best["loss"], abs=1e-5)


def test_the_last_weights_on_request(tiny: Path, tmp_path: Path) -> None:
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.keep=last", "stages.0.epochs=1")
    evaluated = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "validation"]
    assert result.stages[0].metrics["validation"].values["loss"] == pytest.approx(evaluated[-1]["loss"], abs=1e-5)


def test_checkpoints_go_when_the_stage_is_done(tiny: Path, tmp_path: Path) -> None:
    run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1")
    assert not list((tmp_path / "run").rglob("step-*"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stages"][0]["training"]["ended"]


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "adamw", "schedule": "linear", "warmup": 0.3},
        {"optimizer": "sgd", "schedule": "constant", "momentum": 0.5},
        {"gradient_checkpointing": True},
        {"layer_decay": 0.5, "adapt": "full"},
        {"freeze": ["vit.embeddings*"], "adapt": "full"},
        {"adapt": "head"},
        {"adapt": {"dora": {"rank": 2}}},
        {"adapt": {"adalora": {"rank": 1, "initial_rank": 2}}},
        {"adapt": {"ia3": {}}},
        {"adapt": {"lora": {"rank": 2, "init": "pissa"}}},
        {"adapt": "bitfit"},
        {"adapt": {"peft": {"type": "LOHA", "r": 2, "alpha": 4}}},
    ],
    ids=str,
)
def test_every_way_to_train_moves_only_what_it_should(tiny: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    overrides = [f"stages.0.{key}={json.dumps(value)}" for key, value in keys.items()]
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1", *overrides)
    stage = result.stages[0]
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    assert len(rows) == 6
    assert 0 < stage.trainable_parameters <= stage.total_parameters
    assert (stage.trainable_parameters == stage.total_parameters) == (
        keys.get("adapt") == "full" and "freeze" not in keys
    )
    from transformers import AutoModelForImageClassification

    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").state_dict()
    start = AutoModelForImageClassification.from_pretrained(tiny / "vit").state_dict()
    moved = {name for name in start if name in saved and not torch.equal(start[name], saved[name])}
    assert "classifier.weight" in moved
    backbone = {name for name in moved if not name.startswith("classifier")}
    assert bool(backbone) == (keys.get("adapt") != "head")
    assert not any("embeddings" in name for name in backbone) or keys.get("adapt") in ("full", "bitfit")


def test_load_recipe_is_what_these_tests_rely_on(tiny: Path) -> None:
    assert load_recipe(tiny / "recipe.yaml").stages[0].batch_size == 8
