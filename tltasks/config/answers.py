"""Wishes for answers, beyond what a model says by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """Wishes for a trained model's answers; one that does not serve them says so before its weights are loaded."""

    words: bool = False
    """The words of a transcript, each with its start, end and confidence."""
    prompt: str | None = None
    """What was said before, or how to write: an example of the text."""
    hotwords: str | None = None
    """Names and terms to expect."""
    vad: bool = False
    """Only where there is speech a transcript is written."""


USUAL = Asked(vad=True)
"""What `predict` and the demo ask for."""
