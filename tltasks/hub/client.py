"""Publish a results folder on the Hub: one commit that touches nothing somebody else wrote, unless it is told to.

What a push wrote stands in the repository's own `.tltasks.json`, so a later one can tell its files from a person's.
A tag `recipe-DIGEST` marks the commit with the newest results of each recipe.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    DeviceCodeError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    OIDCError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from tltasks.errors import HubError
from tltasks.hub.upload_plan import BESIDE_MODEL, MANIFEST, PushPlan, plan_push, plan_space, read_manifest

__all__ = ["PushReceipt", "RetryPolicy", "check_push", "plan_push", "pull", "push", "push_data", "push_space"]

T = TypeVar("T")
_CONTENT = {"model": "results of a tltasks run", "space": "the page of a model", "dataset": "a data set"}
_PATHS = {"model": "", "space": "spaces/", "dataset": "datasets/"}
"""Of repositories below the Hub's address."""
# All that the client raises, hf_xet's own errors (OSError) and a body that is no JSON (ValueError) included.
_CLIENT_ERRORS = (httpx2.HTTPError, OSError, ValueError, RuntimeError, OIDCError, DeviceCodeError)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to try again after trouble that may pass: 409, 412, 429, 5xx, broken connections, timeouts."""

    attempts: int = 4
    first_wait: float = 2.0
    """Seconds; doubles with each attempt, unless the Hub names a time (Retry-After)."""
    longest_wait: float = 120.0
    """Seconds; a longer Retry-After ends the push at once."""
    timeout: float = 120.0
    """Seconds without a byte from the Hub, or taken by it."""


@dataclass(frozen=True)
class PushReceipt:
    """Where the results are. `commit` is None after a dry run; `uploaded` names what the push changed or would."""

    url: str
    commit: str | None
    uploaded: tuple[str, ...]


@dataclass(frozen=True)
class _Remote:
    """A repository at one commit: content ids by path, and those that the manifest says a push wrote."""

    revision: str
    private: bool
    ids: dict[str, str]
    written: dict[str, set[str]]

    def is_ours(self, path: str) -> bool:
        return self.ids[path] in self.written.get(path, ())


# ----------------------------------------------------------------------------------------------- push


def push(
    output: Path,
    repo: str,
    *,
    private: bool = True,
    card: str | None = None,
    model: Path | None = None,
    pull_request: bool = False,
    force: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    patience: RetryPolicy = RetryPolicy(),
) -> PushReceipt:
    """Publish a results folder as one commit; `private` is what a new repository becomes.

    `card` is published in place of the folder's README.md, for a repository that this did not yet know, and `model` in
    place of its model/. With `force` files of others are overwritten, and those of an earlier push that these results
    do not have are deleted; with `pull_request` all this is a proposal, which its reader may refuse.
    Raises HubError, always with the folder untouched and how to push later. A dry run needs no login and no network.
    """
    plan = plan_push(output, card=card, model=model)
    api = HfApi(endpoint=endpoint)
    if dry_run:
        return PushReceipt(f"{api.endpoint}/{repo}", None, tuple(file.path for file in plan.files))
    tail = f"Everything is still in {output}; when that is solved: tltasks push {output}"
    return _persist(
        lambda: _push_once(plan, repo, private, endpoint, pull_request=pull_request, force=force),
        f"push to {repo}",
        tail,
        patience,
    )


def push_space(
    model: str,
    options: Sequence[str],
    repo: str,
    *,
    private: bool = True,
    pull_request: bool = False,
    force: bool = False,
    endpoint: str | None = None,
    patience: RetryPolicy = RetryPolicy(),
) -> PushReceipt:
    """Publish a Space that serves the demo of a model on the Hub, as carefully as `push`. Raises HubError."""

    def attempt() -> PushReceipt:
        api = _logged_in(endpoint)
        whole = _whole_id(api, model)
        if _inspect(api, whole) is None:
            raise HubError(f"the model {whole} is not on the Hub. Publish it first: tltasks push OUTPUT")
        plan = plan_space(whole, options)
        return _push_once(plan, repo, private, endpoint, pull_request=pull_request, force=force)

    return _persist(
        attempt, f"Space {repo}", "Nothing else was changed; the same command can be tried again.", patience
    )


def push_data(
    plan: PushPlan,
    repo: str,
    *,
    private: bool = True,
    pull_request: bool = False,
    force: bool = False,
    endpoint: str | None = None,
    patience: RetryPolicy = RetryPolicy(),
) -> PushReceipt:
    """Publish a data set, as carefully as `push`. Raises HubError."""
    return _persist(
        lambda: _push_once(plan, repo, private, endpoint, pull_request=pull_request, force=force),
        f"data set {repo}",
        "The folder is as it was; the same command can be tried again.",
        patience,
    )


def check_push(
    repo: str, *, private: bool = False, endpoint: str | None = None, patience: RetryPolicy = RetryPolicy()
) -> None:
    """Find out before training what would refuse a push: login, rights, someone's files. Raises HubError.

    With `private`, a repository that exists and is public is refused too.
    """
    tail = "Nothing has been trained. To train now and push later, run with --no-push, then: tltasks push OUTPUT"
    _persist(lambda: _check_once(repo, private, endpoint), f"push to {repo}", tail, patience)


def _push_once(
    plan: PushPlan, repo: str, private: bool, endpoint: str | None, *, pull_request: bool, force: bool
) -> PushReceipt:
    api = _logged_in(endpoint)
    repo = _whole_id(api, repo)
    remote = _inspect(api, repo, kind=plan.kind)
    if remote is None:
        api.create_repo(
            repo, private=private, repo_type=plan.kind, space_sdk="gradio" if plan.kind == "space" else None
        )
        remote = _inspect(api, repo, kind=plan.kind)
        if remote is None:
            raise HubError("the repository was created, yet the Hub does not find it.")
    _check_visibility(remote, private)
    stale = _stale(plan, remote)
    if not force and not pull_request:
        _refuse_foreign(_foreign(plan, remote))
        _refuse_mixture(stale)
    url = f"{api.endpoint}/{_PATHS[plan.kind]}{repo}"
    changed = [file for file in plan.files if remote.ids.get(file.path) not in file.ids]
    if not changed and not stale:
        _tag(api, repo, plan, remote.revision)
        return PushReceipt(url, remote.revision, ())
    try:
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(file.path, file.content) for file in changed),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=f"Upload {_CONTENT[plan.kind]}",
            commit_description=f"recipe_sha256: {plan.recipe_sha256}" if plan.recipe_sha256 else None,
            repo_type=plan.kind,
            parent_commit=remote.revision,
            create_pr=pull_request,
        )
    except _CLIENT_ERRORS as error:
        if pull_request and _may_have_happened(_cause(error)):  # another attempt would open another one
            raise HubError(
                f"the answer was lost, so the pull request may have been opened: look at {url}/discussions before "
                "pushing again."
            ) from None
        raise
    _check_complete(plan, _inspect(api, repo, commit.oid, kind=plan.kind))
    if not pull_request:
        _tag(api, repo, plan, commit.oid)
    return PushReceipt(commit.pr_url or url, commit.oid, tuple(file.path for file in changed))


def _tag(api: HfApi, repo: str, plan: PushPlan, revision: str) -> None:
    """Mark the newest results of a recipe, so that they can be had by its digest."""
    if plan.recipe_sha256 is None:
        return
    name = f"recipe-{plan.recipe_sha256[:16]}"
    marked = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}
    if marked.get(name) == revision:
        return
    if name in marked:
        api.delete_tag(repo, tag=name)
    api.create_tag(repo, tag=name, revision=revision)


def _check_once(repo: str, private: bool, endpoint: str | None) -> None:
    api = _logged_in(endpoint)
    account = api.whoami()
    name = account.get("name")
    access = (account.get("auth") or {}).get("accessToken") or {}
    scopes = (access.get("fineGrained") or {}).get("scoped") or []
    read_only = access.get("role") == "read" or (
        bool(scopes) and not any("repo.write" in scope.get("permissions", []) for scope in scopes)
    )
    if read_only:
        raise HubError("the login's token may only read. Make one that may write, then run `hf auth login` again.")
    namespace = repo.split("/")[0] if "/" in repo else name
    orgs = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or []}
    if account.get("type", "user") == "user" and "orgs" in account and namespace not in {name, *orgs}:
        own = ", ".join(str(known) for known in (name, *orgs))
        raise HubError(f"the login may not write to `{namespace}`, only to: {own}. Change hub.repo or `hf auth login`.")
    if namespace != name and orgs.get(namespace) == "read":
        raise HubError(f"{name} may only read in the organisation `{namespace}`; ask there for write access.")
    remote = _inspect(api, repo if "/" in repo else f"{name}/{repo}")
    if remote is not None:
        _check_visibility(remote, private)
        _refuse_foreign([path for path in (*BESIDE_MODEL, MANIFEST) if path in remote.ids and not remote.is_ours(path)])


def _logged_in(endpoint: str | None) -> HfApi:
    if constants.is_offline_mode():
        raise HubError("offline mode is on. Unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE).")
    token = get_token()
    if token is None:
        raise HubError("not logged in to the Hub. Run `hf auth login`, with a token that may write.")
    return HfApi(endpoint=endpoint, token=token)


def _whole_id(api: HfApi, repo: str) -> str:
    return repo if "/" in repo else f"{api.whoami()['name']}/{repo}"


def _inspect(api: HfApi, repo: str, revision: str | None = None, *, kind: str = "model") -> _Remote | None:
    """What the repository holds; None if there is none, or none that this login may see.

    The manifest is read for the newest revision alone.
    """
    try:
        # Its own default is to wait for ever, whatever the session's timeout (huggingface_hub 2.4, hf_api.py).
        timeout = get_session().timeout.read
        looks: dict[str, Any] = {"model": api.model_info, "space": api.space_info, "dataset": api.dataset_info}
        look = looks[kind]
        info = look(repo, revision=revision, files_metadata=True, timeout=timeout)
    except RepositoryNotFoundError:
        return None
    ids = {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}
    written: dict[str, set[str]] = {}
    if MANIFEST in ids and revision is None:
        with tempfile.TemporaryDirectory() as cache:
            manifest = api.hf_hub_download(repo, MANIFEST, revision=info.sha, repo_type=kind, cache_dir=cache)
            written = read_manifest(Path(manifest).read_bytes())
    return _Remote(str(info.sha), bool(info.private), ids, written)


# ----------------------------------------------------------------------------------------------- pull

_PULLED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja", "recipe.yaml")


def pull(
    repo: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    endpoint: str | None = None,
    patience: RetryPolicy = RetryPolicy(),
) -> Path:
    """The folder of the client's cache with a model's files at a revision, fetched where they are not there already.

    Raises HubError. Neither code, unless it is trusted, nor weights of other formats are fetched.
    """
    wanted = [*_PULLED, *(["*.py"] if trust_remote_code else [])]

    def fetch() -> Path:
        found = snapshot_download(
            repo, revision=revision, endpoint=endpoint, allow_patterns=wanted, ignore_patterns=["*/*"]
        )
        return Path(found)

    tail = "Name a model that is there, at a --revision that it has; private models need `hf auth login`."
    return _persist(fetch, f"model {repo}", tail, patience)


# --------------------------------------------------------------------------------------------- checks


def _check_visibility(remote: _Remote, private: bool) -> None:
    if private and not remote.private:
        raise HubError(
            "the repository is public, but these were to be private (hub.private is true, unless told otherwise). "
            "Make it private on the Hub, set hub.private: false, or say --public."
        )


def _foreign(plan: PushPlan, remote: _Remote) -> list[str]:
    """Files that others wrote, and that a push would change."""
    planned = {file.path: file for file in plan.files}
    present = planned.keys() & remote.ids.keys()
    return [p for p in present if remote.ids[p] not in planned[p].ids and not remote.is_ours(p)]


def _stale(plan: PushPlan, remote: _Remote) -> list[str]:
    """Files of an earlier push that this one would not change."""
    planned = {file.path for file in plan.files}
    return sorted(p for p in remote.written if p in remote.ids and remote.is_ours(p) and p not in planned)


def _refuse_mixture(stale: list[str]) -> None:
    if stale:
        raise HubError(
            f"the repository holds files of an earlier push that these results do not have: {', '.join(stale)}. "
            "A mixture would not load as either: delete them with `--force`, or push elsewhere."
        )


def _refuse_foreign(paths: list[str]) -> None:
    if paths:
        raise HubError(
            f"the repository holds files that no tltasks push wrote, or that were changed since: "
            f"{', '.join(sorted(paths))}. Nothing was uploaded. Push elsewhere, propose the change "
            "(`--pr`), or overwrite them (`--force`)."
        )


def _check_complete(plan: PushPlan, remote: _Remote | None) -> None:
    """Raise HubError for files that the Hub left out without a word, as it does for those in a .gitignore."""
    absent = sorted(file.path for file in plan.files if not remote or remote.ids.get(file.path) not in file.ids)
    if absent:
        raise HubError(
            f"the commit lacks {', '.join(absent)}. If the repository's .gitignore names them, change it on the Hub."
        )


# -------------------------------------------------------------------------------------------- trouble


def _persist(action: Callable[[], T], what: str, tail: str, patience: RetryPolicy) -> T:
    """Run `action` until it succeeds, patience ends or trying again cannot help; then raise one HubError.

    Each attempt begins with a look at the repository, so one whose answer was lost is found to be done, and a commit
    of somebody else's in between is judged anew.
    """
    attempt = 0
    while True:
        attempt += 1
        client = get_session()
        usual, client.timeout = client.timeout, patience.timeout  # the client's own is none (utils/_http.py)
        try:
            return action()
        except HubError as error:
            reason, wait = str(error), None
        except _CLIENT_ERRORS as error:
            cause = _cause(error)
            reason, wait = _reason(cause), _seconds_to_wait(cause, attempt, patience)
        finally:
            client.timeout = usual
        if wait is None or attempt >= patience.attempts:
            tried = f" Tried {attempt} times." if attempt > 1 else ""
            # `from None`: what the client's errors hold may include request headers.
            raise HubError(_without_tokens(f"{what}: {reason}{tried} {tail}")) from None
        time.sleep(wait)


def _may_have_happened(cause: BaseException) -> bool:
    """Whether the Hub may have done what it was asked to, and its answer alone was lost."""
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500
    return not isinstance(cause, httpx2.ConnectError)


def _cause(error: BaseException) -> BaseException:
    """The answer or broken connection behind an error; uploads wrap theirs (huggingface_hub, _commit_api.py)."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled)):
            return link
        link = link.__cause__ or link.__context__
    return error


