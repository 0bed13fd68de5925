"""Content ids against git's and sha256sum's own, and manifests of ours and of others. The plan is in test_hub."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from tltasks.hub.upload_plan import MANIFEST, PlannedFile, _planned, read_manifest


@pytest.mark.parametrize("content", [b"", b"text\n", bytes(range(256)) * 9000], ids=["empty", "text", "several blocks"])
def test_ids_are_those_of_git_and_sha256(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    git = subprocess.run(["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True)
    for planned in (_planned("a/b", path), _planned("a/b", content)):
        assert planned.size == len(content)
        assert planned.git == git.stdout.strip()
        assert planned.sha256 == hashlib.sha256(content).hexdigest()
        assert planned.ids == {planned.git, planned.sha256}
        assert planned.path == "a/b"


def test_contents_are_not_shown() -> None:
    assert "secret" not in repr(PlannedFile("a", b"secret", 6, "s", "g"))


def test_a_manifest_knows_its_files_and_itself() -> None:
    content = json.dumps({"schema": 1, "files": {"x": {"sha256": "s", "git": "g"}}}).encode()
    assert read_manifest(content) == {"x": {"s", "g"}, MANIFEST: {_planned(MANIFEST, content).git}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"files": []}',
        b'{"files": {"x": "y"}}',
        b'{"files": {"x": {"sha256": "s"}}}',
        b'{"files": {"x": {"sha256": ["s"], "git": "g"}}}',
    ],
)
def test_what_is_no_manifest_of_ours_is_somebody_elses(content: bytes) -> None:
    assert read_manifest(content) == {}
