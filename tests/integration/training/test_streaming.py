"""Training rows that are streamed: each once an epoch, the same steps on any number of processes, exactly resumed."""

import contextlib
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.tiny import speech, texts, topics
from tests.tiny.images import write_recipe
from tests.tiny.runs import equal, in_processes, largest_difference, run_recipe, weights
from tltasks.config.loading import load_recipe
from tltasks.errors import DataError, Interrupted, RecipeError
from tltasks.tasks.image.classification import ImageClassification

STAGE = "{stage: transfer, steps: 9, batch_size: 8, learning_rate: 1e-3, optimizer: sgd, adapt: full, keep: last}"
STREAMED = ("data.streaming=true", "data.shuffle_buffer=16")


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of rows in three shards of unequal size."""
    folder = tmp_path_factory.mktemp("sharded")
    rows = datasets.Dataset.from_parquet(str(tiny / "data" / "train.parquet"))
    ends = [0, 17, 24, len(rows)]
    (folder / "data").mkdir()
    for i in range(3):
        rows.select(range(ends[i], ends[i + 1])).to_parquet(str(folder / "data" / f"train-{i}.parquet"))
    for split in ("validation", "test"):
        shutil.copy(tiny / "data" / f"{split}.parquet", folder / "data")
    recipe = write_recipe(folder / "r.yaml", tiny / "vit", Path("data"), stage=STAGE)
    recipe.write_text(recipe.read_text().replace("train.parquet", "train-*.parquet"))
    return recipe


@pytest.fixture(scope="module")
def whole(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(sharded, output, *STREAMED)
    return weights(output)


def test_one_shard_that_fits_the_buffer_gives_the_steps_of_rows_that_are_held(tiny: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tiny / "one-shard.yaml", Path("vit"), Path("data"), stage=STAGE)
    augment = "stages.0.augment={flip: true, crop: 0.5}"
    run_recipe(recipe, tmp_path / "held", augment)
    result = run_recipe(recipe, tmp_path / "streamed", augment, "data.streaming=true")
    assert equal(weights(tmp_path / "held"), weights(tmp_path / "streamed"))
    train = result.stages[0].data["train"]
    assert train.examples == 48
    assert "48 rows in 1 shards" in train.notes[0]


def test_every_row_comes_once_an_epoch_in_another_order(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: dict[int, list[int]] = {}
    collate = ImageClassification.collate_train

    def noting(self: Any, rows: Any, indices: Any, *, epoch: int) -> Any:
        epochs.setdefault(epoch, []).extend(rows[list(indices)]["row"])
        return collate(self, rows, indices, epoch=epoch)

    monkeypatch.setattr(ImageClassification, "collate_train", noting)
    run_recipe(sharded, tmp_path / "run", *STREAMED, "stages.0.steps=null", "stages.0.epochs=2")
    first, second = epochs[0][2:], epochs[1]  # the first two tell which weights are unused
    assert len(set(first)) == len(first)
    assert sorted(first) == sorted(second)
    assert first != second
    assert {row >> 32 for row in first} == {0, 1, 2}


def test_a_run_that_is_stopped_in_a_window_goes_on_exactly(
    sharded: Path, whole: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_fourth_step() -> Any:
        yield lambda: polls.append(0) or len(polls) >= 4

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stop_in_fourth_step)
    with pytest.raises(Interrupted, match="after step 4 of 9"):
        run_recipe(sharded, tmp_path / "run", *STREAMED)
    monkeypatch.undo()
    data, other = sharded.parent / "data", sharded.parent / "other"
    shutil.copytree(data, other, copy_function=shutil.copyfile)  # as another machine has it
    data.rename(tmp_path / "data")
    other.rename(data)
    last = data / "train-2.parquet"
    held = last.read_bytes()
    datasets.Dataset.from_parquet(str(last)).select(range(9)).to_parquet(str(last))
    with pytest.raises(DataError, match="other data"):
        run_recipe(sharded, tmp_path / "run", *STREAMED, resume=True)
    last.write_bytes(held)
    run_recipe(sharded, tmp_path / "run", *STREAMED, resume=True)
    assert equal(whole, weights(tmp_path / "run"))
    left = list((Path(datasets.config.HF_DATASETS_CACHE) / "tltasks-streamed").iterdir())
    assert all(file.is_file() for file in left), "windows are removed"


def test_two_processes_make_the_same_steps(sharded: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    keys = [word for key in STREAMED for word in ("--set", key)]
    in_processes(2, sharded, tmp_path / "run", *keys)
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-6


def test_rows_that_cannot_be_used_are_counted_and_too_many_refused(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(sharded.parent / "data", folder)
    rows = datasets.Dataset.from_parquet(str(folder / "train-1.parquet"))
    rows = rows.cast_column("image", datasets.Image(decode=False))
    broken = {"image": {"bytes": b"no", "path": None}}
    bad = rows.map(lambda row, i: broken if i == 3 else {"image": row["image"]}, with_indices=True)
    bad.to_parquet(str(folder / "train-1.parquet"))
    recipe = write_recipe(tmp_path / "r.yaml", tiny / "vit", Path("data"), stage=STAGE)
    recipe.write_text(recipe.read_text().replace("train.parquet", "train-*.parquet"))
    result = run_recipe(recipe, tmp_path / "run", *STREAMED, "data.max_bad_share=0.2")
    assert result.stages[0].data["train"].skipped == 1
    with pytest.raises(DataError, match=r"train-1\.parquet: row 3: .*"):
        run_recipe(recipe, tmp_path / "other", *STREAMED, "data.max_bad_share=0.001")


def in_tar(rows: datasets.Dataset, file: Path) -> None:
    """Rows as a shard of webdataset: PNG and the number of the class."""
    with tarfile.open(file, "w") as tar:
        for i, row in enumerate(rows.cast_column("image", datasets.Image(decode=False))):
            for ending, content in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                entry = tarfile.TarInfo(f"{i:04}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def in_tars(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    (folder / "data").mkdir()
    for split in ("train", "validation", "test"):
        rows = datasets.Dataset.from_parquet(str(tiny / "data" / f"{split}.parquet"))
        rows = rows.cast_column("label", datasets.Value("int64"))
        in_tar(rows.select(range(len(rows) // 2)), folder / "data" / f"{split}-0.tar")
        in_tar(rows.select(range(len(rows) // 2, len(rows))), folder / "data" / f"{split}-1.tar")
    recipe = write_recipe(folder / "r.yaml", tiny / "vit", Path("data"), stage=STAGE)
    text = recipe.read_text().replace("name: parquet", "name: webdataset").replace(".parquet", "-*.tar")
    recipe.write_text(text.replace("splits:", "class_names: [a, b, c]\n  columns: {image: png, label: cls}\n  splits:"))
    return recipe


def test_shards_of_webdataset_are_of_unknown_length(in_tars: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="set `steps`, and `evaluate_every` where"):
        run_recipe(in_tars, tmp_path / "refused", *STREAMED)
    result = run_recipe(in_tars, tmp_path / "run", *STREAMED, "stages.0.evaluate_every=5")
    assert result.stages[0].data["train"].examples == 48, "an epoch was read"
    assert result.stages[0].data["test"].examples == 24


@pytest.mark.parametrize(
    "name", ["texts", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("speech", "summaries"))]
)
def test_other_tasks_stream_json_lines(name: str, tmp_path: Path) -> None:
    stage = "{stage: %s, steps: 7, evaluate_every: 4, batch_size: 8, learning_rate: 1e-3, keep: last%s}"
    if name == "texts":
        model, data = topics.save_model(tmp_path / "model"), topics.save_data(tmp_path / "data")
        recipe = topics.write_recipe(tmp_path / "r.yaml", model, data, stage=stage % ("transfer", ""))
    elif name == "summaries":
        model, data = texts.save_model(tmp_path / "model"), texts.save_data(tmp_path / "data")
        stage %= "finetune", ", group_by_length: true"
        recipe = texts.write_recipe(tmp_path / "r.yaml", model, data, stage=stage)
    else:
        model, data = speech.save_whisper(tmp_path / "model", seconds=4), speech.save_data(tmp_path / "data", rows=24)
        for table in data.glob("*.csv"):
            datasets.Dataset.from_csv(str(table)).to_json(str(table.with_suffix(".jsonl")))
        recipe = speech.write_recipe(
            tmp_path / "r.yaml", model, data, stage=stage % ("finetune", ""), model_keys="language: es"
        )
        recipe.write_text(recipe.read_text().replace(".csv", ".jsonl").replace("name: csv", "name: json"))
    classes = ["data.class_names=[bread, cats, rain, trains]"] if name == "texts" else []
    run_recipe(recipe, tmp_path / "run", *STREAMED, *classes)


@pytest.mark.parametrize(
    "key",
    [
        "data.splits={validation: 0.2}",
        'data.splits={train: "train[:9]", validation: validation}',
        "data.shots=4",
        "data.leaks=drop",
        "data.multi_label=true",
        "stages.0.class_weights=auto",
        "stages.0.sampling=balanced",
        "stages.0.batch_size=20000",
        "stages.0={stage: probe}",
    ],
)
def test_keys_that_need_all_rows_at_once_are_refused(sharded: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=r"streaming|shuffle_buffer"):
        load_recipe(sharded, ["data.streaming=true", key])


def test_classes_that_only_all_rows_would_tell_are_asked_for(tmp_path: Path) -> None:
    model, data = topics.save_model(tmp_path / "model"), topics.save_data(tmp_path / "data")
    recipe = topics.write_recipe(tmp_path / "r.yaml", model, data)
    with pytest.raises(DataError, match=r"List them: `class_names"):
        run_recipe(recipe, tmp_path / "run", "data.streaming=true")
