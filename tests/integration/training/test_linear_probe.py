"""The probe: as good as a head trained through the backbone, exact from the cache, and the first half of LP-FT."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.runs import run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import CheckpointError, RecipeError
from tltasks.runs.prepare import prepare_stages
from tltasks.training import evaluation, linear_probe
from tltasks.training.evaluation import predict_rows

STAGES = (
    "{stage: probe, l2: 0.01}\n  - {stage: finetune, start: previous, steps: 2, batch_size: 8, learning_rate: 1e-4}"
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    save_data(folder / "data")
    for name in ("vit", "resnet"):
        save_model(folder / name, name, seed=7)  # weights of which no other test has cached features
    return folder


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of the backbone by the probe."""
    seen: list[int] = []
    embed = evaluation.embed_rows

    def counted(accelerator: Any, task: Any, model: Any, rows: Any, *, workers: int) -> Any:
        seen.append(len(rows))
        return embed(accelerator, task, model, rows, workers=workers)

    monkeypatch.setattr(evaluation, "embed_rows", counted)
    return seen


def opened(recipe: Path) -> Any:
    loaded = load_recipe(recipe)
    return prepare_stages(Accelerator(cpu=True), plan_run(loaded))[0]


@pytest.fixture(autouse=True)
def features_of_no_other_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are found by their content, which other tests of the same tiny models may have computed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_head_on_the_cache_is_the_head_through_the_backbone(
    zoo: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same penalised loss, minimised through the whole model with everything below the head frozen."""
    recipe = write_recipe(zoo / f"{name}.yaml", zoo / name, zoo / "data", stage="{stage: probe, l2: 0.1}")
    accelerator, item, seen = Accelerator(cpu=True), opened(recipe), passes(monkeypatch)
    torch.manual_seed(0)
    model = item.task.build(item.plan.kind).model
    (head,) = item.task.head(model)
    _, fit = linear_probe.fit_probe(accelerator, item.task, model, [head], item.plan.stage, item.encoded, workers=0)
    assert len(seen) == 2
    again = item.task.build(item.plan.kind).model
    _, cached = linear_probe.fit_probe(accelerator, item.task, again, [head], item.plan.stage, item.encoded, workers=0)
    assert len(seen) == 2, "features were computed again"
    assert torch.equal(fit.weight, cached.weight)

    through, linear = model.double(), model.get_submodule(head)
    batch = item.task.collate_eval(item.encoded["train"].rows, range(len(item.encoded["train"].rows)))
    pixels = item.task.preprocessing.normalise(batch["pixels"]).double()
    with torch.no_grad():
        scale = evaluation.cached_features(accelerator, item.task, again, head, item.encoded["train"], workers=0).std(0)
    logits = through(pixel_values=pixels).logits
    penalty = 0.05 * (linear.weight * torch.from_numpy(scale)).square().sum()
    value = functional.cross_entropy(logits, batch["labels"]) + penalty
    value.backward()
    for parameter in linear.parameters():  # the found minimum is one for the whole model, too
        assert float(parameter.grad.abs().max()) < 1e-5
    with torch.no_grad():  # and another head would be seen not to be one
        linear.weight.add_(0.01 * torch.arange(linear.out_features)[:, None])
    linear.zero_grad()
    functional.cross_entropy(through(pixel_values=pixels).logits, batch["labels"]).backward()
    assert float(linear.weight.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_probabilities_from_the_cache_are_those_through_the_backbone(zoo: Path, name: str) -> None:
    recipe = write_recipe(zoo / f"{name}-p.yaml", zoo / name, zoo / "data", stage="{stage: probe, l2: 0.01}")
    accelerator, item = Accelerator(cpu=True), opened(recipe)
    model = item.task.build(item.plan.kind).model
    (head,) = item.task.head(model)
    _, fit = linear_probe.fit_probe(accelerator, item.task, model, [head], item.plan.stage, item.encoded, workers=0)
    rows = item.encoded["validation"].rows
    features = evaluation.cached_features(accelerator, item.task, model, head, item.encoded["validation"], workers=0)
    from_cache = (torch.from_numpy(features).double() @ fit.weight.T + fit.bias).softmax(1).numpy()
    through = np.stack([p["probabilities"] for p in predict_rows(accelerator, item.task, model, rows, workers=0)])
    np.testing.assert_allclose(from_cache, through, atol=1e-5)


def test_other_weights_or_rows_are_other_features(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(zoo / "key.yaml", zoo / "vit", zoo / "data", stage="{stage: probe}")
    accelerator, item, seen = Accelerator(cpu=True), opened(recipe), passes(monkeypatch)
    model = item.task.build(item.plan.kind).model
    (head,) = item.task.head(model)

    def look(split: str = "train") -> None:
        evaluation.cached_features(accelerator, item.task, model, head, item.encoded[split], workers=0)

    look(), look("test")
    before = len(seen)
    with torch.no_grad():
        model.get_submodule(head).weight.add_(1)
    look()
    assert len(seen) == before, "the head is not part of the key"
    with torch.no_grad():
        model.vit.layernorm.bias.add_(1e-3)
    look()
    assert len(seen) == before + 1
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-features"
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    look()
    assert len(seen) == before + 2, "a damaged file is as good as none"


def test_the_fit_is_the_minimum() -> None:
    """Against scikit-learn's, whose C is 1 / (rows × l2)."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    x = (x - x.mean(0)) / x.std(0)
    y = rng.integers(0, 3, 60)
    fit = linear_probe.fit_linear(x, y, n_classes=3, l2=0.02)
    theirs = LogisticRegression(C=1 / (60 * 0.02), tol=1e-10, max_iter=10_000).fit(x, y)
    ours = (torch.from_numpy(x).double() @ fit.weight.T + fit.bias).softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x), atol=1e-5)


