"""Small checkpoints of every speech recogniser that transformers lists, as their real ones are laid out."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CTC_MAPPING_NAMES,
    MODEL_FOR_RNNT_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TDT_MAPPING_NAMES,
)
from transformers.utils import is_mistral_common_available, is_torchaudio_available

from benchmarks.small_checkpoints import Small
from benchmarks.small_checkpoints.row import METHODS
from tests.tiny.speech import WORDS, save_moonshine, save_speech_to_text, save_whisper

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
    "feature_projection_input_dim": 32,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 64,
    "max_position_embeddings": 256,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.2,
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
            setattr(config, key, WIDE[key])  # a spread of 0.02 in layers so narrow would make all answers alike
        elif key == "layer_types" and value:
            config.layer_types = value[: WIDE["num_hidden_layers"]]
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
KEPT = {"granite_speech5_ctc", "lasr_ctc", "omniasr_ctc", "parakeet_ctc"}
"""Those whose vocabulary, of parts of words, is kept; the others get one of letters, and a new head."""


def _mms(folder: Path) -> None:
    """MMS: layers, a head and a vocabulary for each language, those of a second one in a file of their own."""
    torch.manual_seed(0)
    letters = sorted(set("".join(WORDS)))
    first = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}
    second = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *reversed(letters), "é"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({"eng": first, "fra": second}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), target_lang="eng")
    config = shrink(AutoConfig.for_model("wav2vec2"), do_stable_layer_norm=True, adapter_attn_dim=8, **LAYERED)
    for name, n in (("other", len(second)), ("model", len(first))):
        config.vocab_size, config.pad_token_id = n, tokenizer.pad_token_id
        model = every_weight(transformers.AutoModelForCTC.from_config(config))
        if name == "other":
            save_file(
                {key: value.contiguous() for key, value in model._get_adapters().items()},
                folder / "adapter.fra.safetensors",
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


VARIANTS: dict[str, tuple[str, Callable[[PretrainedConfig], Made]]] = {
    "wav2vec2/large": ("wav2vec2", _waves(do_stable_layer_norm=True, **LAYERED)),
    "hubert/large": ("hubert", _waves(do_stable_layer_norm=True, **LAYERED)),
}
"""Further forms of an architecture, which are computed otherwise."""


def _parakeet_transducer(config: PretrainedConfig) -> Made:
    tokenizer = parakeet_tokenizer(["<unk>", "<pad>", "<blank>"], pad_token="<pad>")
    processor = transformers.ParakeetProcessor(transformers.ParakeetFeatureExtractor(feature_size=16), tokenizer)
    return _transducer(config, tokenizer), tokenizer, processor


def _nemotron(processor: type[ProcessorMixin]) -> Callable[[PretrainedConfig], Made]:
    def make(config: PretrainedConfig) -> Made:
        tokenizer = parakeet_tokenizer(["<unk>", "<pad>", "<blank>"], pad_token="<pad>")
        extractor = transformers.NemotronAsrStreamingFeatureExtractor(feature_size=16)
        config.encoder_config.sliding_window, config.encoder_config.default_num_lookahead_tokens = 9, 3
        return _transducer(config, tokenizer), tokenizer, processor(extractor, tokenizer)

    return make


def _transducer(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<blank>"]})
    config.encoder_config.num_mel_bins = 16
    blank = tokenizer.convert_tokens_to_ids("<blank>")
    size = {"vocab_size": len(tokenizer), "blank_token_id": blank, "pad_token_id": tokenizer.pad_token_id}
    return shrink(config, **size, decoder_hidden_size=16)


TRANSDUCERS: dict[str, Callable[[PretrainedConfig], Made]] = {
    "nemotron3_5_asr": _nemotron(transformers.Nemotron3_5AsrProcessor),
    "nemotron_asr_streaming": _nemotron(transformers.NemotronAsrStreamingProcessor),
    "parakeet_rnnt": _parakeet_transducer,
    "parakeet_tdt": _parakeet_transducer,
}


def _transducing(model_type: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config, tokenizer, processor = TRANSDUCERS[model_type](AutoConfig.for_model(model_type))
        is_tdt = model_type in MODEL_FOR_TDT_MAPPING_NAMES
        model = (transformers.AutoModelForTDT if is_tdt else transformers.AutoModelForRNNT).from_config(config)
        model.generation_config.decoder_start_token_id = config.blank_token_id
        model.generation_config._from_model_config = False
        every_weight(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)

    return save


def _ctc(model_type: str, make: Callable[[PretrainedConfig], Made]) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config, tokenizer, extractor = make(AutoConfig.for_model(model_type))
        model = transformers.AutoModelForCTC.from_config(config)
        every_weight(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        extractor.save_pretrained(folder)

    return save


# ------------------------------------------------------------------------------------------ encoder-decoders


def sentence_pieces(file: Path, *, kind: str = "unigram") -> Path:
    """A vocabulary of SentencePiece's in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    words = [" ".join(WORDS)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(file.with_suffix("")),
        vocab_size=32,
        hard_vocab_limit=False,
        model_type=kind,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    file.with_suffix(".vocab").unlink()
    return file


