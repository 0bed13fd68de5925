"""The image adapter over architectures: trains, saves, reloads, and predicts what transformers itself predicts."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from tests.tiny.images import COLOURS, CONFIGS, SIZE, png, save_data, save_model, write_recipe
from tests.tiny.pairs import crossed
from tests.tiny.runs import run_recipe
from tltasks.errors import CheckpointError, DataError
from tltasks.models.adapters import find_head, find_lora_targets
from tltasks.training.tracking import read_metrics

HEADS = {
    "vit": ["classifier"],
    "deit": ["classifier"],
    "beit": ["classifier"],
    "dinov2": ["classifier"],
    "swin": ["classifier"],
    "convnext": ["classifier"],
    "resnet": ["classifier.1"],
    "vgg16": ["timm_model.head.fc"],
    "timm-efficientnet": ["timm_model.classifier"],
    "timm-vit": ["timm_model.head"],
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures larger than the models' input, in which the processors have something to do."""
    folder = tmp_path_factory.mktemp("zoo")
    save_data(folder / "data", rows=24, size=SIZE + 16)
    return folder


def checkpoint(zoo: Path, name: str) -> Path:
    return zoo / name if (zoo / name).is_dir() else save_model(zoo / name, name)


def probabilities_by_transformers(model: Any, folder: Path, data: Path) -> np.ndarray:
    """What a user computes who follows the library's own documentation."""
    processor = AutoImageProcessor.from_pretrained(folder)
    rows = datasets.load_dataset("parquet", data_files={"test": str(data / "test.parquet")}, split="test")
    inputs = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(pixel_values=inputs["pixel_values"]).logits
    return (logits / getattr(model.config, "calibration_temperature", 1.0)).softmax(-1).numpy()


def test_every_architecture_is_here() -> None:
    assert CONFIGS.keys() == HEADS.keys()
    assert len(CONFIGS) >= 10


@pytest.mark.parametrize(("name", "adapt"), crossed(CONFIGS, ["full", "{lora: {rank: 2}}"]))
def test_trains_saves_reloads_and_predicts_the_same(zoo: Path, name: str, adapt: str, tmp_path: Path) -> None:
    stage = f"{{stage: transfer, steps: 2, batch_size: 8, learning_rate: 1e-2, adapt: {adapt}}}"
    checkpoint(zoo, name)
    recipe = write_recipe(zoo / f"{name}.yaml", Path(name), Path("data"), stage=stage)
    output = tmp_path / "run"
    result = run_recipe(recipe, output)
    stage_result = result.stages[0]
    assert stage_result.training.steps == 2
    assert stage_result.weights.newly_initialised
    if adapt == "full":
        assert stage_result.trainable_parameters > 0.9 * stage_result.total_parameters
    else:
        assert 0 < stage_result.trainable_parameters < 0.6 * stage_result.total_parameters

    config = AutoConfig.from_pretrained(output / "model")
    assert config.id2label == dict(enumerate(COLOURS))
    assert config.label2id == {label: i for i, label in enumerate(COLOURS)}
    model = AutoModelForImageClassification.from_pretrained(output / "model")
    recorded = pq.read_table(output / "predictions" / "transfer-test.parquet")
    assert recorded.column_names == ["row", "prediction", "reference", "probabilities"]
    ours = np.stack(recorded["probabilities"].to_numpy())
    theirs = probabilities_by_transformers(model, output / "model", zoo / "data")
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    losses = [row["loss"] for row in read_metrics(output / "metrics.jsonl") if row["split"] == "train"]
    assert len(losses) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_head_and_lora_targets_are_modules_of_the_architecture(zoo: Path, name: str) -> None:
    model = AutoModelForImageClassification.from_pretrained(checkpoint(zoo, name))
    head = find_head(model)
    assert head == HEADS[name]
    targets = find_lora_targets(model, head=head)
    modules = dict(model.named_modules())
    assert len(targets) >= 4
    for target in targets:
        assert isinstance(modules[target], torch.nn.Linear | torch.nn.Conv2d)
        assert not any(target == h or target.startswith(f"{h}.") for h in head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5.24 by an old name
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=head))
    assert sum("lora_A" in name for name, _ in wrapped.named_parameters()) == len(targets)


