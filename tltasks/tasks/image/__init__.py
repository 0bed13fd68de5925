"""Tasks over pictures."""
