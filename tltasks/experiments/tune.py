"""The story of `tltasks tune`: settings of a recipe are tried, the best by validation is tested once.

Optuna (https://optuna.org) proposes and prunes; a trial is a cell of an experiment, so that none is carried out twice.
"""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tltasks.config.loading import recipe_text
from tltasks.config.yaml_reader import read_text
from tltasks.errors import DataError, Interrupted, RecipeError
from tltasks.experiments.plan import Record, cell_folder, plan_cells
from tltasks.experiments.search_report import write_search_report
from tltasks.experiments.search_space import Base, Range, Search, load_search, trial_cell
from tltasks.experiments.trials import Failure, carry_out, write_journal
from tltasks.results.result import RunResult, finite
from tltasks.runs.story import run
from tltasks.runtime.files import locked, write_json, write_text
from tltasks.tasks import load_adapter

SCHEMA = 1


class Pruned(Interrupted):
    """A trial was ended because others had done better by then."""


@dataclass(frozen=True)
class Trial:
    """A setting and what became of it."""

    number: int
    settings: dict[str, Any]
    state: str
    """`finished`, `pruned`, `failed` or `running`."""
    value: float | None
    """Validation score; of a pruned trial, the best until then."""
    curve: list[float]
    """Validation score at each evaluation."""
    message: str = ""


def tune(path: Path, overrides: list[str], *, output: Path | None, dry_run: bool) -> int:
    """Search, or go on with it, and return how many trials failed; a dry run only says what there is to choose.

    Raises Interrupted when the process is told to stop, and a TltasksError for what the user can mend.
    """
    optuna = _optuna()
    console = Console(stderr=True, highlight=False)
    search, base = load_search(path, overrides)
    output = output or Path(search.output).expanduser()
    higher = load_adapter(trial_cell(base, 0, {}).recipe.task).higher_is_better
    if dry_run:
        _show_space(console, search, base)
        return 0
    if output.is_dir() and any(output.iterdir()) and not (output / "trials.jsonl").is_file():
        raise DataError(f"output {output}: is not empty and holds no search; name another folder with --output.")
    with locked(output):
        (output / "cells").mkdir(parents=True, exist_ok=True)
        study = _study(optuna, search, output, higher_is_better=higher)
        _refuse_other_spaces(search, study, output)
        if not study.trials:
            study.enqueue_trial(base.own(search.space))
        try:
            while (number := _next(optuna, study)) < search.trials:
                _try(optuna, console, study, search, base, output, number)
        finally:
            trials = _described(study)
            if any(trial.state == "finished" for trial in trials):
                _write(path, search, study, output, higher_is_better=higher, tested=None)
        best = _best(trials, higher_is_better=higher)
        if best is None:
            raise DataError(f"no trial could be finished; the first: {trials[0].message}\nLogs are in {output}/logs.")
        tested = _test(base, trials, best, output)
        _write(path, search, study, output, higher_is_better=higher, tested=tested)
    _show(console, trials, best, tested, output)
    return sum(trial.state == "failed" for trial in trials)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RecipeError("tune: needs Optuna, which is not installed: pip install 'tltasks[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _study(optuna: Any, search: Search, output: Path, *, higher_is_better: bool) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(output / "trials.jsonl"))
    pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=search.warmup_evaluations)
        if search.prune == "median"
        else optuna.pruners.NopPruner()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the journal is experimental
        return optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(backend),
            direction="maximize" if higher_is_better else "minimize",
            pruner=pruner,
            load_if_exists=True,
        )


def _refuse_other_spaces(search: Search, study: Any, output: Path) -> None:
    known = {"space": search.model_dump(mode="json")["space"], "seed": search.seed, "sampler": search.sampler}
    before = study.user_attrs.get("search")
    if before is not None and before != known:
        raise DataError(
            f"output {output}: holds a search in another space, or with another seed or sampler; name another folder "
            "with --output."
        )
    study.set_user_attr("search", known)


def _next(optuna: Any, study: Any) -> int:
    """Number of the trial to carry out: one that was cut, or a new one."""
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    done = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()]
    return running[0].number if running else len(done)


def _try(optuna: Any, console: Console, study: Any, search: Search, base: Base, output: Path, number: int) -> None:
    """Propose a setting, or take up the one that was cut, and carry it out."""
    cut = [t for t in study.get_trials(deepcopy=False) if t.number == number and not t.state.is_finished()]
    cut = [t for t in cut if t.state == optuna.trial.TrialState.RUNNING]
    if cut:
        trial: Any = optuna.trial.Trial(study, cut[0]._trial_id)
    else:
        # Each trial has a sampler of its own, so that a search that was stopped goes on as it would have.
        drawn = int(np.random.SeedSequence((search.seed, number)).generate_state(1)[0])
        sampler = optuna.samplers
        study.sampler = (
            sampler.TPESampler(seed=drawn, n_startup_trials=search.startup_trials)
            if search.sampler == "tpe"
            else sampler.RandomSampler(seed=drawn)
        )
        trial = study.ask()
    settings = {key: _suggest(trial, key, choice) for key, choice in search.space.items()}
    curve = list(cut[0].intermediate_values.values()) if cut else []
    try:
        (item,) = plan_cells([trial_cell(base, number, settings)], output)
        last = item.cell.recipe.stages[-1].name or item.cell.recipe.stages[-1].stage
        ended = item.record or carry_out(
            item, output, keep_weights=False, watch=lambda stage, value: _watch(trial, curve, stage == last, value)
        )
    except Pruned:
        shutil.rmtree(cell_folder(output, item.id), ignore_errors=True)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        told = f"pruned after {len(curve)} evaluations at {curve[-1]:.4g}"
    except RecipeError as error:  # keys that do not go together
        told = _fail(optuna, study, trial, str(error))
    else:
        told = _tell(optuna, study, trial, ended)
    shown = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())
    console.print(f"[{number + 1}/{search.trials}] {shown}: {told}", soft_wrap=True, markup=False)


