"""Architectures and ways to adapt them: which work all the way, which are refused and why.

    python benchmarks/architectures.py                            # all that the results have not yet
    python benchmarks/architectures.py --only 'transformers/t5*'  # these, again
    python benchmarks/architectures.py --task summarization --methods full lora
    python benchmarks/architectures.py --summary                  # counts of what is there
    python benchmarks/architectures.py --page                     # docs/architectures.md from what is there

Each architecture is a small checkpoint with random weights (`small_checkpoints/`), and goes the whole way of a user:
opened, adapted, trained for three steps, saved, merged, loaded again, scored; then `tltasks.load` answers for the test
rows, and so does the code on the model card, which is transformers' own. A row is

- `works`, `refused` (the package's own error, before training), `fails` (anything else), or `not of this task`;
- error: the largest difference of the saved model's outputs from those of the trained one, its adapter beside it, as a
  share of what training has changed (fp32; more than 1e-4 fails), and effect: that change over the largest output;
- trained, without_gradient: tensors that are to be trained, and those of them that the loss does not reach;
- targets, left_out: layers with an adapter, and those that an adapter does not fit;
- parameters, seconds.

Checkpoints are processes of their own, with a limit of time and memory, and so is a row that fails beside others of
its checkpoint. Results are written after each checkpoint.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.small_checkpoints.page import render  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
MODULES = ("images", "speech", "summaries", "decoders", "texts", "unlabelled")
MAIN = ("full", "head", "probe", "lora", "dora", "ia3", "bitfit")
"""Methods that are tried where none are named."""
SECONDS = 60
"""Of a processor: a row that takes longer fails."""
MEMORY_BYTES = 6 * 2**30
"""A row may take so much more than what the process has at its start."""
LIBRARIES = ("torch", "transformers", "peft", "timm", "torchaudio", "mistral-common")

Row = dict[str, Any]
Rows = dict[str, dict[str, dict[str, Row]]]
"""By task, checkpoint and method."""


def checkpoints() -> Iterator[Any]:
    """All small checkpoints there are."""
    for name in MODULES:
        if (ROOT / "benchmarks" / "small_checkpoints" / f"{name}.py").is_file():
            yield from importlib.import_module(f"benchmarks.small_checkpoints.{name}").checkpoints()


# ------------------------------------------------------------------------------------------- processes


def isolated(work: Callable[[], Row], *, said: Path, seconds: int = SECONDS) -> Row:
    """What `work` gives in a process of its own, or why it gives nothing."""
    answer = said.with_suffix(".json")
    answer.unlink(missing_ok=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used.ru_utime + used.ru_stime
    child = os.fork()
    if child == 0:
        _be_alone(said, seconds)
        try:
            answer.write_text(json.dumps(work()))
        except BaseException as error:
            answer.write_text(json.dumps({"outcome": "fails", "why": f"{type(error).__name__}: {error}"[:300]}))
        os._exit(0)
    row = _answer(child, answer, said, seconds)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    now = used.ru_utime + used.ru_stime
    return {**row, "seconds": round(now - before, 1)} if row else row


def _answer(child: int, answer: Path, said: Path, seconds: int) -> Row:
    used, deadline, pause = 0, math.inf, 0.01
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if (now := _ticks(child)) > used:  # the processor may have other work, for long
            used, deadline = now, time.monotonic() + 10 * seconds
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)
    if answer.is_file():
        row: Row = json.loads(answer.read_text())
        return row
    if os.WIFSIGNALED(done[1]) and os.WTERMSIG(done[1]) in {signal.SIGXCPU, signal.SIGKILL}:
        return {"outcome": "fails", "why": f"takes longer than {seconds} s"}
    return {"outcome": "fails", "why": f"the process dies: {said.read_text(errors='replace')[-200:]}"}


def _ticks(child: int) -> int:
    """What a process has had of the processor, as Linux counts it."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return 1 + int(fields[11]) + int(fields[12])


