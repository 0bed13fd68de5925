"""The summarisation adapter on tiny models of eleven families, all through the real loading, training and saving."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.tiny import texts
from tests.tiny.runs import largest_difference, run_recipe
from tltasks import load
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.recipe import plan_run
from tltasks.config.tasks.text import TextData, TextModel
from tltasks.data.encoding import encode_split
from tltasks.data.loading import load_splits
from tltasks.errors import DataError, RecipeError
from tltasks.models.adapters import adapt, merged
from tltasks.models.cross_entropy import mean_loss
from tltasks.models.decoder_trial import Habits
from tltasks.models.loading import open_config
from tltasks.results.result import load_result
from tltasks.runtime.precision import check_architecture
from tltasks.tasks.text.prompting import open_format
from tltasks.tasks.text.summarization import Summarization

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
FAMILIES = list(texts.CONFIGS)
TOPIC_STAGE = "{stage: finetune, adapt: full, epochs: %d, batch_size: 8, learning_rate: %g, keep: last}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, and documents."""
    made = tmp_path_factory.mktemp("texts")
    for name in FAMILIES:
        texts.save_model(made / name, name)
    texts.save_data(made / "data")
    return made


class PreparedStage:
    """An adapter, its model and its encoded rows, as the runner would have them."""

    def __init__(self, folder: Path, name: str, **keys: Any) -> None:
        path = texts.write_recipe(folder / f"{name}.yaml", folder / name, folder / "data", **keys)
        self.recipe = load_recipe(path)
        self.plan = plan_run(self.recipe).stages[0]
        splits = load_splits(self.plan.data, seed=0, label=None)
        self.task = Summarization.open(self.plan, splits, Checkpoint(self.plan.model.name, display_name=name), seed=0)
        built = self.task.build(self.plan.kind)
        self.task, self.model = built.task, built.model
        self.encoded = {
            key: encode_split(
                split, self.task.preprocess(split), self.task.features, key=self.task.cache_key, max_bad_share=0.01
            )
            for key, split in splits.items()
        }
        self.rows = self.encoded["train"].rows

    def batch(self, n_rows: int = 5) -> dict[str, torch.Tensor]:
        return self.task.collate_train(self.rows, list(range(n_rows)), epoch=0)

    def with_lora(self, rank: int = 4) -> torch.nn.Module:
        task, model = self.task, self.task.build(self.plan.kind).model
        return adapt(
            model,
            self.recipe.stages[0].adapt,
            new_head=self.plan.kind.head == "new",
            head=task.head(model),
            targets=task.lora_targets(model),
            display_name=str(model.name_or_path),
            revision="main",
        )


