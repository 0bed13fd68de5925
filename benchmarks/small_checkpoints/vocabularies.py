"""Tokenizers of an architecture's own class over a small vocabulary, saved in the files that real checkpoints have."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from tests.tiny.texts import CORPUS

OTHERS = {"umt5": "T5Tokenizer", "bigbird_pegasus": "T5Tokenizer"}
"""Classes of tokenizers, for types that have files of any."""
WORDS = sorted({word for line in CORPUS for word in line.split()})
LETTERS = sorted({letter for word in WORDS for letter in word})
NEEDS = {**dict.fromkeys(("biogpt", "flaubert", "xlm"), "sacremoses"), "roformer": "rjieba"}
"""Types whose tokenizers need a package; where it is not installed they get one that does not."""


def save_tokenizer(folder: Path, model_type: str) -> PreTrainedTokenizerBase:
    """The tokenizer that `model_type` has in transformers; where it has none of its own, bytes as GPT-2 has them.

    These have a mask where masked words are an objective of the architecture, and padding where configurations do.
    """
    name = OTHERS.get(model_type) or TOKENIZER_MAPPING_NAMES.get(model_type)
    if name in (None, "TokenizersBackend") or find_spec(NEEDS.get(model_type, "transformers")) is None:
        masks = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        pads = masks or AutoConfig.for_model(model_type).pad_token_id is not None
        tokenizer = of_bytes(pad="<|pad|>" if pads else None, mask="<|mask|>" if masks else None)
    else:
        kind = getattr(transformers, name)
        tokenizer = _from_files(kind) or _from_vocabulary(kind)
    tokenizer.model_max_length = min(512, tokenizer.model_max_length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def of_bytes(*, pad: str | None = None, mask: str | None = None) -> PreTrainedTokenizerFast:
    """Pairs of bytes with an end and a beginning, and as Llama's without padding."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|begin|>", "<|endoftext|>", *filter(None, (pad, mask))]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin|>", eos_token="<|endoftext|>", pad_token=pad, mask_token=mask
    )


def _from_vocabulary(kind: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of a class that is given its vocabulary."""
    needed = {"tags_dict": {"html": 0, "body": 1, "p": 2}} if "tags_dict" in _arguments(kind) else {}
    if "entity_vocab" in _arguments(kind):
        needed["entity_vocab"] = {"[UNK]": 0, "[PAD]": 1, "[MASK]": 2, "[MASK2]": 3}
    plain = kind(**needed)
    if "vocab" not in _arguments(kind) and not hasattr(plain, "backend_tokenizer"):
        return plain  # letters or bytes, and no vocabulary to save
    core = plain.backend_tokenizer
    special = [token for token in sorted(core.get_vocab(), key=core.token_to_id) if token != "▁"]
    if type(core.model).__name__ == "WordPiece":
        tokens = [*special, *(token for token in [*WORDS, *LETTERS] if token not in special)]
        tokens += [f"##{letter}" for letter in LETTERS]
        return kind(vocab=_numbered(tokens), **needed)
    if type(core.model).__name__ == "Unigram":
        pieces = [*(f"▁{word}" for word in WORDS), *LETTERS, "▁"]
        scored = [*((token, 0.0) for token in special), *((p, -4.0 if len(p) > 1 else -8.0) for p in pieces)]
        return kind(vocab=scored, **needed)
    if "vocab" not in _arguments(kind):  # a fixed alphabet (ESM C)
        return plain
    if type(core.model).__name__ == "BPE" and isinstance(core.decoder, decoders.ByteLevel):
        trained = json.loads(of_bytes().backend_tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in trained["merges"]]
        tokens = [*special, *(token for token in trained["vocab"] if not token.startswith("<|"))]
        return kind(vocab=_numbered(tokens), merges=merges, **needed)
    # Pairs of letters: words as wholes by merges from the left.
    end = getattr(core.model, "end_of_word_suffix", None) or ""
    merges, tokens = _merges_of_words([word if end else f"▁{word}" for word in WORDS], end=end)
    return kind(vocab=_numbered([*special, *tokens]), merges=merges, **needed)


def _merges_of_words(words: Sequence[str], *, end: str = "") -> tuple[list[tuple[str, str]], list[str]]:
    """Merges that join each word from the left, and all tokens that these need; the last letter carries `end`."""
    letters, merges, tokens = dict.fromkeys("▁"), {}, {}
    for word in words:
        parts = [*word[:-1], word[-1] + end]
        letters |= dict.fromkeys([*word, *(letter + end for letter in word)])
        whole = parts[0]
        for part in parts[1:]:
            merges[whole, part] = None
            whole += part
            tokens[whole] = None
    return list(merges), [*letters, *(token for token in tokens if token not in letters)]


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _arguments(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)


# ------------------------------------------------------------------------------------- from files


def _from_files(kind: Any) -> PreTrainedTokenizerBase | None:
    """A tokenizer of a class that reads files; None for one that does not ask for any."""
    parameters = inspect.signature(kind.__init__).parameters
    if "vocab_file" not in parameters or parameters["vocab_file"].default is not inspect.Parameter.empty:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder, files = Path(name), {}
        if "sp_model_kwargs" in parameters:
            files["vocab_file"] = _sentencepiece(folder)
        elif "merges_file" in parameters:
            files = _pairs(folder, ["<unk>", "<pad>", "<s>", "</s>"], continued=kind.__name__ == "CTRLTokenizer")
        elif kind.__name__ == "EsmTokenizer":
            alphabet = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
            files["vocab_file"] = _written(folder / "vocab.txt", "\n".join(alphabet))
        else:
            tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]", *WORDS]
            tokens += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
            files["vocab_file"] = _written(folder / "vocab.txt", "\n".join(dict.fromkeys(tokens)))
            for part in ("word_shape", "word_pronunciation"):
                if f"{part}_file" in parameters:
                    numbers = {token: i % 7 for i, token in enumerate(dict.fromkeys(tokens))}
                    files[f"{part}_file"] = _written(folder / f"{part}.json", json.dumps(numbers))
        tokenizer: PreTrainedTokenizerBase = kind(**files)
        tokenizer.save_pretrained(folder / "saved")  # while its files are there
        return tokenizer


def _pairs(folder: Path, special: list[str], *, continued: bool) -> dict[str, str]:
    """Files of merges; the vocabulary marks the end of words, or, `continued`, what is not the end of one."""
    merges, tokens = _merges_of_words(WORDS, end="</w>")
    if continued:
        tokens = [token[:-4] if token.endswith("</w>") else f"{token}@@" for token in tokens]
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    return {
        "vocab_file": _written(folder / "vocab.json", json.dumps(_numbered([*special, *tokens]))),
        "merges_file": _written(folder / "merges.txt", "\n".join(lines)),
    }


def _sentencepiece(folder: Path) -> str:
    text = _written(folder / "corpus.txt", "\n".join(CORPUS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=str(folder / "spiece"), vocab_size=150, hard_vocab_limit=False, minloglevel=2
    )
    return str(folder / "spiece.model")


def _written(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)
