"""A language model's transformer blocks behind a new input layer for images or sound, with a new head.

Frozen but for their normalisation layers and positions, they are the frozen pretrained transformer of Lu et al.,
https://arxiv.org/abs/2103.05247. Importing this module makes the model known to transformers' Auto classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    ViTImageProcessor,
)
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput

from tltasks.config.model import FROZEN_TRANSFORMER
from tltasks.config.stage import Stage, StageKind
from tltasks.config.tasks.image import ImageModel
from tltasks.config.tasks.speech import SpeechModel
from tltasks.errors import CheckpointError, RecipeError

ENCODERS = {"albert", "bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
"""Language models in which each position attends to all: patches too, and their mean goes to a classifier."""
DECODERS = {"gemma", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3", "smollm3"}
"""Language models in which a position attends to those before it: the last patch's output goes to a classifier."""

SAMPLING_HZ = 16_000
STEP_SAMPLES = 320
"""Samples of one step of the spectrogram, 20 ms."""
FRAME_MS = 40
"""Milliseconds of sound in the place of a word, unless the recipe says other."""

OFFSET_POSITIONS = {"camembert", "mpnet", "roberta", "xlm-roberta"}
"""Those whose first position comes after that of the padding token."""


class _BlocksConfig(PretrainedConfig):  # type: ignore[misc]
    """The language model's configuration."""

    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {"backbone_config": AutoConfig}

    def __init__(
        self, backbone_config: dict[str, object] | PretrainedConfig | None = None, frozen: bool = True, **others: object
    ) -> None:
        given = {"model_type": "bert"} if backbone_config is None else backbone_config
        self.backbone_config: PretrainedConfig = AutoConfig.for_model(**given) if isinstance(given, dict) else given
        self.frozen = frozen
        """Training leaves the blocks as they are, but for their normalisation layers."""
        super().__init__(**others)


class FrozenTransformerConfig(_BlocksConfig):
    """The layers around the blocks for images."""

    model_type = "frozen-transformer"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        num_channels: int = 3,
        pooling: str = "mean",
        **others: Any,
    ) -> None:
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.pooling = pooling
        """`mean` of all positions, or the `last`."""
        super().__init__(**others)


class FrozenTransformerCtcConfig(_BlocksConfig):
    """The layers around the blocks for speech."""

    model_type = "frozen-transformer-ctc"

    def __init__(
        self, feature_size: int = 160, steps_per_position: int = 2, vocab_size: int = 32, **others: Any
    ) -> None:
        self.feature_size = feature_size
        """Numbers in a step of 20 ms: two frames of 80 mel bins."""
        self.steps_per_position = steps_per_position
        """Steps that take the place of one word."""
        self.vocab_size = vocab_size
        super().__init__(**others)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples of one position, by which transformers' pipeline tells times."""
        return STEP_SAMPLES * self.steps_per_position

    @property
    def longest_seconds(self) -> float:
        """Seconds that the blocks have positions for."""
        most = _most_positions(self.backbone_config)
        return float("inf") if most is None else most * self.inputs_to_logits_ratio / SAMPLING_HZ


class _Blocks(PreTrainedModel):  # type: ignore[misc]
    """The blocks of a language model in `backbone`, and new layers around them."""

    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: _BlocksConfig) -> None:
        super().__init__(config)
        backbone = AutoModel.from_config(config.backbone_config)
        self.width: int = backbone.get_input_embeddings().embedding_dim
        """Width of what takes the place of a word's vector; ALBERT's and ELECTRA's are narrower than their blocks."""
        self.backbone = _without_words(backbone)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *arguments: object, config: PretrainedConfig | None = None, **options: object
    ) -> PreTrainedModel:
        """The model as it was saved; or, where `name` is a language checkpoint, its blocks in a model of `config`."""
        tells = options.pop("output_loading_info", False)
        where = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        if config is None or isinstance(AutoConfig.from_pretrained(name, **where), _BlocksConfig):
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


class FrozenTransformerForImageClassification(_Blocks):
    """Patches through one linear layer, the language model's blocks, and a linear head."""

    config_class = FrozenTransformerConfig
    main_input_name = "pixel_values"
    input_layer = ("patch_embeddings",)
    """Modules that no language checkpoint has weights for, besides the head."""

    def __init__(self, config: FrozenTransformerConfig) -> None:
        super().__init__(config)
        self.patch_embeddings = nn.Conv2d(config.num_channels, self.width, config.patch_size, stride=config.patch_size)
        self.classifier = nn.Linear(config.backbone_config.hidden_size, config.num_labels)
        self.post_init()
        self._freeze()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **others: object) -> ImageClassifierOutput:
        """Logits [images, labels] of pixels [images, channels, image_size, image_size]."""
        patches = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        hidden = self.backbone(inputs_embeds=patches).last_hidden_state
        pooled = hidden[:, -1] if self.config.pooling == "last" else hidden.mean(1)
        logits = self.classifier(pooled)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class FrozenTransformerForCTC(_Blocks):
    """Stretches of a spectrogram through one linear layer, the language model's blocks, and a linear head for CTC."""

    config_class = FrozenTransformerCtcConfig
    main_input_name = "input_features"
    input_layer = ("frame_embeddings",)

    def __init__(self, config: FrozenTransformerCtcConfig) -> None:
        super().__init__(config)
        self.frame_embeddings = nn.Linear(config.feature_size * config.steps_per_position, self.width)
        self.lm_head = nn.Linear(config.backbone_config.hidden_size, config.vocab_size)
        self.post_init()
        self._freeze()

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **others: object) -> CausalLMOutput:
        """Logits [clips, positions, vocabulary] of features [clips, steps, feature_size], zero where they are padding.

        The last position of a clip is filled up with zeros.
        """
        n = self.config.steps_per_position
        filled = nn.functional.pad(input_features, (0, 0, 0, -input_features.shape[1] % n))
        positions = filled.reshape(len(filled), -1, n * self.config.feature_size)
        if attention_mask is not None:
            attention_mask = attention_mask[:, ::n]
        hidden = self.backbone(
            inputs_embeds=self.frame_embeddings(positions), attention_mask=attention_mask
        ).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden))

    def _get_feat_extract_output_lengths(self, n_steps: Tensor) -> Tensor:
        """Positions of so many steps, under the name that transformers' own CTC models have for it."""
        n: int = self.config.steps_per_position
        return (n_steps + n - 1) // n


