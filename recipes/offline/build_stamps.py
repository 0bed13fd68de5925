"""Make the clips of the recipe stamps_languages.yaml from the spoken descriptions of Tux Paint's stamps.

    python recipes/offline/build_voice_prompts.py es
    python recipes/offline/build_stamps.py             # makes data/stamps, which is not committed

The package is fetched by `apt-get download` (run `apt-get update` before), or read from a folder that holds it, given
with --debs. The folder appears when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import soundfile

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "data"
PACKAGE, VERSION = "tuxpaint-stamps-default", "2022.06.04-1"
LANGUAGES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
"""Those with more than 300 recordings whose text is there."""
SHORTEST_SECONDS, LONGEST_SECONDS = 0.4, 4.0
TEST_CLIPS, MOST_TRAINED, PROMPTS = 16, 110, 20
"""Clips of each language: held out, at most trained on, and of each set of telephone prompts."""
PROMPT_SETS = {"en": HERE / "voice_prompts", "es": DATA / "voice_prompts_es"}

NOTICE = """# Names of stamps in nine languages

Spoken descriptions of Tux Paint's stamps, {seconds} s or shorter, and what is said in them.

| language | train | test |
|---|---|---|
{rows}

Columns: `audio` (path of an Ogg Vorbis file), `text`, `language`.

- **Split by what is shown**: stamps with the same English description, or with the same text in any language, are in
  one split, in all languages at once. So no text of test is in train in its own language, nor its translation in
  another.
- **Left out**: stamps of letters, numbers and money; texts with digits or symbols that are not read out as they stand.
- The speakers are not documented, and may be the same in both splits.

`prompts_en.csv` and `prompts_es.csv` list clips of the recipes voice_prompts.yaml and voice_prompts_es.yaml: {prompts}
drawn from each test set, to see what is forgotten.

## Origin and licence

Debian package `{package}`, version {version}: copyright 2002-2022 Bill Kendrick and the contributors of Tux Paint,
https://tuxpaint.org. Licensed under the GNU General Public License, version 2. The recordings are as they were.
"""


@dataclass(frozen=True)
class Clip:
    source: Path
    name: str
    text: str
    language: str
    shown: str
    """The English description."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the clips of the recipe of nine languages.")
    parser.add_argument("--debs", type=Path, metavar="FOLDER", help="folder that holds the package already")
    debs, out = parser.parse_args().debs, DATA / "stamps"
    if out.exists():
        sys.exit(f"{out}: is there already; remove it to build it again")
    for folder in PROMPT_SETS.values():
        if not (folder / "test.csv").is_file():
            sys.exit(f"error: there is no {folder.name}; python recipes/offline/build_voice_prompts.py es makes it")
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA, prefix=".stamps-") as scratch:
        splits = choose(read_clips(unpack(debs, Path(scratch))))
        made = Path(scratch) / "made"
        write(splits, made)
        made.rename(out)
    print(f"{out}: " + ", ".join(f"{len(clips)} {name}" for name, clips in splits.items()))


