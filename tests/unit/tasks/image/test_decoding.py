import doctest
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import load_image

import tltasks.tasks.image.augmentation
import tltasks.tasks.image.decoding
from tltasks.config.tasks.image import ImageAugment, RandAugment
from tltasks.errors import DataError
from tltasks.tasks.image.augmentation import ImageAugmentation, Mix, apply_mix, draw_mix
from tltasks.tasks.image.decoding import ODDITY, TRANSPARENT, decode_image, to_png

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
SMOOTH = np.dstack([*np.meshgrid(np.arange(96) * 2, np.arange(64) * 3), np.full((64, 96), 90)]).astype(np.uint8)
EXIF_ORIENTATION = 0x0112


def test_doctests() -> None:
    modules = (tltasks.tasks.image.decoding, tltasks.tasks.image.augmentation)
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.attempted for result in results) >= 9
    assert sum(result.failed for result in results) == 0


# ----------------------------------------------------------------------------------------- decoding


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def of(array: Any, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(np.asarray(array))
    return image.convert(mode) if mode else image


def png_16_bit_rgb(pixels: np.ndarray) -> bytes:
    """PIL reads 16-bit colour but does not write it."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(of(RGB), "PNG", exif=exif)


def palette() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0])
    image.putdata([0, 1, 2])
    return image


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **LOSSLESS.get(kind, {}))


def grey(rows: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)


def solid(colour: tuple[int, int, int], width: int, height: int) -> np.ndarray:
    return np.tile(np.array(colour, dtype=np.uint8), (height, width, 1))


LOSSLESS = {"WEBP": {"lossless": True}}
PALETTE = np.array([[[10, 20, 30], [200, 100, 50], [0, 255, 0]]], dtype=np.uint8)
ALPHA = np.dstack([RGB, np.full((6, 9), 7, dtype=np.uint8)])
ON_WHITE = np.asarray(Image.blend(Image.new("RGB", (9, 6), "white"), Image.fromarray(RGB), 7 / 255))
OPAQUE = np.dstack([RGB, np.full((6, 9), 255, dtype=np.uint8)])
DEEP = np.array([[0, 257, 1000, 40000, 65535]])
LEVELS = grey([[0, 1, 4, 156, 255]])
SHARES = np.array([[0.0, 0.5, 1.0]])
HALVES = grey([[0, 128, 255]])

READABLE: dict[str, tuple[Any, np.ndarray]] = {
    "PNG": (encoded(of(RGB), "PNG"), RGB),
    "BMP": (encoded(of(RGB), "BMP"), RGB),
    "PPM": (encoded(of(RGB), "PPM"), RGB),
    "TIFF": (encoded(of(RGB), "TIFF"), RGB),
    "lossless WebP": (encoded(of(RGB), "WEBP", lossless=True), RGB),
    "grey": (encoded(of(GREY), "PNG"), np.dstack([GREY] * 3)),
    "grey with alpha": (encoded(of(GREY).convert("LA"), "PNG"), np.dstack([GREY] * 3)),
    "opaque RGBA": (encoded(of(OPAQUE), "PNG"), RGB),
    "palette": (encoded(palette(), "PNG"), PALETTE),
    "palette GIF": (encoded(palette(), "GIF"), PALETTE),
    "1 bit": (encoded(of(np.array([[True, False]])), "PNG"), grey([[255, 0]])),
    "1-bit fax TIFF": (encoded(of(np.array([[True, False]])), "TIFF", compression="group4"), grey([[255, 0]])),
    "CMYK JPEG, inverted by Adobe": (encoded(Image.new("CMYK", (8, 8)), "JPEG"), solid((255, 255, 255), 8, 8)),
    "CMYK TIFF": (encoded(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF"), solid((0, 255, 255), 2, 2)),
    "YCbCr": (Image.new("YCbCr", (2, 2), (100, 128, 128)), solid((100, 100, 100), 2, 2)),
    "HSV": (Image.new("HSV", (2, 2), (0, 255, 255)), solid((255, 0, 0), 2, 2)),
    "LAB TIFF": (encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"), solid((255, 255, 255), 2, 2)),
    "16-bit grey PNG": (encoded(of(DEEP.astype("u2")), "PNG"), LEVELS),
    "16-bit grey TIFF": (encoded(of(DEEP.astype("u2")), "TIFF"), LEVELS),
    "big-endian 16-bit grey": (of(DEEP.astype(">u2")), LEVELS),
    "dark 16-bit grey": (encoded(of(np.array([[0, 7, 255]], "u2")), "PNG"), grey([[0, 0, 1]])),
    "even 16-bit grey": (of(np.full((1, 2), 40000, "u2")), grey([[156, 156]])),
    "16-bit colour": (png_16_bit_rgb(RGB.astype("u2") * 257), RGB),
    "16-bit values in 32 bits": (encoded(of(DEEP.astype("i4")), "TIFF"), LEVELS),
    "8-bit values in 32 bits": (encoded(of(GREY.astype("i4")), "TIFF"), np.dstack([GREY] * 3)),
    "float grey": (encoded(of(SHARES.astype("f4")), "TIFF"), HALVES),
    "float grey to 255": (of(np.array([[0, 1.4, 254.7]], "f4")), grey([[0, 1, 254]])),
    "one pixel": (encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), solid((1, 2, 3), 1, 1)),
    "one-pixel JPEG": (encoded(Image.new("L", (1, 1), 77), "JPEG"), solid((77, 77, 77), 1, 1)),
    "animated GIF": (animated("GIF"), solid((255, 0, 0), 5, 4)),
    "animated WebP": (animated("WEBP"), solid((255, 0, 0), 5, 4)),
    "EXIF 1": (rotated(1), RGB),
    "EXIF 2": (rotated(2), RGB[:, ::-1]),
    "EXIF 3": (rotated(3), RGB[::-1, ::-1]),
    "EXIF 4": (rotated(4), RGB[::-1]),
    "EXIF 5": (rotated(5), RGB.transpose(1, 0, 2)),
    "EXIF 6": (rotated(6), np.rot90(RGB, -1)),
    "EXIF 7": (rotated(7), RGB[::-1, ::-1].transpose(1, 0, 2)),
    "EXIF 8": (rotated(8), np.rot90(RGB, 1)),
    "undecoded": ({"bytes": encoded(of(RGB), "PNG"), "path": "cat.png"}, RGB),
    "bytearray": (bytearray(encoded(of(RGB), "PNG")), RGB),
    "decoded": (of(RGB), RGB),
    "array": (RGB, RGB),
    "grey array": (GREY, np.dstack([GREY] * 3)),
    "array of one channel": (GREY[:, :, None], np.dstack([GREY] * 3)),
    "opaque array with alpha": (OPAQUE, RGB),
    "array out of order": (np.asfortranarray(RGB)[:, ::-1], RGB[:, ::-1]),
    "boolean array": (np.array([[True, False]]), grey([[255, 0]])),
    "float array": (SHARES, HALVES),
    "array of 64-bit integers": (RGB.astype(np.int64), RGB),
    "16-bit array": (DEEP.astype("u2"), LEVELS),
}
BLENDED: dict[str, tuple[Any, np.ndarray]] = {
    "RGBA": (encoded(of(ALPHA), "PNG"), ON_WHITE),
    "array with alpha": (ALPHA, ON_WHITE),
    "grey with alpha": (Image.merge("LA", (of(GREY), of(ALPHA[:, :, 3]))), np.dstack([ON_WHITE[:, :, 0]] * 3)),
    "palette with transparent entry": (
        encoded(palette(), "PNG", transparency=1),
        np.array([[[10, 20, 30], [255, 255, 255], [0, 255, 0]]], dtype=np.uint8),
    ),
    "palette with alpha table": (
        encoded(palette(), "PNG", transparency=b"\x00\x80\xff"),
        np.array([[[255, 255, 255], [227, 177, 152], [0, 255, 0]]], dtype=np.uint8),
    ),
    "16-bit grey with a transparent value": (
        encoded(of(DEEP.astype("u2")), "PNG", transparency=257),
        grey([[0, 255, 4, 156, 255]]),
    ),
}


@pytest.mark.parametrize("kind", READABLE)
def test_every_kind_of_image_becomes_rgb(kind: str) -> None:
    value, expected = READABLE[kind]
    image = decode_image(value)
    assert image.mode == "RGB"
    # LittleCMS rounds LAB by one step
    np.testing.assert_allclose(np.asarray(image).astype(int), expected, atol=kind == "LAB TIFF")


@pytest.mark.parametrize("kind", BLENDED)
def test_transparency_is_blended_with_white_and_noted(kind: str) -> None:
    value, expected = BLENDED[kind]
    image = decode_image(value)
    np.testing.assert_allclose(np.asarray(image).astype(int), expected, atol=1)
    assert (image.mode, image.info[ODDITY]) == ("RGB", TRANSPARENT)


def test_paths_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(of(RGB), "PNG"))
    for value in (path, str(path), {"path": str(path)}, {"path": str(path), "bytes": None}):
        np.testing.assert_array_equal(np.asarray(decode_image(value)), RGB)


def damaged_exif() -> bytes:
    return encoded(of(SMOOTH), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")


# Grey of more than 8 bits is left out: there PIL's own conversion gives white (asserted below).
SAME_AS_TRANSFORMERS: dict[str, bytes] = {
    **{
        k: v
        for k, (v, _) in READABLE.items()
        if isinstance(v, bytes) and (k == "16-bit colour" or (not k.startswith("float") and "16-bit" not in k))
    },
    "JPEG": encoded(of(SMOOTH), "JPEG"),
    "progressive JPEG": encoded(of(SMOOTH), "JPEG", progressive=True),
    "grey JPEG": encoded(of(SMOOTH, "L"), "JPEG"),
    "CMYK JPEG": encoded(of(SMOOTH, "CMYK"), "JPEG"),
    "WebP, opaque": encoded(of(SMOOTH, "RGBA"), "WEBP"),
    "AVIF": encoded(of(SMOOTH), "AVIF"),
    "JPEG 2000": encoded(of(SMOOTH), "JPEG2000"),
    "palette of 64": encoded(of(SMOOTH).quantize(64), "PNG"),
    "8-bit values in 32 bits": READABLE["8-bit values in 32 bits"][0],
    "float grey with fractions": encoded(of(np.array([[0, 1.4, 254.7]], "f4")), "TIFF"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # load_image leaves GIFs open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", SAME_AS_TRANSFORMERS)
def test_pixels_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(SAME_AS_TRANSFORMERS[kind])
    theirs = load_image(str(path))
    np.testing.assert_array_equal(np.asarray(decode_image(path)), np.asarray(theirs))


def test_pil_itself_turns_16_bit_grey_white() -> None:
    """The reason for our own scaling; when this fails, it can go."""
    assert np.asarray(of(DEEP.astype("u2")).convert("RGB")).max(axis=2).tolist() == [[0, 255, 255, 255, 255]]


def test_damaged_exif_neither_warns_nor_stops() -> None:
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        of_pil = np.asarray(load_image(Image.open(io.BytesIO(damaged_exif()))))
    np.testing.assert_array_equal(np.asarray(decode_image(damaged_exif())), of_pil)


def cut(kind: str, share: float) -> bytes:
    data = encoded(of(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    return data[: int(len(data) * share)]


UNREADABLE: dict[str, tuple[Any, str]] = {
    "cut JPEG": (cut("JPEG", 0.5), "truncated JPEG"),
    "JPEG cut in its header": (cut("JPEG", 0.04), "truncated JPEG"),
    "JPEG of 4 bytes": (cut("JPEG", 1)[:4], "JPEG that cannot be decoded (damaged or cut off in its header)"),
    "cut PNG": (cut("PNG", 0.5), "truncated PNG"),
    "cut GIF": (cut("GIF", 0.5), "truncated GIF"),
    "cut BMP": (cut("BMP", 0.5), "truncated BMP"),
    "cut TIFF": (cut("TIFF", 0.5), "truncated TIFF"),
    "cut WebP": (cut("WEBP", 0.5), "WEBP that cannot be decoded (could not create decoder object)"),
    "cut AVIF": (cut("AVIF", 0.5), "AVIF that cannot be decoded (damaged or cut off in its header)"),
    "JPEG of zeros": (b"\xff\xd8\xff" + bytes(500), "JPEG that cannot be decoded (damaged or cut off in its header)"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC, which Pillow cannot read"),
    "EPS": (encoded(of(RGB), "EPS"), "EPS, which is a program and is not run"),
    "EPS opened by PIL": (Image.open(io.BytesIO(encoded(of(RGB), "EPS"))), "EPS, which is a program and is not run"),
    "lazy PIL image of a cut file": (Image.open(io.BytesIO(cut("PNG", 0.5))), "truncated PNG"),
    "empty": (b"", "empty file"),
    "HTML": (b"<html>404</html>", "not an image (starts with '<html>404</html>')"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image (starts with '<svg xmlns=\"http')"),
    "text": ("größer".encode(), "not an image (starts with 'größer')"),
    "noise": (bytes(range(128, 160)), r"not an image (starts with b'\x80\x81\x82\x83\x84\x85\x86\x87')"),
    "no file": ("none/there.png", "file not found: none/there.png"),
    "a folder": ("/", "file not found: /"),
    "a device": ("/dev/zero", "file not found: /dev/zero"),
    "not even a path": ("x" * 5000, f"cannot be read: {'x' * 119}… (File name too long)"),
    "null": (None, "no image (null)"),
    "null dict": ({"bytes": None, "path": None}, "no image (null)"),
    "number": (5, "not an image (a int)"),
    "video": (np.zeros((2, 4, 4, 3), "u1"), "not an image (an array [2, 4, 4, 3]; "),
    "channels first": (np.zeros((3, 8, 8), "u1"), "not an image (an array [3, 8, 8]; height × width, or that × 1, 3"),
    "empty array": (np.zeros((0, 4), "u1"), "not an image (an array [0, 4]; "),
    "array of text": (np.array([["a"]]), "not an image (an array of <U1)"),
    "complex array": (np.ones((2, 2), complex), "not an image (an array of complex128)"),
    "floats below zero": (of(np.array([[-1, 0, 3]], "f4")), "floats from -1 to 3, which do not tell what is black"),
    "floats beyond 255": (np.array([[0.0, 300.0]]), "floats from 0 to 300, which do not tell"),
    "floats with holes": (of(np.array([[np.nan, 0.5, 0.2]], "f4")), "floats from nan to nan, which do not tell"),
    "infinite floats": (np.array([[np.inf, 0.5]]), "floats from 0.5 to inf, which do not tell"),
    "integers beyond 16 bits": (encoded(of(np.array([[0, 70000]], "i4")), "TIFF"), "integers from 0 to 70,000, which"),
    "integers below zero": (np.array([[-1000, 0]]), "integers from -1,000 to 0, which do not tell"),
    "image without pixels": (Image.new("RGB", (0, 5)), "an image without pixels (0 × 5)"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named(kind: str) -> None:
    value, reason = UNREADABLE[kind]
    with pytest.raises(DataError) as raised:
        decode_image(value)
    assert str(raised.value).startswith(reason)
    assert "\n" not in str(raised.value)


def test_the_table_is_as_long_as_it_claims() -> None:
    assert len(READABLE) >= 50
    assert len(UNREADABLE) >= 30
    assert len(SAME_AS_TRANSFORMERS) >= 35


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "ICO", "AVIF", "PPM", "TGA"])
def test_no_damage_escapes_as_another_error(kind: str) -> None:
    whole = cut(kind, 1)
    rng = np.random.default_rng(0)
    reasons: list[str] = []
    for trial in range(40):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if trial % 2 else whole)
        for place in rng.integers(0, min(len(data), 400), 6):
            data[place] = int(rng.integers(256))
        try:
            decode_image(data)
        except DataError as error:
            reasons.append(str(error))
    assert len(reasons) >= 5
    assert not [reason for reason in reasons if "object at 0x" in reason or "\n" in reason]


def test_bombs_are_refused_and_large_images_read_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large, bomb = (encoded(Image.new("L", (side, side)), "PNG") for side in (12, 15))
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(large))
    assert decode_image(large).size == (12, 12)
    with pytest.raises(DataError, match=r"^too large \(PNG of more than 200 pixels\)$"):
        decode_image(bomb)


def test_pictures_for_the_report() -> None:
    image = torch.from_numpy(RGB).permute(2, 0, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(to_png(image)))), RGB)
    wide = torch.zeros(3, 100, 400, dtype=torch.uint8)
    assert Image.open(io.BytesIO(to_png(wide, largest_side=40))).size == (40, 10)


# ------------------------------------------------------------------------------------- augmentation

PICTURE = torch.randint(0, 256, (3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ALL = ImageAugment(flip=True, crop=0.3, randaugment=RandAugment(), erase=0.5, mixup=0.4, cutmix=1.0)
EACH = {
    "flip": ImageAugment(flip=True),
    "crop": ImageAugment(crop=0.5),
    "randaugment": ImageAugment(randaugment=RandAugment(ops=2, magnitude=9)),
    "erase": ImageAugment(erase=0.5),
}


def augmented(keys: ImageAugment, row: int, image: Tensor = PICTURE, *, seed: int = 0, epoch: int = 0) -> Tensor:
    return ImageAugmentation(keys)(image, seed=seed, epoch=epoch, row=row)


def test_nothing_to_do_gives_the_very_same_tensor() -> None:
    state = torch.get_rng_state()
    assert augmented(ImageAugment(mixup=1.0, cutmix=1.0), 0) is PICTURE
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", EACH)
@pytest.mark.parametrize("size", [(20, 28), (28, 20), (1, 1), (1, 9), (5, 200), (224, 224)])
def test_each_key_changes_images_and_keeps_their_form(key: str, size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = image.clone()
    results = [augmented(EACH[key], row, image) for row in range(24)]
    assert all(r.dtype == torch.uint8 and r.shape == image.shape for r in results)
    assert torch.equal(image, before)
    if min(size) > 4:
        # erasing finds no rectangle that fits some strips
        assert sum(not torch.equal(r, image) for r in results) >= 5


def test_flip_mirrors_half_the_time() -> None:
    mirrored = [torch.equal(augmented(EACH["flip"], row), PICTURE.flip(-1)) for row in range(400)]
    kept = [torch.equal(augmented(EACH["flip"], row), PICTURE) for row in range(400)]
    assert sum(mirrored) + sum(kept) == 400
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize("size", [(40, 40), (10, 90), (90, 10)])
def test_crop_keeps_at_least_its_share(size: tuple[int, int]) -> None:
    """Each pixel holds its own place, so that the corners of a crop tell its area."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, columns]).to(torch.uint8)
    shares = []
    for row in range(200):
        result = augmented(ImageAugment(crop=0.6), row, image).float()
        seen = [float(result[c].max() - result[c].min() + 1) for c in (0, 1)]
        shares.append(seen[0] * seen[1] / (height * width))
    assert min(shares) > 0.6 - 0.12  # resizing softens the outermost pixel, a tenth of the short side
    assert max(shares) > 0.9
    assert min(shares) < 0.75


def test_erasing_fills_with_grey_as_often_as_said() -> None:
    results = [augmented(ImageAugment(erase=0.25), row) for row in range(400)]
    changed = [r for r in results if not torch.equal(r, PICTURE)]
    assert 70 < len(changed) < 130
    for result in changed:
        assert set(result[result != PICTURE].tolist()) == {128}


def test_magnitude_matters() -> None:
    def change(magnitude: int) -> float:
        keys = ImageAugment(randaugment=RandAugment(ops=1, magnitude=magnitude))
        return float(np.mean([(augmented(keys, r).float() - PICTURE.float()).abs().mean() for r in range(60)]))

    assert change(2) < change(9) < change(25)


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    rows = list(range(12))
    expected = {row: augmented(ALL, row) for row in rows}
    mixes = {row: draw_mix(ALL, rows=50, seed=0, epoch=0, row=row) for row in rows}
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global state must not matter)
    torch.manual_seed(5)
    one = ImageAugmentation(ALL)
    for row in reversed(rows):
        assert torch.equal(one(PICTURE, seed=0, epoch=0, row=row), expected[row])
        assert draw_mix(ALL, rows=50, seed=0, epoch=0, row=row) == mixes[row]
    others = [augmented(ALL, r, seed=s, epoch=e) for s, e, r in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert not any(torch.equal(other, expected[0]) for other in others)
    drawn = {draw_mix(ALL, rows=10**6, seed=s, epoch=e, row=r) for s in range(3) for e in range(3) for r in range(3)}
    assert len(drawn) == 27


def test_global_random_states_are_untouched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), json.dumps(np.random.get_state()[1].tolist())  # noqa: NPY002
    for row in range(20):
        augmented(ALL, row)
        draw_mix(ALL, rows=9, seed=0, epoch=0, row=row)
    with pytest.raises(TypeError):
        ImageAugmentation(ALL)(PICTURE.numpy(), seed=0, epoch=0, row=0)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert json.dumps(np.random.get_state()[1].tolist()) == before[2]  # noqa: NPY002


