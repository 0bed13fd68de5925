"""The other ways to compute a step: equal to PEFT's and torch's to rounding, and gone when the step is over."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations import sdpa_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from tests.tiny import topics
from tests.tiny.runs import run_recipe
from tltasks.models import fast_steps as module
from tltasks.models.fast_steps import fast_attention, fast_dropout, fast_norms, fast_steps, one_pass
from tltasks.models.held import hold

CPU = torch.device("cpu")


class Net(nn.Module):
    """Two layers that read the same input, and one that reads theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(32, 24), nn.Linear(32, 24, bias=False), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.gelu(self.left(x)) * self.right(x))


def adapted(**keys: Any) -> nn.Module:
    torch.manual_seed(0)
    names = {"target_modules": ["left", "right", "last"], **keys}
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **names)
    return peft.get_peft_model(Net(), config)


def gradients(model: nn.Module, *, fast: bool, autocast: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and gradients of its squares' sum for the input and all that is trained."""
    model = copy.deepcopy(model).train()
    x = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if fast:
            with one_pass(model):
                output = model(x)
        else:
            output = model(x)
    output.float().square().sum().backward()
    assert x.grad is not None
    return output.detach().float(), {"x": x.grad} | {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("held", [False, True])
def test_one_pass_is_as_near_to_fp32_as_peft_is(held: bool) -> None:
    model = adapted()
    if held:
        hold(model, torch.bfloat16, keep=[n for n, m in model.named_modules() if "lora_" in n], exact=False)
    exact, ours, theirs = (
        gradients(model, fast=f, autocast=a) for f, a in ((False, False), (True, True), (False, True))
    )
    assert distance(ours[0], exact[0]) < 1.2 * distance(theirs[0], exact[0]) + 1e-4
    assert ours[1].keys() == theirs[1].keys() == exact[1].keys()
    for name, gradient in exact[1].items():
        assert distance(ours[1][name], gradient) < 1.5 * distance(theirs[1][name], gradient) + 2e-3, name
        assert ours[1][name].dtype == torch.float32


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_are_trained_beside_the_adapter_get_their_gradients(bias: str) -> None:
    model = adapted(bias=bias)
    ours, theirs = (gradients(model, fast=fast)[1] for fast in (True, False))
    assert "base_model.model.left.base_layer.bias" in ours
    assert ours.keys() == theirs.keys()


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = []
    for fast in (False, True):
        found: dict[int, int] = {}

        def pack(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model = adapted()
        hold(model, torch.bfloat16, keep=[n for n, m in model.named_modules() if "lora_" in n], exact=False)
        x = 1 * torch.randn(64, 128, 32, requires_grad=True)  # autocast casts leaves once
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            if fast:
                with one_pass(model):
                    output = model(x)
            else:
                output = model(x)
        kept.append(sum(found.values()))
        del output
    assert kept[1] < 0.85 * kept[0]


@pytest.mark.parametrize(
    "keys", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True, "target_modules": ["left"]}]
)
def test_other_updates_are_left_to_peft(keys: dict[str, Any]) -> None:
    model = adapted(**keys)
    with one_pass(model):
        assert not any(type(m).__name__ == "OnePassLora" for m in model.modules())


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)
    with fast_dropout(), torch.autocast("cpu", torch.bfloat16):
        y = nn.Dropout(p)(x)
        again = functional.dropout(x.detach(), p)
    y.backward(torch.ones_like(y))
    dropped = y == 0
    assert float(dropped.float().mean()) == pytest.approx(p, abs=2e-3)
    assert torch.equal(y.detach(), x.grad)
    assert y.dtype == dtype
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-2)
    shares = torch.stack([dropped.flatten()[i : i + 4 * 249_000 : 4].float().mean() for i in range(4)])
    assert shares.tolist() == pytest.approx([p] * 4, abs=4e-3)  # each quarter of a drawn number
    assert float((dropped & (again == 0)).float().mean()) == pytest.approx(p * p, abs=2e-3)


