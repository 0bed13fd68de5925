"""Recipes written from a look at data as people have them: each is checked, and opens its data as meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from tests.tiny import topics
from tltasks.cli.commands import main
from tltasks.config.loading import load_recipe
from tltasks.config.recipe import Recipe
from tltasks.data.loading import load_splits
from tltasks.data.splits import Split
from tltasks.tasks import load_adapter

RNG = np.random.default_rng(0)
WORDS = ["river", "stone", "window", "paper", "yellow", "engine", "garden", "letter", "market", "winter"]


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    return path


def clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, RNG.normal(size=1600) / 10, 16000)
    return path


def words(n: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


# ------------------------------------------------------------------------------------------ data as found


def class_folders(place: Path) -> Path:
    for i in range(60):
        picture(place / "emoji" / ["face", "animal", "food"][i % 3] / f"{i}.png", i)
    return place / "emoji"


def numbers_beside_pictures(place: Path) -> Path:
    rows = [{"file": picture(place / "cars" / f"img{i:03d}.jpg", i).name, "class": i % 4} for i in range(60)]
    pd.DataFrame(rows).to_csv(place / "cars" / "labels.csv", index=False)
    return place / "cars"


def named_texts(place: Path) -> Path:
    lines = [f"{clip(place / 'prompts' / f'vm-{i}.wav').stem}: {words(4, i)}." for i in range(40)]
    (place / "prompts" / "prompts-en.txt").write_text("\n".join(lines) + "\n")
    return place / "prompts"


def texts_beside(place: Path) -> Path:
    for i in range(40):
        clip(place / "stamps" / f"{i}.ogg").with_suffix(".txt").write_text(f"{words(3, i)}\n")
    return place / "stamps"


def pairs(place: Path) -> Path:
    rows = [{"package": f"lib{i}", "description": words(60, i), "synopsis": words(6, i)} for i in range(300)]
    pd.DataFrame(rows).to_json(place / "packages.jsonl", orient="records", lines=True)
    return place / "packages.jsonl"


def saved(place: Path) -> Path:
    rows = {"text": [words(20, i) for i in range(60)], "label": [i % 2 for i in range(60)]}
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(20))}).save_to_disk(str(place / "saved"))
    return place / "saved"


def structs(place: Path) -> Path:
    rows = [
        {"image": {"bytes": picture(place / "tmp" / f"{i}.png", i).read_bytes(), "path": None}, "species": "abc"[i % 3]}
        for i in range(60)
    ]
    shutil.rmtree(place / "tmp")
    pd.DataFrame(rows).to_parquet(place / "birds.parquet")
    return place / "birds.parquet"


def labels_in_names(place: Path) -> Path:
    for i in range(40):
        picture(place / "pets" / f"{['cat', 'big dog'][i % 2]}_{i:03d}.png", i)
    return place / "pets"


def three_folders(place: Path) -> Path:
    for split, n in (("train", 40), ("val", 12), ("test", 12)):
        for i in range(n):
            picture(place / "leaves" / split / ["oak", "elm"][i % 2] / f"{i}.png", i)
    return place / "leaves"


def patients(place: Path) -> Path:
    rows = [
        {"note": words(30, i), "diagnosis_label": ["flu", "cold"][i // 6 % 2], "patient_id": i // 6} for i in range(240)
    ]
    pd.DataFrame(rows).to_csv(place / "notes.csv", index=False)
    return place / "notes.csv"


def unlabelled_test(place: Path) -> Path:
    rows = [{"text": words(20, i), "label": "ab"[i % 2]} for i in range(300)]
    (place / "contest").mkdir()
    pd.DataFrame(rows).to_csv(place / "contest" / "train.csv", index=False)
    pd.DataFrame(rows)[["text"]].to_csv(place / "contest" / "test.csv", index=False)
    pd.DataFrame({"id": [1, 2], "label": ["a", "b"]}).to_csv(place / "contest" / "sample_submission.csv", index=False)
    return place / "contest"


def _saved(place: Path, **sizes: int) -> Path:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    splits = {
        name: datasets.Dataset.from_list([{"text": words(20, i), "label": i % 2} for i in range(n)], features=features)
        for name, n in sizes.items()
    }
    datasets.DatasetDict(splits).save_to_disk(str(place / "saved"))
    return place / "saved"


def only_a_test_split(place: Path) -> Path:
    return _saved(place, test=300)


def dev_and_eval(place: Path) -> Path:
    return _saved(place, train=60, dev=20, eval=20)


def windows_paths(place: Path) -> Path:
    for i in range(40):
        picture(place / "trees" / "sub" / f"{i}.png", i)
    rows = [{"path": f"sub\\{i}.png", "species": ["oak", "elm"][i % 2]} for i in range(40)]
    pd.DataFrame(rows).to_csv(place / "trees" / "trees.csv", index=False)
    return place / "trees"


GENRES = [[name for j, name in enumerate(("crime", "war", "love")) if (i * 5 + j * 2) % 7 < 3] for i in range(120)]


def several_in_lists(place: Path) -> Path:
    rows = [{"plot": words(20, i), "genres": own} for i, own in enumerate(GENRES)]
    pd.DataFrame(rows).to_json(place / "films.jsonl", orient="records", lines=True)
    return place / "films.jsonl"


def several_in_a_cell(place: Path) -> Path:
    rows = [{"plot": words(20, i), "genres": "|".join(own)} for i, own in enumerate(GENRES)]
    pd.DataFrame(rows).to_csv(place / "films.csv", index=False)
    return place / "films.csv"


def several_written_out(place: Path) -> Path:
    pd.DataFrame([{"plot": words(20, i), "genres": own} for i, own in enumerate(GENRES)]).to_csv(
        place / "films.csv", index=False
    )
    return place / "films.csv"


def a_column_for_each(place: Path) -> Path:
    kinds = ("crime", "war", "love")
    rows = [
        {
            "file": picture(place / "posters" / f"{i}.png", i).name,
            "year": 1950 + i % 7,
            **{k: int(k in own) for k in kinds},
        }
        for i, own in enumerate(GENRES[:60])
    ]
    pd.DataFrame(rows).to_csv(place / "posters" / "films.csv", index=False)
    return place / "posters"


def one_label_beside_a_flag(place: Path) -> Path:
    rows = [{"text": words(20, i), "label": i % 2, "is_reply": i % 3 % 2} for i in range(120)]
    pd.DataFrame(rows).to_csv(place / "posts.csv", index=False)
    return place / "posts.csv"


@pytest.mark.parametrize(
    ("make", "task", "rows", "column"),
    [
        (class_folders, "image-classification", {"train": 48, "test": 12}, ("label", {"face", "animal", "food"})),
        (numbers_beside_pictures, "image-classification", {"train": 48, "test": 12}, ("label", {"0", "1", "2", "3"})),
        (named_texts, "automatic-speech-recognition", {"train": 32, "test": 8}, ("text", None)),
        (texts_beside, "automatic-speech-recognition", {"train": 32, "test": 8}, ("text", None)),
        (pairs, "summarization", {"train": 210, "validation": 30, "test": 60}, ("summary", None)),
        (saved, "text-classification", {"train": 60, "test": 20}, ("label", {"no", "yes"})),
        (structs, "image-classification", {"train": 48, "test": 12}, ("label", {"a", "b", "c"})),
        (labels_in_names, "image-classification", {"train": 32, "test": 8}, ("label", {"cat", "big dog"})),
        (three_folders, "image-classification", {"train": 40, "validation": 12, "test": 12}, ("label", {"oak", "elm"})),
        (unlabelled_test, "text-classification", {"train": 210, "validation": 30, "test": 60}, ("label", {"a", "b"})),
        (only_a_test_split, "text-classification", {"train": 210, "validation": 30, "test": 60}, ("label", {"x", "y"})),
        (dev_and_eval, "text-classification", {"train": 60, "validation": 20, "test": 20}, ("label", {"x", "y"})),
        (windows_paths, "image-classification", {"train": 32, "test": 8}, ("label", {"oak", "elm"})),
        (several_in_lists, "text-classification", {"train": 96, "test": 24}, ("label", {"crime", "war", "love"})),
        (several_in_a_cell, "text-classification", {"train": 96, "test": 24}, ("label", {"crime", "war", "love"})),
        (several_written_out, "text-classification", {"train": 96, "test": 24}, ("label", {"crime", "war", "love"})),
        (a_column_for_each, "image-classification", {"train": 48, "test": 12}, ("label", {"crime", "war", "love"})),
        (one_label_beside_a_flag, "text-classification", {"train": 96, "test": 24}, ("label", {"0", "1"})),
        (patients, "text-classification", {"train": 168, "validation": 24, "test": 48}, ("label", {"flu", "cold"})),
    ],
)
def test_data_as_found_become_a_recipe_that_opens_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    task: str,
    rows: dict[str, int],
    column: tuple[str, set[Any] | None],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    data = make(tmp_path / "data")
    typed = data.relative_to(tmp_path)  # as a user types it; other tests here name whole paths
    assert main(["init", str(typed), "--output", "r.yaml"]) == 0
    said = capsys.readouterr().out
    assert f"{sum(n for n in rows.values()):,} rows" in said
    recipe = load_recipe(Path("r.yaml"))
    assert recipe.task == task
    splits = opened(recipe)
    assert {name: len(split.rows) for name, split in splits.items()} == pytest.approx(
        rows, abs=6 if make is patients else 2 if "GENRES" in make.__code__.co_names else 0
    )
    assert sum(len(split.rows) for split in splits.values()) == sum(rows.values())
    key, expected = column
    for split in splits.values():
        assert all(Path(path).is_file() for path in split.rows[:].get("image", []) if isinstance(path, str))
        feature = split.rows.features[key]
        found = [feature.int2str(v) if isinstance(feature, datasets.ClassLabel) else v for v in split.rows[key]]
        if isinstance(feature, datasets.List):  # none of the classes is as good as some
            found = [kind for own in found for kind in own]
        assert all(value not in (None, "") for value in found)
        assert expected is None or set(found) == expected


def test_a_patient_written_in_several_ways_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": words(30, i), "label": "ab"[i % 2], "patient": [i // 6, i // 6 * 1.0][i % 2]} for i in range(240)]
    spaced = [row | {"patient": f"p{i // 6}{' ' * (i % 2)}"} for i, row in enumerate(rows)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pd.DataFrame(spaced).to_parquet(tmp_path / "spaces.parquet")
    texts = {words(30, i): i // 6 for i in range(240)}
    for name in ("numbers.jsonl", "spaces.parquet"):
        assert main(["init", name, "--output", f"{name}.yaml"]) == 0
        splits = opened(load_recipe(Path(f"{name}.yaml"))).values()
        assert sum(len({texts[text] for text in split.rows["text"]}) for split in splits) == 40


def opened(recipe: Recipe) -> dict[str, Split]:
    assert recipe.data is not None
    return load_splits(recipe.data, seed=0, label=load_adapter(str(recipe.task)).label)


def test_rows_of_a_patient_are_not_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(patients(tmp_path)), "--output", "r.yaml"]) == 0
    texts = {words(30, i): i // 6 for i in range(240)}
    seen = [{texts[text] for text in split.rows["text"]} for split in opened(load_recipe(Path("r.yaml"))).values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40


def test_columns_whose_values_go_with_classes_are_named_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a plant are of one kind; the day and the kind's number tell nothing of what belongs together."""
    monkeypatch.chdir(tmp_path)
    days = RNG.integers(0, 30, 240)
    rows = [
        {"text": words(30, i), "label": "ab"[i // 6 % 2], "Pflanze": i // 6, "day": int(days[i]), "no": i // 6 % 2}
        for i in range(240)
    ]
    pd.DataFrame(rows).to_csv("plants.csv", index=False)
    assert main(["init", "plants.csv"]) == 0
    said = capsys.readouterr().out
    assert "rows that have one value of Pflanze mostly have one class, too; if such rows belong together" in said
    assert "splits: {test: {share: 0.2, group: Pflanze}}" in Path("plants.yaml").read_text()
    assert load_recipe(Path("plants.yaml")).data.splits.test == 0.2, "asked for, not done unasked"
    assert "how long it takes is not estimated: the model is not on this machine yet" in said


def test_labels_of_two_kinds_are_told_of_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    topics.save_model(tmp_path / "bert")
    rows = [{"text": words(30, i), "label": [1, 2, "two"][i % 3]} for i in range(60)]
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["init", "mixed.jsonl", "--model", "./bert"]) == 0
    said = capsys.readouterr().out
    assert "to be mended before it runs: mixed.yaml:" in said
    assert "data.name: mixed.jsonl: mixed.jsonl:3 `label` is 'two', and in the rows before a whole number" in said
    assert "the classes are numbers" not in said


def ambiguous(place: Path) -> Path:
    rows = [{"body": words(50, i), "title": words(5, i), "topic": "ab"[i % 2]} for i in range(60)]
    pd.DataFrame(rows).to_csv(place / "news.csv", index=False)
    return place / "news.csv"


def test_what_could_be_read_in_two_ways_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(ambiguous(tmp_path))
    assert main(["init", data, "--output", "r.yaml"]) == 2
    said = capsys.readouterr().err
    assert "--task summarization (document: body, summary: title)" in said
    assert "--task text-classification (text: body, label: topic)" in said
    assert not Path("r.yaml").exists()
    for task in ("summarization", "text-classification"):
        assert main(["init", data, "--task", task, "--output", f"{task}.yaml"]) == 0
        assert load_recipe(Path(f"{task}.yaml")).task == task


def nothing(place: Path) -> Path:
    pd.DataFrame({"a": RNG.normal(size=20), "b": RNG.normal(size=20)}).to_csv(place / "numbers.csv", index=False)
    return place / "numbers.csv"


def scores(place: Path) -> Path:
    pd.DataFrame([{"text": words(20, i), "score": i % 37 / 10} for i in range(200)]).to_csv(
        place / "s.csv", index=False
    )
    return place / "s.csv"


def votes(place: Path) -> Path:
    pd.DataFrame([{"text": words(20, i), "votes": i % 67} for i in range(200)]).to_csv(place / "v.csv", index=False)
    return place / "v.csv"


def too_deep(place: Path) -> Path:
    for i in range(20):
        picture(place / "photos" / "ab"[i % 2] / "more" / f"{i}.png", i)
    return place / "photos"


def lines_of_three(place: Path) -> Path:
    lines = [f"{clip(place / 'voices' / f'{i}.wav').name}|{i % 3}|{words(4, i)}" for i in range(20)]
    (place / "voices" / "list.txt").write_text("\n".join(lines))
    return place / "voices"


def no_labels(place: Path) -> Path:
    for i in range(20):
        picture(place / "photos" / f"{i:04d}.png", i)
    return place / "photos"


def no_rows(place: Path) -> Path:
    (place / "t.csv").write_text("text,label\n")
    return place / "t.csv"


def cells_too_many(place: Path) -> Path:
    (place / "t.csv").write_text("text,label\na,b\na,b,c\n")
    return place / "t.csv"


def test_each_recording_keeps_the_language_of_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"path": clip(tmp_path / f"{i}.wav").name, "sentence": words(4, i), "locale": ["fr", "es", "ru"][i % 3]}
        for i in range(60)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "calls.csv", sep=";", index=False)
    out = tmp_path / "my calls.yaml"
    assert main(["init", str(tmp_path / "calls.csv"), "--output", str(out)]) == 0
    recipe = load_recipe(out)
    assert recipe.data.columns.language == "locale"
    assert recipe.model.language is None
    assert f"tltasks run '{out}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "language"),
    [
        (["Please enter your extension.", "The person at this number is not there."], "en"),
        (["Veuillez composer votre code.", "Votre appel est important pour nous."], None),
        (["Введите номер.", "Абонент занят."], None),
        (["Digitare il numero.", "La stanza e piena."], None),
    ],
)
def test_a_language_that_is_not_english_is_not_taken_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str], language: str | None
) -> None:
    rows = [{"path": clip(tmp_path / f"{i}.wav").name, "sentence": f"{said[i % 2]} {i}"} for i in range(20)]
    pd.DataFrame(rows).to_csv(tmp_path / "calls.csv", index=False)
    assert main(["init", str(tmp_path / "calls.csv"), "--output", str(tmp_path / "r.yaml")]) == 0
    assert load_recipe(tmp_path / "r.yaml").model.language == language
    told = capsys.readouterr()
    assert "not decided is the language of the recordings" in told.out
    assert told.err.rstrip().endswith("r.yaml" if language else "r.yaml --set model.language=LANGUAGE")


