"""Lines in the place of bars, and how much is said."""

import io
import sys

import pytest

from tltasks.runtime import progress
from tltasks.runtime.progress import SETTINGS, Bar


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_there_is_a_line_every_few_seconds_without_a_terminal(clock: list[float]) -> None:
    said: list[str] = []
    with Bar("encoding train", 4000, "rows", say=said.append) as bar:
        for second in range(12):
            clock[0] = float(second)
            bar.update(100)
    assert said == ["encoding train: 600 of 4,000 rows", "encoding train: 1,100 of 4,000 rows"]


def test_a_terminal_has_a_bar_and_no_lines(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bar("transfer", 10, "steps", say=said.append, leave=True) as bar:
        clock[0] = 60.0
        bar.update(10, "loss 0.5")
    assert said == []
    assert "10/10" in screen.getvalue()


@pytest.mark.parametrize("quiet", [True, False])
def test_nobody_is_told_unless_a_command_asks_for_it(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(SETTINGS, "say", said.append if quiet else None)
    monkeypatch.setattr(SETTINGS, "verbosity", "quiet" if quiet else "normal")
    with Bar("predicting", None, "rows") as bar:
        clock[0] = 60.0
        bar.update(10)
    assert (said, capsys.readouterr().err) == ([], "")
