"""A recipe for data as they are found: written from a look at them, with the reasons beside each choice."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tltasks.config.document import Origin, clip
from tltasks.config.shipped import relative_path
from tltasks.config.stage import usual_epochs
from tltasks.config.tasks import TASKS, supervised_tasks
from tltasks.config.yaml_reader import parse
from tltasks.data.folders import SPLITS, some
from tltasks.data.survey import Column, Survey
from tltasks.errors import RecipeError, escaped, printable

BATCH = 16
HELD_OUT = 0.2
FEW_ROWS = 200
"""Of fewer, none are held out to choose the best weights by."""
LABEL_NAMES = {
    "label", "labels", "class", "category", "target", "species", "kind", "type", "topic", "section", "sentiment",
    "intent", "genre", "tags", "keywords", "topics", "genres", "categories", "grade", "rating", "outcome", "diagnosis",
}  # fmt: skip
TEXT_NAMES = {"text", "transcript", "transcription", "sentence", "transcripts", "utterance"}
SUMMARY_NAMES = {"summary", "highlights", "title", "headline", "abstract", "synopsis", "tldr", "short", "summaries"}
GROUP_NAMES = {
    "patient", "subject", "speaker", "participant", "person", "user", "author", "client", "group", "session", "scene",
    "video", "document", "case", "customer", "household", "site",
}  # fmt: skip
LANGUAGE_NAMES = {"language", "lang", "locale"}
MAX_BAD_SHARE = 0.01
"""The default of `data.max_bad_share`."""
LONG = 12
"""Characters on average from which a column is read as text."""
SHOWN = 5
"""Classes that are named of more."""
RARE = 5
MOST_NUMBERS = 20
"""Different numbers that a column may have to be taken for classes, unless it is called so."""


@dataclass(frozen=True)
class Draft:
    """A recipe's text, what there is to say of it, and a table that it reads where one is to be written."""

    text: str
    said: list[str]
    table: str = ""

    def noting(self, line: str) -> Draft:
        """The same with a further line on the recipe."""
        head, commands = self.text.split("\n#\n#   ", 1)
        return Draft(f"{head}\n# - {printable(line, lines=False)}\n#\n#   {commands}", [*self.said, line], self.table)

    @property
    def keys(self) -> dict[str, object]:
        """The recipe as a mapping."""
        keys = parse(self.text, Origin("", Path.cwd())).value
        assert isinstance(keys, dict)
        return keys


def draft(survey: Survey, *, task: str | None, model: str | None, folder: Path, name: str) -> Draft:
    """A recipe in `folder` called `name`, for the task that the columns tell.

    Raises RecipeError where they tell none, or several.
    """
    tag, roles = _choose(survey, task)
    used = [name for column in roles.values() for name in ([column] if isinstance(column, str) else column)]
    survey = survey.of_splits_with(used)
    renamed = {key: column for key, column in roles.items() if key != column}
    label, keys = _label_of(survey, roles.get("label"), {"columns": renamed} if renamed else {})
    said = [f"{sum(survey.splits.values()):,} rows: " + ", ".join(f"{n:,} in {s}" for s, n in survey.splits.items())]
    said += [_say(key, label if key == "label" else survey.columns[str(column)]) for key, column in roles.items()]
    said += survey.notes
    others = [column for column in survey.columns if column not in used]
    said += _of_classes(label) if "label" in roles else []
    classes = survey.columns.get(str(roles.get("label")))
    splits, notes = _splits(survey, [survey.columns[column] for column in others], classes, by_class="label" in roles)
    held_by = json.dumps(splits)
    if unused := [column for column in others if column.strip() and json.dumps(column) not in held_by]:
        said.append(f"not used: the columns {some(unused, 20)}")
    checkpoint, unsaid = _checkpoint(survey, roles, model or TASKS[tag].usual_model, is_named=model is not None)
    notes += unsaid
    # Names and cells of the data stand in comments: on one line each, lest what they hold become keys of the recipe.
    said, notes = ([printable(line, lines=False) for line in lines] for lines in (said, notes))
    n_train = int(next(iter(survey.splits.values())) * (1 - sum(_share(value) for value in splits.values())))
    batch = BATCH if n_train >= 10 * BATCH else 4
    epochs = usual_epochs(n_train, batch)
    source = dict(survey.source) or {"name": f"./{name}.csv"}
    file = shlex.quote(printable(f"{name}.yaml", lines=False))
    lines = [
        f"# {TASKS[tag].summary}; written by `tltasks init` from a look at the data. Whatever is unset has a default.",
        "#",
        *(f"# - {line}" for line in [*said, *notes]),
        "#",
        f"#   tltasks run {file} --dry-run    # opens data and model, and estimates time and memory",
        f"#   tltasks run {file}",
        f"task: {tag}",
        f"model: {_yaml(checkpoint)}" + ("" if model else "  # or another of the Hub"),
        "data:",
        *(f"  {key}: {_yaml(_relative(value, folder))}" for key, value in source.items()),
        *(f"  {key}: {_yaml(value)}" for key, value in (keys | {"splits": splits}).items()),
        "stages:",
        f"  - stage: {'transfer' if 'label' in roles else 'finetune'}",
        "    adapt: lora  # few weights are trained; `full` trains all, with a twentieth of the learning rate",
        f"    epochs: {epochs}  # about {epochs * -(-n_train // batch):,} steps",
        f"    batch_size: {batch}",
        f"    learning_rate: {TASKS[tag].usual_learning_rate:g}",
        *(
            []
            if splits["validation"]
            else ["    keep: last  # there is no validation split to choose the best weights by"]
        ),
        f"output: {_yaml(f'outputs/{name}')}",
    ]
    return Draft("\n".join(lines) + "\n", [*said, *notes], _table(survey, folder))


