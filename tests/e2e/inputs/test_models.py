"""Pictures, texts and checkpoints that nobody meant to make: each is read rightly, or refused by name."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers import decoders as token_decoders
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

import tltasks
from tests.tiny import images, texts
from tests.tiny.runs import run_recipe
from tests.tiny.subjects import MORE, SUBJECTS
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.recipe import plan_run
from tltasks.config.tasks.text import TextData, TextModel
from tltasks.data.splits import EncodedSplit
from tltasks.errors import CheckpointError, DataError, TltasksError
from tltasks.models.loading import open_generation
from tltasks.runs.story import open_stages
from tltasks.tasks.chat import PROMPT_DATE
from tltasks.tasks.classes import train_classes
from tltasks.tasks.image.decoding import ODDITY, TRANSPARENT, decode_image
from tltasks.tasks.image.preprocessing import ImageTask
from tltasks.tasks.text.prompting import TextFormat, open_format
from tltasks.tasks.vocabulary import MOST_LOST, lost_characters, lost_share

# peft 0.21 asks transformers 5.24 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

# ------------------------------------------------------------------------------------------- pictures

DEEP = np.array([[0, 257, 30000, 65535]], dtype=np.uint16)
LEVELS = [0, 1, 117, 255]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def tiff(values: bytes, width: int, *, bits: int, kind: int = 1, photometric: int = 1) -> bytes:
    """One row of a grey TIFF; `kind` is its sample format (1 unsigned, 2 signed, 3 float)."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: 1,
        278: 1,
        279: len(values),
        339: kind,
    }
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values


def transparent(mode: str, *, alpha: int = 0) -> Image.Image:
    """Black, of which the right half has this opacity."""
    whole = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    whole.putpixel((1, 0), (0, 0, 0, alpha))
    return whole.convert(mode)


def palette_of_alphas() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putdata([0, 1])
    return image


