"""Decoders that see a window, forget, count positions from a row's beginning, or read ahead: all told by trying."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tltasks.errors import CheckpointError
from tltasks.models import decoder_trial
from tltasks.models.decoder_trial import Habits, packed_inputs, try_decoder

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BERT = {k: v for k, v in SMALL.items() if k not in {"num_key_value_heads", "head_dim"}}
KINDS: dict[str, tuple[Any, Habits]] = {
    "all seen": (lambda: transformers.LlamaConfig(**SMALL), Habits("mask", "any rows")),
    # A mask that says who sees whom stands in place of the window, too (transformers 5.24, masking_utils.py).
    "window": (lambda: transformers.MistralConfig(**SMALL, sliding_window=6), Habits("positions", "any rows")),
    "two kinds of layers": (
        lambda: transformers.Gemma3TextConfig(
            **SMALL, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        Habits("positions", "any rows"),
    ),
    "recurrent": (
        lambda: transformers.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4),
        Habits(None, "any rows"),
    ),
    # RWKV takes no mask at all, and mixes the states of rows where it has a cache (modeling_rwkv.py).
    "heedless of padding": (
        lambda: transformers.RwkvConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32),
        Habits(None, "single rows"),
    ),
    # BART's decoder counts positions from the beginning of the row (modeling_bart.py).
    "places from the left": (
        lambda: transformers.BartConfig(
            vocab_size=60,
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            is_decoder=True,
            is_encoder_decoder=False,
        ),
        Habits(None, "equal lengths"),
    ),
}


def made(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tried(model: PreTrainedModel, *, tokens: int = 40, beams: int | None = 1) -> Habits:
    return try_decoder(model, range(3, 60), tokens=tokens, pad=0, beams=beams, display_name="mine")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_decoder_can_be_given(kind: str) -> None:
    config, expected = KINDS[kind]
    model = made(config()).train()
    before, random = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    assert tried(model) == expected
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_window_is_seen_by_texts_longer_than_it() -> None:
    assert tried(made(KINDS["window"][0]()), tokens=5).packing == "mask"


@pytest.mark.parametrize("kind", ["all seen", "window", "two kinds of layers"])
def test_examples_of_a_row_get_the_gradients_of_rows_of_their_own(kind: str) -> None:
    model = made(KINDS[kind][0]())
    packing = tried(model, beams=None).packing
    assert packing is not None
    texts = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 13)]
    segments = torch.tensor([[1] * 20 + [2] * 13 + [0] * 4])
    places = torch.tensor([[*range(20), *range(13), 0, 0, 0, 0]])
    row = torch.cat([*texts, torch.zeros(4, dtype=torch.long)])[None]
    gradients = []
    for together in (True, False):
        model.zero_grad()
        if together:
            logits = model(input_ids=row, use_cache=False, **packed_inputs(segments, places, model, packing)).logits[
                0, :33
            ]
        else:
            logits = torch.cat([model(input_ids=text[None]).logits[0] for text in texts])
        logits.log_softmax(-1)[:, 5].sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    scale = max(float(g.abs().max()) for g in gradients[0].values())
    worst = max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[1])
    assert worst < 1e-5 * scale


def test_an_encoder_is_refused_and_the_same_as_a_decoder_is_not() -> None:
    with pytest.raises(CheckpointError, match="BertLMHeadModel reads what comes after a word, as encoders do"):
        tried(made(transformers.BertConfig(**BERT)))
    assert tried(made(transformers.BertConfig(**BERT, is_decoder=True))).batches == "any rows"


def test_a_text_that_is_too_long_for_a_model_is_refused() -> None:
    model = made(transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=2, n_positions=30))
    with pytest.raises(CheckpointError, match=r"does not run on 40 tokens \(.*\); lower `data.max_document_tokens`"):
        tried(model)


def test_a_cache_that_holds_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(KINDS["all seen"][0]())
    write = decoder_trial._Trial._write

    def forgetful(trial: Any, texts: Any, *, cached: bool, **keys: Any) -> Any:
        sequences, logits = write(trial, texts, cached=cached, **keys)
        return sequences, logits + torch.randn_like(logits) if cached else logits

    monkeypatch.setattr(decoder_trial._Trial, "_write", forgetful)
    assert tried(model) == Habits("mask", "any rows", caches=False)


def test_beams_whose_states_cannot_be_reordered_are_searched_without_a_cache() -> None:
    model = made(KINDS["heedless of padding"][0]())
    assert tried(model, beams=1).caches
    assert not tried(model, beams=2).caches
    assert tried(made(KINDS["recurrent"][0]()), beams=2).caches


def test_the_small_copy_of_a_model_has_its_habits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = KINDS["window"][0]()
    config.update({"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16})
    model = made(config)

    def not_run(*_: object, **__: object) -> None:
        raise AssertionError("the model itself is run")

    monkeypatch.setattr(model, "forward", not_run)
    assert tried(model) == Habits("positions", "any rows")
