"""Packages that a checkpoint asks for: named by what was tried, also where transformers names another."""

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers.utils.import_utils import BACKENDS_MAPPING

from tests.tiny import texts
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError
from tltasks.models.loading import open_tokenizer
from tltasks.models.packages import missing_packages

WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n"
MERGES = {
    "vocab.json": json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "t": 4, "a</w>": 5}),
    "merges.txt": "#version: 0.2\nt h\n",
}
TOKENIZERS = {
    "sacremoses": ({"tokenizer_class": "BioGptTokenizer"}, "biogpt", MERGES),
    "fugashi": (
        {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"},
        "bert",
        {"vocab.txt": WORDS},
    ),
    "rhoknp": (
        {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "jumanpp"},
        "bert",
        {"vocab.txt": WORDS},
    ),
    "rjieba": ({"tokenizer_class": "RoFormerTokenizer"}, "roformer", {"vocab.txt": WORDS}),
    "phonemizer": ({"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "wav2vec2", MERGES),
    "tiktoken": (
        {"tokenizer_class": "LlamaTokenizer"},
        "llama",
        {"tokenizer.model": "dA== 0\naA== 1\ndGg= 2\n"},
    ),
}
"""By what is missing: the tokenizer's settings, its architecture and its files."""


@pytest.mark.parametrize("package", TOKENIZERS)
def test_the_package_that_a_tokenizer_needs(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    keys, architecture, files = TOKENIZERS[package]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(keys))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    with pytest.raises(CheckpointError, match=re.escape(f"`pip install {package}`")):
        open_tokenizer(Checkpoint(str(tmp_path)))


def test_pieces_are_not_taken_for_a_vocabulary_of_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for tiktoken, which does not read them."""
    folder = texts.save_mt5(tmp_path)
    assert open_tokenizer(Checkpoint(str(folder))).tokenize("cats") == ["▁cats"]
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setitem(BACKENDS_MAPPING, "protobuf", (lambda: False, BACKENDS_MAPPING["protobuf"][1]))
    with pytest.raises(CheckpointError, match=r"needs what is not installed here: `pip install protobuf`\.$"):
        open_tokenizer(Checkpoint(str(folder)))


def test_no_files_ask_for_no_package(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(CheckpointError, match=r"\(none of its files is a vocabulary\)"):
        open_tokenizer(Checkpoint(str(tmp_path)))


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ModuleNotFoundError("No module named 'bs4'", name="bs4_"), ["bs4_"]),
        (ModuleNotFoundError("No module named 'transformers.gone'", name="transformers.gone"), []),
        (ImportError("not found in your environment: einops, x_y. Run `pip install einops x_y`"), ["einops", "x_y"]),
        (ImportError("Loading a GPTQ model requires gptqmodel (`pip install gptqmodel`) library."), ["gptqmodel"]),
        (ImportError("needs bitsandbytes: `pip install -U bitsandbytes>=0.46`"), ["bitsandbytes"]),
        (ImportError("cannot import name 'old' from 'torch'"), []),
        (OSError("tiktoken"), []),
    ],
)
def test_the_package_that_an_error_names(error: Exception, named: list[str]) -> None:
    assert missing_packages(error) == named


def test_a_plain_installation_reads_vocabularies_of_pieces() -> None:
    named = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["dependencies"]
    needed, known = list(map(Requirement, named)), set[str]()
    while needed:
        name = re.sub(r"[-_.]+", "-", needed.pop().name.lower())
        if name not in known:
            known.add(name)
            all_of_it = map(Requirement, importlib.metadata.requires(name) or [])
            needed += [it for it in all_of_it if it.marker is None or it.marker.evaluate({"extra": ""})]
    assert len(known) > 50
    assert known >= {"sentencepiece", "protobuf", "timm", "soundfile"}
