"""README and docs as their readers use them: commands as typed, Python and recipes as printed, where their files are.

Checkpoints and data of the Hub are tiny ones of the same names, on a stand-in for it. What is not run (set-up, logins,
servers, placeholders) is checked by tests/unit/test_docs.py, which counts both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny import hub as stand_in
from tests.tiny.host import Host
from tests.tiny.pages import PAGES, Block, Command, blocks, commands, is_run, is_whole
from tests.tiny.reader import save_models, save_reader
from tltasks.config.loading import load_recipe

FIRST = next(page for page in PAGES if page.name == "first_steps.md")
REST = [page for page in PAGES if page.name not in ("first_steps.md", "python.md")]
"""tests/integration/test_python.py runs the other."""
RECIPES = [block for block in blocks(*REST) if is_whole(block)]
USUAL = ["stages.0.epochs=1", "stages.0.batch_size=8"]
SHORT = {
    "more.yaml": ["stages=[{stage: transfer, steps: 2}]"],
    "reviews.csv": [*USUAL, "data.max_tokens=64"],
    "articles.jsonl": [*USUAL, "data.max_document_tokens=64", "data.max_summary_tokens=24"],
}
"""Overrides by which the run of a file is short, and fits the tiny models, which read 128 tokens."""


@pytest.fixture(scope="module")
def reader(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name, folder in save_models(tmp_path_factory.mktemp("models")).items():
        hub.add_repo(name, stand_in.files_of(folder))
    return save_reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def filled(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    stand_in.fill(hub, tmp_path_factory.mktemp("hub"))


def short(command: Command) -> list[str]:
    """The words as typed, and overrides by which a run ends after a few steps."""
    words = command.words[1:]
    if words[0] == "run" and not {"--dry-run", "--check"} & {*words}:
        for change in next((SHORT[word] for word in words if word in SHORT), USUAL):
            words += ["--set", change]
    return words


def follow(host: Host, folder: Path, log: Path, found: list[Block]) -> dict[str, int]:
    """Do what a page shows, in order; how many of each kind were done."""
    done = {"commands": 0, "python": 0}
    for block in found:
        if block.named:
            (folder / block.named).write_text(block.text)
        if is_run(block):
            host.run(log / "python", code=block.text, folder=folder)
            done["python"] += 1
        for command in commands(block) if block.kind == "console" else ():
            if command.is_run:
                host.run(log / "command", *short(command), folder=folder)
                done["commands"] += 1
    return done


def test_the_first_page_from_photos_to_an_answer(reader: Path, hub_host: Host, tmp_path: Path) -> None:
    first = next(block for block in blocks(FIRST) if block.kind == "console")
    done = follow(hub_host, reader, tmp_path, [first])
    assert done == {"commands": 3, "python": 0}
    assert (reader / "outputs" / "photos" / "report.html").is_file()


@pytest.mark.exhaustive
def test_pages_are_done_as_their_readers_do_them(
    hub_host: Host, tmp_path_factory: pytest.TempPathFactory, reader: Path, filled: None
) -> None:
    folder, log = save_reader(tmp_path_factory.mktemp("another")), tmp_path_factory.mktemp("log")
    found = [*blocks(FIRST), *blocks(*REST)]
    done = {"commands": 0, "python": 0}
    for page in (FIRST, *REST):  # each by a reader of its own, whose answers are not there yet
        (folder / "answers.csv").unlink(missing_ok=True)
        for kind, count in follow(hub_host, folder, log, list(blocks(page))).items():
            done[kind] += count
    assert done == {
        "commands": sum(one.is_run for block in found if block.kind == "console" for one in commands(block)),
        "python": sum(map(is_run, found)),
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.place)
def test_whole_recipes_run_as_printed(block: Block, reader: Path, filled: None, hub_host: Host, tmp_path: Path) -> None:
    path = reader / f"{block.page}.yaml"
    path.write_text(block.text)
    recipe = load_recipe(path, check_files=False)
    overrides = ["precision=fp32"]
    if hasattr(recipe.data, "max_summary_tokens"):  # the tiny models read 128 tokens
        overrides += ["data.max_document_tokens=64", "data.max_summary_tokens=24"]
    elif hasattr(recipe.data, "max_tokens"):
        overrides.append("data.max_tokens=64")
    for i, stage in enumerate(recipe.stages if "stages" in block.text else ()):
        overrides += [f"stages.{i}.steps=2", f"stages.{i}.epochs=null"] if stage.loops else []
        overrides += [f"stages.{i}.batch_size=8"] if stage.loops else []
    flags = [flag for override in overrides for flag in ("--set", override)]
    hub_host.run(tmp_path / "log", "run", path, "--output", tmp_path / "run", *flags, folder=reader)
    assert (tmp_path / "run" / "report.html").is_file()


def test_there_are_recipes_to_run() -> None:
    assert len(RECIPES) >= 5
