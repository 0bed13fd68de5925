"""The rows that each optimiser step reads, as pure functions of (seed, epoch).

Nothing here depends on earlier draws, on worker processes or on how many devices take part: a resumed run and a
run on another number of devices read the same rows in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

MOST_GROUPED = 50
"""Steps whose rows are sorted by length together; at most a quarter of an epoch, so that steps differ by epoch."""


def plan_epoch(
    n_rows: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    window: int = 0,
    least: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[Rows]:
    """The rows of each step of an epoch, or of one window of it, every row once; the last step may be smaller.

    One of fewer rows than `least` takes some of the step before it. With `lengths`, rows alike in length share a step.

    >>> [step.tolist() for step in plan_epoch(5, batch_size=2, seed=0, epoch=0)]
    [[2, 4], [3, 0], [1]]
    >>> [len(step) for step in plan_epoch(9, batch_size=4, seed=0, epoch=0, least=2)]
    [4, 3, 2]
    >>> [step.tolist() for step in plan_epoch(17, batch_size=2, seed=0, epoch=0, lengths=range(17))]
    [[16, 13], [11, 10], [14, 9], [7, 5], [12, 6], [3, 2], [4, 0], [8, 1], [15]]
    """
    random = np.random.default_rng((seed, epoch, window) if window else (seed, epoch))
    order = random.permutation(n_rows)
    if lengths is not None:
        sizes = np.asarray(lengths, dtype=np.int64)
        together = batch_size * max(1, min(n_rows // (4 * batch_size), MOST_GROUPED))
        parts = [order[i : i + together] for i in range(0, n_rows, together)]
        order = np.concatenate([part[np.argsort(-sizes[part], kind="stable")] for part in parts])
        whole = order[: n_rows - n_rows % batch_size].reshape(-1, batch_size)
        order = np.concatenate([random.permutation(whole).ravel(), order[whole.size :]])
    return _fill_last([order[i : i + batch_size] for i in range(0, n_rows, batch_size)], least)


def balanced_rows(classes: Sequence[int], *, seed: int, epoch: int) -> Rows:
    """As many rows as there are, of each class alike as far as that goes; a rare class's come again, in turn.

    >>> drawn = balanced_rows([0, 0, 0, 0, 0, 1], seed=0, epoch=0)
    >>> np.bincount(np.array([0, 0, 0, 0, 0, 1])[drawn]).tolist(), len(set(drawn.tolist()))
    ([3, 3], 4)
    """
    random, kinds = np.random.default_rng((seed, epoch)), np.asarray(classes)
    present = random.permutation(np.unique(kinds))
    share, more = divmod(len(kinds), len(present))
    drawn = []
    for place, kind in enumerate(present.tolist()):
        own = np.flatnonzero(kinds == kind)
        wanted = share + (place < more)
        drawn.append(_in_turn(own, wanted, random))
    return np.sort(np.concatenate(drawn))


def weighted_rows(sources: Sequence[int], weights: Sequence[float], *, seed: int, epoch: int) -> Rows:
    """As many rows as there are, of each source in proportion to its rows × its weight; none is left out whole.

    >>> drawn = weighted_rows([0] * 60 + [1] * 20, [1.0, 3.0], seed=0, epoch=0)
    >>> np.bincount(np.repeat([0, 1], [60, 20])[drawn]).tolist()
    [40, 40]
    """
    random, kinds = np.random.default_rng((seed, epoch)), np.asarray(sources)
    present, counts = np.unique(kinds, return_counts=True)
    meant = counts * np.asarray(weights)[present]
    ends = np.round(np.cumsum(meant) * len(kinds) / meant.sum()).astype(np.int64)
    wanted = np.maximum(1, np.diff(ends, prepend=0))
    wanted[wanted.argmax()] -= wanted.sum() - len(kinds)
    drawn = [_in_turn(np.flatnonzero(kinds == kind), n, random) for kind, n in zip(present, wanted, strict=True)]
    return np.sort(np.concatenate(drawn))


def _in_turn(rows: Rows, n: int, random: np.random.Generator) -> Rows:
    """So many of some rows, drawn; none comes again before all have come."""
    turns = [random.permutation(rows) for _ in range(-(-n // len(rows)))]
    return np.concatenate(turns)[:n]


def _fill_last(groups: list[Rows], least: int) -> list[Rows]:
    """Groups of which the last one has so many rows, too; it is part of the one before it where both have too few."""
    if len(groups) < 2 or len(groups[-1]) >= least:
        return groups
    both = np.concatenate(groups[-2:])
    return [*groups[:-2], *([both[:-least], both[-least:]] if len(both) >= 2 * least else [both])]


def step_of_rows(n_rows: int, *, batch_size: int, seed: int, epoch: int) -> Rows:
    """The step, counted from the first epoch's first, in which each row is read.

    >>> step_of_rows(5, batch_size=2, seed=0, epoch=0).tolist()
    [1, 2, 0, 1, 0]
    >>> step_of_rows(2, batch_size=1, seed=0, epoch=3).tolist()
    [6, 7]
    """
    plan = plan_epoch(n_rows, batch_size=batch_size, seed=seed, epoch=epoch)
    steps = np.empty(n_rows, dtype=np.int64)
    for step, rows in enumerate(plan, start=epoch * len(plan)):
        steps[rows] = step
    return steps


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimiser steps of one epoch, the last and smaller one counted.

    >>> steps_per_epoch(5, 2)
    3
    """
    return -(-n_rows // batch_size)


def micro_batches(
    rows: Rows,
    *,
    world: int,
    rank: int,
    max_rows: int,
    lengths: Sequence[int] | None = None,
    budget: int | None = None,
    pass_cost: int | None = None,
    rows_per_loss: int | None = None,
    least: int = 1,
) -> list[Rows]:
    """The forward passes in which one of `world` processes takes its part of a step's rows.

    With `lengths`, rows alike in length share a micro-batch, dealt so that all ranks get alike work. `budget` bounds a
    micro-batch's rows × longest length, or its rows where there are no lengths; with `pass_cost`, what a pass costs
    whatever is in it, they are cut so that they cost least, padding included. With `rows_per_loss`, so many rows always
    share one, the same ones for any number of ranks, whatever the other limits. None has fewer rows than `least` if the
    step has so many, unless rows have lengths. May be empty when there is less to do than there are processes.

    >>> [b.tolist() for b in micro_batches(np.arange(5), world=2, rank=0, max_rows=2)]
    [[0, 2], [4]]
    >>> [b.tolist() for b in micro_batches(np.arange(4), world=1, rank=0, max_rows=4, lengths=[9, 1, 8, 2], budget=18)]
    [[0, 2], [3, 1]]
    >>> [micro_batches(np.arange(5), world=2, rank=r, max_rows=1, rows_per_loss=2) for r in (0, 1)]
    [[array([0, 1]), array([4])], [array([2, 3])]]
    """
    if rows_per_loss is not None:
        order = rows if lengths is None else rows[np.argsort(-np.asarray(lengths, np.int64)[rows], kind="stable")]
        groups = [order[i : i + rows_per_loss] for i in range(0, len(order), rows_per_loss)]
        return _fill_last(groups, least)[rank::world]
    if lengths is None:
        world = min(world, max(1, len(rows) // least))
        mine, max_rows = rows[rank::world] if rank < world else rows[:0], max(least, min(max_rows, budget or max_rows))
        return _fill_last([mine[i : i + max_rows] for i in range(0, len(mine), max_rows)], least)
    sizes = np.asarray(lengths, dtype=np.int64)[rows]
    mine = rows[np.argsort(-sizes, kind="stable")][rank::world]
    if pass_cost is not None and budget is not None:
        return _cut(mine, lengths, max_rows=max_rows, budget=budget, pass_cost=pass_cost)
    passes, start = list[Rows](), 0
    while start < len(mine):
        longest = max(int(lengths[mine[start]]), 1)
        end = start + (max_rows if budget is None else max(1, min(max_rows, budget // longest)))
        passes.append(mine[start:end])
        start = end
    return passes


def _cut(rows: Rows, lengths: Sequence[int], *, max_rows: int, budget: int, pass_cost: int) -> list[Rows]:
    """Rows from the longest to the shortest in the passes that cost least, padding included."""
    costs, starts = np.full(len(rows) + 1, np.iinfo(np.int64).max), np.zeros(len(rows) + 1, dtype=np.int64)
    costs[0] = 0
    for start, row in enumerate(rows.tolist()):  # the cheapest way to have all before `start` in passes is known
        longest = max(int(lengths[row]), 1)
        most = min(max_rows, len(rows) - start, max(1, budget // longest))
        reached = costs[start] + longest * np.arange(1, most + 1) + pass_cost
        ends = slice(start + 1, start + most + 1)
        starts[ends] = np.where(reached < costs[ends], start, starts[ends])
        costs[ends] = np.minimum(reached, costs[ends])
    passes, end = list[Rows](), len(rows)
    while end:
        passes.append(rows[starts[end] : end])
        end = int(starts[end])
    return passes[::-1]
