"""`tltasks predict` as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.tiny import images, speech, texts
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import MISUSED, PARTIAL, RAISED, main

Row = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an image classifier in `output`, its data in `data`, and its test pictures in `pictures`."""
    folder = tmp_path_factory.mktemp("run")
    images.save_model(folder / "vit")
    images.save_data(folder / "data")
    run_recipe(images.write_recipe(folder / "recipe.yaml", Path("vit"), folder / "data"), folder / "output")
    (folder / "pictures" / "more").mkdir(parents=True)
    for i, row in enumerate(pq.read_table(folder / "data" / "test.parquet").to_pylist()):
        place = folder / "pictures" / ("more" if i >= 20 else "")
        (place / f"{i:02}.png").write_bytes(row["image"]["bytes"])
    return folder


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> list[Row]:
    assert main(["predict", *map(str, arguments)]) == status
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def recorded(output: Path) -> Row:
    (path,) = (output / "predictions").glob("*-test.parquet")
    return dict(pq.read_table(path).to_pydict())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = MISUSED) -> str:
    assert main(["predict", *map(str, arguments)]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


# -------------------------------------------------------------------------------------------- outputs


def test_outputs_are_those_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = recorded(run / "output")
    for model in (run / "output", run / "output" / "model"):
        rows = predicted(capsys, model, run / "data" / "test.parquet", "--top-k", 2)
        assert [row["row"] for row in rows] == before["row"]
        assert [row["prediction"] for row in rows] == before["prediction"]
        for row, probabilities in zip(rows, before["probabilities"], strict=True):
            assert len(row["top"]) == 2
            assert row["top"][0] == {"label": row["prediction"], "probability": row["probability"]}
            expected = sorted(probabilities, reverse=True)[:2]
            np.testing.assert_allclose([t["probability"] for t in row["top"]], expected, rtol=1e-5)


def test_every_kind_of_input_gives_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recorded(run / "output")["prediction"]
    pictures = sorted((run / "pictures").rglob("*.png"), key=lambda path: path.name)
    table = tmp_path / "list.csv"
    with table.open("w") as file:
        csv.writer(file).writerows([["file"], *[[os.path.relpath(path, tmp_path)] for path in pictures]])
    lines = tmp_path / "list.jsonl"
    lines.write_text("".join(json.dumps({"image": str(path)}) + "\n" for path in pictures))
    monkeypatch.chdir(run)
    stdin = io.TextIOWrapper(io.BytesIO("".join(f"{p.relative_to(run)}\n" for p in pictures).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    ways: list[list[object]] = [
        ["pictures"],
        ["pictures/*.png", "pictures/more"],
        ["pictures/**/*.png"],
        pictures,
        [table, "--column", "file"],
        [lines],
        ["-"],
    ]
    for way in ways:
        rows = predicted(capsys, "output", *way)
        assert [row["prediction"] for row in rows] == expected, way
    assert rows[0]["input"] == "pictures/00.png"


def test_bad_inputs_are_rows_with_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {
        "a.png": b"",
        "b.jpg": b"no picture",
        "d.png": images.png(images.picture("red", RNG)),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "list.csv").write_text('image\ngone.png\nhttps://example.org/x.png\n""\nd.png\n')
    assert main(["predict", str(run / "output"), str(tmp_path), str(tmp_path / "list.csv")]) == PARTIAL
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert ["error" in row for row in rows] == [True, True, False, True, True, True, False]
    errors = [row["error"] for row in rows if "error" in row]
    assert errors[0] == "empty file"
    assert errors[1].startswith("not an image")
    assert errors[2].startswith("file not found")
    assert errors[3:] == ["is a URL, and nothing is fetched from outside without --fetch", "has no image"]
    assert rows[2]["prediction"] == rows[6]["prediction"] == "red"
    assert "2 predicted, 5 could not be" in shown.err
    assert f"{tmp_path / 'a.png'}: " in shown.err
    assert f"{tmp_path / 'list.csv'} row 0: " in shown.err


RNG = np.random.default_rng(7)


def test_what_names_nothing_is_refused_before_anything_is_loaded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, run / "output", "https://example.org/cat.jpg", "gone.png", "*.nothing", "-", "-")
    assert "https://example.org/cat.jpg: is a URL" in said
    assert "gone.png: not found" in said
    assert "*.nothing: matches no file" in said
    assert "-: standard input can be read once" in said
    picture = run / "pictures" / "00.png"
    assert "ends in .jsonl, .csv, .parquet" in refused(capsys, run / "output", picture, "--output", "x.txt")
    assert "needs --output" in refused(capsys, run / "output", picture, "--resume")
    assert "--top-k: 0 is no" in refused(capsys, run / "output", picture, "--top-k", 0)
    assert "not found" in refused(capsys, "./nothing", picture)
    assert "holds no model" in refused(capsys, tmp_path, picture, status=RAISED)
    assert "has no file that ends in .apng" in refused(capsys, run / "output", tmp_path)
    column = refused(capsys, run / "output", run / "data" / "test.parquet", "--column", "photo")
    assert "has no column `photo`" in column
    assert "It has: image, label." in column
    (tmp_path / "recipe.yaml").write_text("")
    assert "has not finished" in refused(capsys, tmp_path, picture, status=RAISED)


# ---------------------------------------------------------------------------------------------- files


def read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def rounded(rows: list[Row]) -> str:
    """Rows with the digits that do not depend on the size of batches, by which some processors add up otherwise."""
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda found: f"{float(found[0]):.3f}", json.dumps(rows))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_part_is_completed(run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    assert predicted(capsys, run / "output", run / "pictures", "--output", whole) == []
    expected = read(whole)
    assert len(expected) == 24
    assert expected[0].keys() >= {"input", "prediction", "probability", "top"}
    predicted(capsys, run / "output", run / "pictures" / "0*.png", "--output", part)
    assert len(read(part)) == 10
    assert "is there already" in refused(capsys, run / "output", run / "pictures", "--output", part)
    if suffix != ".parquet":  # as a kill leaves it
        content = part.read_bytes()
        part.write_bytes(content[:-5])
    predicted(capsys, run / "output", run / "pictures", "--output", part, "--resume")
    assert rounded(read(part)) == rounded(expected)
    before = part.read_bytes()
    predicted(capsys, run / "output", run / "pictures", "--output", part, "--resume")
    assert rounded(read(part)) == rounded(expected)
    assert suffix == ".parquet" or part.read_bytes() == before
    others = ("--top-k", 1), ("--language-column", "word"), ("--precision", "bf16")
    for flag, value in others:
        said = refused(capsys, run / "output", run / "pictures", "--output", part, "--resume", flag, value)
        assert f"part{suffix} was predicted with {flag} " in said
    copied = tmp_path / "copied"
    shutil.copytree(run / "output" / "model", copied)
    predicted(capsys, copied, run / "pictures", "--output", part, "--resume")
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    assert "with another model" in refused(capsys, copied, run / "pictures", "--output", part, "--resume")
    assert rounded(read(part)) == rounded(expected)
    assert [path.name for path in sorted(tmp_path.glob(".*"))] == [
        f".{n}{suffix}.flags.json" for n in ("part", "whole")
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_another_file_is_not_touched(
    run: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / f"other{suffix}"
    if suffix == ".parquet":
        shutil.copy(run / "data" / "test.parquet", other)
    else:
        other.write_text("a,b\n1,2\n" if suffix == ".csv" else '{"a": 1}\n')
    before = other.read_bytes()
    said = refused(capsys, run / "output", run / "pictures", "--output", other, "--resume")
    assert "holds something else" in said
    assert other.read_bytes() == before


# -------------------------------------------------------------------------------------- speech and text


def test_long_audio_comes_in_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    folder = speech.save_whisper(tmp_path / "whisper", seconds=2, multilingual=False)
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.wav", speech.say(["red", "blue"] * 5, rng), 16000)
    soundfile.write(tmp_path / "short.wav", speech.say(["red"], rng), 16000)
    long, short = predicted(
        capsys, folder, tmp_path / "long.wav", tmp_path / "short.wav", "--no-vad", "--precision", "fp32"
    )
    assert len(long["segments"]) > 1
    assert long["segments"][0]["start"] == 0
    assert long["segments"][-1]["end"] == 4.0
    for a, b in zip(long["segments"], long["segments"][1:], strict=False):
        assert a["end"] == b["start"]
        assert 0 < b["end"] - b["start"] <= 2
    assert short["segments"] == [{"start": 0.0, "end": 0.4, "text": short["prediction"]}]


def test_texts_come_from_files_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = texts.save_model(tmp_path / "bart", "bart")
    documents = ["the cats said", "a trains was {of", "", "one rain"]
    (tmp_path / "documents").mkdir()
    for i, document in enumerate(documents):
        (tmp_path / "documents" / f"{i}.txt").write_text(document)
    (tmp_path / "documents" / "notes.bin").write_bytes(b"\xff")
    rows = predicted(capsys, folder, tmp_path / "documents", tmp_path / "documents" / "notes.bin", status=PARTIAL)
    assert [row.get("error") for row in rows] == [None, None, "empty document", None, rows[4]["error"]]
    assert rows[4]["error"].startswith("is not UTF-8 text")
    lines = [documents[0], documents[1], json.dumps({"document": documents[3]}), ""]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    listed = predicted(capsys, folder, "-")
    assert [row["prediction"] for row in listed] == [rows[i]["prediction"] for i in (0, 1, 3)]
    assert [row["row"] for row in listed] == [0, 1, 2]
