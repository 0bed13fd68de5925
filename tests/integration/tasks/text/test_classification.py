"""The text classifier over architectures: trains, saves, reloads, and predicts what transformers itself predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.tiny import texts
from tests.tiny.runs import run_recipe
from tests.tiny.topics import CLASSIFIERS, save_data, save_model, write_recipe
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.training.tracking import read_metrics

TOPICS = sorted(texts.TOPICS)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("topics")
    save_data(folder / "data", rows=240)
    for name in CLASSIFIERS:
        save_model(folder / name, name)
    save_model(folder / "nli", labels=["contradiction", "neutral", "entailment"])
    save_model(folder / "sentiment", labels=["bad", "good"])
    return folder


def recipe(zoo: Path, tmp_path: Path, name: str, **keys: Any) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", zoo / name, zoo / "data", **keys)


def rows(zoo: Path, split: str = "test") -> list[dict[str, str]]:
    return [json.loads(line) for line in (zoo / "data" / f"{split}.jsonl").read_text().splitlines()]


def recorded(output: Path, stage: str) -> np.ndarray:
    table = pq.read_table(output / "predictions" / f"{stage}-test.parquet")
    return np.array(table.column("probabilities").to_pylist(), np.float32)


def temperature(output: Path) -> float:
    """What probabilities are told at."""
    return float(getattr(AutoConfig.from_pretrained(output / "model"), "calibration_temperature", 1.0))


def by_transformers(model: Any, folder: Path, asked: list[str]) -> np.ndarray:
    """Probabilities of one text after another, as a user computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(t, truncation=True, max_length=96, return_tensors="pt")).logits for t in asked]
    return (torch.cat(logits) / getattr(model.config, "calibration_temperature", 1.0)).softmax(-1).numpy()


