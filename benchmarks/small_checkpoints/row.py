"""One row of the sweep: a small checkpoint trained by one method and used, all the way a user goes.

`tltasks.run` on a tiny data set: opened, adapted, trained for a few steps, saved, loaded again, scored, with its card;
then `tltasks.load` answers for the test rows, and so does the code that the card prints for users of transformers.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import io
import json
import logging
import math
import os
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow.parquet as pq
import torch
import transformers
from torch import nn

import tltasks
from benchmarks.small_checkpoints import Small
from tests.tiny import images, speech, texts, topics
from tltasks.config.tasks import TASKS
from tltasks.errors import TltasksError
from tltasks.models.adapters import freeze_unused, is_adapted
from tltasks.reports.templates import card_environment, page_environment
from tltasks.runs import stage as stages
from tltasks.tasks.speech.audio import decode_audio

MERGED_WITHIN = 1e-4
"""Share of the effect of training by which the saved model's outputs may differ from those of the trained one."""
ROUNDING = 1e-5
"""Share of the largest output below which two outputs are the same number in fp32."""
RATES = (1.0, 0.1)
"""Shares of a method's rate that are tried, the next where a row says nothing."""
LEAST_EFFECT = 1e-3
"""Share of the outputs that training has to change for a row to say anything."""
MOST_STILL = 0.5
"""Share of the trained tensors that may stay as they are: behind a unit that no row wakes there is no gradient."""
SAME_PROBABILITY = 2e-3
"""The card prints three digits of probabilities, and pictures are resized to whole numbers."""

STEPS = 3
HZ = 16000
"""Samples a second of the clips, and of what hears them and says nothing else."""
LOOP = {"steps": STEPS, "batch_size": 4, "keep": "last", "schedule": "constant", "warmup": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"adapt": "full", "learning_rate": 1e-3},
    "head": {"adapt": "head", "learning_rate": 1e-2},
    "probe": {"stage": "probe", "l2": 1e-3},
    "lora": {"adapt": {"lora": {"rank": 4}}, "learning_rate": 2e-2},
    "dora": {"adapt": {"dora": {"rank": 4}}, "learning_rate": 2e-2},
    "ia3": {"adapt": "ia3", "learning_rate": 0.1},
    "bitfit": {"adapt": "bitfit", "learning_rate": 2e-2},
    "adalora": {"adapt": {"adalora": {"target_r": 2, "init_r": 4}}, "learning_rate": 0.5, "steps": 4},
    "prompt": {"adapt": {"prompt": {"tokens": 4}}, "learning_rate": 0.1},
    "loha": {"adapt": {"peft": {"type": "LOHA", "r": 4}}, "learning_rate": 5e-2},
    "lokr": {"adapt": {"peft": {"type": "LOKR", "r": 4}}, "learning_rate": 5e-2},
    "oft": {"adapt": {"peft": {"type": "OFT", "oft_block_size": 4}}, "learning_rate": 2e-2},
    "boft": {"adapt": {"peft": {"type": "BOFT", "boft_block_size": 4}}, "learning_rate": 2e-2},
    "vera": {"adapt": {"peft": {"type": "VERA", "r": 4}}, "learning_rate": 0.1},
    "hra": {"adapt": {"peft": {"type": "HRA", "r": 4}}, "learning_rate": 2e-2},
    "fourierft": {"adapt": {"peft": {"type": "FOURIERFT", "n_frequency": 16}}, "learning_rate": 0.5},
    "ln_tuning": {"adapt": {"peft": {"type": "LN_TUNING"}}, "learning_rate": 2e-2},
    "randlora": {"adapt": {"peft": {"type": "RANDLORA", "r": 4}}, "learning_rate": 5e-2},
    "miss": {"adapt": {"peft": {"type": "MISS", "r": 4}}, "learning_rate": 2e-2},
}
"""Keys of a stage. Rates are large, so that what a method has learnt is far above rounding."""
ADAPTERS = ("lora", "dora", "ia3", "bitfit", "adalora")
OTHERS = ("loha", "lokr", "oft", "boft", "vera", "hra", "fourierft", "ln_tuning", "randlora", "miss")
"""Methods that PEFT has besides."""

CLASSIFIED = ("full", "head", "probe", *ADAPTERS, *OTHERS)
OBJECTIVE = ("full", *ADAPTERS, *OTHERS)


def _documents(folder: Path) -> object:
    return texts.save_data(folder, rows=12)


def _pictures(folder: Path) -> object:
    return images.save_data(folder, rows=12)


def _clips(folder: Path) -> object:
    return speech.save_data(folder, rows=8)


