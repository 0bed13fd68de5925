"""Text classification in experiments, searches and rankings, by checkpoints of several architectures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import topics
from tltasks.cli.commands import main

RECIPE = """\
recipe:
  task: text-classification
  model: {name: bert}
  data: {name: json, files: {train: data/train.jsonl}, splits: {validation: 0.25, test: 0.25}, max_tokens: 96}
  stages: [{stage: transfer, epochs: 1, batch_size: 8, learning_rate: 1e-2}]
  precision: fp32
"""
EXPERIMENT = f"""\
{RECIPE}axes:
  checkpoint:
    bert:
    gpt2: {{model.name: gpt2}}
    classifier: {{model.name: classifier}}
  method:
    head: {{stages.0.adapt: head}}
    full:
contrast: {{axis: method, controls: [head]}}
candidates: checkpoint
seeds: [0, 1]
output: out
"""
SEARCH = f"""\
{RECIPE}space:
  stages.0.learning_rate: {{low: 1e-4, high: 2e-2, log: true}}
  stages.0.adapt: [full, head]
trials: 2
output: search
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("topics")
    topics.save_model(folder / "bert")
    topics.save_model(folder / "gpt2", "gpt2")
    topics.save_model(folder / "classifier", "distilbert", labels=["yes", "no", "perhaps"])
    topics.save_data(folder / "data")
    (folder / "e.yaml").write_text(EXPERIMENT)
    (folder / "s.yaml").write_text(SEARCH)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_compared_and_ranked(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    skipped = "skip=[{method: full, checkpoint: gpt2}, {method: head, checkpoint: gpt2}]"
    assert main(["compare", "e.yaml", "--set", skipped]) == 0
    said = capsys.readouterr().err
    assert "all are tested on the same rows" in said
    found = read(place / "out" / "result.json")
    assert len(found["trials"]) == 8
    assert len({record["targets"]["test"]["fingerprint"] for record in found["trials"]}) == 1
    for cell in found["findings"]["cells"]:
        assert cell["score"]["seeds"] == 2
        assert 0 <= cell["score"]["low"] <= cell["score"]["mean"] <= cell["score"]["high"] <= 1
        assert cell["score"]["low"] < cell["score"]["high"]
    assert {one["verdict"] for cell in found["findings"]["cells"] for one in cell["comparisons"]}
    assert main(["rank", "e.yaml"]) == 0
    ranked = {one["candidate"]: one["estimates"] for one in read(place / "out" / "rank.json")["candidates"]}
    assert set(ranked) == {"bert", "gpt2", "classifier"}
    assert all(one["log_me"] is not None and 0 <= one["neighbours"] <= 1 for one in ranked.values())
    assert ranked["bert"]["leep"] is None


def test_tuned(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["tune", "s.yaml"]) == 0
    found = read(place / "search" / "result.json")
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 2
    assert {headline["split"] for headline in found["tested"].values()} == {"test"}
