"""Requests that are not the page's, sent to its server: none reads, writes or lists anything but its own uploads."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from tests.tiny import images
from tests.tiny.runs import run_recipe
from tltasks.config.tasks import TASKS

pytestmark = [
    # Gradio asks pandas for what it calls deprecated (gradio 6.31, queueing.py, _get_df).
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CANARY = "CANARY-of-this-machine"
PNG = images.png(images.picture("red", np.random.default_rng(0), 32))
SIZE, JOIN, RUN, UPLOAD = 100_000, "/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload"
FILE = "/gradio_api/file="
REFUSED = {400, 404, 405, 413, 421}


@dataclass(frozen=True)
class Served:
    """A server, and where things are on its machine."""

    port: int
    folder: Path
    uploads: Path
    mine: str
    """An upload that the session `mine` has used."""
    before: dict[Path, bytes]
    """All other files at the start."""

    def send(self, raw: bytes) -> tuple[int, bytes]:
        """Status and all else that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            answer = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has had enough
                connection.sendall(raw)
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
        return int(answer.split(b" ", 2)[1]) if answer else 0, answer

    def ask(self, method: str, target: str, body: bytes = b"", /, **headers: str | None) -> tuple[int, bytes]:
        """Send a request; a header of None is left out."""
        given = {"Host": f"127.0.0.1:{self.port}", "Connection": "close", "Content-Length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
        lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
        return self.send("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body)

    def post(self, target: str, value: object) -> tuple[int, bytes]:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", target, body, Content_Type="application/json")

    def upload(self, name: str, content: bytes = PNG, *, more: bytes = b"") -> tuple[int, bytes]:
        part = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = part + content + b"\r\n" + more + b"--b--\r\n"
        return self.ask("POST", UPLOAD, body, Content_Type="multipart/form-data; boundary=b")

    def event(self, path: object, *, session: str = "yours", **more: Any) -> dict[str, Any]:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        return {"data": [file, False], "fn_index": 1, "session_hash": session, "trigger_id": 1, **more}

    def others(self) -> dict[Path, bytes]:
        """All files around the server that are no uploads."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and self.uploads not in path.parents)
        return {path: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from tltasks.inference.demo import open_demo
    from tltasks.inference.demo_page import launch
    from tltasks.inference.demo_server import Limits

    folder, patch = tmp_path_factory.mktemp("machine").resolve(), pytest.MonkeyPatch()
    # The server's log configuration closes all handlers there are, and what pytest captures with them.
    patch.setattr("logging.config._clearExistingHandlers", lambda: None)
    patch.setattr("tempfile.tempdir", str(folder))
    patch.setenv("GRADIO_TEMP_DIR", "")
    patch.chdir(folder)
    images.save_model(folder / "vit", labels=list(images.COLOURS))
    images.save_data(folder / "data", rows=12)
    recipe = images.write_recipe(folder / "r.yaml", Path("vit"), folder / "data", stage="{stage: zero_shot}")
    run_recipe(recipe, folder / "output")

    for place in ("canary.png", "output/canary.txt", "gradio/" + "0" * 64 + "/canary.png", ".env"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(CANARY)
    demo = open_demo("output", tag=None, revision="main", trust_remote_code=False, top_k=3, precision="fp32")
    page = launch(demo, host=None, port=None, names=["Models.Example"], limits=Limits(SIZE, 3600))
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]) / "uploads"
    (uploads / "linked").symlink_to(folder / "canary.png")
    served = Served(int(str(page.local_url).rsplit(":", 1)[1].strip("/")), folder, uploads, "", {})
    status, answer = served.upload("mine.png")
    assert status == 200, answer
    (mine,) = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert served.post(JOIN, served.event(mine, session="mine"))[0] == 200
    yield Served(served.port, folder, uploads, mine, served.others())
    page.close(verbose=False)
    patch.undo()
    deadline = time.monotonic() + 10
    while uploads.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not uploads.exists(), "nothing of visitors is left behind"
    gc.collect()  # what the server has left open is told here, rather than in the midst of another module's test


TARGETS = {
    "absolute path": f"{FILE}{{folder}}/canary.png",
    "encoded path": f"{FILE}%2F{{encoded}}%2Fcanary.png",
    "twice encoded": f"{FILE}%252F{{folder}}/canary.png",
    "path of the working directory": f"{FILE}canary.png",
    "hidden file": f"{FILE}{{folder}}/.env",
    "up from uploads": f"{FILE}{{uploads}}/../../canary.png",
    "up from an upload": f"{FILE}{{mine}}/../../../canary.png",
    "encoded steps": f"{FILE}{{uploads}}/%2e%2e/%2e%2e/canary.png",
    "backslashes": f"{FILE}{{uploads}}\\..\\..\\canary.png",
    "link in uploads": f"{FILE}{{uploads}}/linked",
    "folder of uploads": f"{FILE}{{uploads}}",
    "folder with a slash": f"{FILE}{{uploads}}/",
    "folder of the server": f"{FILE}{{uploads}}/..",
    "results": f"{FILE}{{folder}}/output/canary.txt",
    "weights": f"{FILE}{{folder}}/output/model/model.safetensors",
    "Gradio's usual folder": f"{FILE}{{folder}}/gradio/{'0' * 64}/canary.png",
    "file URL": f"{FILE}file://{{folder}}/canary.png",
    "URL of itself": f"{FILE}http://127.0.0.1:{{port}}/",
    "two slashes": f"{FILE}/{{folder}}/canary.png",
    "null": f"{FILE}{{folder}}/canary.png%00.png",
    "overlong": f"{FILE}/{'a' * 6000}",
    "line break": f"{FILE}{{folder}}/canary.png%0d%0aX-A:b",
    "process": f"{FILE}/proc/self/environ",
    "older route": "/gradio_api/file/{folder}/canary.png",
    "assets": "/assets/../../../../../../../../../../{folder}/canary.png",
    "encoded assets": "/assets/%2e%2e/%2e%2e/{folder}/canary.png",
    "static": "/static/..%2f..%2f..%2f{encoded}%2fcanary.png",
    "static with a slash": "/static//{folder}/canary.png",
    "page files": "/svelte/../../{folder}/canary.png",
    "component files": "/gradio_api/custom_component/1/client/component/..%2f..%2fimage.py",
    "proxy": "/gradio_api/proxy=http://127.0.0.1:{port}/",
    "settings": "/config",
    "description": "/gradio_api/info",
    "schema": "/openapi.json",
    "schema of events": "/gradio_api/openapi.json",
    "pages of the schema": "/docs",
    "deep link": "/gradio_api/deep_link?session_hash=mine",
    "monitoring": "/monitoring/summary",
    "number of the app": "/gradio_api/app_id",
    "reloading": "/gradio_api/dev/reload",
    "past runs": "/gradio_api/runs",
    "source code": "/gradio_api/vibe-code",
    "stream": "/gradio_api/stream/mine/1/1/playlist.m3u8",
    "state of the queue": "/gradio_api/queue/status",
    "progress": "/gradio_api/upload_progress?upload_id=1",
    "token": "/gradio_api/token",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_the_page_does_not_ask_for_is_not_there(served: Served, target: str) -> None:
    places = {"folder": served.folder, "uploads": served.uploads, "mine": served.mine, "port": served.port}
    path = target.format(**places, encoded=str(served.folder).strip("/").replace("/", "%2F"))
    refuses(served, *served.ask("GET", path))


def refuses(served: Served, status: int, answer: bytes) -> None:
    assert status in REFUSED, answer
    assert CANARY.encode() not in answer
    assert str(served.folder).encode() not in answer, "a refusal names no place"
    assert len(answer.rpartition(b"\r\n\r\n")[2]) < 100
    assert served.others() == served.before


EVENTS: dict[str, dict[str, Any]] = {
    "file of the machine": {"path": "{folder}/canary.png"},
    "file of the working directory": {"path": "canary.png"},
    "steps upwards": {"path": "{uploads}/../../canary.png"},
    "link": {"path": "{uploads}/linked"},
    "folder": {"path": "{uploads}"},
    "another's upload": {"path": "{mine}"},
    "another's, by steps": {"path": "{uploads}/./x/../{own}"},
    "URL": {"path": "http://127.0.0.1:{port}/"},
    "file URL": {"path": "file://{folder}/canary.png"},
    "no text": {"path": 1},
    "list": {"path": ["{folder}/canary.png"]},
    "null": {"path": "{folder}/canary.png\0"},
    "plain text": {"data": ["{folder}/canary.png", False]},
    "files": {"data": [[{"path": "{folder}/canary.png"}], False]},
    "nested": {"data": [{"image": {"path": "{folder}/canary.png"}}, False]},
    "file for a box": {"data": [None, {"path": "{folder}/canary.png", "meta": {"_type": "gradio.FileData"}}]},
    "too many": {"data": [None, False, {"path": "{folder}/canary.png"}]},
    "too few": {"data": []},
    "other event": {"fn_index": 7},
    "negative event": {"fn_index": -1},
    "event by a name": {"fn_index": "answer"},
    "session of a path": {"data": [None, False], "session_hash": "../../x"},
    "no session": {"data": [None, False], "session_hash": None},
    "example that is none": {"data": [99], "fn_index": 0},
    "example of one's own": {"data": [[0, ["{folder}/canary.png"]]], "fn_index": 0},
}


@pytest.mark.parametrize("case", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("route", [JOIN, RUN], ids=["join", "run"])
def test_events_with_what_is_no_input_of_the_page(served: Served, case: dict[str, Any], route: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item) for item in value]
        if not isinstance(value, str):
            return value
        own = served.mine.removeprefix(f"{served.uploads}/")
        return value.format(folder=served.folder, uploads=served.uploads, mine=served.mine, port=served.port, own=own)

    given = filled(case)
    event = {**served.event(given.pop("path", None)), **given}
    refuses(served, *served.post(route, event))


BODIES = {
    "no JSON": b"{",
    "no mapping": b"[]",
    "deep": b"[" * 100_000,
    "numbers that are none": b'{"data": [NaN, false], "fn_index": 1, "session_hash": "a"}',
    "not UTF-8": b"\xff\xfe",
    "large": b" " * (4 * 2**20 + 1),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_events_that_are_none(served: Served, body: bytes) -> None:
    refuses(served, *served.post(JOIN, body))


HOSTS: dict[str, dict[str, str | None]] = {
    "other name": {"Host": "rebound.example"},
    "other name, this port": {"Host": "rebound.example:{port}"},
    "begins as ours": {"Host": "localhost.rebound.example"},
    "an address in a name": {"Host": "127.0.0.1.rebound.example"},
    "another address": {"Host": "192.0.2.1"},
    "another of IPv6": {"Host": "[2001:db8::1]:80"},
    "user before it": {"Host": "localhost@rebound.example"},
    "none": {"Host": ""},
    "left out": {"Host": None},
    "behind a proxy": {"X-Forwarded-Host": "rebound.example"},
    "second behind a proxy": {"X-Forwarded-Host": "localhost, rebound.example"},
    "another page": {"Origin": "https://rebound.example"},
    "a page without a name": {"Origin": "null"},
    "a page with half an address": {"Origin": "http://[::1"},
    "a page with a path": {"Origin": "http://localhost/x"},
    "a page of another protocol": {"Origin": "file://"},
}


@pytest.mark.parametrize("headers", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_hosts_that_are_not_ours(served: Served, headers: dict[str, str | None], method: str) -> None:
    given = {name: value and value.format(port=served.port) for name, value in headers.items()}
    target = "/" if method == "GET" else JOIN
    refuses(served, *served.ask(method, target, b"", **given))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:7860", "models.example", "localhost."]
)
def test_hosts_that_are_ours(served: Served, host: str) -> None:
    status, answer = served.ask("GET", "/", Host=host, Origin=f"http://{host}")
    assert status == 200
    assert b"default-src 'self'" in answer
    assert b"x-content-type-options: nosniff" in answer


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HEAD"])
def test_other_methods(served: Served, method: str) -> None:
    refuses(served, *served.ask(method, JOIN))


def test_sockets_of_the_web_are_closed(served: Served) -> None:
    more = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    status, answer = served.ask("GET", "/gradio_api/queue/join", **more, Sec_WebSocket_Key="MTIzNDU2Nzg5MDEyMzQ1Ng==")
    assert status in {*REFUSED, 403, 500}
    assert CANARY.encode() not in answer


NAMES = ["../../canary.png", "/etc/canary.png", "..", ".env", "a\\..\\b.png", "a%00.png", "é" * 300, "", "con:1.png"]


@pytest.mark.parametrize("name", NAMES)
def test_an_upload_lies_where_the_server_puts_it(served: Served, name: str) -> None:
    status, answer = served.upload(name)
    if status == 200:
        (path,) = json.loads(answer.rpartition(b"\r\n\r\n")[2])
        assert Path(path).resolve().parent.parent == served.uploads
        assert Path(path).read_bytes() == PNG
        assert re.fullmatch(r"[\w-][\w.-]{0,79}", Path(path).name)
        assert served.ask("GET", f"{FILE}{quote(path)}")[1].endswith(PNG)
    assert status in {200, *REFUSED}
    assert served.others() == served.before


def test_uploads_are_limited(served: Served) -> None:
    refuses(served, *served.upload("a.png", b"0" * (SIZE + 1)))
    second = b'--b\r\nContent-Disposition: form-data; name="files"; filename="b"\r\n\r\n1\r\n'
    refuses(served, *served.upload("a.png", more=second))
    field = b'--b\r\nContent-Disposition: form-data; name="path"\r\n\r\n/etc/hostname\r\n'
    refuses(served, *served.upload("a.png", more=field))
    refuses(served, *served.ask("POST", UPLOAD, PNG, Content_Type="image/png"))
    refuses(served, *served.ask("POST", UPLOAD, b"", Content_Type="multipart/form-data"))


def test_what_the_page_asks_for_is_answered(served: Served) -> None:
    _, answer = served.upload("mine too.png")
    (path,) = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert served.post(JOIN, served.event(path, session="visitor"))[0] == 200
    _, answer = served.ask("GET", "/gradio_api/queue/data?session_hash=visitor")
    assert b'"success": true' in answer or b'"success":true' in answer
    assert b"confidences" in answer
    page = served.ask("GET", "/")[1]
    example = re.search(rb'"path":\s*"([^"]+/examples/\w+)"', page)
    assert example, "examples of the test set"
    assert served.ask("GET", f"{FILE}{example[1].decode()}")[0] == 200
    assert served.post(RUN, {"data": [0], "fn_index": 0, "session_hash": "visitor"})[0] == 200


def test_uploads_end(tmp_path: Path) -> None:
    from tltasks.inference import demo_server

    uploads = demo_server.Uploads(tmp_path, demo_server.Limits(life=60))
    places = [uploads.add("a.png", io.BytesIO(b"1")) for _ in range(demo_server.MOST_UPLOADS + 5)]
    assert [Path(path).exists() for path in places] == [False] * 5 + [True] * demo_server.MOST_UPLOADS
    assert uploads.has(places[-1], "a")
    assert uploads.has(places[-1])
    assert not uploads.has(places[-1], "b"), "it is the first session's"
    came, owner = uploads.kept[places[-2]]
    uploads.kept[places[-2]] = came - 61, owner
    uploads.expire()
    assert not Path(places[-2]).parent.exists()
    assert not uploads.has(places[-2])
    assert uploads.has(places[-1], "a")


def test_an_error_says_nothing_of_a_file(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from tltasks.errors import DataError
    from tltasks.inference.demo import open_demo

    demo = open_demo("output", tag=None, revision="main", trust_remote_code=False, top_k=3, precision="fp32")
    for content in (CANARY, CANARY * 999, f"\x89PNG\r\n\x1a\n{CANARY}", f"RIFF{CANARY}", f"({CANARY}) ({CANARY}"):
        (served.folder / "upload.png").write_text(content)
        with pytest.raises(DataError) as caught:
            demo.predict(str(served.folder / "upload.png"))
        assert CANARY[:6] not in str(caught.value)
        assert str(served.folder) not in str(caught.value)
    with pytest.raises(DataError, match=r"^This image cannot be used: file not found\.$"):
        demo.predict(str(served.folder / "absent.png"))
    (served.folder / "upload.png").unlink()
    assert TASKS[demo.saved.task.tag].input.kind == "image"
