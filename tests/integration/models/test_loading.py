"""What is loaded, interpolated and drawn anew, against transformers' own."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from tests.tiny.images import CONFIGS, SIZE, save_model
from tltasks.config.model import Checkpoint
from tltasks.errors import CheckpointError
from tltasks.models.adapters import find_head, relabel
from tltasks.models.loading import _resize_absolute, check_loaded, initialise_head, load_pretrained, save_whole
from tltasks.results.result import Provenance
from tltasks.tasks.image.preprocessing import set_image_size


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrained")


def load(zoo: Path, name: str, *, image_size: int | None = None, labels: int = 5, random: bool = False) -> Any:
    folder = zoo / name if (zoo / name).is_dir() else save_model(zoo / name, name)
    config = AutoConfig.from_pretrained(folder)
    if labels != 5:
        relabel(config, [f"new {i}" for i in range(labels)])
    if image_size is not None:
        set_image_size(config, image_size)
    source = Checkpoint(str(folder), display_name=name)
    return load_pretrained(AutoModelForImageClassification, config, source, random=random)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_but_the_head_comes_from_the_checkpoint(zoo: Path, name: str) -> None:
    model, loaded = load(zoo, name, labels=3)
    original = AutoModelForImageClassification.from_pretrained(zoo / name).state_dict()
    head = find_head(model)
    new = set(loaded.newly_initialised)
    assert new
    assert all(any(key.startswith(f"{h}.") for h in head) for key in new)
    own = model.state_dict()
    same = [key for key in own if key not in new]
    assert len(same) >= 10
    assert all(torch.equal(own[key], original[key]) for key in same)
    assert loaded.interpolated == []
    check_loaded(model, loaded.newly_initialised, head=head, display_name=name)


def test_weights_are_fp32_whatever_the_file_holds(tmp_path: Path) -> None:
    AutoModelForImageClassification.from_pretrained(save_model(tmp_path / "vit")).bfloat16().save_pretrained(
        tmp_path / "vit"
    )
    model, _ = load(tmp_path, "vit")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_random_weights(zoo: Path) -> None:
    model, loaded = load(zoo, "vit", random=True)
    original = AutoModelForImageClassification.from_pretrained(zoo / "vit").state_dict()
    assert loaded == Provenance("vit", model_type="vit", newly_initialised=["all"])
    assert not torch.equal(model.state_dict()["classifier.weight"], original["classifier.weight"])


def test_a_checkpoint_of_something_else_is_told(zoo: Path) -> None:
    model, _ = load(zoo, "vit")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(CheckpointError, match=r"model a/b: 100% of the backbone .* not hold a ViTForImage"):
        check_loaded(model, names, head=["classifier"], display_name="a/b")
    check_loaded(model, [n for n in names if n.startswith("classifier")], head=["classifier"], display_name="a/b")


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    file = save_model(tmp_path / "vit") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="model vit: its weights cannot be loaded"):
        load(tmp_path, "vit")


# -------------------------------------------------------------------------------------------- positions


def smooth(folder: Path) -> None:
    """Position tables of a wave over the grid, as trained ones are, in place of noise."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    table = next(p for n, p in model.named_parameters() if n.endswith(("position_embeddings", "pos_embed")))
    side = SIZE // 8
    y, x = torch.meshgrid(torch.linspace(0, 3, side), torch.linspace(0, 3, side), indexing="ij")
    frequencies = torch.linspace(0.2, 1.5, table.shape[-1])
    wave = torch.sin(x.flatten()[:, None] * frequencies) + torch.cos(y.flatten()[:, None] * frequencies)
    with torch.no_grad():
        table[0, -(side**2) :].copy_(wave)
    model.save_pretrained(folder)


