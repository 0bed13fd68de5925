"""Requests and answers of the stand-in Hub, and how files and folders are written in them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from .storage import Account, Blob, Commit, git_id


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):  # noqa: N818 (an answer, not a mistake)
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        head = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.reply = Reply(status, json.dumps({"error": message}).encode(), head)


@dataclass(frozen=True)
class Call:
    """A request with the parts of its path."""

    method: str
    parts: dict[str, str]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    account: Account | None

    @property
    def kind(self) -> str:
        return (self.parts.get("kind") or "models").removesuffix("s")

    def json(self) -> Any:
        return json.loads(self.body)


def json_reply(value: Any) -> Reply:
    return Reply(200, json.dumps(value).encode())


def sibling(path: str, blob: Blob, *, metadata: bool) -> dict[str, Any]:
    if not metadata:
        return {"rfilename": path}
    found: dict[str, Any] = {"rfilename": path, "size": len(blob.data), "blobId": blob.oid}
    if blob.lfs:
        found["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return found


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data)}
    if blob.lfs:
        found["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return found


def folder_entry(path: str, commit: Commit) -> dict[str, Any]:
    listing = "".join(f"{p} {b.oid}\n" for p, b in sorted(commit.tree.items()) if p.startswith(f"{path}/"))
    return {"type": "directory", "path": path, "oid": git_id("tree", listing.encode()), "size": 0}


def last_commit(commit: Commit) -> dict[str, Any]:
    return {"lastCommit": {"id": commit.oid, "title": commit.title, "date": commit.date}}


def ranged(data: bytes, wanted: str, headers: dict[str, str]) -> Reply:
    """The part of `data` that a Range header asks for: `bytes=10-`, `bytes=10-19`, `bytes=-10`; all without one."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if match is None:
        return Reply(200, data, headers)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start >= len(data):
        return Reply(416, headers={"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})
