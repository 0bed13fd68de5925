"""WiSE-FT: the curve between a checkpoint and what was trained from it, and the point that validation chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from tests.tiny import images, speech, texts
from tests.tiny.runs import run_recipe
from tltasks.config.loading import load_recipe
from tltasks.config.stage import Interpolate
from tltasks.errors import CheckpointError, RecipeError
from tltasks.results.result import RunResult
from tltasks.training.weight_interpolation import interpolate

LORA = "adapt: {lora: {rank: 2}}"


def lp_ft(finetune: str = "") -> str:
    more = f", {finetune}" if finetune else ""
    tune = f"{{stage: finetune, start: previous, steps: 6, batch_size: 8, learning_rate: 2e-2{more}}}"
    return f"{{stage: probe, l2: 1.0}}\n  - {tune}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wise")
    images.save_model(folder / "vit")
    images.save_data(folder / "data", rows=24)
    images.save_data(folder / "shifted", rows=12, seed=1)
    return folder


@pytest.fixture(scope="module")
def run_on(place: Path) -> Any:
    def run_on(name: str, stages: str, *overrides: str) -> tuple[Path, RunResult]:
        recipe = images.write_recipe(place / f"{name}.yaml", Path("vit"), Path("data"), stage=stages)
        shifted = f"data.extra_test={{shifted: {{files: {place / 'shifted' / 'test.parquet'}, split: train}}}}"
        return place / name, run_recipe(recipe, place / name, shifted, *overrides)

    return run_on


@pytest.fixture(scope="module")
def plain(run_on: Any) -> tuple[Path, RunResult]:
    found: tuple[Path, RunResult] = run_on("plain", lp_ft())
    return found


@pytest.fixture(scope="module")
def halfway(run_on: Any) -> tuple[Path, RunResult]:
    found: tuple[Path, RunResult] = run_on("halfway", lp_ft("interpolate: {alphas: [0.5]}"))
    return found


def state(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    return weights


def test_weights_are_those_halfway(plain: tuple[Path, RunResult], halfway: tuple[Path, RunResult]) -> None:
    start, end, found = (
        state(path) for path in (halfway[0] / "stages" / "probe" / "model", plain[0] / "model", halfway[0] / "model")
    )
    assert found.keys() == end.keys()
    assert max(float((end[name] - start[name]).abs().max()) for name in end) > 0.01
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (start[name] + end[name]) / 2)


def test_the_curve_has_both_ends_on_every_test_set(
    plain: tuple[Path, RunResult], halfway: tuple[Path, RunResult]
) -> None:
    probe, tuned = halfway[1].stages
    curve = tuned.training.interpolation
    assert (curve.alpha, curve.metric, curve.alphas) == (0.5, "accuracy", [0.0, 0.5, 1.0])
    assert curve.by_split.keys() == {"test", "validation", "shifted"}
    for split, values in curve.by_split.items():
        ends = probe.metrics[split], plain[1].stages[1].metrics[split]
        assert [values[0], values[2]] == [end.values["accuracy"] for end in ends]
        assert values[1] == tuned.metrics[split].values["accuracy"]
        assert tuned.baselines["not_interpolated"][split].values == ends[1].values


def test_the_adapters_update_is_scaled(run_on: Any) -> None:
    _, whole = run_on("lora", lp_ft(LORA))
    half_folder, half = run_on("lora-half", lp_ft(f"{LORA}, interpolate: {{alphas: [0.25]}}"))
    start, found = state(half_folder / "stages" / "probe" / "model"), state(half_folder / "model")
    end = state(half_folder.parent / "lora" / "model")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, start[name] + 0.25 * (end[name] - start[name]), rtol=1e-4, atol=1e-6)
    moved = [name for name in found if not torch.equal(start[name], end[name])]
    assert len(moved) == 12
    assert half.stages[1].trainable_parameters == whole.stages[1].trainable_parameters > 0


def test_report_and_card_say_how_far_it_went(halfway: tuple[Path, RunResult]) -> None:
    report = (halfway[0] / "report.html").read_text(encoding="utf-8")
    assert "Accuracy between the weights before and after training" in report
    assert "to α = 0.5 of the way from the start" in report
    card = (halfway[0] / "README.md").read_text(encoding="utf-8")
    assert "| interpolated to α | – | 0.5 |" in card
    assert "the fine-tuned weights before interpolation" in card


class Thermometer:
    """A task whose one weight is what is predicted, and whose score says how near that is to a target."""

    headline, higher_is_better = "distance", False

    def references(self, rows: float) -> float:
        return rows

    def settled(self, predictions: list[float], references: float) -> Thermometer:
        return self

    def decided(self, predictions: list[float]) -> list[float]:
        return predictions

    def score(self, predictions: list[float], references: float, *, intervals: bool) -> Any:
        assert not intervals
        return type("Score", (), {"values": {"distance": abs(predictions[0] - references)}})


class Split:
    def __init__(self, target: float) -> None:
        self.rows = target


def linear(weight: float, width: int = 1) -> Any:
    config = images.CONFIGS["vit"]()
    model = AutoModelForImageClassification.from_config(config)
    model.classifier = torch.nn.Linear(width, 1)
    with torch.no_grad():
        model.classifier.weight.fill_(weight)
    return model


def go(keys: dict[str, Any], **targets: float) -> Any:
    torch.manual_seed(0)
    start, end = linear(0.0), linear(1.0)
    splits: Any = {name: Split(target) for name, target in targets.items()}
    predict: Any = lambda model, rows: [float(model.classifier.weight.detach().item())]  # noqa: E731
    task: Any = Thermometer()
    return interpolate(task, start, end, Interpolate(**keys), splits, predict)


def test_validation_alone_chooses() -> None:
    model, found, trained = go({}, test=0.9, validation=0.3)
    assert found.alpha == 0.3
    assert model.classifier.weight.item() == pytest.approx(0.3)
    assert found.by_split["test"][9] == pytest.approx(0.0, abs=1e-6)
    assert trained == {"test": [1.0], "validation": [1.0]}


def test_only_what_the_recipe_offers_is_chosen() -> None:
    _, found, _ = go({"alphas": [0.6, 0.8]}, validation=0.0)
    assert (found.alpha, found.alphas) == (0.6, [0.0, 0.6, 0.8, 1.0])


def test_weights_of_other_shapes_are_refused() -> None:
    splits: Any = {}
    task: Any = Thermometer()
    with pytest.raises(CheckpointError, match=r"interpolate: the weights .* differ in shape \(classifier.weight"):
        interpolate(task, linear(0.0), linear(0.0, width=2), Interpolate(), splits, lambda model, rows: [])


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("{stage: transfer, steps: 1, learning_rate: 1e-3, interpolate: true}", "a key of `stage: finetune`"),
        ("{stage: probe, interpolate: true}", "have no effect: interpolate"),
    ],
)
def test_stages_with_a_random_head_are_refused(place: Path, stage: str, said: str) -> None:
    recipe = images.write_recipe(place / "refused.yaml", Path("vit"), Path("data"), stage=stage)
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe)


def test_several_need_validation(place: Path) -> None:
    recipe = images.write_recipe(place / "refused.yaml", Path("vit"), Path("data"), stage=lp_ft("interpolate: true"))
    with pytest.raises(RecipeError, match=r"interpolate: needs a validation split to choose by"):
        load_recipe(recipe, ["data.splits.validation=null"])
    assert load_recipe(recipe, ["data.splits.validation=null", "stages.1.interpolate={alphas: [0.5]}"])
    assert load_recipe(recipe, ["stages.1.interpolate=false"]).stages[1].interpolate is None


def summaries(folder: Path) -> Path:
    texts.save_model(folder / "model", "t5")
    texts.save_data(folder / "data")
    return texts.write_recipe(folder / "recipe.yaml", folder / "model", folder / "data", stage=TUNE)


def clips(folder: Path) -> Path:
    speech.save_whisper(folder / "model", multilingual=False)
    speech.save_data(folder / "data")
    return speech.write_recipe(folder / "recipe.yaml", folder / "model", folder / "data", stage=TUNE)


TUNE = "{stage: finetune, steps: 2, batch_size: 8, learning_rate: 1e-2, adapt: lora, interpolate: {alphas: [0.5]}}"


@pytest.mark.parametrize("make", [summaries, clips])
def test_other_tasks_interpolate_too(make: Any, tmp_path: Path) -> None:
    result = run_recipe(make(tmp_path), tmp_path / "run")
    curve = result.best.training.interpolation
    assert curve.alpha == 0.5
    for split, values in curve.by_split.items():
        untouched = result.stages[0].baselines["checkpoint"][split].values
        assert values[0] == untouched[curve.metric]
        assert values[1] == result.stages[0].metrics[split].values[curve.metric]
