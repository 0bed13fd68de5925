"""The model card: a finished run as its README.md on the Hub, from the templates in hub_cards/.

Two decisions that look odd on the Hub's side:
An adapter merged into its base is published as `finetune`, since the Hub means by `merge` a mixture of several models.
Models that transformers runs by its timm wrapper are `transformers`: timm cannot load what the wrapper saves
(transformers 5.24, modeling_timm_wrapper.py: every weight is prefixed `timm_model.`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup
from pydantic import BaseModel

from tltasks.config.adaptation import Adapt, Head
from tltasks.config.data import BUILDERS, Data, Source
from tltasks.config.loading import recipe_text
from tltasks.config.model import FROZEN_TRANSFORMER
from tltasks.config.recipe import Emissions, Recipe, RunPlan, as_written, is_on_hub, plan_run
from tltasks.config.stage import StagePlan
from tltasks.config.tasks import TASKS
from tltasks.results.comparison import changes
from tltasks.results.result import RunResult, Score, StageResult, load_result, show_duration

UNKNOWN = "–"
METHODS = {
    "full": "all weights",
    "head": "the head",
    "lora": "LoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "ia3": "(IA)³",
    "bitfit": "the biases",
    "prompt": "prompt tuning",
}


def card_for_repo(output: Path, recipe: Recipe, repo: str, *, merged: bool = False) -> str:
    """The card of a finished results folder, for a repository that need not be the recipe's.

    `merged` says that the weights of an adapter are published together with its base.
    """
    result = load_result(output / "result.json")
    adapter = result.best.weights.adapter and not merged
    return render_card(result, plan_run(recipe), adapter=adapter, repo=repo)


def render_card(result: RunResult, plan: RunPlan, *, adapter: bool, repo: str | None) -> str:
    """README.md: front matter and text. Without a repository its snippet loads ./model of the results folder."""
    stage, recipe = result.best, plan.recipe
    own = next(it for it in plan.stages if it.name == stage.name)
    lineage = plan.ancestry(own)
    trained = [it for it in lineage if it.kind.trains]
    base = _base(lineage[0], result.stages[lineage[0].index])
    title = repo.rsplit("/", 1)[-1] if repo else Path(recipe.output).name
    written = as_written(recipe)
    shared_recipe = _without_folders(written)
    stated = recipe.hub.emissions
    template = templates().get_template(TASKS[stage.task].card_template)
    page = template.make_module(
        {
            "title": title,
            "where": repo or "./model",
            "local": repo is None,
            "adapter": adapter,
            "headline": result.headline,
            "split": result.headline.split,
            "score": stage.metrics[result.headline.split],
            "stage": stage,
            "stages": result.stages,
            "base": base,
            "bases": [_base(*both) for both in zip(plan.stages, result.stages, strict=True)],
            "method": _method(own),
            "methods": [_method(it) for it in plan.stages],
            "lineage": lineage,
            "trained_on": list(dict.fromkeys(_place(it.data) for it in trained)),
            "chosen_by_validation": stage.training is not None
            and stage.training.best_step is not None
            and own.stage.keep == "best",
            "comparisons": list(_comparisons(result, stage)),
            "shifts": list(_shifts(result, stage)),
            "forgotten": [change.sentence for change in changes(result, stage)],
            "trust": ", trust_remote_code=True" if lineage[0].model.trust_remote_code else "",
            "timm": stage.weights.model_type == "timm_wrapper",
            "hardware": result.hardware,
            "total_seconds": sum(it.seconds for it in result.stages),
            "stated": stated,
            "grams": None if stated is None else _grams(stated, result),
            "versions": result.versions,
            "recipe_sha256": result.recipe_sha256,
            "recipe_block": _fenced(recipe_text(shared_recipe), "yaml"),
            "shortened": shared_recipe != written,
            "seed": recipe.seed,
            "licence": recipe.hub.licence,
        }
    )
    metrics: dict[str, dict[str, Any]] = page.metrics  # type: ignore[attr-defined]
    datasets = [place.path for place in dict.fromkeys(_place(it.data) for it in trained) if place.on_hub]
    carbon: dict[str, Any] = {} if stated is None else {"co2_eq_emissions": _emissions(stated, result)}
    data = ModelCardData(
        base_model=base.name if base.on_hub and not base.random else None,
        base_model_relation=_relation(base, adapter=adapter, trained=bool(trained)),
        library_name="peft" if adapter else "transformers",
        pipeline_tag=getattr(page, "pipeline_tag", stage.task),
        license=recipe.hub.licence,
        language=recipe.hub.language or None,
        datasets=[path.removeprefix("datasets/") for path in datasets] or None,
        metrics=_measured(stage, metrics),
        model_name=title,
        eval_results=list(_evaluations(own, stage, metrics)),
        tags=["tltasks", *([own.stage.adapt.method] if adapter else [])],
        **carbon,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{str(page).strip()}\n"


# --------------------------------------------------------------------------------------------- lineage


@dataclass(frozen=True)
class Place:
    """A checkpoint or data set as its reader may know it; for a local one the folder's name alone."""

    name: str
    on_hub: bool
    path: str = ""
    """Address below huggingface.co."""