def _checkpoint(survey: Survey, roles: Roles, model: str, *, is_named: bool) -> tuple[dict[str, str], list[str]]:
    """The keys of `model`, and a line on a language that nothing tells."""
    if "audio" not in roles or "language" in roles or is_named:
        return {"name": model}, []
    unsaid = "not decided is the language of the recordings"
    if survey.columns[str(roles["text"])].is_english:
        return {"name": model, "language": "en"}, [f"{unsaid}: the recipe says en"]
    return {"name": model}, [f"{unsaid}: say it as `model.language`, e.g. fr; a run asks for it"]


def _say(key: str, column: Column) -> str:
    text = f"`{clip(column.name)}` is taken for the {key}"
    if key == "label":
        named = [f"{clip(value)} ({n:,})" for value, n in column.values.most_common()]
        if len(named) > SHOWN:
            named = [*named[: SHOWN - 1], "…", named[-1]]  # the rarest, whose rows may not do
        text += f": {len(column.values)} classes, {', '.join(named)}"
        text += "; rows have any number of them" if column.kind == "list" else ""
    elif column.kind == "text":
        text += f": {column.length:.0f} characters on average"
    if column.missing:
        text += f"; missing in {column.missing:,} rows"
    if column.kind != "list" and column.missing > MAX_BAD_SHARE * (column.rows + column.missing):
        text += f", more than the {MAX_BAD_SHARE:.0%} that a run leaves out: drop them, or raise `max_bad_share`"
    if column.name in column.values:
        text += f"; `{clip(column.name)}` is a value of it, too: has the table a header?"
    return text


def _label_of(
    survey: Survey, name: str | list[str] | None, keys: dict[str, object]
) -> tuple[Column, dict[str, object]]:
    """The column of the labels, with each class for a value; and keys of data, with those by which they are read."""
    if isinstance(name, list):
        counts = Counter({one: sum(survey.columns[one].values[yes] for yes in ("1", "True", "true")) for one in name})
        return Column(", ".join(name), Counter({"list": survey.columns[name[0]].rows}), counts), keys
    if name is None or not (parted := survey.columns[name].parted()):
        return survey.columns[name] if name else Column(""), keys
    return parted[1], keys | ({"multi_label": True, "label_delimiter": parted[0]} if parted[0] else {})


def _of_classes(label: Column) -> list[str]:
    """Lines on odd classes of a column."""
    said = []
    if rare := [f"{clip(value)} ({n})" for value, n in label.values.items() if n < RARE]:
        said.append(f"classes with fewer than {RARE} rows, of which little can be learnt: {', '.join(rare[:8])}")
    if label.kinds.keys() == {"number"}:
        said.append("the classes are numbers: `class_names: [...]` under `data` gives 0, 1, … their names")
    return said


# ----------------------------------------------------------------------------------------------- the task


Roles = dict[str, str | list[str]]
"""The column for each of what a task takes; of labels, it may be one for each class."""


def _contents(column: Column) -> str:
    if not column.rows:
        return "empty"
    return f"{column.kind}, {len(column.values):,} values" if column.values else column.kind


