import doctest

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

import tltasks.metrics.extractiveness
import tltasks.metrics.rouge
import tltasks.tasks.text.baselines
from tltasks.metrics.rouge import KINDS, pair_scores, sentences, tokens
from tltasks.tasks.text.baselines import Lead, choose_lead

WORDS = [
    "the",
    "a",
    "cat",
    "dog's",
    "sat-on",
    "3.5",
    "mats,",
    "and",
    "(ran)",
    "away!",
    "U.S.",
    "x_y",
    "END",
    "e-mail",
    "42nd",
]


@pytest.mark.parametrize(
    ("module", "n"),
    [(tltasks.metrics.rouge, 3), (tltasks.tasks.text.baselines, 1), (tltasks.metrics.extractiveness, 5)],
    ids=lambda v: str(v),
)
def test_doctests(module: object, n: int) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted >= n
    assert result.failed == 0


def test_english_equals_the_reference_implementation() -> None:
    """The reference is given the same sentences, a line each; it splits none itself."""
    theirs = RougeScorer(list(KINDS), use_stemmer=False)
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(200):
        prediction, reference = (" ".join(rng.choice(WORDS, int(rng.integers(1, 40)))) for _ in range(2))
        lines = ("\n".join(sentences(text)) for text in (reference, prediction))
        expected = theirs.score(*lines)
        ours = pair_scores(prediction, reference)
        for kind, value in zip(KINDS, ours, strict=True):
            assert value == pytest.approx(100 * expected[kind].fmeasure, abs=1e-9)
            compared += 0 < value < 100
    assert compared > 400


def f1(hits: int, n_prediction: int, n_reference: int) -> float:
    precision, recall = hits / n_prediction, hits / n_reference
    return 100 * 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("prediction", "reference", "unigrams", "bigrams", "in_order"),
    [
        # 今 天 北 京 下 雨 against 北 京 今 天 下 雪: shared 今天北京下; pairs 今天, 北京; longest in order 今天下
        ("今天北京下雨。", "北京今天下雪。", (5, 6, 6), (2, 5, 5), (3, 6, 6)),
        # 東 京 は 雨 で す against 東 京 は 雪 で す; in half-width katakana カ is カ
        ("東京は雨です", "東京は雪です", (5, 6, 6), (3, 5, 5), (5, 6, 6)),
        ("ｶﾒﾗとTV", "カメラ", (3, 5, 3), (2, 4, 2), (3, 5, 3)),
        # แ ม ว กิ น against แ ม ว น อ น: a consonant keeps the marks above it
        ("แมวกิน", "แมวนอน", (4, 5, 6), (2, 4, 5), (4, 5, 6)),
        # words, with marks kept: القطة تنام الآن against القطة تأكل الآن
        ("القطة تنام الآن", "القطة تأكل الآن", (2, 3, 3), (0, 2, 2), (2, 3, 3)),
        ("дом стоит", "Дом горит.", (1, 2, 2), (0, 1, 1), (1, 2, 2)),
        ("हिन्दी भाषा", "हिन्दी गीत", (1, 2, 2), (0, 1, 1), (1, 2, 2)),
    ],
    ids=["Chinese", "Japanese", "half-width katakana", "Thai", "Arabic", "Russian", "Hindi"],
)
def test_hand_worked_cases(
    prediction: str,
    reference: str,
    unigrams: tuple[int, int, int],
    bigrams: tuple[int, int, int],
    in_order: tuple[int, int, int],
) -> None:
    rouge1, rouge2, rouge_l, _ = pair_scores(prediction, reference)
    assert rouge1 == pytest.approx(f1(*unigrams))
    assert rouge2 == pytest.approx(f1(*bigrams) if bigrams[0] else 0.0)
    assert rouge_l == pytest.approx(f1(*in_order))


def test_the_reference_scores_other_scripts_zero() -> None:
    """The reason for our own tokens; when this fails, they can go."""
    assert RougeScorer(["rouge1"]).score("今天下雨", "今天下雨")["rouge1"].fmeasure == 0
    assert pair_scores("今天下雨", "今天下雨")[0] == 100


def test_sentences_of_several_scripts() -> None:
    assert sentences("One. Two!\nthree") == ["One.", "Two!", "three"]
    assert sentences("她说：“好。”他走了。") == ["她说：“好。”", "他走了。"]


def test_summary_level_union_over_sentences() -> None:
    """Lin 2004, §3.2: w1…w5 against w1 w2 w6 w7 w8 / w1 w3 w8 w9 w5 share w1 w2 w3 w5."""
    assert pair_scores("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")[3] == pytest.approx(f1(4, 10, 5))


def test_empty_texts_score_zero() -> None:
    assert pair_scores("", "a b") == (0.0, 0.0, 0.0, 0.0)
    assert tokens("… —") == []


def test_lead_is_the_best_length_of_words_or_sentences() -> None:
    words = [f"w{i}" for i in range(40)]
    documents = [" ".join(words) + ".", "One two three four. Five six."]
    assert choose_lead(documents[:1], [" ".join(words[:12])], seed=0) == Lead(12, "words")
    assert choose_lead(["Aa bb cc. Dd ee. Ff gg."], ["Aa bb cc. Dd ee."], seed=0) == Lead(2, "sentences")
    assert Lead(1, "sentences").name == "lead_1_sentence"
    assert Lead(3, "words")("") == ""
