"""Files of the web: who is asked is checked at each hop, and the whole takes no longer than it may.

A name is resolved once, and the connection goes to the address that was looked at. Proxies of the environment are
passed by, since nobody could look at the address that these reach.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
from collections.abc import Container, Iterator
from urllib.parse import quote, urljoin, urlsplit

from tltasks.errors import DataError, first_line

TIMEOUT_SECONDS = 30.0
"""Without a byte."""
TOTAL_SECONDS = 300.0
"""For a file, redirects included."""
MOST_HOPS = 5
_MOVED = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def origin(url: str) -> str:
    """Scheme, host and port, in the form that tells whether two URLs have the same.

    >>> origin("HTTP://Example.org/a") == origin("http://example.org:80/b")
    True
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or {'http': 80, 'https': 443}.get(parts.scheme)}"


def is_public(address: str) -> bool:
    """False for addresses of this machine, of local networks and of providers' own, however they are written.

    >>> [is_public(a) for a in ("93.184.215.14", "10.1.2.3", "::ffff:127.0.0.1", "100.64.0.1", "fe80::1%eth0")]
    [True, False, False, False, False]
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved)


def read(url: str, known: Container[str] = ()) -> Iterator[bytes]:
    """The parts of a file, without any login; raises DataError for what cannot be had.

    What is not public is asked only at an origin that is `known` to the user.
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        for _ in range(MOST_HOPS + 1):
            with _opened(url, deadline, checked=origin(url) not in known) as answer:
                if answer.status in _MOVED and (target := answer.getheader("Location")):
                    url = urljoin(url, target)
                    continue
                if not 200 <= answer.status < 300:
                    raise DataError(f"cannot be fetched: {answer.status} {answer.reason}".rstrip())
                while part := answer.read1(2**16):
                    yield part
                if answer.length or time.monotonic() >= deadline:
                    raise OSError("it ended early")
                return
        raise DataError(f"cannot be fetched: moved more than {MOST_HOPS} times")
    except (http.client.HTTPException, OSError, ValueError) as error:
        late = time.monotonic() >= deadline
        reason = f"took longer than {TOTAL_SECONDS:.0f} s" if late else first_line(error)
        raise DataError(f"cannot be fetched: {reason}") from error


@contextlib.contextmanager
def _opened(url: str, deadline: float, *, checked: bool) -> Iterator[http.client.HTTPResponse]:
    """The answer of one host; its connection is cut at the deadline, whatever trickles in."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise DataError("cannot be fetched: it leads to what is not of the web, or to a login")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname.encode("idna").decode(), parts.port, timeout=TIMEOUT_SECONDS)

    def connect(place: tuple[str, int], *_: object) -> socket.socket:
        places = [found[4] for found in socket.getaddrinfo(*place, type=socket.SOCK_STREAM)]
        if checked and not all(is_public(str(found[0])) for found in places):
            raise DataError(f"cannot be fetched: {parts.hostname} is of this machine or its network; name it yourself")
        made = socket.create_connection((str(places[0][0]), place[1]), TIMEOUT_SECONDS)
        held.append(made.dup())  # the connection hands its own on, to TLS and to the answer
        return made

    def cut() -> None:
        for one in held:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    held: list[socket.socket] = []

    connection._create_connection = connect  # type: ignore[attr-defined]
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        target = quote(f"{parts.path or '/'}?{parts.query}".rstrip("?"), safe="/%:@!$&'()*+,;=~?")
        connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "tltasks"})
        yield connection.getresponse()
    finally:
        timer.cancel()
        connection.close()
        for one in held:
            one.close()
