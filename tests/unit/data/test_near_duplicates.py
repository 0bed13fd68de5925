"""Near-duplicates: found in whatever way they were made, and nothing else is taken for one."""

from __future__ import annotations

import io
from collections.abc import Callable

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from tltasks.data.near_duplicates import Likeness, MarkedRows, Pictures, Sounds, Texts, contradictions, find_alike
from tltasks.data.splits import Columns

HZ = 16_000
TEXTS = Texts(("text",), lambda columns: columns["text"])
PICTURES = Pictures(1.0, False, lambda columns: b"")
SOUNDS = Sounds(HZ, lambda content: np.frombuffer(content, np.int16) / np.float32(2**15), lambda columns: b"")
Twins = tuple[dict[int, int], dict[int, int]]


def marked(likeness: Likeness, columns: Columns) -> MarkedRows:
    return MarkedRows(likeness, datasets.Dataset.from_dict(columns), likeness.mark(columns))


def texts(known: list[str], asked: list[str]) -> Twins:
    return find_alike(marked(TEXTS, {"text": known}), marked(TEXTS, {"text": asked}))


# ------------------------------------------------------------------------------------------- texts

STORY = "The ferry leaves at nine, when the tide is in; after that there is none until the evening."
OTHERS = [
    "A ferry leaves when it is full, and nobody knows how long that takes on a Sunday in winter.",
    "Of the nine boats in the harbour two were painted green.",
    "東京の天気は今日も晴れです。",
]


@pytest.mark.parametrize(
    "copy",
    [
        STORY.upper(),
        STORY.replace(" ", "  \n"),
        STORY.replace(",", "").replace(";", " -").replace(".", "!"),
        STORY.replace("nine", "ten"),
    ],
)
def test_a_text_is_found_whatever_its_case_spaces_and_punctuation(copy: str) -> None:
    assert texts([*OTHERS, STORY], ["Something else altogether.", copy]) == ({3: 1}, {1: 3})


