from __future__ import annotations

import contextlib
import http.server
import io
import json
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tltasks.errors import DataError, RecipeError
from tltasks.inference import web
from tltasks.inference.arguments import check_arguments
from tltasks.inference.inputs import Address, Inputs, Item, fetch
from tltasks.tasks.base import InputKind

PICTURES = InputKind("image", frozenset({".png", ".jpg"}))
TEXTS = InputKind("document", frozenset({".txt"}), is_text=True)


def listed(arguments: list[str], kind: InputKind = PICTURES, columns: tuple[str, ...] = ()) -> list[Item]:
    return list(Inputs(arguments, kind, columns or (kind.column,)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png", "below/c.png", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_gives_files_of_the_kind_in_order_of_names(folder: Path) -> None:
    found = listed([str(folder)])
    assert [item.name for item in found] == [str(folder / name) for name in ("a.JPG", "b.png", "below/c.png")]
    assert [item.row for item in found] == [None] * 3
    assert Inputs([str(folder)], PICTURES, ["image"]).count() == 3


def test_a_named_file_is_taken_whatever_it_is_called(folder: Path) -> None:
    (item,) = listed([str(folder / "notes.txt")])
    assert item.read(PICTURES) == str(folder / "notes.txt")
    assert item.read(TEXTS) == "x"
    assert item.size == 1


def test_globs_and_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert [Path(item.name).name for item in listed(["~/**/*.png"])] == ["b.png", "c.png"]
    monkeypatch.chdir(folder)
    assert [item.name for item in listed(["below"])] == ["below/c.png"]
    (folder / "odd[1].png").write_bytes(b"")
    assert [item.name for item in listed(["odd[1].png"])] == ["odd[1].png"], "a name is no pattern where it exists"


@pytest.mark.parametrize("url", ["https://example.org/a.png", "file:///a.png", "s3://bucket/a", "hf://datasets/x"])
def test_urls_are_refused(url: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match="is a URL"):
        check_arguments([url], fetches=False)
    (folder / "list.csv").write_text(f"image\n{url}\nb.png\n")
    bad, good = listed([str(folder / "list.csv")])
    assert str(bad.error).endswith("without --fetch" if url.startswith("http") else "name the file")
    with pytest.raises(DataError, match="is a URL"):
        bad.read(PICTURES)
    assert good.read(PICTURES) == str(folder / "b.png")


@contextlib.contextmanager
def served(pages: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Address of a web server in a thread, which logs nothing."""
    quiet = type("Quiet", (pages,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def site(folder: Path) -> Iterator[str]:
    """The folder on the web, where `large` never ends and `old` has moved."""

    class Pages(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self) -> None:
            if self.path == "/large":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"x" * 4096)
            elif self.path == "/old":
                self.send_response(301)
                self.send_header("Location", "/b.png")
                self.end_headers()
            else:
                super().do_GET()

    with served(Pages) as address:
        yield address


def test_urls_are_fetched_on_request(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltasks.inference.inputs.MOST_BYTES", 2**20)
    addresses = [f"{site}/{name}" for name in ("b.png", "old", "gone.png", "large")]
    check_arguments(addresses, fetches=True)
    with pytest.raises(RecipeError, match="not of the web"):
        check_arguments(["file:///etc/passwd"], fetches=True)
    (folder / "list.csv").write_text(f"image\n{addresses[0]}\nfile:///etc/passwd\nb.png\n")
    inputs = Inputs([*addresses, str(folder / "b.png"), str(folder / "list.csv")], PICTURES, ["image"], fetches=True)
    first, moved, gone, large, file, row, unsafe, local = inputs
    assert [item.name for item in (first, moved)] == addresses[:2]
    assert first.read(PICTURES) == moved.read(PICTURES) == row.read(PICTURES) == b"x"
    assert file.read(PICTURES) == local.read(PICTURES) == str(folder / "b.png")
    assert str(unsafe.error).startswith("is a URL that is not of the web")
    with pytest.raises(DataError, match="cannot be fetched: 404"):
        gone.read(PICTURES)
    with pytest.raises(DataError, match="is larger than 1 MiB"):
        large.read(PICTURES)
    assert Inputs(addresses, PICTURES, ["image"], fetches=True).count() == 4
    (text,) = Inputs([f"{site}/notes.txt"], TEXTS, ["document"], fetches=True)
    assert text.read(TEXTS) == "x"
    (nowhere,) = Inputs(["http://127.0.0.1:9/x.png"], PICTURES, ["image"], fetches=True)
    with pytest.raises(DataError, match="cannot be fetched: "):
        nowhere.read(PICTURES)


def test_redirects_and_tables_lead_to_the_public_web_alone(site: str, folder: Path) -> None:
    with other_site({"/to": f"{site}/b.png", "/round": "/round", "/file": "file:///etc/hostname"}) as other:
        (folder / "list.csv").write_text(f"image\n{site}/b.png\n")

        def answers(*arguments: str) -> list[object]:
            found = []
            for item in Inputs([*arguments, str(folder / "list.csv")], PICTURES, ["image"], fetches=True):
                try:
                    found.append(item.read(PICTURES))
                except DataError as error:
                    found.append(str(error))
            return found

        refused = "cannot be fetched: 127.0.0.1 is of this machine or its network; name it yourself"
        assert answers(f"{other}/to") == [refused, refused]
        assert answers(f"{other}/to", f"{site}/b.png") == [b"x"] * 3, "the user has named both"
        assert answers(f"{other}/round")[0] == "cannot be fetched: moved more than 5 times"
        assert str(answers(f"{other}/file")[0]).endswith("not of the web, or to a login")


@contextlib.contextmanager
def other_site(moved: dict[str, str]) -> Iterator[str]:
    """A site that sends everybody elsewhere, and whose other pages trickle."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path in moved else 200)
            self.send_header("Location", moved.get(self.path, "/"))
            self.end_headers()
            with contextlib.suppress(OSError):
                while self.path not in moved:
                    self.wfile.write(b"x")
                    time.sleep(0.05)

    with served(Pages) as address:
        yield address


def test_what_trickles_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltasks.inference.web.TOTAL_SECONDS", 0.3)
    with other_site({}) as slow:
        (item,) = Inputs([slow], PICTURES, ["image"], fetches=True)
        with pytest.raises(DataError, match="took longer than 0 s"):
            item.read(PICTURES)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.9.9",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1%2", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "2001:db8::1"),
        *("224.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"),
    ],
)
def test_a_name_is_asked_once_and_none_of_its_addresses_is_local(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (place, port)) for place in ("93.184.215.14", address)]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setattr("socket.create_connection", lambda *_: pytest.fail("connected"))
    assert web.is_public("93.184.215.14")
    assert web.is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    with pytest.raises(DataError, match="of this machine or its network"):
        fetch(Address("https://example.org/a.png"))
    assert asked == ["example.org"]


