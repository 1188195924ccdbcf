"""A job's progress: one line that is drawn again on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from ditmesh.cli.tables import counted
from ditmesh.client import Accepted, Event, Progress, Queued, Retrying

_PLAIN_LINES = 10  # about so many for a whole job
_BAR = 30
_GREEN, _DEFAULT = "\x1b[32m", "\x1b[39m"
_CLEAR = "\r\x1b[2K"


class ProgressView:
    """Shows the events of one job on a stream.

    A terminal gets a bar, in colour unless NO_COLOR (https://no-color.org) or TERM=dumb says
    otherwise; a terminal that is dumb, and anything else, gets lines.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty() and environment.get("TERM") != "dumb"
        self._colour = self._live and not environment.get("NO_COLOR")
        encoding = (stream.encoding or "").lower()
        self._marks = ("█", "░") if encoding.startswith("utf") else ("#", "-")
        self._started_at: float | None = None
        self._first_step = 0

    def show(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, Accepted):
            if event.resumed:
                self.say("the stream broke and was taken up again")
            elif event.position:
                self._status(f"queued: {counted(event.position, 'job')} before this one")
        elif isinstance(event, Queued):
            if event.position:
                self._status(f"queued: {counted(event.position, 'job')} before this one")
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Retrying) and event.attempt == 2:
            self.say(f"trying again: {event.problem}")

    def leave(self) -> None:
        """The job is done: its bar stays, and what comes next is written below."""
        if self._live and self._started_at is not None:
            self._write("\n")

    def say(self, words: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(words + "\n")

    def clear(self) -> None:
        """Take the bar away, so that something else can be written."""
        if self._live:
            self._write(_CLEAR)

    def _progress(self, event: Progress) -> None:
        now = self._clock()
        if self._started_at is None:
            # The first step says when steps began, not how long one takes.
            self._started_at, self._first_step = now, event.step
        done = event.step - self._first_step
        each = (now - self._started_at) / done if done else None
        pace = "" if each is None else f"  {each:.2f} s/step"
        if self._live:
            left = "" if each is None else f"  {each * (event.steps - event.step):.0f} s left"
            text = f"step {event.step}/{event.steps} on {event.executor}{pace}{left}"
            self._status(text, share=event.step / max(event.steps, 1))
        elif event.step == event.steps or event.step % max(event.steps // _PLAIN_LINES, 1) == 0:
            self._write(f"step {event.step}/{event.steps} on {event.executor}{pace}\n")

    def _status(self, text: str, share: float | None = None) -> None:
        if not self._live:
            self._write(text + "\n")
            return
        columns = shutil.get_terminal_size().columns
        bar = ""
        if share is not None and columns > _BAR + len(text) + 4:
            full = round(share * _BAR)
            bar = self._green(self._marks[0] * full) + self._marks[1] * (_BAR - full) + "  "
        self._write(_CLEAR + bar + text[: columns - 1])

    def _green(self, text: str) -> str:
        return f"{_GREEN}{text}{_DEFAULT}" if self._colour else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
