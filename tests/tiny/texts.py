"""Tiny summarisers of many families, with tokenizers made on the spot, and documents whose topic they can learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

TOPICS = {
    "cats": "small cats sleep all day",
    "trains": "fast trains leave at noon",
    "rain": "heavy rain falls in spring",
    "bread": "fresh bread smells of home",
}
FILLERS = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "one",
    "some",
    "they",
    "said",
    "that",
    "it",
    "was",
    "new",
    "old",
    "long",
    "very",
    "much",
    "more",
    "then",
    "when",
    "by",
]
CORPUS = [*TOPICS, *TOPICS.values(), " ".join(FILLERS), "summarize: TL;DR: user assistant text following"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
_T5 = {
    "dropout_rate": 0.0,
    "d_model": 32,
    "d_kv": 16,
    "num_heads": 2,
    "d_ff": 64,
    "num_layers": 2,
    "decoder_start_token_id": 0,
}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}

Config = Callable[[dict[str, Any]], PretrainedConfig]
ENCODER_DECODERS: dict[str, Config] = {
    "t5": lambda ids: transformers.T5Config(**_T5, **ids),
    "mt5": lambda ids: transformers.MT5Config(**_T5, feed_forward_proj="gated-gelu", **ids),
    "longt5": lambda ids: transformers.LongT5Config(
        **_T5, local_radius=8, encoder_attention_type="transient-global", global_block_size=4, **ids
    ),
    "bart": lambda ids: transformers.BartConfig(
        **_BART, decoder_start_token_id=1, forced_bos_token_id=None, forced_eos_token_id=None, **ids
    ),
    "mbart": lambda ids: transformers.MBartConfig(**_BART, decoder_start_token_id=1, forced_eos_token_id=None, **ids),
    "pegasus": lambda ids: transformers.PegasusConfig(
        **_BART, decoder_start_token_id=0, forced_eos_token_id=None, **ids
    ),
    "led": lambda ids: transformers.LEDConfig(
        **{k: v for k, v in _BART.items() if k != "max_position_embeddings"},
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=64,
        attention_window=[8, 8],
        decoder_start_token_id=1,
        **ids,
    ),
}
DECODERS: dict[str, Config] = {
    "gpt2": lambda ids: transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids
    ),
    "llama": lambda ids: transformers.LlamaConfig(**_LLAMA, **ids),
    "qwen2": lambda ids: transformers.Qwen2Config(**_LLAMA, **ids),
    "qwen3": lambda ids: transformers.Qwen3Config(**_LLAMA, head_dim=16, **ids),
}
CONFIGS = ENCODER_DECODERS | DECODERS
CHATS = ("llama", "qwen3")


def _pieces() -> list[tuple[str, float]]:
    """Words with the space before them, and letters: the same each time; training draws lots (tokenizers 0.23)."""
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = [*sorted({letter for word in words for letter in word}), "▁"]
    return [*((f"▁{word}", -4.0) for word in words), *((letter, -8.0) for letter in letters)]


def save_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """T5-like pieces with `</s>` at the end for encoder-decoders, bytes as GPT-2 has them for decoders."""
    if name in ENCODER_DECODERS:
        special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "<n>")]
        core = Tokenizer(models.Unigram([*special, *_pieces()], unk_id=2))
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        made = PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
        )
    else:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
        )
        made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
        if name in CHATS:
            made.chat_template = CHAT_TEMPLATE
    made.save_pretrained(folder)
    return made


def save_multilingual(folder: Path, tokenizer_class: Any, *, seed: int = 0) -> Path:
    """mBART with the language tokens of `tokenizer_class`, and as on the Hub without a language in its settings."""
    plain = tokenizer_class(vocab=None).backend_tokenizer
    special = [(token, 0.0) for token in sorted(plain.get_vocab(), key=plain.token_to_id) if token != "▁"]
    tokenizer = tokenizer_class(vocab=[*special[:4], *_pieces(), *special[4:]], model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    config = transformers.MBartConfig(
        **_BART,
        vocab_size=len(tokenizer),
        forced_eos_token_id=None,
        decoder_start_token_id=ids["eos"],
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    transformers.MBartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_model(name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> PreTrainedModel:
    """A model with random weights and no dropout."""
    torch.manual_seed(seed)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CONFIGS[name]({**ids, "bos_token_id": tokenizer.bos_token_id})
    auto = transformers.AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else transformers.AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    return model


def save_model(folder: Path, name: str = "t5", *, seed: int = 0) -> Path:
    """A checkpoint folder with tokenizer."""
    make_model(name, save_tokenizer(folder, name), seed=seed).save_pretrained(folder)
    return folder


def save_mt5(folder: Path) -> Path:
    """mT5 with its vocabulary as the Hub has it: a file of SentencePiece's, and nothing that is read without it."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    save_model(folder, "mt5")
    (folder / "tokenizer.json").unlink()
    kinds = proto.ModelProto.SentencePiece
    special = [("<pad>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<unk>", kinds.UNKNOWN), ("<n>", kinds.USER_DEFINED)]
    pieces = [
        *(kinds(piece=piece, score=0.0, type=kind) for piece, kind in special),
        *(kinds(piece=piece, score=score, type=kinds.NORMAL) for piece, score in _pieces()),
    ]
    trained = proto.TrainerSpec(model_type="UNIGRAM", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(proto.ModelProto(pieces=pieces, trainer_spec=trained).SerializeToString())
    keys = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))
    return folder