_PIXELS = {"save": _pictures, "format": "parquet", "suffix": "parquet"}
_SOUND = {"save": _clips, "format": "csv", "suffix": "csv"}
_LINES = {"save": _documents, "format": "json", "suffix": "jsonl"}
_OBJECTIVE = {"stage": "finetune", "methods": OBJECTIVE}
_TEXTS = {**_LINES, **_OBJECTIVE, "data": {"columns": {"text": "document"}, "max_tokens": 64}}
TASK_ROWS: dict[str, dict[str, Any]] = {
    "image-classification": {**_PIXELS, "stage": "transfer", "methods": CLASSIFIED},
    "masked-image-modeling": {**_PIXELS, **_OBJECTIVE},
    "contrastive-image": {**_PIXELS, **_OBJECTIVE, "stage": "transfer"},
    "automatic-speech-recognition": {**_SOUND, "stage": "finetune", "methods": ("full", "head", *ADAPTERS, *OTHERS)},
    "speech-pretraining": {**_SOUND, **_OBJECTIVE},
    "summarization": {
        **_LINES,
        "stage": "finetune",
        "methods": ("full", *ADAPTERS, "prompt", *OTHERS),
        "data": {"max_document_tokens": 64, "max_summary_tokens": 12},
    },
    "text-classification": {
        **_LINES,
        "save": lambda folder: topics.save_data(folder, rows=12),
        "stage": "transfer",
        "methods": CLASSIFIED,
        "data": {"max_tokens": 64},
    },
    "text-denoising": _TEXTS,
    "masked-language-modeling": _TEXTS,
    "causal-language-modeling": _TEXTS,
}
"""By task: its tiny data set, the kind of stage, the methods that have a meaning, and keys of `data`."""
assert TASK_ROWS.keys() == TASKS.keys()


def methods_of(small: Small) -> tuple[str, ...]:
    """Methods that have a meaning for a checkpoint."""
    known: tuple[str, ...] = TASK_ROWS[small.task]["methods"]
    return tuple(method for method in known if small.methods is None or method in small.methods)


def save_data(task: str, folder: Path) -> Path:
    """The tiny data set of a task, made once."""
    if not folder.exists():
        TASK_ROWS[task]["save"](folder)
    return folder


def recipe_of(small: Small, method: str, model: Path, data: Path) -> dict[str, Any]:
    """The recipe of a row."""
    task, keys = TASK_ROWS[small.task], METHODS[method]
    loop = {} if keys.get("stage") == "probe" else LOOP
    files = {split: str(data / f"{split}.{task['suffix']}") for split in ("train", "test")}
    return {
        "task": small.task,
        "model": {"name": str(model), **small.model_keys},
        "data": {"name": task["format"], "files": files, **task.get("data", {}), **small.data_keys},
        "stages": [{"stage": task["stage"], **loop, **small.stage_keys, **keys}],
        "output": "run",
        "precision": "fp32",
        "seed": 1,
    }


# ------------------------------------------------------------------------------------------------- a row


class Fault(Exception):  # noqa: N818
    """Something that a row must not do: the row fails with these words."""


class _NextToNothing(Fault):
    """Training has changed too little for a row to say anything."""


