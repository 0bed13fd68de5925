"""Trained models in use: predictions in Python and for the command line, a demo page, an ONNX file.

Names are imported when they are first used: arguments are checked before anything heavy is.
"""

from typing import TYPE_CHECKING

from tltasks import lazily

if TYPE_CHECKING:
    from tltasks.inference.predictor import Output, Predictor, load

__all__ = ["Output", "Predictor", "load"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "predictor"))