@dataclass(frozen=True)
class Base(Place):
    """Where the weights of a stage come from."""

    revision: str = "main"
    random: bool = False
    """Whether only its architecture was used."""


def _grams(stated: Emissions, result: RunResult) -> float:
    devices = int(result.hardware.get("processes", 1))
    return stated.grams(sum(it.seconds for it in result.stages), devices=devices)


def _emissions(stated: Emissions, result: RunResult) -> dict[str, Any]:
    """As the Hub has it: https://huggingface.co/docs/hub/model-cards-co2."""
    location = {"geographical_location": stated.location} if stated.location else {}
    return {
        "emissions": float(f"{_grams(stated, result):.3g}"),
        "source": "running time x the power and the grid's intensity that the recipe states",
        "training_type": "fine-tuning" if result.stages[0].kind != "pretrain" else "pre-training",
        "hardware_used": result.hardware.get("device_name", "unknown"),
        **location,
    }


def _base(plan: StagePlan, stage: StageResult) -> Base:
    name = plan.model.name
    on_hub = is_on_hub(name)
    revision = stage.weights.commit or plan.model.revision
    shown = name if on_hub else Path(name).name
    return Base(shown, on_hub, name if on_hub else "", revision, random=plan.kind.weights == "random")


def _relation(base: Base, *, adapter: bool, trained: bool) -> str | None:
    if not base.on_hub or base.random or not trained:
        return None
    return "adapter" if adapter else "finetune"


def _place(data: Source) -> Place:
    name = data.name or ""
    if is_on_hub(name):
        return Place(f"{name} ({data.config})" if data.config else name, True, f"datasets/{name}")
    if name in BUILDERS:
        return Place(Path(data.dir).name if data.dir else f"{name} files", False)
    return Place(Path(name).name, False)


def _method(plan: StagePlan) -> str:
    adapt = Adapt(head=Head()) if plan.kind.cached else plan.stage.adapt
    if not plan.kind.trains:
        return "nothing"
    if getattr(plan.model, "as_", None) == FROZEN_TRANSFORMER and adapt.method == "full":
        return "the input layer, normalisation layers, positions and the head"
    return METHODS.get(adapt.method) or (adapt.peft.type if adapt.peft else adapt.method)


def _without_folders(recipe: Recipe) -> Recipe:
    """The recipe with the name alone of every folder and file that is not relative to it."""

    def shortened(value: Any, *, is_path: bool) -> Any:
        if isinstance(value, BaseModel):
            changes = {
                key: new
                for key in value.model_fields_set
                if (new := shortened(own := getattr(value, key), is_path=key in {"name", "dir", "files", "output"}))
                != own
            }
            return value.model_copy(update=changes)
        if isinstance(value, list):
            return [shortened(item, is_path=is_path) for item in value]
        if isinstance(value, dict):
            return {key: shortened(item, is_path=is_path) for key, item in value.items()}
        away = is_path and isinstance(value, str) and (value.startswith(("~", "..")) or Path(value).is_absolute())
        return Path(value).name if away else value

    short: Recipe = shortened(recipe, is_path=False)
    return short


# ------------------------------------------------------------------------------------------ comparisons


@dataclass(frozen=True)
class Comparison:
    """The model beside a baseline on the same examples."""

    split: str
    baseline: str
    score: Score
    difference: float | None
    ci95: Sequence[float | None]
    verdict: str


@dataclass(frozen=True)
class Shift:
    """A test set of another domain beside the split of the headline."""

    split: str
    score: Score
    difference: float | None
    verdict: str | None
    overlaps: bool = False
    """Whether the intervals of the two have values in common."""


def _comparisons(result: RunResult, stage: StageResult) -> Iterator[Comparison]:
    for split, ours in stage.metrics.items():
        for name, by_split in stage.baselines.items():
            if split in by_split:
                theirs = by_split[split]
                interval = theirs.difference_ci95 or (None, None)
                verdict = _verdict(interval, higher_is_better=result.headline.higher_is_better)
                yield Comparison(split, name, theirs, _difference(ours, theirs), interval, verdict)


def _verdict(interval: Sequence[float | None], *, higher_is_better: bool) -> str:
    """
    >>> _verdict([0.1, 0.2], higher_is_better=True), _verdict([0.1, 0.2], higher_is_better=False)
    ('beats', 'does worse than')
    >>> _verdict([-0.1, 0.2], higher_is_better=True)
    'does neither clearly better nor clearly worse than'
    """
    low, high = interval
    if not (_is_number(low) and _is_number(high)):
        return "cannot be compared with"
    if low <= 0 <= high:
        return "does neither clearly better nor clearly worse than"
    return "beats" if (low > 0) == higher_is_better else "does worse than"


