from pathlib import Path

import pytest

from tests.tiny.tables import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 rows of train in three kinds (60, 30, 10), and 20 of test."""
    folder = tmp_path_factory.mktemp("data")
    save(folder, (["a"] * 6 + ["b"] * 3 + ["c"]) * 10, "train")
    save(folder, ["a", "b"] * 10, "test")
    return folder
