"""Parameter groups over real architectures, the schedule at its edges, and the moving average."""

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.tiny.images import CONFIGS
from tltasks.config.adaptation import Adapt, Full
from tltasks.config.tasks.image import ImageStage
from tltasks.models.adapters import find_head
from tltasks.training.optimizer import (
    MovingAverage,
    build_optimizer,
    inner_matrices,
    layer_scales,
    learning_rate_factor,
    state_bytes,
    trained,
)


def stage(**keys: Any) -> ImageStage:
    return ImageStage(
        **{"stage": "transfer", "adapt": Adapt(full=Full()), "learning_rate": 1e-2, "epochs": 1.0, **keys}
    )


def build(name: str) -> transformers.PreTrainedModel:
    config = CONFIGS[name]()
    config.id2label = {i: f"class {i}" for i in range(5)}
    classes: dict[str, Any] = {"deit": transformers.DeiTForImageClassification}
    return classes.get(name, transformers.AutoModelForImageClassification.from_config)(config)


# ------------------------------------------------------------------------------------------ optimisers


def language_model(*, tied: bool) -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8, tie_word_embeddings=tied, bos_token_id=0
        )
    )


@pytest.mark.parametrize("tied", [True, False])
def test_muon_is_for_matrices_that_are_no_embedding_and_no_output(tied: bool) -> None:
    found = inner_matrices(language_model(tied=tied))
    assert len(found) == 8
    assert all(".h." in name for name in found)


def test_muon_leaves_the_head_and_convolutions_to_adamw() -> None:
    model = build("vit")
    found = inner_matrices(model, head=find_head(model))
    assert found
    assert all(name.startswith("vit.layers.") and name.endswith("weight") for name in found)
    optimizer = build_optimizer(model, stage(optimizer="muon"), head=find_head(model))
    matrices, others = optimizer.param_groups[0], optimizer.param_groups[1:]
    assert {id(p) for p in matrices["params"]} == {id(p) for name, p in model.named_parameters() if name in found}
    assert sum(len(group["params"]) for group in others) == len(list(model.parameters())) - len(found)


def test_muon_beside_adamw_is_each_of_them_also_after_its_state_was_loaded() -> None:
    models = [language_model(tied=True) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizer = build_optimizer(models[0], stage(optimizer="muon", weight_decay=0.0))
    names = inner_matrices(models[1])
    parts = [
        torch.optim.Muon(
            [p for n, p in models[1].named_parameters() if n in names],
            lr=1e-2,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for n, p in models[1].named_parameters() if n not in names], lr=1e-2, weight_decay=0.0, fused=True
        ),
    ]
    tokens = torch.arange(8)[None]
    for step in range(3):
        optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        for part in parts:
            part.param_groups[0]["lr"] = 1e-2 / (step + 1)
        for model, its in zip(models, ([optimizer], parts), strict=True):
            model.zero_grad()
            model.eval()(input_ids=tokens, labels=tokens).loss.backward()
            for one in its:
                one.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "share"), [("adamw", 2.0), ("adamw_8bit", 0.55), ("adafactor", 0.05), ("sgd", 1.0), ("muon", 1.05)]
)
def test_state_of_optimisers_is_as_large_as_documented(name: str, share: float) -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(256, 256))
    optimizer = build_optimizer(model, stage(optimizer=name), head=())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        t.numel() * t.element_size()
        for s in optimizer.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor)
    )
    assert held / sum(4 * p.numel() for p in model.parameters()) == pytest.approx(share, abs=0.05)
    assert state_bytes(model, stage(optimizer=name)) == pytest.approx(held, rel=0.1)


# ------------------------------------------------------------------------------------------- layer decay

BLOCKS = {"vit": 2, "deit": 2, "beit": 2, "dinov2": 2, "resnet": 2, "timm-vit": 2, "vgg16": 7, "timm-efficientnet": 16}
"""Blocks above the first depth (vgg16 numbers its stem as well); in the others downsampling counts as blocks too."""


@pytest.mark.parametrize("name", CONFIGS)
def test_rates_rise_with_depth_and_the_head_has_the_full_one(name: str) -> None:
    model = build(name)
    head = find_head(model)
    scales = layer_scales([n for n, _ in model.named_parameters()], 0.5, head=tuple(head))
    in_head = {n for n in scales if any(n.startswith(f"{h}.") for h in head)}
    assert in_head
    assert {scales[n] for n in in_head} == {1.0}
    backbone = [scale for n, scale in scales.items() if n not in in_head]
    assert backbone == sorted(backbone)
    assert backbone[-1] == 0.5
    depths = [round(-math.log2(scale)) for scale in dict.fromkeys(backbone)]
    assert depths == list(range(len(depths), 0, -1)), "no depth is left out"
    assert len(depths) == BLOCKS.get(name, len(depths) - 1) + 1
    assert len(depths) >= 3


def test_blocks_of_stages_are_counted_through() -> None:
    names = ["stem.w", "stages.0.layers.0.w", "stages.0.layers.1.w", "stages.1.layers.0.conv.3.w", "norm.w", "fc.w"]
    scales = layer_scales(names, 0.1, head=("fc",))
    assert list(scales.values()) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 0.1, 1])


def test_freezing_the_lower_blocks_leaves_the_rates_of_the_others() -> None:
    model = build("vit")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" not in name and "embeddings" not in name)
    optimizer = build_optimizer(model, stage(layer_decay=0.5), head=["classifier"])
    assert {group["lr"] for group in optimizer.param_groups} == {0.005, 0.01}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 on transformers 5.24