@pytest.mark.parametrize("url", ["http://a:b@c/d", "http://a@c", "http://[", "http://a:99999999/", "http:///x"])
def test_urls_that_are_none_or_hold_a_login(url: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"is no URL|with a login or without a host"):
        check_arguments([url], fetches=True)
    (folder / "list.csv").write_text(f"image\n{url}\n")
    (item,) = Inputs([str(folder / "list.csv")], PICTURES, ["image"], fetches=True)
    assert item.error is not None


def test_tables(folder: Path) -> None:
    rows: list[Any] = [{"bytes": b"png", "path": None}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 2]}), folder / "t.parquet")
    table = str(folder / "t.parquet")
    found = listed([table])
    assert [(item.name, item.row) for item in found] == [(table, 0), (table, 1), (table, 2)]
    assert found[0].read(PICTURES) == {"bytes": b"png", "path": None}
    assert found[1].read(PICTURES) == str(folder / "b.png")
    assert found[2].error == "has no image"
    assert Inputs([table, str(folder)], PICTURES, ["image"]).count() == 6
    (folder / "t.csv").write_text("photo,image\nb.png,gone.png\n")
    assert listed([str(folder / "t.csv")], columns=("photo", "image"))[0].value == folder / "b.png"
    assert listed([str(folder / "t.csv")], columns=("img", "image"))[0].value == folder / "gone.png"
    assert Inputs([str(folder / "t.csv")], PICTURES, ["image"]).count() is None


def test_a_row_that_cannot_be_read_is_one_row(folder: Path) -> None:
    (folder / "t.jsonl").write_text('{"document": "one"}\n\nnot json\n{"other": 1}\n{"document": "\\ud83d"}\n')
    found = listed([str(folder / "t.jsonl")], TEXTS)
    assert [item.error is None for item in found] == [True, False, False, True]
    assert found[0].read(TEXTS) == "one"
    assert str(found[1].error).startswith("is not JSON")
    assert found[2].error == "has no `document`"
    assert found[3].read(TEXTS) == "?", "half a character is none"


def test_a_table_that_breaks_off_is_told_of(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_bytes(b"document\nun\n\xff\xfe\n")
    with pytest.raises(RecipeError, match="cannot be read as a table"):
        listed([str(path)], TEXTS)
    path.write_bytes(b"document\n" + b"long enough\n" * 2000 + b"\xff\xfe\n")
    *good, last = listed([str(path)], TEXTS)
    assert len(good) > 100
    assert "cannot be read from here on" in str(last.error)
    path = folder / "t.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(RecipeError, match=r"t\.parquet: cannot be read as a table"):
        listed([str(path)], TEXTS)


def test_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    monkeypatch.chdir(folder)
    given("b.png\n\nbelow/c.png\nhttps://example.org/x.png")
    found = listed(["-"])
    assert [(item.name, item.row) for item in found] == [
        ("b.png", None),
        ("below/c.png", None),
        ("https://example.org/x.png", None),
    ]
    assert found[2].error
    given('a text\n{"document": "another", "id": 3}\n{not json\n{"id": 4}\n')
    assert [item.read(TEXTS) for item in listed(["-"], TEXTS)] == ["a text", "another", "{not json", '{"id": 4}']


def test_a_name_that_is_not_text(folder: Path) -> None:
    import os

    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes(b"y")
    except OSError:
        pytest.skip("this file system takes only text")
    (item,) = (item for item in listed([str(folder)]) if "\N{REPLACEMENT CHARACTER}" in item.name)
    assert Path(item.read(PICTURES)).read_bytes() == b"y"


def test_a_long_table_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"document": f"{i} " * 100}) + "\n")
    inputs = Inputs([str(path)], TEXTS, ["document"])
    tracemalloc.start()
    count = sum(1 for _ in inputs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert path.stat().st_size > 10_000_000
    assert peak < 1_000_000
