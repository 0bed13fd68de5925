"""SimCLR: its loss by hand, its views, its groups, what it learns, and what classifiers make of its weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from tests.tiny.images import save_contrastive, save_data, save_mae, save_model
from tests.tiny.runs import largest_difference, run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.config.tasks.image import Views
from tltasks.errors import CheckpointError, RecipeError
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.image.contrastive import Projection, TwoViews, nt_xent

OBJECTIVE = "{name: objective, stage: %s, task: contrastive-image, data: *unlabelled, batch_size: 8, %s}"
TRANSFER = (
    "{name: task, stage: transfer, start: previous, steps: 1, batch_size: 8, learning_rate: 1e-9, optimizer: sgd}"
)
ONCE = "steps: 1, learning_rate: 1e-3"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for name in ("vit", "resnet", "swin", "convnext", "timm-efficientnet"):
        save_model(folder / name, name)
    for name in ("clip", "siglip"):
        save_contrastive(folder / name, name)
    save_data(folder / "data", splits={"train": 24, "validation": 9, "test": 12})
    return folder


def write_chain(path: Path, zoo: Path, *stages: str, model: str = "vit", label: str = "label") -> Path:
    files = {split: str(zoo / "data" / f"{split}.parquet") for split in ("train", "validation", "test")}
    data = {"name": "parquet", "files": files, "splits": {"validation": "validation"}}
    unlabelled = {**data, "columns": {"label": label}} if label else data
    lines = "\n".join(f"  - {stage}" for stage in stages).replace("*unlabelled", json.dumps(unlabelled))
    path.write_text(
        f"task: image-classification\nmodel: {{name: {zoo / model}}}\ndata: {json.dumps(data)}\n"
        f"stages:\n{lines}\noutput: {path.parent / 'output'}\nprecision: fp32\n"
    )
    return path


def opened(recipe: Path) -> Any:
    loaded = load_recipe(recipe)
    return prepare_stages(Accelerator(cpu=True), plan_run(loaded))


@pytest.fixture
def opener(zoo: Path, tmp_path: Path) -> Callable[..., Any]:
    def item(kind: str = "transfer", more: str = ONCE, **keys: Any) -> Any:
        return opened(write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % (kind, more), **keys))[0]

    return item


# ---------------------------------------------------------------------------------------------- losses


def test_the_loss_by_hand() -> None:
    """Two images at right angles, the second view of the second turned to the first image; a temperature of 0.5."""
    first = torch.tensor([[1.0, 0], [0, 2]])
    second = torch.tensor([[3.0, 0], [4, 0]])
    losses, matched = nt_xent(first, second, temperature=0.5)
    e2 = math.exp(2)
    own = math.log((e2 + 1 + e2) / e2)  # both views of the first image: similar by one to two views, by none to one
    lost = (math.log(3), math.log(1 + 2 * e2))  # similar by none to all; and by none to its own, by one to two
    assert losses.tolist() == pytest.approx([own, sum(lost) / 2], rel=1e-5)
    assert not matched[1]
    assert nt_xent(first[:1], second[:1], temperature=0.1)[0].tolist() == [0], "alone, there is nothing to tell from"
    alike = torch.ones(8, 4)
    assert nt_xent(alike, alike, temperature=0.1)[0].tolist() == pytest.approx([math.log(15)] * 8)


def test_the_task_takes_the_loss_of_its_projections(opener: Callable[..., Any]) -> None:
    item = opener(more=ONCE + ", temperature: 0.5, projection: 16")
    model = item.task.build(item.plan.kind).model.eval()
    batch = item.task.collate_train(item.encoded["train"].rows, range(6), epoch=0)
    with torch.no_grad():
        normal = item.task.preprocessing.normalise
        first, second = (model(pixel_values=normal(batch[view])).logits for view in ("first", "second"))
        ours = float(item.task.loss(model, batch))
    assert first.shape == (6, 16)
    assert ours == pytest.approx(float(nt_xent(first, second, temperature=0.5)[0].mean()), rel=1e-5)
    assert [type(layer).__name__ for layer in model.classifier] == ["Linear", "ReLU", "Linear"]
    assert model.classifier[0].weight.shape == (32, 32)


# ----------------------------------------------------------------------------------------------- views


def test_views_are_drawn_by_seed_epoch_and_row(opener: Callable[..., Any]) -> None:
    item = opener()
    rows, task = item.encoded["train"].rows, item.task
    whole, part = (task.collate_train(rows, i, epoch=1) for i in (range(6), [4, 2]))
    for view in ("first", "second"):
        assert torch.equal(whole[view][[4, 2]], part[view])
    assert not torch.equal(part["first"], part["second"])
    assert not torch.equal(task.collate_train(rows, [4, 2], epoch=2)["first"], part["first"])
    assert torch.equal(task.collate_eval(rows, [3])["first"], task.collate_eval(rows, range(5))["first"][[3]])


def test_each_change_does_what_it_says() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8))
    still = {"crop": 1.0, "flip": False, "colour": 0.0, "grey": 0.0, "blur": 0.0}

    def views(**keys: Any) -> list[torch.Tensor]:
        return [TwoViews(Views(**{**still, **keys}), size=32)(image, seed=0, epoch=0, row=r)[0] for r in range(40)]

    grey = [bool((view[0] == view[1]).all()) for view in views(grey=0.5)]
    assert 10 < sum(grey) < 30
    rough = float(image.float().diff(dim=2).abs().mean())
    assert 10 < sum(float(v.float().diff(dim=2).abs().mean()) < 0.9 * rough for v in views(blur=0.9)) <= 40
    assert 10 < sum(torch.equal(v, image.flip(2)) for v in views(flip=True)) < 30
    assert 25 < sum(not torch.equal(v, image) for v in views(colour=0.5)) < 40
    assert len({v.numpy().tobytes() for v in views(crop=0.2)}) > 35


# ---------------------------------------------------------------------------------------------- groups


def test_negatives_are_those_of_the_group(zoo: Path, opener: Callable[..., Any]) -> None:
    """Twelve rows in groups of eight: the last group is filled up with four rows before it."""
    item = opener(more=ONCE + ", loss_group: 8")
    task = item.task
    rng = np.random.default_rng(0)
    predictions = [{"prediction": 0.0, "views": rng.normal(size=(2, 4)).astype(np.float32)} for _ in range(12)]
    views = torch.from_numpy(np.stack([p["views"] for p in predictions]))
    first = nt_xent(views[:8, 0], views[:8, 1], temperature=0.1)[0]
    last = nt_xent(views[4:, 0], views[4:, 1], temperature=0.1)[0][4:]
    scores = task.row_scores(predictions, [None] * 12)
    np.testing.assert_allclose(scores[:, 0], torch.cat([first, last]).numpy(), rtol=1e-5)
    assert task.score(predictions, [None] * 12, intervals=False).values["loss"] == pytest.approx(scores[:, 0].mean())
    assert task.baselines(item.encoded["train"], list(range(12)))["chance"][0]["loss"] == pytest.approx(math.log(15))
    assert task.baselines(item.encoded["train"], list(range(5)))["chance"][0]["loss"] == pytest.approx(math.log(9))


# -------------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def chain(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    more = (
        "steps: 60, learning_rate: 3e-3, schedule: constant, evaluate_every: 60, projection: 16, "
        "views: {crop: 0.5, colour: 0.2, grey: 0.0, blur: 0.0}"
    )
    run_recipe(write_chain(folder / "r.yaml", zoo, OBJECTIVE % ("pretrain", more), TRANSFER), folder / "run")
    return folder


def test_overfits_a_tiny_set_without_labels(chain: Path) -> None:
    result = json.loads((chain / "run" / "result.json").read_text())["stages"][0]
    ours, chance = result["metrics"]["test"]["values"], result["baselines"]["chance"]["test"]["values"]
    assert chance["loss"] == pytest.approx(math.log(15))
    assert ours["loss"] < 0.6 * chance["loss"]
    assert ours["knn_accuracy"] > 0.6
    assert ours["feature_spread"] > 0.01


def test_the_backbone_is_handed_to_a_classifier(chain: Path) -> None:
    after = json.loads((chain / "run" / "result.json").read_text())["stages"][1]
    model = chain / "run" / "stages" / "objective" / "model"
    handed, own = load_file(model / "model.safetensors"), weights(chain / "run")
    shared = [name for name in own if not name.startswith("classifier")]
    assert len(shared) > 20
    assert all(torch.allclose(own[name], handed[name], atol=1e-6) for name in shared)
    assert after["weights"]["newly_initialised"] == ["classifier.bias", "classifier.weight"]
    assert after["weights"]["loaded_share"] == 1
    assert after["weights"]["left"] == {"classifier": 4}
    assert [it["stage"] for it in after["lineage"]] == ["objective"]
    assert json.loads((model / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    backbone = AutoModel.from_pretrained(model).state_dict()
    assert torch.equal(backbone["embeddings.cls_token"], handed["vit.embeddings.cls_token"])
    assert AutoModelForImageClassification.from_pretrained(chain / "run" / "model").config.num_labels == 3


@pytest.mark.parametrize("model", ["resnet", "swin", "convnext", "timm-efficientnet", "clip", "siglip"])
def test_other_backbones(opener: Callable[..., Any], tmp_path: Path, model: str) -> None:
    item = opener(model=model)
    task = item.task
    built = task.build(item.plan.kind)
    made = built.model.eval()
    batch = task.collate_eval(item.encoded["test"].rows, range(4))
    with torch.no_grad():
        before = task.predict(made, batch)
    task.save(tmp_path / "saved", made, adapter=False)
    with torch.no_grad():
        after = task.predict(task.reload(tmp_path / "saved").eval(), batch)
    np.testing.assert_allclose([p["views"] for p in before], [p["views"] for p in after], atol=1e-5)
    assert before[0]["features"].ndim == 1
    assert before[0]["views"].shape == (2, 128)
    encoder = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()  # as the card has it
    encoder.set_submodule(task.settings["head"], torch.nn.Identity())
    with torch.no_grad():
        alone = encoder(pixel_values=task.preprocessing.normalise(batch["pixels"])).logits
    np.testing.assert_allclose(alone, [p["features"] for p in before], atol=1e-5)
    assert built.provenance.loaded_share == 1


def test_it_goes_on_from_a_checkpoint_and_an_adapter_is_merged(
    zoo: Path,
    chain: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = str(chain / "run" / "stages" / "objective" / "model")
    more = "steps: 1, learning_rate: 1e-9, optimizer: sgd, adapt: {lora: {rank: 2}}"
    more += ", views: {crop: 0.5, colour: 0.2, grey: 0.0, blur: 0.0}"
    recipe = write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % ("finetune", more), model=model)
    (stage,) = run_recipe(recipe, tmp_path / "run").stages
    assert stage.weights.newly_initialised == []
    assert stage.weights.adapter is False
    untouched, ours = (it["test"].values["loss"] for it in (stage.baselines["checkpoint"], stage.metrics))
    assert ours == pytest.approx(untouched, abs=1e-3)
    assert largest_difference(weights(tmp_path / "run"), load_file(Path(model) / "model.safetensors")) < 1e-4
    card = (tmp_path / "run" / "README.md").read_text()
    assert "merged into its weights" in card
    assert "(SimCLR)" in card
    assert "PeftModel" not in card
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path / "run")
    exec(code, names := {})
    assert names["features"].shape == (32,)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "red.png")]) == 0
    assert -1 <= json.loads(capsys.readouterr().out)["prediction"] <= 1


def test_collapse_is_said(opener: Callable[..., Any]) -> None:
    task = opener().task
    for noise, collapsed in ((1.0, False), (1e-4, True)):
        rng = np.random.default_rng(0)
        predictions = [
            {
                "prediction": 0.0,
                "views": rng.normal(size=(2, 4)).astype(np.float32),
                "features": 1 + noise * rng.normal(size=8),
            }
            for _ in range(8)
        ]
        notes = task.score(predictions, [None] * 8, intervals=False).notes
        assert ("collapsed" in " ".join(notes)) == collapsed


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "more", "error", "said"),
    [
        ("finetune", ONCE, CheckpointError, r"no weights for its projection .*`stage: transfer`"),
        ("transfer", ONCE + ", micro_batch: 2", RecipeError, "`micro_batch` has no effect"),
        ("transfer", ONCE + ", loss_group: 3", RecipeError, "`batch_size` 8 is not a multiple of `loss_group` 3"),
    ],
)
def test_refusals_say_what_to_do(zoo: Path, tmp_path: Path, kind: str, more: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        run_recipe(write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % (kind, more)), tmp_path / "run")


def test_a_model_without_images_is_refused(zoo: Path, tmp_path: Path) -> None:
    from tests.tiny.texts import save_model as save_text

    save_text(tmp_path / "gpt2", "gpt2")
    recipe = write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % ("transfer", ONCE), model=str(tmp_path / "gpt2"))
    with pytest.raises(CheckpointError, match="no image classifier for gpt2"):
        opened(recipe)


def test_a_masked_autoencoder_gives_its_encoder(zoo: Path, tmp_path: Path) -> None:
    save_mae(tmp_path / "mae")
    recipe = write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % ("transfer", ONCE), model=str(tmp_path / "mae"))
    (item,) = opened(recipe)
    built = item.task.build(item.plan.kind)
    assert isinstance(built.model.get_submodule("classifier"), Projection)
    assert built.provenance.loaded_share == 1