def test_texts_that_share_words_are_others() -> None:
    assert texts([STORY], [*OTHERS, STORY[: len(STORY) // 2]]) == ({}, {})


def test_short_and_strange_texts_are_compared_too() -> None:
    assert texts(["yes", "?!", "", "no"], ["YES!", "?!", "maybe"])[1] == {0: 0, 1: 1}
    assert texts([OTHERS[2]], ["東京の天気は今日も晴れです"])[1] == {0: 0}


def test_of_many_copies_each_is_found() -> None:
    """Of 40 that all differ a little, and 5 that do not; those that are left are what `drop` trains on."""
    known = [f"{STORY} {n}." for n in range(40)] + [STORY] * 5 + OTHERS
    of_known, of_asked = texts(known, [STORY, OTHERS[0].lower()])
    assert sorted(of_known) == [*range(46)]
    assert of_asked.keys() == {0, 1}


def test_common_words_hide_nothing() -> None:
    """A licence that a thousand texts end with takes up most of what they have in common."""
    licence = "This program is free software, and comes with no warranty of any kind."
    numbers = np.random.default_rng(0).integers(10**15, size=(1000, 4))
    known = [f"{' '.join(map(str, row))} is a program. {licence}" for row in numbers.tolist()]
    assert texts(known, [known[500].replace("program", "PROGRAM"), "Nothing here."])[1] == {0: 500}


def test_the_same_text_with_two_labels_is_a_contradiction() -> None:
    rows = marked(TEXTS, {"text": [STORY, OTHERS[0], STORY.upper(), STORY, STORY.replace("nine", "ten"), OTHERS[0]]})
    assert contradictions(rows, ["a", "b", "c", "a", "d", "b"]) == [(2, 0)]


# ---------------------------------------------------------------------------------------- pictures


def drawn(seed: int, size: int = 64) -> Image.Image:
    """Clouds in colour: large forms and small ones, as photographs have them."""
    random, steps = np.random.default_rng(seed), np.fft.fftfreq(size)
    radius = np.hypot(steps[:, None], steps)
    radius[0, 0] = 1
    clouds = np.fft.ifft2(np.fft.fft2(random.normal(size=(3, size, size))) / radius**1.5).real
    clouds = 128 + 50 * clouds / clouds.std((1, 2), keepdims=True)
    return Image.fromarray(clouds.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def encoded(images: list[Image.Image | None]) -> Columns:
    columns: Columns = {"pixels": [], "height": [], "width": [], "fitted": []}
    for image in images:
        pixels = None if image is None else np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        columns["pixels"].append(None if pixels is None else pixels.tobytes())
        columns["height"].append(None if pixels is None else pixels.shape[1])
        columns["width"].append(None if pixels is None else pixels.shape[2])
        columns["fitted"].append(False)
    return columns


def pictures(known: list[Image.Image | None], asked: list[Image.Image | None], likeness: Pictures = PICTURES) -> Twins:
    return find_alike(marked(likeness, encoded(known)), marked(likeness, encoded(asked)))


def as_jpeg(image: Image.Image) -> Image.Image:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=40)
    return Image.open(target)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "jpeg": as_jpeg,
    "smaller": lambda image: image.resize((40, 40)),
    "larger": lambda image: image.resize((97, 97)),
    "cut above and left": lambda image: image.crop((3, 3, 64, 64)),
    "cut below": lambda image: image.crop((0, 0, 64, 61)),
    "all": lambda image: as_jpeg(image.crop((2, 1, 63, 62)).resize((80, 80))),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_picture_is_found_again(copy: str) -> None:
    known = [drawn(seed) for seed in range(30)]
    asked = [drawn(100), *(COPIES[copy](image) for image in known[:10])]
    assert pictures(known, asked)[1] == {row + 1: row for row in range(10)}
    assert pictures(asked, known)[1] == {row: row + 1 for row in range(10)}, "the whole one may be the one asked about"


def test_a_picture_with_another_detail_or_in_another_colour_is_another() -> None:
    clock = np.full((64, 64, 3), 255, np.uint8)
    clock[8:56, 8:56] = 40
    late, red = clock.copy(), clock.copy()
    clock[12:32, 30:34] = late[30:34, 32:52] = red[12:32, 30:34] = 255
    red[8:56, 8:56, 0] = 255
    assert pictures([Image.fromarray(clock)], [Image.fromarray(late), Image.fromarray(red)]) == ({}, {})


def test_empty_pictures_are_alike_and_unreadable_ones_are_not() -> None:
    black, grey = Image.new("RGB", (20, 30)), Image.new("RGB", (10, 10), "grey")
    assert pictures([black, None, drawn(0)], [None, black, grey]) == ({0: 1}, {1: 0})


def test_what_is_cut_to_its_middle_is_compared_by_that() -> None:
    wide, rest = drawn(1).resize((96, 64)), encoded([drawn(2)])
    fitted = {**encoded([wide.crop((24, 8, 72, 56))]), "fitted": [True]}
    known = {name: fitted[name] + rest[name] for name in rest}
    for likeness, found in ((Pictures(0.75, True, PICTURES.show), {0: 0}), (PICTURES, {})):
        assert find_alike(marked(likeness, known), marked(likeness, encoded([wide])))[1] == found


def test_many_pictures_are_found_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tltasks.data.near_duplicates.FEW_KNOWN", 64)
    known = [drawn(seed, 32) for seed in range(400)]
    assert pictures(known, [image.resize((40, 40)) for image in known[::20]])[1] == {row: 20 * row for row in range(20)}


# ------------------------------------------------------------------------------------------- sound


def spoken(seed: int, seconds: float = 1.5) -> np.ndarray:
    """Tones with overtones that change several times a second, and pauses."""
    random, n_samples = np.random.default_rng(seed), int(seconds * HZ)
    pitch = np.repeat(random.uniform(100, 250, 8), n_samples // 8 + 1)[:n_samples]
    phase = 2 * np.pi * np.cumsum(pitch) / HZ
    loud = np.repeat(random.uniform(0, 1, (12, 8)), n_samples // 8 + 1, axis=1)[:, :n_samples]
    sound = (loud * np.sin(np.arange(1, 13)[:, None] * phase)).sum(0) + 0.01 * random.normal(size=n_samples)
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def as_mp3(samples: np.ndarray) -> np.ndarray:
    target = io.BytesIO()
    soundfile.write(target, samples, HZ, format="MP3")
    target.seek(0)
    return soundfile.read(target, dtype="float32")[0]


def sounds(known: list[np.ndarray], asked: list[np.ndarray]) -> Twins:
    def columns(clips: list[np.ndarray]) -> Columns:
        content = [(clip.clip(-1, 1) * (2**15 - 1)).astype(np.int16).tobytes() for clip in clips]
        return {"audio": content, "row": list(range(len(clips)))}

    return find_alike(marked(SOUNDS, columns(known)), marked(SOUNDS, columns(asked)))


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: 0.2 * clip,
        as_mp3,
        lambda clip: np.concatenate([np.zeros(1234, np.float32), clip]),
        lambda clip: clip[777:-900],
        lambda clip: 2 * as_mp3(clip[500:]),
    ],
)
def test_a_recording_is_found_again(change: Callable[[np.ndarray], np.ndarray]) -> None:
    known = [spoken(seed) for seed in range(12)]
    asked = [spoken(100), *(change(clip) for clip in known[:5])]
    assert sounds(known, asked)[1] == {row + 1: row for row in range(5)}


def test_a_piece_of_a_recording_is_found_in_the_whole() -> None:
    whole = np.concatenate([spoken(seed) for seed in range(4)])
    assert sounds([spoken(9), whole], [whole[2 * HZ : 4 * HZ]]) == ({1: 0}, {0: 1})


def test_silence_and_noise_are_like_nothing() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, HZ)).astype(np.float32)
    assert sounds([noise[0], np.zeros(HZ, np.float32)], [noise[1], np.zeros(2 * HZ, np.float32), spoken(0)])[1] == {}
