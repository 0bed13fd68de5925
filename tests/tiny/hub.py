"""Tiny stand-ins for the models and data sets that the shipped recipes name, under their real ids."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml

from tests.hub_server import HubServer
from tests.tiny import speech, texts
from tests.tiny.images import CIFAR10, COLOURS, picture, png, save_contrastive, save_mae, save_model


def _model(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        save_model(folder, name)

    return save


def _cifar(folder: Path, label: str, names: list[str], rows: dict[str, int]) -> None:
    """Parquet files as the Hub has them; a class is told by its colour and brightness."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), label: datasets.ClassLabel(names=names)})
    colours = list(COLOURS)
    for split, count in rows.items():
        labels = [i % len(names) for i in range(count)]
        images = [{"bytes": png(picture(colours[i % 3], rng)), "path": None} for i in labels]
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"img": images, label: labels}, features=features).to_parquet(path)


def _pairs(folder: Path, document: str, summary: str, *, config: str = "default") -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": 24, "validation": 6, "test": 8}.items():
        rows = [texts.pair(rng) for _ in range(count)]
        made = datasets.Dataset.from_list([{document: row["document"], summary: row["summary"]} for row in rows])
        (folder / config).mkdir(exist_ok=True)
        made.to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
    _declare(folder)


def _clips(folder: Path, text: str, *, config: str, splits: dict[str, int], intents: int = 0) -> None:
    """Audio as the Hub has it: bytes and a path in a column whose type is Audio."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        clips, said = [], []
        for i in range(count):
            words = [str(word) for word in rng.choice(list(speech.WORDS), size=1 + i % 3)]
            wav = io.BytesIO()
            soundfile.write(wav, speech.say(words, rng), 16000, format="WAV", subtype="PCM_16")
            clips.append({"bytes": wav.getvalue(), "path": f"{i}.wav"})
            said.append(" ".join(words))
        # The library itself would want torchcodec for a column of Audio (datasets 5.2, features/audio.py).
        table = pa.table({"audio": pa.array(clips, pa.struct({"bytes": pa.binary(), "path": pa.string()})), text: said})
        features = {"audio": {"_type": "Audio"}, text: {"dtype": "string", "_type": "Value"}}
        if intents:
            table = table.append_column("intent_class", pa.array([i % intents for i in range(count)]))
            names = [f"intent {i}" for i in range(intents)]
            features["intent_class"] = {"names": names, "_type": "ClassLabel"}
        info = {"info": {"features": features}}
        (folder / config).mkdir(exist_ok=True)
        path = folder / config / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)
    _declare(folder)


def _calls(folder: Path) -> None:
    """Calls of two countries, with what they are about."""
    for config in ("en-US", "en-GB"):
        _clips(folder, "transcription", config=config, splits={"train": 40}, intents=4)


def _reviews(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"unsupervised": 60, "test": 8}.items():
        rows = [{"text": texts.pair(rng)["document"], "label": i % 2} for i in range(count)]
        (folder / "plain_text").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    _declare(folder)


def _news(folder: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = datasets.ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])
    columns = datasets.Features({"text": datasets.Value("string"), "label": kinds})
    (folder / "default").mkdir()
    for split, count in {"train": 80, "test": 12}.items():
        rows = [{"text": texts.pair(rng)["document"], "label": i % 4} for i in range(count)]
        data = datasets.Dataset.from_list(rows, features=columns)
        data.to_parquet(folder / "default" / f"{split}-00000-of-00001.parquet")
    _declare(folder)


def _converted(folder: Path, text: str, config: str, splits: dict[str, int]) -> None:
    """Clips as the Hub converts them: a folder for each split."""
    _clips(folder, text, config=config, splits=splits)
    (folder / "README.md").unlink()
    for path in list((folder / config).iterdir()):
        split = folder / config / path.name.split("-")[0]
        split.mkdir()
        path.rename(split / "0000.parquet")


def _declare(folder: Path) -> None:
    """The card's front matter, by which a data set has configurations of its folders' names."""
    configs = [
        {
            "config_name": place.name,
            "data_files": [
                {"split": p.name.split("-")[0], "path": f"{place.name}/{p.name}"} for p in sorted(place.iterdir())
            ],
        }
        for place in sorted(folder.iterdir())
        if place.is_dir()
    ]
    front = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{front}---\n")


def _text_model(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        texts.save_model(folder, name)

    return save


def _mt5(folder: Path) -> None:
    texts.save_mt5(folder)


def _whisper(folder: Path) -> None:
    speech.save_whisper(folder)


def _mae(folder: Path) -> None:
    save_mae(folder)


def _clip(folder: Path) -> None:
    save_contrastive(folder)


def _wav2vec2(folder: Path) -> None:
    speech.save_objective(folder, "wav2vec2")  # what the checkpoint of that name has


def _objective(name: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        texts.save_objective(folder, name)

    return save


MODELS: dict[str, Callable[[Path], None]] = {
    "google/vit-base-patch16-224-in21k": _model("vit"),
    "timm/vgg16.tv_in1k": _model("vgg16"),
    "facebook/vit-mae-base": _mae,
    "openai/clip-vit-base-patch32": _clip,
    "openai-community/gpt2": _objective("gpt2"),
    "facebook/bart-base": _text_model("bart"),
    "google/mt5-small": _mt5,
    "HuggingFaceTB/SmolLM2-360M-Instruct": _text_model("llama"),
    "google-t5/t5-small": _objective("t5"),
    "google-bert/bert-base-uncased": _objective("bert"),
    "microsoft/resnet-18": _model("resnet"),
    "openai/whisper-small": _whisper,
    "facebook/wav2vec2-base": _wav2vec2,
}
DATA: dict[str, Callable[[Path], None]] = {
    "uoft-cs/cifar10": lambda folder: _cifar(folder, "label", CIFAR10, {"train": 240, "test": 40}),
    "uoft-cs/cifar100": lambda folder: _cifar(
        folder, "fine_label", [f"class {i}" for i in range(100)], {"train": 2400, "test": 200}
    ),
    "abisee/cnn_dailymail": lambda folder: _pairs(folder, "article", "highlights", config="3.0.0"),
    "hugcyp/LCSTS": lambda folder: _pairs(folder, "text", "summary"),
    "knkarthick/samsum": lambda folder: _pairs(folder, "dialogue", "summary"),
    "EdinburghNLP/xsum": lambda folder: _pairs(folder, "document", "summary"),
    "PolyAI/minds14": _calls,
    "stanfordnlp/imdb": _reviews,
    "fancyzhx/ag_news": _news,
    "google/fleurs": lambda folder: _converted(
        folder, "transcription", "hi_in", {"train": 16, "validation": 4, "test": 6}
    ),
}
SCRIPTS = ("google/fleurs",)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(server: HubServer, folder: Path) -> None:
    """Put every model and data set on the server."""
    for kind, table in (("model", MODELS), ("dataset", DATA)):
        for repo, make in table.items():
            place = folder / kind / repo
            place.mkdir(parents=True, exist_ok=True)
            make(place)
            files = files_of(place)
            if repo in SCRIPTS:  # datasets runs none; the Hub keeps a conversion beside them
                server.add_repo(repo, {f"{repo.split('/')[1]}.py": b"raise RuntimeError"}, type=kind)
                server.commit(repo, files, type=kind, branch="refs/convert/parquet")
            else:
                server.add_repo(repo, files, type=kind)
