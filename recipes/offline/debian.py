"""This machine's Debian package index, read: what the scripts share that make data of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TAILS = re.compile(r"^(This package (contains|provides|includes|is)\b.*|\.)$")


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


def join_lines(body: str) -> str:
    """A description's paragraphs, without the sentences that every package of a source has."""
    paragraphs = re.split(r"\n\.\n?", body)
    joined = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return " ".join(paragraph for paragraph in joined if paragraph and not TAILS.match(paragraph))
