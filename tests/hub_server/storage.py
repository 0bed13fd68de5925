"""What the stand-in Hub keeps: accounts, repositories, and commits that never change."""

from __future__ import annotations

import datetime
import hashlib
import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

RepoType = Literal["model", "dataset", "space"]

LARGE_SUFFIXES = (".safetensors", ".parquet", ".arrow", ".bin", ".pt", ".onnx", ".npz", ".zip", ".png", ".jpg", ".flac")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()
LARGE_BYTES = 10 * 1024 * 1024

TYPES: tuple[RepoType, ...] = ("model", "dataset", "space")

_clock = itertools.count()


def is_large(path: str, size: int) -> bool:
    """Whether the Hub stores such a file with LFS. Empty files never are."""
    return size > 0 and (path.endswith(LARGE_SUFFIXES) or size > LARGE_BYTES)


def as_type(name: str) -> RepoType:
    """Raises StopIteration for what is no type of repository."""
    return next(known for known in TYPES if known == name)


def git_id(kind: str, data: bytes) -> str:
    """Git's name of an object, 40 hexadecimal digits."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """One version of one file."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds in place of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        return git_id("blob", self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Blob] = field(repr=False)


@dataclass(frozen=True)
class Account:
    """Who a token belongs to and what it may do."""

    name: str
    role: str = "write"
    """`write`, `read` or `fineGrained`."""
    orgs: dict[str, str] = field(default_factory=dict)
    """Role in each organisation."""
    scopes: tuple[dict[str, object], ...] = ()
    """Entities and permissions of a fine-grained token, as whoami lists them."""

    def may_write(self, namespace: str) -> bool:
        if self.role == "read":
            return False
        return namespace == self.name or self.orgs.get(namespace, "read") != "read"

    may_run: bool = True
    """Whether the token may start and manage jobs."""
    credit: bool = True

    def may_read(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass
class Job:
    """A job of Hugging Face Jobs, as its client asked for it; tests give it lines and a stage."""

    id: str
    owner: str
    spec: dict[str, Any] = field(repr=False)
    lines: list[str] = field(default_factory=list)
    stage: str = "SCHEDULING"
    message: str | None = None

    def end(self, stage: str, message: str | None = None) -> None:
        self.stage, self.message = stage, message

    def described(self) -> dict[str, Any]:
        """As the Hub answers: of secrets the names alone."""
        asked = ("command", "arguments", "environment", "flavor", "labels", "dockerImage")
        return {
            **{key: self.spec.get(key) for key in asked},
            "id": self.id,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "secrets": sorted(self.spec.get("secrets", {})),
            "status": {"stage": self.stage, "message": self.message},
            "owner": {"id": "5e9ecfc0", "name": self.owner, "type": "user"},
            "retry": self.spec.get("attempts", 1) - 1,
        }


class Repository:
    """Commits by id and the branches, tags and pull requests that point at them."""

    def __init__(self, repo_id: str, repo_type: RepoType, *, private: bool, author: str) -> None:
        self.id = repo_id
        self.type = repo_type
        self.private = private
        self.history: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[str, str] = {}
        self.commit({".gitattributes": Blob(GIT_ATTRIBUTES, lfs=False)}, title="initial commit", author=author)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch, tag, `refs/…` name or commit id (five digits or more) names."""
        named = {**self.pulls, **self.tags, **self.branches}
        named |= {f"refs/heads/{k}": v for k, v in self.branches.items()}
        oid = named.get(revision)
        if oid is None and len(revision) >= 5:
            oid = next((known for known in self.history if known.startswith(revision)), None)
        return self.history[oid] if oid else None

    def commit(
        self,
        changes: dict[str, Blob | None],
        *,
        title: str,
        author: str,
        message: str = "",
        branch: str = "main",
        pull_from: str | None = None,
    ) -> Commit:
        """Add a commit to a branch, or as a new pull request that starts at commit `pull_from`."""
        parent = self.resolve(pull_from or branch)
        tree = dict(parent.tree) if parent else {}
        for path, blob in changes.items():
            if blob is not None:
                tree[path] = blob
            elif path.endswith("/"):
                tree = {known: kept for known, kept in tree.items() if not known.startswith(path)}
            else:
                tree.pop(path, None)
        tick = next(_clock)  # two commits of the same content are two commits
        date = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=tick)
        listing = "\n".join(f"{path} {blob.oid}" for path, blob in sorted(tree.items()))
        oid = git_id("commit", f"{self.id} {parent.oid if parent else ''} {tick} {title}\n{listing}".encode())
        stamp = date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        new = Commit(oid, parent.oid if parent else None, title, message, author, stamp, tree)
        self.history[oid] = new
        if pull_from:
            self.pulls[f"refs/pr/{len(self.pulls) + 1}"] = oid
        else:
            self.branches[branch] = oid
        return new

    def log(self, revision: str = "main") -> list[Commit]:
        """Commits from the revision back to the first."""
        found: list[Commit] = []
        commit = self.resolve(revision)
        while commit:
            found.append(commit)
            commit = self.history[commit.parent] if commit.parent else None
        return found
