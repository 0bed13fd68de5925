"""The range test as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.tiny.images import write_recipe
from tltasks.cli.commands import main


def test_a_recipe_is_tested(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = "{stage: transfer, epochs: 2, batch_size: 8, learning_rate: 1e-3, ema: 0.9}"
    path = write_recipe(tiny / "range.yaml", Path("vit"), Path("data"), stage=stage)
    output = tmp_path / "out"
    assert main(["range-test", str(path), "--steps", "40", "--output", str(output)]) == 0
    assert "suggested learning rate: " in capsys.readouterr().err
    found = json.loads((output / "range.json").read_text())
    assert 3e-6 < found["suggested"] < 1.0, "not its own start"
    assert found["rates"][0] == pytest.approx(1e-6 * 10 ** (6 * 4 / 39)), "after a tenth of the steps"
    assert sorted(p.name for p in output.iterdir()) == ["range.json", "range.png"]
    assert main(["range-test", str(path), "--steps", "20", "--output", str(output)]) == 0, "it may be done again"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    assert main(["range-test", str(path), "--output", str(tmp_path / "other")]) == 1