# ----------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_that_of_transformers(folder: Path, name: str) -> None:
    """Given labels, transformers' models compute the same mean themselves, one row at a time without padding."""
    opened = PreparedStage(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    model, rows = opened.model.eval(), opened.rows.select(range(4))
    total = torch.zeros(())
    n_targets = 0
    for row in rows:
        document, summary = (torch.tensor([row[f"{key}_ids"]]) for key in ("document", "summary"))
        if opened.task.form.encoder_decoder:
            extra = opened.task.global_attention(model, document)
            loss = model(input_ids=document, labels=summary, **extra).loss
        else:
            ids = torch.cat([document, summary], dim=1)
            labels = torch.cat([torch.full_like(document, -100), summary], dim=1)
            loss = model(input_ids=ids, labels=labels).loss
        total += loss * summary.shape[1]
        n_targets += summary.shape[1]
    batch = opened.task.collate_train(rows, range(4), epoch=0)
    assert int(opened.task.num_targets(batch)) == n_targets
    assert opened.task.loss(model, batch).item() == pytest.approx(total.item() / n_targets, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_in_chunks_has_the_gradients_of_the_whole(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = PreparedStage(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    assert opened.task.chunked_loss is True
    batch = opened.batch()
    inputs = opened.task.inputs(opened.model, batch)
    opened.model.eval()
    vocabulary = opened.model.config.vocab_size
    found = []
    for chunked, at_once in ((False, 0), (True, 2**24), (True, 7 * vocabulary)):
        monkeypatch.setattr("tltasks.models.cross_entropy.LOGITS_AT_ONCE", at_once)
        opened.model.zero_grad()
        loss = mean_loss(opened.model, inputs, batch["labels"], smoothing=0.1, chunked=chunked)
        loss.backward()
        found.append(
            (loss.item(), {n: p.grad.clone() for n, p in opened.model.named_parameters() if p.grad is not None})
        )
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert largest_difference(gradients, found[0][1]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_reaches_every_linear_layer_but_the_head(folder: Path, name: str) -> None:
    opened = PreparedStage(folder, name)
    assert len(opened.task.lora_targets(opened.model)) >= 8
    assert opened.task.head(opened.model) == ["lm_head"]
    assert not any("lm_head" in target for target in opened.task.lora_targets(opened.model))
    model = opened.with_lora()
    opened.task.loss(model, opened.batch()).backward()
    without = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    moved = [n for n, p in model.named_parameters() if "lora_B" in n and p.grad.abs().sum() > 0]
    assert without == []
    assert len(moved) >= 8


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_generates_the_same_with_transformers_alone(folder: Path, name: str, tmp_path: Path) -> None:
    opened = PreparedStage(folder, name, model_keys=", generation: {num_beams: 2, min_new_tokens: 3}")
    model = opened.with_lora()
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=1.0)
    rows = opened.encoded["test"].rows.select(range(5))
    with torch.inference_mode():
        ours = [p["prediction"] for p in opened.task.predict(model.eval(), opened.task.collate_eval(rows, range(5)))]
    opened.task.save(tmp_path, model, adapter=False)

    auto = AutoModelForSeq2SeqLM if opened.task.form.encoder_decoder else AutoModelForCausalLM
    loaded, tokenizer = auto.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    known = loaded.config.task_specific_params["summarization"]
    theirs = []
    for document in rows["document"]:
        asked = f"{known['prefix']}{document}{known['suffix']}"
        if opened.task.form.chat:
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
            )
        inputs = tokenizer(asked, return_tensors="pt", add_special_tokens=not opened.task.form.chat)
        extra = opened.task.global_attention(loaded, inputs["input_ids"])
        ids = loaded.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **extra)[0]
        start = 0 if opened.task.form.encoder_decoder else inputs["input_ids"].shape[1]
        theirs.append(tokenizer.decode(ids[start:], skip_special_tokens=True).replace("<n>", "\n").strip())
    assert theirs == ours
    assert len(set(ours)) > 1
    assert [
        p["prediction"]
        for p in opened.task.predict(opened.task.reload(tmp_path).eval(), opened.task.collate_eval(rows, range(5)))
    ] == ours


def test_untied_and_unscaled_heads_survive(folder: Path, tmp_path: Path) -> None:
    """FLAN-T5: its configuration says tie_word_embeddings: false, which transformers 5 reads as `do not scale`."""
    flan = tmp_path / "flan"
    texts.save_model(flan, "t5")
    state = load_file(flan / "model.safetensors")
    torch.manual_seed(3)
    state["lm_head.weight"] = torch.randn_like(state["shared.weight"])
    save_file(state, flan / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((flan / "config.json").read_text())
    config |= {"tie_word_embeddings": False}
    config.pop("scale_decoder_outputs", None)
    (flan / "config.json").write_text(json.dumps(config))
    texts.save_data(tmp_path / "data")
    opened = PreparedStage(tmp_path, "flan")
    assert torch.equal(opened.model.lm_head.weight, state["lm_head.weight"])
    model = opened.with_lora()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_()
    opened.task.save(tmp_path / "saved", model, adapter=False)
    again = opened.task.reload(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(again.shared.weight, state["shared.weight"])
    assert again.config.scale_decoder_outputs is False
    batch = opened.batch()
    losses = [opened.task.loss(m.eval(), batch).item() for m in (model, merged(model), again)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_tied_heads_stay_tied_and_scaled(folder: Path, tmp_path: Path) -> None:
    opened = PreparedStage(folder, "t5")
    model = opened.with_lora()
    opened.task.save(tmp_path, model, adapter=False)
    again = opened.task.reload(tmp_path)
    assert again.lm_head.weight.data_ptr() == again.shared.weight.data_ptr()
    assert again.config.scale_decoder_outputs is True
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------- decoder-only


@pytest.mark.parametrize("name", texts.DECODERS)
def test_loss_is_on_the_summary_alone(folder: Path, name: str) -> None:
    opened = PreparedStage(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    batch = opened.batch(3)
    labels = batch["labels"]
    written = [row for members in labels for row in members[members != -100].tolist()]
    expected = [token for i in (0, 1, 2) for token in opened.rows[i]["summary_ids"]]
    assert sorted(written) == sorted(expected)
    # A change of labels outside the summary would have to show; there are none to change.
    assert int((labels != -100).sum()) == len(expected) < labels.numel() / 2


@pytest.mark.parametrize("name", texts.DECODERS)
def test_packing_changes_neither_loss_nor_gradients(folder: Path, name: str) -> None:
    opened = PreparedStage(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    assert opened.task.packs is True
    found = []
    columns = opened.rows[:6]
    documents = [ids[: 4 + i] for i, ids in enumerate(columns["document_ids"][:4])] + columns["document_ids"][4:]
    for packing in (True, False):
        task = opened.task if packing else dataclasses.replace(opened.task, habits=Habits())
        batch = task._collate(documents, columns["summary_ids"])
        opened.model.zero_grad()
        loss = task.loss(opened.model.eval(), batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in opened.model.named_parameters()}
        found.append((len(batch["input_ids"]), loss.item(), gradients))
    assert found[0][0] < found[1][0] == 6
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert largest_difference(found[0][2], found[1][2]) < 1e-6


def test_a_model_that_mixes_packed_examples_is_padded_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_seen(segments: torch.Tensor, *_: object) -> dict[str, torch.Tensor]:
        return {"attention_mask": torch.ones(1, 1, *2 * segments.shape[1:]).tril().bool()}

    monkeypatch.setattr("tltasks.models.decoder_trial.packed_inputs", all_seen)
    assert PreparedStage(folder, "llama").task.packs is False


def test_rows_that_may_share_no_batch_are_written_one_by_one(tmp_path: Path) -> None:
    """RWKV mixes the states of rows where it has a cache (transformers 5.24, modeling_rwkv.py, `shifted`)."""
    model = tmp_path / "rwkv"
    ids = {"vocab_size": len(texts.save_tokenizer(model, "gpt2")), "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.RwkvConfig(
        **ids, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=128
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    data = texts.save_data(tmp_path / "data", rows=12)
    path = texts.write_recipe(tmp_path / "rwkv.yaml", model, data, stage=TOPIC_STAGE % (1, 5e-3))
    result = run_recipe(path, tmp_path / "out")
    assert result.stages[0].weights.settings["batches"] == "single rows"
    saved = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert saved["task_specific_params"]["summarization"]["batches"] == "single rows"
    written = pq.read_table(tmp_path / "out" / "predictions" / "finetune-test.parquet").column("prediction").to_pylist()
    documents = [json.loads(line)["document"] for line in (data / "test.jsonl").read_text().splitlines()]
    assert len(set(map(len, documents))) > 3
    summarise = load(tmp_path / "out")
    assert [summarise(document)["prediction"] for document in documents] == written
    assert [output["prediction"] for output in summarise(documents)] == written


def test_a_prompt_does_not_end_with_a_token_that_ends_texts(folder: Path, tmp_path: Path) -> None:
    """As of tokenizers made for encoders and decoders alike (ModernBERT's)."""
    model = tmp_path / "framed"
    tokenizer = texts.save_tokenizer(model, "gpt2")
    ends = [
        ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>")),
        ("<|endoftext|>", tokenizer.eos_token_id),
    ]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
    )
    tokenizer.save_pretrained(model)
    texts.make_model("gpt2", tokenizer).save_pretrained(model)
    path = texts.write_recipe(tmp_path / "framed.yaml", model, folder / "data", stage=TOPIC_STAGE % (1, 1e-3))
    source, plan = Checkpoint(str(model), display_name="framed"), plan_run(load_recipe(path)).stages[0]
    form = open_format(source, open_config(source), plan.model, plan.data)
    ids, sizes, _ = form.encode_documents(["the cats", "the " * 600])
    assert form.tokenizer.decode(ids[0]) == "<|im_start|>the cats\n\nTL;DR:"
    assert (len(ids[1]), sizes[0]) == (80, len(ids[0]))
    run_recipe(path, tmp_path / "out")
    assert "inputs[key][:, :-1] for key" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_decoder_reads(folder: Path) -> None:
    for name, text in (
        ("gpt2", "the cats\n\nTL;DR: small cats<|endoftext|>"),
        (
            "llama",
            "<|im_start|>user\nSummarize the following text.\n\nthe cats<|im_end|>\n<|im_start|>assistant\n"
            "small cats<|im_end|>",
        ),
    ):
        form = PreparedStage(folder, name).task.form
        documents, *_ = form.encode_documents(["the cats"])
        summaries, *_ = form.encode_summaries(["small cats"])
        assert form.tokenizer.decode(documents[0] + summaries[0]) == text


def test_prompts_are_those_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    prompts = {name: PreparedStage(folder, name).task.form.prompt for name in ("t5", "mt5", "bart", "gpt2")}
    assert prompts == {
        "t5": "summarize: {document}",
        "mt5": "{document}",
        "bart": "{document}",
        "gpt2": "{document}\n\nTL;DR:",
    }
    opened = PreparedStage(folder, "bart", model_keys=", prompt: 'news {document} in short'")
    opened.task.save(tmp_path / "bart", opened.model, adapter=False)
    texts.save_data(tmp_path / "data")
    assert PreparedStage(tmp_path, "bart").task.form.prompt == "news {document} in short"


CHAT_TEMPLATES: dict[str, tuple[str, list[str], str]] = {
    "chatml": (texts.CHAT_TEMPLATE, [], "<|im_end|>"),
    "chatml with a system prompt of its own (SmolLM2)": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
        "assistant<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        [],
        "<|im_end|>",
    ),
    "thinking that can be turned off (Qwen3)": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
        "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        "{% endif %}",
        [],
        "<|im_end|>",
    ),
    "headers and a first token (Llama 3)": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "other names of roles (Gemma)": (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n"
        "{% endif %}",
        ["<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
    ),
    "a space before the answer, and the end token (Mistral)": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} "
        "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
        ["[INST]", "[/INST]"],
        "<|endoftext|>",
    ),
    "roles as tokens (Phi-3)": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["<|user|>", "<|assistant|>", "<|end|>"],
        "<|end|>",
    ),
}
"""Short forms of published templates, the tokens that they need besides ChatML's, and what ends a turn."""


@pytest.mark.parametrize("kind", CHAT_TEMPLATES)
def test_prompt_and_summary_are_the_conversation_of_the_template(tmp_path: Path, kind: str) -> None:
    template, tokens, end = CHAT_TEMPLATES[kind]
    made = texts.save_tokenizer(tmp_path, "llama")
    made.add_special_tokens({"additional_special_tokens": tokens})
    made.chat_template = template
    made.save_pretrained(tmp_path)
    config = transformers.LlamaConfig(max_position_embeddings=512)
    data = TextData(name="user/documents", max_document_tokens=400)
    form = open_format(Checkpoint(str(tmp_path), display_name="m"), config, TextModel(name="m"), data)
    said = [
        {"role": "user", "content": "Summarize the following text.\n\nthe cats"},
        {"role": "assistant", "content": "small cats"},
    ]
    conversation = form.tokenizer.apply_chat_template(said, tokenize=False, enable_thinking=False)
    (document,), *_ = form.encode_documents(["the cats"])
    (summary,), *_ = form.encode_summaries(["small cats"])
    text = form.tokenizer.decode(document + summary)
    assert conversation.startswith(text)
    assert conversation.removeprefix(text).strip() == ""
    assert text.endswith(f"small cats{end}")
    assert form.tokenizer.convert_ids_to_tokens(form.end) == end
    assert form.decode(summary) == "small cats"


# ------------------------------------------------------------------------------------ long documents


def long_document(sentences: int) -> str:
    rng = np.random.default_rng(sentences)
    return " ".join(" ".join(rng.choice(texts.FILLERS, 8)).capitalize() + "." for _ in range(sentences))


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_long_documents_are_read_whole_in_pieces(folder: Path, name: str, tmp_path: Path) -> None:
    documents = [long_document(n) for n in (1, 30, 3, 12, 90)]
    write_rows(tmp_path / "data", **{key: [(d, "a") for d in documents] for key in ("train", "validation", "test")})
    texts.save_model(tmp_path / name, name)
    opened = PreparedStage(tmp_path, name, data_keys="  long_documents: split\n", model_keys=", prompt: '{document}'")
    form, rows = opened.task.form, opened.encoded["test"].rows
    pieces = rows["pieces"][:]
    assert len(pieces[0]) == 1
    assert all(len(of) > 1 for of in (pieces[1], pieces[4]))
    assert max(len(ids) for of in pieces for ids in of) <= form.max_document_tokens
    assert {len(of) for of in opened.encoded["train"].rows["pieces"]} == {1}
    if name != "t5":  # whose tiny vocabulary has no capitals
        for document, of in zip(documents, pieces, strict=True):
            read = [form.tokenizer.decode(ids, skip_special_tokens=True) for ids in of]
            said = [text.removeprefix("user\n").removesuffix("\nassistant\n") for text in read]
            assert "".join(" ".join(said).split()) == "".join(document.split()), "nothing is lost, nothing twice"
    checks = opened.task.data_checks(opened.encoded)
    assert checks["test"]["documents_split_share"] == sum(len(of) > 1 for of in pieces) / 5
    assert "documents_cut_share" in checks["train"]

    written: list[list[list[int]]] = []
    write = Summarization._write

    def counting(self: Any, model: Any, batch: Any) -> list[str]:
        said = write(self, model, batch)
        written.append([[len(ids) for ids in batch["input_ids"]], [len(text) for text in said]])
        return [f"{len(written)} {i} " + "old " * 9 for i in range(len(said))]

    model = opened.model.eval()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Summarization, "_write", counting)
        found = opened.task.predict(model, opened.task.collate_eval(rows, range(5)))
    assert [p["pieces"] for p in found] == [len(of) for of in pieces]
    assert len(written) == 2, "all pieces at once, then all that are too long together at once"
    assert len(written[0][0]) == sum(len(of) for of in pieces)
    assert len(written[1][0]) == sum(p["summarised_twice"] for p in found)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(Summarization, "_write", counting)
        patch.setattr("tltasks.tasks.text.summarization.PIECES_AT_ONCE", 2)
        written.clear()
        (alone,) = opened.task.predict(model, opened.task.collate_eval(rows, [4]))
    most = len(pieces[4])
    assert [len(batch) for batch, _ in written[:-1]] == [2] * (most // 2) + [1] * (most % 2), "of a long document alone"
    assert (alone["pieces"], alone["summarised_twice"]) == (most, True)
    twice = [p["summarised_twice"] for p in found]
    assert twice[4]
    assert not twice[0]
    for p in found:
        assert p["summarised_twice"] == p["prediction"].startswith("2 ")
    score = opened.task.score(found, opened.task.references(rows), intervals=True)
    assert score.details["split_in_pieces"] == sum(len(of) > 1 for of in pieces)
    assert score.details["summarised_twice"] == sum(twice)


def test_a_run_reports_split_documents(folder: Path, tmp_path: Path) -> None:
    rows = [(long_document(n), "cats sleep") for n in (1, 12, 20)]
    data = write_rows(tmp_path / "data", train=rows, validation=rows, test=rows)
    path = texts.write_recipe(
        tmp_path / "r.yaml", folder / "t5", data, stage="{stage: zero_shot}", data_keys="  long_documents: split\n"
    )
    result = run_recipe(path, tmp_path / "run")
    assert result.stages[0].metrics["test"].details["split_in_pieces"] == 2
    assert "In test 2 documents had\nmore than one piece" in (tmp_path / "run" / "README.md").read_text()


def test_fp16_is_refused_where_it_is_known_to_overflow(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tltasks.runs.context.choose_precision", lambda requested, device: requested)  # as on a GPU
    for name, refused in (("t5", True), ("mt5", True), ("longt5", True), ("pegasus", True), ("bart", False)):
        path = texts.write_recipe(folder / "half.yaml", folder / name, folder / "data", precision="fp16")
        AcceleratorState._reset_state(reset_partial_state=True)
        if refused:
            with pytest.raises(RecipeError, match=rf"precision: fp16 cannot hold.*\({name}\).*Use `bf16`, or `fp32`"):
                run_recipe(path, tmp_path / "run")
            assert not (tmp_path / "run").exists()
        else:
            check_architecture("fp16", name, shown=name)


# -------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_long_texts_are_cut_and_counted(folder: Path, name: str) -> None:
    form = PreparedStage(folder, name, data_keys="  max_bad_share: 0.5\n").task.form
    document = " ".join(texts.FILLERS * 40)
    (short, long), counts, _ = form.encode_documents(["the cats", document])
    assert len(long) <= form.max_document_tokens < counts[1]
    assert len(long) > form.max_document_tokens - 4
    assert counts[0] == len(short)
    ending = form.encode_documents([""])[0][0][-2:]
    assert long[-len(ending) :][-1] == ending[-1], "what follows the document is not cut"
    (summary,), n, _ = form.encode_summaries([document])
    assert len(summary) == form.max_summary_tokens < n[0]
    assert summary[-1] == form.end


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("bart", "  max_document_tokens: 200\n", "reads at most 128 tokens"),
        ("gpt2", "  max_document_tokens: 120\n", "152 with the summary's"),
        ("llama", "  max_document_tokens: 5\n", "leaves no room for a document"),
    ],
)
def test_limits_that_cannot_be_are_refused(folder: Path, name: str, keys: str, message: str) -> None:
    path = texts.write_recipe(folder / "limits.yaml", folder / name, folder / "data")
    path.write_text(path.read_text().replace("  max_document_tokens: 80\n", keys))
    with pytest.raises(RecipeError, match=message):
        run_recipe(path, folder / "never")


def test_transfer_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="Use `stage: finetune`"):
        PreparedStage(folder, "t5", stage="{stage: transfer, epochs: 1, learning_rate: 1e-3}")


def test_a_language_without_language_tokens_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no language tokens"):
        PreparedStage(folder, "t5", model_keys=", language: en_XX")


@pytest.mark.parametrize("kind", [transformers.MBartTokenizer, transformers.MBart50Tokenizer])
def test_language_tokens_stand_where_the_checkpoint_has_them(tmp_path: Path, kind: Any) -> None:
    """Source: Liu et al., https://arxiv.org/abs/2001.08210, §2, and Tang et al., https://arxiv.org/abs/2008.00401, §3:
    of 25 languages the token closes documents and begins summaries; of 50 it begins both."""
    texts.save_multilingual(tmp_path / "mbart", kind)
    texts.save_data(tmp_path / "data")
    with pytest.raises(RecipeError, match=r"model.language: mbart knows \d+ languages; name the one.*ro_RO"):
        PreparedStage(tmp_path, "mbart")
    with pytest.raises(RecipeError, match="does not know `tlh`"):
        PreparedStage(tmp_path, "mbart", model_keys=", language: tlh")
    opened = PreparedStage(tmp_path, "mbart", model_keys=", language: ro_RO")
    form, model = opened.task.form, opened.model
    tokens = form.tokenizer.convert_ids_to_tokens
    (document,), *_ = form.encode_documents(["the cats"])
    summaries, counts, _ = form.encode_summaries(["small cats", "small cats " * 40])
    long = summaries.pop()
    labels = torch.tensor(summaries)
    inputs = tokens(model.prepare_decoder_input_ids_from_labels(labels=labels)[0])
    words = form.tokenizer.tokenize("small cats")
    if kind is transformers.MBartTokenizer:
        assert tokens(document) == [*form.tokenizer.tokenize("the cats"), "</s>", "ro_RO"]
        assert tokens(summaries[0]) == [*words, "</s>", "ro_RO"]
        assert inputs == ["ro_RO", *words, "</s>"]
        begin = ["ro_RO"]
    else:
        assert tokens(document) == ["ro_RO", *form.tokenizer.tokenize("the cats"), "</s>"]
        assert tokens(summaries[0]) == ["ro_RO", *words, "</s>"]
        assert inputs == ["</s>", "ro_RO", *words]
        begin = ["</s>", "ro_RO"]
    assert counts[0] == len(words) + 2
    assert len(long) == form.max_summary_tokens < counts[1]
    assert long[-len(form.closing) :] == list(form.closing)
    batch = opened.task.collate_eval(opened.rows, [0, 1])
    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for ids in model.generate(**asked, generation_config=model.generation_config):
        assert tokens(ids)[: len(begin)] == begin
    forced = model.generation_config.forced_bos_token_id
    assert (forced is None) == (kind is transformers.MBartTokenizer), "once is enough"


# ------------------------------------------------------------------------------------------ decoding


def test_decoding_is_the_checkpoints_with_the_recipes_over_it(folder: Path, tmp_path: Path) -> None:
    texts.save_model(tmp_path / "llama", "llama")
    texts.save_data(tmp_path / "data")
    own = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "num_beams": 3,
        "min_length": 56,
        "eos_token_id": [0, 1],
    }
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps(own))
    opened = PreparedStage(tmp_path, "llama", model_keys=", generation: {length_penalty: 0.8}")
    config = opened.model.generation_config
    assert (config.do_sample, config.num_beams, config.length_penalty) == (False, 3, 0.8)
    assert config.max_new_tokens == 32
    assert config.min_length is None, "it would exceed the summary's limit"
    assert config.eos_token_id == [opened.task.form.end, 0, 1]
    opened.task.save(tmp_path / "saved", opened.model, adapter=False)
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["length_penalty"] == 0.8


