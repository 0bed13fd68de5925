import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tltasks.config.adaptation import Adapt, Full, Lora
from tltasks.config.data import Data, Splits
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Hub, Recipe
from tltasks.config.section import FORMS
from tltasks.config.stage import Stage
from tltasks.config.tasks import TASKS
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import RecipeError

BASE = """\
task: image-classification
model:
  name: google/vit
  revision: main
data:
  name: org/pictures
  columns:
    image: img
  splits:
    validation: 0.1
stages:
  - stage: transfer
    adapt: lora
    epochs: 3
    batch_size: 64
    learning_rate: 5e-4
    augment:
      flip: true
seed: 0
output: outputs/x
"""
HERE = "§"
"""Stands before the place that a message must name; it is taken out of the text."""

MODEL_KEYS = "allowed: name, revision, trust_remote_code, image_size"
STAGES = "'finetune', 'transfer', 'pretrain', 'probe', 'zero_shot'"
METHODS = "`full`, `head`, `lora`, `dora`, `adalora`, `ia3`, `bitfit`, `prompt`, `peft`"
TWO_STAGES = "    augment:\n      flip: true\n  - {stage: finetune, start: previous, epochs: 1, learning_rate: 1e-4}\n"

MISTAKES = {
    # ---------------------------------------------------------------------------------------- unknown
    "top": ("seed: 0", "§sed: 0", "sed: unknown key; did you mean `seed`?", "allowed: task, model, data, stages,"),
    "top, nothing near": ("seed: 0", "§zzz: 0", "zzz: unknown key\n", "allowed: task, model"),
    "model": ("revision", "§revison", "model.revison: unknown key; did you mean `revision`?", MODEL_KEYS),
    "columns": ("image: img", "§img: x", "data.columns.img: unknown key", "allowed: image, label"),
    "splits": ("validation: 0.1", "§valid: 0.1", "data.splits.valid: unknown key", "allowed: train, validation, test"),
    "stage": ("epochs", "§epoch", "stages[0].epoch: unknown key; did you mean `epochs`?", "allowed: stage, name"),
    "augment": ("flip", "§flp", "stages[0].augment.flp: unknown key; did you mean `flip`?", "allowed: flip, crop"),
    "lora": ("adapt: lora", "adapt: {lora: {§rnk: 8}}", "stages[0].adapt.lora.rnk: unknown key; did you mean `rank`?",
             "allowed: rank, alpha, dropout, targets, rslora"),
    "method": ("adapt: lora", "adapt: {§loraa: {rank: 8}}", "stages[0].adapt.loraa: unknown key; did you mean `lora`?",
               "allowed: full, head, lora, dora, adalora, ia3, bitfit, prompt, peft"),
    "method as text": ("adapt: lora", "§adapt: loraa",
                       "stages[0].adapt: unknown: the text 'loraa'; did you mean `lora`?", "allowed: full, head, lora"),
    "hub": ("seed: 0", "hub: {§licence: mit}", "hub.licence: unknown key; did you mean `license`?", "allowed: repo,"),
    "extra test": ("  splits:", "  extra_test: {a: {§nam: x}}\n  splits:",
                   "data.extra_test.a.nam: unknown key; did you mean `name`?", "allowed: name, config"),
    "stage's own data": ("    epochs", "    data: {name: a/b, §nme: x}\n    epochs",
                         "stages[0].data.nme: unknown key; did you mean `name`?", "allowed: name, config"),
    "a stage's": ("  splits:", "  §epochs: 3\n  splits:", "data.epochs: unknown key; it stands in `stages[0]`",
                  "allowed: name"),
    "of LoRA": ("    epochs", "    §rank: 8\n    epochs",
                "stages[0].rank: unknown key; it stands in `stages[0].adapt.lora`", "allowed: stage"),
    "the recipe's": ("  splits:", "  §seed: 3\n  splits:", "data.seed: unknown key; it stands at the top of the recipe",
                     "allowed: name"),
    "several lines": ("seed: 0", '§"a\\nb": 0', "a b: unknown key", "allowed: task"),
    "randaugment": ("flip: true", "randaugment: {§op: 2}", "stages[0].augment.randaugment.op: unknown key",
                    "allowed: ops, magnitude"),
    # ---------------------------------------------------------------------------------------- missing
    "no task": ("task: image-classification\n", "", "needs the key `task`", "allowed: image-classification"),
    "null task": ("task: image-classification", "task:", "needs the key `task`", "allowed: image-classification"),
    "no epochs": ("    epochs: 3\n", "    optimizer: muon\n", "stages[0]: needs `epochs` or `steps`", ""),
    "no learning rate": ("    learning_rate: 5e-4\n", "    optimizer: sgd\n",
                         "stages[0]: needs `learning_rate` (a start: 5e-4 for", ""),
    "no model": ("model:\n  name: google/vit\n  revision: main\n", "",
                 "stages[0]: needs the key `model`, here or for the whole recipe", ""),
    "no data": (BASE[BASE.index("data"):BASE.index("stages")], "",
                "stages[0]: needs the key `data`, here or for the whole recipe", ""),
    "no model name": ("  name: google/vit\n", "", "model: needs the key `name`", ""),
    "no kind of stage": ("- stage: transfer\n    adapt", "- adapt", "stages[0]: needs the key `stage`", ""),
    "no PEFT type": ("adapt: lora", "adapt: {§peft: {r: 2}}", "stages[0].adapt.peft: needs the key `type`", ""),
    # -------------------------------------------------------------------------------------- ill-typed
    "task": ("task: image-classification", "§task: image-clasification", "task: no task is called "
             "'image-clasification'; did you mean `image-classification`?", "allowed: image-classification"),
    "task, nothing near": ("task: image-classification", "§task: xyz", "no task is called 'xyz'\n", "allowed: image-"),
    "task is a list": ("task: image-classification", "§task: [a]", "task: no task is called a list", "allowed: image"),
    "task is a number": ("task: image-classification", "§task: 5", "task: no task is called the number 5", "allowed:"),
    "stage's task": ("    epochs", "    §task: image-clasification\n    epochs",
                     "stages[0].task: no task is called 'image-clasification'", "allowed: image-classification"),
    "stage's task is a list": ("    epochs", "    §task: [a]\n    epochs",
                               "stages[0].task: expected text, found a list", ""),
    "whole number": ("batch_size: 64", "§batch_size: 64.0", "expected a whole number, found the number 64.0", ""),
    "number": ("epochs: 3", "§epochs: three", "stages[0].epochs: expected a number, found the text 'three'", ""),
    "quoted number": ("5e-4", "HERE'5e-4'", "expected a number, found the text '5e-4'", ""),
    "positive": ("epochs: 3", "§epochs: 0", "stages[0].epochs: expected a number above 0.0, found the number 0", ""),
    "negative": ("seed: 0", "§seed: -1", "seed: expected a number of at least 0, found the number -1", ""),
    "too great": ("seed: 0", "§seed: 4294967296", "seed: expected a number below 4294967296, found", ""),
    "truth": ("flip: true", "§flip: yes", "augment.flip: expected true or false, found the text 'yes'", ""),
    "truth as number": ("flip: true", "§flip: 1", "augment.flip: expected true or false, found the number 1", ""),
    "number as truth": ("seed: 0", "§seed: true", "seed: expected a whole number, found true", ""),
    "text": ("revision: main", "§revision: 3", "model.revision: expected text, found the number 3", ""),
    "null": ("revision: main", "§revision: null", "model.revision: expected text, found nothing", ""),
    "empty text": ("name: google/vit", "§name: ''", "model.name: expected text that is not empty", ""),
    "empty output": ("output: outputs/x", "§output: ''", "output: expected text that is not empty", ""),
    "mapping": (BASE[BASE.index("model:"):BASE.index("data")], "§model: google/vit\n",
                "model: expected a mapping of keys, found the text 'google/vit'", MODEL_KEYS),
    "list of one": ("seed: 0", "§trackers: wandb", "trackers: expected a list, found the text 'wandb'", ""),
    "list item": ("seed: 0", "trackers: [wandb, §wandbb]", "trackers[1]: expected 'tensorboard', 'trackio', 'wandb', "
                  "found the text 'wandbb'; did you mean `wandb`?", ""),
    "stages is a mapping": ("  - stage: transfer", "    stage: transfer",
                            "stages: expected a list of at least one stage, found a mapping", ""),
    "no stage": (BASE[BASE.index("stages"):BASE.index("seed")], "§stages: []\n", "found an empty list", ""),
    "stage is text": (BASE[BASE.index("  - stage"):BASE.index("seed")], "  - §transfer\n",
                      "stages[0]: expected a mapping of keys, found the text 'transfer'", "allowed: stage, name"),
    "stage is nothing": (BASE[BASE.index("  - stage"):BASE.index("seed")], "  -§ \n", "found nothing", "allowed: st"),
    "one of": ("stage: transfer", "§stage: transferr",
               f"stages[0].stage: expected {STAGES}, found the text 'transferr'; did you mean `transfer`?", ""),
    "one of, nothing near": ("seed: 0", "§precision: 16", "expected 'auto', 'fp32', 'bf16', 'fp16', found the", ""),
    "number or word": ("batch_size: 64", "batch_size: 64\n    §micro_batch: all",
                       "micro_batch: expected 'auto' or a whole number, found the text 'all'", ""),
    "text or share": ("validation: 0.1", "§validation: 1.5", "below 1.0 or a mapping of keys", "share, group"),
    "no share": ("validation: 0.1", "§validation: 0", "above 0.0 or a mapping of keys, found", "share, group"),
    "share is truth": ("validation: 0.1", "§validation: true", "mapping of keys, found true", "share, group"),
    "infinite": ("epochs: 3", "§epochs: .inf", "expected a finite number, found the number inf", ""),
    "not a number": ("flip: true", "§mixup: .nan", "augment.mixup: expected a finite number, found the number nan", ""),
    "too large for a float": ("5e-4", "HERE1e999", "expected a finite number, found the number inf", ""),
    "files": ("  splits:", "  §files: 5\n  splits:", "expected text or a list or a mapping of keys, found the", ""),
    "one file": ("  splits:", "  files: {§train: 5}\n  splits:", "data.files.train: expected text or a list,", ""),
    "file in a list": ("  splits:", "  files: [a.csv, §5]\n  splits:", "data.files[1]: expected text, found the", ""),
    "targets": ("adapt: lora", "adapt: {lora: {§targets: q}}", "expected 'auto' or a list, found the text 'q'", ""),
    "empty list": ("adapt: lora", "adapt: {lora: {§targets: []}}", "expected 'auto' or a list of at least 1,", ""),
    "adapt": ("adapt: lora", "§adapt: [lora]", "adapt: expected a mapping of keys, found a list", "allowed: full"),
    "repo": ("seed: 0", "hub: {§repo: a b}", "hub.repo: expected text like `user/name`, found the text 'a b'", ""),
    "stage name": ("    epochs", "    §name: a/b\n    epochs", "stages[0].name: expected text of letters, digits,", ""),
    "extra test's name": ("  splits:", "  extra_test: {§a b: {split: x}}\n  splits:",
                          "data.extra_test.a b: a name is text of letters, digits", ""),
    "at most": ("flip: true", "randaugment: {§magnitude: 31}",
                "randaugment.magnitude: expected a number of at most 30, found the number 31", ""),
    # ---------------------------------------------------------------------------------- contradictory
    "epochs and steps": ("epochs: 3", "epochs: 3\n    steps: 5", "stages[0]: has both `epochs` and `steps`; keep", ""),
    "micro-batch": ("batch_size: 64", "batch_size: 64\n    micro_batch: 65", "`micro_batch` 65 exceeds", ""),
    "momentum": ("epochs: 3", "epochs: 3\n    momentum: 0.5", "stages[0]: `momentum` is a key of `optimizer: sgd`", ""),
    "freeze": ("epochs: 3", "epochs: 3\n    freeze: [x]", "stages[0]: `freeze` has no effect with `adapt: lora`", ""),
    "pretrain": ("stage: transfer", "stage: pretrain", "pretrain from random weights trains all of them;", ""),
    "zero shot": ("stage: transfer", "stage: zero_shot", "zero_shot trains nothing, so these keys have no effect: "
                  "adapt, augment, batch_size, epochs, learning_rate", ""),
    "two methods": ("adapt: lora", "§adapt: {lora: {}, full: {}}", f"adapt: takes exactly one of {METHODS}", ""),
    "no method": ("adapt: lora", "§adapt: {}", f"stages[0].adapt: takes exactly one of {METHODS}", ""),
    "no stage before": ("epochs: 3", "epochs: 3\n    §start: previous", "stages[0].start: the first stage has no", ""),
    "early stopping": ("    validation: 0.1\nstages:\n  - stage: transfer",
                       "    validation: null\nstages:\n  - stage: transfer\n    §early_stopping: 2",
                       "stages[0].early_stopping: needs a validation split: set data.splits.validation", ""),
    "evaluations": ("    validation: 0.1\nstages:\n  - stage: transfer",
                    "    validation: null\nstages:\n  - stage: transfer\n    §evaluate_every: 2",
                    "stages[0].evaluate_every: needs a validation split", ""),
    "nothing left": ("validation: 0.1", "validation: 0.5\n    test: 0.5", "data.splits: shares of 1 in all leave", ""),
    "weights of sources in balanced sampling": (
        "  splits:\n    validation: 0.1\nstages:\n  - stage: transfer\n",
        "  §extra_train: {a: {name: b/c, weight: 2}}\n  splits:\n    validation: 0.1\nstages:\n  - stage: transfer\n"
        "    sampling: balanced\n", "stage 0 (transfer) draws rows by their class: leave out the weights of", ""),
    "sources without rows of the data": (
        "validation: 0.1", "validation: v\n    §train: null\n  extra_train: {a: {name: b/c}}",
        "further rows to train on need a split of `data` itself", ""),
    "nothing to hold out of": ("validation: 0.1", "validation: 0.1\n    §train: null", "a share is held out of", ""),
    "nothing to train on": ("validation: 0.1", "validation: v\n    §train: null", "stage 0 (transfer) trains and", ""),
    "nothing to evaluate on": ("validation: 0.1", "test: null", "data.splits: nothing to evaluate on: set `test`,", ""),
    "builder": ("name: org/pictures", "§name: imagefolder", "the builder `imagefolder` needs `dir` or `files`", ""),
    "builder, empty files": ("name: org/pictures", "§name: csv\n  files: []", "the builder `csv` needs `dir` or", ""),
    "a column twice": ("image: img", "§image: label", "column `label` is taken as `label` already; name another", ""),
    "named as a split": ("  splits:", "  extra_test: {§test: {split: x}}\n  splits:", "`test` is the name of a", ""),
}  # fmt: skip

