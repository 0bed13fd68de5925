"""Gate between the demo's page and its visitors: the hosts, routes and requests that it has, and their uploads.

All else is refused before Gradio sees it, in words that say nothing of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import gradio
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
POLICY = {
    "Content-Security-Policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every response: no page, whatever a card holds, makes a browser fetch from elsewhere."""
MOST_UPLOADS = 100
"""Files of all visitors that are kept at a time; the oldest make room."""
MOST_TEXT = 4 * 2**20
"""Bytes of a request that is no upload."""
_FILE, _UPLOAD, _JOIN, _RUN = (f"/gradio_api/{name}" for name in ("file=", "upload", "queue/join", "run/predict"))
_NAME = r"/[\w@-][\w.@-]*"
_OPEN = {
    "HEAD": re.compile("/"),
    "GET": re.compile(
        rf"/|/theme\.css|/favicon\.ico|/(assets|static)({_NAME})+|/gradio_api/(startup-events|queue/data|heartbeat{_NAME})"
        rf"|{_FILE}.+",
        re.DOTALL,
    ),
    "POST": re.compile(f"{_UPLOAD}|{_JOIN}|{_RUN}"),
}
"""Routes of the page by method; Gradio (6.31, routes.py) has many more."""
_PASSED_ON = ("host", "accept", "accept-encoding", "content-type", "if-none-match", "if-modified-since", "user-agent")


@dataclass(frozen=True)
class Limits:
    """Size of an upload in bytes, and seconds for which it is kept."""

    size: int = 50 * 2**20
    life: float = 3600


DEFAULT_LIMITS = Limits()


class Uploads:
    """Files of visitors, each in a folder of its own whose name cannot be guessed, below that of the server."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder.resolve(), limits
        self.place = self.folder / "uploads"
        self.place.mkdir()
        self._lock = threading.Lock()
        self.kept: dict[str, tuple[float, str]] = {}
        """Path → when it came, and the session that used it first, which alone may use it from then on."""

    def add(self, name: str, content: BinaryIO) -> str:
        """Keep a file under a harmless form of its name."""
        plain = re.sub(r"[^\w.-]", "_", Path(name).name)[-80:].lstrip(".") or "_"
        path = self.place / secrets.token_urlsafe(24) / plain
        path.parent.mkdir()
        with path.open("xb") as file:
            shutil.copyfileobj(content, file)
        with self._lock:
            self.kept[str(path)] = time.monotonic(), ""
        self.expire()
        return str(path)

    def expire(self) -> None:
        """Delete files that have been here for long, and the oldest of too many."""
        with self._lock:
            oldest, many = time.monotonic() - self.limits.life, len(self.kept) - MOST_UPLOADS
            late = [path for i, (path, (came, _)) in enumerate(self.kept.items()) if came < oldest or i < many]
            for path in late:
                del self.kept[path]
        for path in late:
            shutil.rmtree(Path(path).parent, ignore_errors=True)

    def has(self, path: str, session: str | None = None) -> bool:
        """True for an upload (which `session` takes for its own), and for what the server itself has put there."""
        with self._lock:
            if path in self.kept:
                came, owner = self.kept[path]
                self.kept[path] = came, owner or session or ""
                return session is None or owner in ("", session)
        return is_below(path, self.folder) and not is_below(path, self.place)


def is_below(path: str | Path, folder: Path) -> bool:
    """True for a file that lies in a folder by its plain name, without links or steps upwards."""
    try:
        is_plain = os.path.realpath(path) == str(path) and Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, a null character
        return False
    return is_plain and Path(path).is_relative_to(folder.resolve())


class _Refusal(Exception):  # noqa: N818
    """Answer to a request that is not the page's."""

    def __init__(self, status: int, text: str) -> None:
        self.response = PlainTextResponse(text, status)


