"""The command line: few flags, since knobs belong to the recipe.

Nothing heavy is imported until a command needs it, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tltasks import __version__
from tltasks.errors import RecipeError, TltasksError, TrainingError

RAISED, MISUSED, PARTIAL, INTERRUPTED = 1, 2, 3, 143
"""Exit statuses besides 0. PARTIAL: all was done, but for single inputs that could not be read."""
TOP_K = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a mistake of the user's becomes one message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except TltasksError as error:
        # what all processes of a launcher find is said by the first alone; memory is each one's own
        if os.environ.get("RANK", "0") == "0" or isinstance(error, TrainingError):
            _say(f"error: {error}")
        return MISUSED if isinstance(error, RecipeError) else RAISED
    except BrokenPipeError:  # the reader of a pipe has had enough, e.g. `tltasks recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return RAISED
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        _say("error: no space is left on the disk. Free some; a run goes on from its last checkpoint with --resume.")
        return RAISED
    except KeyboardInterrupt:
        _say("stopped")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tltasks", description="Transfer learning on Hugging Face checkpoints, from one recipe."
    )
    parser.add_argument("--version", action="version", version=f"tltasks {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="train, evaluate, and write a results folder")
    run.add_argument("recipe_path", nargs="?", metavar="RECIPE", help="YAML file")
    run.add_argument("--recipe", metavar="RECIPE", help="the same, for `accelerate launch tltasks/run.py --recipe …`")
    _add_set(run)
    run.add_argument("--output", metavar="FOLDER", help="results folder, instead of the recipe's")
    run.add_argument("--resume", action="store_true", help="go on with the run in the results folder")
    run.add_argument("--push", action=argparse.BooleanOptionalAction, default=False, help="publish to hub.repo")
    run.add_argument("--dry-run", action="store_true", help="open data and model, estimate time and memory, and stop")
    run.add_argument("--check", action="store_true", help="check the recipe alone, and stop")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="check recipes, experiments and searches, in less than a second")
    check.add_argument("recipes", nargs="+", metavar="RECIPE")
    _add_set(check)
    check.set_defaults(command=_check)

    recipes = commands.add_parser("recipes", help="list the recipes that come with tltasks")
    recipes.set_defaults(command=_recipes)

    doctor = commands.add_parser("doctor", help="devices, number formats, versions, Hub login, free disk")
    doctor.set_defaults(command=_doctor)

    push = commands.add_parser("push", help="publish a results folder to the Hub, also later and elsewhere")
    push.add_argument("output", metavar="OUTPUT", help="results folder")
    push.add_argument("--repo", metavar="USER/NAME", help="instead of the recipe's hub.repo")
    push.add_argument(
        "--as",
        dest="form",
        choices=("adapter", "merged"),
        help="an adapter alone, or merged into its base; unset: as it is",
    )
    _add_publication(push)
    push.add_argument("--dry-run", action="store_true", help="show the files and the card, and send nothing")
    push.set_defaults(command=_push)

    _add_push_data(commands)
    _add_predict(commands)
    _add_demo(commands)
    _add_experiments(commands)

    _add_export(commands)

    schema = commands.add_parser("schema", help="print the JSON Schema of recipes, for editors")
    schema.set_defaults(command=_schema)
    return parser


def _add_push_data(commands: Any) -> None:
    push = commands.add_parser("push-data", help="publish a folder of images or recordings as a data set")
    push.add_argument("folder", type=Path, metavar="FOLDER", help="a folder for each class, or with a metadata file")
    push.add_argument("--repo", required=True, metavar="USER/NAME")
    push.add_argument("--license", metavar="ID", help="of the data, as the Hub names it: cc-by-4.0")
    push.add_argument("--language", action="append", default=[], metavar="CODE", help="spoken or written in it")
    push.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be read")
    push.add_argument("--dry-run", action="store_true", help="show what would be sent, and the card")
    _add_publication(push)
    push.set_defaults(command=_push_data)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="answer for files, folders and tables, by a trained model",
        epilog="The exit status is 0, or 3 when single inputs had no answer (they have an `error` instead).",
    )
    _add_model(predict)
    predict.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="file, folder, glob, table (.parquet, .csv, .jsonl), or - for standard input: a path or a text each line",
    )
    predict.add_argument(
        "--output", type=Path, metavar="FILE", help=".jsonl, .csv or .parquet; unset: JSONL is printed"
    )
    predict.add_argument("--resume", action="store_true", help="complete --output: inputs that it has are passed over")
    predict.add_argument("--column", metavar="NAME", help="column of a table; unset: that of the run's data")
    predict.add_argument("--fetch", action="store_true", help="get inputs that are http(s) URLs from the web")
    predict.set_defaults(command=_predict)


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="write a trained model as an ONNX file, with a parity check")
    _add_checkpoint(export)
    export.add_argument("--format", choices=("onnx",), default="onnx")
    export.add_argument("--output", type=Path, metavar="FOLDER", help="unset: OUTPUT/onnx")
    export.add_argument(
        "--compare", nargs="*", default=[], metavar="INPUT", help="files to compare outputs on, besides made-up inputs"
    )
    export.set_defaults(command=_export)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="a page in the browser, to try a trained model and read about it")
    _add_model(demo)
    demo.add_argument("--port", type=int, help="unset: the first that is free from 7860 on")
    demo.add_argument("--host", help="address to serve at, such as 0.0.0.0 for other machines (127.0.0.1)")
    demo.add_argument("--space", metavar="USER/NAME", help="publish the page of a model on the Hub as a Space instead")
    _add_publication(demo)
    demo.set_defaults(command=_demo)


def _add_publication(parser: argparse.ArgumentParser) -> None:
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", default=None, help="what a new repository becomes, instead of")
    seen.add_argument("--public", dest="private", action="store_false", help="the recipe's hub.private")
    parser.add_argument("--pr", action="store_true", help="open a pull request instead of changing the repository")
    parser.add_argument("--force", action="store_true", help="overwrite files that no tltasks push wrote")


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument(
        "--top-k", type=int, default=TOP_K, metavar="N", help="classes to name, the likeliest first (5)"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="unset: as the run's recipe says")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="OUTPUT_OR_HUB_ID", help="results folder, folder with a model, or Hub id")
    parser.add_argument(
        "--task", type=_task, help="where the checkpoint does not tell, by its Hub tag: image-classification"
    )
    parser.add_argument("--revision", default="main", help="branch, tag or commit of the Hub id (main)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the repository ships")


def _add_experiments(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="carry out an experiment, and say what transfers",
        epilog="What is finished is found again: the same command goes on with an experiment that was stopped. "
        "The exit status is 0, or 3 when single cells failed.",
    )
    compare.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="YAML file")
    _add_set(compare)
    compare.add_argument("--output", type=Path, metavar="FOLDER", help="results folder, instead of the experiment's")
    compare.add_argument("--dry-run", action="store_true", help="show the cells and their time, and stop")
    compare.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="ray: cells side by side, on the cluster that RAY_ADDRESS names or by processes of this machine",
    )
    compare.add_argument("--workers", type=_positive, metavar="N", help="ray on this machine: cells at once")
    compare.add_argument("--cores-per-cell", type=_positive, metavar="N", help="ray: cores of each cell (1)")
    compare.set_defaults(command=_compare)

    tune = commands.add_parser(
        "tune",
        help="search a recipe's keys for the best setting, by validation",
        epilog="The same command goes on with a search that was stopped. The exit status is 0, or 3 if trials failed.",
    )
    tune.add_argument("search", type=Path, metavar="SEARCH", help="YAML file")
    _add_set(tune)
    tune.add_argument("--output", type=Path, metavar="FOLDER", help="results folder, instead of the search's")
    tune.add_argument("--dry-run", action="store_true", help="show what there is to choose from, and stop")
    tune.set_defaults(command=_tune)

    test = commands.add_parser("range-test", help="train briefly while the learning rate rises, and suggest one")
    test.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file")
    _add_set(test)
    test.add_argument(
        "--highest", type=float, default=1.0, metavar="RATE", help="at the last step (1); it starts at a millionth"
    )
    test.add_argument("--steps", type=_positive, default=100, metavar="N", help="of training (100)")
    test.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for the figure and the numbers")
    test.set_defaults(command=_range_test)

    rank = commands.add_parser("rank", help="rank an experiment's checkpoints for its data, before training")
    rank.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="YAML file that names its `candidates`")
    _add_set(rank)
    rank.add_argument("--output", type=Path, metavar="FOLDER", help="results folder, instead of the experiment's")
    rank.set_defaults(command=_rank)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, e.g. stages.0.epochs=1"
    )


def _run(options: argparse.Namespace) -> int:
    from tltasks.config.loading import load_recipe

    given = [path for path in (options.recipe_path, options.recipe) if path]
    if len(given) != 1:
        raise RecipeError("run: name one recipe, as `tltasks run RECIPE`. `tltasks recipes` lists those at hand.")
    recipe = load_recipe(Path(given[0]), options.set)
    if options.check:
        _say(f"{given[0]}: in order")
        return 0
    output = Path(os.path.expanduser(options.output or recipe.output))  # noqa: PTH111 - no such user is no error

    from tltasks.runs.story import run
    from tltasks.training.loop import Interrupted

    try:
        run(recipe, output=output, resume=options.resume, push=options.push, dry_run=options.dry_run)
    except Interrupted as stop:
        again = [given[0], *(word for change in options.set for word in ("--set", change)), "--output", str(output)]
        _say(f"{stop}; its state is saved. Go on with: tltasks run {shlex.join(again)} --resume")
        return INTERRUPTED
    return 0


def _check(options: argparse.Namespace) -> int:
    failed = 0
    for path in options.recipes:
        try:
            _load_any(Path(path), options.set)
            print(f"{path}: in order")  # noqa: T201
        except RecipeError as error:
            failed += 1
            _say(str(error))
    return MISUSED if failed else 0


def _load_any(path: Path, overrides: list[str]) -> None:
    """Read a recipe, an experiment or a search, whichever its keys say that it is."""
    from tltasks.config.yaml_reader import parse, read_text

    keys = parse(read_text(path), str(path)).value
    if isinstance(keys, dict) and "axes" in keys:
        from tltasks.experiments.experiment import load_experiment

        load_experiment(path, overrides)
    elif isinstance(keys, dict) and "space" in keys:
        from tltasks.experiments.search_space import load_search

        load_search(path, overrides)
    else:
        from tltasks.config.loading import load_recipe

        load_recipe(path, overrides)


def _recipes(options: argparse.Namespace) -> int:
    from tltasks.config.loading import describe_recipes

    print(describe_recipes())  # noqa: T201
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from tltasks.cli.doctor import examine

    return examine()


def _push(options: argparse.Namespace) -> int:
    from tltasks.config.loading import load_recipe

    output = Path(options.output)
    if not (output / "recipe.yaml").is_file():
        raise RecipeError(f"push {output}: not a results folder (no recipe.yaml).")
    recipe = load_recipe(output / "recipe.yaml", check_files=False)
    repo = options.repo or recipe.hub.repo
    if repo is None:
        raise RecipeError("push: the recipe names no hub.repo; say --repo USER/NAME.")

    private = recipe.hub.private if options.private is None else options.private
    whole = not (output / "model" / "adapter_config.json").is_file()
    if options.form == "adapter" and whole:
        raise RecipeError(
            f"push {output} --as adapter: its weights are whole. Where an adapter is trained, `hub.publish: adapter` "
            "keeps it apart."
        )

    from tltasks.hub import client
    from tltasks.reports.model_card import card_for_repo

    with contextlib.ExitStack() as stack:
        model = None
        if options.form == "merged" and not whole:
            from tltasks.hub.saved_model import load_saved_model, write_whole

            model = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tltasks-")))
            code = bool(recipe.model and recipe.model.trust_remote_code)
            write_whole(load_saved_model(str(output), tag=None, revision="main", trust_remote_code=code), model)
        card = card_for_repo(output, recipe, repo, merged=model is not None)
        if options.dry_run:
            plan = client.plan_push(output, card=card, model=model)
            print(f"would send to {repo} ({'private' if private else 'public'}):")  # noqa: T201
            for file in plan.files:
                print(f"  {file.size:>12,}  {file.path}")  # noqa: T201
            print(f"\n{card}")  # noqa: T201
            return 0
        receipt = client.push(
            output, repo, private=private, card=card, model=model, pull_request=options.pr, force=options.force
        )
    _say(f"{'proposed' if options.pr else 'pushed'} {receipt.url}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    _check_top_k(options.top_k)
    from tltasks.inference import predict as prediction

    try:
        count = prediction.predict(
            options.model,
            options.inputs,
            output=options.output,
            resume=options.resume,
            tag=options.task,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            column=options.column,
            top_k=options.top_k,
            precision=options.precision,
            fetches=options.fetch,
        )
    except KeyboardInterrupt:
        if options.output is None or not options.output.exists():
            raise
        _say(f"stopped; what was predicted is in {options.output}. The same command with --resume completes it.")
        return INTERRUPTED
    prediction.say(prediction.console(), count, options.output)
    return PARTIAL if count.failed else 0


def _export(options: argparse.Namespace) -> int:
    output = options.output or Path(options.model) / "onnx"
    if options.output is None and not Path(options.model).is_dir():
        raise RecipeError(f"export {options.model}: name the folder to write to with --output.")
    from tltasks.inference.onnx import FILE, export

    parity = export(
        options.model,
        output,
        tag=options.task,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        arguments=options.compare,
    )
    _say(
        f"{output / FILE}: outputs differ by at most {parity.largest:.1e} of the largest on {parity.compared} inputs; "
        f"{parity.same_answers} of {parity.compared} answers are the same"
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    _check_top_k(options.top_k)
    if options.space:
        return _push_space(options)
    if options.pr or options.force or options.private is not None:
        raise RecipeError("demo: --pr, --force, --private and --public are for what is published with --space.")
    if importlib.util.find_spec("gradio") is None:
        raise RecipeError("demo: needs Gradio, which is not installed: pip install 'tltasks[demo]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported, too

    from tltasks.inference.demo import open_demo
    from tltasks.inference.demo_page import launch, wait

    demo = open_demo(
        options.model,
        tag=options.task,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        top_k=options.top_k,
        precision=options.precision,
    )
    served = launch(demo, host=options.host, port=options.port)
    _say(f"{demo.title}: {served.url} (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        wait()
    served.close()
    return 0


def _push_data(options: argparse.Namespace) -> int:
    from tltasks.hub.dataset import push_data

    url = push_data(
        options.folder,
        options.repo,
        licence=options.license,
        language=options.language,
        private=True if options.private is None else options.private,
        pull_request=options.pr,
        force=options.force,
        skip_bad=options.skip_bad,
        dry_run=options.dry_run,
    )
    if url is not None:
        _say(f"{'proposed' if options.pr else 'pushed'} {url}")
    return 0


def _push_space(options: argparse.Namespace) -> int:
    from tltasks.config.loading import load_recipe

    output = Path(options.model)
    model: str | None = options.model
    if output.is_dir():
        recipe = load_recipe(output / "recipe.yaml", check_files=False) if (output / "recipe.yaml").is_file() else None
        model = recipe.hub.repo if recipe else None
    if model is None:
        raise RecipeError(
            f"demo {options.model} --space: a Space needs a model on the Hub, and no hub.repo is named. Publish it "
            f"(tltasks push {options.model} --repo USER/NAME), then: tltasks demo USER/NAME --space {options.space}"
        )
    kept = [
        *(["--task", options.task] if options.task else []),
        *(["--revision", options.revision] if options.revision != "main" else []),
        *(["--precision", options.precision] if options.precision else []),
        *(["--top-k", str(options.top_k)] if options.top_k != TOP_K else []),
        *(["--trust-remote-code"] if options.trust_remote_code else []),
    ]
    from tltasks.hub import client

    private = True if options.private is None else options.private
    receipt = client.push_space(
        model, kept, options.space, private=private, pull_request=options.pr, force=options.force
    )
    _say(f"{'proposed' if options.pr else 'pushed'} {receipt.url}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 on is needed")
    return int(text)


def _task(text: str) -> str:
    from tltasks.config.tasks import supervised_tasks

    if text not in supervised_tasks():
        raise argparse.ArgumentTypeError(f"no such task: {text!r} (choose from {', '.join(supervised_tasks())})")
    return text


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise RecipeError(f"--top-k {top_k}: name at least one class.")


def _compare(options: argparse.Namespace) -> int:
    if options.engine != "ray" and (options.workers or options.cores_per_cell):
        raise RecipeError("compare: --workers and --cores-per-cell are for --engine ray.")
    from tltasks.experiments.compare import compare
    from tltasks.experiments.ray import Workers
    from tltasks.training.loop import Interrupted

    workers = Workers(options.workers, options.cores_per_cell or 1) if options.engine == "ray" else None
    try:
        failed = compare(
            options.experiment, options.set, output=options.output, dry_run=options.dry_run, workers=workers
        )
    except (Interrupted, KeyboardInterrupt):
        _say("stopped; what is finished is kept, and the same command goes on with the rest.")
        return INTERRUPTED
    return PARTIAL if failed else 0


def _tune(options: argparse.Namespace) -> int:
    from tltasks.experiments.tune import tune
    from tltasks.training.loop import Interrupted

    try:
        failed = tune(options.search, options.set, output=options.output, dry_run=options.dry_run)
    except (Interrupted, KeyboardInterrupt):
        _say("stopped; what is finished is kept, and the same command goes on with the rest.")
        return INTERRUPTED
    return PARTIAL if failed else 0


def _range_test(options: argparse.Namespace) -> int:
    from tltasks.experiments.lr_finder import find_learning_rate

    found = find_learning_rate(
        options.recipe, options.set, highest=options.highest, steps=options.steps, output=options.output
    )
    _say(f"the loss falls fastest at {found.steepest:.1e}; a tenth of the rate with the least is {found.largest:.1e}")
    _say(f"figure   {options.output / 'range.png'}")
    return 0


def _rank(options: argparse.Namespace) -> int:
    from tltasks.experiments.rank import rank

    rank(options.experiment, options.set, output=options.output)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from tltasks.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))  # noqa: T201
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
