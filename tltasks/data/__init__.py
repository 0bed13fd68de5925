"""Data sets as rows: loaded, encoded once, and dealt into batches."""

from tltasks.data.batching import micro_batches, plan_epoch
from tltasks.data.encoding import encode_split
from tltasks.data.loading import load_splits
from tltasks.data.splits import EncodedSplit, Split

__all__ = ["EncodedSplit", "Split", "encode_split", "load_splits", "micro_batches", "plan_epoch"]
