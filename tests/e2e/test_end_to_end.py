"""The shipped recipes as a user runs them, against a stand-in Hub with tiny models and data under the real ids."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from tests.hub_server import HubServer, hub_environment
from tests.tiny import images, speech, texts, topics
from tests.tiny.host import Host, environment
from tests.tiny.hub import DATA, MODELS, fill
from tests.tiny.runs import REPOSITORY, traces
from tltasks.config.loading import load_recipe
from tltasks.results.result import load_result

RECIPES = sorted(p for p in (REPOSITORY / "recipes").rglob("*.yaml") if p.parent.name != "experiments")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module", autouse=True)
def filled(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    fill(hub, tmp_path_factory.mktemp("hub"))


def launch(
    hub: HubServer, *command: object, cwd: Path = REPOSITORY, installed: bool = True
) -> subprocess.CompletedProcess[str]:
    variables = environment() | hub_environment(hub)
    if installed:
        variables.pop("PYTHONPATH")
    else:  # as on a machine where tltasks was never installed
        variables["PYTHONPATH"] = ""
    return subprocess.run(
        [str(part) for part in command],
        env=variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_main_command_trains_pushes_and_what_it_pushed_predicts_the_same(hub: HubServer, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = launch(
        hub,
        BIN / "accelerate",
        "launch",
        "--cpu",
        "tltasks/run.py",
        "--recipe",
        "recipes/vit_cifar10.yaml",
        "--output",
        output,
        "--push",
        "--set",
        "hub.repo=ada/vit-cifar10-lora",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "pushed" in done.stderr
    result = load_result(output / "result.json")
    assert result.headline.split == "test"
    assert result.stages[0].weights.adapter is True

    files = hub.files("ada/vit-cifar10-lora")
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "README.md"} <= files.keys()
    assert not any(name.startswith("model") for name in files), "an adapter alone is published"
    assert len(hub.commits("ada/vit-cifar10-lora")) == 2, "the repository's own first commit, and one push"
    base = json.loads(files["adapter_config.json"])
    assert base["base_model_name_or_path"] == "google/vit-base-patch16-224-in21k"
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert front["base_model"] == "google/vit-base-patch16-224-in21k"
    assert front["base_model_relation"] == "adapter"
    assert front["library_name"] == "peft"
    assert front["datasets"] == ["uoft-cs/cifar10"]
    assert front["pipeline_tag"] == "image-classification"
    for path, content in files.items():
        assert not traces(HubServer.token, content), path
        assert str(REPOSITORY).encode() not in content, path
    assert not traces(HubServer.token, output, hub.home, done.stdout, done.stderr)

    shutil.rmtree(output / "model")
    recorded = pq.read_table(output / "predictions" / "transfer-test.parquet").to_pydict()
    script = """
        import json, torch, datasets
        from peft import PeftModel
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
        repo = "ada/vit-cifar10-lora"
        config = AutoConfig.from_pretrained(repo)
        base = AutoModelForImageClassification.from_pretrained(
            "google/vit-base-patch16-224-in21k", config=config, ignore_mismatched_sizes=True
        )
        model = PeftModel.from_pretrained(base, repo).eval()
        processor = AutoImageProcessor.from_pretrained(repo)
        rows = datasets.load_dataset("uoft-cs/cifar10", split="test")
        with torch.inference_mode():
            logits = model(**processor([row["img"] for row in rows], return_tensors="pt")).logits
        print(json.dumps([config.id2label[i] for i in logits.argmax(-1).tolist()]))
    """
    loaded = launch(hub, sys.executable, "-c", textwrap.dedent(script))
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout.splitlines()[-1]) == recorded["prediction"]


def test_a_push_that_fails_keeps_everything_and_can_be_made_later(hub: HubServer, tmp_path: Path) -> None:
    output = tmp_path / "run"
    hub.fail("POST /api/models/ada/later/commit", status=403, times=-1)
    try:
        done = launch(
            hub,
            BIN / "tltasks",
            "run",
            "recipes/vit_cifar10.yaml",
            "--output",
            output,
            "--push",
            "--set",
            "hub.repo=ada/later",
            "--set",
            "stages.0.epochs=1",
        )
    finally:
        hub.clear_faults()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"tltasks push {output}" in done.stderr
    assert (output / "model" / "adapter_model.safetensors").is_file()
    assert load_result(output / "result.json").headline.value >= 0
    later = launch(hub, BIN / "tltasks", "push", output)
    assert later.returncode == 0, later.stderr[-2000:]
    assert "adapter_model.safetensors" in hub.files("ada/later")
    whole = launch(hub, BIN / "tltasks", "push", output, "--repo", "ada/whole", "--as", "merged", "--public")
    assert whole.returncode == 0, whole.stderr[-2000:]
    files = hub.files("ada/whole")
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= files.keys()
    assert not any(name.startswith("adapter") for name in files)
    front = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (front["base_model_relation"], front["library_name"]) == ("finetune", "transformers")
    assert not hub.repositories["model", "ada/whole"].private


def test_a_push_that_cannot_succeed_is_refused_before_training(hub: HubServer, tmp_path: Path) -> None:
    for repo, said in (("somebody-else/vit", "somebody-else"), ("null", "names no hub.repo")):
        done = launch(
            hub,
            BIN / "tltasks",
            "run",
            "recipes/vit_cifar10.yaml",
            "--output",
            tmp_path / "run",
            "--push",
            "--set",
            f"hub.repo={repo}",
        )
        assert done.returncode in {1, 2}
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


TINY = ("--set", "stages.0.steps=1", "--set", "stages.0.epochs=null", "--set", "stages.0.batch_size=8")
WAYS = {
    "by path": ([sys.executable, REPOSITORY / "tltasks" / "run.py", "--recipe"], False, 1),
    "as a module": ([sys.executable, "-m", "tltasks.run"], True, 1),
    "as a package": ([sys.executable, "-m", "tltasks", "run"], True, 1),
    "console script": ([BIN / "tltasks", "run"], True, 1),
    "accelerate launch": (
        [BIN / "accelerate", "launch", "--cpu", REPOSITORY / "tltasks" / "run.py", "--recipe"],
        False,
        1,
    ),
    "accelerate launch -m": ([BIN / "accelerate", "launch", "--cpu", "-m", "tltasks.run", "--recipe"], True, 1),
    "torchrun": (
        [BIN / "torchrun", "--standalone", "--nproc_per_node=2", REPOSITORY / "tltasks" / "run.py", "--recipe"],
        False,
        2,
    ),
}


ALIKE = {"as a module", "as a package", "console script", "accelerate launch -m"}
"""They reach the same function as others; that they reach it is tested of `--check` and `--version`, without torch."""


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.exhaustive) if way in ALIKE else way for way in WAYS]
)
def test_every_way_to_launch_from_another_directory(hub: HubServer, way: str, tmp_path: Path) -> None:
    command, installed, world = WAYS[way]
    recipe = REPOSITORY / "recipes" / "vit_cifar10.yaml"
    done = launch(hub, *command, recipe, *TINY, "--set", "output=results/here", cwd=tmp_path, installed=installed)
    assert done.returncode == 0, done.stderr[-3000:]
    result = load_result(tmp_path / "results" / "here" / "result.json")
    assert result.hardware["processes"] == world
    assert done.stderr.count("report   ") == 1, "one process speaks"


def _emoji(folder: Path) -> list[str]:
    return [f"model.name={images.save_model(folder / 'model', 'timm-efficientnet')}"]


def _emoji_groups(folder: Path) -> list[str]:
    return [*_emoji(folder), "data.splits={train: 'train[:60]', test: 'test[:20]'}", "data.extra_test={}"]


def _keywords(folder: Path) -> list[str]:
    rows = datasets.Dataset.from_parquet(str(images.save_data(folder / "data") / "train.parquet"))
    names = rows.features["label"].names
    keywords = [[names[label], "drawn"][: 1 + i % 2] for i, label in enumerate(rows["label"])]
    (folder / "keywords").mkdir()
    rows.remove_columns("label").add_column("keywords", keywords).to_parquet(str(folder / "keywords" / "all.parquet"))
    return [*_emoji(folder), f"data.files={{train: {folder / 'keywords' / 'all.parquet'}}}"]


def _synopses(folder: Path) -> list[str]:
    data = texts.save_data(folder / "data")
    files = json.dumps({split: str(data / f"{split}.jsonl") for split in ("train", "validation", "test")})
    splits = "{train: train, validation: validation, test: test}"
    model = texts.save_model(folder / "model")
    return [f"model.name={model}", f"data.files={files}", f"data.splits={splits}"]


def _sections(folder: Path) -> list[str]:
    data = topics.save_data(folder / "data")
    files = json.dumps({split: str(data / f"{split}.jsonl") for split in ("train", "validation", "test")})
    splits, columns = "{train: train, validation: validation, test: test}", "{text: text, label: label}"
    model = topics.save_model(folder / "model")
    return [f"model.name={model}", f"data.files={files}", f"data.splits={splits}", f"data.columns={columns}"]


def _prompts(folder: Path) -> list[str]:
    data = speech.save_data(folder / "data")
    files = json.dumps({split: str(data / f"{split}.csv") for split in ("train", "validation", "test")})
    return [f"model.name={speech.save_whisper(folder / 'model')}", f"data.files={files}"]


def _spoken_names(folder: Path) -> list[str]:
    data = speech.save_data(folder / "data")
    for split, last in (("train", "train"), ("test", "test"), ("prompts_en", "validation"), ("prompts_es", "test")):
        rows = list(csv.DictReader((data / f"{last}.csv").read_text(encoding="utf-8").splitlines()))
        with (data / f"told_{split}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, [*rows[0], "language"])
            writer.writeheader()
            writer.writerows({**row, "language": ("es", "hi")[i % 2]} for i, row in enumerate(rows))
    files = {split: str(data / f"told_{split}.csv") for split in ("train", "test", "prompts_en", "prompts_es")}
    return [f"model.name={speech.save_whisper(folder / 'model')}", f"data.files={json.dumps(files)}"]


def _english_prompts(folder: Path) -> list[str]:
    model = speech.save_whisper(folder / "model", multilingual=False)
    few = "{train: 'train[:16]', validation: 'validation[:4]', test: 'test[:6]'}"
    return [f"model.name={model}", f"data.splits={few}"]


def _language_to_vision(folder: Path) -> list[str]:
    model = texts.save_model(folder / "model", "gpt2")
    return [f"model.name={model}", f"stages.0.model.name={model}"]


def _language_to_speech(folder: Path) -> list[str]:
    few = "{train: 'train[:16]', validation: null, test: 'test[:6]'}"
    return [*_language_to_vision(folder), f"data.splits={few}"]


OFFLINE = {
    "language_to_speech": _language_to_speech,
    "language_to_vision": _language_to_vision,
    "emoji_keywords": _keywords,
    "emoji_groups": _emoji_groups,
    "emoji_lora": _emoji,
    "package_sections": _sections,
    "package_synopsis": _synopses,
    "pretrain_finetune_transfer": lambda folder: [],
    "paper_titles": _synopses,
    "stamps_languages": _spoken_names,
    "voice_prompts": _english_prompts,
    "voice_prompts_es": _prompts,
    "wise_ft": _emoji,
}
"""Tiny models in place of the real ones, and data in place of what is not committed: scripts beside the offline recipes
fetch and build them."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_two_steps(hub_host: Host, recipe: Path, tmp_path: Path) -> None:
    overrides = ["precision=fp32"]
    if recipe.parent.name == "offline":
        overrides += OFFLINE[recipe.stem](tmp_path)
    if load_recipe(recipe, overrides).task == "summarization":  # the tiny models read 128 tokens
        overrides += ["data.max_document_tokens=64", "data.max_summary_tokens=24", "data.revision=main"]
    if getattr(load_recipe(recipe, overrides).model, "config", None):
        overrides.append("model.config={}")  # the tiny stand-in's own architecture, in place of the recipe's
    for i, stage in enumerate(load_recipe(recipe, overrides).stages):
        data = f"stages.{i}.data" if getattr(stage, "data", None) else "data"
        if hasattr(getattr(stage, "data", None) or load_recipe(recipe, overrides).data, "max_tokens"):
            overrides += [f"{data}.max_tokens=64", f"{data}.revision=main"]
        if getattr(stage, "loss_group", None):
            overrides.append(f"stages.{i}.loss_group=4")
        if stage.loops:
            overrides += [f"stages.{i}.steps=2", f"stages.{i}.epochs=null", f"stages.{i}.batch_size=8"]
    output = tmp_path / "run"
    flags = [flag for override in overrides for flag in ("--set", override)]
    hub_host.run(tmp_path / "log", "run", recipe, "--output", output, *flags)
    result = load_result(output / "result.json")
    looped = [s for s in result.stages if s.kind not in {"probe", "zero_shot"}]
    assert looped
    assert [s.training.steps for s in looped] == [2] * len(looped)
    for name in ("recipe.yaml", "report.html", "README.md", "metrics.jsonl"):
        assert (output / name).stat().st_size > 100, name


def test_all_recipes_are_here() -> None:
    named = {str(load_recipe(path, check_files=False).model.name) for path in RECIPES}  # type: ignore[union-attr]
    assert len(RECIPES) >= 20
    assert MODELS.keys() <= named, "a stand-in that no recipe needs"
    assert len(DATA) >= 8
    assert os.access(REPOSITORY / "recipes", os.R_OK)
