import copy
import doctest
import functools
import json
import os
import random
import re
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel

import tltasks.config.loading
from tests.unit.config.test_document import parse
from tests.unit.config.test_recipe import BASE, EVERYTHING, MISTAKES, marked
from tltasks.config.loading import is_local, load_recipe, recipe_text, write_recipe
from tltasks.config.recipe import Recipe, as_written, plan_run, recipe_sha256, written_at
from tltasks.config.schema import DIALECT, json_schema
from tltasks.config.shipped import describe_recipes, recipe_folder
from tltasks.config.stage import JointStage
from tltasks.config.tasks import TASKS
from tltasks.config.yaml_reader import dump
from tltasks.errors import RecipeError

RECIPES = Path(__file__).parents[3] / "recipes"
SHIPPED = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "experiments")
SCHEMA_FILE = RECIPES / "recipe.schema.json"


def copy_shipped(folder: Path) -> list[Path]:
    """The shipped recipes in another place, with empty folders and files for what is fetched first."""
    shutil.copytree(RECIPES, folder / "recipes")
    paths = [folder / path.relative_to(RECIPES.parent) for path in SHIPPED]
    for path in paths:
        there = load_recipe(path, check_files=False)
        for owner in (there, *there.stages):
            model = getattr(owner, "model", None)
            if model is not None and Path(model.name).is_absolute():
                Path(model.name).mkdir(parents=True, exist_ok=True)
            data = getattr(owner, "data", None)
            for name in data.files.values() if data is not None and isinstance(data.files, dict) else ():
                if isinstance(name, str) and Path(name).is_relative_to(folder / "data"):
                    write(Path(name), "")
    return paths


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def without_private(recipe: Recipe) -> dict[str, Any]:
    """All that two recipes are compared by; `adapt` is told by the key that is set."""
    return recipe.model_dump() | {"methods": [stage.adapt.method for stage in recipe.stages]}


# ------------------------------------------------------------------------------------------- shipped


def test_shipped_recipes_are_in_order_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = [load_recipe(path) for path in copy_shipped(tmp_path / "elsewhere")]
    assert len(loaded) >= 5
    assert {plan.task for recipe in loaded for plan in plan_run(recipe).stages} == set(TASKS)


def test_shipped_recipes_refer_to_the_schema_in_their_first_line() -> None:
    assert len(SHIPPED) >= 5
    for path in SHIPPED:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
        assert match, f"{path}: {first}"
        assert (path.parent / match[1]).resolve() == SCHEMA_FILE


def test_list_of_shipped_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    lines = describe_recipes().splitlines()
    everything = sorted(RECIPES.rglob("*.yaml"))  # experiments, too
    assert [line.split()[0] for line in lines] == [str(path.relative_to(RECIPES.parent)) for path in everything]
    assert all(len(line.split()) > 3 for line in lines), "each has a title"
    assert not any("yaml-language-server" in line for line in lines)


def test_recipes_of_an_installed_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "tltasks"
    (installed / "recipes").mkdir(parents=True)
    (installed.parent / "recipes").mkdir()  # another package's
    monkeypatch.setattr("tltasks.config.shipped.__file__", str(installed / "config" / "shipped.py"))
    assert recipe_folder() == installed / "recipes"
    (installed / "recipes").rmdir()
    assert recipe_folder() == installed.parent / "recipes"


# ------------------------------------------------------------------------------------------- schema


@functools.cache
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_committed_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == json_schema(), (
        "run: tltasks schema > recipes/recipe.schema.json"
    )


def test_schema_is_one() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(schema)
    referred, definitions = set(re.findall(r"'#/\$defs/([\w-]+)'", str(schema))), schema["$defs"]
    assert referred == set(definitions)
    assert not {"Recipe", "Model", "Data", "Stage"} & referred
    variants = [definitions[variant["$ref"].rpartition("/")[2]] for variant in schema["anyOf"]]
    assert [variant["properties"]["task"]["const"] for variant in variants] == list(TASKS)


def test_schema_describes_keys() -> None:
    stage = json_schema()["$defs"]["ImageStage"]["properties"]
    assert stage["batch_size"]["description"] == "Examples per optimiser step, over all devices together."
    assert stage["adapt"]["anyOf"][0]["enum"] == ["full", "head", "lora", "dora", "adalora", "ia3", "bitfit", "prompt"]


def test_schema_accepts_shipped_recipes_and_what_is_written_of_them() -> None:
    for path in SHIPPED:
        for text in (path.read_text(encoding="utf-8"), recipe_text(load_recipe(path, check_files=False))):
            validator().validate(parse(text).value)


BEYOND_A_SCHEMA = {
    *("model", "data", "no model", "no data", "no epochs", "no learning rate", "epochs and steps", "micro-batch"),
    *("momentum", "freeze", "pretrain", "zero shot", "two methods", "no method", "no stage before", "early stopping"),
    *("evaluations", "nothing left", "nothing to hold out of", "nothing to train on", "nothing to evaluate on"),
    *("builder", "builder, empty files", "named as a split", "infinite", "not a number", "too large for a float"),
    "whole number",  # JSON has one kind of number
    "stage's task",  # any text
    *("weights of sources in balanced sampling", "sources without rows of the data", "a column twice"),
} - {"model", "data"}
"""Mistakes that are not about one key alone, or that JSON cannot tell."""


