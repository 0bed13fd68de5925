"""Rows with any number of classes, images and texts: what is trained, saved, scored and answered."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForMaskedLM, pipeline

import tltasks
from tests.tiny import images, texts, topics
from tests.tiny.runs import run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.results.result import load_result
from tltasks.runs.story import open_stages

TOPICS = sorted(texts.TOPICS)
COLOURS = sorted(images.COLOURS)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of some of the topics each, as lists and beside each other in a cell; pictures of some of the colours."""
    folder = tmp_path_factory.mktemp("many")
    topics.save_model(folder / "bert")
    topics.save_model(folder / "nli", labels=["contradiction", "neutral", "entailment"])
    topics.save_model(folder / "gpt2", "gpt2")
    images.save_model(folder / "vit", "vit")
    random = np.random.default_rng(0)
    (folder / "texts").mkdir()
    (folder / "pictures").mkdir()
    sentence = {topic: said for said, topic in ((said, topic) for topic, said in texts.TOPICS.items())}
    for split, n in {"train": 64, "validation": 40, "test": 40}.items():
        rows, pictures = [], []
        for i in range(n):
            own = [topic for topic in TOPICS if random.random() < 0.35]
            rows.append({"text": " ".join(["the", *(sentence[topic] for topic in own)]), "label": own})
            colours = [colour for colour in COLOURS if random.random() < 0.4]
            pixels = random.integers(100, 156, (32, 32, 3), np.uint8)
            for j, colour in enumerate(COLOURS):
                if colour in colours:
                    pixels[10 * j : 10 * j + 10] = images.COLOURS[colour]
            path = folder / "pictures" / f"{split}{i}.png"
            Image.fromarray(pixels).save(path)
            pictures.append({"image": path.name, "label": colours})
        (folder / "texts" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "pictures" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pictures))
    return folder


def recipe(zoo: Path, tmp_path: Path, kind: str = "texts", model: str = "", **keys: Any) -> Path:
    data = {split: str(zoo / kind / f"{split}.jsonl") for split in ("train", "validation", "test")}
    stage = {"stage": "transfer", "steps": 4, "batch_size": 8, "learning_rate": 1e-2, "adapt": "full"}
    longest = {"max_tokens": 96} if kind == "texts" else {}
    written = {
        "task": "text-classification" if kind == "texts" else "image-classification",
        "model": {"name": str(zoo / (model or ("bert" if kind == "texts" else "vit")))},
        "data": {
            "name": "json",
            "files": data,
            "splits": {"validation": "validation"},
            **longest,
            **keys.get("data", {}),
        },
        "stages": keys.get("stages", [stage | keys.get("stage", {})]),
        "output": str(tmp_path / "output"),
        "precision": "fp32",
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(written))
    return path


def recorded(output: Path, stage: str = "transfer", split: str = "test") -> dict[str, Any]:
    return pq.read_table(output / "predictions" / f"{stage}-{split}.parquet").to_pydict()


def indicator(lists: list[list[str]], names: list[str]) -> np.ndarray:
    return np.array([[name in row for name in names] for row in lists], dtype=int)


EXHAUSTIVE = [
    pytest.param(kind, adapt, marks=pytest.mark.exhaustive)
    for kind, adapt in (("texts", "lora"), ("pictures", "lora"), ("pictures", "full"))
]


