"""Rows moved out of a training split, and few of it drawn: with a seed, by class."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from tltasks.config.data import HeldOutRows
from tltasks.data.label_lists import is_list
from tltasks.data.relabel import row_names
from tltasks.data.splits import ROW_NAME, Split
from tltasks.errors import DataError

Rows = NDArray[np.int64]
_MARK = " held out)"


def is_held_out(origin: str) -> bool:
    """Return whether a split of this origin is a share of train."""
    return origin.endswith(_MARK)


def hold_out(
    train: Split,
    n_held: int,
    place: str,
    *,
    seed: int,
    label: str | None,
    by: HeldOutRows | None = None,
    key: str | None = None,
) -> tuple[Split, Split]:
    """Move rows out of `train`, from each label in proportion; the last row of a label stays.

    Labels that a task only looks at count, too: so stages with and without labels hold out the same rows. With `by`
    they are chosen by the column `key`: about so many rows of whole groups, or the last rows of an order; or they are
    one of several folds.
    """
    label = label or ("label" if "label" in train.rows.column_names else None)
    n_rows = len(train.rows)
    if n_held >= n_rows:
        raise DataError(f"{place}: {train.origin} has too few rows ({n_rows}) to hold {n_held} of them out.")
    if by is not None:
        texts = [] if key is None else _values(train, key, f"{place}: {train.origin}", str(by.column))
        kinds = None if label is None else _label_names(train, label)
        sets = _label_sets(train, label)
        if by.folds is not None:
            if ROW_NAME not in train.rows.column_names:  # by which a row is known whichever part it is in
                train = dataclasses.replace(train, rows=train.rows.add_column(ROW_NAME, row_names(train.rows)))
            if sets and not texts and by.folds <= n_rows:
                held = np.flatnonzero(deal_out(sets, [1 / by.folds] * by.folds, seed=seed) == by.fold)
            else:
                held = _fold(n_rows, by, kinds, texts, f"{place}: {train.origin}", seed=seed)
        elif by.group:
            held = _whole_groups(texts, kinds, n_held / n_rows, f"{place}: {train.origin}: `{by.group}`", seed=seed)
        else:
            try:
                held = np.sort(_in_order(texts)[n_rows - n_held :])
            except DataError as error:
                raise DataError(f"{place}: {train.origin}: `{by.ordered_by}` {error}.") from error
    elif label is None:
        from sklearn.model_selection import train_test_split  # a second to import

        held = np.sort(train_test_split(np.arange(n_rows), test_size=n_held, random_state=seed)[1])
    elif sets := _label_sets(train, label):
        shares = [1 - n_held / n_rows, n_held / n_rows]
        held = np.flatnonzero(deal_out(sets, shares, seed=seed, keeps=True))
    else:
        held = draw_held(_label_names(train, label), n_held, seed=seed)
    kept = np.setdiff1d(np.arange(n_rows), held)
    return (
        dataclasses.replace(train, rows=train.rows.select(kept)),
        dataclasses.replace(
            train, rows=train.rows.select(held), origin=f"{train.origin} ({len(held):,}{_MARK}", place=place
        ),
    )


MOST_FOLDS = 20
"""Parts that rows are dealt into by their groups, of which some are held out."""


def _whole_groups(groups: Sequence[str], labels: Sequence[str] | None, share: float, where: str, *, seed: int) -> Rows:
    """Rows of whole groups, about such a share of all, with labels in the proportions that groups allow."""
    from sklearn.model_selection import StratifiedGroupKFold  # a second to import

    n_groups = len(set(groups))
    if n_groups < 2:
        raise DataError(f"{where} has one value, {groups[0]!r}, in all rows; name a column of several groups.")
    n_folds = min(range(2, min(MOST_FOLDS, n_groups) + 1), key=lambda n: (abs(max(1, round(share * n)) / n - share), n))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels with fewer rows than folds
        dealt = [held for _, held in folds.split(groups, labels or [""] * len(groups), groups) if len(held)]
    return np.sort(np.concatenate(dealt[: min(max(1, round(share * n_folds)), len(dealt) - 1)]))


def _values(train: Split, key: str, where: str, column: str) -> list[str]:
    values = [_told(value) for value in train.rows[key][:]]
    if missing := values.count(None):
        raise DataError(f"{where}: {missing:,} rows have no `{column}`; fill it in, or drop them.")
    return [value or "" for value in values]


def _told(value: object) -> str | None:
    """A value such that equal ones are equal, however they are written: 7 and 7.0, names with spaces around them.

    >>> _told(7.0), _told(" p7 "), _told(float("nan")), _told(" ")
    ('7', 'p7', None, None)
    """
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else str(value)
    return None if value is None else str(value).strip() or None


def _fold(
    n_rows: int, by: HeldOutRows, labels: Sequence[str] | None, groups: Sequence[str], where: str, *, seed: int
) -> Rows:
    """The rows of one of the folds, each label in proportion. The only row of a label is in none of them."""
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold  # a second to import

    if by.folds is None or by.fold is None:
        raise AssertionError("a fold is one of several")
    if by.folds > (most := len(set(groups)) if groups else n_rows):
        raise DataError(f"{where}: {most:,} {'groups' if groups else 'rows'} make no {by.folds} folds.")
    dealer = StratifiedGroupKFold if groups else KFold if labels is None else StratifiedKFold
    kinds = np.unique(np.array(labels), return_inverse=True)[1] if labels else np.zeros(n_rows, np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels with fewer rows than folds
        dealt = dealer(by.folds, shuffle=True, random_state=seed).split(kinds, kinds, groups or None)
        held: Rows = [part for _, part in dealt][by.fold]
    alone = np.bincount(kinds)[kinds] == 1
    return held[~alone[held]] if labels else held


def _in_order(values: Sequence[str]) -> Rows:
    """Rows in the order of what they hold: of numbers or of dates and times where all are, or else of texts.

    Raises DataError for dates that are not in ISO 8601, whose order as texts is another.

    >>> _in_order(["10", "9.5", "-1"]).tolist(), _in_order(["2024-03-01", "2023-12-31"]).tolist()
    ([2, 1, 0], [1, 0])
    >>> _in_order(["2024-03-01T09:30+02:00", "2024-03-01T08:00Z"]).tolist()
    [0, 1]
    """
    try:
        return np.argsort(np.array([float(value) for value in values]), kind="stable")
    except ValueError:
        pass
    try:
        times = [datetime.fromisoformat(value) for value in values]
    except ValueError:
        if any(re.match(r"\d+[./-]\d+[./-]\d", value) for value in values):
            odd = next(value for value in values if not _is_time(value))
            raise DataError(f"holds {odd!r}; the order of dates is read from ISO 8601, as 2024-03-01") from None
        return np.argsort(np.array(values), kind="stable")
    if len({time.tzinfo is None for time in times}) > 1:
        raise DataError("has times with a time zone and without; write all in one way")
    return np.array(sorted(range(len(times)), key=times.__getitem__), dtype=np.int64)


def _is_time(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def draw_held(labels: Sequence[str], n_held: int, *, seed: int) -> Rows:
    """So many rows, in order, drawn from each label in proportion, such that none takes all rows of a label with it.

    Where there are more labels than rows to be held out, chance decides which of them have one. Rows are held out of
    labels with a single row only where no others are left.

    >>> draw_held(["a", "a", "a", "rare", "b", "b"], 2, seed=0).tolist()
    [0, 5]
    """
    from sklearn.model_selection import train_test_split  # a second to import

    _, kinds = np.unique(np.array(labels), return_inverse=True)
    counts = np.bincount(kinds)
    shared = np.flatnonzero(counts[kinds] > 1)  # rows of labels with more than one
    n_labels, n_spared = int((counts > 1).sum()), len(shared) - int((counts > 1).sum())
    if n_held > n_spared:  # some label loses its last row
        _, held = train_test_split(np.arange(len(kinds)), test_size=n_held, random_state=seed)
    elif min(n_held, len(shared) - n_held) >= n_labels:
        _, held = train_test_split(shared, test_size=n_held, random_state=seed, stratify=kinds[shared])
    else:
        held = _every_so_many(shared, kinds[shared], n_held, seed=seed)
    return np.sort(_spare_last(held, kinds, seed=seed) if n_held <= n_spared else held)


def _every_so_many(rows: Rows, kinds: Rows, n_held: int, *, seed: int) -> Rows:
    """So many rows at equal distances in the order of their labels, which is drawn, as are rows within a label."""
    random = np.random.default_rng(seed)
    places = random.permutation(kinds.max() + 1)
    order = np.lexsort((random.random(len(rows)), places[kinds]))
    return rows[order[((np.arange(n_held) + random.random()) * len(rows) / n_held).astype(np.int64)]]


def _spare_last(held: Rows, kinds: Rows, *, seed: int) -> Rows:
    """As many rows, but none that is the last of its label: such a row is changed for one of the largest label."""
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(kinds), bool)
    chosen[held] = True
    left = np.bincount(kinds[~chosen], minlength=kinds.max() + 1)
    for kind in np.flatnonzero(left == 0).tolist():
        chosen[random.choice(np.flatnonzero(kinds == kind))] = False
        left[kind] = 1
        other = int(left.argmax())
        chosen[random.choice(np.flatnonzero((kinds == other) & ~chosen))] = True
        left[other] -= 1
    return np.flatnonzero(chosen)


def deal_out(sets: Sequence[Sequence[str]], shares: Sequence[float], *, seed: int, keeps: bool = False) -> Rows:
    """The part of each row, such that each label's rows and all rows are dealt in these shares, the rarest label first.

    With `keeps` the first part has a row of each label. Source: Sechidis, Tsoumakas and Vlahavas, On the stratification
    of multi-label data, https://doi.org/10.1007/978-3-642-23808-6_10 (iterative stratification).

    >>> deal_out([["a"], ["a", "b"], ["b"], ["a"], ["b"], [], ["b"], ["a"]], [0.5, 0.5], seed=0).tolist()
    [0, 1, 1, 0, 0, 0, 0, 1]
    """
    random, labels = np.random.default_rng(seed), sorted({label for row in sets for label in row})
    number = {label: i for i, label in enumerate(labels)}
    has = np.zeros((len(sets), len(labels) + 1), bool)
    for row, own in enumerate(sets):
        has[row, [number[label] for label in own] or [-1]] = True  # rows without any are as a label of their own
    wanted = np.outer([*has.sum(0), len(sets)], shares)
    parts: Rows = np.full(len(sets), -1)
    left = has.sum(0)
    while left.any():
        label = int(np.where(left > 0, left, len(sets) + 1).argmin())
        for row in random.permutation(np.flatnonzero(has[:, label] & (parts < 0))).tolist():
            # by what is wanted of the label, then of rows, then by chance
            part = int(np.lexsort((random.random(len(shares)), wanted[-1], wanted[label]))[-1])
            alone = keeps and (has[:, has[row]].sum(0) == 1).any()
            parts[row] = 0 if alone else part
            wanted[np.append(np.flatnonzero(has[row]), -1), parts[row]] -= 1
            left -= has[row]
    lost = np.flatnonzero(~has[parts == 0].any(0) & has.any(0)).tolist() if keeps else []
    for label in lost:
        parts[random.choice(np.flatnonzero(has[:, label]))] = 0
    return parts


def draw_shots(train: Split, shots: int, *, seed: int, label: str | None) -> Split:
    """Draw so many rows, or of each label; all rows of a label that has no more. More shots include those of fewer."""
    order = np.random.default_rng(seed).permutation(len(train.rows))
    kinds = [""] * len(order) if label is None else _label_names(train, label)
    sets, drawn, chosen = _label_sets(train, label), Counter[str](), list[int]()
    for row in order.tolist():
        own = sets[row] if sets and sets[row] else [kinds[row]]
        if any(drawn[kind] < shots for kind in own):
            drawn.update(own)
            chosen.append(row)
    chosen.sort()
    what = f"{shots:,} shots" if label is None else f"{shots:,} shots of each {label}"
    return dataclasses.replace(
        train, rows=train.rows.select(chosen), origin=f"{train.origin} ({what}: {len(chosen):,} rows)"
    )


def _label_names(split: Split, label: str) -> list[str]:
    """Each row's label, by which it is stratified; of several the rarest."""
    if (sets := _label_sets(split, label)) is None:
        return [str(value) for value in split.rows[label][:]]
    counts = Counter(one for row in sets for one in row)
    return [min(row, key=lambda one: (counts[one], one), default="") for row in sets]


def _label_sets(split: Split, label: str | None) -> list[list[str]] | None:
    """The labels of each row, where rows may have any number."""
    if label is None or not is_list(split.rows.features[label]):
        return None
    return [sorted({str(one) for one in row or ()}) for row in split.rows[label][:]]
