"""Experiments over recipes: which checkpoint, which method, does it transfer, and how sure is that."""
