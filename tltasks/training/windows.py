"""Parts of training: an epoch of rows that are held, or a window of rows that are streamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from tltasks.data.splits import WriteWindow
from tltasks.data.streaming import START, Place
from tltasks.errors import TltasksError
from tltasks.runtime.files import write_json


@dataclass(frozen=True)
class Part:
    """Rows that are dealt out together, every one once."""

    rows: datasets.Dataset
    epoch: int
    window: int
    done: int
    """Steps of it that are made."""
    place: Place | None
    """Where its rows begin in the stream."""


@dataclass
class Windows:
    """The windows of a stream, each written by one process of each machine while the one before is trained on.

    On disk are the window that is read and the next.
    """

    write: WriteWindow
    folder: Path
    writes: bool
    """This process is the one that writes."""
    agree: Callable[[str | None], None]
    """Waits for all processes, and raises in all of them what one says has gone wrong."""
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    coming: dict[Path, Future[Place]] = field(default_factory=dict)
    opened: tuple[Path, Place] = (Path(), START)
    """The window that is read, and the place after it."""

    def part(self, step: int, place: Place | None, *, of: int) -> Part:
        """The window that the next step is in, of so many; `place` is where an earlier one begins, or this one."""
        at = START if place is None else place
        while True:
            file, after = self._open(at)
            if step < after["step"]:
                break
            at = after
        if after["step"] < of:
            self._begin(after)
        rows = datasets.Dataset.from_file(str(file))
        return Part(rows, at["epoch"], at["window"], step - at["step"], at)

    def _open(self, place: Place) -> tuple[Path, Place]:
        """The file of a window, and the place after it, known to all processes."""
        file, failure = self._file(place), None
        if file == self.opened[0]:
            return self.opened
        if self.writes:
            try:
                self._begin(place)
                after = self.coming.pop(file).result()
                write_json(file.with_suffix(".json"), after)
            except TltasksError as error:
                failure = str(error)
        self.agree(failure)
        if self.writes:  # the others have come from the window before
            for other in self.folder.glob("*.arrow"):
                if other != file:
                    other.unlink(missing_ok=True)
        self.opened = file, json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        return self.opened

    def _begin(self, place: Place) -> None:
        """Have a window written in the background."""
        file = self._file(place)
        if self.writes and file not in self.coming:
            self.coming[file] = self.executor.submit(self.write, file, place)

    def _file(self, place: Place) -> Path:
        return self.folder / f"{place['epoch']}-{place['window']}.arrow"

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)
