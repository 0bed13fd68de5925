"""A language model's transformer blocks behind a new input layer for images, with a new head.

Frozen but for their normalisation layers and positions, they are the frozen pretrained transformer of Lu et al.,
https://arxiv.org/abs/2103.05247. Importing this module makes the model known to transformers' Auto classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    ViTImageProcessor,
)
from transformers.modeling_outputs import ImageClassifierOutput

from tltasks.errors import CheckpointError, RecipeError
from tltasks.model_keys import FROZEN_TRANSFORMER, ImageModel
from tltasks.stage_keys import Stage
from tltasks.stages import Row

ENCODERS = {"albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
"""Language models in which each position attends to all: patches too, and their mean goes to the head."""
DECODERS = {"gemma", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3", "smollm3"}
"""Language models in which a position attends to those before it: the last patch's output goes to the head."""

OFFSET_POSITIONS = {"camembert", "mpnet", "roberta", "xlm-roberta"}
"""Those whose first position comes after that of the padding token."""


class FrozenTransformerConfig(PretrainedConfig):  # type: ignore[misc]
    """The language model's configuration, and that of what is put around it."""

    model_type = "frozen-transformer"
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    def __init__(
        self,
        backbone_config: dict[str, Any] | PretrainedConfig | None = None,
        image_size: int = 224,
        patch_size: int = 16,
        num_channels: int = 3,
        pooling: str = "mean",
        frozen: bool = True,
        **others: Any,
    ) -> None:
        given = {"model_type": "bert"} if backbone_config is None else backbone_config
        self.backbone_config: PretrainedConfig = AutoConfig.for_model(**given) if isinstance(given, dict) else given
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.pooling = pooling
        """`mean` of all positions, or the `last`."""
        self.frozen = frozen
        """Whether training leaves the blocks as they are, but for their normalisation layers."""
        super().__init__(**others)


class FrozenTransformerForImageClassification(PreTrainedModel):  # type: ignore[misc]
    """Patches through one linear layer, the language model's blocks, and a linear head."""

    config_class = FrozenTransformerConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    input_layer = ("patch_embeddings",)
    """Modules that no language checkpoint has weights for, besides the head."""

    def __init__(self, config: FrozenTransformerConfig) -> None:
        super().__init__(config)
        backbone = AutoModel.from_config(config.backbone_config)
        width = backbone.get_input_embeddings().embedding_dim
        self.patch_embeddings = nn.Conv2d(config.num_channels, width, config.patch_size, stride=config.patch_size)
        self.backbone = _without_words(backbone)
        self.classifier = nn.Linear(config.backbone_config.hidden_size, config.num_labels)
        self.post_init()
        self._freeze()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **others: Any) -> ImageClassifierOutput:
        """Logits [images, labels] of pixels [images, channels, image_size, image_size]."""
        patches = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        hidden = self.backbone(inputs_embeds=patches).last_hidden_state
        pooled = hidden[:, -1] if self.config.pooling == "last" else hidden.mean(1)
        logits = self.classifier(pooled)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, config: Any = None, **options: Any) -> Any:
        """The model as it was saved; or, where `name` is a language checkpoint, its blocks in a model of `config`."""
        tells = options.pop("output_loading_info", False)
        where = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        if config is None or isinstance(AutoConfig.from_pretrained(name, **where), FrozenTransformerConfig):
            model, info = super().from_pretrained(name, *arguments, config=config, output_loading_info=True, **options)
        else:
            backbone, info = AutoModel.from_pretrained(
                name, config=config.backbone_config, output_loading_info=True, **options
            )
            found = {key: f"backbone.{key}" for key in backbone.state_dict()}
            model = cls(config).eval()
            model.backbone = _without_words(backbone)
            own = model.state_dict().keys()
            lacking = {named for key, named in found.items() if named in own and key in info["missing_keys"]}
            info = {
                "missing_keys": lacking | {key for key in own if not key.startswith("backbone.")},
                "unexpected_keys": {*info["unexpected_keys"], *(key for key in found if found[key] not in own)},
                "mismatched_keys": {(f"backbone.{key}", *shapes) for key, *shapes in info["mismatched_keys"]},
            }
        model._freeze()  # loading makes every weight train (transformers 5.24, core_model_loading.py)
        return (model, info) if tells else model

    def _freeze(self) -> None:
        """Leave in training what is new, and of the language model its normalisation layers and position tables."""
        trains = {id(p) for module in self.backbone.modules() if _adapts(module) for p in module.parameters()}
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(not self.config.frozen or id(parameter) in trains)


def _without_words(backbone: PreTrainedModel) -> PreTrainedModel:
    """Drop what images make no use of, so that it is neither saved nor counted: word embeddings and the pooler."""
    backbone.set_input_embeddings(None)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def _adapts(module: nn.Module) -> bool:
    """Whether a module of the language model is trained even where its blocks are frozen."""
    return isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()


def wrap_language_model(
    config: PretrainedConfig, keys: ImageModel, stage: Stage, row: Row, *, shown: str
) -> PretrainedConfig:
    """The configuration of a model of its blocks, by the recipe's `as`; one that is such a model's stays so.

    Raises CheckpointError for architectures that are no known language model, and RecipeError for stages that would
    leave the new input layer at random.
    """
    frozen = keys.as_ == FROZEN_TRANSFORMER
    if isinstance(config, FrozenTransformerConfig):
        config.frozen = frozen
        return config
    kind = config.model_type
    if kind not in ENCODERS | DECODERS:
        raise CheckpointError(
            f"model {shown}: is of the type {kind}; `as: {keys.as_}` takes the blocks of a language model: "
            f"{', '.join(sorted(ENCODERS | DECODERS))}."
        )
    if row.cached or stage.adapt.method != "full":
        wanted = "stage: probe" if row.cached else f"adapt: {stage.adapt.method}"
        raise RecipeError(
            f"model.as: {keys.as_} puts a new input layer before {shown}, which `{wanted}` would leave at random. "
            "Use `adapt: full` (what is frozen stays so), and go on from that stage with `start: previous`."
        )
    assert keys.image_size is not None
    assert keys.patch_size is not None
    n_patches, most = (keys.image_size // keys.patch_size) ** 2, getattr(config, "max_position_embeddings", None)
    if most is not None and kind in OFFSET_POSITIONS:
        most -= config.pad_token_id + 1
    if most is not None and n_patches > most:
        raise RecipeError(
            f"model.patch_size: {n_patches} patches are more than {shown} has positions for ({most}); "
            "set a larger patch_size, or a smaller image_size."
        )
    config.use_cache = False
    config._name_or_path = ""  # a folder of this machine, which would be saved
    return FrozenTransformerConfig(
        backbone_config=config,
        image_size=keys.image_size,
        patch_size=keys.patch_size,
        pooling="mean" if kind in ENCODERS else "last",
        frozen=frozen,
    )


def image_processor(config: FrozenTransformerConfig) -> ViTImageProcessor:
    """Resizing to the model's square, pixels from -1 to 1."""
    side = {"height": config.image_size, "width": config.image_size}
    return ViTImageProcessor(size=side)


AutoConfig.register(FrozenTransformerConfig.model_type, FrozenTransformerConfig, exist_ok=True)
AutoModelForImageClassification.register(
    FrozenTransformerConfig, FrozenTransformerForImageClassification, exist_ok=True
)