def test_schema_rejects_mistakes() -> None:
    accepted = set()
    for name, (old, new, _, _) in MISTAKES.items():
        text = marked(BASE.replace(old, new.removeprefix("HERE")))[0]
        if validator().is_valid(parse(text).value):
            accepted.add(name)
    assert accepted <= BEYOND_A_SCHEMA, accepted - BEYOND_A_SCHEMA
    assert len(MISTAKES) - len(accepted) >= 60
    assert not validator().is_valid(parse(EVERYTHING).value)


# ---------------------------------------------------------------------------------------------- fuzz

REPLACEMENTS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 10**90, 0.5, -0.5, 1e300, float("inf"), float("nan"), "", "x", "no", "5", "auto"),
    *("full", "lora", "zero_shot", "image-classification", "../..", "~nobody/x", "x" * 5000, "a\nb"),
    *("://", "**", "[", "é"),
    *([], [1], ["x"], [[]], [None], {}, {"x": 1}, {"name": "x"}, {"lora": None}, {"str": 5}, {"0": []}),
)  # fmt: skip
TAGS = (
    "!!python/object/apply:os.system ",
    "!!int ",
    "!x ",
    "&a ",
    "*a ",
    "- ",
    "? ",
    "\t",
    "---\n",
    "'",
    '"',
    "{",
    "[",
    ": ",
)
INTERNALS = re.compile(
    r"pydantic|validation error|input_value|type=|Traceback|should|<class|object at 0x|Error\b|ctx|Value error"
)
PLACE = r"(r\.yaml:\d+:\d+|--set \S.*?)  \S.*"
HEADER = r"\d+ mistakes? in the recipe; nothing was loaded\."


def containers(tree: Any) -> Iterator[dict[str, Any] | list[Any]]:
    if isinstance(tree, (dict, list)):
        if tree:
            yield tree
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from containers(item)


