"""Masked image modelling: its losses by hand, its masks, what it learns, and what later stages make of its weights."""

import contextlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModelForImageClassification, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tests.tiny.images import png, save_data, save_mae, save_model
from tests.tiny.runs import equal, run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.config.stage import UnlabelledStage
from tltasks.errors import CheckpointError, Interrupted, RecipeError
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.image.masking import MaskedAutoencoder, SimMIM, sine_cosine_table

PRETRAIN = "{name: objective, stage: pretrain, task: masked-image-modeling, data: *unlabelled, batch_size: 8, %s}"
TRANSFER = "{name: task, stage: transfer, start: previous, steps: 3, batch_size: 8, learning_rate: 1e-3}"
PROBE = "{name: probe, stage: probe, start: previous, l2: 0.1}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objective")
    save_mae(folder / "architecture", weights=False)
    save_mae(folder / "mae")
    for name in ("vit", "swin"):
        save_model(folder / name, name)
    save_data(folder / "data")
    return folder


def write_chain(path: Path, zoo: Path, *stages: str, model: str = "architecture", label: str = "label") -> Path:
    files = {split: str(zoo / "data" / f"{split}.parquet") for split in ("train", "validation", "test")}
    data = {"name": "parquet", "files": files, "splits": {"validation": "validation"}}
    unlabelled = {**data, "columns": {"label": label}} if label else data
    lines = "\n".join(f"  - {stage}" for stage in stages)
    lines = lines.replace("*unlabelled", json.dumps(unlabelled))
    path.write_text(
        f"task: image-classification\nmodel: {{name: {zoo / model}}}\ndata: {json.dumps(data)}\n"
        f"stages:\n{lines}\noutput: {path.parent / 'output'}\nprecision: fp32\n"
    )
    return path


def opened(recipe: Path) -> Any:
    loaded = load_recipe(recipe)
    return prepare_stages(Accelerator(cpu=True), plan_run(loaded))


# ---------------------------------------------------------------------------------------------- losses


class Answers(torch.nn.Module):
    """Gives what it was told, with the mask that MAE makes of noise."""

    def __init__(self, model: Any, logits: torch.Tensor) -> None:
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        output.logits = self.logits
        return output


def halves() -> torch.Tensor:
    """Pixels [1, 3, 16, 16] whose four patches of 8 pixels are each half 0, half 1."""
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[:, :, :, ::2] = 1
    return pixels


def test_the_loss_of_mae_by_hand(tmp_path: Path) -> None:
    """One patch of four is seen. Normalised by an unbiased variance of n / 4(n - 1), a guess of 0 costs (n - 1) / n."""
    model = ViTMAEForPreTraining.from_pretrained(save_mae(tmp_path / "mae", image_size=16, norm_pix_loss=True))
    objective, n = MaskedAutoencoder(patch=8, side=2, ratio=0.75, normalised=True), 3 * 8**2
    noise = torch.tensor([[0.4, 0.1, 0.9, 0.5]])  # the second patch is seen
    logits = torch.zeros(1, 4, n)
    logits[:, 1] = 1e6
    loss = objective.row_losses(Answers(model, logits), halves(), noise)
    assert loss.tolist() == pytest.approx([(n - 1) / n], abs=1e-5)
    logits[0, 2] = (model.patchify(halves())[0, 2] - 0.5) / (n / (4 * (n - 1))) ** 0.5
    loss = objective.row_losses(Answers(model, logits), halves(), noise)
    assert loss.tolist() == pytest.approx([2 / 3 * (n - 1) / n], abs=1e-5)
    assert objective.mean_patch_losses(halves(), noise).tolist() == pytest.approx([(n - 1) / n], abs=1e-5)

    plain = MaskedAutoencoder(patch=8, side=2, ratio=0.75, normalised=False)  # 0.5 away everywhere, squared
    assert plain.row_losses(Answers(model, torch.full((1, 4, n), 0.5)), halves(), noise).tolist() == [0.25]
    assert plain.mean_patch_losses(halves(), noise).tolist() == [0.25]


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_of_mae_is_that_of_transformers(tmp_path: Path, normalised: bool) -> None:
    model = ViTMAEForPreTraining.from_pretrained(save_mae(tmp_path / "mae", norm_pix_loss=normalised))
    objective = MaskedAutoencoder(patch=8, side=4, ratio=0.75, normalised=normalised)
    pixels = torch.randn(5, 3, 32, 32)
    masks = torch.stack([torch.from_numpy(objective.draw_mask(seed=0, epoch=0, row=row)) for row in range(5)])
    with torch.no_grad():
        ours, theirs = objective.row_losses(model, pixels, masks), model(pixel_values=pixels, noise=masks).loss
    assert float(ours.mean()) == pytest.approx(float(theirs), rel=1e-5)
    assert model.config.mask_ratio == 0.75


