import io
import json
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tltasks.reports import charts
from tltasks.reports import html as report
from tltasks.reports.html import LARGEST_MATRIX, describe_errors, sureness, write_report
from tltasks.results.comparison import compare_headline
from tltasks.results.result import (
    Attribution,
    Headline,
    Provenance,
    ReportExample,
    RunResult,
    Score,
    SplitSummary,
    StageResult,
    TrainingSummary,
    load_result,
)

ANIMALS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def classifier_score(names: list[str], rows: int, accuracy: float, *, seed: int = 0) -> Score:
    """What image classification reports, of predictions that mistake each class mostly for its neighbour."""
    rng = np.random.default_rng(seed)
    n = len(names)
    labels = rng.integers(0, n, rows)
    skill = np.clip(accuracy + np.linspace(-0.15, 0.15, n), 0, 1)[labels]
    wrong = np.where(rng.random(rows) < 0.6, labels ^ 1, rng.integers(0, n, rows)) % n
    chosen = np.where(rng.random(rows) < skill, labels, wrong)
    counts = np.zeros((n, n), dtype=int)
    np.add.at(counts, (labels, chosen), 1)
    hits, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    columns = zip(names, precision, recall, f1, support, strict=True)
    value = float(hits.sum() / rows)
    half = 1.96 * float(np.sqrt(value * (1 - value) / rows))
    return Score(
        {"accuracy": value, "macro_f1": float(f1.mean()), "ece": 0.031, "loss": 0.52, "top5_accuracy": 0.99},
        "accuracy",
        (value - half, value + half),
        {
            "class_names": names,
            "per_class": [
                {"class": c, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
                for c, p, r, f, s in columns
            ],
            "confusion_matrix": counts.tolist(),
        },
    )


def plain_score(metric: str, value: float, half: float = 0.02, **more: Any) -> Score:
    return Score({metric: value}, metric, (value - half, value + half), **more)


def stage(
    name: str, metrics: dict[str, Score], baselines: dict[str, dict[str, Score]], *, trains: bool = True, **changed: Any
) -> StageResult:
    split = SplitSummary(1000, source="made up", fingerprint="0f3a51c2")
    training = TrainingSummary(
        steps=600,
        epochs=5.0,
        best_step=480,
        best_value=0.8,
        ended="all steps done",
        seconds=300.0,
        batch_size=64,
        micro_batch=16,
        learning_rate=5e-5,
        method="lora",
        precision="bf16",
    )
    result = StageResult(
        kind=name,
        name=name,
        task="image-classification",
        higher_is_better=True,
        metrics=metrics,
        baselines=baselines,
        seconds=345.0,
        examples_per_second=128.0,
        peak_memory_bytes=3 * 2**30,
        trainable_parameters=300_000 if trains else 0,
        total_parameters=22_000_000,
        weights=Provenance("org/vit-small", newly_initialised=["classifier.weight"], adapter=True),
        data={**({"train": split} if trains else {}), **dict.fromkeys(metrics, split)},
        training=training if trains else None,
    )
    return replace(result, **changed)


def run_of(stages: list[StageResult], split: str = "test", *, higher_is_better: bool = True) -> RunResult:
    last = stages[-1]
    score = last.metrics[split]
    value = score.values[score.headline]
    headline = Headline(score.headline, value, score.ci95, last.name, split)
    stages = [replace(it, higher_is_better=higher_is_better) for it in stages]
    hardware = {"device": "cpu", "device_name": "Some CPU", "memory_bytes": 16 * 2**30, "precision": "bf16"}
    return RunResult("ab" * 32, headline, stages, {"python": "3.12.1", "torch": "2.12.0"}, hardware)


def logged(name: str, steps: int = 600, every: int = 120) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.5 + 1.8 * float(np.exp(-step / 120)) + float(rng.normal(0, 0.12))
        rate = 5e-5 * min(step / 60, 1 - (step - 60) / (steps - 59))
        numbers = {"loss": loss, "learning_rate": rate, "grad_norm": 1.0, "examples_per_second": 130.0}
        rows.append({"stage": name, "split": "train", "step": step, "epoch": step / 120, **numbers})
        if step % every == 0:
            gain = 1 - float(np.exp(-step / 150))
            scores = {"accuracy": 0.82 * gain, "macro_f1": 0.8 * gain, "ece": 0.1 - 0.06 * gain}
            scores |= {"loss": 0.5 + 0.9 * (1 - gain), "top5_accuracy": 0.9 + 0.09 * gain}
            rows.append({"stage": name, "split": "validation", "step": step, "epoch": step / 120, **scores})
    return rows


def pictures(n: int, title: str = "cat (97%)") -> list[ReportExample]:
    found = []
    for i in range(n):
        ramp = np.linspace(0, 255, 32)[:, None, None] * np.ones((32, 32, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.roll((ramp + np.array([i * 9, 60, 255 - i * 9])) / 2, i, 1).astype(np.uint8)).save(
            buffer, "PNG"
        )
        found.append(ReportExample("image", title, f"is dog · row {i * 37}", buffer.getvalue()))
    return found


def classifier_run(names: list[str] = ANIMALS) -> RunResult:
    """Two stages, three judged splits."""
    arms = {"majority_class": 0.1, "checkpoint_knn": 0.83}
    splits = ("test", "validation", "sketches")
    tuned = {split: classifier_score(names, 1000, 0.82, seed=i) for i, split in enumerate(splits)}
    first = {split: classifier_score(names, 1000, 0.6, seed=i) for i, split in enumerate(splits)}

    def beside(metrics: dict[str, Score], value: float) -> dict[str, Score]:
        gains = {split: score.values["accuracy"] - value for split, score in metrics.items()}
        return {k: plain_score("accuracy", value, difference_ci95=(g - 0.03, g + 0.03)) for k, g in gains.items()}

    stages = [
        stage("finetune", first, {"majority_class": beside(first, 0.1)}),
        stage("transfer", tuned, {arm: beside(tuned, value) for arm, value in arms.items()}),
    ]
    skipping = {"skipped": 2, "skipped_rows": {"17": "truncated JPEG", "90": "empty file"}}
    data = stages[1].data
    stages[1] = replace(stages[1], data={**data, "train": replace(data["train"], **skipping)})
    return run_of(stages)


METRICS = logged("finetune") + logged("transfer")
RECIPE = "task: image-classification\nstages:\n  - stage: finetune\n  - stage: transfer\n    start: previous\n"


def written(
    folder: Path,
    result: RunResult,
    metrics: list[dict[str, Any]] | None = None,
    report_examples: list[ReportExample] | None = None,
) -> str:
    write_report(folder / "report.html", result, RECIPE, metrics or [], report_examples or [])
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


# ------------------------------------------------------------------------------------------ the page


def test_a_whole_run_is_one_well_formed_page(tmp_path: Path) -> None:
    html = written(tmp_path, classifier_run(), METRICS, pictures(24))
    page = Page(html)
    assert page.open == []
    for part in (
        "0.835 accuracy on test",
        "Better than always naming the most frequent class by 0.735 (95\xa0% interval 0.705 to 0.765)",
        "Not shown to be better or worse than nearest neighbours by the untouched checkpoint's features",
        "Where it errs on test",
        "Stage 1 of 2: finetune",
        "Stage 2 of 2: transfer",
        "300,000 of 22,000,000 parameters (1.36\xa0%)",
        "5 min 45 s",
        "128.0 examples/s",
        "3.00 GiB",
        "bf16",
        "all steps done, at step 600 (epoch 5)",
        "truncated JPEG",
        "start: previous",
        "2.12.0",
        "16.0 GiB",
    ):
        assert part in page.text, part
    # By stage: loss, accuracy, three more metrics, learning rate; the intervals; 24 examples.
    assert page.count("img") == 2 * 6 + 1 + 24
    assert page.text.count("Classes, the worst first") == 6
    assert sum(attributes.get("class") == "hit" for tag, attributes in page.tags if tag == "td") == 6 * 10


def test_what_answers_go_by_stands_beside_them_or_why_not(tmp_path: Path) -> None:
    shown = pictures(3)
    explained = [replace(shown[0], attribution=Attribution(shown[1].content, "12% without")), *shown[1:]]
    page = Page(written(tmp_path, classifier_run(), METRICS, explained))
    own, its, second, *_ = [tag for name, tag in page.tags if name == "img" and tag.get("loading") == "lazy"]
    assert (own["alt"], its["alt"], second["alt"]) == ("cat (97%)", "what the answer goes by", "cat (97%)")
    assert own["src"] != its["src"] == second["src"]
    assert "cat (97%), 12% without" in page.text
    failed = [replace(shown[0], attribution=Attribution(text="no such layer")), *shown[1:]]
    page = Page(written(tmp_path, classifier_run(), METRICS, failed))
    assert "goes by: no such layer" in page.text
    assert sum(tag.get("loading") == "lazy" for _, tag in page.tags) == 3


def test_nothing_is_fetched_and_nothing_is_run(tmp_path: Path) -> None:
    sounds = [ReportExample("audio", "heard", "said", b"fLaC")]
    page = Page(written(tmp_path, classifier_run(), METRICS, pictures(3) + sounds))
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name == "src"]
    assert len(sources) == 13 + 3 + 1
    assert all(source is not None and source.startswith("data:") for source in sources)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name == "href"]
    assert links == ["README.md", "model/", "predictions/"], "what lies beside the page"
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_all_text_from_data_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x$')</script>\" onload=\"1"
    run = classifier_run([evil, "b", "c", "d", "e", "f", "g", "h", "i", "j"])
    last = run.stages[-1]
    data = {**last.data, evil: replace(last.data["test"], source=evil, skipped=1, skipped_rows={evil: evil})}
    arms = {**last.baselines, evil: last.baselines["majority_class"]}
    assert last.training is not None
    training = replace(last.training, ended=evil)
    last = replace(last, name=evil, data=data, baselines=arms, weights=Provenance(evil), training=training)
    run = replace(
        run,
        stages=[run.stages[0], last],
        headline=replace(run.headline, stage=evil),
        versions={evil: evil},
        hardware={evil: evil},
    )
    shown = [
        ReportExample("audio", evil, evil, evil.encode()),
        ReportExample("texts", evil, evil, json.dumps({evil: evil}).encode()),
    ]
    write_report(tmp_path / "report.html", run, evil, METRICS, [*pictures(1, evil), *shown])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.text.count(evil) >= 40
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_same_run_same_bytes_also_from_its_json(tmp_path: Path) -> None:
    run = classifier_run()
    first = written(tmp_path, run, METRICS, pictures(2))
    run.save(tmp_path / "result.json")
    assert written(tmp_path, load_result(tmp_path / "result.json"), METRICS, pictures(2)) == first
    assert written(tmp_path, run, METRICS[:-1], pictures(2)) != first