def test_in_fp32_and_in_evaluation_dropout_is_torchs() -> None:
    x = torch.randn(64, 64)
    for training, enabled in ((True, False), (False, True)):
        found = []
        for context in (fast_dropout, torch.no_grad):
            torch.manual_seed(3)
            with context(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(functional.dropout(x, 0.3, training))
        assert torch.equal(*found)


@pytest.mark.parametrize("kind", [T5LayerNorm, LlamaRMSNorm])
@pytest.mark.parametrize("is_trained", [False, True])
def test_norms_are_as_written_out(kind: type[nn.Module], is_trained: bool) -> None:
    torch.manual_seed(0)
    norm = kind(24)
    norm.weight.data.uniform_(0.5, 2)
    norm.weight.requires_grad_(is_trained)
    found = []
    for context in (fast_norms, lambda _: contextlib.nullcontext()):
        x = (3 * torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(1))).requires_grad_()
        with context(norm), torch.autocast("cpu", torch.bfloat16):
            y = norm(x)
            assert type(norm) is kind or context is fast_norms
        y.square().sum().backward()
        found.append([y.detach(), x.grad, norm.weight.grad])
        norm.weight.grad = None
    assert (found[0][2] is None) is not is_trained
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_norms_that_compute_anything_else_are_left_alone() -> None:
    class Shifted(T5LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.weight

    class Gated(T5LayerNorm):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return super().forward(x) * gate.sigmoid()  # type: ignore[union-attr]

    net = nn.ModuleList([Shifted(8), Gated(8), T5LayerNorm(8)])
    with fast_norms(net):
        assert [type(module) in {Shifted, Gated, T5LayerNorm} for module in net] == [True, True, False]


def test_masks_are_made_once_for_all_layers_and_anew_when_they_change() -> None:
    bias, mask = torch.randn(1, 2, 3, 3), torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    query = torch.randn(1, 2, 3, 4)

    def made() -> Tensor:
        found: Tensor = sdpa_attention.create_position_bias_mask(bias, mask, False, query, query)
        return found

    plain = made()
    with fast_attention():
        assert made() is not made()
        with torch.autocast("cpu", torch.bfloat16):
            first = made()
            assert made() is first
            assert torch.equal(first, plain)
            mask[..., 1] = False
            assert torch.equal(made(), torch.where(mask, bias, torch.finfo(torch.float32).min))
            mask = mask.clone().fill_(True)
            assert torch.equal(made(), bias)
            bias.requires_grad_()
            assert made().requires_grad


def test_after_a_step_all_is_as_it_was() -> None:
    model, dropout = adapted(), functional.dropout
    kinds = [type(m) for m in model.modules()]
    with fast_steps(model, CPU):
        assert [type(m) for m in model.modules()] != kinds
        assert functional.dropout is not dropout
    assert [type(m) for m in model.modules()] == kinds
    assert functional.dropout is dropout


def test_a_run_takes_its_steps_so(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[torch.dtype] = []
    forward = module._LowRank.forward

    def counted(ctx: Any, x: Tensor, *others: Any) -> Tensor:
        calls.append(x.dtype)
        return forward(ctx, x, *others)

    monkeypatch.setattr(module._LowRank, "forward", counted)
    topics.save_model(tmp_path / "bert")
    topics.save_data(tmp_path / "data")
    keys = "stage: transfer, steps: 2, batch_size: 8, learning_rate: 5e-3, adapt: {lora: {rank: 2}}"
    for precision, used in (("fp32", False), ("bf16", True)):
        recipe = topics.write_recipe(
            tmp_path / "r.yaml", tmp_path / "bert", tmp_path / "data", stage=f"{{{keys}}}", precision=precision
        )
        calls.clear()
        run_recipe(recipe, tmp_path / precision)
        assert bool(calls) is used
        assert set(calls) <= {torch.bfloat16}