class Gate:
    """Middleware around the page's server."""

    def __init__(self, app: ASGIApp, uploads: Uploads, hosts: Iterable[str], page: gradio.Blocks) -> None:
        self.app, self.uploads, self.page = app, uploads, page
        ours = ("localhost", "127.0.0.1", "::1", os.environ.get("SPACE_HOST", "localhost"), *hosts)
        self.hosts = {host.lower() for host in ours}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(POLICY)
            await send(message)

        answer: ASGIApp = self.app
        try:
            passed = self._looked_through(scope)
            if scope["path"] == _UPLOAD:
                answer = await self._keep(Request(scope, _bounded(receive, self.uploads.limits.size)))
            elif scope["method"] == "POST":
                receive = await self._read(receive)
        except _Refusal as refusal:
            answer, passed = refusal.response, scope
        await answer(passed, receive, send_with_policy)

    def _looked_through(self, scope: Scope) -> Scope:
        """The request without what the page's server need not know. Raises _Refusal for one that is not the page's."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        forwarded = headers.get("x-forwarded-host")
        named = [*headers.getlist("host"), *(forwarded.split(",") if forwarded else [])]
        named += [origin.partition("://")[2] for origin in headers.getlist("origin")]
        here = {*self.hosts, str((scope.get("server") or [""])[0]).lower()}
        if "host" not in headers or any(_host(name.strip()) not in here for name in named):
            raise _Refusal(421, "This server has no such name. Its owner can allow it with --allow-host.")
        if method not in _OPEN or not _OPEN[method].fullmatch(path):
            raise _Refusal(404, "There is nothing here.")
        if path.startswith(_FILE) and not self.uploads.has(path.removeprefix(_FILE)):
            raise _Refusal(404, "There is nothing here.")
        kept = [pair for pair in scope["headers"] if pair[0].decode("latin-1") in _PASSED_ON]
        if forwarded:
            proto = b"https" if headers.get("x-forwarded-proto", "").startswith("https") else b"http"
            kept += [(b"x-forwarded-host", forwarded.encode()), (b"x-forwarded-proto", proto)]
        return {**scope, "headers": kept}

    async def _keep(self, request: Request) -> Response:
        """Keep the one file of an upload, and tell where."""
        try:
            form = await request.form(max_files=1, max_fields=0)
        except HTTPException as error:
            raise _Refusal(400, "Send one file at a time.") from error
        try:
            file = form.get("files")
            if not isinstance(file, UploadFile):
                raise _Refusal(400, "Send one file at a time.")
            return JSONResponse([await asyncio.to_thread(self.uploads.add, file.filename or "", file.file)])
        finally:
            await form.close()

    async def _read(self, receive: Receive) -> Receive:
        """The body of an event with nothing in it but what its components take."""
        body, more, bounded = b"", True, _bounded(receive, MOST_TEXT)
        while more:
            message = await bounded()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            given = json.loads(body)
            session, number = _of(str, given["session_hash"]), _of(int, given["fn_index"])
            inputs, values = self.page.fns[number].inputs, _of(list, given["data"])
            if not re.fullmatch(r"\w{1,64}", session) or len(values) != len(inputs):
                raise ValueError
            data = [self._value(part, value, session) for part, value in zip(inputs, values, strict=True)]
            trigger = given.get("trigger_id")
            event = {"data": data, "fn_index": number, "session_hash": session}
            event["trigger_id"] = None if trigger is None else _of(int, trigger)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Refusal(400, "This is no request of the page.") from error
        plain, asked = json.dumps(event).encode(), False

        async def once() -> Message:
            nonlocal asked
            if asked:
                return await receive()
            asked = True
            return {"type": "http.request", "body": plain, "more_body": False}

        return once

    def _value(self, part: object, value: object, session: str) -> object:
        """An input as its component takes it; of a file nothing but where it is. Raises ValueError, TypeError."""
        match part:
            case gradio.Checkbox():
                return _of(bool, value)
            case gradio.Dataset():
                if _of(int, value) not in range(len(part.samples)):
                    raise ValueError
            case gradio.Textbox():
                return value if value is None else _of(str, value)
            case _ if value is not None:
                path = _of(str, _of(dict, value)["path"])
                if not self.uploads.has(path, session):
                    raise ValueError
                return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
        return value


def _of(kind: type[T], value: object) -> T:
    """The value, which must be of exactly this type."""
    if type(value) is not kind:
        raise TypeError
    return value


def _host(name: str) -> str | None:
    """A host without its port, in small letters; None for what is none."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+?)\.?)(?::\d{1,5})?", name)
    return (found[1] or found[2]).lower() if found else None


def _bounded(receive: Receive, most: int) -> Receive:
    """The messages of a request, up to so many bytes."""
    left = most

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _Refusal(413, f"This is larger than {most >> 20} MB.")
        if message["type"] == "http.disconnect":
            raise _Refusal(400, "The request has ended early.")
        return message

    return bounded


def lifespan(uploads: Uploads) -> Mapping[str, object]:
    """Arguments of the server that delete uploads in time, and all that it has written at its end."""

    @contextlib.asynccontextmanager
    async def tidying(_: object) -> AsyncIterator[None]:
        async def tidy() -> None:
            while True:
                await asyncio.sleep(min(60, uploads.limits.life / 2))
                await asyncio.to_thread(uploads.expire)

        task = asyncio.create_task(tidy())
        yield
        task.cancel()
        shutil.rmtree(uploads.folder, ignore_errors=True)

    return {"lifespan": tidying}
