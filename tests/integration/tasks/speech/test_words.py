"""Words with times and confidence, prompts, and answers to what is no speech, through `tltasks.load` and `predict`."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tltasks
from tests.tiny import speech
from tests.tiny.runs import REPOSITORY, run_recipe
from tltasks.cli import main
from tltasks.config.answers import Asked
from tltasks.errors import RecipeError
from tltasks.hub.saved_model import load_saved_model
from tltasks.inference.demo import open_demo
from tltasks.inference.export import export
from tltasks.inference.predictor import Output

SEED = 11
"""Of a tiny Whisper that writes letters."""
CLIPS = sorted((REPOSITORY / "recipes" / "offline" / "voice_prompts" / "clips").glob("*.flac"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    speech.save_whisper(folder / "whisper", seed=SEED, seconds=4, multilingual=False)
    speech.save_ctc(folder / "wav2vec2", "wav2vec2-layer-norm", vocabulary="abc defgh")
    speech.save_moonshine(folder / "moonshine")
    return folder


def check(output: Output, seconds: float) -> None:
    words = output["words"]
    assert "".join(word["text"] for word in words) == "".join(output["prediction"].split())
    assert all(0 <= word["start"] <= word["end"] <= seconds + 0.05 for word in words)
    assert all(a["start"] <= b["start"] + 1e-9 for a, b in itertools.pairwise(words))
    assert all(0 <= word["confidence"] <= 1 for word in words)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2"])
def test_words_are_those_of_the_text(models: Path, name: str) -> None:
    plain, timed = (tltasks.load(models / name, vad=False, words=words) for words in (False, True))
    long = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in CLIPS[:5]])
    inputs = [CLIPS[0], CLIPS[1], (long, 8000)]
    for given, alone, output in zip(inputs, plain(inputs), timed(inputs), strict=True):
        assert alone["prediction"] == output["prediction"]
        assert "words" not in alone
        check(output, len(long) / 8000 if given is inputs[2] else soundfile.info(given).duration)
    assert timed(inputs[0]) == timed(inputs)[0]


def test_an_export_tells_the_same_words(models: Path, tmp_path: Path) -> None:
    export(str(models / "whisper"), tmp_path / "ct2", kind="ctranslate2")
    ours, theirs = (tltasks.load(place, words=True, vad=False) for place in (models / "whisper", tmp_path / "ct2"))
    for path in CLIPS[:2]:
        a, b = ours(path), theirs(path)
        assert a["prediction"] == b["prediction"]
        check(b, soundfile.info(path).duration)
        np.testing.assert_allclose(
            [word["confidence"] for word in a["words"]], [word["confidence"] for word in b["words"]], atol=2e-3
        )


def test_what_was_said_before(models: Path) -> None:
    plain, told = (
        tltasks.load(models / "whisper", vad=False, **keys) for keys in ({}, {"hotwords": "asterisk", "prompt": "abc"})
    )
    hears = told.task.recogniser
    assert hears.before[1:] == tuple(i for ids in hears._text_ids(["asterisk", "abc"]) for i in ids)
    assert hears.tokenizer.decode(hears.before) == "<|startofprev|> asterisk abc"
    assert plain(CLIPS[0])["prediction"] != told(CLIPS[0])["prediction"]
    assert told(CLIPS[0]) == told(CLIPS[:2])[0]


REFUSED = {
    "words": ("moonshine", Asked(words=True), "does not tell when words are said"),
    "a prompt": ("wav2vec2", Asked(prompt="a"), "takes none; Whisper does"),
    "hotwords": ("moonshine", Asked(hotwords="a"), "takes none; Whisper does"),
    "too much": ("whisper", Asked(prompt="a" * 500), "tokens; .* takes 1 to"),
    "signs": ("whisper", Asked(prompt="a <|endoftext|>"), "means something else"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_does_not_serve_is_told_before_its_weights(models: Path, case: str) -> None:
    name, asked, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message):
        load_saved_model(str(models / name), asked=asked)


def test_times_that_are_written_amid_a_text_are_no_words(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may write them unasked, and no tokenizer counts them among its special ones (transformers 5.24)."""
    spell = speech.whisper_tokenizer(multilingual=False).convert_tokens_to_ids
    written = torch.tensor([spell(["h", "a", "<|1.00|>", "Ġ", "b", "<|endoftext|>"])])
    monkeypatch.setattr("tltasks.tasks.speech.seq2seq.write", lambda *_, **__: written)
    found = tltasks.load(models / "whisper", words=True)(CLIPS[0])
    assert [word["text"] for word in found["words"]] == found["prediction"].split() == ["ha", "b"]