def test_the_loss_of_simmim_by_hand() -> None:
    """Two of four squares are hidden; 0.5 away in one of them, exact in the other: 0.25 a pixel."""
    objective = SimMIM(patch=8, side=2, ratio=0.5, square=1, stride=8)
    pixels, masks = halves(), torch.tensor([[1.0, 0, 0, 1]])
    guess = torch.full((1, 3, 16, 16), 9.0)
    guess[:, :, :8, :8], guess[:, :, 8:, 8:] = 0.5, pixels[:, :, 8:, 8:]
    output = type("Output", (), {"reconstruction": guess})
    assert objective.row_losses(lambda **_: output, pixels, masks).tolist() == [0.25]
    assert objective.mean_patch_losses(pixels, masks).tolist() == [0.5]


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_the_loss_of_simmim_is_that_of_transformers(zoo: Path, tmp_path: Path, name: str) -> None:
    stage = PRETRAIN % "steps: 1, learning_rate: 1e-3"
    (item,) = opened(write_chain(tmp_path / "r.yaml", zoo, stage, model=name))
    model = item.task.build(item.plan.kind).model.eval()
    batch = item.task.collate_eval(item.encoded["test"].rows, range(6))
    pixels = item.task.preprocessing.normalise(batch["pixels"])
    with torch.no_grad():
        theirs = model(pixel_values=pixels, bool_masked_pos=batch["masks"].bool()).loss
        assert float(item.task.loss(model, batch)) == pytest.approx(float(theirs), rel=1e-4)


# ----------------------------------------------------------------------------------------------- masks


def test_masks_hide_their_share_and_are_drawn_by_seed_epoch_and_row() -> None:
    mae = MaskedAutoencoder(patch=8, side=8, ratio=0.75, normalised=True)
    simmim = SimMIM(patch=4, side=16, ratio=0.6, square=4, stride=4)
    assert simmim.draw_mask(seed=0, epoch=0, row=0).sum() == 10 * 16  # ten of sixteen squares of sixteen patches
    grid = simmim.draw_mask(seed=0, epoch=0, row=0).reshape(4, 4, 4, 4)
    assert all(len(np.unique(grid[i, :, j])) == 1 for i in range(4) for j in range(4))
    for objective in (mae, SimMIM(patch=4, side=16, ratio=0.6, square=1, stride=4)):
        drawn = [
            objective.draw_mask(seed=s, epoch=e, row=r).tobytes() for s in (0, 1) for e in (-1, 0, 1) for r in range(4)
        ]
        assert len(set(drawn)) == len(drawn)
        assert objective.draw_mask(seed=1, epoch=1, row=3).tobytes() == drawn[-1]


