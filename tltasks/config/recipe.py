"""The recipe: what to do, as a frozen tree read from one YAML file.

Pure data. Reading and checking a recipe imports neither torch nor any Hub library, so that
`tltasks check` answers at once. What a task adds to the shared keys is one row of `tltasks.config.tasks`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, SerializeAsAny

from tltasks.config.data import Data
from tltasks.config.model import Model
from tltasks.config.section import Name, RepoName, Section
from tltasks.config.stage import Stage


class Emissions(Section):
    """What the card's estimate of carbon dioxide is made of (Lacoste et al., https://arxiv.org/abs/1910.09700)."""

    watts: Annotated[float, Field(gt=0)]
    """Power that one device draws with its share of the machine."""
    grams_per_kwh: Annotated[float, Field(ge=0)]
    """Grams of CO2-equivalent for each kilowatt-hour of the local grid."""
    location: str | None = None
    """Country or region of the grid, such as `France`."""

    def grams(self, seconds: float, *, devices: int) -> float:
        """Of so many devices for so long."""
        return self.watts * devices * seconds / 3.6e6 * self.grams_per_kwh


class Hub(Section):
    repo: RepoName | None = None
    """Repository to push to, `user/name`. `--push` needs it."""
    private: bool = True
    publish: Literal["adapter", "merged"] = "adapter"
    """For PEFT: the adapter alone, or merged into the checkpoint's weights. Full fine-tuning and objectives
    without labels always publish all."""
    licence: str | None = None
    """Licence of the published weights, a Hub identifier such as apache-2.0. Unset: the base model's, where known."""
    language: list[str] = []
    """Language codes for the card."""
    emissions: Emissions | None = None
    """Power and grid, for the card's estimate of carbon dioxide. Unset: the card has time and hardware alone."""


class Recipe(Section):
    """One experiment: stages in order, and what they share."""

    task: str
    """Hub pipeline tag of the task."""
    model: SerializeAsAny[Model] | None = None
    data: SerializeAsAny[Data] | None = None
    stages: Annotated[list[SerializeAsAny[Stage]], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    output: Name
    """Results folder, relative to the working directory."""
    hub: Hub = Hub()
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Where metrics go besides metrics.jsonl."""

    _places: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)
    """`file:line:column` of each key that was written."""
    _written: dict[str, str] = PrivateAttr(default_factory=dict)
    """Local paths as they were written, by the absolute ones that they have become."""
