"""Plans of what a push publishes, and the manifest by which a later push knows its own files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import EvalResultEntry, SpaceCardData, constants, eval_result_entries_to_yaml

from tltasks import __version__
from tltasks.config.recipe import RunPlan, is_on_hub
from tltasks.errors import HubError, first_line
from tltasks.results.result import RunResult, load_result

MANIFEST = ".tltasks.json"
EVALUATION = f"{constants.EVAL_RESULTS_FOLDER}/tltasks.yaml"
BESIDE_MODEL = ("README.md", "recipe.yaml", "result.json", "report.html", "metrics.jsonl")


@dataclass(frozen=True)
class PlannedFile:
    """A file to publish, by the two names that the Hub may know its content by."""

    path: str
    content: Path | bytes = field(repr=False)
    size: int
    sha256: str
    """What the Hub compares for large files."""
    git: str
    """Git's blob id, what the Hub compares for all others."""

    @property
    def ids(self) -> set[str]:
        return {self.sha256, self.git}


RepoKind = Literal["model", "space", "dataset"]


@dataclass(frozen=True)
class UploadPlan:
    """What a push publishes, paths as in the repository; the manifest is the last."""

    files: tuple[PlannedFile, ...]
    kind: RepoKind
    """Of the repository."""
    advice: str
    """What to do where it cannot be published."""
    recipe_sha256: str | None = None
    """Of the run whose results these are."""


def plan_results(
    output: Path,
    run: RunPlan,
    result: RunResult | None = None,
    *,
    card: str | None = None,
    model: Path | None = None,
) -> UploadPlan:
    """Plan the push of a results folder, with another card and another folder in place of its model/ where given.

    `run` is the recipe's plan; `result` is read from the folder where it is not given. Raises HubError if the run has
    not finished.
    """
    model = model or output / "model"
    missing = [name for name in BESIDE_MODEL if not (output / name).is_file()]
    if not any((model / name).is_file() for name in ("config.json", "adapter_config.json")):
        missing.append("model/config.json or model/adapter_config.json")
    if not any(model.glob("*.safetensors")):
        missing.append("model/*.safetensors")
    if missing:
        raise HubError(
            f"{output}: not a finished results folder; it lacks {', '.join(missing)}. "
            "Name the folder of a finished run, or finish it with --resume."
        )
    try:
        result = result or load_result(output / "result.json")
    except ValueError as error:
        raise HubError(f"{output}: result.json cannot be read ({first_line(error)}).") from error
    sources: dict[str, Path | bytes] = {}
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        sources[path.relative_to(model).as_posix()] = path
    # PEFT writes a README.md of its own beside an adapter (peft 0.21, peft_model.py, save_pretrained): the card wins.
    sources |= {name: output / name for name in BESIDE_MODEL}
    if card is not None:
        sources["README.md"] = card.encode()
    if evaluation := _evaluation_results(result, run):
        sources[EVALUATION] = evaluation
    return UploadPlan(
        _with_manifest(sources, recipe_sha256=result.recipe_sha256),
        "model",
        f"Everything is still in {output}; when that is solved: tltasks push {output}",
        result.recipe_sha256,
    )


def plan_space(model: str, options: Sequence[str]) -> UploadPlan:
    """Plan a Space that serves the demo of a model on the Hub, with these options of `tltasks demo`."""
    name = model.rsplit("/", 1)[-1]
    about = SpaceCardData(title=name, sdk="gradio", app_file="app.py", models=[model], tags=["tltasks"])
    app = f'''"""The page of {model}, as `tltasks demo` serves it."""

from tltasks.cli import main

main({json.dumps(["demo", model, *options])})
'''
    card = f"---\n{about.to_yaml()}\n---\n\nThe page of [{model}](https://huggingface.co/{model}).\n"
    texts = {"README.md": card, "app.py": app, "requirements.txt": f"tltasks[demo]=={__version__}\n"}
    advice = "Nothing else was changed; the same command can be tried again."
    return UploadPlan(_with_manifest({path: text.encode() for path, text in texts.items()}), "space", advice)


def plan_dataset(files: dict[str, Path], card: str) -> UploadPlan:
    """Plan a data set of files by their paths in the repository, and its card."""
    advice = "The folder is as it was; the same command can be tried again."
    return UploadPlan(_with_manifest({"README.md": card.encode(), **files}), "dataset", advice)


def _with_manifest(sources: dict[str, Path | bytes], **about: str) -> tuple[PlannedFile, ...]:
    files = [_planned(path, content) for path, content in sources.items()]
    written = {file.path: {"sha256": file.sha256, "git": file.git} for file in files}
    manifest = {"schema": 1, **about, "files": written}
    return (*files, _planned(MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()))


def _planned(path: str, content: Path | bytes) -> PlannedFile:
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if isinstance(content, bytes):
        sha256.update(content)
        git.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                git.update(block)
    return PlannedFile(path, content, size, sha256.hexdigest(), git.hexdigest())


def _evaluation_results(result: RunResult, run: RunPlan) -> bytes | None:
    """The headline in the Hub's own format, if it was measured on a whole split of a Hub data set.

    Source: https://huggingface.co/docs/hub/eval-results.
    """
    headline = result.headline
    data, split = run.stage(headline.stage).data.evaluated_on(headline.split)
    is_whole = split is not None and re.fullmatch(r"\w+", split) and not data.dir and not data.files
    if data.name is None or not is_on_hub(data.name) or not is_whole:
        return None
    revision = data.revision or ""
    entry = EvalResultEntry(
        dataset_id=data.name,
        task_id=data.config or "default",
        value=headline.value,
        dataset_revision=revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None,
        notes=f"{headline.metric} on split {split}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode()


def read_manifest(content: bytes) -> dict[str, set[str]]:
    """Read content ids by path. What is not a manifest of ours counts as somebody else's file."""
    try:
        files = json.loads(content)["files"]
        written = {str(path): {entry["sha256"], entry["git"]} for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return written | {MANIFEST: {_planned(MANIFEST, content).git}}
