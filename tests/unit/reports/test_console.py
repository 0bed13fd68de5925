"""What is printed, as text on a wide terminal."""

import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tltasks.inference.predict import Counts
from tltasks.reports.console import open_terminal, show_checks, show_plan, show_result
from tltasks.results.metric_names import metric_name
from tltasks.results.result import Headline, Provenance, RunResult, Score, SplitSummary, StageMeasurement, StageResult


def console() -> Console:
    return Console(file=io.StringIO(), width=160, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(printed: str, start: str) -> list[str]:
    (line,) = (line for line in printed.splitlines() if line.strip(" │").startswith(start))
    return [cell.strip() for cell in line.strip("│").split("│")]


def stage(**more: Any) -> StageResult:
    test = Score({"accuracy": 0.8123, "loss": 0.5}, "accuracy", (0.75, 0.86))
    validation = Score({"accuracy": 0.9, "loss": 0.4}, "accuracy", (0.85, 0.95))
    majority = {
        name: Score({"accuracy": value}, "accuracy", (0, 1)) for name, value in {"test": 0.1, "val": 0.2}.items()
    }
    return StageResult(
        **{
            "kind": "transfer",
            "name": "one",
            "task": "image-classification",
            "higher_is_better": True,
            "metrics": {"test": test, "val": validation},
            "baselines": {"majority_class": majority},
            "seconds": 1.0,
            "examples_per_second": 1.0,
            "peak_memory_bytes": 1,
            "trainable_parameters": 1,
            "total_parameters": 2,
            "weights": Provenance("ada/vit"),
            "data": {"test": SplitSummary(12345), "val": SplitSummary(7), "train": SplitSummary(3)},
            **more,
        }
    )


def test_scores_stand_beside_their_baselines() -> None:
    out = console()
    headline = Headline("accuracy", 0.8123, (0.75, 0.86), "one", "test")
    show_result(out, RunResult("x", headline, [stage(), stage(name="two")], {}, {}), Path("results"))
    printed = text(out)
    first = printed.split("two")[0]
    assert "one · image-classification" in first
    assert "test (12,345)" in first
    assert "train" not in first
    assert row(first, "Accuracy") == ["Accuracy", "0.812", "0.900"]
    assert row(first, "95 % interval") == ["95 % interval", "0.750 to 0.860", "0.850 to 0.950"]
    assert row(first, "majority class") == ["majority class", "0.100", "0.200"]
    assert row(first, "Loss") == ["Loss", "0.500", "0.400"]
    assert "Accuracy 0.812 on test (95 % interval 0.750 to 0.860)" in printed
    assert "not shown to be better or worse than always naming the most frequent class: +0.712, without an" in printed
    assert str(Path("results/report.html")) in printed


def test_checks_tell_what_there_is_to_tell() -> None:
    out = console()
    show_checks(out, "s", {"train": {"cut_share": 0.123, "empty_rows": 1200.0, "doubles": 0}, "test": {"doubles": 0}})
    assert text(out) == "s: train: cut 12.3%, empty rows 1,200.0\n"


def test_a_plan_of_a_stage_that_trains_and_of_one_that_does_not() -> None:
    out = console()
    trains = StageMeasurement(
        "transfer", {"train": (1000, 2), "test": (50, 0)}, 10, 2000, 3 * 2**30, 1234, 100.0, {"gradients": 2**20}
    )
    looks = StageMeasurement("zero_shot", {"test": (50, 0)}, 2000, 2000, 0)
    show_plan(out, [trains, looks], Path("results"))
    printed = text(out)
    assert row(printed, "transfer") == [
        "transfer",
        "train 1,000 (2 unreadable), test 50",
        "10 of 2,000",
        "1,234",
        "about 1 min 40 s",
        "3.0 GiB",
    ]
    assert row(printed, "zero_shot") == ["zero_shot", "test 50", "nothing", "–", "–", "–"]
    assert "nothing was trained or written" in printed
    assert "steps of transfer need 1.0 MiB: gradients 1.0 MiB" in printed
    assert "results would go to results" in printed


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a:cat:b.jpg", "a:cat:b.jpg"),
        ("[red]rose[/red]", "[red]rose[/red]"),
        ("[/]", "[/]"),
        ("[link=x]here", "[link=x]here"),
        ("\\[bold]", "\\[bold]"),
        ("\x1b[31mred", "\\u001b[31mred"),
        ("bell\x07 back\x08 return\r", "bell\\u0007 back\\u0008 return\\u000d"),
        ("\x9b31m", "\\u009b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("half \udcff", "half \\udcff"),
        ("naïve 猫 👩\u200d🔬", "naïve 猫 👩\u200d🔬"),
    ],
)
def test_names_are_printed_as_they_are(name: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(name, title=f"of {name}")
    table.add_row(f"row {name}")
    terminal = open_terminal()
    terminal.width = 200
    terminal.print(f"{name} in a line", soft_wrap=True)
    terminal.print(table)
    Counts(failed=1, errors=[f"{name}\n{name}: is empty"]).show(Path(name))
    printed = capsys.readouterr().err
    assert f"{shown} in a line" in printed
    assert f"of {shown}" in printed
    assert f"row {shown}" in printed
    assert f"{shown}\\n{shown}: is empty\n" in printed, "a line break in a name begins no line"
    assert printed.count(shown) == 7
    assert not any(character in printed for character in "\x1b\x07\r\x9b\u202e\udcff")


# ---------------------------------------------------------------------------------------------- how it is said


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_result_fits_terminals_of_any_width(width: int) -> None:
    out = Console(file=io.StringIO(), width=width, color_system=None)
    headline = Headline("wer", 0.08123, (0.075, 0.086), "one", "test")
    score = Score({"wer": 0.08123, "cer": 0.05}, "wer", (0.075, 0.086))
    rates = {"test": score, "spoken-elsewhere": score, "validation": score}
    data = {name: SplitSummary(12345) for name in rates}
    shown = stage(metrics=rates, data=data, baselines={"checkpoint": {"test": score}})
    show_result(out, RunResult("x", headline, [shown], {}, {}), Path("results"))
    lines = text(out).splitlines()
    table = [line for line in lines if line.strip().startswith(("│", "┃", "┏", "├", "└"))]
    assert max(map(len, table)) <= width
    assert "Word error rate" in " ".join(text(out).split())
    assert "…" not in text(out), "numbers are not cut"


def test_what_is_said_is_kept_with_its_time_and_the_error_that_ended_it(tmp_path: Path) -> None:
    terminal = open_terminal(quiet=True)
    terminal.print("before the folder")
    with suppress(ValueError), terminal.logged(tmp_path / "log.txt"):
        terminal.print("one", end="")
        terminal.print(" and [red]two")
        raise ValueError("odd")
    terminal.print("afterwards")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["before the folder", "one and [red]two", "ValueError: odd"]
    assert all(line[:4].isdecimal() for line in lines)


def test_metrics_have_the_names_of_the_card() -> None:
    told_by_the_task = {"loss", "masked_accuracy"}
    for path in (Path(__file__).parents[3] / "hub_cards").glob("*.jinja"):
        for key, name in re.findall(r'"(\w+)": \{"name": "([^"]+)"', path.read_text()):
            assert key in told_by_the_task or metric_name(key) == name, path


def test_a_notebook_shows_each_line_once_and_the_log_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    terminal = open_terminal()
    with terminal.logged(tmp_path / "log.txt"):
        terminal.print("opening data")
        headline = Headline("accuracy", 0.8123, (0.75, 0.86), "one", "test")
        show_result(terminal, RunResult("x", headline, [stage()], {}, {}), tmp_path)
    assert sum("opening data" in text for text in shown) == 1
    assert sum("Accuracy 0.812\x1b[0m on test" in text or "Accuracy 0.812 on test" in text for text in shown) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "opening data" in log
    assert "report" in log
