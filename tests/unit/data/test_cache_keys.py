"""Keys of what is cached: the state of files, the code and its libraries."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tltasks.data import cache_keys
from tltasks.data.cache_keys import code_version, decoder_settings, file_states


def settled(path: Path) -> Path:
    """A file whose times are far enough in the past that its content is not looked at."""
    os.utime(path, ns=(time.time_ns() - 10**12, time.time_ns() - 10**12 + 1))
    return path


def rewrite(path: Path) -> None:
    path.write_bytes(b"other")


def rewrite_with_the_old_time(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_with_the_old_time(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"other")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    path.rename(path.with_name("third"))
    other.rename(path)


@pytest.mark.parametrize(
    "change",
    [rewrite, rewrite_with_the_old_time, replace_with_the_old_time, exchange, Path.unlink],
)
def test_a_file_that_changes_has_another_state(tmp_path: Path, change: object) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    settled(path)
    before = file_states([path])
    assert file_states([str(path)]) == before
    change(path)  # type: ignore[operator]
    assert file_states([path]) != before


@pytest.mark.parametrize("ahead", [0, 3600])
def test_within_the_resolution_of_a_coarse_clock_the_content_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"first")
    now = (time.time_ns() // 10**9 + ahead) * 10**9
    same = SimpleNamespace(st_size=5, st_mtime_ns=now, st_ctime_ns=now, st_ino=1)
    monkeypatch.setattr(cache_keys, "os", SimpleNamespace(stat=lambda name: same))
    before = file_states([path])
    path.write_bytes(b"other")
    assert file_states([path]) != before


def test_files_that_are_not_there_have_a_state(tmp_path: Path) -> None:
    assert file_states([tmp_path / "none", "a\0b"]) == file_states(["x", "y"]) != file_states(["x"])


def test_versions_of_libraries_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_version()
    known = cache_keys.version
    monkeypatch.setattr(cache_keys, "version", lambda name: "0.0" if name == "pillow" else known(name))
    code_version.cache_clear()
    assert code_version() != before
    code_version.cache_clear()


def test_settings_of_pil_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    before = decoder_settings()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", not ImageFile.LOAD_TRUNCATED_IMAGES)
    assert decoder_settings() != before
    assert "PIL.ImageFile" in sys.modules
