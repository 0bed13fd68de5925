"""Tiny real models and data, saved to disk and loaded by the real `from_pretrained` and `load_dataset`."""
