from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tltasks.errors import RecipeError
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


def write(path: Path, rows: list[Row], *, resume: bool = False) -> set[int]:
    file = open_writer(path, SCHEMA, resume=resume)
    done = set(file.done)
    for row in rows:
        file.write([row])
    file.close()
    return done


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
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


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
        open_writer(path, SCHEMA, resume=False)
    for content in (b"something else", b"something,else\n1,2\n", b'{"a": 1}\n'):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="holds something else"):
            open_writer(path, SCHEMA, resume=True)
        assert path.read_bytes() == content
    if suffix == ".parquet":
        pq.write_table(pa.table({"input": ["a"]}), path)
        with pytest.raises(RecipeError, match="holds something else"):
            open_writer(path, SCHEMA, resume=True)
        assert pq.read_table(path).num_rows == 1


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    for name, said in {"a.txt": "ends in .jsonl, .csv, .parquet", "x/a.csv": "its folder is not there"}.items():
        with pytest.raises(RecipeError, match=said):
            check_output(tmp_path / name, resume=False)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(RecipeError, match="is a folder"):
        check_output(tmp_path / "b.csv", resume=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file_is_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, [])
    assert read(path) == []
    assert write(path, OUTPUTS, resume=True) == set()
    assert len(read(path)) == 3