PLACES = {
    "no model": "- §stage: t",
    "no data": "- §stage: t",
    "no model name": "§model:",
    "no kind of stage": "- §adapt",
    "stages is a mapping": "§stages:",
    "nothing left": "  §splits:",
    "nothing to evaluate on": "  §splits:",
    **dict.fromkeys(("no epochs", "no learning rate", "epochs and steps", "micro-batch"), "- §stage: t"),
    **dict.fromkeys(("momentum", "freeze"), "- §stage: t"),
    "pretrain": "- §stage: p",
    "zero shot": "- §stage: z",
}
"""Where a message belongs that is not about a key of the changed lines."""

ALSO = {"nothing to hold out of": 1, "sources without rows of the data": 1}
"""Further mistakes that follow from it."""


def errors(tmp_path: Path, text: str) -> list[str]:
    """The lines of the message about a recipe."""
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return str(caught.value).replace(str(path), "r.yaml").splitlines()


def marked(text: str) -> tuple[str, str]:
    """A text without its mark, and the place of the mark."""
    before = text.partition(HERE)[0] if HERE in text else ""
    return text.replace(HERE, ""), f"r.yaml:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def test_base(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    assert load_recipe(path).stages[0].adapt.method == "lora"


def test_number_of_mistakes() -> None:
    assert len(MISTAKES) >= 89
    assert PLACES.keys() | ALSO.keys() <= MISTAKES.keys()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(tmp_path: Path, name: str) -> None:
    old, new, expected, allowed = MISTAKES[name]
    assert BASE.count(old) == 1
    if new.startswith("HERE"):  # a value, whose key is the place
        new = new.removeprefix("HERE")
        text = BASE.replace(old, new).replace("learning_rate", "§learning_rate")
    else:
        text = BASE.replace(old, new)
    if at := PLACES.get(name):
        text = text.replace(at.replace(HERE, ""), at)
    text, place = marked(text)
    lines = errors(tmp_path, text)
    n = 1 + ALSO.get(name, 0)
    assert lines[0] == f"{n} mistake{'s' if n > 1 else ''} in the recipe; nothing was loaded."
    assert lines[1].startswith(f"{place}  "), f"{lines} instead of {place}"
    assert expected in "\n".join(lines[1:]) + "\n"
    found = [line for line in lines if line.startswith("    allowed: ")]
    assert len(found) == bool(allowed)
    assert allowed in "".join(found)
    assert len(lines) == 1 + n + len(found)


