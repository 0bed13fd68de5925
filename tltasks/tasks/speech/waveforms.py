"""What models that hear waveforms have in common, whatever they are trained for: frames, norms, layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig


def output_frames(config: PretrainedConfig, n_samples: int) -> int:
    """Steps of the output of wav2vec 2.0's kind of convolutions for so many samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        n_samples = (n_samples - kernel) // stride + 1
    return max(0, n_samples)


def apart(config: PretrainedConfig) -> bool:
    """Whether clips go through the model one by one: a norm over a clip's whole length would count its padding."""
    return getattr(config, "feat_extract_norm", None) == "group"


def drop_no_layers(config: PretrainedConfig) -> None:
    """A layer that one process drops and another keeps would leave them waiting for its gradient."""
    for name in ("layerdrop", "conformer_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)


def located(value: Any, folder: Path | None) -> Any:
    """Relative paths in a file of rows are relative to that file."""
    path = value.get("path") if isinstance(value, dict) and not value.get("bytes") else value
    if isinstance(path, str) and folder is not None and not Path(path).is_absolute():
        return str(folder / path)
    return value
