"""A trained model as an ONNX file, for programs without PyTorch: written, run, and compared with what it is of.

Source: https://docs.pytorch.org/docs/stable/onnx_export.html, https://onnxruntime.ai.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.models.adapters import is_adapted, without_adapter
from tltasks.models.exported import CONVERTED, ONNX_FILE
from tltasks.tasks.base import OnnxInput, Outputs, TaskBase
from tltasks.training.evaluation import largest_difference, merging_makes

Values = NDArray[np.float32]
TOLERANCE = 1e-3
"""Largest difference of an output that is let pass, as a share of the largest output."""
MADE_UP = 4
"""Inputs of different sizes that the file is compared on besides those that are named."""
CALIBRATIONS = {"eight bits": False, "seven bits": True}
"""Ways to quantise weights, and whether they keep to seven bits: on processors without VNNI sums of eight overflow, and
there the outputs say so."""
FEWEST_KNOWN = 16
"""Inputs below which ranges of activations are not worth measuring."""


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


def refuse(task: TaskBase, display_name: str) -> None:
    """Raise RecipeError for a task whose answers are no single pass, with the format that serves it."""
    if task.onnx_input() is not None:
        return
    serves = task.converts and task.architecture in CONVERTED
    raise RecipeError(
        f"export {display_name}: its answers are generated token by token, which is no single pass that an ONNX file "
        f"could hold. {'--format ctranslate2 writes it.' if serves else 'Classifiers and CTC recognisers can be.'}"
    )


def check_merged(
    built: nn.Module, whole: nn.Module, about: OnnxInput, values: Sequence[Tensor], *, display_name: str
) -> None:
    """Raise CheckpointError for an adapter that computes something else once it is merged."""
    if not is_adapted(built):
        return

    def outputs(model: nn.Module) -> list[Outputs]:
        function = _Function(model, about).eval()
        with torch.no_grad():
            return [{"logits": function(value)} for value in values]

    ours = outputs(built)
    with without_adapter(built):
        effect = largest_difference(ours, outputs(built))
    difference = largest_difference(ours, outputs(whole))
    if difference > merging_makes(effect):
        raise CheckpointError(
            f"export {display_name}: its adapter changes outputs by {effect:.2g} of the largest, and merging it by "
            f"{difference:.2g} more: what would be written is not the model that was trained."
        )


def write(whole: nn.Module, about: OnnxInput, path: Path, *, display_name: str) -> None:
    """Write the file; raises CheckpointError for a model that PyTorch's exporter cannot write."""
    model = _Function(whole, about).eval()
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
            f"export {display_name}: PyTorch cannot write {type(whole).__name__} as ONNX ({first_line(error)})."
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


def compare(
    model: nn.Module, opened: nn.Module, about: OnnxInput, values: Sequence[Tensor], *, display_name: str
) -> Parity:
    """Run the model and what was written of it on the same inputs, each by itself; raises CheckpointError where they
    compute something else."""
    largest, same = 0.0, 0
    functions = [_Function(it, about).eval() for it in (model, opened)]
    for value in values:
        with torch.no_grad():
            wanted, found = (function(value).numpy() for function in functions)
        largest = max(largest, float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-9)))
        same += bool(np.array_equal(found.argmax(-1), wanted.argmax(-1)))
    if largest > TOLERANCE:
        raise CheckpointError(
            f"export {display_name}: outputs of the file differ from the model's by {largest:.1e} of the largest "
            f"({TOLERANCE:g} is let pass); it was not kept."
        )
    return Parity(len(values), largest, same)


# ------------------------------------------------------------------------------------------------ int8


def check_known(known: Sequence[Tensor], display_name: str) -> None:
    """Raise RecipeError for too few inputs to measure ranges of activations on."""
    if len(known) < FEWEST_KNOWN:
        raise RecipeError(
            f"export {display_name} --quantize int8: activations are calibrated on training rows, and {len(known)} can "
            f"be read here ({FEWEST_KNOWN} at least). Name a run's results folder whose training data are in place."
        )


def quantize(folder: Path, known: Sequence[Tensor]) -> dict[str, object]:
    """Put a file in int8 in its place, with ranges of activations that are measured once, on inputs of training rows.

    So an answer depends on nothing but its input, as it would by ranges that are measured anew for each batch. Weights
    have a range for each channel. Of the ways to quantise them that is taken whose outputs are nearest on inputs that
    nothing was measured on. Source: onnxruntime 1.32, quantization/quantize.py, `quantize_static`.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = [value.numpy() for value in known]
    held, seen = inputs[: len(inputs) // 4], inputs[len(inputs) // 4 :]
    plain = folder / ONNX_FILE
    name_of_input = _session(plain).get_inputs()[0].name
    wanted, distances = _logits(plain, held), dict[str, float]()
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        for name, seven_bits in CALIBRATIONS.items():
            path = Path(scratch) / f"{name}.onnx"
            _quantize(prepared, path, [{name_of_input: value} for value in seen], seven_bits=seven_bits)
            pairs = zip(_logits(path, held), wanted, strict=True)
            distances[name] = float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
        chosen = min(distances, key=lambda name: distances[name])
        shutil.copy(Path(scratch) / f"{chosen}.onnx", plain)
    return {"rows": len(seen), "distances": distances, "chosen": chosen}


def _quantize(plain: Path, path: Path, inputs: Sequence[dict[str, Values]], *, seven_bits: bool) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Hands the inputs out one by one."""

        left = iter(inputs)

        def get_next(self) -> dict[str, Values] | None:
            return next(self.left, None)

    quantization.quantize_static(
        str(plain),
        str(path),
        Reader(),
        per_channel=True,
        reduce_range=seven_bits,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _logits(path: Path, inputs: Sequence[Values]) -> list[Values]:
    session = _session(path)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: value})[0] for value in inputs]


def _session(path: Path):  # type: ignore[no-untyped-def]
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