def _seconds_to_wait(cause: BaseException, attempt: int, patience: RetryPolicy) -> float | None:
    """Seconds until another attempt may succeed; None if none will."""
    wait = min(patience.first_wait * 2 ** (attempt - 1), patience.longest_wait)
    if isinstance(cause, HfHubHTTPError):
        if cause.response.status_code not in {408, 409, 412, 429} and cause.response.status_code < 500:
            return None
        limit = parse_ratelimit_headers(cause.response.headers)
        after = cause.response.headers.get("Retry-After", "")
        if after.isdigit():
            wait = float(after)
        elif cause.response.status_code == 429 and limit is not None and limit.remaining == 0:
            wait = float(limit.reset_in_seconds)
        return wait if wait <= patience.longest_wait else None
    # JSONDecodeError: a gateway's page where the client expects JSON. RuntimeError: hf_xet, about its connections.
    passing = (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError, RuntimeError)
    return wait if isinstance(cause, passing) and not isinstance(cause, OfflineModeIsEnabled) else None


def _reason(cause: BaseException) -> str:
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        said = f" It says: {cause.server_message}." if cause.server_message else ""
        return f"{_STATUS.get(status // 100 * 100 if status >= 500 else status, 'the Hub refused')} ({status}).{said}"
    if isinstance(cause, PermissionError):  # hf_xet.XetAuthenticationError
        return f"{_STATUS[401]}: {cause}."
    if isinstance(cause, httpx2.TimeoutException):
        return "the Hub did not answer in time."
    if isinstance(cause, (httpx2.TransportError, ConnectionError)):
        return f"the connection to the Hub broke ({type(cause).__name__}: {cause})."
    if isinstance(cause, json.JSONDecodeError):
        return "the Hub's answer was not what its client expects; it may be in trouble."
    return f"{type(cause).__name__}: {cause}."


_STATUS = {
    401: "the Hub does not accept the login; run `hf auth login` again (HF_TOKEN, where set, comes first)",
    403: "the login may not do this; run `hf auth login` with a token that may write, or change hub.repo",
    404: "not found, or not to be seen with this login; check hub.repo and `hf auth login`",
    409: "somebody else is changing the repository",
    412: "somebody else changed the repository in between",
    429: "too many requests; wait some minutes",
    500: "the Hub is in trouble",
}


def _without_tokens(text: str) -> str:
    try:
        token = get_token()
    except _CLIENT_ERRORS:
        token = None
    if token:
        text = text.replace(token, "hf_…")
    return re.sub(r"hf_[\w.-]*\w", "hf_…", text)
