"""Texts are those of `generate`, whichever rows end first."""

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from tltasks.models import writing

VOCABULARY, END, PAD, NEW = 40, 1, 0, 14
SMALL = {"vocab_size": VOCABULARY, "eos_token_id": END, "pad_token_id": PAD}


def t5() -> PreTrainedModel:
    config = transformers.T5Config(
        **SMALL,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def bart() -> PreTrainedModel:
    sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    ids = {"bos_token_id": 2, "decoder_start_token_id": END, "forced_eos_token_id": END, "forced_bos_token_id": 5}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**SMALL, **sides, **heads, **ids))


def llama() -> PreTrainedModel:
    config = transformers.LlamaConfig(
        **SMALL,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(**SMALL, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


def mistral() -> PreTrainedModel:  # whose cache has windows, so all its rows stay
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MistralConfig(**SMALL, **sizes, num_key_value_heads=1, sliding_window=6, bos_token_id=2)
    return transformers.MistralForCausalLM(config)


def rwkv() -> PreTrainedModel:  # whose state comes with the first pass, so all its rows stay
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return transformers.RwkvForCausalLM(transformers.RwkvConfig(**SMALL, **sizes, context_length=64, bos_token_id=2))


def whisper() -> PreTrainedModel:
    sides = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("layers", 1), ("ffn_dim", 32))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "num_mel_bins": 8}
    ids = {"bos_token_id": 2, "decoder_start_token_id": 2, "max_source_positions": 10, "max_target_positions": 32}
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SMALL, **sides, **heads, **ids))
    model.generation_config.update(suppress_tokens=[7, 9], begin_suppress_tokens=[END, 11], no_timestamps_token_id=39)
    return model


MODELS = {build.__name__: build for build in (t5, bart, llama, gpt2, mistral, whisper)}
SETTINGS: dict[str, dict[str, object]] = {
    "plain": {},
    "least": {"min_new_tokens": 4},
    "repeats": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "suppressed": {"suppress_tokens": [3, 4, 8], "begin_suppress_tokens": [5, 6]},
    "none suppressed": {"suppress_tokens": [], "begin_suppress_tokens": []},
    "unknown ones suppressed": {"suppress_tokens": [3, VOCABULARY + 7, -1]},
    "several ends": {"eos_token_id": [END, 8, 9]},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "of the encoder": {"encoder_repetition_penalty": 1.5},
}


KEPT = {"beams", "of the encoder"}
"""Settings with which all rows stay."""


def built(build: Callable[[], PreTrainedModel], spread: float = 2.0) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model of which rows end at different steps, and texts of different lengths for it."""
    torch.manual_seed(3)
    rows = 9
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            crosses = "EncDecAttention" in name or "encoder_attn." in name
            if "norm" not in name:
                parameter.normal_(0, spread if crosses else 0.35)
        model.get_output_embeddings().weight[[PAD, END]] *= 0.1  # which texts would consist of
    if build is whisper:
        return model, {"input_features": torch.randn(rows, 8, 20)}
    sizes = torch.tensor([3, 12, 7, 7, 1, 9, 12, 5, 2])
    seen = (torch.arange(12) < sizes[:, None]).long()
    ids = torch.randint(5, VOCABULARY, (rows, 12)) * seen
    if not model.config.is_encoder_decoder:
        ids, seen = ids.flip(1), seen.flip(1)
    return model, {"input_ids": ids, "attention_mask": seen}


def texts(written: Tensor) -> list[list[int]]:
    return [[int(token) for token in row if token != PAD] for row in written]


class Ends(StoppingCriteria):  # type: ignore[misc]
    """Ends rows by what they hold, so at different steps."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **keys: object) -> Tensor:
        return (input_ids.sum(1) % 5 == 0) & (input_ids.shape[1] > 4)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_what_generate_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built(MODELS[name])
    ends, calls, batches = StoppingCriteriaList([Ends()]), SimpleNamespace(own=0), set[int]()
    plain = GenerationMixin._sample

    @functools.wraps(plain)
    def counted(*args: object, **keys: object) -> object:
        calls.own += 1
        return plain(*args, **keys)

    for setting, keys in SETTINGS.items():
        generation = GenerationConfig.from_dict({**model.generation_config.to_dict(), **keys, "max_new_tokens": NEW})
        if name == "whisper" and setting == "of the encoder":
            continue
        if name == "whisper":  # which has settings of its own
            model.generation_config, generation = generation, None  # type: ignore[assignment]
        asked = {} if generation is None else {"generation_config": generation}
        with torch.no_grad():
            wanted = model.generate(**inputs, **asked, stopping_criteria=ends)
            calls.own = 0
            hook = model.register_forward_pre_hook(
                lambda _, args, keys: batches.add(len(keys.get("decoder_input_ids", keys.get("input_ids")))),
                with_kwargs=True,
            )
            with monkeypatch.context() as patched:
                patched.setattr(GenerationMixin, "_sample", counted)
                written = writing.write(model, inputs, generation=generation, stopping=ends)
            hook.remove()
        assert texts(written) == texts(wanted), setting
        has_windows = name == "mistral" and setting != "no cache"
        counts_padding = setting == "repeats" and not model.config.is_encoder_decoder  # a number for each row
        is_kept = setting in KEPT or has_windows or counts_padding
        assert calls.own == (is_kept and setting != "beams"), setting
    assert len(batches) > 3, batches  # rows have left