def test_what_rounding_makes_of_a_feature_decides_nothing() -> None:
    """A feature of 100 that varies in its last bit alone, as one of a dead branch does, gets no weight to speak of."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, size=40)
    told = (y + generator.normal(0, 0.4, size=40)).astype(np.float32)
    rounded = np.float32(100) + np.float32(8e-6) * y.astype(np.float32)
    fit = linear_probe.fit_linear(np.stack([told, rounded], 1), y, n_classes=2, l2=1e-3)
    assert fit.weight[:, 0].abs().max() > 1
    assert fit.weight[:, 1].abs().max() < 1
    vanishing = np.float32(1e-20) * np.stack([told, told**2], 1)
    assert linear_probe.fit_linear(vanishing, y, n_classes=2, l2=1e-3).weight.abs().max() < 1


def test_features_that_are_the_same_for_all_rows_are_refused(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(zoo / "same.yaml", zoo / "vit", zoo / "data", stage="{stage: probe, l2: 0.1}")
    item = opened(recipe)
    model = item.task.build(item.plan.kind).model
    (head,) = item.task.head(model)
    width = model.get_submodule(head).in_features
    monkeypatch.setattr(
        linear_probe,
        "cached_features",
        lambda accelerator, task, model, head, split, workers: (
            np.full((len(split.rows), width), 0.3, np.float32)
            + np.arange(len(split.rows), dtype=np.float32)[:, None] * 3e-8
        ),
    )
    with pytest.raises(CheckpointError, match="are the same for all rows of `train`"):
        linear_probe.fit_probe(
            Accelerator(cpu=True), item.task, model, [head], item.plan.stage, item.encoded, workers=0
        )


def test_validation_chooses_the_penalty() -> None:
    rng = np.random.default_rng(0)
    features = {split: rng.normal(size=(n, 40)).astype(np.float32) for split, n in (("train", 30), ("validation", 300))}
    labels = {split: (x[:, 0] + 0.5 * rng.normal(size=len(x)) > 0).astype(int) for split, x in features.items()}
    fits = {
        l2: linear_probe.choose_fit(features, labels, n_classes=2, l2=l2).validation_accuracy
        for l2 in (1e-6, 1e-2, 1.0)
    }
    best = linear_probe.choose_fit(features, labels, n_classes=2, l2=list(fits))
    assert len(set(fits.values())) > 1, "nothing to choose between"
    assert best.validation_accuracy == max(fits.values())


def test_probe_then_finetune_goes_on_from_the_fitted_head(zoo: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", zoo / "vit", zoo / "data", stage=STAGES)
    result = run_recipe(recipe, tmp_path / "run", "stages.1.learning_rate=1e-9", "stages.1.optimizer=sgd")
    first, second = result.stages
    assert first.training.l2 == 0.01
    assert first.trainable_parameters == 3 * 32 + 3
    assert first.metrics["test"].values["accuracy"] == 1
    assert second.metrics["test"].values["loss"] == pytest.approx(first.metrics["test"].values["loss"], abs=1e-4)
    assert [it.stage for it in second.lineage] == ["probe"]
    assert "classifier.weight" in weights(tmp_path / "run")
    assert "on cached features" in (tmp_path / "run" / "report.html").read_text()


def test_what_a_probe_cannot_fit_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="probe fits the head in one go, so these keys have no effect: epochs"):
        load_recipe(write_recipe(tmp_path / "a.yaml", zoo / "vit", zoo / "data", stage="{stage: probe, epochs: 1}"))
    recipe = write_recipe(tmp_path / "b.yaml", zoo / "vit", zoo / "data", stage="{stage: probe}")
    item = opened(recipe)
    with pytest.raises(CheckpointError, match="is not one linear layer"):
        linear_probe.fit_probe(
            Accelerator(cpu=True),
            item.task,
            item.task.build(item.plan.kind).model,
            ["vit"],
            item.plan.stage,
            {},
            workers=0,
        )
