"""Files of a folder, each once: under the split and the class that its folders name, or with the reason why not.

Splits are folders just below the named one, classes folders just below these. Names count nowhere else: a class may be
called `train`, and a picture `test 3.png`.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tltasks.errors import DataError

SUFFIXES: dict[str, frozenset[str]] = {
    "image": frozenset({
        ".apng", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2",
        ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".nef", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".svg",
        ".tga", ".tif", ".tiff", ".webp",
    }),
    "audio": frozenset({
        ".3gp", ".8svx", ".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".avr", ".caf", ".flac", ".htk", ".ircam",
        ".m4a", ".mka", ".mp2", ".mp3", ".mp4", ".mpga", ".nist", ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64",
        ".sds", ".sf", ".snd", ".sph", ".spx", ".svx", ".voc", ".w64", ".wav", ".wave", ".weba", ".webm", ".wma",
        ".wve",
    }),
}  # fmt: skip
"""Endings of files that are taken for images and for audio, whether or not they can be decoded: those that cannot are
bad rows, which are named and counted."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Splits by the names of folders, and of tables, that stand for them."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
OTHER = "of another suffix"
SHOWN = 5


def fault_of(path: str | Path) -> str | None:
    """Why this is neither a file that can be read to its end nor a folder; None where it is."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a Path for each of a million files takes longer than the call)
    except (OSError, ValueError) as error:
        if os.path.islink(path):  # noqa: PTH114
            return "a link that leads nowhere"
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Files of a folder and those below it, in the order of their paths, each with the reason if it cannot be read.

    Links are followed, but not in a circle. What is hidden is one name, however much lies below it.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        name, above = pending.pop()
        place = os.path.join(folder, name)  # noqa: PTH118
        if PurePosixPath(name).name.startswith((".", "__MACOSX")):  # what macOS adds to archives
            yield name, "hidden"
        elif fault := fault_of(place):
            yield name, fault
        elif not os.path.isdir(place):  # noqa: PTH112
            yield name, None
        else:
            at = os.stat(place)  # noqa: PTH116
            if (at.st_dev, at.st_ino) in above:
                yield name, "a link to a folder that it lies in"
                continue
            try:
                below = [os.path.join(name, entry) for entry in os.listdir(place)]  # noqa: PTH118, PTH208
            except OSError as error:
                yield name or ".", f"cannot be opened ({error.strerror})"
                continue
            # as whole paths are ordered, in which a folder's name goes on with a slash
            below.sort(key=lambda one: one + "/" * os.path.isdir(os.path.join(folder, one)), reverse=True)  # noqa: PTH112, PTH118
            pending += [(one, above | {(at.st_dev, at.st_ino)}) for one in below]


def sift(folder: Path, suffixes: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """`walk`, with the reason for files of another suffix."""
    for name, fault in walk(folder):
        suffix = PurePosixPath(name).suffix.lower()
        if fault is None and suffix not in suffixes:
            fault = "an archive; unpack it" if suffix in ARCHIVES else OTHER
        yield name, fault


def told(left_out: dict[str, str], most: int = SHOWN) -> list[str]:
    """Files that are left out, by their reasons, so many named of each."""
    reasons = defaultdict(list)
    for name, reason in left_out.items():
        reasons[reason].append(shown_name(name))
    return [f"{reason}: {some(names, most)}" for reason, names in reasons.items()]


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """The first of some names, and how many there are.

    >>> some(["a", "b", "c"], 2)
    'a, b, … (3 in all)'
    """
    return ", ".join(names[:most]) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def shown_name(name: str | Path) -> str:
    """A name that any file can hold, of a file whose name need not be text."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True)
class MediaFolder:
    """Images or recordings by split, each with its class where folders name it."""

    root: Path
    kind: str
    files: dict[str, list[tuple[str, str | None]]]
    """Paths below the folder, and classes."""
    metadata: list[str]
    """Tables about the files."""
    left_out: dict[str, str]
    """Reason for every other file."""
    unlabelled: dict[str, str]
    """Why files of a split have no class, where that is so."""
    notes: list[str]


