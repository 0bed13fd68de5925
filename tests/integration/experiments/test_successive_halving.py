import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import texts
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Recipe
from tltasks.errors import DataError
from tltasks.experiments import ranking, successive_halving
from tltasks.experiments.trials import Failure, Outcome, TargetScore, TrialRecord

EXPERIMENT = """\
recipe:
  task: summarization
  model: {{name: plain}}
  data:
    name: json
    files: {{train: data/train.jsonl, test: data/test.jsonl}}
  stages: [{{stage: finetune, steps: 30, batch_size: 8, learning_rate: 1e-2, keep: last}}]
  precision: fp32
axes:
  checkpoint:
    plain:
    trained: {{model.name: trained/model}}
    other: {{model.name: other}}
candidates: checkpoint
output: {output}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with random weights, and one that has been trained on the same kind of data."""
    folder = tmp_path_factory.mktemp("adaptation")
    texts.save_model(folder / "plain")
    texts.save_model(folder / "other", seed=1)
    texts.save_data(folder / "data")
    path = texts.write_recipe(
        folder / "r.yaml",
        folder / "plain",
        folder / "data",
        stage="{stage: finetune, steps: 60, batch_size: 8, learning_rate: 1e-2, keep: last}",
    )
    run_recipe(path, folder / "trained", "data.splits.validation=null")
    (folder / "e.yaml").write_text(EXPERIMENT.format(output=folder / "out"))
    return folder


@pytest.fixture(scope="module")
def ranked(place: Path) -> dict[str, Any]:
    assert main(["rank", str(place / "e.yaml")]) == 0
    found: dict[str, Any] = json.loads((place / "out" / "rank.json").read_text())
    return found


def test_what_has_learnt_the_data_comes_first(ranked: dict[str, Any], place: Path) -> None:
    by_name = {one["candidate"]: one["estimates"] for one in ranked["candidates"]}
    assert set(by_name) == {"plain", "trained", "other"}
    losses = {name: estimates["zero_shot_loss"] for name, estimates in by_name.items()}
    assert max(losses, key=lambda name: losses[name]) == "trained"
    assert all(loss < 0 for loss in losses.values())
    rounds = {name: estimates["halving"] for name, estimates in by_name.items()}
    assert max(rounds, key=lambda name: rounds[name]) == "trained"
    assert sorted(int(value) for value in rounds.values()) == [0, 1, 1], "of three, two are let through"
    records = [json.loads(path.read_text()) for path in (place / "out").glob("trials/*.json")]
    assert len(records) == 5
    assert {name for record in records for name in record["targets"]} == {"validation"}


def test_rounds_are_found_again(ranked: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "carry_out", lambda *_, **__: pytest.fail("a round is carried out again"))
    assert main(["rank", str(place / "e.yaml")]) == 0
    again = json.loads((place / "out" / "rank.json").read_text())
    assert [one["estimates"] for one in again["candidates"]] == [one["estimates"] for one in ranked["candidates"]]


def test_the_loss_is_in_nats_a_character(place: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        texts.write_recipe(
            tmp_path / "r.yaml",
            place / "plain",
            place / "data",
            stage="{stage: finetune, steps: 1, batch_size: 8, learning_rate: 1e-2}",
        )
    )
    found = successive_halving.zero_shot_loss(recipe, tmp_path / "out")
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(place / "plain", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "plain")
    nats = characters = 0.0
    for line in (place / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        given = tokenizer(f"summarize: {row['document']}", return_tensors="pt")
        labels = tokenizer(row["summary"], return_tensors="pt").input_ids
        with torch.no_grad():
            nats += float(model(**given, labels=labels).loss) * labels.shape[1]
        characters += len(row["summary"])
    assert found.value == pytest.approx(-nats / characters, rel=1e-3)


def outcome(score: float) -> TrialRecord:
    """A finished trial with a score on its validation split."""
    target = TargetScore(score, (score, score), 8, "", {})
    return TrialRecord(
        *("", "", {}, 0, {}, "accuracy", True, "", {"validation": target}, 8, 0, 0),
        training_seconds=2.0,
        seconds=3.0,
        versions={},
        hardware={},
    )


def test_the_better_half_is_trained_for_twice_as_long(place: Path) -> None:
    """And a candidate that cannot be trained has no estimate."""
    recipe = load_recipe(place / "r.yaml", ["data.splits.validation=null"])
    rounds: list[tuple[str, int | None]] = []

    def train(name: str, short: Recipe) -> Outcome:
        rounds.append((name, short.stages[0].steps))
        assert short.data is not None
        assert short.data.splits.test is None
        return Failure("", {}, 0, "no") if name == "fails" else outcome(float(name))

    found = successive_halving.successive_halving(
        dict.fromkeys(["0.1", "0.4", "fails", "0.3", "0.2"], recipe), train, logs=place
    )
    assert [name for name, steps in rounds if steps == 8] == ["0.1", "0.4", "fails", "0.3", "0.2"]
    assert [name for name, steps in rounds if steps == 16] == ["0.3", "0.4"]
    assert [name for name, steps in rounds if steps == 32] == ["0.4"]
    values = {name: one.value for name, one in found.items()}
    assert values == {"0.1": 0.0, "0.2": 0.25, "0.3": 1.0, "0.4": 2.0, "fails": None}
    assert {name: one.seconds for name, one in found.items()}["0.4"] == 6.0


def test_that_none_can_be_trained_is_an_error(place: Path) -> None:
    recipe = load_recipe(place / "r.yaml")
    with pytest.raises(DataError, match="no candidate could be trained; their logs are in"):
        successive_halving.successive_halving({"a": recipe}, lambda *_: Failure("", {}, 0, "no"), logs=place)
