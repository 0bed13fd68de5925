"""A trained model as an ONNX file, for programs without PyTorch: written, run, and compared with what it is of.

Source: https://docs.pytorch.org/docs/stable/onnx_export.html, https://onnxruntime.ai.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.hub.saved_model import SavedModel, load_saved_model
from tltasks.inference.inputs import Inputs, check_arguments
from tltasks.models.adapters import is_adapted, merged, without_adapter
from tltasks.runtime import devices
from tltasks.runtime.files import check_place, whole_folder, write_json, write_text
from tltasks.tasks.base import OnnxInput, Outputs
from tltasks.training.evaluation import largest_difference, merging_makes

FILE = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference of an output that is let pass, as a share of the largest output."""
MADE_UP = 4
"""Inputs of different sizes that the file is compared on besides those that are named."""


@dataclass(frozen=True)
class Parity:
    """Distance of the file's outputs from the model's own."""

    compared: int
    largest: float
    """Difference, as a share of the largest output."""
    same_answers: int
    """Inputs whose likeliest class, or each step's, is the same."""


class _Function(nn.Module):
    """Logits of one input, which is all that the file computes."""

    def __init__(self, model: nn.Module, about: OnnxInput) -> None:
        super().__init__()
        self.model = model
        self.arguments = about.arguments or (lambda values: {about.name: values})

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.model(**self.arguments(values)).logits
        return logits


def export(
    name: str, output: Path, *, tag: str | None, revision: str, trust_remote_code: bool, arguments: Sequence[str] = ()
) -> Parity:
    """Write a trained model to a folder that must not be there yet, with all that its use needs beside it.

    Raises a TltasksError for tasks that are no single pass, models that cannot be written so, and a file whose outputs
    are not the model's; nothing is left behind then.
    """
    _check_libraries()
    check_arguments(arguments, fetches=False)
    check_place(output, "export --output")
    if output.exists():
        raise RecipeError(f"export: {output} is there already; name another folder with --output.")
    devices.set_num_threads(1)
    devices.quieten_libraries(interactive=False)
    saved = load_saved_model(name, tag=tag, revision=revision, trust_remote_code=trust_remote_code)
    task = saved.task
    if (about := task.onnx_input()) is None:
        raise RecipeError(
            f"export {name}: its answers are generated token by token, which is no single pass that a file could hold. "
            "Classifiers and CTC speech recognition can be exported."
        )
    built = saved.build(device=torch.device("cpu"), precision="fp32")[1].eval().float()
    model = _Function(merged(built), about).eval()
    inputs = Inputs(arguments, task.input_kind, saved.columns) if arguments else ()
    values = [*about.made_up(MADE_UP), *(about.read(item.read(task.input_kind)) for item in inputs)]
    if is_adapted(built):
        _check_merged(_Function(built, about).eval(), model, values, display_name=name)
    with whole_folder(output) as place:
        _write(model, about, place / FILE, display_name=name)
        task.save_setup(place)
        parity = compare(model, place / FILE, values)
        if parity.largest > TOLERANCE:
            raise CheckpointError(
                f"export {name}: outputs of the file differ from the model's by {parity.largest:.1e} of the largest "
                f"({TOLERANCE:g} is let pass); it was not kept."
            )
        _describe(place, saved, about, parity)
    return parity


def _check_merged(adapted: _Function, whole: _Function, values: Sequence[Tensor], *, display_name: str) -> None:
    """Raise CheckpointError for an adapter that computes something else once it is merged."""

    def outputs(model: nn.Module) -> list[Outputs]:
        with torch.no_grad():
            return [{"logits": model(value)} for value in values]

    ours = outputs(adapted)
    with without_adapter(adapted):
        effect = largest_difference(ours, outputs(adapted))
    difference = largest_difference(ours, outputs(whole))
    if difference > merging_makes(effect):
        raise CheckpointError(
            f"export {display_name}: its adapter changes outputs by {effect:.2g} of the largest, and merging it by "
            f"{difference:.2g} more: what would be written is not the model that was trained."
        )


def _check_libraries() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"export: needs {error.name}, which is not installed: pip install 'tltasks[export]'"
        ) from error


def _write(model: _Function, about: OnnxInput, path: Path, *, display_name: str) -> None:
    example = about.made_up(1)[0]
    dynamic = dict.fromkeys(about.free_axes, torch.export.Dim.DYNAMIC)
    if 0 in about.free_axes:
        example = torch.cat([example, example])  # a size of one is taken for a constant
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=[about.name],
                output_names=["logits"],
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
        assert program is not None
        program.save(str(path))
    except Exception as error:  # whatever the exporter trips over, there is no file
        raise CheckpointError(
            f"export {display_name}: PyTorch cannot write {type(model.model).__name__} as ONNX ({first_line(error)})."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def compare(model: nn.Module, path: Path, values: Sequence[Tensor]) -> Parity:
    """Run file and model on the same inputs, each by itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    largest, same = 0.0, 0
    for value in values:
        with torch.no_grad():
            wanted: NDArray[np.float32] = model(value).numpy()
        found: NDArray[np.float32] = session.run(None, {name: value.numpy()})[0]
        largest = max(largest, float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-9)))
        same += bool(np.array_equal(found.argmax(-1), wanted.argmax(-1)))
    return Parity(len(values), largest, same)


def _describe(place: Path, saved: SavedModel, about: OnnxInput, parity: Parity) -> None:
    write_json(
        place / "export.json",
        {
            "task": saved.task.tag,
            "input": {"name": about.name, "shape": about.shape},
            "compared": parity.compared,
            "largest_difference": parity.largest,
            "same_answers": parity.same_answers,
            "versions": devices.versions(),
        },
    )
    write_text(place / "README.md", f"# {saved.task.tag} in ONNX\n\n```python\n{about.usage}```\n")
