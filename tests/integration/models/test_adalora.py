import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification

from tests.tiny.images import write_recipe
from tests.tiny.runs import equal, largest_difference, run_recipe, weights
from tltasks.config.adaptation import AdaLora
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.tasks.image import ImageStage
from tltasks.errors import Interrupted, RecipeError
from tltasks.models.adapters import RankAllocation, adapt, find_lora_targets
from tltasks.models.loading import load_saved, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21

KEYS = "adalora: {target_r: 2, init_r: 4, initial_share: 0.25, final_share: 0.25}"
STAGE = f"{{stage: transfer, steps: 12, batch_size: 8, learning_rate: 1e-2, adapt: {{{KEYS}}}, %s}}"


def wrapped(tiny: Path, **keys: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_pretrained(tiny / "vit", dtype=torch.float32)
    stage = ImageStage.model_validate(
        {"stage": "finetune", "learning_rate": 1e-3, "steps": 12, "adapt": {"adalora": keys}}
    )
    targets = find_lora_targets(model, head=["classifier"])
    return adapt(model, stage.adapt, new_head=False, head=[], targets=targets, display_name="m", revision="main")


def ranks(model: Any) -> list[int]:
    """Of each layer, by the singular values that are not zero."""
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


def test_the_penalty_is_that_of_peft(tiny: Path) -> None:
    model = wrapped(tiny, target_r=2, init_r=4, orthogonality=0.3)
    steered = RankAllocation(model, AdaLora(target_r=2, init_r=4, orthogonality=0.3), total_steps=10)

    class Loss:
        loss = torch.zeros(())

    model.base_model.model.forward = lambda: Loss()
    theirs = model.base_model.forward().loss
    assert theirs.item() > 0.1
    assert steered.penalty().item() == pytest.approx(theirs.item(), rel=1e-6)


def test_ranks_fall_to_the_budget_and_stay(tiny: Path) -> None:
    keys = {"target_r": 2, "init_r": 4, "initial_share": 0.25, "final_share": 0.25}
    model = wrapped(tiny, **keys)
    steered = RankAllocation(model, AdaLora.model_validate(keys), total_steps=12)
    layers = len(ranks(model))
    assert layers >= 4
    totals, masks = [], []
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 13):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator)
                with torch.no_grad():
                    p += 0.01 * p.grad
        steered.after_step(step)
        totals.append(sum(ranks(model)))
        masks.append([bool(v) for name, p in model.named_parameters() if "lora_E" in name for v in p])
        assert steered.ranks_final(step) == (step >= 9)
    assert totals[:3] == [4 * layers] * 3
    assert totals[3:9] == sorted(totals[3:9], reverse=True)
    assert totals[8:] == [2 * layers] * 4
    assert masks[8] == masks[9] == masks[11]
    assert len(set(ranks(model))) > 1, "layers differ in what they need"


@pytest.fixture(scope="module")
def ran(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adalora")
    path = write_recipe(tiny / "adalora.yaml", Path("vit"), Path("data"), stage=STAGE % "checkpoint_every: 1")
    run_recipe(path, folder / "run")
    return folder / "run"


def test_what_is_saved_is_merged_and_says_the_same(ran: Path) -> None:
    stage = json.loads((ran / "result.json").read_text())["stages"][0]
    assert stage["training"]["best_step"] >= 9, "earlier weights have more ranks than were asked for"
    assert set(pq.read_table(next((ran / "predictions").glob("*-test.parquet"))).column_names) >= {"prediction"}
    assert "AdaLoRA" in (ran / "README.md").read_text()
    assert (ran / "model" / "model.safetensors").is_file()


def test_an_adapter_has_the_ranks_of_the_budget(tiny: Path, tmp_path: Path) -> None:
    keys = {"target_r": 1, "init_r": 3, "initial_share": 0.0, "final_share": 0.5}
    model = wrapped(tiny, **keys)
    steered = RankAllocation(model, AdaLora.model_validate(keys), total_steps=4)
    for step in range(1, 5):
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.randn(p.shape)
                with torch.no_grad():
                    p += 0.05 * p.grad
        steered.after_step(step)
    model.eval()
    pixels = torch.randn(2, 3, 32, 32)
    expected = model(pixels).logits.detach()
    save_adapter(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    layers = [tensor for name, tensor in saved.items() if "lora_E" in name]
    assert sum(len(tensor) for tensor in layers) == len(layers)
    config = AutoConfig.from_pretrained(tiny / "vit")
    again: Any = load_saved(
        AutoModelForImageClassification, tmp_path, base=Checkpoint(str(tiny / "vit")), config=config
    ).eval()
    assert torch.allclose(again(pixels).logits, expected, atol=1e-6)
    assert torch.allclose(again.merge_and_unload()(pixels).logits, expected, atol=1e-5)


@pytest.mark.parametrize("stop", [6, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 10))])
def test_resuming_gives_the_same_bits(
    ran: Path, tiny: Path, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[int] = []

    @contextlib.contextmanager
    def stopping() -> Any:
        yield lambda: polls.append(0) or len(polls) >= stop

    monkeypatch.setattr("tltasks.runtime.devices.stop_on_signals", stopping)
    with pytest.raises(Interrupted, match=f"after step {stop} of 12"):
        run_recipe(tiny / "adalora.yaml", tmp_path / "run")
    monkeypatch.undo()
    run_recipe(tiny / "adalora.yaml", tmp_path / "run", resume=True)
    assert equal(weights(tmp_path / "run"), weights(ran))


def test_a_step_does_not_depend_on_its_micro_batches(tiny: Path, tmp_path: Path) -> None:
    path = write_recipe(tiny / "split.yaml", Path("vit"), Path("data"), stage=STAGE % "optimizer: sgd, keep: last")
    for size in (8, 3):
        run_recipe(path, tmp_path / str(size), f"stages.0.micro_batch={size}")
    assert largest_difference(weights(tmp_path / "8"), weights(tmp_path / "3")) < 5e-6


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("adapt: {adalora: {target_r: 8, init_r: 8}}", "8 is not below `init_r` 8"),
        ("adapt: {adalora: {initial_share: 0.6, final_share: 0.4}}", "leave no steps"),
        ("adapt: adalora, ema: 0.9", "`ema` averages over ranks"),
    ],
)
def test_mistakes(keys: str, said: str, tiny: Path) -> None:
    stage = f"{{stage: transfer, steps: 2, learning_rate: 1e-3, {keys}}}"
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tiny / "mistaken.yaml", Path("vit"), Path("data"), stage=stage))