def _shifts(result: RunResult, stage: StageResult) -> Iterator[Shift]:
    deciding = stage.metrics[result.headline.split]
    for split, score in stage.metrics.items():
        if split in {"test", "validation"} or split == result.headline.split:
            continue
        difference = _difference(score, deciding)
        ends = (*score.ci95, *deciding.ci95)
        if difference is None or not all(map(_is_number, ends)):
            yield Shift(split, score, difference, None)
        elif ends[0] <= ends[3] and ends[2] <= ends[1]:
            yield Shift(split, score, difference, "about as well as", overlaps=True)
        else:
            better = (difference > 0) == result.headline.higher_is_better
            yield Shift(split, score, difference, "better than" if better else "worse than")


def _difference(ours: Score, theirs: Score) -> float | None:
    a, b = ours.values.get(ours.headline), theirs.values.get(ours.headline)
    return a - b if _is_number(a) and _is_number(b) else None


def _is_number(value: float | None) -> TypeGuard[float]:
    """Numbers that are not finite become null in result.json."""
    return value is not None and math.isfinite(value)


# ----------------------------------------------------------------------------------------- front matter


def _measured(stage: StageResult, metrics: dict[str, dict[str, Any]]) -> list[str]:
    """The Hub's names of the metrics that were measured."""
    names = {name for score in stage.metrics.values() for name in score.values}
    return list(dict.fromkeys(about["hub"] for name, about in metrics.items() if name in names and "hub" in about))


def _evaluations(plan: StagePlan, stage: StageResult, metrics: dict[str, dict[str, Any]]) -> Iterator[EvalResult]:
    """Each measured number in the Hub's model-index."""
    for split, score in stage.metrics.items():
        data, spec = _evaluated_on(plan.data, split)
        name, shown = data.name or "", _place(data).name
        on_hub = is_on_hub(name) and not data.dir and not data.files and spec is not None
        revision = data.revision if on_hub and re.fullmatch(r"[0-9a-f]{40}", data.revision or "") else None
        for key, about in metrics.items():
            if "hub" in about and _is_number(value := score.values.get(key)):
                yield EvalResult(
                    task_type=stage.task,
                    task_name=stage.task.replace("-", " ").capitalize(),
                    dataset_type="local" if Path(name).is_absolute() else name,
                    dataset_name=shown if on_hub or shown == split else f"{shown} ({split})",
                    dataset_config=data.config if on_hub else None,
                    # Of local data our own name of the split: theirs may be alike for several test sets.
                    dataset_split=spec if on_hub else split,
                    dataset_revision=revision,
                    metric_type=about["hub"],
                    metric_name=about["name"],
                    metric_args=about.get("args"),
                    metric_value=round(value, 6),
                )


def _evaluated_on(data: Data, split: str) -> tuple[Source, str | None]:
    """Source and split of a set of examples; None for a share held out of another split."""
    if split in {"test", "validation"}:
        spec = getattr(data.splits, split)
        return data, spec if isinstance(spec, str) else None
    extra = data.extra_test[split]
    spec = extra.split or data.splits.test
    return data.source_of(extra), spec if isinstance(spec, str) else None


# ------------------------------------------------------------------------------------------- templates


def templates() -> jinja2.Environment:
    """The templates of the checkout, or inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "hub_cards"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(beside if beside.is_dir() else package / "hub_cards"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # so that what macros return is Markup, and not cleaned again
        finalize=_finalize,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": lambda n: f"{n:,}",
        "number": _number,
        "signed": lambda x: f"{x:+.3f}" if _is_number(x) else UNKNOWN,
        "interval": lambda ends: f"{_number(ends[0])} to {_number(ends[1])}",
        "width": lambda ends: ends[1] - ends[0] if all(map(_is_number, ends)) else None,
        "given": lambda value: UNKNOWN if value is None else value,
        "duration": show_duration,
        "grams": lambda n: f"{n / 1000:.2g} kg" if n >= 1000 else f"{n:.2g} g",
        "gibibytes": lambda n: f"{n / 2**30:.1f} GiB",
        "some": lambda rows: ", ".join(rows[:10]) + (f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""),
        "python": lambda text: Markup(json.dumps(text, ensure_ascii=False)),  # noqa: S704 (a literal, in a code block)
    }
    environment.filters |= filters
    return environment


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if _is_number(value) else UNKNOWN


def _finalize(value: Any) -> Any:
    return value if isinstance(value, (Markup, int, float)) else clean(str(value))


def clean(text: str) -> Markup:
    """Data as one line of plain text wherever it stands in Markdown: no markup, HTML, link, table cell or code of it.

    >>> str(clean("a|b\\n*c* <img>"))
    'a&#124;b &#42;c&#42; &#60;img&#62;'
    """
    joiners = "\u200c\u200d"  # which Persian, Indic scripts and emoji need; other invisible characters can deceive
    line = " ".join("".join(c if c.isprintable() or c in joiners else " " for c in text).split())
    special = r"[&<>\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\."
    return Markup(re.sub(special, lambda found: f"&#{ord(found.group())};", line))  # noqa: S704 (what this function is for)


def _fenced(text: str, language: str) -> Markup:
    """A code block whose fence is longer than any in the text.

    >>> print(_fenced("```", "yaml"))
    ````yaml
    ```
    ````
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")  # noqa: S704 (as above)
