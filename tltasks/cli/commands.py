"""The command line: each function is a command, its signature the flags, its docstring the help.

Few flags, since knobs belong to the recipe. Nothing heavy is imported until a command needs it, so that `--help`,
`check` and mistakes in arguments are answered at once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import shlex
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter, Token
from cyclopts.validators import Number

from tltasks import __version__
from tltasks.cli.drafting import about, draft_for, name_of, time_of
from tltasks.cli.process import (
    INTERRUPTED,
    MISUSED,
    PARTIAL,
    RAISED,
    begin,
    end_at_sigterm,
    fail,
    heed_verbosity,
    leave_standard_output,
    say,
    write_utf8,
)
from tltasks.errors import DataError, Interrupted, RecipeError, closest, did_you_mean, nearby, printable, siblings

if TYPE_CHECKING:
    from rich.console import Console

    from tltasks.config.recipe import RunPlan
    from tltasks.experiments.execution import Workers
    from tltasks.hub.upload_plan import UploadPlan

TOP_K = 5
STANDARD_INPUT = "/dev/stdin"
"""`-`, as the parser is told it: a dash alone is a flag to cyclopts (5.5, utils.is_option_like)."""

app = App(
    name="tltasks",
    help="Transfer learning on Hugging Face checkpoints, from one recipe. Every command takes --quiet (errors and what "
    "is asked for, alone) and --verbose (also what libraries say).",
    version=f"tltasks {__version__}",
    version_flags=["--version"],
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=lambda value: str(value) if value else None),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
TRAIN, USE = Group("Train", sort_key=0), Group("Use a trained model", sort_key=1)
EXPERIMENT, PUBLISH = Group("Experiment", sort_key=2), Group("Publish", sort_key=3)
LOOK = app["--help"].group = app["--version"].group = Group("Look around", sort_key=4)


app.register_install_completion_command(group=LOOK, help="Complete commands and flags in this shell.")


def _check_task(_: object, tag: str | None) -> None:
    if tag is None:
        return
    from tltasks.config.tasks import supervised_tasks

    if tag not in supervised_tasks():
        raise ValueError(f"Choose from {', '.join(supervised_tasks())}.")


def _check_model(_: object, name: str | None) -> None:
    from tltasks.config.names import is_folder

    if name is not None:
        is_folder(name)


def _check_trained(_: object, name: str) -> None:
    from tltasks.config.names import folder_of_weights, holds_model

    if not holds_model(Path(name).expanduser() / "setup"):  # an export's, whose weights are of another format
        folder_of_weights(name)


def _recipe_of(subject: str | None) -> Path | None:
    """The recipe that is meant where a model may be meant as well: a YAML file, or a recipe of tltasks by its name."""
    from tltasks.config.shipped import recipe_called

    path = recipe_called(Path(subject or ""))
    return path if path.suffix in {".yaml", ".yml"} else None


def _check_subject(_: object, subject: str | None) -> None:
    if _recipe_of(subject) is None:
        _check_model(_, subject)


def _check_folder(_: object, folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"push-data {folder}: not a folder.")


def _check_data(_: object, data: str | None) -> None:
    if data is None:
        return
    from tltasks.config.names import is_local_name

    path = Path(data).expanduser()
    if not path.exists() and (is_local_name(data) or ("/" not in data and closest(data, siblings(path)))):
        raise DataError(f"{data}: there is no such folder or file{nearby(path)}.")


def _count(_: object, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    if not text.isdecimal() or int(text) < 1:  # by itself the library rounds 2.5 to 2
        raise ValueError(f"{text} is no whole number from 1 on")
    return int(text)


def _recipe(_: object, tokens: Sequence[Token]) -> Path:
    from tltasks.config.shipped import recipe_called

    return recipe_called(Path(tokens[0].value))


Recipe = Annotated[Path, Parameter(converter=_recipe, help="YAML file, or the name of a recipe of `tltasks recipes`")]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(name="--set", metavar="KEY=VALUE", help="override a key, e.g. stages.0.epochs=1; may be repeated"),
]
Output = Annotated[Path | None, Parameter(metavar="FOLDER", help="results folder, instead of the one that is named")]
Model = Annotated[
    str,
    Parameter(name="OUTPUT_OR_HUB_ID", validator=_check_trained, help="results folder, folder with a model, or Hub id"),
]
TrustCode = Annotated[
    bool, Parameter(name="--trust-remote-code", help="run Python code of others that the recipe asks for")
]
TopK = Annotated[int, Parameter(metavar="N", converter=_count, help="classes to name, the likeliest first")]
Probability = Annotated[
    float | None, Parameter(metavar="P", validator=Number(gt=0, lte=1), help="no class less probable than that")
]
Language = Annotated[str | None, Parameter(help="of all inputs, for models that are told one: es, spanish")]
Precision = Annotated[Literal["auto", "fp32", "bf16", "fp16"] | None, Parameter(help="unset: as the run's recipe says")]
Speed = Annotated[float | None, Parameter(metavar="GB/S", help="between a recipe's devices; unset: 1.25, of GPUs 12.5")]
Delay = Annotated[
    float | None, Parameter(metavar="MICROSECONDS", help="on the way between them; unset: 50, of GPUs 10")
]
DATA = "folder, table, folder of save_to_disk, or Hub id"
DRAFTED = "its Hub tag, where the data could be for several: image-classification"
Repo = Annotated[str | None, Parameter(metavar="USER/NAME", help="instead of the recipe's hub.repo")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How a model is read."""

    tag: Annotated[str | None, Parameter(name="--task", metavar="TAG", validator=_check_task)] = None
    """its Hub tag, where the checkpoint does not tell: image-classification"""
    revision: str = "main"
    """branch, tag or commit of the Hub id"""
    trust_remote_code: bool = False
    """run Python code that the repository ships"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Publication:
    """How a repository of the Hub is written to."""

    private: Annotated[bool | None, Parameter(negative="--public")] = None
    """what a new repository becomes, instead of the recipe's hub.private"""
    pr: bool = False
    """open a pull request instead of changing the repository"""
    force: bool = False
    """overwrite files that no tltasks push wrote"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drafted:
    """Data without a recipe."""

    data: Annotated[str | None, Parameter(metavar="DATA", validator=_check_data)] = None
    """instead of a recipe: folder, table, folder of save_to_disk, or Hub id"""
    tag: Annotated[str | None, Parameter(name="--task", metavar="TAG", validator=_check_task)] = None
    """with --data: its Hub tag, where the data could be for several"""
    model: Annotated[str | None, Parameter(metavar="HUB_ID", validator=_check_model)] = None
    """with --data: checkpoint to start from; unset: a small one of the task"""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Engine:
    """A way to start processes."""

    engine: Literal["here", "ray"] = "here"
    """ray: on the cluster of RAY_ADDRESS, or by processes of this machine"""
    workers: Annotated[int | None, Parameter(metavar="N", converter=_count)] = None
    """ray: processes of a run; unset: one for each GPU, or for each machine. Of trials: how many at once here"""

    def flags(self) -> list[str]:
        """The flags that ask for it."""
        count = ["--workers", str(self.workers)] if self.workers else []
        return ["--engine", self.engine, *count] if self.engine != "here" else []

    def check(self, command: str) -> None:
        """Raise RecipeError for flags of Ray's without it, and for Ray within another launcher."""
        if self.engine != "ray" and vars(self) != vars(type(self)()):
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in vars(self) if name != "engine")
            raise RecipeError(f"{command}: {flags} {'are' if ' and ' in flags else 'is'} for --engine ray.")
        if self.engine == "ray" and os.environ.get("WORLD_SIZE"):
            raise RecipeError(f"{command}: --engine ray starts processes itself; run the command without a launcher.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrialsEngine(Engine):
    """A way to carry trials out."""

    cores_per_trial: Annotated[int | None, Parameter(metavar="N", converter=_count)] = None
    """ray: cores of each trial; unset: 1"""


DEFAULT_CHECKPOINT, DEFAULT_PUBLICATION, NO_DRAFT = Checkpoint(), Publication(), Drafted()
HERE, TRIALS_HERE = Engine(), TrialsEngine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a mistake of the user's becomes one message on standard error."""
    words = heed_verbosity(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looks through every installed package for them
    end_at_sigterm()
    write_utf8()
    try:
        if not words:
            raise RecipeError("name a command; `tltasks --help` lists them.")
        status: int | None = app([STANDARD_INPUT if word == "-" else word for word in words])
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # the reader of a pipe has had enough, e.g. `tltasks recipes | head`
        leave_standard_output()
        return RAISED
    except KeyboardInterrupt:
        say("stopped")
        return INTERRUPTED
    except Exception as error:
        return fail(error, [name for name in app if not name.startswith("-") and app[name].show])


# ------------------------------------------------------------------------------------------- train


@app.command(group=TRAIN)
def run(
    recipe: Annotated[
        Path | None, Parameter(converter=_recipe, help="YAML file; `tltasks recipes` lists those at hand")
    ] = None,
    *,
    overrides: Overrides = (),
    output: Output = None,
    resume: Annotated[bool, Parameter(help="go on with the run in the results folder")] = False,
    overwrite: Annotated[bool, Parameter(help="remove the run in the results folder")] = False,
    push: Annotated[bool, Parameter(negative="--no-push", help="publish to hub.repo")] = False,
    dry_run: Annotated[bool, Parameter(help="open data and model, estimate time and memory, and stop")] = False,
    check: Annotated[bool, Parameter(help="check the recipe alone, and stop")] = False,
    trust_remote_code: TrustCode = False,
    drafted: Drafted = NO_DRAFT,
    engine: Engine = HERE,
) -> int:
    """Train, evaluate, and write a results folder.

    Instead of a recipe `--data` names what to learn from, and the recipe is the one that `tltasks init` would write.
    """
    from tltasks.runtime.startup import without_collection

    engine.check("run")
    if (recipe is None) == (drafted.data is None) or (recipe is not None and drafted != NO_DRAFT):
        raise RecipeError(
            "run: name one recipe, as `tltasks run RECIPE`, or else `--data`. `tltasks recipes` lists those at hand."
        )
    if recipe is not None:
        _expect(recipe, "task")
    with without_collection():
        from tltasks.config.loading import load_recipe
        from tltasks.config.recipe import consented, plan_run
    source = recipe or draft_for(str(drafted.data), overrides, task=drafted.tag, model=drafted.model)
    resolved = load_recipe(source, overrides)
    if check:
        say(f"{recipe or drafted.data}: in order")
        return 0
    resolved = consented(resolved, trust_remote_code)
    from tltasks.runs.refusals import place_of, refuse_at_once, refuse_occupied

    plan = plan_run(resolved, place_of(resolved, output, resume=resume, overwrite=overwrite))
    refuse_at_once(plan, push=push)
    if not dry_run:
        refuse_occupied(plan.output, plan.sha256, resume=resume, overwrite=overwrite)
    begin(f"{plan.recipe.task}: opening data and model; results go to {plan.output}")
    with without_collection():
        from tltasks.runs import story

    try:
        if dry_run:
            story.dry_run(resolved, output=plan.output, push=push)
        elif engine.engine == "ray":
            _run_on_ray(plan, engine, push=push, overwrite=overwrite)
        else:
            story.run(resolved, output=plan.output, resume=resume, push=push, overwrite=overwrite)
    except (Interrupted, KeyboardInterrupt) as stop:
        flags = engine.flags() + (["--trust-remote-code"] if trust_remote_code else [])
        _say_how_to_go_on(stop, recipe or plan.output / "recipe.yaml", plan.output, overrides, flags)
        return INTERRUPTED
    return 0


def _say_how_to_go_on(
    stop: BaseException, recipe: Path, output: Path, overrides: Sequence[str], flags: list[str]
) -> None:
    again = ["run", str(recipe), *(word for change in overrides for word in ("--set", change))]
    again += ["--output", str(output), "--resume", *flags]
    said = f"{stop}; its state is saved" if isinstance(stop, Interrupted) else "stopped"
    say(f"{said}. Go on with: tltasks {shlex.join(again)}")


def _run_on_ray(plan: RunPlan, engine: Engine, *, push: bool, overwrite: bool) -> None:
    """Carry a run out on Ray; what it is published with stays on this machine."""
    from tltasks.hub import client
    from tltasks.runs.on_ray import run_on_ray

    hub = plan.recipe.hub
    if push and hub.repo:
        client.check_push(hub.repo, private=hub.private)
    run_on_ray(plan.recipe, plan.output, workers=engine.workers, overwrite=overwrite)
    if push:
        publish(plan.output)


@app.command(group=TRAIN)
def init(
    data: Annotated[str, Parameter(name="DATA", validator=_check_data, help=DATA)],
    *,
    tag: Annotated[str | None, Parameter(name="--task", metavar="TAG", validator=_check_task, help=DRAFTED)] = None,
    model: Annotated[
        str | None,
        Parameter(metavar="HUB_ID", validator=_check_model, help="checkpoint; unset: a small one of the task"),
    ] = None,
    output: Annotated[Path | None, Parameter(metavar="FILE", help="recipe to write; unset: NAME_OF_DATA.yaml")] = None,
    force: Annotated[bool, Parameter(help="overwrite it")] = False,
) -> int:
    """Look at data and write a recipe for them, with the reasons beside each choice."""
    begin(about(data))
    from tltasks.data.survey import survey
    from tltasks.runs.draft import draft
    from tltasks.runtime.files import write_text

    path = output or Path(f"{name_of(data)}.yaml")
    looked = survey(data)
    found = draft(looked, task=tag, model=model, folder=path.absolute().parent, name=path.stem)
    texts = {path.with_suffix(".csv"): found.table, path: found.text}
    for one in (one for one, text in texts.items() if text and one.exists() and not force):
        raise RecipeError(f"init: {one} is there already; name another with --output, or overwrite it with --force.")
    for one, text in texts.items():
        if text:
            write_text(one, text)
    found = found.noting(time_of(path, rows=sum(looked.splits.values())))
    write_text(path, found.text)
    print(printable("\n".join(f"- {line}" for line in found.said)))  # noqa: T201
    written = " and ".join(str(one) for one, text in texts.items() if text)
    asked = " --set model.language=LANGUAGE" if any("model.language" in line for line in found.said) else ""
    say(f"wrote {written}. Then: tltasks run {shlex.quote(str(path))}{asked}")
    return 0


@app.command(group=TRAIN)
def check(*recipes: Annotated[Recipe, Parameter(required=True)], overrides: Overrides = ()) -> int:
    """Check recipes, experiments and searches, in less than a second."""
    failed = 0
    for path in recipes:
        try:
            _read(path, _kind(path) or "task", overrides, trust_remote_code=True)  # nothing is run
            print(printable(f"{path}: in order"))  # noqa: T201
        except RecipeError as error:
            failed += 1
            say(str(error))
    return MISUSED if failed else 0


KINDS = {"axes": ("an experiment", "compare"), "space": ("a search", "tune"), "task": ("a recipe", "run")}
"""By a key that the others have not: what a file is, and the command that it is for."""


def _kind(path: Path) -> str | None:
    """The key of `KINDS` that a file has."""
    from tltasks.config.yaml_reader import read_document

    keys = read_document(path).value
    return next((key for key in KINDS if key in keys), None)


def _expect(path: Path, wanted: str) -> None:
    """Refuse a file of another kind than a command takes, by its key in `KINDS`."""
    kind, command = KINDS[_kind(path) or wanted]
    if command != KINDS[wanted][1]:
        raise RecipeError(f"{path}: is {kind}, for `tltasks {command}`; {KINDS[wanted][0]} is wanted here.")


def _read(path: Path, kind: str, overrides: Sequence[str], *, trust_remote_code: bool) -> None:
    """Read a recipe, an experiment or a search, by its key in `KINDS`; mistakes raise RecipeError.

    It takes a millisecond a recipe, and commands do so before what they import takes seconds.
    """
    if kind == "axes":
        from tltasks.experiments.experiment import load_experiment

        load_experiment(path, overrides, trust_remote_code=trust_remote_code)
    elif kind == "space":
        from tltasks.experiments.search_space import load_search

        load_search(path, overrides, trust_remote_code=trust_remote_code)
    else:
        from tltasks.config.loading import load_recipe
        from tltasks.config.recipe import consented

        consented(load_recipe(path, overrides), trust_remote_code)


@app.command(group=TRAIN)
def range_test(
    recipe: Recipe,
    /,
    *,
    overrides: Overrides = (),
    highest: Annotated[float, Parameter(metavar="RATE", help="at the last step; it starts at a millionth")] = 1.0,
    steps: Annotated[int, Parameter(metavar="N", converter=_count, help="of training")] = 100,
    output: Annotated[Path, Parameter(metavar="FOLDER", help="for the figure and the numbers")],
    trust_remote_code: TrustCode = False,
) -> None:
    """Train briefly while the learning rate rises, and suggest one."""
    _expect(recipe, "task")
    _read(recipe, "task", overrides, trust_remote_code=trust_remote_code)
    begin(f"range-test: opening {recipe}")
    from tltasks.experiments.lr_finder import find_learning_rate

    found = find_learning_rate(
        recipe, overrides, highest=highest, steps=steps, output=output, trust_remote_code=trust_remote_code
    )
    say(f"suggested learning rate: {found.suggested:.1e}")
    say(f"figure   {output / 'range.png'}")


@app.command(group=TRAIN)
def submit(
    recipe: Recipe,
    /,
    *,
    overrides: Overrides = (),
    flavor: Annotated[str, Parameter(help="hardware, by the Hub's name for it")],
    timeout: Annotated[
        str | None, Parameter(metavar="TIME", help="5400, 90m, 1.5h; unset: by a dry run of one step on this machine")
    ] = None,
    attempts: Annotated[int, Parameter(metavar="N", converter=_count, help="a job that fails is begun again")] = 1,
    repo: Repo = None,
    owner: Annotated[
        str | None, Parameter(metavar="NAME", help="organisation that pays; unset: the login's user")
    ] = None,
    secret: Annotated[
        tuple[str, ...], Parameter(metavar="NAME", help="variable that the job gets as a secret; may be repeated")
    ] = (),
    yes: Annotated[bool, Parameter(help="upload and begin without being asked")] = False,
    detach: Annotated[bool, Parameter(help="do not wait for the job")] = False,
    dry_run: Annotated[bool, Parameter(help="show job, files, time and cost, and send nothing")] = False,
    trust_remote_code: TrustCode = False,
) -> int:
    """Carry out a recipe on Hugging Face Jobs; the same command goes on with one that was stopped."""
    _expect(recipe, "task")
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import consented, plan_run

    run = plan_run(consented(load_recipe(recipe, overrides), trust_remote_code))
    begin(f"submit: looking at data, login and hardware for {recipe}")
    from tltasks.cli import jobs as of_jobs
    from tltasks.hub import jobs as on_hub

    flags = ["--trust-remote-code"] if trust_remote_code else []
    submission, why = of_jobs.prepare(
        run,
        name=recipe.stem,
        flavor=flavor,
        timeout=timeout,
        attempts=attempts,
        repo=repo,
        owner=owner,
        secrets=secret,
        flags=flags,
    )
    print(printable("\n".join(of_jobs.describe(submission, why))))  # noqa: T201
    if dry_run:
        return 0
    if not yes:
        of_jobs.confirm()
    job = on_hub.submit(submission)
    say(f"began {job.url}")
    if detach:
        say(f"follow it: tltasks jobs {job.id}")
        return 0
    try:
        return of_jobs.follow(job.id, submission.owner)
    except KeyboardInterrupt:
        say(f"the job goes on. Follow it: tltasks jobs {job.id}; end it: tltasks jobs {job.id} --cancel")
        return INTERRUPTED


@app.command(group=TRAIN)
def jobs(
    job: Annotated[str | None, Parameter(name="JOB", help="follow this one's log to its end; unset: list them")] = None,
    /,
    *,
    cancel: Annotated[bool, Parameter(help="end the job")] = False,
    every: Annotated[bool, Parameter(name="--all", negative="", help="list those too that have ended")] = False,
    owner: Annotated[str | None, Parameter(metavar="NAME", help="organisation of the jobs")] = None,
) -> int:
    """List, follow or end jobs that `submit` has begun."""
    if cancel and job is None:
        raise RecipeError("jobs --cancel: name the job; `tltasks jobs` lists them.")
    from tltasks.cli import jobs as of_jobs

    if job is None:
        of_jobs.show_jobs(owner, every=every)
        return 0
    if not cancel:
        return of_jobs.follow(job, owner)
    from tltasks.hub import jobs as on_hub

    on_hub.cancel(job, owner or on_hub.login_name())
    say(f"job {job} is ended; what it saved is on the Hub")
    return 0


@app.command(show=False)
def carry_out(
    submission: Path,
    state: str,
    /,
    *,
    until: float = float("inf"),
    trust_remote_code: TrustCode = False,
) -> int:
    """Carry out a submission inside its job."""
    import torch

    from tltasks.hub.carrying_out import carry_out as carry

    flags = ["--trust-remote-code"] if trust_remote_code else []
    return carry(submission, state, flags, until=until, processes=torch.cuda.device_count(), say=say)


# ------------------------------------------------------------------------------------------------ use


@app.command(
    group=USE,
    help_epilogue="The exit status is 0, or 3 when single inputs had no answer (they have an `error` instead).",
)
def predict(
    model: Model,
    /,
    *inputs: Annotated[
        str,
        Parameter(
            required=True,
            help="file, folder, glob, table (.parquet, .csv, .jsonl), or - for standard input: a path or a text a line",
        ),
    ],
    output: Annotated[
        Path | None,
        Parameter(metavar="FILE", help=".jsonl, .csv, .parquet; .srt, .vtt ('*.srt' of several); unset: JSON lines"),
    ] = None,
    resume: Annotated[bool, Parameter(help="complete --output: inputs that it has are passed over")] = False,
    column: Annotated[str | None, Parameter(metavar="NAME", help="of a table; unset: that of the run's data")] = None,
    language: Language = None,
    language_column: Annotated[str | None, Parameter(metavar="NAME", help="of a table: each row's language")] = None,
    words: Annotated[bool, Parameter(help="of speech: each word with start, end and confidence")] = False,
    prompt: Annotated[str | None, Parameter(metavar="TEXT", help="for Whisper: what was said before")] = None,
    prompt_column: Annotated[str | None, Parameter(metavar="NAME", help="of a table: the prompt of each row")] = None,
    hotwords: Annotated[str | None, Parameter(metavar="TEXT", help="for Whisper: names and terms to expect")] = None,
    vad: Annotated[bool, Parameter(negative="--no-vad", help="of speech: silence and noise have no answer")] = True,
    fetch: Annotated[bool, Parameter(help="get inputs that are http(s) URLs from the web")] = False,
    top_k: TopK = TOP_K,
    all_classes: Annotated[bool, Parameter(name="--all", negative="", help="name every class")] = False,
    abstain_below: Probability = None,
    precision: Precision = None,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
) -> int:
    """Answer for files, folders and tables, by a trained model."""
    named = _inputs_of(inputs, output, fetches=fetch)
    begin(f"predict: opening {model}")
    from tltasks.config.answers import Asked
    from tltasks.inference.predict import predict as predict_all

    try:
        counts = predict_all(
            model,
            named,
            output=output,
            resume=resume,
            **vars(checkpoint),
            column=column,
            language=language,
            language_column=language_column,
            prompt_column=prompt_column,
            top_k=sys.maxsize if all_classes else top_k,
            abstain_below=abstain_below,
            precision=precision,
            fetches=fetch,
            asked=Asked(words, prompt, hotwords, vad),
        )
    except KeyboardInterrupt:
        if output is None or not output.exists():
            raise
        say(f"stopped; what was predicted is in {output}. The same command with --resume completes it.")
        return INTERRUPTED
    counts.show(output)
    return PARTIAL if counts.failed else 0


def _inputs_of(inputs: Sequence[str], output: Path | None, *, fetches: bool) -> list[str]:
    """The inputs as they were typed. Raises RecipeError for what is not there, and for an output that cannot be."""
    from tltasks.inference.arguments import STDIN, check_arguments, check_file

    named = [STDIN if one == STANDARD_INPUT else one for one in inputs]
    check_arguments(named, fetches=fetches)
    if output is not None:
        check_file(output)
    return named


@app.command(group=USE)
def demo(
    model: Model,
    /,
    *,
    port: Annotated[
        int | None, Parameter(validator=Number(gte=1, lte=65535), help="unset: the first that is free from 7860 on")
    ] = None,
    host: Annotated[str | None, Parameter(help="such as 0.0.0.0 for other machines; unset: 127.0.0.1")] = None,
    allow_host: Annotated[
        tuple[str, ...], Parameter(metavar="NAME", help="under which visitors may ask for it, too; may be repeated")
    ] = (),
    max_upload: Annotated[int, Parameter(metavar="MB", converter=_count, help="size of a visitor's file")] = 50,
    keep_uploads: Annotated[
        int, Parameter(metavar="MINUTES", converter=_count, help="until a visitor's file is deleted")
    ] = 60,
    space: Annotated[Repo, Parameter(help="publish the page of a model on the Hub as a Space instead")] = None,
    top_k: TopK = TOP_K,
    precision: Precision = None,
    language: Language = None,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    publication: Publication = DEFAULT_PUBLICATION,
) -> None:
    """Serve a page in the browser, to try a trained model and read about it."""
    if space:
        kept = [
            *(["--precision", precision] if precision else []),
            *(["--language", language] if language else []),
            *(["--top-k", str(top_k)] if top_k != TOP_K else []),
        ]
        _push_space(model, space, checkpoint, publication, kept)
        return
    if publication != DEFAULT_PUBLICATION:
        raise RecipeError("demo: --pr, --force, --private and --public are for what is published with --space.")
    if importlib.util.find_spec("gradio") is None:
        raise RecipeError("demo: needs Gradio, which is not installed: pip install 'tltasks[demo]'")
    begin(f"demo: opening {model}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported, too
    from tltasks.runtime.startup import without_collection

    with without_collection():
        from tltasks.inference.demo import open_demo
        from tltasks.inference.demo_page import launch
        from tltasks.inference.demo_server import Limits

        opened = open_demo(model, **vars(checkpoint), top_k=top_k, precision=precision, language=language)
        limits = Limits(max_upload * 2**20, keep_uploads * 60)
        page = launch(opened, host=host, port=port, names=allow_host, limits=limits)
    say(f"{opened.title}: {page.local_url} (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)


def _push_space(model: str, space: str, checkpoint: Checkpoint, publication: Publication, flags: list[str]) -> None:
    from tltasks.config.loading import load_recipe

    output = Path(model)
    published: str | None = model
    if output.is_dir():
        recipe = load_recipe(output / "recipe.yaml", check_files=False) if (output / "recipe.yaml").is_file() else None
        published = recipe.hub.repo if recipe else None
    if published is None:
        raise RecipeError(
            f"demo {model} --space: a Space needs a model on the Hub, and no hub.repo is named. Publish it "
            f"(tltasks push {model} --repo USER/NAME), then: tltasks demo USER/NAME --space {space}"
        )
    kept = [
        *(["--task", checkpoint.tag] if checkpoint.tag else []),
        *(["--revision", checkpoint.revision] if checkpoint.revision != "main" else []),
        *flags,
        *(["--trust-remote-code"] if checkpoint.trust_remote_code else []),
    ]
    from tltasks.hub import client
    from tltasks.hub.upload_plan import plan_space

    private = True if publication.private is None else publication.private
    plan = plan_space(client.find_model(published), kept)
    receipt = client.push(plan, space, private=private, pull_request=publication.pr, force=publication.force)
    _say_published(receipt.url, publication)


@app.command(group=USE)
def export(
    model: Model,
    /,
    *,
    format_: Annotated[
        Literal["onnx", "ctranslate2"], Parameter(help="ctranslate2 is what faster-whisper loads")
    ] = "onnx",
    quantize: Annotated[
        Literal["int8", "fp16"] | None, Parameter(help="unset: fp32; ONNX in int8 is calibrated on training rows")
    ] = None,
    output: Annotated[
        Path | None, Parameter(metavar="FOLDER", help="unset: OUTPUT/FORMAT, or OUTPUT/FORMAT-int8")
    ] = None,
    tolerance: Annotated[
        float,
        Parameter(metavar="POINTS", help="by which the interval of the difference on test may reach below the model"),
    ] = 1.0,
    unscored: Annotated[bool, Parameter(negative="", help="leave the run's test set out, which may be gone")] = False,
    compare: Annotated[
        tuple[str, ...],
        Parameter(metavar="INPUT", consume_multiple=True, help="files to compare outputs on, besides made-up inputs"),
    ] = (),
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
) -> None:
    """Write a trained model for programs without PyTorch, and score it again on its test set."""
    place = Path(model)
    if output is None and not place.is_dir():
        raise RecipeError(f"export {model}: name the folder to write to with --output.")
    if tolerance < 0:
        raise RecipeError(f"--tolerance {tolerance:g}: is in points, and none below 0.")
    begin(f"export: opening {model}")
    from tltasks.runtime.startup import without_collection

    with without_collection():
        from tltasks.inference import export as exporting

        folder = output or place / (f"{format_}-{quantize}" if quantize else format_)
        outcome = exporting.export(
            model,
            folder,
            kind=format_,
            quantize=quantize,
            tolerance=tolerance,
            scored=not unscored,
            arguments=compare,
            **vars(checkpoint),
        )
    for line in outcome.lines(folder):
        say(line)


# ----------------------------------------------------------------------------------------- experiment


@app.command(
    group=EXPERIMENT,
    help_epilogue="What is finished is found again: the same command goes on with an experiment that was stopped. "
    "The exit status is 0, or 3 when single trials failed.",
)
def compare(
    experiment: Recipe,
    /,
    *,
    overrides: Overrides = (),
    output: Output = None,
    dry_run: Annotated[bool, Parameter(help="show the trials and their time, and stop")] = False,
    engine: TrialsEngine = TRIALS_HERE,
    trust_remote_code: TrustCode = False,
) -> int:
    """Carry out an experiment, and say what transfers."""
    engine.check("compare")
    _expect(experiment, "axes")
    _read(experiment, "axes", overrides, trust_remote_code=trust_remote_code)
    begin(f"compare: opening {experiment}")
    from tltasks.experiments import comparison

    console = _console()
    if dry_run:
        comparison.show_plan(
            console,
            comparison.plan_experiment(experiment, overrides, output=output, trust_remote_code=trust_remote_code),
            dry_run=True,
        )
        return 0
    try:
        result = comparison.compare(
            *(experiment, overrides),
            output=output,
            workers=_workers(engine),
            console=console,
            trust_remote_code=trust_remote_code,
        )
    except (Interrupted, KeyboardInterrupt):
        return _stopped()
    return PARTIAL if result.failed else 0


@app.command(
    group=EXPERIMENT,
    help_epilogue="The same command goes on with a search that was stopped. The exit status is 0, or 3 if trials "
    "failed.",
)
def tune(
    search: Recipe,
    /,
    *,
    overrides: Overrides = (),
    output: Output = None,
    dry_run: Annotated[bool, Parameter(help="show what there is to choose from, and stop")] = False,
    engine: TrialsEngine = TRIALS_HERE,
    trust_remote_code: TrustCode = False,
) -> int:
    """Search a recipe's keys for the best setting, by validation."""
    engine.check("tune")
    _expect(search, "space")
    _read(search, "space", overrides, trust_remote_code=trust_remote_code)
    begin(f"tune: opening {search}")
    from tltasks.experiments import tuning
    from tltasks.experiments.search_space import load_search

    console = _console()
    if dry_run:
        tuning.show_space(console, *load_search(search, overrides, trust_remote_code=trust_remote_code))
        return 0
    try:
        result = tuning.tune(
            *(search, overrides),
            output=output,
            workers=_workers(engine),
            console=console,
            trust_remote_code=trust_remote_code,
        )
    except (Interrupted, KeyboardInterrupt):
        return _stopped()
    return PARTIAL if result.count("failed") else 0


@app.command(group=EXPERIMENT)
def rank(
    experiment: Annotated[Path, Parameter(help="YAML file that names its `candidates`")],
    /,
    *,
    overrides: Overrides = (),
    output: Output = None,
    trust_remote_code: TrustCode = False,
) -> None:
    """Rank an experiment's checkpoints for its data, before training."""
    _expect(experiment, "axes")
    _read(experiment, "axes", overrides, trust_remote_code=trust_remote_code)
    begin(f"rank: opening {experiment}")
    from tltasks.experiments import ranking

    ranking.rank(experiment, overrides, output=output, console=_console(), trust_remote_code=trust_remote_code)


def _workers(engine: TrialsEngine) -> Workers | None:
    from tltasks.experiments.execution import Workers

    return Workers(engine.workers, engine.cores_per_trial or 1) if engine.engine == "ray" else None


def _console() -> Console:
    from tltasks.reports.console import open_terminal

    return open_terminal()


def _stopped() -> int:
    say("stopped; what is finished is kept, and the same command goes on with the rest.")
    return INTERRUPTED


# -------------------------------------------------------------------------------------------- publish


@app.command(group=PUBLISH, name="push")
def publish(
    output: Annotated[Path, Parameter(help="results folder")],
    /,
    *,
    repo: Repo = None,
    form: Annotated[
        Literal["adapter", "merged"] | None,
        Parameter(name="--as", help="an adapter alone, or merged into its base; unset: as it is"),
    ] = None,
    dry_run: Annotated[bool, Parameter(help="show the files and the card, and send nothing")] = False,
    trust_remote_code: Annotated[bool, Parameter(help="with --as merged: run Python code that its base ships")] = False,
    publication: Publication = DEFAULT_PUBLICATION,
) -> None:
    """Publish a results folder to the Hub, also later and elsewhere."""
    if not (output / "recipe.yaml").is_file():
        raise RecipeError(f"push {output}: not a results folder (no recipe.yaml).")
    from tltasks.config.loading import load_recipe
    from tltasks.config.recipe import plan_run

    recipe = load_recipe(output / "recipe.yaml", check_files=False)
    name = repo or recipe.hub.repo
    if name is None:
        raise RecipeError("push: the recipe names no hub.repo; say --repo USER/NAME.")

    private = recipe.hub.private if publication.private is None else publication.private
    whole = not (output / "model" / "adapter_config.json").is_file()
    if form == "adapter" and whole:
        raise RecipeError(
            f"push {output} --as adapter: its weights are whole. Where an adapter is trained, `hub.publish: adapter` "
            "keeps it apart."
        )

    from tltasks.hub import client
    from tltasks.hub.results_plan import plan_results
    from tltasks.reports.model_card import render_card
    from tltasks.results.result import RunResult

    with contextlib.ExitStack() as stack:
        model = None
        if form == "merged" and not whole:
            from tltasks.hub.saved_model import load_saved_model, write_merged

            model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tltasks-")))
            write_merged(load_saved_model(str(output), trust_remote_code=trust_remote_code), model)
        run = plan_run(recipe)

        def card(result: RunResult) -> str:
            return render_card(result, run, adapter=result.best.weights.adapter and model is None, repo=name)

        plan = plan_results(output, run, card=card, model=model)
        if dry_run:
            _show_upload(plan, name, private=private)
            return
        if note := plan.note():
            say(f"push {output}: {note}")
        receipt = client.push(plan, name, private=private, pull_request=publication.pr, force=publication.force)
    _say_published(receipt.url, publication)


def _show_upload(plan: UploadPlan, name: str, *, private: bool) -> None:
    print(f"would send to {name} ({'private' if private else 'public'}):")  # noqa: T201
    for file in plan.files:
        print(printable(f"  {file.size:>12,}  {file.path}", lines=False))  # noqa: T201
    for why, n in Counter(plan.left.values()).items():  # the push itself names them
        print(f"  stays here: {n} ({why})")  # noqa: T201
    (page,) = (file.content for file in plan.files if file.path == "README.md")
    print(printable(f"\n{page.decode() if isinstance(page, bytes) else ''}"))  # noqa: T201


@app.command(group=PUBLISH)
def push_data(
    folder: Annotated[
        Path, Parameter(validator=_check_folder, help="a folder for each class, or with a metadata file")
    ],
    /,
    *,
    repo: Annotated[str, Parameter(metavar="USER/NAME", help="name of the data set on the Hub")],
    license_: Annotated[str | None, Parameter(metavar="ID", help="of the data, as the Hub names it: cc-by-4.0")] = None,
    language: Annotated[
        tuple[str, ...], Parameter(metavar="CODE", help="spoken or written in it; may be repeated")
    ] = (),
    skip_bad: Annotated[bool, Parameter(help="leave out files that cannot be read")] = False,
    dry_run: Annotated[bool, Parameter(help="show what would be sent, and the card")] = False,
    publication: Publication = DEFAULT_PUBLICATION,
) -> None:
    """Publish a folder of images or recordings as a data set."""
    from tltasks.hub.dataset import push_dataset

    url = push_dataset(
        folder,
        repo,
        license_id=license_,
        language=list(language),
        private=True if publication.private is None else publication.private,
        pull_request=publication.pr,
        force=publication.force,
        skip_bad=skip_bad,
        dry_run=dry_run,
    )
    if url is not None:
        _say_published(url, publication)


def _say_published(url: str, publication: Publication) -> None:
    say(f"{'proposed' if publication.pr else 'pushed'} {url}")


# ---------------------------------------------------------------------------------------- look around


@app.command(group=LOOK)
def recipes() -> None:
    """List the recipes that come with tltasks."""
    from tltasks.config.shipped import describe_recipes

    print(describe_recipes())  # noqa: T201


@app.command(group=LOOK)
def fetch(
    name: Annotated[
        str | None, Parameter(name="NAME", help="a recipe, or weights or data by their name; unset: list them")
    ] = None,
    /,
) -> None:
    """Fetch weights and data of recipes that come with tltasks, into the user's cache."""
    from tltasks.cli import fetch as fetching

    if name is None:
        print(fetching.list_assets())  # noqa: T201
        return
    for place in fetching.fetch(name):
        say(f"{place}: there")


@app.command(group=LOOK)
def doctor(
    subject: Annotated[
        str | None,
        Parameter(name="MODEL_OR_RECIPE", validator=_check_subject, help="Hub id, folder or results; or a recipe"),
    ] = None,
    /,
    *,
    tag: Annotated[str | None, Parameter(name="--task", metavar="TAG", help="of a model: one task alone")] = None,
    revision: Annotated[str | None, Parameter(help="branch, tag or commit of the Hub id; unset: main")] = None,
    trust_remote_code: Annotated[bool, Parameter(help="run Python code of others")] = False,
    micro_batch: Annotated[
        int | None, Parameter(metavar="N", converter=_count, help="of a model: examples in memory; unset: 8")
    ] = None,
    overrides: Overrides = (),
    bandwidth: Speed = None,
    latency: Delay = None,
    as_json: Annotated[bool, Parameter(name="--json", help="print all that is found out, for programs")] = False,
) -> int:
    """Show this machine, what can be done with a model, or what a recipe takes on 1 to 64 devices.

    No weights of a model are fetched, and status 1 says that nothing can be done with it. Steps of a recipe are tried.
    """
    from tltasks.config.tasks import TASKS

    if tag is not None and tag not in TASKS:
        raise RecipeError(f"--task {tag}: tltasks has no such task{did_you_mean(tag, TASKS) or '.'}")
    path, said = _recipe_of(subject), f"doctor: looking at {subject or 'this machine'}"
    if (overrides or (bandwidth, latency) != (None, None)) and path is None:
        raise RecipeError("doctor: --set, --bandwidth and --latency are for a recipe; name one.")
    if not all(value is None or 0 < value < math.inf for value in (bandwidth, latency)):
        raise RecipeError("doctor: --bandwidth and --latency are numbers above 0.")
    if (tag or revision or micro_batch) and (path or subject is None):
        raise RecipeError("doctor: --task, --revision and --micro-batch are for a model; name one.")
    if subject is None:
        begin(said)
        from tltasks.cli.doctor import examine

        return examine()
    if path is not None:
        _expect(path, "task")
        from tltasks.config.loading import load_recipe
        from tltasks.config.recipe import consented, plan_run

        plan = plan_run(consented(load_recipe(path, overrides), trust_remote_code))
        begin(said)
        from tltasks.cli.examination import examine_recipe

        return examine_recipe(plan, bandwidth=bandwidth, latency=latency, as_json=as_json)
    begin(said)
    from tltasks.cli.examination import examine_model

    return examine_model(
        subject,
        tag=tag,
        revision=revision or "main",
        trust_remote_code=trust_remote_code,
        micro_batch=micro_batch or 8,
        as_json=as_json,
    )


@app.command(group=LOOK)
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from tltasks.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))  # noqa: T201
