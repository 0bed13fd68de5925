"""Make the clips of the recipes voice_prompts.yaml and voice_prompts_es.yaml from Debian's Asterisk prompts.

    python recipes/offline/build_voice_prompts.py en    # rebuilds recipes/offline/voice_prompts, which is committed
    python recipes/offline/build_voice_prompts.py es    # makes data/voice_prompts_es, which is not

The packages are fetched by `apt-get download` (run `apt-get update` before), or read from a folder of .deb files given
with --debs. The folder appears when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

HERE = Path(__file__).resolve().parent
VERSION = "1.6.1-1"
SHORTEST_SECONDS, LONGEST_SECONDS = 0.4, 6.0


@dataclass(frozen=True)
class Voice:
    """One language's prompts, and how many clips are held out of them."""

    out: Path
    test_clips: int
    validation_clips: int
    most_bytes: int | None
    """Training clips are taken until all files together would be larger."""

    notice: str


NOTICE = """# {title}

{clips} clips of {speaker}, one speaker, recorded in a studio, {minutes:.1f} minutes, 8 kHz, {language}.

| file | clips | minutes |
|---|---|---|
{rows}

Columns: `audio` (path of a FLAC file), `text` (what is said).

- **Split by text**: the clips were shuffled with a fixed seed by their normalised text, so that no sentence is in two
  splits, also where it was recorded twice.
- **Left out**: clips longer than {longest:g} s or shorter than {shortest:g} s, texts in brackets (tones, noises) and
  texts with symbols that are not read out as they stand (`press *`){bounded}.
- **Changed**: wav became FLAC, which keeps every sample; spaces in texts were evened out.

## Origin and licence

The Asterisk core sounds, recorded by Allison Smith (http://www.theivrvoice.com), with contributions by Digium,
Inc. (http://www.digium.com); copyright 2003-2010 Allison Smith. Debian packages `{package}-wav` and `{package}`,
version {version}. Licensed under Creative Commons Attribution-ShareAlike 3.0
(https://creativecommons.org/licenses/by-sa/3.0/), and so are these files, changed as said above.
`../build_voice_prompts.py` rebuilds them.
"""