OBJECTIVES = ("t5", "bart", "bert", "gpt2", "llama")
"""Families with an objective that needs no labels."""


def save_objective(folder: Path, name: str, *, seed: int = 0) -> Path:
    """A checkpoint whose tokenizer has what its objective puts into texts: ten sentinels (T5), a mask (BART, BERT)."""
    tokenizer = save_tokenizer(folder, "t5" if name == "bert" else name)
    if name == "t5":
        tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(10)], special_tokens=True)
    elif name in ("bart", "bert"):
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder)
    if name != "bert":
        make_model(name, tokenizer, seed=seed).save_pretrained(folder)
        return folder
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


def pair(rng: np.random.Generator, *, longest: int = 24) -> dict[str, str]:
    """Fillers with the topic's word among them, and the sentence of that topic."""
    topic = str(rng.choice(list(TOPICS)))
    words = [*rng.choice(FILLERS, int(rng.integers(3, longest))), topic, topic]
    return {"document": " ".join(rng.permutation(words).tolist()), "summary": TOPICS[topic]}


def save_data(folder: Path, *, rows: int = 48, seed: int = 0, longest: int = 24) -> Path:
    """train.jsonl, validation.jsonl and test.jsonl with columns `document` and `summary`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, n_rows in {"train": rows, "validation": rows // 3, "test": rows // 2}.items():
        pairs = [pair(rng, longest=longest) for _ in range(n_rows)]
        datasets.Dataset.from_list(pairs).to_json(folder / f"{split}.jsonl")
    return folder


def write_recipe(
    path: Path, model: Path, data: Path, *, stage: str = "", model_keys: str = "", data_keys: str = "", **top: Any
) -> Path:
    """A recipe over `save_model` and `save_data`; `stage` is YAML that replaces the one stage."""
    stage = stage or "{stage: finetune, epochs: 2, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}}"
    files = {split: str(data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    values = {"output": str(path.parent / "output"), "precision": "fp32", **top}
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    path.write_text(
        f"task: summarization\nmodel: {{name: {model}{model_keys}}}\n"
        f"data:\n  name: json\n  files: {json.dumps(files)}\n  splits: {{validation: validation}}\n"
        f"  max_document_tokens: 80\n  max_summary_tokens: 32\n{data_keys}"
        f"stages:\n  - {stage}\n" + "\n".join(lines) + "\n"
    )
    return path
