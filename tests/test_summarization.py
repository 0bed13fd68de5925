"""The summarisation adapter on tiny models of eleven families, all through the real loading, training and saving."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tests.tiny import texts
from tests.tiny.runs import equal, in_processes, largest_difference, run_recipe, weights
from tltasks.adapt import adapt, merged
from tltasks.data import encode_split, load_splits
from tltasks.errors import DataError, RecipeError
from tltasks.recipe_file import load_recipe, located
from tltasks.result import load_result
from tltasks.stages import plan_stages
from tltasks.tasks.base import Checkpoint
from tltasks.tasks.summarization import Summarization
from tltasks.vocabulary_loss import mean_loss

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


class Opened:
    """An adapter, its model and its encoded rows, as the runner would have them."""

    def __init__(self, folder: Path, name: str, **keys: Any) -> None:
        path = texts.write_recipe(folder / f"{name}.yaml", folder / name, folder / "data", **keys)
        self.recipe = load_recipe(path)
        self.plan = plan_stages(located(self.recipe))[0]
        splits = load_splits(self.plan.data, seed=0, label=None)
        self.task = Summarization.open(self.plan, splits, Checkpoint(self.plan.model.name, shown=name), seed=0)
        self.model: PreTrainedModel = self.task.build(self.plan.row)
        self.encoded = {
            key: encode_split(
                split, self.task.encoder(split), self.task.features, key=self.task.encoding_key, max_bad_share=0.01
            )
            for key, split in splits.items()
        }
        self.rows = self.encoded["train"].rows

    def batch(self, n_rows: int = 5) -> dict[str, torch.Tensor]:
        return self.task.read_augmented(self.rows, list(range(n_rows)), epoch=0)

    def with_lora(self, rank: int = 4) -> torch.nn.Module:
        recipe = load_recipe(self.recipe._folder / f"{Path(self.plan.model.name).name}.yaml")
        task, model = self.task, self.task.build(self.plan.row)
        return adapt(
            model,
            recipe.stages[0],
            self.plan.row,
            head=task.head(model),
            targets=task.lora_targets(model),
            shown_name=str(model.name_or_path),
            revision="main",
        )


# ----------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_that_of_transformers(folder: Path, name: str) -> None:
    """Given labels, transformers' models compute the same mean themselves, one row at a time without padding."""
    opened = Opened(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    model, rows = opened.model.eval(), opened.rows.select(range(4))
    total = torch.zeros(())
    n_targets = 0
    for row in rows:
        document, summary = (torch.tensor([row[f"{key}_ids"]]) for key in ("document", "summary"))
        if opened.task.form.encoder_decoder:
            extra = opened.task._global_attention(document)
            loss = model(input_ids=document, labels=summary, **extra).loss
        else:
            ids = torch.cat([document, summary], dim=1)
            labels = torch.cat([torch.full_like(document, -100), summary], dim=1)
            loss = model(input_ids=ids, labels=labels).loss
        total += loss * summary.shape[1]
        n_targets += summary.shape[1]
    batch = opened.task.read_augmented(rows, range(4), epoch=0)
    assert int(opened.task.count(batch)) == n_targets
    assert opened.task.loss(model, batch).item() == pytest.approx(total.item() / n_targets, rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_in_chunks_has_the_gradients_of_the_whole(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    assert opened.task.loaded["chunked_loss"] is True
    batch = opened.batch()
    inputs = opened.task._inputs(opened.model, batch)
    opened.model.eval()
    vocabulary = opened.model.config.vocab_size
    found = []
    for chunked, at_once in ((False, 0), (True, 2**24), (True, 7 * vocabulary)):
        monkeypatch.setattr("tltasks.vocabulary_loss.LOGITS_AT_ONCE", at_once)
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
    opened = Opened(folder, name)
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
    opened = Opened(folder, name, model_keys=", generation: {num_beams: 2, min_new_tokens: 3}")
    model = opened.with_lora()
    torch.manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(std=1.0)
    rows = opened.encoded["test"].rows.select(range(5))
    with torch.inference_mode():
        ours = [p["prediction"] for p in opened.task.predict(model.eval(), opened.task.read(rows, range(5)))]
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
        extra = opened.task._global_attention(inputs["input_ids"])
        ids = loaded.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **extra)[0]
        start = 0 if opened.task.form.encoder_decoder else inputs["input_ids"].shape[1]
        theirs.append(tokenizer.decode(ids[start:], skip_special_tokens=True).replace("<n>", "\n").strip())
    assert theirs == ours
    assert len(set(ours)) > 1
    assert [
        p["prediction"]
        for p in opened.task.predict(opened.task.reload(tmp_path).eval(), opened.task.read(rows, range(5)))
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
    opened = Opened(tmp_path, "flan")
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
    opened = Opened(folder, "t5")
    model = opened.with_lora()
    opened.task.save(tmp_path, model, adapter=False)
    again = opened.task.reload(tmp_path)
    assert again.lm_head.weight.data_ptr() == again.shared.weight.data_ptr()
    assert again.config.scale_decoder_outputs is True
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------- decoder-only


@pytest.mark.parametrize("name", texts.DECODERS)
def test_loss_is_on_the_summary_alone(folder: Path, name: str) -> None:
    opened = Opened(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    batch = opened.batch(3)
    labels = batch["labels"]
    written = [row for members in labels for row in members[members != -100].tolist()]
    expected = [token for i in (0, 1, 2) for token in opened.rows[i]["summary_ids"]]
    assert sorted(written) == sorted(expected)
    # A change of labels outside the summary would have to show; there are none to change.
    assert int((labels != -100).sum()) == len(expected) < labels.numel() / 2


@pytest.mark.parametrize("name", texts.DECODERS)
def test_packing_changes_neither_loss_nor_gradients(folder: Path, name: str) -> None:
    opened = Opened(folder, name, stage=TOPIC_STAGE % (1, 1e-3))
    assert opened.task.loaded["packing"] is True
    found = []
    columns = opened.rows[:6]
    documents = [ids[: 4 + i] for i, ids in enumerate(columns["document_ids"][:4])] + columns["document_ids"][4:]
    for packing in (True, False):
        opened.task.loaded["packing"] = packing
        batch = opened.task._collate(documents, columns["summary_ids"])
        opened.model.zero_grad()
        loss = opened.task.loss(opened.model.eval(), batch)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in opened.model.named_parameters()}
        found.append((len(batch["input_ids"]), loss.item(), gradients))
    assert found[0][0] < found[1][0] == 6
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert largest_difference(found[0][2], found[1][2]) < 1e-6


def test_a_model_that_mixes_packed_examples_is_padded_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltasks.packing.attention_mask", lambda segments, model: torch.ones(1, 1, 6, 6).tril().bool())
    assert Opened(folder, "llama").task.loaded["packing"] is False


def test_what_a_decoder_reads(folder: Path) -> None:
    for name, text in (
        ("gpt2", "the cats\n\nTL;DR: small cats<|endoftext|>"),
        (
            "llama",
            "<|im_start|>user\nSummarize the following text.\n\nthe cats<|im_end|>\n<|im_start|>assistant\n"
            "small cats<|im_end|>",
        ),
    ):
        form = Opened(folder, name).task.form
        documents, _ = form.encode_documents(["the cats"])
        summaries, _ = form.encode_summaries(["small cats"])
        assert form.tokenizer.decode(documents[0] + summaries[0]) == text


def test_prompts_are_those_of_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    prompts = {name: Opened(folder, name).task.form.prompt for name in ("t5", "mt5", "bart", "gpt2")}
    assert prompts == {
        "t5": "summarize: {document}",
        "mt5": "{document}",
        "bart": "{document}",
        "gpt2": "{document}\n\nTL;DR:",
    }
    opened = Opened(folder, "bart", model_keys=", prompt: 'news {document} in short'")
    opened.task.save(tmp_path / "bart", opened.model, adapter=False)
    texts.save_data(tmp_path / "data")
    assert Opened(tmp_path, "bart").task.form.prompt == "news {document} in short"


# -------------------------------------------------------------------------------------------- lengths


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_long_texts_are_cut_and_counted(folder: Path, name: str) -> None:
    form = Opened(folder, name, data_keys="  max_bad_share: 0.5\n").task.form
    document = " ".join(texts.FILLERS * 40)
    (short, long), counts = form.encode_documents(["the cats", document])
    assert len(long) <= form.max_document_tokens < counts[1]
    assert len(long) > form.max_document_tokens - 4
    assert counts[0] == len(short)
    ending = form.encode_documents([""])[0][0][-2:]
    assert long[-len(ending) :][-1] == ending[-1], "what follows the document is not cut"
    (summary,), n = form.encode_summaries([document])
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
        Opened(folder, "t5", stage="{stage: transfer, epochs: 1, learning_rate: 1e-3}")


def test_a_language_without_language_tokens_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="no language tokens"):
        Opened(folder, "t5", model_keys=", language: en_XX")


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
    opened = Opened(tmp_path, "llama", model_keys=", generation: {length_penalty: 0.8}")
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
    opened = Opened(tmp_path, "bart")
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
    checks = {name: about["checks"] for name, about in result.stages[0].data.items()}
    assert checks["train"] == {
        "summaries_equal_to_document": 1,
        "summaries_longer_than_document": 1,
        "repeated_documents": 1,
        "documents_cut_share": 0.0,
        "summaries_cut_share": 0.0,
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
    assert result.stages[0].data["train"]["skipped_rows"] == {"3": "empty document"}


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
        low, high = arm["test"].details["difference_ci95"]
        assert 0 < low < high
    assert set(stage.metrics["test"].details["ci95"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


def test_the_report_shows_worst_median_and_best_with_their_documents(learned: Path) -> None:
    page = (learned / "report.html").read_text()
    for word in ("worst", "median", "best", "DOCUMENT", "SUMMARY", "REFERENCE"):
        assert word in page
    assert "ROUGE" in (learned / "README.md").read_text()


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_step_does_not_depend_on_its_micro_batches(folder: Path, name: str, micro_batch: int, tmp_path: Path) -> None:
    stage = "{stage: finetune, steps: 2, batch_size: 8, learning_rate: 1e-2, optimizer: sgd, adapt: full, keep: last}"
    path = texts.write_recipe(folder / f"exact-{name}.yaml", folder / name, folder / "data", stage=stage)
    overrides = ["data.splits.validation=null", "stages.0.batch_size=8"]
    run_recipe(path, tmp_path / "other", *overrides, "stages.0.micro_batch=4", "stages.0.batch_size=4")
    run_recipe(path, tmp_path / "whole", *overrides, "stages.0.micro_batch=8")
    run_recipe(path, tmp_path / "parts", *overrides, f"stages.0.micro_batch={micro_batch}")
    whole = weights(tmp_path / "whole")
    assert largest_difference(whole, weights(tmp_path / "parts")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "other")) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_two_processes_take_the_same_steps(folder: Path, name: str, tmp_path: Path) -> None:
    stage = "{stage: finetune, steps: 2, batch_size: 7, learning_rate: 1e-2, optimizer: sgd, adapt: full, keep: last}"
    path = texts.write_recipe(folder / f"ranks-{name}.yaml", folder / name, folder / "data", stage=stage)
    run_recipe(path, tmp_path / "one")
    done = in_processes(2, path, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_result(tmp_path / "two" / "result.json").hardware["processes"] == 2
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-6
    one, two = (load_result(tmp_path / key / "result.json").stages[0] for key in ("one", "two"))
    assert one.metrics["test"].values == pytest.approx(two.metrics["test"].values, abs=1e-9)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_interrupted_run_ends_with_the_same_bits(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    from tltasks.training import Interrupted

    stage = "{stage: finetune, steps: 5, batch_size: 7, learning_rate: 1e-2, adapt: {lora: {rank: 2, dropout: 0.2}}}"
    path = texts.write_recipe(folder / f"resume-{name}.yaml", folder / name, folder / "data", stage=stage)
    polls: list[int] = []

    @contextlib.contextmanager
    def stop_in_third_step() -> Any:
        yield lambda: polls.append(0) or len(polls) >= 3

    monkeypatch.setattr("tltasks.machine.stop_on_signals", stop_in_third_step)
    with pytest.raises(Interrupted, match="after step 3 of 5"):
        run_recipe(path, tmp_path / "run")
    monkeypatch.undo()
    run_recipe(path, tmp_path / "run", resume=True)
    run_recipe(path, tmp_path / "straight")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


def test_evaluation_during_training_looks_at_the_stated_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    read = Summarization.read

    def counting(self: Any, rows: Any, indices: Any) -> Any:
        looked.append(len(rows))
        return read(self, rows, indices)

    monkeypatch.setattr(Summarization, "read", counting)
    path = texts.write_recipe(folder / "few.yaml", folder / "gpt2", folder / "data")
    run_recipe(path, tmp_path / "run", "stages.0.epochs=1", "stages.0.evaluate_rows=3")
    assert 3 in looked
    assert 16 in looked, "the end is on the whole split"


def test_zero_shot_needs_no_training_data(folder: Path, tmp_path: Path) -> None:
    path = texts.write_recipe(folder / "zero.yaml", folder / "t5", folder / "data", stage="{stage: zero_shot}")
    result = run_recipe(path, tmp_path / "run")
    assert set(result.stages[0].metrics) == {"test", "validation"}
    assert all(name.startswith("lead_") for name in result.stages[0].baselines)