def test_masks_do_not_depend_on_batches(zoo: Path, tmp_path: Path) -> None:
    stage = PRETRAIN % "steps: 4, learning_rate: 1e-3, optimizer: sgd, augment: {flip: true, crop: 0.5}"
    recipe = write_chain(tmp_path / "r.yaml", zoo, stage)
    (item,) = opened(recipe)
    rows, task = item.encoded["train"].rows, item.task
    whole, part = task.collate_eval(rows, range(9)), task.collate_eval(rows, [7, 3])
    assert torch.equal(whole["masks"][[7, 3]], part["masks"])
    assert torch.equal(task.collate_eval(rows.select([5, 7]), [1])["masks"], part["masks"][:1]), (
        "a subset keeps its masks"
    )
    first, second = (task.collate_train(rows, [7], epoch=epoch)["masks"] for epoch in (0, 1))
    assert not torch.equal(first, second)


# -------------------------------------------------------------------------------------------- learning


def waves(folder: Path, count: int = 6) -> Path:
    """Pictures in which what is hidden follows from what is seen."""
    y, x = np.mgrid[:32, :32]
    pictures = []
    for i in range(count):
        wave = np.sin(x / (3 + i)) * np.cos(y / (4 + i / 2))
        pictures.append({"bytes": png(Image.fromarray((wave[..., None] * [100, 60, 30] + 128).astype(np.uint8)))})
    features = datasets.Features({"image": datasets.Image()})
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = {"image": [{**picture, "path": None} for picture in pictures]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(("model", "share"), [("architecture", 0.4), ("vit", 0.4)])
def test_overfits_a_tiny_set_without_labels(zoo: Path, tmp_path: Path, model: str, share: float) -> None:
    waves(tmp_path)
    (tmp_path / model).symlink_to(zoo / model)
    stage = PRETRAIN % "steps: 400, learning_rate: 5e-3, weight_decay: 0, evaluate_every: 400, schedule: constant"
    result = run_recipe(
        write_chain(tmp_path / "r.yaml", tmp_path, stage, model=model, label=""), tmp_path / "run"
    ).stages[0]
    ours, flat = result.metrics["test"].values, result.baselines["mean_patch"]["test"].values
    assert ours["loss"] < share * flat["loss"]
    assert "knn_accuracy" not in ours
    assert ours["feature_spread"] > 0.01
    table = pq.read_table(tmp_path / "run" / "predictions" / "objective-test.parquet").to_pydict()
    assert table["reference"] == [None] * 6
    assert np.mean(table["loss"]) == pytest.approx(ours["loss"])


def test_a_new_autoencoder_knows_where_its_patches_are(zoo: Path, tmp_path: Path) -> None:
    theirs = build_2d_sinusoidal_position_embedding(4, 4, 32, cls_token=True)
    theirs = torch.cat([theirs[..., 16:], theirs[..., :16]], -1)  # as in ViTMAEEmbeddings.initialize_weights
    torch.testing.assert_close(sine_cosine_table(4, 32)[0], theirs)
    (item,) = opened(write_chain(tmp_path / "r.yaml", zoo, PRETRAIN % "steps: 1, learning_rate: 1e-3"))
    model: Any = item.task.build(item.plan.kind).model
    assert torch.equal(model.vit.embeddings.position_embeddings, sine_cosine_table(4, 32))
    assert torch.equal(model.decoder.decoder_pos_embed, sine_cosine_table(4, 16))
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert 0.01 < float(token.detach().std()) < 0.03


def test_collapse_is_said(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate at which every feature becomes the same."""
    (item,) = opened(write_chain(tmp_path / "r.yaml", zoo, PRETRAIN % "steps: 1, learning_rate: 1e-3"))
    rng = np.random.default_rng(0)
    for noise, collapsed in ((1.0, False), (1e-4, True)):
        predictions = [{"loss": 0.5, "features": 1 + noise * rng.normal(size=8)} for _ in range(6)]
        score = item.task.score(predictions, ["a", "b"] * 3, intervals=False)
        assert ("collapsed" in " ".join(score.notes)) == collapsed
        assert (score.values["feature_spread"] < 0.01) == collapsed
    assert score.values["knn_accuracy"] <= 1


# ------------------------------------------------------------------------------------------ from stage to stage


@pytest.mark.parametrize(("model", "left"), [("architecture", 24), ("vit", 2), ("swin", 2)])
def test_the_encoder_is_handed_on(zoo: Path, tmp_path: Path, model: str, left: int) -> None:
    stages = PRETRAIN % "steps: 2, learning_rate: 1e-2", TRANSFER.replace("1e-3", "1e-9, optimizer: sgd")
    result = run_recipe(write_chain(tmp_path / "r.yaml", zoo, *stages, model=model), tmp_path / "run")
    before, after = result.stages
    handed = weights_of(tmp_path / "run" / "stages" / "objective" / "model")
    own = weights(tmp_path / "run")
    shared = [name for name in own if not name.startswith("classifier")]
    assert len(shared) > 20
    assert all(torch.allclose(own[name], handed[name], atol=1e-6) for name in shared)
    assert after.weights.newly_initialised == ["classifier.bias", "classifier.weight"]
    assert after.weights.loaded_share == 1
    assert after.weights.left["decoder"] == left
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").config.num_labels == 3
    (ancestor,) = after.lineage
    assert ancestor.stage == "objective"
    assert ancestor.recipe_sha256 == result.recipe_sha256
    assert ancestor.data == {split: about.fingerprint for split, about in before.data.items()}
    assert "Lineage: objective (masked-image-modeling" in (tmp_path / "run" / "README.md").read_text()
    assert before.metrics["test"].values["knn_accuracy"] > 0.3


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_pretraining_goes_on_from_a_checkpoint(zoo: Path, tmp_path: Path) -> None:
    stage = "{stage: %s, task: masked-image-modeling, data: *unlabelled, steps: 2, batch_size: 8, learning_rate: 1e-9}"
    result = run_recipe(write_chain(tmp_path / "r.yaml", zoo, stage % "finetune", model="mae"), tmp_path / "run")
    (kept,) = result.stages
    assert kept.weights.newly_initialised == []
    untouched, ours = (it["test"].values["loss"] for it in (kept.baselines["checkpoint"], kept.metrics))
    assert untouched == pytest.approx(ours, abs=1e-3)  # its special tokens of zero are scaled up by layer norms
    assert result.headline.metric == "loss"
    assert not result.best.higher_is_better
    card = (tmp_path / "run" / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    with pytest.raises(CheckpointError, match=r"no weights for its decoder .*`stage: transfer`"):
        run_recipe(write_chain(tmp_path / "s.yaml", zoo, stage % "finetune", model="vit"), tmp_path / "s")
    moved = run_recipe(write_chain(tmp_path / "t.yaml", zoo, stage % "transfer", model="vit"), tmp_path / "t")
    assert moved.stages[0].weights.loaded_share > 0.9


def test_an_adapter_is_merged_so_that_the_encoder_is_whole(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the recipe would publish an adapter, which is the default: the card has code for a whole encoder."""
    stage = PRETRAIN.replace("stage: pretrain", "stage: finetune") % "steps: 1, learning_rate: 1e-3, adapt: lora"
    recipe = load_recipe(write_chain(tmp_path / "r.yaml", zoo, stage, model="mae"))
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": "ada/mae"})})
    assert recipe.hub.publish == "adapter"
    assert not plan_run(recipe).final.may_publish_adapter
    with monkeypatch.context() as usual:
        usual.setattr(UnlabelledStage, "publishes_whole", False)
        assert plan_run(recipe).final.may_publish_adapter
    run_recipe(tmp_path / "r.yaml", tmp_path / "run")
    assert not any("lora" in name for name in weights(tmp_path / "run"))
    assert "fine-tuned with LoRA (merged into its weights)" in (tmp_path / "run" / "README.md").read_text()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "red.png")]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] > 0


