"""The set-up of templates: of pages in HTML, and of cards in Markdown."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from tltasks.reports.formatting import (
    UNKNOWN,
    data_uri,
    is_number,
    show_duration,
    show_gain,
    show_interval,
    show_limit,
    show_number,
    show_share,
    words,
)
from tltasks.results.comparison import baseline_name, short_name
from tltasks.results.metric_names import metric_in_text, metric_name

HERE = Path(__file__).parent


@functools.cache
def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates of pages, of further `folders` too."""
    environment = _environment([HERE, *folders], trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "data_uri": data_uri,
        "coded": _coded,
        "head": _head,
    }
    return environment


def _coded(text: str) -> Markup:
    """A sentence with its code set as code; no line parts a number from its %.

    >>> str(_coded("`a<b` of 95 %"))
    '<code>a&lt;b</code> of 95\xa0%'
    """
    kept = re.sub(r"(?<=\d) %", "\xa0%", str(escape(text)))
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", kept))  # noqa: S704 (escaped)


def _head(text: str) -> Markup:
    """The head of a column; no line parts a word at its hyphen, nor a number from its %.

    >>> str(_head("ROUGE-2")), str(_head("Length ratio")), str(_head("95 % interval"))
    ('<span class="whole">ROUGE-2</span>', 'Length ratio', '95\xa0% interval')
    """
    kept = re.sub(r"(?<=\d) %", "\xa0%", str(escape(text)))
    return Markup(re.sub(r"[^\s-]+(-[^\s-]+)+", r'<span class="whole">\g<0></span>', kept))  # noqa: S704 (escaped)


@functools.cache
def card_environment() -> jinja2.Environment:
    """Templates of cards: of the checkout, or inside the installed package."""
    package = HERE.parent
    beside = package.parent / "hub_cards"
    folder = beside if beside.is_dir() else package / "hub_cards"
    environment = _environment([folder], finalize=_finalize, keep_trailing_newline=True)
    environment.filters |= {
        "width": lambda ends: ends[1] - ends[0] if all(map(is_number, ends)) else None,
        "given": lambda value: UNKNOWN if value is None else value,
        "grams": lambda n: f"{n / 1000:.2g} kg" if n >= 1000 else f"{n:.2g} g",
        "some": lambda rows: ", ".join(rows[:10]) + (f" and {len(rows) - 10:,} more" if len(rows) > 10 else ""),
        "python": lambda text: Markup(json.dumps(text, ensure_ascii=False)),  # noqa: S704 (a literal, in a code block)
    }
    return environment


def _environment(folders: list[Path], **options: object) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # so that what macros return is Markup, and not cleaned again
        **options,  # type: ignore[arg-type]
    )
    environment.filters |= {
        "baseline": baseline_name,
        "in_short": short_name,
        "count": lambda n: f"{n:,}",
        "day": lambda day: f"{day.day} {day:%B %Y}",
        "duration": show_duration,
        "gibibytes": lambda n: f"{n / 2**30:.1f} GiB",
        "number": show_number,
        "percent": show_share,
        "limit": show_limit,
        "interval": show_interval,
        "gain": show_gain,
        "words": words,
        "metric": metric_name,
        "shell": shlex.quote,
        "metric_in_text": metric_in_text,
    }
    return environment


def _finalize(value: object) -> object:
    return value if isinstance(value, (Markup, int, float)) else clean(str(value))


def clean(text: str) -> Markup:
    """Data as one line of plain text wherever it stands in Markdown: no markup, HTML, link, table cell or code of it.

    >>> str(clean("a|b\\n*c* <img>"))
    'a&#124;b &#42;c&#42; &#60;img&#62;'
    """
    joiners = "\u200c\u200d"  # which Persian, Indic scripts and emoji need; other invisible characters can deceive
    line = " ".join("".join(c if c.isprintable() or c in joiners else " " for c in text).split())
    special = r"[&<>\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\."
    return Markup(re.sub(special, lambda found: f"&#{ord(found.group())};", line))  # noqa: S704 (what this function is for)


def fenced(text: str, language: str) -> Markup:
    """A code block whose fence is longer than any in the text.

    >>> print(fenced("```", "yaml"))
    ````yaml
    ```
    ````
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")  # noqa: S704 (as above)
