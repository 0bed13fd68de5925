"""What answers go by, beside the worst mistakes of a run's report: shown for any classifier, at no cost to the run."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from tests.tiny import images
from tests.tiny.runs import run_recipe, weights
from tltasks.results.result import EXAMPLES, Attribution, ReportExample, RunResult
from tltasks.tasks.image.classification import ImageClassification
from tltasks.training.evaluation import ROWS_FOR_EACH

TEST_ROWS = 80
STAGES = {
    "vit": "{stage: transfer, steps: 1, batch_size: 8, adapt: {lora: {rank: 4}}}",
    "resnet": "{stage: transfer, steps: 1, batch_size: 8, adapt: full}",
    "timm-efficientnet": "{stage: probe}",
    "clip": "{stage: zero_shot}",
}


def carried_out(folder: Path, output: Path) -> tuple[RunResult, list[ReportExample], str]:
    result = run_recipe(folder / "recipe.yaml", output)
    (kept,) = (output / "stages").glob("*/examples.json")
    return result, EXAMPLES.validate_json(kept.read_bytes()), (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "precision"), [("vit", "bf16"), ("resnet", "fp32"), *([n, "fp32"] for n in [*STAGES][2:])]
)
def test_the_worst_mistakes_have_one_and_a_run_without_is_the_same(tmp_path: Path, name: str, precision: str) -> None:
    save = images.save_contrastive if name == "clip" else images.save_model
    save(tmp_path / "model", name)
    images.save_data(tmp_path / "data", splits={"train": 24, "validation": 12, "test": TEST_ROWS})
    args = tmp_path / "recipe.yaml", tmp_path / "model", tmp_path / "data"
    images.write_recipe(*args, stage=STAGES[name], precision=precision)
    result, examples, report = carried_out(tmp_path, tmp_path / "with")
    shown = [example.attribution for example in examples]
    most = TEST_ROWS // ROWS_FOR_EACH
    assert len(shown) > most > 2
    assert all(it.content.startswith(b"\x89PNG") and it.text for it in shown[:most])
    assert set(shown[most:]) == {Attribution()}
    assert report.count('alt="what the answer goes by"') == most
    assert report.count("<img") == len(examples) + most + report.count('<figure class="card"><img')

    with mock.patch.object(ImageClassification, "explain", side_effect=NotImplementedError("not this <one>")):
        other, examples, report = carried_out(tmp_path, tmp_path / "without")
    assert "which parts of an image the answer goes by: not this &lt;one&gt;" in report
    assert 'alt="what the answer goes by"' not in report
    assert [json.loads(it.to_json())["metrics"] for it in other.stages] == [
        json.loads(it.to_json())["metrics"] for it in result.stages
    ]
    assert all((weights(tmp_path / "with")[k] == v).all() for k, v in weights(tmp_path / "without").items())
