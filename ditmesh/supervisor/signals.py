"""The signals of a supervisor, as bytes in a pipe: it sleeps until one comes."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What stops a supervisor."""
HANDLED: Final = (*STOP_SIGNALS, signal.SIGCHLD)
"""All that it handles; children get the default handlers back."""
Pipe = tuple[int, int]
"""File descriptors of the reading and the writing end."""


@contextmanager
def wakeup_pipe() -> Iterator[Pipe]:
    """A pipe that gets one byte, its number, for every signal that this module handles.

    Handlers and not a blocked mask with sigwait: libraries that were imported may have threads of
    their own, to which the kernel would deliver what the main thread blocks.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    handled = [
        number
        for number in HANDLED
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)  # nohup
    ]
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def read_signals(pipe: Pipe, timeout_s: float | None) -> bytes:
    """Waits for signals; their numbers, or nothing when the time is over."""
    readable, _, _ = select.select([pipe[0]], [], [], timeout_s)
    return os.read(pipe[0], 4096) if readable else b""
