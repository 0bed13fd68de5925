"""Publish on the Hub in a commit that touches nothing somebody else wrote, unless it is told to; and fetch from it.

What a push wrote stands in the repository's own `.tltasks.json`, so a later one can tell its files from a person's.
A tag `recipe-DIGEST` marks the commit with the newest results of each recipe.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    KernelInfo,
    constants,
    get_session,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import RepositoryNotFoundError

from tltasks.errors import HubError, nearby
from tltasks.hub.retries import CLIENT_ERRORS, DEFAULT_RETRIES, RetryPolicy, may_have_succeeded, with_retries
from tltasks.hub.upload_plan import BESIDE_MODEL, MANIFEST, RepoKind, UploadPlan, read_manifest

__all__ = ["PushReceipt", "RetryPolicy", "check_push", "find_model", "full_id", "logged_in", "pull", "push"]

_NAMES = {"model": "push to", "space": "Space", "dataset": "data set"}
_CONTENT = {"model": "results of a tltasks run", "space": "the page of a model", "dataset": "a data set"}
_PATHS = {"model": "", "space": "spaces/", "dataset": "datasets/"}
"""Paths of repositories below the Hub's address."""
FILES_OF_A_COMMIT = 250
"""The most, since the Hub looks at each within a minute (https://huggingface.co/docs/hub/storage-limits)."""


@dataclass(frozen=True)
class PushReceipt:
    """Address and commit of the files, and those of them that the push changed."""

    url: str
    commit: str
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
    plan: UploadPlan,
    repo: str,
    *,
    private: bool = True,
    pull_request: bool = False,
    force: bool = False,
    renew: bool = False,
    endpoint: str | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> PushReceipt:
    """Publish what is planned as one commit, or several where there are many files; `private` is what a new repository
    becomes.

    With `force` files of others are overwritten, and those of an earlier push that the plan does not have are deleted,
    as by `renew` alone; with `pull_request` all this is a proposal, which its reader may refuse. Raises HubError,
    always with everything local untouched, and the plan's advice on how to push later.
    """
    return with_retries(
        lambda: _push_once(plan, repo, private, endpoint, pull_request=pull_request, force=force, renew=renew),
        f"{_NAMES[plan.kind]} {repo}",
        advice=plan.advice,
        policy=retries,
    )


_LATER = "Nothing has been trained. To train now and push later, run with --no-push, then: tltasks push OUTPUT"


