"""What ComfyUI tells a browser while it works, over its websocket."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_TEXT, _BINARY, _CLOSE = 1, 2, 8
_PREVIEWS, _NODE_TEXT = (1, 4), 3


@dataclass(frozen=True)
class Told:
    """One message: `kind` is ComfyUI's own name for it, `preview` or `node_text`."""

    kind: str
    data: Any


class Listener:
    """A websocket of ComfyUI's (RFC 6455), read only."""

    def __init__(self, port: int, client: str) -> None:
        """`client`: for whom prompts were queued."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = "AAAAAAAAAAAAAAAAAAAAAA=="
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline() != b"\r\n":
            continue

    def until_idle(self) -> Iterator[Told]:
        """What is told until the prompt has ended."""
        while True:
            told = self._next()
            yield told
            if told.kind == "executing" and told.data["node"] is None:
                return

    def _next(self) -> Told:
        kind, body = self._frame()
        while kind not in (_TEXT, _BINARY):
            assert kind != _CLOSE, "ComfyUI closed the websocket"
            kind, body = self._frame()
        if kind == _TEXT:
            message = json.loads(body)
            return Told(message["type"], message["data"])
        (event,) = struct.unpack_from(">I", body)
        if event in _PREVIEWS:
            return Told("preview", body[4:])
        assert event == _NODE_TEXT, event
        (length,) = struct.unpack_from(">I", body, 4)
        return Told("node_text", (body[8 : 8 + length].decode(), body[8 + length :].decode()))

    def _frame(self) -> tuple[int, bytes]:
        """Opcode and payload; servers mask nothing, and ComfyUI sends each message in one frame."""
        first, second = self._file.read(2)
        assert first & 0x80, "a message in several frames"
        length = second & 0x7F
        if length >= 126:
            layout = ">H" if length == 126 else ">Q"
            (length,) = struct.unpack(layout, self._file.read(struct.calcsize(layout)))
        return first & 0x0F, self._file.read(length)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._socket.close()


def client_id() -> str:
    """A name for a browser."""
    return os.urandom(8).hex()
