"""Times of words: the way through attention, spikes of CTC, and which words tokens are of."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.tiny import speech
from tltasks.metrics.calibration import expected_calibration_error
from tltasks.tasks.speech.words import (
    Calibration,
    alignment_heads,
    ctc_tokens,
    first_steps,
    steps_by_attention,
    token_ends,
    words_of,
)

END = 256


def dearest(cost: np.ndarray) -> float:
    """The cheapest way by trying all: each token has some steps, one after the other."""
    n, m = cost.shape
    cuts = itertools.combinations(range(1, m), n - 1)
    return min(sum(cost[i, a:b].sum() for i, (a, b) in enumerate(itertools.pairwise((0, *cut, m)))) for cut in cuts)


@pytest.mark.parametrize("seed", range(5))
def test_the_way_through_attention_is_the_cheapest(seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(4, 9))
    starts = first_steps(cost).astype(int).tolist()
    assert starts[0] == 0
    spans = itertools.pairwise([*starts, 9])
    assert sum(cost[i, a:b].sum() for i, (a, b) in enumerate(spans)) == pytest.approx(dearest(cost))


def test_more_tokens_than_steps_share_them() -> None:
    starts = first_steps(np.random.default_rng(0).normal(size=(7, 3)))
    assert (np.diff(starts) > 0).all()
    assert starts[-1] < 3


def test_spikes_of_ctc() -> None:
    path = [0, 5, 5, 0, 5, 7, 0, 0]
    spread = torch.full((len(path), 9), 0.01)
    spread[range(len(path)), path] = torch.tensor([0.9, 0.6, 0.8, 0.9, 0.7, 0.5, 0.9, 0.9])
    ids, starts, ends, shares = ctc_tokens(spread, blank=0, seconds_per_step=0.02)
    assert ids == [5, 5, 7]
    np.testing.assert_allclose(starts, [0.02, 0.08, 0.10])
    np.testing.assert_allclose(ends, [0.06, 0.10, 0.12])
    np.testing.assert_allclose(shares, [0.8, 0.7, 0.5], rtol=1e-6)
    nothing, *none = ctc_tokens(spread[:1], blank=0, seconds_per_step=0.02)
    assert words_of("", nothing, *none) == []


def test_words_of_tokens_and_of_scripts_without_spaces() -> None:
    times = np.arange(7.0)
    timed = times[:-1], times[1:], np.full(6, 0.5)
    found = words_of(" ¿Qué  tal, yo?", [1, 4, 6, 9, 14, 15], *timed)
    assert [(it.text, it.start, it.end) for it in found] == [("¿Qué", 1, 3), ("tal,", 3, 5), ("yo?", 4, 6)]
    written = words_of("今天好。OK 吧", [1, 2, 4, 6, 7, 8], *timed)
    assert [it.text for it in written] == ["今", "天", "好。", "OK", "吧"]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> transformers.WhisperForConditionalGeneration:
    folder: Path = speech.save_whisper(tmp_path_factory.mktemp("tiny") / "whisper", seconds=4)
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def test_attention_is_what_transformers_gives(whisper: transformers.WhisperForConditionalGeneration) -> None:
    """The pass that tells times gives the probabilities of plain forward passes, whatever stands beside a row."""
    torch.manual_seed(0)
    clips = torch.randn(2, whisper.config.num_mel_bins, 400)
    heads = alignment_heads(whisper.generation_config, whisper.config)
    with torch.no_grad():
        encoded = whisper.get_encoder()(clips).last_hidden_state
        texts = [[10, 11, 12], [13]]
        both = steps_by_attention(whisper, heads, encoded, [[1, 2], [1, 2]], texts, [150, 60], end=END)
        for i, (starts, shares) in enumerate(both):
            ids = torch.tensor([[1, 2, *texts[i]]])
            logits = whisper(input_features=clips[i : i + 1], decoder_input_ids=ids).logits
            plain = logits[0, 1:-1, :END].softmax(-1)
            np.testing.assert_allclose(shares, plain[range(len(texts[i])), texts[i]], rtol=1e-4)
            [(alone, _)] = steps_by_attention(
                whisper, heads, encoded[i : i + 1], [[1, 2]], [texts[i]], [(150, 60)[i]], end=END
            )
            np.testing.assert_array_equal(starts, alone)
            assert len(starts) == len(texts[i]) + 1
            assert starts[-1] < (150, 60)[i]


def test_a_text_that_fills_the_decoder_has_times(whisper: transformers.WhisperForConditionalGeneration) -> None:
    """As `generate` writes it where a model comes to no end: with its prompt as long as there are positions."""
    heads, text = alignment_heads(whisper.generation_config, whisper.config), [10] * (96 - 2)
    with torch.no_grad():
        encoded = whisper.get_encoder()(torch.zeros(1, whisper.config.num_mel_bins, 400)).last_hidden_state
        [(starts, shares)] = steps_by_attention(whisper, heads, encoded, [[1, 2]], [text], [200], end=END)
    assert (len(starts), len(shares)) == (95, 94)


def test_watched_attention_is_that_of_eager(whisper: transformers.WhisperForConditionalGeneration) -> None:
    from tltasks.tasks.speech.words import _attention, _watched

    torch.manual_seed(0)
    clips, ids = torch.randn(1, whisper.config.num_mel_bins, 400), torch.tensor([[1, 2, 10, 11]])
    whisper.set_attn_implementation("eager")
    with torch.no_grad(), _watched(whisper, [0]) as seen:
        found = whisper(input_features=clips, decoder_input_ids=ids, use_cache=False, output_attentions=True)
    query, key = seen[0]
    ours = _attention(query[0, :, 1], key[0, :, 1])
    torch.testing.assert_close(ours, found.cross_attentions[0][0, 1], rtol=1e-4, atol=1e-6)


def test_confidence_becomes_the_share_that_is_right() -> None:
    drawn = np.random.default_rng(0)
    shares = drawn.uniform(0.6, 0.999, 4000)
    right = drawn.random(4000) < shares**3  # the model is too sure
    fitted = Calibration.fit(shares[:2000], right[:2000])
    told = fitted(shares[2000:])
    assert (
        expected_calibration_error(told, right[2000:])
        < 0.04
        < 0.15
        < expected_calibration_error(shares[2000:], right[2000:])
    )
    assert (np.argsort(told) == np.argsort(shares[2000:])).all()
    few = Calibration.fit(np.array([0.5]), np.array([True]))
    assert few(np.array(0.5)) == pytest.approx(0.5, abs=0.15)
    assert 0 <= fitted(np.array(0.0)) < fitted(np.array(1.0)) <= 1


def test_ends_of_tokens_are_those_of_the_whole_text() -> None:
    tokenizer = speech.whisper_tokenizer()  # a token is a byte
    text = " ¿Qué tal? 今天 good 🙂 bye"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = token_ends(tokenizer.decode, ids)
    assert ends[-1] == len(text)
    assert ends == [len(bytes(text.encode()[: n + 1]).decode(errors="ignore")) for n in range(len(ids))]


def test_what_is_not_said_takes_no_time(whisper: transformers.WhisperForConditionalGeneration) -> None:
    torch.manual_seed(0)
    heads = alignment_heads(whisper.generation_config, whisper.config)
    with torch.no_grad():
        encoded = whisper.get_encoder()(torch.randn(1, whisper.config.num_mel_bins, 400)).last_hidden_state
        given = (whisper, heads, encoded, [[1, 2]], [[10, 13, 11, 12, 13]], [150])
        [(starts, shares)] = steps_by_attention(*given, end=END, silent={13})
    assert len(starts) == 6
    assert starts[1] == starts[2] > starts[0]  # a comma begins with the word behind it
    assert starts[4] == starts[5] > starts[3]
    assert len(shares) == 5
