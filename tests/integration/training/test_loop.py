"""The loop on a tiny ViT: exact however a step is split, and exact however often it is interrupted."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.tiny.images import save_data, write_recipe
from tests.tiny.runs import equal, largest_difference, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.errors import DataError, Interrupted, TrainingError
from tltasks.training.tracking import read_metrics

STAGE = "{stage: transfer, steps: 4, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full%s}"


@pytest.fixture(scope="module")
def exact(tiny: Path) -> Path:
    """A recipe whose four steps are plain SGD, so that equal gradients make equal weights."""
    return write_recipe(tiny / "exact.yaml", Path("vit"), Path("data"), stage=STAGE % "")


@pytest.fixture(scope="module")
def whole(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(exact, output, "stages.0.micro_batch=8")
    return weights(output)


# ------------------------------------------------------------------------------------ exact when split


@pytest.mark.parametrize("micro_batch", [3, 1])
def test_a_step_does_not_depend_on_its_micro_batches(
    exact: Path, whole: dict[str, torch.Tensor], micro_batch: int, tmp_path: Path
) -> None:
    run_recipe(exact, tmp_path / "run", f"stages.0.micro_batch={micro_batch}")
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


UNEVEN = ("stages.0.class_weights=auto", "stages.0.focal=2", "stages.0.augment={mixup: 0.4, flip: true}")
BALANCED = ("stages.0.sampling=balanced", "stages.0.class_weights={red: 3}", "stages.0.augment={flip: true, crop: 0.5}")


MORE = "data.extra_train={more: {files: {train: FOLDER/validation.parquet}, weight: 3}}"
MIXED = (MORE, "stages.0.augment={flip: true, crop: 0.5}")


@pytest.mark.parametrize("keys", [UNEVEN, BALANCED, MIXED], ids=["weights", "sampling", "sources"])
def test_weights_and_sampling_of_classes_do_not_depend_on_micro_batches_and_resume(
    tiny: Path, tmp_path: Path, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = uneven(tiny, tmp_path)
    keys = tuple(key.replace("FOLDER", str(tmp_path / "data")) for key in keys)
    trained = {}
    for size in (8, 3):
        run_recipe(recipe, tmp_path / f"run-{size}", f"stages.0.micro_batch={size}", *keys)
        trained[size] = weights(tmp_path / f"run-{size}")
    assert largest_difference(trained[8], trained[3]) < 1e-6
    run_recipe(recipe, tmp_path / "plain", "stages.0.micro_batch=8", *keys[1:])
    assert largest_difference(trained[8], weights(tmp_path / "plain")) > 1e-4
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_fifth_step() -> Any:
        yield lambda: polls.append(0) or len(polls) >= 5

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_fifth_step)
    with pytest.raises(Interrupted, match="after step 5 of 6"):
        run_recipe(recipe, tmp_path / "run", "stages.0.micro_batch=8", *keys)
    monkeypatch.undo()
    run_recipe(recipe, tmp_path / "run", "stages.0.micro_batch=8", *keys, resume=True)
    assert equal(trained[8], weights(tmp_path / "run"))


def uneven(tiny: Path, folder: Path) -> Path:
    """A recipe of six steps over 28 rows of one class and four of each other."""
    train = datasets.Dataset.from_parquet(str(tiny / "data" / "train.parquet"))
    labels = train["label"]
    kept = [i for i, label in enumerate(labels) if label == labels[0] or labels[:i].count(label) < 4]
    common = [i for i in kept if labels[i] == labels[0]]
    (folder / "data").mkdir()
    for split in ("validation", "test"):
        shutil.copy(tiny / "data" / f"{split}.parquet", folder / "data")
    train.select(kept + common[: 28 - len(common)]).to_parquet(str(folder / "data" / "train.parquet"))
    stage = (STAGE % ", keep: last").replace("steps: 4", "steps: 6")
    return write_recipe(folder / "r.yaml", tiny / "vit", Path("data"), stage=stage)


def test_the_split_would_be_seen(exact: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Another batch, or another order of rows, moves the weights by far more than the bound of these tests."""
    run_recipe(exact, tmp_path / "run", "stages.0.batch_size=4")
    assert largest_difference(whole, weights(tmp_path / "run")) > 1e-4


# ---------------------------------------------------------------------------------- exact when resumed


def test_a_checkpoint_of_other_data_is_not_gone_on_from(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    save_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "r.yaml", tiny / "vit", Path("data"))

    def stop(self: object, text: str) -> None:
        raise Interrupted(text)

    monkeypatch.setattr("tltasks.runs.context.Context.heed_stop", stop)
    with pytest.raises(Interrupted):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1")
    monkeypatch.undo()
    save_data(tmp_path / "data", seed=1)
    with pytest.raises(DataError, match="trained or validated on other data"):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)
    save_data(tmp_path / "data", seed=0)
    run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)
    save_data(tmp_path / "data", seed=1)
    with pytest.raises(DataError, match="carried out on other data"):
        run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", resume=True)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "muon"])