def _seamless(config: PretrainedConfig, folder: Path) -> Made:
    core = pieces(["<pad>", "<unk>", "<s>", "</s>"])
    merges = [("r", "e"), ("▁", "b"), ("e", "e")]
    languages = [f"__{code}__" for code in ("eng", "fra", "spa")]
    tokenizer = transformers.SeamlessM4TTokenizer(
        vocab=core.get_vocab(), merges=merges, additional_special_tokens=languages
    )
    shrink(config, vocab_size=len(tokenizer))
    return config, tokenizer, transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, stride=2)


def _seamless_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {"text_decoder_lang_to_code_id": {c: tokenizer.convert_tokens_to_ids(f"__{c}__") for c in ("eng", "fra")}}


def _speecht5(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = transformers.SpeechT5Tokenizer(str(sentence_pieces(folder / "spm_char.model", kind="char")))
    shrink(config, vocab_size=len(tokenizer))
    return config, tokenizer, transformers.SpeechT5FeatureExtractor(return_attention_mask=True)


def _encoder_decoder(config: PretrainedConfig, folder: Path) -> Made:
    """A wav2vec 2.0 that a GPT-2 listens to, as they are put together from two checkpoints."""
    core = pieces(["<unk>"])
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **roles)
    end = tokenizer.eos_token_id
    decoder = shrink(AutoConfig.for_model("gpt2"), vocab_size=len(tokenizer), eos_token_id=end, bos_token_id=end)
    encoder = shrink(AutoConfig.for_model("wav2vec2"), do_stable_layer_norm=True, **LAYERED)
    config = transformers.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = tokenizer.bos_token_id, end, end
    return config, tokenizer, transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)


def _moonshine_streaming(config: PretrainedConfig, folder: Path) -> Made:
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces(["<unk>", "<s>", "</s>"]), **roles)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    shrink(config, vocab_size=len(tokenizer), decoder_start_token_id=tokenizer.bos_token_id, **ids)
    config.encoder_config.sliding_windows, config.num_key_value_heads = [[16, 4], [16, 0]], 2
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return config, tokenizer, transformers.MoonshineStreamingProcessor(extractor, tokenizer)


# ---------------------------------------------------------------------------------- those that are asked

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'audio' %}AUDIO{% elif part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'language' %}<|lang:{{ part.language }}|>{% endif %}{% endfor %}"
    "{% if not (loop.last and message.role == 'assistant') %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A request as language models have it."""
CANARY = (
    "<|startofcontext|><|startoftranscript|><|emo:undefined|>{% for part in messages[0].content %}"
    "{% if part.type == 'text' %}<|{{ part.source_language }}|><|{{ part.target_language }}|>{% endif %}{% endfor %}"
    "<|pnc|><|noitn|><|notimestamp|><|nodiarize|>"
)
MARKS = ["<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|es|>", "<|pnc|>", "<|nopnc|>"]
MARKS += ["<|noitn|>", "<|notimestamp|>", "<|nodiarize|>"]


def chat_tokenizer(marks: list[str], **roles: str) -> PreTrainedTokenizerBase:
    core = pieces(["<unk>", "<pad>", "<|im_end|>", "<s>"])
    own = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<|im_end|>", "bos_token": "<s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **own, **roles)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}


