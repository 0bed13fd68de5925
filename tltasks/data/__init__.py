"""Data sets as rows: loaded, encoded once, and dealt into batches."""
