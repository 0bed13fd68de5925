"""The `adapt` section of a stage: which weights are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tltasks.config.section import Conflict, PositiveFloat, PositiveInt, Section, Share


class Lora(Section):
    """Low-rank adaptation. Source: Hu et al., https://arxiv.org/abs/2106.09685."""

    rank: PositiveInt = 16
    """Width of the two matrices whose product is added to a weight."""
    alpha: PositiveFloat | None = None
    """Scale of the update is alpha / rank. Unset: twice the rank."""
    dropout: Share = 0.0
    """Share of the adapter's inputs that training drops."""
    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Module name endings to adapt. `auto`: every linear layer of the backbone, or every convolution of a conv net."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank). Source: Kalajdzievski, https://arxiv.org/abs/2312.03732."""
    init: Literal["zero", "gaussian", "pissa", "olora", "orthogonal"] = "zero"
    """How the two factors start. zero: their product is. gaussian: likewise, the other factor drawn from a normal
    distribution. pissa: the weight's largest singular vectors, https://arxiv.org/abs/2404.02948. olora: by its QR
    decomposition, https://arxiv.org/abs/2406.01775. orthogonal: random directions at right angles. The last three
    take their start out of the weight, so results are published merged."""


class AdaLora(Section):
    """Low-rank adaptation whose ranks go to the layers that need them. Source: Zhang et al.,
    https://arxiv.org/abs/2303.10512."""

    target_r: PositiveInt = 8
    """Of a layer at the end, on average."""
    init_r: PositiveInt = 12
    """Of every layer at the start."""
    alpha: PositiveFloat | None = None
    """Scale of the update is alpha / init_r. Unset: twice the initial rank."""
    dropout: Share = 0.0
    """Share of the adapter's inputs that training drops."""
    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """As for LoRA."""
    initial_share: Share = 0.1
    """Of the steps, before any rank is taken away."""
    final_share: Share = 0.3
    """Of the steps, with the ranks as they will be; only weights of these are kept as the best."""
    interval: PositiveInt = 1
    """Steps between two allocations."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty on singular vectors that are not at right angles."""

    def conflicts(self) -> Iterator[Conflict]:
        if self.target_r >= self.init_r:
            yield Conflict(f"`target_r` {self.target_r} is not below `init_r` {self.init_r}: none could be taken away")
        if self.initial_share + self.final_share >= 1:
            yield Conflict("`initial_share` and `final_share` leave no steps in which ranks are taken away")


class Ia3(Section):
    """(IA)³: learned rescaling of activations. Source: Liu et al., https://arxiv.org/abs/2205.05638."""

    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Modules that are scaled, by the ends of their names. auto: those that the model's trial finds."""


class PromptTuning(Section):
    """Vectors are learnt that stand before the embedded text of an encoder-decoder. Source: Lester et al.,
    https://arxiv.org/abs/2104.08691."""

    tokens: PositiveInt = 20
    """Vectors that are learnt and stand before each input."""


class BitFit(Section):
    """Only biases are trained, and a new head. Source: Ben Zaken et al., https://arxiv.org/abs/2106.10199."""


class Full(Section):
    """Every weight is trained, except those that `freeze` names."""


class Head(Section):
    """Only the head is trained."""


class Peft(BaseModel):
    """Any other PEFT method; further keys go to its configuration class."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    type: str
    """PEFT's name of the method: LOHA, LOKR, OFT, BOFT, VERA, FOURIERFT, HRA, …"""


AdaptMethod = Literal["full", "head", "lora", "dora", "adalora", "ia3", "bitfit", "prompt"]


class Adapt(Section):
    """Choice of what is trained: exactly one of the keys."""

    full: Full | None = None
    head: Head | None = None
    lora: Lora | None = None
    dora: Lora | None = None
    """Weight-decomposed LoRA. Source: Liu et al., https://arxiv.org/abs/2402.09353."""
    adalora: AdaLora | None = None
    ia3: Ia3 | None = None
    bitfit: BitFit | None = None
    prompt: PromptTuning | None = None
    peft: Peft | None = None

    def conflicts(self) -> Iterator[Conflict]:
        if len(self.model_fields_set) != 1:
            names = ", ".join(f"`{name}`" for name in type(self).model_fields)
            yield Conflict(f"takes exactly one of {names}")

    @property
    def method(self) -> str:
        """Name of the one key that is set."""
        return next((name for name in type(self).model_fields if name in self.model_fields_set), "full")

    @property
    def is_peft(self) -> bool:
        return self.method not in {"full", "head", "bitfit"}

    @property
    def is_virtual(self) -> bool:
        """True where what is learnt is no change of weights, so that it cannot be merged into them."""
        return self.method == "prompt"

    @property
    def stands_alone(self) -> bool:
        """True where the adapter can be put on the checkpoint as it is, rather than on what it left of it."""
        lora = self.lora or self.dora
        return self.is_peft and (lora is None or lora.init in {"zero", "gaussian"})


def _method_by_name(value: object) -> object:
    """`adapt: full` is `adapt: {full: {}}`; `adapt: {lora: null}` is `adapt: {lora: {}}`."""
    if isinstance(value, str):
        value = {value: {}}
    if isinstance(value, dict):
        if "qlora" in value:
            raise ValueError("QLoRA is `lora` beside weights in 4 bits: `adapt: lora` with `base_dtype: nf4`")
        return {k: {} if v is None else v for k, v in value.items()}
    return value
