"""Tiny speech recognisers of both families, and clips that they can learn to tell apart."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import soundfile
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

WORDS = {"blue": 300.0, "green": 600.0, "red": 1100.0, "white": 1900.0}
"""Words of the made-up clips, and the pitch in which each is said."""
LANGUAGES = ("en", "es", "hi", "zh")


def whisper_tokenizer(*, multilingual: bool = True) -> transformers.WhisperTokenizer:
    """Bytes, and the special tokens of Whisper in their order."""
    tokens = sorted(ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>"]
    special += [f"<|{code}|>" for code in LANGUAGES]
    special += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    vocabulary = {token: i for i, token in enumerate([*tokens, special[0]])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([transformers.AddedToken(f"<|{i * 0.02:.2f}|>") for i in range(1501)])
    return tokenizer


def save_whisper(folder: Path, *, seed: int = 0, multilingual: bool = True, seconds: int = 30, **config: Any) -> Path:
    """A checkpoint of Whisper's architecture with random weights, 16 wide."""
    torch.manual_seed(seed)
    tokenizer = whisper_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    end, start = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    sizes: dict[str, Any] = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 16,
        "dropout": 0.0,
    }
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=len(tokenizer),
            max_source_positions=seconds * 50,
            max_target_positions=96,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=start,
            **{**sizes, **config},
        )
    )
    generation: dict[str, Any] = {
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": 96,
        "is_multilingual": multilingual,
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "return_timestamps": False,
    }
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": ids(f"<|{code}|>") for code in LANGUAGES}
        generation["task_to_id"] = {task: ids(f"<|{task}|>") for task in ("translate", "transcribe")}
    model.generation_config = transformers.GenerationConfig(**generation)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(folder)
    return folder


