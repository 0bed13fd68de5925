"""Checkpoints: loaded, adapted, saved."""
