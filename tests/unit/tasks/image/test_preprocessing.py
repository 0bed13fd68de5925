"""Geometry and colour apart give what the processor gives, for every processor and image size."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from tests.tiny.images import CONFIGS, SIZE, save_model
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError
from tltasks.tasks.image.preprocessing import Preprocessing, load_processor, set_image_size

SIZES = ((SIZE, SIZE), (50, 40), (40, 90), (20, 17))
SQUARE = {"height": SIZE, "width": SIZE}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processors")


def checkpoint(zoo: Path, name: str) -> Path:
    return zoo / name if (zoo / name).is_dir() else save_model(zoo / name, name)


def pictures(seed: int = 0) -> list[Image.Image]:
    """Noise over a gradient, so that both edges and shades are seen."""
    rng = np.random.default_rng(seed)
    shown = []
    for width, height in SIZES:
        shade = np.linspace(0, 255, width)[None, :, None] * np.array([1.0, 0.6, 0.3])
        shown.append(
            Image.fromarray(
                (0.7 * shade + 0.3 * rng.integers(0, 256, (height, width, 3))).clip(0, 255).astype(np.uint8)
            )
        )
    return shown


def difference(preprocessing: Preprocessing) -> float:
    """Largest difference from the processor's own output, in 8-bit levels of the channel that is scaled most."""
    theirs = preprocessing.processor(pictures(), return_tensors="pt")["pixel_values"]
    ours = preprocessing.normalise(torch.from_numpy(preprocessing.fit(pictures())))
    assert ours.shape == theirs.shape == (len(SIZES), 3, preprocessing.size, preprocessing.size)
    assert ours.dtype == torch.float32
    return float((ours - theirs).abs().max() / preprocessing._matrix.abs().max())


@pytest.mark.parametrize("image_size", [None, 24, 48])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_sees_what_the_processor_gives(zoo: Path, name: str, image_size: int | None) -> None:
    """timm resizes in 8 bits and most processors round afterwards: what is lost is less than one level of 255."""
    folder = checkpoint(zoo, name)
    config = AutoConfig.from_pretrained(folder)
    if image_size is not None:
        set_image_size(config, image_size)
    preprocessing = Preprocessing(load_processor(Checkpoint(str(folder)), config, image_size=image_size), name=name)
    assert preprocessing.size == (image_size or SIZE)
    assert difference(preprocessing) < 0.51


def test_the_difference_would_be_seen(zoo: Path) -> None:
    preprocessing = Preprocessing(AutoImageProcessor.from_pretrained(checkpoint(zoo, "vit")), name="vit")
    preprocessing._offset += 0.02
    assert difference(preprocessing) > 1


ODD: dict[str, Any] = {
    "blue, green, red": lambda: transformers.MobileViTImageProcessor(
        size={"shortest_edge": SIZE + 4}, crop_size=SQUARE, do_flip_channel_order=True
    ),
    "no rescaling to 0–1": lambda: transformers.ViTImageProcessor(size=SQUARE, do_rescale=False, do_normalize=False),
    "to −1–1": lambda: transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "uneven means": lambda: transformers.ViTImageProcessor(
        size=SQUARE, image_mean=[0.1, 0.5, 0.9], image_std=[0.2, 0.3, 0.05]
    ),
    "nearest": lambda: transformers.ViTImageProcessor(size=SQUARE, resample=0),
    "crop of the middle": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
    "crop share": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=0.5),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_processors(name: str) -> None:
    preprocessing = Preprocessing(ODD[name](), name=name)
    assert difference(preprocessing) < 0.51
    red = preprocessing.normalise(torch.tensor([255.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    theirs = preprocessing.processor([Image.new("RGB", (SIZE, SIZE), (255, 0, 0))], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(red[0, :, 0, 0], theirs[0, :, SIZE // 2, SIZE // 2].float(), atol=1e-4, rtol=1e-5)


def test_blue_green_red_is_turned_back_in_the_pixels() -> None:
    preprocessing = Preprocessing(ODD["blue, green, red"](), name="x")
    pixels = preprocessing.fit([Image.new("RGB", (60, 60), (250, 20, 3))])
    assert pixels[0, :, 5, 5].tolist() == [250, 20, 3]
    shown = preprocessing.normalise(torch.from_numpy(pixels))
    assert shown[0, 0, 5, 5] < shown[0, 1, 5, 5] < shown[0, 2, 5, 5]


def test_pixels_stay_as_they_are_at_the_models_size() -> None:
    preprocessing = Preprocessing(ODD["uneven means"](), name="x")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    assert np.array_equal(preprocessing.fit([picture])[0], np.asarray(picture).transpose(2, 0, 1))


def test_shapes_that_differ_are_refused() -> None:
    loose = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, do_center_crop=False)
    with pytest.raises(CheckpointError, match=r"x: .* different shapes .*Set model.image_size"):
        Preprocessing(loose, name="x")


def test_oblong_input_is_refused() -> None:
    with pytest.raises(CheckpointError, match="square"):
        Preprocessing(transformers.ViTImageProcessor(size={"height": 32, "width": 48}), name="x")


def test_grey_is_refused() -> None:
    class Grey:
        def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
            grey = [np.asarray(image.resize((8, 8)).convert("L"), dtype=np.float32) for image in images]
            return {"pixel_values": torch.tensor(np.stack(grey))[:, None].expand(-1, 3, -1, -1)}

    with pytest.raises(CheckpointError, match="three colour channels"):
        Preprocessing(Grey(), name="x")


# --------------------------------------------------------------------------------------- another image size


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("no crop", {"size": SQUARE}, {"size": {"height": 64, "width": 64}}),
        (
            "crop",
            {"size": {"shortest_edge": 36}, "crop_size": SQUARE, "do_center_crop": True},
            {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}},
        ),
    ],
)
def test_a_margin_grows_with_the_size(tmp_path: Path, name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    kind = transformers.BitImageProcessor if "crop_size" in before else transformers.ViTImageProcessor
    kind(**before).save_pretrained(tmp_path)
    processor = load_processor(Checkpoint(str(tmp_path)), CONFIGS["vit"](), image_size=64)
    for key, value in after.items():
        assert {k: v for k, v in dict(getattr(processor, key)).items() if v} == value
    assert Preprocessing(processor, name=name).size == 64


def test_a_checkpoint_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no image processor that can be loaded.*preprocessor_config.json"):
        load_processor(Checkpoint(str(tmp_path)), CONFIGS["vit"](), image_size=None)


def test_image_size_in_the_configuration() -> None:
    sizes = {}
    for name, size in itertools.product(("vit", "resnet", "timm-vit", "timm-efficientnet"), (48,)):
        config = CONFIGS[name]()
        set_image_size(config, size)
        sizes[name] = config
    assert sizes["vit"].image_size == 48
    assert not hasattr(sizes["resnet"], "image_size")
    assert sizes["timm-vit"].pretrained_cfg["input_size"] == [3, 48, 48]
    assert sizes["timm-vit"].model_args["img_size"] == 48
    assert sizes["timm-efficientnet"].pretrained_cfg["input_size"] == [3, 48, 48]
    assert "img_size" not in (sizes["timm-efficientnet"].model_args or {})


def test_timm_says_itself_whether_an_input_is_fixed() -> None:
    for architecture, fixed in (("vit_tiny_patch16_224", True), ("resnet18", False)):
        config = transformers.TimmWrapperConfig(architecture=architecture, pretrained_cfg={"input_size": [3, 224, 224]})
        set_image_size(config, 64)
        assert ("img_size" in (config.model_args or {})) == fixed
