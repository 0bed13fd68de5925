"""Exports in each format: what they answer, alone and together, and what is made of those that answer worse."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig

from tests.tiny import images, speech, texts
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.hub.saved_model import SavedModel, load_saved_model, resolve_checkpoint
from tltasks.inference import export as exporting
from tltasks.inference import rescoring
from tltasks.inference.export import export
from tltasks.inference.predictor import load
from tltasks.models import exported
from tltasks.models.exported import Export, whisper_prompt
from tltasks.models.writing import FirstTokens
from tltasks.results.result import Rescored

DRAWN = np.random.default_rng(0)
CLIPS = [(DRAWN.normal(0, 0.1, n).astype(np.float32), 16000) for n in (16000, 9000, 30000)]
DOCUMENTS = [texts.pair(DRAWN)["document"] for _ in range(4)]
WAVES: dict[str, Any] = {
    **speech._WAVES,
    "conv_dim": [32] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}

ORDINARY = ("whisper", "wav2vec2", "t5", "bart")


def _save_waves(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(speech.CTC_CONFIGS, "wav2vec2-layer-norm", lambda: transformers.Wav2Vec2Config(**WAVES))
        speech.save_ctc(folder, "wav2vec2-layer-norm", vocabulary="abc def")


def _save_texts(name: str) -> Callable[[Path], object]:
    return lambda folder: texts.save_model(folder, name)


MODELS: dict[str, tuple[Callable[[Path], object], list[Any], str | None]] = {
    "whisper": (lambda folder: speech.save_whisper(folder, seconds=4, multilingual=False), CLIPS, None),
    "wav2vec2": (_save_waves, CLIPS, None),
    **{name: (_save_texts(name), DOCUMENTS, "summarization") for name in ("t5", "mt5", "bart", "mbart", "pegasus")},
}


@pytest.mark.parametrize(
    "name", [*ORDINARY, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MODELS if name not in ORDINARY)]
)
def test_ctranslate2_writes_the_same_texts_alone_and_together(name: str, tmp_path: Path) -> None:
    save, inputs, tag = MODELS[name]
    save(tmp_path / "model")
    outcome = export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2", tag=tag)
    assert outcome.rescored == {}
    assert "not scored" in outcome.lines(tmp_path)[-1]
    plain = load(tmp_path / "model", precision="fp32", task=tag, vad=False)(inputs)
    exported = load(tmp_path / "out", vad=False)
    together = exported(inputs)
    assert together == plain
    assert [exported(one) for one in inputs] == together == exported(inputs[::-1])[::-1]


def test_a_text_ends_at_the_limit_as_transformers_forces_it_to(tmp_path: Path) -> None:
    place = texts.save_model(tmp_path / "model", "bart") / "generation_config.json"
    about = json.loads(place.read_text()) | {"max_length": 12, "min_length": 8, "forced_eos_token_id": 1}
    place.write_text(json.dumps(about))
    export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2", tag="summarization")
    plain = load(tmp_path / "model", precision="fp32", task="summarization")(DOCUMENTS)
    assert load(tmp_path / "out")(DOCUMENTS) == plain
    assert all(it["prediction"] for it in plain)
    place.write_text(json.dumps(about | {"bad_words_ids": [[5]]}))
    with pytest.raises(CheckpointError, match="is not told bad_words_ids of generation_config"):
        export(str(tmp_path / "model"), tmp_path / "other", kind="ctranslate2", tag="summarization")


def test_the_columns_of_the_run_are_those_of_its_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech.save_whisper(tmp_path / "model", seconds=4)

    def of_a_run(*arguments: Any, **keys: Any) -> SavedModel:
        return replace(load_saved_model(*arguments, **keys), language_column="spoken", prompt_column="before")

    monkeypatch.setattr(exporting, "load_saved_model", of_a_run)
    export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2")
    found = load_saved_model(str(tmp_path / "out"))
    assert (found.language_column, found.prompt_column) == ("spoken", "before")


def test_whisper_writes_in_the_language_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than in that which it was saved with; and of a row that tells none, in the one that is heard."""
    speech.save_whisper(tmp_path / "model", seconds=4)
    export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2")
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    (tmp_path / "out" / "export.json").write_text(json.dumps(about | {"language_column": "spoken"}))
    own, asked = GenerationConfig.from_pretrained(tmp_path / "model"), list[str]()

    def told(*arguments: Any) -> tuple[int, ...]:
        prompt = whisper_prompt(*arguments)
        asked.append(next(name for name, i in own.lang_to_id.items() if i == prompt[1]).strip("<|>"))
        return prompt

    def hear(_: object, clips: Tensor) -> Tensor:  # CTranslate2 takes so small a vocabulary for English
        return torch.full((len(clips),), own.lang_to_id["<|en|>"])

    monkeypatch.setattr(exported, "whisper_prompt", told)
    monkeypatch.setattr(exported.ConvertedWhisper, "detect_language", hear)
    model = load(tmp_path / "out", vad=False)
    heard = [it["language"] for it in model(CLIPS)]
    assert asked == heard
    rows = [{"audio": clip, "spoken": code} for clip, code in zip(CLIPS, ("es", None, "hi"), strict=True)]
    assert [it.get("language") for it in model(rows)] == ["es", heard[1], "hi"] == asked[3:]
    assert [it["language"] for it in load(tmp_path / "out", language="hi", vad=False)(CLIPS)] == ["hi"] * 3 == asked[6:]


