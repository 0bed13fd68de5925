"""Small checkpoints of every encoder-decoder that AutoModelForSeq2SeqLM has, with the tokenizer files of real ones.

Entries of transformers' mapping that no function here knows by name are made small by the keys of their configuration.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as LANGUAGES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB_LANGUAGES

from benchmarks.small_checkpoints import Small
from tests.tiny.texts import CORPUS

Json = dict[str, Any]

# ------------------------------------------------------------------------------------------ tokenizers

TEXTS = [*CORPUS, "He said: It was new. They stay, and leave!"] * 4


def _piece_model(path: Path, *, kind: str = "unigram", **keys: Any) -> list[str]:
    """A model file of sentencepiece, and its pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        model_type=kind,
        vocab_size=110 + len(keys.get("control_symbols", "")),
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **keys,
    )
    path.write_bytes(written.getvalue())
    read = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return [str(read.IdToPiece(i)) for i in range(read.GetPieceSize())]


def _write(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def _settings(folder: Path, tokenizer_class: str, **keys: Any) -> None:
    _write(folder / "tokenizer_config.json", {"tokenizer_class": tokenizer_class, **keys})


def t5_pieces(folder: Path, tokenizer_class: str = "T5Tokenizer") -> None:
    _piece_model(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    _settings(folder, tokenizer_class, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", extra_ids=100)


def t5_both_files(folder: Path) -> None:
    """tokenizer.json beside the pieces, as most of T5's have it."""
    t5_pieces(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def fairseq_pieces(folder: Path, tokenizer_class: str, **keys: Any) -> None:
    """The vocabulary of XLM-R, mBART and PLBart, whose ids are one more than its pieces'."""
    _piece_model(folder / "sentencepiece.bpe.model")
    _settings(folder, tokenizer_class, **keys)


def m2m_pieces(folder: Path) -> None:
    pieces = _piece_model(folder / "sentencepiece.bpe.model", kind="bpe")
    words = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:]]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    _settings(folder, "M2M100Tokenizer", language_codes="m2m100", num_madeup_words=8, model_max_length=1024)
    languages = [f"__{code}__" for code in LANGUAGES["m2m100"]]
    _write(folder / "special_tokens_map.json", {"additional_special_tokens": languages})


def nllb_pieces(folder: Path, **keys: Any) -> None:
    """As AutoTokenizer reads it of the pieces, with tokenizer.json, which all of the Hub have."""
    _piece_model(folder / "sentencepiece.bpe.model", kind="bpe")
    codes = list(NLLB_LANGUAGES)
    _settings(folder, "NllbTokenizer", model_max_length=1024, additional_special_tokens=codes, **keys)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def pegasus_pieces(folder: Path, *, both_files: bool = False) -> None:
    symbols = ["<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))]
    _piece_model(
        folder / "spiece.model",
        pad_id=0,
        eos_id=1,
        unk_id=105,
        bos_id=-1,
        control_symbols=symbols,
        user_defined_symbols=["<n>"],
    )
    _settings(folder, "PegasusTokenizer", offset=103, model_max_length=512)
    if both_files:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def _trained(core: Tokenizer, trainer: trainers.Trainer) -> Json:
    core.train_from_iterator(TEXTS, trainer)
    found: Json = json.loads(core.to_str())["model"]
    return found


def _merges(found: Json, *, counts: str = "") -> str:
    return "\n".join(" ".join(pair) + counts for pair in found["merges"]) + "\n"


def byte_pairs(
    folder: Path, tokenizer_class: str, *, special: tuple[str, ...] = ("<s>", "<pad>", "</s>", "<unk>"), **keys: Any
) -> None:
    """vocab.json and merges.txt over bytes, as BART has them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found = _trained(
        core, trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, "<mask>"], initial_alphabet=alphabet)
    )
    _write(folder / "vocab.json", found["vocab"])
    _write(folder / "merges.txt", "#version: 0.2\n" + _merges(found))
    _settings(folder, tokenizer_class, model_max_length=1024, **keys)


def blenderbot_small_pairs(folder: Path) -> None:
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["__null__", "__start__", "__end__", "__unk__", "__newln__"]
    found = _trained(core, trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>"))
    words = [word[:-4] if word.endswith("</w>") else f"{word}@@" for word in found["vocab"]]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))})
    _write(folder / "merges.txt", "#version: 0.2\n" + _merges(found))
    _settings(folder, "BlenderbotSmallTokenizer", model_max_length=512)


def moses_pairs(folder: Path, *, same: bool) -> None:
    """FSMT's two vocabularies over one list of merges; `same` or in other orders."""
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = _trained(core, trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>"))
    words, special = sorted(found["vocab"]), ["<s>", "<pad>", "</s>", "<unk>"]
    target = words if same else [*reversed(words), "more</w>", "words</w>"]
    _write(folder / "vocab-src.json", {word: i for i, word in enumerate(special + words)})
    _write(folder / "vocab-tgt.json", {word: i for i, word in enumerate(dict.fromkeys(special + target))})
    _write(folder / "merges.txt", _merges(found, counts=" 9"))
    langs = ["en", "de"] if same else ["en", "ru"]
    _settings(folder, "FSMTTokenizer", langs=langs, model_max_length=1024, do_lower_case=False)


def marian_pieces(folder: Path) -> None:
    source = _piece_model(folder / "source.spm")
    target = _piece_model(folder / "target.spm", kind="bpe")
    words = ["</s>", "<unk>", *source[3:], *target[3:], "<pad>"]
    _write(folder / "vocab.json", {word: i for i, word in enumerate(dict.fromkeys(words))})
    _settings(folder, "MarianTokenizer", source_lang="en", target_lang="de", model_max_length=512)


def word_pieces(
    folder: Path, tokenizer_class: str, *, file: str = "vocab.txt", more: tuple[str, ...] = (), **keys: Any
) -> None:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more]
    found = _trained(core, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    _write(folder / file, "\n".join(sorted(found["vocab"], key=found["vocab"].get)) + "\n")
    _settings(folder, tokenizer_class, model_max_length=512, **keys)


def _spaced_pairs(special: list[str]) -> Json:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback="<0x00>" in special, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return _trained(core, trainers.BpeTrainer(vocab_size=len(special) + 150, special_tokens=special))


def gemma_pairs(folder: Path) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    found = _spaced_pairs(special)
    merges = [tuple(pair) for pair in found["merges"]]
    transformers.GemmaTokenizer(vocab=found["vocab"], merges=merges, add_bos_token=True).save_pretrained(folder)


def seamless_pairs(folder: Path) -> None:
    found = _spaced_pairs(["<pad>", "<unk>", "<s>", "</s>"])
    languages = [f"__{code}__" for code in ("eng", "fra", "deu", "spa")]
    transformers.SeamlessM4TTokenizer(
        vocab=found["vocab"],
        merges=[tuple(pair) for pair in found["merges"]],
        additional_special_tokens=languages,
    ).save_pretrained(folder)


def letters(folder: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(folder)


# ---------------------------------------------------------------------------------------- configurations

SMALL: Json = {
    "d_model": 32,
    "hidden_size": 32,
    "d_kv": 16,
    "head_dim": 16,
    "d_ff": 48,
    "intermediate_size": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "max_position_embeddings": 128,
    "n_positions": 128,
}
"""Sizes by the keys that configurations have for them."""


def _shrunk(model_type: str, **keys: Any) -> PretrainedConfig:
    known = AutoConfig.for_model(model_type).to_dict()
    return AutoConfig.for_model(model_type, **{k: v for k, v in SMALL.items() if k in known} | keys)


def own_ids(folder: Path, start: str) -> Json:
    """Ids of special tokens, and of that which a decoder starts with, as a configuration has them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    return {**found, "decoder_start_token_id": tokenizer.convert_tokens_to_ids(start), "vocab_size": len(tokenizer)}


@dataclass(frozen=True)
class Kind:
    """How checkpoints of an architecture are made, as those of the Hub are."""

    config: Callable[[Json], PretrainedConfig]
    tokenizer: Callable[[Path], None]
    start: str = "<pad>"
    """What the decoder starts with."""
    language: str | None = None
    generation: Mapping[str, object] | None = None
    held_in: str = "generation_config.json"
    """Where `generation` stands: older checkpoints have it in config.json."""
    ids: Callable[[Path, str], Json] = own_ids

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, and random weights, among which no vector is zero."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer(folder)
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(self.config(self.ids(folder, self.start)))
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            if parameter.ndim > 1:  # what is drawn at 0.02 hardly passes through layers as narrow as these
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif not parameter.any():  # biases
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(folder)
        place = folder / self.held_in
        _write(place, json.loads(place.read_text()) | (self.generation or {}))
        if self.generation is None or self.held_in != "generation_config.json":
            (folder / "generation_config.json").unlink()


def _plain(model_type: str, **keys: Any) -> Callable[[Json], PretrainedConfig]:
    return lambda ids: _shrunk(model_type, **(ids | keys))


def _fsmt_ids(folder: Path, _start: str) -> Json:
    """Of the vocabularies themselves, as its tokenizer cannot be had without sacremoses."""
    sizes = {
        f"{side}_vocab_size": len(json.loads((folder / f"vocab-{side}.json").read_text())) for side in ("src", "tgt")
    }
    return {**sizes, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


def _fsmt(ids: Json) -> PretrainedConfig:
    tied = ids["src_vocab_size"] == ids["tgt_vocab_size"]
    return _shrunk("fsmt", **ids, langs=["en", "de" if tied else "ru"], tie_word_embeddings=tied)


def _gemmas(model_type: str, ids: Json) -> PretrainedConfig:
    module = {k: v for k, v in SMALL.items() if k not in ("d_model", "d_kv")} | {
        "num_hidden_layers": 2,
        "sliding_window": 8,
        "vocab_size": ids["vocab_size"],
        **{name: ids[name] for name in ("pad_token_id", "eos_token_id", "bos_token_id")},
    }
    if model_type == "t5gemma":
        return transformers.T5GemmaConfig(
            encoder=module, decoder={**module, "cross_attention_hidden_size": 32}, vocab_size=ids["vocab_size"]
        )
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    last = {"boi_token_index": ids["vocab_size"] - 3, "eoi_token_index": ids["vocab_size"] - 2}
    return transformers.T5Gemma2Config(
        encoder={
            "text_config": module | layers,
            "vision_config": vision,
            "mm_tokens_per_image": 4,
            "image_token_index": ids["vocab_size"] - 1,
            "vocab_size": ids["vocab_size"],
            **last,
        },
        decoder=module | layers,
        image_token_index=ids["vocab_size"] - 1,
    )


def _seamless(model_type: str, ids: Json) -> PretrainedConfig:
    sizes = {
        "hidden_size": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "speech_encoder_layers": 1,
        "t2u_encoder_layers": 1,
        "t2u_decoder_layers": 1,
        "speech_encoder_attention_heads": 2,
        "max_position_embeddings": 128,
    }
    return _shrunk(model_type, **ids | sizes | {"eos_token_id": 3, "decoder_start_token_id": 3, "bos_token_id": 2})


def _composite(ids: Json, *, encoder: str, decoder: str) -> PretrainedConfig:
    """Two of BERT, RoBERTa and GPT-2 as one, as `from_encoder_decoder_pretrained` makes it."""
    ends = {"eos_token_id": 3, "bos_token_id": 2} if encoder == "bert" else {"eos_token_id": 2, "bos_token_id": 0}
    both = {"vocab_size": ids["vocab_size"], "pad_token_id": ids["pad_token_id"], **ends}
    made = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        _shrunk(encoder, **both), _shrunk(decoder, **both, n_embd=32, n_layer=2, n_head=2)
    )
    for name, value in {**ids, **ends}.items():
        setattr(made, name, value)
    return made


# -------------------------------------------------------------------------------------------- the list

_T5: Json = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_SUMMARY = {"early_stopping": True, "length_penalty": 2.0, "min_length": 5, "num_beams": 2, "no_repeat_ngram_size": 3}
_BEAMS = {"num_beams": 2, "max_length": 40}


def _longt5(attention: str) -> Callable[[Json], PretrainedConfig]:
    return _plain("longt5", **_T5, local_radius=7, global_block_size=5, encoder_attention_type=attention)


_bart_pairs = partial(byte_pairs, tokenizer_class="BartTokenizer")
_mbart = _plain("mbart", forced_eos_token_id=2, scale_embedding=True)
KINDS: dict[str, Kind] = {
    "t5": Kind(_plain("t5"), t5_both_files, generation={}),
    "t5/flan": Kind(_plain("t5", **_T5), t5_both_files),
    "t5/byt5": Kind(_plain("t5", **_T5), letters),
    "mt5": Kind(_plain("mt5", **_T5), t5_pieces),
    "umt5": Kind(_plain("umt5", **_T5), t5_both_files),
    "longt5/local": Kind(_longt5("local"), t5_both_files),
    "longt5/transient-global": Kind(_longt5("transient-global"), t5_both_files),
    "switch_transformers": Kind(
        _plain("switch_transformers", num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
        t5_both_files,
    ),
    "bart": Kind(_plain("bart", forced_bos_token_id=0, forced_eos_token_id=2), _bart_pairs, "</s>", None, _SUMMARY),
    "mvp": Kind(
        _plain("mvp", forced_bos_token_id=0, forced_eos_token_id=2),
        partial(byte_pairs, tokenizer_class="MvpTokenizer"),
        "</s>",
        generation=_SUMMARY,
        held_in="config.json",
    ),
    "blenderbot": Kind(
        _plain("blenderbot"),
        partial(
            byte_pairs,
            tokenizer_class="BlenderbotTokenizer",
            special=("<pad>", "<s>", "</s>", "<unk>"),
            add_prefix_space=True,
        ),
        "<s>",
    ),
    "blenderbot-small": Kind(_plain("blenderbot-small"), blenderbot_small_pairs, "__start__"),
    "led": Kind(
        _plain("led", attention_window=[6, 6], max_encoder_position_embeddings=130, max_decoder_position_embeddings=64),
        partial(byte_pairs, tokenizer_class="LEDTokenizer"),
        "</s>",
    ),
    "mbart/en-ro": Kind(
        _mbart, partial(fairseq_pieces, tokenizer_class="MBartTokenizer"), "ro_RO", "en_XX", _BEAMS, "config.json"
    ),
    "mbart/many-to-many-50": Kind(
        _mbart, partial(fairseq_pieces, tokenizer_class="MBart50Tokenizer"), "</s>", "fr_XX", _BEAMS
    ),
    "plbart": Kind(
        _plain("plbart"),
        partial(fairseq_pieces, tokenizer_class="PLBartTokenizer", language_codes="base"),
        "__en_XX__",
        "en_XX",
    ),
    "m2m_100": Kind(_plain("m2m_100"), m2m_pieces, "</s>", "de"),
    "m2m_100/nllb": Kind(_plain("m2m_100"), nllb_pieces, "</s>", "deu_Latn", _BEAMS),
    "m2m_100/nllb-legacy": Kind(_plain("m2m_100"), partial(nllb_pieces, legacy_behaviour=True), "</s>", "deu_Latn"),
    "nllb-moe": Kind(
        _plain("nllb-moe", num_experts=16, encoder_sparse_step=2, decoder_sparse_step=2),
        nllb_pieces,
        "</s>",
        "eng_Latn",
    ),
    "pegasus": Kind(
        _plain("pegasus", forced_eos_token_id=1, scale_embedding=True, static_position_embeddings=True),
        pegasus_pieces,
        generation=_SUMMARY | _BEAMS,
        held_in="config.json",
    ),
    "pegasus_x": Kind(
        _plain("pegasus_x", forced_eos_token_id=1, block_size=6, num_global_tokens=4),
        partial(pegasus_pieces, both_files=True),
    ),
    "bigbird_pegasus": Kind(
        _plain("bigbird_pegasus", block_size=2, num_random_blocks=1, attention_type="block_sparse"),
        partial(pegasus_pieces, both_files=True),
        "</s>",
    ),
    "prophetnet": Kind(
        _plain("prophetnet", eos_token_id=3, ngram=2, num_buckets=8, relative_max_distance=16),
        partial(word_pieces, tokenizer_class="ProphetNetTokenizer", file="prophetnet.tokenizer", more=("[X_SEP]",)),
        "[PAD]",
        generation=_BEAMS,
        held_in="config.json",
    ),
    "marian": Kind(
        _plain("marian", forced_eos_token_id=0, static_position_embeddings=True), marian_pieces, generation=_BEAMS
    ),
    "fsmt/one-vocabulary": Kind(_fsmt, partial(moses_pairs, same=True), generation=_BEAMS, ids=_fsmt_ids),
    "fsmt/two-vocabularies": Kind(_fsmt, partial(moses_pairs, same=False), ids=_fsmt_ids),
    "t5gemma": Kind(partial(_gemmas, "t5gemma"), gemma_pairs, "<bos>"),
    "t5gemma2": Kind(partial(_gemmas, "t5gemma2"), gemma_pairs, "<bos>"),
    "seamless_m4t": Kind(partial(_seamless, "seamless_m4t"), seamless_pairs, "</s>", "eng"),
    "seamless_m4t_v2": Kind(partial(_seamless, "seamless_m4t_v2"), seamless_pairs, "</s>", "eng"),
    "encoder-decoder/bert2bert": Kind(
        partial(_composite, encoder="bert", decoder="bert"),
        partial(word_pieces, tokenizer_class="BertTokenizer"),
        "[CLS]",
    ),
    "encoder-decoder/roberta2roberta": Kind(
        partial(_composite, encoder="roberta", decoder="roberta"),
        partial(byte_pairs, tokenizer_class="RobertaTokenizer"),
        "<s>",
    ),
}
"""By the name of the architecture, and what is behind it where there are several kinds."""

OTHER_TASKS = {
    **dict.fromkeys(
        (
            "audioflamingo3",
            "glmasr",
            "granite_speech",
            "granite_speech_plus",
            "moss_transcribe_diarize",
            "musicflamingo",
            "nemo_speechlm",
            "omniasr",
            "qwen2_audio",
            "qwen3_asr",
            "vibevoice_asr",
            "voxtral",
            "voxtral_realtime",
        ),
        "its input is sound, not text",
    )
}
"""Entries of the mapping that are no summarisers, and why."""


def checkpoints() -> Iterator[Small]:
    """A checkpoint of each kind of each entry of transformers' mapping; new ones as the first T5's are made."""
    for model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        kinds = {name: kind for name, kind in KINDS.items() if name.partition("/")[0] == model_type}
        for name, kind in (kinds or {model_type: Kind(_plain(model_type), t5_both_files)}).items():
            yield Small(
                f"transformers/{name}",
                "summarization",
                kind.save,
                model_keys={"language": kind.language} if kind.language else {},
                data_keys={"max_document_tokens": 400} if name == "t5/byt5" else {},
                other_task=OTHER_TASKS.get(model_type, ""),
            )
