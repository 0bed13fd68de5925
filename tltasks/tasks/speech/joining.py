"""Rows joined into windows as long as a model hears at once, as functions of (seed, epoch), with the times of each.

Source: Radford et al., https://arxiv.org/abs/2212.04356, section 2.3: of a text that a window cuts off, the start alone
is written, from which whoever transcribes a long recording goes on.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np
from numpy.typing import NDArray

from tltasks.config.tasks.speech import Timestamps
from tltasks.data.splits import LANGUAGE, PROMPT, SOURCE, Columns
from tltasks.tasks.speech.audio import Segment, from_int16, to_int16

CLASSES = 64
"""Sizes that are told apart, as parts of a window. Rows of one size take each other's place from epoch to epoch."""
FILLED = 0.85
"""Share of a window that rows fill on average; pauses, and what the window cuts off, take the rest."""
FIRST_PAUSE = 1.0
"""Seconds until the first row at most: Whisper's decoding expects none to begin later."""
CUT = 0.75
"""Share of windows with times that may cut a row off, as those of long recordings do."""
LEAST_CUT = 0.5
"""Seconds of a row that is cut off at least."""
FLOOR = 1e-4
"""Of the noise in pauses, -80 dB: what is recorded is never quite silent."""
PER_SECOND = 50
"""Steps of Whisper's tokens of times."""


@dataclass(frozen=True)
class Window:
    """Samples and tokens of a window, and what it is joined by."""

    hz: int
    seconds: float
    first: int
    """The token `<|0.00|>`; all that follow are of times."""
    most: int
    """Tokens of a text, times included."""
    keys: Timestamps

    def timed(self, segments: Sequence[Segment], label_ids: Callable[[str], list[int]]) -> list[int]:
        """Labels of what is said in segments, each between the tokens of its times."""
        ids, last = list[int](), 0.0
        for segment in segments:
            *text, end = label_ids(segment.text)
            ids += [self.time(max(segment.start, last)), *text, self.time(segment.end)]
            last = segment.end
        return [*ids, end]

    def time(self, seconds: float) -> int:
        """The token of a time."""
        return self.first + round(min(seconds, self.seconds) * PER_SECOND)


def deal(sizes: NDArray[np.float64], drawn: np.random.Generator) -> list[list[int]]:
    """The rows of each window, whose sizes, as parts of a window, are at most one together.

    The largest go first, each where most room is left. So there are as many windows whatever is drawn.

    >>> [sorted(rows) for rows in deal(np.array([0.5, 0.4, 0.3, 0.2]), np.random.default_rng(0))]
    [[0, 3], [1, 2]]
    """
    parts = np.ceil(sizes * CLASSES).astype(int).clip(max=CLASSES)
    n_windows = int(np.ceil(parts.sum() / (FILLED * CLASSES)))
    windows: list[list[int]] = [[] for _ in range(n_windows)]
    loads = [(0, i) for i in range(n_windows)]
    for row in np.lexsort((drawn.random(len(parts)), -parts)).tolist():
        load, i = loads[0]
        if load + parts[row] > CLASSES:
            load, i = 0, len(windows)
            windows.append([])
            heapq.heappush(loads, (int(parts[row]), i))
        else:
            heapq.heapreplace(loads, (load + int(parts[row]), i))
        windows[i].append(row)
    return [drawn.permutation(rows).tolist() for rows in windows if rows]


def joined(rows: datasets.Dataset, window: Window, *, seed: int, epoch: int) -> datasets.Dataset:
    """Windows of rows in one language, of one source and with one prompt, in the columns of rows.

    Every row is in one of them; the beginning of some ends another one, too. Sound is read as windows are.
    """
    drawn = np.random.default_rng((seed, epoch))
    seconds = np.asarray(rows["seconds"], dtype=np.float64)
    tokens = np.array([len(labels) + 2 for labels in rows["labels"]])
    sizes, plans = np.maximum(seconds / window.seconds, tokens / window.most), list[dict[str, object]]()
    for group in _groups(rows):
        for own in deal(sizes[group], drawn):
            plans.append(_plan(group[own].tolist(), int(drawn.choice(group)), seconds, window, drawn))
    numbers, kept = rows["row"], [name for name in (LANGUAGE, PROMPT, SOURCE) if name in rows.column_names]
    firsts = [plan["rows"][0] for plan in plans]  # type: ignore[index]
    plain: Columns = {name: [plan[name] for plan in plans] for name in plans[0]} | {"row": [numbers[i] for i in firsts]}
    for name in kept:
        plain[name] = [rows[name][i] for i in firsts]
    return datasets.Dataset.from_dict(plain).with_transform(partial(_read, rows, window, kept))


