"""Disks that are full: each kind of command meets the end of a small file system and goes on once there is room.

    python benchmarks/full_disk.py --count 60

Levels are spread between nothing and what the command needs. At each, the command must end with status 1 and one
sentence, without a traceback, and leave no file cut; after room is made, the same command must come to the end of an
undisturbed one to the bit. File systems are of memory, in a mount namespace of this process's own (`unshare -rm`);
where there is none, files are limited in size instead. Counts are in results/full_disk.json; called again, it goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--inside" not in sys.argv and shutil.which("unshare") and not subprocess.call(["unshare", "-rm", "true"]):
    os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv, "--inside"])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.disturbed import Subjects, Wrong, check_whole, fresh
from tltasks.runtime.devices import versions
from tltasks.runtime.files import write_json

RESULTS = Path(__file__).parent / "results" / "full_disk.json"
KINDS = (
    "run",
    "predict jsonl",
    "checkpoint",
    "cache",
    "predict parquet",
    "compare",
    "run",
    "predict csv",
    "checkpoint",
)
ENOUGH = 256 * 2**20
LEAST = 4096
SENTENCE = "no space is left on the disk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    done = json.loads(given.results.read_text()) if given.results.exists() else {"kinds": {}, "wrong": [], "levels": 0}
    with tempfile.TemporaryDirectory(prefix="tltasks-disk-") as scratch:
        disk = Disk(Path(scratch) / "disk", mounts=given.inside)
        subjects = Subjects(Path(scratch))
        subjects.make()
        needs: dict[str, int] = {}
        for kind in dict.fromkeys(["run", *KINDS]):
            subjects.learn(kind)
            with disk.of(ENOUGH):
                subjects.complete(kind, *places(subjects, kind, disk.place), cache=cache(subjects, kind, disk.place))
                needs[kind] = size(disk.place) if given.inside else largest(disk.place)
            print(f"{kind}: {needs[kind]:,} bytes", flush=True)
        while done["levels"] < given.count:
            number = done["levels"]
            kind, turn = KINDS[number % len(KINDS)], number // len(KINDS)
            share = (turn + (number % 7) / 7) / max(1, given.count // len(KINDS))
            level = LEAST + int(share * max(0, needs[kind] - LEAST))
            counts = done["kinds"].setdefault(kind, {"levels": 0, "full": 0, "wrong": 0})
            try:
                counts["full"] += meet(subjects, kind, disk, level)
            except Wrong as error:
                counts["wrong"] += 1
                done["wrong"].append({"kind": kind, "level": level, "what": str(error)})
                print(f"WRONG {kind} at {level:,}: {error}", flush=True)
            counts["levels"] += 1
            done["levels"] += 1
            write_json(given.results, done | {"file_systems": given.inside, "versions": versions()})
        full = sum(counts["full"] for counts in done["kinds"].values())
        print(f"{done['levels']} levels, {full} met the end of the disk, {len(done['wrong'])} wrong", flush=True)


class Disk:
    """A folder with so much room, in all or, without mounts, for each file."""

    def __init__(self, place: Path, *, mounts: bool) -> None:
        self.place, self.mounts, self.room = place, mounts, ENOUGH

    @contextlib.contextmanager
    def of(self, size: int) -> Any:
        fresh(self.place)
        self.room = size
        if self.mounts:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.place], check=True)
        try:
            yield
        finally:
            if self.mounts:
                subprocess.run(["umount", "-l", self.place], check=True)

    def grow(self) -> None:
        self.room = ENOUGH
        if self.mounts:
            subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", self.place], check=True)

    def setup(self) -> Callable[[], None]:
        def limit() -> None:
            if not self.mounts:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, self.room))

        return limit


def places(subjects: Subjects, kind: str, disk: Path) -> tuple[Path, Path]:
    """Output and log of a command: of `cache` the cache alone is on the disk."""
    folder = disk
    if kind == "cache":
        folder = disk.with_name("beside")
        folder.mkdir(exist_ok=True)
    return subjects.output(kind, folder), disk.with_name("log")


def cache(subjects: Subjects, kind: str, disk: Path) -> Path:
    return disk / "cache" if kind == "cache" else subjects.cache


def meet(subjects: Subjects, kind: str, disk: Disk, level: int) -> bool:
    """Whether the command met the end of the disk; Wrong where it did so badly, or did not go on after."""
    with disk.of(level):
        shutil.rmtree(disk.place.with_name("beside"), ignore_errors=True)
        output, log = places(subjects, kind, disk.place)
        log.unlink(missing_ok=True)
        own = {"cache": cache(subjects, kind, disk.place)}
        (child,) = subjects.begin(kind, output, log, setup=disk.setup(), **own)
        status = child.wait()
        child.kill()
        said = log.read_text(errors="replace")
        full = status != 0
        if "Traceback" in said:
            raise Wrong(f"a traceback: {said[said.index('Traceback') :][-1500:]}")
        if status is None or (full and (status != 1 or said.count(SENTENCE) != 1)):
            raise Wrong(f"status {status}: {said[-600:]}")
        if output.is_dir():
            check_whole(output)
        disk.grow()
        subjects.complete(kind, output, log, **own)
        if (found := subjects.end(kind, output)) != subjects.ends[kind]:
            raise Wrong(f"another end: {str(found)[:300]}")
    return full


def size(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
