"""What README and docs print as code, and which of it the tests run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tltasks

REPOSITORY = Path(tltasks.__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    text: str
    named: str | None
    """The file that the sentence before says it is."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line of a console."""

    place: str
    words: list[str]
    piped: bool
    """Its input comes from another command."""

    @property
    def is_run(self) -> bool:
        return not self.why_not

    @property
    def why_not(self) -> str:
        """Why it is not run by the tests; empty where it is."""
        program, *rest = self.words
        if Path(program).name != "tltasks":
            return "set-up"
        if any(re.search(r"[A-Z]{3,}|…|\[", word) for word in rest):
            return "names of the reader's"
        if any("offline/" in word or "emoji_lora" in word for word in rest):
            return "weights of a package"
        if (
            rest[0] in ("push", "fetch", "submit", "jobs")
            or "--push" in rest
            or any(word.startswith("you/") for word in rest)
        ):
            return "a login or a network"
        if rest[0] == "demo":
            return "a server"
        return "standard input" if self.piped else ""


def is_whole(block: Block) -> bool:
    """True for a recipe that could be run as it stands."""
    top = set(re.findall(r"^(\w+):", block.text, re.MULTILINE))
    return block.kind == "yaml" and {"task", "model", "data"} <= top and "…" not in block.text


def is_run(block: Block) -> bool:
    """True for Python that the tests run; what needs a package that they do not install is only read."""
    return block.kind == "python" and "faster_whisper" not in block.text


def blocks(*pages: Path) -> Iterator[Block]:
    for page in pages or PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            before = text[: found.start()].rstrip().rpartition("\n\n")[2]
            named = re.findall(r"(?:as|this) `([\w-]+\.yaml)`[^`]*:$", before)
            line = text.count("\n", 0, found.start()) + 1
            yield Block(page.name, line, found["kind"], found["text"], named[0] if named else None)


def commands(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            for one in line.removeprefix("$ ").split(" && "):
                *before, last = one.split(" | ")
                if words := shlex.split(last, comments=True):
                    yield Command(block.place, words, bool(before))
