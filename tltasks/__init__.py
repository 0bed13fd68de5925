"""Transfer learning on Hugging Face checkpoints, from one recipe."""

__version__ = "0.1.0"
