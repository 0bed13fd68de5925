"""The story of `tltasks tune`: settings of a recipe are tried, the best by validation is tested once.

Optuna (https://optuna.org) proposes and prunes; its trials are trials of an experiment, so that none is carried out
twice.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from tltasks.config.loading import Overrides, recipe_text
from tltasks.errors import DataError, RecipeError
from tltasks.experiments.charts import TRIAL_MARKS, Picture, draw_by_key, draw_progress
from tltasks.experiments.contents import plan_trials
from tltasks.experiments.execution import Pruned, Workers, carry_out, crew, log_file
from tltasks.experiments.experiment import Given, read_source
from tltasks.experiments.report import text_table, write_page
from tltasks.experiments.search_space import BaseRecipe, Choice, Range, Search, Settings, Value, load_search
from tltasks.experiments.trials import (
    SEARCH_JOURNAL,
    Failure,
    Outcome,
    PlannedTrial,
    read_record,
    results_folder,
    trial_folder,
    write_journal,
)
from tltasks.reports.console import open_terminal
from tltasks.reports.formatting import show_interval, show_number
from tltasks.results.metric_names import metric_in_text
from tltasks.results.result import Headline
from tltasks.runs.callbacks import EvaluationInfo
from tltasks.runs.story import run
from tltasks.runtime import cluster
from tltasks.runtime.files import write_json, write_text
from tltasks.tasks import load_adapter

try:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.storages.journal import JournalFileBackend
except ImportError as error:
    raise RecipeError("tune: needs Optuna, which is not installed: pip install 'tltasks[tune]'") from error

SCHEMA = 1
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class SearchTrial:
    """A setting and what became of it."""

    number: int
    settings: Settings
    state: str
    """`finished`, `pruned`, `failed` or `running`."""
    value: float | None
    """Validation score; of a pruned trial, the last until then."""
    curve: list[float]
    """Validation score at each evaluation."""
    message: str = ""


@dataclass(frozen=True)
class SearchResult:
    """The settings that were tried, and the best beside the recipe's own on the test set."""

    name: str
    search: str
    """As it was written."""
    higher_is_better: bool
    trials: list[SearchTrial]
    importance: dict[str, float]
    """Share of the spread of scores that each key explains."""
    tested: dict[str, Headline]
    """Of `best` and `own`; the latter is missing where it is the best."""
    schema: int = SCHEMA

    @property
    def best(self) -> SearchTrial | None:
        """The finished trial with the best validation score."""
        sign = 1 if self.higher_is_better else -1
        finished = [(sign * t.value, t) for t in self.trials if t.state == "finished" and t.value is not None]
        return max(finished, key=lambda pair: pair[0], default=(0, None))[1]

    def count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each trial: number, state, validation score, evaluations, settings."""
        return pd.DataFrame(
            {"trial": t.number, "state": t.state, "value": t.value, "evaluations": len(t.curve), **t.settings}
            for t in self.trials
        )

    def _repr_html_(self) -> str:
        tested = "".join(f"<li>{show_tested(name, headline)}</li>" for name, headline in self.tested.items())
        return f"<ul>{tested}</ul>{self.to_pandas().to_html(index=False)}"


def tune(
    search: Given,
    overrides: Overrides = (),
    *,
    output: Path | str | None = None,
    workers: Workers | None = None,
    console: Console | None = None,
    trust_remote_code: bool = False,
) -> SearchResult:
    """Search, or go on with it, and test the best setting beside the recipe's own.

    `search` is a YAML file or its keys, `overrides` such as `trials=30` take the place of what it says, `output` that
    of its results folder; `workers` spread trials by Ray, and a `console` is told of each. Raises DataError when no
    trial could be finished, Interrupted or KeyboardInterrupt when told to stop, and a TltasksError for what else the
    user can mend.
    """
    console = console or open_terminal(quiet=True)
    source = read_source(search, (), "search")
    keys, base = load_search(search, overrides, trust_remote_code=trust_remote_code)
    output = Path(output or keys.output).expanduser()
    with results_folder(output, "search"):
        study = SearchStudy(keys, base, output)

        def write(tested: dict[str, Headline]) -> SearchResult:
            higher, trials = study.higher_is_better, study.trials()
            result = SearchResult(source.name, source.text, higher, trials, study.importance(), tested)
            write_results(result, keys, output)
            return result

        result: SearchResult | None = None
        try:
            for number, settings, said in study.in_turn() if workers is None else study.on_ray(workers):
                shown = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in settings.items())
                console.print(f"[{number + 1}/{keys.trials}] {shown}: {said}", soft_wrap=True)
        finally:
            if any(trial.state == "finished" for trial in study.trials()):
                result = write({})
        if result is None or result.best is None:
            first = study.trials()[0].message
            raise DataError(f"no trial could be finished; the first: {first}\nLogs are in {output}/logs.")
        console.print(f"testing the best; logs are in {output}/logs", soft_wrap=True)
        result = write(_test(base, result.trials[0], result.best, output))
    show_result(console, result, output)
    return result


# --------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class _Opened:
    """A trial that is carried out."""

    trial: optuna.Trial
    last: str
    """Stage by which it is judged."""
    steps: list[int]
    """Of its evaluations."""
    reported: int
    """Evaluations before it was cut."""


class SearchStudy:
    """Optuna's study of a search, kept in `trials.jsonl` of the results folder.

    Raises DataError for a folder that holds a search in another space.
    """

    def __init__(self, search: Search, base: BaseRecipe, output: Path) -> None:
        self.search, self.base, self.output = search, base, output
        self._opened: dict[int, _Opened] = {}
        self.higher_is_better = load_adapter(base.trial(0, {}).recipe.task).higher_is_better
        pruner: BasePruner = optuna.pruners.NopPruner()
        if search.prune == "median":
            pruner = optuna.pruners.MedianPruner(search.startup_trials, search.warmup_evaluations)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = output / SEARCH_JOURNAL
        _mend_journal(journal)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the journal is experimental
            backend = JournalFileBackend(str(journal.absolute()))
            self.study = optuna.create_study(
                study_name="search",
                storage=optuna.storages.JournalStorage(backend),
                direction="maximize" if self.higher_is_better else "minimize",
                pruner=pruner,
                load_if_exists=True,
            )
        known = {"space": search.model_dump(mode="json")["space"], "seed": search.seed, "sampler": search.sampler}
        if self.study.user_attrs.get("search", known) != known:
            raise DataError(
                f"output {output}: holds a search in another space, or with another seed or sampler; name another "
                "folder with --output."
            )
        self.study.set_user_attr("search", known)
        if not self.study.trials:
            self.study.enqueue_trial(base.own_settings(search.space))

    def to_do(self) -> list[int]:
        """Numbers of the trials that are to be carried out: those that were cut, and new ones."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
        cut = [trial.number for trial in trials if trial.state.name == "RUNNING"]
        return [*cut, *range(len(trials), self.search.trials)]

    def in_turn(self) -> Iterator[tuple[int, Settings, str]]:
        """Carry the trials out one after another: number, setting, and what became of it."""
        for number in self.to_do():
            settings, item, said = self.open(number)
            if item is not None:
                said = self.close(number, item, self._carry_out(number, item))
            yield number, settings, said

    def _carry_out(self, number: int, item: PlannedTrial) -> Outcome | Pruned:
        def on_evaluation(found: EvaluationInfo) -> None:
            if said := self.report(number, found):
                raise Pruned(said)

        try:
            return item.record or carry_out(item, self.output, keep_weights=False, on_evaluation=on_evaluation)
        except Pruned as pruned:
            return pruned

    def on_ray(self, workers: Workers) -> Iterator[tuple[int, Settings, str]]:
        """The same with as many trials at once as there is room for.

        Another study of the same file stands in a process of Ray's, to which trials report; this one reads there.
        """
        left = self.to_do()
        if not left:
            return
        with crew("tune --engine ray", self.output, workers, keep_weights=False) as made:
            ask, place = made.ray.get, cluster.here(made.ray)
            study = made.ray.remote(num_cpus=0, scheduling_strategy=place)(SearchStudy)
            study = study.remote(self.search, self.base, self.output.absolute())
            opened: dict[str, tuple[int, Settings]] = {}

            def end() -> tuple[int, Settings, str]:
                item, outcome = made.next()
                number, settings = opened.pop(item.id)
                return number, settings, ask(study.close.remote(number, item, outcome))

            while left:
                while len(made.running) >= made.rooms:  # what has ended is known when the next is proposed
                    yield end()
                number = left.pop(0)
                settings, item, said = ask(study.open.remote(number))
                while item is not None and item.id in opened:
                    yield end()
                record = None if item is None else read_record(self.output, item.id)  # of the same setting
                if item is None or record is not None:
                    yield number, settings, said or ask(study.close.remote(number, item, record))
                    continue
                opened[item.id] = number, settings
                made.start(item, study.report, number)
            while made.running:
                yield end()

    def open(self, number: int) -> tuple[Settings, PlannedTrial | None, str]:
        """Propose a setting, or take up the one that was cut; its trial, or else why it cannot be one."""
        trial, reported = self._ask(number)
        settings = {key: _suggest(trial, key, choice) for key, choice in self.search.space.items()}
        try:
            (item,) = plan_trials([self.base.trial(number, settings)], self.output)
        except RecipeError as error:  # keys that do not go together
            return settings, None, self._fail(trial, str(error))
        last = item.trial.recipe.stages[-1].name or item.trial.recipe.stages[-1].stage
        self._opened[number] = _Opened(trial, last, list(trial.user_attrs.get("steps", [])), reported)
        return settings, item, ""

    def report(self, number: int, found: EvaluationInfo) -> str | None:
        """Enter an evaluation of a trial's last stage; why the trial is not worth going on, or None."""
        it = self._opened[number]
        if found.stage != it.last:
            return None
        if found.step not in it.steps:  # else a kill came between it and the next checkpoint
            it.steps.append(found.step)
            if len(it.steps) > it.reported:
                it.trial.report(found.value, len(it.steps))
            it.trial.set_user_attr("steps", it.steps)
        if it.trial.should_prune():
            return f"pruned after {len(it.steps)} evaluations at {found.value:.4g}"
        return None

    def close(self, number: int, item: PlannedTrial, outcome: Outcome | Pruned) -> str:
        """Enter the end of a trial, and tell of it."""
        trial = self._opened.pop(number).trial
        if isinstance(outcome, Pruned):
            shutil.rmtree(trial_folder(self.output, item.id), ignore_errors=True)
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return str(outcome)
        if isinstance(outcome, Failure):
            return self._fail(trial, outcome.message)
        scored = outcome.targets["validation"]
        judged = [outcome.metric, scored.fingerprint]
        if self.study.user_attrs.get("judged", judged) != judged:
            return self._fail(trial, "judged by other rows, or another metric, than the first trial; leave its key out")
        self.study.set_user_attr("judged", judged)
        self.study.tell(trial, scored.value)
        return f"{outcome.metric} {scored.value:.4g}"

    def _fail(self, trial: optuna.Trial, message: str) -> str:
        trial.set_user_attr("message", message)
        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"failed: {message.splitlines()[0]}"

    def _ask(self, number: int) -> tuple[optuna.Trial, int]:
        """A trial, and how many of its evaluations were reported before it was cut."""
        # Each trial has a sampler of its own, so that a search that was stopped goes on as it would have.
        seed = int(np.random.SeedSequence((self.search.seed, number)).generate_state(1)[0])
        self.study.sampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.search.startup_trials)
            if self.search.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        for cut in self.study.get_trials(deepcopy=False):
            if cut.number == number and cut.state.name == "RUNNING":
                return optuna.Trial(self.study, cut._trial_id), len(cut.intermediate_values)
        return self.study.ask(), 0

    def trials(self) -> list[SearchTrial]:
        """Every setting that was proposed, in order."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            curve = list(trial.intermediate_values.values())
            value = next((v for v in (trial.value, *curve[-1:]) if v is not None and math.isfinite(v)), None)
            message = trial.user_attrs.get("message", "")
            if state := STATES.get(trial.state.name):
                found.append(SearchTrial(trial.number, dict(trial.params), state, value, curve, message))
        return found

    def importance(self) -> dict[str, float]:
        """Share of the spread of scores that each key explains (Hutter et al.,
        https://proceedings.mlr.press/v32/hutter14.html), where more trials are finished than there are keys."""
        if sum(trial.state.name == "COMPLETE" for trial in self.study.get_trials(deepcopy=False)) <= len(
            self.search.space
        ):
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
                found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
            except (ValueError, RuntimeError, ZeroDivisionError):
                return {}
        return {key: float(share) for key, share in found.items() if np.isfinite(share)}


def _mend_journal(journal: Path) -> None:
    """Undo what a kill in the midst of writing has left: Optuna's lock, for which it would wait, and half a line.

    The folder is locked, so neither can be that of another process.
    """
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        left.unlink()
    os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def _suggest(trial: optuna.Trial, key: str, choice: Choice) -> Value:
    if not isinstance(choice, Range):
        value: Value = trial.suggest_categorical(key, choice)
        return value
    if choice.whole:
        step = 1 if choice.log else int(choice.step or 1)
        return trial.suggest_int(key, int(choice.low), int(choice.high), log=choice.log, step=step)
    return trial.suggest_float(key, choice.low, choice.high, log=choice.log, step=choice.step)


def _test(base: BaseRecipe, own: SearchTrial, best: SearchTrial, output: Path) -> dict[str, Headline]:
    """The best setting and the recipe's own, trained again with the test set there; both stay as results folders."""
    found = {}
    for name, trial in {"best": best, "own": own}.items():
        if name == "own" and trial.settings == best.settings:
            continue
        recipe = base.changed(trial.settings, tests=True)
        write_text(output / f"{name}.yaml", recipe_text(recipe.model_copy(update={"output": str(output / name)})))
        if trial.state == "failed":
            continue
        write_journal(output, name, "tested")
        with log_file(output / "logs" / f"{name}.log"):
            found[name] = run(recipe, output=output / name, resume=True).headline
    return found


# -------------------------------------------------------------------------------------------- results


def write_results(result: SearchResult, search: Search, output: Path) -> None:
    """result.json and report.html."""
    write_json(output / "result.json", result)
    sign = 1 if result.higher_is_better else -1
    scored = [(it, it.value) for it in result.trials if it.value is not None and it.state in TRIAL_MARKS]
    progress = [(trial.number, value, trial.state) for trial, value in scored]
    metrics = {f"validation {metric_in_text(headline.metric)}" for headline in result.tested.values()}
    score = next(iter(metrics), "validation score")
    figure = draw_progress(progress, score, higher_is_better=result.higher_is_better)
    pictures = [Picture("progress", "score by trial, and the best so far", figure)] if len(scored) > 1 else []
    for key, choice in search.space.items():
        points = [(trial.settings[key], value, trial.state) for trial, value in scored]
        if len({value for value, _, _ in points}) > 1:
            log = isinstance(choice, Range) and choice.log
            pictures.append(Picture(key, f"score by {key}", draw_by_key(key, points, score, log=log)))
    order = sorted(scored, key=lambda pair: (pair[0].state != "finished", -sign * pair[1]))
    trials = [trial for trial, _ in order]
    trials += [trial for trial in result.trials if trial not in trials]
    keys = list(result.trials[0].settings)
    write_page(
        output / "report.html",
        "search.html.jinja",
        result=result,
        keys=keys,
        trials=trials,
        pictures=pictures,
        score=score,
    )


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_space(console: Console, search: Search, base: BaseRecipe) -> None:
    """Print what there is to choose from."""
    own = base.own_settings(search.space)
    rows = []
    for key, choice in search.space.items():
        if isinstance(choice, Range):
            shown = f"{choice.low:g} to {choice.high:g}{', by the logarithm' if choice.log else ''}"
        else:
            shown = ", ".join(map(str, choice))
        rows.append([key, shown, _short(own[key]) if key in own else "none of them"])
    title = f"{search.trials} trials (nothing was trained or written)"
    console.print(text_table(title, ["key", "to choose from", "the recipe's own"], [], rows))


def show_result(console: Console, result: SearchResult, output: Path) -> None:
    """Print a short version of the report."""
    counts = {state: result.count(state) for state in ("finished", "pruned", "failed")}
    console.print(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    for key, value in result.best.settings.items() if result.best else ():
        console.print(f"  {key}: {_short(value)}")
    for name, headline in result.tested.items():
        console.print(show_tested(name, headline))
    console.print(f"recipe   {output / 'best.yaml'}\nreport   {output / 'report.html'}", soft_wrap=True)


def show_tested(name: str, headline: Headline) -> str:
    """Score of the best setting, or of the recipe's own, on the test set."""
    which = "the best setting" if name == "best" else "the recipe's own"
    score, interval = show_number(headline.value), show_interval(headline.ci95)
    return f"{which}: {metric_in_text(headline.metric)} {score} on {headline.split} (95 % interval {interval})"