def check_push(
    repo: str,
    *,
    private: bool = False,
    advice: str = _LATER,
    endpoint: str | None = None,
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> None:
    """Find out before training what would refuse a push: login, rights, someone's files. Raises HubError.

    With `private`, a repository that exists and is public is refused too.
    """
    with_retries(lambda: _check_once(repo, private, endpoint), f"push to {repo}", advice=advice, policy=retries)


def find_model(model: str, *, endpoint: str | None = None, retries: RetryPolicy = DEFAULT_RETRIES) -> str:
    """The id, with its owner, of a model that the login can see on the Hub. Raises HubError."""

    def find() -> str:
        api = logged_in(endpoint)
        name = full_id(api, model)
        if _inspect(api, name, "model") is None:
            raise HubError(f"the model {name} is not on the Hub. Publish it first: tltasks push OUTPUT")
        return name

    advice = "Nothing else was changed; the same command can be tried again."
    return with_retries(find, f"model {model}", advice=advice, policy=retries)


def _push_once(
    plan: UploadPlan, repo: str, private: bool, endpoint: str | None, *, pull_request: bool, force: bool, renew: bool
) -> PushReceipt:
    api = logged_in(endpoint)
    repo = full_id(api, repo)
    remote = _inspect(api, repo, plan.kind) or _create(api, repo, plan.kind, private)
    _check_visibility(remote, private)
    stale = _stale(plan, remote)
    if not force and not pull_request:
        _refuse_foreign(_foreign(plan, remote))
        _refuse_mixture([] if renew else stale)
    url = f"{api.endpoint}/{_PATHS[plan.kind]}{repo}"
    changed = [file for file in plan.files if remote.ids.get(file.path) not in file.ids]
    if not changed and not stale:
        _tag(api, repo, plan, remote.revision)
        return PushReceipt(url, remote.revision, ())
    operations: list[
        CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
    ] = [  # the manifest, which lists the others, last
        *(CommitOperationDelete(path) for path in stale),
        *(CommitOperationAdd(file.path, file.content) for file in changed),
    ]
    size, revision = len(operations) if pull_request else FILES_OF_A_COMMIT, remote.revision
    try:
        for first in range(0, len(operations), size):
            commit = api.create_commit(
                repo,
                operations[first : first + size],
                commit_message=f"Upload {_CONTENT[plan.kind]}",
                commit_description=f"recipe_sha256: {plan.recipe_sha256}" if plan.recipe_sha256 else None,
                repo_type=plan.kind,
                parent_commit=revision,
                create_pr=pull_request,
            )
            revision = commit.oid
    except CLIENT_ERRORS as error:
        if pull_request and may_have_succeeded(error):  # another attempt would open another one
            raise HubError(
                f"the answer was lost, so the pull request may have been opened: look at {url}/discussions before "
                "pushing again."
            ) from None
        raise
    _check_complete(plan, _inspect(api, repo, plan.kind, commit.oid))
    if not pull_request:
        _tag(api, repo, plan, commit.oid)
    return PushReceipt(commit.pr_url or url, commit.oid, tuple(file.path for file in changed))


def _create(api: HfApi, repo: str, kind: RepoKind, private: bool) -> _Remote:
    api.create_repo(repo, private=private, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    remote = _inspect(api, repo, kind)
    if remote is None:
        raise HubError("the repository was created, yet the Hub does not find it.")
    return remote


def _tag(api: HfApi, repo: str, plan: UploadPlan, revision: str) -> None:
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


def logged_in(endpoint: str | None = None) -> HfApi:
    """The client with the login's token. Raises HubError where there is none, or in offline mode."""
    if constants.is_offline_mode():
        raise HubError("offline mode is on. Unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE).")
    token = get_token()
    if token is None:
        raise HubError("not logged in to the Hub. Run `hf auth login`, with a token that may write.")
    return HfApi(endpoint=endpoint, token=token)


def full_id(api: HfApi, repo: str) -> str:
    """A repository's name with its owner, who is the login's user where it names none."""
    return repo if "/" in repo else f"{api.whoami()['name']}/{repo}"


def _inspect(api: HfApi, repo: str, kind: RepoKind, revision: str | None = None) -> _Remote | None:
    """Read what the repository holds; None if there is none, or none that this login may see.

    The manifest is read for the newest revision alone.
    """
    # Its own default is to wait for ever, whatever the session's timeout (huggingface_hub 2.4, hf_api.py).
    timeout = get_session().timeout.read
    try:
        info = api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True, timeout=timeout)
    except RepositoryNotFoundError:
        return None
    assert not isinstance(info, KernelInfo)
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
    retries: RetryPolicy = DEFAULT_RETRIES,
) -> Path:
    """Fetch a model's files at a revision, where they are not there already, and return their folder in the cache.

    Raises HubError. Neither code, unless it is trusted, nor weights of other formats are fetched.
    """
    wanted = [*_PULLED, *(["*.py"] if trust_remote_code else [])]

    def fetch() -> Path:
        found = snapshot_download(
            repo, revision=revision, endpoint=endpoint, allow_patterns=wanted, ignore_patterns=["*/*"]
        )
        return Path(found)

    advice = "Name a model that is there, at a --revision that it has; private models need `hf auth login`."
    path = Path(repo)
    if "/" in repo and path.parent.is_dir():  # a results folder, mistyped
        advice += f" There is no folder {repo}{nearby(path)}"
    return with_retries(fetch, f"model {repo}", advice=advice, policy=retries)


# --------------------------------------------------------------------------------------------- checks


def _check_once(repo: str, private: bool, endpoint: str | None) -> None:
    api = logged_in(endpoint)
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
    remote = _inspect(api, repo if "/" in repo else f"{name}/{repo}", "model")
    if remote is not None:
        _check_visibility(remote, private)
        _refuse_foreign([path for path in (*BESIDE_MODEL, MANIFEST) if path in remote.ids and not remote.is_ours(path)])


def _check_visibility(remote: _Remote, private: bool) -> None:
    if private and not remote.private:
        raise HubError(
            "the repository is public, but these were to be private (hub.private is true, unless told otherwise). "
            "Make it private on the Hub, set hub.private: false, or say --public."
        )


def _foreign(plan: UploadPlan, remote: _Remote) -> list[str]:
    """Files that others wrote, and that a push would change."""
    planned = {file.path: file for file in plan.files}
    present = planned.keys() & remote.ids.keys()
    return [p for p in present if remote.ids[p] not in planned[p].ids and not remote.is_ours(p)]


def _stale(plan: UploadPlan, remote: _Remote) -> list[str]:
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


def _check_complete(plan: UploadPlan, remote: _Remote | None) -> None:
    """Raise HubError for files that the Hub left out without a word, as it does for those in a .gitignore."""
    absent = sorted(file.path for file in plan.files if not remote or remote.ids.get(file.path) not in file.ids)
    if absent:
        raise HubError(
            f"the commit lacks {', '.join(absent)}. If the repository's .gitignore names them, change it on the Hub."
        )
