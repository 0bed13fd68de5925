"""The model card's code, run as it is printed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.hub_server import HubServer, hub_environment
from tests.tiny.images import save_data, save_model, write_recipe
from tests.tiny.results import HUB_RECIPE, plan_of, result_of, score, stage
from tests.unit.reports.test_model_card import snippet
from tltasks.config.loading import load_recipe
from tltasks.config.model import Checkpoint
from tltasks.config.recipe import plan_run
from tltasks.data.loading import load_splits
from tltasks.models.adapters import adapt
from tltasks.reports.model_card import render_card
from tltasks.results.result import Provenance
from tltasks.tasks.image.classification import ImageClassification


def trained(folder: Path, architecture: str, *, adapter: bool) -> tuple[Path, Path, str]:
    """A base, a model made of it as a run would, and what the model says to the snippet's picture."""
    base = save_model(folder / "base", architecture)
    method = "{lora: {rank: 4}}" if adapter else "full"
    line = f"{{stage: transfer, epochs: 1, learning_rate: 5e-3, adapt: {method}}}"
    recipe = load_recipe(write_recipe(folder / "tiny.yaml", base, save_data(folder / "data"), stage=line))
    (plan,) = plan_run(recipe).stages
    splits = load_splits(plan.data, seed=0, label="label")
    task = ImageClassification.open(plan, splits, Checkpoint(str(base), display_name="ada/tiny"), seed=0)
    model = task.build(plan.kind).model
    head, targets = task.head(model), task.lora_targets(model)
    made = adapt(
        model, plan.stage.adapt, new_head=True, head=head, targets=targets, display_name=str(base), revision="main"
    ).eval()
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    saved = folder / "output" / "model"
    task.save(saved, made, adapter=adapter)
    pixels = task.preprocessing.processor(Image.new("RGB", (224, 224), "orange"), return_tensors="pt")
    with torch.inference_mode():
        probabilities = made(**pixels).logits.softmax(-1)[0]
    best = int(probabilities.argmax())
    return base, saved, f"{task.class_names[best]} {probabilities[best]:.3f}\n"


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 asks transformers so
@pytest.mark.parametrize(
    ("architecture", "adapter", "repo"),
    [
        ("vit", True, "ada/tiny-lora"),
        ("timm-efficientnet", False, None),
        pytest.param("vit", False, "ada/tiny-full", marks=pytest.mark.exhaustive),
        pytest.param("timm-vit", True, None, marks=pytest.mark.exhaustive),
        pytest.param("timm-efficientnet", True, "ada/lite", marks=pytest.mark.exhaustive),
    ],
)
def test_snippet_runs_as_printed(tmp_path: Path, architecture: str, adapter: bool, repo: str | None) -> None:
    base, saved, expected = trained(tmp_path, architecture, adapter=adapter)
    text = HUB_RECIPE.replace("google/vit-base-patch16-224-in21k", "ada/tiny")
    with HubServer() as server:
        commit = server.add_repo("ada/tiny", files(base))
        server.commit("ada/tiny", files(save_model(tmp_path / "later", architecture, seed=9)))
        if repo is not None:
            server.add_repo(repo, files(saved))
        made = stage({"test": score(0.9)})
        made = dataclasses.replace(made, weights=Provenance("ada/tiny", commit=commit.oid, adapter=True))
        card = render_card(result_of(made), plan_of(tmp_path, text), adapter=adapter, repo=repo)
        run = subprocess.run(
            [sys.executable, "-c", snippet(card)],
            env={**os.environ, **hub_environment(server), "OMP_NUM_THREADS": "1"},
            cwd=saved.parent if repo is None else tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout == expected
        if repo is not None:
            assert any(repo in request.path for request in server.requests)
