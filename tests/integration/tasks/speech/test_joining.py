"""Training on windows with times and on text before a recording: what is learnt, exactly, and what is refused."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tltasks
from tests.integration.tasks.speech.test_languages import prepared, tell
from tests.tiny import speech
from tests.tiny.runs import equal, in_processes, largest_difference, run_recipe, weights
from tltasks.cli import main
from tltasks.errors import DataError, Interrupted, RecipeError
from tltasks.runs.context import PreparedStage
from tltasks.tasks.base import IGNORED
from tltasks.tasks.speech.audio import from_int16
from tltasks.tasks.speech.joining import deal
from tltasks.training import loop

STAGE = "{stage: finetune, steps: 6, batch_size: 2, learning_rate: 1e-3, checkpoint_every: 1, keep: last, %s}"
PROMPTS = ["names: Ada", "", "a b c " * 40, "Bo"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said")
    speech.save_whisper(folder / "whisper", seed=11, seconds=4, multilingual=False)  # which writes letters
    speech.save_whisper(folder / "languages", seconds=4)
    speech.save_moonshine(folder / "moonshine")
    speech.save_ctc(folder / "wav2vec2", vocabulary="abcdefghijklmnopqrstuvwxyz ")
    speech.save_data(folder / "data")
    tell(speech.save_data(folder / "told"), PROMPTS)
    return folder


def opened(said: Path, place: Path, keys: str = "timestamps: {}", model: str = "whisper", **more: str) -> PreparedStage:
    data = said / more.pop("data", "data")
    found: PreparedStage = prepared(
        speech.write_recipe(place / "r.yaml", said / model, data, stage=STAGE % keys, **more)  # type: ignore[arg-type]
    )
    return found


def text_of(stage: PreparedStage, ids: list[int]) -> str:
    return "".join(stage.task.recogniser.tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", " ")  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------ windows


def test_there_are_as_many_windows_whatever_is_drawn() -> None:
    sizes = np.random.default_rng(0).uniform(0.02, 1, 300)
    dealt = [deal(sizes, np.random.default_rng(seed)) for seed in range(8)]
    for windows in dealt:
        assert sorted(row for rows in windows for row in rows) == list(range(300))
        assert max(sizes[rows].sum() for rows in windows) <= 1
    assert {len(windows) for windows in dealt} == {len(dealt[0])}
    assert len({str(windows) for windows in dealt}) == 8
    assert deal(np.array([1.0]), np.random.default_rng(0)) == [[0]]


@pytest.mark.parametrize(("model", "keys"), [("whisper", ""), ("languages", "language: es")])
def test_windows_hold_every_row_where_their_times_say(said: Path, tmp_path: Path, model: str, keys: str) -> None:
    stage = opened(said, tmp_path, "timestamps: {share: 0.7, pause_seconds: 0.3}", model, model_keys=keys)
    task, rows = stage.task, stage.encoded["train"].rows
    spell = task.recogniser.tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    assert stage.rows_of_epoch < len(rows)
    assert stage.split_notes["train"] == [f"an epoch joins 12 clips into {stage.rows_of_epoch} windows of up to 4 s"]
    seen = set[str]()
    for epoch in range(4):
        windows = task.epoch_rows(rows, epoch=epoch)
        assert len(windows) == stage.rows_of_epoch
        assert windows[:] == task.epoch_rows(rows, epoch=epoch)[:]
        plans = windows.with_format(None)
        assert sorted(itertools.chain.from_iterable(plans["rows"])) == list(range(12))
        batch = task.collate_train(windows, list(range(len(windows))), epoch=epoch)
        for i in range(len(windows)):
            plan, window = plans[i], windows[i]
            sound, wanted = from_int16(window["audio"]), ""
            for row, start in zip(plan["rows"], plan["starts"], strict=True):
                clip = from_int16(rows[row]["audio"])
                np.testing.assert_array_equal(sound[int(start * 16000) :][: len(clip)], clip)
                times = [round(start / 0.02), round(start / 0.02) + round(rows[row]["seconds"] / 0.02)]
                begin, end = (f"<|{min(t * 0.02, 4):.2f}|>" for t in times)
                wanted += f"{begin} {rows[row]['text']}{end}" if plan["is_timed"] else f" {rows[row]['text']}"
            if plan["cut"] >= 0:
                assert len(sound) == 4 * 16000
                left = sound[int(plan["cut_start"] * 16000) :]
                np.testing.assert_array_equal(left, from_int16(rows[plan["cut"]]["audio"])[: len(left)])
                wanted += f"<|{round(plan['cut_start'] / 0.02) * 0.02:.2f}|>"
            assert text_of(stage, window["labels"]) == wanted + "<|endoftext|>"
            given = batch["decoder_input_ids"][i].tolist()
            assert ("<|notimestamps|>" in text_of(stage, given)) != plan["is_timed"]
            n = len(window["labels"])
            kept = batch["labels"][i][batch["labels"][i] != IGNORED].tolist()
            assert kept == window["labels"]
            assert given[given.index(spell("<|startoftranscript|>")) :][: n + 3].count(kept[0]) >= 1
            seen |= {"timed" if plan["is_timed"] else "plain"} | ({"cut"} if plan["cut"] >= 0 else set())
    assert seen == {"timed", "plain", "cut"}


def test_windows_are_of_one_language_and_one_prompt(said: Path, tmp_path: Path) -> None:
    tell(speech.save_data(tmp_path / "data"), ["es", "en"])
    for table in (tmp_path / "data").glob("*.csv"):
        lines = table.read_text().splitlines()
        lines = [f"{lines[0]},before", *(f"{line},{line.rpartition(',')[2]}" for line in lines[1:])]
        table.write_text("\n".join(lines))
    tables = "columns: {language: spoken, prompt: before}"
    stage = opened(said, tmp_path, model="languages", data=str(tmp_path / "data"), data_keys=tables)
    rows = stage.encoded["train"].rows
    windows = stage.task.epoch_rows(rows, epoch=1)
    for plan in windows.with_format(None):
        assert {rows[i]["language"] for i in plan["rows"]} == {plan["language"]} == {plan["prompt"]}
    batch = stage.task.collate_train(windows, [0, 1], epoch=1)
    stage.task.loss(stage.task.build(stage.plan.kind).model, batch)
    assert len(batch["language"]) == 2


def test_segments_keep_their_own_times(said: Path, tmp_path: Path) -> None:
    tell(speech.save_data(tmp_path / "data"), [""])
    table = tmp_path / "data/train.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "text", "spoken"])
        writer.writeheader()
        for row in rows:
            words = enumerate(row["text"].split())
            parts = [{"start": 0.4 * i + 0.04, "end": 0.4 * i + 0.36, "text": word} for i, word in words]
            writer.writerow({**row, "spoken": json.dumps(parts)})
    stage = opened(said, tmp_path, data=str(tmp_path / "data"), data_keys="columns: {segments: spoken}")
    row = stage.encoded["train"].rows[1]
    one, two = row["text"].split()
    wanted = f"<|0.04|> {one}<|0.36|><|0.44|> {two}<|0.76|><|endoftext|>"
    assert text_of(stage, row["labels"]) == wanted


def stopping_after(step: int) -> Callable[..., None]:
    log = loop._Training.log

    def stopping(training: loop._Training, split: str, **values: float) -> None:
        log(training, split, **values)
        if split == "train" and training.progress.step == step:
            raise Interrupted("here")

    return stopping


@pytest.mark.exhaustive
def test_resuming_gives_the_same_bits(said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = STAGE % "timestamps: {}"
    recipe = speech.write_recipe(
        tmp_path / "r.yaml", said / "whisper", said / "told", stage=stage, data_keys="columns: {prompt: spoken}"
    )
    run_recipe(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "log", stopping_after(4))
        with pytest.raises(Interrupted):
            run_recipe(recipe, tmp_path / "cut")
    run_recipe(recipe, tmp_path / "cut", resume=True)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert (tmp_path / "whole" / "README.md").stat().st_size


@pytest.mark.exhaustive
def test_two_processes_train_as_one(said: Path, tmp_path: Path) -> None:
    stage = STAGE.replace("learning_rate: 1e-3", "learning_rate: 1e-2, optimizer: sgd") % "timestamps: {}"
    recipe = speech.write_recipe(tmp_path / "r.yaml", said / "whisper", said / "data", stage=stage)
    for count in (1, 2):
        in_processes(count, recipe, tmp_path / f"run{count}")
    one, two = (weights(tmp_path / f"run{count}") for count in (1, 2))
    assert largest_difference(one, two) < 1e-6


# ------------------------------------------------------------------------------------ text before


def test_what_was_said_before_is_read_and_not_learnt(said: Path, tmp_path: Path) -> None:
    stage = opened(said, tmp_path, "augment: {}", data="told", data_keys="columns: {prompt: spoken}")
    task, rows = stage.task, stage.encoded["train"].rows
    spell = task.recogniser.tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    model = task.build(stage.plan.kind).model.eval()
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight, std=1.0)  # so that it matters
    batch = task.collate_train(rows, [0, 1, 2, 3], epoch=0)
    for i, prompt in enumerate(PROMPTS):
        row = {name: values[i : i + 1] for name, values in batch.items()}
        ids = [spell("Ġ" if letter == " " else letter) for letter in f" {' '.join(prompt.split())}"] if prompt else []
        most = 96 // 2 - 1
        before = [spell("<|startofprev|>"), *ids[-most:]] if ids else []
        start = [spell(f"<|{name}|>") for name in ("startoftranscript", "notimestamps")]
        labels = rows[i]["labels"]
        given = torch.tensor([[*before, *start, *labels[:-1]]])
        assert row["decoder_input_ids"][0, : given.shape[1]].tolist() == given[0].tolist()
        logits = model(input_features=row["input_features"], decoder_input_ids=given).logits[0, -len(labels) :]
        torch.testing.assert_close(task.loss(model, row), functional.cross_entropy(logits, torch.tensor(labels)))
        assert int(task.num_targets(row)) == len(labels)


def test_prompts_leave_room_for_the_text(said: Path, tmp_path: Path) -> None:
    stage = opened(said, tmp_path, "augment: {}", data="told", data_keys="columns: {prompt: spoken}")
    hears = stage.task.recogniser  # type: ignore[attr-defined]
    labels = hears.label_ids("a" * 80)
    batch = hears.targets([labels], hears.preceded(["b" * 200])["before"])
    assert batch["decoder_input_ids"].shape[1] <= 96
    assert (batch["labels"] != IGNORED).sum() == len(labels)
    assert hears.prompt_ids("b" * 200)[0] == batch["decoder_input_ids"][0, 0]


def test_each_row_is_answered_after_its_own(said: Path, tmp_path: Path) -> None:
    """As `generate` does with `prompt_ids`, of one row at a time; whatever stands beside it."""
    stage = opened(said, tmp_path, "augment: {}", data="told", data_keys="columns: {prompt: spoken}")
    task, rows = stage.task, stage.encoded["test"].rows
    model = task.build(stage.plan.kind).model.eval()
    hears = task.recogniser  # type: ignore[attr-defined]
    together = task.predict(model, task.collate_eval(rows, [0, 1, 2, 3]))
    texts = []
    for i, prompt in enumerate(PROMPTS):
        asked: dict[str, Any] = {"prompt_ids": torch.tensor(hears.prompt_ids(prompt))} if prompt else {}
        batch = task.collate_eval(rows, [i])
        asked |= {"force_unique_generate_call": True} if prompt else {}
        written = model.generate(batch["input_features"], max_new_tokens=46, **asked)
        texts.append(hears.tokenizer.batch_decode(written, skip_special_tokens=True)[0].strip())
        assert task.predict(model, batch)[0]["prediction"] == together[i]["prediction"]
    mine = [answer["prediction"] for answer in together]
    assert [a[:20] for a in mine] == [b[:20] for b in texts]
    assert len(set(mine)) > 1


# ------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("model", "keys", "data", "message"),
    [
        ("moonshine", "timestamps: {}", "", "timestamps: moonshine writes no times; Whisper does"),
        ("wav2vec2", "timestamps: {}", "", "timestamps: wav2vec2 writes no times"),
        ("moonshine", "augment: {}", "columns: {prompt: spoken}", "prompt.*moonshine takes none; Whisper does"),
        ("wav2vec2", "augment: {}", "columns: {prompt: spoken}", "prompt.*wav2vec2 takes none"),
        ("whisper", "timestamps: {}, augment: {speed: 0.1}", "", "augment.speed.*timestamps"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    said: Path, tmp_path: Path, model: str, keys: str, data: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        opened(said, tmp_path, keys, model, data="told", data_keys=data)


def test_a_prompt_with_signs_names_its_row(said: Path, tmp_path: Path) -> None:
    tell(speech.save_data(tmp_path / "data"), ["a", "b <|endoftext|>"])
    with pytest.raises(DataError, match=r"row 1: has a prompt with <\|endoftext\|>"):
        opened(said, tmp_path, "augment: {}", data=str(tmp_path / "data"), data_keys="columns: {prompt: spoken}")


def test_streamed_rows_are_not_joined(said: Path, tmp_path: Path) -> None:
    with (said / "data/train.csv").open() as file:
        rows = [{**row, "audio": str(said / "data" / row["audio"])} for row in csv.DictReader(file)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    files = (
        f"name: json, files: {{train: {tmp_path / 'train.jsonl'}, test: {tmp_path / 'train.jsonl'}}}, streaming: true"
    )
    recipe = speech.write_recipe(tmp_path / "r.yaml", said / "whisper", said / "data", stage=STAGE % "timestamps: {}")
    with pytest.raises(RecipeError, match="`timestamps` joins the rows of an epoch; leave `streaming` out"):
        run_recipe(recipe, tmp_path / "run", f"data={{{files}}}")


# ------------------------------------------------------------------------------------ languages


def test_a_recording_without_speech_is_in_the_language_that_was_told(said: Path) -> None:
    silent = {"array": np.zeros(16000, np.float32), "sampling_rate": 16000}
    assert tltasks.load(said / "languages", language="es")(silent)["language"] == "es"
    answers = tltasks.load(said / "languages")([{"audio": silent, "language": name} for name in ("hi", "Spanish")])
    assert [answer["language"] for answer in answers] == ["hi", "es"]
    assert tltasks.load(said / "languages")(silent)["language"] is None


def test_predictions_go_on_from_the_prompt_of_each_row(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, model = said / "told/test.csv", str(said / "whisper")
    assert main(["predict", model, str(table), "--no-vad", "--prompt-column", "spoken"]) == 0
    lines = [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()]
    with table.open() as file:
        rows = [{"audio": str(said / "told" / row["audio"]), "prompt": row["spoken"]} for row in csv.DictReader(file)]
    assert [output["prediction"] for output in tltasks.load(model, vad=False)(rows)] == lines
    plain = tltasks.load(model, vad=False)([row["audio"] for row in rows])
    assert [output["prediction"] == line for output, line in zip(plain, lines, strict=True)][:2] == [False, True]
    wrong = tltasks.load(model, vad=False)([{**rows[0], "prompt": "<|endoftext|>"}, rows[1]])
    assert "has a prompt with <|endoftext|>" in wrong[0]["error"]
    assert wrong[1]["prediction"] == lines[1]
    assert main(["predict", str(said / "moonshine"), str(table), "--prompt-column", "spoken"]) == 2
    assert "takes no prompts of single rows; Whisper does" in capsys.readouterr().err
