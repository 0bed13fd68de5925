"""What recognisers of other architectures need, on small checkpoints: found by trying, and kept after saving."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, GenerationConfig

from benchmarks.small_checkpoints import Small
from benchmarks.small_checkpoints.speech import CHAT, GRANITE, checkpoints
from tests.tiny.runs import run_recipe
from tests.tiny.speech import save_data, write_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.tasks.speech import SpeechModel
from tltasks.errors import CheckpointError, RecipeError
from tltasks.inference.predictor import Predictor
from tltasks.models.adapters import find_lora_targets, unwrap_model
from tltasks.models.loading import open_config, open_generation
from tltasks.models.memory import rehearse_step
from tltasks.tasks.speech.ctc import CtcRecogniser
from tltasks.tasks.speech.prompted import PromptedRecogniser
from tltasks.tasks.speech.recognition import draw_nothing, open_processor, with_parts
from tltasks.tasks.speech.seq2seq import SequenceRecogniser
from tltasks.tasks.speech.transducer import TransducerRecogniser

SMALL: dict[str, Small] = {small.name.removeprefix("transformers/"): small for small in checkpoints()}
CLIPS = [np.random.default_rng(i).normal(0, 0.1, n).astype(np.float32) for i, n in enumerate((9_300, 21_000))]


def save(name: str, folder: Path) -> Checkpoint:
    SMALL[name].save(folder)
    return Checkpoint(str(folder), display_name=name)


def open_ctc(name: str, folder: Path, **keys: Any) -> tuple[CtcRecogniser, Any]:
    source = save(name, folder)
    recogniser = CtcRecogniser.open(source, open_config(source), texts=None, **keys)
    return recogniser, AutoModelForCTC.from_pretrained(folder).eval()


def open_prompted(name: str, folder: Path, **keys: Any) -> tuple[PromptedRecogniser, Any]:
    source = save(name, folder)
    processor = open_processor(source)
    assert processor is not None
    recogniser = PromptedRecogniser.ask(
        processor, source, open_config(source), SpeechModel(name="a", **keys), as_saved=False
    )
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, config=recogniser.config).eval()
    recogniser.prepare(model)
    return recogniser, model


# ------------------------------------------------------------------------------------------------ CTC


@pytest.mark.parametrize(
    ("name", "is_apart", "head"),
    [
        ("wav2vec2", True, ["lm_head"]),
        ("data2vec-audio", True, ["lm_head"]),  # its positions see the padding, whatever the mask says
        ("wav2vec2-bert", False, ["lm_head"]),
        ("parakeet_ctc", False, ["ctc_head"]),
        ("omniasr_ctc", None, ["ctc_head"]),
    ],
)
def test_a_clip_is_answered_as_alone(name: str, is_apart: bool | None, head: list[str], tmp_path: Path) -> None:
    recogniser, model = open_ctc(name, tmp_path)
    tried = recogniser.tried(model)
    if is_apart is not None:
        assert tried.is_apart == is_apart
    assert recogniser.head(model) == head
    with torch.no_grad():
        together, lengths = tried._logits(model, tried.read(CLIPS))
        for row, clip in enumerate(CLIPS):
            alone = tried.logits(model, tried.read([clip]))[0]
            n = int(lengths[row])
            assert n == recogniser._frames(len(clip))
            assert float(alone[:n].abs().max()) > 0
            assert torch.allclose(together[row, :n], alone[:n], atol=1e-3 * float(alone.abs().max()))


def test_equal_neighbours_of_pieces_are_no_loss(tmp_path: Path) -> None:
    recogniser, _ = open_ctc("parakeet_ctc", tmp_path)
    ids = recogniser.label_ids("tt bb")
    assert any(a == b for a, b in itertools.pairwise(ids))
    assert recogniser.lost(["tt bb"]) == [""]


def test_the_blank_is_written_as_nothing(tmp_path: Path) -> None:
    recogniser, model = open_ctc("omniasr_ctc", tmp_path)
    assert recogniser.blank == 0 != recogniser.tokenizer.pad_token_id
    assert not any("<" in transcript.text for transcript in recogniser.transcribe(model, recogniser.read(CLIPS)))


def test_a_language_has_its_own_vocabulary_layers_and_head(tmp_path: Path) -> None:
    recogniser, model = open_ctc("wav2vec2/mms", tmp_path, language="fra")
    before = model.lm_head.weight.clone()
    assert "é" in recogniser.tokenizer.get_vocab()
    recogniser.prepare(model)
    assert model.lm_head.weight.shape[0] == before.shape[0] + 1 == len(recogniser.tokenizer)
    source = Checkpoint(str(tmp_path), display_name="mms")
    with pytest.raises(RecipeError, match=r"does not know `deu`\. It knows: eng, fra"):
        CtcRecogniser.open(source, open_config(source), texts=None, language="deu")
    (tmp_path / "adapter.fra.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.fra\.safetensors"):
        recogniser.prepare(AutoModelForCTC.from_pretrained(tmp_path))


def test_nothing_is_drawn_inside_either() -> None:
    config = transformers.ParakeetCTCConfig()
    assert config.encoder_config.layerdrop > 0
    draw_nothing(config)
    assert config.encoder_config.layerdrop == 0
    both = transformers.SpeechEncoderDecoderConfig(encoder={"model_type": "wav2vec2"}, decoder={"model_type": "gpt2"})
    draw_nothing(both)
    assert len(with_parts(both)) == 3
    assert not both.encoder.apply_spec_augment


# ------------------------------------------------------------------------------------------------ transducers


@pytest.mark.parametrize("name", ["parakeet_tdt", "parakeet_rnnt", "nemotron3_5_asr"])
def test_a_transducer_hears_and_learns_a_clip_as_alone(name: str, tmp_path: Path) -> None:
    source = save(name, tmp_path)
    config, processor = open_config(source), open_processor(source)
    language = SMALL[name].model_keys.get("language")
    recogniser = TransducerRecogniser.listen(processor, source, config, language, trains=True)
    model = recogniser.auto_class.from_pretrained(tmp_path, config=config).eval()
    recogniser.prepare(model)
    tried = recogniser.tried(model)
    labels = [recogniser.label_ids("red"), recogniser.label_ids("tree blue")]
    alone = [
        tried.loss(model, {**tried.read([clip]), **tried.targets([ids])})
        for clip, ids in zip(CLIPS, labels, strict=True)
    ]
    sizes = torch.tensor([len(ids) for ids in labels])
    together = tried.loss(model, {**tried.read(CLIPS), **tried.targets(labels)})
    assert torch.allclose(together, (torch.stack(alone) * sizes).sum() / sizes.sum(), rtol=1e-3)
    said = tried.transcribe(model, tried.read(CLIPS))
    assert said == [tried.transcribe(model, tried.read([clip]))[0] for clip in CLIPS]
    assert any(transcript.text for transcript in said)
    assert recogniser.misfit(0.1, [3] * 99) is None  # a step takes any number of tokens
    batch = {**tried.read(CLIPS), **tried.targets(labels)}
    assert rehearse_step(model, tried.loss, batch, precision="fp32").activations > 0
    assert set(recogniser.head(model)) == {"decoder.embedding", "joint.head"}


def test_a_language_is_a_number_in_the_configuration(tmp_path: Path) -> None:
    source = save("nemotron3_5_asr", tmp_path)
    config, processor = open_config(source), open_processor(source)
    TransducerRecogniser.listen(processor, source, config, "de-DE", trains=True)
    assert config.default_prompt_id == 9
    with pytest.raises(RecipeError, match="Unknown `language='xx'`"):
        TransducerRecogniser.listen(processor, source, config, "xx", trains=True)
    with pytest.raises(RecipeError, match="knows several"):
        TransducerRecogniser.listen(processor, source, config, None, trains=True)


# ------------------------------------------------------------------------------------------------ decoders


def test_targets_leave_out_an_output_layer_wherever_it_is(tmp_path: Path) -> None:
    save("speech-encoder-decoder", tmp_path)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert "decoder.lm_head" in find_lora_targets(model, head=[])
    source = Checkpoint(str(tmp_path), display_name="both")
    recogniser = SequenceRecogniser.open(
        source, open_config(source), SpeechModel(name="a"), window=None, as_saved=False, trains=True
    )
    assert recogniser.tokenizer.convert_ids_to_tokens(recogniser.prompt[0]) == "<s>"
    assert recogniser.end == recogniser.tokenizer.eos_token_id


def test_clips_are_filled_to_the_samples_that_a_processor_asks_for(tmp_path: Path) -> None:
    source = save("moonshine_streaming", tmp_path)
    recogniser = SequenceRecogniser.open(
        source,
        open_config(source),
        SpeechModel(name="a"),
        processor=open_processor(source),
        window=None,
        as_saved=False,
        trains=True,
    )
    assert recogniser.read([CLIPS[0][:9_301]])["input_values"].shape[-1] % 80 == 0
    assert "pad_to_multiple_of=80" in recogniser.code


@pytest.mark.parametrize("name", ["canary", "cohere_asr", "omniasr", "qwen3_asr", "vibevoice_asr"])
def test_a_text_goes_on_from_the_request(name: str, tmp_path: Path) -> None:
    """The loss of two rows is that of each alone, and what is learnt are the text and its end alone."""
    recogniser, model = open_prompted(name, tmp_path, **SMALL[name].model_keys)
    labels = [recogniser.label_ids("red"), recogniser.label_ids("blue green")]
    tried = recogniser.tried(model)
    batch = {**tried.read(CLIPS), **tried.targets(labels)}
    alone = [
        tried.loss(model, {**tried.read([clip]), **tried.targets([ids])})
        for clip, ids in zip(CLIPS, labels, strict=True)
    ]
    sizes = torch.tensor([len(ids) for ids in labels])
    assert torch.allclose(tried.loss(model, batch), (torch.stack(alone) * sizes).sum() / sizes.sum(), rtol=1e-3)
    assert recogniser.label_ids("red")[-1] == recogniser.end
    inputs = recogniser.request(CLIPS[:1])
    prompt = inputs.get("input_ids", inputs.get("decoder_input_ids"))
    assert prompt is not None
    with torch.no_grad():
        own = model(**inputs, use_cache=False).logits[:, -1:]
    assert torch.allclose(recogniser.logits(model, recogniser.read(CLIPS[:1])), own, atol=1e-5)


@pytest.mark.parametrize(
    "template",
    [CHAT.replace("AUDIO", "<|audio_start|><|audio_pad|><|audio_end|>"), GRANITE.replace("_of_role", "")],
    ids=["parts", "text"],
)
def test_a_chat_is_a_request_with_the_prompt_of_the_recipe(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(transformers.Qwen3ASRProcessor, "apply_transcription_request")
    source = save("qwen3_asr", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    processor = open_processor(source)
    assert processor is not None
    given: dict[str, Any] = {"config": open_config(source), "as_saved": False}
    asked = PromptedRecogniser.ask(processor, source, keys=SpeechModel(name="a", prompt="write it"), **given)
    assert asked.chat is not None
    assert asked.chat.count("<|audio_pad|>") == 1
    assert asked.chat.index("<|audio_pad|>") < asked.chat.index("write it")
    assert "Today is July 26, 2024" in asked.chat or template.startswith("{% for")
    inputs = asked.request(CLIPS)
    assert (inputs["input_ids"][:, -1] == inputs["input_ids"][0, -1]).all()  # padded on the left
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path).eval()
    tried = asked.tried(model)
    together = tried.transcribe(model, tried.read(CLIPS))
    assert together == [tried.transcribe(model, tried.read([clip]))[0] for clip in CLIPS]
    asked.generation.save_pretrained(tmp_path)
    again = PromptedRecogniser.ask(
        processor, source, config=open_config(source), keys=SpeechModel(name="a"), as_saved=True
    )
    assert again.chat == asked.chat
    with pytest.raises(RecipeError, match="takes none; ask for it in `prompt`"):
        PromptedRecogniser.ask(processor, source, keys=SpeechModel(name="a", language="en"), **given)


def test_answers_that_are_drawn_are_refused(tmp_path: Path) -> None:
    recogniser, model = open_prompted("vibevoice_asr", tmp_path)
    recogniser.tried(model)
    model.config.acoustic_tokenizer_encoder_config.vae_std = 0.625
    with pytest.raises(CheckpointError, match="draws noise"):
        recogniser.tried(model)


def test_the_language_of_requests_is_saved(tmp_path: Path) -> None:
    source, data = save("canary", tmp_path / "canary"), save_data(tmp_path / "data", rows=4)
    stage = "{stage: finetune, steps: 1, batch_size: 4, learning_rate: 1e-3}"
    recipe = write_recipe(tmp_path / "r.yaml", Path(source.name), data, stage=stage, model_keys="language: es")
    run_recipe(recipe, tmp_path / "run")
    saved = Checkpoint(str(tmp_path / "run/model"), display_name="saved")
    processor = open_processor(saved)
    assert processor is not None
    again = PromptedRecogniser.ask(processor, saved, open_config(saved), SpeechModel(name="a"), as_saved=True)
    assert dict(again.asked) == {"source_language": "es"}
    assert "source_language='es'" in (tmp_path / "run/README.md").read_text()


def test_settings_that_are_a_models_own_are_read_again(tmp_path: Path) -> None:
    """A new model's settings say that they are from its configuration, and then lose such ones in loading."""
    transformers.WhisperConfig().save_pretrained(tmp_path)
    generation = open_generation(Checkpoint(str(tmp_path)))
    generation.language = "es"
    generation.save_pretrained(tmp_path)
    assert getattr(GenerationConfig.from_pretrained(tmp_path), "language", None) == "es"


@pytest.mark.exhaustive
def test_a_loaded_model_takes_several_clips_at_a_time(tmp_path: Path) -> None:
    source, data = save("wav2vec2/large", tmp_path / "large"), save_data(tmp_path / "data", rows=4)
    stage = "{stage: transfer, steps: 1, batch_size: 4, learning_rate: 1e-3}"
    run_recipe(write_recipe(tmp_path / "r.yaml", Path(source.name), data, stage=stage), tmp_path / "run")
    from tltasks import load

    predictor: Predictor = load(tmp_path / "run")
    assert not predictor.task.recogniser.is_apart  # type: ignore[attr-defined]
    assert unwrap_model(predictor.model) is predictor.model
