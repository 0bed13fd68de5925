"""Models of images and texts: zero-shot as transformers' own pipeline has it, and as a start for training."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification, AutoTokenizer, CLIPModel, SiglipModel, pipeline

from tests.tiny.images import SIZE, picture, png, save_contrastive, save_data, save_model, write_recipe
from tests.tiny.runs import run_recipe
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, RecipeError
from tltasks.hub.saved_model import load_saved_model
from tltasks.inference.predict import predict
from tltasks.metrics.calibration import tempered
from tltasks.results.result import RunResult
from tltasks.runs.story import dry_run
from tltasks.tasks.image.zero_shot import FAMILIES, PromptClassifier

PIPELINES = "This is a photo of {}."
"""The default of transformers' pipeline."""
LABELS = ["blue", "green", "red"]
ZERO_SHOT = "{stage: zero_shot}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrastive")
    save_data(folder / "data", rows=18, size=SIZE + 16)
    for name in FAMILIES:
        save_contrastive(folder / name, name)
    return folder


def run_on(zoo: Path, name: str, stage: str, output: Path, *overrides: str) -> RunResult:
    recipe = write_recipe(output.parent / f"{output.name}.yaml", zoo / name, zoo / "data", stage=stage)
    return run_recipe(recipe, output, *overrides)


def probabilities(output: Path, stage: str = "zero_shot") -> np.ndarray:
    return np.stack(pq.read_table(output / "predictions" / f"{stage}-test.parquet")["probabilities"].to_numpy())


def by_pipeline(folder: Path, data: Path, template: str) -> np.ndarray:
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    rows = datasets.load_dataset("parquet", data_files={"test": str(data / "test.parquet")}, split="test")
    answers = [classify(row["image"], candidate_labels=LABELS, hypothesis_template=template) for row in rows]
    return np.array([[{a["label"]: a["score"] for a in answer}[label] for label in LABELS] for answer in answers])