def test_an_adapter_decays_by_the_depth_that_it_sits_at() -> None:
    import peft

    model = build("vit")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    )
    optimizer = build_optimizer(wrapped, stage(layer_decay=0.5), head=["classifier"])
    by_parameter = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    rates = {name: by_parameter[p] for name, p in trained(wrapped)}
    assert {rate for name, rate in rates.items() if "layers.0." in name} == {0.0025}
    assert {rate for name, rate in rates.items() if "layers.1." in name} == {0.005}
    assert {rate for name, rate in rates.items() if "classifier" in name} == {0.01}
    assert len(rates) == 2 * 2 + 2


# ------------------------------------------------------------------------------------------ the optimiser


def test_what_is_decayed() -> None:
    model = build("beit")
    optimizer = build_optimizer(model, stage(weight_decay=0.3))
    names = {p: name for name, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[p] for p in g["params"]} for g in optimizer.param_groups}
    assert groups.keys() == {0.0, 0.3}
    assert groups[0.0] | groups[0.3] == set(names.values())
    assert all(name.endswith(".weight") for name in groups[0.3])
    for spared in ("cls_token", "relative_position_bias_table", "q_proj.bias", "layernorm_before.weight"):
        assert any(name.endswith(spared) for name in groups[0.0]), spared
    assert "classifier.weight" in groups[0.3]


def test_position_tables_are_not_decayed() -> None:
    for name, table in (("vit", "position_embeddings"), ("timm-vit", "pos_embed")):
        model = build(name)
        optimizer = build_optimizer(model, stage(weight_decay=0.3))
        (own,) = (p for n, p in model.named_parameters() if n.endswith(table))
        assert [g["weight_decay"] for g in optimizer.param_groups if any(own is p for p in g["params"])] == [0.0]


def test_only_what_is_trained_is_optimised() -> None:
    model = build("vit")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    optimizer = build_optimizer(model, stage())
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.classifier.parameters())


@pytest.mark.parametrize(("key", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimisers_are_fused_and_take_their_keys(key: str, kind: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    keys = {"momentum": 0.7} if key == "sgd" else {}
    optimizer = build_optimizer(model, stage(optimizer=key, learning_rate=0.1, **keys))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["fused"] is True
        assert group["peak_lr"] == group["lr"] == 0.1
        assert group.get("momentum", 0.7) == 0.7


def test_one_step_of_adamw_by_hand() -> None:
    """The first step moves every weight by the rate against its gradient's sign, after the decay."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -4.0]]))
    optimizer = build_optimizer(model, stage(learning_rate=0.1, weight_decay=0.5))
    model(torch.tensor([[3.0, -1.0]])).sum().backward()
    optimizer.step()
    expected = torch.tensor([[2.0, -4.0]]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(model.weight.detach(), expected)


# -------------------------------------------------------------------------------------------- the schedule


def factors(total: int, warmup: float, schedule: str) -> list[float]:
    return [learning_rate_factor(step, total=total, warmup=warmup, schedule=schedule) for step in range(total)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
def test_it_rises_to_one_and_falls_and_never_leaves_zero_to_one(schedule: str, warmup: float, total: int) -> None:
    found = factors(total, warmup, schedule)
    assert all(0 < factor <= 1 for factor in found), "a step without effect would be wasted"
    assert max(found) == 1.0
    top = found.index(1.0)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    assert top == max(0, round(total * warmup) - 1)


def test_shapes() -> None:
    assert factors(5, 0.0, "constant") == [1.0] * 5
    assert factors(4, 0.0, "linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(4, 0.0, "cosine") == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert factors(8, 0.5, "constant") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_after_the_warm_up_it_is_transformers_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=50)
    expected = []
    for _ in range(50):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert factors(50, 0.1, "cosine")[5:] == pytest.approx(expected[5:])
    assert expected[0] == 0.0  # theirs begins with a step of no effect; ours is one ahead
    assert factors(50, 0.1, "cosine")[:5] == pytest.approx(expected[1:6])


# ------------------------------------------------------------------------------------------ moving average


def line(*values: float) -> nn.Linear:
    model = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    return model


def test_average_by_hand() -> None:
    model = line(0.0)
    average = MovingAverage(model, 0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5), step
    assert model.weight.item() == 199
    assert expected == pytest.approx(199 - 0.9 / 0.1, abs=1e-3)  # the lag of an average over a ramp


def test_swapping_twice_changes_nothing() -> None:
    model = line(1.0, 2.0)
    average = MovingAverage(model, 0.5)
    with torch.no_grad():
        model.weight.add_(10)
    average.swap(model)
    assert model.weight.tolist() == [[1.0, 2.0]]
    assert average.weights["weight"].tolist() == [[11.0, 12.0]]
    average.swap(model)
    assert model.weight.tolist() == [[11.0, 12.0]]
    assert average.weights["weight"].tolist() == [[1.0, 2.0]]


def test_it_averages_what_is_trained_and_loads_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    average = MovingAverage(model, 0.5)
    assert average.weights.keys() == {"1.weight", "1.bias"}
    average.load({"1.bias": torch.tensor([7.0]), "1.weight": torch.tensor([[5.0, 6.0]])})
    average.swap(model)
    assert model[1].bias.item() == 7.0
    assert model[1].weight.tolist() == [[5.0, 6.0]]
