"""docs/architectures.md, from the results of the sweep."""

from __future__ import annotations

import re
from typing import Any

Row = dict[str, Any]

TITLES = {
    "image-classification": "Image classification",
    "automatic-speech-recognition": "Speech recognition",
    "summarization": "Summarisation",
    "text-classification": "Text classification",
    "masked-image-modeling": "Masked image modelling",
    "contrastive-image": "Contrastive learning from images",
    "speech-pretraining": "Speech without transcripts",
    "masked-language-modeling": "Masked language modelling",
    "causal-language-modeling": "Causal language modelling",
    "text-denoising": "Text denoising",
}
"""Tasks in the order of the page; others follow by name."""
METHODS = ("full", "head", "probe", "lora", "dora", "ia3", "bitfit", "adalora", "prompt")
"""Methods in the order of the columns; others follow by name."""
SIGNS = {"works": "✓", "refused": "refused", "fails": "fails", "not of this task": "–"}
MEANT = 0.5
"""Share of its targets that an adapter has to be left out of for a row to say so."""

HEAD = """# Architectures

Every architecture that a task serves, by each way to adapt it, measured: does it go the whole way? A row is a small
checkpoint of the architecture with random weights, which is opened, adapted, trained for three steps, saved, merged,
loaded again and scored. Then `tltasks.load` answers for the test rows, and so does the code on the model card, which is
transformers' own.

- **✓** works: the saved model's outputs are those of the trained one, its adapter beside it, within 1e-4 of what was
  learnt, and both answer alike. A number leads to a note.
- **refused**: before training, with the reason at the number, which names what to do.
- **–**: the model is none of the task's, for the reason at the number.
- a blank: the method has no meaning there, or has not been tried; the first table says how many have been.

An architecture is the `model_type` of a checkpoint's `config.json`, or the class in its `architectures` where a type
has several; for timm the member of a family that was tried. One that is not here may serve all the same: targets and
heads are found by trying the model, not by a list. `tltasks doctor MODEL` tells what holds for one checkpoint.
"""


def render(results: dict[str, Any]) -> str:
    """The page, as one text."""
    order = {task: i for i, task in enumerate(TITLES)}
    tasks = dict(sorted(results["tasks"].items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
    parts = [HEAD, _versions(results["versions"]), _in_short(tasks)]
    return "\n".join([*parts, *(_section(task, rows) for task, rows in tasks.items())])


def _versions(versions: dict[str, str]) -> str:
    shown = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return (
        f"With {shown}, in fp32 on a CPU.\n`python benchmarks/architectures.py --jobs 2` measures what is missing, and "
        "`--page` makes this page of\n`benchmarks/results/architectures.json`.\n"
    )


def _in_short(tasks: dict[str, dict[str, dict[str, Row]]]) -> str:
    """Architectures that work, of those that were tried, by task and method."""
    methods = _methods([of for rows in tasks.values() for of in rows.values()])
    lines = [f"| task | architectures | {' | '.join(methods)} |", f"|---|---|{'---|' * len(methods)}"]
    for task, rows in tasks.items():
        own = [of for of in rows.values() if "all" not in of]
        cells = []
        for method in methods:
            outcomes = [of[method]["outcome"] for of in own if method in of]
            cells.append(f"{outcomes.count('works')} of {len(outcomes)}" if outcomes else "")
        lines.append(f"| {TITLES.get(task, task)} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(["How many work, of those that were tried by each method:\n", *lines, ""])


def _methods(rows: list[dict[str, Row]]) -> list[str]:
    tried = {method for of in rows for method in of if method != "all"}
    return [*(m for m in METHODS if m in tried), *sorted(tried - set(METHODS))]


def _section(task: str, rows: dict[str, dict[str, Row]]) -> str:
    methods = _methods(list(rows.values()))
    notes: dict[str, int] = {}
    lines = []
    for name, of in sorted(rows.items(), key=lambda item: (item[0].startswith("timm/"), item[0])):
        cells = [_cell(name, of.get(method), notes) for method in methods]
        if "all" in of:
            cells = [_cell(name, of["all"], notes), *[SIGNS[of["all"]["outcome"]]] * (len(methods) - 1)]
        lines.append(f"| {name.removeprefix('transformers/')} | {' | '.join(cells)} |")
    table = [f"| architecture | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}", *lines]
    foot = [f"{number}. {note}" for note, number in notes.items()]
    return "\n".join([f"## {TITLES.get(task, task)}\n", f"`{task}`: {_counted(rows)}\n", *table, "", *foot, ""])


def _counted(rows: dict[str, dict[str, Row]]) -> str:
    outcomes = [row["outcome"] for of in rows.values() for row in of.values()]
    counts = {outcome: outcomes.count(outcome) for outcome in SIGNS if outcome in outcomes}
    said = ", ".join(f"{n:,} {outcome}" for outcome, n in counts.items())
    errors = [row["error"] for of in rows.values() for row in of.values() if row["outcome"] == "works"]
    worst = f" The largest error is {max(errors):.0e} of what was learnt." if errors else ""
    return f"{len(rows)} architectures; of {len(outcomes):,} rows {said}.{worst}"


def _cell(name: str, row: Row | None, notes: dict[str, int]) -> str:
    if row is None:
        return ""
    sign, note = SIGNS[row["outcome"]], row.get("why") or _remark(row)
    if not note:
        return sign
    number = notes.setdefault(_in_general(note, name), len(notes) + 1)
    return f"{sign} <sup>{number}</sup>"


def _remark(row: Row) -> str:
    """What is worth knowing of a row that works."""
    if "needs" in row:
        return f"Needs `pip install {row['needs']}`."
    reached, left_out = row.get("targets", 0), row.get("left_out", 0)
    if left_out > MEANT * (reached + left_out):
        return "An adapter fits less than half of the layers; the others are left as they are."
    return ""


def _in_general(note: str, name: str) -> str:
    """A reason without the name of its checkpoint, and on one line of a list."""
    note = re.sub(rf"(model )?{re.escape(name)}(?=[:\s])", "the checkpoint", note)
    return re.sub(r"([|<>*_])", r"\\\1", " ".join(note.split()))
