"""`tltasks submit` and `tltasks jobs`: what is shown, asked and followed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from huggingface_hub import JobInfo, JobStage

from tltasks.config.recipe import RunPlan
from tltasks.errors import RecipeError, TltasksError, printable
from tltasks.hub import jobs
from tltasks.hub.client import check_push
from tltasks.hub.jobs import Submission
from tltasks.hub.submission import digest_of, plan_submission
from tltasks.reports.formatting import show_bytes, show_duration

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
OVERHEAD = 30 * 60
"""Seconds of a job besides training: waiting for packages, data and scores."""


def seconds_of(text: str) -> int:
    """Seconds of a time such as 5400, 90m or 1.5h. Raises RecipeError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0
    if seconds < 600:
        raise RecipeError(f"--timeout {text}: write a time of at least 10 minutes as 5400, 90m, 1.5h or 1d.")
    return int(seconds)


def prepare(
    run: RunPlan,
    *,
    name: str,
    flavor: str,
    timeout: str | None,
    attempts: int,
    repo: str | None,
    owner: str | None,
    secrets: Sequence[str],
    flags: Sequence[str],
) -> tuple[Submission, str]:
    """Everything of a job that can be refused, before anything is uploaded; and why it may take so long.

    Raises a TltasksError.
    """
    if missing := [one for one in secrets if not os.environ.get(one)]:
        raise RecipeError(f"--secret {missing[0]}: no such variable is set in the environment.")
    given = seconds_of(timeout) if timeout else None
    user = jobs.login_name()
    owner, name = owner or user, re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "recipe"
    price = jobs.find_flavor(flavor)
    results = repo or run.recipe.hub.repo or f"{owner}/{name}"
    check_push(results, private=run.recipe.hub.private, advice="Nothing was uploaded. --repo names another repository.")
    upload = plan_submission(run, results)
    submission = Submission(
        name=name,
        sha256=digest_of(run, upload),
        owner=owner,
        results=results if "/" in results else f"{user}/{results}",
        private=run.recipe.hub.private,
        upload=upload,
        flavor=flavor,
        timeout=given or 0,
        attempts=attempts,
        price=price,
        extras=tuple(_extras(run)),
        flags=tuple(flags),
        secrets={one: os.environ[one] for one in secrets},
    )
    for job in jobs.list_jobs(owner, sha256=submission.sha256, active=True):
        raise RecipeError(f"job {job.id} carries out this recipe already. Follow it: tltasks jobs {job.id}")
    submission = replace(submission, began=jobs.state_since(submission))
    if given:
        return submission, "as asked"
    seconds = _estimate(run)
    why = f"twice the {show_duration(seconds)} that training would take on this machine, by one step, and 30 min"
    return replace(submission, timeout=OVERHEAD + 60 * round(2 * seconds / 60)), why


def _extras(run: RunPlan) -> Iterator[str]:
    """Extras of tltasks that a run needs."""
    if any(stage.stage.optimizer == "adamw_8bit" for stage in run.stages):
        yield "8bit"
    if any(stage.stage.base_dtype in ("int8", "nf4") for stage in run.stages):
        yield "quantized"
    if run.recipe.trackers:
        yield "trackers"


def _estimate(run: RunPlan) -> float:
    """Seconds of training on this machine. Raises RecipeError where they cannot be told."""
    from tltasks.runs.refusals import refuse_at_once
    from tltasks.runs.story import measure_stages

    try:
        refuse_at_once(run, push=False)
        return sum(stage.seconds or 0 for stage in measure_stages(run))
    except TltasksError as error:
        raise RecipeError(
            f"how long the job may take cannot be told by a step here; say so with --timeout. Why: {error}"
        ) from error


def describe(submission: Submission, why: str) -> Iterator[str]:
    """Lines on what would be done."""
    price, cost, files = submission.price, submission.cost, submission.upload.files
    machine = f" ({price.pretty_name}, {price.cpu}, {price.ram})" if price else ""
    yield f"job      {submission.name}, on {submission.flavor}{machine}, in {jobs.IMAGE}"
    yield f"command  {submission.command('COMMIT')[-1]}"
    yield f"timeout  {show_duration(submission.timeout)}: {why}; --timeout sets another"
    if cost is None or price is None:
        yield "cost     unknown: the Hub tells no price of this hardware"
    else:
        often = f", each of {submission.attempts} attempts" if submission.attempts > 1 else ""
        each = f"${price.unit_cost_usd:g} a {price.unit_label}"
        yield f"cost     at most ${cost:.2f}{often}, at {each} of use; a job that ends earlier costs less"
    size = show_bytes(sum(file.size for file in files))
    yield f"uploads  {len(files):,} files, {size}, to the data set {submission.data} (private):"
    folders = sorted({"/".join(file.path.split("/")[:3]) for file in files})
    yield f"         {', '.join(folders[:12])}{' …' if len(folders) > 12 else ''}"
    yield f"secrets  {', '.join([*submission.secrets, 'HF_TOKEN (of this login)'])}"
    since = (
        f", which there is since {submission.began:%Y-%m-%d %H:%M}: it goes on from there" if submission.began else ""
    )
    yield f"state    {submission.state} (private){since}"
    yield f"results  {submission.results} ({'private' if submission.private else 'public'})"


def confirm() -> None:
    """Ask whether to go on. Raises RecipeError for a no, and where nobody can be asked."""
    if not sys.stdin.isatty():
        raise RecipeError("submit: nothing was uploaded; to upload and begin without being asked, say --yes.")
    if input("Upload this and begin the job? [y/N] ").strip().lower() not in ("y", "yes"):
        raise RecipeError("submit: nothing was uploaded.")


def follow(job: str, owner: str | None) -> int:
    """Print a job's log until it ends; the exit status is 0 when it was completed."""
    owner = owner or jobs.login_name()
    jobs.find_job(job, owner)
    for line in jobs.follow(job, owner):
        print(printable(line), flush=True)  # noqa: T201
    ended = jobs.find_job(job, owner)
    why = f": {ended.status.message}" if ended.status.message else ""
    print(printable(f"job {job} {ended.status.stage.lower()}{why}"), file=sys.stderr)  # noqa: T201
    if ended.status.stage == JobStage.COMPLETED:
        return 0
    print("What it saved is on the Hub: the same `tltasks submit` goes on from there.", file=sys.stderr)  # noqa: T201
    return 1


def show_jobs(owner: str | None, *, every: bool) -> None:
    """Print a line for each job that waits or runs, or for every one."""
    for job in jobs.list_jobs(owner or jobs.login_name(), active=not every):
        print(printable(_line(job), lines=False))  # noqa: T201


def _line(job: JobInfo) -> str:
    name = (job.labels or {}).get("name", "")
    since = job.started_at or job.created_at
    took = ((job.finished_at or datetime.now(UTC)) - since).total_seconds() if since else 0
    return f"{job.id}  {job.status.stage:<10}  {job.flavor}  {show_duration(max(0, took))}  {name}"