# ------------------------------------------------------------------------------------------- mixing


def drawn(keys: ImageAugment, n: int = 4000, rows: int = 50) -> list[Mix]:
    mixes = [draw_mix(keys, rows=rows, seed=0, epoch=0, row=row) for row in range(n)]
    return [mix for mix in mixes if mix is not None]


def test_mixup_weights_are_beta() -> None:
    mixes = drawn(ImageAugment(mixup=0.2))
    weights = np.array([mix.weight for mix in mixes])
    assert len(mixes) == 4000
    assert all(mix.box is None for mix in mixes)
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / (4 * 1.4), abs=0.01)  # variance of Beta(α, α): 1 / (4 (2α + 1))
    assert 0 <= weights.min() <= weights.max() <= 1


def test_cutmix_weights_are_those_of_the_paper() -> None:
    """With α = 1 and u uniform, a clipped side of length √u is √u − u/4 in the mean; squared: 1/2 − 1/5 + 1/48."""
    mixes = drawn(ImageAugment(cutmix=1.0))
    assert all(mix.box is not None for mix in mixes)
    weights = np.array([mix.weight for mix in mixes])
    assert weights.mean() == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.015)
    assert 0 <= weights.min() <= weights.max() <= 1


def test_partners_are_drawn_from_all_rows_alike() -> None:
    counts = np.bincount([mix.partner for mix in drawn(ImageAugment(mixup=1.0), rows=10)], minlength=10)
    assert len(counts) == 10
    assert counts.min() > 320
    assert draw_mix(ImageAugment(mixup=1.0), rows=1, seed=0, epoch=0, row=0).partner == 0  # type: ignore[union-attr]


