"""Exact over several processes, and exact however often they are killed, stopped and started again."""

import json
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import images, speech, texts
from tests.tiny.host import Job, shared_host
from tests.tiny.runs import equal, in_processes, largest_difference, run_recipe, weights
from tests.tiny.subjects import MORE
from tltasks.results.result import load_result
from tltasks.training.tracking import read_metrics

SGD = "{stage: %s, steps: 3, batch_size: 7, learning_rate: 1e-3, optimizer: sgd, max_grad_norm: null, keep: last%s}"
"""Plain SGD, so that equal gradients make equal weights; seven rows leave one process more than the other."""
COMMAND = "status = commands.main(sys.argv[1:])\nsys.stderr.flush()\nos._exit(status)"
"""Ends what a process is started with: the command, and no waiting for others."""
AUGMENT = ", augment: {speed: 0.1, gain_db: 3, noise_db: 20, spec_augment: {}}"


def classifier(folder: Path, stage: str = SGD % ("transfer", ", adapt: full")) -> Path:
    model, data = images.save_model(folder / "model"), images.save_data(folder / "data")
    return images.write_recipe(folder / "recipe.yaml", model, data, stage=stage)


def contrast(folder: Path) -> Path:
    model, data = images.save_model(folder / "model"), images.save_data(folder / "data")
    files = {split: str(data / f"{split}.parquet") for split in ("train", "validation", "test")}
    unlabelled = json.dumps({"name": "parquet", "files": files, "splits": {"validation": "validation"}})
    objective = SGD % ("transfer", f", task: contrastive-image, loss_group: 4, data: {unlabelled}")
    last = "{name: task, stage: transfer, start: previous, steps: 1, batch_size: 8, learning_rate: 1e-9}"
    stages = objective.replace("batch_size: 7", "batch_size: 8") + f"\n  - {last}"
    return images.write_recipe(folder / "recipe.yaml", model, data, stage=stages)


def whisper(folder: Path, stage: str = SGD % ("finetune", AUGMENT)) -> Path:
    model, data = speech.save_whisper(folder / "model", seconds=4), speech.save_data(folder / "data", rows=24)
    return speech.write_recipe(folder / "recipe.yaml", model, data, stage=stage, model_keys="language: es")


def wav2vec2(folder: Path) -> Path:
    model, data = speech.save_ctc(folder / "model"), speech.save_data(folder / "data", rows=24)
    return speech.write_recipe(folder / "recipe.yaml", model, data, stage=SGD % ("transfer", AUGMENT))


def t5(folder: Path, stage: str = SGD % ("finetune", ", adapt: full")) -> Path:
    model, data = texts.save_model(folder / "model", "t5"), texts.save_data(folder / "data", rows=24)
    return texts.write_recipe(folder / "recipe.yaml", model, data, stage=stage)


def gpt2(folder: Path) -> Path:
    model, data = texts.save_model(folder / "model", "gpt2"), texts.save_data(folder / "data", rows=24)
    return texts.write_recipe(folder / "recipe.yaml", model, data, stage=SGD % ("finetune", ", adapt: full"))


def several_classes(folder: Path) -> Path:
    """Thresholds are fitted to validation, of which each process has predicted a part."""
    subject = MORE["bert-several-classes"]
    subject.save(folder)
    keys = {
        "steps": 3,
        "batch_size": 7,
        "learning_rate": 1e-3,
        "optimizer": "sgd",
        "max_grad_norm": None,
        "keep": "last",
    }
    return subject.write(folder / "recipe.yaml", folder, **keys)


# ------------------------------------------------------------------------------- the number of processes


@pytest.mark.parametrize(
    "recipe_of",
    [classifier, contrast, whisper, wav2vec2, t5, gpt2, pytest.param(several_classes, marks=pytest.mark.exhaustive)],
)
def test_a_step_does_not_depend_on_the_number_of_processes(recipe_of: Callable[[Path], Path], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    split = [] if recipe_of is contrast else ["--set", "stages.0.micro_batch=2"]  # its passes are groups
    run_recipe(recipe, tmp_path / "one")
    in_processes(2, recipe, tmp_path / "two", *split)
    one, two = (load_result(tmp_path / name / "result.json") for name in ("one", "two"))
    assert (one.hardware["processes"], two.hardware["processes"]) == (1, 2)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 5e-6
    assert one.stages[0].metrics["test"].values == pytest.approx(two.stages[0].metrics["test"].values, abs=1e-5)
    rows = [row for row in read_metrics(tmp_path / "two" / "metrics.jsonl") if row["split"] == "train"]
    assert [row["step"] for row in rows][:3] == [1, 2, 3], "one process speaks"
    run_recipe(recipe, tmp_path / "other", "seed=1")  # other rows, and augmented otherwise: it would be seen
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "other")) > 1e-5


