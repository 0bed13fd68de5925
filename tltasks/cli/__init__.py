"""The command line."""

from tltasks.cli.commands import main

__all__ = ["main"]
