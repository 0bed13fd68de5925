"""One task as the rest of the house knows it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tltasks.config.data import Data
    from tltasks.config.model import Model
    from tltasks.config.stage import Stage


@dataclass(frozen=True)
class Input:
    """What a visitor of the demo, or a folder of data, gives to a task."""

    kind: Literal["image", "audio", "text"]
    label: str
    """What the demo calls its field."""
    placeholder: str = ""


IMAGE = Input("image", "Image")
AUDIO = Input("audio", "Recording")
TEXT = Input("text", "Text", placeholder="Paste a text")


@dataclass(frozen=True)
class TaskSpec:
    """A task's row: the code that does it, what a recipe says of it, and what the commands ask of it."""

    tag: str
    """Hub pipeline tag; or the name of an objective that needs no labels."""
    summary: str
    """One line for people."""
    adapter: str
    """`module:Class` of its adapter, imported when a recipe names the task."""
    model: type[Model]
    data: type[Data]
    stage: type[Stage]
    input: Input
    annotation: Literal["classes", "text"] | None = None
    """What inputs in a folder come with when `push-data` publishes them for this task."""
    auto_mappings: tuple[str, ...] = ()
    """transformers' lists of the classes that serve it, in its modeling_auto.py."""
    own_models: frozenset[str] = frozenset()
    """This package's classes that serve it."""

    @property
    def card_template(self) -> str:
        """File in hub_cards/ that its model cards are made from."""
        return f"{self.tag}.md.jinja"

    @property
    def is_self_supervised(self) -> bool:
        """True for an objective, which trains an encoder for other tasks and gives no answers itself."""
        return not self.auto_mappings
