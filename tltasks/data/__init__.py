"""Data sets as rows: loaded, encoded, batched."""