def _without_words(backbone: PreTrainedModel) -> PreTrainedModel:
    """Drop what images make no use of, so that it is neither saved nor counted: word embeddings and the pooler."""
    backbone.set_input_embeddings(None)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


def _adapts(module: nn.Module) -> bool:
    """Tell whether a module of the language model is trained even where its blocks are frozen."""
    return isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()


def wrap_for_images(
    config: PretrainedConfig, keys: ImageModel, stage: Stage, kind: StageKind, *, display_name: str
) -> PretrainedConfig:
    """The configuration of a model of its blocks, by the recipe's `as`; one that is such a model's stays so.

    Raises CheckpointError for architectures that are no known language model, and RecipeError for stages that would
    leave the new input layer at random.
    """
    if isinstance(config, FrozenTransformerConfig):
        config.frozen = keys.as_ == FROZEN_TRANSFORMER
        return config
    _check_language_model(config, keys, stage, kind, display_name=display_name)
    assert keys.image_size is not None
    assert keys.patch_size is not None
    n_patches, most = (keys.image_size // keys.patch_size) ** 2, _most_positions(config)
    if most is not None and n_patches > most:
        raise RecipeError(
            f"model.patch_size: {n_patches} patches are more than {display_name} has positions for ({most}); "
            "set a larger patch_size, or a smaller image_size."
        )
    return FrozenTransformerConfig(
        backbone_config=config,
        image_size=keys.image_size,
        patch_size=keys.patch_size,
        pooling="mean" if config.model_type in ENCODERS else "last",
        frozen=keys.as_ == FROZEN_TRANSFORMER,
    )


def wrap_for_speech(
    config: PretrainedConfig, keys: SpeechModel, stage: Stage, kind: StageKind, *, display_name: str
) -> PretrainedConfig:
    """Likewise for speech, with a vocabulary to be told."""
    if isinstance(config, FrozenTransformerCtcConfig):
        config.frozen = keys.as_ == FROZEN_TRANSFORMER
        return config
    _check_language_model(config, keys, stage, kind, display_name=display_name)
    if kind.head != "new":
        raise RecipeError(
            f"stage {stage.stage}: {display_name} is a language model without a head for speech; "
            "`stage: transfer` builds a vocabulary from the training text and puts a new head on it."
        )
    return FrozenTransformerCtcConfig(
        backbone_config=config,
        steps_per_position=(keys.frame_ms or FRAME_MS) * SAMPLING_HZ // (1000 * STEP_SAMPLES),
        frozen=keys.as_ == FROZEN_TRANSFORMER,
    )


def _check_language_model(
    config: PretrainedConfig, keys: ImageModel | SpeechModel, stage: Stage, kind: StageKind, *, display_name: str
) -> None:
    """Raise for what is no known language model or would not be trained in full; make ready what is."""
    if config.model_type not in ENCODERS | DECODERS:
        raise CheckpointError(
            f"model {display_name}: is of the type {config.model_type}; `as: {keys.as_}` takes the blocks of a "
            f"language model: {', '.join(sorted(ENCODERS | DECODERS))}."
        )
    if kind.cached or stage.adapt.method != "full":
        wanted = "stage: probe" if kind.cached else f"adapt: {stage.adapt.method}"
        raise RecipeError(
            f"model.as: {keys.as_} puts a new input layer before {display_name}, which `{wanted}` would leave at "
            "random. Use `adapt: full` (what is frozen stays so), and go on from that stage with `start: previous`."
        )
    config.use_cache = False
    config._name_or_path = ""  # a folder of this machine, which would be saved


def _most_positions(config: PretrainedConfig) -> int | None:
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is not None and config.model_type in OFFSET_POSITIONS:
        most -= config.pad_token_id + 1
    return most


def image_processor(config: FrozenTransformerConfig) -> ViTImageProcessor:
    """Resizing to the model's square, pixels from -1 to 1."""
    side = {"height": config.image_size, "width": config.image_size}
    return ViTImageProcessor(size=side)


def feature_extractor(config: FrozenTransformerCtcConfig) -> SeamlessM4TFeatureExtractor:
    """Log-mel filter banks, each bin with zero mean and unit variance over the clip: two frames of 10 ms to a step."""
    n_bins = config.feature_size // 2
    return SeamlessM4TFeatureExtractor(feature_size=n_bins, num_mel_bins=n_bins, sampling_rate=SAMPLING_HZ, stride=2)


AutoConfig.register(FrozenTransformerConfig.model_type, FrozenTransformerConfig, exist_ok=True)
AutoConfig.register(FrozenTransformerCtcConfig.model_type, FrozenTransformerCtcConfig, exist_ok=True)
AutoModelForImageClassification.register(
    FrozenTransformerConfig, FrozenTransformerForImageClassification, exist_ok=True
)
AutoModelForCTC.register(FrozenTransformerCtcConfig, FrozenTransformerForCTC, exist_ok=True)
