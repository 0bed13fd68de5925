"""Names of languages, matched with each other: ISO 639 codes, English names, and the codes that models have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

from babel import Locale
from babel.core import get_global

from tltasks.data.splits import LANGUAGE, Split
from tltasks.errors import DataError, did_you_mean

UNKNOWN = "unknown"
"""Group of rows that tell no language."""


@cache
def _tables() -> tuple[dict[str, str], dict[str, str]]:
    """Codes by English name, and by other codes. Source: Unicode CLDR, as Babel has it."""
    codes = dict(Locale("en").languages)
    aliases = {alias: code.split("_")[0] for alias, code in get_global("language_aliases").items()}
    aliases["no"] = "nb"  # Norwegian without more is Bokmål, in CLDR and of models
    names = {name.casefold(): aliases.get(code, code) for code, name in reversed(codes.items())}
    return names, {code: code for code in codes} | aliases


def _plain(name: str) -> str:
    return name.strip().strip("<|>_").casefold()


@cache
def standard(name: str) -> str | None:
    """The shortest ISO 639 code of a language, of its macrolanguage where CLDR has it so; None for what names none.

    >>> [standard(name) for name in ("Spanish", "es-MX", "spa_Latn", "<|es|>", "es_XX", "cmn", "elvish")]
    ['es', 'es', 'es', 'es', 'es', 'zh', None]
    """
    names, codes = _tables()
    plain = _plain(name)
    return names.get(plain) or codes.get(re.split("[-_]", plain)[0])


def _script(name: str) -> str | None:
    """The script that a code tells, such as `latn` of `srp_Latn`."""
    return next((part for part in re.split("[-_]", _plain(name))[1:] if len(part) == 4 and part.isalpha()), None)


@dataclass(frozen=True)
class Languages:
    """The languages that a model is told by codes of its own; without any for a model that is told none."""

    codes: tuple[str, ...] = ()
    display_name: str = ""
    """The model's."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Codes by names of the model's own."""
    default: str | None = None
    """Code for rows that tell none."""

    def find(self, name: str) -> list[str]:
        """The model's codes for a language: that of its own code or name, or all that ISO 639 makes the same."""
        plain = _plain(name)
        if plain in self._own or self.names.get(plain) in self.codes:
            return [self._own.get(plain) or self.names[plain]]
        found = [code for code in self.codes if standard(code) == standard(name) is not None]
        if script := _script(name):
            found = [code for code in found if _script(code) in (None, script)]
        return found

    @cached_property
    def _own(self) -> dict[str, str]:
        """Codes by what is left of them without signs; batches ask for each row's."""
        return {_plain(code): code for code in self.codes}

    def code(self, name: str | None) -> str:
        """The one code for a language, or the default where there is no name; else DataError, with what there is."""
        if not (name or "").strip():
            if self.default is None:
                raise DataError(f"has no language, and {self.display_name} has to be told one")
            return self.default
        found = self.find(str(name))
        if len(found) > 1:
            raise DataError(f"`{name}` is several languages of {self.display_name}: {', '.join(found)}. Name one.")
        if not found:
            hint = did_you_mean(str(name), self.names) or "."
            raise DataError(f"{self.display_name} does not know `{name}`{hint} It knows: {self.listed}.")
        return found[0]

    @property
    def listed(self) -> str:
        """All codes, with a name of the model's where it has some."""
        by_code = {code: name for name, code in reversed(list(self.names.items()))}
        return ", ".join(f"{code} ({by_code[code]})" if code in by_code else code for code in self.codes)

    def shown(self, name: str | None) -> str:
        """A row's language as scores name it: the model's code, or else ISO 639's, or else as the data have it."""
        if self.codes:
            return self.code(name)
        plain = (name or "").strip()
        return standard(plain) or plain or UNKNOWN


def told_languages(splits: Mapping[str, Split]) -> Iterator[tuple[Split, str | None]]:
    """Languages as the rows of each split name them, each once, where they have a column of them."""
    for split in splits.values():
        if LANGUAGE in split.rows.column_names:
            yield from ((split, name) for name in split.rows.unique(LANGUAGE))


def _first_row(split: Split, name: str | None) -> str:
    """The place of the first row with this language, to begin a message with."""
    return f"{split.where}: {split.called(split.rows[LANGUAGE][:].index(name))}"


def check_languages(splits: Mapping[str, Split], languages: Languages) -> None:
    """Raise DataError that names the first row whose language the model does not know."""
    for split, name in told_languages(splits):
        try:
            languages.shown(name)
        except DataError as reason:
            raise DataError(f"{_first_row(split, name)}: {reason}") from reason


def only_language(splits: Mapping[str, Split], why: str) -> str | None:
    """The one language of all rows, None without a column; DataError for several, with `why` there can be one alone."""
    found = dict[str, tuple[Split, str]]()
    for split, name in told_languages(splits):
        if name is not None and name.strip():
            found.setdefault(standard(name) or name, (split, name))
    if len(found) > 1:
        split, name = list(found.values())[1]
        raise DataError(
            f"{_first_row(split, name)}: is in `{name}`, and there are rows in {next(iter(found))}, too: "
            f"{why}. Name a data set of one language, or leave `columns.language` out."
        )
    return next((name for _, name in found.values()), None)
