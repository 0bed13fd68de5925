"""A run's exports side by side, in a table of their own in its card and report, and each one's card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tltasks.reports.formatting import show_bytes, show_interval, show_number
from tltasks.reports.templates import page_environment
from tltasks.results.metric_names import metric_in_text, metric_name
from tltasks.results.result import Rescored
from tltasks.runtime.files import write_text

BEGIN, END = "<!-- exports: begin -->", "<!-- exports: end -->"
"""Around the table, where it is put into a page that is written already."""
HEADINGS = ("95 % interval", "difference from trained", "same answers", "answers a second", "peak memory", "on disk")


def describe(it: Rescored) -> str:
    """One export's score in a sentence."""
    return (
        f"{metric_in_text(it.metric)} is {show_number(it.value)}, and its difference from the trained model's "
        f"{show_interval(it.difference_ci95)}; {it.same_answers} of {it.rows} answers are the same"
    )


def rows_of(scores: Sequence[Rescored]) -> list[list[str]]:
    """Cells of a table, a row for each model, with what heads them."""
    metric = metric_name(scores[0].metric)
    table = [["model", metric, *HEADINGS]]
    for it in scores:
        apart = "" if it.difference_ci95 is None else show_interval(it.difference_ci95)
        cells = [it.name, show_number(it.value), show_interval(it.ci95), apart, f"{it.same_answers:,} of {it.rows:,}"]
        table.append([*cells, f"{it.answers_per_second:,.1f}", show_bytes(it.memory_bytes), show_bytes(it.disk_bytes)])
    return table


def markdown(scores: Sequence[Rescored]) -> str:
    """The table as Markdown."""
    table = rows_of(scores)
    head, *rows = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([head, "|---" * len(table[0]) + "|", *rows])


def plain(scores: Sequence[Rescored]) -> list[str]:
    """The table as lines for a terminal."""
    table = rows_of(scores)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def told_of(scores: Sequence[Rescored]) -> str:
    """The rows and processes that the table is of."""
    return (
        f"On the {scores[0].rows} test rows of its run, each model in a process of its own, which loads it and answers "
        "all (answers a second on this machine; memory of the whole process)"
    )


def card(title: str, usage: str, scores: Sequence[Rescored]) -> str:
    """README.md of an export."""
    told = f"{told_of(scores)}:\n\n{markdown(scores)}" if scores else "It was not scored on a test set."
    return f"# {title}\n\n{told}\n\n{usage}"


def show_in(run: Path, scores: Sequence[Rescored]) -> None:
    """Put the table into a results folder's card and report, in the place of an earlier one."""
    _replace(run / "README.md", f"\n## Exports\n\n{markdown(scores)}\n", before=None)
    template = page_environment().get_template("exports.html.jinja")
    section = template.render(told=told_of(scores), table=rows_of(scores))
    _replace(run / "report.html", section, before="</main>")


def _replace(path: Path, part: str, *, before: str | None) -> None:
    if not path.is_file():
        return
    text, part = path.read_text(encoding="utf-8"), f"{BEGIN}{part}{END}\n"
    if BEGIN in text and END in text:
        first, _, rest = text.partition(BEGIN)
        text = first + part + rest.partition(END)[2].removeprefix("\n")
    elif before is not None and before in text:
        first, mark, rest = text.rpartition(before)
        text = first + part + mark + rest
    else:
        text = text.rstrip("\n") + "\n\n" + part
    write_text(path, text)
