"""A process in which what takes most of a command's start is done once: it forks for each job that it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.tiny.runs import REPOSITORY

COMMANDS = """
import tltasks.runs.story
from tltasks.cli.commands import main
def do(job):
    return main(job["arguments"])
"""
"""Work that is a command of tltasks: a job's `arguments`."""
SCRIPT = """
import json, os, sys, traceback
import datasets, peft, torch, transformers
{work}
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        status = 1
        try:
            status = do(job)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Host:
    """`work` is Python that defines `do(job)`; each job has a process of its own, and a file for what it says."""

    def __init__(self, variables: dict[str, str], work: str = COMMANDS) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.replace("{work}", work)],
            env=variables,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, log: Path, **job: Any) -> int:
        """The job's exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"log": str(log), **job}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the host has ended"
        return int(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
