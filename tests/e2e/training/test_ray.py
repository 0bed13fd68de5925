"""Ray itself starts the processes of a run, and replaces those that are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.training.test_processes import classifier, t5, wav2vec2, whisper
from tests.integration.experiments.test_comparison import journal, numbers, place
from tests.tiny.experiments import write_experiment
from tests.tiny.ray import is_worker
from tests.tiny.runs import equal, largest_difference, run_recipe, weights
from tltasks.cli.commands import main
from tltasks.training.tracking import read_metrics

__all__ = ["place"]

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]  # its processes load torch anew


def start(log: Path, *words: object, **variables: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tltasks", *map(str, words)], stderr=file, env={**os.environ, **variables}
        )


def test_two_workers_compute_as_one_process_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    recipe = classifier(tmp_path)
    run_recipe(recipe, tmp_path / "one", "stages.0.steps=40")
    keys = ["--set", "stages.0.steps=40", "--set", "stages.0.checkpoint_every=3", "--engine", "ray", "--workers", 2]
    ends = {}
    for name in ("whole", "killed"):
        job = start(tmp_path / f"{name}.log", "run", recipe, "--output", tmp_path / name, *keys)
        if name == "killed":
            while len(read_metrics(tmp_path / name / "metrics.jsonl")) < 8:
                time.sleep(0.01)
            next(child for child in psutil.Process(job.pid).children(recursive=True) if is_worker(child)).kill()
        said = tmp_path / f"{name}.log"
        assert job.wait() == 0, said.read_text()
        assert ("a process was lost" in said.read_text()) == (name == "killed")
        assert "raylet" not in said.read_text()
        ends[name] = weights(tmp_path / name)
    assert equal(ends["whole"], ends["killed"])
    assert largest_difference(weights(tmp_path / "one"), ends["whole"]) < 1e-6


@pytest.mark.parametrize("recipe_of", [t5, wav2vec2, whisper])
def test_workers_of_each_task_compute_as_one_process(recipe_of: Callable[[Path], Path], tmp_path: Path) -> None:
    recipe, log = recipe_of(tmp_path), tmp_path / "log"
    run_recipe(recipe, tmp_path / "one")
    job = start(log, "run", recipe, "--output", tmp_path / "ray", "--engine", "ray", "--workers", 2)
    assert job.wait() == 0, log.read_text()
    one, two = (
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["split"] == "train"]
        for name in ("one", "ray")
    )
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-6)
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "ray")) < 1e-6


def test_told_to_stop_it_saves_its_state(tmp_path: Path) -> None:
    recipe, output, log = classifier(tmp_path), tmp_path / "out", tmp_path / "log"
    flags = ("--output", output, "--set", "stages.0.steps=100000", "--engine", "ray", "--workers", 2)
    job = start(log, "run", recipe, *flags)
    while len(read_metrics(output / "metrics.jsonl")) < 5:
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    assert job.wait() == 143
    assert "its state is saved. Go on with: tltasks run" in log.read_text()
    assert "--engine ray --workers 2" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_machine_of_a_comparison_is_killed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trial is begun again on the machine that is left, and the numbers are those without it."""
    from ray.cluster_utils import Cluster

    seed = ("--set", "seeds=[0]")
    assert main(["compare", str(write_experiment(place, tmp_path / "here")), *seed]) == 0
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    output, log = tmp_path / "ray", tmp_path / "log"
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.shutdown)
        path = write_experiment(place, output)
        job = start(log, "compare", path, *seed, "--engine", "ray", RAY_ADDRESS=cluster.address)
        while not (output / "journal.jsonl").exists() or len((output / "journal.jsonl").read_text().splitlines()) < 2:
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        assert job.wait() == 0, log.read_text()
    assert numbers(output) == numbers(tmp_path / "here")
    events = Counter(event for event, _ in journal(output).elements())
    assert events["finished"] == len(json.loads((output / "result.json").read_text())["trials"])
    assert events["begun"] > events["finished"], "one was begun again"