def test_rows_stay_where_a_state_comes_with_the_first_pass() -> None:
    model, inputs = built(rwkv)
    generation, ends = GenerationConfig(max_new_tokens=NEW, eos_token_id=END, pad_token_id=PAD), StoppingCriteriaList()
    ends.append(Ends())
    with torch.no_grad():
        wanted = model.generate(**inputs, generation_config=generation, stopping_criteria=ends)
        assert texts(writing.write(model, inputs, generation=generation, stopping=ends)) == texts(wanted)


def test_texts_without_an_end_are_as_long_as_generates() -> None:
    model, inputs = built(gpt2)
    model.generation_config = GenerationConfig()
    generation = GenerationConfig(max_new_tokens=NEW, eos_token_id=None, pad_token_id=None)
    ends = StoppingCriteriaList([Ends()])
    with torch.no_grad():
        wanted = model.generate(**inputs, generation_config=generation, stopping_criteria=ends)
        assert torch.equal(writing.write(model, inputs, generation=generation, stopping=ends), wanted)


@pytest.mark.parametrize("build", [t5, whisper])
def test_beams_leave_what_an_encoder_has_made_as_it_is(build: Callable[[], PreTrainedModel]) -> None:
    """Times of Whisper's words are read off it afterwards; repeated, it would be that of other rows."""
    model, inputs = built(build)
    model.generation_config.update(num_beams=3, max_new_tokens=NEW)
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
        kept = encoded[0].clone()
        seen = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        writing.write(model, {**seen, "encoder_outputs": encoded})
    assert torch.equal(encoded[0], kept)


@pytest.mark.parametrize("build", [t5, bart])
def test_an_encoder_read_in_parts_gives_the_same_texts(build: Callable[[], PreTrainedModel]) -> None:
    model, inputs = built(build)
    sizes = list[tuple[int, ...]]()
    hook = model.get_encoder().register_forward_pre_hook(
        lambda _, args, keys: sizes.append(tuple(keys["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        read = writing.read_in_parts(model, inputs, budget=24)
        assert sizes == [(2, 12), (2, 9), (3, 7), (2, 2)]
        assert read is not None
        hook.remove()
        model.generation_config.max_new_tokens = NEW
        assert texts(writing.write(model, read)) == texts(model.generate(**inputs))


@pytest.mark.parametrize("build", [t5, bart, llama, whisper])
def test_passes_in_16_bits_are_the_same_to_rounding(build: Callable[[], PreTrainedModel]) -> None:
    model, inputs = built(build, spread=0.35)
    keys = {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    model.set_attn_implementation("sdpa")

    def first_steps() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return torch.stack(model.generate(**inputs, **keys).logits[:3])

    calls: list[Tensor] = []
    plain, quick = first_steps(), writing._is_quick
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "_is_quick", lambda x: calls.append(x) or quick(x))
        with writing.fast_passes():
            found = first_steps()
    assert calls, "nothing is computed otherwise"
    assert (found - plain)[0].abs().max() <= 0.03 * plain.abs().max()
    assert torch.equal(first_steps(), plain)
