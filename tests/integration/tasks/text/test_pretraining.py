"""Objectives on text: what they hide, their losses by hand, what they learn, and what later stages make of them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.tiny import texts
from tests.tiny.runs import run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.text.objectives import CausalLanguage, Frame, Infilling, MaskedLanguage, SpanCorruption

TASK_OF = {
    "t5": "text-denoising",
    "bart": "text-denoising",
    "bert": "masked-language-modeling",
    "gpt2": "causal-language-modeling",
    "llama": "causal-language-modeling",
}
ONCE = "{stage: finetune, steps: 1, batch_size: 8, learning_rate: 1e-3}"
END = Frame((), (1,))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name in texts.OBJECTIVES:
        texts.save_objective(folder / name, name)
    texts.save_model(folder / "bare", "bart")
    texts.save_data(folder / "data", rows=16)
    return folder


def write(path: Path, zoo: Path, name: str, *stages: str, task: str = "", keys: str = "", label: bool = True) -> Path:
    files = {split: str(zoo / "data" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    columns = {"text": "document", **({"label": "summary"} if label else {})}
    data = {"name": "json", "files": files, "splits": {"validation": "validation"}, "columns": columns}
    lines = "\n".join(f"  - {stage}" for stage in stages or (ONCE,))
    path.write_text(
        f"task: {task or TASK_OF[name]}\nmodel: {{name: {zoo / name}}}\n"
        f"data: {json.dumps(data)[:-1]}, max_tokens: 64{keys}}}\n"
        f"stages:\n{lines}\noutput: {path.parent / 'output'}\nprecision: fp32\n"
    )
    return path


def opened(recipe: Path) -> Any:
    loaded = load_recipe(recipe)
    return prepare_stages(Accelerator(cpu=True), plan_run(loaded))


@pytest.fixture
def opener(zoo: Path, tmp_path: Path) -> Callable[..., Any]:
    return lambda name, *stages, **keys: opened(write(tmp_path / "r.yaml", zoo, name, *stages, **keys))[0]


# ---------------------------------------------------------------------------------- what is hidden


def test_spans_are_hidden_behind_sentinels() -> None:
    """15 % of 100 tokens in stretches of three: fifteen tokens behind five sentinels, nothing lost."""
    objective = SpanCorruption(END, tuple(range(200, 210)), 0.15, 3.0)
    ids = np.arange(100) + 2
    sizes = []
    for seed in range(50):
        read, written = (part.tolist() for part in objective.corrupt(ids, np.random.default_rng(seed)))
        assert read[-1] == written[-1] == 1
        assert [i for i in read if i >= 200] == [i for i in written if i >= 200] == list(range(200, 205))
        assert len(read) == 100 - 15 + 5 + 1
        assert len(written) == 15 + 5 + 1
        parts = {s: [] for s in range(200, 205)}
        for token in written[:-1]:
            if token >= 200:
                now = parts[token]
            else:
                now.append(token)
        whole = [t for i in read[:-1] for t in (parts[i] if i >= 200 else [i])]
        assert whole == ids.tolist()
        assert all(parts.values())
        sizes += [len(part) for part in parts.values()]
    assert np.mean(sizes) == 3
    assert len(set(sizes)) > 4
    # Raffel et al., §3.1.4: of two tokens one is seen and one written.
    assert [p.tolist() for p in objective.corrupt(np.array([7, 8]), np.random.default_rng(0))] == [
        [7, 200, 1],
        [200, 8, 1],
    ]
    many = SpanCorruption(END, (200, 201), 0.5, 1.0).corrupt(ids, np.random.default_rng(0))
    assert sum(i >= 200 for i in many[0]) == 2, "no more stretches than there are sentinels"


def test_infilling_hides_stretches_of_any_length_behind_one_mask_each() -> None:
    objective = Infilling(END, 200, 0.3, 3.0)
    ids = np.arange(1000) + 201
    read, written = objective.corrupt(ids, np.random.default_rng(0))
    assert written.tolist() == [*ids, 1]
    kept = [i for i in read.tolist()[:-1] if i != 200]
    assert len(kept) == 700
    assert kept == sorted(kept)
    masks = len(read) - 701
    assert 85 < masks < 116, "three hundred tokens in stretches of three, and one in twenty of none"
    lengths = []
    for seed in range(300):
        read, _ = objective.corrupt(np.arange(4) + 201, np.random.default_rng(seed))
        lengths.append(len(read) - 1)
        assert (read == 200).sum() >= 1
    assert max(lengths) > 4, "a stretch of none puts a mask in between"


def test_a_masked_model_reads_masks_others_and_the_token_itself() -> None:
    objective = MaskedLanguage(Frame((3,), (4,)), 9, tuple(range(100, 400)), 0.15)
    ids = np.arange(4000) % 300 + 100
    read, wanted = objective.corrupt(ids, np.random.default_rng(0))
    assert (read[0], read[-1], wanted[0], wanted[-1]) == (3, 4, -100, -100)
    read, wanted = read[1:-1], wanted[1:-1]
    chosen = wanted != -100
    assert chosen.sum() == 600
    assert (wanted[chosen] == ids[chosen]).all()
    assert (read[~chosen] == ids[~chosen]).all()
    shares = [np.mean(read[chosen] == 9), np.mean(read[chosen] == ids[chosen])]
    assert shares == pytest.approx([0.8, 0.1], abs=0.04)
    assert set(read[chosen]) - {9} <= set(objective.ordinary)
    assert (
        MaskedLanguage(END, 9, (5,), 0.15).corrupt(np.array([7, 8]), np.random.default_rng(0))[1].tolist().count(-100)
        == 2
    )


def test_a_causal_model_predicts_what_follows() -> None:
    read, wanted = CausalLanguage(Frame((5,), ()), (1,)).corrupt(np.array([7, 8, 1]), np.random.default_rng(0))
    assert (read.tolist(), wanted.tolist()) == ([5, 7, 8, 1], [7, 8, 1, -100])


@pytest.mark.parametrize("name", texts.OBJECTIVES)
def test_draws_depend_on_seed_epoch_and_row_alone(opener: Callable[..., Any], name: str) -> None:
    stretches = ", mask_ratio: 0.3, span_tokens: 2}" if name == "t5" else "}"  # one alone would be at the end
    item = opener(name, ONCE.replace("}", stretches))
    task, rows = item.task, item.encoded["train"].rows
    built = task.build(item.plan.kind)
    task, model = built.task, built.model.eval()
    whole, part = (task.collate_eval(rows, i) for i in (range(6), [4]))
    labels = [b["labels"] for b in (whole, part)]
    assert labels[0][4][labels[0][4] != -100].tolist() == labels[1][0][labels[1][0] != -100].tolist()
    with torch.no_grad():
        by_row = task.predict(model, whole)[4], task.predict(model, part)[0]
    assert by_row[0]["loss"] == pytest.approx(by_row[1]["loss"], rel=1e-4)
    np.testing.assert_allclose(by_row[0]["features"], by_row[1]["features"], atol=1e-5)
    drawn = [task.collate_train(rows, [4], epoch=e)["input_ids"].tolist() for e in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert (drawn[0] == drawn[2] == drawn[3]) == (TASK_OF[name] == "causal-language-modeling")


def test_a_long_text_is_read_in_other_stretches(opener: Callable[..., Any]) -> None:
    item = opener("gpt2", keys=", max_bad_share: 0.0")
    task, rows = item.task, item.encoded["train"].rows
    object.__setattr__(task, "max_tokens", 8)
    row = int(np.argmax(rows["tokens"]))
    ids = rows[row]["ids"]
    assert len(ids) > 20
    assert ids[-1] == task.tokenizer.eos_token_id, "the end of a text is learnt"
    read = [task.collate_train(rows, [row], epoch=e)["input_ids"][0].tolist() for e in range(6)]
    assert all(len(r) == 8 and any(ids[i : i + 8] == r for i in range(len(ids))) for r in read)
    assert len({tuple(r) for r in read}) > 1
    assert task.collate_eval(rows, [row])["input_ids"][0].tolist() == ids[:8]
    assert task.data_checks(item.encoded)["train"]["texts_cut_share"] > 0.5


# ---------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("name", texts.OBJECTIVES)
def test_the_loss_is_that_of_transformers(zoo: Path, opener: Callable[..., Any], name: str) -> None:
    item = opener(name)
    task, rows = item.task, item.encoded["test"].rows
    built = task.build(item.plan.kind)
    task, model = built.task, built.model.eval()
    batch = task.collate_eval(rows, range(5))
    with torch.no_grad():
        ours = float(task.loss(model, batch))
        if TASK_OF[name] == "causal-language-modeling":
            seen = batch["segments"] > 0
            labels = batch["input_ids"].masked_fill(~seen, -100)
            theirs = model(input_ids=batch["input_ids"], attention_mask=seen.long(), labels=labels).loss
            packed = task.collate_train(rows, range(5), epoch=0)
            assert len(packed["input_ids"]) < 5
            assert float(task.loss(model, packed)) == pytest.approx(ours, rel=1e-4)
        else:
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
            theirs = model(**inputs).loss
        predicted = task.predict(model, batch)
    assert ours == pytest.approx(float(theirs), rel=1e-4)
    total, targets = (sum(p[key] for p in predicted) for key in ("loss", "targets"))
    assert total / targets == pytest.approx(ours, rel=1e-4)
    assert targets == int(task.num_targets(batch))


def test_the_baseline_is_the_entropy_of_the_tokens(opener: Callable[..., Any]) -> None:
    item = opener("gpt2")
    task, rows = item.task, item.encoded["test"].rows
    guesses = task.baselines(item.encoded["train"], rows)["token_frequencies"]
    tokens = [t for ids in rows["ids"] for t in ids[1:]]
    _, counts = np.unique(tokens, return_counts=True)
    shares = counts / counts.sum()
    score = task.score(guesses, task.references(rows), intervals=False)
    assert score.values["loss"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert score.values["masked_accuracy"] == pytest.approx(shares.max())
    assert score.values["perplexity"] == pytest.approx(math.exp(score.values["loss"]))


# -------------------------------------------------------------------------------------------- learning


def lines_of(sentences: list[str]) -> str:
    return "\n".join(json.dumps({"document": s, "summary": s.split()[1]}) for s in sentences)


@pytest.mark.parametrize(("name", "steps"), [("t5", 150), ("bart", 80), ("bert", 200), ("gpt2", 80)])
def test_overfits_a_tiny_set_without_labels(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, steps: int
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    sentences = [f"{text} {text}" for text in texts.TOPICS.values()]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(lines_of(sentences))
    (tmp_path / name).symlink_to(zoo / name)
    stage = (
        f"{{name: objective, stage: pretrain, steps: {steps}, batch_size: 4, learning_rate: 1e-2, weight_decay: 0, "
        f"schedule: constant, warmup: 0.1, evaluate_every: {steps}}}"
    )
    result = run_recipe(write(tmp_path / "r.yaml", tmp_path, name, stage, label=False), tmp_path / "run").stages[0]
    ours, plain = result.metrics["test"].values, result.baselines["token_frequencies"]["test"].values
    assert ours["loss"] < 0.6 * plain["loss"]
    assert ours["masked_accuracy"] > plain["masked_accuracy"]
    assert "knn_accuracy" not in ours
    assert ours["feature_spread"] > 0.01
    table = pq.read_table(tmp_path / "run" / "predictions" / "objective-test.parquet").to_pydict()
    assert np.average(table["loss"], weights=table["targets"]) == pytest.approx(ours["loss"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"({result.weights.settings['objective']})" in card
    auto = {"bert": "AutoModelForMaskedLM", "gpt2": "AutoModelForCausalLM"}.get(name, "AutoModelForSeq2SeqLM")
    getattr(transformers, auto).from_pretrained(tmp_path / "run" / "model")
    AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    if name == "bert":  # the answer to a text does not depend on the texts beside it
        (folder / "last.jsonl").write_text(lines_of(sentences[-1:]))
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "run"), *(str(folder / f"{f}.jsonl") for f in ("test", "last"))]) == 0
        answers = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
        assert len(answers) == 5
        assert answers[3] == answers[4] > 0


def test_labels_judge_features(opener: Callable[..., Any]) -> None:
    item = opener("bert")
    predictions = [{"loss": 2.0, "targets": 2, "right": 1, "features": np.eye(4)[i % 2] + 1e-3 * i} for i in range(8)]
    score = item.task.score(predictions, ["a", "b"] * 4, intervals=False)
    assert score.values["knn_accuracy"] == 1
    assert score.values["loss"] == 1
    same = [{**p, "features": np.ones(4)} for p in predictions]
    (note,) = item.task.score(same, ["a", "b"] * 4, intervals=False).notes
    assert "collapsed: the features of different texts" in note


# ------------------------------------------------------------------------------------ from stage to stage


@pytest.mark.parametrize("name", ["bart"])
def test_a_summariser_starts_from_what_was_learnt(zoo: Path, tmp_path: Path, name: str) -> None:
    files = {split: str(zoo / "data" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    plain = {"name": "json", "files": files, "splits": {"validation": "validation"}}
    data = {**plain, "max_document_tokens": 80, "max_summary_tokens": 12}
    unlabelled = {**plain, "columns": {"text": "document"}, "max_tokens": 64}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"task: summarization\nmodel: {{name: {zoo / name}}}\ndata: {json.dumps(data)}\nstages:\n"
        f"  - {{name: objective, stage: finetune, task: {TASK_OF[name]}, data: {json.dumps(unlabelled)}, steps: 2, "
        "batch_size: 8, learning_rate: 1e-2}\n"
        "  - {stage: finetune, start: previous, steps: 1, batch_size: 8, learning_rate: 1e-9, optimizer: sgd}\n"
        f"output: {tmp_path / 'output'}\nprecision: fp32\n"
    )
    result = run_recipe(recipe, tmp_path / "run")
    handed = {
        key: tensor
        for path in (tmp_path / "run" / "stages" / "objective" / "model").glob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
    own = weights(tmp_path / "run")
    assert own.keys() == handed.keys()
    assert all(torch.allclose(own[key], handed[key], atol=1e-6) for key in own)
    assert result.stages[1].weights.newly_initialised == []
    assert [it.stage for it in result.stages[1].lineage] == ["objective"]


def test_a_new_head_leaves_the_embeddings_alone(zoo: Path, tmp_path: Path, opener: Callable[..., Any]) -> None:
    whole = transformers.BertForMaskedLM.from_pretrained(zoo / "bert")
    for path in (zoo / "bert").iterdir():
        if path.suffix == ".json":
            (tmp_path / "headless").mkdir(exist_ok=True)
            (tmp_path / "headless" / path.name).write_bytes(path.read_bytes())
    whole.bert.save_pretrained(tmp_path / "headless")
    (tmp_path / "data").symlink_to(zoo / "data")
    (item,) = opened(write(tmp_path / "r.yaml", tmp_path, "headless", task="masked-language-modeling"))
    with pytest.raises(CheckpointError, match=r"no weights for the head that writes text .*`stage: transfer`"):
        item.task.build(item.plan.kind)
    stage = ONCE.replace("finetune", "transfer")
    for name in ("headless", "bert"):
        if name == "bert":
            item = opener("bert", stage)
        else:
            (item,) = opened(write(tmp_path / "s.yaml", tmp_path, name, stage, task="masked-language-modeling"))
        built = item.task.build(item.plan.kind)
        model: Any = built.model
        theirs = whole.bert.embeddings.word_embeddings.weight
        assert torch.equal(model.bert.embeddings.word_embeddings.weight, theirs)
        dense = model.cls.predictions.transform.dense.weight
        assert not torch.equal(dense, whole.cls.predictions.transform.dense.weight)
        assert 0.01 < float(dense.detach().std()) < 0.03
        assert built.provenance.loaded_share == 1


# -------------------------------------------------------------------------------------------- refusals


def test_a_model_without_attention_is_refused(opener: Callable[..., Any]) -> None:
    """Each token of it is read alone, as MRA's without its kernel."""
    item = opener("bert")
    model = item.task.build(item.plan.kind).model
    for layer in model.bert.encoder.layer:
        torch.nn.init.zeros_(layer.attention.output.dense.weight)
    with pytest.raises(CheckpointError, match="the same of a token whatever stands around it"):
        item.task.tried(model)


