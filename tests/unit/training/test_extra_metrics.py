"""Metrics of the evaluate library: what they are given, and what is refused before training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from tests.tiny.tables import save_metric
from tltasks.config.stage import Metric
from tltasks.errors import RecipeError
from tltasks.results.result import Score
from tltasks.training.extra_metrics import ExtraMetric, load_extra_metrics

TEXT, NUMBER = "datasets.Value('string')", "datasets.Value('int32')"
WRITER: Any = SimpleNamespace(tag="summarization", output_features={"prediction": datasets.Value("string")})
CLASSIFIER: Any = SimpleNamespace(
    tag="image-classification", output_features=WRITER.output_features, class_names=["red", "blue"]
)
OBJECTIVE: Any = SimpleNamespace(tag="masked", output_features={"prediction": datasets.Value("float32")})
COLUMNS = {
    "prediction": ["red", "blue", "blue"],
    "reference": ["red", "red", "blue"],
    "probabilities": [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]],
}
Make = Callable[..., ExtraMetric]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A metric that returns `found`, an expression of its columns, and takes them in these types."""

    def make(
        found: str, features: str, task: Any = CLASSIFIER, *, name: str = "mine", **options: object
    ) -> ExtraMetric:
        folder = save_metric(tmp_path / name, features, found)
        (metric,) = load_extra_metrics([Metric(name=str(folder), options=options)], task)
        return metric

    return make


def test_texts_and_the_numbers_of_labels(make: Make) -> None:
    before = Score({"accuracy": 0.5}, "accuracy")
    for task, kind, expected in ((WRITER, TEXT, "blue"), (CLASSIFIER, TEXT, "blue"), (CLASSIFIER, NUMBER, 1)):
        features = f"{{'predictions': {kind}, 'references': datasets.Sequence({kind})}}"
        share = "sum([p] == r for p, r in zip(predictions, references)) / 3"
        found = f"{{'share': {share}, 'known': predictions[1] == {expected!r}}}"
        after = make(found, features, task)(before, COLUMNS)
        assert after.values == {"accuracy": 0.5, "mine/share": pytest.approx(2 / 3), "mine/known": 1.0}
        assert (after.headline, before.values) == ("accuracy", {"accuracy": 0.5})


def test_the_first_form_that_fits_is_taken(make: Make) -> None:
    forms = [f"datasets.Features({{'predictions': {kind}, 'references': {kind}}})" for kind in (NUMBER, TEXT)]
    features = f"[{', '.join(forms)}]"
    metric = make("{'first': float(predictions[0] == 'red')}", features, WRITER)
    assert metric(Score({}, "x"), COLUMNS).values == {"mine/first": 1.0}


def test_probabilities_of_the_second_of_two_classes(make: Make) -> None:
    features = f"{{'prediction_scores': datasets.Value('float'), 'references': {NUMBER}}}"
    metric = make("{'sum': sum(prediction_scores), 'labels': sum(references)}", features)
    assert metric(Score({}, "x"), COLUMNS).values == pytest.approx({"mine/sum": 1.5, "mine/labels": 1})


def test_options_reach_it_and_what_is_no_number_is_left_out(make: Make) -> None:
    features = f"{{'predictions': {TEXT}, 'references': {TEXT}}}"
    metric = make("{'mine': more, 'list': [1.0], 'text': 'x'}", features, more=3)
    assert metric(Score({}, "x"), COLUMNS).values == {"mine": 3.0}
    assert metric(Score({"mine": 1.0}, "mine"), COLUMNS).values == {"mine": 1.0, "mine/mine": 3.0}


def test_one_that_fails_is_a_note(make: Make) -> None:
    metric = make("{'mine': 1 / 0}", f"{{'predictions': {TEXT}, 'references': {TEXT}}}")
    score = metric(Score({"accuracy": 1.0}, "accuracy", notes=["before"]), COLUMNS)
    assert score.values == {"accuracy": 1.0}
    assert score.notes == ["before", "mine could not be computed: division by zero"]


@pytest.mark.parametrize(
    ("features", "task", "said"),
    [
        (f"{{'predictions': {NUMBER}, 'references': {NUMBER}}}", WRITER, r"wants predictions \(int\), references"),
        (
            f"{{'predictions': {TEXT}, 'references': {TEXT}}}",
            OBJECTIVE,
            r"wants .*, which masked does not have; leave it out",
        ),
        (f"{{'sources': {TEXT}, 'references': {TEXT}}}", WRITER, r"wants sources \(string\)"),
        ("{'prediction_scores': datasets.Value('float')}", WRITER, "wants prediction_scores"),
    ],
)
def test_one_that_does_not_fit_the_task(make: Make, features: str, task: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"metrics: mine: {said}"):
        make("{}", features, task)


def test_a_script_of_the_hub_needs_a_say_so() -> None:
    with pytest.raises(RecipeError, match=r"metrics: evaluate/f1: would run a script of the Hub.*trust_remote_code"):
        load_extra_metrics([Metric(name="evaluate/f1")], CLASSIFIER)
    with pytest.raises(RecipeError, match=r"metrics: evaluate/f1: cannot be loaded: "):  # offline
        load_extra_metrics([Metric(name="evaluate/f1", trust_remote_code=True)], CLASSIFIER)


def test_a_script_that_is_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.py").write_text("import evaluate\nraise KeyError('why')\n")
    for name in ("empty", "broken"):
        with pytest.raises(RecipeError, match=rf"metrics: {name}: cannot be loaded"):
            load_extra_metrics([Metric(name=str(tmp_path / name))], CLASSIFIER)
