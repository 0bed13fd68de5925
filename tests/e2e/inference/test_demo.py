"""`tltasks demo` as a visitor meets it, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.tiny import images, speech, texts, topics
from tests.tiny.runs import run_recipe
from tltasks.cli.commands import main

pytestmark = [
    # Gradio asks pandas for what it calls deprecated (gradio 6.31, queueing.py, _get_df).
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
    # It leaves the pictures of its examples open (image_utils.py, preprocess_image).
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RNG = np.random.default_rng(0)
STAGE = "{stage: %s, epochs: 1, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 4}}}"
DESKTOP = {"width": 1280, "height": 900}
Row = dict[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, with a microphone that beeps and no way out of this machine."""
    from playwright.sync_api import sync_playwright

    place = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if place is None:
        reason = "the demo's test needs a browser: install Debian's package `chromium`"
        pytest.fail(reason) if os.environ.get("TLTASKS_BROWSER") == "required" else pytest.skip(reason)
    arguments = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=place, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def open_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's log configuration closes all handlers there are, and absl's, which rouge_score brings, its stream
    with it: what pytest captures (absl 2.5, logging/__init__.py, PythonHandler.close)."""
    monkeypatch.setattr("logging.config._clearExistingHandlers", lambda: None)


@contextmanager
def visited(browser: Any, model: Path, folder: Path) -> Iterator[Any]:
    """The demo of a model, opened in a window of its own. Nothing may be asked of another machine."""
    from tltasks.inference.demo import open_demo
    from tltasks.inference.demo_page import launch

    demo = open_demo(str(model), tag=None, revision="main", trust_remote_code=False, top_k=5, precision="fp32")
    served = launch(demo, host=None, port=None)
    hosts: list[str | None] = []
    failures: list[str] = []
    try:
        page = browser.new_page(viewport=DESKTOP)
        page.set_default_timeout(20_000)
        page.on("request", lambda request: hosts.append(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: failures.append(str(error)))
        first = page.goto(served.local_url)
        assert first.headers["content-security-policy"].startswith("default-src 'self'")
        yield page
        page.close()
    finally:
        served.close(verbose=False)
    assert set(hosts) - {None} == {"127.0.0.1"}  # None: what the page made itself, such as a recording
    assert len(hosts) > 10
    assert failures == []


def take_pictures(page: Any, folder: Path, name: str) -> None:
    """As they look at a desk and on a phone, where nothing may reach beyond the screen."""
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=folder / f"{name}-{width}.png", full_page=True, animations="disabled")
        right = (
            "[...document.querySelectorAll('.block, .card, .segments tr')].map(e => e.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(right)) <= width
    page.set_viewport_size(DESKTOP)


def drop(page: Any, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def clear(page: Any) -> None:
    page.get_by_role("button", name=re.compile("Remove Image|Clear")).first.click()


def predicted(capsys: pytest.CaptureFixture[str], model: Path, path: Path) -> Row:
    capsys.readouterr()
    assert main(["predict", str(model), str(path), "--precision", "fp32"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_pictures(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images.save_model(tmp_path / "vit")
    images.save_data(tmp_path / "data")
    recipe = images.write_recipe(
        tmp_path / "recipe.yaml", Path("vit"), tmp_path / "data", stage=STAGE % "transfer", hub={"publish": "adapter"}
    )
    result = run_recipe(recipe, tmp_path / "output")
    picture, other = tmp_path / "picture.png", tmp_path / "other.png"
    picture.write_bytes(images.png(images.picture("red", RNG, 64)))
    other.write_bytes(b"no picture")
    with visited(browser, tmp_path / "output", tmp_path) as page:
        drop(page, picture)
        assert probabilities(page, "own") == expected(predicted(capsys, tmp_path / "output", picture))
        assert not page.locator(".other-top").is_visible()
        page.get_by_label("Compare with the untouched checkpoint (vit)").check()
        assert probabilities(page, "other") == expected(predicted(capsys, tmp_path / "vit", picture))
        assert probabilities(page, "own") == expected(predicted(capsys, tmp_path / "output", picture))
        take_pictures(page, tmp_path, "pictures")
        assert page.locator(".gallery-item img").count() == 4, "examples of the test set"
        page.get_by_role("tab", name="About").click()
        page.get_by_text("Measured quality").wait_for()
        text = page.locator("body").inner_text()
        assert f"{result.headline.value:.3f}" in text
        assert "always naming the most frequent class" in text
        assert "How to use" in text
        assert "license:" not in text, "front matter"
        take_pictures(page, tmp_path, "card")
        page.get_by_role("tab", name="Try").click()
        clear(page)
        page.locator(".own-top .confidence-set").first.wait_for(state="detached")
        drop(page, other)
        assert "This image cannot be used: not an image" in problem(page)
        clear(page)
        page.locator(".gallery-item img").first.wait_for()
        page.locator(".gallery-item").first.click()
        other.write_bytes(pq.read_table(tmp_path / "data" / "test.parquet")["image"][0]["bytes"].as_py())
        assert probabilities(page, "own") == expected(predicted(capsys, tmp_path / "output", other))
        assert not page.locator(".own-problem").is_visible()


def test_what_is_not_at_hand_is_left_out(tmp_path: Path) -> None:
    """As of a model from the Hub, on a machine without its data and its checkpoint's folder."""
    from tltasks.inference.demo import open_demo

    images.save_model(tmp_path / "vit", labels=list(images.COLOURS))
    images.save_data(tmp_path / "data", rows=12)
    recipe = images.write_recipe(tmp_path / "recipe.yaml", Path("vit"), tmp_path / "data", stage="{stage: zero_shot}")
    run_recipe(recipe, tmp_path / "output")

    def opened() -> Any:
        new = {"tag": None, "revision": "main", "trust_remote_code": False, "top_k": 5, "precision": "fp32"}
        return open_demo(str(tmp_path / "output"), **new)

    (tmp_path / "examples").mkdir()
    whole = opened()
    assert (whole.origin, len(whole.examples(tmp_path / "examples"))) == ("vit", 4)
    card, quality = whole.card(), whole.quality()
    for place in ("vit", "data"):
        shutil.rmtree(tmp_path / place)
    (tmp_path / "output" / "README.md").unlink()
    left = opened()
    assert (left.origin, left.examples(tmp_path / "examples")) == (None, [])
    assert left.card().partition("## How to use")[0] == card.partition("## How to use")[0]
    assert left.quality() == quality


