"""The server itself: starting, stopping, a programmatic view for tests, and faults on demand."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from .replies import Reply
from .routes import Routes
from .storage import Account, Blob, Commit, Job, Repository, RepoType, is_large


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `status` 0 means that it got no answer."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    status: int

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class _Fault:
    """`kind` of trouble for the next `times` requests whose `METHOD /path?query` matches."""

    kind: Literal["fail", "cut request", "cut response", "delay", "before"]
    match: re.Pattern[str]
    times: int
    skip: int = 0
    reply: Reply | None = None
    after_bytes: int = 0
    seconds: float = 0.0
    action: Callable[[], object] | None = None


class HubServer:
    """A Hub on a free loopback port. `token` may write in `ada` and `analytical-engines`; add others to `tokens`."""

    token = "hf_standinAdaMayWrite"

    def __init__(self) -> None:
        self.tokens: dict[str, Account] = {self.token: Account("ada", orgs={"analytical-engines": "write"})}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._faults: list[_Fault] = []
        self._stopping = threading.Event()
        self._http = _Listener(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.routes = Routes(self)

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="hub-client-")
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.close_connections()
        self._http.server_close()
        self._home.cleanup()

    @property
    def home(self) -> Path:
        """A folder for a client's cache and login, which goes with the server."""
        return Path(self._home.name)

    # ------------------------------------------------------------------------------- what tests see

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        type: RepoType = "model",  # noqa: A002 (the Hub's own word)
        private: bool = False,
    ) -> Commit:
        """A repository with these files; the commit that holds them."""
        with self.lock:
            repo = Repository(repo_id, type, private=private, author=repo_id.split("/")[0])
            self.repositories[type, repo_id] = repo
        return self.commit(repo_id, files, type=type)

    def commit(
        self,
        repo_id: str,
        files: dict[str, bytes],
        title: str = "by another",
        type: RepoType = "model",  # noqa: A002
        branch: str = "main",
    ) -> Commit:
        """What somebody else does to a repository."""
        changes: dict[str, Blob | None] = {p: Blob(d, is_large(p, len(d))) for p, d in files.items()}
        with self.lock:
            return self.repositories[type, repo_id].commit(changes, title=title, author="another", branch=branch)

    def files(
        self,
        repo_id: str,
        revision: str = "main",
        type: RepoType = "model",  # noqa: A002
    ) -> dict[str, bytes]:
        """Path and content of every file, `.gitattributes` included."""
        commit = self.repositories[type, repo_id].resolve(revision)
        assert commit is not None, f"{repo_id} has no revision {revision}"
        return {path: blob.data for path, blob in commit.tree.items()}

    def commits(
        self,
        repo_id: str,
        revision: str = "main",
        type: RepoType = "model",  # noqa: A002
    ) -> list[Commit]:
        """Newest first; the last is the Hub's own initial commit."""
        return self.repositories[type, repo_id].log(revision)

    # -------------------------------------------------------------------------------------- faults

    def fail(
        self,
        match: str,
        *,
        status: int,
        times: int = 1,
        skip: int = 0,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Answer with `status`, changing nothing.

        As for every fault, `match` is searched in `METHOD /path?query`, the first `skip` requests that match are let
        through, and -1 times is for ever.
        """
        if body is None:
            body = json.dumps({"error": HTTPStatus(status).phrase}).encode()
        self._add(_Fault("fail", re.compile(match), times, skip, reply=Reply(status, body, headers or {})))

    def cut(
        self,
        match: str,
        *,
        after_bytes: int = 0,
        times: int = 1,
        skip: int = 0,
        during: Literal["request", "response"] = "response",
    ) -> None:
        """Close the connection after so many bytes of the request's body (nothing is done then), or of the whole
        response, status line included (everything is done, but the client does not learn of it)."""
        kind: Literal["cut request", "cut response"] = "cut request" if during == "request" else "cut response"
        self._add(_Fault(kind, re.compile(match), times, skip, after_bytes=after_bytes))

    def delay(self, match: str, seconds: float, *, times: int = 1, skip: int = 0) -> None:
        """Let the client wait before the answer."""
        self._add(_Fault("delay", re.compile(match), times, skip, seconds=seconds))

    def before(self, match: str, action: Callable[[], object], *, times: int = 1) -> None:
        """Do something just before a request is answered, such as committing as somebody else."""
        self._add(_Fault("before", re.compile(match), times, action=action))

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def _add(self, fault: _Fault) -> None:
        with self.lock:
            self._faults.append(fault)

    def take_faults(self, line: str) -> dict[str, _Fault]:
        """The first of each kind that is due for this request."""
        with self.lock:
            hit: dict[str, _Fault] = {}
            for fault in self._faults:
                if not fault.times or not fault.match.search(line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                else:
                    hit.setdefault(fault.kind, fault)
            for fault in hit.values():
                fault.times -= 1
        return hit

    def wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        self.hub = hub
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """End the keep-alive connections that clients still hold."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a mistake of the server and is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        super().setup()
        # Without it each small answer waits for the client's delayed acknowledgement: 40 ms a request.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        faults = hub.take_faults(f"{self.command} {self.path}")
        if "cut request" in faults:
            body = self.rfile.read(min(faults["cut request"].after_bytes, int(self.headers.get("Content-Length", 0))))
            return self._hang_up(url.path, body)
        body = self._read_body()
        if "delay" in faults:
            hub.wait(faults["delay"].seconds)
        if "before" in faults and (action := faults["before"].action):
            action()
        if "fail" in faults and faults["fail"].reply is not None:
            reply = faults["fail"].reply
        else:
            with hub.lock:
                reply = hub.routes.answer(self.command, url.path, parse_qs(url.query), self._headers(), body)
        raw = self._serialise(reply)
        if "cut response" in faults:
            self.wfile.write(raw[: faults["cut response"].after_bytes])
            return self._hang_up(url.path, body)
        self._log(url.path, body, reply.status)
        self.wfile.write(raw)
        return None

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serialise(self, reply: Reply) -> bytes:
        head = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}", f"Content-Length: {len(reply.body)}"]
        if not any(name.lower() == "content-type" for name in reply.headers):
            head.append("Content-Type: application/json; charset=utf-8")
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        body = b"" if self.command == "HEAD" else reply.body
        return "\r\n".join([*head, "", ""]).encode() + body

    def _hang_up(self, path: str, body: bytes) -> None:
        self._log(path, body, status=0)
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _log(self, path: str, body: bytes, status: int) -> None:
        query = parse_qs(urlsplit(self.path).query)
        entry = Request(self.command, path, query, self._headers(), body, status)
        with self.server.hub.lock:
            self.server.hub.requests.append(entry)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are in `HubServer.requests`, not on the terminal."""


def hub_environment(server: HubServer, home: Path | None = None, token: str | None = HubServer.token) -> dict[str, str]:
    """Variables for a subprocess to take the stand-in for the Hub, with its cache and login under `home`.

    The client reads them when it is imported, so a running process cannot change them. `home` defaults to the
    server's own, which all its clients share.
    """
    home = home or server.home
    return {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": token or "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": "1",  # with hf_xet large files have no other way than Xet's own servers
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