@pytest.mark.parametrize(("kind", "adapt"), [("texts", "full"), ("pictures", "probe"), *EXHAUSTIVE])
def test_what_is_saved_answers_as_recorded_here_and_in_transformers(
    zoo: Path, tmp_path: Path, kind: str, adapt: str
) -> None:
    names, output = TOPICS if kind == "texts" else COLOURS, tmp_path / "run"
    stages = [{"stage": "probe"}] if adapt == "probe" else None
    keys = {"stages": stages} if stages else {"stage": {"adapt": adapt}}
    result = run_recipe(recipe(zoo, tmp_path, kind, **keys), output)
    stage = result.stages[0]
    found = recorded(output, stage.name)
    p, truth = np.array(found["probabilities"]), indicator(found["reference"], names)
    values = stage.metrics["test"].values
    assert list(values) == ["mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy", "ece", "loss"]
    assert values["mean_average_precision"] == pytest.approx(average_precision_score(truth, p, average="macro"))
    chosen = indicator(found["prediction"], names)
    assert values["micro_f1"] == pytest.approx(f1_score(truth, chosen, average="micro", zero_division=0))
    assert values["macro_f1"] == pytest.approx(f1_score(truth, chosen, average="macro", zero_division=0))
    assert values["subset_accuracy"] == pytest.approx((truth == chosen).all(1).mean())
    config = AutoConfig.from_pretrained(output / "model")
    assert config.problem_type == "multi_label_classification"
    assert list(config.id2label.values()) == names
    assert np.array_equal(chosen, p >= np.array(config.label_thresholds))
    assert stage.baselines.keys() >= {"prevalence", "checkpoint_knn"}
    prevalence = stage.baselines["prevalence"]["test"].values["mean_average_precision"]
    assert prevalence == pytest.approx(truth.mean(0).mean())
    # thresholds were fitted to validation
    validation = recorded(output, stage.name, "validation")
    there, own = indicator(validation["reference"], names), np.array(validation["probabilities"])
    best = f1_score(there, own >= np.array(config.label_thresholds), average="macro", zero_division=0)
    assert best >= f1_score(there, own >= 0.5, average="macro", zero_division=0)
    # predictions here and by transformers' own pipeline
    predict = tltasks.load(output)
    if kind == "texts":
        asked = [json.loads(line)["text"] for line in (zoo / "texts" / "test.jsonl").read_text().splitlines()][:5]
        said = pipeline("text-classification", str(output / "model"), top_k=None)(asked)
    else:
        asked = [str(zoo / "pictures" / f"test{i}.png") for i in range(5)]
        said = pipeline("image-classification", str(output / "model"))(asked, top_k=len(names))
    for i, output_ in enumerate(predict(asked, top_k=len(names))):
        assert sorted(output_["prediction"]) == sorted(found["prediction"][i])
        ours = {one["label"]: one["probability"] for one in output_["top"]}
        assert ours == pytest.approx(dict(zip(names, p[i], strict=True)), abs=1e-4)
        assert ours == pytest.approx({one["label"]: one["score"] for one in said[i]}, abs=1e-4)
        assert output_["probability"] == [ours[name] for name in output_["prediction"]]


def opened(path: Path, *overrides: str) -> Any:
    _, (stage,) = open_stages(plan_run(load_recipe(path, overrides), path.parent / "out"))
    return stage


def test_the_loss_is_of_each_class_by_itself(zoo: Path, tmp_path: Path) -> None:
    keys = {"class_weights": "auto", "focal": 2.0, "label_smoothing": 0.1}
    stage = opened(recipe(zoo, tmp_path, stage=keys))
    rows, task = stage.encoded["train"].rows, stage.task
    shares = np.stack(task.references(rows)).mean(0)
    assert task.class_weights == pytest.approx((1 - shares) / shares)
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), task.targets(rows[:6]["label"])
    p, y = logits.sigmoid(), labels * 0.9 + 0.05
    weights_ = torch.tensor(task.class_weights)
    expected = -(weights_ * y * p.log() + (1 - y) * (1 - p).log()) * torch.where(labels == 1, 1 - p, p) ** 2
    assert torch.allclose(task.row_losses(logits, labels), expected.mean(1), atol=1e-6)
    plain = opened(recipe(zoo, tmp_path)).task
    assert torch.allclose(
        plain.row_losses(logits, labels).mean(), functional.binary_cross_entropy_with_logits(logits, labels)
    )


@pytest.mark.parametrize("metric", ["mean_average_precision", "micro_f1", "macro_f1", "subset_accuracy", "auroc"])
def test_the_metric_that_decides_is_the_first(zoo: Path, tmp_path: Path, metric: str) -> None:
    stage = opened(recipe(zoo, tmp_path, stage={"metric": metric}))
    rows, task = stage.encoded["validation"].rows, stage.task
    predictions = task.baselines(stage.encoded["train"], rows)["tfidf"]
    score = task.score(predictions, task.references(rows), intervals=True)
    assert next(iter(score.values)) == score.headline == metric
    low, high = score.ci95
    assert 0 <= low <= score.value <= high <= 1