@pytest.mark.parametrize(
    ("name", "task", "stage", "error", "said"),
    [
        ("gpt2", "masked-language-modeling", ONCE, CheckpointError, "no mask token.*use causal-language-modeling"),
        ("bare", "text-denoising", ONCE, CheckpointError, "neither sentinels .* nor a mask token"),
        ("bert", "text-denoising", ONCE, CheckpointError, "no BART's infilling for bert"),
        ("t5", "causal-language-modeling", ONCE, CheckpointError, "no causal language modelling for t5"),
        ("t5", "text-denoising", ONCE.replace("finetune", "transfer"), RecipeError, "Use `stage: finetune`"),
        ("gpt2", "causal-language-modeling", ONCE.replace("}", ", mask_ratio: 0.2}"), RecipeError, "unknown key"),
    ],
)
def test_refusals_say_what_to_do(
    zoo: Path, tmp_path: Path, name: str, task: str, stage: str, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        opened(write(tmp_path / "r.yaml", zoo, name, stage, task=task))


def test_too_many_tokens_are_refused(zoo: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", zoo, "bert"), ["data.max_tokens=200"])
    with pytest.raises(RecipeError, match="reads at most 128 tokens, and this asks for 200"):
        prepare_stages(Accelerator(cpu=True), plan_run(recipe))


def test_empty_texts_are_named(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        lines = [{"document": text, "summary": "x"} for text in ("", "one two three", "four five six")]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "gpt2").symlink_to(zoo / "gpt2")
    with pytest.raises(DataError, match="row 0: empty text"):
        opened(write(tmp_path / "r.yaml", tmp_path, "gpt2"))