def test_rows_of_several_languages_begin_with_their_own_or_are_refused(tmp_path: Path) -> None:
    texts.save_model(tmp_path / "model", "bart")
    export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2", tag="summarization")
    model = load(tmp_path / "out").model
    assert isinstance(model, exported.ConvertedWriter)
    rows = {
        "input_ids": torch.tensor([[0, 7, 8, 2], [0, 9, 7, 2]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.long),
    }
    written = model.generate(**rows, logits_processor=[FirstTokens(torch.tensor([11, 12]))])
    assert written[:, 0].tolist() == [11, 12]
    asked = copy.deepcopy(model.generation_config)
    asked.decoder_start_token_id = [11, 12]
    with pytest.raises(RecipeError, match="in the one language that it was exported with"):
        model.generate(**rows, generation_config=asked)


def test_whisper_with_a_fitted_window_has_what_faster_whisper_looks_for(tmp_path: Path) -> None:
    import ctranslate2

    speech.save_whisper(tmp_path / "model", seconds=4, multilingual=False)
    export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2", quantize="int8")
    about = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (about["chunk_length"], about["feature_size"], about["nb_max_frames"]) == (30, 16, 3000)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    clip = ctranslate2.StorageView.from_array(np.zeros((1, 16, 3000), np.float32))  # as it fills every clip up
    assert ctranslate2.models.Whisper(str(tmp_path / "out")).encode(clip).shape == [1, 1500, 32]
    assert load(tmp_path / "out").task.recogniser.window_seconds == 4  # type: ignore[attr-defined]


def test_positions_that_are_not_whispers_are_refused(tmp_path: Path) -> None:
    speech.save_whisper(tmp_path / "model", seconds=4, multilingual=False)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "model")
    model.model.encoder.embed_positions.weight.data.add_(0.1)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"hears 4 s, by positions that are not Whisper's own.*`audio_window` unset"
    ):
        export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_t5_with_a_head_of_its_own_is_not_scaled(tmp_path: Path) -> None:
    """By which beams would be other ones: transformers says of all that they are tied."""
    from ctranslate2.specs import transformer_spec

    seen: list[Any] = []
    texts.save_model(tmp_path / "model")
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": False}))
    with pytest.MonkeyPatch.context() as patch:
        plain = transformer_spec.TransformerSpec.validate
        patch.setattr(transformer_spec.TransformerSpec, "validate", lambda spec: (seen.append(spec), plain(spec)))
        export(str(tmp_path / "model"), tmp_path / "out", kind="ctranslate2", tag="summarization")
    assert not isinstance(seen[0].decoder.scale_outputs, float)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    images.save_model(folder / "model", "vit")
    images.save_data(folder / "data", rows=24)
    stage = "{stage: transfer, steps: 2, batch_size: 8, learning_rate: 1e-2}"
    run_recipe(images.write_recipe(folder / "r.yaml", folder / "model", folder / "data", stage=stage), folder / "run")
    return folder / "run"