# ------------------------------------------------------------------------------------- all at once

EVERYTHING = """\
task: image-clasification
modle: {name: a/b}
data:
  name: imagefolder
  colums: {image: img}
  splits: {validation: 0.5, test: 0.6}
  max_bad_share: lots
stages:
  - stage: transferr
    start: previous
    adapt: {lora: {rank: 0, rnk: 8}}
    epochs: 3
    steps: 10
    batch_size: 8
    micro_batch: 16
    learning_rate: high
    augment: {flp: true, crop: 2}
  - stage: zero_shot
    epochs: 3
    epochs: 4
  - adapt: {}
seed: -1
hub: {private: yes, repo: a b}
"""


def test_all_mistakes_in_one_error(tmp_path: Path) -> None:
    lines = errors(tmp_path, EVERYTHING)
    found = [re.sub(r"^r\.yaml:", "", line) for line in lines[1:] if not line.startswith("    allowed: ")]
    expected = [
        "1:1  task: no task is called 'image-clasification'; did you mean",
        "2:1  modle: unknown key; did you mean `model`?",
        "4:3  data.name: the builder `imagefolder` needs `dir` or `files`",
        "5:3  data.colums: unknown key; did you mean `columns`?",
        "6:3  data.splits: shares of 1.1 in all leave nothing to train on",
        "7:3  data.max_bad_share: expected a number, found the text 'lots'",
        "9:5  stages[0].stage: expected 'finetune', 'transfer', 'pretrain', 'probe', 'zero_shot', found",
        "9:5  stages[0]: has both `epochs` and `steps`; keep one",
        "9:5  stages[0]: `micro_batch` 16 exceeds `batch_size` 8",
        "10:5  stages[0].start: the first stage has no previous one",
        "11:20  stages[0].adapt.lora.rank: expected a number above 0",
        "11:29  stages[0].adapt.lora.rnk: unknown key; did you mean `rank`?",
        "16:5  stages[0].learning_rate: expected a number, found the text 'high'",
        "17:15  stages[0].augment.flp: unknown key; did you mean `flip`?",
        "17:26  stages[0].augment.crop: expected a number of at most 1.0, found the number 2",
        "18:5  stages[1]: zero_shot trains nothing, so these keys have no effect: epochs",
        "20:5  stages[1]: the key `epochs` is already there on line 19; keep one",
        "21:5  stages[2]: needs the key `stage`",
        "21:5  stages[2].adapt: takes exactly one of",
        "22:1  seed: expected a number of at least 0",
        "23:7  hub.private: expected true or false, found the text 'yes'",
        "23:21  hub.repo: expected text like `user/name`",
    ]
    assert lines[0] == f"{len(expected)} mistakes in the recipe; nothing was loaded."
    missing = [line for line in expected if not any(other.startswith(line) for other in found)]
    assert missing == []
    assert len(found) == len(expected), [f for f in found if not any(f.startswith(line) for line in expected)]
    at = [tuple(map(int, line.split("  ")[0].split(":"))) for line in found]
    assert at == sorted(at)


