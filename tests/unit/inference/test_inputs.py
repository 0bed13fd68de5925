from __future__ import annotations

import contextlib
import http.server
import io
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tltasks.errors import DataError, RecipeError
from tltasks.inference.inputs import Inputs, Item, check_arguments
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

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


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