def test_weights_of_another_size_are_refused(zoo: Path, tmp_path: Path) -> None:
    stage = TRANSFER.replace("start: previous, ", "")
    recipe = write_chain(tmp_path / "r.yaml", zoo, stage, model="mae")
    with pytest.raises(CheckpointError, match=r"its configuration does not fit its weights"):
        run_recipe(recipe, tmp_path / "run", "model.config={num_hidden_layers: 6}")


def test_keys_of_the_architecture(zoo: Path, tmp_path: Path) -> None:
    stages = PRETRAIN % "steps: 1, learning_rate: 1e-3", TRANSFER
    recipe = write_chain(tmp_path / "r.yaml", zoo, *stages)
    run_recipe(recipe, tmp_path / "run", "model.config={num_hidden_layers: 1, decoder_num_hidden_layers: 2}")
    assert not any(".layers.1." in name for name in weights(tmp_path / "run"))
    with pytest.raises(RecipeError, match=r"model.config.hidden_sise: .* no such key; did you mean `hidden_size`\?"):
        run_recipe(recipe, tmp_path / "other", "model.config={hidden_sise: 8}")
    with pytest.raises(CheckpointError, match="multiples of 4"):
        run_recipe(recipe, tmp_path / "other", "model.config={hidden_size: 30}")
    with pytest.raises(CheckpointError, match="no model can be built of its configuration: 'elbow'"):
        run_recipe(recipe, tmp_path / "other", "model.config={hidden_act: elbow}")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("mask: {ratio: 0.99}", "leaves none to see"),
        ("mask: {square_pixels: 8}", "a key for SimMIM"),
    ],
)
def test_masks_that_cannot_be(zoo: Path, tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        opened(write_chain(tmp_path / "r.yaml", zoo, PRETRAIN % f"steps: 1, learning_rate: 1e-3, {keys}"))


def test_models_and_data_of_other_tasks_are_refused(zoo: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "resnet", "resnet")
    (tmp_path / "data").symlink_to(zoo / "data")
    stage = PRETRAIN % "steps: 1, learning_rate: 1e-3"
    recipe = write_chain(tmp_path / "r.yaml", tmp_path, stage, model="resnet")
    with pytest.raises(CheckpointError, match="and not for resnet"):
        opened(recipe)
    stage = stage.replace("data: *unlabelled, ", "")
    with pytest.raises(RecipeError, match="needs a `data` of its own: the recipe's is of another task"):
        load_recipe(write_chain(tmp_path / "s.yaml", zoo, stage))


# ----------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def undisturbed(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_chain(
        folder / "chain.yaml",
        zoo,
        PRETRAIN % "steps: 4, learning_rate: 1e-3, augment: {flip: true, crop: 0.5}",
        TRANSFER,
        PROBE,
        TRANSFER.replace("task", "again").replace("transfer", "finetune"),
    )
    run_recipe(recipe, folder / "run")
    return folder