def test_a_named_task_is_enough_where_columns_are_not_called_so(tmp_path: Path) -> None:
    rows = [{"page": f"a{i}", "description": words(40, i), "name": words(9, i)} for i in range(240)]
    pd.DataFrame(rows).to_json(tmp_path / "manuals.jsonl", orient="records", lines=True)
    out = tmp_path / "r.yaml"
    assert main(["init", str(tmp_path / "manuals.jsonl"), "--task", "summarization", "--output", str(out)]) == 0
    assert load_recipe(out).data.columns.summary == "name"


@pytest.mark.parametrize(("who", "what"), [("customer", "grade"), ("site", "verdict")])
def test_dates_and_groups_are_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], who: str, what: str
) -> None:
    kinds = ["good", "fair", "poor", "odd", "late", *["rare"]]
    rows = [
        {
            "date": f"{1 + i % 9:02}/02/2024",
            who: f"c{i % 30}",
            "note": words(30, i),
            what: kinds[i % 240 % 6 if i else 5],
        }
        for i in range(240)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "visits.csv", index=False)
    assert main(["init", str(tmp_path / "visits.csv"), "--output", str(tmp_path / "r.yaml")]) == 0
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.data.columns.label == what
    assert recipe.data.splits.test.group == who
    assert "…, " in capsys.readouterr().out  # the rarest of six is named, too


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_rows, "t.csv: holds no row."),
        (cells_too_many, "error: t.csv:3 has 3 cells, where the header has 2."),
        (nothing, "the columns do not tell what a task would need. There are: a (number, 20 values)"),
        (no_labels, "the columns do not tell what a task would need. There are: image (image"),
        (scores, "score (number, 37 values)"),
        (votes, "votes (number, 67 values)"),
        (too_deep, "a class is the folder just below its split"),
        (lines_of_three, "There are: audio (audio)"),
        (lambda place: shutil.make_archive(str(place / "photos"), "zip", class_folders(place)), "unpack it, and name"),
        (lambda place: place / "nowhere.csv", "there is no such folder or file"),
        (lambda place: place, "error: "),
    ],
)
def test_data_without_a_task_are_refused_with_what_they_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(make(tmp_path)), "--output", "r.yaml"]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not Path("r.yaml").exists()


