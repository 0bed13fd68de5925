from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny.disk import no_room
from tltasks.errors import RecipeError, is_full_disk
from tltasks.inference.prediction_writer import Row, check_output, key, open_writer

TOP = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())]))
SCHEMA = pa.schema(
    [("input", pa.string()), ("row", pa.int64()), ("prediction", pa.string()), ("top", TOP), ("error", pa.string())]
)
OUTPUTS: list[Row] = [
    {"input": "a.png", "row": None, "prediction": 'é, "two"\nlines', "top": [{"label": "x", "probability": 0.5}]},
    {"input": "t.csv", "row": 3, "prediction": "plain", "top": []},
    {"input": "b.png", "row": None, "error": "empty file"},
]
SUFFIXES = [".jsonl", ".csv", ".parquet"]
FLAGS = {"--top-k": 5, "another model": "0f"}


def write(path: Path, rows: list[Row], *, resume: bool = False) -> set[int]:
    file = open_writer(path, SCHEMA, resume=resume, flags=FLAGS)
    done = set(file.done)
    for row in rows:
        file.write([row])
    file.close()
    return done


def left_in(folder: Path) -> list[str]:
    """Files beside those that tell what outputs were predicted with."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".flags.json"))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_written_and_gone_on_with(tmp_path: Path, suffix: str) -> None:
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    assert write(whole, OUTPUTS) == set()
    assert [row["input"] for row in read(whole)] == ["a.png", "t.csv", "b.png"]
    assert read(whole)[0]["prediction"] == OUTPUTS[0]["prediction"]
    write(part, OUTPUTS[:2])
    assert write(part, OUTPUTS[2:], resume=True) == {key("a.png", None), key("t.csv", 3)}
    assert read(part) == read(whole)
    assert write(part, [], resume=True) == {key(row["input"], row["row"]) for row in OUTPUTS}
    assert read(part) == read(whole)
    assert left_in(tmp_path) == [f"part{suffix}", f"whole{suffix}"]


def test_what_is_empty_is_left_out_of_json(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", OUTPUTS)
    assert read(tmp_path / "a.jsonl")[2] == {"input": "b.png", "error": "empty file"}
    write(tmp_path / "a.csv", OUTPUTS)
    first = read(tmp_path / "a.csv")[0]
    assert json.loads(first["top"]) == [{"label": "x", "probability": 0.5}]
    assert first["row"] == first["error"] == ""


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_kill_at_any_byte_loses_one_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, OUTPUTS)
    whole = path.read_bytes()
    first = whole.index(b"\n", whole.index(b"a.png")) + 1 if suffix == ".jsonl" else whole.index(b"\r\n") + 2
    tried = 0
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        done = write(path, [], resume=True)
        missing = [row for row in OUTPUTS if key(row["input"], row["row"]) not in done]
        write(path, missing, resume=True)
        assert path.read_bytes() == whole, size
        tried += 1
    assert tried > 50


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_there_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, OUTPUTS)
    with pytest.raises(RecipeError, match=r"is there already\. Complete it with --resume"):
        open_writer(path, SCHEMA, resume=False, flags=FLAGS)
    for content in (b"something else", b"something,else\n1,2\n", b'{"a": 1}\n'):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="holds something else"):
            open_writer(path, SCHEMA, resume=True, flags=FLAGS)
        assert path.read_bytes() == content
    if suffix == ".parquet":
        pq.write_table(pa.table({"input": ["a"]}), path)
        with pytest.raises(RecipeError, match="holds something else"):
            open_writer(path, SCHEMA, resume=True, flags=FLAGS)
        assert pq.read_table(path).num_rows == 1


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    for name, said in {"a.txt": "ends in .jsonl, .csv, .parquet", "x/a.csv": "its folder is not there"}.items():
        with pytest.raises(RecipeError, match=said):
            check_output(tmp_path / name, resume=False, flags=FLAGS)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        check_output(tmp_path / "b.csv", resume=False, flags=FLAGS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, [])
    assert read(path) == []
    assert write(path, OUTPUTS, resume=True) == set()
    assert len(read(path)) == 3


def many(count: int, first: int = 0) -> list[Row]:
    return [{"input": "x", "row": first + i, "prediction": os.urandom(60).hex(), "error": None} for i in range(count)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("room", [1, 100, 4096, 9000])
def test_where_there_is_no_room_the_earlier_answers_stay(tmp_path: Path, suffix: str, room: int) -> None:
    path, rows = tmp_path / f"a{suffix}", many(300)
    write(path, rows[:64])
    earlier = read(path)
    with no_room(path.stat().st_size + room):
        file = open_writer(path, SCHEMA, resume=True, flags=FLAGS)
        with pytest.raises(OSError, match="File too large") as caught:  # noqa: PT012
            try:
                for i in range(64, 300, 4):
                    file.write(rows[i : i + 4])
            finally:
                file.close()
    assert is_full_disk(caught.value)
    kept = read(path)
    assert kept[:64] == earlier
    assert suffix == ".parquet" or path.read_bytes().endswith(b"\n"), "no row is cut"
    assert left_in(tmp_path) == [path.name]
    write(path, rows[len(kept) :], resume=True)
    assert [row["prediction"] for row in read(path)] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_two_do_not_write_the_same_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, OUTPUTS[:1])
    first = open_writer(path, SCHEMA, resume=True, flags=FLAGS)
    with pytest.raises(RecipeError, match="another predict is writing to it"):
        open_writer(path, SCHEMA, resume=True, flags=FLAGS)
    first.write(OUTPUTS[1:])
    first.close()
    assert len(read(path)) == 3
    assert write(path, [], resume=True) == {key(row["input"], row["row"]) for row in OUTPUTS}
    assert left_in(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_kill_in_the_first_row_leaves_a_file_to_go_on_with(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    write(whole, OUTPUTS)
    content = whole.read_bytes()
    for size in range(content.index(b"\n")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content[:size])
        assert write(path, OUTPUTS, resume=True) == set()
        assert path.read_bytes() == content, size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_longest_name_that_a_file_can_have(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / ("n" * (255 - len(suffix)) + suffix)
    write(path, OUTPUTS)
    assert len(read(path)) == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_stays_one(tmp_path: Path, suffix: str) -> None:
    path, link = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write(path, OUTPUTS[:1])
    link.symlink_to(path)
    writer = open_writer(link, SCHEMA, resume=True, flags=FLAGS)
    with pytest.raises(RecipeError, match="another predict is writing to it"):
        open_writer(path, SCHEMA, resume=True, flags=FLAGS)
    writer.write(OUTPUTS[1:])
    writer.close()
    assert link.is_symlink()
    assert len(read(path)) == 3


def test_parquet_that_could_not_be_written_takes_no_place_though_it_could_be_closed(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.parquet", many(4000)
    write(path, rows[:64])
    file = open_writer(path, SCHEMA, resume=True, flags=FLAGS)
    with no_room(path.stat().st_size + 1024), pytest.raises(OSError, match="File too large"):  # noqa: PT012
        for i in range(64, 4000, 64):
            file.write(rows[i : i + 64])
    file.close()
    assert [row["prediction"] for row in read(path)] == [row["prediction"] for row in rows[:64]]
    assert left_in(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_other_flags_are_not_mixed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, OUTPUTS[:1])
    content = path.read_bytes()
    for other, said in (
        ({"--top-k": 3}, r"with --top-k 5 \(now 3\)\. Give"),
        ({"another model": "1e"}, "another model"),
    ):
        with pytest.raises(RecipeError, match=said):
            open_writer(path, SCHEMA, resume=True, flags=FLAGS | other)
    check_output(path, resume=True, flags={"--top-k": 5})  # before the model is looked up
    about = tmp_path / f".a{suffix}.flags.json"
    about.rename(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=r"was moved without \.a.*\.flags\.json"):
        open_writer(path, SCHEMA, resume=True, flags=FLAGS)
    assert path.read_bytes() == content
    (tmp_path / "elsewhere").rename(about)
    write(path, OUTPUTS[1:], resume=True)
    assert len(read(path)) == 3