@pytest.mark.parametrize(
    ("polls", "stage"), [(2, "objective"), (5, "objective"), (7, "task"), (10, "probe"), (12, "again"), (14, "again")]
)
def test_a_chain_stopped_in_any_stage_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polls: int, stage: str
) -> None:
    """The run asks after each step, and once after training: 4 + 1, 3 + 1, 1 and 3 + 1 times."""
    asked: list[int] = []

    @contextlib.contextmanager
    def stop() -> Any:
        yield lambda: asked.append(0) or len(asked) >= polls

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop)
    with pytest.raises(Interrupted, match=f"stage {stage}: stopped after"):
        run_recipe(undisturbed / "chain.yaml", tmp_path / "run")
    monkeypatch.undo()
    finished = {p.parent.name for p in (tmp_path / "run" / "stages").glob("*/result.json")}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "stages").glob("*/result.json")}
    result = run_recipe(undisturbed / "chain.yaml", tmp_path / "run", resume=True)
    assert stage not in finished
    assert all(p.stat().st_mtime_ns == written for p, written in before.items()), "a finished stage was repeated"
    assert equal(weights(undisturbed / "run"), weights(tmp_path / "run"))
    assert len(result.stages) == 4
    assert [len(it.lineage) for it in result.stages] == [0, 1, 2, 3]