def mutated_tree(tree: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(list(containers(tree)) or [tree])
        key: Any = rng.choice(list(at)) if isinstance(at, dict) and at else rng.randrange(len(at)) if at else "task"
        other = rng.choice(list(containers(tree)) or [tree])
        match rng.randrange(5):
            case 0:
                del at[key]
            case 1 if isinstance(at, dict):
                at[key[1:] + key[:1] if len(key) > 1 else "zz"] = at.pop(key)
            case 2 if isinstance(at, dict):  # a key that belongs elsewhere
                at[str(rng.choice(list(other)))] = rng.choice(REPLACEMENTS)
            case _:
                at[key] = copy.deepcopy(rng.choice(REPLACEMENTS))
    return tree


def mutated_text(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice((1, 2, 3))):
        lines = text.splitlines(keepends=True)
        i = rng.randrange(len(lines))
        at = rng.randrange(len(text))
        match rng.randrange(5):
            case 0:
                text = text[:at] + text[at + rng.randrange(1, 9) :]
            case 1:
                text = text[:at] + rng.choice(TAGS) + text[at:]
            case 2:
                text = text.replace(": ", ": " + rng.choice(TAGS), 1) if at % 2 else text + text
            case 3:
                text = "".join([*lines[:i], lines[i], *lines[i:]])
            case 4:
                lines[i] = " " * rng.randrange(4) + lines[i].lstrip()
                text = "".join(lines)
    return text


def attempted(path: Path, text: str) -> tuple[str, Recipe | None]:
    try:
        return "", load_recipe(write(path, text))
    except RecipeError as error:
        return str(error), None


def check_message(message: str) -> None:
    """Every line has its place, none is said twice, and no word is that of a library."""
    lines = message.splitlines()
    if re.fullmatch(HEADER, lines[0]):
        assert int(lines[0].split()[0]) == sum(line[0] != " " for line in lines[1:]), message
        assert len(set(lines)) == len(lines), message
        lines = [line for line in lines[1:] if not re.fullmatch(r"    allowed: [\w, -]+", line)]
    else:
        assert len(lines) == 1, message
    for line in lines:
        assert re.fullmatch(PLACE, line) or line.startswith("r.yaml: is empty"), message
        assert not INTERNALS.search(line), line


def test_mutated_recipes_are_recipes_or_have_placed_mistakes(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "r.yaml"
    texts = [path.read_text(encoding="utf-8") for path in SHIPPED]
    trees = [parse(text).value for text in texts]
    full = [parse(recipe_text(load_recipe(p, check_files=False))).value for p in SHIPPED]
    n_right = n_wrong = 0
    for n in range(600):
        tree = mutated_tree(rng.choice(trees + full), rng)
        text = mutated_text(rng.choice(texts), rng) if n % 3 == 2 else dump(tree)
        message, recipe = attempted(path, text)
        if recipe is None:
            n_wrong += 1
            check_message(message.replace(str(tmp_path) + os.sep, ""))
        else:
            n_right += 1
            again = load_recipe(write(path, recipe_text(recipe)))
            assert without_private(again) == without_private(recipe)
            recipe_sha256(recipe)
    assert n_right >= 50
    assert n_wrong >= 300


def test_mutated_overrides(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = write(tmp_path / "r.yaml", BASE)
    keys = [
        "task",
        "model",
        "model.name",
        "data.splits.test",
        "stages",
        "stages.0",
        "stages.0.adapt",
        "hub.repo",
        "x.y",
    ]
    n_wrong = 0
    for _ in range(150):
        value = dump({"k": rng.choice(REPLACEMENTS)}).removeprefix("k:").strip()
        try:
            load_recipe(path, [f"{rng.choice(keys)}={value}"])
        except RecipeError as error:
            n_wrong += 1
            for line in str(error).replace(str(tmp_path) + os.sep, "").splitlines():
                assert re.fullmatch(rf"{PLACE}|{HEADER}|    allowed: .*|--set .*: .*", line), line
                assert not INTERNALS.search(line), line
    assert n_wrong >= 80


# ---------------------------------------------------------------------------------------- round trip

EVERY_KEY = """\
task: image-classification
model:
  {name: a/b, revision: v1, trust_remote_code: true, as: transformer, image_size: 64, patch_size: 16,
   config: {d: 3, act: gelu, sizes: [1, 2], on: true}}
data:
  name: c/d
  config: e
  revision: f
  dir: ./g
  files: {train: [h.csv, https://i/j.csv], test: "k/*.csv"}
  relabel: r.csv
  multi_label: false
  label_delimiter: null
  splits: {train: "train[:9%]", validation: 0.25, test: null}
  extra_test: {far: {name: l/m, config: n, revision: o, dir: p, files: q.csv, split: r}}
  extra_train: {more: {name: l/m, config: n, revision: o, dir: p, files: q.csv, split: r, weight: 1.0}}
  shots: 7
  max_bad_share: 0.5
  leaks: error
  streaming: false
  shuffle_buffer: 10000
  workers: 3
  columns: {image: img, label: "no"}
  class_names: ["1e3", "off", "null"]
  corruptions: {kinds: [jpeg, contrast], severities: [1, 5], rows: 9}
stages:
  - stage: transfer
    name: one
    start: checkpoint
    adapt: {lora: {rank: 2, alpha: 3, dropout: 0.5, targets: [a, b], rslora: true, init: gaussian}}
    base_dtype: fp32
    batch_norm: frozen
    epochs: 0.5
    batch_size: 8
    micro_batch: 4
    gradient_checkpointing: true
    compile: true
    learning_rate: 5e-4
    optimizer: sgd
    momentum: 0.5
    weight_decay: 0
    schedule: linear
    warmup: 0
    layer_decay: 0.75
    max_grad_norm: null
    ema: 0.5
    evaluate_every: 7
    evaluate_rows: 11
    early_stopping: 2
    keep: last
    checkpoint_every: 9
    keep_checkpoints: 1
    metrics: [evaluate/f1, {name: w/x, revision: v2, trust_remote_code: true, options: {average: macro, on: [1, no]}}]
    task: image-classification
    model: {name: s/t}
    data: {name: u/v, splits: {validation: {share: 0.1, ordered_by: d}, test: {group: g, fold: 0, folds: 5}}}
    augment: {flip: true, crop: 0.5, randaugment: {ops: 1, magnitude: 3}, erase: 0.5, mixup: 0.5, cutmix: 1}
    label_smoothing: 0.5
    class_weights: {x: 2.0}
    focal: 2.0
    metric: macro_f1
    sampling: balanced
  - {stage: finetune, start: previous, adapt: full, freeze: ["a*"], steps: 3, learning_rate: 1, keep: best}
  - {stage: finetune, start: previous, l2_sp: {alpha: 1, beta: 2}, unfreeze_epochs: 1, steps: 3, learning_rate: 1}
  - {stage: finetune, interpolate: {alphas: [0.5]}, model: {name: x/y, prompts: ["a {}"]}, steps: 3, learning_rate: 1}
  - {stage: transfer, adapt: bitfit, steps: 3, learning_rate: 1}
  - {stage: transfer, adapt: {peft: {type: OFT, r: 8, extra: null, nested: {a: [1, null]}}}, steps: 3, learning_rate: 1}
  - {stage: transfer, adapt: {dora: null}, steps: 3, learning_rate: 1}
  - stage: transfer
    adapt: {adalora: {target_r: 2, init_r: 3, initial_share: 0.2, final_share: 0.2, interval: 2, orthogonality: 0.1}}
    steps: 3
    learning_rate: 1
  - {stage: transfer, adapt: {ia3: {targets: [a]}}, steps: 3, learning_rate: 1}
  - {stage: transfer, adapt: {prompt: {tokens: 7}}, steps: 3, learning_rate: 1}
  - {stage: transfer, adapt: head, steps: 3, learning_rate: 1, evaluate_every: null}
  - {stage: pretrain, steps: 3, learning_rate: 1, micro_batch: auto}
  - {stage: probe, start: previous, l2: [0.1, 1]}
  - {stage: zero_shot, start: previous}
seed: 5
precision: fp32
output: outputs/x
hub: {repo: me/mine, private: false, publish: merged, license: mit, language: [en, "no"],
      emissions: {watts: 300, grams_per_kwh: 56.5, location: "no"}}
trackers: [wandb]
"""


def test_shipped_recipes_survive_being_written(tmp_path: Path) -> None:
    assert len(SHIPPED) >= 5
    for path in SHIPPED:
        recipe = load_recipe(path, check_files=False)
        text = recipe_text(recipe)
        again = load_recipe(write(tmp_path / path.name, text), check_files=False)
        assert without_private(as_written(again)) == without_private(as_written(recipe))
        assert recipe_text(again) == text


def test_every_key_survives_being_written(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", EVERY_KEY), check_files=False)
    text = recipe_text(recipe)
    again = load_recipe(write(tmp_path / "again.yaml", text), check_files=False)
    assert without_private(again) == without_private(recipe)
    assert recipe.stages[0].max_grad_norm is None
    assert recipe.data is not None
    assert recipe.data.splits.test is None
    assert recipe_sha256(again) == recipe_sha256(recipe)
    for key in every_key(recipe_model("image-classification")):
        assert re.search(rf"\b{key.split('.')[-1]}\b", EVERY_KEY), f"EVERY_KEY lacks {key}"


def test_defaults_are_written_out(tmp_path: Path) -> None:
    text = recipe_text(load_recipe(write(tmp_path / "r.yaml", BASE)))
    found = parse(text).value
    assert found["precision"] == "auto"
    assert found["stages"][0]["weight_decay"] == 0.01
    assert found["stages"][0]["adapt"] == {
        "lora": {"rank": 16, "dropout": 0.0, "targets": "auto", "rslora": False, "init": "zero"},
    }
    assert "momentum" not in found["stages"][0], "has no effect with adamw, and would be a mistake"


def test_written_elsewhere_a_recipe_finds_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in copy_shipped(tmp_path):
        recipe = load_recipe(path)
        written = tmp_path / "outputs" / "deep" / path.name
        write_recipe(recipe, written)
        monkeypatch.chdir(tmp_path / "outputs")
        again = load_recipe(written)
        assert without_private(again) == without_private(recipe)
        assert recipe_sha256(again) == recipe_sha256(recipe)
        assert str(tmp_path) not in written.read_text(encoding="utf-8")


def test_written_beside_its_files_a_name_stays_local(tmp_path: Path) -> None:
    (tmp_path / "out" / "vit").mkdir(parents=True)
    recipe = load_recipe(write(tmp_path / "r.yaml", BASE.replace("google/vit", "out/vit")))
    write_recipe(recipe, tmp_path / "out" / "r.yaml")
    again = load_recipe(tmp_path / "out" / "r.yaml")
    assert again.model is not None
    assert as_written(again).model.name == "./vit"  # type: ignore[union-attr]
    assert again.model.name == str(tmp_path / "out" / "vit")
    (tmp_path / "out" / "vit").rmdir()
    with pytest.raises(RecipeError, match=r"there is no folder \./vit"):
        load_recipe(tmp_path / "out" / "r.yaml")


def test_links_keep_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "store" / "3f2a").mkdir(parents=True)
    (tmp_path / "store" / "77.blob").touch()
    (tmp_path / "vit").symlink_to(tmp_path / "store" / "3f2a")
    (tmp_path / "train.csv").symlink_to(tmp_path / "store" / "77.blob")
    text = BASE.replace("google/vit", "./vit").replace("org/pictures", "csv\n  files: train.csv")
    recipe = load_recipe(write(tmp_path / "r.yaml", text))
    assert recipe.data is not None
    assert recipe.data.files == str(tmp_path / "train.csv")
    write_recipe(recipe, tmp_path / "out" / "r.yaml")
    assert recipe_sha256(load_recipe(tmp_path / "out" / "r.yaml")) == recipe_sha256(recipe)


# -------------------------------------------------------------------------------------------- digest


def recipe_model(task: str) -> dict[str, type[BaseModel]]:
    keys = TASKS[task]
    return {"": Recipe, "model": keys.model, "data": keys.data, "stages.1": keys.stage}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list, dict):
        for argument in typing.get_args(annotation):
            yield from models_in(argument)


def every_key(parts: dict[str, type[BaseModel]]) -> Iterator[str]:
    """Every key that holds no mapping of further keys, `a` standing for a name of the user's choice, 0 for a place."""

    def below(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for key, field in model.model_fields.items():
            path = f"{prefix}.{field.alias or key}".removeprefix(".")
            if path in {"model", "data", "stages", "output", "hub", "trackers"}:
                continue
            inner = list(models_in(field.annotation))
            name = {dict: ".a", list: ".0"}.get(typing.get_origin(field.annotation), "") if inner else ""
            if not inner or not any(kind.model_fields for kind in inner):
                yield path
            for kind in inner:
                yield from below(kind, path + name)

    for prefix, model in parts.items():
        yield from below(model, prefix)


CHANGED = {
    "multi_label": "true",
    "label_delimiter": ";",
    "set_aside": "0.375",
    **dict.fromkeys(("name", "config", "revision", "dir", "files", "split", "train", "test"), "other"),
    **dict.fromkeys(("image", "label", "audio", "text", "segments"), "other"),
    **dict.fromkeys(("model.language", "data.columns.language"), "xx"),
    **dict.fromkeys(("audio_window", "beams", "time_masks", "frequency_masks"), "3"),
    **dict.fromkeys(("speed", "gain_db", "noise_db", "time_seconds", "frequency_share", "pause_seconds"), "0.375"),
    "model.config": "{hidden_size: 3}",
    **dict.fromkeys(("initial_share", "final_share", "orthogonality"), "0.375"),
    **dict.fromkeys(("interval", "rows"), "3"),
    "init_r": "14",
    "target_r": "3",
    "tokens": "3",
    "severities": "[2]",
    "snr_db": "[7.5]",
    "rates": "[0.375]",
    "frame_ms": "80",
    "as": "frozen-transformer",
    "patch_size": "4",
    "long_documents": "split",
    "shots": "3",
    "weight": "0.5",
    "options": "{average: macro}",
    "square_pixels": "3",
    **dict.fromkeys(("temperature", "colour", "grey", "blur", "crop_seconds", "diversity_weight"), "0.375"),
    **dict.fromkeys(("mask_time_prob", "end", "decay", "gumbel.start", "mask_ratio"), "0.375"),
    **dict.fromkeys(("projection", "negatives", "mask_time_length"), "3"),
    **dict.fromkeys(("loss_group", "max_tokens"), "16"),
    "span_tokens": "2.5",
    "views.flip": "false",
    **dict.fromkeys(("l2", "ratio"), "0.375"),
    "normalised_pixels": "false",
    "speech_task": "translate",
    "normaliser": "none",
    **dict.fromkeys(("trust_remote_code", "rslora", "gradient_checkpointing", "compile", "flip"), "true"),
    "group_by_length": "true",
    **dict.fromkeys(("rank", "workers", "image_size", "ops", "magnitude", "evaluate_every", "early_stopping"), "3"),
    **dict.fromkeys(("batch_size", "checkpoint_every", "keep_checkpoints", "steps", "seed", "micro_batch"), "7"),
    **dict.fromkeys(("alpha", "dropout", "momentum", "weight_decay", "warmup", "layer_decay", "ema", "crop"), "0.375"),
    **dict.fromkeys(("erase", "mixup", "cutmix", "label_smoothing", "max_bad_share"), "0.375"),
    **dict.fromkeys(("epochs", "learning_rate"), "0.375"),
    **dict.fromkeys(("targets", "freeze", "language"), "[x]"),
    **dict.fromkeys(("full", "head", "bitfit"), "{}"),
    "init": "gaussian",
    "class_weights": "{x: 2.5}",
    "focal": "2.5",
    "sampling": "balanced",
    "leaks": "drop",
    "streaming": "true",
    "shuffle_buffer": "99",
    "metric": "macro_f1",
    "alphas": "[0.25]",
    **dict.fromkeys(("l2_sp.alpha", "beta", "unfreeze_epochs"), "0.375"),
    "prompts": "['other {}']",
    **dict.fromkeys(("document", "summary"), "'other {document}'"),
    "prompt": "'other {document} {text}'",
    "hypothesis": "'other {}'",
    "label_words": "{x: other}",
    **dict.fromkeys(("max_document_tokens", "max_summary_tokens", "evaluate_rows", "num_beams"), "3"),
    **dict.fromkeys(("no_repeat_ngram_size", "min_new_tokens"), "3"),
    "length_penalty": "0.375",
    "packing": "false",
    "model.generation.early_stopping": "true",
    **dict.fromkeys(("group", "ordered_by", "relabel"), "other"),
    "share": "0.375",
    "fold": "1",
    "folds": "3",
    "class_names": "[x, y]",
    "task": "image-classification",
    "stage": "finetune",
    "start": "previous",
    "batch_norm": "frozen",
    "optimizer": "sgd",
    "schedule": "linear",
    "max_grad_norm": "null",
    "keep": "last",
    "type": "OFT",
    "precision": "fp32",
    "base_dtype": "fp32",
}  # fmt: skip
"""Another value for each key of a recipe; a new key needs its own here."""
BEFORE = {
    "stages.1.momentum": ["stages.1.optimizer=sgd"],
    "stages.1.freeze": ["stages.1.adapt=full"],
    "stages.1.l2_sp": ["stages.1.adapt=full", "stages.1.l2_sp={}"],
    "stages.1.interpolate": ["stages.1.stage=finetune", "stages.1.interpolate={}"],
    "stages.1.l2": ["stages.1={stage: probe}"],
    "stages.1.metrics": ["stages.1.metrics=[{name: evaluate/f1}]"],
    "stages.1.model": ["stages.1.model={name: x/y}"],
    "stages.1.data": ["stages.1.data={name: x/y}"],
    "stages.1.augment.randaugment": ["stages.1.augment.randaugment={}"],
    "stages.1.augment.spec_augment": ["stages.1.augment.spec_augment={}"],
    "stages.1.timestamps": ["stages.1.timestamps={}"],
    "stages.1.steps": ["stages.1.epochs=null"],
    "data.extra_test.a": ["data.extra_test.a.config=before"],
    "data.extra_train.a": ["data.extra_train.a.config=before"],
    "stages.1.data.extra_test.a": ["stages.1.data={name: x/y, extra_test: {a: {config: before}}}"],
    "stages.1.data.extra_train.a": ["stages.1.data={name: x/y, extra_train: {a: {config: before}}}"],
    "stages.1.adapt.peft": ["stages.1.adapt={peft: {type: LOHA}}"],
    "data.streaming": ["data.splits={test: test}"],
    "data.shuffle_buffer": ["data.splits={test: test}", "data.streaming=true"],
    "stages.1.data.shuffle_buffer": ["stages.1.data={name: x/y, streaming: true}"],
    **{
        f"{at}.{key}": [f"{at}={{name: x/y, as: transformer, image_size: 32, patch_size: 8}}"]
        for at in ("model", "stages.1.model")
        for key in ("as", "patch_size")
    },
    **{
        f"{at}data.splits.{split}.{key}": [
            *(["stages.1.data={name: x/y}"] if at else []),
            f"{at}data.splits.{split}={{share: 0.25, {'group' if key == 'share' else key}: x}}",
        ]
        for at in ("", "stages.1.")
        for split in ("test", "validation")
        for key in ("share", "group", "ordered_by")
    },
    **{
        f"{at}data.splits.{split}.{key}": [
            *(["stages.1.data={name: x/y}"] if at else []),
            f"{at}data.splits.{split}={{fold: 0, folds: 5}}",
        ]
        for at in ("", "stages.1.")
        for split in ("test", "validation")
        for key in ("fold", "folds")
    },
    **{
        f"{at}data.splits.set_aside{key}": [
            *(["stages.1.data={name: x/y}"] if at else []),
            f"{at}data.splits={{test: null, validation: 0.1, set_aside: {rows}}}",
        ]
        for at in ("", "stages.1.")
        for key, rows in (
            ("", "0.25"),
            (".share", "{share: 0.25, group: x}"),
            (".group", "{share: 0.25, group: x}"),
            (".ordered_by", "{share: 0.25, ordered_by: x}"),
            (".fold", "{fold: 0, folds: 5}"),
            (".folds", "{fold: 0, folds: 5}"),
        )
    },
    "stages.1.model.prompt": ["stages.1.model={name: x/y}"],
    **{f"stages.1.adapt.{m}": [f"stages.1.adapt={{{m}: {{}}}}"] for m in ("lora", "dora", "adalora", "ia3", "prompt")},
}
"""What must be set for a key to be allowed."""
KINDS = {
    "image-classification": "[jpeg]",
    "automatic-speech-recognition": "[pink_noise]",
    "summarization": "[drop]",
    "text-classification": "[drop]",
}
"""Of corruption, for each task that has them."""
METRICS = {"automatic-speech-recognition": "cer", "summarization": "rouge2"}
"""Another one to decide by, where it is not macro_f1."""
SPEECH_BEFORE = {
    f"{at}.{key}": [f"{at}={{name: x/y, as: transformer}}"]
    for at in ("model", "stages.1.model")
    for key in ("as", "frame_ms")
}


@pytest.mark.parametrize("task", TASKS)
def test_digest_changes_with_every_other_key(tmp_path: Path, task: str) -> None:
    text = BASE.replace("image-classification", task).replace("  columns:\n    image: img\n", "")
    stage = "  - {stage: transfer, adapt: lora, epochs: 2, learning_rate: 1}\n"
    text = text[: text.index("  - stage")] + stage + stage + text[text.index("seed:") :]
    path = write(tmp_path / "r.yaml", text)

    def digest(overrides: list[str]) -> str:
        return recipe_sha256(load_recipe(path, overrides, check_files=False))

    keys = set(every_key(recipe_model(task))) - {"task"}
    if issubclass(TASKS[task].stage, JointStage):
        keys -= {"stages.1.micro_batch"}  # which is refused
    assert len(keys) >= 90
    known = BEFORE | (SPEECH_BEFORE if "speech" in task else {})
    for key in sorted(keys):
        before = next((known[k] for k in sorted(known, key=len, reverse=True) if f"{key}.".startswith(f"{k}.")), [])
        value = (
            KINDS[task]
            if key.endswith("corruptions.kinds")
            else METRICS[task]
            if key.endswith(".metric") and task in METRICS
            else CHANGED.get(key.removeprefix("stages.1."), CHANGED[key.split(".")[-1]])
        )
        method = re.fullmatch(r"stages\.1\.adapt\.(full|head|bitfit)", key)
        after = f"stages.1.adapt={method[1]}" if method else f"{key}={value}"
        if key == "stages.1.steps":
            before, after = [], "stages.1={stage: transfer, adapt: lora, steps: 2, learning_rate: 1}"
        if key == "stages.1.task":
            after = f"stages.1.task={task}"
        assert digest([*before, after]) != digest(before), key


def test_digest_is_the_same_wherever_and_however_a_recipe_is_written(tmp_path: Path) -> None:
    text = EVERY_KEY.replace("a/b", "./weights/vit").replace("name: c/d", "name: csv")
    recipe = load_recipe(write(tmp_path / "r.yaml", text), check_files=False)
    digest = recipe_sha256(recipe)

    def reordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reordered(value[key]) for key in reversed(value)}
        return [reordered(item) for item in value] if isinstance(value, list) else value

    variants = {
        "comments": "# x\n" + text.replace("\n", "  # y\n"),
        "order": dump(reordered(parse(text).value)),
        "defaults": recipe_text(recipe),
        "output": text.replace("outputs/x", "z"),
        "hub": re.sub(r"hub: [^}]*\}\}", "hub: {}", text),
        "trackers": text.replace("trackers: [wandb]", ""),
        "files": text.replace("./weights/vit", "/elsewhere/vit").replace("./g", "deep/g").replace("k/*.csv", "*.csv"),
        "numbers": text.replace("alpha: 3", "alpha: 3.0").replace("5e-4", "0.0005"),
    }
    for name, variant in variants.items():
        assert variant != text, name
        other = load_recipe(write(tmp_path / name / "other.yaml", variant), check_files=False)
        assert recipe_sha256(other) == digest, name
    assert len(digest) == 64


def test_digest_of_here_is_that_of_the_folder(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "data" / "r.yaml", BASE.replace("org/pictures", "imagefolder\n  dir: .")))
    write_recipe(recipe, tmp_path / "out" / "r.yaml")
    assert recipe_sha256(load_recipe(tmp_path / "out" / "r.yaml")) == recipe_sha256(recipe)


# --------------------------------------------------------------------------------------------- paths

LOCAL = """\
task: image-classification
model: {name: ./weights/vit}
data:
  name: parquet
  files: {train: data/train.parquet, test: ["data/te*.parquet"]}
  extra_test: {far: {name: imagefolder, dir: pictures, files: null}}
stages:
  - {stage: zero_shot, model: {name: weights/vit}, data: {name: ./pictures}}
output: outputs/x
"""


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for folder in ("weights/vit", "pictures", "data"):
        (tmp_path / "lab" / folder).mkdir(parents=True)
    for name in ("train", "test"):
        (tmp_path / "lab" / "data" / f"{name}.parquet").touch()
    return write(tmp_path / "lab" / "r.yaml", LOCAL)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("stand", [".", "lab", "lab/data"])
def test_paths_start_at_the_recipe(local: Path, monkeypatch: pytest.MonkeyPatch, stand: str, relative: bool) -> None:
    lab = local.parent
    monkeypatch.chdir(lab.parent / stand)
    there = load_recipe(Path(os.path.relpath(local)) if relative else local)
    stage: Any = there.stages[0]
    assert there.model is not None
    assert there.data is not None
    assert there.model.name == str(lab / "weights" / "vit")
    assert there.data.name == "parquet"
    files = {"train": str(lab / "data" / "train.parquet"), "test": [str(lab / "data" / "te*.parquet")]}
    assert there.data.files == files
    assert there.data.extra_test["far"].dir == str(lab / "pictures")
    assert stage.model.name == str(lab / "weights" / "vit")
    assert stage.data.name == str(lab / "pictures")


def test_missing_files_are_named_with_their_places(local: Path) -> None:
    shutil.rmtree(local.parent / "weights")
    shutil.rmtree(local.parent / "pictures")
    shutil.rmtree(local.parent / "data")
    with pytest.raises(RecipeError) as caught:
        load_recipe(local)
    beside = f"beside the recipe (in {local.parent})"
    assert str(caught.value).splitlines() == [
        "5 mistakes in the recipe; nothing was loaded.",  # and `weights/vit` alone may be a Hub id
        f"{local}:2:9  model.name: there is no folder ./weights/vit {beside}",
        f"{local}:5:11  data.files.train: there is no file data/train.parquet {beside}",
        f"{local}:5:45  data.files.test[0]: there is no file data/te*.parquet {beside}",
        f"{local}:6:41  data.extra_test.far.dir: there is no folder pictures {beside}",
        f"{local}:8:59  stages[0].data.name: there is no folder ./pictures {beside}",
    ]


def test_paths_that_are_typed_start_at_the_working_directory(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = tmp_path / "shell"
    (shell / "weights" / "mine").mkdir(parents=True)
    (shell / "mine.parquet").touch()
    monkeypatch.chdir(shell)
    typed = ["model.name=weights/mine", "data.files.test=[mine.parquet]", "stages.0.model.name=./weights/mine"]
    recipe = load_recipe(local, typed)
    monkeypatch.chdir(tmp_path)
    there = recipe
    stage: Any = there.stages[0]
    assert there.model is not None
    assert there.data is not None
    assert there.model.name == stage.model.name == str(shell / "weights" / "mine")
    assert there.data.files == {
        "train": str(local.parent / "data/train.parquet"),
        "test": [str(shell / "mine.parquet")],
    }
    write_recipe(recipe, tmp_path / "out" / "r.yaml")
    assert without_private(load_recipe(tmp_path / "out" / "r.yaml")) == without_private(there)


def test_missing_paths_that_are_typed(local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(local, ["model.name=./weights/vit", "data.files.train=data/train.parquet"])
    folder = f"in the working directory ({tmp_path})"
    assert str(caught.value).splitlines()[1:] == [
        f"--set data.files.train=data/train.parquet  data.files.train: there is no file data/train.parquet {folder}",
        f"--set model.name=./weights/vit  model.name: there is no folder ./weights/vit {folder}",
    ]


def test_hub_ids_are_folders_only_where_there_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", BASE)
    there = load_recipe(path)
    assert there.model is not None
    assert there.data is not None
    assert (there.model.name, there.data.name) == ("google/vit", "org/pictures")
    (tmp_path / "google" / "vit").mkdir(parents=True)
    there = load_recipe(path)
    assert there.model is not None
    assert there.model.name == str(tmp_path / "google" / "vit")


@pytest.mark.parametrize("builder", ["imagefolder", "csv", "json", "parquet"])
def test_builders_are_not_folders(tmp_path: Path, builder: str) -> None:
    (tmp_path / builder).mkdir()
    (tmp_path / "x").touch()
    there = load_recipe(write(tmp_path / "r.yaml", BASE.replace("org/pictures", f"{builder}\n  files: x")))
    assert there.data is not None
    assert there.data.name == builder


def test_what_is_local(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = {"a": True, "b": False, "./b": True, "../b": True, "/b": True, "~/b": True, "u/b": False, "x" * 5000: False}
    assert {name: is_local(name, tmp_path) for name in names} == names


@pytest.mark.parametrize(
    "pattern", ["deep/*.csv", "**/*.csv", "deep/?.csv", "deep/[ab].csv", "de*/a.csv", "{here}/deep/a.csv"]
)
def test_patterns_of_files(tmp_path: Path, pattern: str) -> None:
    write(tmp_path / "deep" / "a.csv", "")
    text = BASE.replace("org/pictures", f'csv\n  files: "{pattern.format(here=tmp_path)}"')
    load_recipe(write(tmp_path / "r.yaml", text))
    (tmp_path / "deep" / "a.csv").unlink()
    with pytest.raises(RecipeError, match="there is no file"):
        load_recipe(tmp_path / "r.yaml")


def test_addresses_are_not_files(tmp_path: Path) -> None:
    text = BASE.replace("org/pictures", 'csv\n  files: {train: "https://host/a.csv", test: ["hf://x/b.csv"]}')
    there = load_recipe(write(tmp_path / "r.yaml", text))
    assert there.data is not None
    assert there.data.files == {"train": "https://host/a.csv", "test": ["hf://x/b.csv"]}


def test_folders_and_files_of_a_hub_id_are_places_in_its_repository(tmp_path: Path) -> None:
    (tmp_path / "hi").mkdir()  # which is not meant
    text = BASE.replace(
        "org/pictures",
        "org/pictures\n  dir: hi\n  extra_test:\n    en: {dir: en}\n    own: {name: csv, files: here.csv}",
    )
    path = write(tmp_path / "r.yaml", text)
    there = load_recipe(path, check_files=False)
    assert there.data is not None
    assert (there.data.dir, there.data.extra_test["en"].dir) == ("hi", "en")
    assert there.data.extra_test["own"].files == str(tmp_path / "here.csv")
    with pytest.raises(RecipeError, match=r"there is no file here\.csv"):
        load_recipe(path)


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vit").mkdir()
    there = load_recipe(write(tmp_path / "lab" / "r.yaml", BASE.replace("google/vit", "~/vit")))
    assert there.model is not None
    assert there.model.name == str(tmp_path / "vit")


def test_where_something_was_written(local: Path) -> None:
    recipe = load_recipe(local, ["seed=3"])
    assert written_at(recipe, "data.files.test[0]") == f"{local}:5:45  data.files.test[0]"
    assert written_at(recipe, "stages[0].data.columns.label") == f"{local}:8:52  stages[0].data.columns.label"
    assert written_at(recipe, "seed") == "--set seed=3  seed"
    assert written_at(recipe, "hub.repo") == f"{local}:1:1  hub.repo"


# -------------------------------------------------------------------------------------------- in Python


def test_a_mapping_is_a_recipe(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local.parent)
    recipe = load_recipe(parse(LOCAL).value, {"stages.0.name": "shot", "model.name": Path("weights") / "vit"})
    same = load_recipe(str(local), ["stages.0.name=shot", "model.name=weights/vit"])
    assert without_private(recipe) == without_private(same)
    assert recipe_sha256(recipe) == recipe_sha256(same)
    assert written_at(recipe, "data.name") == "data.name"
    numbers = {"seed": np.int64(3), "data.max_bad_share": np.float32(0.25)}
    assert load_recipe(local, numbers).seed == 3
    assert getattr(load_recipe(local, numbers).data, "max_bad_share", None) == 0.25


def test_mistakes_of_a_mapping_have_its_keys_for_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = parse(BASE).value | {"modle": {}, "seed": -1}
    with pytest.raises(RecipeError) as caught:
        load_recipe(keys, {"stages.0.epochs": "three", "model.name": "./vit"})
    lines = [line for line in str(caught.value).splitlines() if "allowed: " not in line]
    assert lines == [
        "3 mistakes in the recipe; nothing was loaded.",
        "seed: expected a number of at least 0, found the number -1",
        "modle: unknown key; did you mean `model`?",
        "overrides['stages.0.epochs']  stages[0].epochs: expected a number, found the text 'three'",
    ]
    with pytest.raises(
        RecipeError, match=r"overrides\['model.name'\]  model.name: there is no folder ./vit in the wor"
    ):
        load_recipe(parse(BASE).value, {"model.name": "./vit"})
    with pytest.raises(RecipeError, match=r"^2 mistakes in the recipe; nothing was loaded.\nneeds the key `task`"):
        load_recipe({})


def test_doctests() -> None:
    result = doctest.testmod(tltasks.config.loading)
    assert result.attempted >= 1
    assert result.failed == 0
