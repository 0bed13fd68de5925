"""How much of something long is done: a bar on a terminal, elsewhere a line every few seconds; and how much is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

SECONDS = 5.0
"""Between two lines where there is no terminal."""
DELAY = 1.0
"""Seconds that a bar waits for, as most of what has one takes less."""

Verbosity = Literal["quiet", "normal", "verbose"]
Say = Callable[[str], None]


class _Settings:
    """How much a command says in this process, and who takes the lines of a run's bars: nobody, unless it is told."""

    verbosity: Verbosity = "normal"
    say: Say | None = None


SETTINGS = _Settings()


class Bar:
    """A count of what is done of a total, shown by `say` or the run's own; a context that ends it.

    >>> with Bar("predicting", 2, "rows", say=print) as bar:
    ...     bar.since -= 2 * SECONDS
    ...     bar.update(1, "loss 0.5")
    predicting: 1 of 2 rows, loss 0.5
    """

    def __init__(
        self,
        doing: str,
        total: int | None,
        unit: str,
        *,
        say: Say | None = None,
        leave: bool = False,
        on_terminal: bool = True,
    ) -> None:
        self.doing, self.total, self.unit, self.done = doing, total, unit, 0
        self.say = None if SETTINGS.verbosity == "quiet" else say or SETTINGS.say
        self.since = time.monotonic()
        from tqdm import tqdm  # 30 ms, which a mistaken argument need not wait for

        draws = self.say is not None and sys.stderr.isatty()
        shown = draws and on_terminal
        self.bar = tqdm(
            desc=doing,
            total=total,
            unit=f" {unit}",
            leave=leave,
            delay=0 if leave else DELAY,
            dynamic_ncols=True,
            disable=not shown,
        )
        self.lines = None if draws else self.say

    def update(self, count: int = 1, note: str = "") -> None:
        """So many more are done; a note on them stands beside."""
        self.done += count
        if note and not self.bar.disable:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(count)
        if self.lines is not None and time.monotonic() - self.since >= SECONDS:
            self.since = time.monotonic()
            of = f" of {self.total:,}" if self.total else ""
            self.lines(f"{self.doing}: {self.done:,}{of} {self.unit}{f', {note}' if note else ''}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.bar.close()