def test_a_checkpoint_without_a_head_is_not_offered_to_compare_with(tmp_path: Path) -> None:
    from tltasks.inference.demo import open_demo

    topics.save_data(tmp_path / "data", rows=48)
    topics.save_model(tmp_path / "bert", "bert")
    stage = "{stage: transfer, steps: 1, batch_size: 8, learning_rate: 1e-2, adapt: full}"
    recipe = topics.write_recipe(tmp_path / "recipe.yaml", tmp_path / "bert", tmp_path / "data", stage=stage)
    run_recipe(recipe, tmp_path / "output")
    new = {"tag": None, "revision": "main", "trust_remote_code": False, "top_k": 5, "precision": "fp32"}
    demo = open_demo(str(tmp_path / "output"), **new)
    assert demo.saved.origin is not None
    assert demo.origin is None


def probabilities(page: Any, whose: str) -> list[list[str]]:
    rows = page.locator(f".{whose}-top .confidence-set")
    rows.first.wait_for()
    return [[part for part in row.inner_text().split("\n") if part] for row in rows.all()]


def expected(answer: Row) -> list[list[str]]:
    return [[top["label"], f"{round(100 * top['probability'])}%"] for top in answer["top"]]


def problem(page: Any) -> str:
    place = page.locator(".own-problem .problem p")
    place.wait_for()
    return str(place.inner_text())


def test_recordings(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = speech.save_whisper(tmp_path / "whisper", seconds=2, multilingual=False)
    long, silent = tmp_path / "long.wav", tmp_path / "silent.wav"
    soundfile.write(long, speech.say(["red", "blue"] * 5, RNG), 16000)
    soundfile.write(silent, np.zeros(16000), 16000)
    with visited(browser, model, tmp_path) as page:
        drop(page, long)
        answer = predicted(capsys, model, long)
        page.locator(".segments tr").first.wait_for()
        assert written(page) == answer["prediction"]
        rows = [row.locator("td").all_inner_texts() for row in page.locator(".segments tr").all()[1:]]
        assert [text for _, text in rows] == [piece["text"] for piece in answer["segments"]]
        times = [[f"0:{piece[end]:05.2f}" for end in ("start", "end")] for piece in answer["segments"]]
        assert [time for time, _ in rows] == [" – ".join(ends) for ends in times]
        take_pictures(page, tmp_path, "recording")
        clear(page)
        page.locator(".segments tr").first.wait_for(state="detached")
        drop(page, silent)
        assert problem(page) == "The model had nothing to say to this."
        clear(page)
        page.get_by_label("Record audio").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.wait_for_timeout(800)
        page.get_by_role("button", name="Stop").first.click()
        said = "document.querySelector('.own-prediction textarea').value || document.querySelector('.own-problem p')"
        page.wait_for_function(said)  # the beeps of a browser without a microphone may be silence
        assert not page.locator(".segments tr").count(), "a single piece is the answer once more"
        assert not page.get_by_role("checkbox").is_visible(), "nothing is known to compare with"
        page.get_by_role("tab", name="About").click()
        page.get_by_text("came without the results of a run").wait_for()


def written(page: Any) -> str:
    box = page.locator(".own-prediction textarea")
    page.wait_for_function("() => document.querySelector('.own-prediction textarea').value")
    return str(box.input_value())


def test_texts(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts.save_model(tmp_path / "gpt2", "gpt2")
    texts.save_data(tmp_path / "data", rows=12)
    recipe = texts.write_recipe(tmp_path / "recipe.yaml", Path("gpt2"), tmp_path / "data", stage="{stage: zero_shot}")
    run_recipe(recipe, tmp_path / "output")
    document = tmp_path / "document.txt"
    document.write_text("the cats said {of} a $5 train\nwas in the rain <b>")
    with visited(browser, tmp_path / "output", tmp_path) as page:
        page.get_by_role("button", name="Answer").click()
        assert problem(page) == "Enter a text first."
        page.locator(".entry textarea").fill(document.read_text())
        page.get_by_role("button", name="Answer").click()
        assert written(page) == predicted(capsys, tmp_path / "output", document)["prediction"].replace("\r", "\n")
        assert not page.locator(".own-problem").is_visible()
        page.get_by_role("checkbox").check()
        page.wait_for_function("() => document.querySelector('.other-prediction textarea')?.value")
        theirs = page.locator(".other-prediction textarea").input_value()
        assert theirs == written(page), "a stage that trains nothing"
        take_pictures(page, tmp_path, "text")
        page.locator(".gallery-item").first.click()
        first = json.loads((tmp_path / "data" / "test.jsonl").read_text().splitlines()[0])["document"]
        page.wait_for_function("text => document.querySelector('.entry textarea').value == text", arg=first)
