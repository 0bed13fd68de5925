"""Single files from the web, for predictions that were asked to fetch them."""

from __future__ import annotations

import re

import httpx2

from tltasks.errors import DataError, first_line

MOST_BYTES = 256 * 2**20
"""Of one file; what is larger is no single picture, clip or document."""
TIMEOUT_SECONDS = 30.0
"""Without a byte."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = re.compile(r"https?://", re.IGNORECASE)


class Address(str):
    """Where a file of the web lies."""


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def is_web(name: str) -> bool:
    """Whether it is one that `fetch` can get; others (`file://`, `s3://`) name what is not the web's."""
    return _WEB.match(name) is not None


def fetch(address: Address) -> bytes:
    """Its content, without any login; raises DataError for what cannot be had."""
    content = bytearray()
    try:
        with httpx2.stream("GET", str(address), follow_redirects=True, timeout=TIMEOUT_SECONDS) as answer:
            if answer.is_error:
                raise DataError(f"cannot be fetched: {answer.status_code} {answer.reason_phrase}".rstrip())
            for part in answer.iter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise DataError(f"is larger than {MOST_BYTES >> 20} MiB; download it and name the file")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise DataError(f"cannot be fetched: {first_line(error)}") from error
    return bytes(content)