def test_pictures_are_mixed_with_all_their_classes(zoo: Path, tmp_path: Path) -> None:
    stage = opened(recipe(zoo, tmp_path, "pictures", stage={"augment": {"mixup": 0.4}}))
    batch = stage.task.collate_train(stage.encoded["train"].rows, [0, 1, 2], epoch=0)
    assert batch["labels"].shape == batch["partner_labels"].shape == (3, 3)


def test_a_later_stage_and_a_later_run_go_on_with_the_head(zoo: Path, tmp_path: Path) -> None:
    stage = {"stage": "transfer", "steps": 2, "batch_size": 8, "learning_rate": 1e-2, "adapt": "full"}
    goes_on = stage | {"stage": "finetune", "start": "previous", "learning_rate": 1e-3}
    output = tmp_path / "run"
    result = run_recipe(recipe(zoo, tmp_path, stages=[stage, goes_on]), output)
    assert "stage_transfer" in result.stages[1].baselines
    run_recipe(recipe(zoo, tmp_path, model=str(output / "model"), stages=[{"stage": "zero_shot"}]), tmp_path / "z")
    ours, theirs = (recorded(place, name) for place, name in ((output, "finetune"), (tmp_path / "z", "zero_shot")))
    assert np.allclose(ours["probabilities"], theirs["probabilities"], atol=1e-6)
    assert ours["prediction"] == theirs["prediction"]
    with pytest.raises(
        CheckpointError, match="its head tells any number of classes for each row, and the data has one"
    ):
        opened(recipe(zoo, tmp_path, model=str(output / "model"), data=one_each(zoo), stages=[{"stage": "zero_shot"}]))


def one_each(zoo: Path) -> dict[str, Any]:
    """The same texts with a topic for each."""
    folder = zoo / "one"
    if not folder.is_dir():
        topics.save_data(folder, rows=24)
    return {"files": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}}


