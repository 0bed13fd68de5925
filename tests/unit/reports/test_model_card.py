"""The model card. After a wanted change of the templates, `TLTASKS_UPDATE_SNAPSHOTS=1` writes tests/snapshots anew."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.tiny.results import HUB_RECIPE, plan_of, result_of, score, split, stage, usual
from tltasks.config.recipe import Emissions
from tltasks.config.stage import UnlabelledStage
from tltasks.config.tasks import TASKS
from tltasks.reports.model_card import render_card
from tltasks.reports.templates import card_environment, clean
from tltasks.results.result import RunResult, Score, StageResult, load_result

SNAPSHOTS = Path(__file__).parents[2] / "snapshots"


def parsed(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)


def tables(card: str) -> list[list[list[str]]]:
    """Text of each table's cells, as a reader sees it."""
    found: list[list[list[str]]] = []
    tokens = parsed(card)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in {"th_open", "td_open"}:
            found[-1][-1].append("".join(child.content for child in tokens[i + 1].children or []))
    return found


def snippet(card: str) -> str:
    (code,) = [token.content for token in parsed(card) if token.type == "fence" and token.info == "python"]
    return code


def test_every_task_has_a_template() -> None:
    templates = card_environment()
    assert len(TASKS) >= 1
    for task in TASKS:
        assert templates.get_template(f"{task}.md.jinja")


# ------------------------------------------------------------------------------------------ the text


SPEECH_RECIPE = """
task: automatic-speech-recognition
model: {name: openai/whisper-small, language: hi}
data:
  name: google/fleurs
  config: hi_in
  columns: {text: transcription}
  splits: {validation: validation}
stages:
  - {stage: finetune, epochs: 3, batch_size: 16, learning_rate: 1e-3, adapt: {lora: {}}}
output: outputs/hindi
hub: {repo: ada/whisper-hindi, license: apache-2.0, language: [hi]}
"""
TEXT_RECIPE = """
task: summarization
model: {name: google-t5/t5-small}
data:
  name: EdinburghNLP/xsum
  splits: {validation: validation}
  long_documents: split
stages:
  - {stage: finetune, epochs: 1, batch_size: 16, learning_rate: 1e-3, adapt: {lora: {}}}
output: outputs/xsum
hub: {repo: ada/t5-xsum, license: apache-2.0, language: [en]}
"""


def score_of(values: dict[str, float], *, difference: Any = None, **details: Any) -> Score:
    first = next(iter(values))
    ends = (values[first] - 0.01, values[first] + 0.01)
    return Score(values, first, ends, details, difference_ci95=difference)


def spoken(*, family: str) -> StageResult:
    rates = {"wer": 0.21, "cer": 0.08, "substitutions": 0.15, "deletions": 0.04, "insertions": 0.02}
    durations = [{"from": 0, "to": 5, "examples": 80, "wer": 0.2, "cer": 0.07}]
    durations.append({"from": 30, "to": None, "examples": 20, "wer": 0.3, "cer": 0.1})
    details = {"normaliser": "basic", "words": 900, "audio_seconds": 480.0, "real_time_factor": 0.11}
    details |= {"split_in_pieces": 20, "window_seconds": 30.0, "by_duration": durations}
    ours = score_of(rates | {"raw_wer": 0.35, "repetition_loop": 0.01}, **details)
    made = stage({"test": ours}, name="finetune", kind="finetune")
    weights = dataclasses.replace(made.weights, name="openai/whisper-small", settings={"family": family})
    return dataclasses.replace(
        made,
        task="automatic-speech-recognition",
        baselines={"checkpoint": {"test": score_of(rates | {"wer": 0.46}, difference=[-0.27, -0.22])}},
        weights=weights,
        data={"train": split(1000, "fleurs train"), "test": split(100, "common_voice test")},
    )


