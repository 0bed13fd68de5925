"""A trained model as CTranslate2 reads it, and so faster-whisper: written by that package's own converters.

Source: https://opennmt.net/CTranslate2/guides/transformers.html, https://github.com/SYSTRAN/faster-whisper.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import datasets
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.whisper.modeling_whisper import sinusoids

from tltasks.errors import CheckpointError, RecipeError, first_line
from tltasks.inference.smoothing import smooth
from tltasks.models.exported import CONVERTED, SETUP, VOCABULARY, Export
from tltasks.runtime.files import write_json
from tltasks.tasks.base import TaskBase

WEIGHTS = {None: "float32", "int8": "int8", "fp16": "float16"}
WHISPER_POSITIONS = 1500
"""Positions of the 30 s that faster-whisper fills every clip up to, whatever window a model has (1.2, audio.py)."""
NORMALISES = {
    "bart": {"normalize_before": False, "normalize_embedding": True},
    "mbart": {"normalize_before": True, "normalize_embedding": True},
    "pegasus": {"normalize_before": True, "normalize_embedding": False},
}
"""What the converters look up and configurations of transformers 5 do not say where a checkpoint does not."""
REQUIRED: dict[str, dict[str, object]] = {
    "wav2vec2": {
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
    },
}
"""What is written into CTranslate2's code (4.8, wav2vec2.cc) and read from no configuration."""
NOT_SEARCHED_BY = (
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
)
"""Settings of generation that CTranslate2 is not told; of Whisper it is told what is suppressed."""
FASTER_WHISPER = """model = WhisperModel(".", device="cpu")
segments, _ = model.transcribe("speech.wav", beam_size=1, without_timestamps=True)
print(" ".join(segment.text.strip() for segment in segments))
"""
ROUNDING = 1e-3
"""Of a table of positions that was stored in 16 bits."""


def refuse(task: TaskBase, display_name: str) -> None:
    """Raise RecipeError for a model that CTranslate2 has no form for, with the format that serves it."""
    kind, served = task.architecture, task.converts and task.architecture in CONVERTED
    unlike = [
        f"{name} {value}" for name, value in REQUIRED.get(kind, {}).items() if getattr(task.config, name) != value
    ]
    if served and not unlike:
        return
    other = "; --format onnx writes it" if task.onnx_input() is not None else ""
    if served:
        raise RecipeError(f"export {display_name}: CTranslate2 has {kind} with {', '.join(unlike)} alone{other}.")
    known = ", ".join(CONVERTED)
    raise RecipeError(
        f"export {display_name}: CTranslate2 is for speech recognition and summarisation with {known}, and this is "
        f"{task.tag} with {kind}{other}."
    )


def convert(model: PreTrainedModel, task: TaskBase, export: Export, known: datasets.Dataset | None = None) -> None:
    """Write the model into the export's folder, which must be there, smoothed by what it makes of `known` rows."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc]
        """Takes the model that is at hand, rather than loading one."""

        def load_model(self, *args: object, **keys: object) -> PreTrainedModel:
            return model

        def load_tokenizer(self, *args: object, **keys: object) -> PreTrainedTokenizerBase:
            return tokenizer

    tokenizer = next(part for part in task.setup if isinstance(part, PreTrainedTokenizerBase))
    place, kept = export.folder, model.config
    setup, written = place / SETUP, place / "written"
    setup.mkdir()
    task.save_setup(setup)
    if model.can_generate():
        _check_search(model, task)
        model.generation_config.save_pretrained(setup)
    model.config = _as_read(kept)
    if task.architecture == "whisper":
        _widen(model, export)
        _save_for_faster_whisper(place)
    _fill_in(model)
    if known is not None:
        smooth(model, lambda: [task.outputs(model, task.collate_outputs(known, [row])) for row in range(len(known))])
    try:
        Converter(str(setup)).convert(str(written), quantization=WEIGHTS[export.quantize])
    except Exception as error:  # whatever it trips over, there is no file
        onnx = "; --format onnx may serve it" if task.onnx_input() is not None else ""
        raise CheckpointError(
            f"export {task.source.display_name}: CTranslate2 cannot write {type(model).__name__} "
            f"({type(error).__name__}: {first_line(error)}){onnx}."
        ) from error
    finally:
        model.config = kept
    for path in written.iterdir():
        shutil.move(path, place / path.name)
    written.rmdir()
    _name_tokens(place, model, task.source.display_name)


def _check_search(model: PreTrainedModel, task: TaskBase) -> None:
    """Raise CheckpointError for settings of generation that would be lost."""
    own = [it for it in NOT_SEARCHED_BY if task.architecture != "whisper" or "suppress" not in it]
    if lost := [name for name in own if getattr(model.generation_config, name, None)]:
        raise CheckpointError(
            f"export {task.source.display_name}: CTranslate2 is not told {', '.join(lost)} of generation_config.json, "
            "and would write other texts; take it out to export without."
        )


def usage(task: TaskBase, export: Export) -> str:
    """How the export is used, as its card says it."""
    told = f"```bash\ntltasks predict {export.folder.name.removesuffix('.tmp')} …\n```\n"
    if task.architecture != "whisper":
        return told
    return f"{told}\n```python\nfrom faster_whisper import WhisperModel\n\n{FASTER_WHISPER}```\n"


def _as_read(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration as the converters read it.

    transformers 5 says of every T5 that its embeddings are tied, and whether outputs are scaled for it apart
    (configuration_t5.py, `__post_init__`); the converter (ctranslate2 4.8, transformers.py, T5Loader) scales where they
    are said to be tied, and so those of flan-T5 and T5 1.1 by the root of the width too little: beams are other ones.
    """
    found = copy.deepcopy(config)
    if hasattr(found, "scale_decoder_outputs"):
        found.tie_word_embeddings = found.scale_decoder_outputs
    for name, value in NORMALISES.get(config.model_type, {}).items():
        setattr(found, name, getattr(config, name, value))
    return found


