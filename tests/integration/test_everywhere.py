"""What Windows and macOS would meet, as far as it can be simulated here: no machine of theirs takes part."""

import ast
import builtins
import errno
import fcntl
import io
import os
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import tltasks
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main
from tltasks.config.shipped import relative_path
from tltasks.errors import RecipeError
from tltasks.runtime import devices, files
from tltasks.runtime.precision import usable_accelerator

PACKAGE = Path(tltasks.__file__).parent
POSIX_MODULES = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
OF_OS = {"fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getuid", "killpg", "mkfifo", "nice"}
OF_OS |= {"O_DIRECTORY", "process_cpu_count", "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "uname"}
OF_SIGNAL = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pause"}
POSIX_NAMES = {f"os.{name}" for name in OF_OS} | {f"signal.{name}" for name in OF_SIGNAL}
GUARDED = {"runtime/devices.py": {"resource", "os.sched_getaffinity"}}
"""Uses that are for POSIX alone, where others have another way: the simulated run below takes it."""


def posix_only(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            yield from POSIX_MODULES.intersection(names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield from {f"{node.value.id}.{node.attr}"} & POSIX_NAMES


def test_no_module_asks_for_what_posix_alone_has() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if used := set(posix_only(ast.parse(path.read_text(encoding="utf-8")))):
            found[path.relative_to(PACKAGE).as_posix()] = used
    assert found == GUARDED


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of Windows: no POSIX modules or names for tltasks, folders that cannot be opened, files that are
    flushed only where they may be written to, and renames that overwrite nothing."""
    imported, opened, renamed = builtins.__import__, os.open, os.rename

    def import_(name: str, of: Mapping[str, Any] | None = None, *arguments: Any, **more: Any) -> types.ModuleType:
        importer = str((of or {}).get("__name__", ""))
        if name in POSIX_MODULES and importer.startswith("tltasks."):
            raise ModuleNotFoundError(name)
        return imported(name, of, *arguments, **more)

    def open_(path: Any, flags: int, *arguments: Any, **more: Any) -> int:
        if sys._getframe(1).f_globals["__name__"] == files.__name__ and Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *arguments, **more)

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def rename(source: Any, target: Any, **more: Any) -> None:
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        renamed(source, target, **more)

    memory = SimpleNamespace(rss=1, peak_wset=123)
    monkeypatch.setattr(builtins, "__import__", import_)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(psutil, "Process", lambda *_: SimpleNamespace(memory_info=lambda: memory))
    for name in ("sched_getaffinity", "uname", "getuid", "fork"):
        monkeypatch.delattr(os, name)


def test_a_run_keeps_the_rules_of_windows(
    windows: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "resident_bytes", lambda: 1)
    monkeypatch.setattr(devices, "_highest", {})  # of other runs in this process
    output = tmp_path / "my results" / "née 1"
    result = run_recipe(tiny / "recipe.yaml", output, "stages.0.epochs=1")
    with pytest.raises(RecipeError, match="--overwrite removes the run that is there"):
        run_recipe(tiny / "recipe.yaml", output, "stages.0.epochs=1")
    (output / "old").touch()
    result = run_recipe(tiny / "recipe.yaml", output, "stages.0.epochs=1", overwrite=True)
    assert not (output / "old").exists()
    assert result.stages[0].peak_memory_bytes == 123
    assert (output / "report.html").is_file()
    log = (output / "log.txt").read_text()
    assert "transfer: trains" in log
    assert "tltasks predict" in log
    with files.whole_folder(output / "model") as folder:  # in the place of the one that is there
        (folder / "x").write_text("")
    assert [path.name for path in (output / "model").iterdir()] == ["x"]


def test_paths_of_two_drives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert relative_path(tmp_path / "a b" / "c", tmp_path / "d") == "../a b/c"
    assert relative_path(tmp_path / "c", tmp_path) == "./c"

    def fail(*_: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", fail)
    assert relative_path(tmp_path / "c", Path("/elsewhere")) == str(tmp_path / "c")


def test_names_are_printed_whatever_the_system_encodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(printed, encoding="cp1252"))
    assert main(["check", str(tmp_path / "Fotos von 猫.yaml")]) != 0
    sys.stderr.flush()
    assert "Fotos von 猫.yaml" in printed.getvalue().decode()


@pytest.mark.parametrize(("kind", "used"), [("mps", None), ("cuda", "cuda"), (None, None)])
def test_a_mac_computes_on_its_cpu(monkeypatch: pytest.MonkeyPatch, kind: str | None, used: str | None) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(str(kind)))
    assert usable_accelerator() == (None if used is None else torch.device(used))


def test_its_accelerator_is_refused_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "mps")
    with pytest.raises(RecipeError, match=r"Apple's accelerator \(mps\) is not supported; unset ACCELERATE_TORCH_DEV"):
        devices.init_distributed()
