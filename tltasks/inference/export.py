"""Story of `tltasks export`: a trained model in another format, re-scored on its test set, and kept if it is good."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import torch
from torch import Tensor

from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference import converting, onnx, rescoring, smoothing
from tltasks.inference.arguments import check_arguments
from tltasks.inference.inputs import Inputs
from tltasks.inference.onnx import Parity
from tltasks.inference.rescoring import TestSet
from tltasks.models.adapters import merged
from tltasks.models.exported import ABOUT, ONNX_FILE, Export, Format, Quantize, check_libraries
from tltasks.reports import exports
from tltasks.results.result import Rescored
from tltasks.runtime import devices
from tltasks.runtime.files import check_place, whole_folder, write_json, write_text

TOLERANCE = 1.0
"""Points by which the interval of the difference may reach to the worse side."""
TITLES: dict[Format, str] = {"onnx": "ONNX", "ctranslate2": "CTranslate2"}
TABLE = "exports.json"
"""File of a results folder with a row for each of its exports."""


@dataclass(frozen=True)
class Outcome:
    """Findings on an export."""

    parity: Parity | None
    """None where other numbers are expected than the model's."""
    rescored: dict[str, Rescored]
    """By name, the trained model among them; empty without a run, whose test set there is."""

    def lines(self, folder: Path) -> list[str]:
        """Lines for its user."""
        told = [str(folder)]
        if (it := self.parity) is not None:
            told.append(
                f"outputs in fp32 differ by at most {it.largest:.1e} of the largest on {it.compared} inputs; "
                f"{it.same_answers} of {it.compared} answers are the same"
            )
        if not self.rescored:
            return [*told, "not scored on a test set"]
        return [*told, *exports.plain(list(self.rescored.values()))]


def export(
    name: str,
    output: Path,
    *,
    kind: Format = "onnx",
    quantize: Quantize | None = None,
    tolerance: float = TOLERANCE,
    scored: bool = True,
    tag: str | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    arguments: Sequence[str] = (),
) -> Outcome:
    """Write a trained model to a folder that must not be there yet, with all that its use needs beside it.

    Raises a TltasksError for tasks that the format does not serve, models that cannot be written so, and an export that
    answers otherwise: by more than rounding, or quantised, by so many points that `tolerance` is passed. Nothing is
    left behind then.
    """
    _refuse_at_once(output, kind, quantize, arguments)
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    saved = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust_remote_code)
    if saved.export is not None:
        raise RecipeError(f"export {name}: is an export already; name the run or the model that it is of.")
    (converting if kind == "ctranslate2" else onnx).refuse(saved.task, name)
    test = _open_test_set(saved, name) if scored and saved.run is not None and Path(name).is_dir() else None
    inputs = Inputs(arguments, saved.task.input_kind, saved.columns) if arguments else ()
    items = [item.read(saved.task.input_kind) for item in inputs]
    about = saved.task.onnx_input()
    known = rescoring.training_inputs(test, about) if about and test and quantize and kind == "onnx" else []
    if kind == "onnx" and quantize is not None:
        onnx.check_known(known, name)
    smooths = kind == "ctranslate2" and quantize == "int8" and saved.task.architecture in smoothing.ARCHITECTURES
    rows = rescoring.training_rows(test) if smooths and test is not None else None
    with whole_folder(output) as place:
        of_rows = saved.language_column, saved.prompt_column
        made = Export(place, kind, saved.task.tag, saved.columns, quantize, *of_rows)
        parity, told, usage = _write(saved, made, known, items, rows, display_name=name)
        write_json(place / ABOUT, made.described(**told))
        label = output.name if output.name != rescoring.TRAINED else f"{kind} export"
        rescored = _rescore(name, saved, test, made, label=label, trust_remote_code=trust_remote_code)
        title = " ".join(filter(None, (saved.task.tag, "in", TITLES[kind], quantize)))
        write_text(place / "README.md", exports.card(title, usage, list(rescored.values())))
        told |= {"scores": [asdict(it) for it in rescored.values()], "versions": devices.versions()}
        write_json(place / ABOUT, made.described(**told))
        if test is not None and (parity is None or quantize is not None):
            own, trained = rescored[label], rescored[rescoring.TRAINED]
            _refuse_worse(own, trained, test, tolerance=tolerance, display_name=name)
    if test is not None:
        _keep_in_run(Path(name), rescored)
    return Outcome(parity, rescored)


