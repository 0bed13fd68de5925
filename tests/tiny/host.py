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

SCRIPT = """
import json, os, sys, traceback
import datasets, matplotlib.figure, peft, scipy.stats, sklearn.linear_model, sklearn.metrics, torch, transformers
import tltasks.inference.predict, tltasks.runs.story
from tltasks.cli.commands import main
nothing = os.open(os.devnull, os.O_RDONLY)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.environ.update(job["variables"])
        os.chdir(job["folder"])
        sys.argv = ["tltasks", *job["words"]]
        log, out = (os.open(job[name], os.O_CREAT | os.O_APPEND | os.O_WRONLY) for name in ("log", "out"))
        os.dup2(nothing, 0), os.dup2(out, 1), os.dup2(log, 2)
        status = 1
        try:
            status = exec(job["code"], {}) or 0 if job["code"] else main(job["words"])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A process that a host has started, and the file of what it tells."""

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
        """Its standard error."""
        return self.log.read_text()

    def printed(self) -> str:
        return self.log.with_suffix(".out").read_text()


class Host:
    """Each job is a command of tltasks, or Python with `words` for its arguments, in a process of its own."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
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

    def start(
        self,
        log: Path,
        *words: object,
        code: str = "",
        folder: Path = REPOSITORY,
        variables: Mapping[str, str] | None = None,
    ) -> Job:
        """Begin a job; further `variables` of the environment come too late for libraries that read them on import."""
        order = {"words": [str(word) for word in words], "code": code, "folder": str(folder)}
        files = {"log": str(log), "out": str(log.with_suffix(".out"))}
        return Job(self, self.ask(**order, **files, variables=dict(variables or {})), log)

    def run(self, log: Path, *words: object, code: str = "", folder: Path = REPOSITORY, status: int = 0) -> Job:
        """A job that has ended as it should."""
        job = self.start(log, *words, code=code, folder=folder)
        ended = job.wait()
        assert ended == status, f"{ended}: {job.said()[-3000:]}"
        assert "Traceback" not in job.said()
        return job

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
    """One for all tests of this process; the fixture `own_caches` closes it."""
    return Host(environment())


def close_shared_host() -> None:
    if shared_host.cache_info().currsize:
        shared_host().close()
        shared_host.cache_clear()