def written(**weights: Any) -> StageResult:
    values = {"rouge1": 36.1, "rouge2": 14.2, "rougeL": 29.8, "rougeLsum": 29.9, "length_ratio": 0.97}
    values |= {"coverage": 0.8, "density": 1.9, "repetition": 0.01, "new_bigrams": 0.6}
    intervals = {kind: [values[kind] - 1, values[kind] + 1] for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
    made = stage(
        {"test": score_of(values, ci95=intervals, split_in_pieces=12, summarised_twice=1)},
        name="finetune",
        kind="finetune",
    )
    found = {"prompt": "summarize: {document}", "chat": False, "encoder_decoder": True}
    found |= {"max_document_tokens": 512, "long_documents": "split", "decoding": "num_beams 4, max_new_tokens 64"}
    checks = {"documents_split_share": 0.12, "documents_also_in_train": 3}
    return dataclasses.replace(
        made,
        task="summarization",
        baselines={
            "lead_2_sentences": {"test": score_of({**values, "rouge1": 19.4}, difference=[15.2, 18.1])},
            "checkpoint": {"test": score_of({**values, "rouge1": 21.0}, difference=[13.9, 16.2])},
        },
        weights=dataclasses.replace(made.weights, name="google-t5/t5-small", settings=found | weights),
        data={
            "train": split(1000, "xsum train"),
            "test": dataclasses.replace(split(100, "xsum test"), checks=checks),
        },
    )


TOPICS_RECIPE = """
task: text-classification
model: {name: sentence-transformers/all-MiniLM-L6-v2}
data: {name: fancyzhx/ag_news, splits: {validation: 0.1}}
stages:
  - {stage: transfer, epochs: 1, batch_size: 32, learning_rate: 1e-3, adapt: {lora: {}}}
output: outputs/topics
hub: {repo: ada/topics, license: apache-2.0, language: [en]}
"""


def sorted_texts() -> StageResult:
    made = stage({"test": score(0.91, ["World", "Sports", "Business", "Sci/Tech"])})
    beside = {"tfidf": {"test": score(0.89, difference=(0.012, 0.028))}}
    weights = dataclasses.replace(
        made.weights, name="sentence-transformers/all-MiniLM-L6-v2", model_type="bert", settings={"max_tokens": 256}
    )
    names = dict(TASKS["text-classification"].baseline_names)
    return dataclasses.replace(
        made, task="text-classification", baselines=beside, baseline_names=names, weights=weights
    )


MASKED_RECIPE = """
task: masked-image-modeling
model: {name: facebook/vit-mae-base}
data: {name: uoft-cs/cifar10, columns: {image: img, label: label}}
stages:
  - {stage: pretrain, epochs: 400, batch_size: 256, learning_rate: 1.5e-4, weight_decay: 0.05}
output: outputs/mae
hub: {repo: ada/mae-cifar10, license: apache-2.0}
"""


def pretrained() -> RunResult:
    def judged(loss: float, **more: Any) -> Score:
        return Score(
            {"loss": loss, "knn_accuracy": 0.41, "feature_spread": 0.31}, "loss", (loss - 0.01, loss + 0.01), **more
        )

    made = stage({"test": judged(0.42)}, name="pretrain", kind="pretrain")
    made = dataclasses.replace(
        made,
        task="masked-image-modeling",
        baselines={"mean_patch": {"test": judged(1.0, difference_ci95=(-0.6, -0.56))}},
        weights=dataclasses.replace(
            made.weights,
            name="facebook/vit-mae-base",
            model_type="vit_mae",
            settings={"objective": "MAE", "mask_ratio": 0.75},
        ),
    )
    return result_of(dataclasses.replace(made, higher_is_better=False))


OBJECTIVES: dict[str, tuple[str, str, dict[str, float], dict[str, Any]]] = {
    "contrastive-image": (
        "microsoft/resnet-50",
        "uoft-cs/cifar10, columns: {image: img, label: label}",
        {"views_matched": 0.93, "knn_accuracy": 0.41, "feature_spread": 0.31},
        {"objective": "SimCLR", "loss_group": 256, "model_type": "resnet"},
    ),
    "speech-pretraining": (
        "facebook/wav2vec2-base",
        "PolyAI/minds14",
        {"masked_accuracy": 0.52, "codebook_perplexity": 101.5, "feature_spread": 0.31},
        {"objective": "wav2vec 2.0", "negatives": 100, "model_type": "wav2vec2"},
    ),
    "text-denoising": (
        "google-t5/t5-small",
        "EdinburghNLP/xsum",
        {"masked_accuracy": 0.52, "feature_spread": 0.31},
        {"objective": "T5's span corruption", "mask_ratio": 0.15, "max_tokens": 512, "model_type": "t5"},
    ),
    "masked-language-modeling": (
        "google-bert/bert-base-uncased",
        "EdinburghNLP/xsum",
        {"masked_accuracy": 0.52, "knn_accuracy": 0.41, "feature_spread": 0.31},
        {"objective": "masked language modelling", "mask_ratio": 0.15, "max_tokens": 512, "model_type": "bert"},
    ),
    "causal-language-modeling": (
        "openai-community/gpt2",
        "EdinburghNLP/xsum",
        {"masked_accuracy": 0.52, "perplexity": 1.52, "feature_spread": 0.31},
        {"objective": "causal language modelling", "mask_ratio": None, "max_tokens": 512, "model_type": "gpt2"},
    ),
}
"""Base, data, scores and weights of a run of each objective besides masked image modelling."""


def continued(task: str, folder: Path) -> str:
    """The card of an objective that has gone on from a checkpoint."""
    base, data, values, settings = OBJECTIVES[task]
    judged = Score({"loss": 0.42, **values}, "loss", (0.41, 0.43), {})
    plain = Score({"loss": 1.0}, "loss", (0.99, 1.01), difference_ci95=(-0.6, -0.56))
    arm = "token_frequencies" if task.startswith(("text", "masked", "causal")) else "chance"
    made = dataclasses.replace(
        stage({"test": judged}, name="finetune", kind="finetune"),
        task=task,
        baselines={arm: {"test": plain}},
        weights=dataclasses.replace(
            stage({}).weights,
            name=base,
            adapter=False,
            model_type=settings["model_type"],
            settings={key: value for key, value in settings.items() if key != "model_type"},
        ),
    )
    result = result_of(dataclasses.replace(made, higher_is_better=False))
    text = (
        f"task: {task}\nmodel: {{name: {base}}}\ndata: {{name: {data}}}\nstages:\n"
        "  - {stage: finetune, epochs: 10, batch_size: 32, learning_rate: 1e-4}\n"
        "output: outputs/objective\nhub: {repo: ada/objective, license: apache-2.0}\n"
    )
    return render_card(result, plan_of(folder, text), adapter=False, repo="ada/objective")


def printed(task: str, folder: Path, *, adapter: bool = True) -> str:
    """The card of a task's usual run."""
    if task in OBJECTIVES:
        return continued(task, folder)
    if task == "image-classification":
        return render_card(usual(), plan_of(folder), adapter=adapter, repo="ada/vit-cifar10-lora")
    if task == "text-classification":
        return render_card(
            result_of(sorted_texts()), plan_of(folder, TOPICS_RECIPE), adapter=adapter, repo="ada/topics"
        )
    if task == "masked-image-modeling":
        return render_card(pretrained(), plan_of(folder, MASKED_RECIPE), adapter=False, repo="ada/mae-cifar10")
    if task == "summarization":
        return render_card(result_of(written()), plan_of(folder, TEXT_RECIPE), adapter=adapter, repo="ada/t5-xsum")
    result = result_of(dataclasses.replace(spoken(family="sequence-to-sequence"), higher_is_better=False))
    return render_card(result, plan_of(folder, SPEECH_RECIPE), adapter=adapter, repo="ada/whisper-hindi")


@pytest.mark.parametrize("task", TASKS)
def test_snapshot(task: str, tmp_path: Path) -> None:
    card = printed(task, tmp_path)
    expected = SNAPSHOTS / f"card-{task}.md"
    if os.environ.get("TLTASKS_UPDATE_SNAPSHOTS"):
        expected.write_text(card, encoding="utf-8")
    assert card == expected.read_text(encoding="utf-8")


def test_carbon_is_what_the_recipe_states_and_time_gives(tmp_path: Path) -> None:
    result = usual()
    result = dataclasses.replace(result, stages=[dataclasses.replace(it, seconds=1800) for it in result.stages])
    plain = render_card(result, plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "Its energy was not measured." in plain
    assert "co2_eq_emissions" not in plain
    plan = plan_of(tmp_path)
    stated = Emissions(watts=400.0, grams_per_kwh=56.0, location="France")
    hub = plan.recipe.hub.model_copy(update={"emissions": stated})
    plan = dataclasses.replace(plan, recipe=plan.recipe.model_copy(update={"hub": hub}))
    n_stages = len(result.stages)
    card = render_card(result, plan, adapter=True, repo="ada/x")
    grams = n_stages * 0.5 * 0.4 * 56
    assert "With 400 W a device and 56 g of CO₂-equivalent for each kilowatt-hour (France), as" in card
    assert f"that is about {grams:.2g} g.\n" in card
    data = ModelCard(card).data.to_dict()["co2_eq_emissions"]
    assert data["emissions"] == pytest.approx(grams, rel=1e-2)
    assert data["geographical_location"] == "France"


def test_baselines_are_judged_by_the_interval_of_the_difference(tmp_path: Path) -> None:
    card = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "- On test, it is better than always naming the most frequent class by 0.874 (95 % interval 0.700 to" in card
    assert "- On test, it is not shown to be better or worse than nearest neighbours by" in card
    assert "- On test, it is worse than the untouched checkpoint by 0.016 (95 % interval 0.100 to 0.200).\n" in card
    assert "On validation, it" not in card
    (rows, *_) = tables(card)
    assert [row[:2] for row in rows[1:3]] == [
        ["test (1,000)", "this model"],
        ["test", "always naming the most frequent class"],
    ]
    assert rows[1][2] == "0.974 (0.954 to 0.994)"
    assert rows[2][3] == "+0.874 (+0.700 to +0.900)"


def test_lower_is_better_turns_every_verdict(tmp_path: Path) -> None:
    card = render_card(usual(higher_is_better=False), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "- On test, it is worse than always naming the most frequent class by 0.874" in card
    assert "- On test, it is better than the untouched checkpoint by 0.016" in card
    assert "- On stl10 it does better than on test.\n" in card


def test_shift_is_told_beside_test(tmp_path: Path) -> None:
    card = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "- On stl10 it does worse than on test.\n" in card
    assert "- On sketches it does about as well as on test, as far as these sets can tell (their intervals" in card
    (shift,) = [rows for rows in tables(card) if rows[0][0] == "test set"]
    assert [row[0] for row in shift[1:]] == ["test", "stl10", "sketches"]
    assert shift[2][2] == "−0.364"


def test_the_five_weakest_classes(tmp_path: Path) -> None:
    card = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")
    (by_class,) = [rows for rows in tables(card) if rows[0][0] == "class"]
    assert [row[0] for row in by_class[1:]] == ["horse", "deer", "automobile", "ship", "dog"]
    assert {row[4] for row in by_class[1:]} == {"100"}


def test_classes_that_were_hardly_or_never_tested_are_told(tmp_path: Path) -> None:
    best = score(0.9)
    best.details["per_class"][0]["support"] = 0
    best.details["per_class"][1]["support"] = 3
    card = render_card(result_of(stage({"test": best})), plan_of(tmp_path), adapter=True, repo="ada/x")
    (by_class,) = [rows for rows in tables(card) if rows[0][0] == "class"]
    assert "airplane" not in [row[0] for row in by_class]
    assert "1 of the 10 classes has fewer than 20 examples" in card
    assert "1 of the 10 classes is not in test" in card


@pytest.mark.parametrize("adapter", [True, False])
def test_calibration_is_told_and_applied_by_the_code(tmp_path: Path, adapter: bool) -> None:
    best, numbers = score(0.9), {"ece": 0.11, "loss": 0.71, "brier": 0.31}
    points = [(0.2, 0.99, 0.97), (0.6, 0.9006, 0.95), (1.0, 0.3, 0.9)]
    best.details["answered"] = [
        {"coverage": share, "threshold": limit, "accuracy": right, "low": right - 0.02, "high": right + 0.02}
        for share, limit, right in points
    ]
    made, plan = result_of(stage({"test": best})), plan_of(tmp_path)
    plain = snippet(render_card(made, plan, adapter=adapter, repo="ada/x"))
    assert "calibration_temperature" not in plain
    best.details["calibration"] = {"temperature": 1.0, "before": numbers, "after": numbers}
    card = render_card(made, plan, adapter=adapter, repo="ada/x")
    assert snippet(card) == plain
    assert "a temperature fitted to validation would not have made it better." in card
    best.details["calibration"] = {"temperature": 2.5, "before": numbers, "after": {**numbers, "loss": 0.52}}
    card = render_card(made, plan, adapter=adapter, repo="ada/x")
    assert "log loss is 0.520 and its Brier score 0.310. These are of logits divided by 2.500" in card
    assert "have 0.110, 0.710 and 0.310." in card
    assert "config.calibration_temperature" in snippet(card)
    compile(snippet(card), "card", "exec")
    assert "`tltasks predict --abstain-below 0.900` does" in card  # rounded down, so that these are among them
    assert "60 % of test (a probability of 0.900 or more), its accuracy is 0.950 (0.930 to 0.970)" in card


@pytest.mark.parametrize("validates", [True, False])
def test_confidence_of_words_is_told_with_and_without_validation(tmp_path: Path, validates: bool) -> None:
    made = dataclasses.replace(spoken(family="sequence-to-sequence"), higher_is_better=False)
    score = made.metrics["test"]
    score.details["words_confidence"] = {"words": 900, "right": 0.8, "calibration_error": 0.05, "auroc": 0.9}
    if validates:
        data = {**made.data, "validation": split(100, "fleurs validation")}
        made = dataclasses.replace(made, metrics={**made.metrics, "validation": score}, data=data)
    card = render_card(result_of(made), plan_of(tmp_path, SPEECH_RECIPE), adapter=True, repo="ada/x")
    assert f"gives each word{', settled on validation,' if validates else ''} is off by 0.050" in card


def test_without_a_test_split_the_headline_is_called_optimistic(tmp_path: Path) -> None:
    result = result_of(stage({"validation": score(0.978)}), judged="validation")
    card = render_card(result, plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "There was no test split. The headline is on validation, which also chose the weights" in card
    assert "- On validation, it is better than" in card
    assert "how it does on another domain was not measured" in card
    tested = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "There was no test split" not in tested
    assert "on another domain was not measured" not in tested


def test_numbers_that_are_not_finite_are_dashes_and_never_in_the_front_matter(tmp_path: Path) -> None:
    best = dataclasses.replace(score(0.9), ci95=(float("nan"), float("nan")))
    best.values.update(ece=float("nan"), macro_f1=float("inf"))
    result = result_of(stage({"test": best}))
    result.save(tmp_path / "result.json")
    card = render_card(load_result(tmp_path / "result.json"), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert card == render_card(result, plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "nan" not in card.lower().replace("finance", "")
    assert "| **0.900** (no interval) |" in card
    assert [(e.metric_type, e.metric_value) for e in evaluations(card)] == [("accuracy", 0.9)]


def test_few_examples_are_told(tmp_path: Path) -> None:
    few = result_of(stage({"test": score(0.9)}, data={"test": split(24)}))
    card = render_card(few, plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "Test has 24 examples, which is few: the interval is 0.040 wide.\n" in card


def test_metrics_that_were_not_measured_have_no_column(tmp_path: Path) -> None:
    best = score(0.9)
    del best.values["top5_accuracy"]
    card = render_card(result_of(stage({"test": best})), plan_of(tmp_path), adapter=True, repo="ada/x")
    assert "Top-5" not in card
    assert "Top-5" in render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/x")


def test_several_stages(tmp_path: Path) -> None:
    text = re.sub(
        "- {stage: transfer.*",
        "- {stage: transfer, name: head, epochs: 1, learning_rate: 1e-3, adapt: head, data: {name: ada/first}}"
        "\n  - {stage: finetune, start: previous, epochs: 1, learning_rate: 5e-5}"
        "\n  - {stage: zero_shot, model: {name: timm/resnet18.a1_in1k}}",
        HUB_RECIPE,
    )
    first = stage({"test": score(0.9)}, name="head", trainable_parameters=7690)
    weights = dataclasses.replace(first.weights, adapter=False, start="previous")
    second = stage({"test": score(0.974)}, name="finetune", kind="finetune", weights=weights)
    third = stage(
        {"test": score(0.2)},
        name="zero_shot",
        kind="zero_shot",
        training=None,
        weights=dataclasses.replace(weights, start="checkpoint"),
    )
    result = result_of(first, third, second)
    result = dataclasses.replace(result, stages=[first, second, third])
    card = render_card(result, plan_of(tmp_path, text), adapter=False, repo="ada/x")
    data = ModelCard(card).data
    assert data.base_model == "google/vit-base-patch16-224-in21k"
    assert data.datasets == ["ada/first", "uoft-cs/cifar10"]
    assert "trained in 2 stages (head, then finetune) on" in card
    assert "The published weights are those of the stage finetune." in card
    (training,) = [rows for rows in tables(card) if rows[0][1:] == ["head", "finetune", "zero_shot"]]
    cells = {row[0]: row[1:] for row in training}
    assert cells["starts from"] == ["google/vit-base-patch16-224-in21k", "the stage before", "timm/resnet18.a1_in1k"]
    assert cells["trains"] == ["the head", "all weights", "nothing"]
    assert cells["steps"] == ["2229", "2229", "–"]
    assert cells["time, evaluation included"][0] == "1 h 6 min"
    assert cells["result"][2] == "accuracy 0.200 (0.180 to 0.220) on test"


def test_random_weights_and_untouched_checkpoints_are_called_so(tmp_path: Path) -> None:
    pretrained = render_card(
        result_of(stage({"test": score(0.4)}, name="pretrain", kind="pretrain")),
        plan_of(tmp_path, re.sub(r"stage: transfer(.*), adapt.*", r"stage: pretrain\1}", HUB_RECIPE)),
        adapter=False,
        repo="ada/x",
    )
    assert "trained from random weights" in pretrained
    assert ModelCard(pretrained).data.get("base_model") is None
    assert "by its data, its biases" not in pretrained
    untouched = render_card(
        result_of(stage({"test": score(0.4)}, name="zero_shot", kind="zero_shot", training=None)),
        plan_of(tmp_path, re.sub(r"- {stage: transfer.*", "- {stage: zero_shot}", HUB_RECIPE)),
        adapter=False,
        repo="ada/x",
    )
    assert "as it is, evaluated here" in untouched
    assert ModelCard(untouched).data.get("datasets") is None
    assert ModelCard(untouched).data.get("base_model_relation") is None


# -------------------------------------------------------------------------------------- front matter


def evaluations(card: str) -> list[Any]:
    return list(ModelCard(card).data.eval_results or [])


def test_front_matter_survives_the_client(tmp_path: Path) -> None:
    card = render_card(usual(), plan_of(tmp_path), adapter=True, repo="ada/vit-cifar10-lora")
    read = ModelCard(card)
    assert str(read) == card
    data = read.data
    assert (data.base_model, data.base_model_relation) == ("google/vit-base-patch16-224-in21k", "adapter")
    assert (data.library_name, data.pipeline_tag, data.license) == ("peft", "image-classification", "apache-2.0")
    assert (data.language, data.datasets, data.metrics) == (["en"], ["uoft-cs/cifar10"], ["accuracy", "f1"])
    assert data.tags == ["tltasks", "lora"]
    assert data.model_name == "vit-cifar10-lora"
    found = {(e.dataset_type, e.dataset_split, e.metric_name): e.metric_value for e in evaluations(card)}
    assert len(found) == len(evaluations(card)) == 8
    assert found["uoft-cs/cifar10", "test", "Accuracy"] == 0.974
    assert found["uoft-cs/cifar10", "train[95%:]", "Macro F1"] == 0.974
    assert found["jxie/stl10", "test", "Accuracy"] == 0.61
    assert found["imagefolder", "sketches", "Accuracy"] == 0.973


def test_full_and_merged_models_are_finetunes(tmp_path: Path) -> None:
    merged = render_card(usual(), plan_of(tmp_path), adapter=False, repo="ada/x")
    assert ModelCard(merged).data.base_model_relation == "finetune"
    assert ModelCard(merged).data.library_name == "transformers"
    assert "fine-tuned with LoRA (merged into its weights) on" in merged


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    text = HUB_RECIPE.replace("hub: {repo: ada/vit-cifar10-lora, license: apache-2.0, language: [en]}", "")
    card = render_card(usual(), plan_of(tmp_path, text), adapter=False, repo=None)
    head = card.split("---")[1]
    assert "license" not in head
    assert "language" not in head
    assert ModelCard(card).data.model_name == "cifar10"
    assert "No licence is stated here" in card


def test_local_folders_are_known_by_their_names_alone(tmp_path: Path) -> None:
    secret = tmp_path / "home" / "ada"
    (secret / "weights" / "tiny").mkdir(parents=True)
    text = (
        HUB_RECIPE.replace("google/vit-base-patch16-224-in21k", str(secret / "weights" / "tiny"))
        .replace("name: uoft-cs/cifar10", f"name: {secret / 'pets'}")
        .replace("dir: sketches", f"dir: {secret / 'sketches'}")
        .replace("output: outputs/cifar10", f"output: {secret / 'runs' / 'pets'}")
    )
    for repo in ("ada/x", None):
        card = render_card(usual(), plan_of(tmp_path, text), adapter=False, repo=repo)
        assert "/home" not in card
        assert str(tmp_path) not in card
        data = ModelCard(card).data
        assert (data.get("base_model"), data.get("base_model_relation"), data.get("datasets")) == (None, None, None)
        assert "“tiny” (local), fine-tuned with LoRA (merged into its weights) on “pets” (local)" in card
        assert "Folders of the author's machine are shortened" in card
        types = {(e.dataset_type, e.dataset_split) for e in evaluations(card)}
        assert types == {
            ("local", "test"),
            ("local", "validation"),
            ("jxie/stl10", "test"),
            ("imagefolder", "sketches"),
        }


def test_relative_folders_are_local_too(tmp_path: Path) -> None:
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    for name in ("weights/tiny", "./weights/tiny", "../elsewhere/tiny"):
        text = HUB_RECIPE.replace("google/vit-base-patch16-224-in21k", name)
        card = render_card(usual(), plan_of(tmp_path, text), adapter=False, repo="ada/x")
        assert ModelCard(card).data.get("base_model") is None
        assert "“tiny” (local)" in card
        assert "elsewhere" not in card


def test_several_local_test_sets_of_one_kind_stay_apart(tmp_path: Path) -> None:
    text = HUB_RECIPE.replace("name: uoft-cs/cifar10", "name: parquet\n  files: {train: a.parquet, test: b.parquet}")
    text = text.replace("stl10: {name: jxie/stl10, split: test}", "stl10: {files: c.parquet, split: train}")
    card = render_card(usual(), plan_of(tmp_path, text), adapter=True, repo="ada/x")
    assert {(e.dataset_type, e.dataset_split) for e in evaluations(card)} == {
        ("parquet", "test"),
        ("parquet", "validation"),
        ("parquet", "stl10"),
        ("imagefolder", "sketches"),
    }


# -------------------------------------------------------------------------------------- hostile names

HOSTILE = [
    "a|b",
    "two\nlines",
    "`code`",
    "<script>alert(1)</script>",
    "**bold**",
    "[x](https://example.org)",
    "</details><img src=x>",
    "{{ secret }}",
    "\\",
    "$$x$$",
    "https://example.org",
    "&lt;",
    "__init__",
    "~~gone~~",
    "می‌خواهم",
]


def test_hostile_class_names_stay_text(tmp_path: Path) -> None:
    for start in range(0, len(HOSTILE), 5):
        names = HOSTILE[start : start + 5]
        card = render_card(result_of(stage({"test": score(0.9, names)})), plan_of(tmp_path), adapter=True, repo="a/x")
        (by_class,) = [rows for rows in tables(card) if rows[0][0] == "class"]
        assert sorted(row[0] for row in by_class[1:]) == sorted(" ".join(name.split()) for name in names)
        assert {len(row) for row in by_class} == {5}
        html = [t.content for t in parsed(card) if t.type == "html_block"]
        html += [c.content for t in parsed(card) for c in t.children or [] if c.type == "html_inline"]
        assert html == ["<details>\n<summary>The recipe, with every default written out</summary>\n", "</details>\n"]


def test_hostile_names_everywhere_else_stay_text(tmp_path: Path) -> None:
    bad = "x|<b>`*[y](z)"
    result = usual()
    data = {key: dataclasses.replace(about, source=bad) for key, about in result.stages[0].data.items()}
    hostile = dataclasses.replace(
        result,
        stages=[dataclasses.replace(result.stages[0], data=data)],
        versions={bad: bad},
        hardware={**result.hardware, "device_name": bad},
    )
    plan = plan_of(
        tmp_path,
        HUB_RECIPE.replace("  splits:", '  class_names: ["````\\n</details>", b]\n  splits:'),
    )
    card = render_card(hostile, plan, adapter=True, repo="ada/x")
    (sources,) = [rows for rows in tables(card) if rows[0][2:3] == ["source"]]
    assert {row[2] for row in sources[1:]} == {bad}
    assert {len(row) for row in sources} == {5}
    assert "<b>" not in card
    (fence,) = [t for t in parsed(card) if t.type == "fence" and t.info == "yaml"]
    assert "````" in fence.content
    assert "hub:" in fence.content


def test_clean_keeps_ordinary_names() -> None:
    for name in ("golden retriever", "snake_case", "C-3PO", "naïve", "犬", "a.b", "#1", "👩‍🚀"):
        assert clean(name) == name
    assert clean("a\u202eb\x00c") == "a b c"


# --------------------------------------------------------------------------------------- the snippet


WITH_ADAPTERS = sorted(task for task, keys in TASKS.items() if not issubclass(keys.stage, UnlabelledStage))


@pytest.mark.parametrize("task", WITH_ADAPTERS)
def test_snippet_says_what_to_install(task: str, tmp_path: Path) -> None:
    for adapter, needed in ((True, "`pip install peft transformers torch"), (False, "`pip install transformers torch")):
        assert needed in printed(task, tmp_path, adapter=adapter)


def test_snippet_of_a_timm_model_says_what_to_install(tmp_path: Path) -> None:
    timm = usual(weights=dataclasses.replace(usual().best.weights, model_type="timm_wrapper"))
    assert "`pip install peft transformers torch pillow`" in render_card(
        usual(), plan_of(tmp_path), adapter=True, repo="ada/x"
    )
    assert "`pip install transformers torch pillow timm`" in render_card(
        timm, plan_of(tmp_path), adapter=False, repo="ada/x"
    )


def test_snippet_literals_are_python(tmp_path: Path) -> None:
    text = HUB_RECIPE.replace("in21k}", "in21k, revision: 'it\"s', trust_remote_code: true}")
    result = usual(weights=dataclasses.replace(usual().best.weights, commit=None))
    for adapter, times in ((True, 2), (False, 1)):
        code = snippet(render_card(result, plan_of(tmp_path, text), adapter=adapter, repo="ada/x"))
        compile(code, "snippet", "exec")
        assert code.count("trust_remote_code=True") == times
        assert (json.dumps('it"s') in code) == adapter