def test_an_uneven_last_step_is_exact_over_processes(tmp_path: Path) -> None:
    """25 rows in steps of 8 leave 1, of which two of three processes have none."""
    model = images.save_model(tmp_path / "model")
    data = images.save_data(tmp_path / "data", splits={"train": 25, "validation": 7, "test": 5})
    stage = "{stage: transfer, epochs: 1, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full}"
    recipe = images.write_recipe(tmp_path / "odd.yaml", model, data, stage=stage)
    run_recipe(recipe, tmp_path / "one")
    in_processes(3, recipe, tmp_path / "three")
    assert load_result(tmp_path / "three" / "result.json").hardware["processes"] == 3
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "three")) < 1e-6
    one, three = (load_result(tmp_path / name / "result.json").stages[0] for name in ("one", "three"))
    assert one.metrics["test"].values == pytest.approx(three.metrics["test"].values, abs=1e-5)
    assert one.data["test"].fingerprint == three.data["test"].fingerprint


def test_robustness_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    recipe = classifier(tmp_path)
    keys = "data.corruptions={kinds: [contrast, gaussian_noise], severities: [5, 1], rows: 9}"
    run_recipe(recipe, tmp_path / "one", keys)
    in_processes(2, recipe, tmp_path / "two", "--set", keys)
    one, two = (load_result(tmp_path / name / "result.json").stages[0].robustness for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert len(one.table) == 4
    assert [line.value for line in two.table] == [line.value for line in one.table]


# ---------------------------------------------------------------------------------- killed and stopped

RICH = (
    "{stage: transfer, epochs: 4, batch_size: 7, learning_rate: 2e-3, adapt: {lora: {rank: 2, dropout: 0.3}}, "
    "checkpoint_every: 2, evaluate_every: 5, ema: 0.9, augment: {flip: true, crop: 0.5, mixup: 0.4, cutmix: 1.0}, "
    "label_smoothing: 0.1}"
)
"""Everything that draws random numbers or keeps state."""


class Runs:
    """Runs of one recipe, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = classifier(folder, RICH)
        self.finish("encode")  # fills the cache of encoded rows, so that the time below is like that of the others
        started = time.perf_counter()
        self.undisturbed = self.finish("undisturbed")
        self.seconds = time.perf_counter() - started

    def start(self, name: str) -> Job:
        """Begin or go on."""
        output = self.folder / name
        return shared_host().start(output.with_suffix(".log"), "run", self.recipe, "--output", output, "--resume")

    def finish(self, name: str) -> Path:
        job = self.start(name)
        assert job.wait() == 0, job.said()[-3000:]
        return self.folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("rich"))


@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(runs: Runs, kills: int) -> None:
    expected = load_result(runs.undisturbed / "result.json")
    draw = random.Random(0)
    while_training = 0
    for i in range(kills):
        name = f"killed-{i}-of-{kills}"
        job = runs.start(name)
        time.sleep(runs.seconds * (0.1 + 0.65 * (i + draw.random()) / kills))
        job.signal(signal.SIGKILL)
        while_training += job.wait() == -signal.SIGKILL and (runs.folder / name / "metrics.jsonl").exists()
        folder = runs.finish(name)
        assert equal(weights(runs.undisturbed), weights(folder))
        assert load_result(folder / "result.json").headline == expected.headline
        steps = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
        assert steps == list(range(1, 29))
    assert while_training >= kills / 2, "most kills should come during training"


def test_sigterm_saves_and_ends_and_the_rest_gives_the_same_bits(runs: Runs) -> None:
    job = runs.start("stopped")
    while len(read_metrics(runs.folder / "stopped" / "metrics.jsonl")) < 9:
        time.sleep(0.01)
    job.signal(signal.SIGTERM)
    assert job.wait() > 0
    assert "stopped after step" in job.said()
    assert equal(weights(runs.undisturbed), weights(runs.finish("stopped")))


@pytest.mark.parametrize(
    ("recipe_of", "count"),
    [(classifier, 2), (classifier, 4), *(pytest.param(f, 2, marks=pytest.mark.exhaustive) for f in (whisper, t5))],
)
def test_processes_resume_exactly(recipe_of: Callable[[Path, str], Path], count: int, tmp_path: Path) -> None:
    adapt = "adapt: {lora: {rank: 2, dropout: 0.2}}" + AUGMENT * (recipe_of is whisper)
    kind = "transfer" if recipe_of is classifier else "finetune"
    recipe = recipe_of(tmp_path, f"{{stage: {kind}, epochs: 3, batch_size: 8, learning_rate: 2e-3, {adapt}}}")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    in_processes(count, recipe, whole)
    assert "stopped after step" in in_processes(count, recipe, stopped, stop_at_step=4)
    assert not (stopped / "result.json").exists()
    in_processes(count, recipe, stopped, "--resume")
    assert load_result(stopped / "result.json").hardware["processes"] == count
    assert equal(weights(whole), weights(stopped))


# ------------------------------------------------------------------------------------------------- several machines


@pytest.mark.exhaustive
def test_machines_that_share_no_disk(tmp_path: Path) -> None:
    """A stage goes on from the one before, whose weights only process 0's machine has; then a finished one is read."""
    usual = "steps: 3, batch_size: 7, optimizer: sgd, learning_rate: 0.05"
    stages = f"{{name: a, stage: transfer, {usual}, keep: best, adapt: full}}"
    stages += f"\n  - {{name: b, stage: finetune, start: previous, {usual}}}"
    recipe = classifier(tmp_path, stages)
    run_recipe(recipe, tmp_path / "one")
    in_processes(2, recipe, tmp_path / "apart", stop_at_step=5, apart=True)
    in_processes(2, recipe, tmp_path / "apart", "--resume", apart=True)
    assert not list(tmp_path.glob("apart-of-1/*"))
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "apart")) < 1e-6
    one, two = (load_result(tmp_path / name / "result.json").stages for name in ("one", "apart"))
    assert [stage.name for stage in two] == ["a", "b"]
    assert one[1].metrics["test"].values == pytest.approx(two[1].metrics["test"].values, abs=1e-5)