def _choose(survey: Survey, task: str | None) -> tuple[str, Roles]:
    """The task, and the column for each of what it needs."""
    found = {tag: roles for roles in _readings(survey, task) if task in (None, tag := _task_of(roles))}
    if len(found) == 1:
        return next(iter(found.items()))
    held = some(
        [f"{clip(column.name)} ({_contents(column)})" for column in survey.columns.values()],
        20,
    )
    if not found:
        wanted = f"a {task}" if task else "a task"
        raise RecipeError(
            f"the columns do not tell what {wanted} would need. There are: {held}. Image classification needs "
            "images and a class for each, speech recognition recordings and what is said, text classification texts "
            "and a class, summarisation texts and a shorter one. Put photos into a folder for each class, or name "
            "their classes in a table; `--task` says which task is meant. Or write a recipe that names the columns "
            "(docs/data.md)." + "".join(f"\n- {printable(note, lines=False)}" for note in survey.notes)
        )
    ways = "; ".join(
        f"--task {tag} ({', '.join(f'{k}: {clip(str(c))}' for k, c in roles.items())})" for tag, roles in found.items()
    )
    raise RecipeError(f"the columns could be read in {len(found)} ways. Say which: {ways}.")


def _task_of(roles: Roles) -> str:
    """The task that takes such columns."""

    def wants(tag: str) -> set[str]:
        taken = TASKS[tag].data.model_fields["columns"].annotation
        return set(getattr(taken, "model_fields", ()))

    return next(tag for tag in supervised_tasks() if roles.keys() <= wants(tag))


def _readings(survey: Survey, task: str | None) -> list[Roles]:
    columns = list(survey.columns.values())
    flags = [c.name for c in columns if c.is_flag and not _words(c.name) & LABEL_NAMES]
    media = {kind: [c.name for c in columns if c.kind == kind] for kind in ("image", "audio")}
    texts = sorted(
        (c for c in columns if c.kind == "text" and c.length >= LONG and not c.repeats and not c.parted()),
        key=lambda c: -c.length,
    )
    spoken = _best([c for c in columns if c.kind == "text"], TEXT_NAMES)
    classes = [c for c in columns if _is_of_classes(c) and not c.is_of_dates]
    one = _best([c for c in classes if not _words(c.name) & GROUP_NAMES] or classes, LABEL_NAMES)
    by_class = len(flags) > 1 and not (one and _words(one.name) & LABEL_NAMES)
    label: str | list[str] | None = flags if by_class else one.name if one else None
    if len(media["image"]) == 1:
        return [{"image": media["image"][0], "label": label}] if label else []
    if len(media["audio"]) == 1:
        told = next((c.name for c in columns if c.kind == "text" and _words(c.name) & LANGUAGE_NAMES), None)
        language: Roles = {"language": told} if told and spoken and told != spoken.name else {}
        return [{"audio": media["audio"][0], "text": spoken.name, **language}] if spoken else []
    found: list[Roles] = []
    short = [c for c in texts[1:] if c.length <= 0.6 * texts[0].length]
    summary = _best(short, SUMMARY_NAMES) or (short[0] if short and task == "summarization" else None)
    named = by_class or (one is not None and _words(one.name) & LABEL_NAMES)
    if summary is not None and not (named and not _words(summary.name) & SUMMARY_NAMES):
        found.append({"document": texts[0].name, "summary": summary.name})
    if label is not None and texts:
        found.append({"text": texts[0].name, "label": label})
    return found


def _is_of_classes(column: Column) -> bool:
    """True for values that come again and are short; of numbers for whole ones, few of them unless they are named so.

    Others are counts, prices and scores.
    """
    if column.kind == "list" or column.parted():
        return column.repeats or column.kind == "text"
    if column.kind not in ("text", "number") or not column.repeats or column.length > 5 * LONG:
        return False
    few = len(column.values) <= MOST_NUMBERS or bool(_words(column.name) & LABEL_NAMES)
    return column.kind == "text" or (few and not column.fractions)


def _best(columns: Sequence[Column], names: set[str]) -> Column | None:
    """The column of one of these names; or the only one."""
    named = [column for column in columns if _words(column.name) & names]
    return named[0] if named else columns[0] if len(columns) == 1 else None


def _words(name: str) -> set[str]:
    """
    >>> sorted(_words("patientId")), sorted(_words("Class_Label"))
    (['id', 'patient'], ['class', 'label'])
    """
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)}


# ---------------------------------------------------------------------------------------------- the splits