# ---------------------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize(
    ("higher", "value", "baseline", "difference", "verdict", "said"),
    [
        (True, 0.8, 0.3, (0.46, 0.54), "better", "better than lead 3 by 0.500 (95 % interval 0.460 to 0.540)"),
        (True, 0.3, 0.8, (-0.54, -0.46), "worse", "worse than lead 3 by 0.500 (95 % interval 0.460 to 0.540)"),
        (False, 0.2, 0.5, (-0.34, -0.26), "better", "better than lead 3 by 0.300 (95 % interval 0.260 to 0.340)"),
        (False, 0.5, 0.2, (0.26, 0.34), "worse", "worse than lead 3 by 0.300"),
        (
            True,
            0.5,
            0.49,
            (-0.02, 0.04),
            "unclear",
            "lead 3: +0.010, 95 % interval −0.020 to +0.040, which contains",
        ),
        (False, 0.5, 0.49, (-0.02, 0.04), "unclear", "lead 3: −0.010, 95 % interval −0.040 to +0.020, which contains"),
        (True, 0.5, 0.4, (0.0, 0.2), "unclear", "which contains zero"),
        (True, 0.5, 0.4, None, "unclear", "not shown to be better or worse than lead 3: +0.100, without an interval"),
        (True, 0.5, 0.4, (float("nan"),) * 2, "unclear", "without an interval"),
        (True, 0.5, 0.4, (0.0002, 0.2), "better", "(95 % interval 0.0002 to 0.2000)"),
        (True, 0.5, float("nan"), None, "unclear", "not comparable with lead 3: a score is not a number"),
    ],
)
def test_each_baseline_gets_a_plain_sentence(
    higher: bool, value: float, baseline: float, difference: Any, verdict: str, said: str, tmp_path: Path
) -> None:
    arms = {"lead_3": {"test": plain_score("rouge", baseline, difference_ci95=difference)}}
    run = run_of([stage("finetune", {"test": plain_score("rouge", value)}, arms)], higher_is_better=higher)
    (found,) = compare_headline(run)
    assert found.verdict == verdict
    assert said in found.sentence
    text = Page(written(tmp_path, run)).text
    assert said[1:].replace("95 %", "95\xa0%") in text
    assert f"{'Higher' if higher else 'Lower'} is better." in text


