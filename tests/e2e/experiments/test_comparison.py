"""`tltasks compare` in processes of its own: killed, and by workers of Ray."""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.experiments.test_comparison import journal, numbers, place
from tests.tiny.experiments import write_experiment
from tests.tiny.host import shared_host
from tltasks.cli.commands import main

__all__ = ["place"]


def test_killed_and_started_again_it_ends_the_same(place: Path) -> None:
    """SIGKILL in the middle of a trial: no finished trial again, the cut one goes on, equal numbers."""
    seed, n_trials = ("--set", "seeds=[0]"), 4
    finished, output = place / "finished", place / "killed"
    assert main(["compare", str(write_experiment(place, finished)), *seed]) == 0
    path = write_experiment(place, output)
    job = shared_host().start(place / "log", "compare", path, *seed)
    lines: list[str] = []
    while len(lines) < 5:  # begun, finished, begun, finished, begun
        time.sleep(0.02)
        if (output / "journal.jsonl").exists():
            lines = (output / "journal.jsonl").read_text().splitlines()
    job.signal(signal.SIGKILL)
    job.wait()
    done = {trial for event, trial in journal(output) if event == "finished"}
    assert 2 <= len(done) < n_trials
    assert main(["compare", str(path), *seed]) == 0
    events = journal(output)
    assert Counter(n for (event, _), n in events.items() if event == "finished") == {1: n_trials}
    assert all(events["begun", trial] == 1 for trial in done), "a finished trial was begun again"
    assert sum(n for (event, _), n in events.items() if event == "begun") <= n_trials + 1
    assert numbers(output) == numbers(finished)


def test_two_workers_of_ray_give_the_same_bits_and_outlive_a_failure(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    experiment = write_experiment(place, tmp_path / "ray")
    sources = f"axes.source={{good: null, bad: {{data.files: {{train: {tmp_path}/train.parquet}}}}}}"
    changes = ["seeds=[0]", sources, "domains=null", "curve=null", "axes.shots={all: null}"]
    arguments = ["compare", str(experiment), *(word for change in changes for word in ("--set", change))]
    shared_host().run(tmp_path / "log", *arguments, "--output", tmp_path / "here", status=3)
    assert main([*arguments, "--engine", "ray", "--workers", "2"]) == 3
    found = {}
    for name in ("here", "ray"):
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert (len(result["trials"]), len(result["failed"])) == (2, 2)
        assert all("train.parquet" in trial["message"] for trial in result["failed"])
        assert Counter(event for event, _ in journal(tmp_path / name).elements()) == {
            "begun": 4, "finished": 2, "failed": 2
        }  # fmt: skip
        found[name] = {trial["id"]: trial["targets"] for trial in result["trials"]}
    assert found["ray"] == found["here"], "losses with all their digits"
    assert all("loss" in target["values"] for trial in found["ray"].values() for target in trial.values())
    capsys.readouterr()
    assert main([*arguments, "--engine", "ray", "--workers", "1", "--dry-run"]) == 0
    assert "2 finished, 2 to carry out" in capsys.readouterr().err
