"""Inside a job: the run, and its state, which goes to a private repository with each checkpoint.

Whatever ends the job, the next one of the same recipe goes on from there. Some time before the job's own end the run is
told to stop, so that nothing is lost then.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from tltasks.errors import HubError
from tltasks.hub import client
from tltasks.hub.retries import DEFAULT_RETRIES, with_retries
from tltasks.hub.upload_plan import UploadPlan, with_manifest
from tltasks.runtime.progress import Say

SECONDS = 300.0
"""Between two uploads of the state."""
_ADVICE = "The run's files are lost with the job; the state that is on the Hub stays."


def carry_out(
    submission: Path,
    state: str,
    flags: Sequence[str],
    *,
    until: float,
    processes: int,
    say: Say,
    seconds: float = SECONDS,
) -> int:
    """Carry out the recipe in a folder, from its state on the Hub where there is one, and publish its results.

    `until` is the time, as of `time.time`, when the run is told to stop. Returns the run's exit status.
    """
    output = submission / "run"
    if _restore(state, output):
        say(f"going on from {state}")
    words = ["run", str(submission / "recipe.yaml"), "--output", str(output), "--resume", "--push", *flags]
    several = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    )
    run = subprocess.Popen([sys.executable, "-m", *several, "tltasks", *words])

    def stop(*_: object) -> None:
        with suppress(psutil.NoSuchProcess):  # torchrun would give its processes half a minute
            for process in psutil.Process(run.pid).children() if several else [psutil.Process(run.pid)]:
                process.terminate()

    signal.signal(signal.SIGTERM, stop)
    kept, told, next_time = _milestones(output), False, 0.0
    while run.poll() is None:
        if not told and time.time() > until:
            say("the job's time is almost over: the run saves its state, and the next job goes on from it")
            stop()
            told = True
        if _milestones(output) != kept and time.monotonic() > next_time:
            milestones = _milestones(output)
            try:
                _keep(output, state, finished=False)
                kept = milestones
            except (HubError, OSError) as error:  # the run goes on, and the next time may be better
                say(f"the state was not uploaded: {error}")
            next_time = time.monotonic() + seconds
        with suppress(subprocess.TimeoutExpired):
            run.wait(timeout=min(1.0, seconds))
    try:
        if (output / "recipe.yaml").is_file():
            _keep(output, state, finished=run.returncode == 0)
    except (HubError, OSError) as error:
        if run.returncode:
            raise
        say(f"the results are published, but log and predictions were not uploaded: {error}")
    return run.returncode


def _restore(state: str, output: Path) -> bool:
    """Fetch the state of an earlier job; False where there is none."""

    def fetch() -> bool:
        try:
            snapshot_download(state, local_dir=output)
        except RepositoryNotFoundError:
            return False
        return (output / "recipe.yaml").is_file()

    return with_retries(fetch, f"state {state}", advice=_ADVICE, policy=DEFAULT_RETRIES)


def _milestones(output: Path) -> set[str]:
    """Names of what a run can go on from."""
    found = [*output.glob("checkpoints/*/step-*"), *output.glob("stages/*/*"), *output.glob("result.json")]
    return {str(path.relative_to(output)) for path in found if not path.name.startswith(".")}


def _keep(output: Path, state: str, *, finished: bool) -> None:
    """Have the state in its repository, and nothing of earlier ones, which would fill the account's storage.

    Of a finished run, whose model is published, weights are left out. Raises HubError or OSError.
    """
    copy = output.with_name("state")
    shutil.rmtree(copy, ignore_errors=True)
    left = [".*", *(["model", "checkpoints"] if finished else [])]
    shutil.copytree(output, copy, copy_function=_link_weights, ignore=shutil.ignore_patterns(*left))
    files = {path.relative_to(copy).as_posix(): path for path in sorted(copy.rglob("*")) if path.is_file()}
    plan = UploadPlan(with_manifest({**files}), "model", _ADVICE)
    client.push(plan, state, private=True, force=True)
    api = client.logged_in()
    with_retries(lambda: api.super_squash_history(state), f"state {state}", advice=_ADVICE, policy=DEFAULT_RETRIES)


def _link_weights(source: str, target: str) -> str:
    """Keep what the run may remove meanwhile; of what it may write to, a copy."""
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)