def _suggest(trial: Any, key: str, choice: Any) -> Any:
    if not isinstance(choice, Range):
        return trial.suggest_categorical(key, choice)
    if choice.whole:
        step = {} if choice.log else {"step": int(choice.step or 1)}
        return trial.suggest_int(key, choice.low, choice.high, log=choice.log, **step)
    return trial.suggest_float(key, choice.low, choice.high, log=choice.log, step=choice.step)


def _watch(trial: Any, curve: list[float], counts: bool, value: float) -> None:
    """Report an evaluation of the last stage; raises Pruned where the trial is not worth going on."""
    if not counts:
        return
    curve.append(value)
    trial.report(value, len(curve))
    if trial.should_prune():
        raise Pruned("pruned")


def _tell(optuna: Any, study: Any, trial: Any, ended: Record | Failure) -> str:
    if isinstance(ended, Failure):
        return _fail(optuna, study, trial, ended.message)
    score = ended["targets"]["validation"]
    study.tell(trial, score["value"])
    return f"{ended['metric']} {score['value']:.4g}"


def _fail(optuna: Any, study: Any, trial: Any, message: str) -> str:
    trial.set_user_attr("message", message)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return f"failed: {message.splitlines()[0]}"


# -------------------------------------------------------------------------------------------- results


def _described(study: Any) -> list[Trial]:
    states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "WAITING":
            continue
        values = [trial.value] if trial.value is not None else list(trial.intermediate_values.values())[-1:]
        found.append(
            Trial(
                trial.number,
                dict(trial.params),
                states.get(trial.state.name, "running"),
                values[0] if values else None,
                list(trial.intermediate_values.values()),
                trial.user_attrs.get("message", ""),
            )
        )
    return found


def _best(trials: list[Trial], *, higher_is_better: bool) -> Trial | None:
    sign = 1 if higher_is_better else -1
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return max(finished, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _test(base: Base, trials: list[Trial], best: Trial, output: Path) -> dict[str, RunResult]:
    """The best setting and the recipe's own, trained again with the test set there; both stay as results folders."""
    found = {}
    for name, trial in {"best": best, "own": trials[0]}.items():
        if name == "own" and trial.settings == best.settings:
            continue
        recipe, problems = base.recipe(trial.settings, tests=True)
        assert recipe is not None
        assert not problems
        write_text(output / f"{name}.yaml", recipe_text(recipe.model_copy(update={"output": str(output / name)})))
        if trial.state == "failed":
            continue
        write_journal(output, name, "tested")
        result = run(recipe, output=output / name, resume=True, push=False, dry_run=False)
        assert result is not None
        found[name] = result
    return found


def _write(
    path: Path,
    search: Search,
    study: Any,
    output: Path,
    *,
    higher_is_better: bool,
    tested: dict[str, RunResult] | None,
) -> None:
    trials = _described(study)
    result = {
        "schema": SCHEMA,
        "name": path.stem,
        "search": read_text(path),
        "higher_is_better": higher_is_better,
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "importance": _importance(study),
        "tested": {name: dataclasses.asdict(run.headline) for name, run in (tested or {}).items()},
    }
    write_json(output / "result.json", finite(result))
    write_search_report(output / "report.html", list(search.space), finite(result))


def _importance(study: Any) -> dict[str, float]:
    """How much of the spread of scores each key explains (Hutter et al.,
    https://proceedings.mlr.press/v32/hutter14.html), where there are trials enough to tell."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}
    return {key: float(share) for key, share in found.items() if np.isfinite(share)}


# ----------------------------------------------------------------------------------------------- say


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show_space(console: Console, search: Search, base: Base) -> None:
    table = Table(title=f"{search.trials} trials (nothing was trained or written)", title_justify="left")
    for name in ("key", "to choose from", "the recipe's own"):
        table.add_column(name)
    own = base.own(search.space)
    for key, choice in search.space.items():
        if isinstance(choice, Range):
            shown = f"{choice.low:g} to {choice.high:g}{', by the logarithm' if choice.log else ''}"
        else:
            shown = ", ".join(map(str, choice))
        table.add_row(key, shown, _short(own[key]) if key in own else "none of them")
    console.print(table)


def _show(console: Console, trials: list[Trial], best: Trial, tested: dict[str, RunResult], output: Path) -> None:
    counts = {state: sum(trial.state == state for trial in trials) for state in ("finished", "pruned", "failed")}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    for key, value in best.settings.items():
        console.print(f"  {key}: {_short(value)}", markup=False)
    for name, result in tested.items():
        headline = result.headline
        low, high = headline.ci95
        which = "the best setting" if name == "best" else "the recipe's own"
        interval = f"95 % interval {low:.3f} to {high:.3f}"
        console.print(f"{which}: {headline.metric} {headline.value:.3f} on {headline.split} ({interval})")
    console.print(f"recipe   {output / 'best.yaml'}\nreport   {output / 'report.html'}", soft_wrap=True, markup=False)