VOICES = {
    "en": Voice(HERE / "voice_prompts", 110, 24, 4_900_000, "English voice prompts|Allison Smith|English"),
    "es": Voice(HERE.parents[1] / "data" / "voice_prompts_es", 130, 40, None, "Spanish prompts|Allison Smith|Spanish"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the clips of the offline speech recipes.")
    parser.add_argument("language", choices=VOICES)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: the place named above")
    parser.add_argument("--debs", type=Path, metavar="FOLDER", help="folder that holds the packages already")
    arguments = parser.parse_args()
    voice = VOICES[arguments.language]
    voice = replace(voice, out=(arguments.out or voice.out).absolute())
    if voice.out.exists():
        sys.exit(f"{voice.out}: is there already; remove it to build it again")
    voice.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=voice.out.parent, prefix=f".{voice.out.name}-") as scratch:
        package = f"asterisk-core-sounds-{arguments.language}"
        unpacked = unpack(package, arguments.debs, Path(scratch))
        clips = choose(read_clips(unpacked, package), voice)
        folder = Path(scratch) / "made"
        write(clips, folder, voice, package)
        folder.rename(voice.out)
    print(f"{voice.out}: " + ", ".join(f"{len(found)} {name}" for name, found in clips.items()))


def unpack(package: str, debs: Path | None, scratch: Path) -> Path:
    """The files of the package with the sounds and of the one with their texts."""
    if debs is None:
        debs = scratch
        command = ["apt-get", "download", f"{package}={VERSION}", f"{package}-wav={VERSION}"]
        ended = subprocess.run(command, cwd=debs, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(
                f"error: apt-get cannot fetch {package} and {package}-wav, version {VERSION}: "
                f"{ended.stderr.strip().splitlines()[-1]}. Run `apt-get update` first, or put both packages into a "
                "folder (packages.debian.org has them) and name it with --debs."
            )
    out = scratch / "unpacked"
    for name in (package, f"{package}-wav"):
        found = sorted(debs.glob(f"{name}_*.deb"))
        if not found:
            sys.exit(f"error: {debs} holds no {name}_*.deb")
        subprocess.run(["dpkg-deb", "--extract", str(found[0]), str(out)], check=True)
    return out


@dataclass(frozen=True)
class Clip:
    name: str
    text: str
    seconds: float
    flac: bytes

    @property
    def key(self) -> str:
        """The text as far as it can be heard, by which clips are split."""
        plain = unicodedata.normalize("NFKD", self.text.casefold())
        return " ".join(re.findall(r"\w+", "".join(c for c in plain if not unicodedata.combining(c))))


def read_clips(folder: Path, package: str) -> list[Clip]:
    """Every clip with a text that says what is heard."""
    language = package.rpartition("-")[2]
    texts = {}
    listing = folder / "usr/share/doc" / package / f"core-sounds-{language}.txt.gz"
    with gzip.open(listing, "rt", encoding="utf-8") as file:
        for line in file:
            name, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                texts[name.strip()] = " ".join(text.split())
    voice = next(path for path in (folder / "usr/share/asterisk/sounds").iterdir() if path.is_dir())
    clips = []
    for name, text in sorted(texts.items()):
        path = voice / f"{name}.wav"
        if not path.is_file() or re.search(r"[\[\](){}<>*#@$=+/\\|_~^]", text) or not re.search(r"\w", text):
            continue
        samples, rate = soundfile.read(path, dtype="int16")
        if SHORTEST_SECONDS <= len(samples) / rate <= LONGEST_SECONDS:
            target = io.BytesIO()
            soundfile.write(target, samples, rate, format="FLAC", compression_level=1.0)
            clips.append(Clip(name.replace("/", "-"), text, len(samples) / rate, target.getvalue()))
    return clips


def choose(clips: list[Clip], voice: Voice) -> dict[str, list[Clip]]:
    """Clips for each split, no text in two of them."""
    keys = sorted({clip.key for clip in clips})
    random.Random(0).shuffle(keys)
    by_key = {key: [clip for clip in clips if clip.key == key] for key in keys}
    splits: dict[str, list[Clip]] = {"test": [], "validation": [], "train": []}
    wanted = {"test": voice.test_clips, "validation": voice.validation_clips}
    size = 0
    for key in keys:
        split = next((name for name, n in wanted.items() if len(splits[name]) < n), "train")
        weight = sum(len(clip.flac) + 100 for clip in by_key[key])
        if voice.most_bytes is None or size + weight <= voice.most_bytes:
            splits[split] += by_key[key]
            size += weight
    return {name: sorted(splits[name], key=lambda clip: clip.name) for name in ("train", "validation", "test")}


def write(splits: dict[str, list[Clip]], folder: Path, voice: Voice, package: str) -> None:
    (folder / "clips").mkdir(parents=True)
    for name, clips in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", "text"])
            for clip in clips:
                (folder / "clips" / f"{clip.name}.flac").write_bytes(clip.flac)
                writer.writerow([f"clips/{clip.name}.flac", clip.text])
    rows = "\n".join(
        f"| `{name}.csv` | {len(clips)} | {sum(c.seconds for c in clips) / 60:.1f} |" for name, clips in splits.items()
    )
    everything = [clip for clips in splits.values() for clip in clips]
    title, speaker, language = voice.notice.split("|")
    text = NOTICE.format(
        title=title,
        clips=len(everything),
        speaker=speaker,
        language=language,
        minutes=sum(clip.seconds for clip in everything) / 60,
        rows=rows,
        longest=LONGEST_SECONDS,
        shortest=SHORTEST_SECONDS,
        bounded="" if voice.most_bytes is None else "; training clips beyond five megabytes in all",
        package=package,
        version=VERSION,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