@pytest.mark.parametrize("adapt", ["full", "{lora: {rank: 2}}"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_is_saved_says_what_the_run_recorded(zoo: Path, tmp_path: Path, name: str, adapt: str) -> None:
    """Padded batches of several lengths in the run, one text after another in transformers."""
    stage = f"{{stage: transfer, steps: 3, batch_size: 8, learning_rate: 1e-2, adapt: {adapt}}}"
    result = run_recipe(recipe(zoo, tmp_path, name, stage=stage), tmp_path / "run")
    model_folder = tmp_path / "run" / "model"
    config = AutoConfig.from_pretrained(model_folder)
    assert list(config.id2label.values()) == TOPICS
    assert result.stages[0].weights.newly_initialised
    model = AutoModelForSequenceClassification.from_pretrained(model_folder).eval()
    asked = [row["text"] for row in rows(zoo)]
    assert np.abs(by_transformers(model, model_folder, asked) - recorded(tmp_path / "run", "transfer")).max() < 1e-4


def test_it_learns_and_stands_beside_its_baselines(zoo: Path, tmp_path: Path) -> None:
    stage = "{stage: transfer, epochs: 12, batch_size: 8, learning_rate: 2e-3, adapt: full}"
    result = run_recipe(recipe(zoo, tmp_path, "bert", stage=stage), tmp_path / "run")
    baselines = result.stages[0].baselines
    majority = baselines["majority_class"]["test"].values["accuracy"]
    assert result.stages[0].metrics["test"].values["accuracy"] > majority + 0.2
    assert baselines.keys() == {"majority_class", "tfidf", "checkpoint_knn"}
    assert baselines["tfidf"]["test"].values["accuracy"] > 0.9, "the topic's word stands in every text"
    assert baselines["tfidf"]["test"].difference_ci95 is not None


def test_a_pooler_that_the_checkpoint_lacks_is_trained_with_the_head(zoo: Path, tmp_path: Path) -> None:
    """BertForMaskedLM has none; frozen at random it would blur all that the encoder says."""
    stage = "{stage: transfer, steps: 2, batch_size: 8, learning_rate: 1e-2, adapt: head}"
    result = run_recipe(recipe(zoo, tmp_path, "bert", stage=stage), tmp_path / "run")
    assert result.stages[0].trainable_parameters == (32 * 32 + 32) + (32 * 4 + 4)


@pytest.mark.parametrize("name", ["nli", "gpt2"])
def test_classes_are_told_by_name(zoo: Path, tmp_path: Path, name: str) -> None:
    """An NLI checkpoint by hypotheses, a decoder by words: computed here one text and class at a time."""
    output = tmp_path / "run"
    result = run_recipe(recipe(zoo, tmp_path, name, stage="{stage: zero_shot}"), output)
    assert "tfidf" in result.stages[0].baselines or "majority_class" in result.stages[0].baselines
    asked = [row["text"] for row in rows(zoo)][:5]
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    expected = []
    for text in asked:
        scores = []
        for topic in TOPICS:
            if name == "nli":
                model = AutoModelForSequenceClassification.from_pretrained(output / "model").eval()
                inputs = tokenizer(text, f"This text is about {topic}.", return_tensors="pt")
                with torch.inference_mode():
                    scores.append(float(model(**inputs).logits[0, 2]))
            else:
                writer = AutoModelForCausalLM.from_pretrained(output / "model").eval()
                prompt = [*tokenizer(text)["input_ids"], *tokenizer("\nThis text is about")["input_ids"]]
                answer = tokenizer(f" {topic}")["input_ids"]
                with torch.inference_mode():
                    logits = writer(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
                likelihoods = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
                scores.append(float(np.mean(likelihoods)))
        expected.append((torch.tensor(scores) / temperature(output)).softmax(-1).numpy())
    assert np.abs(np.array(expected) - recorded(output, "zero_shot")[:5]).max() < 1e-4


def test_entailment_is_what_the_pipeline_says(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_recipe(recipe(zoo, tmp_path, "nli", stage="{stage: zero_shot}"), output)
    asked = rows(zoo)[3]["text"]
    classify = pipeline("zero-shot-classification", model=str(output / "model"))
    said = classify(asked, candidate_labels=TOPICS, hypothesis_template="This text is about {}.")
    ours = dict(zip(TOPICS, recorded(output, "zero_shot")[3], strict=True))
    odds = np.array(said["scores"]) ** (1 / temperature(output))
    assert dict(zip(said["labels"], odds / odds.sum(), strict=True)) == pytest.approx(ours, abs=1e-4)


def test_a_checkpoint_that_is_told_classes_can_be_trained(zoo: Path, tmp_path: Path) -> None:
    stage = "{stage: finetune, epochs: 1, batch_size: 8, learning_rate: 5e-3, adapt: full}"
    result = run_recipe(recipe(zoo, tmp_path, "nli", stage=stage), tmp_path / "run")
    assert "checkpoint" in result.stages[0].baselines
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in logged if row["split"] == "train"]
    assert np.mean(losses[:5]) == pytest.approx(np.log(4), abs=0.1)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_few_labels_and_a_probe(zoo: Path, tmp_path: Path, name: str) -> None:
    """A decoder's head is on the last token before padding; BERT's only where it has a pooler."""
    stage, data_keys = "{stage: probe}", "  shots: 4\n"
    path = recipe(zoo, tmp_path, name, stage=stage, data_keys=data_keys)
    if name == "bert":
        with pytest.raises(CheckpointError, match="not one linear layer"):
            run_recipe(path, tmp_path / "run")
        return
    result = run_recipe(path, tmp_path / "run")
    assert result.stages[0].data["train"].examples == 16
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    asked = [row["text"] for row in rows(zoo)]
    found = by_transformers(model, tmp_path / "run" / "model", asked)
    assert np.abs(found - recorded(tmp_path / "run", "probe")).max() < 1e-4


def test_typos_make_it_worse(zoo: Path, tmp_path: Path) -> None:
    stage = "{stage: transfer, epochs: 12, batch_size: 8, learning_rate: 2e-3, adapt: full}"
    keys = "  corruptions: {kinds: [typos], rates: [1.0]}\n"
    result = run_recipe(recipe(zoo, tmp_path, "bert", stage=stage, data_keys=keys), tmp_path / "run")
    robustness = result.stages[0].robustness
    assert robustness is not None
    assert robustness.mean < robustness.clean


def test_what_is_wrong_is_said_before_anything_is_loaded(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has bread, cats, rain, trains"):
        run_recipe(recipe(zoo, tmp_path, "sentiment", stage="{stage: zero_shot}"), tmp_path / "a")
    with pytest.raises(CheckpointError, match="no head that tells classes"):
        run_recipe(recipe(zoo, tmp_path, "bert", stage="{stage: zero_shot}"), tmp_path / "b")
    long = recipe(zoo, tmp_path, "bert").read_text().replace("max_tokens: 96", "max_tokens: 500")
    (tmp_path / "long.yaml").write_text(long)
    with pytest.raises(RecipeError, match="reads at most 128 tokens, and this asks for 500"):
        run_recipe(tmp_path / "long.yaml", tmp_path / "c")
