import doctest
import itertools

import numpy as np
import pytest

import tltasks.data.batching
from tltasks.data.batching import Rows, micro_batches, plan_epoch, steps_per_epoch, weighted_rows


def test_doctests() -> None:
    result = doctest.testmod(tltasks.data.batching)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize(("n_rows", "batch_size"), [(1, 1), (7, 3), (96, 8), (5, 100)])
def test_an_epoch_reads_every_row_once(n_rows: int, batch_size: int) -> None:
    plan = plan_epoch(n_rows, batch_size=batch_size, seed=3, epoch=1)
    assert sorted(np.concatenate(plan).tolist()) == list(range(n_rows))
    assert len(plan) == steps_per_epoch(n_rows, batch_size)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        np.random.seed(0)  # noqa: NPY002 (the global state must not matter)
        return np.concatenate(plan_epoch(50, batch_size=7, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("max_rows", [1, 2, 5, 100])
@pytest.mark.parametrize("by_length", [False, True])
def test_ranks_and_micro_batches_share_a_step_exactly(world: int, max_rows: int, by_length: bool) -> None:
    lengths = np.random.default_rng(0).lognormal(3, 1, 100).astype(int).tolist() if by_length else None
    rows = plan_epoch(100, batch_size=13, seed=0, epoch=0)[0]
    parts = [
        micro_batches(rows, world=world, rank=r, max_rows=max_rows, lengths=lengths, budget=200 if by_length else None)
        for r in range(world)
    ]
    read = [row for rank in parts for batch in rank for row in batch.tolist()]
    assert sorted(read) == sorted(rows.tolist())
    assert all(len(batch) <= max_rows for rank in parts for batch in rank)


def test_length_budget_bounds_padded_size() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 1, 1000).astype(int).tolist()
    rows = np.arange(1000)
    batches = micro_batches(rows, world=1, rank=0, max_rows=64, lengths=lengths, budget=512)
    sizes = [max(lengths[r] for r in b) * len(b) for b in batches if len(b) > 1]
    assert sizes
    assert max(sizes) <= 512
    padded = sum(max(lengths[r] for r in b) * len(b) for b in batches)
    assert padded < 1.2 * sum(lengths)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(7, 8), (96, 8), (1003, 8), (5000, 8)])
def test_rows_alike_in_length_share_a_step(n_rows: int, batch_size: int) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, n_rows).astype(int)
    plans = [plan_epoch(n_rows, batch_size=batch_size, seed=3, epoch=e, lengths=lengths.tolist()) for e in range(2)]
    alone = plan_epoch(n_rows, batch_size=batch_size, seed=3, epoch=0)
    for plan in plans:
        assert sorted(np.concatenate(plan).tolist()) == list(range(n_rows))
        assert list(map(len, plan)) == list(map(len, alone))
    if n_rows < 96:
        return

    def padded(plan: list[Rows]) -> int:
        return sum(len(step) * int(lengths[step].max()) for step in plan)

    assert padded(plans[0]) < 0.75 * padded(alone)
    places = np.corrcoef(np.arange(len(alone)), [lengths[step].mean() for step in plans[0]])[0, 1]
    assert abs(places) < 0.6, "steps come in any order"
    assert {tuple(sorted(s.tolist())) for s in plans[0]} != {tuple(sorted(s.tolist())) for s in plans[1]}


@pytest.mark.parametrize("pass_cost", [0, 20, 10_000])
@pytest.mark.parametrize("max_rows", [3, 8])
def test_passes_are_cut_where_it_costs_least(pass_cost: int, max_rows: int) -> None:
    for seed in range(10):
        lengths = np.random.default_rng(seed).lognormal(3, 1, 8).astype(int) + 1
        keys = {"max_rows": max_rows, "budget": 120, "lengths": lengths.tolist()}
        found = micro_batches(np.arange(8), world=1, rank=0, pass_cost=pass_cost, **keys)
        assert sorted(np.concatenate(found).tolist()) == list(range(8))

        def cost(passes: list[Rows], lengths: Rows = lengths) -> int:
            return sum(len(rows) * int(lengths[rows].max()) + pass_cost for rows in passes)

        order, ways = np.argsort(-lengths, kind="stable"), list[int]()
        for cuts in itertools.product([False, True], repeat=7):
            passes = np.split(order, np.flatnonzero(cuts) + 1)
            if all(len(p) <= max_rows and (len(p) == 1 or len(p) * lengths[p].max() <= 120) for p in passes):
                ways.append(cost(passes))
        assert cost(found) == min(ways)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(9, 4), (10, 3), (7, 6), (13, 4), (8, 4), (5, 100)])
def test_no_step_has_fewer_rows_than_asked_for(n_rows: int, batch_size: int) -> None:
    plan = plan_epoch(n_rows, batch_size=batch_size, seed=3, epoch=1, least=2)
    assert sorted(np.concatenate(plan).tolist()) == list(range(n_rows))
    assert len(plan) == steps_per_epoch(n_rows, batch_size)
    assert min(map(len, plan)) >= 2
    as_before = plan_epoch(n_rows, batch_size=batch_size, seed=3, epoch=1)
    assert np.concatenate(plan).tolist() == np.concatenate(as_before).tolist()
    if min(map(len, as_before)) >= 2:
        assert list(map(len, plan)) == list(map(len, as_before))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("n_rows", [2, 3, 5, 13])
@pytest.mark.parametrize("keys", [{"max_rows": 1}, {"max_rows": 2}, {"max_rows": 4}, {"max_rows": 9, "budget": 3}])
@pytest.mark.parametrize("rows_per_loss", [None, 4])
def test_no_forward_pass_has_fewer_rows_than_asked_for(
    world: int, n_rows: int, keys: dict[str, int], rows_per_loss: int | None
) -> None:
    parts = [
        micro_batches(np.arange(n_rows), world=world, rank=rank, rows_per_loss=rows_per_loss, least=2, **keys)
        for rank in range(world)
    ]
    assert sorted(row for rank in parts for batch in rank for row in batch.tolist()) == list(range(n_rows))
    assert min(len(batch) for rank in parts for batch in rank) >= 2


def test_weights_of_sources_are_shares_of_an_epoch_and_no_row_comes_twice_before_all_have() -> None:
    sources = [0] * 90 + [1] * 10
    drawn = [weighted_rows(sources, [1.0, 9.0], seed=0, epoch=epoch) for epoch in range(3)]
    for rows in drawn:
        counts = np.bincount(rows, minlength=100)
        assert (counts[:90].sum(), counts[90:].sum()) == (50, 50)
        assert counts[:90].max() == 1
        assert set(counts[90:].tolist()) == {5}
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(drawn[0], weighted_rows(sources, [1.0, 9.0], seed=0, epoch=0))
    assert set(weighted_rows(sources, [1.0, 1e-9], seed=0, epoch=0)) & set(range(90, 100))  # none is left out whole