def test_int8_is_scored_and_stands_in_the_run_s_table(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rescoring, "answer_apart", rescoring.answer)
    assert main(["export", str(run), "--quantize", "int8", "--tolerance", "100"]) == 0
    assert "onnx-int8" in capsys.readouterr().err
    place = run / "onnx-int8"
    about = json.loads((place / "export.json").read_text())
    assert [row["name"] for row in about["scores"]] == ["trained", "onnx-int8"]
    assert about["calibration"]["rows"] == 18
    assert "| onnx-int8 |" in (place / "README.md").read_text()
    for page in (run / "README.md", run / "report.html"):
        assert page.read_text().count("onnx-int8") == 1
    exported, clean = load(place), [images.picture(name, DRAWN) for name in ("red", "green", "blue", "red")]
    together, apart = exported(clean), [exported(picture) for picture in clean]
    assert [it["prediction"] for it in together] == [it["prediction"] for it in apart]
    pairs = zip(together, apart, strict=True)
    assert all(abs(a["probability"] - b["probability"]) < 1e-3 for a, b in pairs)  # type: ignore[operator]


def test_t5_in_int8_is_smoothed_by_training_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "answer_apart", rescoring.answer)
    texts.save_data(tmp_path / "data")
    recipe = texts.write_recipe(tmp_path / "r.yaml", texts.save_model(tmp_path / "model"), tmp_path / "data")
    run_recipe(recipe, tmp_path / "run")
    made = {"kind": "ctranslate2", "tolerance": 100.0}
    plain = export(str(tmp_path / "run"), tmp_path / "plain", **made)  # type: ignore[arg-type]
    export(str(tmp_path / "run"), tmp_path / "int8", **made, quantize="int8")  # type: ignore[arg-type]
    assert json.loads((tmp_path / "int8" / "export.json").read_text())["smoothed_by_rows"] == 32
    assert "smoothed_by_rows" not in json.loads((tmp_path / "plain" / "export.json").read_text())
    assert plain.rescored["plain"].same_answers == plain.rescored["plain"].rows


def test_one_that_may_be_worse_is_refused() -> None:
    class Test:
        class task:  # noqa: N801
            top_score, higher_is_better = 1.0, False

        class encoded:  # noqa: N801
            name = "test"

    def scored(value: float, difference: Any = None, same: int = 9) -> Rescored:
        return Rescored("x", "wer", value, (0.0, 1.0), difference, 10, same, 1.0, 1, 1)

    def judge(own: Rescored) -> None:
        exporting._refuse_worse(own, scored(0.1), Test, tolerance=1.0, display_name="me")  # type: ignore[arg-type]

    judge(scored(0.1, (-0.2, 0.009)))
    judge(scored(0.1, (-0.3, 0.3), same=10))
    for worse in (scored(0.1, (-0.01, 0.025)), scored(0.125, (float("nan"), float("nan")))):
        with pytest.raises(
            CheckpointError, match=r"it may be 2\.50 points worse, more than --tolerance 1:.*--tolerance 3 keeps"
        ):
            judge(worse)


def test_a_format_that_does_not_serve_says_which_does(tmp_path: Path) -> None:
    images.save_model(tmp_path / "vit", "vit", labels=["a", "b"])
    speech.save_ctc(tmp_path / "wav2vec2", vocabulary="abc")
    for name, told in (("vit", "--format onnx writes it"), ("wav2vec2", "feat_extract_norm layer.*--format onnx")):
        with pytest.raises(RecipeError, match=told):
            export(str(tmp_path / name), tmp_path / "out", kind="ctranslate2")
    with pytest.raises(RecipeError, match="fp16 is for ctranslate2"):
        export(str(tmp_path / "vit"), tmp_path / "out", quantize="fp16")
    with pytest.raises(RecipeError, match="calibrated on training rows, and 0 can be read"):
        export(str(tmp_path / "vit"), tmp_path / "out", quantize="int8")


def test_a_run_whose_data_are_gone_is_exported_unscored(run: Path, tmp_path: Path) -> None:
    data = run.parent / "data"
    data.rename(run.parent / "elsewhere")
    try:
        with pytest.raises(DataError, match="test set of its run, which cannot be read; --unscored does without"):
            export(str(run), tmp_path / "out")
    finally:
        (run.parent / "elsewhere").rename(data)


def test_an_export_is_no_start_and_has_its_own_numbers(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "onnx"
    export(str(run), place, scored=False)
    with pytest.raises(CheckpointError, match="is an export, which cannot be trained; name its run"):
        resolve_checkpoint(Checkpoint(str(place)), tag="image-classification")
    with pytest.raises(RecipeError, match="computes as it was exported"):
        load(place, precision="bf16")


def test_a_damaged_export_is_told(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"format": "pickle"}')
    with pytest.raises(CheckpointError, match=r"export\.json: cannot be read .*format pickle.* export the model again"):
        Export.find(tmp_path)
