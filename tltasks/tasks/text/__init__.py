"""Tasks over texts."""
