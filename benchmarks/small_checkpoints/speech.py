"""Small checkpoints of every speech recogniser that transformers lists, as their real ones are laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from benchmarks.small_checkpoints import Small
from tests.tiny.speech import WORDS

TASK = "automatic-speech-recognition"
WIDE = {
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 3,
    "subsampling_conv_channels": 16,
    "conv_channels": 32,
    "output_hidden_size": 32,
    "num_ctc_classes": 8,
    "subsampling_factor": 4,
    "subsample_layers": [0],
    "squeeze_factor": 2,
}
"""Sizes by the key that a configuration has for them."""


def shrink(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    """A configuration made small, with those inside it; dropout is off, so that steps are alike."""
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            shrink(value)
        elif key in WIDE and value is not None:
            setattr(config, key, WIDE[key])
        elif key == "conv_dim":
            config.conv_dim = type(value)(32 for _ in value)
        elif "dropout" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    for key, value in changes.items():
        parent, _, own = key.rpartition(".")
        setattr(getattr(config, parent) if parent else config, own, value)
    return config


def every_weight(model: PreTrainedModel) -> PreTrainedModel:
    """The model with some noise on all its weights (scales of zero would hide layers), and answers that vary."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 2.0 if "head.weight" in name else 0.02
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# ------------------------------------------------------------------------------------------ vocabularies


def pieces(special: list[str]) -> tokenizers.Tokenizer:
    """Parts of the words of the made-up clips, with a sign at their beginnings, as SentencePiece writes them."""
    letters = sorted(set("".join(WORDS)))
    core = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate([*special, "▁", *letters, "re", "▁b", "ee"])},
            merges=[("r", "e"), ("▁", "b"), ("e", "e")],
            unk_token="<unk>",
        )
    )
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return core


def letters() -> PreTrainedTokenizerBase:
    from tltasks.tasks.speech.ctc import build_tokenizer

    return build_tokenizer([" ".join(WORDS)])


def parakeet_tokenizer(special: list[str], **roles: str) -> PreTrainedTokenizerBase:
    return transformers.ParakeetTokenizer(tokenizer_object=pieces(special), unk_token="<unk>", **roles)


def lasr_tokenizer() -> PreTrainedTokenizerBase:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -2.0) for piece in ["▁", *sorted(set("".join(WORDS))), "re", "ee"]]
    return transformers.LasrTokenizer(vocab=vocabulary, extra_ids=0)


# ------------------------------------------------------------------------------------------ CTC

Made = tuple[PretrainedConfig, PreTrainedTokenizerBase, Any]
"""A configuration, a tokenizer and a feature extractor."""


def _waves(*, mask: bool = True, **changes: Any) -> Callable[[PretrainedConfig], Made]:
    """One that hears samples and writes letters."""

    def make(config: PretrainedConfig) -> Made:
        tokenizer = letters()
        shrink(config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **changes)
        return config, tokenizer, transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)

    return make


def _wav2vec2_bert(config: PretrainedConfig) -> Made:
    _, tokenizer, _ = _waves()(config)
    config.feature_projection_input_dim = 32
    return config, tokenizer, transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, stride=2)


def _parakeet(config: PretrainedConfig) -> Made:
    tokenizer = parakeet_tokenizer(["<unk>", "<pad>"], pad_token="<pad>")
    config.encoder_config.num_mel_bins = 16
    shrink(config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return config, tokenizer, transformers.ParakeetFeatureExtractor(feature_size=16)


def _lasr(config: PretrainedConfig) -> Made:
    tokenizer = lasr_tokenizer()
    config.encoder_config.num_mel_bins = 16
    shrink(config, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return config, tokenizer, transformers.LasrFeatureExtractor(feature_size=16)


def _granite(config: PretrainedConfig) -> Made:
    tokenizer = parakeet_tokenizer(["<pad>", "<unk>"], pad_token="<pad>")
    size = {"vocab_size": len(tokenizer), "encoder_config.vocab_size": len(tokenizer)}
    shrink(config, **size, pad_token_id=tokenizer.pad_token_id, **{"encoder_config.num_mel_bins": 16})
    return config, tokenizer, transformers.GraniteSpeech5FeatureExtractor(num_mel_bins=16)


def _omniasr(config: PretrainedConfig) -> Made:
    signs = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = parakeet_tokenizer(signs, bos_token="<s>", pad_token="<pad>", eos_token="</s>")
    shrink(config, vocab_size=len(tokenizer))
    return config, tokenizer, transformers.OmniASRFeatureExtractor()


LAYERED: dict[str, Any] = {"feat_extract_norm": "layer"}
CTC: dict[str, Callable[[PretrainedConfig], Made]] = {
    "granite_speech5_ctc": _granite,
    "lasr_ctc": _lasr,
    "omniasr_ctc": _omniasr,
    "parakeet_ctc": _parakeet,
    "wav2vec2-bert": _wav2vec2_bert,
    "wav2vec2": _waves(mask=False),
    "wavlm": _waves(mask=False),
    "hubert": _waves(mask=False),
    "data2vec-audio": _waves(),
}
"""What an architecture needs besides sizes; the others hear samples and write letters."""
VARIANTS: dict[str, tuple[str, Callable[[PretrainedConfig], Made]]] = {
    "wav2vec2/large": ("wav2vec2", _waves(do_stable_layer_norm=True, **LAYERED)),
    "hubert/large": ("hubert", _waves(do_stable_layer_norm=True, **LAYERED)),
}
"""Further forms of an architecture, which are computed otherwise."""


def _ctc(model_type: str, make: Callable[[PretrainedConfig], Made]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config, tokenizer, extractor = make(AutoConfig.for_model(model_type))
        model = transformers.AutoModelForCTC.from_config(config)
        every_weight(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        extractor.save_pretrained(folder)

    return save


def checkpoints() -> Iterator[Small]:
    """One for each entry of the lists of speech recognisers."""
    for model_type in MODEL_FOR_CTC_MAPPING_NAMES:
        yield Small(f"transformers/{model_type}", TASK, _ctc(model_type, CTC.get(model_type, _waves())))
    for name, (model_type, make) in VARIANTS.items():
        yield Small(f"transformers/{name}", TASK, _ctc(model_type, make))
