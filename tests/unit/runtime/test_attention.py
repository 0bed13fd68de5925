"""Attention by products: as near to fp32 as torch's own in 16 bits, with masks, dropout and shares computed anew."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tltasks.runtime import attention
from tltasks.runtime.attention import attend, drawing_from

ROWS, HEADS, LENGTH, KEYS, WIDTH = 3, 4, 21, 17, 8
MASKS: dict[str, Any] = {
    "none": lambda: None,
    "padding": lambda: (torch.arange(KEYS) < torch.tensor([[KEYS], [5], [9]])).view(ROWS, 1, 1, KEYS),
    "bias": lambda: torch.randn(1, HEADS, LENGTH, KEYS),
    "hidden": lambda: torch.randn(ROWS, HEADS, 1, KEYS).masked_fill(torch.arange(KEYS) > 8, -torch.inf),
    "two dimensions": lambda: torch.ones(LENGTH, KEYS, dtype=torch.bool).tril(),
}


def tensors() -> list[Tensor]:
    torch.manual_seed(0)
    sizes = (LENGTH, KEYS, KEYS)
    return [torch.randn(ROWS, size, HEADS, WIDTH).transpose(1, 2).requires_grad_() for size in sizes]


def passed(way: Any, mask: Tensor | None, *, bf16: bool = True, **keys: Any) -> list[Tensor]:
    inputs = tensors()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = way(*(t.bfloat16() if bf16 else t for t in inputs), mask, **keys)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output.float() * weights).sum().backward()
    return [output.detach().float(), *(t.grad for t in inputs)]


@pytest.mark.parametrize("kept", [0, 2**17])
@pytest.mark.parametrize("at_once", [1, 2 * LENGTH * KEYS, 2**21])
@pytest.mark.parametrize("name", MASKS)
def test_as_near_to_fp32_as_torchs(name: str, at_once: int, kept: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "AT_ONCE", at_once)
    monkeypatch.setattr(attention, "KEPT", kept)
    used: list[int] = []
    forward = attention._Attention.forward
    monkeypatch.setattr(attention._Attention, "forward", lambda *args: (used.append(1), forward(*args))[1])
    mask = MASKS[name]()
    exact = passed(functional.scaled_dot_product_attention, mask, bf16=False)
    for ours, theirs in zip(passed(attend, mask), exact, strict=True):
        assert (ours - theirs).norm() < 1.5e-2 * theirs.norm()
    assert used


def test_causal_and_scaled() -> None:
    keys = {"is_causal": True, "scale": 0.5}
    exact = passed(functional.scaled_dot_product_attention, None, bf16=False, **keys)
    for ours, theirs in zip(passed(attend, None, **keys), exact, strict=True):
        assert (ours - theirs).norm() < 1.5e-2 * theirs.norm()


def test_a_position_that_attends_to_nothing_is_left_to_torch() -> None:
    mask = torch.ones(LENGTH, KEYS, dtype=torch.bool)
    mask[3] = False
    output = passed(attend, mask)[0]
    assert not output[:, :, 3].any()
    assert output.isfinite().all()


@pytest.mark.parametrize("kept", [0, 2**17])
def test_dropout_drops_the_same_in_both_passes(kept: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "KEPT", kept)
    value = torch.eye(KEYS).expand(ROWS, HEADS, KEYS, KEYS).bfloat16().requires_grad_()
    query, key, _ = (t.detach().bfloat16().requires_grad_() for t in tensors())
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        shares = attend(query, key, value, dropout_p=0.3)
    dropped = shares == 0
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.02)
    shares.backward(torch.ones_like(shares))
    # what flows back to the values is the sum of the shares that were used
    assert value.grad is not None
    torch.testing.assert_close(value.grad[..., 0].float(), shares.float().sum(2), rtol=2e-2, atol=2e-2)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        again = attend(query, key, value, dropout_p=0.3)
    assert torch.equal(again, shares)


def test_in_fp32_and_without_gradients_it_is_torchs() -> None:
    for bf16, grad in ((False, True), (True, False)):
        inputs = [t.detach().bfloat16() if bf16 else t for t in tensors()]
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            assert torch.equal(attend(*inputs), functional.scaled_dot_product_attention(*inputs))


def test_dropout_beside_a_mask_that_is_trained_draws_from_its_own_generator() -> None:
    found: list[Tensor] = []
    for of_all in (1, 2):
        torch.manual_seed(of_all)
        mask = torch.zeros(1, HEADS, LENGTH, KEYS, requires_grad=True)
        with drawing_from(torch.Generator().manual_seed(0)), torch.autocast("cpu", torch.bfloat16):
            query, key, value = (t.detach().bfloat16() for t in tensors())
            found.append(attend(query, key, torch.ones_like(value), mask, 0.3).detach().float())
    assert torch.equal(*found)
    assert float(found[0].mean()) == pytest.approx(1, abs=0.05)  # shares are kept or dropped, and scaled
    assert found[0].std() > 0.05


@pytest.mark.parametrize("name", ["bias", "hidden"])
def test_beside_a_mask_that_is_trained_as_near_to_fp32_as_torchs(name: str) -> None:
    mask = MASKS[name]()
    exact = passed(functional.scaled_dot_product_attention, mask, bf16=False)
    for ours, theirs in zip(passed(attend, mask.requires_grad_(), dropout_p=1e-6), exact, strict=True):
        assert (ours - theirs).norm() < 1.5e-2 * theirs.norm()
    assert mask.grad is not None
