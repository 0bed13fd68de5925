"""The `model` section, for every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tltasks.config.section import Name, Named

FROZEN_TRANSFORMER = "frozen-transformer"
As = Literal["frozen-transformer", "transformer"]
"""How a language checkpoint's transformer blocks are used for other input: as they are, or trained."""


class Model(Named):
    name: Name
    """Hub id (`google/vit-base-patch16-224-in21k`) or local folder (`./weights/vit`, relative to the recipe)."""
    revision: str = "main"
    """Branch, tag or commit of the Hub repository."""
    trust_remote_code: bool = False
    """Run Python code that the repository ships. Off: a checkpoint is weights, not a program."""


@dataclass(frozen=True)
class Checkpoint:
    """Origin of weights: a Hub repository at a revision, or a folder."""

    name: str
    revision: str = "main"
    trust_remote_code: bool = False
    display_name: str = ""
    """The name as the recipe writes it, for messages and cards."""

    def arguments(self) -> dict[str, str | bool]:
        """Keyword arguments for any `from_pretrained`, after the name."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