@pytest.mark.exhaustive
def test_an_error_of_any_process_is_heard_on_all(tmp_path: Path) -> None:
    recipe = classifier(tmp_path)
    fault = "import os, sys, tltasks.training.loop as m; from tltasks.errors import TrainingError; from tltasks.cli "
    fault += "import commands\ndef fault(*_): raise TrainingError('stage a: a fault of mine')\n"
    fault += "if os.environ['RANK'] == '1': m._Training.step = fault\n"
    fault += COMMAND
    said = in_processes(2, recipe, tmp_path / "out", succeeds=False, code=fault)
    assert "error in process 1: stage a: a fault of mine" in said
    assert re.search(
        r"error: another process of this run has ended \(it said: process 1 on \S+: stage a: a fault", said
    )
    assert "Traceback" not in said


@pytest.mark.exhaustive
@pytest.mark.timeout(200)
def test_a_process_that_is_silent_ends_the_others(tmp_path: Path) -> None:
    """As one does whose machine has left the network: nothing closes the connection."""
    code = "import datetime, os, sys, time, tltasks.training.loop as m; from tltasks.cli import commands\n"
    code += "import torch.distributed.distributed_c10d as c\nc.default_pg_timeout = datetime.timedelta(seconds=15)\n"
    code += "def silent(*_): time.sleep(30), os._exit(1)\n"
    code += "if os.environ['RANK'] == '1': m._Training.step = silent\n"
    code += COMMAND
    said = in_processes(2, classifier(tmp_path), tmp_path / "out", succeeds=False, code=code)
    assert (
        "error: another process of this run does not answer (its machine or the network is gone, or it hangs)" in said
    )
    assert "Traceback" not in said


@pytest.mark.exhaustive
@pytest.mark.timeout(200)
def test_a_process_that_sees_whether_memory_suffices_waits_for_no_other(tmp_path: Path) -> None:
    """One alone has a larger micro-batch than before, and takes a pass; so it is right behind the first step, too."""
    code = "import os, sys, tltasks.training.loop as m; from tltasks.cli import commands\n"
    code += "usual = m._Training._suffices_for\ndef uneven(self, *given, **named):\n"
    code += "    self.proven = 0 if os.environ['RANK'] == '1' else 10**9\n    return usual(self, *given, **named)\n"
    code += "m._Training._suffices_for = uneven\n"
    code += COMMAND
    recipe = classifier(tmp_path)
    in_processes(2, recipe, tmp_path / "out", "--set", "stages.0.steps=3", "--set", "stages.0.batch_size=48", code=code)
    assert load_result(tmp_path / "out" / "result.json").stages[0].training.steps == 3


@pytest.mark.exhaustive
def test_a_step_makes_three_exchanges_besides_its_gradients(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'benchmarks'); import json, pathlib, processes\n"
    code += "print(json.dumps(processes.costs(8, pathlib.Path(sys.argv[1]))))"
    job = shared_host().run(tmp_path / "costs.log", tmp_path, code=code)
    found = json.loads(job.printed().splitlines()[-1])
    # Each epoch has one more, in which all tell whether their largest micro-batch has fitted.
    assert 3 <= found["collectives"] < 3.1
    assert found["buckets"] == 1
    assert found["share_of_300_ms"] < 0.06  # measured 0.02; a machine that is busy makes it more
