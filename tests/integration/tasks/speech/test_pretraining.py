"""wav2vec 2.0's objective: its loss by hand, its draws, what it learns, and what recognisers make of its weights."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, Wav2Vec2ForPreTraining

from tests.tiny import speech
from tests.tiny.runs import run_recipe, weights
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import plan_run
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.runs.prepare import prepare_stages
from tltasks.tasks.speech.wav2vec2_objective import (
    HEAD,
    DrawnQuantizer,
    contrast,
    draw_mask,
    draw_negatives,
    perplexity,
)

OBJECTIVE = (
    "{name: objective, stage: %s, task: speech-pretraining, data: *unlabelled, batch_size: 4, "
    "mask: {mask_time_prob: 0.4, mask_time_length: 4}, negatives: 5, %s}"
)
CTC = "{name: ctc, stage: transfer, start: previous, steps: 1, batch_size: 4, learning_rate: 1e-9, optimizer: sgd}"
ONCE = "steps: 1, learning_rate: 1e-3"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objective")
    speech.save_objective(folder / "layer-norm")
    speech.save_objective(folder / "group-norm", "wav2vec2")
    speech.save_objective(folder / "conformer", "wav2vec2-conformer")
    speech.save_ctc(folder / "ctc", "wav2vec2-layer-norm")
    speech.save_ctc(folder / "hubert", "hubert")
    speech.save_data(folder / "data", splits={"train": 8, "validation": 4, "test": 6})
    return folder


def write_chain(path: Path, zoo: Path, *stages: str, model: str = "layer-norm", label: str = "text") -> Path:
    files = {split: str(zoo / "data" / f"{split}.csv") for split in ("train", "validation", "test")}
    data = {"name": "csv", "files": files, "splits": {"validation": "validation"}}
    unlabelled = {**data, "columns": {"label": label}} if label else data
    lines = "\n".join(f"  - {stage}" for stage in stages).replace("*unlabelled", json.dumps(unlabelled))
    path.write_text(
        f"task: automatic-speech-recognition\nmodel: {{name: {zoo / model}}}\ndata: {json.dumps(data)}\n"
        f"stages:\n{lines}\noutput: {path.parent / 'output'}\nprecision: fp32\n"
    )
    return path


def opened(recipe: Path) -> Any:
    loaded = load_recipe(recipe)
    return prepare_stages(Accelerator(cpu=True), plan_run(loaded))


@pytest.fixture
def opener(zoo: Path, tmp_path: Path) -> Callable[..., Any]:
    def item(kind: str = "finetune", more: str = ONCE, **keys: Any) -> Any:
        return opened(write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % (kind, more), **keys))[0]

    return item


# ---------------------------------------------------------------------------------------------- losses


class Said(torch.nn.Module):
    """Gives what it was told, and says which codes these are."""

    def __init__(self, own: torch.Tensor, guess: torch.Tensor, codes: torch.Tensor) -> None:
        super().__init__()
        original = type("Original", (), {"num_groups": 1, "num_vars": 4, "codevectors": None, "weight_proj": None})
        self.quantizer, self.own, self.guess, self.codes = DrawnQuantizer(original), own, guess, codes

    def forward(self, mask_time_indices: torch.Tensor, **inputs: torch.Tensor) -> Any:
        self.quantizer.chosen.append(self.codes)
        self.quantizer.shares.append(torch.nn.functional.one_hot(self.codes, 4).float())
        return type("O", (), {"projected_states": self.guess[None], "projected_quantized_states": self.own})


def test_the_loss_by_hand() -> None:
    """Three hidden frames of four; similarities of 1 and 0 over a temperature of 0.5; an equal code is no negative."""
    own = torch.tensor([[2.0, 0], [0, 3], [0, 3]])
    guess = torch.tensor([[1.0, 0], [9, 9], [0, 1], [5, 0]])
    batch = {
        "input_values": torch.zeros(1, 9),
        "attention_mask": torch.ones(1, 9),
        "mask": torch.tensor([[True, False, True, True]]),
        "negatives": torch.tensor([[1, 2], [0, 2], [1, 0]]),
        "noise_seeds": torch.tensor([0]),
    }
    model = Said(own, guess, torch.tensor([[0], [1], [1]]))
    told = contrast(model, batch, temperature=0.5, gumbel=1.0, one_by_one=False)
    e = math.e
    first, second = math.log((e**2 + 2) / e**2), math.log((e**2 + 1) / e**2)
    third = math.log((1 + e**2) / 1)  # similar to the first frame's code, not to its own
    assert told.losses.tolist() == pytest.approx([first, second, third], rel=1e-5)
    assert told.right.tolist() == [True, True, False]
    shares = math.exp(-(1 / 3 * math.log(1 / 3) + 2 / 3 * math.log(2 / 3)))
    assert float(told.diversity) == pytest.approx((4 - shares) / 4)
    assert not model.quantizer.shares
    even = torch.full((5, 2, 4), 0.25)
    assert float(perplexity(even)) == pytest.approx(8)


@pytest.mark.parametrize("name", ["layer-norm", "conformer", "group-norm"])
def test_the_loss_is_that_of_transformers(zoo: Path, opener: Callable[..., Any], name: str) -> None:
    item = opener(model=name)
    task, rows = item.task, item.encoded["test"].rows
    model = task.build(item.plan.kind).model.eval()
    theirs: Any = AutoModelForPreTraining.from_pretrained(zoo / name).eval()
    theirs.config.contrastive_logits_temperature, theirs.config.num_negatives = 0.1, 5
    indices = [2] if name == "group-norm" else [0, 2, 4]
    batch = task.collate_eval(rows, indices)
    mask, width = batch["mask"], batch["mask"].shape[1]
    negatives, start = torch.zeros(*mask.shape, 5, dtype=torch.long), 0
    for i, count in enumerate(mask.sum(1).tolist()):
        places = torch.nonzero(mask[i])[:, 0]
        negatives[i, mask[i]] = places[batch["negatives"][start : start + count]] + i * width
        start += count
    inputs = {k: batch[k] for k in ("input_values", "attention_mask")}
    with torch.no_grad():
        output = theirs(**inputs, mask_time_indices=mask, sampled_negative_indices=negatives)
        loss = task.loss(model, batch)
        frames = sum(p["loss"] for p in task.predict(model, batch))
    assert float(loss) == pytest.approx(float(output.loss) / int(mask.sum()), rel=1e-4)
    assert frames == pytest.approx(float(output.contrastive_loss), rel=1e-4)


def test_codes_in_training_are_those_of_gumbel_softmax(opener: Callable[..., Any]) -> None:
    """The same noise gives the same choice, and the gradient of the soft one."""
    item = opener()
    model = item.task.build(item.plan.kind).model.train()
    quantizer = model.quantizer
    states, hidden = torch.randn(1, 6, 32), torch.ones(1, 6, dtype=torch.bool)
    quantizer.temperature, quantizer.seeds = 0.7, [3]
    ours, _ = quantizer(states, hidden)
    noise = -torch.empty(6, 2, 8).exponential_(generator=torch.Generator().manual_seed(3)).log()
    logits = quantizer.weight_proj(states).view(6, 2, 8)
    soft = ((logits + noise) / 0.7).softmax(-1)
    assert torch.equal(quantizer.chosen[0], soft.argmax(-1))
    book = quantizer.codevectors.view(2, 8, 8)
    torch.testing.assert_close(ours, torch.stack([book[b, soft.argmax(-1)[:, b]] for b in (0, 1)], 1).flatten(1))
    gradients = []
    for made in (ours, (soft[..., None] * book).sum(2).flatten(1)):
        quantizer.zero_grad()
        made.sum().backward(retain_graph=True)
        gradients.append(quantizer.weight_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


# ----------------------------------------------------------------------------------------------- draws


def test_masks_hide_what_the_paper_says() -> None:
    """Half of a clip of 15.6 s; a hand-counted clip; short ones."""
    frames = 780

    def draw(frames: int, prob: float, length: int, row: int) -> NDArray[np.bool_]:
        return draw_mask(frames, mask_time_prob=prob, mask_time_length=length, seed=0, epoch=0, row=row)

    masks = [draw(frames, 0.65, 10, row) for row in range(200)]
    assert 0.46 < np.mean(masks) < 0.51
    lengths = [len(run) for mask in masks for run in "".join("x" if m else " " for m in mask).split()]
    assert min(lengths) >= 10
    assert 13.5 < np.mean(lengths) < 16
    assert {int(draw(100, 0.02, 1, row).sum()) for row in range(9)} == {2}
    starts = {int(draw(10, 0.25, 1, row).sum()) for row in range(40)}
    assert starts == {2, 3}, "two and a half starts are two or three"
    assert draw(10, 0.65, 10, 0).all()


def test_negatives_are_other_hidden_frames_of_the_clip() -> None:
    drawn = draw_negatives(5, 4000, seed=0, epoch=0, row=0)
    for frame in range(5):
        counts = np.bincount(drawn[frame], minlength=5)
        assert counts[frame] == 0
        assert np.delete(counts, frame).min() > 900
    assert draw_negatives(2, 3, seed=0, epoch=0, row=0).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_draws_do_not_depend_on_batches(opener: Callable[..., Any]) -> None:
    item = opener()
    rows, task = item.encoded["train"].rows, item.task
    model = task.build(item.plan.kind).model.train()
    whole, part = task.collate_train(rows, range(6), epoch=1), task.collate_train(rows, [4, 1], epoch=1)
    sizes = whole["mask"].sum(1).tolist()
    told = [task._contrast(model, batch).losses.detach() for batch in (whole, part)]
    by_row = [torch.split(told[0], sizes)[i] for i in (4, 1)]
    torch.testing.assert_close(torch.cat(by_row), told[1], rtol=1e-4, atol=1e-5)
    other = task._contrast(model, task.collate_train(rows, [4, 1], epoch=2)).losses
    assert other.shape != told[1].shape or not torch.allclose(other, told[1], atol=1e-3)
    assert torch.equal(task.collate_eval(rows, [3])["mask"], task.collate_eval(rows, [3])["mask"])


def test_the_temperature_falls_with_every_step(opener: Callable[..., Any]) -> None:
    """Eight rows in steps of four: two steps an epoch."""
    more = "epochs: 9, learning_rate: 1e-3, gumbel: {start: 2.0, decay: 0.5, end: 0.2}"
    item = opener(more=more)
    rows = item.encoded["train"].rows
    for epoch, expected in ((0, {2.0, 1.0}), (1, {0.5, 0.25}), (5, {0.2})):
        found = {
            round(float(item.task.collate_train(rows, [row], epoch=epoch)["gumbel"]), 6) for row in range(len(rows))
        }
        assert found == expected
    assert "gumbel" not in item.task.collate_eval(rows, [0])


def test_long_clips_are_cropped_at_random_and_for_evaluation_at_the_end(opener: Callable[..., Any]) -> None:
    item = opener(more=ONCE + ", crop_seconds: 0.5")
    rows = item.encoded["train"].rows
    row = int(np.argmax(rows["samples"]))
    first, second = (item.task.collate_train(rows, [row], epoch=e)["input_values"] for e in (0, 1))
    assert first.shape == second.shape == (1, 8000)
    assert not torch.equal(first, second)
    assert max(item.task.lengths(rows)) == 50


# -------------------------------------------------------------------------------------------- learning


@pytest.fixture(scope="module")
def chain(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained until it knows its clips, and a recogniser made of it."""
    folder = tmp_path_factory.mktemp("chain")
    stage = OBJECTIVE % (
        "pretrain",
        "steps: 100, learning_rate: 5e-3, weight_decay: 0, schedule: constant, evaluate_every: 100, loss_group: 2, "
        "gumbel: {start: 1.0, end: 0.1, decay: 0.97}",
    )
    run_recipe(
        write_chain(folder / "r.yaml", zoo, stage, CTC),
        folder / "run",
        "stages.0.data.files.test=" + str(zoo / "data" / "train.csv"),
    )
    return folder


