"""A process in which what takes most of a command's start is done once: it forks for each job that it is given."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import datasets

REPOSITORY = Path(__file__).resolve().parents[2]

COMMANDS = """
from tltasks.cli.commands import main
def do(job):
    return main(job["arguments"])
"""
"""Work that is a command of tltasks: a job's `arguments`."""
SCRIPT = """
import json, os, sys, traceback
import datasets, matplotlib.figure, peft, scipy.stats, sklearn.linear_model, sklearn.metrics, torch, transformers
import tltasks.inference.predict, tltasks.runs.story
{work}
nothing = os.open(os.devnull, os.O_RDONLY)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.environ.update(job["variables"])
        log = os.open(job["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(nothing, 0), os.dup2(log, 1), os.dup2(log, 2)
        status = 1
        try:
            status = do(job)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A process that a host has started."""

    host: Host
    pid: int
    log: Path

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status; the negative number of the signal that has ended it."""
        return self.host.ask(wait=self.pid)

    def said(self) -> str:
        return self.log.read_text()


class Host:
    """`work` is Python that defines `do(job)`; each job has a process of its own, and a file for what it says."""

    def __init__(self, variables: Mapping[str, str], work: str = COMMANDS) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.replace("{work}", work)],
            env=variables,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **order: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the host has ended"
        return int(answer)

    def start(self, log: Path, *, variables: Mapping[str, str] | None = None, **job: Any) -> Job:
        """A job with further variables of the environment; those that libraries read when imported come too late."""
        pid = self.ask(log=str(log), variables=dict(variables or {}), **job)
        return Job(self, pid, log)

    def do(self, log: Path, **job: Any) -> int:
        """The job's exit status."""
        return self.start(log, **job).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()


def environment(**more: str) -> dict[str, str]:
    """Variables for a subprocess: one thread, the caches of this test session, the package from this checkout."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
        "PYTHONPATH": str(REPOSITORY),
        **more,
    }


@functools.cache
def shared_host() -> Host:
    """A host of commands for all tests of this process; the fixture `own_caches` closes it."""
    return Host(environment())


def close_shared_host() -> None:
    if shared_host.cache_info().currsize:
        shared_host().close()
        shared_host.cache_clear()


def start_command(log: Path, *words: object, variables: Mapping[str, str] | None = None) -> Job:
    """A command of tltasks in a process of its own."""
    return shared_host().start(log, arguments=[str(word) for word in words], variables=variables)


def run_command(log: Path, *words: object) -> tuple[int, str]:
    """A command of tltasks in a process of its own: its exit status and what it said."""
    job = start_command(log, *words)
    return job.wait(), job.said()
