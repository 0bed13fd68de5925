"""Numbers, names and media as people read them."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal
from typing import TypeGuard

from tltasks.results.comparison import decimals, signed, signed_interval
from tltasks.results.result import Interval

UNKNOWN = "–"
MEDIA_TYPES = {"image": "image/png", "audio": "audio/flac", "svg": "image/svg+xml"}


def is_number(value: object) -> TypeGuard[float]:
    """Tell finite numbers from others, which are null in result.json."""
    return isinstance(value, int | float) and math.isfinite(value)


def show_number(value: float | None, digits: int | None = None) -> str:
    """
    >>> [show_number(v) for v in (0.84321, 12345.6, 0.00012, 0.99988, 1.0, 4.2e-9, None, float("nan"))]
    ['0.843', '12,345.6', '1.2e-04', '0.9999', '1.000', '0.000', '–', '–']
    """
    if not is_number(value):
        return UNKNOWN
    if digits is not None:
        return f"{value:,.{digits}f}"
    value = value if abs(value) > 5e-8 else 0.0  # rounding of a sum of 32-bit numbers, or a zero with a sign
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.{decimals(1 - value) if 0 < value < 1 else 3}f}"


def show_limit(value: float) -> str:
    """A probability as a limit that it reaches itself: rounded down.

    >>> [show_limit(v) for v in (0.8427, 0.99988, 0.99996, 1.0)]
    ['0.842', '0.9998', '0.99996', '1.000']
    """
    step = Decimal(1).scaleb(-max(decimals(value), decimals(1 - value)))
    return str(Decimal(repr(value)).quantize(step, ROUND_FLOOR))


def show_gain(gain: float | None, interval: Interval | None = None) -> str:
    """A difference, with its interval where one is given.

    >>> show_gain(0.005, (0.0001, 0.0092)), show_gain(0.5, (float("nan"), float("nan"))), show_gain(None)
    ('+0.0050 (+0.0001 to +0.0092)', '+0.500 (no interval)', '–')
    """
    if not is_number(gain):
        return UNKNOWN
    if interval is None or not all(map(is_number, interval)):
        return signed(gain, decimals(gain)) + ("" if interval is None else " (no interval)")
    return "{} ({} to {})".format(*signed_interval(gain, interval))


def show_interval(interval: Sequence[float | None] | None) -> str:
    """
    >>> [show_interval(ends) for ends in ((0.461, 0.62), (0.000003, 0.04), (-0.02, 0.04), (0.9984, 0.99997), None)]
    ['0.461 to 0.620', '0.0000 to 0.0400', '−0.020 to +0.040', '0.99840 to 0.99997', 'no interval']
    """
    known = [end for end in interval or () if is_number(end)]
    if len(known) < 2:
        return "no interval"
    low, high = known
    if low < 0:
        return "{1} to {2}".format(*signed_interval(0.0, (low, high)))
    digits = max(decimals(low, high), decimals(high - low), *(decimals(1 - end) for end in known))
    return f"{low:,.{digits}f} to {high:,.{digits}f}"


def show_bytes(count: int) -> str:
    """A size of memory.

    >>> show_bytes(3 * 2**30), show_bytes(5 * 2**19)
    ('3.00 GiB', '2.5 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count > 2**27 else f"{count / 2**20:.1f} MiB"


def show_duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [show_duration(s) for s in (0.42, 9.96, 100, 3599.6, 5000)]
    ['0.4 s', '10 s', '1 min 40 s', '1 h 0 min', '1 h 23 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def show_share(share: float, digits: int = 0) -> str:
    """A share in hundredths, which a line does not part from their sign.

    >>> show_share(0.1007, 2), show_share(1)
    ('10.07\\xa0%', '100\\xa0%')
    """
    return f"{100 * share:.{digits}f}\xa0%"


def show_seconds(seconds: float) -> str:
    """The time of a step.

    >>> [show_seconds(s) for s in (0.0, 0.00042, 0.0231, 0.4, 12.3, 3600.0)]
    ['–', '0.4 ms', '23.1 ms', '400 ms', '12.3 s', '3,600 s']
    """
    value, unit = (1000 * seconds, "ms") if seconds < 0.9995 else (seconds, "s")
    return f"{value:,.{1 if value < 99.95 else 0}f} {unit}" if seconds else UNKNOWN


def words(name: str) -> str:
    return name.replace("_", " ")


def data_uri(content: bytes | str, kind: str) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{MEDIA_TYPES[kind]};base64,{base64.b64encode(raw).decode()}"