def test_bart_configurations_with_generation_settings_can_be_saved(folder: Path, tmp_path: Path) -> None:
    """As BART's on the Hub: settings of generation in config.json."""
    texts.save_model(tmp_path / "bart", "bart")
    texts.save_data(tmp_path / "data")
    path = tmp_path / "bart" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_beams": 4, "max_length": 142, "min_length": 5}))
    (tmp_path / "bart" / "generation_config.json").unlink()
    opened = PreparedStage(tmp_path, "bart")
    opened.task.save(tmp_path / "saved", opened.model, adapter=False)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved").generation_config.max_new_tokens == 32


# ---------------------------------------------------------------------------------------------- data


def write_rows(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"document": d, "summary": s}) for d, s in splits[split]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_oddities_are_counted_and_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = " ".join(texts.FILLERS * 9)
    train = [("the cats sleep", "cats"), ("The  cats sleep", "small cats"), ("rain", "rain"), ("a", "the rain falls")]
    data = write_rows(
        tmp_path / "data", train=train, validation=[("new trains", "trains")], test=[("Rain", "rain"), (long, "bread")]
    )
    path = texts.write_recipe(tmp_path / "recipe.yaml", folder / "t5", data)
    result = run_recipe(path, tmp_path / "run", "stages.0.epochs=1")
    checks = {name: about.checks for name, about in result.stages[0].data.items()}
    assert checks["train"] == {
        "summaries_equal_to_document": 1,
        "summaries_longer_than_document": 1,
        "repeated_documents": 1,
        "documents_cut_share": 0.0,
        "summaries_cut_share": 0.0,
        "document_characters_unknown_share": 0.0,
        "summary_characters_unknown_share": 0.0,
    }
    assert checks["test"]["documents_also_in_train"] == 1
    assert checks["test"]["documents_cut_share"] == 0.5
    assert "test: summaries equal to document 1, documents also in train 1, documents cut 50.0%" in " ".join(
        capsys.readouterr().err.split()
    )