def unpack(debs: Path | None, scratch: Path) -> Path:
    """The folder of the package's stamps."""
    if debs is None:
        debs = scratch
        command = ["apt-get", "download", f"{PACKAGE}={VERSION}"]
        ended = subprocess.run(command, cwd=debs, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(
                f"error: apt-get cannot fetch {PACKAGE}, version {VERSION}: {ended.stderr.strip().splitlines()[-1]}. "
                "Run `apt-get update` first, or put it into a folder (packages.debian.org has it) and name that with "
                "--debs."
            )
    found = sorted(debs.glob(f"{PACKAGE}_*.deb"))
    if not found:
        sys.exit(f"error: {debs} holds no {PACKAGE}_*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(found[0]), str(scratch / "unpacked")], check=True)
    return scratch / "unpacked/usr/share/tuxpaint/stamps"


def key(text: str) -> str:
    """A text as far as it can be heard."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join(re.findall(r"\w+", "".join(c for c in plain if not unicodedata.combining(c))))


def read_clips(stamps: Path) -> list[Clip]:
    """Every recording with a text that says what is heard."""
    clips = []
    for listing in sorted(stamps.rglob("*.txt")):
        stamp = listing.relative_to(stamps).with_suffix("")
        lines = listing.read_text(encoding="utf-8").splitlines()
        texts = dict(re.findall(r"^(\w+)\.utf8=(.*)$", "\n".join(lines), re.MULTILINE))
        if stamp.parts[0] == "symbols" or not lines:
            continue
        for language in LANGUAGES:
            text = " ".join(texts.get(language, "").split())
            source = listing.with_name(f"{stamp.name}_desc_{language}.ogg")
            if not source.is_file() or not key(text) or re.search(r"[\d\[\](){}<>*#@$€£¥=+/\\|_~^&%]", text):
                continue
            if SHORTEST_SECONDS <= soundfile.info(source).duration <= LONGEST_SECONDS:
                clips.append(Clip(source, "-".join(stamp.parts), text, language, key(lines[0])))
    return clips


def groups(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Clips that have a description or a text in common, or others in common that have."""
    leader: dict[object, object] = {}

    def lead(mark: object) -> object:
        while leader.setdefault(mark, mark) != mark:
            mark = leader[mark]
        return mark

    found = defaultdict(list)
    for clip in clips:
        leader[lead(("shown", clip.shown))] = lead((clip.language, key(clip.text)))
    for clip in clips:
        found[lead(("shown", clip.shown))].append(clip)
    return [found[mark] for mark in sorted(found, key=repr)]


def choose(clips: list[Clip]) -> dict[str, list[Clip]]:
    """Clips for each split, no group in both, and for test of all languages alike many."""
    drawn = groups(clips)
    random.Random(0).shuffle(drawn)
    splits: dict[str, list[Clip]] = {"test": [], "train": []}
    for group in drawn:
        missing = {name: TEST_CLIPS - sum(clip.language == name for clip in splits["test"]) for name in LANGUAGES}
        needed = any(missing[clip.language] > 0 for clip in group) and len(group) < TEST_CLIPS
        splits["test" if needed else "train"] += group
    most = {"test": TEST_CLIPS, "train": MOST_TRAINED}
    return {
        split: [clip for name in LANGUAGES for clip in [c for c in found if c.language == name][: most[split]]]
        for split, found in splits.items()
    }


def write(splits: dict[str, list[Clip]], folder: Path) -> None:
    folder.mkdir()
    for split, clips in splits.items():
        rows = []
        for clip in clips:
            place = Path("clips") / clip.language / f"{clip.name}.ogg"
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip.source, folder / place)
            rows.append((place.as_posix(), clip.text, clip.language))
        write_table(folder / f"{split}.csv", rows)
    for language, source in PROMPT_SETS.items():
        up = Path("../..") / source.relative_to(DATA.parent)
        with (source / "test.csv").open(encoding="utf-8", newline="") as file:
            found = [(row["audio"], row["text"], language) for row in csv.DictReader(file)]
        short = [row for row in found if soundfile.info(source / row[0]).duration <= LONGEST_SECONDS]
        drawn = sorted(random.Random(0).sample(short, PROMPTS))
        write_table(folder / f"prompts_{language}.csv", [((up / row[0]).as_posix(), *row[1:]) for row in drawn])
    counts = {name: [sum(c.language == name for c in splits[split]) for split in splits] for name in LANGUAGES}
    lines = "\n".join(f"| {name} | {trained} | {tested} |" for name, (tested, trained) in counts.items())
    about = {"seconds": f"{LONGEST_SECONDS:g}", "prompts": PROMPTS, "package": PACKAGE, "version": VERSION}
    (folder / "README.md").write_text(NOTICE.format(rows=lines, **about), encoding="utf-8")


def write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "text", "language"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
