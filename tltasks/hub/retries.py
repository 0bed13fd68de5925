"""Requests to the Hub that are made again while trouble may pass, and one error for trouble that does not.

Whatever it says, it never says a token.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub import get_session, get_token
from huggingface_hub.errors import DeviceCodeError, HfHubHTTPError, OfflineModeIsEnabled, OIDCError
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from tltasks.errors import HubError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
# All that the client raises, hf_xet's own errors (OSError) and a body that is no JSON (ValueError) included.
CLIENT_ERRORS = (httpx2.HTTPError, OSError, ValueError, RuntimeError, OIDCError, DeviceCodeError)
# JSONDecodeError: a gateway's page where the client expects JSON. RuntimeError: hf_xet, about its connections.
_PASSING_ERRORS = (httpx2.TransportError, ConnectionError, TimeoutError, json.JSONDecodeError, RuntimeError)


@dataclass(frozen=True)
class RetryPolicy:
    """Patience with trouble that may pass: 409, 412, 429, 5xx, broken connections, timeouts."""

    attempts: int = 4
    first_wait: float = 2.0
    """Seconds; doubles with each attempt, unless the Hub names a time (Retry-After)."""
    longest_wait: float = 120.0
    """Seconds; a longer Retry-After ends the attempts at once."""
    timeout: float = 120.0
    """Seconds without a byte from the Hub, or taken by it."""


DEFAULT_RETRIES = RetryPolicy()


def with_retries(action: Callable[[], T], what: str, *, advice: str, policy: RetryPolicy) -> T:
    """Run `action` until it succeeds, the policy ends or trying again cannot help; then raise one HubError.

    Each attempt must begin with a look at the repository, so that one whose answer was lost is found to be done, and a
    commit of somebody else's in between is judged anew.
    """
    attempt = 0
    while True:
        attempt += 1
        client = get_session()
        usual, client.timeout = client.timeout, policy.timeout  # the client's own is none (utils/_http.py)
        try:
            return action()
        except HubError as error:
            reason, wait = str(error), None
        except CLIENT_ERRORS as error:
            cause = _root_cause(error)
            reason, wait = _describe(cause), _seconds_to_wait(cause, attempt, policy)
        finally:
            client.timeout = usual
        if wait is None or attempt >= policy.attempts:
            tried = f" Tried {attempt} times." if attempt > 1 else ""
            # `from None`: what the client's errors hold may include request headers.
            raise HubError(_without_tokens(f"{what}: {reason}{tried} {advice}")) from None
        # Said at once: somebody may be waiting. Logging's last resort, where nothing is set up, is a line on stderr.
        _LOG.warning(
            _without_tokens(f"{what}: {reason} Trying again in {wait:.0f} s ({attempt} of {policy.attempts}).")
        )
        time.sleep(wait)


def may_have_succeeded(error: BaseException) -> bool:
    """Tell whether the Hub may have done what it was asked to, its answer alone being lost."""
    cause = _root_cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500
    return not isinstance(cause, httpx2.ConnectError)


def _root_cause(error: BaseException) -> BaseException:
    """The answer or broken connection behind an error; uploads wrap theirs (huggingface_hub, _commit_api.py)."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled)):
            return link
        link = link.__cause__ or link.__context__
    return error


def _seconds_to_wait(cause: BaseException, attempt: int, policy: RetryPolicy) -> float | None:
    """Seconds until another attempt may succeed; None if none will."""
    wait = min(policy.first_wait * 2 ** (attempt - 1), policy.longest_wait)
    if not isinstance(cause, HfHubHTTPError):
        return wait if isinstance(cause, _PASSING_ERRORS) and not isinstance(cause, OfflineModeIsEnabled) else None
    status, headers = cause.response.status_code, cause.response.headers
    if status not in {408, 409, 412, 429} and status < 500:
        return None
    limit, after = parse_ratelimit_headers(headers), headers.get("Retry-After", "")
    if after.isdecimal():
        wait = float(after)
    elif status == 429 and limit is not None and limit.remaining == 0:
        wait = float(limit.reset_in_seconds)
    return wait if wait <= policy.longest_wait else None


def _describe(cause: BaseException) -> str:
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        said = f" It says: {cause.server_message}." if cause.server_message else ""
        return f"{_STATUS.get(min(status, 500), 'the Hub refused')} ({status}).{said}"
    if isinstance(cause, PermissionError):  # hf_xet.XetAuthenticationError
        return f"{_STATUS[401]}: {cause}."
    if isinstance(cause, httpx2.TimeoutException):
        return "the Hub did not answer in time."
    if isinstance(cause, (httpx2.TransportError, ConnectionError)):
        return f"the connection to the Hub broke ({type(cause).__name__}: {cause})."
    if isinstance(cause, json.JSONDecodeError):
        return "the Hub's answer was not what its client expects; it may be in trouble."
    return f"{type(cause).__name__}: {cause}."


_STATUS = {
    401: "the Hub does not accept the login; run `hf auth login` again (HF_TOKEN, where set, comes first)",
    402: "the account has no credit for this; see https://huggingface.co/settings/billing",
    403: "the login may not do this; run `hf auth login` with a token that may write, or change hub.repo",
    404: "not found, or not to be seen with this login; check hub.repo and `hf auth login`",
    409: "somebody else is changing the repository",
    412: "somebody else changed the repository in between",
    429: "too many requests; wait some minutes",
    500: "the Hub is in trouble",
}


def _without_tokens(text: str) -> str:
    try:
        token = get_token()
    except CLIENT_ERRORS:
        token = None
    if token:
        text = text.replace(token, "hf_…")
    return re.sub(r"hf_[\w.-]*\w", "hf_…", text)
