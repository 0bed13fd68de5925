"""Names of metrics and methods as the field writes them, for terminals, reports, experiments and demos."""

from __future__ import annotations

NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "cer": "Character error rate",
    "codebook_perplexity": "Codes in use",
    "coverage": "Coverage",
    "deletions": "Deletions per word",
    "density": "Density",
    "ece": "Calibration error",
    "feature_spread": "Spread of features",
    "insertions": "Insertions per word",
    "knn_accuracy": "Accuracy of nearest neighbours",
    "length_ratio": "Length ratio",
    "loss": "Loss",
    "macro_f1": "Macro F1",
    "masked_accuracy": "Masked accuracy",
    "mean_average_precision": "Mean average precision",
    "micro_f1": "Micro F1",
    "new_bigrams": "New bigrams",
    "perplexity": "Perplexity",
    "raw_wer": "Word error rate, texts as written",
    "repetition": "Repetition",
    "repetition_loop": "Share of clips whose decoding looped",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "subset_accuracy": "Share of rows with all classes right",
    "substitutions": "Substitutions per word",
    "top5_accuracy": "Top-5 accuracy",
    "views_matched": "Views matched",
    "wer": "Word error rate",
}


METHODS = {
    "full": "all weights",
    "head": "the head",
    "lora": "LoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "ia3": "(IA)³",
    "bitfit": "the biases",
    "prompt": "prompt tuning",
}


def metric_name(key: str) -> str:
    """The name to stand at the start of a line; of a metric of others its own.

    >>> metric_name("wer"), metric_name("rougeLsum"), metric_name("some_metric")
    ('Word error rate', 'ROUGE-Lsum', 'Some metric')
    """
    name = NAMES.get(key, key.replace("_", " "))
    return name[:1].upper() + name[1:]


def metric_in_text(key: str) -> str:
    """The name within a sentence.

    >>> metric_in_text("wer"), metric_in_text("macro_f1"), metric_in_text("rouge1"), metric_in_text("some_metric")
    ('word error rate', 'macro F1', 'ROUGE-1', 'some metric')
    """
    name = metric_name(key)
    return name if name[1:2].isupper() else name[:1].lower() + name[1:]