def _fill_in(model: PreTrainedModel) -> None:
    """Give wav2vec 2.0's convolutions the bias that the converter asks of all, of zeros where they have none."""
    if (waves := getattr(model, "wav2vec2", None)) is not None:
        for layer in waves.feature_extractor.conv_layers:
            if layer.conv.bias is None:
                layer.conv.bias = nn.Parameter(layer.conv.weight.new_zeros(layer.conv.out_channels))


def _widen(model: PreTrainedModel, export: Export) -> None:
    """Give a fitted window its 30 s of positions back: the file serves faster-whisper, and shorter clips as well.

    Whisper's encoder has sinusoids for positions, which are not trained. Raises CheckpointError for others.
    """
    encoder = model.get_encoder()
    own = encoder.embed_positions.weight.detach().float()
    whole = sinusoids(WHISPER_POSITIONS, own.shape[1])
    n = len(own)
    if n > WHISPER_POSITIONS or (own - whole[:n]).abs().max() > ROUNDING:
        if n == WHISPER_POSITIONS:
            return
        raise CheckpointError(
            f"export: its encoder hears {n / 50:g} s, by positions that are not Whisper's own, and CTranslate2's users "
            "fill clips up to 30 s. Train it with `audio_window` unset, which leaves the window as it is."
        )
    whole[:n] = own
    encoder.embed_positions = nn.Embedding(WHISPER_POSITIONS, own.shape[1], _weight=whole)
    model.config.max_source_positions = WHISPER_POSITIONS


def _save_for_faster_whisper(place: Path) -> None:
    """Put beside the weights what faster-whisper looks for there: how sound is read, in its window, and the tokens."""
    about = json.loads((place / SETUP / "preprocessor_config.json").read_text(encoding="utf-8"))
    hz, seconds = about["sampling_rate"], 2 * WHISPER_POSITIONS // 100
    wide = {"chunk_length": seconds, "n_samples": seconds * hz, "nb_max_frames": 2 * WHISPER_POSITIONS}
    write_json(place / "preprocessor_config.json", about | wide)
    shutil.copy(place / SETUP / "tokenizer.json", place / "tokenizer.json")


def _name_tokens(place: Path, model: PreTrainedModel, display_name: str) -> None:
    """Have every token its own name, and decoding begin as the model was told to; raises CheckpointError for rows
    without one."""
    if not (place / VOCABULARY).is_file():
        return
    tokens: list[str] = json.loads((place / VOCABULARY).read_text(encoding="utf-8"))
    rows = model.get_output_embeddings().weight.shape[0]
    if len(tokens) != rows:
        raise CheckpointError(
            f"export {display_name}: its tokenizer has {len(tokens):,} tokens for {rows:,} rows of weights, so "
            "CTranslate2 would take some for others."
        )
    # T5's converter calls rows beyond the tokenizer's by names that this has for others (ctranslate2 4.8).
    first = {token: i for i, token in reversed(list(enumerate(tokens)))}
    named = [token if first[token] == i else f"<unused_{i}>" for i, token in enumerate(tokens)]
    write_json(place / VOCABULARY, named)
    start = named[int(model.generation_config.decoder_start_token_id)]
    about = json.loads((place / "config.json").read_text(encoding="utf-8"))
    missing = {name: start for name, token in about.items() if name.endswith("_token") and token is None}
    write_json(place / "config.json", about | missing | {"decoder_start_token": start})