def test_what_weakens_the_headline_is_said(tmp_path: Path) -> None:
    run = run_of([stage("finetune", {"validation": plain_score("wer", 0.2, float("nan"))}, {})], "validation")
    described = replace(run.best.data["validation"], skipped=7, notes=["See `data.leaks`, <b>."])
    run = replace(run, stages=[replace(run.stages[0], data={"validation": described})])
    text = Page(written(tmp_path, run)).text
    for part in (
        "steered by this very split",
        "no baseline",
        "7 examples of this split could not be read",
        "no interval",
    ):
        assert part in text
    assert "<code>data.leaks</code>, &lt;b&gt;" in (tmp_path / "report.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------ sections


def test_sections_appear_only_where_there_is_data(tmp_path: Path) -> None:
    run = run_of([stage("zero_shot", {"test": plain_score("wer", 0.21)}, {}, trains=False)], higher_is_better=False)
    shown = [
        ReportExample(
            "texts", "ROUGE-1 12.0", "row 4", json.dumps({"document": "héllo\n<b>", "summary": "so"}).encode()
        ),
        ReportExample("audio", "heard", "said", b"fLaC"),
    ]
    page = Page(written(tmp_path, run, METRICS, shown))
    assert page.count("img") == 0
    assert page.count("audio") == 1
    assert "Nothing was trained" in page.text
    assert "0 of 22,000,000 parameters" in page.text
    assert "héllo\n<b>" in page.text
    assert page.count("h3") >= 2  # document and summary stand side by side
    for absent in ("Where it errs", "Classes", "ended"):
        assert absent not in page.text
    assert "Examples from" not in Page(written(tmp_path, run)).text


def test_what_was_heard_stands_in_the_text_beside_what_was_said(tmp_path: Path) -> None:
    run = run_of([stage("finetune", {"test": plain_score("wer", 0.21)}, {})], higher_is_better=False)
    aligned = [("press the", "press the"), ("<pound>", "bound"), ("", "key")]
    page = Page(written(tmp_path, run, METRICS, [ReportExample("audio", "2 errors", "", b"fLaC", aligned=aligned)]))
    assert " ".join(page.text.split()).count("press the <pound> bound key") == 1
    assert (page.count("del"), page.count("ins")) == (1 + 1, 2 + 1), "with those of the line that explains them"


def test_how_a_model_is_driven_is_left_to_result_json() -> None:
    settings = {"prompt": "summarize: {document}", "chat": False, "cache": True, "auto_class": "AutoModelForSeq2SeqLM"}
    made = Provenance(name="t5", model_type="t5", settings=settings | {"max_tokens": 64})
    found = dict(report._facts_of_weights(made))
    assert found["prompt"] == "summarize: {document}"
    assert found["max tokens"] == "64"
    assert not {"chat", "cache", "auto class"} & set(found)


def test_a_page_names_its_day_where_it_is_told(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", classifier_run(), RECIPE, [], [], written=date(2026, 3, 1))
    assert "org/vit-small · 1 March 2026" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_matrix_of_two_classes_is_large_and_tables_stand_alone_without_one(tmp_path: Path) -> None:
    html = written(tmp_path, classifier_run(["melanoma", "naevus"]))
    assert 'class="matrix few"' in html
    assert "nearest neighbours" in Page(html).text
    assert "checkpoint knn" not in Page(html).text
    per_class = [{"class": "a", "precision": 1.0, "recall": 0.9, "f1": 0.95, "support": 100}]
    run = run_of([stage("transfer", {"test": plain_score("accuracy", 0.5, details={"per_class": per_class})}, {})])
    assert '<div class="beside"><div>' in (html := written(tmp_path, run))
    assert "<div></div>" not in html.replace("\n", "")


def test_of_a_single_point_nothing_is_drawn(tmp_path: Path) -> None:
    run = run_of([stage("finetune", {"test": plain_score("wer", 0.2)}, {})])
    rows = [
        {"stage": "finetune", "split": "train", "step": 1, "loss": None, "learning_rate": 0.1},
        {"stage": "finetune", "split": "train", "step": 2, "loss": 1.0, "learning_rate": 0.1},
        {"stage": "finetune", "split": "validation", "step": 2, "wer": 0.5},
        {"stage": "other", "split": "validation", "step": 2, "wer": 0.5},
    ]
    page = Page(written(tmp_path, run, rows))
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [
        "learning rate by step",
    ]
    more = {"stage": "finetune", "split": "validation", "step": 1, "wer": 0.6}
    page = Page(written(tmp_path, run, [*rows, more]))
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["Word error rate by step", "learning rate by step"]
    assert Page(written(tmp_path, run, rows[-1:] + logged("other"))).count("img") == 0


def test_a_measure_that_stays_level_is_drawn_only_where_it_decides(tmp_path: Path) -> None:
    values = {"wer": 0.2, "cer": 0.1, "deletions": 0.0}
    run = run_of([stage("finetune", {"test": Score(values, "wer", (0.1, 0.3))}, {})])
    same = {"stage": "finetune", "split": "validation", "wer": 0.5, "deletions": 0.0}
    page = Page(written(tmp_path, run, [{**same, "step": step, "cer": 0.3 / step} for step in (1, 2, 3)]))
    drawn = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert drawn == ["Word error rate by step", "Character error rate by step"]


def test_no_line_parts_the_name_of_a_measure_at_its_hyphen(tmp_path: Path) -> None:
    run = run_of([stage("finetune", {"test": Score({"rouge1": 30.0, "rouge2": 10.0}, "rouge1", (25.0, 35.0))}, {})])
    html = written(tmp_path, run)
    assert '<th><span class="whole">ROUGE-1</span><small>' in html
    assert '<th><span class="whole">ROUGE-2</span></th>' in html


def test_a_temperature_that_changes_nothing_has_one_column(tmp_path: Path) -> None:
    own = {"ece": 0.1, "loss": 0.9}
    points = [{"coverage": i / 4, "threshold": 0.5, "accuracy": 0.9, "low": 0.8, "high": 1.0} for i in range(1, 5)]
    for after, headed in ((own, False), ({"ece": 0.05, "loss": 0.8}, True)):
        calibration = {"temperature": 1.0, "before": own, "after": after}
        score = plain_score("accuracy", 0.5, details={"answered": points, "calibration": calibration})
        page = Page(written(tmp_path, run_of([stage("transfer", {"test": score}, {})])))
        assert page.open == []
        assert ("beforeafter" in "".join(page.text.split())) == headed
        assert ("changes nothing" in page.text) == (not headed)


def test_how_sure_it_is() -> None:
    assert sureness({}) is None
    points = [
        {"coverage": i / 9, "threshold": 1 - i / 20, "accuracy": 0.9, "low": 0.8, "high": 1.0} for i in range(1, 10)
    ]
    assert sureness({"answered": points[:1]}) is None
    found = sureness({"answered": points})
    assert found is not None
    assert [round(9 * it["coverage"]) for it in found.shown] == [1, 3, 5, 7, 9]
    assert found.calibration == {}
    assert "<svg" in found.figure


def test_errors_are_sorted_and_coloured_by_share_of_the_class() -> None:
    details = {
        "class_names": ["a", "b", "never"],
        "per_class": [
            {"class": "a", "precision": 1.0, "recall": 0.9, "f1": 0.95, "support": 100},
            {"class": "b", "precision": 0.5, "recall": 1.0, "f1": 0.67, "support": 1},
            {"class": "never", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        ],
        "confusion_matrix": [[90, 10, 0], [0, 1, 0], [0, 0, 0]],
    }
    errors = describe_errors("test", details)
    assert errors is not None
    assert errors.class_names == ["a", "b"]
    assert [row["class"] for row in errors.per_class] == ["b", "a"]
    assert errors.absent == 1
    assert [[count for count, _, _ in row] for row in errors.cells] == [[90, 10], [0, 1]]
    assert errors.cells[1][1][1:] == ("#1d5fb4", "#ffffff")
    assert errors.cells[1][0][1:] == ("#ffffff", "#111827")
    assert describe_errors("test", {}) is None


def test_many_classes_become_a_picture_and_the_most_confused_pairs(tmp_path: Path) -> None:
    for n in (LARGEST_MATRIX, LARGEST_MATRIX + 1):
        errors = describe_errors("test", classifier_score([f"c{i}" for i in range(n)], 3000, 0.8).details)
        assert errors is not None
        assert bool(errors.cells) == (n <= LARGEST_MATRIX)
        assert bool(errors.figure) == bool(errors.confused) == (n > LARGEST_MATRIX)
    assert errors is not None
    counts = [count for _, _, count, _ in errors.confused]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == report.SHOWN_ROWS
    assert all(true != predicted for true, predicted, _, _ in errors.confused)
    page = Page(written(tmp_path, classifier_run([f"c{i}" for i in range(60)])))
    assert "The most confused of 60 classes" in page.text
    assert "the other 40 classes" in page.text


# ------------------------------------------------------------------------------------------- figures


def test_thinning_keeps_spikes_and_order() -> None:
    steps, values = np.arange(1.0, 50_001.0), np.random.default_rng(0).normal(0, 1, 50_000)
    values[[777, 31_000]] = 99.0, -99.0
    kept_steps, kept = charts.thinned(steps, values)
    assert 400 < len(kept) <= charts.DRAWN_POINTS
    assert {99.0, -99.0} <= set(kept)
    assert (np.diff(kept_steps) > 0).all()
    assert charts.thinned(steps[:50], values[:50])[1] is not values
    np.testing.assert_array_equal(charts.thinned(steps[:50], values[:50])[1], values[:50])


def test_smoothing_keeps_a_line_and_damps_noise() -> None:
    smooth, width = charts.smoothed(np.full(600, 3.0))
    np.testing.assert_allclose(smooth, 3.0)
    assert width == 21
    noise = np.random.default_rng(0).normal(0, 1, 600)
    assert charts.smoothed(noise)[0].std() < 0.4


def test_a_long_title_goes_on_in_a_second_line() -> None:
    with charts.chart("Validation share of clips whose decoding looped", (3.6, 2.4)) as (figure, _):
        assert figure.get_suptitle() == "Validation share of clips whose\ndecoding looped"
    with charts.chart("Validation share of clips whose decoding looped", (6.0, 2.4)) as (figure, _):
        assert "\n" not in figure.get_suptitle()


def test_figures_scale_and_stay_small() -> None:
    points = [(i, float(np.sin(i))) for i in range(1, 100_000)]
    svg = charts.draw_loss(points, points[::1000], 5)
    assert "viewBox=" in svg
    assert "<dc:date>" not in svg
    assert len(svg) < 100_000