def carry_out(small: Small, method: str, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """The row of a saved checkpoint and a method; `folder` is to be written into, and `model` is read.

    A head that ends in a tanh hides at a high rate what is learnt below it: one that does is tried at a low one.
    """
    row: dict[str, Any] = {}
    for share in RATES:
        row = _carried_out(small, method, model, data, folder, share)
        if not row.pop("says_nothing"):
            break
        shutil.rmtree(folder / "run")
    return row


def _carried_out(small: Small, method: str, model: Path, data: Path, folder: Path, share: float) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    keys = recipe_of(small, method, model, data)
    if "learning_rate" in keys["stages"][0]:
        keys["stages"][0]["learning_rate"] *= share
    path.write_text(json.dumps(keys))
    recipe = tltasks.load_recipe(path)  # a mistake in it is the sweep's
    found: dict[str, Any] = {}
    watch, says_nothing = _Watch(), False
    try:
        with watch.watching(), _seen_before(method):
            tltasks.run(recipe, output=folder / "run")
        watch.compare_saved(folder / "run" / "model")
        watch.judge()
        _use(small, data, folder / "run")
        found["outcome"] = "works"
    except TltasksError as error:
        # Refused after training is too late: the time has been spent.
        found = {"outcome": "fails" if watch.trained else "refused", "why": str(error)}
    except Fault as fault:
        found = {"outcome": "fails", "why": str(fault)}
        says_nothing = isinstance(fault, _NextToNothing)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        found = {"outcome": "fails", "why": f"{type(error).__name__} in {where}: {str(error)[:300]}"}
    if "why" in found:
        found["why"] = _without_places(found["why"], {model: small.name, data: "data", folder: "output"})
    return {**found, **watch.numbers, "says_nothing": says_nothing}


def _seen_before(method: str) -> contextlib.AbstractContextManager[object]:
    """A context without predictions of the checkpoint as it stands, but for `full`: they are the same by any method."""
    if method == "full":
        return contextlib.nullcontext()
    return mock.patch.object(stages, "baseline_predictions", return_value={})


def _without_places(text: str, names: dict[Path, str]) -> str:
    for place, name in names.items():
        text = text.replace(str(place), name)
    return " ".join(text.split())


def _use(small: Small, data: Path, output: Path) -> None:
    """Raise Fault where the saved model answers otherwise than the run has recorded."""
    recorded = pq.read_table(next((output / "predictions").glob("*-test.parquet"))).to_pydict()
    answers = isinstance(recorded["prediction"][0], str)
    rows = _test_rows(small, data)
    ours = tltasks.load(output, vad=False)([row for row, _ in rows])
    said = _said_by_card(output, [given for _, given in rows] if answers else None)
    if answers:
        _compare_loaded(ours, recorded)
        _compare_card(said, recorded)


def _test_rows(small: Small, data: Path) -> list[tuple[Any, Any]]:
    """Rows of the test split: as `tltasks.load` is given them, and as the card's code is."""
    suffix = TASK_ROWS[small.task]["suffix"]
    file = data / f"test.{suffix}"
    if suffix == "parquet":
        found = [row["image"].convert("RGB") for row in datasets.load_dataset("parquet", data_files=str(file))["train"]]
        return [(image, image) for image in found]
    if suffix == "csv":
        clips = [line.split(",")[0] for line in file.read_text().splitlines()[1:]]
        return [(data / clip, data / clip) for clip in clips]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = [line.get("document") or line["text"] for line in lines]
    return [(text, text) for text in found]


def _compare_loaded(ours: list[Any], recorded: dict[str, list[Any]]) -> None:
    for i, (answer, expected) in enumerate(zip(ours, recorded["prediction"], strict=True)):
        if "error" in answer:
            raise Fault(f"loaded, the model refuses a row: {answer['error']}")
        if answer["prediction"] != expected and not _is_close_call(recorded, i):
            raise Fault(f"loaded, the model says {answer['prediction']!r:.80} where the run has {expected!r:.80}")


def _is_close_call(recorded: dict[str, list[Any]], row: int) -> bool:
    if "probabilities" not in recorded:
        return False
    second, first = sorted(recorded["probabilities"][row])[-2:]
    return bool(first - second < SAME_PROBABILITY)


def _said_by_card(output: Path, rows: list[Any] | None) -> list[str]:
    """What the code that the card prints says of each row, run in the results folder; or of what the card has."""
    code = (output / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    said: list[str] = []
    with contextlib.chdir(output), contextlib.redirect_stdout(io.StringIO()):
        if rows is None:
            exec(code, names)
            return said
        lines = code.splitlines(keepends=True)
        (given,) = [i for i, line in enumerate(lines) if "# yours" in line]
        name, rest = lines[given].split(" = ")[0], "".join(lines[given + 1 :])
        exec("".join(lines[:given]), names)
        for given_row in rows:
            is_clip = isinstance(given_row, Path)
            names[name] = decode_audio(given_row, names.get("rate", HZ)) if is_clip else given_row
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(rest, names)
            said.append(out.getvalue().strip())
    return said


def _compare_card(said: list[str], recorded: dict[str, list[Any]]) -> None:
    """Raise Fault where transformers alone says something else than the run has recorded."""
    for i, (theirs, ours) in enumerate(zip(said, recorded["prediction"], strict=True)):
        if "probabilities" in recorded:
            label, _, probability = theirs.rpartition(" ")
            near = abs(float(probability) - max(recorded["probabilities"][i])) < SAME_PROBABILITY
            same = near and (label == ours or _is_close_call(recorded, i))
        else:
            looped = recorded.get("repetition_loop", [False] * len(said))[i]
            same = theirs == ours.strip() or (looped and theirs.startswith(ours[:10]))
        if not same:
            raise Fault(f"transformers alone says {theirs!r:.80} where the run has {ours!r:.80}")


# ------------------------------------------------------------------------------------ what is seen on the way


class _Watch:
    """What a run does to its model, seen from outside."""

    def __init__(self) -> None:
        self.trained = False
        self.numbers: dict[str, Any] = {}
        self._still: list[str] = []
        self._rounding = False
        self._before: dict[str, torch.Tensor] = {}
        self._outputs: list[dict[str, torch.Tensor]] = []
        self._effect = 0.0
        self._again: Callable[[Path], list[dict[str, torch.Tensor]]] = lambda folder: []

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        train, adapt = stages._train, stages.adapt_model

        def watched_adapt(stage: Any, built: Any) -> tuple[nn.Module, tuple[str, ...]]:
            chosen = stage.task.lora_targets(built.model)
            model, head = adapt(stage, built)
            self._before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            if is_adapted(model) and hasattr(model, "targeted_module_names"):
                self._count_targets(model, chosen)
            self.trained = True
            return model, head

        def watched_unused(model: nn.Module, unused: set[str]) -> None:
            self.trained = False  # weights that the loss does not reach are refused before the first step
            freeze_unused(model, unused)
            self.trained = True

        def watched_train(context: Any, stage: Any, built: Any, **keys: Any) -> Any:
            self.numbers["parameters"] = sum(p.numel() for p in built.model.parameters())
            adapt = stage.plan.stage.adapt
            beside = not stage.plan.kind.cached and adapt.is_peft and not adapt.is_virtual
            # Of a copy: some models keep tensors of their first pass (BEiT), and here these are none to train with.
            without = [] if beside else stages._outputs(context, stage, copy.deepcopy(built.model))
            result = train(context, stage, built, **keys)
            model = result[0]
            if beside:
                with _without_adapter(model):
                    without = stages._outputs(context, stage, model)
            self._look_at_weights(model)
            self._outputs = stages._outputs(context, stage, model)
            self._effect = _largest(self._outputs, without)
            self._again = lambda folder: stages._outputs(context, stage, stage.task.reload(folder))
            return result

        with (
            mock.patch.object(stages, "adapt_model", watched_adapt),
            mock.patch.object(stages, "_train", watched_train),
            mock.patch("tltasks.training.loop.freeze_unused", watched_unused),
            mock.patch("tltasks.reports.charts.svg", return_value="<svg/>"),  # half of the time
        ):
            yield

    def _count_targets(self, model: nn.Module, chosen: list[str]) -> None:
        reached = list(model.targeted_module_names)  # type: ignore[arg-type]
        self.numbers["targets"] = len(reached)
        if set(reached) <= set(chosen):  # some methods have layers of their own
            self.numbers["left_out"] = len(set(chosen) - set(reached))

    def _look_at_weights(self, model: nn.Module) -> None:
        now = dict(model.named_parameters())
        unreached = [name for name in self._before if not now[name].requires_grad]
        self._still = [
            n for n, p in self._before.items() if now[n].requires_grad and torch.equal(p, now[n].detach().cpu())
        ]
        if self._before:
            self.numbers |= {"trained": len(self._before), "without_gradient": len(unreached)}
        if self._still:
            self.numbers["still"] = len(self._still)

    def compare_saved(self, folder: Path) -> None:
        """Outputs of the model that is loaded from a folder against those of the trained one, before any merging."""
        scale = max((float(t[t.isfinite()].abs().max()) for row in self._outputs for t in row.values()), default=0.0)
        error = _largest(self._outputs, self._again(folder))
        self.numbers["effect"] = _short(self._effect / scale if scale else math.nan)
        self.numbers["error"] = _short(error / self._effect if self._effect else math.nan)
        self._rounding = error <= ROUNDING * scale

    def judge(self) -> None:
        """Raise Fault for a model that is not the trained one, or that nothing was trained of."""
        effect, error = self.numbers["effect"], self.numbers["error"]
        if effect is None or effect < LEAST_EFFECT:
            raise _NextToNothing(f"training changes the outputs by {effect} of the largest: next to nothing")
        if error is None or (error > MERGED_WITHIN and not self._rounding):
            raise Fault(f"saved and loaded, the outputs differ by {error} of what was learnt")
        if self._still and len(self._still) > MOST_STILL * len(self._before):
            raise Fault(f"{len(self._still)} trained weights do not move, such as {self._still[0]}")


@contextlib.contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # its own way would stop training it, too
    yield
    for layer in layers:
        layer._disable_adapters = False


def _largest(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> float:
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        for name, values in mine.items():
            if values.shape != other[name].shape:
                return math.inf
            same = torch.isclose(values, other[name], rtol=0, atol=0, equal_nan=True)
            worst = max(worst, float((values - other[name]).abs()[~same].max()) if not bool(same.all()) else 0.0)
    return worst


def _short(value: float) -> float | None:
    return float(f"{value:.1e}") if math.isfinite(value) else None


def prepare() -> None:
    """Import what rows use, and read the templates of their pages, once for all of them."""
    for task in TASKS.values():
        importlib.import_module(task.adapter.partition(":")[0])
    for name in ("run", "load", "load_recipe"):
        getattr(tltasks, name)
    for templates in (page_environment(), card_environment()):
        for name in templates.list_templates(extensions=["jinja"]):
            templates.get_template(name)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):
        importlib.import_module("peft.tuners.lora.bnb")  # which an adapter's first layer imports, for a second


def quiet() -> None:
    """Nothing but what the sweep itself says."""
    gc.freeze()  # accelerate collects garbage at the end of each run
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