def test_what_is_allowed_is_listed_once(tmp_path: Path) -> None:
    lines = errors(tmp_path, BASE.replace("seed: 0", "sed: 0\noutptu: x"))
    assert sum("allowed: " in line for line in lines) == 1
    assert lines[2].startswith("    allowed: task, ")
    assert len(lines) == 4


@pytest.mark.parametrize("task", ["image-clasification", "", "[a]"])
def test_the_rest_is_checked_under_a_mistaken_task(tmp_path: Path, task: str) -> None:
    text = BASE.replace("image-classification", task).replace("image: img", "imge: x").replace("flip", "flp")
    assert errors(tmp_path, text)[0] == "3 mistakes in the recipe; nothing was loaded."


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("learning_rate: 5e-4", "learning_rat: 5e-4"),
        ("learning_rate: 5e-4", "learning_rate: high"),
        ("epochs: 3", "epoch: 3"),
        ("model:", "modell:"),
        ("name: google/vit", "name: 5"),
        ("stages:", "stage:"),
        ("output", "outptu"),
        ("task", "taks"),
        ("validation: 0.1", "validation: 7"),
        ("  splits:\n    validation: 0.1", "  split:\n    validation: 0.1\n    test: null"),
        ("adapt: lora", "adapt: {loraa: {}}"),
        ("stage: transfer", "stage: 5"),
    ],
)
def test_nothing_is_concluded_from_what_could_not_be_read(tmp_path: Path, old: str, new: str) -> None:
    text = BASE.replace(old, new, 1).replace("    epochs", "    early_stopping: 2\n    epochs", 1)
    text = text.replace("    epoch:", "    early_stopping: 2\n    epoch:", 1)
    assert errors(tmp_path, text)[0] == "1 mistake in the recipe; nothing was loaded."


