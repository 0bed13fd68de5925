"""Encoder-decoders that read, write or are saved otherwise than most, laid out as those of the Hub are."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig, Qwen2AudioConfig, WhisperConfig

from benchmarks.small_checkpoints.summaries import KINDS
from tests.integration.tasks.text.test_summarization import PreparedStage
from tests.tiny import texts
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.adapters import merged
from tltasks.tasks.text.prompting import one_vocabulary
from tltasks.tasks.text.summarization import Summarization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by peft
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses"),
]
WORDS = "small cats sleep all day"
LORA = "{stage: finetune, adapt: {lora: {rank: 4, init: gaussian}}, epochs: 1, batch_size: 8, learning_rate: 5e-3}"


def opened(folder: Path, name: str, **keys: str) -> PreparedStage:
    """A checkpoint as a stage prepares it."""
    KINDS[name].save(folder / "model")
    if not (folder / "data").is_dir():
        texts.save_data(folder / "data", rows=12)
    return PreparedStage(folder, "model", **keys)


@pytest.mark.parametrize(
    ("name", "language", "document", "summary", "begin"),
    [
        ("m2m_100", "de", ["__de__", "…", "</s>"], ["__de__", "…", "</s>"], ["</s>", "__de__"]),
        ("m2m_100/nllb-legacy", "deu_Latn", ["…", "</s>", "deu_Latn"], ["…", "</s>", "deu_Latn"], ["deu_Latn"]),
        ("seamless_m4t_v2", "deu", ["__deu__", "…", "</s>"], ["__deu__", "…", "</s>"], ["</s>", "__deu__"]),
        ("plbart", "__en_XX__", ["…", "</s>", "__en_XX__"], ["…", "</s>", "__en_XX__"], ["__en_XX__"]),
    ],
)
def test_languages_frame_texts_as_their_tokenizers_have_it(
    tmp_path: Path, name: str, language: str, document: list[str], summary: list[str], begin: list[str]
) -> None:
    """As the docstrings of transformers' tokenizers say; a token before which a decoder starts stands there once."""
    stage = opened(tmp_path, name, model_keys=f", language: {language}")
    task, model = stage.task, stage.model
    form = task.form
    tokens = form.tokenizer.convert_ids_to_tokens
    (read,), *_ = form.encode_documents([WORDS])
    (written,), *_ = form.encode_summaries([WORDS])
    for ids, frame in ((read, document), (written, summary)):
        at = frame.index("…")
        assert [*tokens(ids)[:at], *tokens(ids)[at + 1 - len(frame) :]] == [*frame[:at], *frame[at + 1 :]]
    batch = task._collate([read], [written])
    assert tokens(task.inputs(model, batch)["decoder_input_ids"][0])[: len(begin)] == begin
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert tokens(model.generate(**asked, generation_config=model.generation_config)[0])[: len(begin)] == begin
    assert form.decode(written) == WORDS
    task.save(tmp_path / "saved", model, adapter=False)
    own = dataclasses.replace(task.source, name=str(tmp_path / "saved"))
    unnamed = dataclasses.replace(task.plan, model=task.plan.model.model_copy(update={"language": None}))
    again = Summarization.open(unnamed, {}, own, seed=0)
    assert again.form.encode_documents([WORDS]) == form.encode_documents([WORDS]), "it knows its language"


def test_an_unknown_language_and_a_missing_one_are_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"does not know `xx`. It knows: af, am, "):
        opened(tmp_path, "m2m_100", model_keys=", language: xx")
    with pytest.raises(RecipeError, match=r"knows 100 languages; name the one"):
        opened(tmp_path, "m2m_100")


@pytest.mark.parametrize("name", ["encoder-decoder/bert2bert", "prophetnet"])
def test_an_end_that_the_tokenizer_does_not_call_so_is_found(tmp_path: Path, name: str) -> None:
    """Of BERT's kind it is the separator; a first token that the decoder starts with is not to be written again."""
    form = opened(tmp_path, name).task.form
    (written,), *_ = form.encode_summaries([WORDS])
    assert form.tokenizer.convert_ids_to_tokens(written) == [*WORDS.split(), "[SEP]"]


