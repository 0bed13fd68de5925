"""Make `data/package_synopsis` from this machine's Debian package index: descriptions and their one-line synopses.

    python recipes/offline/build_package_synopsis.py

Needs apt. Asks apt for the English descriptions, into a folder of its own, so that the system's lists stay as they
are; or reads what `--lists` names. One package of each source package is taken, and a source package is for training
or for testing, never both. The texts belong to the packages' authors under many licences: keep them on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "package_synopsis"
SPLITS = {"test": 500, "validation": 300, "train": 6000}
"""Source packages of each split, in the order in which they are dealt out."""
DOCUMENT_WORDS, SYNOPSIS_WORDS = (25, 200), (3, 12)
TAILS = re.compile(r"^(This package (contains|provides|includes|is)\b.*|\.)$")


def main() -> None:
    parser = argparse.ArgumentParser(description="Package descriptions and synopses as json files.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    parser.add_argument("--lists", type=Path, help="folder of apt's lists, instead of fetching them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lists = options.lists or fetch_lists(Path(scratch))
        pairs = choose_pairs(lists)
    if len(pairs) < sum(SPLITS.values()):
        sys.exit(
            f"error: {options.lists or 'the package index'} has {len(pairs):,} usable descriptions, and "
            f"{sum(SPLITS.values()):,} are needed. Point apt at a whole Debian mirror."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, n_rows in SPLITS.items():
        lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs[start : start + n_rows]]
        (options.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        start += n_rows
    print(f"{options.out}: {', '.join(f'{split} {n:,}' for split, n in SPLITS.items())} of {len(pairs):,} pairs")


def fetch_lists(folder: Path) -> Path:
    """The package index with English descriptions, which slim images leave out."""
    (folder / "partial").mkdir()
    command = ["apt-get", "update", "-o", "Acquire::Languages=en", "-o", f"Dir::State::lists={folder}"]
    command += ["-o", "APT::Sandbox::User="]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit("error: there is no apt-get here. recipes/offline/paper_titles.yaml needs none.")
    if not any(folder.glob("*_i18n_Translation-en*")):
        said = [line for line in (ended.stderr + ended.stdout).splitlines() if line.startswith(("E:", "W:"))]
        sys.exit(
            f"error: apt-get fetched no descriptions ({said[0] if said else 'it names no mirror'}). "
            "Check apt's sources and the network."
        )
    return folder


def read_stanzas(lists: Path, pattern: str) -> Iterator[dict[str, str]]:
    """Fields of each entry of the lists that match; apt itself unpacks them."""
    for path in sorted(lists.glob(pattern)):
        text = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, text=True, check=True
        ).stdout
        for stanza in text.split("\n\n"):
            fields: dict[str, str] = {}
            name = ""
            for line in stanza.splitlines():
                if line.startswith(" "):
                    fields[name] += f"\n{line[1:]}"
                else:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
            if fields:
                yield fields


def choose_pairs(lists: Path) -> list[dict[str, str]]:
    """One pair of each source package, in an order that depends on the names of the sources alone."""
    sources = {
        fields["Package"]: fields.get("Source", fields["Package"]).split(" ")[0]
        for fields in read_stanzas(lists, "*_Packages*")
    }
    by_source: dict[str, dict[str, str]] = {}
    for fields in read_stanzas(lists, "*_i18n_Translation-en*"):
        package = fields["Package"]
        synopsis, _, body = fields.get("Description-en", "").partition("\n")
        document = join_lines(body)
        source = sources.get(package, package)
        fits = all(
            low <= len(text.split()) <= high
            for text, (low, high) in ((document, DOCUMENT_WORDS), (synopsis, SYNOPSIS_WORDS))
        )
        known = by_source.get(source)
        if fits and (known is None or package < known["package"]):
            by_source[source] = {"document": document, "summary": synopsis, "package": package, "source": source}
    # Sources of one project often share a description: the first keeps it, so that no test document is in train.
    kept: dict[str, dict[str, str]] = {}
    for source in sorted(by_source):
        kept.setdefault(" ".join(by_source[source]["document"].lower().split()), by_source[source])
    return sorted(kept.values(), key=lambda pair: hashlib.sha256(pair["source"].encode()).digest())


def join_lines(body: str) -> str:
    """A description's paragraphs, without the sentences that every package of a source has."""
    paragraphs = re.split(r"\n\.\n?", body)
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return " ".join(paragraph for paragraph in joined if paragraph and not TAILS.match(paragraph))


if __name__ == "__main__":
    main()
