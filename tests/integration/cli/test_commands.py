import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
from PIL import Image

import tltasks
from tests.unit.config.test_loading import RECIPES, copy_shipped, write
from tests.unit.config.test_recipe import BASE
from tltasks.cli.commands import INTERRUPTED, MISUSED, RAISED, app, main
from tltasks.config.loading import load_recipe
from tltasks.config.schema import json_schema
from tltasks.errors import DataError, HubError, RecipeError, TltasksError
from tltasks.runtime.progress import SETTINGS

ROOT = RECIPES.parent
COMMANDS = (
    *("run", "init", "check", "recipes", "doctor", "push", "push-data", "predict", "demo"),
    *("compare", "tune", "range-test", "rank", "export", "schema", "fetch", "submit", "jobs"),
)
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "timm", "sklearn", "pandas", "numpy"}
HEAVY |= {"huggingface_hub", "matplotlib", "torchvision", "PIL", "pyarrow"}


def started(*arguments: str, path: Path = ROOT, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with the tltasks that lies in `path`."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


IMPORTED = (
    "import json, sys; from tltasks.cli.commands import main; status = main(sys.argv[1:])\n"
    "print(json.dumps([sorted({name.partition('.')[0] for name in sys.modules}), status]), file=sys.stderr)"
)


def imported_by(arguments: list[str]) -> tuple[set[str], int, list[str]]:
    """The packages that a command imports, its exit status and the lines that it prints."""
    ended = started("-c", IMPORTED, *arguments)
    modules, status = json.loads(ended.stderr.splitlines()[-1])
    return set(modules), status, ended.stdout.splitlines()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write(tmp_path / "r.yaml", BASE)


# --------------------------------------------------------------------------------------------- check


def test_check_needs_nothing_heavy(tmp_path: Path) -> None:
    paths = copy_shipped(tmp_path)
    assert len(paths) >= 5
    experiments = sorted(RECIPES.glob("experiments/*.yaml"))
    assert experiments
    for arguments in (["check", *map(str, paths)], ["check", *map(str, experiments)], ["recipes"], ["schema"]):
        modules, status, lines = imported_by(arguments)
        assert status == 0
        assert "tltasks" in modules
        assert not HEAVY & modules
        if arguments[0] == "check":
            assert lines == [f"{path}: in order" for path in arguments[1:]]


def test_check_shows_all_mistakes_of_all_recipes(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = write(tmp_path / "wrong.yaml", BASE.replace("seed", "sed").replace("epochs: 3", "epochs: x"))
    assert main(["check", str(wrong), str(recipe), str(tmp_path / "r.yml")]) == MISUSED == 2
    shown = capsys.readouterr()
    assert shown.out == f"{recipe}: in order\n"
    assert f"{wrong}:14:5  stages[0].epochs: expected a number" in shown.err
    assert f"{wrong}:19:1  sed: unknown key; did you mean `seed`?" in shown.err
    assert f"{tmp_path / 'r.yml'}: not found; did you mean `r.yaml`?" in shown.err


def test_check_takes_overrides(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--set", "stages.0.epochs=1", "--set", "seed=5"]) == 0
    assert main(["check", str(recipe), "--set", "stages.0.epochs=1", "--set", "seed=x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "1 mistake in the recipe; nothing was loaded.",
        "--set seed=x  seed: expected a whole number, found the text 'x'",
    ]


def test_run_can_check(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--check"]) == 0
    assert main(["run", "--recipe", str(recipe), "--check"]) == 0
    assert main(["run", str(recipe), "--check", "--set", "sed=1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count(f"{recipe}: in order\n") == 2
    assert "error: 1 mistake in the recipe" in shown.err


# ------------------------------------------------------------------------------------------ recipes


def test_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["recipes"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == [str(p.relative_to(ROOT)) for p in sorted(RECIPES.rglob("*.yaml"))]
    assert all((ROOT / line.split()[0]).is_file() for line in lines)


def test_recipes_of_an_installed_wheel(tmp_path: Path) -> None:
    """The files of a wheel as pyproject.toml lists them, laid out as an installer does."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    site = tmp_path / "site-packages"
    for package in wheel["packages"]:
        for file in (ROOT / package).rglob("*.py"):
            write(site / file.relative_to(ROOT), file.read_text(encoding="utf-8"))
    for source, place in wheel["force-include"].items():
        for file in (ROOT / source).rglob("*"):
            if file.suffix in {".yaml", ".json"}:
                write(site / place / file.relative_to(ROOT / source), file.read_text(encoding="utf-8"))
    (site / "recipes").mkdir()  # another package's
    ended = started("-m", "tltasks", "recipes", path=site, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    named = [line.split()[0] for line in ended.stdout.splitlines()]
    assert len(named) == len(list(RECIPES.rglob("*.yaml"))) >= 5
    for name in named:
        assert (tmp_path / name).resolve().is_relative_to(site / "tltasks" / "recipes")
        assert (tmp_path / name).is_file()


# ------------------------------------------------------------------------------------------- schema


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json_schema()
    assert shown.err == ""
    assert shown.out == (RECIPES / "recipe.schema.json").read_text(encoding="utf-8")


def test_the_schema_is_of_our_own_sections_whatever_else_is_loaded() -> None:
    before = json_schema()
    kept = pydantic.create_model("Lora", path=(str, ...), __module__="another.library")
    assert json_schema() == before, kept


@pytest.mark.parametrize("command", ["schema", "recipes"])
def test_a_reader_that_has_had_enough(command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "tltasks", command],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == RAISED


# -------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "tltasks" in shown.out


def widen(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A terminal so wide; cyclopts keeps the one that it has first written to."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(app, "_fallback_console", None)


def test_help_lists_every_command_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    widen(monkeypatch, 120)
    assert main(["--help"]) == 0
    found = dict(re.findall(r"^│ ([a-z-]+) +([A-Z].+\.) +│$", capsys.readouterr().out, re.MULTILINE))
    assert {name for name in found if not name.startswith("--")} == set(COMMANDS)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    widen(monkeypatch, 160)
    for command in COMMANDS:
        main([command, "--help"])
        lines = [line.strip("│* ") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        bare = [line for line in lines if line.startswith("--") and not re.search(r"  \S+ \S+", line)]
        assert not bare, command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a command; `tltasks --help` lists them."),
        (["chek"], "no command is called `chek`; did you mean `check`?"),
        (
            ["zzz"],
            "no command is called `zzz`. There are: run, init, check, range-test, submit, jobs, predict, demo,",
        ),
        (["zzz"], "rank, push, push-data, recipes, fetch, doctor, schema. See `tltasks --help`."),
        (["check"], 'Command "check" parameter RECIPES requires an argument. See `tltasks check --help`.'),
        (["check", "r.yaml", "--zzz"], "Unknown option: --zzz. See `tltasks check --help`."),
        (["run", "r.yaml", "--dry-rum"], "Unknown option: --dry-rum. Did you mean --dry-run?"),
        (["predict", "m", "x.png", "--topk", "3"], "Did you mean --top-k?"),
        (["check", "r.yaml", "--set"], "parameter --set requires an argument."),
        (["push"], 'Command "push" parameter OUTPUT requires an argument.'),
        (["push", "o", "--as", "full"], 'Invalid value "full" for --as. Choose from: "adapter", "merged".'),
        (["push", "o", "--private", "--public"], "Parameter --public specified multiple times."),
        (["recipes", "x"], "tltasks recipes: more than it takes: x. See `tltasks recipes --help`."),
        (["run", "a.yaml", "--recipe", "b.yaml"], "tltasks run: more than it takes: a.yaml."),
        (["predict", "m"], 'Command "predict" parameter INPUTS requires an argument.'),
        (["predict", "m", "x.png", "--top-k", "0"], "Invalid value for --top-k: 0 is no whole number from 1 on."),
        (["predict", "m", "x.png", "--task", "cooking"], 'Invalid value "cooking" for --task. Choose from image-'),
        (["predict", "m", "x.png", "--precision", "fp8"], 'Invalid value "fp8" for --precision.'),
        (["compare", "e.yaml", "--workers", "2.5"], "--workers: 2.5 is no whole number from 1 on."),
        (["compare", "e.yaml", "--workers", "2"], "compare: --workers and --cores-per-trial are for --engine ray."),
        (["run", "r.yaml", "--workers", "2"], "run: --workers is for --engine ray."),
        (["demo", "m", "--port", "99999"], 'Invalid value "99999" for --port. Must be <= 65535.'),
        (["push-data", "."], 'Command "push-data" parameter --repo requires an argument.'),
        (
            ["range-test", "r.yaml", "--steps", "0", "--output", "o"],
            "Invalid value for --steps: 0 is no whole number from 1 on.",
        ),
    ],
)
def test_misuse(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == MISUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert expected in shown.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("chek", "did you mean"),
        ("predict m x.png --topk 3", "Did you mean --top-k?"),
        ("predict m x --task cooking", "Choose from image-classification"),
        ("predict ./nowhere x.png", "error: model ./nowhere: not found; name a run's results folder, a "),
        ("predict ~nobody/at/all x.png", "error: model ~nobody/at/all: not found"),
        ("export r.yaml --output o", "error: model r.yaml: is a file; name a run's results folder, a "),
        ("export out", "error: model out: holds no model (neither config.json nor adapter_config.json)."),
        ("run r.yaml --output n --set model.trust_remote_code=true", "the recipe asks to run Python code that others"),
        (
            "run r.yaml --output n --set hub.license=https://a:b@c",
            "--set hub.license=https://…@c  hub.license: holds a",
        ),
        ("init nowhere.csv", "error: nowhere.csv: there is no such folder or file"),
        ("run --data ./nowhere", "error: ./nowhere: there is no such folder or file"),
        ("demo ./nowhere", "error: model ./nowhere: not found"),
        ("push-data nowhere --repo a/b", "error: push-data nowhere: not a folder."),
        (
            "run r.yaml --output out",
            "error: output out: is not empty. Go on with that run with --resume, or name another folder",
        ),
        ("run r.yaml --output new --push", "error: --push: the recipe names no hub.repo"),
        ("run r.yaml --set trackers=[trackio]", "error: trackers: trackio not installed"),
        ("compare nowhere.yaml", "error: nowhere.yaml: not found"),
        ("compare r.yaml", "error: r.yaml: is a recipe, for `tltasks run`; an experiment is wanted here."),
        ("run e.yaml", "error: e.yaml: is an experiment, for `tltasks compare`; a recipe is wanted here."),
        ("compare e.yaml --set seedz=[0]", "error: 1 mistake in the experiment; nothing was loaded."),
        ("compare typo.yaml", "error: 1 mistake in the experiment; nothing was loaded."),
        ("rank e.yaml --set axes.m.a={seed:1}", "error: 1 mistake in the experiment; nothing was loaded."),
        ("tune nowhere.yaml", "error: nowhere.yaml: not found"),
        ("range-test r.yaml --set seed=x --output o", "error: 1 mistake in the recipe; nothing was loaded."),
        ("run --data out --set nope=1", "error: 1 mistake in the recipe; nothing was loaded."),
        ("run --data out --model ./nowhere", "error: model ./nowhere: not found"),
        ("run --data outt", "error: outt: there is no such folder or file; did you mean `out`? This folder holds "),
        ("predict begun x.png", "error: model begun: its run has not finished, so there is no model yet. Go on with"),
    ],
)
def test_mistakes_are_told_before_anything_heavy_is_imported(arguments: str, expected: str, recipe: Path) -> None:
    """Whose import takes seconds."""
    write(recipe.parent / "out" / "something.txt", "mine")
    write(recipe.parent / "begun" / "recipe.yaml", "task: image-classification")
    write(recipe.parent / "typo.yaml", "recipe: r.yaml\naxis: {m: {a: {seed: 1}}}\noutput: e\n")
    write(recipe.parent / "e.yaml", "recipe: r.yaml\naxes: {m: {a: {seed: 1}}}\noutput: e\n")
    ended = started("-c", IMPORTED.replace("sys.argv[1:]", repr(arguments.split())), cwd=recipe.parent)
    said, *_, modules = ended.stderr.splitlines()
    assert expected in said
    assert not HEAVY & set(json.loads(modules)[0])


@pytest.mark.parametrize(
    "arguments",
    [
        *("run", "run gone.yaml", "run e.yaml", "run --data ./gone", "run --data out --task cooking", "init gone.csv"),
        *("run --data out --model ./gone", "compare r.yaml", "tune r.yaml", "rank gone.yaml", "export out"),
        *("range-test e.yaml --output o", "range-test r.yaml --steps 0 --output o", "submit gone.yaml --flavor t4"),
        *("predict ./gone x.png", "predict m x.png", "predict m x --task cooking", "predict m r.yaml --output o.txt"),
        *("predict m r.yaml --abstain-below 3", "predict m r.yaml --output gone/o.csv", "demo ./gone", "demo m --pr"),
        *("doctor ./gone", "doctor gone.yaml", "doctor --task cooking", "export m", "push out", "push-data . --repo"),
        *("jobs --cancel", "fetch gone", "schema x"),
    ],
)
def test_mistakes_that_need_no_recipe_are_told_before_its_classes_are_built(arguments: str, recipe: Path) -> None:
    """Which takes longer than all else of the answer."""
    write(recipe.parent / "out" / "something.txt", "mine")
    write(recipe.parent / "e.yaml", "recipe: r.yaml\naxes: {m: {a: {seed: 1}}}\noutput: e\n")
    ended = started("-c", IMPORTED.replace("sys.argv[1:]", repr(arguments.split())), cwd=recipe.parent)
    modules, status = json.loads(ended.stderr.splitlines()[-1])
    assert status in {RAISED, MISUSED}
    assert not (HEAVY | {"pydantic"}) & set(modules)


def test_a_recipe_has_the_classes_of_its_own_task_built_alone(recipe: Path) -> None:
    code = IMPORTED.replace(".partition('.')[0]", "").replace("sys.argv[1:]", f"['run', '{recipe}', '--set', 'sed=1']")
    modules = json.loads(started("-c", code).stderr.splitlines()[-1])[0]
    assert "tltasks.config.tasks.image" in modules
    assert not {"tltasks.config.tasks.text", "tltasks.config.tasks.speech", "filelock"} & set(modules)


@pytest.mark.parametrize("arguments", [["init", "ada/photos"], ["run", "--data", "photos"]])
def test_a_hub_that_does_not_answer_is_told_without_trying_again(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if "OFFLINE" not in name}
    ended = subprocess.run(
        [sys.executable, "-m", "tltasks", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == RAISED
    first, last = ended.stderr.splitlines()
    assert first == f"looking at {arguments[-1]}, by that name on the Hub"
    assert "the Hub could not be reached for data of that name, and there is no such folder or file" in last


def test_flags_and_inputs_mix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Flags before, between and behind inputs; `-` is an input; what follows `--` is no flag."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "--c"):
        write(tmp_path / name, "")
    given: dict[str, Any] = {}

    def predict(model: str, inputs: list[str], **options: Any) -> SimpleNamespace:
        given.update(options, model=model, inputs=inputs)
        return SimpleNamespace(failed=0, show=lambda _: None)

    said = SimpleNamespace(predict=predict)
    monkeypatch.setattr("tltasks.inference.predict", said, raising=False)
    monkeypatch.setitem(sys.modules, "tltasks.inference.predict", said)
    assert main(["predict", "--top-k", "2", "m", "a", "--fetch", "-", "--output=o.csv", "b", "--", "--c"]) == 0
    assert (given["model"], given["inputs"]) == ("m", ["a", "-", "b", "--c"])
    assert (given["top_k"], given["fetches"], given["output"]) == (2, True, Path("o.csv"))
    assert (given["revision"], given["tag"], given["trust_remote_code"]) == ("main", None, False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run"], "error: run: name one recipe, as `tltasks run RECIPE`, or else `--data`."),
        (["run", "nowhere.yaml"], "error: nowhere.yaml: not found.\n"),
        (["run", "r.yaml", "--set", "epochs"], "error: --set epochs: write it as KEY=VALUE"),
        (
            ["run", "r.yaml", "--set", "model.name=./x"],
            "--set model.name=./x  model.name: there is no folder ./x in the",
        ),
        (["check", "."], ".: is a folder; name a recipe file in it, or learn from it: `tltasks run --data .`."),
        (["push", "nowhere"], "error: push nowhere: not a results folder (no recipe.yaml)."),
        (["push", "out", "--repo", "a", "--as", "adapter"], "--as adapter: its weights are whole. Where an adapter"),
        (["push", "out"], "error: push: the recipe names no hub.repo; say --repo USER/NAME."),
    ],
)
def test_mistakes_are_one_message_on_standard_error(
    arguments: list[str],
    expected: str,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(recipe.parent / "out" / "recipe.yaml", BASE)
    monkeypatch.chdir(recipe.parent)
    assert main(arguments) == MISUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert expected in shown.err
    assert "Traceback" not in shown.err


def test_a_run_that_has_not_finished_is_not_pushed(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(recipe.parent / "out" / "recipe.yaml", BASE)
    monkeypatch.chdir(recipe.parent)
    assert main(["push", "out", "--repo", "a/b"]) == RAISED
    assert "error: out: not a finished results folder; it lacks README.md, result.json," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        (RecipeError("a"), MISUSED, "error: a\n"),
        (DataError("b"), RAISED, "error: b\n"),
        (HubError("c"), RAISED, "error: c\n"),
        (TltasksError("d"), RAISED, "error: d\n"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped\n"),
    ],
)
def test_exit_status(
    raised: BaseException, status: int, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> str:
        raise raised

    monkeypatch.setattr("tltasks.config.shipped.describe_recipes", fail)
    assert main(["recipes"]) == status
    assert capsys.readouterr() == ("", shown)


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltasks.config.shipped.describe_recipes", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["recipes"])


def test_module_and_script_are_the_same_command(recipe: Path) -> None:
    version = started("-m", "tltasks", "--version")
    assert (version.returncode, version.stdout) == (0, f"tltasks {tltasks.__version__}\n")
    wrong = started("-m", "tltasks", "check", str(recipe), "--set", "seed=x", cwd=recipe.parent)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("1 mistake in the recipe")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"tltasks": "tltasks.cli:main"}


@pytest.mark.parametrize("launch", [["-m", "tltasks.run"], [str(ROOT / "tltasks" / "run.py")]])
def test_run_py_is_run(launch: list[str], recipe: Path) -> None:
    """Launched by its path, with no tltasks installed or on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if launch[0] == "-m":
        environment["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        [sys.executable, *launch, "--recipe", str(recipe), "--check"],
        env=environment, cwd=recipe.parent, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", f"{recipe}: in order\n")


def test_doctests_of_recipe_reading() -> None:
    names = [f"config.{name}" for name in ("document", "recipe", "checks", "loading", "schema")] + ["runtime.files"]
    results = [doctest.testmod(importlib.import_module(f"tltasks.{name}")) for name in names]
    assert sum(result.attempted for result in results) >= 3
    assert sum(result.failed for result in results) == 0


def test_a_demo_without_gradio_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "nobody/nothing"]) == MISUSED
    assert "pip install 'tltasks[demo]'" in capsys.readouterr().err


def test_a_space_needs_a_published_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["demo", str(tmp_path), "--space", "ada/page"]) == MISUSED
    assert "tltasks push" in capsys.readouterr().err
    assert main(["demo", str(tmp_path), "--force"]) == MISUSED
    assert "--space" in capsys.readouterr().err


def test_experiments_and_searches_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = sorted(RECIPES.glob("experiments/*.yaml"))
    assert shipped
    assert main(["check", *map(str, shipped)]) == 0
    capsys.readouterr()
    broken = tmp_path / "e.yaml"
    broken.write_text(shipped[0].read_text().replace("seeds:", "seedz:"))
    assert main(["check", str(broken)]) == MISUSED
    assert "did you mean `seeds`?" in capsys.readouterr().err
    broken.write_text("recipe: x.yaml\nspace: {stages.0.epochs: [1]}\ntrials: 3\noutput: o\n")
    assert main(["check", str(broken)]) == MISUSED
    assert "mistake" in capsys.readouterr().err


def test_a_run_needs_no_recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(24):
        place = tmp_path / "photos" / ("red", "blue")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), ((255, 0, 0), (0, 0, 255))[i % 2]).save(place / f"{i}.png")
    model = ["--model", str(tiny / "vit")]
    assert main(["run", "--data", "photos", *model, "--set", "stages.0.epochs=2", "--output", "out"]) == 0
    recipe = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert recipe.task == "image-classification"
    assert json.loads((tmp_path / "out" / "result.json").read_text())["stages"][0]["data"]["test"]["examples"] == 5
    assert main(["run", "out/recipe.yaml", "--data", "photos"]) == 2


# ---------------------------------------------------------------------------------------------- how much is said

FIRST_WORDS = (
    "import sys; from tltasks.cli.commands import main\n"
    "class Heavy:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'torch': raise SystemExit(99)\n"
    "sys.meta_path.insert(0, Heavy()); main(sys.argv[1:])\n"
)


@pytest.mark.parametrize("quiet", [True, False])
def test_the_first_words_come_before_anything_heavy(tmp_path: Path, quiet: bool) -> None:
    path = write(tmp_path / "r.yaml", BASE)
    ended = started("-c", FIRST_WORDS, "run", str(path), *(["--quiet"] if quiet else []))
    assert ended.returncode == 99
    assert ("opening data and model; results go to" in ended.stderr) == (not quiet)


def test_verbosity_is_of_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--verbose", "--quiet"]) == 0
    assert SETTINGS.verbosity == "quiet"
    assert main(["recipes", "--verbose"]) == 0
    assert SETTINGS.verbosity == "verbose"
    assert main(["recipes"]) == 0
    assert SETTINGS.verbosity == "normal"
    assert main(["check", "--", "--quiet"]) == MISUSED  # a file of that name
    assert "--quiet: not found" in capsys.readouterr().err


def test_a_task_that_doctor_does_not_know_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--task", "summarisation"]) == MISUSED
    assert "did you mean `summarization`?" in capsys.readouterr().err


def test_completion_knows_commands_and_flags() -> None:
    script = app.generate_completion(shell="bash")
    assert all(word in script for word in ("range-test", "--dry-run", "push-data"))


def test_the_demo_is_told_a_language_also_as_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[list[str]] = []
    monkeypatch.setattr("tltasks.cli.commands._push_space", lambda *given: flags.append(given[-1]))
    assert main(["demo", "ada/x", "--space", "ada/page", "--language", "es", "--top-k", "2"]) == 0
    assert flags == [["--language", "es", "--top-k", "2"]]
