"""The nodes' addresses from what the operator wrote."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator

_ENTRY = re.compile(r"(?P<all>all:)?(?P<host>.+):(?P<first>\d{1,5})(-(?P<last>\d{1,5}))?")


def expand(entries: Iterable[str]) -> tuple[str, ...]:
    """One gRPC address a node, in order, once each.

    `HOST:PORT` is one node and `HOST:FIRST-LAST` one for each port. A name stays a name, so that
    a node that comes back under another IP is found again, and one that does not resolve yet is
    a node that is down. `all:HOST:PORT` stands for every address that the name has now, such as
    those behind a headless service.

    Raises ValueError for an entry that is none of these, and OSError for a name after `all:` that
    does not resolve.
    """
    found: dict[str, None] = {}
    for entry in entries:
        found.update(dict.fromkeys(_expanded(entry)))
    return tuple(found)


def _expanded(entry: str) -> Iterator[str]:
    if entry.startswith("unix:"):
        yield entry
        return
    match = _ENTRY.fullmatch(entry)
    first = int(match["first"]) if match else 0
    last = int(match["last"]) if match and match["last"] else first
    if match is None or not 0 < first <= last < 65536:
        raise ValueError(f"node {entry!r} is not HOST:PORT, HOST:FIRST-LAST or all:HOST:PORT")
    for port in range(first, last + 1):
        if match["all"]:
            yield from _resolved(match["host"], port)
        else:
            yield f"{match['host']}:{port}"


def _resolved(host: str, port: int) -> Iterator[str]:
    for family, _, _, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM
    ):
        literal = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        yield f"{literal}:{port}"
