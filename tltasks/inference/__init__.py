"""Trained models in use: predictions in Python and for the command line, a demo page, an ONNX file.

Names are imported when they are first used: arguments are checked before anything heavy is.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tltasks.inference.predictor import Output, Predictor, load

__all__ = ["Output", "Predictor", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.predictor"), name)
    return value