def test_a_row_does_not_depend_on_those_before_it_or_beside_it(tmp_path: Path) -> None:
    """BigBird-PEGASUS stays in full attention after one short text, and reads short ones so where they are alone."""
    stage = opened(tmp_path, "bigbird_pegasus")
    task, model = stage.task, stage.model.eval()
    assert task.habits.pads is False
    rows, order = stage.rows, sorted(range(len(stage.rows)), key=lambda row: len(stage.rows[row]["document_ids"]))
    few, long = order[:2], order[-2:]

    def losses(indices: list[int]) -> list[float]:
        return [task.loss(model, task.collate_train(rows, [i], epoch=0)).item() for i in indices]

    first = losses(long)
    losses(few)
    assert losses(long) == first
    model.get_encoder().set_attention_type("original_full")
    model.get_encoder()._forward_pre_hooks.clear()
    assert losses(long) != first, "the two ways differ on these rows"


def test_rows_of_a_batch_have_the_mean_loss_of_each_alone(tmp_path: Path) -> None:
    stage = opened(tmp_path, "bigbird_pegasus")
    task, model, rows = stage.task, stage.model.eval(), stage.rows
    batch = task.collate_train(rows, range(len(rows)), epoch=0)
    single = [task.collate_train(rows, [i], epoch=0) for i in range(len(rows))]
    targets = [int(task.num_targets(part)) for part in single]
    mean = sum(n * task.loss(model, part).item() for n, part in zip(targets, single, strict=True)) / sum(targets)
    assert task.loss(model, batch).item() == pytest.approx(mean, rel=1e-6)
    assert task.token_loss(model, batch).item() != pytest.approx(mean, rel=1e-6), "padded, they differ"


def test_a_head_that_is_tied_to_the_decoder_stays_so_through_merging(tmp_path: Path) -> None:
    stage = opened(tmp_path, "t5gemma", stage=LORA)
    whole = merged(stage.with_lora())
    assert whole.config.tie_word_embeddings is True
    whole.save_pretrained(tmp_path / "merged")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(again.lm_head.out_proj.weight, whole.lm_head.out_proj.weight)


def test_weights_that_are_not_saved_are_not_trained(tmp_path: Path) -> None:
    model = opened(tmp_path, "marian").model
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == [f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")]


def test_experts_that_no_router_reaches_are_an_error(tmp_path: Path) -> None:
    """transformers 5.24 calls the first two of NLLB-MoE's experts, whatever its routers say."""
    with pytest.raises(CheckpointError, match=r"experts that never read anything.*2 of layers"):
        opened(tmp_path, "nllb-moe", model_keys=", language: eng_Latn")


@pytest.mark.parametrize("config", [WhisperConfig, Qwen2AudioConfig])
def test_models_of_sound_are_refused_by_their_configuration(tmp_path: Path, config: type[PretrainedConfig]) -> None:
    """Qwen2-Audio is in the list of AutoModelForSeq2SeqLM, and read as a decoder."""
    config().save_pretrained(tmp_path / "model")
    texts.save_data(tmp_path / "data", rows=4)
    with pytest.raises(CheckpointError, match=f"no model of kind {config.model_type} that reads a text and writes"):
        PreparedStage(tmp_path, "model")


def test_long_documents_are_cut_in_their_own_letters(tmp_path: Path) -> None:
    """Blenderbot's small tokenizer tells no places in a text, and decoding its ids gives other spaces and case."""
    form = opened(tmp_path, "blenderbot-small").task.form
    document = "Small  CATS, sleep! " * 40
    kept = form._cut(document, form._plain_ids([document])[0], 21)
    assert document.startswith(kept)
    assert len(form._plain_ids([kept])[0]) == 21


def test_targets_are_read_by_the_vocabulary_that_writes_them() -> None:
    """FSMT's two, of which each token has another id in each."""
    tokenizer: Any = SimpleNamespace(tgt_vocab_size=2, encoder={"a": 0, "b": 1}, decoder={0: "b", 1: "a"})
    with one_vocabulary(tokenizer, "decoder"):
        assert tokenizer.encoder == {"b": 0, "a": 1}
    with one_vocabulary(tokenizer, "encoder"):
        assert tokenizer.decoder == {0: "a", 1: "b"}
    assert (tokenizer.encoder, tokenizer.decoder) == ({"a": 0, "b": 1}, {0: "b", 1: "a"}), "it is saved as it was"