def test_overfits_a_tiny_set_without_text(chain: Path) -> None:
    result = json.loads((chain / "run" / "result.json").read_text())["stages"][0]
    ours, chance = result["metrics"]["test"]["values"], result["baselines"]["chance"]["test"]["values"]
    assert chance["loss"] == pytest.approx(math.log(6))
    assert chance["masked_accuracy"] == pytest.approx(1 / 6)
    assert ours["loss"] < 0.5 * chance["loss"]
    assert ours["masked_accuracy"] > 0.7
    assert ours["codebook_perplexity"] > 2
    assert ours["feature_spread"] > 0.01
    assert 0 <= ours["knn_accuracy"] <= 1
    table = pq.read_table(chain / "run" / "predictions" / "objective-test.parquet").to_pydict()
    assert np.average(table["loss"], weights=table["frames"]) == pytest.approx(ours["loss"])


def test_the_encoder_is_handed_to_a_recogniser(chain: Path) -> None:
    result = json.loads((chain / "run" / "result.json").read_text())
    after = result["stages"][1]
    handed = load_file(chain / "run" / "stages" / "objective" / "model" / "model.safetensors")
    own = weights(chain / "run")
    shared = [name for name in own if name.startswith("wav2vec2.")]
    assert len(shared) > 20
    assert all(torch.allclose(own[name], handed[name], atol=1e-6) for name in shared)
    assert after["weights"]["newly_initialised"] == ["lm_head.bias", "lm_head.weight"]
    assert after["weights"]["loaded_share"] == 1
    assert after["weights"]["left"] == {"project_hid": 2, "project_q": 2, "quantizer": 3}
    assert [it["stage"] for it in after["lineage"]] == ["objective"]
    config = json.loads((chain / "run" / "stages" / "objective" / "model" / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForPreTraining"]
    whole = Wav2Vec2ForPreTraining.from_pretrained(
        chain / "run" / "stages" / "objective" / "model", output_loading_info=True
    )
    assert not whole[1]["missing_keys"]


def test_card_and_prediction_of_an_objective_alone(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % ("finetune", ONCE))
    result = run_recipe(recipe, tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "A speech encoder pretrained without text (wav2vec 2.0)" in card
    assert "Loss: lower is better" in card
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(zoo / "data" / "clips" / "test-0.wav")]) == 0
    assert json.loads(capsys.readouterr().out)["prediction"] > 0
    assert result.stages[0].baselines.keys() == {"chance", "checkpoint"}


def test_an_adapter_is_merged_so_that_the_encoder_is_whole(zoo: Path, tmp_path: Path) -> None:
    stage = OBJECTIVE % ("transfer", ONCE + ", adapt: {lora: {rank: 2}}")
    result = run_recipe(write_chain(tmp_path / "r.yaml", zoo, stage, model="ctc"), tmp_path / "run")
    assert result.stages[0].weights.adapter is False
    assert result.stages[0].weights.left == {"lm_head": 2}
    saved = weights(tmp_path / "run")
    assert not any("lora" in name for name in saved)
    assert {name.split(".")[0] for name in saved} == {"wav2vec2", *HEAD}


# -------------------------------------------------------------------------------------------- collapse


def test_collapse_is_said(opener: Callable[..., Any]) -> None:
    task = opener().task
    rng = np.random.default_rng(0)
    for spread, codes, said in ((1.0, 8, set()), (1e-4, 8, {"representation"}), (1.0, 1, {"codes"})):
        predictions = [
            {
                "loss": 3.0,
                "targets": 4,
                "right": 1,
                "codes": rng.integers(0, codes, (40, 2)).astype(np.int16),
                "features": 1 + spread * rng.normal(size=8),
            }
            for _ in range(6)
        ]
        score = task.score(predictions, ["a", "b"] * 3, intervals=False)
        notes = " ".join(score.notes)
        assert {word for word in ("representation", "codes") if f"The {word} ha" in notes} == said
        assert score.values["loss"] == 0.75
    assert score.values["codebook_perplexity"] == 1


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "model", "more", "error", "said"),
    [
        ("finetune", "hubert", ONCE, CheckpointError, "not for hubert"),
        ("finetune", "ctc", ONCE, CheckpointError, "no weights for the objective's codes.*`stage: transfer`"),
        ("finetune", "layer-norm", ONCE + ", micro_batch: 2", RecipeError, "`micro_batch` has no effect"),
        (
            "finetune",
            "layer-norm",
            ONCE + ", loss_group: 3",
            RecipeError,
            "`batch_size` 4 is not a multiple of `loss_group` 3",
        ),
        ("finetune", "layer-norm", ONCE + ", crop_seconds: 0.02", RecipeError, "crop_seconds: .* fewer than"),
        ("probe", "layer-norm", "", RecipeError, "no effect|no head that a probe"),
    ],
)
def test_refusals_say_what_to_do(
    zoo: Path, tmp_path: Path, kind: str, model: str, more: str, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        run_recipe(write_chain(tmp_path / "r.yaml", zoo, OBJECTIVE % (kind, more), model=model), tmp_path / "run")


def test_clips_without_a_stretch_to_hide_are_left_out(zoo: Path, tmp_path: Path) -> None:
    data = shutil.copytree(zoo / "data", tmp_path / "data")
    soundfile.write(data / "clips" / "short.wav", 0.1 * np.sin(np.arange(1000, dtype=np.float32)), 16000)
    with (data / "train.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["clips/short.wav", "red"])
    stage = OBJECTIVE % ("finetune", ONCE)
    stage = stage.replace("mask_time_length: 4", "mask_time_length: 8")
    recipe = write_chain(tmp_path / "r.yaml", tmp_path, stage, model=str(zoo / "layer-norm"))
    with pytest.raises(DataError, match=r"row 8: is 0\.06 s long, which is \d frames; a hidden stretch alone takes 8"):
        opened(recipe)
