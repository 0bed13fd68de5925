from __future__ import annotations

import datasets
import pytest

from tltasks.data.languages import Languages, check_languages, only_language
from tltasks.data.loading import _by_name
from tltasks.data.splits import Split
from tltasks.errors import DataError

NLLB = Languages(("deu_Latn", "srp_Cyrl", "zho_Hans", "zho_Hant"), "nllb")
WHISPER = Languages(("en", "es", "jw", "no", "zh"), "whisper", {"spanish": "es", "castilian": "es"}, default="en")


@pytest.mark.parametrize(
    ("languages", "name", "code"),
    [
        (WHISPER, "Spanish", "es"),
        (WHISPER, "Castilian", "es"),
        (WHISPER, "spa_Latn", "es"),
        (WHISPER, "es-MX", "es"),
        (WHISPER, "<|es|>", "es"),
        (WHISPER, "Javanese", "jw"),
        (WHISPER, "nb", "no"),
        (WHISPER, "cmn", "zh"),
        (WHISPER, " ", "en"),
        (NLLB, "German", "deu_Latn"),
        (NLLB, "sr", "srp_Cyrl"),
        (NLLB, "zh-Hant", "zho_Hant"),
    ],
)
def test_names_are_matched_with_a_models_codes(languages: Languages, name: str, code: str) -> None:
    assert languages.code(name) == code


@pytest.mark.parametrize(
    ("languages", "name", "error"),
    [
        (WHISPER, "spanisch", r"whisper does not know `spanisch`; did you mean `spanish`\?.*es \(spanish\)"),
        (WHISPER, "ca", r"whisper does not know `ca`\. It knows: en, es"),
        (NLLB, "zh", "several languages of nllb: zho_Hans, zho_Hant"),
        (NLLB, "sr-Latn", "does not know `sr-Latn`"),
        (NLLB, None, "has no language, and nllb has to be told one"),
    ],
)
def test_what_fits_none_or_several_is_refused(languages: Languages, name: str | None, error: str) -> None:
    with pytest.raises(DataError, match=error):
        languages.code(name)


def split(names: list[str | None]) -> dict[str, Split]:
    rows = datasets.Dataset.from_dict({"language": names}, datasets.Features({"language": datasets.Value("string")}))
    return {"train": Split("train", rows, "data train", None, "data.splits.train")}


def test_the_first_row_with_an_unknown_language_is_named() -> None:
    check_languages(split(["es", "", "en"]), WHISPER)
    check_languages(split(["elvish", None]), Languages())
    with pytest.raises(DataError, match=r"data\.splits\.train: data train: row 2: whisper does not know `elvish`"):
        check_languages(split(["es", "en", "elvish", "elvish"]), WHISPER)


def test_a_column_of_one_language_names_it() -> None:
    assert only_language(split(["es", "Spanish", None]), "why") == "es"
    assert only_language(split([None]), "why") is only_language({}, "why") is None
    with pytest.raises(DataError, match="row 1: is in `fr`, and there are rows in es, too: why"):
        only_language(split(["es", "fr"]), "why")


def test_a_class_of_a_row_that_has_none_is_no_language() -> None:
    """Data sets of the Hub write -1."""
    assert _by_name("language", datasets.ClassLabel(names=["es", "fr"]), {"language": [1, -1, None]}) == {
        "language": ["fr", None, None]
    }
