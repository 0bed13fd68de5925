"""Jobs of Hugging Face Jobs that carry out recipes, by the Hub's own client: begun, found again, followed, cancelled.

https://huggingface.co/docs/hub/jobs. A job of ours is known by its label, the digest of its recipe and local files.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from huggingface_hub import HfApi, JobHardware, JobHardwareInfo, JobInfo, JobStage, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tltasks.errors import HubError, RecipeError, did_you_mean
from tltasks.hub import client
from tltasks.hub.retries import CLIENT_ERRORS, DEFAULT_RETRIES, with_retries
from tltasks.hub.submission import WHEEL
from tltasks.hub.upload_plan import UploadPlan

T = TypeVar("T")

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""Image that the Hub runs Python in by itself (huggingface_hub 2.4, _jobs_api.py, DEFAULT_UV_IMAGE)."""
LABEL, ONCE = "tltasks", "tltasks-request"
"""Labels of our jobs: the digest of recipe and local files, and a number to find a job by whose answer was lost."""
ACTIVE = (JobStage.SCHEDULING, JobStage.RUNNING)
_RIGHTS = "Jobs need credit and a token that may start and manage them: https://huggingface.co/docs/hub/jobs."


@dataclass(frozen=True)
class Submission:
    """A job that carries out a recipe."""

    name: str
    sha256: str
    """Digest of the recipe and its local files."""
    owner: str
    """User or organisation that the job, the data set and the run's state belong to."""
    results: str
    """Repository of the results."""
    private: bool
    """Whether it is private where it is made."""
    upload: UploadPlan
    flavor: str
    timeout: int
    """Seconds from the job's start to its end."""
    attempts: int
    price: JobHardwareInfo | None = None
    """The flavor, where the Hub tells what it costs."""
    extras: tuple[str, ...] = ()
    """Extras of tltasks that the recipe needs."""
    flags: tuple[str, ...] = ()
    """Flags of `tltasks run`."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further secrets beside the login's token."""
    began: datetime | None = None
    """Time since which there is a state to go on from."""

    @property
    def data(self) -> str:
        """The data set with the recipe, its local data and tltasks."""
        return f"{self.owner}/tltasks-{self.name}"

    @property
    def state(self) -> str:
        """The repository that the unfinished run is kept in."""
        return f"{self.owner}/tltasks-{self.name}-{self.sha256[:8]}"

    @property
    def cost(self) -> float | None:
        """Dollars of one attempt that takes all its time."""
        seconds = {"second": 1, "minute": 60, "hour": 3600}
        if self.price is None or self.price.unit_label not in seconds:
            return None
        return self.timeout / seconds[self.price.unit_label] * self.price.unit_cost_usd

    def command(self, revision: str) -> list[str]:
        """Command of the job, on one line; packages are those of the time when the run began."""
        time = f"{(self.began or datetime.now(UTC)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        install = f"uv pip install --system --quiet --exclude-newer {time}"
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        spare = min(900, max(120, self.timeout // 10))  # to save the state, and have it on the Hub
        steps = (
            f"end=$(($(date +%s) + {self.timeout - spare}))",
            'cd "$HOME"',
            f"{install} huggingface_hub",
            f"hf download {self.data} --repo-type dataset --revision {revision} --local-dir submission",
            f"{install} {shlex.quote(f'submission/{WHEEL}{extras}')}",
            f"exec tltasks carry-out submission {self.state} --until $end {shlex.join(self.flags)}".rstrip(),
        )
        return ["bash", "-c", " && ".join(steps)]


def find_flavor(name: str) -> JobHardwareInfo | None:
    """The Hub's word on a flavor; None where it says nothing. Raises RecipeError for one that is not there."""
    known: list[str] = [kind.value for kind in JobHardware]
    found: dict[str, JobHardwareInfo] = {}
    try:
        found = {one.name: one for one in _asked(lambda api: api.list_jobs_hardware(), "hardware of jobs")}
    except HubError as error:
        if "(404)" not in str(error):
            raise
    if name not in (found or known):
        known = [*(found or known)]
        close = did_you_mean(name, known) or "."
        raise RecipeError(f"--flavor {name}: the Hub has no such hardware{close} It has: {', '.join(known)}.")
    return found.get(name)


def login_name() -> str:
    """The user whose login this is. Raises HubError where nobody is logged in."""
    return str(_asked(lambda api: api.whoami(), "login")["name"])


def list_jobs(owner: str, *, sha256: str | None = None, active: bool = False) -> list[JobInfo]:
    """Jobs that carry out recipes, or one recipe; with `active` those that wait or run."""
    stages: list[JobStage | str] | None = [*ACTIVE] if active else None
    labels = {LABEL: sha256[:16]} if sha256 else None
    found = _asked(lambda api: list(api.list_jobs(status=stages, labels=labels, namespace=owner)), f"jobs of {owner}")
    return [job for job in found if LABEL in (job.labels or {}) and (not active or job.status.stage in ACTIVE)]


def state_since(submission: Submission) -> datetime | None:
    """Time since which there is a state of the run to go on from. Raises HubError where the run is finished."""

    def look(api: HfApi) -> ModelInfo | None:
        try:
            return api.model_info(submission.state, timeout=DEFAULT_RETRIES.timeout)
        except RepositoryNotFoundError:
            return None

    info = _asked(look, f"state {submission.state}")
    files = [file.rfilename for file in (info and info.siblings) or []]
    if "result.json" in files and not any(name.startswith("model/") for name in files):
        raise HubError(
            f"this recipe has been carried out: results are in {submission.results}, log and predictions in "
            f"{submission.state}. To do so again: hf repos delete {submission.state}"
        )
    return None if info is None else info.created_at


def submit(submission: Submission) -> JobInfo:
    """Upload what goes with the recipe, into a private data set, and begin the job. Raises HubError."""
    receipt = client.push(submission.upload, submission.data, private=True, renew=True)
    once = uuid.uuid4().hex
    labels = {LABEL: submission.sha256[:16], ONCE: once}

    def begin(api: HfApi) -> JobInfo:
        for job in api.list_jobs(labels={ONCE: once}, namespace=submission.owner):
            return job  # of an attempt whose answer was lost
        return api.run_job(
            image=IMAGE,
            command=submission.command(receipt.commit),
            env={"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUNBUFFERED": "1"},
            secrets={**submission.secrets, "HF_TOKEN": get_token()},
            flavor=submission.flavor,
            timeout=submission.timeout,
            attempts=submission.attempts if submission.attempts > 1 else None,
            name=submission.name,
            labels=labels,
            namespace=submission.owner,
        )

    return _asked(begin, f"job of {submission.name}")


def find_job(job: str, owner: str) -> JobInfo:
    """Inspect a job. Raises HubError."""
    return _asked(lambda api: api.inspect_job(job_id=job, namespace=owner), f"job {job}")


def follow(job: str, owner: str) -> Iterator[str]:
    """Lines of a job's log until it ends, as they come; the client takes up a stream that breaks."""
    api = client.logged_in()
    try:
        yield from api.fetch_job_logs(job_id=job, namespace=owner, follow=True)
    except CLIENT_ERRORS as error:
        kind = f"{error.response.status_code}" if isinstance(error, HfHubHTTPError) else type(error).__name__
        raise HubError(
            f"job {job}: its log broke off ({kind}); the job itself goes on. Follow it again: tltasks jobs {job}"
        ) from None


def cancel(job: str, owner: str) -> None:
    """End a job. Raises HubError."""
    _asked(lambda api: api.cancel_job(job_id=job, namespace=owner), f"job {job}")


def _asked(ask: Callable[[HfApi], T], what: str) -> T:
    return with_retries(lambda: ask(client.logged_in()), what, advice=_RIGHTS, policy=DEFAULT_RETRIES)