@pytest.mark.parametrize("name", FAMILIES)
def test_gives_the_probabilities_of_the_pipeline(zoo: Path, name: str, tmp_path: Path) -> None:
    result = run_on(zoo, name, ZERO_SHOT, tmp_path / "run", f'model.prompts=["{PIPELINES}"]')
    ours, theirs = probabilities(tmp_path / "run"), by_pipeline(zoo / name, zoo / "data", PIPELINES)
    temperature = getattr(AutoConfig.from_pretrained(tmp_path / "run" / "model"), "calibration_temperature", None)
    assert (temperature is None) == (name == "siglip")  # whose classes are told each by itself
    told = theirs if temperature is None else tempered(theirs, temperature)
    np.testing.assert_allclose(ours, told, atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 1e-3, "pictures are told apart"
    assert np.ptp(ours, axis=1).max() > 1e-3, "texts are told apart"
    assert np.allclose(ours.sum(1), 1, atol=1e-5) == (name != "siglip")
    assert result.stages[0].trainable_parameters == 0
    # what it saves is the same model, which the pipeline loads as well
    np.testing.assert_allclose(by_pipeline(tmp_path / "run" / "model", zoo / "data", PIPELINES), theirs, atol=1e-6)


@pytest.fixture(scope="module")
def tuned(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """Zero-shot by two prompts, then LoRA from there."""
    output = tmp_path_factory.mktemp("tuned") / "run"
    lora = "{stage: finetune, steps: 4, batch_size: 6, learning_rate: 2e-2, adapt: {lora: {rank: 2}}}"
    stages = f"{ZERO_SHOT}\n  - {lora}"
    return output, run_on(zoo, "clip", stages, output, 'model.prompts=["a photo of the {}.", "a {} picture"]')


def test_texts_of_a_class_are_averaged_as_directions(zoo: Path, tuned: tuple[Path, RunResult]) -> None:
    classifies = load_saved_model(str(tuned[0]))
    tokenizer = AutoTokenizer.from_pretrained(zoo / "clip")
    model = CLIPModel.from_pretrained(zoo / "clip").eval()
    expected = []
    with torch.no_grad():
        for label in LABELS:
            units = []
            for text in (f"a photo of the {label}.", f"a {label} picture"):
                vector = model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
                units.append(vector / vector.norm())
            mean = (units[0] + units[1]) / 2
            expected.append(mean / mean.norm())
    found = classifies.build(device=torch.device("cpu"), precision="fp32")[1].class_features
    torch.testing.assert_close(found, torch.stack(expected))


def test_finetuning_begins_at_zero_shot_and_stays_a_model_of_texts(zoo: Path, tuned: tuple[Path, RunResult]) -> None:
    output, result = tuned
    zero, finetuned = result.stages
    assert finetuned.baselines["checkpoint"]["test"].values == zero.metrics["test"].values
    assert finetuned.metrics["test"].values["loss"] < zero.metrics["test"].values["loss"]
    assert finetuned.weights.settings["prompts"] == ["a photo of the {}.", "a {} picture"]
    saved, before = (CLIPModel.from_pretrained(place).state_dict() for place in (output / "model", zoo / "clip"))
    moved = {name.partition(".")[0] for name in before if not torch.equal(saved[name], before[name])}
    assert moved == {"vision_model", "visual_projection"}


def test_what_a_run_saves_predicts_by_its_own_classes_and_prompts(tuned: tuple[Path, RunResult], zoo: Path) -> None:
    output, _ = tuned
    out = output.parent / "answers.parquet"
    table = pq.read_table(zoo / "data" / "test.parquet").select(["image"])
    pq.write_table(table, output.parent / "pictures.parquet")
    arguments = {"tag": None, "revision": "main", "trust_remote_code": False, "column": None, "precision": None}
    pictures = [str(output.parent / "pictures.parquet")]
    predict(str(output / "model"), pictures, output=out, resume=False, top_k=1, **arguments)
    recorded = pq.read_table(output / "predictions" / "finetune-test.parquet")
    assert pq.read_table(out)["prediction"].to_pylist() == recorded["prediction"].to_pylist()


def test_texts_are_read_once_in_a_run(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = SiglipModel.get_text_features

    def counted(self: SiglipModel, input_ids: torch.Tensor, **arguments: object) -> object:
        calls.append(len(input_ids))
        return plain(self, input_ids, **arguments)

    monkeypatch.setattr(SiglipModel, "get_text_features", counted)
    save_contrastive(zoo / "unread", "siglip", seed=1)
    stage = "{stage: finetune, steps: 2, batch_size: 6, learning_rate: 1e-3, adapt: lora, augment: {mixup: 0.4}}"
    result = run_on(zoo, "unread", f"{ZERO_SHOT}\n  - {stage}", tmp_path / "run")
    assert calls == [3]
    assert result.stages[0].weights.settings["prompts"] == ["a photo of a {}."]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("clip", "probe"),
        ("siglip", "transfer, steps: 2, batch_size: 6, learning_rate: 1e-3, adapt: lora"),
        ("metaclip_2", "transfer, steps: 2, batch_size: 6, learning_rate: 1e-3, adapt: full"),
    ],
)
def test_the_image_tower_takes_a_new_head(zoo: Path, name: str, stage: str, tmp_path: Path) -> None:
    stages = (
        f"{{stage: {stage}}}\n  - {{stage: finetune, start: previous, steps: 1, batch_size: 6, learning_rate: 1e-9}}"
    )
    result = run_on(zoo, name, stages, tmp_path / "run", f"model.image_size={SIZE + 16}")
    assert result.stages[0].weights.left["text_model"] > 10
    assert result.stages[0].weights.interpolated == ["vision_model.embeddings.position_embedding.weight"]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert type(model).__name__.endswith("ForImageClassification")
    assert list(model.config.id2label.values()) == LABELS
    first, second = (s.metrics["test"].values["accuracy"] for s in result.stages)
    assert first == second


# ------------------------------------------------------------------------------------------ refusals


def test_a_checkpoint_alone_names_no_classes(zoo: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing names them here.*zero_shot"):
        load_saved_model(str(zoo / "clip"))


def test_prompts_need_a_text_tower(zoo: Path, tmp_path: Path) -> None:
    save_model(zoo / "vit", labels=LABELS)
    with pytest.raises(RecipeError, match=r"model.prompts: .*vit.* reads no text"):
        run_on(zoo, "vit", ZERO_SHOT, tmp_path / "run", 'model.prompts=["a {}"]')


def test_a_prompt_has_a_place_for_the_class(zoo: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", zoo / "clip", zoo / "data", stage=ZERO_SHOT)
    with pytest.raises(RecipeError, match=r"expected text with `\{\}` in it, found the text 'a photo'"):
        load_recipe(recipe, ['model.prompts=["a photo"]'])


def test_a_tokenizer_is_needed(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "clip", tmp_path / "clip", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="its tokenizer reads nothing in blue"):
        run_on(zoo, "clip", ZERO_SHOT, tmp_path / "run", f"model.name={tmp_path / 'clip'}")


def test_classes_that_read_alike_are_refused(zoo: Path, tmp_path: Path) -> None:
    config, names = AutoConfig.from_pretrained(zoo / "clip"), ["red_ship", "blue", "red ship"]
    with pytest.raises(CheckpointError, match="reads the classes red_ship and red ship alike"):
        PromptClassifier.open(Checkpoint(str(zoo / "clip"), display_name="clip"), config, names)


def test_classes_are_those_of_all_splits(zoo: Path, tmp_path: Path) -> None:
    for split, names in {"train": ["red"], "test": ["red", "green"], "validation": ["red", "blue"]}.items():
        rows = {"image": [{"bytes": png(picture(name, np.random.default_rng(0))), "path": None} for name in names]}
        datasets.Dataset.from_dict({**rows, "label": names}).to_parquet(tmp_path / f"{split}.parquet")
    recipe = write_recipe(tmp_path / "recipe.yaml", zoo / "clip", tmp_path, stage=ZERO_SHOT)
    result = run_recipe(recipe, tmp_path / "run")
    assert result.stages[0].metrics["test"].details["class_names"] == LABELS


def test_the_cards_code_runs_and_its_task_is_zero_shot(tuned: tuple[Path, RunResult], capfd: Any) -> None:
    output, _ = tuned
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "\npipeline_tag: zero-shot-image-classification\n" in card
    assert "“a photo of the {}.”, “a {} picture”" in card
    assert "the first of the 2 prompts" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    with contextlib.chdir(output):
        exec(code, {})
    assert capfd.readouterr().out.split()[0] in LABELS


def test_a_dry_run_measures_every_stage(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = "{stage: finetune, start: previous, steps: 1, batch_size: 6, learning_rate: 1e-3}"
    recipe = write_recipe(tmp_path / "recipe.yaml", zoo / "clip", zoo / "data", stage=f"{ZERO_SHOT}\n  - {tune}")
    assert dry_run(load_recipe(recipe), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