def _be_alone(said: Path, seconds: int) -> None:
    os.setpgid(0, 0)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    most = max(used, data) + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def try_checkpoint(small: Any, methods: list[str], scratch: Path) -> dict[str, Row]:
    """Rows of a checkpoint, by method; `all` where there is one for all of them."""
    from benchmarks.small_checkpoints import row as one

    if small.other_task:
        return {"all": {"outcome": "not of this task", "why": small.other_task}}
    one.prepare()
    scratch.mkdir(parents=True)
    model, said = scratch / "model", scratch / "said.txt"
    model.mkdir()
    data = scratch.parent / "data" / small.task

    def carry_out(method: str, folder: Path) -> Row:
        folder.mkdir()
        row: Row = one.carry_out(small, method, model, one.save_data(small.task, data), folder)
        shutil.rmtree(folder)
        return row

    def together() -> Row:
        one.quiet()
        small.save(model)
        (scratch / "saved").touch()
        for method in methods:
            used = time.process_time()
            row = carry_out(method, scratch / method)
            row["seconds"] = round(time.process_time() - used, 1)
            (scratch / f"{method}.row").write_text(json.dumps(row))
            if row["outcome"] == "fails":  # what it has left behind may be another's fault
                break
        return {}

    def alone(method: str) -> Row:
        one.quiet()
        return carry_out(method, scratch / f"{method}-alone")

    failed = isolated(together, said=said, seconds=SECONDS * len(methods))
    if not (scratch / "saved").exists():
        return {"all": {**failed, "why": f"no small checkpoint: {failed['why']}".replace(str(model), small.name)}}
    rows = {}
    for method in methods:
        answer = scratch / f"{method}.row"
        rows[method] = json.loads(answer.read_text()) if answer.exists() else {"outcome": "fails"}
        if rows[method]["outcome"] == "fails":
            rows[method] = isolated(lambda method=method: alone(method), said=said)  # type: ignore[misc]
        if small.needs and rows[method]["outcome"] == "works":
            rows[method]["needs"] = small.needs
    shutil.rmtree(scratch)
    return rows


def sweep(wanted: list[tuple[Any, list[str]]], *, jobs: int) -> Iterator[tuple[Any, dict[str, Row]]]:
    """Rows of each checkpoint as they come, so many checkpoints being tried at a time."""
    import datasets

    from benchmarks.small_checkpoints import row as one

    with tempfile.TemporaryDirectory(prefix="architectures-") as place:
        one.prepare()
        scratch, running, left = Path(place), dict[int, tuple[Any, Path]](), list(enumerate(wanted))
        datasets.config.HF_DATASETS_CACHE = scratch / "cache"
        for task in {small.task for small, _ in wanted}:
            isolated(
                lambda task=task: {"data": str(one.save_data(task, scratch / "data" / task))}, said=scratch / "said"
            )  # type: ignore[misc]
        while left or running:
            while left and len(running) < jobs:
                i, (small, methods) = left.pop(0)
                answer = scratch / f"{i}.json"
                child = os.fork()
                if child == 0:
                    answer.write_text(json.dumps(try_checkpoint(small, methods, scratch / str(i))))
                    os._exit(0)
                running[child] = small, answer
            child, _ = os.wait()
            small, answer = running.pop(child)
            yield small, json.loads(answer.read_text())


# ------------------------------------------------------------------------------------------------- results


def read(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"versions": whole.get("versions", {}), "tasks": whole.get("tasks", {})}


def write(path: Path, whole: dict[str, Any]) -> None:
    """One line for each row, sorted; the file is there as a whole at any time."""

    def line(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)

    def block(items: dict[str, str], indent: str) -> str:
        inside = ",\n".join(f"{indent} {line(key)}: {items[key]}" for key in sorted(items))
        return f"{{\n{inside}\n{indent}}}"

    tasks = {}
    for task, found in whole["tasks"].items():
        rows = {name: block({m: line(row) for m, row in of.items()}, "   ") for name, of in found.items()}
        tasks[task] = block(rows, "  ")
    text = block({"tasks": block(tasks, " "), "versions": line(whole["versions"])}, "")
    draft = path.with_suffix(".draft")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def versions() -> dict[str, str]:
    there = {found.metadata["Name"].replace("_", "-") for found in distributions()}
    return {name: version(name).partition("+")[0] for name in LIBRARIES if name in there}