def save_moonshine(folder: Path, *, seed: int = 0) -> Path:
    """A checkpoint of Moonshine's architecture with random weights, 32 wide; its vocabulary is bytes."""
    torch.manual_seed(seed)
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 96}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_num_hidden_layers": 1, f"{half}_num_attention_heads": 2}
    config = transformers.MoonshineConfig(
        vocab_size=len(tokenizer),
        decoder_start_token_id=ids["bos"],
        **sizes,
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    transformers.MoonshineForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


def save_speech_to_text(folder: Path, *, seed: int = 0) -> Path:
    """A checkpoint of Speech2Text's architecture with random weights, 32 wide."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=32,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    names = [*special, *(name for name in map(pieces.id_to_piece, range(len(pieces))) if name not in special)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    transformers.Speech2TextTokenizer(
        str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {"d_model": 32, "num_mel_bins": 16, "input_feat_per_channel": 16, "conv_channels": 32}
    for half in ("encoder", "decoder"):
        sizes |= {f"{half}_layers": 1, f"{half}_attention_heads": 2, f"{half}_ffn_dim": 64}
    config = transformers.Speech2TextConfig(
        vocab_size=len(names), max_source_positions=400, max_target_positions=96, dropout=0.0, **sizes
    )
    transformers.Speech2TextForConditionalGeneration(config).save_pretrained(folder)
    transformers.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(folder)
    return folder


_WAVES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [32, 32, 32, 32],
    "conv_kernel": [10, 8, 4, 4],
    "conv_stride": [5, 4, 4, 2],
    "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "activation_dropout": 0.0,
    "final_dropout": 0.0,
}
CTC_CONFIGS = {
    "wav2vec2": lambda: transformers.Wav2Vec2Config(**_WAVES),
    "wav2vec2-layer-norm": lambda: transformers.Wav2Vec2Config(
        **_WAVES, feat_extract_norm="layer", do_stable_layer_norm=True
    ),
    "hubert": lambda: transformers.HubertConfig(**_WAVES),
    "wavlm": lambda: transformers.WavLMConfig(**_WAVES),
    "wav2vec2-bert": lambda: transformers.Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        feature_projection_input_dim=32,
        conv_depthwise_kernel_size=3,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        conformer_conv_dropout=0.0,
        feat_proj_dropout=0.0,
        activation_dropout=0.0,
        final_dropout=0.0,
        vocab_size=32,
    ),
}


def save_ctc(folder: Path, name: str = "wav2vec2", *, seed: int = 0, vocabulary: str | None = None) -> Path:
    """A checkpoint with random weights; with a head and a tokenizer only where there is a vocabulary."""
    from tltasks.tasks.speech.ctc import build_tokenizer

    torch.manual_seed(seed)
    config = CTC_CONFIGS[name]()
    if vocabulary is not None:
        tokenizer = build_tokenizer([vocabulary])
        config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        tokenizer.save_pretrained(folder)
    transformers.AutoModelForCTC.from_config(config).save_pretrained(folder)
    extractor = (
        transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, stride=2)
        if name == "wav2vec2-bert"
        else transformers.Wav2Vec2FeatureExtractor(return_attention_mask=name == "wav2vec2-layer-norm")
    )
    extractor.save_pretrained(folder)
    return folder


OBJECTIVE = {
    "num_codevectors_per_group": 8,
    "num_codevector_groups": 2,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
}


def save_objective(folder: Path, name: str = "wav2vec2-layer-norm", *, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of wav2vec 2.0's objective with random weights: 16 codes in two books."""
    torch.manual_seed(seed)
    if name == "wav2vec2-conformer":
        config: Any = transformers.Wav2Vec2ConformerConfig(**{**_WAVES, "feat_extract_norm": "layer"})
    else:
        config = CTC_CONFIGS[name]()
    config.update({**OBJECTIVE, **changes})
    transformers.AutoModelForPreTraining.from_config(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=name != "wav2vec2").save_pretrained(folder)
    return folder


def say(words: list[str], rng: np.random.Generator, *, sampling_hz: int = 16000) -> np.ndarray:
    """Each word as a third of a second of its pitch, with silence around it and some noise."""
    time = np.arange(int(0.3 * sampling_hz)) / sampling_hz
    silence = np.zeros(int(0.05 * sampling_hz))
    parts = [np.concatenate([silence, 0.5 * np.sin(2 * np.pi * WORDS[word] * time), silence]) for word in words]
    samples = np.concatenate(parts)
    return (samples + rng.normal(0, 0.005, len(samples))).astype(np.float32)


def save_data(folder: Path, *, rows: int = 12, seed: int = 0, splits: Any = None, most_words: int = 3) -> Path:
    """train.csv, validation.csv and test.csv with columns `audio` (wav files) and `text`."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, n_rows in (splits or {"train": rows, "validation": 4, "test": 6}).items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", "text"])
            for i in range(n_rows):
                words = [str(w) for w in rng.choice(list(WORDS), size=1 + i % most_words)]
                path = folder / "clips" / f"{split}-{i}.wav"
                soundfile.write(path, say(words, rng), 16000, subtype="PCM_16")
                writer.writerow([f"clips/{path.name}", " ".join(words)])
    return folder


def write_recipe(
    path: Path, model: Path, data: Path, *, stage: str = "", model_keys: str = "", data_keys: str = "", **top: Any
) -> Path:
    """A recipe over a saved model and `save_data`; `stage` is YAML that replaces the one stage."""
    stage = stage or "{stage: finetune, epochs: 2, batch_size: 4, learning_rate: 3e-3}"
    files = {split: str(data / f"{split}.csv") for split in ("train", "validation", "test")}
    values = {"output": str(path.parent / "output"), "precision": "fp32", **top}
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    comma = ", " if model_keys else ""
    path.write_text(
        f"task: automatic-speech-recognition\nmodel: {{name: {model}{comma}{model_keys}}}\n"
        f"data:\n  name: csv\n  files: {json.dumps(files)}\n  splits: {{validation: validation}}\n"
        + (f"  {data_keys}\n" if data_keys else "")
        + f"stages:\n  - {stage}\n"
        + "\n".join(lines)
        + "\n"
    )
    return path