def _refuse_at_once(output: Path, kind: Format, quantize: Quantize | None, arguments: Sequence[str]) -> None:
    """Raise RecipeError for what needs no model to be seen."""
    if kind == "onnx" and quantize == "fp16":
        raise RecipeError("--quantize fp16: ONNX files are written as they are or in int8; fp16 is for ctranslate2.")
    check_libraries(kind, "export")
    check_arguments(arguments, fetches=False)
    check_place(output, "export --output")
    if output.exists():
        raise RecipeError(f"export: {output} is there already; name another folder with --output.")


def _open_test_set(saved: SavedModel, name: str) -> TestSet:
    try:
        return rescoring.open_test_set(saved)
    except (DataError, OSError) as error:
        raise DataError(
            f"export {name}: is scored on the test set of its run, which cannot be read; --unscored does without.\n"
            f"{error}"
        ) from error


def _write(
    saved: SavedModel,
    made: Export,
    known: list[Tensor],
    items: list[object],
    rows: datasets.Dataset | None,
    *,
    display_name: str,
) -> tuple[Parity | None, dict[str, object], str]:
    """Write the model, its adapter merged; what is found, and what is to be told of it."""
    task, about = saved.task, saved.task.onnx_input()
    built = saved.build(device=torch.device("cpu"), precision="fp32")[1].eval().float()
    model = merged(built)
    if made.format == "ctranslate2":
        converting.convert(model, task, made, rows)
        opened = made.open(task.config)  # that what cannot be used is told now, whether there is a test set or not
        if about is None or made.quantize is not None:
            return None, {} if rows is None else {"smoothed_by_rows": len(rows)}, converting.usage(task, made)
        parity = onnx.compare(model, opened, about, about.made_up(onnx.MADE_UP), display_name=display_name)
        return parity, {}, converting.usage(task, made)
    assert about is not None
    values = [*about.made_up(onnx.MADE_UP), *map(about.read, items)]
    onnx.check_merged(built, model, about, values, display_name=display_name)
    onnx.write(model, about, made.folder / ONNX_FILE, display_name=display_name)
    task.save_setup(made.folder)
    parity = onnx.compare(model, made.open(task.config), about, values, display_name=display_name)
    told: dict[str, object] = {
        "input": {"name": about.name, "shape": about.shape},
        "compared": parity.compared,
        "largest_difference": parity.largest,
        "same_answers": parity.same_answers,
    }
    if made.quantize is not None:
        told["calibration"] = onnx.quantize(made.folder, known)
    return parity, told, f"```python\n{about.usage}```\n"


def _rescore(
    name: str, saved: SavedModel, test: TestSet | None, made: Export, *, label: str, trust_remote_code: bool
) -> dict[str, Rescored]:
    if test is None:
        return {}
    answer, tag = rescoring.answer_apart, saved.task.tag
    own = answer(str(made.folder), name, tag=tag, trust_remote_code=trust_remote_code)
    trained = answer(name, name, tag=tag, trust_remote_code=trust_remote_code)
    return rescoring.rescore(test, trained, {label: own})


def _refuse_worse(rescored: Rescored, trained: Rescored, test: TestSet, *, tolerance: float, display_name: str) -> None:
    """Raise CheckpointError for an export that may be worse than is let pass."""
    points = rescoring.loss_in_points(rescored, trained, test.task)
    if points <= tolerance or rescored.same_answers == rescored.rows:
        return
    raise CheckpointError(
        f"export {display_name}: on the {rescored.rows} rows of {test.encoded.name} {exports.describe(rescored)}. By "
        f"the end of that interval it may be {points:.2f} points worse, more than --tolerance {tolerance:g}: it was "
        f"not kept. A larger test set may show that it is no worse; --tolerance {math.ceil(points)} keeps it."
    )


def _keep_in_run(run: Path, rescored: dict[str, Rescored]) -> None:
    """Put the export into the run's table, and this into its card and report."""
    if not (run / "result.json").is_file():
        return
    known = json.loads((run / TABLE).read_text(encoding="utf-8")) if (run / TABLE).is_file() else {}
    known |= {key: asdict(it) for key, it in rescored.items()}
    write_json(run / TABLE, known)
    exports.show_in(run, [Rescored(**row) for row in known.values()])
