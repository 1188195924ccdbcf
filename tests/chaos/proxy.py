"""A TCP proxy that does to connections what networks do: cut, stall, slow down, refuse.

Faults act on the connections that are open and on those that come, until they are undone.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

_RESET = struct.pack("ii", 1, 0)  # linger for no time: close sends a reset
_CHUNK = 1 << 14
_POLL_S = 0.05
_CONNECT_S = 5.0


@dataclass
class _Pair:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    closed: bool = field(default=False)

    def reset(self) -> None:
        """Break it for both ends at once."""
        self.closed = True
        for end in (self.client, self.server):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _shut(end)
            end.close()

    def ends(self) -> None:
        """One side has ended: end both."""
        self.closed = True
        for end in (self.client, self.server):
            _shut(end)
            end.close()


class FaultProxy:
    """Forwards connections to `target`, host:port, which may be set later.

    answers: bytes that came back from the target so far.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.answers = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._rate: float | None = None
        self._left: int | None = None
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self) -> int:
        """Reset every connection; new ones are taken. Returns how many were broken."""
        with self._lock:
            broken, self._pairs = [p for p in self._pairs if not p.closed], []
        for pair in broken:
            pair.reset()
        return len(broken)

    def cut_after(self, nbytes: int) -> None:
        """Let so many more bytes come back from the target, then cut: in the middle of a message,
        if messages are longer.
        """
        with self._lock:
            self._left = nbytes

    def stall(self) -> None:
        """Deliver nothing more in either direction, without a word; connections stay open."""
        self._flowing.clear()

    def slow(self, bytes_per_s: float) -> None:
        """Let no connection carry more than this in either direction."""
        self._rate = bytes_per_s

    def refuse(self) -> None:
        """Cut what is open and reset every new connection at once."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Forward as if nothing had been."""
        self._refusing, self._rate = False, None
        with self._lock:
            self._left = None
        self._flowing.set()

    def close(self) -> None:
        """Stop for good."""
        self._closing = True
        self.heal()
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            if self._refusing or not port:
                raise ConnectionRefusedError
            server = socket.create_connection((host, int(port)), _CONNECT_S)
        except OSError:
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        with self._lock:
            self._pairs = [*(p for p in self._pairs if not p.closed), pair]
        threading.Thread(target=self._forward, args=(pair, False), daemon=True).start()
        threading.Thread(target=self._forward, args=(pair, True), daemon=True).start()

    def _forward(self, pair: _Pair, answering: bool) -> None:
        source, sink = (pair.server, pair.client) if answering else (pair.client, pair.server)
        with suppress(OSError):  # broken on purpose, or by an end that is gone
            while data := source.recv(_CHUNK):
                while not self._flowing.wait(_POLL_S):
                    if pair.closed:
                        return
                if self._rate is not None:
                    time.sleep(len(data) / self._rate)
                if answering and self._cuts(pair, sink, data):
                    return
                sink.sendall(data)
        pair.ends()

    def _cuts(self, pair: _Pair, sink: socket.socket, data: bytes) -> bool:
        """Count answers; at the end of what `cut_after` left, send that much and break."""
        with self._lock:
            self.answers += len(data)
            if self._left is None:
                return False
            self._left -= len(data)
            if self._left > 0:
                return False
            end, self._left = len(data) + self._left, None
        sink.sendall(data[: max(end, 0)])
        # Orderly for this end, so that the half is delivered; a reset would drop it.
        _shut(sink)
        pair.ends()
        self.cut()
        return True


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # it is shut already
        end.shutdown(socket.SHUT_RDWR)