def test_without_validation_a_class_is_an_answer_from_one_half_on(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_recipe(recipe(zoo, tmp_path, data={"splits": {"validation": None}}, stage={"keep": "last"}), output)
    found = recorded(output)
    assert (
        indicator(found["prediction"], TOPICS).tolist()
        == (np.array(found["probabilities"]) >= 0.5).astype(int).tolist()
    )
    assert "0.5, since no validation split told a better one" in (output / "README.md").read_text()
    assert not hasattr(AutoConfig.from_pretrained(output / "model"), "label_thresholds")


def test_hypotheses_are_told_one_by_one(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_recipe(recipe(zoo, tmp_path, model="nli", stages=[{"stage": "zero_shot"}]), output)
    asked = json.loads((zoo / "texts" / "test.jsonl").read_text().splitlines()[0])["text"]
    classify = pipeline("zero-shot-classification", model=str(output / "model"))
    said = classify(asked, candidate_labels=TOPICS, hypothesis_template="This text is about {}.", multi_label=True)
    ours = dict(zip(TOPICS, recorded(output, "zero_shot")["probabilities"][0], strict=True))
    assert dict(zip(said["labels"], said["scores"], strict=True)) == pytest.approx(ours, abs=1e-4)


def test_the_command_names_all_that_is_likely_enough(zoo: Path, tmp_path: Path, capsysbinary: Any) -> None:
    output = tmp_path / "run"
    run_recipe(recipe(zoo, tmp_path, "pictures"), output)
    assert main(["predict", str(output), str(zoo / "pictures" / "test0.png"), "--top-k", "1", "--all"]) == 0
    said = json.loads(capsysbinary.readouterr().out)
    assert [one["label"] for one in said["top"]] == sorted(
        COLOURS, key=lambda c: -dict(map(dict.values, said["top"]))[c]
    )
    assert set(said["prediction"]) <= set(COLOURS)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"stage": {"metric": "accuracy"}}, RecipeError, "accuracy is not for rows that have any number of classes"),
        ({"stage": {"sampling": "balanced"}}, RecipeError, "sampling: balanced is not for rows that have any number"),
        ({"stages": [{"stage": "zero_shot"}], "model": "gpt2"}, CheckpointError, "tell which class fits best"),
        ({"data": {"multi_label": False}}, DataError, "holds lists, and `data.multi_label: false` has one class"),
        ({"data": {"class_names": ["a", "b"]}}, DataError, "classes that train has not|has classes"),
    ],
)
def test_what_does_not_go_together_is_said_before_training(
    zoo: Path, tmp_path: Path, keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(recipe(zoo, tmp_path, **keys))


def test_notes_tell_of_rows_without_a_class_and_of_classes_that_nothing_is_learnt_of(tmp_path: Path, zoo: Path) -> None:
    features = {
        "text": datasets.Value("string"),
        "label": datasets.List(datasets.ClassLabel(names=["all", "some", "no"])),
    }
    rows = {"text": [f"text {i}" for i in range(40)], "label": [[0, 1] if i % 2 else [0] for i in range(39)] + [[]]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "rows")
    data = {"name": str(tmp_path / "rows"), "files": None, "splits": {"validation": None, "test": 0.5}}
    notes = " ".join(opened(recipe(zoo, tmp_path, data=data)).split_notes["train"])
    assert "no row is no, so nothing is learnt of that" in notes
    assert ("1 of 20 rows have no class" in notes) != ("all rows are all" in notes)


def test_a_single_class_head_from_a_checkpoint_of_many_is_one(zoo: Path, tmp_path: Path) -> None:
    """transformers' pipelines go by `problem_type`, which a new head does not take over."""
    model = AutoModelForImageClassification.from_pretrained(zoo / "vit")
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path / "many")
    images.save_data(tmp_path / "data", rows=12)
    (tmp_path / "many" / "preprocessor_config.json").write_text((zoo / "vit" / "preprocessor_config.json").read_text())
    files = {split: str(tmp_path / "data" / f"{split}.parquet") for split in ("train", "validation", "test")}
    path = recipe(zoo, tmp_path, "pictures", model=str(tmp_path / "many"), data={"name": "parquet", "files": files})
    run_recipe(path, tmp_path / "run")
    assert AutoConfig.from_pretrained(tmp_path / "run" / "model").problem_type is None
    assert weights(tmp_path / "run")


def test_a_csv_with_several_classes_in_a_cell_becomes_a_recipe_that_runs(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `init` alone, with a time for it; a copy of a training row among the test rows is told beside its score."""
    monkeypatch.chdir(tmp_path)
    lines = [json.loads(line) for line in (zoo / "texts" / "train.jsonl").read_text().splitlines()]
    rows = [
        {"what is said": f"{row['text']} and {i}", "topics": "; ".join(row["label"])} for i, row in enumerate(lines)
    ]
    rows.append({"what is said": rows[0]["what is said"].upper(), "topics": rows[0]["topics"]})
    with Path("said.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    shutil.copytree(zoo / "bert", "bert")  # the recipe asks for twice the tokens that it reads
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained("bert", max_position_embeddings=256)).save_pretrained(
        "bert"
    )
    assert main(["init", "said.csv", "--model", "./bert"]) == 0
    said, written = capsys.readouterr().out, Path("said.yaml").read_text()
    for where in (said, written):
        assert re.search(r"- about \d.* of training on this machine, an estimate by one step", where)
    assert main(["check", "said.yaml"]) == 0
    short = ("stages.0.epochs=1", "data.splits.test=test", "data.files.train=said.csv", "data.files.test=test.csv")
    with Path("test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows[-20:])
    assert main(["run", "said.yaml", *(word for one in short for word in ("--set", one)), "--output", "out"]) == 0
    result = load_result(Path("out") / "result.json")
    assert result.score.headline == "mean_average_precision"
    leaks = result.best.data["test"].leaks
    assert (leaks.examples, leaks.value) == (20, None)
