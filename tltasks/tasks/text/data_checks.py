"""What is odd about pairs of document and summary, counted before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from tltasks.data.splits import EncodedSplit

Counts = dict[str, float]
_TEXTS = ("document", "summary", "document_tokens", "summary_tokens")


def check_pairs(
    splits: Mapping[str, EncodedSplit], *, max_document_tokens: int, max_summary_tokens: int, splits_long: bool
) -> dict[str, Counts]:
    """Counts by split; documents are the same when they differ in case and white space alone.

    `splits_long`: outside training, documents beyond the limit are read in pieces, not cut.
    """
    digests = {name: [_digest(row["document"]) for row in _rows(split.rows)] for name, split in splits.items()}
    train = set(digests.get("train", ()))
    found: dict[str, Counts] = {}
    for name, split in splits.items():
        counts: Counts = {
            "summaries_equal_to_document": 0,
            "summaries_longer_than_document": 0,
            "repeated_documents": len(digests[name]) - len(set(digests[name])),
        }
        cut_documents = cut_summaries = 0
        for row in _rows(split.rows):
            counts["summaries_equal_to_document"] += _plain(row["document"]) == _plain(row["summary"])
            counts["summaries_longer_than_document"] += len(row["summary"]) > len(row["document"])
            cut_documents += row["document_tokens"] > max_document_tokens
            cut_summaries += row["summary_tokens"] > max_summary_tokens
        if name != "train" and "train" in splits:
            counts["documents_also_in_train"] = sum(digest in train for digest in digests[name])
        n_rows = max(1, len(split.rows))
        fate = "split" if splits_long and name != "train" else "cut"
        counts |= {f"documents_{fate}_share": cut_documents / n_rows, "summaries_cut_share": cut_summaries / n_rows}
        found[name] = counts
    return found


def _rows(rows: datasets.Dataset) -> Iterator[dict[str, Any]]:
    chosen: Iterator[dict[str, Any]] = iter(rows.select_columns(list(_TEXTS)))
    return chosen


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(_plain(text).encode(), digest_size=12).digest()