def test_silence_and_noise_are_answered_with_nothing(models: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    for i, sound in enumerate((noise, 0 * noise)):
        soundfile.write(tmp_path / f"{i}.wav", sound, 16000)
    hears = tltasks.load(models / "whisper", words=True)
    nothing = hears([tmp_path / "0.wav", CLIPS[0], tmp_path / "1.wav"])
    assert [bool(output["words"]) for output in nothing] == [False, True, False]
    assert nothing[0]["prediction"] == nothing[2]["prediction"] == ""
    assert hears(tmp_path / "0.wav") == nothing[0]
    assert nothing[1] == hears(CLIPS[0])
    demo = open_demo(
        str(models / "whisper"), tag=None, revision="main", trust_remote_code=False, top_k=1, precision="fp32"
    )
    assert demo.predict(str(tmp_path / "0.wav"))["prediction"] == ""
    every = tltasks.load(models / "whisper", vad=False)
    assert every(tmp_path / "0.wav")["prediction"]
    assert nothing[1]["prediction"] == every(CLIPS[0])["prediction"]


def test_subtitles_are_of_one_recording(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["predict", str(models / "whisper"), "--no-vad"]
    assert main([*begin, str(CLIPS[0]), "--output", str(tmp_path / "a.vtt")]) == 0
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    assert main([*begin, str(CLIPS[0]), str(CLIPS[1]), "--output", str(tmp_path / "b.srt")]) == 2
    assert "is of one recording. Name one file, or an output for the name of each: '" in capsys.readouterr().err
    assert main([*begin, str(CLIPS[0].parent), "--output", str(tmp_path / "b.srt")]) == 2
    assert not (tmp_path / "b.srt").exists()
    assert main([*begin, str(CLIPS[0]), str(CLIPS[1]), "--words", "--output", str(tmp_path / "c.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert all([word["text"] for word in line["words"]] == line["prediction"].split() for line in lines)


def test_subtitles_of_each_recording_have_its_name(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them is no recording; two have one name; what is written already is passed over."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(CLIPS[0], tmp_path / folder / "one.flac")
    shutil.copy(CLIPS[1], tmp_path / "a" / "two.flac")
    (tmp_path / "b" / "three.wav").write_bytes(b"no sound")
    begin = ["predict", str(models / "whisper"), "--no-vad"]
    sounds = [str(tmp_path / "a"), str(tmp_path / "b")]
    (tmp_path / "out").mkdir()
    each = ["--output", str(tmp_path / "out" / "*.vtt")]
    assert main([*begin, sounds[0], *each]) == 0
    assert main([*begin, *sounds, *each]) == 2
    assert "Complete it with --resume" in capsys.readouterr().err
    assert main([*begin, *sounds, *each, "--resume", "--language", "en"]) == 2
    assert main([*begin, *sounds, *each, "--resume"]) == 3
    assert "2 were there already" in capsys.readouterr().err
    found = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.vtt")}
    assert found.keys() == {"one.vtt", "two.vtt", "one-2.vtt"}
    assert found["one.vtt"] == found["one-2.vtt"]
    assert main([*begin, sounds[0], "--output", str(tmp_path / "*.jsonl")]) == 2
    assert "stands for each recording's name" in capsys.readouterr().err


def test_confidence_is_settled_by_validation_and_kept(tmp_path: Path) -> None:
    model = speech.save_whisper(tmp_path / "model", seed=SEED, seconds=4, multilingual=False)
    stage = "{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-6}"
    recipe = speech.write_recipe(tmp_path / "recipe.yaml", model, speech.save_data(tmp_path / "data"), stage=stage)
    run_recipe(recipe, tmp_path / "run")
    slope, shift = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["word_confidence"]
    assert shift < 0  # nearly all of what it writes is wrong
    hears = tltasks.load(tmp_path / "run", words=True, vad=False)
    assert (hears.task.calibration.slope, hears.task.calibration.shift) == (slope, shift)
    again = tltasks.load(tmp_path / "model", words=True, vad=False)
    assert (again.task.calibration.slope, again.task.calibration.shift) == (1.0, 0.0)
