"""Outliers of activations go into weights, and what a model answers stays."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tltasks.inference.smoothing import smooth

SIZES = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize("feed_forward", ["gated-gelu", "relu"])
@pytest.mark.parametrize("tied", [True, False])
def test_outliers_are_levelled_and_answers_stay(feed_forward: str, tied: bool) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(**SIZES, feed_forward_proj=feed_forward, decoder_start_token_id=0)
    ).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    own = dict(model.named_modules())
    norms = [part for name, part in own.items() if name.endswith("layer_norm")]
    with torch.no_grad():
        for norm in norms:
            norm.weight[3] = 200.0
        for name, part in own.items():
            if name.endswith((".q", ".k", ".v", ".wi", ".wi_0", ".wi_1")) or (name == "lm_head" and not tied):
                part.weight[:, 3] /= 200
    ids = torch.randint(2, 40, (3, 9))

    def answer() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=ids, labels=ids).logits
        return found

    before = answer()
    smooth(model, answer)
    torch.testing.assert_close(answer(), before, rtol=1e-4, atol=1e-4)
    last = model.decoder.final_layer_norm
    smoothed = [norm.weight.detach().abs() for norm in norms if not tied or norm is not last]
    assert len(smoothed) == len(norms) - tied
    assert all(it.max() / it.median() < 60 for it in smoothed)
