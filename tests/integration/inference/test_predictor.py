"""`tltasks.inference.load` and the Predictor that it gives, as a program uses them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from tests.tiny import images, speech, texts
from tests.tiny.runs import REPOSITORY
from tltasks.cli import main
from tltasks.errors import DataError, RecipeError
from tltasks.inference import Output, Predictor, load
from tltasks.inference.predictor import CHUNK_ROWS

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(images.save_model(tmp_path_factory.mktemp("vit"), labels=list(images.COLOURS)), precision="fp32")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(images.png(images.picture("red", RNG)))
    return path


def alike(outputs: list[Output], one: Output, count: int) -> bool:
    """To rounding, which depends on how many inputs go through together."""
    close = [output["probability"] == pytest.approx(one["probability"], rel=1e-5) for output in outputs]
    return len(outputs) == count and all(close) and {output["prediction"] for output in outputs} == {one["prediction"]}


def test_one_picture_in_any_form(classifier: Predictor, picture: Path) -> None:
    image = Image.open(picture)
    forms: list[Any] = [
        str(picture),
        picture,
        image,
        np.asarray(image),
        {"bytes": picture.read_bytes()},
        io.BytesIO(picture.read_bytes()),
        {"image": image, "label": 2},
    ]
    outputs = [classifier(form) for form in forms]
    assert outputs == [outputs[0]] * len(forms)
    first: Output = outputs[0]
    assert first.keys() == {"prediction", "probability", "top"}
    assert first["top"][0] == {"label": first["prediction"], "probability": first["probability"]}
    assert sum(each["probability"] for each in first["top"]) == pytest.approx(1)
    assert [each["label"] for each in classifier(picture, top_k=1)["top"]] == [first["prediction"]]
    json.dumps(first)
    assert repr(classifier) == "Predictor(image-classification, cpu, fp32)"


def test_the_command_line_says_the_same(
    classifier: Predictor, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(classifier.saved.folder)
    assert main(["predict", folder, str(picture), "--precision", "fp32"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"input": str(picture), **classifier(picture)} == said


def test_a_list_gives_a_list_and_a_stream_a_stream(
    classifier: Predictor, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = classifier(picture)
    assert alike(classifier([picture, str(picture)]), one, 2)
    assert classifier([]) == []
    read = 0

    def pictures() -> Iterator[Path]:
        nonlocal read
        while True:
            read += 1
            yield picture

    stream = classifier(pictures())
    assert read == 0, "nothing is read before it is asked for"
    assert alike([next(stream)], one, 1)
    assert read <= CHUNK_ROWS + 1, "a chunk at most, and what shows that it is full"
    rows = datasets.Dataset.from_dict({"image": [{"bytes": picture.read_bytes(), "path": None}] * 3})
    assert alike(list(classifier(rows)), one, 3)
    assert capfd.readouterr() == ("", ""), "values are returned, nothing is printed"


def test_what_cannot_be_read_is_raised_or_told(classifier: Predictor, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    bad: dict[str, Any] = {
        "gone.png: file not found": "gone.png",
        "notes.png: not an image": tmp_path / "notes.png",
        "https://example.org/a.png: is a URL": "https://example.org/a.png",
        "image: not an image": np.zeros((2, 2, 7)),
        "image: not an image .a Tensor": torch.zeros(3, 4, 4),
        "image: no image": None,
    }
    for said, value in bad.items():
        with pytest.raises(DataError, match=said):
            classifier(value)
    outputs = classifier([picture, *bad.values()])
    assert outputs[0]["prediction"] == classifier(picture)["prediction"]
    assert [output.keys() for output in outputs[1:]] == [{"error"}] * len(bad)
    with pytest.raises(RecipeError, match="top_k 0"):
        classifier(picture, top_k=0)
    with pytest.raises(RecipeError, match="not found"):
        load(tmp_path / "nothing")


def test_sound(tmp_path: Path) -> None:
    recogniser = load(speech.save_ctc(tmp_path / "ctc", vocabulary="red blue"), precision="fp32", vad=False)
    samples, hz = speech.say(["red", "blue"], RNG), 16_000
    soundfile.write(tmp_path / "clip.wav", samples, hz, subtype="PCM_16")
    kept, _ = soundfile.read(tmp_path / "clip.wav", dtype="float32")
    outputs = recogniser([str(tmp_path / "clip.wav"), (kept, hz), {"array": kept, "sampling_rate": hz}])
    assert outputs == [outputs[0]] * 3
    assert recogniser((kept, hz)) == outputs[0]
    assert outputs[0]["segments"] == [{"start": 0.0, "end": 0.8, "text": outputs[0]["prediction"]}]
    assert outputs[0]["repetition_loop"] is False
    assert outputs[0]["language"] is None
    with pytest.raises(DataError, match="audio: has samples without their rate"):
        recogniser(kept)


def test_the_language_that_is_heard(tmp_path: Path) -> None:
    folder = speech.save_whisper(tmp_path / "whisper", seconds=2)
    clips = [(speech.say([word], RNG), 16_000) for word in ("red", "blue")]
    answers = load(folder, precision="fp32", vad=False)(clips)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    extract, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), WhisperTokenizer.from_pretrained(folder)
    for (samples, hz), answer in zip(clips, answers, strict=True):
        features = extract(samples, sampling_rate=hz, return_tensors="pt").input_features
        assert tokenizer.decode(model.detect_language(features)[0]) == f"<|{answer['language']}|>"
        written = model.generate(features, task="transcribe")[0]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        assert text.startswith(answer["prediction"]) if answer["repetition_loop"] else text == answer["prediction"]
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "language": "hi"}))
    assert load(folder, precision="fp32", vad=False)(clips[0])["language"] == "hi"


def test_texts(tmp_path: Path) -> None:
    summarise = load(texts.save_model(tmp_path / "bart", "bart"), precision="fp32")
    document = "the cats said a train was in the rain"
    (tmp_path / "document.txt").write_text(document)
    output = summarise(document)
    assert isinstance(output["prediction"], str)
    assert summarise([tmp_path / "document.txt", {"document": document}]) == [output, output]
    with pytest.raises(DataError, match="document: empty document"):
        summarise("")


def test_two_number_formats_in_one_process(classifier: Predictor, picture: Path) -> None:
    other = load(classifier.saved.folder, precision="bf16")
    assert other(picture)["top"] != classifier(picture)["top"]
    assert other(picture)["prediction"] == classifier(picture)["prediction"]


def test_the_documentation_runs_as_printed(
    classifier: Predictor,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = (REPOSITORY / "docs" / "predict.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    Path("outputs/photos").symlink_to(classifier.saved.folder)
    for name in ("photo.jpg", "a.jpg"):
        Path(name).symlink_to(picture)
    exec(code, {})
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.split()[0] == classifier(picture)["prediction"]
    assert "'label'" in second
    assert third.startswith("file not found")
