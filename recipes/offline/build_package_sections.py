"""Make `data/package_sections` from this machine's Debian package index: descriptions and the section of each.

    python recipes/offline/build_package_sections.py

Needs apt. Asks apt for the English descriptions, into a folder of its own, so that the system's lists stay as they
are; or reads what `--lists` names. One package of each source package is taken, and a source package is for training
or for testing, never both; no section gives more than 400, so that the largest do not drown the others. Further files
hold six sections of 300 to 10 examples. The texts belong to the packages' authors under many licences: keep them on
this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from debian import fetch_lists, join_lines, read_stanzas

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "data" / "package_sections"
SECTIONS = ("admin", "editors", "fonts", "games", "graphics", "mail", "math", "net", "science", "sound", "text", "web")
"""Sections that a description can tell; those by programming language are told by the package's name."""
MOST_OF_A_SECTION = 400
SPLITS = {"test": 600, "validation": 300}
"""Source packages of each split; the rest is for training."""
FEWEST_WORDS = 20
RARER = ("sound", "admin", "text", "net", "games", "science")
"""Sections of the imbalanced files, the commonest first."""
COMMONEST, RATIO = 300, 30
"""Rows of the first of them in training, and how many times those of the last it has; the steps between are even."""
COMMONEST_TESTED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Package descriptions and their sections as json files.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    parser.add_argument("--lists", type=Path, help="folder of apt's lists, instead of fetching them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = choose_rows(options.lists or fetch_lists(Path(scratch)))
    if len(rows) < 2 * sum(SPLITS.values()):
        sys.exit(
            f"error: {options.lists or 'the package index'} has {len(rows):,} usable descriptions, and "
            f"{2 * sum(SPLITS.values()):,} are needed. Point apt at a whole Debian mirror."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    start, files = 0, {}
    for split, n_rows in {**SPLITS, "train": len(rows) - sum(SPLITS.values())}.items():
        files[split] = rows[start : start + n_rows]
        start += n_rows
    files["imbalanced-train"] = imbalanced(files["train"], COMMONEST)
    files["imbalanced-test"] = imbalanced(files["test"], COMMONEST_TESTED)
    files["six-sections-test"] = [row for row in files["test"] if row["section"] in RARER]
    for split, chosen in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
        (options.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.out}: {', '.join(f'{split} {len(chosen):,}' for split, chosen in files.items())} descriptions")


def imbalanced(rows: list[dict[str, str]], commonest: int) -> list[dict[str, str]]:
    """The first rows of each of six sections: `commonest` of the first, a RATIO-th of that of the last."""
    steps = len(RARER) - 1
    left = {name: round(commonest * RATIO ** (-i / steps)) for i, name in enumerate(RARER)}
    chosen = []
    for row in rows:
        if left.get(row["section"], 0):
            left[row["section"]] -= 1
            chosen.append(row)
    return chosen


def choose_rows(lists: Path) -> list[dict[str, str]]:
    """One row of each source package, in an order that depends on the names of the sources alone."""
    sections, sources = {}, {}
    for fields in read_stanzas(lists, "*_Packages*"):
        sections[fields["Package"]] = fields.get("Section", "").rpartition("/")[2]
        sources[fields["Package"]] = fields.get("Source", fields["Package"]).split(" ")[0]
    by_source: dict[str, dict[str, str]] = {}
    for fields in read_stanzas(lists, "*_i18n_Translation-en*"):
        package = fields["Package"]
        synopsis, _, body = fields.get("Description-en", "").partition("\n")
        section, source = sections.get(package), sources.get(package, package)
        text = f"{synopsis}. {join_lines(body)}"
        if section not in SECTIONS or len(text.split()) < FEWEST_WORDS:
            continue
        known = by_source.get(source)
        if known is None or package < known["package"]:
            by_source[source] = {"text": text, "section": section, "package": package, "source": source}
    # Sources of one project often share a description: the first keeps it, so that no test text is in train.
    kept: dict[str, dict[str, str]] = {}
    for source in sorted(by_source):
        kept.setdefault(" ".join(by_source[source]["text"].lower().split()), by_source[source])
    ordered = sorted(kept.values(), key=lambda row: _draw("section", row))
    taken = dict.fromkeys(SECTIONS, 0)
    rows = []
    for row in ordered:
        taken[row["section"]] += 1
        if taken[row["section"]] <= MOST_OF_A_SECTION:
            rows.append(row)
    return sorted(rows, key=lambda row: _draw("split", row))  # the same mixture of sections in every split


def _draw(purpose: str, row: dict[str, str]) -> bytes:
    return hashlib.sha256(f"{purpose} {row['source']}".encode()).digest()


if __name__ == "__main__":
    main()