def media_folder(root: Path, kind: str) -> MediaFolder:
    """Look through a folder of images or recordings; raises DataError where its names could be read in two ways."""
    files, metadata, left_out = [], [], {}
    for name, fault in sift(root, SUFFIXES[kind]):
        if PurePosixPath(name).name in METADATA and fault_of(root / name) is None:
            metadata.append(name)
        elif fault is None and not _is_text(name):
            left_out[name] = "a name that is no text in UTF-8"
        elif fault is None:
            files.append(name)
        else:
            left_out[name] = fault
    if not files:
        raise DataError(f"holds no {kind} file{instead(left_out)}")
    splits = split_folders([*files, *metadata])
    found: dict[str, list[tuple[str, str | None]]] = {}
    unlabelled: dict[str, str] = {}
    for name in files:
        top, slash, below = name.partition("/")
        if splits and not (slash and top in splits):
            left_out[name] = f"beside the folders of the splits ({', '.join(splits)})"
            continue
        split, inner = (splits[top], below) if splits else ("train", name)
        # macOS writes é as two characters, and a folder's name is the same class wherever it was made
        parts = unicodedata.normalize("NFC", inner).split("/")
        if len(parts) != 2:
            unlabelled.setdefault(split, _why_no_class(name, parts))
        found.setdefault(split, []).append((name, parts[0] if len(parts) == 2 else None))
    inside = {part for name in files for part in name.split("/")[1:-1] if part.casefold() in SPLITS}
    notes = []
    if inside and not splits:
        notes = [f"folders further down are called {some(sorted(inside))}, no splits: these lie just below {root.name}"]
    if twice := sorted(top for top, split in splits.items() if top == split != SPLITS.get(top.casefold(), top)):
        notes.append(f"{some(twice)}: another folder stands for the same split, so each is one of its own name")
    return MediaFolder(root, kind, found, metadata, left_out, unlabelled, notes)


def _why_no_class(name: str, parts: list[str]) -> str:
    if len(parts) == 1:
        return f"{name} lies in no folder of a class"
    return (
        f"{name} lies {len(parts) - 1} folders deep, and a class is the folder just below its split or the named "
        f"folder: `{parts[0]}`, or is it `{parts[-2]}`? Name the folder that the class folders lie in as `dir`, move "
        "the files up, or list them in a metadata.csv with the columns file_name and label"
    )


def split_folders(files: Iterable[str]) -> dict[str, str]:
    """Splits by the folders just below a folder with these files; none where these are no splits, but classes.

    They are splits where every one of them is called as a split, or those that are have folders or a metadata file of
    their own; then each of the others is a split of its own name. One that is called as a split and holds files, as
    those beside it do, is a class. Raises DataError for what is neither.

    >>> split_folders(["train/cat/1.png", "val/cat/1.png", "night/cat/1.png"])
    {'train': 'train', 'val': 'validation', 'night': 'night'}
    >>> split_folders(["bus/1.png", "train/test.png", "tram/1.png"])
    {}
    """
    flat: dict[str, set[bool]] = {}
    for top, slash, below in (name.partition("/") for name in files):
        if slash:
            inside = flat.setdefault(top, set())
            if below in METADATA:
                inside.add(False)
            elif below != "":
                inside.add("/" not in below)
    named = [top for top in flat if top.casefold() in SPLITS]
    if not named:
        return {}
    if len(named) < len(flat):
        if len(named) == 1 and all(inside == {True} for inside in flat.values()):
            return {}
        if any(False not in flat[top] for top in named):
            raise DataError(
                f"has the folders {some(sorted(flat))}: are {', '.join(named)} splits or classes? Splits lie side by "
                "side, with class folders below each; name the files of each split with `files`, or move them so"
            )
    times = Counter(SPLITS[top.casefold()] for top in named)
    # Two folders for one split are told apart by their own names.
    return {top: SPLITS[top.casefold()] if top in named and times[SPLITS[top.casefold()]] == 1 else top for top in flat}


_SHARD = re.compile(r"(.+?)(?:[-_.]?\d+(?:-of-\d+)?)?")


def split_of_table(name: str) -> str | None:
    """The split that a table's name stands for, as a whole or with the number of a part.

    >>> split_of_table("dev.csv"), split_of_table("train-00000-of-00002.parquet"), split_of_table("a test.csv")
    ('validation', 'train', None)
    """
    stem = name.split(".")[0]
    match = _SHARD.fullmatch(stem)
    return SPLITS.get((match[1] if match else stem).casefold())


def instead(left_out: dict[str, str]) -> str:
    """Words on what a folder holds instead."""
    return f"; left out are, {'; '.join(told(left_out))}" if left_out else "; it is empty"


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
