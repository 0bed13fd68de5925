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
import sys
import tempfile
from pathlib import Path

from debian import fetch_lists, join_lines, read_stanzas

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "package_synopsis"
SPLITS = {"test": 500, "validation": 300, "train": 6000}
"""Source packages of each split, in the order in which they are dealt out."""
DOCUMENT_WORDS, SYNOPSIS_WORDS = (25, 200), (3, 12)


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


if __name__ == "__main__":
    main()