def test_second_stage_may_start_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE.replace("    augment:\n      flip: true\n", TWO_STAGES))
    assert [stage.start for stage in load_recipe(path).stages] == ["checkpoint", "previous"]


# --------------------------------------------------------------------------------------- in Python


def test_adapt_says_its_method() -> None:
    assert Adapt(full=Full()).method == "full"
    assert not Adapt(full=Full()).is_peft
    assert Adapt(dora=Lora()).is_peft
    with pytest.raises(ValidationError, match="takes exactly one of `full`"):
        Adapt(full=Full(), lora=Lora())


def test_contradictions_raise_in_python_too() -> None:
    with pytest.raises(ValidationError, match="has both `epochs` and `steps`"):
        Stage(stage="transfer", epochs=1, steps=1, learning_rate=1.0)


def test_every_section_tells_its_conflicts_with_their_places() -> None:
    with pytest.raises(ValidationError, match=r"splits\.train\n  a share is held out of train"):
        Data(name="a/b", splits=Splits(train=None, validation=0.5))
    with pytest.raises(ValidationError, match=r"stages\.0\n  needs the key `model`, here or for the whole recipe"):
        Recipe(task="image-classification", data=Data(name="a/b"), stages=[Stage(stage="zero_shot")], output="x")


def test_nothing_changes_after_reading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Hub().private = False  # type: ignore[misc]


def test_effective_keys() -> None:
    zero_shot = ImageStage(stage="zero_shot")
    shared = {"stage", "name", "start", "task", "model", "data", "metrics"}
    assert zero_shot.effective_keys == shared | {"metric"}
    sgd = ImageStage(stage="transfer", epochs=1, learning_rate=1.0, optimizer="sgd")
    adamw = ImageStage(stage="transfer", epochs=1, learning_rate=1.0)
    assert sgd.effective_keys - adamw.effective_keys == {"momentum"}
    assert sgd.effective_keys == set(ImageStage.model_fields) - {"l2"}
    assert ImageStage(stage="probe").effective_keys == zero_shot.effective_keys | {"l2"}


def test_every_pattern_has_words() -> None:
    patterns = set(re.findall(r"'pattern': '(.*?)'[,}]", str(Recipe.model_json_schema())))
    for keys in TASKS.values():
        for kind in (keys.model, keys.data, keys.stage):
            patterns |= set(re.findall(r"'pattern': '(.*?)'[,}]", str(kind.model_json_schema())))
    assert {pattern.replace("\\\\", "\\") for pattern in patterns} == set(FORMS)
    assert len(FORMS) == 5