def test_both_share_the_rows() -> None:
    boxes = sum(mix.box is not None for mix in drawn(ImageAugment(mixup=1.0, cutmix=1.0)))
    assert 1850 < boxes < 2150


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 100.0])
def test_extreme_alphas(alpha: float) -> None:
    for keys in (ImageAugment(mixup=alpha), ImageAugment(cutmix=alpha)):
        assert all(0 <= mix.weight <= 1 for mix in drawn(keys, 200))


def test_mixup_blends() -> None:
    black, white = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.full((3, 4, 5), 255, dtype=torch.uint8)
    for weight, level in ((1.0, 255), (0.0, 0), (0.25, 64), (0.7, 178)):
        mixed, share = apply_mix(white, black, Mix(0, weight))
        assert mixed.dtype == torch.uint8
        assert mixed.unique().tolist() == [level]
        assert share == weight
    assert torch.equal(apply_mix(PICTURE, PICTURE, Mix(0, 0.3))[0], PICTURE)


def test_cutmix_share_is_the_area_that_is_left() -> None:
    own, partner = torch.zeros(3, 11, 17, dtype=torch.uint8), torch.ones(3, 11, 17, dtype=torch.uint8)
    relative, exact = [], []
    for mix in drawn(ImageAugment(cutmix=1.0), 300):
        mixed, share = apply_mix(own, partner, mix)
        assert share == pytest.approx(float((mixed == 0).float().mean()), abs=1e-6)
        relative.append(mix.weight)
        exact.append(share)
    assert int(own.sum()) == 0
    assert np.abs(np.array(relative) - exact).max() < 0.12
    assert np.mean(relative) == pytest.approx(np.mean(exact), abs=0.01)


def test_a_partner_of_another_size_is_resized() -> None:
    partner = torch.full((3, 50, 7), 200, dtype=torch.uint8)
    for mix in (Mix(0, 0.0), Mix(0, 0.0, (0.0, 0.0, 1.0, 1.0))):
        mixed, share = apply_mix(PICTURE, partner, mix)
        assert mixed.shape == PICTURE.shape
        assert mixed.unique().tolist() == [200]
        assert share == 0.0


def test_results_do_not_depend_on_how_a_batch_is_split() -> None:
    def read(rows: list[int]) -> list[tuple[Tensor, float]]:
        one: Callable[..., Tensor] = ImageAugmentation(ALL)
        found = []
        for row in rows:
            mix = draw_mix(ALL, rows=9, seed=1, epoch=1, row=row)
            assert mix is not None
            own, partner = (one(PICTURE + r, seed=1, epoch=1, row=r) for r in (row, mix.partner))
            found.append(apply_mix(own, partner, mix))
        return found

    together, apart = read([0, 1, 2, 3]), [*read([0]), *read([1, 2]), *read([3])]
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(together, apart, strict=True))
