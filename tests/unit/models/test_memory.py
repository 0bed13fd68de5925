"""Memory of a step: what is told of a model without weights, beside what torch counts of the same step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tltasks.models.held import saved_by_holding
from tltasks.models.memory import Memory, rehearse_step

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of PEFT

WITHIN = 0.08
"""Share of the measured peak by which an estimate may be off: what kernels take for themselves while they run."""

NORMS = 2 * 64 * 7
"""Bytes that the norms of three layers of Llama take less in 16 bits."""
Batch = dict[str, Tensor]


def vit() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2)
    return transformers.ViTForImageClassification(config)


def resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic")
    )


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=2000, d_model=64, d_kv=16, num_heads=4, d_ff=256, num_layers=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=2000, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config)


def wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=40,
        apply_spec_augment=False,
    )
    return transformers.Wav2Vec2ForCTC(config)


def pixels() -> Batch:
    return {"pixel_values": torch.randn(4, 3, 224, 224), "labels": torch.tensor([0, 1, 1, 0])}


def texts() -> Batch:
    ids = torch.arange(512).view(4, 128)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def clips() -> Batch:
    samples = torch.randn(2, 32_000)
    return {
        "input_values": samples,
        "attention_mask": torch.ones_like(samples, dtype=torch.long),
        "labels": torch.ones(2, 12, dtype=torch.long),
    }


def peak(action: Callable[[], Any]) -> int:
    """Peak bytes of tensors, by torch's own count of allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        action()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def taken_by_kernels(batch: Batch, precision: str) -> int:
    """Bytes that a convolution of patches in 16 bits takes for itself: by processor and threads, up to some MB."""
    if precision != "bf16" or "pixel_values" not in batch:
        return 0
    patches, found = nn.Conv2d(3, 64, 16, 16).bfloat16().requires_grad_(False), list[Tensor]()
    pixels = batch["pixel_values"].bfloat16()
    patches(pixels)
    return peak(lambda: found.append(patches(pixels))) - found[0].numel() * found[0].element_size()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model(**batch).loss
    return found


def freeze(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.requires_grad_(True)
    return model


def with_lora(model: Any) -> nn.Module:
    linear = [name for name, it in model.named_modules() if isinstance(it, nn.Linear) and it.out_features == 64]
    wrapped: nn.Module = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=linear))
    return wrapped


def half(model: nn.Module) -> nn.Module:
    """Frozen weights held in 16 bits."""
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    return model


def measured(model: nn.Module, batch: Batch, precision: str) -> int:
    """Peak bytes of tensors in the second micro-batch of the second step, by torch's own count of allocations."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found = loss(model, batch)
        found.backward()  # type: ignore[no-untyped-call]

    step()
    optimizer.step()
    most = peak(step)
    held = {id(it): it for it in (*model.parameters(), *model.buffers())}
    held |= {id(it): it for p in trained for it in (p.grad, *optimizer.state[p].values()) if it is not None and it.ndim}
    return most + sum(it.numel() * it.element_size() for it in held.values())


@pytest.mark.parametrize(
    ("build", "make_batch", "change", "precision"),
    [
        (vit, pixels, nn.Module.train, "fp32"),
        pytest.param(vit, pixels, freeze, "bf16", marks=pytest.mark.exhaustive),
        pytest.param(resnet, pixels, nn.Module.eval, "fp32", marks=pytest.mark.exhaustive),
        (t5, texts, nn.Module.train, "bf16"),
        pytest.param(llama, texts, with_lora, "fp32", marks=pytest.mark.exhaustive),
        (llama, texts, with_lora, "bf16"),
        pytest.param(wav2vec2, clips, nn.Module.train, "fp32", marks=pytest.mark.exhaustive),
    ],
)
def test_the_estimate_is_what_torch_counts(
    build: Callable[[], nn.Module],
    make_batch: Callable[[], Batch],
    change: Callable[[nn.Module], nn.Module],
    precision: str,
) -> None:
    torch.manual_seed(0)
    batch = make_batch()
    with torch.device("meta"):
        model = change(build())
    estimate = rehearse_step(model, loss, batch, precision=precision)
    found = measured(change(build()), batch, precision)
    assert estimate.total + taken_by_kernels(batch, precision) == pytest.approx(found, rel=WITHIN)
    assert min(estimate.weights, estimate.gradients, estimate.optimizer, estimate.activations) > 0


def test_frozen_weights_count_in_the_format_that_they_are_held_in() -> None:
    with torch.device("meta"):
        model, smaller = with_lora(llama()), half(with_lora(llama()))
    whole, held = (rehearse_step(it, loss, texts(), precision="bf16") for it in (model, smaller))
    assert 0.5 < held.weights / whole.weights < 0.55
    assert held.gradients == whole.gradients
    assert held.activations < whole.activations  # nothing is cast
    assert saved_by_holding(model, bits=16) == whole.weights - held.weights - NORMS
    assert 0 < saved_by_holding(smaller, bits=4.5) < held.weights


def test_a_model_is_as_it_was() -> None:
    model = t5()
    before = {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters(remove_duplicate=False)}
    first = rehearse_step(model, loss, texts(), precision="fp32")
    after = {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters(remove_duplicate=False)}
    assert after == before
    with torch.device("meta"):
        model = t5()
    assert rehearse_step(model, loss, texts(), precision="fp32") == first


class Asks(nn.Module):
    """A model whose path depends on numbers: known ones of its batch, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layer(torch.nn.functional.one_hot(ids, 4).float())
        kept = x[ids > 1]
        assert kept.shape == (2, 4)
        assert len(ids.unique()) == int(ids.max()) + 1 == 4
        if torch.isnan(x).any() or torch.equal(x, -x):
            raise ValueError("odd")
        return (kept * torch.rand_like(kept).exponential_(generator=torch.Generator())).sum()


def test_known_numbers_are_computed_and_others_are_not_odd() -> None:
    found = rehearse_step(Asks(), lambda model, batch: model(**batch), {"ids": torch.arange(4)}, precision="fp32")
    assert found.weights == found.gradients == 80
    assert 0 < found.activations < 4000


def test_the_total_is_the_sum() -> None:
    assert Memory(1, 2, 4, 8).total == 15