def summary(tasks: Rows) -> str:
    """Counts by task and method, the share of the main rows that work, and what fails."""
    lines, faults = [], []
    for task, found in sorted(tasks.items()):
        counts: dict[str, Counter[str]] = {}
        main: Counter[bool] = Counter()
        for name, methods in found.items():
            for method, row in methods.items():
                counts.setdefault(method, Counter())[row["outcome"]] += 1
                if row["outcome"] != "not of this task" and method in {"full", "head", "lora", "all"}:
                    main[row["outcome"] == "works"] += 1
                if row["outcome"] == "fails":
                    faults.append(f"{name} {method}: {row['why'][:160]}")
        seconds = sum(row.get("seconds", 0) for methods in found.values() for row in methods.values())
        share = main[True] / max(1, main.total())
        lines.append(f"{task}: {len(found)} checkpoints, {seconds:.0f} s; full, head and lora work in {share:.1%}")
        for method, of in counts.items():
            lines.append(f"  {method}: {', '.join(f'{n} {what}' for what, n in of.most_common())}")
    return "\n".join([*lines, *faults])


def wanted_rows(arguments: argparse.Namespace, tasks: Rows) -> list[tuple[Any, list[str]]]:
    """Checkpoints, and those of their methods that are asked for and not there."""
    from benchmarks.small_checkpoints.row import METHODS, methods_of

    asked = list(METHODS) if arguments.methods == ["all"] else arguments.methods
    found = []
    for small in checkpoints():
        there = tasks.get(small.task, {}).get(small.name, {})
        if arguments.task and small.task not in arguments.task:
            continue
        if arguments.only and not any(fnmatch.fnmatch(small.name, pattern) for pattern in arguments.only):
            continue
        again = bool(arguments.only)
        methods = [m for m in asked if m in methods_of(small) and (again or m not in there)]
        if methods and (again or "all" not in there):
            found.append((small, methods))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", nargs="+", help="checkpoints to try, again where need be")
    parser.add_argument("--task", metavar="TASK", nargs="+", help="those of these tasks")
    parser.add_argument("--methods", metavar="METHOD", nargs="+", default=list(MAIN), help="`all`, or some by name")
    parser.add_argument("--jobs", type=int, default=1, help="checkpoints that are tried at a time")
    parser.add_argument("--summary", action="store_true", help="show what is recorded, and try nothing")
    parser.add_argument("--page", action="store_true", help="write docs/architectures.md, and try nothing")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it
    whole = read(arguments.results)
    if arguments.page:
        PAGE.write_text(render(whole), encoding="utf-8")
    told = arguments.summary or arguments.page
    tried: Rows = {}
    for small, rows in [] if told else sweep(wanted_rows(arguments, whole["tasks"]), jobs=arguments.jobs):
        there = whole["tasks"].setdefault(small.task, {}).setdefault(small.name, {})
        if "all" in rows or "all" in there:
            there.clear()
        there |= rows
        tried.setdefault(small.task, {})[small.name] = rows
        outcomes = ", ".join(f"{method} {row['outcome']} {row.get('seconds', 0):g} s" for method, row in rows.items())
        whys = {row["why"]: method for method, row in rows.items() if "why" in row}
        print(f"{small.name}: {outcomes}", *(f"    {m}: {why[:400]}" for why, m in whys.items()), sep="\n", flush=True)
        if not arguments.dry_run:
            whole["versions"] |= versions()
            write(arguments.results, whole)
    shown = whole["tasks"] if told else tried
    print(summary(shown))
    return int(any(row["outcome"] == "fails" for of in shown.values() for rows in of.values() for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