def test_empty_texts_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    rows = [("the cats", "cats")] * 3
    data = write_rows(tmp_path / "data", train=[*rows, (" ", "cats")], validation=rows, test=rows)
    path = texts.write_recipe(tmp_path / "recipe.yaml", folder / "t5", data)
    with pytest.raises(DataError, match="row 3: empty document"):
        run_recipe(path, tmp_path / "run")
    result = run_recipe(path, tmp_path / "run", "data.max_bad_share=0.5", "stages.0.epochs=1")
    assert result.stages[0].data["train"].skipped_rows == {"3": "empty document (train.jsonl:4)"}


# --------------------------------------------------------------------------------------------- whole


@pytest.fixture(scope="module")
def learned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("learned") / "run"
    texts.save_data(folder / "more", rows=160)
    path = texts.write_recipe(folder / "learn.yaml", folder / "qwen2", folder / "more", stage=TOPIC_STAGE % (10, 1e-2))
    run_recipe(path, output)
    return output


def test_a_decoder_learns_topics_and_beats_its_baselines(learned: Path) -> None:
    result = load_result(learned / "result.json")
    stage = result.stages[0]
    assert result.headline.value > 60
    assert set(stage.baselines) == {"checkpoint", next(name for name in stage.baselines if name.startswith("lead_"))}
    for arm in stage.baselines.values():
        low, high = arm["test"].difference_ci95
        assert 0 < low < high
    assert set(stage.metrics["test"].details["ci95"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_the_report_shows_worst_median_and_best_with_their_documents(learned: Path) -> None:
    page = (learned / "report.html").read_text()
    for word in ("worst", "median", "best"):
        assert f" · {word} · row " in page
    for word in ("document", "summary", "reference"):
        assert page.count(f"<h3>{word}</h3>") == 9  # side by side
    assert "ROUGE" in (learned / "README.md").read_text()


def test_evaluation_during_training_looks_at_the_stated_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    collate = Summarization.collate_eval

    def counting(self: Any, rows: Any, indices: Any) -> Any:
        looked.append(len(rows))
        return collate(self, rows, indices)

    monkeypatch.setattr(Summarization, "collate_eval", counting)
    path = texts.write_recipe(folder / "few.yaml", folder / "gpt2", folder / "data")
    run_recipe(path, tmp_path / "run", "stages.0.epochs=1", "stages.0.evaluate_rows=3")
    assert 3 in looked
    assert 16 in looked, "the end is on the whole split"


def test_zero_shot_needs_no_training_data(folder: Path, tmp_path: Path) -> None:
    path = texts.write_recipe(folder / "zero.yaml", folder / "t5", folder / "data", stage="{stage: zero_shot}")
    result = run_recipe(path, tmp_path / "run")
    assert set(result.stages[0].metrics) == {"test", "validation"}
    assert all(name.startswith("lead_") for name in result.stages[0].baselines)
