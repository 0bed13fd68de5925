"""Results of a run as a push publishes them: weights, card, recipe, numbers, and the Hub's own evaluation entry."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml

from tltasks.config.recipe import RunPlan, is_on_hub
from tltasks.errors import HubError, first_line, has_secret
from tltasks.hub.upload_plan import BESIDE_MODEL, UploadPlan, with_manifest
from tltasks.results.result import RunResult, load_result

EVALUATION = f"{constants.EVAL_RESULTS_FOLDER}/tltasks.yaml"
MODEL_FILES = (
    *("config.json", "*_config.json", "model*.safetensors", "adapter_model*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "*vocab*.json", "vocab*.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("normalizer.json", "tekken.json", "*.model", "*.spm", "*.tiktoken", "bpe.codes", "dict.txt"),
    *("chat_template.*", "additional_chat_templates/*.jinja", "README.md"),
)
"""What transformers and PEFT write beside weights, and the weights; code too, where a config names it."""


def plan_results(
    output: Path,
    run: RunPlan,
    result: RunResult | None = None,
    *,
    card: Callable[[RunResult], str] | None = None,
    model: Path | None = None,
) -> UploadPlan:
    """Plan the push of a results folder, with another card and another folder in place of its model/ where given.

    `run` is the recipe's plan; `result` is read from the folder where it is not given. Raises HubError if the run has
    not finished.
    """
    model = model or output / "model"
    # a run that trained nothing has measured no steps
    beside = [name for name in BESIDE_MODEL if name != "metrics.jsonl" or (output / name).exists()]
    missing = [name for name in beside if not (output / name).is_file()]
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
    sources, left = _sort_out(model)
    # PEFT writes a README.md of its own beside an adapter (peft 0.21, peft_model.py, save_pretrained): the card wins.
    sources |= {name: output / name for name in beside}
    for path in sources.values():
        if isinstance(path, Path) and (path.is_symlink() or not path.is_file()):
            raise HubError(f"{path}: is a link or no file, and is not published unseen. Put the file in its place.")
    for path in (output / name for name in ("recipe.yaml", "README.md", "result.json")):
        if has_secret(path.read_text(encoding="utf-8", errors="replace")):
            raise HubError(f"{path}: holds a login or a token. Take it out, and make a new one on the Hub.")
    if card is not None:
        sources["README.md"] = card(result).encode()
    if evaluation := _evaluation_results(result, run):
        sources[EVALUATION] = evaluation
    return UploadPlan(
        with_manifest(sources, recipe_sha256=result.recipe_sha256),
        "model",
        f"Everything is still in {output}; when that is solved: tltasks push {output}",
        result.recipe_sha256,
        left,
    )


def _sort_out(model: Path) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """Files of a model by their names, and why others below its folder are left; whose name fits is never left."""
    configs = [path for path in model.glob("*config.json") if path.is_file() and not path.is_symlink()]
    ships_code = any(b'"auto_map"' in path.read_bytes() for path in configs)
    belonging = (*MODEL_FILES, "*.py") if ships_code else MODEL_FILES
    sources: dict[str, Path | bytes] = {}
    left: dict[str, str] = {}
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if any(part.startswith(".") for part in Path(name).parts):
            left[name] = "hidden"
        elif any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in belonging):
            sources[name] = path
        else:
            left[name] = "a link" if path.is_symlink() else "no part of a model"
    return sources, left


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