def _groups(rows: datasets.Dataset) -> Iterator[NDArray[np.int64]]:
    keys = [rows[name][:] for name in (LANGUAGE, PROMPT, SOURCE) if name in rows.column_names]
    places: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, key in enumerate(zip(*keys, strict=True) if keys else [()] * len(rows)):
        places[key].append(i)
    yield from map(np.array, places.values())


def _plan(
    rows: list[int], following: int, seconds: NDArray[np.float64], window: Window, drawn: np.random.Generator
) -> dict[str, object]:
    """The beginning of each row, in seconds, and the row that the window's end may cut off, -1 for none."""
    is_timed, cuts = drawn.random(2) < (window.keys.share, CUT)
    left, own = max(0.0, window.seconds - float(seconds[rows].sum())), seconds[rows]
    pauses = drawn.uniform(0, window.keys.pause_seconds, len(rows) + 1)
    pauses[0] = min(pauses[0], FIRST_PAUSE)
    kept = min(left, pauses[-1] + drawn.uniform(0, seconds[following])) if is_timed and cuts else 0.0
    pauses[:-1] *= min(1.0, (left - kept) / max(pauses[:-1].sum(), 1e-9))
    starts = np.cumsum(pauses[:-1]) + np.cumsum(own) - own
    end = float(starts[-1] + own[-1])
    room = window.seconds - end - pauses[-1]
    cuts = bool(is_timed and cuts and LEAST_CUT <= room < seconds[following] and following not in rows)
    return {
        "rows": rows,
        "starts": starts.tolist(),
        "cut": following if cuts else -1,
        "cut_start": end + float(pauses[-1]),
        "is_timed": bool(is_timed),
        "seconds": window.seconds if cuts else end,
        "noise": int(drawn.integers(2**31)),
    }


def _read(rows: datasets.Dataset, window: Window, kept: Sequence[str], plans: Columns) -> Columns:
    """The columns of encoded rows for some windows."""
    found: Columns = {name: plans[name] for name in ("row", "seconds", *kept)} | {"audio": [], "labels": []}
    for i in range(len(plans["rows"])):
        plan = {name: values[i] for name, values in plans.items()}
        starts = [*plan["starts"], plan["cut_start"]]
        columns = rows[[*plan["rows"], *([plan["cut"]] if plan["cut"] >= 0 else [])]]
        n_samples = int(plan["seconds"] * window.hz)
        sound = np.random.default_rng(plan["noise"]).normal(0, FLOOR, n_samples).astype(np.float32)
        for content, start in zip(columns["audio"], starts, strict=False):
            at = int(start * window.hz)
            clip = from_int16(content)[: n_samples - at]
            sound[at : at + len(clip)] = clip
        found["audio"].append(to_int16(sound))
        labels = columns["labels"][: len(plan["rows"])]
        found["labels"].append(_labels(labels, starts, window, is_timed=plan["is_timed"], is_cut=plan["cut"] >= 0))
    return found


def _labels(
    labels: Sequence[Sequence[int]], starts: Sequence[float], window: Window, *, is_timed: bool, is_cut: bool
) -> list[int]:
    """Labels of rows one after another, their times from the window's beginning on, or without any."""
    ids = list[int]()
    for own, start in zip(labels, starts, strict=False):
        moved = window.time(start) - window.first
        for token in own[:-1]:
            if token < window.first:
                ids.append(token)
            elif is_timed:
                ids.append(min(token + moved, window.time(window.seconds)))
    if is_cut:
        ids.append(window.time(starts[-1]))
    return [*ids, labels[0][-1]]