def test_a_published_adapter_gives_the_recorded_predictions(zoo: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """As a user loads it: the base by its name, the adapter on top, labels from the adapter's own config."""
    checkpoint(zoo, "vit")
    recipe = write_recipe(zoo / "adapter.yaml", Path("vit"), Path("data"))
    monkeypatch.setattr("tltasks.runs.stage.can_publish_adapter", lambda stage, provenance: True)
    output = tmp_path / "run"
    run_recipe(recipe, output)
    folder = output / "model"
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        "preprocessor_config.json",
    }
    config = AutoConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == list(COLOURS)
    base = AutoModelForImageClassification.from_pretrained(zoo / "vit", config=config, ignore_mismatched_sizes=True)
    model = peft.PeftModel.from_pretrained(base, folder)
    recorded = pq.read_table(output / "predictions" / "transfer-test.parquet")
    theirs = probabilities_by_transformers(model, folder, zoo / "data")
    np.testing.assert_allclose(np.stack(recorded["probabilities"].to_numpy()), theirs, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "image_size"),
    crossed(["vit", "deit", "beit", "dinov2", "swin", "convnext", "resnet", "timm-efficientnet", "timm-vit"], [16, 64]),
)
def test_another_image_size(zoo: Path, name: str, image_size: int, tmp_path: Path) -> None:
    """Trains at another size, with position tables interpolated where there are any, and says so."""
    checkpoint(zoo, name)
    stage = "{stage: transfer, steps: 1, batch_size: 4, learning_rate: 1e-3, adapt: {lora: {rank: 2}}}"
    recipe = write_recipe(zoo / f"{name}-{image_size}.yaml", Path(name), Path("data"), stage=stage)
    output = tmp_path / "run"
    result = run_recipe(recipe, output, f"model.image_size={image_size}")
    interpolated = result.stages[0].weights.interpolated
    assert bool(interpolated) == (name in {"vit", "deit", "beit", "dinov2", "timm-vit"}), interpolated
    model = AutoModelForImageClassification.from_pretrained(output / "model")
    processor = AutoImageProcessor.from_pretrained(output / "model")
    pixels = processor(Image.new("RGB", (50, 70)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (image_size, image_size)
    recorded = pq.read_table(output / "predictions" / "transfer-test.parquet")
    theirs = probabilities_by_transformers(model, output / "model", zoo / "data")
    np.testing.assert_allclose(np.stack(recorded["probabilities"].to_numpy()), theirs, atol=2e-3)


# -------------------------------------------------------------------------------------------- data


def parquet(folder: Path, split: str, images: list[bytes], labels: list[Any], feature: Any = None) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": feature or datasets.Value("string")})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")


def colours(count: int, names: list[str] | None = None) -> tuple[list[bytes], list[str]]:
    names = names or list(COLOURS)
    labels = [names[i % len(names)] for i in range(count)]
    return [png(Image.new("RGB", (8, 8), COLOURS.get(label, (0, 0, 0)))) for label in labels], labels


def trial(tmp_path: Path, zoo: Path, *overrides: str) -> Any:
    checkpoint(zoo, "vit")
    recipe = write_recipe(tmp_path / "r.yaml", zoo / "vit", Path("data"))
    return run_recipe(recipe, tmp_path / "run", "stages.0.epochs=1", *overrides)


def all_splits(folder: Path, count: int = 12) -> None:
    for split in ("train", "validation", "test"):
        parquet(folder, split, *colours(count))


def test_unreadable_images_are_named_counted_and_left_out(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data", 60)
    images, labels = colours(60)
    images[7] = b"not a picture"
    images[20] = images[20][:40]
    parquet(tmp_path / "data", "train", images, labels)
    result = trial(tmp_path, zoo, "data.max_bad_share=0.05")
    train = result.stages[0].data["train"]
    assert (train.examples, train.skipped) == (58, 2)
    assert set(train.skipped_rows) == {"7", "20"}
    assert "not an image" in train.skipped_rows["7"]


def test_too_many_unreadable_images_are_an_error_before_training(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data")
    parquet(tmp_path / "data", "test", [b"x"] * 3 + colours(9)[0], ["red"] * 3 + colours(9)[1])
    with pytest.raises(DataError, match=r"3 of 12 examples cannot be used.*\n  row 0: not an image"):
        trial(tmp_path, zoo)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["names", "integers", "class label", "booleans"])
def test_labels_in_every_form(zoo: Path, tmp_path: Path, kind: str) -> None:
    for split in ("train", "validation", "test"):
        images, names = colours(12, list(COLOURS)[:2])
        numbers = [list(COLOURS).index(name) for name in names]
        labels, feature = {
            "names": (names, None),
            "integers": (numbers, datasets.Value("int64")),
            "class label": (numbers, datasets.ClassLabel(names=list(COLOURS)[:2])),
            "booleans": ([bool(n) for n in numbers], datasets.Value("bool")),
        }[kind]
        parquet(tmp_path / "data", split, images, labels, feature)
    overrides = ["data.class_names=[blue, green]"] if kind == "integers" else []
    trial(tmp_path, zoo, *overrides)
    config = AutoConfig.from_pretrained(tmp_path / "run" / "model")
    expected = {"booleans": ["False", "True"]}.get(kind, ["blue", "green"])
    assert list(config.id2label.values()) == expected


def test_class_lists_that_differ_are_refused_with_the_difference(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data")
    parquet(tmp_path / "data", "test", *colours(12, ["red", "green", "violet"]))
    with pytest.raises(
        DataError, match=r"r\.yaml:\d+:\d+  data.splits.test: .* has classes that train has not: violet"
    ):
        trial(tmp_path, zoo)


@pytest.mark.parametrize(
    ("labels", "feature", "said"),
    [
        ([0, 1, -1], datasets.ClassLabel(names=["a", "b"]), "4 of 12 rows have no label"),
        (["a", None, "b"], datasets.Value("string"), "4 of 12 rows have no label"),
        (["a", "", "b"], datasets.Value("string"), "4 of 12 rows have no label"),
        ([0.5, 1.0, 2.0], datasets.Value("float32"), "holds float32"),
    ],
)
def test_labels_that_are_none_are_told_for_every_split(
    zoo: Path, tmp_path: Path, labels: list[Any], feature: Any, said: str
) -> None:
    for split in ("train", "validation", "test"):
        parquet(tmp_path / "data", split, colours(12)[0], labels * 4, feature)
    with pytest.raises(DataError) as caught:
        trial(tmp_path, zoo)
    assert str(caught.value).count(said) == 3


def test_all_mistakes_about_columns_and_splits_come_at_once(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        trial(
            tmp_path,
            zoo,
            "data.columns.image=imgae",
            "data.splits.validation=validaton",
            "data.extra_test={other: {split: nothing}}",
        )
    message = str(caught.value)
    assert "--set data.columns.image=imgae  data.columns.image: " in message
    assert "did you mean `image`?" in message
    assert "did you mean `validation`?" in message
    assert "has no split `nothing`" in message
    assert message.count("has no column `imgae`") == 1


def test_a_kept_head_needs_the_checkpoints_own_labels(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data")
    with pytest.raises(DataError, match="stage: transfer"):
        trial(tmp_path, zoo, "stages.0.stage=finetune")


def test_a_kept_head_keeps_its_weights_and_order(tmp_path: Path) -> None:
    names = ["red", "blue", "green", "violet"]
    save_model(tmp_path / "vit", labels=names)
    all_splits(tmp_path / "data")
    recipe = write_recipe(tmp_path / "r.yaml", Path("vit"), Path("data"))
    result = run_recipe(
        recipe,
        tmp_path / "run",
        "stages.0={stage: finetune, epochs: 1, learning_rate: 1e-9, adapt: full, batch_size: 4}",
    )
    assert result.stages[0].weights.newly_initialised == []
    assert list(AutoConfig.from_pretrained(tmp_path / "run" / "model").id2label.values()) == names
    before = AutoModelForImageClassification.from_pretrained(tmp_path / "vit").classifier.weight
    after = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model").classifier.weight
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    untouched = result.stages[0].baselines["checkpoint"]["test"].values["accuracy"]
    assert untouched == result.stages[0].metrics["test"].values["accuracy"]


def test_zero_shot_evaluates_the_untouched_checkpoint(tmp_path: Path) -> None:
    save_model(tmp_path / "vit", labels=list(COLOURS))
    all_splits(tmp_path / "data")
    recipe = write_recipe(tmp_path / "r.yaml", Path("vit"), Path("data"), stage="{stage: zero_shot}")
    result = run_recipe(recipe, tmp_path / "run")
    assert result.stages[0].trainable_parameters == 0
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert result.headline.stage == "zero_shot"


def test_a_model_is_trained_after_another_of_its_kind_was_evaluated(tmp_path: Path) -> None:
    # BEiT keeps the places of its patches for all models of the process (transformers 5.24, modeling_beit.py), by the
    # number of patches: one that no other test has here.
    save_model(tmp_path / "beit", "beit", labels=list(COLOURS))
    save_data(tmp_path / "data", rows=6)
    stages = "{stage: zero_shot}\n  - {stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3}"
    recipe = write_recipe(tmp_path / "r.yaml", Path("beit, image_size: 48"), Path("data"), stage=stages)
    assert run_recipe(recipe, tmp_path / "run").stages[1].training.steps == 1


def test_what_timm_saves_is_opened(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, embed_dim=24, depth=2, num_heads=2)
    timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True)
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["model_args"]["num_classes"] == 5
    save_data(tmp_path / "data", rows=6)
    stage = "{stage: transfer, steps: 1, batch_size: 4, learning_rate: 1e-3}"
    run_recipe(write_recipe(tmp_path / "r.yaml", Path("vit"), Path("data"), stage=stage), tmp_path / "run")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert loaded.timm_model.num_classes == len(COLOURS)


def test_folders_of_pictures_are_classes(zoo: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": 6, "test": 3}.items():
        for name, colour in COLOURS.items():
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, 30, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(noise // 2 + np.array(colour, np.uint8) // 2).save(
                    tmp_path / "pictures" / split / name / f"{i}.{'jpg' if i % 2 else 'png'}"
                )
    checkpoint(zoo, "vit")
    (tmp_path / "r.yaml").write_text(
        f"task: image-classification\nmodel: {{name: {zoo / 'vit'}}}\n"
        "data: {name: imagefolder, dir: pictures, splits: {validation: 0.34}}\n"
        "stages: [{stage: transfer, epochs: 2, batch_size: 4, learning_rate: 1e-3}]\nprecision: fp32\noutput: out\n"
    )
    result = run_recipe(tmp_path / "r.yaml", tmp_path / "run")
    data = result.stages[0].data
    assert [data[split].examples for split in ("train", "validation", "test")] == [12, 6, 9]
    assert list(AutoConfig.from_pretrained(tmp_path / "run" / "model").id2label.values()) == list(COLOURS)


# -------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_that_cannot_serve_end_in_one_message(zoo: Path, tmp_path: Path) -> None:
    all_splits(tmp_path / "data")
    for name, prepare, said in (
        ("empty", lambda folder: None, "cannot be opened"),
        ("text", lambda folder: (folder / "config.json").write_text("{}"), "cannot be opened"),
        ("bert", _save_bert, "cannot be loaded|no image processor"),
        ("pickle", lambda folder: _save_pickle(checkpoint(zoo, "vit"), folder), "safetensors"),
        ("no processor", lambda folder: _copy(checkpoint(zoo, "vit"), folder, "preprocessor_config.json"), "processor"),
        (
            "other weights",
            lambda folder: _with_other_weights(checkpoint(zoo, "vit"), folder),
            "does not fit its weights",
        ),
    ):
        folder = tmp_path / name
        folder.mkdir()
        prepare(folder)
        recipe = write_recipe(tmp_path / "r.yaml", Path(f"./{name}"), Path("data"))
        with pytest.raises(CheckpointError, match=said):
            run_recipe(recipe, tmp_path / f"run {name}")


def _save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    BertModel(config).save_pretrained(folder)


def _copy(source: Path, folder: Path, *without: str) -> None:
    for path in source.iterdir():
        if path.name not in without:
            (folder / path.name).write_bytes(path.read_bytes())


def _save_pickle(source: Path, folder: Path) -> None:
    from safetensors.torch import load_file

    _copy(source, folder, "model.safetensors")
    torch.save(load_file(source / "model.safetensors"), folder / "pytorch_model.bin")


def _with_other_weights(source: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    _copy(source, folder, "model.safetensors")
    save_file({"something.else": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def test_exhibits_are_the_most_confident_mistakes(tiny: Path, tmp_path: Path) -> None:
    run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.learning_rate=1e-9", "stages.0.epochs=1")
    import base64
    import json

    shown = json.loads((tmp_path / "run" / "stages" / "transfer" / "examples.json").read_text())
    table = pq.read_table(tmp_path / "run" / "predictions" / "transfer-test.parquet").to_pylist()
    wrong = [row for row in table if row["prediction"] != row["reference"]]
    assert wrong
    assert len(shown) == min(24, len(wrong))
    confidences = [int(e["title"].split("(")[1].rstrip("%)")) for e in shown]
    assert confidences == sorted(confidences, reverse=True)
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]["content"]))).size == (SIZE, SIZE)