def test_a_request_to_stop_is_heeded_after_the_step_and_gone_on_from(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    keys = f"stages.0.optimizer={optimizer}", "stages.0.adapt=full"
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_third_step() -> Any:
        yield lambda: polls.append(0) or len(polls) >= 3

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_third_step)
    with pytest.raises(Interrupted, match="after step 3 of 12"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run", *keys)
    assert [p.name for p in (tmp_path / "run" / "checkpoints" / "transfer").iterdir()] == ["step-000000003"]
    polls[:] = [-100]  # does not reach 3 again
    monkeypatch.undo()
    run_recipe(tiny / "recipe.yaml", tmp_path / "run", *keys, resume=True)
    run_recipe(tiny / "recipe.yaml", tmp_path / "straight", *keys)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


# ------------------------------------------------------------------------------------------- trouble


def test_a_loss_that_is_not_finite_names_step_and_rows(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the (loss|gradient) is (nan|inf|not finite) at step \d+, rows \d+"
    ) as caught:
        run_recipe(
            tiny / "recipe.yaml",
            tmp_path / "run",
            "stages.0.adapt=full",
            "stages.0.learning_rate=1e30",
            "stages.0.max_grad_norm=null",
            "stages.0.warmup=0",
        )
    assert "learning_rate" in str(caught.value)
    assert "No checkpoint is saved yet." in str(caught.value)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    exact: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    loss = ImageClassification.loss
    refused: list[int] = []

    def scarce(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["labels"]) > 3:
            refused.append(len(batch["labels"]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", scarce)
    result = run_recipe(exact, tmp_path / "run")
    assert refused == [8, 4]
    assert result.stages[0].training.halvings == 2
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 24 GiB"),
        MemoryError(),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["device", "python", "c++"],
)
def test_out_of_memory_with_one_example_is_an_error_that_helps(
    exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    loss = ImageClassification.loss
    failed: list[int] = []

    def scarce(self: Any, model: Any, batch: Any) -> Any:
        if len(batch["labels"]) != 2 and not failed:  # the pass that looks for unused weights has two
            failed.append(1)
            raise error
        return loss(self, model, batch)

    monkeypatch.setattr(ImageClassification, "loss", scarce)
    with pytest.raises(TrainingError, match=r"one example at a time\. Of the .* `gradient_checkpointing: true` about"):
        run_recipe(exact, tmp_path / "run", "stages.0.micro_batch=1")


# ------------------------------------------------------------------------------------- what ends a stage


def test_early_stopping_and_the_best_weights(tiny: Path, tmp_path: Path) -> None:
    """A rate of nearly zero gains nothing after the first evaluation but a smaller loss."""
    result = run_recipe(
        tiny / "recipe.yaml",
        tmp_path / "run",
        "stages.0.learning_rate=0.02",
        "stages.0.epochs=30",
        "stages.0.early_stopping=2",
        "stages.0.schedule=constant",
        "stages.0.adapt=full",
    )
    training = result.stages[0].training
    assert "no gain in 2 evaluations" in training.ended
    assert training.steps < 30 * 6
    evaluated = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "validation"]
    best = max(evaluated, key=lambda row: (row["accuracy"], -row["loss"]))
    assert training.best_step == best["step"]
    assert result.stages[0].metrics["validation"].values["loss"] == pytest.approx(best["loss"], abs=1e-5)


def test_the_last_weights_on_request(tiny: Path, tmp_path: Path) -> None:
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.keep=last", "stages.0.epochs=1")
    evaluated = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "validation"]
    found = result.stages[0].metrics["validation"]
    assert found.values["accuracy"] == pytest.approx(evaluated[-1]["accuracy"])
    as_trained = found.details["calibration"]["before"]["loss"]  # what training is told has no temperature yet
    assert as_trained == pytest.approx(evaluated[-1]["loss"], abs=1e-5)


def test_checkpoints_go_when_the_stage_is_done(tiny: Path, tmp_path: Path) -> None:
    run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1")
    assert not list((tmp_path / "run").rglob("step-*"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stages"][0]["training"]["ended"]


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "adamw", "schedule": "linear", "warmup": 0.3},
        {"optimizer": "sgd", "schedule": "constant", "momentum": 0.5},
        {"optimizer": "muon", "adapt": {"lora": {"rank": 2}}},
        {"optimizer": "adafactor"},
        {"gradient_checkpointing": True},
        {"layer_decay": 0.5, "adapt": "full"},
        {"freeze": ["vit.embeddings*"], "adapt": "full"},
        {"adapt": "head"},
        {"adapt": {"dora": {"rank": 2}}},
        {"adapt": {"adalora": {"target_r": 1, "init_r": 2}}},
        {"adapt": {"ia3": {}}},
        {"adapt": {"lora": {"rank": 2, "init": "pissa"}}},
        {"adapt": "bitfit"},
        {"adapt": {"peft": {"type": "LOHA", "r": 2, "alpha": 4}}},
    ],
    ids=str,
)
def test_every_way_to_train_moves_only_what_it_should(tiny: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    overrides = [f"stages.0.{key}={json.dumps(value)}" for key, value in keys.items()]
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1", *overrides)
    stage = result.stages[0]
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    assert len(rows) == 6
    assert 0 < stage.trainable_parameters <= stage.total_parameters
    assert (stage.trainable_parameters == stage.total_parameters) == (
        keys.get("adapt") == "full" and "freeze" not in keys
    )
    from transformers import AutoModelForImageClassification

    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").state_dict()
    start = AutoModelForImageClassification.from_pretrained(tiny / "vit").state_dict()
    moved = {name for name in start if name in saved and not torch.equal(start[name], saved[name])}
    assert "classifier.weight" in moved
    backbone = {name for name in moved if not name.startswith("classifier")}
    assert bool(backbone) == (keys.get("adapt") != "head")
    assert not any("embeddings" in name for name in backbone) or keys.get("adapt") in ("full", "bitfit")


def test_load_recipe_is_what_these_tests_rely_on(tiny: Path) -> None:
    assert load_recipe(tiny / "recipe.yaml").stages[0].batch_size == 8
