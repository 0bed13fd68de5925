"""The story of `tltasks push-data`: look through a folder, say what is there, publish it with a card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import DatasetCardData
from rich.console import Console

from tltasks.config.tasks import task_of_folder
from tltasks.errors import DataError
from tltasks.hub import client
from tltasks.hub.dataset_folder import Described, describe_folder, write_parquet
from tltasks.hub.upload_plan import plan_data
from tltasks.reports.model_card import templates

SHOWN = 10
"""Files of a kind that are named."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
"""The Hub's categories of numbers of examples."""


def push_data(
    folder: Path,
    repo: str,
    *,
    licence: str | None,
    language: list[str],
    private: bool,
    pull_request: bool,
    force: bool,
    skip_bad: bool,
    dry_run: bool,
) -> str | None:
    """Publish a folder of images or recordings and return the address; None after a dry run, which needs no login.

    Raises DataError before anything is sent for files that cannot be read, unless these are to be left out.
    """
    console = Console(stderr=True, highlight=False)
    described = describe_folder(folder)
    _say(console, described)
    if described.bad and not skip_bad:
        raise DataError(
            f"push-data {folder}: {len(described.bad)} files cannot be read (listed above); mend or remove them, or "
            "leave them out with --skip-bad. Nothing was sent."
        )
    card = data_card(described, repo, licence=licence, language=language)
    bad = {str(folder.resolve() / name) for name in described.bad}
    with tempfile.TemporaryDirectory(prefix="tltasks-") as scratch:
        files = write_parquet(described, Path(scratch), leave_out=lambda path: str(Path(path).resolve()) in bad)
        plan = plan_data(files, card)
        if dry_run:
            for file in plan.files:
                console.print(f"  {file.size:>14,}  {file.path}")
            console.print(card, markup=False, soft_wrap=True)
            return None
        return client.push_data(plan, repo, private=private, pull_request=pull_request, force=force).url


def _say(console: Console, described: Described) -> None:
    for split, it in described.facts.items():
        classes = f" in {len(it['classes'])} classes" if it["classes"] else ""
        console.print(f"{split}: {it['examples']:,} examples{classes}")
    lines = [f"cannot be read: {name} ({reason})" for name, reason in described.bad.items()]
    for some in (lines, [f"same content: {name} and {', '.join(o)}" for name, o in described.duplicates.items()]):
        for line in some[:SHOWN]:
            console.print(line, markup=False, soft_wrap=True)
        if len(some) > SHOWN:
            console.print(f"… and {len(some) - SHOWN:,} more")
    if described.across:
        console.print(f"{described.across:,} contents are in more than one split: a test on these is no test")


def data_card(described: Described, repo: str, *, licence: str | None, language: list[str]) -> str:
    """README.md of the data set: front matter and text."""
    first = next(iter(described.facts.values()))
    total = sum(it["examples"] for it in described.facts.values()) - len(described.bad)
    texts = [name for name in ("text", "transcription", "sentence") if name in described.columns]
    annotations = {name for name, found in (("classes", first["classes"]), ("text", texts)) if found}
    task = task_of_folder(described.kind, annotations)
    title = repo.rsplit("/", 1)[-1]
    data = DatasetCardData(
        pretty_name=title,
        license=licence,
        language=language or None,
        task_categories=[task] if task else None,
        size_categories=next((name for most, name in SIZES if total < most), "n>1M"),
        tags=["tltasks"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in described.facts],
            }
        ],
    )
    page = (
        templates()
        .get_template("dataset.md.jinja")
        .render(
            title=title,
            repo=repo,
            kind=described.kind,
            total=total,
            facts=described.facts,
            classes=list(first["classes"]),
            columns={name: type(feature).__name__ for name, feature in described.columns.items()},
            text=texts[0] if described.kind == "audio" and texts and texts[0] != "text" else None,
            left_out=len(described.bad),
            duplicates=len(described.duplicates),
            across=described.across,
            license=licence,
        )
    )
    return f"---\n{data.to_yaml()}\n---\n\n{page.strip()}\n"