PICTURES: dict[str, tuple[Any, list[int]]] = {
    "16-bit PNG": (saved(Image.fromarray(DEEP), "PNG"), LEVELS),
    "16-bit TIFF, compressed": (saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"), LEVELS),
    "16-bit JPEG 2000": (saved(Image.fromarray(DEEP), "JPEG2000", irreversible=False), LEVELS),
    "16-bit TIFF whose white is zero": (
        tiff(DEEP.tobytes(), 4, bits=16, photometric=0),
        [255, 254, 138, 0],
    ),
    "12-bit TIFF": (tiff(bytes([0xFF, 0xF8, 0x00, 0x00, 0x00, 0x00]), 4, bits=12), [255, 128, 0, 0]),
    "16-bit PGM": (saved(Image.fromarray(DEEP), "PPM"), LEVELS),
    "dark 16-bit PGM": (b"P5 2 1 65535\n" + np.array([0, 200], ">u2").tobytes(), [0, 1]),
    "PGM of 10 bits": (b"P5 2 1 1023\n" + np.array([1023, 512], ">u2").tobytes(), [255, 128]),
    "16-bit array of one channel": (DEEP[:, :, None], LEVELS),
    "16-bit array in colour": (np.dstack([DEEP] * 3), LEVELS),
    "16-bit big-endian array": (DEEP.astype(">u2"), LEVELS),
    "PIL's I": (Image.fromarray(DEEP.astype(np.int32)), LEVELS),
    "PIL's I;16B": (Image.frombytes("I;16B", (4, 1), DEEP.astype(">u2").tobytes()), LEVELS),
    "integers of 64 bits, as lists become": (np.array([[0, 7, 255]]), [0, 7, 255]),
    "shares of white in 16 bits": (np.array([[0, 0.5, 1]], np.float16), [0, 128, 255]),
    "shares of white in 64 bits": (np.array([[0, 0.5, 1]]), [0, 128, 255]),
    "float TIFF": (saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"), [0, 128, 255]),
    "dark float TIFF": (saved(Image.fromarray(np.array([[0, 0.1]], np.float32)), "TIFF"), [0, 26]),
    "PFM": (b"Pf 2 1 -1.0\n" + np.array([0.5, 1], "<f4").tobytes(), [128, 255]),
    "booleans": (np.array([[True, False]]), [255, 0]),
    "one bit whose white is zero": (
        saved(Image.fromarray(np.array([[True, False]])), "TIFF", tiffinfo={262: 0}),
        [255, 0],
    ),
    "RGBA": (saved(transparent("RGBA"), "PNG"), [0, 255]),
    "RGBA as WebP": (saved(transparent("RGBA"), "WEBP", lossless=True, exact=True), [0, 255]),
    "RGBA as TIFF": (saved(transparent("RGBA"), "TIFF"), [0, 255]),
    "half transparent": (saved(transparent("RGBA", alpha=128), "PNG"), [0, 127]),
    "grey with alpha": (saved(transparent("LA"), "PNG"), [0, 255]),
    "premultiplied alpha": (transparent("RGBA", alpha=128).convert("RGBa"), [0, 127]),
    "premultiplied grey": (transparent("LA").convert("La"), [0, 255]),
    "palette with alphas": (saved(palette_of_alphas(), "PNG", transparency=b"\xff\x00"), [0, 255]),
    "GIF with a transparent colour": (saved(palette_of_alphas(), "GIF", transparency=1), [0, 255]),
    "colour that stands for nothing": (
        saved(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
        [255],
    ),
    "icon": (saved(transparent("RGBA").resize((16, 16), 0), "ICO"), [0] * 8 + [255] * 8),
    "array with alpha": (np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), [0, 255]),
    "float array with alpha": (np.array([[[0, 0, 0, 1], [0, 0, 0, 0.0]]]), [0, 255]),
    "opaque RGBA": (saved(transparent("RGBA", alpha=255), "PNG"), [0, 0]),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_are_as_bright_as_they_are_stored(kind: str) -> None:
    value, levels = PICTURES[kind]
    image = decode_image(value)
    np.testing.assert_allclose(np.asarray(image)[0].astype(int), np.repeat(np.array(levels)[:, None], 3, 1), atol=1)
    sees_through = 255 in levels and not np.array_equal(levels, LEVELS) and ("alpha" in kind or "RGBA" in kind)
    assert not sees_through or "opaque" in kind or image.info[ODDITY] is not None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (tiff(np.array([-5, 9], "<i2").tobytes(), 2, bits=16, kind=2), "integers from -5 to 9"),
        (tiff(np.array([0, 2**20], "<u4").tobytes(), 2, bits=32), "integers from 0 to 1,048,576"),
        (tiff(np.array([0.5, np.nan], "<f4").tobytes(), 2, bits=32, kind=3), "floats from nan to nan"),
        (np.array([[0.0, 4095.0]]), "floats from 0 to 4,095"),
        (np.array([[0.0, 0.5, 1.02]]), "floats from 0 to 1.02"),
        (np.array([[-1.0, 1.0]], np.float32), "floats from -1 to 1"),
        (np.array([[-1, 1]], np.int8), "integers from -1 to 1"),
        (np.array([[0, 2**40]]), "integers from 0 to 1.09951163e+12"),
    ],
)
def test_pictures_whose_white_is_unknown_are_refused(value: Any, found: str) -> None:
    with pytest.raises(DataError, match="which do not tell what is black and white") as raised:
        decode_image(value)
    assert str(raised.value).startswith(found)


def encoded_pictures(*oddities: str | None) -> EncodedSplit:
    rows = tltasks_rows({ODDITY: list(oddities)})
    return EncodedSplit("train", rows, "pictures train", {}, "")


def tltasks_rows(columns: dict[str, list[Any]]) -> Any:
    import datasets

    return datasets.Dataset.from_dict(columns)


def test_one_brightness_that_would_be_two_is_refused_and_transparent_pictures_counted() -> None:
    def checks(*oddities: str | None) -> dict[str, float]:
        return ImageTask.data_checks(None, {"train": encoded_pictures(*oddities)})["train"]  # type: ignore[arg-type]

    bright, dark = (decode_image(np.array([[0, most]])).info[ODDITY] for most in (40000, 200))
    assert checks(None, TRANSPARENT, bright, bright, TRANSPARENT) == {"transparent_blended_with_white": 2}
    assert checks(dark, None) == {"transparent_blended_with_white": 0}
    with pytest.raises(DataError, match=r"pictures train: some images hold .*255 is white.* and .*65,535 is white"):
        checks(dark, None, bright)


# ------------------------------------------------------------------------------------------- vocabularies


def unigram(folder: Path) -> Any:
    return texts.save_tokenizer(folder, "t5")


def byte_pairs(folder: Path) -> Any:
    return texts.save_tokenizer(folder, "gpt2")


def word_pieces(folder: Path) -> PreTrainedTokenizerFast:
    """As BERT's, without case and accents."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), ".", ","]
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(known)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.decoder = token_decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")


def pairs_without_unknown(folder: Path) -> PreTrainedTokenizerFast:
    """Merges of letters, with nothing for a letter that is not there: it vanishes."""
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdefghijklmnop")}, []))
    core.decoder = token_decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)


LOST: dict[str, tuple[Any, str, str]] = {
    "plain words": (unigram, "small cats sleep", ""),
    "Chinese for T5": (unigram, "今天气很好", "今天气很好"),
    "Cyrillic among Latin": (unigram, "cats дом", "дом"),
    "digits that Python counts": (unigram, "cats ²", "2"),
    "letters of full width": (unigram, "ｃats", "c"),
    "Chinese in bytes": (byte_pairs, "今天", ""),
    "emoji in bytes": (byte_pairs, "🙂", ""),
    "accents that are left out on purpose": (word_pieces, "déjà", "éà"),
    "capitals": (word_pieces, "DEJA, vu.", ""),
    "an emoji in pieces": (word_pieces, "so 🙂", "🙂"),
    "letters that vanish": (pairs_without_unknown, "abz", "z"),
    "white space, joiners, soft hyphens": (word_pieces, "a\u00adb\u200d\n\n c\t", ""),
    "nothing": (unigram, "", ""),
}


@pytest.mark.parametrize("kind", LOST)
def test_characters_that_a_tokenizer_loses(kind: str, tmp_path: Path) -> None:
    make, text, lost = LOST[kind]
    tokenizer = make(tmp_path)
    ids = tokenizer([text], add_special_tokens=False)["input_ids"]
    assert sorted(lost_characters(tokenizer, [text], ids)[0]) == sorted(lost)
    reads_all = kind.startswith("accents")
    assert sorted(lost_characters(tokenizer, [text], ids, unknown_only=True)[0]) == ([] if reads_all else sorted(lost))


def test_a_share_that_is_too_large_is_refused_with_examples() -> None:
    assert lost_share(["", "é"], 100, most=MOST_LOST, where="w") == 0.01
    with pytest.raises(DataError, match=r"^w 50% of the characters \(今 天\), and 10% may be lost"):
        lost_share(["今天", "今"], 6, most=MOST_LOST, where="w")


def test_unknown_characters_are_counted_before_training(tmp_path: Path) -> None:
    """Classifiers are told; what writes is refused."""
    texts.save_objective(tmp_path / "bert", "bert")
    rows = [{"text": "the cats 今", "label": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (
        f"data: {{name: json, files: {{train: {tmp_path}/rows.jsonl, test: {tmp_path}/rows.jsonl}}, max_tokens: 32}}\n"
    )
    top = f"model: {{name: {tmp_path}/bert}}\nprecision: fp32\n{data}"
    for task, stage in (("text-classification", "transfer"), ("masked-language-modeling", "finetune")):
        path = tmp_path / f"{task}.yaml"
        path.write_text(
            f"task: {task}\n{top}output: out\n"
            f"stages: [{{stage: {stage}, steps: 1, batch_size: 4, learning_rate: 1e-3}}]\n"
        )
        if stage == "transfer":
            checks = open_stages(plan_run(load_recipe(path)))[1][0].checks
            assert checks["train"]["characters_unknown_share"] == 0.125
        else:
            with pytest.raises(DataError, match=r"the tokenizer of .*bert does not know 12% of the characters \(今\)"):
                open_stages(plan_run(load_recipe(path)))


def test_summaries_that_cannot_be_written_can_still_be_scored_by(tmp_path: Path) -> None:
    texts.save_model(tmp_path / "t5", "t5")
    rows = [{"document": "small cats sleep all day", "summary": "今天"}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def checks(stage: str) -> dict[str, Any]:
        path = tmp_path / "r.yaml"
        path.write_text(
            f"task: summarization\nmodel: {{name: {tmp_path}/t5}}\nprecision: fp32\noutput: out\n"
            f"data: {{name: json, files: {{train: {tmp_path}/rows.jsonl, test: {tmp_path}/rows.jsonl}}}}\n"
            f"stages: [{stage}]\n"
        )
        return open_stages(plan_run(load_recipe(path)))[1][0].checks

    assert checks("{stage: zero_shot}")["test"]["summary_characters_unknown_share"] == 1.0
    with pytest.raises(DataError, match=r"column `summary`: the tokenizer of .* does not know 100%"):
        checks("{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3}")


# --------------------------------------------------------------------------------- settings of generation

SETTINGS: dict[str, dict[str, Any]] = {
    "longest": {"max_length": 8},
    "beams": {"max_length": 9, "num_beams": 3, "length_penalty": 0.5, "early_stopping": True},
    "no repetition": {"max_length": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "shortest": {"max_length": 12, "min_length": 6},
    "new tokens": {"max_new_tokens": 5},
    "for another task": {"max_length": 8, "task_specific_params": {"translation": {"max_length": 3}}},
}


def older_checkpoint(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """As transformers saved it before there was generation_config.json."""
    texts.save_model(folder, name)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_of_generation_in_an_older_configuration(kind: str, name: str, tmp_path: Path) -> None:
    folder = older_checkpoint(tmp_path / "model", name, SETTINGS[kind])
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    own = theirs.generation_config.to_dict()
    del own["_from_model_config"]  # with which transformers leaves the settings out when it saves them
    assert {k: v for k, v in open_generation(Checkpoint(str(folder))).to_dict().items() if k in own} == own
    document = "the cats and some trains"
    model = tltasks.load(folder, task="summarization")
    asked = model.task.form.prompt.replace("{document}", document)
    ids = theirs.generate(
        **{k: v for k, v in model.task.form.tokenizer(asked, return_tensors="pt").items() if k != "token_type_ids"}
    )
    assert model(document)["prediction"] == model.task.form.decode(ids[0])


def test_a_recipe_decides_and_a_checkpoint_where_it_does_not(tmp_path: Path) -> None:
    older_checkpoint(tmp_path / "t5", "t5", {"max_length": 8, "num_beams": 3})
    texts.save_data(tmp_path / "data", rows=8)

    def limit(keys: str, stage: str = "{stage: zero_shot}") -> int:
        path = texts.write_recipe(tmp_path / "r.yaml", tmp_path / "t5", tmp_path / "data", stage=stage)
        path.write_text(path.read_text().replace("  max_summary_tokens: 32\n", keys))
        task: Any = open_stages(plan_run(load_recipe(path)))[1][0].task
        return int(task.form.max_summary_tokens)

    assert limit("") == 7
    assert limit("  max_summary_tokens: 20\n") == 20
    assert limit("", "{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3}") == 64


# ------------------------------------------------------------------------------------ prompts and dates

DATES: dict[str, tuple[str, bool]] = {
    "the clock": ("{{ strftime_now('%d %b %Y') }}", True),
    "the clock, if there is one (Llama)": (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}Today Date: {{ date_string }}\n",
        True,
    ),
    "a month and a weekday": ("{{ strftime_now('%B, %A') }}", True),
    "named, in other quotes": ('{{ strftime_now(format="%Y-%m-%d") }}', True),
    "a default of its own": ("{{ date_string | default('1 May') }}", False),
    "none": ("", False),
    "another's variable": ("{{ current_date | default('') }}", False),
}


@pytest.mark.parametrize("kind", DATES)
def test_prompts_do_not_change_with_the_date(kind: str, tmp_path: Path) -> None:
    opening, dated = DATES[kind]
    made = texts.save_tokenizer(tmp_path, "llama")
    made.chat_template = opening + texts.CHAT_TEMPLATE
    made.save_pretrained(tmp_path)
    config, data = transformers.LlamaConfig(max_position_embeddings=512), TextData(name="u/d", max_document_tokens=400)

    def opened() -> TextFormat:
        return open_format(Checkpoint(str(tmp_path), display_name="m"), config, TextModel(name="m"), data)

    form = opened()
    assert form.dated is dated
    said = form.tokenizer.decode(form.encode_documents(["the cats"])[0][0])
    assert ("2024" in said or "July, Friday" in said) is dated
    assert date(2024, 7, 26) == PROMPT_DATE
    form.tokenizer.save_pretrained(tmp_path)
    again = opened()
    assert (again.dated, again.encode_documents(["the cats"])) == (False, form.encode_documents(["the cats"]))


def test_a_date_that_cannot_be_fixed_is_refused(tmp_path: Path) -> None:
    made = texts.save_tokenizer(tmp_path, "llama")
    made.chat_template = "{% set form = '%d' %}{{ strftime_now(form) }}" + texts.CHAT_TEMPLATE
    made.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="says what day it is"):
        open_format(Checkpoint(str(tmp_path)), transformers.LlamaConfig(), TextModel(name="m"), TextData(name="u/d"))


# ----------------------------------------------------------------------------------------- names of classes


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["²", "1"], ["1", "²"]),
        (["٣", "1", "2"], ["1", "2", "٣"]),
        (["--5", "3"], ["--5", "3"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),
        (["①", "x"], ["x", "①"]),
    ],
)
def test_classes_that_python_takes_for_numbers(names: list[str], order: list[str]) -> None:
    from collections import Counter

    from tltasks.data.splits import Split

    rows = tltasks_rows({"label": names})
    assert train_classes(Split("train", rows, "d", None, "data"), Counter(names), None) == order


# ------------------------------------------------------------------------------ checkpoints that do not fit

Change = Callable[[Path], object]


def configured(**changes: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def written(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut_short(folder: Path) -> None:
    place = folder / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-100])


MISFITS: dict[str, tuple[Change, str]] = {
    "one layer more": (
        configured(num_hidden_layers=3),
        r"does not fit its weights \(vit\.\S*2\.\S+ is not in the file",
    ),
    "one layer less": (configured(num_hidden_layers=1), r"does not fit its weights \(vit\.\S*1\.\S+ has no place"),
    "wider layers": (configured(intermediate_size=96), r"fc1\.weight is \[64, 32\] in the file and \[96, 32\] by"),
    "wider throughout": (configured(hidden_size=64), r"and \d+ more\), or these are not of a ViTForImageClass"),
    "other patches": (configured(patch_size=4), r"projection\.weight is \[32, 3, 8, 8\] in the file"),
    "colours": (configured(num_channels=1), "is .* in the file and .* by the configuration"),
    "another head": (configured(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}), "no weights for its head"),
    "another architecture": (
        configured(model_type="deit"),
        "does not fit its weights|not in the checkpoint|no weights",
    ),
    "no weights": (without("model.safetensors"), "its weights cannot be loaded"),
    "weights of no length": (written("model.safetensors", b""), "its weights cannot be loaded"),
    "weights of zeros": (written("model.safetensors", bytes(64)), "its weights cannot be loaded"),
    "weights cut short": (cut_short, "its weights cannot be loaded"),
    "a pickle alone": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "its weights cannot be loaded",
    ),
    "no processor": (without("preprocessor_config.json"), "has no image processor"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_checkpoints_that_do_not_fit_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    change, told = MISFITS[kind]
    images.save_model(tmp_path / "vit")
    change(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=told) as raised:
        tltasks.load(tmp_path / "vit", task="image-classification")
    assert "\n" not in str(raised.value)


def test_a_recipe_may_ask_for_fewer_layers_and_other_sizes(tmp_path: Path) -> None:
    """What a recipe changes is no misfit, as far as there are weights for it."""
    images.save_model(tmp_path / "vit")
    images.save_data(tmp_path / "data")
    path = images.write_recipe(tmp_path / "r.yaml", tmp_path / "vit", tmp_path / "data")
    for keys, fits in (("{num_hidden_layers: 1}", True), ("{num_hidden_layers: 3}", False)):
        (stage,) = open_stages(plan_run(load_recipe(path, [f"model.config={keys}"])))[1]
        if fits:
            assert stage.task.build(stage.plan.kind).model.config.num_hidden_layers == 1
        else:
            with pytest.raises(CheckpointError, match="is not in the file"):
                stage.task.build(stage.plan.kind)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama", "pegasus"])
def test_no_tokenizer(name: str, tmp_path: Path) -> None:
    """For most families transformers makes one, which knows nothing."""
    texts.save_model(tmp_path / name, name)
    for file in [*tmp_path.rglob("tokenizer*"), *tmp_path.rglob("special_tokens*")]:
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        tltasks.load(tmp_path / name, task="summarization")


# ------------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 in `base`, and in `adapter` LoRA on it."""
    folder = tmp_path_factory.mktemp("adapted")
    texts.save_model(folder / "base", "t5")
    base = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return folder


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")


def renamed(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    changed = {key.replace("block.1.", "layer.1."): value for key, value in weights.items()}
    save_file(changed, folder / "adapter_model.safetensors")


def cut_ranks(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({key: value[:1].clone() for key, value in weights.items()}, folder / "adapter_model.safetensors")


ADAPTERS: dict[str, tuple[Change, str]] = {
    "a pickle": (pickled, "adapter_model.bin, a pickle, which could run code and is not opened"),
    "no weights": (without("adapter_model.safetensors"), "the weights of its adapter are missing"),
    "weights of no length": (written("adapter_model.safetensors", b""), "its weights cannot be loaded"),
    "for other layers": (renamed, "its weights cannot be loaded: Found missing adapter keys"),
    "of another rank": (cut_ranks, "its weights cannot be loaded: .*size mismatch for"),
    "settings that are a list": (written("adapter_config.json", b"[]"), "adapter_config.json cannot be read"),
    "of no base": (written("adapter_config.json", b"{}"), "names no base model"),
    "of a base that is gone": (written("adapter_config.json", b'{"base_model_name_or_path": "/gone"}'), "is not there"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_foreign_adapters_are_refused_by_name(kind: str, adapted: Path, tmp_path: Path) -> None:
    change, told = ADAPTERS[kind]
    shutil.copytree(adapted / "adapter", tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=told):
        tltasks.load(tmp_path / "adapter", task="summarization")
    assert not list(tmp_path.rglob("ran"))


def test_a_foreign_adapter_answers_as_peft_does(adapted: Path) -> None:
    model = tltasks.load(adapted / "adapter", task="summarization")
    base = AutoModelForSeq2SeqLM.from_pretrained(adapted / "base")
    theirs = peft.PeftModel.from_pretrained(base, adapted / "adapter").eval()
    task: Any = model.task
    ids = task.form.tokenizer("summarize: the cats", return_tensors="pt").input_ids
    settings = task.form.decoding(base.generation_config, task.plan.model.generation)
    assert model("the cats")["prediction"] == task.form.decode(
        theirs.generate(input_ids=ids, generation_config=settings)[0]
    )


# ------------------------------------------------------------------------------------ what is asked of adapters


@pytest.mark.parametrize(
    ("adapt", "told"),
    [
        ("{lora: {rank: 1000000000000000000}}", "adapt.lora: 1,000,000,000,000,000,000 .* is more than the 80"),
        ("{dora: {rank: 1000000000}}", "adapt.dora: 1,000,000,000 .* more than the 80"),
        ("{adalora: {init_r: 100000000, target_r: 8}}", "adapt.adalora: 100,000,000"),
        ("{peft: {type: vera, r: 100000000}}", "adapt.peft: 100,000,000"),
        ("{prompt: {tokens: 1000000000}}", "adapt.prompt"),
    ],
)
def test_ranks_that_no_machine_holds(adapt: str, told: str, tmp_path: Path) -> None:
    texts.save_model(tmp_path / "t5", "t5")
    texts.save_data(tmp_path / "data", rows=8)
    stage = f"{{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3, adapt: {adapt}}}"
    path = texts.write_recipe(tmp_path / "r.yaml", tmp_path / "t5", tmp_path / "data", stage=stage)
    with pytest.raises(TltasksError, match=told):
        run_recipe(path, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("name", ["simmim", "simclr"])
def test_scaling_layers_beside_a_head_that_is_no_layer(name: str, tmp_path: Path) -> None:
    """IA³, whose merging asks a module that is trained whole for its weight."""
    subject = (SUBJECTS | MORE)[name]
    subject.save(tmp_path)
    path = subject.write(tmp_path / "r.yaml", tmp_path, steps=1, batch_size=8, learning_rate=1e-2, adapt={"ia3": {}})
    difference = run_recipe(path, tmp_path / "run").best.weights.saved_difference
    assert difference is not None
    assert difference < 1e-5


def test_what_is_scored_is_what_is_saved(tmp_path: Path) -> None:
    """An adapter beside the weights rounds otherwise than one in them, which in bf16 changes answers."""
    images.save_model(tmp_path / "vit")
    images.save_data(tmp_path / "data")
    stage = "{stage: transfer, steps: 6, batch_size: 16, learning_rate: 3e-2, adapt: {lora: {rank: 8}}, keep: last}"
    path = images.write_recipe(tmp_path / "r.yaml", tmp_path / "vit", tmp_path / "data", stage=stage, precision="bf16")
    run_recipe(path, tmp_path / "run")
    (kept,) = (tmp_path / "run" / "predictions").glob("*-test.parquet")
    recorded = [max(row) for row in pq.read_table(kept).to_pydict()["probabilities"]]
    pictures = [row["image"]["bytes"] for row in pq.read_table(tmp_path / "data" / "test.parquet").to_pylist()]
    answers = tltasks.load(tmp_path / "run")(pictures)
    np.testing.assert_allclose([answer["probability"] for answer in answers], recorded, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.image_size=1000000000000000000", "expected a number of at most 8192"),
        ("model.image_size=1", "its image processor makes nothing of an image"),
        ("model.config={num_hidden_layers: 1000000000000}", "1,000,000,000,000 is more than 10,000"),
        ("model.config={hidden_size: 0}", "its weights cannot be loaded"),
    ],
)
def test_sizes_that_no_model_has(change: str, told: str, tmp_path: Path) -> None:
    images.save_model(tmp_path / "vit")
    images.save_data(tmp_path / "data")
    path = images.write_recipe(tmp_path / "r.yaml", tmp_path / "vit", tmp_path / "data")

    def build() -> None:
        (stage,) = open_stages(plan_run(load_recipe(path, [change])))[1]
        stage.task.build(stage.plan.kind)

    with pytest.raises(TltasksError, match=told):
        build()