def _splits(
    survey: Survey, others: Sequence[Column], classes: Column | None, *, by_class: bool
) -> tuple[dict[str, object], list[str]]:
    """Splits as a recipe names them, and why."""
    notes = list[str]()
    train = "train" if "train" in survey.splits else next(iter(survey.splits))
    others_of = [name for name in survey.splits if name != train]
    names = {kind: name for name in reversed(others_of) if (kind := SPLITS.get(name.casefold())) not in (None, "train")}
    n_rows = survey.splits[train]
    group = next((c for c in others if _words(c.name) & GROUP_NAMES and 5 <= len(c.values) <= n_rows / 1.5), None)
    held: object = HELD_OUT if group is None else {"share": HELD_OUT, "group": group.name}
    if group is not None and group.missing:
        notes.append(f"{group.missing:,} rows have no `{group.name}`: fill it in, or drop them; a run asks for it")
    if group is not None and "test" not in names:
        notes.append(f"rows of one `{group.name}` stay together: held out are whole ones of the {len(group.values):,}")
    elif "test" not in names:
        notes += _of_groups([c for c in others if 5 <= len(c.values) <= n_rows / 1.5], classes)
    splits: dict[str, object] = {} if train == "train" else {"train": train}
    if "test" in names:
        splits["validation"] = names.get("validation", 0.1 if n_rows >= FEW_ROWS else None)
        splits |= {} if names["test"] == "test" else {"test": names["test"]}
    elif "validation" in names:
        notes.append("there is no test split: the validation split is what is reported, and nothing is chosen by it")
        return {**splits, "validation": 0.1 if n_rows >= FEW_ROWS else None, "test": names["validation"]}, notes
    else:
        smaller = {**held, "share": 0.1} if isinstance(held, dict) else 0.1
        splits |= {"validation": smaller if n_rows >= FEW_ROWS else None, "test": held}
        how = "by group" if group else "each class in proportion" if by_class else "drawn by chance"
        notes.append(f"a test set of {HELD_OUT:.0%} is held out, {how}")
    if extra := [name for name in others_of if name not in names.values()]:
        notes.append(f"other splits, which may be scored as `extra_test`: {', '.join(extra)}")
    return splits, notes


def _of_groups(columns: Sequence[Column], classes: Column | None) -> list[str]:
    """Lines on columns that may tell which rows belong together, whatever they are called."""
    alike = [c for c in columns if not c.fractions and classes is not None and c.goes_with(classes)]
    again = [c for c in columns if c.kind == "text" and c not in alike]
    hint = "if such rows belong together, hold out by group: `splits: {{test: {{share: {}, group: {}}}}}`"
    told = {"rows that have one value of {} mostly have one class, too": alike, "values of {} come again": again}
    return [
        f"{text.format(', '.join(clip(c.name) for c in found))}; {hint.format(HELD_OUT, _yaml(found[0].name))}"
        for text, found in told.items()
        if found
    ]


def _share(value: object) -> float:
    found = value.get("share") if isinstance(value, dict) else value
    return found if isinstance(found, float) else 0.0


# ----------------------------------------------------------------------------------------------- the text


def _yaml(value: object) -> str:
    r"""A value in one line of YAML.

    >>> print(_yaml({"text": "Null", "label": "a\n#\x85b"}))
    {text: "Null", label: "a\n#\u0085b"}
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(one)}" for key, one in value.items()) + "}"
    plain = isinstance(value, str) and re.fullmatch(r"(?:[A-Za-z]|\.{0,2}/)[\w./-]*", value)
    if plain and plain[0].lower() not in ("null", "true", "false"):
        return plain[0]
    return escaped(json.dumps(value, ensure_ascii=False))


def _relative(value: object, folder: Path) -> object:
    """Paths as the recipe's folder sees them; Hub ids as they are."""
    if isinstance(value, list):
        return [_relative(one, folder) for one in value]
    if isinstance(value, dict):
        return {key: _relative(one, folder) for key, one in value.items()}
    path = Path(str(value)).expanduser()
    if not path.exists():
        return value
    found = relative_path(path, folder)
    return found.removeprefix("./") if path.is_file() else found


def _table(survey: Survey, folder: Path) -> str:
    """The listing of files as csv, with paths that start in a folder."""
    if not survey.listing:
        return ""
    columns = list(survey.listing[0])
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    for row in survey.listing:
        place = relative_path(row[columns[0]], folder).removeprefix("./")
        writer.writerow([place, *(row[column] for column in columns[1:])])
    return written.getvalue()