def test_a_recipe_that_is_there_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("packages.yaml").write_text("mine")
    assert main(["init", str(pairs(tmp_path))]) == 2
    assert Path("packages.yaml").read_text() == "mine"
    assert "packages.yaml is there already" in capsys.readouterr().err
    assert main(["init", str(pairs(tmp_path)), "--force"]) == 0
    assert load_recipe(Path("packages.yaml")).task == "summarization"


def test_names_and_cells_of_data_become_no_keys_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["ham\nhub: {repo: eve/stolen, push: true}\n#", "spam\r\x85\x1b[2J\x9b\ufffeseed: 7"]
    column, text = 'kind"\n\u2028seed: 8\n# \x85', "Null"
    rows = [{text: words(30, i), column: names[i % 2], "user\nseed: 9": str(i // 6)} for i in range(240)]
    pd.DataFrame(rows).to_json(tmp_path / "mail.jsonl", orient="records", lines=True)
    assert main(["init", str(tmp_path / "mail.jsonl"), "--output", "r\nseed: 5 #.yaml"]) == 0
    said = capsys.readouterr().out
    assert not set(said) & {"\r", "\x1b", "\x85", "\x9b"}
    recipe = load_recipe(Path("r\nseed: 5 #.yaml"))
    assert recipe.hub.repo is None
    assert recipe.seed == 0
    splits = opened(recipe)
    assert {label for split in splits.values() for label in split.rows["label"]} == {name.strip() for name in names}