def _canary(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = chat_tokenizer(MARKS)
    tokenizer.add_bos_token = False
    config.encoder_config.num_mel_bins = 16
    start = tokenizer.convert_tokens_to_ids("<|startofcontext|>")
    size = {"vocab_size": len(tokenizer), "decoder_config.vocab_size": len(tokenizer)}
    shrink(config, **size, decoder_start_token_id=start, **_ids(tokenizer))
    for name, value in _ids(tokenizer).items():
        setattr(config.decoder_config, name, value)
    extractor = transformers.ParakeetFeatureExtractor(feature_size=16)
    return config, tokenizer, transformers.CanaryProcessor(extractor, tokenizer, chat_template=CANARY)


def _cohere(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = chat_tokenizer(MARKS)
    config.encoder_config.num_mel_bins = 16
    start = tokenizer.convert_tokens_to_ids("▁")
    shrink(config, vocab_size=len(tokenizer), decoder_start_token_id=start, **_ids(tokenizer))
    extractor = transformers.CohereAsrFeatureExtractor(feature_size=16)
    return config, tokenizer, transformers.CohereAsrProcessor(extractor, tokenizer)


def _omniasr_llm(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = chat_tokenizer(["<extra_id_1>", "<|lang:eng_latn|>", "<|lang:auto|>"])
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    config.audio_config.initializer_range = 0.2
    shrink(config, audio_token_id=tokenizer.convert_tokens_to_ids("<extra_id_1>"), **core, **_ids(tokenizer))
    template = (
        "{% for part in messages[0].content %}{% if part.type == 'audio' %}<extra_id_1>{% endif %}{% endfor %}"
        "{% for part in messages[0].content %}{% if part.type == 'language' %}<|lang:{{ part.language }}|>{% endif %}"
        "{% endfor %}<s>"
    )
    extractor = transformers.OmniASRFeatureExtractor()
    return config, tokenizer, transformers.OmniASRProcessor(extractor, tokenizer, chat_template=template)


def _qwen3_asr(config: PretrainedConfig, folder: Path) -> Made:
    marks = ["<|im_start|>", "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>", "<asr_text>", "<timestamp>"]
    roles = {"audio_token": marks[1], "audio_bos_token": marks[2], "audio_eos_token": marks[3]}
    tokenizer = chat_tokenizer([*marks], extra_special_tokens=roles)
    config.audio_config.num_mel_bins, config.audio_config.output_dim = 16, 32
    config.audio_config.downsample_hidden_size = 16
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    audio = {"audio_token_id": tokenizer.convert_tokens_to_ids("<|audio_pad|>")}
    shrink(config, **audio, **core)
    extractor = transformers.Qwen3ASRFeatureExtractor(feature_size=16)
    template = CHAT.replace("AUDIO", "<|audio_start|><|audio_pad|><|audio_end|>")
    return config, tokenizer, transformers.Qwen3ASRProcessor(extractor, tokenizer, chat_template=template)


def _vibevoice_asr(config: PretrainedConfig, folder: Path) -> Made:
    marks = ["<|box_start|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|im_start|>"]
    tokenizer = chat_tokenizer(marks)
    ids = dict(zip(("audio_token_id", "audio_bos_token_id", "audio_eos_token_id"), marks, strict=False))
    for part in (config.acoustic_tokenizer_encoder_config, config.semantic_tokenizer_encoder_config):
        part.num_filters, part.depths, part.downsampling_ratios = 8, [1, 1, 1], [20, 80]
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    shrink(config, **{name: tokenizer.convert_tokens_to_ids(mark) for name, mark in ids.items()}, **core)
    extractor = transformers.VibeVoiceAcousticTokenizerFeatureExtractor()
    template = CHAT.replace("AUDIO", "".join([marks[1], marks[0], marks[2]]))
    return config, tokenizer, transformers.VibeVoiceAsrProcessor(extractor, tokenizer, chat_template=template)


GRANITE = (
    "<|start_of_role|>system<|end_of_role|>Today is {{ strftime_now('%B %d, %Y') }}.<|end_of_text|>\n"
    "{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>{{ message['content'] + '' }}"
    "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
"""A chat of texts alone, in which the place of the sound is a sign, with the day of today."""


def _granite_speech(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = chat_tokenizer(["<|audio|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"])
    tokenizer.eos_token = "<|end_of_text|>"
    encoder = {"hidden_dim": 32, "num_heads": 2, "dim_head": 16, "num_layers": 2, "input_dim": 160, "context_size": 20}
    encoder |= {"output_dim": 8, "dropout": 0.0}
    sizes = {f"encoder_config.{name}": value for name, value in encoder.items()}
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    sizes |= {"has_lora_adapter": False, "projector_config.encoder_hidden_size": 32, **core}
    shrink(config, audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"), **sizes)
    extractor = transformers.GraniteSpeechFeatureExtractor()
    return config, tokenizer, transformers.GraniteSpeechProcessor(extractor, tokenizer, chat_template=GRANITE)


def _fun_asr(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = chat_tokenizer(["<|im_start|>", "<|object_ref_start|>"])
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    audio = {"audio_config.num_mel_bins": 16, "audio_config.num_timestamp_prediction_layers": 1}
    audio |= {"audio_token_id": tokenizer.convert_tokens_to_ids("<|object_ref_start|>")}
    shrink(
        config, **audio, **core, **{"adaptor_config.projector_hidden_size": 32, "adaptor_config.intermediate_size": 8}
    )
    extractor = transformers.FunAsrNanoFeatureExtractor(feature_size=16)
    template = CHAT.replace("AUDIO", "<|object_ref_start|>")
    return config, tokenizer, transformers.FunAsrNanoProcessor(extractor, tokenizer, chat_template=template)


def tekken(file: Path) -> PreTrainedTokenizerBase:
    """A vocabulary of bytes in Mistral's format, with the special tokens of audio at their places."""
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
    names += " [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT]"
    names += " [/SYSTEM_PROMPT] [TOOL_CONTENT] [ARGS] [CALL_ID]"
    own = dict(enumerate(names.split())) | {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}
    special = [{"rank": i, "token_str": own.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(40)]
    every = [bytes([i]) for i in range(256)]
    vocabulary = [{"rank": i, "token_bytes": b64encode(it).decode(), "token_str": None} for i, it in enumerate(every)]
    audio = {"sampling_rate": 16000, "frame_rate": 12.5, "chunk_length_s": 30.0}
    audio |= {"audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400}}
    size = {"default_vocab_size": 256 + len(special), "default_num_special_tokens": len(special)}
    config = {"pattern": r"[^\s]+|\s+", "num_vocab_tokens": 256, **size, "version": "v11"}
    whole = {"config": config, "vocab": vocabulary, "special_tokens": special, "audio": audio}
    file.write_text(json.dumps(whole))
    return transformers.MistralCommonBackend(str(file))


def _voxtral(config: PretrainedConfig, folder: Path) -> Made:
    tokenizer = tekken(folder / "tekken.json")
    core = {"text_config.vocab_size": len(tokenizer), **{f"text_config.{k}": v for k, v in _ids(tokenizer).items()}}
    shrink(config, audio_token_id=24, **core, **{"audio_config.num_mel_bins": 16})
    config.audio_config.intermediate_size, config.text_config.max_position_embeddings = 128, 1024
    extractor = transformers.WhisperFeatureExtractor(feature_size=16)
    return config, tokenizer, transformers.VoxtralProcessor(extractor, tokenizer)


WRITERS: dict[str, Callable[[PretrainedConfig, Path], Made]] = {
    "canary": _canary,
    "cohere_asr": _cohere,
    "fun_asr_nano": _fun_asr,
    "granite_speech": _granite_speech,
    "granite_speech_plus": _granite_speech,
    "moonshine_streaming": _moonshine_streaming,
    "omniasr": _omniasr_llm,
    "qwen3_asr": _qwen3_asr,
    "vibevoice_asr": _vibevoice_asr,
    "voxtral": _voxtral,
    "seamless_m4t": _seamless,
    "seamless_m4t_v2": _seamless,
    "speech-encoder-decoder": _encoder_decoder,
    "speecht5": _speecht5,
}
SAVED: dict[str, Callable[[Path], object]] = {
    "moonshine": save_moonshine,
    "speech_to_text": save_speech_to_text,
    "whisper": lambda folder: save_whisper(folder, seconds=4),
    "whisper/english": lambda folder: save_whisper(folder, seconds=4, multilingual=False),
}
"""Those that the tests have."""
LANGUAGES = {
    "canary": "es",
    "cohere_asr": "en",
    "nemotron3_5_asr": "en-US",
    "qwen3_asr": "en",
    "whisper": "es",
    "seamless_m4t": "eng",
    "seamless_m4t_v2": "eng",
}
SETTINGS = {"seamless_m4t": _seamless_settings, "seamless_m4t_v2": _seamless_settings}
"""Settings of generation besides those of the configuration."""
OTHER = {
    "dia": "it speaks what is written",
    "pop2piano": "it writes notes for a piano after what it hears",
    "vibevoice": "it speaks what is written",
}
"""Why entries of the list are no recognisers."""
BESIDES_A_HEAD = tuple(method for method in METHODS if method != "head")


def _writer(model_type: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config, tokenizer, extractor = WRITERS[model_type](AutoConfig.for_model(model_type), folder)
        model = transformers.AutoModelForSpeechSeq2Seq.from_config(config)
        settings = SETTINGS.get(model_type, lambda tokenizer: {})(tokenizer)
        # `_from_model_config` of new models would have it that settings of their own are not read (transformers 5.24).
        asked = isinstance(extractor, transformers.ProcessorMixin) and hasattr(extractor, "chat_template")
        longest = {"max_length": None, "max_new_tokens": 24} if asked else {"max_length": 40, "max_new_tokens": None}
        for name, value in {**settings, **longest, **_ids(tokenizer), "_from_model_config": False}.items():
            setattr(model.generation_config, name, value)
        every_weight(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        extractor.save_pretrained(folder)

    return save


def _sequences() -> Iterator[Small]:
    for name in [*MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, "whisper/english"]:
        keys = {"language": LANGUAGES[name]} if name in LANGUAGES else {}
        other = OTHER.get(name, "")
        needs, is_here = NEEDS.get(name, ("", True))
        save = SAVED.get(name) or (_writer(name) if name in WRITERS and is_here else _config_alone(name))
        yield Small(f"transformers/{name}", TASK, save, keys, methods=BESIDES_A_HEAD, other_task=other, needs=needs)


PACKAGED = {
    "fun_asr_nano": ("FunAsrNanoProcessor", "FunAsrNanoFeatureExtractor"),
    "granite_speech": ("GraniteSpeechProcessor", "GraniteSpeechFeatureExtractor"),
    "granite_speech_plus": ("GraniteSpeechProcessor", "GraniteSpeechFeatureExtractor"),
    "granite_speech5_ctc": ("GraniteSpeech5Processor", "GraniteSpeech5FeatureExtractor"),
    "voxtral": ("VoxtralProcessor", "WhisperFeatureExtractor"),
}
"""Names in the files of those that another package is needed for, where this is not installed."""
NEEDS = {name: ("torchaudio", is_torchaudio_available()) for name in PACKAGED if name != "voxtral"}
NEEDS |= {"voxtral": ("mistral-common", is_mistral_common_available())}
"""That package, and whether it is."""


def _config_alone(model_type: str) -> Callable[[Path], object]:
    """What is enough to be told why it is refused."""

    def save(folder: Path) -> None:
        AutoConfig.for_model(model_type).save_pretrained(folder)
        if model_type in PACKAGED:
            processor, extractor = PACKAGED[model_type]
            chat_tokenizer([]).save_pretrained(folder)
            (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor}))
            (folder / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": extractor}))

    return save


def checkpoints() -> Iterator[Small]:
    """One for each entry of the lists of speech recognisers."""
    yield from _sequences()
    for model_type in MODEL_FOR_CTC_MAPPING_NAMES:
        keys = {} if model_type in KEPT else {"stage": "transfer"}
        save = _ctc(model_type, CTC.get(model_type, _waves()))
        needs, is_here = NEEDS.get(model_type, ("", True))
        save = save if is_here else _config_alone(model_type)
        yield Small(f"transformers/{model_type}", TASK, save, stage_keys=keys, needs=needs)
    for model_type in [*MODEL_FOR_TDT_MAPPING_NAMES, *MODEL_FOR_RNNT_MAPPING_NAMES]:
        keys = {"language": LANGUAGES[model_type]} if model_type in LANGUAGES else {}
        yield Small(f"transformers/{model_type}", TASK, _transducing(model_type), keys)
    for name, (model_type, make) in VARIANTS.items():
        yield Small(f"transformers/{name}", TASK, _ctc(model_type, make))
    yield Small("transformers/wav2vec2/mms", TASK, _mms, {"language": "fra"})
