"""What a run refuses, repeats not, hands on from stage to stage and writes; training itself is in test_training."""

import copy
import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW
from transformers import ViTForImageClassification

from tests.tiny.images import COLOURS, save_data, save_model, write_recipe
from tests.tiny.runs import largest_difference, run_recipe, weights
from tests.tiny.tables import save_metric
from tltasks.config.loading import load_recipe
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models import adapters
from tltasks.results.result import load_result
from tltasks.runs.callbacks import EvaluationInfo, StepInfo
from tltasks.runs.stage import SAVED_WITHIN
from tltasks.runs.story import dry_run, run
from tltasks.training import evaluation, loop
from tltasks.training.tracking import read_metrics

FIRST = "{name: first, stage: %s, steps: 2, batch_size: 8, learning_rate: 1e-3, adapt: full}"
SECOND = (
    "{name: second, stage: finetune, start: previous, steps: 1, batch_size: 8, learning_rate: 1e-9, optimizer: sgd}"
)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two stages, of which the second hardly moves the weights of the first."""
    save_model(tiny / "coloured", labels=list(COLOURS))
    stages = f"{FIRST % 'finetune'}\n  - {SECOND}"
    recipe = write_recipe(tiny / "chain.yaml", Path("coloured"), Path("data"), stage=stages)
    output = tmp_path_factory.mktemp("chain") / "run"
    run_recipe(recipe, output)
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------------ refusals


def test_a_folder_is_not_written_to_twice(tiny: Path, finished: Path) -> None:
    before = content(finished)
    with pytest.raises(RecipeError, match=r"is not empty. Go on with that run with --resume"):
        run_recipe(tiny / "chain.yaml", finished)
    assert content(finished) == before


def test_another_recipe_does_not_go_on(tiny: Path, finished: Path) -> None:
    before = content(finished)
    with pytest.raises(RecipeError, match="begun with another recipe"):
        run_recipe(tiny / "chain.yaml", finished, "stages.0.learning_rate=2e-3", resume=True)
    assert content(finished) == before


def test_a_tracker_that_is_missing_and_a_push_to_nowhere_are_refused_at_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tltasks.runtime.devices.init_distributed", lambda: pytest.fail("too late"))
    with pytest.raises(RecipeError, match=r"names no hub.repo"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run", push=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="tensorboard not installed"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run", "trackers=[tensorboard]")
    assert not (tmp_path / "run").exists()


def test_a_saved_model_that_answers_otherwise_is_not_trusted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    reload, alive = ImageClassification.reload, list[str]()

    def without_head(self: Any, folder: Path) -> Any:
        alive.extend(type(it).__name__ for it in gc.get_objects() if type(it) in (ViTForImageClassification, AdamW))
        model = reload(self, folder)
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1e4]))
        return model

    gc.collect()
    gc.freeze()  # models of other tests
    monkeypatch.setattr(ImageClassification, "reload", without_head)
    changes = ("stages.0.epochs=1", "stages.0.adapt=full")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="stage transfer: Loaded again, the saved model gives outputs that"):
            run_recipe(tiny / "recipe.yaml", tmp_path / "run", *changes, resume=resume)
    assert list((tmp_path / "run" / "checkpoints").rglob("step-*"))
    result = load_result(tmp_path / "run" / "result.json")
    assert result.best.weights.saved_difference > 100
    assert alive == []  # what is loaded again does not stand beside what was trained, nor beside its optimiser
    for file in ("report.html", "README.md"):
        assert "not to be trusted" in (tmp_path / "run" / file).read_text()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21
def test_an_adapter_that_merging_loses_is_seen_however_small_its_effect(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merged(model: Any) -> Any:
        lost = copy.deepcopy(model)
        for name, parameter in lost.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
        return adapters.merged(lost)

    changes = ("stages.0.adapt={lora: {rank: 2}}", "stages.0.epochs=1", "stages.0.learning_rate=3e-6")
    run_recipe(tiny / "recipe.yaml", tmp_path / "kept", *changes)
    kept = load_result(tmp_path / "kept" / "result.json").best.weights
    assert kept.adapter_effect is not None
    assert kept.saved_difference is not None
    assert kept.saved_difference < 1e-5 < 1e-4 < kept.adapter_effect < SAVED_WITHIN
    monkeypatch.setattr("tltasks.runs.stage.merged", merged)
    with pytest.raises(CheckpointError, match=r"the adapter makes .*: it is not the model that was trained"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "lost", *changes)


# ------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_shows_a_plan_and_writes_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    recipe = load_recipe(tiny / "recipe.yaml")
    before = content(tiny)
    (measured,) = dry_run(recipe, output=tmp_path / "run")
    assert (measured.stage, measured.steps, measured.splits["train"]) == ("transfer", 12, (48, 0))
    parts = measured.parts
    assert list(parts) == [
        *("process and data", "libraries", "kernels", "kept by the allocator"),
        *("frozen weights", "trained weights", "gradients", "optimizer"),
        "activations of a micro-batch",
    ]
    assert parts["trained weights"] == parts["gradients"] == 4 * measured.trainable_parameters
    assert parts["optimizer"] == 2 * parts["gradients"]
    assert parts["activations of a micro-batch"] > 0
    assert not (tmp_path / "run").exists()
    assert content(tiny) == before
    shown = capsys.readouterr().err
    for expected in ("plan (nothing was trained or written)", "train 48, validation 16, test 24", "12", "about", "GiB"):
        assert expected in shown
    assert f"results would go to {tmp_path / 'run'}" in shown


def test_a_dry_run_of_a_finished_recipe_is_allowed(tiny: Path, finished: Path) -> None:
    before = content(finished)
    recipe = load_recipe(tiny / "chain.yaml")
    assert len(dry_run(recipe, output=finished)) == 2
    assert content(finished) == before


def test_a_dry_run_that_takes_long_tells_how_to_shorten_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps in two epochs, each of 100 s: 15 minutes are nine of them, and one epoch is not long."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(loop, "pass_seconds", lambda accelerator, job, model, rows: 100 * len(rows) / 8)
    clock = iter((0.0, 1e9))
    monkeypatch.setattr(loop, "waited_seconds", lambda: next(clock))
    (measured,) = dry_run(load_recipe(tiny / "recipe.yaml"), output=tmp_path / "run")
    assert measured.seconds == pytest.approx(1200)
    assert (measured.waiting, measured.shorter) == (1, "stages.0.epochs=1")
    shown = capsys.readouterr().err
    assert "transfer: other work had the processor for 100% of the time measured" in shown
    assert "transfer in at most 15 min, by less training: --set stages.0.epochs=1" in shown
    monkeypatch.setattr(loop, "waited_seconds", lambda: 0.0)
    short = load_recipe(tiny / "recipe.yaml", overrides={"stages.0.epochs": 1})
    (measured,) = dry_run(short, output=tmp_path / "run")
    assert (measured.waiting, measured.shorter) == (0, "")
    assert "other work" not in capsys.readouterr().err
    long = load_recipe(tiny / "recipe.yaml", overrides={"stages.0.epochs": None, "stages.0.steps": 30})
    (measured,) = dry_run(long, output=tmp_path / "run")
    assert measured.shorter == "stages.0.steps=9"


# -------------------------------------------------------------------------------------------------- resume


def test_resuming_a_finished_run_repeats_nothing(tiny: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tltasks.tasks.image.classification import ImageClassification

    monkeypatch.setattr(ImageClassification, "build", lambda self, row: pytest.fail("a stage was carried out again"))
    before, expected = content(finished), load_result(finished / "result.json")
    result = run_recipe(tiny / "chain.yaml", finished, resume=True)
    assert result.stages == expected.stages
    assert result.headline == expected.headline
    after = content(finished)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"result.json", "report.html", "README.md", "log.txt"}


def test_it_takes_the_recipes_file_or_its_keys(tiny: Path, finished: Path) -> None:
    found = run(str(tiny / "chain.yaml"), output=finished, resume=True)
    assert found.headline == load_result(finished / "result.json").headline
    for given in ("nowhere.yaml", {"task": "nowhere"}):
        with pytest.raises(RecipeError, match="nowhere"):
            run(given)


def test_what_was_removed_of_a_finished_run_is_written_again(tiny: Path, finished: Path) -> None:
    for name in ("result.json", "report.html", "README.md"):
        (finished / name).unlink()
    run_recipe(tiny / "chain.yaml", finished, resume=True)
    assert all((finished / name).is_file() for name in ("result.json", "report.html", "README.md"))


# -------------------------------------------------------------------------------------------------- stages


def test_a_stage_goes_on_from_the_one_before(tiny: Path, finished: Path) -> None:
    first, second = load_result(finished / "result.json").stages
    assert (first.name, second.name) == ("first", "second")
    assert (first.weights.start, second.weights.start) == ("checkpoint", "previous")
    assert first.weights.newly_initialised == []
    assert second.weights.newly_initialised == []
    before = load_file(finished / "stages" / "first" / "model" / "model.safetensors")
    after = weights(finished)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    start = load_file(tiny / "coloured" / "model.safetensors")
    assert largest_difference(start, after) > 1e-4
    # What the second calls the untouched checkpoint is what the first has ended with.
    assert second.baselines["checkpoint"]["test"].values == pytest.approx(first.metrics["test"].values, abs=1e-6)
    assert second.metrics["test"].values == pytest.approx(first.metrics["test"].values, abs=1e-4)
    assert not any(name.startswith("stage_") for name in first.baselines)
    for split in ("test", "validation"):
        beside = second.baselines["stage_first"][split]
        assert beside.values == first.metrics[split].values
        assert sum(beside.difference_ci95 or (1,)) == 0, "it predicts the same, which few rows do not make sure"


def test_the_run_is_judged_by_the_last_stage(finished: Path) -> None:
    result = load_result(finished / "result.json")
    assert (result.headline.stage, result.headline.split) == ("second", "test")
    assert {p.name for p in (finished / "predictions").iterdir()} == {
        f"{stage}-{split}.parquet" for stage in ("first", "second") for split in ("validation", "test")
    }
    assert [row["step"] for row in read_metrics(finished / "metrics.jsonl") if row["split"] == "train"] == [1, 2, 1]
    assert not (finished / "stages" / "second" / "model").exists(), "nothing goes on from it"
    assert not (finished / ".lock").exists()


def test_an_untouched_stage_after_training_leaves_the_model(tiny: Path, finished: Path, tmp_path: Path) -> None:
    stages = f"{FIRST % 'finetune'}\n  - {{stage: zero_shot, start: previous}}"
    recipe = write_recipe(tiny / "after.yaml", Path("coloured"), Path("data"), stage=stages)
    result = run_recipe(recipe, tmp_path / "run")
    assert result.headline.stage == "first"
    trained, looked = result.stages
    assert looked.trainable_parameters == 0
    assert looked.metrics["test"].values == pytest.approx(trained.metrics["test"].values, abs=1e-5)


@pytest.mark.parametrize("second", [SECOND, "{stage: zero_shot, start: previous}"])
def test_a_head_that_a_stage_has_put_on_is_kept_by_the_next(tiny: Path, tmp_path: Path, second: str) -> None:
    stages = f"{FIRST % 'transfer'}\n  - {second}"
    recipe = write_recipe(tiny / "new_head.yaml", Path("vit"), Path("data"), stage=stages)
    first, second_result = run_recipe(recipe, tmp_path / "run").stages
    assert second_result.metrics["test"].values == pytest.approx(first.metrics["test"].values, abs=1e-4)


# ------------------------------------------------------------------------------------- further test sets


def test_further_test_sets_are_judged_beside_the_first(tiny: Path, tmp_path: Path) -> None:
    save_data(tmp_path / "shifted", splits={"test": 9}, seed=5)
    extra = {"shifted": {"files": {"test": str(tmp_path / "shifted" / "test.parquet")}}}
    result = run_recipe(
        tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1", f"data.extra_test={json.dumps(extra)}"
    )
    (stage,) = result.stages
    assert list(stage.metrics) == ["test", "validation", "shifted"]
    assert stage.data["shifted"].examples == 9
    assert result.headline.split == "test"
    assert all("shifted" in by_split for by_split in stage.baselines.values())
    assert (tmp_path / "run" / "predictions" / "transfer-shifted.parquet").is_file()
    assert "shifted" in (tmp_path / "run" / "report.html").read_text()


def test_an_optimiser_of_another_package_is_refused_before_anything_is_loaded(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tltasks.runs.refusals.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"adamw_8bit needs bitsandbytes.*pip install 'tltasks\[8bit\]'"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.optimizer=adamw_8bit", "model.name=nobody/nothing")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- trackers


def test_tensorboard_gets_what_metrics_jsonl_has(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=1", "trackers=[tensorboard]")
    (file,) = (p for p in (tmp_path / "run" / "trackers" / "tltasks").iterdir() if "tfevents" in p.name)
    events = EventAccumulator(str(file)).Reload()
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["split"] == "train"]
    logged = events.Scalars("transfer/train/loss")
    assert [e.step for e in logged] == [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in logged] == pytest.approx([r["loss"] for r in rows], rel=1e-5)
    assert "transfer/validation/accuracy" in events.Tags()["scalars"]


def test_a_saved_model_may_differ_by_rounding_and_no_more() -> None:
    def difference(ours: list[float], theirs: list[float]) -> float:
        return evaluation.largest_difference(*([{"logits": torch.tensor(of)}] for of in (ours, theirs)))

    assert difference([1.0, -4.0], [1.0, -4.0]) == 0
    assert difference([1.0, -4.0], [1.0 + 4e-5, -4.0]) < SAVED_WITHIN
    assert difference([1.0, -4.0], [1.1, -4.0]) == pytest.approx(0.025)
    assert difference([math.nan, -math.inf, 1.0], [math.nan, -math.inf, 1.0]) == 0
    for other in ([math.nan, -4.0], [math.inf, -4.0], [1.0]):
        assert difference([1.0, -4.0], other) == math.inf


def test_metrics_of_the_evaluate_library_stand_beside_the_task_s_own(tiny: Path, tmp_path: Path) -> None:
    save_model(tiny / "coloured", labels=list(COLOURS))
    features = "{'predictions': datasets.Value('int64'), 'references': datasets.Value('int64')}"
    save_metric(
        tiny / "agreement", features, "{'agreement': sum(map(int.__eq__, predictions, references)) / len(references)}"
    )
    stage = "{name: kept, stage: zero_shot, metrics: [./agreement]}"
    path = write_recipe(tiny / "extra.yaml", Path("coloured"), Path("data"), stage=stage)
    result = run_recipe(path, tmp_path / "run")
    values = result.stages[0].metrics["test"].values
    assert values["agreement"] == pytest.approx(values["accuracy"])
    assert "agreement" in result.stages[0].baselines["majority_class"]["test"].values
    assert "agreement" in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(RecipeError, match=r"there is no folder \./absent"):
        load_recipe(path, ["stages.0.metrics=[./absent]"])
    with pytest.raises(RecipeError, match="would run a script of the Hub"):
        run_recipe(path, tmp_path / "other", "stages.0.metrics=[evaluate/f1]")
    assert not (tmp_path / "other" / "result.json").exists()


# ------------------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_told_of_steps_and_evaluations(tiny: Path, tmp_path: Path) -> None:
    steps: list[StepInfo] = []
    evaluations: list[EvaluationInfo] = []
    result = run_recipe(
        tiny / "recipe.yaml",
        tmp_path / "run",
        "stages.0.epochs=2",
        on_step=steps.append,
        on_evaluation=evaluations.append,
    )
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(it.step, it.loss, it.epoch) for it in steps] == [
        (row["step"], row["loss"], row["epoch"]) for row in rows if row["split"] == "train"
    ]
    assert {(it.stage, it.total_steps) for it in steps} == {("transfer", 12)}
    assert [(it.step, it.value) for it in evaluations] == [
        (row["step"], row["accuracy"]) for row in rows if row["split"] == "validation"
    ]
    assert result.best.training is not None
    assert evaluations[-1].best_step == result.best.training.best_step


@pytest.mark.parametrize(
    ("callbacks", "steps"),
    [
        ({"on_step": lambda info: info.step == 4}, 4),
        ({"on_evaluation": lambda info: info.value >= 0}, 6),
    ],
)
def test_a_callback_may_end_the_training(tiny: Path, tmp_path: Path, callbacks: dict[str, Any], steps: int) -> None:
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=2", **callbacks)
    training = result.best.training
    assert training is not None
    assert (training.steps, training.ended) == (steps, "asked to stop")
    assert training.best_step == steps, "where it ends, it is evaluated"
    assert (tmp_path / "run" / "README.md").is_file()


def test_what_a_callback_raises_ends_a_run_that_can_go_on(tiny: Path, tmp_path: Path) -> None:
    def give_up(info: EvaluationInfo) -> None:
        if info.step == 12:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=2", on_evaluation=give_up)
    seen: list[StepInfo] = []
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", "stages.0.epochs=2", resume=True, on_step=seen.append)
    assert [it.step for it in seen] == list(range(7, 13))
    assert result.best.training is not None
    assert result.best.training.steps == 12


@pytest.mark.parametrize("metric", ["macro_f1", "balanced_accuracy", "auroc"])
def test_another_metric_decides_and_is_what_all_compare_by(tiny: Path, tmp_path: Path, metric: str) -> None:
    result = run_recipe(tiny / "recipe.yaml", tmp_path / "run", f"stages.0.metric={metric}", "stages.0.epochs=1")
    stage = result.stages[0]
    score = stage.metrics["test"]
    assert result.headline.metric == score.headline == metric
    assert next(iter(score.values)) == metric
    assert score.ci95[0] <= score.values[metric] <= score.ci95[1]
    assert all(one.headline == metric for by_split in stage.baselines.values() for one in by_split.values())
    evaluated = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["split"] == "validation"]
    assert stage.training is not None
    assert stage.training.best_value == pytest.approx(max(row[metric] for row in evaluated))
    assert metric.replace("_", " ") in (tmp_path / "run" / "report.html").read_text().lower().replace("_", " ")