@pytest.mark.parametrize(("image_size", "bound"), [(64, 0.2), (48, 0.2), (16, 0.4)])
def test_positions_beside_transformers_own_interpolation(tmp_path: Path, image_size: int, bound: float) -> None:
    """Both are bicubic; ours (timm's) is antialiased, theirs is not, which tells most where the grid shrinks."""
    smooth(save_model(tmp_path / "vit"))
    model, loaded = load(tmp_path, "vit", image_size=image_size)
    assert loaded.interpolated == ["vit.embeddings.position_embeddings"]
    assert not loaded.newly_initialised
    original = AutoModelForImageClassification.from_pretrained(tmp_path / "vit").vit.embeddings
    side = image_size // 8
    theirs = original.interpolate_pos_encoding(torch.zeros(1, side**2 + 1, 32), image_size, image_size).detach()
    ours = model.vit.embeddings.position_embeddings.detach()
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours[:, 0], theirs[:, 0])  # the class token's own
    found = float((ours - theirs).abs().max())
    assert 1e-5 < found < bound
    grid = original.position_embeddings[:, 1:].view(1, SIZE // 8, SIZE // 8, 32).permute(0, 3, 1, 2)
    for antialias, expected in ((True, ours), (False, theirs)):
        resized = functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=antialias)
        torch.testing.assert_close(expected[:, 1:], resized.flatten(2).mT, atol=1e-6, rtol=1e-5)


def test_tables_of_several_prefix_tokens_keep_them(zoo: Path) -> None:
    """DeiT has a class and a distillation token."""
    smooth(save_model(zoo / "deit", "deit"))
    model, loaded = load(zoo, "deit", image_size=64)
    assert loaded.interpolated == ["deit.embeddings.position_embeddings"]
    own = model.deit.embeddings.position_embeddings
    original = AutoModelForImageClassification.from_pretrained(zoo / "deit").deit.embeddings.position_embeddings
    assert own.shape == (1, 2 + 64, 32)
    assert torch.equal(own[:, :2], original[:, :2])
    assert not torch.equal(own[:, 2:18], original[:, 2:18])


def test_relative_positions_keep_their_tokens_entries(zoo: Path) -> None:
    """BEiT's table ends with three entries for what the class token sees and is seen by."""
    model, loaded = load(zoo, "beit", image_size=48)
    tables = [key for key in loaded.interpolated if "relative_position_bias_table" in key]
    assert len(tables) == 2
    original = AutoModelForImageClassification.from_pretrained(zoo / "beit").state_dict()
    for key in tables:
        own = model.state_dict()[key]
        assert own.shape == ((2 * 6 - 1) ** 2 + 3, 2)
        assert torch.equal(own[-3:], original[key][-3:])


def test_a_table_that_is_no_square_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model x: positions k are not on a square grid"):
        _resize_absolute(torch.zeros(1, 17, 8), torch.zeros(1, 1 + 12, 8), key="k", display_name="x")


# ----------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_head_is_drawn_from_the_seed_and_nothing_else_moves(zoo: Path, name: str) -> None:
    model, _ = load(zoo, name)
    head = find_head(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        initialise_head(model, head)
        drawn.append({k: v.clone() for k, v in model.state_dict().items()})
    moved = {k for k in before if not torch.equal(before[k], drawn[0][k])}
    assert any(k.endswith("weight") for k in moved)
    assert all(any(k.startswith(f"{h}.") for h in head) for k in moved)
    assert all(torch.equal(drawn[0][k], drawn[1][k]) for k in before)
    assert any(not torch.equal(drawn[0][k], drawn[2][k]) for k in moved)
    assert all(v.isfinite().all() for v in drawn[0].values() if v.is_floating_point())


class _Twice(PreTrainedModel):
    """One layer under two names, as CoaT has them, and an embedding that is tied as transformers knows it."""

    config_class = PretrainedConfig
    _tied_weights_keys: ClassVar = {"out.weight": "into.weight"}

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.into, self.out = torch.nn.Embedding(3, 2), torch.nn.Linear(2, 3, bias=False)
        self.one = torch.nn.Sequential(torch.nn.Linear(2, 2))
        self.other = self.one
        self.post_init()


def test_a_layer_with_two_names_is_saved_under_both(tmp_path: Path) -> None:
    model = _Twice(PretrainedConfig(tie_word_embeddings=True))
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path)
    save_whole(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == {"into.weight", "one.0.weight", "one.0.bias", "other.0.weight", "other.0.bias"}
    again = _Twice.from_pretrained(tmp_path)
    assert again.one is again.other
    assert torch.equal(again.one[0].weight, model.one[0].weight)
